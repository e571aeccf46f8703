"""Factors → pivot form: r rows of the narrow factor that all its others are small multiples of."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from pelacli.lowrank.pivot_linear import pivots_on_inputs

# Pivots are exchanged until no other row or column needs more of one than this. Each exchange
# multiplies the volume that the pivots span by more than this, so there are few.
_MOST = 1.2
_EXCHANGES = 2000  # then it is left as it is; random and trained layers took fewer than a hundred


@dataclass(frozen=True)
class Pivots:
    """The tensors of a `PivotLinear`, under their names there."""

    down: Tensor
    up: Tensor
    order: Tensor
    down_bias: Tensor | None
    up_bias: Tensor | None

    @property
    def shape(self) -> tuple[int, int]:
        """(out, in) of the layer."""
        narrow = len(self.order)
        return (len(self.up), narrow) if self._on_inputs else (narrow, self.down.shape[1])

    @property
    def largest(self) -> float:
        """The largest absolute entry of what the others are made of the pivots by: rounding errors
        of the pivots grow with it."""
        mix = self.down if self._on_inputs else self.up
        return float(mix.abs().max()) if mix.numel() else 0.0

    @property
    def _on_inputs(self) -> bool:
        narrow = len(self.order)
        return self.down.shape[1] + len(self.down) == narrow and len(self.up) >= narrow


@torch.no_grad()
def pivots(down: Tensor, up: Tensor, bias: Tensor | None) -> Pivots:
    """The same map as up·down in pivot form.

    Args:
        down: [r, in]; up: [out, r]; bias: [out].

    Returns:
        Tensors of the factors' type and device. The map is the factors' to rounding, also where
        these are linearly dependent or zero.
    """
    kind = down.dtype
    wide_in, bias_kind = down.double(), None if bias is None else bias.dtype
    wide_out = up.double()
    if pivots_on_inputs(down.shape[1], len(up)):
        chosen, others, mix, span = _pivots_of(wide_in.T)
        # up·down = (up·Rᵀ)·Qᵀ, and the columns of Qᵀ are those at the pivots times [I, mixᵀ].
        on_pivots = wide_out @ span.T
        order = torch.cat((chosen, others)).int()
        return Pivots(mix.T.to(kind).contiguous(), on_pivots.to(kind), order, None, bias)
    chosen, others, mix, span = _pivots_of(wide_out)
    on_pivots = span @ wide_in
    order = torch.cat((chosen, others)).argsort().int()
    down_bias = up_bias = None
    if bias is not None:
        wide_bias = bias.double()
        down_bias = wide_bias[chosen].to(bias_kind)
        up_bias = (wide_bias[others] - mix @ down_bias.double()).to(bias_kind)
    return Pivots(on_pivots.to(kind), mix.to(kind).contiguous(), order, down_bias, up_bias)


def _pivots_of(tall: Tensor) -> tuple[Tensor, ...]:
    """(pivots [r], others [n − r], mix [n − r, r], span [r, r]) of a matrix [n, r]: its rows at the
    pivots are span, and the others mix · span.

    It is computed on the CPU, as it looks at single numbers.

    An orthonormal basis is pivoted in its place, which spans r dimensions even where the matrix
    does not. LU decomposition with partial pivoting gives the first pivots, and exchanges of one at
    a time make them better until no entry of mix is above `_MOST`. Source of the exchanges:
    Goreinov et al., "How to find a good submatrix" (2010).
    """
    device, tall = tall.device, tall.cpu()
    n, rank = tall.shape
    if not rank:
        rows = torch.arange(n)
        return tuple(t.to(device) for t in (rows[:0], rows, tall, tall.new_zeros(0, 0)))
    basis, triangle = torch.linalg.qr(tall)
    chosen = _rows_of_lu(basis)
    # Every row as a combination of those at the pivots, whose own rows are unit vectors.
    combined = torch.linalg.solve(basis[chosen].T, basis.T).T.contiguous()
    for _ in range(_EXCHANGES):
        row, column = divmod(int(combined.abs().argmax()), rank)
        size = combined[row, column]
        if float(size.abs()) <= _MOST:
            break
        change = combined[row].clone()
        change[column] -= 1
        combined.addr_(combined[:, column] / size, change, alpha=-1)
        chosen[column] = row
    chosen = chosen.sort().values
    is_other = torch.ones(n, dtype=torch.bool)
    is_other[chosen] = False
    others = is_other.nonzero()[:, 0]
    mix = torch.linalg.solve(basis[chosen].T, basis[others].T).T
    return tuple(t.to(device) for t in (chosen, others, mix, basis[chosen] @ triangle))


def _rows_of_lu(basis: Tensor) -> Tensor:
    """The rows [r] that partial pivoting takes first."""
    swaps = torch.linalg.lu_factor(basis)[1].long() - 1
    rows = list(range(len(basis)))
    for i, other in enumerate(swaps.tolist()):
        rows[i], rows[other] = rows[other], rows[i]
    return torch.tensor(rows[: basis.shape[1]])
