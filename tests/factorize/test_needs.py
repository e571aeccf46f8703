"""The estimate of what calibration takes."""

from __future__ import annotations

import pytest
import torch
from torch import nn

from pelacli.errors import RequestError
from pelacli.factorize import needs
from pelacli.lowrank import find

LAYERS = find.find_layers(nn.Sequential(nn.Linear(64, 128), nn.Linear(128, 64)))
TOKENS = {layer.name: 10 for layer in LAYERS}


def estimate(samples, *, correct=True, batch=32):
    batches = torch.zeros(samples, 10, 64).split(batch)
    return needs.calibrated([LAYERS], TOKENS, batches, correct=correct)


def test_the_correction_grows_with_the_samples_and_calibration_with_the_batch():
    few, many = estimate(32), estimate(3200)
    assert many.stages["calibration"] == few.stages["calibration"]
    assert many.per_sample == few.per_sample
    growth = many.stages["correction"] - few.stages["correction"]
    assert growth == pytest.approx(few.per_sample * (3200 - 32))
    assert "correction" not in estimate(32, correct=False).stages


def test_block_by_block_only_the_largest_block_counts_for_calibration():
    whole = estimate(64)
    batches = torch.zeros(64, 10, 64).split(32)
    parts = needs.calibrated([[la] for la in LAYERS], TOKENS, batches, correct=True)
    assert parts.stages["calibration"] == whole.stages["calibration"] / 2
    assert parts.stages["correction"] == whole.stages["correction"]
    assert parts.kept < whole.kept


def test_as_many_samples_as_are_named_fit():
    needed = estimate(6400)
    free = int(needed.peak / 2)
    with pytest.raises(RequestError, match="calibrate on at most") as refused:
        needed.check(free)
    assert "leave the correction out" in str(refused.value)
    fit = int(str(refused.value).split("at most ")[1].split()[0])
    assert 2000 < fit < 3300
    estimate(fit).check(free)


def test_texts_count_by_their_own_length():
    long = [{"input_ids": torch.zeros(4, 100, dtype=torch.long)}]
    short = [{"input_ids": torch.zeros(4, 50, dtype=torch.long)}]
    sizes = [needs.calibrated([LAYERS], TOKENS, texts, correct=True) for texts in (long, short)]
    assert sizes[0].per_sample == 2 * sizes[1].per_sample


def test_block_by_block_the_correction_takes_a_gigabyte_at_most_however_many_samples_there_are():
    sections = [[layer] for layer in LAYERS]

    def parts(samples):
        batches = torch.zeros(1, 10, 64).expand(samples, 10, 64).split(32)
        return needs.calibrated(sections, TOKENS, batches, correct=True)

    many, more = parts(100_000), parts(200_000)
    assert many.stages["correction"] == more.stages["correction"] < 1.1 * needs.IN_FLIGHT
    assert 1 < many.at_once == more.at_once
    assert many.per_sample == 0  # so fewer samples are no remedy
    with pytest.raises(RequestError, match="are free; leave the correction out"):
        many.check(int(more.kept + needs.IN_FLIGHT / 2))


def test_a_refusal_names_the_remedy_that_it_is_given():
    needed = estimate(6400)
    with pytest.raises(RequestError, match="are free; let it go block by block, or calibrate on"):
        needed.check(int(needed.peak / 2), "let it go block by block")
