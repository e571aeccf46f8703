"""Weights and samples with NaN, infinities, zeros, few dimensions, huge and tiny numbers and half
precision, through whole commands: each ends in one clear line, or with finite and right results.

The long form: pytest -n 0 -m slow tests/steps/test_numbers.py
"""

from __future__ import annotations

import json
import math
from pathlib import Path

import pytest
import timm
import torch
from generated_text import labelled, save_model, write
from safetensors.torch import load_file, save_file

import pelacli

VIT = {"img_size": 16, "patch_size": 8, "embed_dim": 32, "depth": 2, "num_heads": 2}
RECIPE = """
model = "{model}"
{more}
task = "{task}"
output = "run"
device = "cpu"
[data]
dataset = "{data}"
batch_size = 16
augment = {{ none = true }}
[decompose]
ratio = "0.6"
scope = "layers"
form = "{form}"
{calibrate}
[pretrain]
steps = 2
lr = 1e-4
labels = false
[eval]
latency = false
split = "validation"
"""
CALIBRATE = {
    "plain": "",
    "calibrated": 'calibrate = "train"\nsamples = {samples}\ncorrect = false',
    "corrected": 'calibrate = "train"\nsamples = {samples}\ncorrect = true',
}
# The layer whose weights [out, in] are spoilt.
LAYER = {"timm": "blocks.1.mlp.fc1", "transformers": "bert.encoder.layer.1.intermediate.dense"}


def one(value):
    def put(weight):
        weight = weight.clone()
        weight[3, 4] = value
        return weight

    return put


def of_rank_2(weight):
    u, s, v = torch.linalg.svd(weight.double(), full_matrices=False)
    return ((u[:, :2] * s[:2]) @ v[:2]).float()


SPOIL = {
    "nan": one(math.nan),
    "inf": one(math.inf),
    "zeros": torch.zeros_like,
    "rank 2": of_rank_2,
    "1e30": lambda weight: weight * 1e30,
    "1e-30": lambda weight: weight * 1e-30,
    "1e-42": lambda weight: weight * 1e-42,  # subnormal in float32
    "one large": one(3e4),
}
WHOLE = {  # of all tensors
    "all zeros": torch.zeros_like,
    "all 1e-30": lambda tensor: tensor * 1e-30,
    "fp16": lambda tensor: tensor.half(),
    "bf16": lambda tensor: tensor.bfloat16(),
}
CASES = [*SPOIL, *WHOLE]


def made(library: str, case: str) -> dict[str, str]:
    """A model with spoilt weights and its data, as words of a recipe."""
    if library == "timm":
        torch.manual_seed(0)
        state = timm.create_model("vit_tiny_patch16_224", num_classes=10, **VIT).state_dict()
        file = Path("w.safetensors")
        arguments = ", ".join(f"{key} = {value}" for key, value in VIT.items())
        more = f'weights = "{file}"\nnum_classes = 10\nmodel_args = {{ {arguments} }}'
        words = {"model": "vit_tiny_patch16_224", "task": "image-classification"}
        words |= {"data": "digits", "more": more}
    else:
        save_model("bert", "SequenceClassification", Path("bert"), num_labels=4)
        file = Path("bert/model.safetensors")
        state = load_file(file)
        for split, count in (("train", 64), ("validation", 32)):
            write(Path(f"texts/{split}.jsonl"), labelled(count, len(split)))
        words = {"model": "bert", "task": "text-classification", "data": "texts", "more": ""}
    weight = f"{LAYER[library]}.weight"
    if case in WHOLE:
        state = {name: WHOLE[case](tensor) for name, tensor in state.items()}
    elif case in SPOIL:
        state[weight] = SPOIL[case](state[weight])
    save_file({name: t.contiguous() for name, t in state.items()}, file, {"format": "pt"})
    return words


@pytest.fixture
def steps(here, pela):
    """Steps of a recipe on a spoilt model: (library, case, how, form, samples) → a call."""

    def prepared(library, case, how="plain", form="factors", samples=32):
        words = made(library, case)
        calibrate = CALIBRATE[how].format(samples=samples)
        Path("r.toml").write_text(RECIPE.format(**words, form=form, calibrate=calibrate))

        def step(*arguments):
            """(exit code, standard output, standard error) of a command that ends well, or in one
            clear line."""
            code, out, err = pela(*arguments)
            assert "Traceback" not in err
            assert "(unexpected" not in err
            assert code == 0 or err.splitlines()[-1].startswith("pela: error: ")
            return code, out, err

        return step

    return prepared


