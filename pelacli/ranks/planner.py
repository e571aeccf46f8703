"""Choose the ranks: the layers' spectra and a budget in, a plan out.

A plan says which rank each layer gets. It is data: JSON, printable, editable by hand, and usable
again. The policies themselves are in `pelacli.ranks.policies`.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from fractions import Fraction
from math import fsum
from typing import Literal

from pelacli.errors import RequestError
from pelacli.ranks import choices as ranks_choices
from pelacli.ranks import policies, reasons
from pelacli.ranks.checks import ceil4, check_arguments, floor4, impossible, text
from pelacli.ranks.choices import Choice, open_ranks
from pelacli.ranks.pins import Pin, check_pins
from pelacli.ranks.plan import LayerPlan, Plan, check, nearest
from pelacli.ranks.spectrum import Spectrum, costs

__all__ = ["LayerPlan", "Pin", "Plan", "Spectrum", "check", "measure", "plan"]


def plan(
    spectra: Sequence[Spectrum],
    *,
    policy: str,
    ratio: Fraction | None,
    scope: str = "model",
    fixed_params: int = 0,
    obstacles: Mapping[str, int] | None = None,
    threshold: float | None = None,
    min_rank: int = 1,
    max_rank: int | None = None,
    multiple: int | None = None,
    pins: Mapping[str, Pin] | None = None,
    unit: Literal["params", "flops"] = "params",
    fixed_flops: int | None = None,
    energy: float | None = None,
) -> Plan:
    """Choose the ranks.

    A rank costs in + out parameters, or 2 · tokens · (in + out) FLOPs. The budget is exact:
    floor(ratio · total), where total is the dense model's (scope "model": the layers of
    ``spectra`` and all that is fixed) or only those layers' (scope "layers").

    A layer's ranks are multiples of ``multiple`` from ``min_rank`` up to ``max_rank``, and always
    below break-even, from where on it is dense. A layer so small that none is left goes by single
    ranks instead, or is dense where even ``min_rank`` is past break-even. Where ``multiple`` is not
    given, the policy "energy" takes eights in layers with 64 ranks or more to choose from, and all
    else goes by single ranks: the paper's formula has its ranks as they come.

    Args:
        spectra: the layers that may be factorised. Their order does not matter.
        policy: "energy", "uniform" or "threshold", see `pelacli.ranks.policies`.
        ratio: 0 < ratio ≤ 1. "threshold" needs none; with one, its outcome must meet it.
        fixed_params: parameters that no plan changes (biases, norms, embeddings, excluded layers).
        obstacles: name → the part of what is fixed, in ``unit``, to be named where a budget
            cannot be met.
        threshold: share of energy that every layer keeps (policy "threshold").
        min_rank: 0 means that a layer may vanish but for its bias.
        max_rank: a layer that it keeps below break-even cannot go dense.
        pins: layer → its rank (also past break-even), "dense", or "full" (factorised at
            min(out, in)). A pin is obeyed as it stands; the others share what is left.
        fixed_flops: as fixed_params, for unit "flops".
        energy: in place of a ratio (policy "energy"): the smallest plan that keeps at least this
            share of the energy of all layers together.

    Raises:
        RequestError: an unusable argument, or a budget that cannot be met; the message names the
            smallest ratio that can, and what stands in the way.
    """
    pins = pins or {}
    names = [s.name for s in spectra]
    if multiple is None and policy != "energy":
        multiple = 1
    check_arguments(
        names, policy, ratio, scope, threshold, min_rank, max_rank, multiple or 1, energy
    )
    check_pins({s.name: s.shape for s in spectra}, pins)
    if unit == "flops" and fixed_flops is None and scope == "model":
        raise ValueError("a FLOP budget of the whole model needs fixed_flops")
    fixed = 0 if scope == "layers" else fixed_params if unit == "params" else fixed_flops or 0

    settled: dict[str, tuple[int | None, str | None]] = {}
    free: dict[str, Choice] = {}
    total = spent = fixed
    pinned = 0
    for s in sorted(spectra, key=lambda s: s.name):  # ties are broken by name
        cost, dense = costs(s, unit)
        total += dense
        choice = open_ranks(s, cost, dense, min_rank, max_rank, multiple)
        if s.name in pins:
            pin = pins[s.name]
            rank = None if pin == "dense" else min(s.shape) if pin == "full" else pin
            settled[s.name] = (rank, reasons.PINNED_DENSE if rank is None else None)
            pinned += dense if rank is None else rank * cost
        elif choice is None:
            settled[s.name] = (None, reasons.BREAK_EVEN if cost else reasons.NEVER_APPLIED)
            spent += dense
        else:
            free[s.name] = choice
    spent += pinned
    lowest = sum(c.low * c.cost for c in free.values())
    limit = None if ratio is None else ratio.numerator * total // ratio.denominator
    if multiple is None and limit is not None and spent + lowest > limit:
        # Eights are a wish: a budget so small that only single ranks can meet it goes by those.
        fine = {s.name: open_ranks(s, *costs(s, unit), min_rank, max_rank, 1) for s in spectra}
        free = {name: fine[name] or choice for name, choice in free.items()}
        lowest = sum(c.low * c.cost for c in free.values())
    if ratio is not None and limit is not None and spent + lowest > limit:
        raise impossible(
            ratio, scope, unit, total, spent + lowest, pinned, lowest, fixed, obstacles or {}
        )

    choices = list(free.values())
    found: list[int | None]
    if policy == "threshold":
        assert threshold is not None
        found = policies.threshold(choices, threshold)
    elif energy is not None:
        found = _least(spectra, settled, free, energy)
    elif not choices:
        found = []
    elif policy == "uniform":
        assert limit is not None
        found = policies.uniform(choices, limit - spent, ratio if scope == "layers" else None)
    else:
        assert limit is not None
        found = policies.energy(choices, limit - spent)
    used = spent + sum(c.price(rank) for c, rank in zip(choices, found, strict=True))
    if policy != "threshold":
        assert limit is None or used <= limit
    elif ratio is not None and limit is not None and used > limit:
        raise RequestError(
            f"threshold {threshold:g} gives ratio {ceil4(used, total)}, above the requested "
            f"{text(ratio)}: lower the threshold or leave out the ratio"
        )
    settled |= {
        name: (rank, reasons.BREAK_EVEN if rank is None else None)
        for name, rank in zip(free, found, strict=True)
    }
    layers = {s.name: LayerPlan(s.shape, *settled[s.name], None) for s in spectra}
    chosen = Plan(
        policy=policy,
        scope=scope,
        ratio=None if ratio is None else text(ratio),
        layers=layers,
        unit=unit,
        limit=limit,
        threshold=threshold,
        share=energy,
    )
    return measure(chosen, spectra, fixed_params=fixed_params, fixed_flops=fixed_flops)


def measure(
    plan: Plan,
    spectra: Sequence[Spectrum],
    *,
    fixed_params: int = 0,
    fixed_flops: int | None = None,
) -> Plan:
    """The plan with its energies and costs computed from the spectra, as after an edit by hand.

    Layers of ``spectra`` that the plan does not name stay dense, and it then says so.

    Raises:
        RequestError: the plan factorises a layer that is not in ``spectra``.
    """
    known = {s.name for s in spectra}
    for name, rank in plan.ranks().items():
        if name not in known:
            raise RequestError(
                f"the plan gives {name} rank {rank}, but this layer is not factorised here "
                f"(excluded, output head, tied …); give it null{nearest(name, known)}"
            )
    layers = dict(plan.layers)
    used = total = 0
    kept, energy = [], []
    for s in spectra:
        entry = layers.get(s.name, LayerPlan(s.shape, None, reasons.NOT_IN_PLAN, None))
        share = 1.0 if entry.rank is None else float(ranks_choices.shares(s.energies)[entry.rank])
        layers[s.name] = LayerPlan(s.shape, entry.rank, entry.reason, share)
        cost, dense = costs(s, plan.unit)
        used += dense if entry.rank is None else entry.rank * cost
        total += dense
        energy.append(float(s.energies.sum()))
        kept.append(share * energy[-1])
    if plan.scope == "model":
        fixed = fixed_params if plan.unit == "params" else fixed_flops or 0
        used, total = used + fixed, total + fixed
    whole = fsum(energy)  # fsum: the order of the layers must not show
    overall = fsum(kept) / whole if whole > 0 else 1.0
    return replace(plan, layers=layers, used=used, total=total, energy=overall)


def _least(
    spectra: Sequence[Spectrum],
    settled: Mapping[str, tuple[int | None, str | None]],
    free: Mapping[str, Choice],
    share: float,
) -> list[int | None]:
    """The cheapest ranks of the free layers with which all layers keep this share, as `measure`
    counts it."""
    energies = {s.name: float(s.energies.sum()) for s in spectra}
    shares = {s.name: ranks_choices.shares(s.energies) for s in spectra}
    whole = fsum(energies.values())

    def kept(found: Sequence[int | None]) -> float:
        ranks = {name: rank for name, (rank, _) in settled.items()}
        ranks |= dict(zip(free, found, strict=True))
        parts = (
            energies[name] if rank is None else float(shares[name][rank]) * energies[name]
            for name, rank in ranks.items()
        )
        return fsum(parts) / whole if whole > 0 else 1.0

    choices = list(free.values())
    found = policies.least(choices, lambda ranks: kept(ranks) >= share)
    if found is None:
        most = kept([None if c.open_end else c.high for c in choices])
        raise RequestError(
            f"energy {share:g} cannot be kept: with these pins and largest ranks it is "
            f"{floor4(most)} at most; ask for less, or free some layers"
        )
    return found
