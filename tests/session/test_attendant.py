# SPDX-License-Identifier: MIT
"""COMMAND and the process beside it: how it starts, what it is told, what is told of it."""

from __future__ import annotations

import contextlib
import errno
import os
import signal
import socket
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from tests.left_behind import failing, nothing_left
from tsmfs.session import SessionError, attendant
from tsmfs.session.attendant import Command, Report, attend, fork, receive

SECONDS = 10


def command(*arguments: str, path: str = "/usr/bin:/bin") -> Command:
    return Command(arguments, {"PATH": path}, "/", frozenset())


class Attended:
    """A child that attends COMMAND, as the process outside has it."""

    def __init__(self, pid: int, channel: socket.socket) -> None:
        self.pid = pid
        self.channel = channel
        channel.settimeout(SECONDS)

    def report(self) -> tuple[Report, bytes] | None:
        return receive(self.channel)

    def send(self, number: int) -> None:
        self.channel.send(bytes([number]))

    def status(self) -> int:
        return os.waitstatus_to_exitcode(os.waitpid(self.pid, 0)[1])


def attending(wanted: Command) -> contextlib.AbstractContextManager[Attended]:
    return attended_by(lambda channel: attend(wanted, channel))


@contextlib.contextmanager
def attended_by(work: Callable[[socket.socket], int]) -> Iterator[Attended]:
    before = signal.pthread_sigmask(signal.SIG_BLOCK, signal.valid_signals() - {signal.SIGABRT})
    try:
        attended = Attended(*fork(work))
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, before)
    with attended.channel:
        yield attended


@pytest.mark.parametrize(
    ("script", "status"), [("exit 0", 0), ("exit 42", 42), ("kill -TERM $$", 128 + 15)]
)
def test_status_is_that_of_the_command(script: str, status: int) -> None:
    with attending(command("sh", "-c", script)) as attended:
        assert attended.report() == (Report.RUNNING, b"")
        assert attended.report() is None
        assert attended.status() == status


@pytest.mark.parametrize(
    ("name", "status", "reason"),
    [
        ("nosuchcommand", 127, "No such file or directory"),
        ("/nosuch/command", 127, "No such file or directory"),
        ("/etc/passwd/x", 127, "Not a directory"),
        ("/etc/passwd", 126, "Permission denied"),
        ("/", 126, "Permission denied"),
        ("", 127, "No such file or directory"),
    ],
)
def test_command_that_cannot_be_run(
    capfd: pytest.CaptureFixture[str], name: str, status: int, reason: str
) -> None:
    with attending(command(name)) as attended:
        assert attended.status() == status
    assert capfd.readouterr().err == f"tsmfs: exec: {name}: {reason}\n"


def test_a_file_that_may_not_be_run_is_told_before_one_that_is_not_there(
    tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "program").touch()
    with attending(command("program", path=f"{tmp_path}:/nosuch")) as attended:
        assert attended.status() == 126
    assert capfd.readouterr().err == "tsmfs: exec: program: Permission denied\n"


