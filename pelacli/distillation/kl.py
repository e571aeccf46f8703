"""``kl``: the outputs as distributions (Hinton, Vinyals, Dean 2015)."""

from __future__ import annotations

from functools import cache
from typing import TYPE_CHECKING, Any

from pelacli.distillation.base import Settings, check_shapes
from pelacli.errors import RequestError

if TYPE_CHECKING:
    from torch import Tensor

DESCRIPTION = "divergence of the outputs as distributions"

# Logits that are computed with in float32 at a time: some five tensors of 64 MiB.
_ENTRIES = 2**24


def loss(student: Tensor, teacher: Tensor, settings: Settings) -> Tensor:
    """Distillation of the outputs as distributions, the mean over samples, or over tokens:
    ``T² · mean KL(softmax(z^T/T) ‖ softmax(z^S/T))`` with the settings' temperature T.

    Args:
        student, teacher: logits [..., classes] of one shape.

    Returns:
        A scalar in float32. No gradient reaches the teacher.
    """
    check_shapes(student, teacher)
    if student.shape[-1] < 2:
        raise RequestError("loss.kl compares distributions, and the model has only one output")
    rows = student.flatten(0, -2)
    total: Tensor = _divergence().apply(rows, teacher.detach().flatten(0, -2), settings.temperature)
    return settings.temperature**2 * total / len(rows)


@cache
def _divergence() -> Any:
    """The sum over rows of logits [rows, classes], as a function of autograd.

    A language model's logits are the largest tensors of its training, and the plain formula keeps
    several of that size in float32. This one goes through some rows at a time and keeps nothing but
    the gradient, ``(softmax(z^S/T) − softmax(z^T/T)) / T``, in the type of the student's logits.
    """
    import torch
    import torch.nn.functional as F

    class Divergence(torch.autograd.Function):
        @staticmethod
        def forward(ctx: Any, student: Tensor, teacher: Tensor, temperature: float) -> Tensor:
            total = torch.zeros((), device=student.device)
            gradient = torch.empty_like(student) if ctx.needs_input_grad[0] else None
            rows = max(1, _ENTRIES // student.shape[-1])
            for start in range(0, len(student), rows):
                part = slice(start, start + rows)
                log_q, log_p = (
                    F.log_softmax(z[part].float() / temperature, -1) for z in (student, teacher)
                )
                total += F.kl_div(log_q, log_p, reduction="sum", log_target=True)
                if gradient is not None:
                    gradient[part] = (log_q.exp_() - log_p.exp_()) / temperature
            ctx.save_for_backward(gradient)
            return total

        @staticmethod
        @torch.autograd.function.once_differentiable
        def backward(ctx: Any, outer: Tensor) -> tuple[Tensor, None, None]:
            (gradient,) = ctx.saved_tensors
            return gradient * outer, None, None

    return Divergence
