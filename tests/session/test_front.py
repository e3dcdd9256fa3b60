# SPDX-License-Identifier: MIT
"""The process that was called, when it cannot start a session or finds it gone."""

from __future__ import annotations

import contextlib
import errno
import os
import signal
import socket
import subprocess
from pathlib import Path

import pytest

from tests.command_line import Run
from tests.left_behind import NO_PROCESS, failing, nothing_left
from tsmfs.session import SessionError, attendant, namespaces, registry
from tsmfs.session.attendant import Report
from tsmfs.session.front import Attended, Interrupted, Signals
from tsmfs.session.terminal import Terminal


def test_signals_are_what_they_were_when_they_cannot_be_read(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    refuse = failing(namespaces.signal_descriptor, errno.EMFILE)
    monkeypatch.setattr(namespaces, "signal_descriptor", refuse)
    with nothing_left(), pytest.raises(OSError, match="Too many open files"), Signals():
        pass


def test_a_daemon_that_is_gone_is_told_and_leaves_nothing_open() -> None:
    daemon = subprocess.Popen(["true"])
    daemon.wait()
    ours, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
    with (
        subprocess.Popen(["sleep", "100"]) as other,
        Signals() as signals,
        contextlib.closing(Terminal()) as terminal,
        ours,
        theirs,
    ):
        attended = Attended(other.pid, ours, signals, terminal)
        try:
            with (
                nothing_left(),
                pytest.raises(SessionError, match=r"^the daemon of the session died"),
            ):
                attended.wait(daemon.pid)
        finally:
            other.kill()


@pytest.mark.parametrize("told", [True, False], ids=["command runs", "before the command"])
def test_a_signal_that_comes_with_the_news_that_the_command_runs_is_passed_on(
    *, told: bool
) -> None:
    ours, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
    with (
        Signals() as signals,
        contextlib.closing(Terminal()) as terminal,
        ours,
        theirs,
    ):
        attended = Attended(os.getpid(), ours, signals, terminal)
        if told:
            attendant.send(theirs, Report.RUNNING)
        os.kill(os.getpid(), signal.SIGTERM)
        if told:
            attended._pass_on()
            assert theirs.recv(2) == bytes([signal.SIGTERM])
        else:
            with pytest.raises(Interrupted):
                attended._pass_on()


@NO_PROCESS
def test_a_daemon_that_cannot_be_started_is_told_and_leaves_nothing(
    tmp_path: Path, run: Run, monkeypatch: pytest.MonkeyPatch, name: str, number: int
) -> None:
    base = tmp_path / "run"

    def make() -> Path:
        base.mkdir()
        return base

    monkeypatch.setattr(registry, "make_runtime_directory", make)
    monkeypatch.setattr(os, name, failing(getattr(os, name), number))
    with nothing_left():
        result = run("exec", "--", "true")
    said = f"tsmfs: the daemon cannot be started: {os.strerror(number)}\n"
    assert (result.status, result.err) == (125, said)
    assert not base.exists()
