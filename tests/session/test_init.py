# SPDX-License-Identifier: MIT
"""The first process of a session, which lets COMMAND wait until the session is announced."""

from __future__ import annotations

import os
import select
import signal
import socket
import time
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path

import pytest

from tests.left_behind import nothing_left
from tsmfs.session import attendant, init, namespaces, root
from tsmfs.session.attendant import Command, Report
from tsmfs.session.init import Plan
from tsmfs.session.registry import SessionDirectory

SECONDS = 30
STATUS = 42
"""What COMMAND ends with."""

BLOCKED = signal.valid_signals() - {signal.SIGABRT}

Services = Callable[[Mapping[str, str]], None]
Start = Callable[[Services], tuple[int, socket.socket]]


@pytest.fixture
def start(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Iterator[Start]:
    """Starts it with some services, in the namespaces and with the mounts of the test."""
    monkeypatch.setattr(namespaces, "die_with_parent", lambda _: None)
    monkeypatch.setattr(init, "_enter_namespaces", lambda _: None)
    monkeypatch.setattr(init, "interpose", lambda _: None)
    for name in ("arrange", "go_to"):
        monkeypatch.setattr(root, name, lambda *_: ())
    wanted = Command(("sh", "-c", f"exit {STATUS}"), {"PATH": "/usr/bin:/bin"}, "/", frozenset())
    ours, theirs = socket.socketpair()

    def start(services: Services) -> tuple[int, socket.socket]:
        plan = Plan(SessionDirectory(tmp_path), os.getpid(), (), services)
        before = signal.pthread_sigmask(signal.SIG_BLOCK, BLOCKED)
        try:
            pid, channel = init.start(plan, wanted, theirs, frozenset({0, 1, 2}))
        finally:
            signal.pthread_sigmask(signal.SIG_SETMASK, before)
        channel.settimeout(SECONDS)
        return pid, channel

    with ours, theirs:
        yield start


def status(pid: int) -> int:
    return os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1])


def in_state(pid: int, state: str) -> bool:
    return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] == state


def eventually(condition: Callable[[], bool]) -> bool:
    deadline = time.monotonic() + SECONDS
    while not condition():
        if time.monotonic() > deadline:
            return False
        time.sleep(0.01)
    return True


def test_the_command_waits_until_it_is_let_go(start: Start) -> None:
    pid, channel = start(lambda _: None)
    with channel:
        # Long enough for a shell that need not wait.
        assert select.select([channel], [], [], 0.5)[0] == []
        init.go(channel)
        assert attendant.receive(channel) == (Report.RUNNING, b"")
        assert status(pid) == STATUS


def test_it_may_be_let_go_before_it_waits(start: Start) -> None:
    pid, channel = start(lambda _: os.kill(os.getpid(), signal.SIGSTOP))
    with channel:
        os.waitpid(pid, os.WUNTRACED)
        init.go(channel)
        os.kill(pid, signal.SIGCONT)
        assert status(pid) == STATUS


@pytest.mark.parametrize("early", [True, False], ids=["before it waits", "while it waits"])
def test_it_ends_without_the_command_when_nobody_is_left_to_let_it_go(
    start: Start, *, early: bool
) -> None:
    pid, channel = start(lambda _: os.kill(os.getpid(), signal.SIGSTOP))
    os.waitpid(pid, os.WUNTRACED)
    if early:
        channel.close()
    os.kill(pid, signal.SIGCONT)
    if not early:
        assert eventually(lambda: in_state(pid, "S"))
        channel.close()
    assert status(pid) == attendant.EXIT_FAILED


def test_letting_it_go_when_it_has_ended_is_nothing(start: Start) -> None:
    pid, channel = start(lambda _: os._exit(3))
    with channel:
        assert status(pid) == 3
        with nothing_left():
            init.go(channel)
            init.go(channel)
        assert attendant.receive(channel) is None
