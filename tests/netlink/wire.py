# SPDX-License-Identifier: MIT
"""Netlink by hand: a client of plain sockets and ``struct``, which shares nothing with the server.

The numbers are those of ``linux/netlink.h``, ``linux/genetlink.h`` and the ABI pages.
"""

from __future__ import annotations

import socket
import struct
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import NamedTuple, Protocol

NLMSG_NOOP, NLMSG_ERROR, NLMSG_DONE = 1, 2, 3
REQUEST, MULTI, ACK, ECHO = 0x1, 0x2, 0x4, 0x8
ROOT, MATCH, DUMP = 0x100, 0x200, 0x300
CAPPED, ACK_TLVS = 0x100, 0x200
NLA_F_NESTED = 0x8000
NLCTRL = 0x10
NEWFAMILY, GETFAMILY, GETPOLICY = 1, 3, 10
FAMILY_ID, FAMILY_NAME, OPS, MCAST_GROUPS, OP = 1, 2, 6, 7, 10
MSG, OFFS, POLICY, MISS_TYPE = 1, 2, 4, 5

SOL_NETLINK = 270
NETLINK_CAP_ACK = 10
NETLINK_EXT_ACK = 11

GENERIC = 16
"""Protocol of the kernel's own generic netlink."""


def message(
    kind: int, flags: int, payload: bytes = b"", *, seq: int = 7, length: int | None = None
) -> bytes:
    """A message with its padding; *length* in place of the true one."""
    size = 16 + len(payload)
    header = struct.pack("=IHHII", size if length is None else length, kind, flags, seq, 0)
    return header + payload + bytes(-size % 4)


def genl(cmd: int, *attributes: bytes, version: int = 1, reserved: int = 0) -> bytes:
    """The payload of a message of generic netlink."""
    return struct.pack("=BBH", cmd, version, reserved) + b"".join(attributes)


def attribute(kind: int, payload: bytes, *, length: int | None = None) -> bytes:
    """An attribute with its padding; *length* in place of the true one."""
    size = 4 + len(payload)
    header = struct.pack("=HH", size if length is None else length, kind)
    return header + payload + bytes(-size % 4)


def u32(value: int) -> bytes:
    return struct.pack("=I", value)


def reader(buffer: int, *, cap_ack: bool = False, ext_ack: bool = True) -> bytes:
    """What a reader says of itself before a request."""
    options = cap_ack << NETLINK_CAP_ACK | ext_ack << NETLINK_EXT_ACK
    return message(NLMSG_NOOP, 0, struct.pack("=II", buffer, options))


def attributes(data: bytes) -> Iterator[tuple[int, bytes]]:
    """Numbers without flags, and payloads."""
    offset = 0
    while offset < len(data):
        length, kind = struct.unpack_from("=HH", data, offset)
        assert length >= 4, "an attribute is shorter than its header"
        assert offset + length <= len(data), "an attribute is longer than its message"
        yield kind & 0x3FFF, data[offset + 4 : offset + length]
        offset += length + -length % 4


class Message(NamedTuple):
    """A message that has come in."""

    type: int
    flags: int
    seq: int
    pid: int
    payload: bytes

    @property
    def error(self) -> int:
        """The errno of NLMSG_ERROR and NLMSG_DONE."""
        return -int(struct.unpack_from("=i", self.payload)[0])

    @property
    def extack(self) -> dict[int, bytes]:
        """The TLVs of an extended ack by number; none when there are none."""
        if not self.flags & ACK_TLVS:
            return {}
        start = 4
        if self.type == NLMSG_ERROR:
            (echoed,) = struct.unpack_from("=I", self.payload, 4)
            start += 16 if self.flags & CAPPED else echoed + -echoed % 4
        return dict(attributes(self.payload[start:]))

    @property
    def text(self) -> str:
        """The message of an extended ack."""
        return self.extack.get(MSG, b"").removesuffix(b"\0").decode()


def split(datagram: bytes | bytearray) -> Iterator[Message]:
    """The messages of a datagram."""
    offset = 0
    while offset < len(datagram):
        length, kind, flags, seq, pid = struct.unpack_from("=IHHII", datagram, offset)
        assert 16 <= length <= len(datagram) - offset
        yield Message(kind, flags, seq, pid, bytes(datagram[offset + 16 : offset + length]))
        offset += length + -length % 4


