"""Layers compared by the damage that is measured of their cuts, where held-back samples agree."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from fractions import Fraction

from pelacli import console
from pelacli.errors import InfeasibleError
from pelacli.factorize import blockwise, measured_damage
from pelacli.factorize.batches import samples_in
from pelacli.factorize.measured_damage import Damage
from pelacli.measure.held_back import Distance
from pelacli.ranks import planner
from pelacli.ranks.budget import Budget
from pelacli.ranks.plan import Plan
from pelacli.ranks.spectrum import Spectrum
from pelacli.steps.solved import SolvedModel

# What both kinds of spectra are tried with. Whatever is asked for, the spectra are the same.
_TRIAL = Budget("energy", Fraction(1, 2), scope="layers", multiple=1)


def with_measured_damage(solved: SolvedModel, seed: int) -> SolvedModel:
    """The model with spectra whose energies are scaled to the damage that was measured.

    It was measured to first order, layer by layer. So held-back samples are asked whether the plan
    for half of the parameters is better with them; if not, or if there are none, the model comes
    back as it is.

    Args:
        solved: calibrated; not yet scaled.
        seed: of its calibration.
    """
    if solved.held_back is None or not solved.moments:
        return solved
    scales = measured_damage.scales(solved.spectra, _damage(solved, seed))
    scaled = replace(solved, spectra=measured_damage.scaled(solved.spectra, scales), scales=scales)
    return scaled if helps(solved.spectra, scaled.spectra, solved.one_shot) else solved


def helps(
    spectra: Sequence[Spectrum],
    scaled: Sequence[Spectrum],
    one_shot: Callable[[Plan], Distance],
) -> bool:
    """Whether the plan for half of the layers' parameters is better with scaled spectra.

    Args:
        one_shot: a plan → how far the model with it is from the dense one, on held-back samples.
    """
    try:
        plans = [planner.plan(some, _TRIAL) for some in (spectra, scaled)]
    except InfeasibleError:  # layers so small that half of them is no rank
        return False
    if plans[0].ranks() == plans[1].ranks():
        return True
    before, after = map(one_shot, plans)
    better = after.closer_than(before)
    console.info(
        f"at half of the layers' parameters held-back samples are {after.decisive:.4g} from the "
        "dense model with layers compared by the damage that is measured of their cuts, "
        f"{before.decisive:.4g} without, so it {'counts' if better else 'does not count'}"
    )
    return better


def _damage(solved: SolvedModel, seed: int) -> Mapping[str, Damage]:
    dense, parts = solved.dense, solved.blockwise
    batches = measured_damage.first(solved.batches if solved.counts else [], solved.samples)
    times = 1 if parts is None else len(parts.sections)
    samples = times * sum(map(samples_in, batches))
    with solved.show_progress("measuring what cuts damage", samples) as bar:
        if parts is not None:
            return blockwise.damage(
                parts.sections, solved.solutions, solved.moments, batches, parts.shelf,
                seed=seed, head=solved.head, advance=bar.advance,
            )  # fmt: skip
        return measured_damage.measure(
            dense.module, dense.free, solved.solutions, solved.moments, batches, solved.run,
            seed=seed, head=solved.head, advance=bar.advance,
        )  # fmt: skip
