# SPDX-License-Identifier: MIT
"""Sockets of other processes, of which requests to some families are answered in user space.

What is answered goes from a socket of this process to the port of theirs, so they receive it as
what the kernel sends.
"""

from __future__ import annotations

import contextlib
import errno
import os
import socket
import struct
import threading
import time
from collections import deque
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from enum import Enum, auto
from typing import Final, Protocol

from pyroute2.netlink import GENL_ID_CTRL, NLM_F_ACK, NLM_F_DUMP, NLMSG_NOOP, SOL_NETLINK

from netlink.af_netlink import MAX_RECVMSG_LEN, Dump, NetlinkSock, Receiver
from netlink.codec import (
    GENL_HDRLEN,
    NETLINK_CAP_ACK,
    NETLINK_EXT_ACK,
    NLMSG_HDRLEN,
    NlMsgHdr,
    Skb,
    align,
    messages,
    parse_nla,
    parse_nlmsghdr,
)
from netlink.genl import GenericNetlink
from netlink.policy import ExtAck
from netlink.server import Server
from netlink.transport import kernel
from netlink.transport.caller import limited_to
from netlink.transport.client import Client
from netlink.transport.kernel import FAMILY_ID, GETFAMILY, NLCTRL
from netlink.transport.loop import Loop, Next
from netlink.transport.usermsg import Datagram

MAX_WAITING: Final = 256 * 1024
"""Bytes of requests that wait while a client's answers are not read; more are refused."""
RETRY: Final = 0.0005
"""Seconds after which a datagram is tried again for which the reader had no room."""
MAX_RETRY: Final = 0.1
"""Seconds between two tries when a reader has long read nothing."""

_GETPOLICY: Final = NLCTRL.operation("getpolicy").request_value
_FAMILY_NAME: Final = NLCTRL.attribute_sets["ctrl-attrs"]["family-name"].value
_U16: Final = struct.Struct("=H")
_SEQ_AND_PORT: Final = struct.Struct("=II")
_FLAGS_OFFSET: Final = 6
_SEQ_OFFSET: Final = 8
_SEQ_END: Final = _SEQ_OFFSET + _SEQ_AND_PORT.size
_SHORT: Final = 128
"""Bytes of requests that are remembered."""
_ROOM_FOR_ALL: Final = 1 << 24
_LEVEL: Final[int] = SOL_NETLINK
MAX_REMEMBERED: Final = 64
"""Requests whose answers are remembered."""

NOTICE: Final = NlMsgHdr(NLMSG_HDRLEN, NLMSG_NOOP, 0, 0x6D667374, 0).pack()
"""Makes a socket readable for which a datagram is kept; it is never delivered."""


def _without_seq(message: bytes) -> bytes:
    """A message as far as it is the same each time that it is sent."""
    return message[:_SEQ_OFFSET] + message[_SEQ_END:]


class Whose(Enum):
    """Who has to answer a message."""

    KERNEL = auto()
    CONTROLLER = auto()
    """Our nlctrl, which never has to wait for anything."""
    FAMILY = auto()
    """A family of ours, which may wait for the machine."""


