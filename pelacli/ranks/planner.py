"""Choose the ranks: the layers' spectra and a budget in, a plan out.

A plan says which rank each layer gets. It is data: JSON, printable, editable by hand, and usable
again.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace

from pelacli.errors import RequestError
from pelacli.messages import did_you_mean
from pelacli.ranks import ratio as ratios
from pelacli.ranks import reasons
from pelacli.ranks.budget import Budget
from pelacli.ranks.division import Division, divide
from pelacli.ranks.infeasible import impossible
from pelacli.ranks.limit import Limit
from pelacli.ranks.pins import check_pins
from pelacli.ranks.plan import LayerPlan, Plan
from pelacli.ranks.policies import registry
from pelacli.ranks.policies.base import Ranks, Target
from pelacli.ranks.prices import LatencyTable, Prices
from pelacli.ranks.size import ModelSize
from pelacli.ranks.spectrum import Spectrum, share_kept


def plan(
    spectra: Sequence[Spectrum],
    budget: Budget,
    size: ModelSize | None = None,
    tables: Mapping[str, LatencyTable] | None = None,
) -> Plan:
    """Choose the ranks.

    Args:
        spectra: of the layers that may be factorised. Their order does not matter.
        size: what the model costs beside them. With scope "layers" it is not needed.
        tables: layer → its times, of all layers; for a budget with unit "latency".

    Raises:
        RequestError: there is no layer, a pin fits none, or the budget can't be met; the message
            names the smallest ratio that can, and what stands in the way.
        ValueError: two spectra have the same name, or the budget counts FLOPs or times that are
            unknown.
    """
    size = size or ModelSize()
    _check(spectra, budget)
    fixed = size.fixed(budget.scope, budget.unit)
    prices = Prices(budget.unit, tables or {})
    division = divide(spectra, budget, fixed, prices)
    limit = budget.limit(division.costs.total)
    most = None if limit is None else limit.cost
    problem = _Problem(spectra, budget, size, limit, prices)
    if most is None or budget.multiple is not None:
        return problem.solved(division, most)
    # Where the budget names no multiple, large layers go by eights, and by single ranks below what
    # eights cost at least. The best of these plans is kept as long as it is better than eights: so
    # more to spend never keeps less energy.
    singles = divide(spectra, replace(budget, multiple=1), fixed, prices)
    if division.costs.least > most:
        return problem.solved(singles, most)
    below = division.costs.least - 1
    plans = [problem.solved(division, most)]
    if singles.costs.least <= below:
        plans.append(problem.solved(singles, below))
    return max(plans, key=lambda plan: plan.energy or 0.0)  # of equals the first


@dataclass(frozen=True)
class _Problem:
    """What is to be planned."""

    spectra: Sequence[Spectrum]
    budget: Budget
    size: ModelSize
    limit: Limit | None
    prices: Prices

    def solved(self, division: Division, most: int | None) -> Plan:
        """The plan for a division of the layers.

        Args:
            most: what may be spent; None where there is no limit.

        Raises:
            RequestError: that is too little, or the policy can't do it.
        """
        budget, costs, limit = self.budget, division.costs, self.limit
        if limit is not None and most is not None and costs.least > most:
            raise impossible(limit, budget, costs, self.size.obstacles_in(budget.unit))
        policy = registry.get(budget.policy)
        ranks = policy.choose(division.free, _target(self.spectra, budget, division, most))
        planned = Plan(
            policy=budget.policy,
            scope=budget.scope,
            ratio=None if budget.ratio is None else ratios.text(budget.ratio),
            layers=_layers(self.spectra, division, ranks, budget.unit),
            unit=budget.unit,
            limit=None if limit is None else limit.cost,
            threshold=budget.threshold,
            share=budget.energy,
            asked=None if budget.most is None else str(budget.most),
        )
        measured = measure(planned, self.spectra, self.size, self.prices.tables)
        if limit is not None:
            _check_met(measured, limit)
        return measured


def measure(
    plan: Plan,
    spectra: Sequence[Spectrum],
    size: ModelSize | None = None,
    tables: Mapping[str, LatencyTable] | None = None,
) -> Plan:
    """The plan with its energies and costs computed from the spectra, as after an edit by hand.

    Layers of ``spectra`` that the plan does not name stay dense, and it then says so.

    Args:
        size, tables: as of `plan`.

    Raises:
        RequestError: the plan factorises a layer that is not in ``spectra``.
        ValueError: it counts FLOPs or times that are unknown.
    """
    names = {spectrum.name for spectrum in spectra}
    for name, rank in plan.ranks().items():
        if name not in names:
            raise RequestError(
                f"the plan gives {name} rank {rank}, but this layer is not factorised here "
                f"(excluded, output head, tied …); give it null"
                f"{did_you_mean(name, names, before='; ')}"
            )
    layers, prices = dict(plan.layers), Prices(plan.unit, tables or {})
    used = total = (size or ModelSize()).fixed(plan.scope, plan.unit)
    for spectrum in spectra:
        unnamed = LayerPlan(spectrum.shape, None, reasons.NOT_IN_PLAN)
        layer = layers.get(spectrum.name, unnamed)
        energy = spectrum.share_kept(layer.rank)
        layers[spectrum.name] = replace(layer, shape=spectrum.shape, energy=energy)
        used += prices.of(spectrum, layer.rank, layer.form)
        total += prices.dense(spectrum)
    kept = share_kept((spectrum, layers[spectrum.name].rank) for spectrum in spectra)
    return replace(plan, layers=layers, used=used, total=total, energy=kept)


def _check(spectra: Sequence[Spectrum], budget: Budget) -> None:
    shapes = {spectrum.name: spectrum.shape for spectrum in spectra}
    if not shapes:
        raise RequestError("no layer is left to factorise: include more or exclude less")
    if len(shapes) < len(spectra):
        raise ValueError("two spectra have the same name")
    check_pins(shapes, budget.pins)


def _target(
    spectra: Sequence[Spectrum], budget: Budget, division: Division, most: int | None
) -> Target:
    """What is left for the policy to meet."""
    settled = division.settled
    return Target(
        limit=None if most is None else most - division.costs.settled,
        ratio=budget.ratio if budget.scope == "layers" else None,
        energy=budget.energy,
        threshold=budget.threshold,
        settled=[(s, settled[s.name].rank) for s in spectra if s.name in settled],
    )


def _layers(
    spectra: Sequence[Spectrum], division: Division, ranks: Ranks, unit: str
) -> dict[str, LayerPlan]:
    """What becomes of each layer, in the order of the spectra."""
    layers = dict(division.settled)
    left_dense = reasons.NOT_WORTH_ITS_TIME if unit == "latency" else reasons.BREAK_EVEN
    for free, rank in zip(division.free, ranks, strict=True):
        reason = left_dense if rank is None else None
        form = free.form(rank)
        layers[free.spectrum.name] = LayerPlan(free.spectrum.shape, rank, reason, form=form)
    return {spectrum.name: layers[spectrum.name] for spectrum in spectra}


def _check_met(plan: Plan, limit: Limit) -> None:
    """Refuse what a threshold gave, if the budget has a limit too and that is not met.

    Raises:
        RequestError: naming the ratio that the threshold gives.
    """
    assert plan.used is not None
    if plan.used <= limit.cost:
        return
    assert plan.threshold is not None, f"policy {plan.policy} spent more than it had"
    raise RequestError(
        f"threshold {plan.threshold:g} gives {limit.name} {limit.smallest(plan.used)}, "
        f"above the requested {ratios.text(limit.value)}: "
        f"lower the threshold or leave out the {limit.name}"
    )
