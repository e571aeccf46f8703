"""Time several calls in turns, so that a machine that slows down slows all of them. No torch."""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass

from pelacli.system.amounts import Reach

Clock = Callable[[], float]

_LEAST, _MOST = 5, 500  # rounds


@dataclass(frozen=True)
class Timing:
    """How long a call takes, in milliseconds.

    Attributes:
        median: of all rounds.
        lower, upper: the quartiles: half of the rounds lie between them.
    """

    median: float
    lower: float
    upper: float

    @classmethod
    def of(cls, seconds: Sequence[float]) -> Timing:
        """What the seconds of each round come to."""
        if len(seconds) < 2:
            return cls(*[1000 * seconds[0]] * 3)
        quartiles = statistics.quantiles(seconds, n=4, method="inclusive")
        lower, median, upper = (1000 * quartile for quartile in quartiles)
        return cls(median, lower, upper)


def seconds_of(call: Callable[[], object], wait: Callable[[], object], clock: Clock) -> float:
    """How long a call takes.

    Args:
        wait: returns when the device has done all that it was given.
        clock: gives the time in seconds.
    """
    wait()
    start = clock()
    call()
    wait()
    return clock() - start


def in_turns(
    calls: Sequence[Callable[[], object]],
    seconds: float,
    *,
    wait: Callable[[], object] = lambda: None,
    clock: Clock = time.perf_counter,
    least: int = _LEAST,
    reach: Reach = lambda done, total: None,
) -> list[list[float]]:
    """Seconds of each call in each round. The call that begins a round changes from one to the
    next, so that none always follows the same other one.

    Args:
        seconds: that each call takes up in all, about; at least ``least`` rounds are made.
        wait, clock: as of `seconds_of`.
        reach: is given the share of the work that is done after each round, and 1.
    """
    times: list[list[float]] = [[] for _ in calls]
    start, planned = clock(), seconds * len(calls)
    rounds, took = 0, 0.0
    while rounds < least or (rounds < _MOST and took < planned):
        for number in range(len(calls)):
            turn = (number + rounds) % len(calls)
            times[turn].append(seconds_of(calls[turn], wait, clock))
        rounds, took = rounds + 1, clock() - start
        enough = max(rounds / _MOST, took / planned) if planned else 1.0
        reach(min(1.0, rounds / least, enough), 1.0)
    return times
