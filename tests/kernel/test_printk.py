# SPDX-License-Identifier: MIT
"""The kernel log: a ring whose offsets count on although the oldest records go."""

from __future__ import annotations

import re

from hypothesis import given
from hypothesis import strategies as st

from tsmfs.kernel.printk import ByteRing, Level, Log

RECORDS = st.lists(st.binary(max_size=12), max_size=20)


@given(RECORDS, st.integers(1, 40), st.integers(0, 300), st.integers(0, 300))
def test_a_ring_reads_as_the_whole_stream_less_its_lost_start(
    records: list[bytes], capacity: int, offset: int, count: int
) -> None:
    ring = ByteRing(capacity)
    for record in records:
        ring.append(record)
    stream = b"".join(records)
    kept = ring.read(0, 1 << 20)
    assert stream.endswith(kept)
    assert ring.end == len(stream)
    # The newest record stays however long it is; otherwise no more than fits.
    assert len(kept) <= max(capacity, len(records[-1]) if records else 0)
    start = max(offset, len(stream) - len(kept))
    assert ring.read(offset, count) == stream[start : start + count]


@given(RECORDS, st.integers(1, 40))
def test_only_whole_records_are_dropped_and_none_too_early(
    records: list[bytes], capacity: int
) -> None:
    ring = ByteRing(capacity)
    for record in records:
        ring.append(record)
    kept: list[bytes] = []
    for record in reversed(records):
        if kept and sum(map(len, kept)) + len(record) > capacity:
            break
        kept.insert(0, record)
    assert ring.read(0, 1 << 20) == b"".join(kept)


def test_a_reader_that_follows_sees_each_byte_once() -> None:
    ring = ByteRing(1000)
    seen = b""
    for number in range(20):
        ring.append(b"record %d\n" % number)
        while chunk := ring.read(len(seen), 7):
            seen += chunk
    assert seen == b"".join(b"record %d\n" % number for number in range(20))


def test_a_reader_that_fell_behind_goes_on_with_the_oldest_kept_byte() -> None:
    ring = ByteRing(8)
    for record in (b"aaaa", b"bbbb", b"cccc"):
        ring.append(record)
    assert ring.read(2, 3) == b"bbb"


def test_a_line_has_its_time_and_text() -> None:
    log = Log()
    log.info("hello")
    assert re.fullmatch(r"\[ +\d+\.\d{6}\] hello\n", log.text())


def test_each_line_of_a_text_has_the_time() -> None:
    log = Log()
    log.err("first\n  second\n")
    stamp = log.text()[:15]
    assert log.text() == f"{stamp}first\n{stamp}  second\n"


def test_times_grow() -> None:
    log = Log()
    for _ in range(5):
        log.info("tick")
    times = [float(line[1:13]) for line in log.text().splitlines()]
    assert times == sorted(times)
    assert log.uptime() >= times[-1]


def test_what_is_above_the_log_level_is_not_kept() -> None:
    log = Log(loglevel=Level.WARNING)
    log.debug("debug")
    log.info("info")
    log.warn("warning")
    log.err("error")
    assert [line[15:] for line in log.text().splitlines()] == ["warning", "error"]


def test_debug_lines_are_kept_when_asked_for() -> None:
    log = Log(loglevel=Level.DEBUG)
    log.debug("details")
    assert log.text().endswith("] details\n")


def test_what_is_no_unicode_does_not_break_the_log() -> None:
    log = Log()
    log.info("name \udcff")
    assert log.text().endswith("] name ?\n")
