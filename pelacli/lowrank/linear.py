"""The low-rank layer.

Words (``out`` × ``in`` weight W, rank r): ``down`` is r × in, ``up`` is out × r, W′ = up·down.
"""

from __future__ import annotations

from functools import partial
from typing import Any, ClassVar, cast

import torch
from torch import Tensor, nn

from pelacli.lowrank.weight import Apply, Product
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

    @property
    def is_adapted(self) -> bool:
        """Whether something runs around one of its parts, or in its place: an adapter of peft, a
        quantised layer, weights that an offloading hook brings."""
        return not (_is_plain(self.down) and _is_plain(self.up))

    def factors(self) -> tuple[Tensor, Tensor]:
        """(down [r, in], up [out, r]) whose product the map is, with gradients, and with what
        adapters add."""
        return self._factors_of(_weight_of(self.down), _weight_of(self.up))

    def _factors_of(self, down: Tensor, up: Tensor) -> tuple[Tensor, Tensor]:
        """The factors from the weights of the two parts."""
        return down, up

    def decay_gradients(self) -> tuple[Tensor, Tensor]:
        """Gradients of ½·‖W′‖² for ``up.weight`` and ``down.weight``."""
        down, up = self.down.weight, self.up.weight
        return up @ (down @ down.T), (up.T @ up) @ down

    @property
    def weight(self) -> Tensor:
        """up·down, [out, in]; multiplied out only for those who do more than ``F.linear``."""
        shape = self.out_features, self.in_features
        if self.is_adapted:
            sources = [p for p in self.parameters() if p.is_floating_point()]
            product = Product(shape, sources, self.factors, self._run_without_bias)
        else:
            down, up = self.down.weight, self.up.weight
            factors = partial(self._factors_of, down, up)
            product = Product(shape, (up, down), factors, self._apply_of(down, up))
        return product.as_tensor(training=self.training)

    def _apply_of(self, down: Tensor, up: Tensor) -> Apply | None:
        """How the weights of the two parts are applied; None: one after the other."""
        return None

    @property
    def bias(self) -> Tensor | None:
        if self.is_adapted and getattr(self.up, "bias", None) is not None:
            return self._run_on_zeros()[0]
        return self._plain_bias

    @property
    def _plain_bias(self) -> Tensor | None:
        return cast("Tensor | None", self.up.bias)

    def _run_without_bias(self, x: Tensor) -> Tensor:
        y: Tensor = self(x)
        bias = self.bias
        return y if bias is None else y - bias

    def _run_on_zeros(self) -> Tensor:
        """The output [1, out] for zeros."""
        like = next(p for p in self.parameters() if p.is_floating_point())
        y: Tensor = self(like.new_zeros(1, self.in_features))
        return y

    def extra_repr(self) -> str:
        return f"in_features={self.in_features}, out_features={self.out_features}, rank={self.rank}"


def _is_plain(part: nn.Module) -> bool:
    """Whether a part does what ``nn.Linear`` does with its weight and no more."""
    return (
        isinstance(part, nn.Linear)
        and type(part).forward is nn.Linear.forward
        and "forward" not in vars(part)
    )


def _weight_of(part: nn.Linear) -> Tensor:
    """The weight [out, in] of a part, with what an adapter adds to it: what it makes of an
    identity."""
    if _is_plain(part):
        return part.weight
    like = next(p for p in part.parameters() if p.is_floating_point())
    one = torch.eye(part.in_features, dtype=like.dtype, device=like.device)
    return cast(Tensor, part(one) - part(torch.zeros_like(one[:1]))).T