def finite(artefact: str) -> bool:
    tensors = load_file(f"{artefact}/model.safetensors").values()
    return all(bool(tensor.isfinite().all()) for tensor in tensors)


def check_factors(library: str) -> None:
    """Each low-rank layer is as near to the weight that was stored as any matrix of its rank."""
    file = "w.safetensors" if library == "timm" else "bert/model.safetensors"
    stored = load_file(file)
    precision = max(torch.finfo(tensor.dtype).eps for tensor in stored.values())
    module = pelacli.load("run/decompose").double()
    layers = json.loads(Path("run/decompose/pela.json").read_text())["layers"]
    ranks = {layer["name"]: layer["rank"] for layer in layers if layer["rank"]}
    assert ranks
    for name, rank in ranks.items():
        weight = stored[f"{name}.weight"].double()
        layer, unit = module.get_submodule(name), torch.eye(weight.shape[1], dtype=torch.float64)
        with torch.no_grad():
            product = (layer(unit) - layer(torch.zeros_like(unit))).T
        # Of numbers as small as float32 has them, the last digit counts.
        slack = 4 * precision * weight.norm() + 2**-149 * weight.numel() ** 0.5
        best = torch.linalg.svdvals(weight)[rank:].norm()
        assert (product - weight).norm() <= 1.001 * best + slack, name


QUICK = [
    ("timm", "rank 2", "pivots"), ("timm", "1e30", "factors"), ("timm", "1e-42", "pivots"),
    ("transformers", "bf16", "factors"),
]  # fmt: skip


@pytest.mark.parametrize(("library", "case", "form"), QUICK)
def test_the_factors_of_strange_weights_are_as_good_as_any(library, case, form, steps):
    call = steps(library, case, form=form)
    assert call("decompose", "r.toml")[0] == 0
    assert finite("run/decompose")
    check_factors(library)


@pytest.mark.slow
@pytest.mark.parametrize("form", ["factors", "pivots"])
@pytest.mark.parametrize("case", [case for case in CASES if case not in ("nan", "inf")])
@pytest.mark.parametrize("library", LAYER)
def test_the_factors_of_any_strange_weights_are_as_good_as_any(library, case, form, steps):
    call = steps(library, case, form=form)
    assert call("decompose", "r.toml")[0] == 0
    check_factors(library)


@pytest.mark.slow
@pytest.mark.parametrize("samples", [1, 32])
@pytest.mark.parametrize("form", ["factors", "pivots"])
@pytest.mark.parametrize("how", CALIBRATE)
@pytest.mark.parametrize("case", ["none", *CASES])
@pytest.mark.parametrize("library", LAYER)
def test_every_step_ends_in_a_clear_line_or_with_finite_numbers(
    library, case, how, form, samples, steps
):
    if how == "plain" and samples == 1:
        pytest.skip("no samples are read")
    call = steps(library, case, how, form, samples)
    code, _, err = call("decompose", "r.toml")
    if code:
        assert code == 2
        assert "not finite" in err
        assert case in ("nan", "inf", "1e30")  # of which the last overflows in the model itself
        assert not Path("run").exists()
        return
    assert finite("run/decompose")
    assert call("report", "run/decompose", "--json")[0] == 0
    gives_nan = case == "1e30"
    code, _, err = call("pretrain", "r.toml")
    if code:
        assert gives_nan
        assert "not finite" in err
    else:
        assert finite("run/pretrain")
    code, out, err = call("eval", "run/decompose", "--data", "texts" if library == "transformers"
                          else "digits", "--no-latency", "--json")  # fmt: skip
    assert code == 0
    metrics = json.loads(out)[0]["metrics"]
    assert metrics
    if gives_nan:
        assert "gives NaN" in err or "not finite" in err
    else:
        assert all(math.isfinite(value) for value in metrics.values())