class Sorter:
    """Tells messages to families of a registry from those to the kernel's."""

    def __init__(self, genl: GenericNetlink) -> None:
        self._genl = genl
        self._table = genl.table
        self._remembered: dict[bytes, Whose] = {}

    def split(self, datagram: bytes) -> list[tuple[Whose, bytes]]:
        """The messages of a datagram by who answers them, those in a row for one together.

        What is no message goes with those before it: whoever has these ends there.
        """
        if len(datagram) > _SHORT:
            return self._split(datagram)
        if self._table is not self._genl.table:
            self._table = self._genl.table
            self._remembered = {}
        # Programs ask the same again and again, with another number of sequence.
        key = _without_seq(datagram)
        whose = self._remembered.get(key)
        if whose is not None:
            return [(whose, datagram)]
        parts = self._split(datagram)
        if len(parts) == 1 and len(self._remembered) < MAX_REMEMBERED:
            self._remembered[key] = parts[0][0]
        return parts

    def _split(self, datagram: bytes) -> list[tuple[Whose, bytes]]:
        parts: list[tuple[Whose, bytes]] = []
        size, start, offset = len(datagram), 0, 0
        current: Whose | None = None
        while size - offset >= NLMSG_HDRLEN:
            header = parse_nlmsghdr(datagram, offset)
            if not NLMSG_HDRLEN <= header.length <= size - offset:
                break
            whose = self._whose(header, datagram, offset)
            if current is not None and whose is not current:
                parts.append((current, datagram[start:offset]))
                start = offset
            current = whose
            offset += align(header.length)
        parts.append((current or Whose.KERNEL, datagram[start:]))
        return parts

    def _whose(self, header: NlMsgHdr, datagram: bytes, offset: int) -> Whose:
        if header.type != GENL_ID_CTRL:
            return Whose.FAMILY if self._genl.by_id(header.type) is not None else Whose.KERNEL
        start = offset + NLMSG_HDRLEN
        if header.length < NLMSG_HDRLEN + GENL_HDRLEN:
            return Whose.KERNEL
        command = datagram[start]
        if command not in (GETFAMILY, _GETPOLICY):
            return Whose.KERNEL
        if command == GETFAMILY and header.flags & NLM_F_DUMP == NLM_F_DUMP:
            return Whose.CONTROLLER
        ours = self._names_ours(
            datagram, start + GENL_HDRLEN, offset + header.length, command == GETFAMILY
        )
        return Whose.CONTROLLER if ours else Whose.KERNEL

    def _names_ours(self, datagram: bytes, start: int, end: int, by_name_first: bool) -> bool:
        number: int | None = None
        name: str | None = None
        for nla in parse_nla(datagram, start, end)[0]:
            if nla.type == FAMILY_ID and len(nla.payload) >= _U16.size:
                (number,) = _U16.unpack_from(nla.payload)
            elif nla.type == _FAMILY_NAME:
                name = nla.payload.partition(b"\0")[0].decode(errors="replace")
        if name is not None and (by_name_first or number is None):
            family = self._genl.by_name(name)
        else:
            family = self._genl.by_id(number) if number is not None else None
        return family is not None and family.id != GENL_ID_CTRL


class AllFamilies:
    """The dump of nlctrl over the kernel's families and then those of a registry."""

    def __init__(self, sock: NetlinkSock, header: NlMsgHdr, ours: Dump) -> None:
        self._patch = _SEQ_AND_PORT.pack(header.seq, sock.portid)
        self._ours: Dump | None = ours
        self._waiting: deque[bytes] | None = None

    def fill(self, skb: Skb) -> bool:
        """As many messages as there is room for. Raises OSError when the kernel cannot be asked."""
        if self._waiting is None:
            self._waiting = deque([*kernel.families(), *self._of_registry()])
        while self._waiting:
            message = self._waiting[0]
            padding = bytes(-len(message) % 4)
            skb.put(message[:_SEQ_OFFSET] + self._patch + message[_SEQ_END:] + padding)
            self._waiting.popleft()
        return False

    def done(self) -> None:
        self._end()

    def _end(self) -> None:
        ours, self._ours = self._ours, None
        if ours is not None:
            ours.done()

    def _of_registry(self) -> Iterator[bytes]:
        """The messages of our own dump, without nlctrl, which the kernel has."""
        assert self._ours is not None
        skb = Skb(_ROOM_FOR_ALL)
        while self._ours.fill(skb):
            pass
        self._end()
        for _, message in messages(bytes(skb.data)):
            if kernel.number_of(message) != GENL_ID_CTRL:
                yield message


