"""The low-rank layer.

Words (``out`` × ``in`` weight W, rank r): ``down`` is r × in, ``up`` is out × r, W′ = up·down.
"""

from __future__ import annotations

from typing import Any, cast

import torch
from torch import Tensor, nn

from pelacli.lowrank.weight import product


class LowRankLinear(nn.Module):
    """``y = up(down(x))``: a linear map of rank r in the place of an ``nn.Linear``.

    Args:
        in_features, out_features: as in ``nn.Linear``.
        rank: inner width r, 0 ≤ r. It costs r·(in + out) parameters instead of in·out.
        bias: whether ``up`` has a bias.

    Attributes:
        replaces: the kind of the dense layer whose place it takes, "linear" or "conv1d", which
            stores its weight the other way round. Folding gives that kind back.

    Shapes: x is [..., in], the result [..., out]; ``down.weight`` is [r, in], ``up.weight``
    [out, r], ``up.bias`` [out].

    ``weight`` and ``bias`` answer as the dense layer's would, because some models read them and
    call ``F.linear`` themselves (BEiT, EVA, Swin-V2); see `pelacli.lowrank.weight`.
    """

    def __init__(
        self, in_features: int, out_features: int, rank: int, bias: bool = True, **kwargs: Any
    ) -> None:
        super().__init__()
        self.in_features, self.out_features, self.rank = in_features, out_features, rank
        self.replaces = "linear"
        if rank:
            self.down = nn.Linear(in_features, rank, bias=False, **kwargs)
            self.up = nn.Linear(rank, out_features, bias=bias, **kwargs)
        else:  # nn.Linear warns about empty weights, which are what rank 0 means
            self.down, self.up = (nn.Linear(1, 1, bias=False, device="meta") for _ in range(2))
            self.down.in_features, self.down.out_features = in_features, 0
            self.up.in_features, self.up.out_features = 0, out_features
            self.down.weight = nn.Parameter(torch.empty(0, in_features, **kwargs))
            self.up.weight = nn.Parameter(torch.empty(out_features, 0, **kwargs))
            if bias:
                self.up.bias = nn.Parameter(torch.zeros(out_features, **kwargs))

    def forward(self, x: Tensor) -> Tensor:
        return cast(Tensor, self.up(self.down(x)))

    @property
    def weight(self) -> Tensor:
        """up·down, [out, in]; multiplied out only for those who do more than ``F.linear``."""
        return product(self.up.weight, self.down.weight, training=self.training)

    @property
    def bias(self) -> Tensor | None:
        return cast("Tensor | None", self.up.bias)

    def extra_repr(self) -> str:
        return f"in_features={self.in_features}, out_features={self.out_features}, rank={self.rank}"
