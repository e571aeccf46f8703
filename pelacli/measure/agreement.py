"""How alike two models are on the same samples, with no labels."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from pelacli.lowrank.padding import padding_mask, unpadded
from pelacli.system import processes
from pelacli.system.devices import move_batch

_PART = 512  # rows


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
    """Compare the main outputs of two models. Where they give a vector to each token of a text, a
    token is a sample here, and padding is none.

    Args:
        predict: (module, inputs) → output [B, ..., D].
        classes: whether the models have classes; see `chooses_classes`.

    Returns:
        ``cosine``: mean cosine of the outputs of one sample; ``relative_error``: Σ‖y − y′‖² over
        Σ‖y − ȳ‖², the share of the dense outputs' variance that is lost; with ``classes``,
        ``same_class``, where the dense model `chooses_classes`: percent of samples (of a map's
        pixels) with the same first choice. Empty where the outputs are of different kinds.
    """
    samples = cosine = same = places = error = 0.0
    total = square = None
    choices = False
    for batch in batches:
        inputs = move_batch(batch["inputs"], device)
        mask = padding_mask(inputs)
        whole = predict(model, inputs), predict(dense, inputs)
        ours, theirs = (unpadded(output, mask) for output in whole)
        if ours.shape != theirs.shape:
            return {}
        choices = chooses_classes(whole[1], mask, classes)
        # In parts: a vocabulary for every token of a batch is large in double precision.
        for y, z in zip(torch.split(ours, _PART), torch.split(theirs, _PART), strict=True):
            if choices:
                alike = y.argmax(1) == z.argmax(1)
                same, places = same + int(alike.sum()), places + alike.numel()
            if y.device.type == "mps":  # which has no double precision
                y, z = y.cpu(), z.cpu()
            y, z = y.flatten(1).double(), z.flatten(1).double()
            samples += len(y)
            cosine += float(F.cosine_similarity(y, z).sum())
            error += float((y - z).square().sum())
            total = z.sum(0) if total is None else total + z.sum(0)
            square = z.square().sum() if square is None else square + z.square().sum()
    if total is None or square is None:
        return {}
    # Each process has seen its share of the samples.
    sums = torch.stack([total.new_tensor(v) for v in (samples, cosine, same, places, error)])
    sums, total, square = (processes.total(t) for t in (sums, total, square))
    samples, cosine, same, places, error = sums.tolist()
    variance = float(square - total.square().sum() / samples)
    found = {"cosine": cosine / samples}
    if samples > 1 and variance > 0:
        found["relative_error"] = error / variance
    if choices:
        found["same_class"] = 100 * same / places
    return found


def chooses_classes(output: Tensor, mask: Tensor | None, classes: bool) -> bool:
    """Whether the largest entry of a dense model's outputs is its choice of a class, so that two
    models can be asked for the same choice.

    It is for one vector of logits a sample, for a map of them, and for one vector a token of a
    text, a choice of words among them. It is not for the queries of a detector, for embeddings,
    nor for a single number, which is always the largest.

    Args:
        output: of the dense model for a batch, [B, D], [B, D, height, width], [B, N, D] or else.
        mask: [B, N], where there are tokens; None for other inputs than text.
        classes: whether the model has classes. Logits of tokens need none: embeddings of texts
            have no axis of tokens left (`pelacli.models.prediction.predict`).
    """
    if mask is not None and output.shape[:-1] == mask.shape:
        return output.shape[-1] > 1
    return classes and output.ndim in (2, 4) and output.shape[1] > 1
