# SPDX-License-Identifier: MIT
"""Process number 1 of a session: it arranges what the session sees, and attends COMMAND.

When it ends, the kernel kills all other processes of the session.
"""

from __future__ import annotations

import contextlib
import errno
import os
import signal
import socket
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path

from netlink.transport import seccomp
from tsmfs.session import SessionError, attendant, namespaces, root, supervisor
from tsmfs.session.attendant import Command
from tsmfs.session.environment import INSTALLATION
from tsmfs.session.namespaces import Namespace
from tsmfs.session.registry import SessionDirectory

_GO = b"\0"
"""Lets COMMAND start; no signal has this number."""

_NO_INTERPOSITION = {
    errno.EBUSY: "another session or container around this one has it",
    errno.ENOSYS: "this kernel lacks it",
    errno.EINVAL: "this kernel lacks it",
}


@dataclass(frozen=True, slots=True)
class Plan:
    """What the first process of a session does before it runs COMMAND."""

    directory: SessionDirectory
    daemon: int
    """The process whose namespaces it enters."""
    kept: tuple[Path, ...]
    """What stays visible below /run."""
    services: Callable[[Mapping[str, str]], None]
    """Called before COMMAND with its environment; SessionError ends the session."""


def start(
    plan: Plan, command: Command, handover: socket.socket, inherited: frozenset[int]
) -> tuple[int, socket.socket]:
    """Fork it: its pid out here, and the channel to it. COMMAND waits for :func:`go`.

    The next child of this process has to be the first of a PID namespace, and all signals blocked.
    """

    def work(channel: socket.socket) -> int:
        namespaces.die_with_parent(signal.SIGKILL)
        if attendant.is_alone(channel):
            raise SessionError("the session was killed before it began")
        _enter_namespaces(plan.daemon)
        kept = (*plan.kept, *INSTALLATION, Path(command.directory))
        for line in (*root.arrange(plan.directory, kept), *root.go_to(command.directory)):
            attendant.say(line)
        interpose(handover)
        attendant.close_all_but(channel, inherited)
        plan.services(command.environment)
        if not channel.recv(len(_GO)):
            raise SessionError("the session was killed before it began")
        return attendant.attend(command, channel)

    return attendant.fork(work)


def go(channel: socket.socket) -> None:
    """Let COMMAND start once all is arranged; nothing happens when its attendant has ended."""
    with contextlib.suppress(OSError):
        channel.send(_GO, socket.MSG_NOSIGNAL)


def _enter_namespaces(daemon: int) -> None:
    """Be where the daemon is, but for the processes."""
    # The root directory of the daemon need not be that of its namespace.
    top = os.open(f"/proc/{daemon}/root", os.O_PATH | os.O_DIRECTORY | os.O_CLOEXEC)
    for kind in (Namespace.NET, Namespace.MOUNT):
        name = namespaces.NAMESPACE_FILES[kind]
        descriptor = os.open(f"/proc/{daemon}/ns/{name}", os.O_RDONLY | os.O_CLOEXEC)
        namespaces.setns(descriptor, kind)
        os.close(descriptor)
    os.fchdir(top)
    os.chroot(".")
    os.close(top)


def interpose(handover: socket.socket) -> None:
    """Let the daemon answer generic netlink for this process and all that it starts.

    Says in a line when that cannot be had: everything else works without.
    """
    reserved = seccomp.reserved_numbers()
    try:
        listener = seccomp.install(reserved)
    except OSError as error:
        reason = _NO_INTERPOSITION.get(error.errno or 0, error.strerror)
        attendant.say(
            f"generic netlink is what it is outside, for want of a seccomp listener: {reason}"
        )
        return
    try:
        supervisor.hand_over(handover, listener, reserved)
    finally:
        os.close(listener)
