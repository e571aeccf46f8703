"""The low-rank layer.

Words (``out`` × ``in`` weight W, rank r): ``down`` is r × in, ``up`` is out × r, W′ = up·down.
"""

from __future__ import annotations

from typing import Any, ClassVar, cast

import torch
from torch import Tensor, nn

from pelacli.lowrank.weight import product
from pelacli.ranks.forms import Form


def linear(in_features: int, out_features: int, *, bias: bool, **kwargs: Any) -> nn.Linear:
    """``nn.Linear``, also with no inputs or no outputs, of which it warns."""
    if in_features and out_features:
        return nn.Linear(in_features, out_features, bias=bias, **kwargs)
    empty = nn.Linear(1, 1, bias=False, device="meta")
    empty.in_features, empty.out_features = in_features, out_features
    empty.weight = nn.Parameter(torch.empty(out_features, in_features, **kwargs))
    if bias:
        empty.bias = nn.Parameter(torch.zeros(out_features, **kwargs))
    return empty


class LowRankLinear(nn.Module):
    """``y = up(down(x))``: a linear map of rank r in the place of an ``nn.Linear``.

    Args:
        in_features, out_features: as in ``nn.Linear``.
        rank: inner width r, 0 ≤ r. It costs r·(in + out) parameters instead of in·out.
        bias: whether ``up`` has a bias.

    Attributes:
        form: how it is stored and run; `pelacli.lowrank.pivot_linear` has the other one.
        replaces: the kind of the dense layer whose place it takes, "linear" or "conv1d", which
            stores its weight the other way round. Folding gives that kind back.

    Shapes: x is [..., in], the result [..., out]; ``down.weight`` is [r, in], ``up.weight``
    [out, r], ``up.bias`` [out].

    ``weight`` and ``bias`` answer as the dense layer's would, because some models read them and
    call ``F.linear`` themselves (BEiT, EVA, Swin-V2); see `pelacli.lowrank.weight`.
    """

    form: ClassVar[Form] = "factors"

    def __init__(
        self, in_features: int, out_features: int, rank: int, bias: bool = True, **kwargs: Any
    ) -> None:
        super().__init__()
        self.in_features, self.out_features, self.rank = in_features, out_features, rank
        self.replaces = "linear"
        self.down = linear(in_features, rank, bias=False, **kwargs)
        self.up = linear(rank, out_features, bias=bias, **kwargs)

    def forward(self, x: Tensor) -> Tensor:
        return cast(Tensor, self.up(self.down(x)))

    def factors(self) -> tuple[Tensor, Tensor]:
        """(down [r, in], up [out, r]) whose product the map is, with gradients."""
        return self.down.weight, self.up.weight

    def decay_gradients(self) -> tuple[Tensor, Tensor]:
        """Gradients of ½·‖W′‖² for ``up.weight`` and ``down.weight``."""
        down, up = self.down.weight, self.up.weight
        return up @ (down @ down.T), (up.T @ up) @ down

    @property
    def weight(self) -> Tensor:
        """up·down, [out, in]; multiplied out only for those who do more than ``F.linear``."""
        return product(self.up.weight, self.down.weight, training=self.training)

    @property
    def bias(self) -> Tensor | None:
        return cast("Tensor | None", self.up.bias)

    def extra_repr(self) -> str:
        return f"in_features={self.in_features}, out_features={self.out_features}, rank={self.rank}"
