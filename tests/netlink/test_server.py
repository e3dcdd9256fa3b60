# SPDX-License-Identifier: MIT
"""Clients of both transports: everything arrives, and none of them costs the others anything."""

from __future__ import annotations

import errno
import os
import random
import socket
import threading
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

from netlink.evidence import EvidenceDump, serve_pci_tsm
from netlink.server import Direction, Server
from netlink.transport.unix import UnixTransport
from netlink.transport.usersock import UsersockTransport
from tests.netlink.conftest import Served
from tests.netlink.devices import BDF, Device, Provider
from tests.netlink.wire import (
    ACK,
    DUMP,
    FAMILY_NAME,
    GETFAMILY,
    NLCTRL,
    NLMSG_ERROR,
    REQUEST,
    Connection,
    NetlinkConnection,
    UnixConnection,
    attribute,
    do,
    evidence_request,
    family_id,
    genl,
    message,
    read_evidence,
    reader,
    split,
)

NAME = BDF.encode() + b"\0"
MIB = 1 << 20
Connect = Callable[[], Connection]


def content(size: int) -> bytes:
    return random.Random(size).randbytes(size)


def wait_until(condition: Callable[[], bool], seconds: float = 10) -> bool:
    end = time.monotonic() + seconds
    while not condition():
        if time.monotonic() > end:
            return False
        time.sleep(0.01)
    return True


def descriptors() -> int:
    return len(os.listdir("/proc/self/fd"))


@pytest.mark.parametrize("buffer", [4096, 8192, 32768, MIB])
@pytest.mark.parametrize("size", [0, 1, 65531, 65532, 65536])
def test_object_arrives_exact_whatever_the_buffer(
    client: Connection, served: Served, size: int, buffer: int
) -> None:
    served.device.objects = {3: content(size)}
    number = family_id(client, "pci-tsm")
    client.send(reader(buffer) + evidence_request(number, 0b11000, NAME))
    evidence = read_evidence(client, 7, buffer)
    assert evidence.objects == {3: content(size), 4: b""}
    assert evidence.done is not None
    assert evidence.done.error == 0
    assert max(evidence.datagrams) <= buffer


def test_reader_that_tells_nothing_needs_4_kib(client: Connection, served: Served) -> None:
    served.device.objects = {0: content(100_000)}
    client.send(evidence_request(family_id(client, "pci-tsm"), 1, NAME))
    assert read_evidence(client, 7, 4096).objects == {0: content(100_000)}


def test_16_mib_arrive_exact(client: Connection, served: Served) -> None:
    served.device.objects = {9: content(16 * MIB)}
    number = family_id(client, "pci-tsm")
    client.send(reader(MIB) + evidence_request(number, 1 << 9, NAME))
    evidence = read_evidence(client, 7, MIB)
    assert evidence.objects == {9: content(16 * MIB)}


def test_many_clients_at_once_all_get_everything(connect: Connect, served: Served) -> None:
    served.device.objects = {0: content(200_000), 10: content(65531)}

    def one(client: Connection) -> dict[int, bytes]:
        number = family_id(client, "pci-tsm")
        client.send(evidence_request(number, 1 | 1 << 10, NAME))
        return read_evidence(client, 7, 4096).objects

    clients = [connect() for _ in range(32)]
    with ThreadPoolExecutor(len(clients)) as pool:
        results = list(pool.map(one, clients))
    assert results == [served.device.objects] * len(clients)


def test_stalled_readers_hold_up_nobody_and_lose_nothing(connect: Connect, served: Served) -> None:
    served.device.objects = {0: content(2 * MIB)}
    stalled = [connect() for _ in range(8)]
    number = family_id(stalled[0], "pci-tsm")
    for each in stalled:
        each.send(evidence_request(number, 1, NAME))
    brisk = connect()
    brisk.send(evidence_request(number, 1, NAME))
    assert read_evidence(brisk, 7, 4096).objects == {0: content(2 * MIB)}
    assert family_id(connect(), "pci-tsm") == number
    for each in stalled:
        assert read_evidence(each, 7, 4096).objects == {0: content(2 * MIB)}


def test_requests_are_answered_between_the_messages_of_a_dump(
    client: Connection, served: Served
) -> None:
    served.device.objects = {0: content(4 * MIB)}
    number = family_id(client, "pci-tsm")
    client.send(evidence_request(number, 1, NAME, seq=1))
    client.send(evidence_request(number, 1, NAME, seq=2))
    client.send(message(NLCTRL, REQUEST, genl(GETFAMILY, attribute(FAMILY_NAME, b"x\0")), seq=3))
    refused: list[tuple[int, int]] = []
    total = 0
    while True:
        messages = list(split(client.recv()))
        refused += [(one.seq, one.error) for one in messages if one.type == NLMSG_ERROR]
        total += sum(len(one.payload) for one in messages if one.type == number)
        if messages[-1].type == 3:
            break
    assert refused == [(2, errno.EBUSY), (3, errno.ENOENT)]
    assert total > 4 * MIB


