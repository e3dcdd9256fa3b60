# SPDX-License-Identifier: MIT
"""The process that was called: it starts a session, stands for COMMAND outside, and cleans up."""

from __future__ import annotations

import contextlib
import fcntl
import os
import select
import signal
import socket
import struct
import time
from collections.abc import Callable, Collection, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType

from tsmfs.daemon import READY, STOP_SECONDS, MachineRequest, find_binding
from tsmfs.session import (
    SessionError,
    attendant,
    environment,
    init,
    namespaces,
    registry,
    supervisor,
)
from tsmfs.session.attendant import Command, Report
from tsmfs.session.init import Plan
from tsmfs.session.namespaces import Namespace
from tsmfs.session.registry import Record, SessionDirectory
from tsmfs.session.supervisor import Supervisor
from tsmfs.session.terminal import Terminal, lead_foreground
from tsmfs.umount import MountError

_FAULTS = {
    *(signal.SIGSEGV, signal.SIGBUS, signal.SIGFPE, signal.SIGILL, signal.SIGTRAP),
    *(signal.SIGABRT, signal.SIGSYS, signal.SIGPIPE, signal.SIGKILL, signal.SIGSTOP),
}
"""Never blocked: they cannot be, or tell of an error in this process."""

_ENDING = (signal.SIGHUP, signal.SIGINT, signal.SIGQUIT, signal.SIGTERM)
"""End a session that has not started COMMAND yet."""

_FROM_PROCESS = (0, -1, -6)
"""``SI_USER``, ``SI_QUEUE`` and ``SI_TKILL`` (sigaction(2))."""

_SIGINFO = struct.Struct("=Iii116x")
"""``struct signalfd_siginfo``: number, errno, code."""

_DAEMON_DIED = "the daemon of the session died, and the session with it"

_PATIENCE = STOP_SECONDS + 2.0
"""Seconds after which a daemon that does not end is killed."""


@dataclass(frozen=True, slots=True)
class Program:
    """What to run in a session."""

    arguments: tuple[str, ...]
    """COMMAND and its arguments."""
    variables: Mapping[str, str]
    """Environment variables, to which those of the session are added."""
    is_shell: bool = False
    """Whether it does job control itself, and so wants a process group of its own."""

    def command(self, name: str, mask: Collection[int], terminal: Terminal) -> Command:
        """It as it is to run in session *name*, begun at *terminal* with some signals blocked."""
        leads = self.is_shell and terminal.is_ours()
        return Command(
            arguments=self.arguments,
            environment=environment.of_session(self.variables, name),
            directory=_working_directory(),
            mask=frozenset(mask),
            prepare=lead_foreground if leads else lambda: None,
        )


@dataclass(frozen=True, slots=True)
class SessionRequest:
    """What to run, and in which machine."""

    program: Program
    machine: MachineRequest
    name: str | None = None
    """Name of the session; None for one made from the machine's and the pid."""
    kept: tuple[Path, ...] = ()
    """What stays visible below /run."""
    services: Callable[[Mapping[str, str]], None] = lambda _: None
    """Called in the session before COMMAND with its environment; SessionError ends it."""


class Interrupted(Exception):  # noqa: N818
    """A signal ended the session before COMMAND ran."""

    def __init__(self, number: int) -> None:
        super().__init__(signal.strsignal(number))
        self.number = number


class Signals:
    """The signals to this process, all of them blocked and read from a descriptor instead."""

    def __enter__(self) -> Signals:
        wanted = signal.valid_signals() - _FAULTS
        self.before = signal.pthread_sigmask(signal.SIG_BLOCK, wanted)
        try:
            self.descriptor = namespaces.signal_descriptor(wanted)
        except BaseException:
            signal.pthread_sigmask(signal.SIG_SETMASK, self.before)
            raise
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        # What has come by now was for COMMAND, and would end this process or make it stop.
        for _ in self.read():
            pass
        os.close(self.descriptor)
        signal.pthread_sigmask(signal.SIG_SETMASK, self.before)

    def read(self) -> Iterator[tuple[int, int]]:
        """What has come: number and ``si_code`` of each."""
        while True:
            try:
                info = os.read(self.descriptor, _SIGINFO.size)
            except BlockingIOError:
                return
            number, _, code = _SIGINFO.unpack(info)
            yield number, code


