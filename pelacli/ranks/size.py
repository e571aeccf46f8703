"""What a plan must know of a model beside the spectra of the layers that may be factorised."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field


@dataclass(frozen=True)
class ModelSize:
    """A model's linear layers, and the part of its cost that no plan changes.

    Attributes:
        shapes: layer → (out, in), of all its linear layers, those that must stay dense too.
        fixed_params: parameters outside of the layers that may be factorised: biases, norms,
            embeddings, layers that stay dense.
        fixed_flops: FLOPs of one sample outside of them; None where they are unknown.
        obstacles: owner → its part of fixed_params, to be named where a budget can't be met.
        flop_obstacles: owner → its part of fixed_flops.
    """

    shapes: Mapping[str, tuple[int, int]] = field(default_factory=dict)
    fixed_params: int = 0
    fixed_flops: int | None = None
    obstacles: Mapping[str, int] = field(default_factory=dict)
    flop_obstacles: Mapping[str, int] = field(default_factory=dict)

    def fixed(self, scope: str, unit: str) -> int:
        """What counts beside the layers that may be factorised: nothing with scope "layers".

        Raises:
            ValueError: the FLOPs are wanted and unknown.
        """
        if scope == "layers":
            return 0
        if unit == "params":
            return self.fixed_params
        if self.fixed_flops is None:
            raise ValueError("a FLOP budget of the whole model needs fixed_flops")
        return self.fixed_flops

    def obstacles_in(self, unit: str) -> Mapping[str, int]:
        """Owner → its part of what is fixed, in parameters or FLOPs."""
        return self.obstacles if unit == "params" else self.flop_obstacles