class BesideKernel(Receiver):
    """Requests to a registry whose families stand beside those of the kernel."""

    def __init__(self, genl: GenericNetlink) -> None:
        self._genl = genl
        self._table = genl.table
        self._remembered: dict[bytes, list[bytes]] = {}

    def rcv_msg(
        self, sock: NetlinkSock, header: NlMsgHdr, message: bytes, extack: ExtAck
    ) -> Iterator[bytes] | Dump:
        """As :meth:`GenericNetlink.rcv_msg`; a dump of all families has the kernel's, too."""
        if header.type != GENL_ID_CTRL:
            return self._genl.rcv_msg(sock, header, message, extack)
        if header.flags & NLM_F_DUMP != NLM_F_DUMP:
            return self._controller(sock, header, message, extack)
        answer = self._genl.rcv_msg(sock, header, message, extack)
        if not isinstance(answer, Iterator) and message[NLMSG_HDRLEN] == GETFAMILY:
            return AllFamilies(sock, header, answer)
        return answer

    def never_refuses(self, datagram: bytes) -> bool:
        """Whether a request has neither an ack nor a refusal, so that nothing shapes these."""
        wants_ack = len(datagram) > _FLAGS_OFFSET and datagram[_FLAGS_OFFSET] & NLM_F_ACK
        return not wants_ack and _without_seq(datagram) in self._remembered

    def _controller(
        self, sock: NetlinkSock, header: NlMsgHdr, message: bytes, extack: ExtAck
    ) -> Iterator[bytes] | Dump:
        """Ask nlctrl, which says the same again until there are other families."""
        if self._table is not self._genl.table:
            self._table = self._genl.table
            self._remembered = {}
        key = _without_seq(message)
        replies = self._remembered.get(key)
        if replies is None:
            answer = self._genl.rcv_msg(sock, header, message, extack)
            if not isinstance(answer, Iterator):
                return answer
            replies = list(answer)
            if len(self._remembered) < MAX_REMEMBERED and len(message) <= _SHORT:
                self._remembered[key] = replies
        to_reader = _SEQ_AND_PORT.pack(header.seq, sock.portid)
        return iter([reply[:_SEQ_OFFSET] + to_reader + reply[_SEQ_END:] for reply in replies])


@dataclass(slots=True)
class Request:
    """A datagram of a client, or a part of one."""

    data: bytes
    capable: bool
    cap_ack: bool
    ext_ack: bool


class OpenSocket(socket.SocketType):
    """A socket of another process, by a descriptor of this one."""

    __slots__ = ("inode",)

    inode: int
    """What identifies the socket while it lives."""

    def copy(self) -> OpenSocket:
        """The same by another descriptor. Raises OSError."""
        made = OpenSocket(self.family, self.type, self.proto, os.dup(self.fileno()))
        made.inode = self.inode
        return made


def forward(opened: OpenSocket, data: bytes, effective: int) -> None:
    """Send to the kernel as a sender with the capabilities *effective* would. Raises OSError."""
    with limited_to(effective):
        opened.sendto(data, (0, 0))


@dataclass(slots=True)
class Forwarded:
    """A part of a datagram that the kernel has to answer, in its turn."""

    data: bytes
    opened: OpenSocket
    """The client's socket, by a descriptor of its own."""
    effective: int
    """Capabilities of the sender."""


class Home(Protocol):
    """What sockets need of the transport that they belong to."""

    server: Server
    loop: Loop
    receiver: BesideKernel
    answers: socket.socket
    """Sends what is answered."""

    def forget(self, client: InterposedSocket) -> None:
        """The socket is not served any more."""
        ...


