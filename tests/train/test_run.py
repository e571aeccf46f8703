"""When a run evaluates."""

from __future__ import annotations

import pytest

from pelacli.train.run import Run


def evaluated(every, *, total=20, batches=10, accumulate=1, start=0):
    """The steps after which a run evaluates, from a step on."""
    steps = range(start + 1, total + 1)
    runs = {step: Run(total, 0, batches, accumulate, step=step) for step in steps}
    return [step for step, run in runs.items() if run.evaluation_due(every)]


@pytest.mark.parametrize(
    ("every", "steps"),
    [
        (None, list(range(2, 21, 2))),
        (1, [10, 20]),
        (2, [20]),
        (3, [20]),
        (0.5, [5, 10, 15, 20]),
        (0.25, [3, 5, 8, 10, 13, 15, 18, 20]),
        (0.1, list(range(1, 21))),
        (0.01, list(range(1, 21))),
        (1.5, [15, 20]),
        (0.3333, [4, 7, 10, 14, 17, 20]),
    ],
)
def test_a_run_evaluates_at_multiples_of_a_number_of_epochs_and_at_its_end(every, steps):
    assert evaluated(every) == steps


def test_ten_tenths_of_an_epoch_are_one():
    """0.1 + 0.1 + … is not 1 in floating point."""
    assert evaluated(0.1, total=2000, batches=1000) == list(range(100, 2001, 100))


def test_an_epoch_counts_batches_not_updates():
    assert evaluated(0.5, total=10, batches=10, accumulate=4) == [2, 3, 4, 5, 7, 8, 9, 10]


@pytest.mark.parametrize("every", [0.25, 0.3, 1, 1.5])
@pytest.mark.parametrize("start", [1, 4, 5, 13])
def test_a_run_that_goes_on_evaluates_where_it_would_have(every, start):
    whole = evaluated(every)
    assert evaluated(every, start=start) == [step for step in whole if step > start]
