"""``cosine``: the angle between embeddings."""

from __future__ import annotations

from typing import TYPE_CHECKING

from pelacli.distillation.base import Settings, check_shapes

if TYPE_CHECKING:
    from torch import Tensor

DESCRIPTION = "1 - cosine of the outputs, for embeddings"


def loss(student: Tensor, teacher: Tensor, settings: Settings | None = None) -> Tensor:
    """Distillation of embeddings by their angle: ``mean(1 − cos(z^S, z^T))`` of vectors [..., D], a
    scalar in float32."""
    import torch.nn.functional as F

    check_shapes(student, teacher)
    return (1 - F.cosine_similarity(student.float(), teacher.detach().float(), dim=-1)).mean()
