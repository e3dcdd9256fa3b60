# SPDX-License-Identifier: MIT
"""The process beside COMMAND in the session: starts it, passes signals on, tells how it does.

It is number 1 of the session, or a process that entered it. The process outside, whose child it
is, sees nothing of COMMAND; they talk through a socket, a message at a time.
"""

from __future__ import annotations

import contextlib
import enum
import errno
import os
import select
import signal
import socket
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from typing import NoReturn

from tsmfs.kernel.errors import fail
from tsmfs.oserror import reason
from tsmfs.session import SessionError, namespaces

EXIT_FAILED = 125
"""The status of env(1) and others for a failure of their own, before COMMAND runs."""

EXIT_NOT_EXECUTABLE = 126
EXIT_NOT_FOUND = 127
"""The statuses of a shell for a command that cannot be run."""

_MESSAGE_SIZE = 4096
_DEFAULT_PATH = "/bin:/usr/bin"
_SHELL = "/bin/sh"


class Report(enum.Enum):
    """What the attendant tells; a message is one of these, and a text or a number behind it."""

    FAILED = b"F"
    """COMMAND will not run: one line that says why."""
    RUNNING = b"R"
    """COMMAND runs: told by the process that becomes it, before anybody can see that it does."""
    STOPPED = b"S"
    """COMMAND was stopped: by which signal, in one byte."""
    CONTINUED = b"C"
    """COMMAND runs again."""
    PASSED_ON = b"P"
    """COMMAND has got the SIGCONT that was passed on: what was told before is out of date."""


@dataclass(frozen=True, slots=True)
class Command:
    """What to run."""

    arguments: tuple[str, ...]
    environment: Mapping[str, str]
    directory: str
    """The working directory."""
    mask: frozenset[int]
    """The signals that are blocked when it starts."""
    prepare: Callable[[], None] = lambda: None
    """Called in the process that is to be COMMAND, with all signals blocked."""


def fork(work: Callable[[socket.socket], int]) -> tuple[int, socket.socket]:
    """Start an attendant, which ends with the status that *work* returns.

    Returns its pid and the channel to it; *work* gets its own end. What it raises is reported as
    :attr:`Report.FAILED`. All signals have to be blocked. SessionError when there can be no such
    process.
    """
    ours, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
    with contextlib.ExitStack() as undo, theirs:
        undo.callback(ours.close)
        pid = _fork()
        if pid == 0:
            ours.close()
            _live(work, theirs)
        undo.pop_all()
    return pid, ours


def _fork() -> int:
    try:
        return os.fork()
    except OSError as error:
        raise SessionError(f"COMMAND cannot be started: {error.strerror}") from error


def _live(work: Callable[[socket.socket], int], channel: socket.socket) -> NoReturn:
    status = EXIT_FAILED
    try:
        status = work(channel)
    except SessionError as error:
        send(channel, Report.FAILED, str(error).encode(errors="replace"))
    except OSError as error:
        send(channel, Report.FAILED, reason(error).encode(errors="replace"))
    except BaseException as error:
        send(channel, Report.FAILED, f"the session failed: {error!r}".encode(errors="replace"))
    finally:
        os._exit(status)


def say(text: str) -> None:
    """Write a line to standard error, which is that of COMMAND as well."""
    with contextlib.suppress(OSError):
        os.write(2, f"tsmfs: {text}\n".encode(errors="replace"))


def send(channel: socket.socket, report: Report, detail: bytes = b"") -> None:
    """Tell the process outside; nothing happens when it has gone."""
    with contextlib.suppress(OSError):
        channel.send(report.value + detail, socket.MSG_NOSIGNAL)


def receive(channel: socket.socket) -> tuple[Report, bytes] | None:
    """The next message of the attendant; None when it has closed its end."""
    try:
        message = channel.recv(_MESSAGE_SIZE)
    except OSError:
        return None
    return (Report(message[:1]), message[1:]) if message else None


def is_alone(channel: socket.socket) -> bool:
    """Whether the process outside has gone."""
    poll = select.poll()
    poll.register(channel, 0)
    return bool(poll.poll(0))


