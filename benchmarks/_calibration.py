"""What calibration costs, in plain forward passes over the same images."""

from __future__ import annotations

from fractions import Fraction
from typing import Any

import torch
from _common import seconds

from pelacli import calibrate, correct, engine, lowrank, models, ranks
from pelacli.calls import evaluating

TARGETS = {"one-shot": 4.0, "with correction": 10.0}
WANTED = 256  # images that the targets are for


def measure(name: str, images: int, batch: int, size: int) -> dict[str, Any]:
    """Seconds of a forward pass, calibration and correction over the images.

    Each is measured over half and over all of the images, which tells what is spent per image
    and what once; so follows what 256 images would take.
    """
    opened = models.open(name, weights="random", model_args={"img_size": size})
    module = opened.module.requires_grad_(False)
    layers = [la for la in lowrank.find_layers(module, head=opened.head) if la.reason is None]
    torch.manual_seed(0)
    half = max(1, images // batch // 2)
    batches = [torch.randn(batch, 3, size, size) for _ in range(2 * half)]

    def run(some: list[torch.Tensor]) -> dict[str, float]:
        def forward() -> None:
            with torch.no_grad(), evaluating(module):
                for one in some:
                    models.predict(module, one)

        taken: dict[str, Any] = {}

        def collect() -> None:
            taken["moments"] = calibrate.collect(module, layers, some, models.predict)

        def refit() -> None:
            correct.correct(module, layers, plan.ranks(), taken["moments"], some, models.predict)

        first = seconds(forward)
        one_shot = seconds(collect)
        plan = ranks.plan(
            engine.spectra(layers, engine.energies(layers, {}), {}),
            policy="uniform",
            ratio=Fraction(1, 2),
            scope="layers",
        )
        return {
            "forward pass": first,
            "one-shot": one_shot,
            "with correction": one_shot + seconds(refit),
        }

    run([batches[0][:1]])  # loads what is loaded on first use
    less, all_ = run(batches[:half]), run(batches)
    ratio = WANTED / (batch * half)
    at = {k: less[k] + max(0.0, all_[k] - less[k]) * (ratio - 1) for k in all_}
    times = {k: all_[k] / all_["forward pass"] for k in all_}
    at_256 = {k: at[k] / at["forward pass"] for k in at}
    return {
        "model": name,
        "size": size,
        "images": 2 * half * batch,
        "seconds": all_,
        "seconds_half": less,
        "times": times,
        "at_256": at_256,
        "met": all(at_256[key] <= most for key, most in TARGETS.items()),
    }