class Attended:
    """The attendant of COMMAND, as the process outside sees it."""

    def __init__(
        self, pid: int, channel: socket.socket, signals: Signals, terminal: Terminal
    ) -> None:
        self._pid = pid
        self._channel = channel
        self._signals = signals
        self._terminal = terminal
        self._running = False
        self._out_of_date = 0
        self._status: int | None = None
        # A message continues this process, which stops when COMMAND does.
        fcntl.fcntl(channel, fcntl.F_SETOWN, os.getpid())
        fcntl.fcntl(channel, fcntl.F_SETSIG, signal.SIGCONT)
        fcntl.fcntl(channel, fcntl.F_SETFL, os.O_NONBLOCK | os.O_ASYNC)

    def wait(self, daemon: int) -> int:
        """Pass signals on until COMMAND has ended; returns its exit status.

        SessionError when it did not run, or the process *daemon* ended; Interrupted.
        """
        with contextlib.ExitStack() as stack:
            own = os.pidfd_open(self._pid)
            stack.callback(os.close, own)
            try:
                other = os.pidfd_open(daemon)
            except ProcessLookupError as error:
                raise SessionError(_DAEMON_DIED) from error
            stack.callback(os.close, other)
            poll = select.poll()
            for descriptor in (own, other, self._channel.fileno(), self._signals.descriptor):
                poll.register(descriptor, select.POLLIN)
            while True:
                ready = {key for key, _ in poll.poll()}
                if own in ready:
                    return self._ended()
                if other in ready:
                    raise SessionError(_DAEMON_DIED)
                if self._channel.fileno() in ready and not self._read():
                    poll.unregister(self._channel)
                if self._signals.descriptor in ready:
                    self._pass_on()

    def end(self) -> None:
        """Kill the attendant if it is still there, and set the terminal right."""
        if self._status is None:
            os.kill(self._pid, signal.SIGKILL)
            os.waitpid(self._pid, 0)
        self._terminal.take_back()
        if self._status is None or self._status > 128:
            self._terminal.restore_modes()
        self._channel.close()

    def _read(self) -> bool:
        """Read one message; False when there are no more."""
        message = attendant.receive(self._channel)
        match message:
            case (Report.FAILED, text):
                raise SessionError(text.decode(errors="replace"))
            case (Report.RUNNING, _):
                self._running = True
            case (Report.PASSED_ON, _):
                self._out_of_date -= 1
            case (Report.STOPPED, number) if not self._out_of_date:
                self._stop(number[0])
        return message is not None

    def _pass_on(self) -> None:
        if not self._running:
            # It may have come since the channel was looked at, and the signal because of it.
            self._read()
        for number, code in self._signals.read():
            if not self._running and number in _ENDING:
                raise Interrupted(number)
            # Those of the terminal COMMAND has got as well.
            if number != signal.SIGCHLD and code in _FROM_PROCESS:
                self._send(number)

    def _send(self, number: int) -> None:
        with contextlib.suppress(OSError):
            self._channel.send(bytes([number]), socket.MSG_NOSIGNAL)
            # Until it has arrived, COMMAND may be told to be stopped which then runs.
            self._out_of_date += number == signal.SIGCONT

    def _stop(self, number: int) -> None:
        """Stop as COMMAND has, so that the shell of this process notices; and continue it."""
        group = self._terminal.foreground_inside()
        # The kernel does not let this one stop a process that no shell could continue.
        number = signal.SIGTSTP if number == signal.SIGSTOP else number
        os.kill(os.getpid(), number)
        signal.pthread_sigmask(signal.SIG_UNBLOCK, [number])
        signal.pthread_sigmask(signal.SIG_BLOCK, [number])
        self._terminal.hand_to(group)
        # Who is in the process group of this one has been continued with it, others have not.
        signal.sigtimedwait([signal.SIGCONT], 0)
        self._send(signal.SIGCONT)

    def _ended(self) -> int:
        _, status = os.waitpid(self._pid, 0)
        code = os.waitstatus_to_exitcode(status)
        self._status = code if code >= 0 else 128 - code
        while (message := attendant.receive(self._channel)) is not None:
            if message[0] is Report.FAILED:
                raise SessionError(message[1].decode(errors="replace"))
        if code < 0:
            raise SessionError("the session was killed, and COMMAND with it")
        return self._status