def close_all_but(channel: socket.socket, inherited: frozenset[int]) -> None:
    """Close every file that this program has opened: nobody shall find one through /proc."""
    for name in os.listdir("/proc/self/fd"):
        descriptor = int(name)
        if descriptor != channel.fileno() and descriptor not in inherited:
            with contextlib.suppress(OSError):
                os.close(descriptor)


def inheritable() -> frozenset[int]:
    """The descriptors that COMMAND gets from whoever called this program."""
    found = set()
    for name in os.listdir("/proc/self/fd"):
        # That of the directory itself is gone by now.
        with contextlib.suppress(OSError):
            if os.get_inheritable(int(name)):
                found.add(int(name))
    return frozenset(found)


def attend(command: Command, channel: socket.socket) -> int:
    """Run COMMAND to its end; returns its exit status, or 128 and the signal that killed it.

    All signals have to be blocked. When the process outside goes, COMMAND gets SIGHUP.
    """
    descriptor = namespaces.signal_descriptor([signal.SIGCHLD])
    child = _fork()
    if child == 0:
        _execute(command, channel)
    poll = select.poll()
    poll.register(descriptor, select.POLLIN)
    poll.register(channel, select.POLLIN)
    while True:
        ready = {key for key, _ in poll.poll()}
        if descriptor in ready:
            os.read(descriptor, _MESSAGE_SIZE)
            for status in _reap(child):
                if os.WIFSTOPPED(status):
                    send(channel, Report.STOPPED, bytes([os.WSTOPSIG(status)]))
                elif os.WIFCONTINUED(status):
                    send(channel, Report.CONTINUED)
                else:
                    code = os.waitstatus_to_exitcode(status)
                    return code if code >= 0 else 128 - code
        if channel.fileno() in ready:
            message = channel.recv(1)
            if not message:
                os.kill(child, signal.SIGHUP)
                return 128 + signal.SIGHUP
            os.kill(child, message[0])
            if message[0] == signal.SIGCONT:
                send(channel, Report.PASSED_ON)


def _reap(child: int) -> Iterator[int]:
    """The changes of state of *child*; all other children are reaped on the way."""
    while True:
        try:
            pid, status = os.waitpid(-1, os.WNOHANG | os.WUNTRACED | os.WCONTINUED)
        except ChildProcessError:
            return
        if pid == 0:
            return
        if pid == child:
            yield status


def _execute(command: Command, channel: socket.socket) -> NoReturn:
    """Become COMMAND, or end with the status that says why not."""
    name = command.arguments[0]
    status = EXIT_NOT_EXECUTABLE
    try:
        # Python ignores these, and its programs' children should not.
        for number in (signal.SIGPIPE, signal.SIGXFSZ):
            signal.signal(number, signal.SIG_DFL)
        # One that waits to be delivered is for COMMAND; what the caller ignores stays ignored.
        if signal.getsignal(signal.SIGINT) != signal.SIG_IGN:
            signal.signal(signal.SIGINT, signal.SIG_DFL)
        send(channel, Report.RUNNING)
        command.prepare()
        signal.pthread_sigmask(signal.SIG_SETMASK, command.mask)
        _exec_from_path(command)
    except OSError as error:
        say(f"exec: {name}: {error.strerror}")
        if error.errno in (errno.ENOENT, errno.ENOTDIR):
            status = EXIT_NOT_FOUND
    except ValueError as error:
        say(f"exec: {name}: {error}")
    finally:
        os._exit(status)


def _exec_from_path(command: Command) -> None:
    """``execvpe()``: OSError when it fails, that of a file found before that of one not found."""
    name = command.arguments[0]
    if not name:
        fail(errno.ENOENT)
    if "/" in name:
        _exec(name, command)
    worst = errno.ENOENT
    for directory in command.environment.get("PATH", _DEFAULT_PATH).split(":"):
        path = os.path.join(directory or ".", name)
        try:
            _exec(path, command)
        except OSError as error:
            # In a directory that the user may not search there is nothing for him.
            if os.path.lexists(path):
                worst = error.errno or errno.EACCES
    fail(worst)


def _exec(path: str, command: Command) -> None:
    try:
        os.execve(path, command.arguments, command.environment)
    except OSError as error:
        if error.errno != errno.ENOEXEC:
            raise
    # A script without the line that says what reads it.
    os.execve(_SHELL, (_SHELL, path, *command.arguments[1:]), command.environment)