class InterposedSocket(Client):
    """A socket with something under way, or that had a short time ago."""

    def __init__(self, home: Home, inode: int, port: Callable[[], int]) -> None:
        """*inode* is that of the socket. *port* gives it one when it has none. Raises OSError."""
        super().__init__(home.server, NetlinkSock(port(), False))
        self.inode = inode
        self.used = time.monotonic()
        """When it was last heard of."""
        self.answered: tuple[int, bytes] | None = None
        """A thread and what it has sent, which it was not told for a signal: it sends it again."""
        self.kept: deque[Datagram] = deque()
        """Received for a call that had gone when it was to return."""
        self.notices = 0
        """How many :data:`NOTICE` wait to be received."""
        self._home = home
        self._turn = threading.Lock()
        """Held by the thread that works for the socket: that of the loop, or of a call."""
        self._lock = threading.Lock()
        self._waiting: deque[Request | Forwarded] = deque()
        self._bytes = 0
        self._over = False
        self._retry = RETRY
        self._retry_at = 0.0

    @property
    def under_way(self) -> bool:
        """Whether there is anything that is not sent, or not read by the kernel's own hand."""
        return bool(
            self._waiting
            or self._replies is not None
            or self._unsent is not None
            or self.sock.running
            or self.kept
            or self.notices
        )

    def note_room(self, room: int) -> None:
        """A reader offers a buffer: answers may be as large."""
        if room > self.sock.max_recvmsg_len:
            self.sock.max_recvmsg_len = min(room, MAX_RECVMSG_LEN)

    def read_by_client(self) -> None:
        """A datagram has been received, so there is room for another."""
        if self._unsent is not None:
            self._retry_at = 0.0
            self._home.loop.wake(self)

    def keep(self, datagram: Datagram) -> None:
        """Keep a datagram for the next call that receives, and have the socket be readable."""
        datagram.data = bytes(datagram.data)
        self.kept.append(datagram)
        with contextlib.suppress(OSError):
            self._home.answers.sendto(NOTICE, (self.sock.portid, 0))
            self.notices += 1

    @property
    def over(self) -> bool:
        """Whether it is served no more; it may come again as another."""
        return self._over

    def answer_now(self, request: Request, refused: Callable[[], None]) -> bool:
        """Answer a request at once, or False when there is something before it.

        *refused* is called to do something about it when the socket takes nothing.
        """
        if not self._turn.acquire(blocking=False):
            return False
        try:
            if self._over or self._waiting or self._unsent is not None:
                return False
            if self._replies is not None or self.sock.running:
                return False
            self._take(request)
            replies = self.answer(request.data)
            for reply in replies:
                try:
                    sent = self.send(reply)
                except ConnectionRefusedError:
                    refused()
                    sent = self.send(reply)
                if not sent:
                    self._unsent, self._replies = reply, replies
                    return True
        except OSError:
            self.leave()
            return True
        finally:
            self._turn.release()
        if self.sock.running:
            self._home.loop.wake(self)
        return True

    def push(self, request: Request | Forwarded) -> bool:
        """Have a request answered in its turn; False if too many wait, or the socket is over."""
        with self._lock:
            if self._over or self._bytes + len(request.data) > MAX_WAITING:
                return False
            self._waiting.append(request)
            self._bytes += len(request.data)
        self._home.loop.wake(self)
        return True

    def end(self) -> None:
        """Serve it no more; from any thread."""
        with self._lock:
            self._over = True
        self._home.loop.wake(self)

    def step(self) -> Next:
        with self._turn:
            if self._over:
                self.leave()
                return Next.WAIT
            return super().step()

    def answer(self, request: bytes) -> Iterator[bytes | bytearray]:
        return self.server.receive(self.sock, request, self._home.receiver)

    def receive(self) -> bytes | None:
        while True:
            with self._lock:
                if not self._waiting:
                    return None
                request = self._waiting.popleft()
                self._bytes -= len(request.data)
            if isinstance(request, Request):
                self._take(request)
                return request.data
            with contextlib.suppress(OSError):
                forward(request.opened, request.data, request.effective)
            request.opened.close()

    def _take(self, request: Request) -> None:
        sock = self.sock
        sock.capable = request.capable
        sock.cap_ack, sock.ext_ack = request.cap_ack, request.ext_ack

    def send(self, datagram: bytes | bytearray) -> bool:
        now = time.monotonic()
        if now < self._retry_at:
            # It was woken for something else; the timer is still to come.
            return False
        try:
            self._home.answers.sendto(datagram, (self.sock.portid, 0))
        except BlockingIOError:
            self._retry_at = now + self._retry
            self._home.loop.wake_later(self, self._retry)
            self._retry = min(2 * self._retry, MAX_RETRY)
            return False
        self._retry = RETRY
        return True

    def idle(self) -> None:
        self.used = time.monotonic()

    def close(self) -> None:
        with self._lock:
            self._over = True
            waiting, self._waiting = self._waiting, deque()
        for request in waiting:
            if isinstance(request, Forwarded):
                request.opened.close()
        self._home.forget(self)


def options_of(sock: socket.SocketType) -> tuple[bool, bool]:
    """Whether a socket has NETLINK_CAP_ACK, and NETLINK_EXT_ACK. Raises OSError."""
    getsockopt = sock.getsockopt
    return bool(getsockopt(_LEVEL, NETLINK_CAP_ACK)), bool(getsockopt(_LEVEL, NETLINK_EXT_ACK))


def refused_for_room() -> OSError:
    """What a sender is told whose requests are too many."""
    return OSError(errno.ENOBUFS, os.strerror(errno.ENOBUFS))
