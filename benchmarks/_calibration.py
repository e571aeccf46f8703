"""What calibration costs, in plain forward passes over the same samples."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from fractions import Fraction
from typing import Any

import torch
from _common import seconds
from torch import Tensor, nn

from pelacli.factorize import calibration, engine, measured_damage
from pelacli.factorize import refit as factorize_refit
from pelacli.factorize.batches import cut, samples_in
from pelacli.lowrank import find
from pelacli.lowrank.calls import evaluating
from pelacli.models import opening, prediction
from pelacli.models.opened import OpenModel
from pelacli.models.token_head import TokenHead, token_head
from pelacli.ranks import planner
from pelacli.ranks.budget import Budget

TARGETS = {"one-shot": 4.0, "with correction": 9.0}
BLOCK = 512  # tokens of a text


def measure(name: str, images: int, batch: int, size: int) -> dict[str, Any]:
    """Seconds of a forward pass, calibration and correction over the images, one run each.

    Nothing is concluded from fewer images: a line through 16 and 32 promised too much for 256
    (docs/log/speed-and-memory.md).
    """
    opened = opening.open(name, weights="random", model_args={"img_size": size})
    torch.manual_seed(0)
    batches = [torch.randn(batch, 3, size, size) for _ in range(max(1, images // batch))]
    what = f"{name} at {size} px, {len(batches) * batch} images"
    return {"what": what, **_costs(opened, batches, batches[0][:1], None)}


def measure_texts(model: str, tokens: int) -> dict[str, Any]:
    """The same of a language model, over as many random tokens in texts of 512."""
    opened = opening.open(model)
    torch.manual_seed(0)
    vocabulary = opened.module.get_input_embeddings().weight.shape[0]  # type: ignore[operator]
    ids = torch.randint(vocabulary, (max(2, tokens // BLOCK), BLOCK))
    batches = cut([{"input_ids": ids, "attention_mask": torch.ones_like(ids)}])
    few = {name: value[:1, :8] for name, value in batches[0].items()}
    what = f"{opened.source.architecture}, {ids.numel()} tokens"
    return {"what": what, **_costs(opened, batches, few, token_head(opened.module, few))}


def _costs(
    opened: OpenModel, batches: Sequence[Any], few: Any, head: TokenHead | None
) -> dict[str, Any]:
    """Args: few: a small batch, which loads what is loaded on first use."""
    module = opened.module.requires_grad_(False)
    layers = [la for la in find.find_layers(module, head=opened.head) if la.reason is None]

    def walk(module: nn.Module, batch: Any) -> Tensor:
        return prediction.predict(module, batch) if head is None else head.hidden(batch)

    _run(module, layers, [few], head, walk)
    taken = _run(module, layers, batches, head, walk)
    times = {key: value / taken["forward pass"] for key, value in taken.items()}
    met = all(times[key] <= most for key, most in TARGETS.items())
    return {"seconds": taken, "times": times, "met": met}


def _run(
    module: nn.Module,
    layers: Sequence[Any],
    batches: Sequence[Any],
    head: TokenHead | None,
    walk: Callable[[nn.Module, Any], Tensor],
) -> dict[str, float]:
    found: dict[str, Any] = {}

    def forward() -> None:
        with torch.no_grad(), evaluating(module):
            for one in batches:
                states = walk(module, one)
                if head is not None:
                    for row in states:
                        head.logits(row)

    def collect() -> None:
        found["moments"] = calibration.collect(
            module, layers, batches, prediction.predict, head=head
        )

    def damage() -> None:
        some = measured_damage.first(batches, sum(map(samples_in, batches)))
        measured_damage.measure(
            module,
            layers,
            solutions,
            found["moments"],
            some,
            prediction.predict,
            seed=0,
            head=head,
        )

    def refit() -> None:
        factorize_refit.correct(module, layers, plan.ranks(), found["moments"], batches, walk)

    first = seconds(forward)
    one_shot = seconds(collect)
    solutions = engine.solve(layers, found["moments"])
    one_shot += seconds(damage)
    plan = planner.plan(
        engine.spectra(layers, engine.solve(layers, {}, keep=engine.Keep.NOTHING), {}),
        Budget("uniform", Fraction(1, 2), scope="layers"),
    )
    return {
        "forward pass": first,
        "one-shot": one_shot,
        "with correction": one_shot + seconds(refit),
    }
