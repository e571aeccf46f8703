"""The losses of the healing stage: pure functions of tensors.

Notation of PELA (Guo et al., CVPR 2024): features f_i of N taps, logits z, and for each of P
factorised layers the frozen dense weight W (out × in) beside the pair up (out × r), down (r × in).

Losses between the outputs of student and teacher are files of `pelacli.distillation`.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence

import torch
from torch import Tensor

from pelacli.distillation.logits import loss as squared_difference
from pelacli.distillation.relative import loss as relative_difference
from pelacli.errors import PelaError, RequestError
from pelacli.lowrank.weight import gathered


def feature(student: Sequence[Tensor], teacher: Sequence[Tensor], unit: str = "absolute") -> Tensor:
    """Feature distillation: ``(1/N) Σ_i mean((f_i^S − f_i^T)²)``.

    The mean runs over all elements of a tap (batch, tokens, channels), then over the N taps: no
    normalisation, no projector, no temperature (PELA, equation of the feature loss).

    Args:
        student, teacher: the taps' outputs in the same order, any shapes, equal pair by pair.
        unit: "absolute" is the paper's. "relative" divides each tap's difference by the variance of
            the teacher's, so that taps of all sizes count alike.

    Returns:
        A scalar in float32. No gradient reaches the teacher.

    Raises:
        PelaError: no taps, or the two sides do not match.
    """
    if len(student) != len(teacher) or not student:
        raise PelaError(f"{len(student)} student features for {len(teacher)} of the teacher")
    distance = relative_difference if unit == "relative" else squared_difference
    return torch.stack([distance(s, t) for s, t in zip(student, teacher, strict=True)]).mean()


def perturbation(
    pairs: Iterable[tuple[Tensor, Tensor, Tensor]], eps: float, form: str = "two-sided"
) -> Tensor:
    """Weight perturbation: ``(1/P) Σ (max|up·down − W| − eps)²``, in float32 under any autocast.

    max|·| is the largest absolute entry, as the paper's code computes its ‖·‖_∞. The "two-sided"
    form is the paper's: eps is a target from both sides. "hinge" only punishes what exceeds it:
    ``max(0, max|·| − eps)²``.

    The gradient of max|·| has one entry, so only one row of ``up`` and one column of ``down`` get
    any. The dense product is therefore formed without autograd, to find that entry, and the entry
    alone is computed again with gradients: no residual is kept for the backward pass, which costs
    nothing. The product needs full float32: bfloat16 noise is as large as the usual eps of 1e-3.

    Args:
        pairs: (up [out, r], down [r, in], W [out, in]) per layer. W is frozen: it gets no gradient.

    Returns:
        A scalar in float32.

    Raises:
        RequestError: there are no pairs, or the form is unknown.
    """
    if form not in ("two-sided", "hinge"):
        raise RequestError(f"perturbation_form {form!r}: must be 'two-sided' or 'hinge'")
    worst = [
        _largest_entry(gathered(up), gathered(down), weight.detach()) for up, down, weight in pairs
    ]
    if not worst:
        raise RequestError("no factorised layer to keep near its weight: set loss.perturbation = 0")
    excess = torch.stack(worst).abs() - eps
    return (excess.clamp_min(0.0) if form == "hinge" else excess).square().mean()


def _largest_entry(up: Tensor, down: Tensor, weight: Tensor) -> Tensor:
    """The entry of ``up·down − W`` largest in absolute value, with gradients to the pair."""
    with torch.autocast(up.device.type, enabled=False):
        with torch.no_grad():
            # The subtraction rides on the product, and two reductions by rows replace abs: nothing
            # beside the product is noticed. One argmax over all would cost ten times as much.
            residual = torch.addmm(weight.float(), up.float(), down.float(), beta=-1)
            row = torch.maximum(residual.amax(1), -residual.amin(1)).argmax().view(1)
            column = residual.index_select(0, row).abs_().argmax(1)
        # index_select keeps the position on the device; plain indexing would wait for the GPU.
        entry = up.index_select(0, row).float() @ down.index_select(1, column).float()
        return (entry - weight.index_select(0, row).index_select(1, column).float()).view(())
