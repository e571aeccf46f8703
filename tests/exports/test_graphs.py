"""Graphs of ONNX and torch.export: low-rank as the artefact is, for any batch and length, and run
without pela's code."""

from __future__ import annotations

import json
import math
from collections import Counter
from pathlib import Path

import numpy as np
import pytest
import timm
import torch
import transformers
from generated_text import SMALL, save_model
from torch import nn

import pelacli
from pelacli.lowrank import find
from pelacli.models.weight_files import ties

VIT = {"img_size": 32, "patch_size": 8, "embed_dim": 32, "depth": 1, "num_heads": 2}


def bert() -> nn.Module:
    torch.manual_seed(0)
    config = transformers.BertConfig(**SMALL | {"num_hidden_layers": 1})
    return transformers.BertForSequenceClassification(config).eval()


def low_rank(model: nn.Module, form: str) -> nn.Module:
    pelacli.decompose(model, 0.6, scope="layers", form=form)
    return model


def factor_sizes(model: nn.Module) -> list[tuple[int, ...]]:
    """Shapes of the matrices of low-rank layers, each with the smaller size first: graphs may hold
    them transposed."""
    layers = find.low_rank_layers(model).values()
    return [sized(part.weight) for layer in layers for part in (layer.down, layer.up)]


def sized(tensor) -> tuple[int, ...]:
    return tuple(sorted(tensor.shape))


def check_low_rank(model: nn.Module, tensors: list) -> None:
    """The matrices of a graph are the model's, and there are no more numbers in it. Of an output
    that is tied to the embedding, ONNX has a second copy, transposed."""
    matrices = Counter(sized(t) for t in tensors if len(t.shape) == 2)
    own = Counter(sized(p) for p in model.parameters() if p.ndim == 2)
    own.update(sized(model.get_parameter(name)) for name in ties(model))
    assert not matrices - own
    assert not Counter(factor_sizes(model)) - matrices
    numbers = sum(int(np.prod(t.shape)) for t in tensors)
    assert (
        numbers
        <= sum(math.prod(size) * n for size, n in own.items())
        + sum(p.numel() for p in model.parameters() if p.ndim != 2)
        + 64
    )


def floating(tensors) -> list:
    return [t for t in tensors if np.dtype(t.dtype).kind == "f"]


def onnx_tensors(path: Path) -> list:
    onnx = pytest.importorskip("onnx")
    graph = onnx.load(str(path)).graph
    assert not {node.domain for node in graph.node} - {"", "ai.onnx"}  # only ONNX's own operators
    return floating(onnx.numpy_helper.to_array(tensor) for tensor in graph.initializer)


@pytest.mark.parametrize("form", ["factors", pytest.param("pivots", marks=pytest.mark.slow)])
def test_torch_export_stays_low_rank(form, tmp_path):
    model = low_rank(bert(), form)
    exported = pelacli.export(model, tmp_path / "m.pt2", to="torch")
    assert exported.difference < 1e-5
    extra = {"pela.json": ""}
    program = torch.export.load(tmp_path / "m.pt2", extra_files=extra)
    check_low_rank(model, [t for t in program.state_dict.values() if t.is_floating_point()])
    assert json.loads(extra["pela.json"])["difference"] == exported.difference
    graph = program.module()
    for size, length in ((1, 4), (5, 17)):
        ids = torch.randint(3, 40, (size, length))
        inputs = {"input_ids": ids, "attention_mask": torch.ones_like(ids),
                  "token_type_ids": torch.zeros_like(ids)}  # fmt: skip
        with torch.no_grad():
            expected = model(**inputs).logits
            given = {spec: inputs[spec] for spec in inputs if spec in names_of(program)}
            torch.testing.assert_close(graph(**given)["logits"], expected, rtol=1e-4, atol=1e-5)


def names_of(program) -> set[str]:
    return set(program.graph_signature.user_inputs)


