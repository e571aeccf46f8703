"""Original ALBEF checkpoints: their keys both ways, their sizes, and what is refused."""

from __future__ import annotations

import argparse
import re
from dataclasses import replace

import pytest
import torch
import torch.nn.functional as F
from albef_tiny import pairs, tiny
from safetensors.torch import save_file

from pelacli.errors import RequestError
from pelacli.models.albef import checkpoint
from pelacli.models.albef.network import as_variant

VARIANTS = ("pretrain", "retrieval", "entailment", "vqa")
HEADS = {"vision_heads": 2, "text_heads": 2}  # the tiny model's are narrower than ALBEF's


def original(network):
    """The keys that ALBEF's own scripts write: the network, its slow copies, queues, positions."""
    found = {}
    for name, tensor in network.state_dict().items():
        if network.config.variant != "pretrain":
            name = name.replace("text_encoder.bert.", "text_encoder.")
        found[name] = tensor.clone()
        part, _, rest = name.partition(".")
        found[f"{part}_m.{rest}"] = tensor.clone() + 1
    bert = "text_encoder.bert" if network.config.variant == "pretrain" else "text_encoder"
    found[f"{bert}.embeddings.position_ids"] = torch.arange(16)[None]
    found |= {
        "image_queue": torch.randn(16, 8),
        "text_queue": torch.randn(16, 8),
        "queue_ptr": torch.zeros(1, dtype=torch.long),
    }
    return found


@pytest.mark.parametrize("variant", VARIANTS)
@pytest.mark.parametrize("kind", [".pth", ".safetensors"])
def test_a_checkpoint_comes_back(tmp_path, variant, kind):
    network = tiny(variant).eval()
    file = tmp_path / f"albef{kind}"
    if kind == ".pth":
        config = {"image_res": 32, "schedular": {"lr": 1e-4, "warmup_epochs": 20}}
        torch.save({"model": original(network), "config": config, "epoch": 29}, file)
    else:
        save_file(original(network), file)
    found = checkpoint.open_file(file, HEADS).eval()
    # Without projections nothing tells how wide the common space would be.
    told = found.config if hasattr(found, "vision_proj") else replace(found.config, embed_dim=16)
    assert told == network.config
    assert found.state_dict().keys() == network.state_dict().keys()
    inputs = pairs()
    for ours, theirs in zip(found(**inputs).values(), network(**inputs).values(), strict=True):
        assert torch.equal(ours, theirs)
    if variant in ("pretrain", "vqa"):
        side = found.text_encoder if variant == "pretrain" else found.text_decoder
        table = side.bert.embeddings.word_embeddings.weight
        assert side.cls.predictions.decoder.weight is table
    assert all(p.requires_grad for p in found.parameters())


@pytest.mark.parametrize("variant", VARIANTS)
def test_keys_go_both_ways(variant):
    network = tiny(variant)
    ours = dict(network.named_parameters())
    there = checkpoint.to_original(network)
    wanted = {n for n in original(network) if not re.search(r"_m\.|queue|position_ids", n)}
    assert there.keys() == wanted
    back = checkpoint.from_original(there, "x")
    assert back.keys() == ours.keys()
    assert all(torch.equal(back[name], tensor) for name, tensor in ours.items())


