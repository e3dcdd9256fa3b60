# SPDX-License-Identifier: MIT
"""A server of generic netlink: families on one side, transports on the other."""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator
from enum import Enum
from typing import Protocol, TypeAlias

from netlink.af_netlink import NetlinkSock, Receiver, netlink_dump, netlink_dump_stop, netlink_rcv
from netlink.genl import GenericNetlink
from netlink.nlctrl import serve_nlctrl
from netlink.transport.loop import Loop


class Direction(Enum):
    """Which way a datagram goes, seen from the server."""

    RECEIVED = "received"
    SENT = "sent"


Tap: TypeAlias = "Callable[[Direction, int, bytes], None]"
"""Is shown every datagram with the port of the client; must be quick, and not raise."""


class Transport(Protocol):
    """A way for clients to reach a server."""

    def start(self, server: Server, loop: Loop) -> None:
        """Serve clients from now on, in *loop*. Raises OSError when that is not possible."""
        ...

    def stop(self) -> None:
        """Serve nobody any more, and give all descriptors back; the loop has ended."""
        ...


class Server:
    """Families and the transports on which they are served; a context manager.

    ``genl`` is where families are registered; nlctrl is there already.
    """

    def __init__(self, genl: GenericNetlink | None = None) -> None:
        self.genl = genl or GenericNetlink()
        if self.genl.by_name("nlctrl") is None:
            serve_nlctrl(self.genl)
        self._lock = threading.Lock()
        self._transports: list[Transport] = []
        self._loop: Loop | None = None
        self._taps: tuple[Tap, ...] = ()

    def add(self, transport: Transport) -> None:
        """Start a transport. Raises OSError when it does not start."""
        with self._lock:
            if self._loop is None:
                loop = Loop()
                try:
                    loop.start()
                except OSError:
                    loop.stop()
                    raise
                self._loop = loop
            transport.start(self, self._loop)
            self._transports.append(transport)

    def close(self) -> None:
        """Stop all transports. Dumps that run end without a word, as those of a dead kernel."""
        with self._lock:
            if self._loop is not None:
                self._loop.stop()
                self._loop = None
            while self._transports:
                self._transports.pop().stop()

    def __enter__(self) -> Server:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def add_tap(self, tap: Tap) -> None:
        """Show *tap* all datagrams from now on."""
        with self._lock:
            self._taps = (*self._taps, tap)

    def remove_tap(self, tap: Tap) -> None:
        """Show *tap* no more; one that is not there is no error."""
        with self._lock:
            self._taps = tuple(one for one in self._taps if one != tap)

    def receive(
        self, sock: NetlinkSock, datagram: bytes, receiver: Receiver | None = None
    ) -> Iterator[bytes | bytearray]:
        """What a client is to be sent for *datagram*, one datagram after the other.

        A transport may have a *receiver* that knows more than the families of the server.
        """
        self._show(Direction.RECEIVED, sock, datagram)
        for reply in netlink_rcv(receiver or self.genl, sock, datagram):
            self._show(Direction.SENT, sock, reply)
            yield reply

    def dump(self, sock: NetlinkSock) -> bytes | bytearray:
        """The next datagram of the dump that a client has running."""
        datagram = netlink_dump(sock)
        self._show(Direction.SENT, sock, datagram)
        return datagram

    def release(self, sock: NetlinkSock) -> None:
        """The client is gone."""
        netlink_dump_stop(sock)

    def _show(self, direction: Direction, sock: NetlinkSock, datagram: bytes | bytearray) -> None:
        for tap in self._taps:
            tap(direction, sock.portid, bytes(datagram))
