# SPDX-License-Identifier: MIT
"""A network namespace with a server that interposes, and filtered processes in it."""

from __future__ import annotations

import contextlib
import ctypes
import os
import pickle
import queue
import signal
import socket
import subprocess
import sys
import threading
import time
import traceback
from collections.abc import Callable, Sequence
from concurrent.futures import Future
from dataclasses import dataclass
from typing import Any, TypeVar

from netlink.evidence import serve_device_evidence, serve_pci_tsm
from netlink.genl import GenericNetlink
from netlink.server import Server
from netlink.transport.interpose import InterposeTransport
from netlink.transport.kernel import free_numbers
from netlink.transport.seccomp import install
from tests.netlink.devices import BDF, Device, Provider

CLONE_NEWNET = 0x40000000
PATIENCE = 20.0
"""Seconds after which a process is taken to hang."""

T = TypeVar("T")


@dataclass
class Child:
    """A filtered process."""

    pid: int
    _result: socket.socket
    _status: int | None = None

    def send(self) -> None:
        """Let a function go on that waits in :func:`wait_for_parent`."""
        self._result.send(b"go")

    def heard(self) -> bytes:
        """What the function tells by :func:`tell_parent`."""
        return self._result.recv(100)

    def end(self) -> Any:
        """What the function has returned, or RuntimeError with what it raised."""
        try:
            with self._result.makefile("rb") as stream:
                outcome = stream.read()
        finally:
            self.wait()
        assert outcome, f"the process ended without a word, status {self._status}"
        succeeded, value = pickle.loads(outcome)
        if not succeeded:
            raise RuntimeError(value)
        return value

    def kill(self, number: int = signal.SIGKILL) -> None:
        os.kill(self.pid, number)

    def wait(self) -> int:
        """Its exit status, negative for a signal."""
        self._result.close()
        if self._status is None:
            self._status = os.waitstatus_to_exitcode(os.waitpid(self.pid, 0)[1])
        return self._status


_to_parent: socket.socket | None = None


def tell_parent(text: bytes) -> None:
    """For a function in a child."""
    assert _to_parent is not None
    _to_parent.send(text)


def wait_for_parent() -> None:
    """For a function in a child: until :meth:`Child.send`."""
    assert _to_parent is not None
    assert _to_parent.recv(10)


class Session:
    """All of it runs in a thread of its own, which has its own network namespace."""

    def __init__(self) -> None:
        self.device = Device()
        self.reports: list[str] = []
        self._work: queue.Queue[Callable[[], None] | None] = queue.Queue()
        self._children: list[Child] = []
        self._thread = threading.Thread(target=self._run, daemon=True)
        self._thread.start()
        self.call(self._start)

    def call(self, function: Callable[[], T]) -> T:
        """Run a function in the thread of the session."""
        future: Future[T] = Future()

        def run() -> None:
            try:
                future.set_result(function())
            except BaseException as error:
                future.set_exception(error)

        self._work.put(run)
        return future.result(PATIENCE)

    def _run(self) -> None:
        while (work := self._work.get()) is not None:
            work()

    def _start(self) -> None:
        libc = ctypes.CDLL(None, use_errno=True)
        assert libc.unshare(CLONE_NEWNET) == 0, os.strerror(ctypes.get_errno())
        subprocess.run(["ip", "link", "set", "lo", "up"], check=True)
        self.server = Server(GenericNetlink(free_numbers(2)))
        provider = Provider(**{BDF: self.device})
        serve_pci_tsm(self.server.genl, provider)
        serve_device_evidence(self.server.genl, provider)
        self.transport = InterposeTransport(self.reports.append)
        self.server.add(self.transport)

    def start(
        self,
        function: Callable[[], object],
        *,
        reserved: range | None = None,
        filtered: bool = True,
    ) -> Child:
        """Run a function in a process, filtered unless that is not wanted."""
        child = self.call(lambda: self._fork(function, reserved, filtered))
        self._children.append(child)
        return child

    def run(self, function: Callable[[], T], **options: Any) -> T:
        """What a function returns in a filtered process."""
        result: T = self.start(function, **options).end()
        return result

    def outside(self, function: Callable[[], T]) -> T:
        """What a function returns in a process that is not filtered."""
        result: T = self.start(function, filtered=False).end()
        return result

    def command(self, *argv: str) -> str:
        """The output of a program that runs filtered."""
        return self.run(lambda: output_of(argv))

    def _fork(
        self,
        function: Callable[[], object],
        reserved: range | None,
        filtered: bool,
    ) -> Child:
        ours, theirs = socket.socketpair()
        pid = os.fork()
        if pid == 0:
            ours.close()
            _child(function, theirs, reserved, filtered)
        theirs.close()
        ours.settimeout(PATIENCE)
        if not filtered:
            return Child(pid, ours)
        _, (listener,), _, _ = socket.recv_fds(ours, 1, 1)
        if reserved is None:
            self.transport.attach(listener)
        else:
            self.transport.attach(listener, reserved)
        return Child(pid, ours)

    def close(self) -> None:
        for child in self._children:
            with contextlib.suppress(ProcessLookupError):
                if child._status is None:
                    child.kill()
                    child.wait()
        self.call(self.server.close)
        self._work.put(None)
        self._thread.join()


def _child(
    function: Callable[[], object],
    result: socket.socket,
    reserved: range | None,
    filtered: bool,
) -> None:
    global _to_parent
    _to_parent = result
    try:
        signal.alarm(int(PATIENCE))
        if filtered:
            listener = install(reserved)
            socket.send_fds(result, [b"l"], [listener])
            os.close(listener)
        try:
            outcome = pickle.dumps((True, function()))
        except BaseException:
            outcome = pickle.dumps((False, traceback.format_exc()))
        result.sendall(outcome)
    except BaseException:
        traceback.print_exc()
    finally:
        sys.stdout.flush()
        os._exit(0)


def output_of(argv: Sequence[str]) -> str:
    """What a program writes; RuntimeError with it when it fails."""
    done = subprocess.run(argv, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True)
    if done.returncode:
        raise RuntimeError(f"{argv} ended with {done.returncode}: {done.stdout}")
    return done.stdout


def eventually(condition: Callable[[], bool]) -> bool:
    """Whether something comes true before it is taken to hang."""
    end = time.monotonic() + PATIENCE
    while not condition():
        if time.monotonic() > end:
            return False
        time.sleep(0.01)
    return True
