# SPDX-License-Identifier: MIT
"""Fault injection: probability, interval, times and space count as Linux's do."""

from __future__ import annotations

import errno
import random
import time

import pytest

from tests.machines import Caller, fails
from tsmfs.kernel.fault import FaultAttr, Faults, Point
from tsmfs.kernel.printk import Log
from tsmfs.kernel.task import running_as

POINT = Point.TSM_CONNECT


def faults(**attributes: int) -> Faults:
    """Fault points of which one always fails, but for *attributes*."""
    made = Faults(Log(), random.Random(1))
    made.points[POINT] = FaultAttr(**({"probability": 100, "times": -1} | attributes))
    return made


def pattern(made: Faults, calls: int) -> list[bool]:
    return [made.should_fail(POINT) for _ in range(calls)]


def test_every_point_is_idle_at_first() -> None:
    made = Faults(Log())
    assert not any(made.should_fail(point) for point in Point)


def test_the_points_are_those_of_the_interface() -> None:
    assert [point.value for point in Point] == [
        "tsm_probe",
        "tsm_connect",
        "tsm_disconnect",
        "tsm_bind",
        "tsm_lock",
        "tsm_accept",
        "ide_stream_enable",
        "doe_transfer",
        "device_probe",
    ]


def test_certain_and_without_limit_is_every_call() -> None:
    made = faults()
    assert all(pattern(made, 50))
    assert made.points[POINT].times == -1


def test_a_point_fails_as_many_times_as_it_may() -> None:
    assert pattern(faults(times=2), 4) == [True, True, False, False]


def test_no_times_left_is_no_fault() -> None:
    assert not any(pattern(faults(times=0), 4))


def test_an_interval_lets_only_every_nth_call_fail() -> None:
    assert pattern(faults(interval=3), 7) == [False, False, True, False, False, True, False]


def test_space_lets_the_first_calls_pass() -> None:
    made = faults(space=3)
    assert pattern(made, 4) == [False, False, True, True]
    assert made.points[POINT].space == 1


def test_space_goes_before_the_interval_counts() -> None:
    assert pattern(faults(space=3, interval=2), 6) == [False, False, False, True, False, True]


def test_calls_that_pass_use_up_no_times() -> None:
    made = faults(space=2, interval=2, times=1)
    assert pattern(made, 5) == [False, False, True, False, False]


def test_probability_is_in_percent() -> None:
    share = sum(pattern(faults(probability=30), 2000)) / 2000
    assert 0.25 < share < 0.35


def test_an_unlucky_draw_uses_up_no_times() -> None:
    made = faults(probability=50, times=3)
    assert sum(pattern(made, 200)) == 3
    assert made.points[POINT].times == 0


def test_the_same_seed_fails_the_same_calls() -> None:
    assert pattern(faults(probability=50), 50) == pattern(faults(probability=50), 50)


def test_one_point_does_not_touch_another() -> None:
    made = faults()
    made.inject(Point.TSM_LOCK, "0000:00:00.0")
    with fails(errno.EIO):
        made.inject(POINT, "0000:00:00.0")


def test_the_error_is_the_one_that_was_set_and_the_log_names_the_subject() -> None:
    made = faults(errno=errno.ETIMEDOUT)
    with fails(errno.ETIMEDOUT):
        made.inject(POINT, "0000:01:00.0")
    assert "forcing a failure. name tsm_connect, 0000:01:00.0" in made.log.text()


def test_without_an_error_it_only_takes_longer() -> None:
    made = faults(errno=0, delay_ms=30)
    start = time.monotonic()
    made.inject(POINT, "x")
    assert time.monotonic() - start >= 0.03


def test_a_killed_caller_does_not_sit_out_the_delay() -> None:
    made = faults(errno=0, delay_ms=3_600_000)
    caller = Caller()
    caller.kill()
    with running_as(caller.task), fails(errno.EINTR):
        made.inject(POINT, "x")


@pytest.mark.parametrize("point", list(Point))
def test_linux_defaults(point: Point) -> None:
    attr = Faults(Log()).points[point]
    assert (attr.probability, attr.interval, attr.times, attr.space) == (0, 1, 1, 0)
