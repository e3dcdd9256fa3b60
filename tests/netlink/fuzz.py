# SPDX-License-Identifier: MIT
"""``python -m tests.netlink.fuzz``: random and mutated datagrams to a server, by hand.

Every datagram goes over a real socket. What counts as a failure: an exception in the server, a
server that does not answer any more, a descriptor or a thread left, memory that keeps growing.
"""

from __future__ import annotations

import argparse
import contextlib
import logging
import os
import random
import socket
import struct
import sys
import tempfile
import threading
import time
from collections.abc import Iterator
from pathlib import Path

from netlink.evidence import serve_device_evidence, serve_pci_tsm
from netlink.server import Server
from netlink.transport.unix import UnixTransport
from netlink.transport.usersock import UsersockTransport
from tests.netlink.devices import BDF, Device, Provider
from tests.netlink.test_against_kernel import CASES
from tests.netlink.wire import (
    ACK,
    DUMP,
    NLCTRL,
    NLMSG_NOOP,
    REQUEST,
    Connection,
    NetlinkConnection,
    UnixConnection,
    attribute,
    evidence_request,
    genl,
    message,
    reader,
    u32,
)

BATCH = 50
"""Datagrams between two questions whether the server still answers."""
CONNECTION = 2000
"""Datagrams after which a new client goes on."""
LARGEST = 2000
"""Bytes of the longest random part; a few datagrams of the table have 64 KiB."""
MARKER = 0xFEED


class Faults(logging.Handler):
    """Counts what the server reports as a bug of its own."""

    def __init__(self) -> None:
        super().__init__(logging.ERROR)
        self.seen: list[str] = []

    def emit(self, record: logging.LogRecord) -> None:
        self.seen.append(self.format(record))


def seeds() -> list[bytes]:
    """Datagrams that mean something, to begin with."""
    name = attribute(5, BDF.encode() + b"\0")
    subsys = attribute(4, b"pci\0")
    good = [
        evidence_request(19, 2047, BDF.encode() + b"\0"),
        evidence_request(19, 1, BDF.encode() + b"\0", flags=1, nonce=bytes(32)),
        message(20, REQUEST | DUMP, genl(1, attribute(2, u32(2047)), subsys, name)),
        message(20, REQUEST | ACK, genl(2, subsys, name, attribute(7, u32(1)))),
        message(NLCTRL, REQUEST | DUMP, genl(3)),
        message(NLCTRL, REQUEST | DUMP, genl(10, attribute(1, b"\x13\0"))),
        reader(8192),
    ]
    return good + [case for case in CASES.values() if len(case) < LARGEST]


def mutate(rng: random.Random, data: bytes) -> bytes:
    """A few changes of the kinds that parsers fall for."""
    changed = bytearray(data)
    for _ in range(rng.randint(1, 4)):
        where = rng.randrange(len(changed) + 1)
        match rng.randrange(7):
            case 0 if changed:
                changed[where % len(changed)] ^= 1 << rng.randrange(8)
            case 1 if changed:
                changed[where % len(changed)] = rng.choice((0, 1, 0x7F, 0x80, 0xFF))
            case 2:
                del changed[where : where + rng.randint(1, 8)]
            case 3:
                changed[where:where] = rng.randbytes(rng.randint(1, 8))
            case 4 if len(changed) >= 4:
                at = where % (len(changed) - 3) & ~3
                length = rng.choice((0, 3, 4, 5, 15, 16, 17, 20, 0xFFFF, rng.randrange(65536)))
                struct.pack_into("=H", changed, at, length)
            case 5:
                changed[where:where] = changed[: rng.randrange(len(changed) + 1)]
            case _:
                del changed[where:]
    return bytes(changed[: 8 * LARGEST])


