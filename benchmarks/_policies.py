"""The policies that `rank_policies.py` compares: the known ones, and pela's in steps.

A policy gives every planned layer's factors. All get the same layers, the same budget of
parameters and the same samples, and none of them trains. The others' are written here from their
papers' formulas, with pela's own eigen-solvers; what they do beyond ranks and factors (fine-tuning,
searches on labelled data) is left out, as it is for ours.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from fractions import Fraction
from functools import cached_property
from typing import Any

import _kfac
import numpy as np
import torch
from torch import Tensor, nn

from pelacli.factorize import calibration, engine, measured_damage, refit
from pelacli.factorize.batches import samples_in
from pelacli.factorize.moments import Moments, narrow_in
from pelacli.factorize.passes import Passes
from pelacli.lowrank.calls import LinearCalls
from pelacli.lowrank.layer import Layer
from pelacli.lowrank.replace import Parts
from pelacli.measure.held_back import Distance, HeldBack
from pelacli.models.prediction import predict
from pelacli.models.token_head import TokenHead
from pelacli.ranks import planner
from pelacli.ranks.budget import Budget
from pelacli.ranks.forms import Choice
from pelacli.ranks.plan import Plan
from pelacli.ranks.spectrum import Spectrum
from pelacli.steps import scaled_spectra


@dataclass
class Case:
    """A model and its calibration samples; what several policies need is measured once.

    Attributes:
        batches: that factors are fitted to.
        held_back: further ones, by which it is chosen between plans.
        form: of the layers that pela's own policies make.
    """

    module: nn.Module
    layers: Sequence[Layer]
    batches: Sequence[Any]
    held_back: Sequence[Any]
    seed: int
    head: TokenHead | None = None
    form: Choice = "factors"
    _cuts: dict[str, Mapping[str, Any]] = field(default_factory=dict)

    @cached_property
    def felt(self) -> Mapping[str, Moments]:
        """Centred inputs, weighted by token, and output-gradients."""
        return self._collect(Passes(seed=self.seed))

    @cached_property
    def scaled(self) -> Sequence[Spectrum]:
        """The spectra of `felt`, scaled by the damage that is measured where that helps."""
        spectra = self.spectra("felt")
        damage = measured_damage.measure(
            self.module,
            self.layers,
            self._cuts["felt"],
            self.felt,
            measured_damage.first(self.batches, sum(map(samples_in, self.batches))),
            predict,
            seed=self.seed,
            head=self.head,
        )
        scaled = measured_damage.scaled(spectra, measured_damage.scales(spectra, damage))
        held_back = HeldBack(self.module, self.held_back, self.run, self.head)

        def one_shot(plan: Plan) -> Distance:
            return held_back.distance(self.factors("felt", plan))

        return scaled if scaled_spectra.helps(spectra, scaled, one_shot) else spectra

    @cached_property
    def two_sided(self) -> Mapping[str, Moments]:
        """Centred inputs and output-gradients."""
        return self._collect(Passes(seed=self.seed, floor=1.0))

    @cached_property
    def inputs(self) -> Mapping[str, Moments]:
        """Centred inputs alone."""
        return self._collect(Passes(gradients=False))

    def _collect(self, passes: Passes) -> Mapping[str, Moments]:
        return calibration.collect(
            self.module, self.layers, self.batches, predict, passes, head=self.head
        )

    def run(self, module: nn.Module, batch: Any) -> Tensor:
        """A pass through all layers."""
        return predict(module, batch) if self.head is None else self.head.hidden(batch)

    @cached_property
    def raw_inputs(self) -> Mapping[str, Moments]:
        """The inputs' second moment E[x xᵀ], with the mean left in and none to absorb."""
        found = {}
        for layer in self.layers:
            m = self.inputs[layer.name]
            if m.mean is None:  # of a layer without a bias: it is in already
                found[layer.name] = m
            elif narrow_in(layer.shape):
                assert m.near is not None
                near = m.near + m.tokens * torch.outer(m.mean, m.mean)
                found[layer.name] = replace(m, near=near, mean=None)
            else:
                assert m.far is not None
                out = layer.weight.detach().double() @ m.mean
                far = m.far + m.tokens * torch.outer(out, out)
                found[layer.name] = replace(m, far=far, mean=None)
        return found

    @cached_property
    def kfac(self) -> Mapping[str, Moments]:
        """KFAC-SVD's moments, of a language model."""
        assert self.head is not None
        return _kfac.moments(self.module, self.layers, self.batches, self.head)

    @cached_property
    def lems(self) -> dict[str, Any]:
        """LEMS' energies: of KFAC-SVD's spectra, in the size of the measured divergence."""
        spectra = self.spectra("kfac")

        def divergence(name: str, rank: int) -> float:
            plan = planner.plan(
                [s for s in spectra if s.name == name],
                Budget("energy", Fraction(1), scope="layers", pins={name: rank}),
            )
            return self.divergence(self.factors("kfac", plan))

        return _kfac.scaled(spectra, divergence)

    def divergence(self, factors: Mapping[str, Parts]) -> float:
        """From the dense model, on the first calibration batches, in nats a token."""
        kl = self._few.distance(factors).kl
        assert kl is not None
        return kl

    @cached_property
    def _few(self) -> HeldBack:
        return HeldBack(self.module, self.batches[:2], self.run, self.head)

    @cached_property
    def scales(self) -> Mapping[str, Moments]:
        """ASVD's diagonal: mean |x| of each input channel, to the power of 1/2."""
        sums: dict[str, Tensor] = {}
        counts: dict[str, int] = {}

        def apply(layer: Layer, x: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
            rows = x.reshape(-1, x.shape[-1])
            sums[layer.name] = sums.get(layer.name, 0) + rows.abs().sum(0).double()
            counts[layer.name] = counts.get(layer.name, 0) + len(rows)
            return nn.functional.linear(x, weight, bias)

        with torch.no_grad(), LinearCalls(self.layers, apply):
            for batch in self.batches:
                self.run(self.module, batch)
        found = {}
        for layer in self.layers:
            square = (sums[layer.name] / counts[layer.name]).clamp_min(1e-6)  # (|x|^½)²
            level = float(square.mean())
            if narrow_in(layer.shape):
                found[layer.name] = Moments(near=square.diag(), near_level=level)
            else:
                weight = layer.weight.detach().double()
                far = (weight * square) @ weight.T
                found[layer.name] = Moments(far=far, far_level=level)
        return found

    def spectra(self, kind: str) -> list[Spectrum]:
        """The layers' spectra by the moments of this kind; "plain" for none."""
        moments = self.moments(kind)
        if kind not in self._cuts:
            self._cuts[kind] = engine.solve(self.layers, moments, keep=engine.Keep.ALL)
        return engine.spectra(self.layers, self._cuts[kind], moments)

    def moments(self, kind: str) -> Mapping[str, Moments]:
        """The moments of a kind; see the properties."""
        return {} if kind == "plain" else getattr(self, kind)

    def factors(self, kind: str, plan: Plan) -> dict[str, Parts]:
        """Each layer cut once, in the metric of these moments."""
        self.spectra(kind)
        return engine.factors(self.layers, self._cuts[kind], self.moments(kind), plan)


def _plan(
    spectra: Sequence[Spectrum], policy: str, ratio: Fraction, form: Choice = "factors"
) -> Plan:
    budget = Budget(policy, ratio, scope="layers", multiple=1, form=form)
    return planner.plan(spectra, budget)


def plain_uniform(case: Case, ratio: Fraction) -> dict[str, Parts]:
    """Truncated SVD of the weights at equal ratios: the start of the paper's PELA."""
    return case.factors("plain", _plan(case.spectra("plain"), "uniform", ratio))


def plain_threshold(case: Case, ratio: Fraction) -> dict[str, Parts]:
    """Truncated SVD; every layer keeps the same share of its energy, the largest that fits."""
    spectra = case.spectra("plain")
    limit = int(ratio * sum(s.shape[0] * s.shape[1] for s in spectra))

    def at(share: float) -> Plan:
        return planner.plan(spectra, Budget("threshold", scope="layers", threshold=share))

    low, high = 0.0, 1.0
    for _ in range(40):
        middle = (low + high) / 2
        used = at(middle).used
        assert used is not None
        low, high = (middle, high) if used <= limit else (low, middle)
    return case.factors("plain", at(low))


def plain_global(case: Case, ratio: Fraction) -> dict[str, Parts]:
    """Truncated SVD; the ranks that keep the most energy of all weights together."""
    return case.factors("plain", _plan(case.spectra("plain"), "energy", ratio))


def asvd(case: Case, ratio: Fraction) -> dict[str, Parts]:
    """Channels scaled by mean |x|^½ before the SVD, uniform ranks.

    Source: ASVD (arXiv 2312.05821), without its search of ranks on labelled perplexity.
    """
    return case.factors("scales", _plan(case.spectra("scales"), "uniform", ratio))


def svdllm(case: Case, ratio: Fraction) -> dict[str, Parts]:
    """Inputs whitened by a root of E[x xᵀ], uniform ranks. Source: SVD-LLM (arXiv 2403.07378)."""
    return case.factors("raw_inputs", _plan(case.spectra("raw_inputs"), "uniform", ratio))


def balf(case: Case, ratio: Fraction) -> dict[str, Parts]:
    """Whitened energies as shares of each layer's own, and one multiplier over all layers' ranks.

    Source: BALF (arXiv 2509.25136): budgeted activation-aware low-rank factorisation.
    """
    spectra = [
        replace(s, energies=s.energies / max(s.energies.sum(), 1e-300))
        for s in case.spectra("raw_inputs")
    ]
    return case.factors("raw_inputs", _plan(spectra, "energy", ratio))


def whitened_mean(case: Case, ratio: Fraction) -> dict[str, Parts]:
    """Ours, step 1: inputs whitened about their mean, which the bias takes up; uniform ranks."""
    return case.factors("inputs", _plan(case.spectra("inputs"), "uniform", ratio))


def two_sided_uniform(case: Case, ratio: Fraction) -> dict[str, Parts]:
    """Ours, step 2: and cut in the metric of what the model's output feels; uniform ranks."""
    return case.factors("two_sided", _plan(case.spectra("two_sided"), "uniform", ratio))


def two_sided(case: Case, ratio: Fraction) -> dict[str, Parts]:
    """Ours, step 3: and the ranks that keep the most of that energy together."""
    return case.factors("two_sided", _plan(case.spectra("two_sided"), "energy", ratio, case.form))


def weighted(case: Case, ratio: Fraction) -> dict[str, Parts]:
    """Ours, step 4: and tokens weighted by how strongly they are felt."""
    return case.factors("felt", _plan(case.spectra("felt"), "energy", ratio, case.form))


def felt(case: Case, ratio: Fraction) -> dict[str, Parts]:
    """Ours, step 5: and layers compared by the damage that is measured of their cuts. All of pela's
    one shot."""
    return case.factors("felt", _plan(case.scaled, "energy", ratio, case.form))


def kfac_svd(case: Case, ratio: Fraction) -> dict[str, Parts]:
    """Both sides by the texts' own gradients, uniform ranks. Source: KFAC-SVD (ICML 2026)."""
    return case.factors("kfac", _plan(case.spectra("kfac"), "uniform", ratio))


def kfac_lems(case: Case, ratio: Fraction) -> dict[str, Parts]:
    """The same with ranks by measured divergences and two numbers for the depth. Source: LEMS."""
    spectra = case.spectra("kfac")
    blocks = {s.name: int(re.findall(r"\d+", s.name)[0]) for s in spectra}
    draw = np.random.default_rng(42)
    best: tuple[float, dict[str, Parts]] | None = None
    for _ in range(_kfac.TRIALS):
        alpha, gamma = draw.uniform(0, _kfac.ALPHA), draw.uniform(0, _kfac.GAMMA)
        plan = _plan(_kfac.weighed(spectra, case.lems, blocks, alpha, gamma), "energy", ratio)
        factors = case.factors("kfac", plan)
        divergence = case.divergence(factors)
        if best is None or divergence < best[0]:
            best = divergence, factors
    assert best is not None
    return best[1]


def refitted(case: Case, ratio: Fraction) -> dict[str, Parts]:
    """Ours, step 6: and layers cut front to back for the inputs they really get."""
    return _corrected(case, ratio, payback=0.0)


def pela(case: Case, ratio: Fraction) -> dict[str, Parts]:
    """Ours, step 7: and the residual stream's loss paid back. What `pela decompose` does, but for
    the firmer ridge that it tries too where tokens are few."""
    return _corrected(case, ratio)


def _corrected(case: Case, ratio: Fraction, payback: float = refit.PAYBACK) -> dict[str, Parts]:
    plan = _plan(case.scaled, "energy", ratio, case.form)
    refitted = refit.correct(
        case.module,
        case.layers,
        plan.ranks(),
        case.felt,
        case.batches,
        case.run,
        payback=payback,
    )
    solved = case._cuts["felt"]
    return engine.factors(case.layers, solved, case.felt, plan, refitted=refitted)


Policy = Callable[[Case, Fraction], dict[str, Parts]]

# name → (policy, whether it looks at samples)
POLICIES: dict[str, tuple[Policy, bool]] = {
    "plain-uniform": (plain_uniform, False),
    "plain-threshold": (plain_threshold, False),
    "plain-global": (plain_global, False),
    "asvd": (asvd, True),
    "svd-llm": (svdllm, True),
    "balf": (balf, True),
    "whitened-mean": (whitened_mean, True),
    "two-sided-uniform": (two_sided_uniform, True),
    "two-sided": (two_sided, True),
    "weighted": (weighted, True),
    "felt": (felt, True),
    "refitted": (refitted, True),
    "pela": (pela, True),
}
# Of language models alone.
OF_TEXTS: dict[str, tuple[Policy, bool]] = {
    "kfac-svd": (kfac_svd, True),
    "kfac-lems": (kfac_lems, True),
}
ALL = POLICIES | OF_TEXTS
# Pela's own, whose plans can spend what pivots save.
OF_ANY_FORM = ("two-sided", "weighted", "felt", "refitted", "pela")
