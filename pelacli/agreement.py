"""How alike two models are on the same samples, with no labels."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from pelacli.models import to_device


@torch.no_grad()
def agreement(
    model: nn.Module,
    dense: nn.Module,
    batches: Iterable[dict[str, Any]],
    predict: Callable[[nn.Module, Any], Tensor],
    *,
    classes: bool = False,
    device: torch.device | str = "cpu",
) -> dict[str, float]:
    """Compare the main outputs of two models.

    Args:
        predict: (module, inputs) → output [B, ..., D].
        classes: the outputs are logits, so that their largest entries can be compared where
            there is one vector [D] a sample.

    Returns:
        ``cosine``: mean cosine of the outputs of one sample; ``relative_error``: Σ‖y − y′‖² over
        Σ‖y − ȳ‖², the share of the dense outputs' variance that is lost; with ``classes``,
        ``same_class``: percent of samples with the same first choice.
    """
    samples = cosine = same = error = 0.0
    total = square = None
    for batch in batches:
        inputs = to_device(batch["inputs"], device)
        ours, theirs = predict(model, inputs), predict(dense, inputs)
        classes = classes and ours.ndim == 2
        ours, theirs = ours.flatten(1).double(), theirs.flatten(1).double()
        samples += len(ours)
        cosine += float(F.cosine_similarity(ours, theirs).sum())
        same += int((ours.argmax(1) == theirs.argmax(1)).sum())
        error += float((ours - theirs).square().sum())
        total = theirs.sum(0) if total is None else total + theirs.sum(0)
        square = theirs.square().sum() if square is None else square + theirs.square().sum()
    if total is None or square is None:
        return {}
    sums = torch.stack([total.new_tensor(v) for v in (samples, cosine, same, error)])
    sums, total, square = (_over_processes(t) for t in (sums, total, square))
    samples, cosine, same, error = sums.tolist()
    variance = float(square - total.square().sum() / samples)
    found = {"cosine": cosine / samples}
    if samples > 1 and variance > 0:
        found["relative_error"] = error / variance
    if classes:
        found["same_class"] = 100 * same / samples
    return found


def _over_processes(value: Tensor) -> Tensor:
    """The sum over all processes of a distributed run: each has seen its share of the samples."""
    if not (torch.distributed.is_available() and torch.distributed.is_initialized()):
        return value
    torch.distributed.all_reduce(value)
    return value
