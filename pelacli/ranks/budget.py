"""How small a model is to become, and what limits its ranks on the way.

`pelacli.ranks.budgets` has the ways in which a recipe says it.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from fractions import Fraction
from typing import Literal, get_args

from pelacli.errors import RequestError
from pelacli.ranks import ratio as ratios
from pelacli.ranks.forms import CHOICES, FORMS, Choice, Form
from pelacli.ranks.limit import Limit
from pelacli.ranks.pins import Pin
from pelacli.ranks.policies import registry

Unit = Literal["params", "flops", "latency"]
Scope = Literal["model", "layers"]
UNITS: tuple[str, ...] = get_args(Unit)
SCOPES: tuple[str, ...] = get_args(Scope)


@dataclass(frozen=True)
class Budget:
    """What a plan has to meet.

    A rank costs what `pelacli.ranks.forms.weights` says in parameters, 2 · tokens times that in
    FLOPs, or the time that was measured. A ratio is met exactly: the plan costs at most
    floor(ratio · total), where total is the dense cost of what the scope counts.

    A layer's ranks are multiples of ``multiple`` from ``min_rank`` up to ``max_rank``, and always
    such that they cost less than the dense layer: in factors below break-even, in pivots below
    min(in, out). A layer so small that none is left goes by single
    ranks instead, or is dense where even ``min_rank`` is past break-even. Where ``multiple`` is not
    given, the policy "energy" takes eights in layers with 64 ranks or more to choose from, unless
    the budget is too small for that; all else goes by single ranks.

    Attributes:
        policy: "energy", "uniform" or "threshold": a file of `pelacli.ranks.policies`.
        ratio: after / before, 0 < ratio ≤ 1. The policy "threshold" needs none; with one, its
            outcome must meet it.
        most: in place of a ratio, what the plan may cost at most.
        energy: in place of a ratio, for the policy "energy": the smallest plan that keeps at least
            this share of the energy of all layers together.
        threshold: share of energy that every layer keeps, for the policy "threshold".
        unit: what the ratio counts: parameters, FLOPs of one sample, or "latency", the time on a
            device, which only the policy "energy" can plan.
        scope: whose it counts, of the whole model or of the layers that may be factorised.
        min_rank: 0 means that a layer may vanish but for its bias.
        max_rank: a layer that it keeps from ranks which cost less than dense can't be dense.
        multiple: of which ranks are, as said above.
        pins: layer → its rank (also past break-even), "dense", or "full" (factorised at
            min(out, in)). A pin is obeyed as it stands; the other layers share what is left.
        form: of the low-rank layers: "factors", "pivots", or "auto": the policy "energy" then takes
            the cheaper form at each rank, the others take factors, as the paper does.
        forms: layer → its form where that is settled, whatever ``form`` says.

    Raises:
        RequestError: a value that makes no sense, or two that don't go together.
    """

    policy: str = "energy"
    ratio: Fraction | None = None
    energy: float | None = None
    threshold: float | None = None
    unit: Unit = "params"
    scope: Scope = "model"
    min_rank: int = 1
    max_rank: int | None = None
    multiple: int | None = None
    pins: Mapping[str, Pin] = field(default_factory=dict)
    most: Limit | None = None
    form: Choice = "factors"
    forms: Mapping[str, Form] = field(default_factory=dict)

    def __post_init__(self) -> None:
        _check_name("policy", self.policy, registry.names())
        _check_name("unit", self.unit, UNITS)
        _check_name("scope", self.scope, SCOPES)
        _check_name("form", self.form, CHOICES)
        for name, form in self.forms.items():
            _check_name(f"form of {name}", form, FORMS)
        self._check_how_small()
        self._check_limits()

    def limit(self, total: int) -> Limit | None:
        """What may be spent where the dense cost is ``total``; None where nothing limits it."""
        return self.most if self.ratio is None else Limit("ratio", self.ratio, total)

    def forms_of(self, layer: str) -> tuple[Form, ...]:
        """The forms that a layer may take."""
        form = self.forms.get(layer, self.form)
        if form != "auto":
            return (form,)
        any_form = getattr(registry.get(self.policy), "ANY_FORM", False)
        return FORMS if any_form else ("factors",)

    def _check_how_small(self) -> None:
        policy, ratio, energy, threshold = self.policy, self.ratio, self.energy, self.threshold
        needs = registry.get(policy).BUDGETS
        if self.unit == "latency" and "energy" not in needs:
            owners = " or ".join(registry.with_budget("energy"))
            raise RequestError(f"unit latency belongs to policy {owners}, not to {policy}")
        if ratio is not None and not 0 < ratio <= 1:
            raise RequestError(f"ratio {ratios.text(ratio)} is not above 0 and at most 1")
        if self.most is not None and (ratio is not None or energy is not None):
            raise RequestError(f"{self.most} and a ratio or an energy can't both be met; give one")
        if "threshold" in needs and (threshold is None or not 0 < threshold <= 1):
            raise RequestError(f"policy {policy} needs a threshold above 0 and at most 1")
        if "threshold" not in needs and threshold is not None:
            owners = " or ".join(registry.with_budget("threshold"))
            raise RequestError(f"a threshold belongs to policy {owners}, not to {policy}")
        if energy is not None:
            if "energy" not in needs:
                owners = " or ".join(registry.with_budget("energy"))
                raise RequestError(
                    f"a share of all energy belongs to policy {owners}, not to {policy}"
                )
            if ratio is not None:
                raise RequestError("a ratio and a share of the energy can't both be met; give one")
            if not 0 < energy <= 1:
                raise RequestError(f"energy {energy:g} is not above 0 and at most 1")
        elif "ratio" in needs and ratio is None and self.most is None:
            raise RequestError(f"policy {policy} needs a ratio")

    def _check_limits(self) -> None:
        multiple = 1 if self.multiple is None else self.multiple
        if self.min_rank < 0 or multiple < 1:
            raise RequestError("the minimum rank must be at least 0 and the multiple at least 1")
        if self.max_rank is not None and self.max_rank < -(-self.min_rank // multiple) * multiple:
            raise RequestError(
                f"no multiple of {multiple} lies between minimum rank {self.min_rank} and maximum "
                f"rank {self.max_rank}: raise the maximum or lower the others"
            )


def _check_name(kind: str, name: str, known: tuple[str, ...]) -> None:
    if name not in known:
        raise RequestError(f"{kind} {name!r} is none of {', '.join(known)}")