def run_session(request: SessionRequest) -> int:
    """Run COMMAND in a session of its own; returns its exit status.

    SessionError when the session does not start or breaks, Interrupted when a signal ended it
    before COMMAND ran. However it ends, nothing is left.
    """
    try:
        binding = find_binding()
    except MountError as error:
        raise SessionError(f"{error}; without FUSE only 'tsmfs machine' works") from error
    inherited = attendant.inheritable()
    fill_standard_streams()
    name = request.name or registry.default_name(request.machine.machine, os.getpid())
    with contextlib.ExitStack() as stack:
        signals = stack.enter_context(Signals())
        directory, lock = registry.create(name)
        stack.callback(directory.remove)
        try:
            daemon = supervisor.start(request.machine, binding, directory, lock)
        finally:
            os.close(lock)
        stack.callback(_end, daemon.pid)
        _wait_until_ready(daemon, signals)
        _enter(daemon.pid)
        terminal = stack.enter_context(contextlib.closing(Terminal()))
        command = request.program.command(name, signals.before, terminal)
        plan = Plan(directory, daemon.pid, request.kept, request.services)
        pid, channel = init.start(plan, command, daemon.handover, inherited)
        daemon.handover.close()
        attended = Attended(pid, channel, signals, terminal)
        stack.callback(attended.end)
        _publish(directory, request, daemon.pid, pid)
        # Whoever sees something of COMMAND finds the session.
        init.go(channel)
        return attended.wait(daemon.pid)


def fill_standard_streams() -> None:
    """Keep the descriptors 0 to 2 from other uses when the caller has closed them."""
    while (descriptor := os.open(os.devnull, os.O_RDWR | os.O_CLOEXEC)) <= 2:
        pass
    os.close(descriptor)


def _working_directory() -> str:
    try:
        return os.getcwd()
    except FileNotFoundError:
        attendant.say("the working directory is /: that of the caller is gone")
        return "/"


def _publish(directory: SessionDirectory, request: SessionRequest, daemon: int, pid: int) -> None:
    directory.publish(
        Record(
            name=directory.name,
            machine=request.machine.machine,
            command=request.program.arguments,
            front=os.getpid(),
            daemon=daemon,
            init=pid,
            started=time.time(),
        )
    )


def _wait_until_ready(daemon: Supervisor, signals: Signals) -> None:
    """Return when the machine can be read; SessionError when it does not start; Interrupted."""
    poll = select.poll()
    poll.register(daemon.ready, select.POLLIN)
    poll.register(signals.descriptor, select.POLLIN)
    answer = b""
    try:
        while True:
            ready = {key for key, _ in poll.poll()}
            if signals.descriptor in ready:
                for number, _ in signals.read():
                    if number in _ENDING:
                        raise Interrupted(number)
            if daemon.ready in ready:
                part = os.read(daemon.ready, 1 << 16)
                answer += part
                if answer == READY:
                    return
                if not part:
                    raise SessionError(answer.decode(errors="replace") or "the daemon died")
    finally:
        os.close(daemon.ready)


def _enter(daemon: int) -> None:
    """Be in the user namespace of the daemon, and let the next child be first of its own PIDs."""
    if not namespaces.same(daemon, Namespace.USER):
        descriptor = os.open(f"/proc/{daemon}/ns/user", os.O_RDONLY | os.O_CLOEXEC)
        namespaces.setns(descriptor, Namespace.USER)
        os.close(descriptor)
    try:
        namespaces.unshare(Namespace.PID)
    except OSError as error:
        raise SessionError(
            f"no PID namespace here ({error.strerror}); 'tsmfs mount DIR' works without"
        ) from error


def _end(daemon: int) -> None:
    """End the daemon, and wait for it."""
    os.kill(daemon, signal.SIGTERM)
    descriptor = os.pidfd_open(daemon)
    if not select.select([descriptor], [], [], _PATIENCE)[0]:
        os.kill(daemon, signal.SIGKILL)
    os.close(descriptor)
    os.waitpid(daemon, 0)
