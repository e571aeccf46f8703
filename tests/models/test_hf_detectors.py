"""Detectors of transformers: full rank equals dense, heads stay dense, and a detector around a
compressed backbone keeps its low-rank layers."""

from __future__ import annotations

import json
from types import SimpleNamespace

import drawn_boxes
import families
import pytest
import torch
from tiny_detectors import DETR, FAMILIES, SWIN, VIT, detection_batch, detection_data, tiny_detector

import pelacli
from pelacli.artefact import changes, description, loading, saving
from pelacli.errors import RequestError
from pelacli.lowrank import find
from pelacli.models import opening
from pelacli.models.around import detector
from pelacli.models.hf import detectors
from pelacli.tasks import registry


@pytest.fixture(scope="module")
def drawn(tmp_path_factory):
    return drawn_boxes.write(tmp_path_factory.mktemp("drawn") / "d", {"train": 8, "val": 4}, most=2)


@pytest.mark.parametrize(("family", "args"), FAMILIES, ids=[name for name, _ in FAMILIES])
def test_full_rank_equals_dense_and_artefacts_reload(family, args, tmp_path):
    output = families.output
    if family == "rt_detr":  # all its 84 places are queries, in an order that rounding may change
        args = args | {"num_queries": 84}
        output = mean_output
    families.check_compression(families.with_larger_weights(small(family, args)), tmp_path, output)


def mean_output(module, batch):
    """The mean over the queries."""
    return families.output(module, batch).mean(1)


def small(family, args):
    """A tiny detector for images of 64 pixels."""
    opened = tiny_detector(family, args)
    opened.inputs = detectors.describe(opened.module, {"size": {"height": 64, "width": 64}})
    opened.carried["preprocessor_config.json"] = json.dumps(dict(opened.inputs.processor)).encode()
    return opened


@pytest.mark.parametrize("family", [name for name, _ in FAMILIES])
def test_the_heads_stay_dense_and_the_layers_do_not(family):
    opened = tiny_detector(family)
    reasons = {la.name: la.reason for la in find.find_layers(opened.module, head=opened.head)}
    heads = {name for name, reason in reasons.items() if reason == "output head"}
    assert all(any(part in name for part in ("class", "bbox", "head")) for name in heads)
    assert not [n for n, m in opened.module.named_modules()
                if reasons.get(n, "") is None and getattr(m, "out_features", 0) <= 4]  # fmt: skip
    blocks = registry.get("detection").taps(opened.module)
    free = [name for name, reason in reasons.items() if reason is None]
    assert blocks
    assert all(any(name.startswith(f"{block}.") for name in free) for block in blocks)
    assert not any("bbox" in block for block in blocks)
    if family == "rt_detr":  # its queries are about places that each model chooses for itself
        assert not any("decoder" in block for block in blocks)
    else:
        assert len(blocks) == (2 if family == "yolos" else 3)


def compressed(family, args):
    """A small classifier at 70 % of its layers' parameters, and its record."""
    opened = opening.open(family, weights="random", model_args=args, num_classes=3)
    layers = find.find_layers(opened.module, head=opened.head)
    spent = description.cost(opened, layers)
    plan = pelacli.decompose(opened.module, ratio=0.7, scope="layers")
    return opened, description.describe(opened, layers, spent, plan)


