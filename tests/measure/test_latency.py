"""Models timed side by side, on a clock that the models move."""

from __future__ import annotations

import torch
from torch import nn

from pelacli.measure import latency


class Waits(nn.Module):
    """Moves the clock by its own seconds for each sample."""

    def __init__(self, clock, seconds):
        super().__init__()
        self.clock, self.seconds = clock, seconds

    def forward(self, x):
        self.clock[0] += self.seconds * len(x)
        return x


def test_each_model_is_timed_over_the_same_batch():
    clock = [0.0]
    modules = [Waits(clock, 0.25), Waits(clock, 0.5)]
    timings = latency.side_by_side(
        modules, torch.zeros(2, 3), lambda m, x: m(x), seconds=0, clock=lambda: clock[0]
    )
    assert [timing.median for timing in timings] == [500, 1000]
    assert timings[0].lower == timings[0].upper == 500


def test_of_long_passes_fewer_are_made():
    clock = [0.0]
    modules = [Waits(clock, 3.0), Waits(clock, 0.5)]
    latency.side_by_side(
        modules, torch.zeros(2, 3), lambda m, x: m(x), seconds=0, clock=lambda: clock[0]
    )
    assert clock[0] == 6 + 2 * 1 + 3 * (6 + 1)  # to warm up, then three rounds


def test_of_long_passes_the_warm_up_tells_how_long_the_rest_takes():
    clock, seen = [0.0], []
    latency.side_by_side(
        [Waits(clock, 3.0)],
        torch.zeros(2, 3),
        lambda m, x: m(x),
        seconds=0,
        clock=lambda: clock[0],
        reach=lambda done, total: seen.append((done / total, clock[0])),
    )
    assert seen == [(0.25, 6), (0.5, 12), (0.75, 18), (1, 24)]


def test_a_batch_that_takes_long_is_timed_by_its_first_samples():
    def first(seconds):
        clock = [0.0]
        batch = {"input_ids": torch.zeros(64, 3)}
        run = lambda m, x: m(x["input_ids"])  # noqa: E731
        module = Waits(clock, seconds)
        return len(latency.first_samples(module, batch, run, clock=lambda: clock[0])["input_ids"])

    assert [first(seconds) for seconds in (0, 0.01, 0.25, 30)] == [64, 64, 4, 1]


def test_a_pass_that_is_held_up_makes_no_batch_smaller():
    clock, passes = [0.0], []

    def run(module, x):
        passes.append(len(x))
        clock[0] += 3 if len(passes) % 2 else 0.001  # by another program
        return x

    batch = torch.zeros(64, 3)
    first = latency.first_samples(nn.Identity(), batch, run, clock=lambda: clock[0])
    assert first is batch


def test_the_cpu_does_not_tell_what_memory_a_pass_takes():
    module = nn.Linear(3, 3)
    run = lambda m, x: m(x)  # noqa: E731
    assert latency.peak_bytes(module, torch.zeros(1, 3), run, torch.device("cpu")) is None
