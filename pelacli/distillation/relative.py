"""``relative``: how much of the teacher's output is lost, in its own unit."""

from __future__ import annotations

from typing import TYPE_CHECKING

from pelacli.distillation.base import Settings, check_shapes

if TYPE_CHECKING:
    from torch import Tensor

DESCRIPTION = "squared difference of the outputs, as a share of the teacher's variance"


def loss(student: Tensor, teacher: Tensor, settings: Settings | None = None) -> Tensor:
    """``mean((z^S − z^T)²) / mean((z^T − z̄^T)²)``, z̄ being the mean over all but the last axis of
    the batch: the relative error that `pela eval --against` reports, of one batch.

    Where the teacher's output does not vary, its square stands in for the variance.

    Args:
        student, teacher: outputs of one shape [..., D].

    Returns:
        A scalar in float32. No gradient reaches the teacher.
    """
    check_shapes(student, teacher)
    ours, theirs = student.float(), teacher.detach().float()
    rows = theirs.flatten(0, -2) if theirs.ndim > 1 else theirs[:, None]
    variance = rows.var(0, correction=0).mean()
    if not variance > 0:
        variance = rows.square().mean().clamp_min(1e-12)
    return (ours - theirs).square().mean() / variance
