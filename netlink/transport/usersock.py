# SPDX-License-Identifier: MIT
"""Generic netlink over AF_NETLINK, protocol NETLINK_USERSOCK: a fixed port, answers by unicast.

A unicast from user to user would wait while the reader's buffer is full, and no poll tells when it
is not. So it does not wait, and is tried again after a time, which grows while nothing is read.
"""

from __future__ import annotations

import contextlib
import errno
import os
import socket
import threading
import time
from collections import deque
from typing import Final

from netlink.af_netlink import NetlinkSock
from netlink.credentials import UCRED, Credentials, capable
from netlink.server import Server
from netlink.transport.client import Client
from netlink.transport.loop import Loop, Next, State

SCM_CREDENTIALS: Final = 2
"""Type of the control message with a ``struct ucred`` (``linux/socket.h``)."""
MAX_CLIENTS: Final = 4096
"""Ports that are served at a time; requests of others are dropped meanwhile."""
MAX_WAITING: Final = 256 * 1024
"""Bytes of requests that wait while a client's answers are not read; what is more is dropped."""
LINGER: Final = 1.0
"""Seconds that a client is remembered after its last answer."""
RETRY: Final = 0.0005
"""Seconds after which a datagram is tried again for which the reader had no room."""
MAX_RETRY: Final = 0.1
"""Seconds between two tries when a reader has long read nothing."""

_PEEK: Final = socket.MSG_PEEK | socket.MSG_TRUNC
_CREDENTIALS_SPACE: Final = socket.CMSG_SPACE(UCRED.size)


class UsersockTransport:
    """A socket on a port, in the service of the machine of user *owner*.

    A port outlives the socket that had it: what is left of the answers to a client that is gone
    reaches a socket that takes its port at once.
    """

    def __init__(self, port: int = 0, owner: int | None = None) -> None:
        """*port* 0 lets the kernel choose. *owner* is a uid, by default that of this process."""
        self._wanted = port
        self._owner = os.getuid() if owner is None else owner
        self._clients: dict[int, UsersockClient] = {}
        self.state = State.WAITING

    @property
    def port(self) -> int:
        """The port that requests go to, once it is started."""
        return int(self._socket.getsockname()[0])

    def start(self, server: Server, loop: Loop) -> None:
        """Bind the port. Raises OSError, EADDRINUSE when another socket has it."""
        self._server = server
        self._loop = loop
        with contextlib.ExitStack() as undo:
            self._socket = socket.socket(
                socket.AF_NETLINK, socket.SOCK_RAW, socket.NETLINK_USERSOCK
            )
            undo.callback(self._socket.close)
            self._socket.setblocking(False)
            self._socket.setsockopt(socket.SOL_SOCKET, socket.SO_PASSCRED, 1)
            self._socket.bind((self._wanted, 0))
            loop.watch(self._socket.fileno(), lambda _events: loop.wake(self))
            undo.pop_all()

    def stop(self) -> None:
        """Give the port back."""
        self._loop.forget(self._socket.fileno())
        for client in list(self._clients.values()):
            client.leave()
        self._socket.close()

    def step(self) -> Next:
        """Receive a request and queue it for its client."""
        try:
            length = self._socket.recv_into(bytearray(1), 1, _PEEK)
            datagram, control, _, (port, _groups) = self._socket.recvmsg(
                length + 1, _CREDENTIALS_SPACE
            )
        except BlockingIOError:
            return Next.WAIT
        except OSError as error:
            # ENOBUFS and the like: a datagram is lost, as it is for a kernel.
            return Next.WAIT if error.errno == errno.EBADF else Next.AGAIN
        for level, kind, data in control:
            if (level, kind) == (socket.SOL_SOCKET, SCM_CREDENTIALS) and port and datagram:
                admin = capable(Credentials.unpack(data), self._owner)
                self._deliver(port, admin, datagram)
        return Next.AGAIN

    def _deliver(self, port: int, admin: bool, datagram: bytes) -> None:
        client = self._clients.get(port)
        if client is None or not client.push(admin, datagram):
            if client is None and len(self._clients) >= MAX_CLIENTS:
                return
            client = UsersockClient(self._server, self._loop, self._socket, port, self._clients)
            self._clients[port] = client
            client.push(admin, datagram)
        self._loop.wake(client)


class UsersockClient(Client):
    """A port with something under way."""

    def __init__(
        self,
        server: Server,
        loop: Loop,
        sending: socket.socket,
        port: int,
        clients: dict[int, UsersockClient],
    ) -> None:
        super().__init__(server, NetlinkSock(port, False))
        self._loop = loop
        self._socket = sending
        self._clients = clients
        self._lock = threading.Lock()
        self._waiting: deque[tuple[bool, bytes]] = deque()
        self._bytes = 0
        self._over = False
        self._retry = RETRY
        self._retry_at = 0.0
        self._idle_since: float | None = None
        self._idle_timer = 0.0

    def push(self, admin: bool, datagram: bytes) -> bool:
        """Add a request to those that wait, if they are not too many; False for one that left."""
        with self._lock:
            if self._over:
                return False
            if self._bytes + len(datagram) <= MAX_WAITING:
                self._waiting.append((admin, datagram))
                self._bytes += len(datagram)
            return True

    def receive(self) -> bytes | None:
        with self._lock:
            if not self._waiting:
                return None
            self.sock.capable, datagram = self._waiting.popleft()
            self._bytes -= len(datagram)
            self._idle_since = None
            return datagram

    def send(self, datagram: bytes | bytearray) -> bool:
        now = time.monotonic()
        if now < self._retry_at:
            # A request has come meanwhile; the timer is still to come.
            return False
        try:
            self._socket.sendto(datagram, (self.sock.portid, 0))
        except BlockingIOError:
            self._retry_at = now + self._retry
            self._loop.wake_later(self, self._retry)
            self._retry = min(2 * self._retry, MAX_RETRY)
            return False
        self._retry = RETRY
        return True

    def idle(self) -> None:
        """Remember the client for a time: it may tell of its buffer and then ask."""
        now = time.monotonic()
        if self._idle_since is None:
            self._idle_since = now
        elif now - self._idle_since >= LINGER:
            with self._lock:
                self._over = not self._waiting
            if self._over:
                raise OSError(errno.ETIMEDOUT, os.strerror(errno.ETIMEDOUT))
        # One timer at a time, however often the client asks.
        if now >= self._idle_timer:
            self._idle_timer = self._idle_since + LINGER
            self._loop.wake_later(self, self._idle_timer - now)

    def close(self) -> None:
        with self._lock:
            self._over = True
        if self._clients.get(self.sock.portid) is self:
            del self._clients[self.sock.portid]
