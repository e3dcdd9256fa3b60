# SPDX-License-Identifier: MIT
"""The daemon of a session: it makes the namespaces, serves the machine, and outlives nobody.

It stays outside of the session's process IDs, in a mount namespace of its own that still has the
host's /proc. So nobody in the session sees it, and the process IDs that FUSE and seccomp tell it
are those of its /proc.
"""

from __future__ import annotations

import contextlib
import errno
import logging
import os
import select
import signal
import socket
import struct
import threading
from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING

from tsmfs import fs
from tsmfs.daemon import (
    STOP_SIGNALS,
    MachineRequest,
    Stages,
    send_uevents,
    serve,
    start_daemon,
    write_ready,
)
from tsmfs.session import SessionError, namespaces, network
from tsmfs.session.namespaces import CAP_SYS_ADMIN, Namespace
from tsmfs.session.registry import SessionDirectory
from tsmfs.umount import MountError

if TYPE_CHECKING:
    from tsmfs.kernel.printk import Log
    from tsmfs.machine import Machine

TAKEN = b"\0"
"""The answer to a listener that was handed over; any other is why it was not taken."""

_UCRED = struct.Struct("=iII")
_MESSAGE_SIZE = 256
_RESERVED = struct.Struct("=II")


@dataclass(frozen=True, slots=True)
class Supervisor:
    """The daemon as the process that started it sees it."""

    pid: int
    ready: int
    """A pipe with :data:`tsmfs.daemon.READY`, or in one line why the machine does not start."""
    handover: socket.socket
    """For the first process of the session, to hand over its listener."""


def start(
    request: MachineRequest, binding: fs.Binding, directory: SessionDirectory, lock: int
) -> Supervisor:
    """Start the daemon; it keeps *lock* open. All signals have to be blocked.

    SessionError when there can be no such process.
    """
    front = os.getpid()
    ours, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)

    def work(pipe: int) -> None:
        signal.pthread_sigmask(signal.SIG_SETMASK, STOP_SIGNALS)
        _make_namespaces()
        namespaces.die_with_parent(signal.SIGTERM)
        if os.getppid() != front:
            raise MountError("the session was killed before it began")
        stages = _Stages(directory, theirs, lambda: write_ready(pipe))
        serve(request, directory.machine, binding, stages)
        directory.remove()

    with contextlib.ExitStack() as undo, theirs:
        undo.callback(ours.close)
        try:
            pid, reader = start_daemon(work, [lock, theirs.fileno()])
        except MountError as error:
            raise SessionError(str(error)) from error
        undo.pop_all()
    return Supervisor(pid, reader, ours)


def hand_over(connection: socket.socket, listener: int, reserved: range) -> None:
    """Give the listener of a seccomp filter, which has *reserved* descriptors, to the daemon.

    Returns when system calls are answered. OSError when the daemon does not take it.
    """
    socket.send_fds(connection, [_RESERVED.pack(reserved.start, reserved.stop)], [listener])
    try:
        answer = connection.recv(_MESSAGE_SIZE)
    except ConnectionError:
        answer = b""
    if answer != TAKEN:
        raise OSError(errno.EPROTO, answer.decode(errors="replace") or "the daemon has gone")


def _make_namespaces() -> None:
    if os.geteuid() != 0 or not namespaces.has_capability(CAP_SYS_ADMIN):
        try:
            namespaces.become_root_of_user_namespace()
        except OSError as error:
            raise MountError(
                "who is not root needs a user namespace for a session, and gets none here "
                f"({error.strerror}; see user.max_user_namespaces and AppArmor's restriction); "
                "'tsmfs mount DIR' works without"
            ) from error
    try:
        network.enter_new_network()
        namespaces.unshare(Namespace.MOUNT)
        namespaces.make_mounts_private()
        namespaces.bring_up_loopback()
    except OSError as error:
        raise MountError(
            f"no mount and network namespaces here ({error.strerror}); "
            "'tsmfs mount DIR' works without"
        ) from error


class _IntoLog(logging.Handler):
    """Puts into a machine's log what would be written to standard error, which is nowhere."""

    def __init__(self, log: Log) -> None:
        super().__init__(logging.WARNING)
        self._log = log

    def emit(self, record: logging.LogRecord) -> None:
        self._log.err(self.format(record))


class _Stages(Stages):
    """The machine of a session sends uevents, and serves netlink on all transports."""

    def __init__(
        self, directory: SessionDirectory, handover: socket.socket, ready: Callable[[], None]
    ) -> None:
        self._directory = directory
        self._handover = handover
        self._ready = ready

    def built(self, machine: Machine) -> None:
        logging.getLogger().addHandler(_IntoLog(machine.log))
        send_uevents(machine)

    def booted(self, machine: Machine) -> None:
        try:
            machine.netlink.start(self._directory.netlink_socket, os.geteuid())
            machine.netlink.interpose(machine.log.warn)
        except OSError as error:
            raise MountError(f"netlink cannot be served: {error.strerror or error}") from error
        entrance = _listen(self._directory)
        threading.Thread(
            target=_take_listeners,
            args=(machine.netlink.attach, self._handover, entrance),
            name="handover",
            daemon=True,
        ).start()

    def mounted(self) -> None:
        self._ready()

    def given_up(self) -> None:
        self._directory.remove()


def _listen(directory: SessionDirectory) -> socket.socket:
    entrance = socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET)
    try:
        entrance.bind(str(directory.control_socket))
    except OSError as error:
        raise MountError(f"{directory.control_socket}: {error.strerror or error}") from error
    entrance.listen()
    return entrance


def _take_listeners(
    attach: Callable[[int, range], None], first: socket.socket, entrance: socket.socket
) -> None:
    """Take the listeners of the session's first process and of those who enter."""
    connections = {first.fileno(): first}
    poll = select.poll()
    for each in (first, entrance):
        poll.register(each, select.POLLIN)
    while True:
        for descriptor, _ in poll.poll():
            if descriptor == entrance.fileno():
                connection = _accept(entrance)
                if connection is not None:
                    connections[connection.fileno()] = connection
                    poll.register(connection, select.POLLIN)
            elif not _take(connections[descriptor], attach):
                poll.unregister(descriptor)
                connections.pop(descriptor).close()


def _accept(entrance: socket.socket) -> socket.socket | None:
    """A connection of this user; None when it is another's, or gone."""
    try:
        connection, _ = entrance.accept()
    except OSError:
        return None
    credentials = connection.getsockopt(socket.SOL_SOCKET, socket.SO_PEERCRED, _UCRED.size)
    if _UCRED.unpack(credentials)[1] != os.geteuid():
        connection.close()
        return None
    return connection


def _take(connection: socket.socket, attach: Callable[[int, range], None]) -> bool:
    """Take what was sent; False when the connection is over."""
    try:
        data, descriptors, _, _ = socket.recv_fds(connection, _MESSAGE_SIZE, 1)
        if not data:
            return False
        answer = TAKEN if descriptors else b"no descriptor came"
        for descriptor in descriptors:
            try:
                attach(descriptor, range(*_RESERVED.unpack(data)))
            except OSError as error:
                answer = (error.strerror or str(error)).encode()
            except struct.error:
                os.close(descriptor)
                answer = b"no descriptors are reserved"
        connection.send(answer, socket.MSG_DONTWAIT | socket.MSG_NOSIGNAL)
    except OSError:
        return False
    return True
