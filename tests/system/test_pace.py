"""The time that work will take is told by its first parts, and by nothing else."""

from __future__ import annotations

from pelacli.system.pace import Pace


def told(pace, calls):
    """What the pace says of calls, (units done, seconds) each: the first word, and at which one."""
    pace.start(0.0)
    for number, (done, now) in enumerate(calls, 1):
        if left := pace.left(done, now):
            return number, left
    return None


def test_one_long_part_says_it_at_once():
    number, (least, most) = told(Pace(8), [(1, 30.0)])
    assert number == 1
    assert least < 7 * 30.0 < most


def test_short_parts_are_timed_twice():
    number, (least, most) = told(Pace(100), [(1, 1.0), (2, 2.0), (3, 3.0)])
    assert number == 2
    assert least < 98.0 < most


def test_short_work_says_nothing():
    assert told(Pace(10), [(n, 0.1 * n) for n in range(1, 11)]) is None


def test_what_comes_before_the_first_part_does_not_count():
    calls = [(1, 500.0), (2, 501.0), (3, 502.0)]  # an evaluation took long
    number, (least, most) = told(Pace(100, warm=1), calls)
    assert number == 3
    assert least < 97.0 < most


def test_a_part_may_be_several_calls():
    """As a block is several layers, of which the last one takes long."""
    calls = [(1, 0.5), (2, 1.0), (3, 6.0)]
    number, (least, most) = told(Pace(30, calls=3), calls)
    assert number == 3
    assert least < 54.0 < most


def test_units_done_before_took_no_time():
    _, (least, most) = told(Pace(100, done=90), [(91, 10.0)])
    assert least < 90.0 < most


def test_where_nothing_is_left_nothing_is_said():
    assert told(Pace(3, calls=3), [(1, 50.0), (2, 90.0), (3, 150.0)]) is None
