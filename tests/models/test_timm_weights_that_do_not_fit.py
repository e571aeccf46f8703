"""What a file holds and a timm model does not take, and the other way round."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import timm
import torch
from refusals import refused as refused
from safetensors.torch import load_file, save_file

from pelacli.errors import RequestError
from pelacli.models import opening

ARCH = "test_vit"
WRAPPERS = [
    "module.", "_orig_mod.", "module._orig_mod.", "_orig_mod.module.", "model.", "model_ema.",
    "ema.", "module.model.", "model._orig_mod.", "state_dict.", "_fsdp_wrapped_module.",
    "model_ema.module.",
]  # fmt: skip


@pytest.fixture(scope="module")
def weights() -> dict[str, torch.Tensor]:
    torch.manual_seed(0)
    return timm.create_model(ARCH, num_classes=7).state_dict()


def bare(weights, **how) -> list[str]:
    """Arguments for a bare file of these weights."""
    save_file({name: t.clone() for name, t in weights.items()}, "w.safetensors", **how)
    return ["w.safetensors", "--arch", ARCH]


def directory(weights, classes=7) -> list[str]:
    Path("m").mkdir()
    save_file({name: t.clone() for name, t in weights.items()}, "m/model.safetensors")
    model = timm.create_model(ARCH, num_classes=classes)
    timm.models._hub.save_config_for_hf(model, "m/config.json")
    return ["m"]


def beside(weights) -> list[str]:
    """An architecture with ``--weights PATH``."""
    return [ARCH, "--weights", bare(weights)[0]]


WAYS = [bare, directory, beside]


def opened(capsys, *arguments):
    """(the tensors as they were opened, standard error)."""
    ref, *more = arguments
    keys = {"--arch": "arch", "--weights": "weights"}
    how = dict(zip([keys[option] for option in more[::2]], more[1::2], strict=True))
    module = opening.open(ref, **how).module
    return module.state_dict(), capsys.readouterr().err


def same(tensors, weights):
    return all(tensors[name].equal(tensor) for name, tensor in weights.items())


@pytest.mark.parametrize("wrapper", WRAPPERS)
def test_what_a_wrapper_put_in_front_is_taken_off_with_a_word(capsys, here, weights, wrapper):
    tensors, err = opened(capsys, *bare({wrapper + name: t for name, t in weights.items()}))
    assert same(tensors, weights)
    assert "note: w.safetensors: took " in err
    assert " off the names of the tensors" in err
    for part in wrapper.rstrip(".").split("."):
        assert f"{part}." in err


@pytest.mark.parametrize("way", WAYS)
def test_a_wrapper_is_taken_off_on_every_way(pela, here, weights, way):
    code, _, err = pela(
        "decompose", *way(renamed("module.model.")(weights)), "--ratio", "0.7", "-o", "a"
    )
    assert code == 0
    assert "took module., model. off" in err
    assert load_file("a/model.safetensors")["pos_embed"].equal(weights["pos_embed"])


def test_blocks_that_were_compiled_by_themselves_and_averaged_models_fit(capsys, here, weights):
    compiled = {name.replace("blocks.1.", "blocks.1._orig_mod."): t for name, t in weights.items()}
    averaged = renamed("module.")(weights) | {"n_averaged": torch.tensor(3)}
    for tensors in (compiled, averaged):
        loaded, err = opened(capsys, *bare(tensors))
        assert same(loaded, weights)
        assert "took " in err


@pytest.mark.parametrize("way", WAYS)
def test_plain_names_need_no_word(capsys, here, weights, way):
    tensors, err = opened(capsys, *way(weights))
    assert same(tensors, weights)
    assert err == ""


def renamed(front):
    return lambda weights: {front + name: t for name, t in weights.items()}


def without(*parts):
    return lambda weights: {
        name: t for name, t in weights.items() if not any(part in name for part in parts)
    }


def plus(**more):
    return lambda weights: weights | more


def with_dtype(dtype):
    return lambda weights: (
        weights | {"blocks.0.mlp.fc1.weight": weights["blocks.0.mlp.fc1.weight"].to(dtype)}
    )


def filled(value):
    def change(weights):
        tensor = weights["blocks.0.mlp.fc1.weight"].clone()
        tensor[3, 4] = value
        return weights | {"blocks.0.mlp.fc1.weight": tensor}

    return change


def more_layers(weights):
    return weights | {
        name.replace("blocks.0.", "blocks.99."): t for name, t in weights.items() if "ks.0." in name
    }


def twice(weights):
    return {
        f"{front}{name}": t for name, t in weights.items() for front in ("model.", "model_ema.")
    }


def quantised(weights):
    name = "blocks.0.attn.qkv.weight"
    return weights | {f"{name}_scale_inv": torch.ones(1, 1)}


def lora(weights):
    return {f"base_model.model.{name}": t for name, t in weights.items()} | {
        "base_model.model.blocks.0.attn.qkv.lora_A.weight": torch.ones(2, 64)
    }


REFUSED = {
    "backbone.": (renamed("backbone."), "holds backbone.blocks.0.", "without 'backbone.' in front"),
    "encoder.": (renamed("encoder."), "holds encoder.blocks.0.", "without 'encoder.' in front"),
    "module.backbone.": (renamed("module.backbone."), "holds backbone.", "without 'backbone.'"),
    "nothing fits": (lambda w: {"a.b": torch.ones(2)}, "holds a.b, for which test_vit", "lacks "),
    "more layers": (more_layers, "holds blocks.99.attn.proj.bias", "for which test_vit has no"),
    "fewer layers": (without("blocks.5."), "lacks blocks.5.attn.proj.bias", "of test_vit"),
    "a norm missing": (without("norm.weight"), "lacks norm.weight of test_vit", "take the"),
    "an extra tensor": (plus(extra=torch.ones(2)), "holds extra, for which test_vit", ";"),
    "two models": (twice, "holds model.blocks.0.", "for which test_vit has no place"),
    "some wrapped": (
        lambda w: without("blocks.0.")(w) | renamed("module.")({"blocks.0.x": torch.ones(1)}),
        "holds ", "blocks.0.x",
    ),
    "misshapen": (
        lambda w: w | {"blocks.0.mlp.fc1.weight": torch.ones(8, 8)},
        "size mismatch for blocks.0.mlp.fc1.weight", ";",
    ),
    "an empty tensor": (
        lambda w: w | {"blocks.0.mlp.fc1.weight": torch.ones(0, 8)},
        "size mismatch for blocks.0.mlp.fc1.weight", ";",
    ),
    "no tensor": (lambda w: {}, "holds no tensors", "take the file that holds the weights"),
    "fp8 with scales": (quantised, "weight_scale_inv", "the weights are quantised"),
    "fp8 without scales": (with_dtype(torch.float8_e4m3fn), "is stored as F8_E4M3", "float16"),
    "int8": (with_dtype(torch.int8), "fc1.weight: is stored as I8", "take the checkpoint in"),
    "bool": (with_dtype(torch.bool), "is stored as BOOL", "take the checkpoint in"),
    "complex": (with_dtype(torch.complex64), "is stored as C64", "take the checkpoint in"),
    "an adapter": (lora, "lora_A", "merge the adapter into the weights first"),
    "NaN": (filled(float("nan")), "blocks.0.mlp.fc1.weight holds values that are not finite", ";"),
    "infinity": (filled(float("inf")), "blocks.0.mlp.fc1.weight holds values that are not", ";"),
}  # fmt: skip


@pytest.mark.parametrize("case", REFUSED)
def test_what_does_not_fit_is_refused_by_name(refused, here, weights, case):
    change, names, remedy = REFUSED[case]
    line = refused("report", *bare(change(weights)))
    assert line.startswith("pela: error: w.safetensors: ")
    assert names in line
    assert remedy in line


@pytest.mark.parametrize("case", ["backbone.", "more layers", "fewer layers", "no tensor", "int8"])
@pytest.mark.parametrize("way", [directory, beside])
def test_it_is_refused_on_every_way(refused, here, weights, case, way):
    change, names, _ = REFUSED[case]
    arguments = way(change(weights))
    for more in (["--dry-run"], ["-o", "a"]):
        assert names in refused("decompose", *arguments, "--ratio", "0.7", *more)


@pytest.mark.parametrize("change", [renamed("backbone."), without("blocks.5."), more_layers])
def test_another_number_of_classes_forgives_the_head_alone(here, weights, change):
    bare(change(weights))
    with pytest.raises(RequestError, match=r"blocks\."):
        opening.open("w.safetensors", arch=ARCH, num_classes=3)


@pytest.mark.parametrize("front", ["", "module."])
@pytest.mark.parametrize("classes", [0, 3])
def test_a_head_of_another_number_of_classes_is_fresh_with_a_word(
    capsys, here, weights, front, classes
):
    bare(renamed(front)(weights))
    module = opening.open("w.safetensors", arch=ARCH, num_classes=classes).module
    assert same(module.state_dict(), without("head.")(weights))
    says = f"head.bias, head.weight: fresh, for num_classes = {classes}"
    assert (says in capsys.readouterr().err) == bool(classes)


def test_a_head_of_another_size_than_config_json_says_is_refused(refused, here, weights):
    assert "size mismatch for head" in refused(
        "decompose", *directory(weights, classes=9), "--ratio", "0.7", "-o", "a"
    )


def test_a_pickle_beside_the_weights_is_not_read(capsys, here, weights):
    """timm would prefer it to a file of another name."""
    directory(weights)
    Path("m/model.safetensors").rename("m/mine.safetensors")
    Path("m/pytorch_model.bin").write_bytes(b"never read")
    assert same(opened(capsys, "m")[0], weights)


@pytest.mark.parametrize("name", ["w.pth", "w.bin", "w"])
def test_a_pickle_that_is_named_is_refused_with_the_remedy(refused, here, weights, name):
    torch.save(weights, name)
    line = refused("decompose", ARCH, "--weights", name, "--ratio", "0.7", "-o", "a")
    assert line.startswith(
        f"pela: error: {name}: pela reads timm's weights from .safetensors files"
    )
    assert "save_file" in line


def test_of_several_files_none_is_taken_by_chance(refused, here, weights):
    directory(weights)
    Path("m/model.safetensors").rename("m/one.safetensors")
    save_file({"x": torch.ones(1)}, "m/two.safetensors")
    line = refused("decompose", "m", "--ratio", "0.7", "-o", "a")
    assert "one.safetensors, two.safetensors" in line
    assert "name it model.safetensors" in line


def test_an_adapter_beside_a_timm_model_is_refused(refused, here, weights):
    directory(weights)
    Path("m/adapter_config.json").write_text(json.dumps({"peft_type": "LORA"}))
    assert "m: has an adapter of peft (adapter_config.json)" in refused("report", "m")


@pytest.mark.parametrize(
    ("name", "change"),
    [("vit_base_patch16_siglip_gap_224", {"attn_pool.latent": torch.ones(1, 1, 12)})],
)
def test_a_part_that_timm_declares_optional_is_left_out_with_a_word(capsys, here, name, change):
    args = {"embed_dim": 12, "depth": 1, "num_heads": 2}
    save_file(timm.create_model(name, **args).state_dict() | change, "s.safetensors")
    opening.open("s.safetensors", arch=name, model_args=args)
    err = capsys.readouterr().err
    assert "timm loads it without attn_pool.latent" in err
