"""The section [decompose]: how small, and by which ranks. No torch."""

from __future__ import annotations

from collections.abc import Sequence
from fractions import Fraction
from typing import TYPE_CHECKING, Any, Literal, Self

from pydantic import Field, create_model, model_validator

from pelacli.ranks import ratio as ratios
from pelacli.ranks.budget import Scope, Unit
from pelacli.ranks.budgets import registry as kinds
from pelacli.ranks.forms import Choice as FormChoice
from pelacli.ranks.policies import registry as policies
from pelacli.recipe.data import Data
from pelacli.recipe.fields import (
    Argument,
    FilePath,
    Pattern,
    Pin,
    Precision,
    Ratio,
    Section,
    SectionError,
    Text,
)

if TYPE_CHECKING:
    PolicyName = str
else:
    PolicyName = Literal[policies.names()]

# Keys that say what max_drop is measured on.
MEASURED_ON = ("data", "split", "task", "task_args")


def _budget(name: str) -> Any:
    """The field of a budget, as its file describes it."""
    kind = kinds.get(name)
    return Field(None, description=kind.DESCRIPTION, **kind.BOUNDS)


class Latency(Section):
    """What the time of unit = "latency" is measured on: a batch on the recipe's device."""

    batch_size: int = Field(8, ge=1, description="samples of one forward pass")
    precision: Precision | None = Field(
        None, description="of weights and inputs; unset: as most weights are stored"
    )
    compile: bool = Field(False, description="with torch.compile")


class _Decompose(Section):
    """How small, and by which ranks."""

    ratio: Ratio = _budget("ratio")
    unit: Unit = Field("params", description="what the ratio counts")
    latency: Latency | None = Field(None, description="what unit 'latency' is measured on")
    scope: Scope = Field(
        "model", description="what the ratio is of: the whole model or the factorised layers"
    )
    energy: float | None = _budget("energy")
    max_drop: float | None = _budget("max_drop")
    data: Data | None = Field(None, description="max_drop's samples, where not the recipe's data")
    split: Text | None = Field(None, description="of max_drop's samples, in place of data.val")
    task: Text | None = Field(None, description="of max_drop, where it is not the recipe's")
    task_args: dict[str, Argument] | None = Field(None, description="settings of that task")
    policy: PolicyName = Field(
        "energy",
        description="energy: all layers by one budget; uniform: the paper's; threshold: each alone",
    )
    threshold: float | None = _budget("threshold")
    calibrate: Text | None = Field(None, description="unlabelled samples: a dataset, or train")
    samples: int = Field(256, ge=1, description="how many samples to calibrate on")
    correct: bool | None = Field(
        None, description="refit each layer to the inputs it really gets; unset: with calibrate"
    )
    blockwise: bool | None = Field(
        None, description="calibrate block by block, states on disk; unset: where memory is short"
    )
    include: list[Pattern] = Field([], description="only layers whose name matches")
    exclude: list[Pattern] = Field([], description="not layers whose name matches")
    pin: dict[Pattern, Pin] = Field(
        {}, description="regular expression → rank of the layers that match, dense or full"
    )
    min_rank: int = Field(1, ge=0, description="smallest rank of a layer")
    max_rank: int | None = Field(None, ge=1, description="largest rank of a layer")
    multiple: int | None = Field(
        None, ge=1, description="ranks are multiples of this; unset: 8 in large layers by 'energy'"
    )
    form: FormChoice = Field(
        "auto", description="of low-rank layers; auto: by 'energy' the cheaper one at each rank"
    )
    plan: FilePath | None = _budget("plan")

    @model_validator(mode="after")
    def _check_section(self) -> Self:
        if self.correct and self.calibrate is None:
            raise SectionError("needs samples to refit to; give calibrate", "correct")
        self._check_budgets()
        self._check_threshold()
        self._check_latency()
        low, high = self.min_rank, self.max_rank
        if high is not None and high < low:
            raise SectionError(
                f"max_rank {high} is below min_rank {low}; change one", "max_rank", "min_rank"
            )
        return self

    def _check_budgets(self) -> None:
        """Refuse what does not go with a budget that stands alone: other budgets, a policy that
        can't meet it. Refuse too what belongs to max_drop and lacks it."""
        given = self._given()
        for name in kinds.alone():
            for other in given:
                if name in given and other != name:
                    raise SectionError(
                        f"{name} and {other} both say how small; give one", name, other
                    )
        for name in given:
            kind, owners = kinds.get(name), kinds.owners(name)
            if not kind.ALONE or self.policy in owners:
                continue
            if kind.IS_SEARCHED:
                raise SectionError(
                    f"policy {self.policy!r} has no {kind.MET_BY} to search", name, "policy"
                )
            raise SectionError(f"belongs to policy {_either(owners)}, not to {self.policy!r}", name)
        for key in MEASURED_ON:
            if getattr(self, key) is not None and self.max_drop is None:
                raise SectionError("is what max_drop measures on; give that too", key)

    def _check_threshold(self) -> None:
        """Refuse a threshold without its policy, and the policy without a threshold."""
        thresholds = [name for name in self._given() if kinds.get(name).MET_BY == "threshold"]
        by_threshold = policies.with_budget("threshold")
        if self.policy in by_threshold and not thresholds:
            raise SectionError(
                f"{self.policy!r} needs threshold too, the share of energy to keep", "policy"
            )
        if thresholds and "policy" not in self.model_fields_set:
            raise SectionError(f"needs policy = {_either(by_threshold)} too", thresholds[0])

    def _check_latency(self) -> None:
        """Refuse time as what counts where the policy can't plan by it."""
        if self.counted[0] == "latency" and self.policy not in policies.with_budget("energy"):
            owners = _either(policies.with_budget("energy"))
            raise SectionError(
                f"'latency' belongs to policy {owners}, not to {self.policy!r}", "unit", "policy"
            )

    def _given(self) -> dict[str, Any]:
        values = {name: getattr(self, name) for name in kinds.names()}
        return {name: value for name, value in values.items() if value is not None}

    @property
    def budgets(self) -> dict[str, Any]:
        """Budget → its value, of those that are given; a ratio of 1/2 where none is."""
        return self._given() or {"ratio": "1/2"}

    @property
    def budget(self) -> Fraction | None:
        """The ratio to plan for; None where something else says how small."""
        ratio = self.budgets.get("ratio")
        return None if ratio is None else ratios.parse(ratio)

    @property
    def counted(self) -> tuple[Unit, Scope]:
        """What the budget counts, and whose: as it says itself, or else ``unit`` and ``scope``."""
        given = [kinds.get(name) for name in self.budgets]
        unit = next((kind.UNIT for kind in given if kind.UNIT), self.unit)
        return unit, next((kind.SCOPE for kind in given if kind.SCOPE), self.scope)


if TYPE_CHECKING:
    Decompose = _Decompose
else:
    # Each budget is a file. Those that pela has stand above, with the types that its code relies
    # on, and because the order of keys in what is recorded of a recipe is theirs.
    Decompose = create_model(
        "Decompose",
        __base__=_Decompose,
        __doc__=_Decompose.__doc__,
        __module__=__name__,
        **{
            name: (kinds.get(name).TYPE | None, _budget(name))
            for name in kinds.names()
            if name not in _Decompose.model_fields
        },
    )


def _either(names: Sequence[str]) -> str:
    return " or ".join(map(repr, names))
