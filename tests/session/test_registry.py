# SPDX-License-Identifier: MIT
"""The directories of sessions: made, found, and removed when nobody holds their lock."""

from __future__ import annotations

import multiprocessing
import os
import re
import time
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tsmfs.session import SessionError, registry
from tsmfs.session.registry import Record, SessionDirectory, create, default_name, find, running


@pytest.fixture(autouse=True)
def runtime(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A runtime directory of the test's own."""
    directory = tmp_path / "runtime"
    monkeypatch.setattr("tsmfs.runtime.runtime_directory", lambda: directory)
    monkeypatch.setattr(registry, "runtime_directory", lambda: directory)
    return directory


def record(name: str, started: float = 1.0) -> Record:
    return Record(name, "devsec", ("sleep", "1"), front=1, daemon=2, init=3, started=started)


def test_directory_is_private_and_has_its_places() -> None:
    directory, lock = create("x")
    assert directory.path.stat().st_mode & 0o777 == 0o700
    assert directory.machine.is_dir()
    assert directory.root.is_dir()
    assert directory.name == "x"
    assert not os.get_inheritable(lock)
    os.close(lock)


def test_taken_name_is_refused_while_its_session_lives() -> None:
    _, lock = create("x")
    with pytest.raises(SessionError, match=r"^x: a session of this name is running$"):
        create("x")
    os.close(lock)
    _, again = create("x")
    os.close(again)


def test_what_was_left_is_removed_by_the_next() -> None:
    left, lock = create("left")
    os.close(lock)
    _, other = create("other")
    assert not left.path.exists()
    os.close(other)


@pytest.mark.parametrize("name", ["", ".x", "-x", "a/b", "a b", "x" * 41, "ä", "x\n"])
def test_name_that_will_not_do(name: str) -> None:
    with pytest.raises(SessionError, match="up to 40 letters"):
        create(name)


def test_removal_takes_empty_directories_along(runtime: Path) -> None:
    first, lock = create("a")
    second, other = create("b")
    first.remove()
    assert not first.path.exists()
    assert second.path.exists()
    second.remove()
    assert not runtime.exists()
    second.remove()
    os.close(lock)
    os.close(other)


def test_removal_leaves_what_is_not_of_sessions(runtime: Path) -> None:
    directory, lock = create("a")
    (runtime / "x.sock").touch()
    directory.remove()
    assert os.listdir(runtime) == ["x.sock"]
    os.close(lock)


def test_only_published_sessions_are_listed_oldest_first() -> None:
    locks = []
    for name, started in (("b", 2.0), ("a", 3.0), ("c", 1.0)):
        directory, lock = create(name)
        directory.publish(record(name, started))
        locks.append(lock)
    _, lock = create("starting")
    assert running() == [record("c", 1.0), record("b", 2.0), record("a", 3.0)]
    for each in (*locks, lock):
        os.close(each)
    assert running() == []


def test_listing_makes_no_directories(runtime: Path) -> None:
    assert running() == []
    assert not runtime.exists()


def test_listing_removes_what_was_left(runtime: Path) -> None:
    directory, lock = create("x")
    directory.publish(record("x"))
    os.close(lock)
    assert running() == []
    assert not runtime.exists()


def test_record_survives_its_file() -> None:
    directory, lock = create("x")
    assert directory.record() is None
    directory.publish(record("x"))
    assert directory.record() == record("x")
    os.close(lock)


@pytest.mark.parametrize("text", ["", "{}", "[]", '{"name": 1}', "nonsense"])
def test_broken_record_is_none(text: str) -> None:
    directory, lock = create("x")
    (directory.path / "session.json").write_text(text)
    assert directory.record() is None
    os.close(lock)


def test_find_names_the_others() -> None:
    directory, lock = create("x")
    directory.publish(record("x"))
    assert find("x") == (directory, record("x"))
    with pytest.raises(SessionError, match=r"^y: no session of this name is running: there are x$"):
        find("y")
    os.close(lock)
    with pytest.raises(SessionError, match=r"^x: no session of this name is running$"):
        find("x")


@given(machine=st.text(min_size=0, max_size=80), pid=st.integers(1, 1 << 22))
def test_default_name_is_always_a_name(machine: str, pid: int) -> None:
    assert re.fullmatch(r"[A-Za-z0-9_][A-Za-z0-9._-]{0,39}", default_name(machine, pid))


def test_default_name_is_of_the_machine() -> None:
    assert default_name("devsec", 7) == "devsec-7"
    assert default_name("./dir/my machine.toml", 7) == "my-machine-7"


def come_and_go(seconds: float) -> None:
    deadline = time.monotonic() + seconds
    while time.monotonic() < deadline:
        directory, lock = create(f"s{os.getpid()}")
        assert SessionDirectory(directory.path).is_alive()
        assert directory.machine.is_dir()
        directory.remove()
        os.close(lock)


def test_sessions_that_come_and_go_at_once_do_not_disturb_each_other(runtime: Path) -> None:
    context = multiprocessing.get_context("fork")
    processes = [context.Process(target=come_and_go, args=(1.0,)) for _ in range(4)]
    for process in processes:
        process.start()
    for process in processes:
        process.join(30)
    assert [process.exitcode for process in processes] == [0] * 4
    assert not runtime.exists()
