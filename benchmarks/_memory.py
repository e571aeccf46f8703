"""Peak memory of factorising, in a process of its own: `_memory.py MODEL RATIO [calibrated]`.

The process's own is what it holds after its imports and one small model factorised, which loads
what is loaded on first use. From then on the kernel counts the peak of resident memory anew.
Nothing is set about malloc: `pelacli.system.malloc` does what is done.
"""

from __future__ import annotations

import json
import subprocess
import sys
from fractions import Fraction
from typing import Any

import torch
from _common import MIB, network, peak, reset_peak, resident, vit_shapes

from pelacli.factorize import engine
from pelacli.factorize.moments import Moments
from pelacli.lowrank import find
from pelacli.lowrank.layer import Layer
from pelacli.models import opening
from pelacli.ranks import plan as ranks_plan
from pelacli.ranks import planner
from pelacli.ranks.budget import Budget
from pelacli.ranks.size import ModelSize
from pelacli.system import malloc


def in_child(name: str, calibrated: bool, ratio: str) -> dict[str, Any]:
    """Measure in a fresh process."""
    command = [sys.executable, __file__, name, ratio, *(["calibrated"] if calibrated else [])]
    done = subprocess.run(command, check=True, stdout=subprocess.PIPE, text=True)
    found: dict[str, Any] = json.loads(done.stdout)
    return found


def moments_of(layers: list[Layer]) -> dict[str, Moments]:
    """Positive definite moments of the shapes and types that a calibration gives."""
    found = {}
    for layer in layers:
        n = min(layer.shape)
        near, far = (torch.eye(n, dtype=torch.float64) for _ in range(2))
        for moment in (near, far):
            edge = torch.randn(n, 8, dtype=torch.float64)
            moment.addmm_(edge, edge.T)
        found[layer.name] = Moments(torch.zeros(layer.shape[1]), near, far)
    return found


def measure(name: str, ratio: Fraction, calibrated: bool) -> dict[str, Any]:
    small = network(vit_shapes(1, 256))
    layers = find.find_layers(small)
    for known in ({}, moments_of(layers)):
        cuts = engine.solve(layers, known)
        engine.factors(layers, cuts, known, _plan(small, layers, cuts, known, ratio))
    del small, layers, known, cuts
    opening.open("vit_tiny", weights="random")
    malloc.trim()
    own = resident()

    opened = opening.open(name, weights="random")
    free = [la for la in find.find_layers(opened.module, head=opened.head) if la.reason is None]
    moments = moments_of(free) if calibrated else {}
    dense = sum(p.nbytes for p in opened.module.parameters()) / MIB
    sides = [m for one in moments.values() for m in (one.near, one.far)]
    kept = sum(m.nbytes for m in sides if m is not None) / MIB
    largest = max(la.weight.nbytes for la in free) / MIB
    malloc.trim()
    before = resident() - own
    del sides
    reset_peak()
    cuts = engine.solve(free, moments)
    solving = peak() - own
    bases = next(iter(cuts.values())).vectors.size / MIB
    plan = _plan(opened.module, free, cuts, moments, ratio)
    reset_peak()
    engine.apply(opened.module, free, moments, plan, solutions=cuts)
    cutting = peak() - own
    factors = sum(p.nbytes for p in opened.module.parameters()) / MIB
    highest, allowed = max(solving, cutting), dense + kept + 2 * largest
    parts = {
        "dense model": dense,
        "moments": kept,
        "both, as resident": before,
        "bases (in a temporary file)": bases,
        "factorised model": factors,
        "twice the largest layer": 2 * largest,
        "peak while solving": solving,
        "peak while cutting": cutting,
        "workspace": highest - dense - kept,
        "allowed": allowed,
    }
    met = highest <= allowed
    return {"model": name, "calibrated": calibrated, "parts": parts, "own": own, "met": met}


def _plan(
    module: torch.nn.Module, layers: list[Layer], cuts: Any, moments: Any, ratio: Fraction
) -> ranks_plan.Plan:
    return planner.plan(
        engine.spectra(layers, cuts, moments),
        Budget("energy", ratio),
        ModelSize(fixed_params=find.fixed_params(module, layers)),
    )


if __name__ == "__main__":
    print(json.dumps(measure(sys.argv[1], Fraction(sys.argv[2]), "calibrated" in sys.argv[3:])))
