# SPDX-License-Identifier: MIT
"""A client as the loop steps it: one request in or one datagram out at a time."""

from __future__ import annotations

import logging
from abc import ABC, abstractmethod
from collections.abc import Iterator

from netlink.af_netlink import NetlinkSock
from netlink.server import Server
from netlink.transport.loop import Next, State

log = logging.getLogger(__name__)


class Client(ABC):
    """What clients of all transports have in common.

    Of what there is to send to a client, one datagram is in memory: the next one is made when
    that is sent. Requests are read when those before them are answered.
    """

    def __init__(self, server: Server, sock: NetlinkSock) -> None:
        self.state = State.WAITING
        self.server = server
        self.sock = sock
        self._replies: Iterator[bytes | bytearray] | None = None
        self._unsent: bytes | bytearray | None = None

    @abstractmethod
    def receive(self) -> bytes | None:
        """The next request, or None when there is none now. Raises OSError at the end."""

    @abstractmethod
    def send(self, datagram: bytes | bytearray) -> bool:
        """Send, or False when there is no room. Raises OSError when the client is gone."""

    @abstractmethod
    def idle(self) -> None:
        """There is nothing to do until a request comes. Raises OSError at the end."""

    @abstractmethod
    def close(self) -> None:
        """Give up what the transport holds for the client."""

    def answer(self, request: bytes) -> Iterator[bytes | bytearray]:
        """What the client is to be sent for a request."""
        return self.server.receive(self.sock, request)

    def step(self) -> Next:
        """Answer a request, or go on with an answer or a dump."""
        try:
            if self._unsent is None:
                self._unsent = self._next()
            if self._unsent is None:
                if self._replies is not None:
                    return Next.AGAIN
                self.idle()
                return Next.WAIT
            if not self.send(self._unsent):
                return Next.WAIT
            self._unsent = None
            return Next.AGAIN
        except OSError:
            # The client is gone, or there is no memory for it, and it will notice.
            self.leave()
            return Next.WAIT
        except Exception:
            # How far its request came nobody knows, and the next try might fail the same way.
            self.leave()
            log.exception("a client of netlink is given up")
            return Next.WAIT

    def leave(self) -> None:
        """End all for this client."""
        self._replies = self._unsent = None
        self.server.release(self.sock)
        self.close()

    def _next(self) -> bytes | bytearray | None:
        """The next datagram to send; requests come before the dump that is running.

        None when there is none, or when a request has been read whose replies are to come.
        """
        if self._replies is not None:
            reply = next(self._replies, None)
            if reply is not None:
                return reply
            self._replies = None
        request = self.receive()
        if request is not None:
            self._replies = self.answer(request)
            return None
        return self.server.dump(self.sock) if self.sock.running else None
