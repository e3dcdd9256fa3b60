# SPDX-License-Identifier: MIT
"""A client's socket: a Unix socket, a port of AF_NETLINK, or the running kernel's netlink."""

from __future__ import annotations

import errno
import os
import secrets
import socket
from dataclasses import dataclass
from pathlib import Path
from typing import Final, TypeAlias

from pyroute2.netlink import NETLINK_GENERIC, NETLINK_USERSOCK, NLMSG_NOOP, SOL_NETLINK

from netlink.codec import NETLINK_EXT_ACK, NLMSG_HDRLEN, READER, NlMsgHdr

RECEIVE_BUFFER: Final = 32768
"""Bytes that a client offers for a datagram unless told otherwise: more gains nothing."""
PROBE_INTERVAL: Final = 1.0
"""Seconds after which a client that waits looks whether its port still has an owner."""

_PEEK: Final = socket.MSG_PEEK | socket.MSG_TRUNC


@dataclass(frozen=True, slots=True)
class UnixEndpoint:
    """A server on a Unix socket (SEQPACKET)."""

    path: Path


@dataclass(frozen=True, slots=True)
class NetlinkEndpoint:
    """A server on a port of AF_NETLINK; the kernel itself has port 0."""

    protocol: int
    port: int = 0


Endpoint: TypeAlias = "UnixEndpoint | NetlinkEndpoint"

KERNEL: Final = NetlinkEndpoint(NETLINK_GENERIC)
"""The generic netlink of the running kernel."""


def usersock(port: int) -> NetlinkEndpoint:
    """A server in user space on *port* of NETLINK_USERSOCK."""
    return NetlinkEndpoint(NETLINK_USERSOCK, port)


class Connection:
    """A socket to one server; a context manager.

    Whatever the size of a datagram is, it arrives whole: its size is looked at first. *buffer* is
    what the server may count on, in bytes.
    """

    def __init__(self, endpoint: Endpoint, buffer: int = RECEIVE_BUFFER) -> None:
        """Connect. Raises OSError, with the path of the socket when that is to blame."""
        self.endpoint = endpoint
        self.buffer = buffer
        self._socket = _open(endpoint)
        try:
            self._introduce()
        except BaseException:
            self.close()
            raise

    def __enter__(self) -> Connection:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def close(self) -> None:
        """Give the socket back; a dump that runs ends."""
        self._socket.close()

    def reopen(self) -> None:
        """Go on with a new socket, so that nothing that is under way arrives any more."""
        # The new one is there before the old one goes: it must not get the old one's port.
        old, self._socket = self._socket, _open(self.endpoint)
        old.close()
        self._introduce()

    def _introduce(self) -> None:
        """Tell a server in user space what a kernel sees in the socket."""
        if self.endpoint != KERNEL:
            payload = READER.pack(self.buffer, 1 << NETLINK_EXT_ACK)
            header = NlMsgHdr(NLMSG_HDRLEN + len(payload), NLMSG_NOOP, 0, 0, 0)
            self.send(header.pack() + payload)

    def send(self, datagram: bytes) -> None:
        """Send a datagram. Raises OSError."""
        if isinstance(self.endpoint, UnixEndpoint):
            self._socket.send(datagram, socket.MSG_NOSIGNAL)
        else:
            self._socket.sendto(datagram, (self.endpoint.port, 0))

    def recv(self) -> bytes:
        """The next datagram of the server, whole.

        Raises OSError(ECONNRESET) or OSError(ECONNREFUSED) when the server has gone.
        """
        while True:
            try:
                length = self._socket.recv_into(bytearray(1), 1, _PEEK)
                datagram, sender = self._socket.recvfrom(max(length, self.buffer))
            except TimeoutError:
                self._probe()
                continue
            if isinstance(self.endpoint, UnixEndpoint):
                if not datagram:
                    raise OSError(errno.ECONNRESET, os.strerror(errno.ECONNRESET))
                return datagram
            if sender[0] == self.endpoint.port:
                return datagram

    def _probe(self) -> None:
        """Raise OSError(ECONNREFUSED) when nobody has the port of the server any more."""
        probe = NlMsgHdr(NLMSG_HDRLEN, NLMSG_NOOP, 0, 0, 0).pack()
        assert isinstance(self.endpoint, NetlinkEndpoint)
        try:
            self._socket.sendto(probe, socket.MSG_DONTWAIT, (self.endpoint.port, 0))
        except BlockingIOError:
            # It is there, and busy.
            return


def connect(endpoint: Endpoint, buffer: int = RECEIVE_BUFFER) -> Connection:
    """A connection to the server at *endpoint*. Raises OSError."""
    return Connection(endpoint, buffer)


def _open(endpoint: Endpoint) -> socket.socket:
    if isinstance(endpoint, UnixEndpoint):
        opened = socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        try:
            opened.connect(str(endpoint.path))
        except OSError as error:
            opened.close()
            raise OSError(error.errno, error.strerror, str(endpoint.path)) from error
        return opened
    opened = socket.socket(socket.AF_NETLINK, socket.SOCK_RAW, endpoint.protocol)
    try:
        _bind(opened, endpoint)
        opened.setsockopt(SOL_NETLINK, NETLINK_EXT_ACK, 1)
        if endpoint.port:
            opened.settimeout(PROBE_INTERVAL)
    except OSError:
        opened.close()
        raise
    return opened


def _bind(opened: socket.socket, endpoint: NetlinkEndpoint) -> None:
    if not endpoint.port:
        opened.bind((0, 0))
        return
    # A kernel sees that a socket goes. A server in user space may still be about to answer the one
    # before on the port that the kernel would choose again, so this one has a port of its own.
    while True:
        try:
            opened.bind((secrets.randbelow(2**32 - 1) + 1, 0))
            return
        except OSError as error:
            if error.errno != errno.EADDRINUSE:
                raise