@pytest.mark.parametrize("read", [0, 1, 5])
def test_client_that_goes_in_mid_dump_leaves_nothing(
    connect: Connect, served: Served, read: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    begun: set[tuple[Direction, int]] = set()
    ended: list[EvidenceDump] = []
    monkeypatch.setattr(EvidenceDump, "done", lambda dump: ended.append(dump))
    served.device.objects = {0: content(4 * MIB)}
    other = connect()
    number = family_id(other, "pci-tsm")
    before = descriptors()
    clients = [connect() for _ in range(4)]
    served.server.add_tap(lambda direction, port, _: begun.add((direction, port)))
    for each in clients:
        each.send(evidence_request(number, 1, NAME))
        for _ in range(read):
            each.recv()
    assert wait_until(lambda: len(begun) == 8)
    assert ended == []
    for each in clients:
        each.close()
    assert wait_until(lambda: len(ended) == 4)
    assert wait_until(lambda: descriptors() == before)
    assert family_id(other, "pci-tsm") == number


def test_device_that_goes_in_mid_dump_ends_it(client: Connection, served: Served) -> None:
    served.device.objects = {0: content(4 * MIB)}
    client.send(evidence_request(family_id(client, "pci-tsm"), 1, NAME))
    client.recv()
    served.device.present = None
    evidence = read_after_first(client)
    assert evidence == (errno.ENXIO, "no TSM context")


def test_new_evidence_in_mid_dump_ends_it(client: Connection, served: Served) -> None:
    served.device.objects = {0: content(4 * MIB)}
    client.send(evidence_request(family_id(client, "pci-tsm"), 1, NAME))
    client.recv()
    served.device.present = 2
    assert read_after_first(client) == (errno.EAGAIN, "evidence updated during read")


def read_after_first(client: Connection) -> tuple[int, str]:
    """How a dump ends."""
    while True:
        for one in split(client.recv()):
            if one.type == 3:
                return one.error, one.text


def test_request_that_waits_in_the_machine_holds_up_nobody(
    connect: Connect, served: Served, monkeypatch: pytest.MonkeyPatch
) -> None:
    entered, go_on = threading.Event(), threading.Event()

    def slow(nonce: bytes) -> None:
        entered.set()
        assert go_on.wait(10)

    monkeypatch.setattr(served.device, "refresh", slow)
    served.device.objects = {0: b"x"}
    waiting, other = connect(), connect()
    number = family_id(other, "pci-tsm")
    waiting.send(evidence_request(number, 1, NAME, nonce=b"n"))
    assert entered.wait(10)
    other.send(evidence_request(number, 1, NAME))
    assert read_evidence(other, 7, 4096).objects == {0: b"x"}
    go_on.set()
    assert read_evidence(waiting, 7, 4096).objects == {0: b"x"}


def test_monitor_sees_datagrams_as_they_pass(client: Connection, served: Served) -> None:
    seen: list[tuple[Direction, bytes]] = []

    def tap(direction: Direction, port: int, datagram: bytes) -> None:
        assert port > 0
        seen.append((direction, datagram))

    served.server.add_tap(tap)
    request = message(NLCTRL, REQUEST | ACK, genl(GETFAMILY, attribute(FAMILY_NAME, b"nlctrl\0")))
    client.send(request)
    replies = [client.recv(), client.recv()]
    served.server.remove_tap(tap)
    family_id(client, "nlctrl")
    sent = [(Direction.SENT, reply) for reply in replies]
    assert seen == [(Direction.RECEIVED, request), *sent]


def test_answers_carry_the_port_of_the_client(connect: Connect) -> None:
    first, second = connect(), connect()
    ports = [
        do(each, message(NLCTRL, REQUEST | DUMP, genl(GETFAMILY)))[0].pid
        for each in (first, second)
    ]
    assert ports[0] != ports[1]
    assert 0 not in ports


def test_server_that_stops_leaves_no_thread_and_no_descriptor(tmp_path: Path) -> None:
    before = descriptors(), threading.active_count()
    device = Device({0: content(2 * MIB)})
    path = tmp_path / "netlink"
    server = Server()
    serve_pci_tsm(server.genl, Provider(**{BDF: device}))
    usersock = UsersockTransport()
    server.add(UnixTransport(path))
    server.add(usersock)
    clients: list[Connection] = [UnixConnection(path) for _ in range(3)]
    port = usersock.port
    clients += [NetlinkConnection(socket.NETLINK_USERSOCK, port) for _ in range(3)]
    number = family_id(clients[0], "pci-tsm")
    # One idle, one that stalls in a dump, one that reads one, of each kind.
    for each in (*clients[1:3], *clients[4:6]):
        each.send(evidence_request(number, 1, NAME))
    for each in (clients[2], clients[5]):
        each.recv()
    # There is one more while a leader comes back that has lost the lead.
    assert wait_until(lambda: threading.active_count() == before[1] + 2)
    server.close()
    assert not path.exists()
    for each in clients:
        each.close()
    assert (descriptors(), threading.active_count()) == before


def test_server_can_be_started_again_in_the_same_place(tmp_path: Path) -> None:
    for _ in range(3):
        with Server() as server:
            server.add(UnixTransport(tmp_path / "netlink"))
            client = UnixConnection(tmp_path / "netlink")
            assert family_id(client, "nlctrl") == NLCTRL
            client.close()
