"""Ranks, parameters and FLOPs of the paper's models at its ratios, to the unit.

The figures are those of the reference's rank formula and skip lists, computed from shapes
(parameters with the head; FLOPs of one image of 224 pixels, 2 per multiply-add).
"""

from __future__ import annotations

import functools
from fractions import Fraction

import numpy as np
import pytest

from pelacli.artefact import description
from pelacli.lowrank import find
from pelacli.models import opening
from pelacli.ranks import planner, spectrum
from pelacli.ranks.budget import Budget

DEIT, DEIT3 = "deit_base_patch16_224", "deit3_large_patch16_224"
SWIN = "swin_base_patch4_window7_224"
SWIN_SKIPS = (r"attn\.proj", "downsample")

# model, excluded, 1/ratio, params, GFLOPs
ROWS = [
    (DEIT, (), "3/2", 58_200_808, 23.951),
    (DEIT, (), "2", 44_081_896, 18.388),
    (DEIT, (), "3", 29_870_824, 12.789),
    (DEIT3, (), "3/2", 203_662_312, 83.429),
    (DEIT3, (), "2", 153_232_360, 63.559),
    (DEIT3, (), "3", 102_999_016, 43.767),
    (SWIN, SWIN_SKIPS, "3/2", 62_164_128, 21.808),
    (SWIN, SWIN_SKIPS, "2", 49_291_936, 17.261),
    (SWIN, SWIN_SKIPS, "3", 36_532_384, 12.752),
    (SWIN, SWIN_SKIPS[1:], "3/2", 59_823_264, 20.978),
    (SWIN, SWIN_SKIPS[1:], "2", 45_802_144, 16.028),
    (SWIN, SWIN_SKIPS[1:], "3", 31_869_600, 11.103),
]
DENSE = {DEIT: (86_567_656, 35.128), DEIT3: (304_374_760, 123.109), SWIN: (87_768_224, 30.862)}
# (out, in) or its transpose → rank at 3/2, 2, 3
RANKS = {
    (768, 2304): (384, 288, 192), (768, 768): (256, 192, 128), (768, 3072): (409, 307, 204),
    (1024, 3072): (512, 384, 256), (1024, 1024): (341, 256, 170), (1024, 4096): (546, 409, 273),
    (128, 384): (64, 48, 32), (256, 768): (128, 96, 64), (512, 1536): (256, 192, 128),
    (128, 512): (68, 51, 34), (256, 1024): (136, 102, 68), (512, 2048): (273, 204, 136),
}  # fmt: skip


@functools.cache
def opened(name):
    return opening.open(name, weights="random", meta=True)


@functools.cache
def dense_cost(name):
    model = opened(name)
    return description.cost(model, find.find_layers(model.module, head=model.head))


@pytest.mark.parametrize(("name", "excluded", "c", "params", "gflops"), ROWS)
def test_uniform_is_the_papers(name, excluded, c, params, gflops):
    model = opened(name)
    layers = find.find_layers(model.module, head=model.head, exclude=excluded)
    free = [layer for layer in layers if layer.reason is None]
    plan = planner.plan(
        # the policy looks at shapes only, so any spectrum will do
        [spectrum.Spectrum(la.name, la.shape, np.ones(min(la.shape))) for la in free],
        Budget("uniform", 1 / Fraction(c), scope="layers"),
    )
    column = ("3/2", "2", "3").index(c)
    for layer in free:
        shape = (min(layer.shape), max(layer.shape))
        known = RANKS.get(shape)
        if known is None:  # the square projections of Swin's stages, by the formula itself
            known = [int(shape[0] * shape[1] / (k * sum(shape)) + 1e-9) for k in (1.5, 2, 3)]
        assert plan.layers[layer.name].rank == known[column], layer.name
    described = description.describe(model, layers, dense_cost(name), plan)
    assert (described.params.before, described.params.after) == (DENSE[name][0], params)
    assert round(described.flops.before / 1e9, 3) == DENSE[name][1]
    assert round(described.flops.after / 1e9, 3) == gflops


@pytest.mark.parametrize(("name", "count"), [(DEIT, 48), (DEIT3, 96), (SWIN, 72)])
def test_the_reference_factorises_these_layers(name, count):
    model = opened(name)
    excluded = SWIN_SKIPS if name == SWIN else ()
    layers = find.find_layers(model.module, head=model.head, exclude=excluded)
    assert sum(layer.reason is None for layer in layers) == count
