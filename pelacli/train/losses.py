"""The losses of the healing stage: pure functions of tensors.

Notation of PELA (Guo et al., CVPR 2024): features f_i of N taps, logits z, and for each of P
factorised layers the frozen dense weight W (out × in) beside the pair up (out × r), down (r × in).

A new loss between the outputs of student and teacher is one function, listed in `BETWEEN_OUTPUTS`,
and its weight, a field of the same name in `pelacli.recipe.schema.Loss`. The weights stand there
because recipes are checked without torch.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import TYPE_CHECKING, cast

import torch
import torch.nn.functional as F
from torch import Tensor

from pelacli.errors import PelaError, RequestError

if TYPE_CHECKING:
    from pelacli.recipe.schema import Loss


def feature(student: Sequence[Tensor], teacher: Sequence[Tensor]) -> Tensor:
    """Feature distillation: ``(1/N) Σ_i mean((f_i^S − f_i^T)²)``.

    The mean runs over all elements of a tap (batch, tokens, channels), then over the N taps: no
    normalisation, no projector, no temperature (PELA, equation of the feature loss).

    Args:
        student, teacher: the taps' outputs in the same order, any shapes, equal pair by pair.

    Returns:
        A scalar in float32. No gradient reaches the teacher.

    Raises:
        PelaError: no taps, or the two sides do not match.
    """
    if len(student) != len(teacher) or not student:
        raise PelaError(f"{len(student)} student features for {len(teacher)} of the teacher")
    return torch.stack([logits(s, t) for s, t in zip(student, teacher, strict=True)]).mean()


def logits(student: Tensor, teacher: Tensor) -> Tensor:
    """Mean squared difference of two tensors of one shape, a scalar in float32.

    Used on the outputs it is PELA's optional logit term ``mean((z^S − z^T)²)``.
    """
    if student.shape != teacher.shape:  # mse_loss would broadcast, and train on nonsense
        raise PelaError(f"student gives {tuple(student.shape)}, teacher {tuple(teacher.shape)}")
    return F.mse_loss(student.float(), teacher.detach().float())


def kl(student: Tensor, teacher: Tensor, temperature: float = 1.0) -> Tensor:
    """Distillation of the outputs as distributions, the mean over samples, or over tokens:
    ``T² · mean KL(softmax(z^T/T) ‖ softmax(z^S/T))`` (Hinton, Vinyals, Dean 2015).

    Args:
        student, teacher: logits [..., classes] of one shape.

    Returns:
        A scalar in float32. No gradient reaches the teacher.
    """
    if student.shape != teacher.shape:
        raise PelaError(f"student gives {tuple(student.shape)}, teacher {tuple(teacher.shape)}")
    if student.shape[-1] < 2:
        raise RequestError("loss.kl compares distributions, and the model has only one output")
    log_q, log_p = (
        F.log_softmax(z.float().flatten(0, -2) / temperature, -1)
        for z in (student, teacher.detach())
    )
    return temperature**2 * F.kl_div(log_q, log_p, reduction="batchmean", log_target=True)


def cosine(student: Tensor, teacher: Tensor) -> Tensor:
    """Distillation of embeddings by their angle: ``mean(1 − cos(z^S, z^T))`` of vectors [..., D], a
    scalar in float32."""
    if student.shape != teacher.shape:
        raise PelaError(f"student gives {tuple(student.shape)}, teacher {tuple(teacher.shape)}")
    return (1 - F.cosine_similarity(student.float(), teacher.detach().float(), dim=-1)).mean()


# name → (student's output, teacher's output, the recipe's settings of the losses) → a scalar
BETWEEN_OUTPUTS: Mapping[str, Callable[[Tensor, Tensor, Loss], Tensor]] = {
    "logits": lambda student, teacher, _: logits(student, teacher),
    "kl": lambda student, teacher, loss: kl(student, teacher, loss.temperature),
    "cosine": lambda student, teacher, _: cosine(student, teacher),
}


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
        _largest_entry(_gathered(up), _gathered(down), weight.detach())
        for up, down, weight in pairs
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


def _gathered(factor: Tensor) -> Tensor:
    """The whole of a factor that is spread over processes, with gradients to each process's share.

    All processes compute the same, so each share gets its gradient once and nothing is averaged.
    """
    gather = getattr(factor, "full_tensor", None)
    return cast(Tensor, gather()) if gather is not None else factor
