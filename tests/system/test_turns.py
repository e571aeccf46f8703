"""Calls that are timed in turns."""

from __future__ import annotations

import pytest

from pelacli.system.turns import Timing, in_turns


class Machine:
    """A clock that stands still but for what the calls take."""

    def __init__(self, **seconds):
        self.now, self.seconds, self.order = 0.0, seconds, []

    def clock(self):
        return self.now

    def call(self, name):
        def run():
            self.order.append(name)
            self.now += self.seconds[name]

        return run


def test_the_calls_take_turns_and_none_is_always_first():
    machine = Machine(a=1, b=2, c=3)
    calls = [machine.call(name) for name in "abc"]
    times = in_turns(calls, 0, clock=machine.clock, least=3)
    assert "".join(machine.order) == "abcbcacab"
    assert times == [[1, 1, 1], [2, 2, 2], [3, 3, 3]]


def test_rounds_go_on_for_the_time_that_was_given():
    machine = Machine(a=0.5, b=1.5)
    times = in_turns([machine.call("a"), machine.call("b")], 10, clock=machine.clock)
    assert len(times[0]) == len(times[1]) == 10  # two seconds a round, twice ten seconds


@pytest.mark.parametrize(("seconds", "shares"), [(0, [0.25, 0.5, 0.75, 1]), (2.5, [0.2, 0.4])])
def test_how_far_the_rounds_are_is_told(seconds, shares):
    machine, seen = Machine(a=0.5), []
    in_turns(
        [machine.call("a")],
        seconds,
        clock=machine.clock,
        least=4,
        reach=lambda done, total: seen.append((done, total)),
    )
    assert seen[: len(shares)] == [(share, 1) for share in shares]
    assert seen[-1] == (1, 1)
    assert len(seen) == max(4, 2 * seconds)


def test_what_the_device_still_does_counts_for_its_call():
    machine = Machine(a=1)
    machine.seconds["device"] = 4
    times = in_turns(
        [machine.call("a")], 0, wait=machine.call("device"), clock=machine.clock, least=1
    )
    assert times == [[5]]


def test_a_timing_is_the_median_and_the_quartiles_in_milliseconds():
    timing = Timing.of([0.005, 0.001, 0.002, 0.004, 0.003])
    assert (timing.lower, timing.median, timing.upper) == pytest.approx((2, 3, 4))
    assert Timing.of([0.002]) == Timing(2, 2, 2)