def test_onnx_stays_low_rank(tmp_path):
    onnxruntime = pytest.importorskip("onnxruntime")
    torch.manual_seed(0)
    model = low_rank(timm.create_model("vit_tiny_patch16_224", num_classes=3, **VIT), "pivots")
    exported = pelacli.export(model, tmp_path / "m.onnx", to="onnx")
    assert exported.difference < 1e-5
    check_low_rank(model, onnx_tensors(tmp_path / "m.onnx"))
    session = onnxruntime.InferenceSession(tmp_path / "m.onnx")
    assert [(i.name, i.shape) for i in session.get_inputs()] == [
        ("pixel_values", ["batch", 3, 32, 32])
    ]
    assert [(o.name, o.shape) for o in session.get_outputs()] == [("logits", ["batch", 3])]
    x = torch.randn(5, 3, 32, 32)
    with torch.no_grad():
        expected = model.eval()(x).numpy()
    (logits,) = session.run(None, {"pixel_values": x.numpy()})
    np.testing.assert_allclose(logits, expected, rtol=1e-4, atol=1e-5)


@pytest.mark.slow
@pytest.mark.parametrize("to", ["onnx", "torch"])
@pytest.mark.parametrize("form", ["factors", "pivots"])
@pytest.mark.parametrize(
    ("family", "kind"),
    [("bert", ""), ("distilbert", "SequenceClassification"), ("gpt2", "CausalLM"),
     ("llama", "CausalLM")],
)  # fmt: skip
def test_text_models_take_any_batch_and_length(to, form, family, kind, tmp_path):
    from pelacli.artefact import loading

    path = save_model(family, kind, tmp_path / "m")
    pelacli.save(low_rank(loading.open(str(path))[0].module, form), tmp_path / "a")
    file = tmp_path / {"onnx": "m.onnx", "torch": "m.pt2"}[to]
    exported = pelacli.export(tmp_path / "a", file, to=to)
    assert exported.difference < 1e-5
    shapes = {tuple(batch["inputs"]["input_ids"]) for batch in exported.batches}
    assert len({size for size, _ in shapes}) == len({length for _, length in shapes}) == 2
    if to == "onnx":
        check_low_rank(pelacli.load(tmp_path / "a"), onnx_tensors(file))


@pytest.mark.slow
@pytest.mark.parametrize("to", ["onnx", "torch"])
@pytest.mark.parametrize("name", ["beit_base_patch16_224", "swinv2_tiny_window8_256"])
def test_models_that_read_their_weights_stay_low_rank(to, name, tmp_path):
    sizes = {"img_size": 64, "embed_dim": 24, "depths": (1, 1), "num_heads": (2, 4)}
    if name.startswith("beit"):
        sizes = {"img_size": 32, "embed_dim": 32, "depth": 1, "num_heads": 2}
    torch.manual_seed(0)
    model = low_rank(timm.create_model(name, num_classes=3, **sizes), "pivots")
    file = tmp_path / {"onnx": "m.onnx", "torch": "m.pt2"}[to]
    assert pelacli.export(model, file, to=to).difference < 1e-5
    if to == "onnx":
        matrices = Counter(sized(t) for t in onnx_tensors(file) if len(t.shape) == 2)
        assert not matrices - Counter(sized(p) for p in model.parameters())
        assert not Counter(factor_sizes(model)) - matrices


@pytest.mark.slow
def test_onnx_takes_an_opset_and_half_precision(tmp_path):
    onnx = pytest.importorskip("onnx")
    model = low_rank(bert(), "factors")
    exported = pelacli.export(model, tmp_path / "m.onnx", to="onnx", precision="fp16", opset=18)
    assert 0 < exported.difference < exported.bound
    file = onnx.load(str(tmp_path / "m.onnx"))
    assert {entry.domain: entry.version for entry in file.opset_import}[""] == 18
    assert {tensor.dtype for tensor in onnx_tensors(tmp_path / "m.onnx")} == {np.dtype("float16")}


@pytest.mark.slow
def test_weights_that_one_file_can_not_hold_lie_beside_it(tmp_path, monkeypatch):
    monkeypatch.setattr("pelacli.exports.onnx._ONE_FILE", 1000)
    pelacli.export(low_rank(bert(), "factors"), tmp_path / "m.onnx", to="onnx")
    assert sorted(path.name for path in tmp_path.iterdir()) == ["m.onnx", "m.onnx.data"]
    onnxruntime = pytest.importorskip("onnxruntime")
    assert onnxruntime.InferenceSession(tmp_path / "m.onnx").get_outputs()[0].name == "logits"
