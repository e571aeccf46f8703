"""The low-rank layer in pivot form: an identity inside one of its factors is neither stored nor
multiplied.

Any matrix W′ of rank r has r rows that span all others, and r columns. With the columns P as
pivots, ``W′ = W′[:, P] · [I, C]`` once its columns are sorted so that P comes first; with rows
likewise. So r·(in + out − r) numbers say what factors need r·(in + out) for. Source: PIFA (ICML
2025), there for rows.

The pivots lie on the narrow side, out or in, where sorting costs least.
"""

from __future__ import annotations

from typing import Any, cast

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from pelacli.lowrank.linear import LowRankLinear, linear
from pelacli.lowrank.weight import Apply, gathered


def pivots_on_inputs(in_features: int, out_features: int) -> bool:
    """Whether a layer's pivots are inputs; else they are outputs."""
    return in_features <= out_features


class PivotLinear(LowRankLinear):
    """A linear map of rank r in r·(in + out − r) parameters, in the place of an ``nn.Linear``.

    Where in ≤ out, with x sorted by ``order``, the r pivots first::

        z = x[:r] + down(x[r:])        down.weight [r, in − r]
        y = up(z)                      up.weight [out, r], up.bias [out]

    Else the outputs come as the r pivots and then the others, and ``order`` sorts them::

        p = down(x)                    down.weight [r, in], down.bias [r]
        y = [p, up(p)][order]          up.weight [out − r, r], up.bias [out − r]

    The bias of the others is then less by what ``up`` makes of the pivots' bias.

    Args:
        in_features, out_features, bias: as in ``nn.Linear``.
        rank: r, 0 ≤ r ≤ min(in, out). At the latter it costs what the dense layer costs.

    Attributes:
        order: indices [min(in, out)], a buffer of int32.
        on_inputs: whether the pivots are inputs.
        replaces: as of `LowRankLinear`.
    """

    form = "pivots"

    def __init__(
        self, in_features: int, out_features: int, rank: int, bias: bool = True, **kwargs: Any
    ) -> None:
        nn.Module.__init__(self)
        narrow = min(in_features, out_features)
        self.in_features, self.out_features, self.rank = in_features, out_features, rank
        self.replaces = "linear"
        self.on_inputs = pivots_on_inputs(in_features, out_features)
        if self.on_inputs:
            self.down = linear(in_features - rank, rank, bias=False, **kwargs)
            self.up = linear(rank, out_features, bias=bias, **kwargs)
        else:
            self.down = linear(in_features, rank, bias=bias, **kwargs)
            self.up = linear(rank, out_features - rank, bias=bias, **kwargs)
        order = torch.arange(narrow, dtype=torch.int32, device=kwargs.get("device"))
        self.order: Tensor
        self.register_buffer("order", order)

    def forward(self, x: Tensor) -> Tensor:
        return self._through(x, self.down, self.up)

    def _apply_of(self, down: Tensor, up: Tensor) -> Apply:
        return lambda x: self._through(x, lambda x: F.linear(x, down), lambda x: F.linear(x, up))

    def _through(self, x: Tensor, down: Apply, up: Apply) -> Tensor:
        # Of a matrix, columns are taken much faster than of what has more dimensions.
        rows = x.reshape(-1, self.in_features)
        if self.on_inputs:
            rows = rows.index_select(1, self.order)
            y = up(rows[:, : self.rank] + down(rows[:, self.rank :]))
        else:
            pivots = down(rows)
            y = torch.cat((pivots, up(pivots)), 1).index_select(1, self.order)
        return y.reshape(*x.shape[:-1], self.out_features)

    def _factors_of(self, down: Tensor, up: Tensor) -> tuple[Tensor, Tensor]:
        down, up = gathered(down), gathered(up)
        one = torch.eye(self.rank, dtype=down.dtype, device=down.device)
        if self.on_inputs:
            inverse = self.order.argsort()
            return torch.cat((one, down), 1).index_select(1, inverse), up
        return down, torch.cat((one, up), 0).index_select(0, self.order)

    def decay_gradients(self) -> tuple[Tensor, Tensor]:
        down, up = self.down.weight, self.up.weight
        if self.on_inputs:
            return up + up @ (down @ down.T), (up.T @ up) @ down
        return up @ (down @ down.T), down + (up.T @ up) @ down

    @property
    def _plain_bias(self) -> Tensor | None:
        if self.on_inputs or self.up.bias is None:
            return cast("Tensor | None", self.up.bias)
        others = self.up.bias + self.up.weight @ self.down.bias
        return torch.cat((self.down.bias, others)).index_select(0, self.order)
