"""The plan as data: layer → rank, with the budget that it met.

`pelacli.ranks.plan_file` reads it from JSON.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from pelacli.ranks.forms import Form


@dataclass(frozen=True)
class LayerPlan:
    """What becomes of one layer.

    Attributes:
        shape: (out, in).
        rank: None where the layer stays dense.
        reason: why it is dense; None where it is factorised.
        energy: share of the layer's energy that is kept, 0 to 1; None where unknown.
        form: of the low-rank layer, "factors" where none is given; None where the layer is dense.
    """

    shape: tuple[int, int]
    rank: int | None
    reason: str | None = None
    energy: float | None = None
    form: Form | None = None

    def __post_init__(self) -> None:
        form = None if self.rank is None else self.form or "factors"
        object.__setattr__(self, "form", form)


@dataclass(frozen=True)
class Plan:
    """Layer → rank, and the budget.

    Attributes:
        policy, scope, ratio: as asked for; ratio is None where there was none.
        layers: in the order of the model.
        unit: "params", "flops" or "latency" (nanoseconds): what limit, used and total count.
        limit: the budget, floor(ratio · total); used: what the plan costs; total: the dense cost.
            Of the whole model, or with scope "layers" of the planned layers alone.
        threshold: of policy "threshold".
        share: of all layers' energy together, where that was asked for in place of a ratio.
        energy: share of the planned layers' energy that is kept, 0 to 1; None where unknown.
        asked: the limit as it was asked for, where that was by no ratio: name and value of a
            budget.
    """

    policy: str
    scope: str
    ratio: str | None
    layers: dict[str, LayerPlan]
    unit: str = "params"
    limit: int | None = None
    used: int | None = None
    total: int | None = None
    threshold: float | None = None
    energy: float | None = None
    share: float | None = None
    asked: str | None = None

    def ranks(self) -> dict[str, int]:
        """Layer → rank of the layers that are factorised."""
        return {name: layer.rank for name, layer in self.layers.items() if layer.rank is not None}

    def forms(self) -> dict[str, Form]:
        """Layer → form of the layers that are factorised."""
        return {name: layer.form for name, layer in self.layers.items() if layer.form is not None}

    def to_dict(self) -> dict[str, Any]:
        """The plan as a JSON document, which `pelacli.ranks.plan_file` reads back."""
        document: dict[str, Any] = {
            "policy": self.policy,
            "scope": self.scope,
            "ratio": self.ratio,
            "unit": self.unit,
            "limit": self.limit,
            "used": self.used,
            "total": self.total,
            "threshold": self.threshold,
            "share": self.share,
            "asked": self.asked,
            "energy": self.energy,
            "layers": {
                name: {
                    "shape": list(layer.shape),
                    "rank": layer.rank,
                    "form": layer.form,
                    "reason": layer.reason,
                    "energy": layer.energy,
                }
                for name, layer in self.layers.items()
            },
        }
        for key in ("threshold", "share", "asked"):
            if document[key] is None:
                del document[key]
        return document

    def __str__(self) -> str:
        """The budget and what it cost in a line, then a line for each layer."""
        width = max((len(name) for name in self.layers), default=0)
        lines = [self._headline()]
        for name, layer in self.layers.items():
            what = f"dense ({layer.reason})" if layer.rank is None else f"rank {layer.rank}"
            if layer.form == "pivots":
                what += " in pivots"
            if layer.rank is not None and layer.energy is not None:
                what += f", energy {layer.energy:.4f}"
            lines.append(f"  {name:{width}}  {layer.shape[0]} × {layer.shape[1]}  {what}")
        return "\n".join(lines)

    def _headline(self) -> str:
        line = f"{self.policy} plan"
        if self.ratio is not None:
            line += f", ratio {self.ratio} of the {self.scope}"
        if self.asked is not None:
            line += f", {self.asked}"
        if self.threshold is not None:
            line += f", threshold {self.threshold:g}"
        if self.share is not None:
            line += f", energy {self.share:g}"
        if self.used is not None and self.total:
            unit = "ns" if self.unit == "latency" else self.unit
            line += f": {self.used:,} of {self.total:,} {unit} ({self.used / self.total:.4f})"
        if self.energy is not None:
            line += f", energy kept {self.energy:.4f}"
        return line
