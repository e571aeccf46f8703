"""Factors of a lazily opened model, made when they are written."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import cast

from torch import Tensor

from pelacli.factorize import engine
from pelacli.factorize.engine import Solution
from pelacli.factorize.moments import Moments
from pelacli.lowrank.layer import Layer
from pelacli.lowrank.replace import Factors
from pelacli.models.on_disk import Weights
from pelacli.ranks.plan import Plan


class FactorsWhenRead:
    """The weights of a lazily opened model with the factors of a plan, each layer's made when one
    of its tensors is read. The last layer's are kept, as its tensors are read one after another."""

    def __init__(
        self,
        dense: Weights,
        layers: Sequence[Layer],
        solutions: Mapping[str, Solution],
        moments: Mapping[str, Moments],
        plan: Plan,
    ) -> None:
        self._dense, self._solutions, self._moments = dense, solutions, moments
        self._plan, ranks = plan, plan.ranks()
        self._layers = {layer.name: layer for layer in layers if layer.name in ranks}
        self._last: tuple[str, Factors] | None = None

    def read(self, name: str) -> Tensor:
        """A tensor by its name in the low-rank module's state."""
        for part, suffix in enumerate((".down.weight", ".up.weight", ".up.bias")):
            layer = self._layers.get(name.removesuffix(suffix))
            if name.endswith(suffix) and layer is not None:
                tensor = self._factors(layer)[part]
                assert tensor is not None  # the module has a bias where the layer has one
                return tensor.to(cast(Tensor, layer.module.weight).dtype).contiguous()
        return self._dense.read(name)

    def _factors(self, layer: Layer) -> Factors:
        if self._last is None or self._last[0] != layer.name:
            self._last = None
            made = engine.factors([layer], self._solutions, self._moments, self._plan)
            self._last = layer.name, made[layer.name]
        return self._last[1]
