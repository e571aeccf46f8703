"""Factors of a lazily opened model, each made or read when it is asked for."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import cast

from torch import Tensor

from pelacli.factorize import engine
from pelacli.factorize.engine import Solution
from pelacli.factorize.moments import Moments
from pelacli.lowrank.layer import Layer
from pelacli.lowrank.replace import Factors, Parts, tensors
from pelacli.models import precision
from pelacli.models.on_disk import Weights
from pelacli.models.opened import OpenModel
from pelacli.ranks.plan import Plan

# What a low-rank layer's tensors are called
_SUFFIXES = (".down.weight", ".up.weight", ".down.bias", ".up.bias", ".order")


class LazyFactors(Mapping[str, Parts]):
    """The factors of a plan. The last layer's are kept, as they are asked for one after another.

    Args:
        corrected: those that are known already.
    """

    def __init__(
        self,
        opened: OpenModel,
        layers: Sequence[Layer],
        solutions: Mapping[str, Solution],
        moments: Mapping[str, Moments],
        plan: Plan,
        corrected: Mapping[str, Factors] | None = None,
    ) -> None:
        self._opened, self._solutions, self._moments = opened, solutions, moments
        self._plan, ranks = plan, plan.ranks()
        self._layers = {layer.name: layer for layer in layers if layer.name in ranks}
        self._corrected = corrected or {}
        self._last: tuple[str, Parts] | None = None

    def __getitem__(self, name: str) -> Parts:
        if self._last is None or self._last[0] != name:
            self._last = None
            self._last = name, self._made(name)
        return self._last[1]

    def __contains__(self, name: object) -> bool:
        return name in self._layers  # nothing is made for that

    def __iter__(self) -> Iterator[str]:
        return iter(self._layers)

    def __len__(self) -> int:
        return len(self._layers)

    def _made(self, name: str) -> Parts:
        known = {name: self._corrected[name]} if name in self._corrected else {}
        parts = engine.factors(
            [self._layers[name]], self._solutions, self._moments, self._plan, refitted=known
        )
        return precision.rounded(self._opened, parts)[name]


class FactorsWhenRead:
    """The weights of a lazily opened model with factors in the places of some layers."""

    def __init__(
        self, dense: Weights, layers: Sequence[Layer], factors: Mapping[str, Parts]
    ) -> None:
        self._dense, self._factors = dense, factors
        self._layers = {layer.name: layer for layer in layers if layer.name in factors}

    def read(self, name: str) -> Tensor:
        """A tensor by its name in the low-rank module's state."""
        for suffix in _SUFFIXES:
            layer = self._layers.get(name.removesuffix(suffix))
            if name.endswith(suffix) and layer is not None:
                tensor = tensors(self._factors[layer.name])[suffix[1:]]
                if tensor.is_floating_point():
                    tensor = tensor.to(cast(Tensor, layer.module.weight).dtype)
                return tensor.contiguous()
        return self._dense.read(name)