class Connection(Protocol):
    """A client's end of a transport."""

    def send(self, data: bytes) -> None: ...

    def recv(self, buffer: int = 262144) -> bytes: ...

    def close(self) -> None: ...


class UnixConnection:
    """A connection to the Unix socket of a server."""

    def __init__(self, path: Path) -> None:
        self.socket = socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        self.socket.settimeout(20)
        self.socket.connect(str(path))

    def send(self, data: bytes) -> None:
        self.socket.send(data)

    def recv(self, buffer: int = 262144) -> bytes:
        return self.socket.recv(buffer)

    def close(self) -> None:
        self.socket.close()


class NetlinkConnection:
    """A socket of AF_NETLINK that talks to one port: the kernel's own is 0."""

    def __init__(self, protocol: int, port: int = 0) -> None:
        self.socket = socket.socket(socket.AF_NETLINK, socket.SOCK_RAW, protocol)
        self.socket.settimeout(20)
        self.socket.bind((0, 0))
        self.port = port

    def send(self, data: bytes) -> None:
        self.socket.sendto(data, (self.port, 0))

    def recv(self, buffer: int = 262144) -> bytes:
        data, (port, _groups) = self.socket.recvfrom(buffer)
        assert port == self.port, "an answer came from another port"
        return data

    def close(self) -> None:
        self.socket.close()


def do(connection: Connection, request: bytes, seq: int = 7) -> list[Message]:
    """All answers to a datagram, up to those of a marker that is sent after it.

    The marker is a message that is no request and wants an ack, which a kernel gives it. A dump
    that was started before goes on after it, to its end.
    """
    marker = 0xFEED
    connection.send(request)
    connection.send(message(NLMSG_NOOP, ACK, seq=marker))
    answers: list[Message] = []
    marked = dumping = False
    while not marked or dumping:
        for answer in split(connection.recv()):
            if answer.seq == marker:
                marked = True
                continue
            dumping = bool(answer.flags & MULTI) and answer.type != NLMSG_DONE
            answers.append(answer)
    return answers


def family_id(connection: Connection, name: str) -> int:
    """The number of a family, from nlctrl."""
    request = genl(GETFAMILY, attribute(FAMILY_NAME, name.encode() + b"\0"))
    (answer,) = do(connection, message(NLCTRL, REQUEST, request))
    assert answer.type == NLCTRL, answer
    (number,) = struct.unpack("=H", dict(attributes(answer.payload[4:]))[FAMILY_ID])
    return int(number)


@dataclass
class Evidence:
    """What a dump of evidence gave."""

    objects: dict[int, bytes] = field(default_factory=dict)
    heads: dict[int, dict[int, bytes]] = field(default_factory=dict)
    """Of each object the attributes of its first message without the content."""
    done: Message | None = None
    datagrams: list[int] = field(default_factory=list)
    """Their sizes."""


def read_evidence(
    connection: Connection, seq: int, buffer: int, *, kind: int = 1, val: int = 6
) -> Evidence:
    """Receive a dump of evidence that has been asked for; *val* is 10 for device-evidence."""
    evidence = Evidence()
    parts: dict[int, list[bytes]] = {}
    current = -1
    while evidence.done is None:
        datagram = connection.recv(buffer)
        evidence.datagrams.append(len(datagram))
        for one in split(datagram):
            assert one.seq == seq
            if one.type in (NLMSG_DONE, NLMSG_ERROR):
                evidence.done = one
                break
            assert one.flags == MULTI
            found = dict(attributes(one.payload[4:]))
            content = found.pop(val)
            if kind in found:
                (current,) = struct.unpack("=I", found[kind])
                assert current not in parts, "an object starts twice"
                evidence.heads[current] = found
                parts[current] = []
            parts[current].append(content)
    evidence.objects = {number: b"".join(pieces) for number, pieces in parts.items()}
    return evidence


def evidence_request(
    family: int,
    mask: int | None,
    name: bytes | None,
    *,
    flags: int | None = None,
    nonce: bytes | None = None,
    seq: int = 7,
) -> bytes:
    """A dump of ``pci-tsm``; None leaves an attribute out."""
    wanted = [
        attribute(kind, payload)
        for kind, payload in (
            (2, None if mask is None else u32(mask)),
            (3, None if flags is None else u32(flags)),
            (4, name),
            (5, nonce),
        )
        if payload is not None
    ]
    return message(family, REQUEST | DUMP, genl(1, *wanted), seq=seq)
