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
        fixed_latency: nanoseconds that the model takes outside of them; None where unknown.
        obstacles: owner → its part of fixed_params, to be named where a budget can't be met.
        flop_obstacles: owner → its part of fixed_flops.
    """

    shapes: Mapping[str, tuple[int, int]] = field(default_factory=dict)
    fixed_params: int = 0
    fixed_flops: int | None = None
    fixed_latency: int | None = None
    obstacles: Mapping[str, int] = field(default_factory=dict)
    flop_obstacles: Mapping[str, int] = field(default_factory=dict)

    def fixed(self, scope: str, unit: str) -> int:
        """What counts beside the layers that may be factorised: nothing with scope "layers".

        Raises:
            ValueError: FLOPs or latency are wanted and unknown.
        """
        if scope == "layers":
            return 0
        if unit == "params":
            return self.fixed_params
        fixed = self.fixed_flops if unit == "flops" else self.fixed_latency
        if fixed is None:
            raise ValueError(f"a budget of the whole model in {unit} needs fixed_{unit}")
        return fixed

    def obstacles_in(self, unit: str) -> Mapping[str, int]:
        """Owner → its part of what is fixed, in parameters or FLOPs; of times no owner is known."""
        return {"params": self.obstacles, "flops": self.flop_obstacles}.get(unit, {})
