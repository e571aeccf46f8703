"""Correction goes by the order in which layers run: stages, encoder and decoder, two towers."""

from __future__ import annotations

import copy
from fractions import Fraction

import pytest
import torch

from pelacli.factorize import calibration, engine, refit
from pelacli.factorize.lockstep import lockstep
from pelacli.lowrank import find, replace
from pelacli.models import examples, opening, prediction
from pelacli.ranks import planner
from pelacli.ranks.budget import Budget

SMALL = {"embed_dim": 24, "depths": [2, 2], "num_heads": [2, 4]}
BART = {
    "d_model": 32, "encoder_layers": 2, "decoder_layers": 2, "encoder_attention_heads": 4,
    "decoder_attention_heads": 4, "encoder_ffn_dim": 64, "decoder_ffn_dim": 64, "vocab_size": 200,
    "max_position_embeddings": 32,
}  # fmt: skip
T5 = {"d_model": 32, "d_kv": 8, "d_ff": 64, "num_layers": 2, "num_heads": 4, "vocab_size": 200}
TOWER = {
    "hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 4, "intermediate_size": 64,
}  # fmt: skip
CLIP = {
    "text_config": TOWER | {"vocab_size": 200, "bos_token_id": 0, "eos_token_id": 199},
    "vision_config": TOWER | {"image_size": 32, "patch_size": 8},
    "projection_dim": 16,
}
FALCON = {
    "hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 4, "vocab_size": 200,
    "max_position_embeddings": 32, "bias": True,
}  # fmt: skip
# What is left of the error. Swin-V2 norms its branches before it adds them, so nothing can be paid
# back; it brings the biases of q and v to the call itself. Falcon's linear layers add their biases
# after the product, which hides the residual sum, so nothing is paid back there either.
MODELS = [
    ("swin_tiny_patch4_window7_224", SMALL | {"img_size": 56}, 0.8),
    ("swinv2_tiny_window8_256", SMALL | {"img_size": 64}, 1.0),
    ("bart", BART, 0.95),
    ("t5", T5, 0.95),
    ("clip", CLIP, 0.95),
    ("falcon", FALCON, 1.0),
]


def opened(name, args):
    model = opening.open(name, weights="random", model_args=args)
    generator = torch.Generator().manual_seed(1)
    # Fresh models are almost constant functions; larger weights make their layers count, and their
    # spectra fall, as those of trained ones do.
    for parameter in model.module.parameters():
        noise = torch.randn(parameter.shape, generator=generator)
        fall = torch.arange(1, parameter.shape[-1] + 1) ** -1.0 if parameter.ndim == 2 else 0.2
        parameter.data.add_(0.5 * noise * fall)
    return model


def samples(model, count=48, batch=8, length=12):
    """Batches of images and of tokens, some of them padding."""
    shapes, found = examples.example(model), []
    generator = torch.Generator().manual_seed(2)
    for _ in range(count // batch):
        if isinstance(shapes, torch.Tensor):
            found.append(torch.randn(batch, *shapes.shape[1:], generator=generator))
            continue
        one = {}
        for name, value in shapes.items():
            if name == "attention_mask":
                one[name] = torch.arange(length).repeat(batch, 1) < length - 3
                one[name] = one[name].long()
            elif name.endswith("input_ids"):
                size = length if name == "input_ids" else length - 2
                one[name] = torch.randint(1, 190, (batch, size), generator=generator)
                one[name][:, length - 4] = value[0, -1]  # the end of the text
            else:
                one[name] = torch.randn(batch, *value.shape[1:], generator=generator)
        found.append(one)
    return found


def error(dense, model, batches):
    with torch.no_grad():
        pairs = [(prediction.predict(m, b) for m in (dense, model)) for b in batches]
        return sum(float((a - b).square().sum()) for a, b in pairs)


@pytest.mark.parametrize(("name", "args", "left"), MODELS, ids=[name for name, *_ in MODELS])
def test_correction_in_the_order_in_which_layers_run(name, args, left):
    model = opened(name, args)
    batches = samples(model)
    layers = [la for la in find.find_layers(model.module, head=model.head) if not la.reason]
    ran = []
    with lockstep(model.module, layers, batches[:1], prediction.predict) as stops:
        for calls in stops:
            ran.append(calls[0].layer.name)
            for call in calls:
                call.output = torch.nn.functional.linear(call.x, call.weight, call.bias)
    moments = calibration.collect(model.module, layers, batches, prediction.predict)
    cuts = engine.solve(layers, moments)
    plan = planner.plan(
        engine.spectra(layers, cuts, moments), Budget("uniform", Fraction(1, 2), scope="layers")
    )  # fmt: skip
    told = []
    corrected = refit.correct(
        model.module, layers, plan.ranks(), moments, batches, prediction.predict,
        advance=lambda: told.append(None),
    )  # fmt: skip
    reached = [n for n in dict.fromkeys(ran) if n in plan.ranks()]
    assert list(corrected) == reached  # in the order in which they ran
    assert len(told) == len(reached)
    once = engine.factors(layers, cuts, moments, plan)
    errors = []
    for factors in (once, once | corrected):
        small = copy.deepcopy(model.module)
        replace.replace(small, factors)
        errors.append(error(model.module, small, batches))
    assert errors[1] < left * errors[0]