def test_the_original_keys_by_name():
    """As they stand in ALBEF_4M.pth, written down here."""
    there = checkpoint.to_original(tiny())
    for name in (
        "temp",
        "visual_encoder.cls_token",
        "visual_encoder.pos_embed",
        "visual_encoder.patch_embed.proj.weight",
        "visual_encoder.blocks.1.norm1.weight",
        "visual_encoder.blocks.1.attn.qkv.bias",
        "visual_encoder.blocks.1.attn.proj.weight",
        "visual_encoder.blocks.1.mlp.fc2.weight",
        "visual_encoder.norm.bias",
        "text_encoder.bert.embeddings.token_type_embeddings.weight",
        "text_encoder.bert.embeddings.LayerNorm.weight",
        "text_encoder.bert.encoder.layer.0.attention.self.query.weight",
        "text_encoder.bert.encoder.layer.3.crossattention.self.key.weight",
        "text_encoder.bert.encoder.layer.3.crossattention.output.LayerNorm.bias",
        "text_encoder.bert.encoder.layer.3.intermediate.dense.weight",
        "text_encoder.bert.encoder.layer.3.output.dense.bias",
        "text_encoder.cls.predictions.bias",
        "text_encoder.cls.predictions.transform.dense.weight",
        "text_encoder.cls.predictions.decoder.weight",
        "vision_proj.weight",
        "text_proj.bias",
        "itm_head.weight",
    ):
        assert name in there
    decoder = checkpoint.to_original(tiny("vqa"))
    assert "text_decoder.bert.encoder.layer.0.crossattention.self.key.weight" in decoder
    assert "text_encoder.encoder.layer.0.attention.self.query.weight" in decoder
    assert "cls_head.2.weight" in checkpoint.to_original(tiny("entailment"))


def test_positions_are_resampled_on_the_way(tmp_path):
    network = tiny()
    file = tmp_path / "albef.pth"
    torch.save({"model": original(network)}, file)
    found = checkpoint.open_file(file, {**HEADS, "image_size": 48})
    before = network.visual_encoder.pos_embed.detach()
    grid = before[0, 1:].T.reshape(1, 32, 4, 4)
    expected = F.interpolate(grid, (6, 6), mode="bicubic").reshape(32, 36).T
    assert torch.allclose(found.visual_encoder.pos_embed[0, 1:], expected, atol=1e-6)
    assert found.embed_images(torch.randn(1, 3, 48, 48)).shape == (1, 37, 32)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (
            lambda t: t.pop("itm_head.bias"),
            "its weights lack itm_head.bias; is it ALBEF's 'pretrain'?",
        ),
        (
            lambda t: [t.pop(f"text_encoder.cls.predictions.transform.dense.{k}")
                       for k in ("weight", "bias")],
            "lack text_encoder.cls.predictions.transform.dense.weight and 1 more;",
        ),
        (
            lambda t: t.update({"visual_encoder.head.weight": torch.zeros(2, 2)}),
            "visual_encoder.head.weight: the model has no such tensor; is it ALBEF's 'pretrain'?",
        ),
        (
            lambda t: t.update({"text_proj.weight": torch.zeros(16, 31)}),
            "text_proj.weight: has shape (16, 31), the model wants (16, 32)",
        ),
        (
            lambda t: t.pop("visual_encoder.pos_embed"),
            "lacks visual_encoder.pos_embed; it is no ALBEF checkpoint",
        ),
        (
            lambda t: [t.pop(n) for n in list(t) if n.startswith("itm_head")],
            "none of ALBEF's variants (pretrain, retrieval, entailment, vqa) has these tensors",
        ),
        (
            lambda t: t["text_encoder.cls.predictions.decoder.weight"].add_(1),
            "text_encoder.cls.predictions.decoder.weight differs from "
            "text_encoder.bert.embeddings.word_embeddings.weight",
        ),
    ],
)  # fmt: skip
def test_what_does_not_fit_is_named(tmp_path, change, message):
    tensors = original(tiny())
    change(tensors)
    file = tmp_path / "albef.safetensors"
    save_file(tensors, file)
    with pytest.raises(RequestError) as caught:
        checkpoint.open_file(file, HEADS)
    assert str(caught.value).startswith(f"{file}: ")
    assert message in str(caught.value)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("kind", [".pth", ".safetensors"])