def test_path_is_searched_in_order(tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    for number in (1, 2):
        program = tmp_path / str(number) / "program"
        program.parent.mkdir()
        program.write_text(f"#!/bin/sh\necho {number}\n")
        program.chmod(0o755)
    with attending(command("program", path=f"/nosuch:{tmp_path}/1:{tmp_path}/2")) as attended:
        assert attended.status() == 0
    assert capfd.readouterr().out == "1\n"


def test_script_without_interpreter_is_for_the_shell(
    tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    script = tmp_path / "script"
    script.write_text("echo $0 $1\n")
    script.chmod(0o755)
    with attending(command("script", "x", path=str(tmp_path))) as attended:
        assert attended.status() == 0
    assert capfd.readouterr().out == f"{script} x\n"


def test_signals_are_as_the_caller_had_them(capfd: pytest.CaptureFixture[str]) -> None:
    shown = ("grep", "-E", "^Sig(Blk|Ign)", "/proc/self/status")
    mask = frozenset({int(signal.SIGUSR2)})
    with attending(Command(shown, {"PATH": "/usr/bin:/bin"}, "/", mask)) as attended:
        assert attended.status() == 0
    words = capfd.readouterr().out.split()
    assert int(words[1], 16) == 1 << (signal.SIGUSR2 - 1)
    assert not int(words[3], 16) & 1 << (signal.SIGPIPE - 1)


def test_signals_are_passed_on() -> None:
    with attending(command("sh", "-c", "trap 'exit 7' USR1; kill -STOP $$; sleep 9")) as attended:
        assert attended.report() == (Report.RUNNING, b"")
        assert attended.report() == (Report.STOPPED, bytes([signal.SIGSTOP]))
        attended.send(signal.SIGUSR1)
        attended.send(signal.SIGCONT)
        assert attended.status() == 7


def test_a_command_that_can_be_seen_to_run_was_told_to_run(tmp_path: Path) -> None:
    """Also when its attendant has not got any further than the fork."""
    fifo = tmp_path / "fifo"
    os.mkfifo(fifo)
    real = os.fork

    def fork_and_stop() -> int:
        child = real()
        if child:
            assert fifo.read_text() == "ready\n"
            os.kill(os.getpid(), signal.SIGSTOP)
        return child

    def attend_slowly(channel: socket.socket) -> int:
        os.fork = fork_and_stop
        return attend(command("sh", "-c", f"echo ready >{fifo}"), channel)

    with attended_by(attend_slowly) as attended:
        os.waitpid(attended.pid, os.WUNTRACED)
        attended.channel.setblocking(False)
        told = attended.report()
        os.kill(attended.pid, signal.SIGCONT)
        assert told == (Report.RUNNING, b"")
        assert attended.status() == 0


def test_a_command_that_cannot_be_started_was_never_told_to_run() -> None:
    def attend_without_forks(channel: socket.socket) -> int:
        os.fork = failing(os.fork, errno.EAGAIN)
        return attend(command("true"), channel)

    with attended_by(attend_without_forks) as attended:
        said = b"COMMAND cannot be started: Resource temporarily unavailable"
        assert attended.report() == (Report.FAILED, said)
        assert attended.report() is None
        assert attended.status() == attendant.EXIT_FAILED


@pytest.mark.parametrize(
    ("ignored", "status"), [(False, 128 + signal.SIGINT), (True, 0)], ids=["handled", "ignored"]
)
def test_an_interrupt_that_waits_is_the_command_s(
    capfd: pytest.CaptureFixture[str], *, ignored: bool, status: int
) -> None:
    def interrupt() -> None:
        os.kill(os.getpid(), signal.SIGINT)

    wanted = Command(("true",), {"PATH": "/usr/bin:/bin"}, "/", frozenset(), interrupt)
    if ignored:
        before = signal.signal(signal.SIGINT, signal.SIG_IGN)
    try:
        with attending(wanted) as attended:
            assert attended.status() == status
    finally:
        if ignored:
            signal.signal(signal.SIGINT, before)
    assert capfd.readouterr().err == ""


def test_stop_and_continuation_are_told() -> None:
    with attending(command("sh", "-c", "kill -STOP $$; read -r x </dev/zero")) as attended:
        assert attended.report() == (Report.RUNNING, b"")
        assert attended.report() == (Report.STOPPED, bytes([signal.SIGSTOP]))
        attended.send(signal.SIGCONT)
        assert {attended.report(), attended.report()} == {
            (Report.PASSED_ON, b""),
            (Report.CONTINUED, b""),
        }
        attended.send(signal.SIGKILL)
        assert attended.status() == 128 + signal.SIGKILL


def test_command_gets_a_hangup_when_nobody_is_outside(tmp_path: Path) -> None:
    fifo = tmp_path / "fifo"
    os.mkfifo(fifo)
    script = (
        f"trap 'echo hangup >{fifo}; exit' HUP; echo ready >{fifo}; while :; do sleep 0.01; done"
    )
    with attending(command("sh", "-c", script)) as attended:
        assert attended.report() == (Report.RUNNING, b"")
        assert fifo.read_text() == "ready\n"
    assert fifo.read_text() == "hangup\n"
    assert attended.status() == 128 + signal.SIGHUP


@pytest.mark.parametrize(
    ("error", "text"),
    [
        (SessionError("why"), b"why"),
        (OSError(2, "text"), b"text"),
        (FileNotFoundError(2, "text", "/path"), b"/path: text"),
        (KeyError("x"), b"the session failed: KeyError('x')"),
    ],
)
def test_failure_before_the_command_is_one_report(error: Exception, text: bytes) -> None:
    def work(_: socket.socket) -> int:
        raise error

    attended = Attended(*fork(work))
    assert attended.report() == (Report.FAILED, text)
    assert attended.status() == attendant.EXIT_FAILED
    attended.channel.close()


def test_an_attendant_that_cannot_be_started_leaves_nothing(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(os, "fork", failing(os.fork, errno.EAGAIN))
    said = "^COMMAND cannot be started: Resource temporarily unavailable$"
    with nothing_left(), pytest.raises(SessionError, match=said):
        fork(lambda _: 0)


def test_descriptors_of_the_caller_are_those_that_can_be_inherited() -> None:
    reader, writer = os.pipe()
    assert not {reader, writer} & attendant.inheritable()
    os.set_inheritable(writer, True)
    assert attendant.inheritable() & {reader, writer} == {writer}
    os.close(reader)
    os.close(writer)


def test_all_other_descriptors_are_closed() -> None:
    reader, writer = os.pipe()

    def work(channel: socket.socket) -> int:
        attendant.close_all_but(channel, frozenset({0, 1, 2, writer}))
        os.write(writer, b"x")
        try:
            os.fstat(reader)
        except OSError:
            return 0
        return 1

    attended = Attended(*fork(work))
    assert attended.status() == 0
    assert os.read(reader, 1) == b"x"
    os.close(reader)
    os.close(writer)
    attended.channel.close()


def test_an_attendant_knows_that_it_is_alone() -> None:
    ours, theirs = socket.socketpair()
    assert not attendant.is_alone(theirs)
    ours.close()
    assert attendant.is_alone(theirs)
    theirs.close()
