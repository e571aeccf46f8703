"""What calibration costs, in plain forward passes over the same images."""

from __future__ import annotations

from fractions import Fraction
from typing import Any

import torch
from _common import seconds

from pelacli.factorize import calibration, engine
from pelacli.factorize import refit as factorize_refit
from pelacli.lowrank import find
from pelacli.lowrank.calls import evaluating
from pelacli.models import opening, prediction
from pelacli.ranks import planner
from pelacli.ranks.budget import Budget

TARGETS = {"one-shot": 4.0, "with correction": 10.0}  # for 256 images


def measure(name: str, images: int, batch: int, size: int) -> dict[str, Any]:
    """Seconds of a forward pass, calibration and correction over the images, one run each.

    Nothing is concluded from fewer images: a line through 16 and 32 promised too much for 256
    (docs/log/speed-and-memory.md).
    """
    opened = opening.open(name, weights="random", model_args={"img_size": size})
    module = opened.module.requires_grad_(False)
    layers = [la for la in find.find_layers(module, head=opened.head) if la.reason is None]
    torch.manual_seed(0)
    batches = [torch.randn(batch, 3, size, size) for _ in range(max(1, images // batch))]

    def run(some: list[torch.Tensor]) -> dict[str, float]:
        def forward() -> None:
            with torch.no_grad(), evaluating(module):
                for one in some:
                    prediction.predict(module, one)

        found: dict[str, Any] = {}

        def collect() -> None:
            found["moments"] = calibration.collect(module, layers, some, prediction.predict)

        def refit() -> None:
            factorize_refit.correct(
                module, layers, plan.ranks(), found["moments"], some, prediction.predict
            )

        first = seconds(forward)
        one_shot = seconds(collect)
        plan = planner.plan(
            engine.spectra(layers, engine.solve(layers, {}, keep=engine.Keep.NOTHING), {}),
            Budget("uniform", Fraction(1, 2), scope="layers"),
        )
        return {
            "forward pass": first,
            "one-shot": one_shot,
            "with correction": one_shot + seconds(refit),
        }

    run([batches[0][:1]])  # loads what is loaded on first use
    taken = run(batches)
    times = {key: value / taken["forward pass"] for key, value in taken.items()}
    return {
        "model": name,
        "size": size,
        "images": len(batches) * batch,
        "seconds": taken,
        "times": times,
        "met": all(times[key] <= most for key, most in TARGETS.items()),
    }
