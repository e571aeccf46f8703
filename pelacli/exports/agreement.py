"""How far the outputs of an exported model are from those of the artefact."""

from __future__ import annotations

from collections.abc import Mapping

import torch
from torch import Tensor

# The largest relative difference that an export may have, by its precision. That of an export
# without a fault is about a hundredth of it; measured ones stand in docs/consumers.md.
BOUNDS = {"fp32": 1e-4, "fp16": 3e-2, "bf16": 2e-1}


def largest_difference(
    expected: Mapping[str, Tensor], outputs: Mapping[str, Tensor], mask: Tensor | None
) -> float:
    """The largest absolute difference of an output, by the largest absolute value that it has in
    the artefact. The largest of all outputs; infinite where one is missing or not finite.

    Args:
        expected, outputs: by name, [B, …] or of tokens [B, N, …].
        mask: [B, N], 1 where a token is no padding. What models make of padding is not compared.
    """
    worst = 0.0
    for name, reference in expected.items():
        output = outputs.get(name)
        if output is None or output.shape != reference.shape:
            return float("inf")
        wide, other = reference.double(), output.double()
        if mask is not None and reference.shape[:2] == mask.shape:
            wide, other = wide[mask == 1], other[mask == 1]
        if not wide.numel():
            continue
        difference = (wide - other).abs().max() / wide.abs().max().clamp_min(1e-12)
        worst = max(worst, float(torch.nan_to_num(difference, nan=torch.inf)))
    return worst
