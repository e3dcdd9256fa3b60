#!/usr/bin/env python3
# SPDX-License-Identifier: MIT
"""Reads all evidence of a device with plain sockets: read_evidence.py PLACE DEVICE DIR.

PLACE is the path of a Unix socket, the number of a port of NETLINK_USERSOCK, or "kernel", which is
NETLINK_GENERIC. Each object goes to a file DIR/NAME.bin. Shares nothing with the project: the
numbers are those of the kernel's headers and of the family ``pci-tsm``, so this is a client as
somebody else would write it.
"""

from __future__ import annotations

import os
import socket
import struct
import sys
from collections.abc import Callable, Iterator
from pathlib import Path

NETLINK_GENERIC = 16
NLMSG_ERROR, NLMSG_DONE = 2, 3
NLM_F_REQUEST, NLM_F_DUMP, NLM_F_ACK_TLVS = 0x1, 0x300, 0x200
NLMSGERR_ATTR_MSG = 1
GENL_ID_CTRL, CTRL_CMD_GETFAMILY = 16, 3
CTRL_ATTR_FAMILY_ID, CTRL_ATTR_FAMILY_NAME = 1, 2

EVIDENCE_READ = 1
TYPE, TYPE_MASK, DEV_NAME, VAL = 1, 2, 4, 6
NAMES = [*(f"cert{slot}" for slot in range(8)), "vca", "measurements", "report"]

RECEIVE_BUFFER = 65536

Exchange = Callable[[bytes], Iterator[bytes]]


def open_socket(place: str) -> Exchange:
    """A function that sends a request and yields what datagrams come in."""
    if place == "kernel":
        server = socket.socket(socket.AF_NETLINK, socket.SOCK_RAW, NETLINK_GENERIC)
        server.bind((0, 0))
    elif place.isdigit():
        server = socket.socket(socket.AF_NETLINK, socket.SOCK_RAW, socket.NETLINK_USERSOCK)
        server.bind((0, 0))
        server.connect((int(place), 0))
    else:
        server = socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        server.connect(place)
    server.settimeout(20)

    def exchange(request: bytes) -> Iterator[bytes]:
        server.send(request)
        while datagram := server.recv(RECEIVE_BUFFER):
            yield datagram
        raise ConnectionResetError("the server has gone")

    return exchange


def attribute(kind: int, payload: bytes) -> bytes:
    """An attribute with its padding."""
    header = struct.pack("=HH", 4 + len(payload), kind)
    return header + payload + bytes(-len(payload) % 4)


def attributes(data: bytes) -> Iterator[tuple[int, bytes]]:
    """Number and payload of each attribute."""
    while len(data) >= 4:
        length, kind = struct.unpack_from("=HH", data)
        yield kind & 0x3FFF, data[4:length]
        data = data[(length + 3) & ~3 :]


def request(kind: int, flags: int, command: int, payload: bytes) -> bytes:
    """A message of generic netlink."""
    length = 20 + len(payload)
    header = struct.pack("=IHHII", length, kind, NLM_F_REQUEST | flags, 1, 0)
    return header + struct.pack("=BBH", command, 1, 0) + payload


def replies(exchange: Exchange, message: bytes) -> Iterator[dict[int, bytes]]:
    """The attributes of each reply, up to the end of a dump."""
    for datagram in exchange(message):
        while datagram:
            length, kind, flags, _, _ = struct.unpack_from("=IHHII", datagram)
            payload, datagram = datagram[16:length], datagram[(length + 3) & ~3 :]
            if kind in (NLMSG_ERROR, NLMSG_DONE):
                (status,) = struct.unpack_from("=i", payload)
                if status:
                    raise OSError(-status, reason(kind, flags, payload) or os.strerror(-status))
                return
            yield dict(attributes(payload[4:]))


def reason(kind: int, flags: int, payload: bytes) -> str:
    """The message of an extended ack, empty when there is none."""
    start = 4
    if kind == NLMSG_ERROR:
        (echoed,) = struct.unpack_from("=I", payload, 4)
        start += (echoed + 3) & ~3
    found = dict(attributes(payload[start:])) if flags & NLM_F_ACK_TLVS else {}
    return found.get(NLMSGERR_ATTR_MSG, b"").removesuffix(b"\0").decode()


def main(place: str, device: str, directory: Path) -> None:
    """Read everything that *device* has into *directory*."""
    exchange = open_socket(place)
    name = attribute(CTRL_ATTR_FAMILY_NAME, b"pci-tsm\0")
    family = next(replies(exchange, request(GENL_ID_CTRL, 0, CTRL_CMD_GETFAMILY, name)))
    (kind,) = struct.unpack("=H", family[CTRL_ATTR_FAMILY_ID])

    wanted = attribute(TYPE_MASK, struct.pack("=I", (1 << len(NAMES)) - 1))
    wanted += attribute(DEV_NAME, device.encode() + b"\0")
    objects: dict[str, bytes] = {}
    current = ""
    for reply in replies(exchange, request(kind, NLM_F_DUMP, EVIDENCE_READ, wanted)):
        if TYPE in reply:
            current = NAMES[struct.unpack("=I", reply[TYPE])[0]]
            objects[current] = b""
        objects[current] += reply[VAL]
    for current, content in objects.items():
        (directory / f"{current}.bin").write_bytes(content)


if __name__ == "__main__":
    if len(sys.argv) != 4:
        sys.exit(f"usage: {sys.argv[0]} SOCKET|PORT|kernel DEVICE DIR")
    try:
        main(sys.argv[1], sys.argv[2], Path(sys.argv[3]))
    except OSError as error:
        sys.exit(f"{sys.argv[2]}: {error.strerror or error}")
