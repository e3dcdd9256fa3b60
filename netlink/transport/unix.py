# SPDX-License-Identifier: MIT
"""Generic netlink over a Unix socket: one datagram of a SEQPACKET connection is one of netlink.

Each connection is a client with a port of its own.
"""

from __future__ import annotations

import contextlib
import errno
import itertools
import os
import select
import socket
from pathlib import Path
from typing import Final

from netlink.af_netlink import NetlinkSock
from netlink.credentials import UCRED, Credentials, capable
from netlink.server import Server
from netlink.transport.client import Client
from netlink.transport.loop import READABLE, WRITABLE, Loop, Next, State

BACKLOG: Final = 128
MAX_CLIENTS: Final = 4096
"""Connections beyond are accepted and closed."""
PAUSE: Final = 0.1
"""Seconds after which a connection is accepted for which there was no descriptor."""

_PEEK: Final = socket.MSG_PEEK | socket.MSG_TRUNC
_NO_DESCRIPTOR: Final = (errno.EMFILE, errno.ENFILE, errno.ENOMEM, errno.ENOBUFS)


class UnixTransport:
    """A listening Unix socket at *path*, in the service of the machine of user *owner*."""

    def __init__(self, path: Path, owner: int | None = None) -> None:
        """*owner* is a uid, by default that of this process."""
        self._path = path
        self._owner = os.getuid() if owner is None else owner
        self._ports = itertools.count(1)
        self._clients: set[UnixClient] = set()
        self.state = State.WAITING

    def start(self, server: Server, loop: Loop) -> None:
        """Listen. Raises OSError, EADDRINUSE when another server listens at the path."""
        self._server = server
        self._loop = loop
        self._listener = _listen(self._path)
        try:
            loop.watch(self._listener.fileno(), lambda _events: loop.wake(self))
        except BaseException:
            self._close()
            raise

    def stop(self) -> None:
        """Close all connections and remove the socket from its directory."""
        self._loop.forget(self._listener.fileno())
        self._close()
        for client in list(self._clients):
            client.leave()

    def _close(self) -> None:
        self._listener.close()
        with contextlib.suppress(FileNotFoundError):
            self._path.unlink()

    def step(self) -> Next:
        """Accept a connection."""
        try:
            connection, _ = self._listener.accept()
        except BlockingIOError:
            return Next.WAIT
        except OSError as error:
            if error.errno in _NO_DESCRIPTOR:
                # It stays in the backlog until there is a descriptor for it.
                self._loop.wake_later(self, PAUSE)
                return Next.WAIT
            return Next.WAIT if error.errno == errno.EBADF else Next.AGAIN
        if len(self._clients) >= MAX_CLIENTS:
            connection.close()
            return Next.AGAIN
        connection.setblocking(False)
        data = connection.getsockopt(socket.SOL_SOCKET, socket.SO_PEERCRED, UCRED.size)
        admin = capable(Credentials.unpack(data), self._owner)
        sock = NetlinkSock(next(self._ports), admin)
        client = UnixClient(self._server, self._loop, connection, sock, self._clients)
        self._clients.add(client)
        try:
            self._loop.watch(connection.fileno(), client.happened)
        except OSError:
            # It is closed. Nothing tells again of those that wait behind it.
            client.leave()
        return Next.AGAIN


class UnixClient(Client):
    """A connection."""

    def __init__(
        self,
        server: Server,
        loop: Loop,
        connection: socket.socket,
        sock: NetlinkSock,
        clients: set[UnixClient],
    ) -> None:
        super().__init__(server, sock)
        self._loop = loop
        self._connection = connection
        self._clients = clients
        # Only changes are told, so what is not known is assumed. These are cleared before a try
        # and set after it, so that a change meanwhile is not lost.
        self._readable = self._writable = True
        self._half_closed = False
        self._over = False

    def happened(self, events: int) -> None:
        """Something has changed at the connection."""
        if events & (select.EPOLLHUP | select.EPOLLERR):
            self._over = True
        if events & READABLE:
            self._readable = True
        if events & WRITABLE:
            self._writable = True
        self._loop.wake(self)

    def receive(self) -> bytes | None:
        if not self._readable:
            return None
        self._readable = False
        if self._over:
            raise OSError(errno.EPIPE, os.strerror(errno.EPIPE))
        try:
            length = self._connection.recv_into(bytearray(1), 1, _PEEK)
            datagram = self._connection.recv(length + 1)
        except BlockingIOError:
            return None
        # Nothing is both an empty datagram and the end. A reader that has closed its sending side
        # still gets what it has asked for.
        if not datagram and self._peer_sends_no_more():
            self._half_closed = True
            return None
        self._readable = True
        return datagram

    def _peer_sends_no_more(self) -> bool:
        poll = select.poll()
        poll.register(self._connection, select.POLLRDHUP)
        return bool(poll.poll(0))

    def send(self, datagram: bytes | bytearray) -> bool:
        if not self._writable:
            return False
        self._writable = False
        try:
            self._connection.send(datagram, socket.MSG_NOSIGNAL)
        except BlockingIOError:
            return False
        self._writable = True
        return True

    def idle(self) -> None:
        if self._half_closed and not self._readable:
            raise OSError(errno.EPIPE, os.strerror(errno.EPIPE))

    def close(self) -> None:
        if self in self._clients:
            self._clients.discard(self)
            self._loop.forget(self._connection.fileno())
            self._connection.close()


def _listen(path: Path) -> socket.socket:
    with contextlib.ExitStack() as undo:
        listener = socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        undo.callback(listener.close)
        try:
            listener.bind(str(path))
        except OSError as error:
            if error.errno != errno.EADDRINUSE or _answers(path):
                raise
            # What a server left behind that did not get to its end.
            path.unlink()
            listener.bind(str(path))
        # Any user may ask; what needs CAP_NET_ADMIN is refused request by request.
        path.chmod(0o666)
        listener.listen(BACKLOG)
        listener.setblocking(False)
        undo.pop_all()
        return listener


def _answers(path: Path) -> bool:
    with socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET) as probe:
        try:
            probe.connect(str(path))
        except OSError:
            return False
        return True
