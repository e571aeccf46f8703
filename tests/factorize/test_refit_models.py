"""Correction goes by the order in which layers run: stages, encoder and decoder, two towers."""

from __future__ import annotations

import copy
from fractions import Fraction
from functools import partial

import pytest
import torch
from calibrated_models import BART, CLIP, FALCON, SMALL, T5, opened, samples

from pelacli.factorize import calibration, engine, refit
from pelacli.factorize.lockstep import lockstep
from pelacli.factorize.passes import Passes
from pelacli.lowrank import find, replace
from pelacli.models import prediction
from pelacli.ranks import planner
from pelacli.ranks.budget import Budget

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
                call.apply = partial(torch.nn.functional.linear, weight=call.weight, bias=call.bias)
    passes = Passes(draws=8)  # of few samples, whose draws would decide else
    moments = calibration.collect(model.module, layers, batches, prediction.predict, passes)
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
