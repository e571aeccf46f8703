"""``logits``: PELA's optional term ``mean((z^S − z^T)²)`` (Guo et al., CVPR 2024)."""

from __future__ import annotations

from typing import TYPE_CHECKING

from pelacli.distillation.base import Settings, check_shapes

if TYPE_CHECKING:
    from torch import Tensor

DESCRIPTION = "mean squared difference of the outputs"


def loss(student: Tensor, teacher: Tensor, settings: Settings | None = None) -> Tensor:
    """Mean squared difference of two tensors of one shape, a scalar in float32."""
    import torch.nn.functional as F

    check_shapes(student, teacher)
    return F.mse_loss(student.float(), teacher.detach().float())
