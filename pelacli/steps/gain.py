"""What healing brought: the student before and after, and why where it brought nothing."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

from pelacli import console
from pelacli.models.inputs import ImageInput
from pelacli.models.opened import OpenModel
from pelacli.recipe.step import Step
from pelacli.recipe.training import Pretrain, Train
from pelacli.train.criterion import Criterion
from pelacli.train.loop import Trained

_FEW_STEPS = 100
_MUCH_WORSE = 1.02  # times the distance at the start: noise is less
_SMALL_CROPS = 0.5  # of an image's area


@dataclass(frozen=True)
class Gain:
    """The student before and after healing.

    Attributes:
        start, result, last: what was measured before the first update, of the weights that the
            artefact has, and at the end of the run.
        step: the update after which the weights of the artefact were.
        figure: name of what decides; larger_is_better: of it.
        helped: whether the artefact is better than what went in.
        lr: the rate, also where pela has chosen it.
        search: what was tried for it, where pela has chosen it.
    """

    start: dict[str, float]
    result: dict[str, float]
    last: dict[str, float]
    step: int
    figure: str
    larger_is_better: bool
    helped: bool
    lr: float
    search: dict[str, Any] | None

    def document(self) -> dict[str, Any]:
        """As JSON and the manifest have it."""
        search = {"rate_search": self.search} if self.search else {}
        decided = {"decided_by": self.figure, "best_step": self.step, "helped": self.helped}
        return {"start": self.start} | decided | search


def gain(
    trained: Trained, criterion: Criterion, settings: Train, search: dict[str, Any] | None
) -> Gain | None:
    """None where nothing was measured.

    Args:
        settings: of the run, with the rate that it had.
    """
    figure = criterion.main(trained.start)
    if figure is None or figure not in trained.metrics:
        return None
    is_best = settings.result == "best" and trained.best is not None
    step = int(trained.best["step"]) if is_best and trained.best else trained.steps
    helped = criterion.key(trained.metrics) > criterion.key(trained.start)
    return Gain(
        start=trained.start,
        result=trained.metrics,
        last=trained.last,
        step=step,
        figure=figure,
        larger_is_better=figure in criterion.larger,
        helped=helped,
        lr=settings.lr,
        search=search,
    )


def say(measured: Gain, step: Step[Pretrain], opened: OpenModel, steps: int) -> None:
    """One line: what was gained, or that nothing was, and what may be the reason."""
    name = measured.figure.replace("_", " ")
    before, after, last = (
        f"{values[measured.figure]:.4g}"
        for values in (measured.start, measured.result, measured.last)
    )
    if measured.helped:
        console.info(f"healing: {name} {before} → {after} (step {measured.step} of {steps})")
        return
    why = "; ".join(_reasons(measured, step, opened, steps))
    if step.settings.result == "best":
        console.warn(
            f"healing did not help: {name} {before} before, {last} after {steps} steps, so the "
            f"artefact has the weights that went in; {why}"
        )
    else:
        console.warn(
            f"healing made it worse: {name} {before} before, {after} after {steps} steps; "
            f"pretrain.result = 'best' keeps the better of the two; {why}"
        )


def _reasons(measured: Gain, step: Step[Pretrain], opened: OpenModel, steps: int) -> Iterator[str]:
    """What is likely to be wrong, and what to try."""
    before, after = measured.start[measured.figure], measured.last[measured.figure]
    lost = after < before if measured.larger_is_better else after > _MUCH_WORSE * before
    if lost:
        yield f"lr {measured.lr:g} is likely too high (try lr = {measured.lr / 10:.0e}, or 'auto')"
    if steps < _FEW_STEPS:
        yield f"{steps} steps may be too few (raise epochs, or give more samples)"
    augment = step.data.augment if step.data and isinstance(opened.inputs, ImageInput) else None
    if augment is not None and not augment.none and augment.scale[0] < _SMALL_CROPS:
        yield (
            f"random crops down to {augment.scale[0]:.0%} of an image may be unlike what is "
            "judged (try data.augment.scale = [0.7, 1.0])"
        )
    if not lost and steps >= _FEW_STEPS:
        yield "the start may be as good as these samples can make it (give more samples)"