@pytest.mark.parametrize("wrapper", ["module.", "_orig_mod.module.", "model."])
def test_what_a_wrapper_put_in_front_is_taken_off_with_a_word(tmp_path, capsys, kind, wrapper):
    network = tiny()
    tensors = {wrapper + name: tensor for name, tensor in original(network).items()}
    file = tmp_path / f"albef{kind}"
    if kind == ".pth":
        torch.save({"state_dict": tensors, "epoch": 3}, file)  # as Lightning writes it
    else:
        save_file(tensors, file)
    loaded = checkpoint.open_file(file, HEADS)
    assert all(torch.equal(loaded.state_dict()[n], t) for n, t in network.state_dict().items())
    assert f"{file}: took " in capsys.readouterr().err
    torch.save({f"x.{name}": t for name, t in tensors.items()}, tmp_path / "x.pth")
    with pytest.raises(RequestError, match=r"lacks visual_encoder\.pos_embed"):
        checkpoint.open_file(tmp_path / "x.pth", HEADS)


@pytest.mark.parametrize(
    ("change", "says"),
    [
        (lambda t: t.to(torch.int8), "is stored as int8; take the checkpoint in float16"),
        (lambda t: t.to(torch.float8_e4m3fn), "is stored as float8_e4m3fn"),
        (lambda t: t.to(torch.complex64), "is stored as complex64"),
        (lambda t: t.bool(), "is stored as bool"),
        (lambda t: t.to("meta"), "is no dense tensor with values; save the weights anew"),
        (lambda t: t.to_sparse(), "is no dense tensor with values"),
        (lambda t: t * torch.nan, "holds values that are not finite"),
    ],
)
def test_what_is_no_plain_weight_is_named(tmp_path, change, says):
    tensors = original(tiny())
    name = "visual_encoder.blocks.0.mlp.fc1.weight"
    tensors[name] = change(tensors[name])
    torch.save({"model": tensors}, tmp_path / "albef.pth")
    with pytest.raises(RequestError) as caught:
        checkpoint.open_file(tmp_path / "albef.pth", HEADS)
    assert f"albef.pth: {name}: {says}" in str(caught.value)


def test_a_pickle_is_refused_with_the_remedy(tmp_path):
    file = tmp_path / "albef.pth"
    torch.save({"model": original(tiny()), "args": argparse.Namespace(lr=1)}, file)
    with pytest.raises(RequestError) as caught:
        checkpoint.open_file(file, HEADS)
    assert "pela never unpickles (argparse.Namespace)" in str(caught.value)
    assert "weights_only=False" in str(caught.value)


@pytest.mark.parametrize("kind", [".pth", ".safetensors"])
def test_a_file_cut_short_is_named(tmp_path, kind):
    file = tmp_path / f"albef{kind}"
    if kind == ".pth":
        torch.save({"model": original(tiny())}, file)
    else:
        save_file(original(tiny()), file)
    file.write_bytes(file.read_bytes()[:5000])
    with pytest.raises(RequestError, match="not a whole"):
        checkpoint.open_file(file, HEADS)


def test_a_file_without_tensors_is_named(tmp_path):
    file = tmp_path / "albef.pth"
    torch.save({"model": {"a": 1}}, file)
    with pytest.raises(RequestError, match="no dictionary of tensors"):
        checkpoint.open_file(file, {})


def test_a_misspelt_setting_is_named(tmp_path):
    file = tmp_path / "albef.pth"
    torch.save(original(tiny()), file)
    with pytest.raises(RequestError, match="no setting 'image_sise'; did you mean image_size"):
        checkpoint.open_file(file, {"image_sise": 48})


def test_the_vqa_decoder_is_split_off_as_albef_does_it(tmp_path):
    """The recipe for weights of ALBEF's VQA script, on keys: layers below the fusion are dropped,
    those from it on are renumbered, all else of the text encoder is taken over."""
    network = tiny()
    expected = {}
    for name, tensor in network.state_dict().items():
        if not name.startswith("text_encoder."):
            continue
        parts = name.split(".")
        if "layer" in parts:
            if int(parts[4]) < 2:
                continue
            parts[4] = str(int(parts[4]) - 2)
        expected[".".join(["text_decoder", *parts[1:]])] = tensor.clone()
    decoder = {n: t for n, t in as_variant(network, "vqa").state_dict().items()
               if n.startswith("text_decoder.")}  # fmt: skip
    assert decoder.keys() == expected.keys()
    assert all(torch.equal(decoder[name], tensor) for name, tensor in expected.items())