@pytest.mark.parametrize(
    ("family", "args"), [("vit", VIT), ("deit", VIT), ("swin", SWIN)], ids=["vit", "deit", "swin"]
)
def test_a_detector_around_a_compressed_backbone(family, args, drawn, tmp_path):
    opened, described = compressed(family, args)
    places = find.linear_modules(opened.module)
    low = find.low_rank_layers(opened.module)
    low.pop("pooler.dense", None)  # an output of the ViT, which a YOLOS has not
    assert len(low) >= 6
    settings = [f"{name}={value}" for name, value in DETR.items()] if family == "swin" else []
    task = registry.get("detection", {"queries": 5, "detector_args": settings})
    dataset = task.open(detection_data(drawn, 64), "train", inputs=opened.inputs)
    fitted = task.fit(opened, dataset, None, seed=0)
    wanted = "DetrForObjectDetection" if family == "swin" else "YolosForObjectDetection"
    assert type(fitted.module).__name__ == wanted
    assert set(find.low_rank_layers(fitted.module).values()) == set(low.values())
    moved = changes.relocated(fitted, described, places)
    ranks = {row.name: row.rank for row in moved.layers if row.rank is not None}
    assert ranks == {n: m.rank for n, m in find.low_rank_layers(fitted.module).items()}
    assert moved.params.after == fitted.params < moved.params.before
    assert moved.flops.after < moved.flops.before

    batch = detection_batch(drawn, fitted, side=64)
    with torch.no_grad():
        output = fitted.module.eval()(**batch["inputs"])
        pixels = batch["inputs"]["pixel_values"]
        if family == "swin":
            theirs = opened.module.base_model.eval()(pixels, output_hidden_states=True)
            ours = fitted.module.model.backbone.model.swin(pixels, output_hidden_states=True)
            assert torch.equal(ours.reshaped_hidden_states[-1], theirs.reshaped_hidden_states[-1])
        else:
            tokens = torch.randn(2, 9, 48)
            for ours, theirs in zip(
                fitted.module.vit.encoder.layer, opened.module.base_model.layers, strict=True
            ):
                theirs = theirs.eval()(tokens)
                theirs = theirs[0] if isinstance(theirs, tuple) else theirs
                assert torch.allclose(ours(tokens), theirs, atol=1e-6)
            table = opened.module.base_model.embeddings.position_embeddings
            own = fitted.module.vit.embeddings.position_embeddings
            assert torch.equal(own[:, 1:37], table[:, -36:])
            assert own.shape == (1, 1 + 36 + 5, 48)
    assert output.logits.shape == (4, 5, 2 + 1)

    saving.save(fitted, moved, tmp_path / "a")
    back = loading.load(tmp_path / "a")
    with torch.no_grad():
        assert torch.equal(back.module(**batch["inputs"]).logits, output.logits)
    assert back.opened.inputs == fitted.inputs
    assert fitted.inputs.labels == ("square", "disc")
    assert fitted.inputs.mean == opened.inputs.mean


def test_positions_of_another_grid_are_resized():
    opened, _ = compressed("vit", VIT)
    table = opened.module.embeddings.position_embeddings
    ramp = torch.arange(6.0)[:, None].expand(6, 6).reshape(1, 36, 1)  # the row, in every channel
    with torch.no_grad():
        table[:, 1:] = ramp
    wider = detector.detector(opened, None, 2, 3, {"image_size": [96, 48]}, seed=0)
    grid = wider.module.vit.embeddings.position_embeddings[0, 1:-3].reshape(12, 6, 48)
    # Twice the rows: each lies a quarter of an old row beside an old one, away from the edges.
    assert torch.allclose(
        grid[4:8, :, 0], torch.tensor([1.75, 2.25, 2.75, 3.25])[:, None], atol=0.05
    )
    assert torch.equal(grid[:, 0], grid[:, 5])


def test_what_has_no_place_in_a_detector_is_refused():
    swin, _ = compressed("swin", SWIN)
    with pytest.raises(RequestError, match="YOLOS is a ViT or DeiT, and this is swin"):
        detector.detector(swin, "yolos", 2, 5, {}, seed=0)
    with pytest.raises(RequestError, match="detector_args: detr refuses them"):
        detector.detector(swin, None, 2, 5, {"d_model": "wide"}, seed=0)
    bert = opening.open("bert", weights="random", model_args=families.BERT)
    with pytest.raises(RequestError, match="no backbone of bert"):
        detector.detector(bert, None, 2, 5, {}, seed=0)
    with pytest.raises(RequestError, match="'wide' is no name=value"):
        registry.get("detection", {"detector_args": ["wide"]}).fit(
            swin, SimpleNamespace(classes=["a"]), None, 0
        )