def datagrams(rng: random.Random) -> Iterator[bytes]:
    """Without end: random bytes, random payloads under good headers, mutated good datagrams."""
    corpus = seeds()
    families = [NLCTRL, 19, 20, 0x3FE, rng.randrange(65536)]
    while True:
        match rng.randrange(8):
            case 0:
                yield rng.randbytes(rng.randint(1, LARGEST))
            case 1:
                flags = rng.choice((REQUEST, REQUEST | ACK, REQUEST | DUMP, rng.randrange(65536)))
                payload = genl(rng.randrange(12), rng.randbytes(rng.randrange(200)))
                yield message(rng.choice(families), flags, payload)
            case 2:
                parts = [
                    attribute(rng.randrange(14), rng.randbytes(rng.randrange(40)))
                    for _ in range(rng.randrange(6))
                ]
                flags = REQUEST | rng.choice((0, ACK, DUMP))
                yield message(
                    rng.choice(families[:3]), flags, genl(rng.choice((1, 2, 3, 10)), *parts)
                )
            case 3:
                yield b"".join(rng.choice(corpus) for _ in range(rng.randint(2, 5)))
            case _:
                yield mutate(rng, rng.choice(corpus)) or b"\0"


def memory() -> int:
    """Resident KiB."""
    with open("/proc/self/status", encoding="ascii") as status:
        (line,) = [one for one in status if one.startswith("VmRSS:")]
    return int(line.split()[1])


def descriptors() -> int:
    return len(os.listdir("/proc/self/fd"))


def settle(connection: Connection) -> int:
    """Read until the answer to a marker; returns how many datagrams that were."""
    connection.send(message(NLMSG_NOOP, ACK, seq=MARKER))
    answers = 0
    while True:
        answer = connection.recv()
        answers += 1
        if answer[8:12] == struct.pack("=I", MARKER) and answer[4:6] == b"\2\0":
            return answers


@contextlib.contextmanager
def client(transport: str, path: Path, port: int) -> Iterator[Connection]:
    connection: Connection
    if transport == "unix":
        connection = UnixConnection(path)
    else:
        netlink = NetlinkConnection(socket.NETLINK_USERSOCK, port)
        netlink.socket.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 1 << 22)
        connection = netlink
    try:
        yield connection
    finally:
        connection.close()


def fuzz(server: Server, path: Path, port: int, args: argparse.Namespace) -> tuple[int, list[int]]:
    """Send all datagrams; returns the number of answers and the memory from time to time."""
    source = datagrams(random.Random(args.seed))
    answers, sent = 0, 0
    seen: list[int] = []
    while sent < args.count:
        with client(args.transport, path, port) as connection:
            for _ in range(min(CONNECTION, args.count - sent) // BATCH or 1):
                for _ in range(BATCH):
                    connection.send(next(source))
                sent += BATCH
                answers += settle(connection)
        if sent * 20 // args.count > len(seen):
            seen.append(memory())
            print(f"{sent:>9} sent, {answers} answers, {seen[-1]} KiB, {descriptors()} descriptors")
    return answers, seen


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--count", type=int, default=1_000_000)
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--transport", choices=("unix", "usersock"), default="unix")
    args = parser.parse_args()
    faults = Faults()
    logging.getLogger("netlink").addHandler(faults)
    failed: list[str] = []
    threading.excepthook = lambda hook: failed.append(str(hook.exc_value))
    device = Device({0: bytes(5000), 9: b"measurements"})
    before = descriptors(), threading.active_count()
    start = time.monotonic()
    with tempfile.TemporaryDirectory() as directory, Server() as server:
        provider = Provider(**{BDF: device})
        serve_pci_tsm(server.genl, provider)
        serve_device_evidence(server.genl, provider)
        path = Path(directory) / "netlink"
        usersock = UsersockTransport()
        server.add(UnixTransport(path))
        server.add(usersock)
        answers, seen = fuzz(server, path, usersock.port, args)
    seconds = time.monotonic() - start
    after = descriptors(), threading.active_count()
    growth = seen[-1] - seen[len(seen) // 4]
    print(f"{args.count} datagrams over {args.transport} in {seconds:.0f} s, {answers} answers")
    print(f"memory after a quarter {seen[len(seen) // 4]} KiB, at the end {seen[-1]} KiB")
    print(f"descriptors and threads before {before}, after {after}")
    print(f"exceptions in handlers {len(faults.seen)}, in threads {len(failed)}")
    for one in (faults.seen + failed)[:5]:
        print(one, file=sys.stderr)
    return int(before != after or bool(faults.seen) or bool(failed) or growth > 2048)


if __name__ == "__main__":
    sys.exit(main())
