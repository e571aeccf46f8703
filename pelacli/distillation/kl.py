"""``kl``: the outputs as distributions (Hinton, Vinyals, Dean 2015)."""

from __future__ import annotations

from typing import TYPE_CHECKING

from pelacli.distillation.base import Settings, check_shapes
from pelacli.errors import RequestError

if TYPE_CHECKING:
    from torch import Tensor

DESCRIPTION = "divergence of the outputs as distributions"


def loss(student: Tensor, teacher: Tensor, settings: Settings) -> Tensor:
    """Distillation of the outputs as distributions, the mean over samples, or over tokens:
    ``T² · mean KL(softmax(z^T/T) ‖ softmax(z^S/T))`` with the settings' temperature T.

    Args:
        student, teacher: logits [..., classes] of one shape.

    Returns:
        A scalar in float32. No gradient reaches the teacher.
    """
    import torch.nn.functional as F

    check_shapes(student, teacher)
    if student.shape[-1] < 2:
        raise RequestError("loss.kl compares distributions, and the model has only one output")
    temperature = settings.temperature
    log_q, log_p = (
        F.log_softmax(z.float().flatten(0, -2) / temperature, -1)
        for z in (student, teacher.detach())
    )
    return temperature**2 * F.kl_div(log_q, log_p, reduction="batchmean", log_target=True)
