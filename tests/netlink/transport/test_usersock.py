# SPDX-License-Identifier: MIT
"""What is particular to AF_NETLINK, NETLINK_USERSOCK."""

from __future__ import annotations

import errno
import os
import socket
import time

import pytest

from netlink.server import Direction, Server
from netlink.transport import usersock
from netlink.transport.loop import Loop
from netlink.transport.usersock import UsersockTransport
from tests.netlink.conftest import Served
from tests.netlink.devices import BDF
from tests.netlink.transport.harness import eventually
from tests.netlink.unprivileged import as_nobody
from tests.netlink.wire import (
    NLCTRL,
    NLMSG_ERROR,
    REQUEST,
    NetlinkConnection,
    do,
    evidence_request,
    family_id,
    genl,
    message,
    read_evidence,
    reader,
)

NAME = BDF.encode() + b"\0"
PORT = 0x4000_0000 + os.getpid()


def connect(port: int) -> NetlinkConnection:
    return NetlinkConnection(socket.NETLINK_USERSOCK, port)


def test_port_may_be_chosen() -> None:
    with Server() as server:
        transport = UsersockTransport(PORT)
        server.add(transport)
        assert transport.port == PORT
        client = connect(PORT)
        assert family_id(client, "nlctrl") == NLCTRL
        client.close()


def test_port_in_use_is_refused_and_leaves_no_descriptor() -> None:
    with Server() as server, Server() as second:
        server.add(UsersockTransport(PORT))
        second.add(UsersockTransport())
        before = os.listdir("/proc/self/fd")
        with pytest.raises(OSError, match="in use"):
            second.add(UsersockTransport(PORT))
        assert os.listdir("/proc/self/fd") == before


def test_port_that_cannot_be_watched_is_given_back(monkeypatch: pytest.MonkeyPatch) -> None:
    def no_space(*_: object) -> None:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    with Server() as server:
        server.add(UsersockTransport())
        transport = UsersockTransport(PORT)
        before = os.listdir("/proc/self/fd")
        with monkeypatch.context() as patch:
            patch.setattr(Loop, "watch", no_space)
            with pytest.raises(OSError, match="No space left"):
                server.add(transport)
        assert os.listdir("/proc/self/fd") == before
        server.add(transport)


def test_client_that_meets_a_bug_is_served_when_it_asks_again(
    served: Served, caplog: pytest.LogCaptureFixture
) -> None:
    def tap(direction: Direction, _port: int, datagram: bytes) -> None:
        if direction is Direction.RECEIVED and datagram == b"bug":
            raise RuntimeError("a bug")

    served.server.add_tap(tap)
    client = connect(served.port)
    client.socket.settimeout(20)
    client.send(b"bug")
    assert eventually(lambda: "a bug" in caplog.text)
    assert family_id(client, "nlctrl") == NLCTRL
    assert caplog.text.count("RuntimeError: a bug") == 1
    client.close()


def test_other_user_may_ask_for_families_and_not_for_evidence(served: Served) -> None:
    with Server(served.server.genl) as server:
        transport = UsersockTransport(owner=12345)
        server.add(transport)

        def ask() -> int:
            client = connect(transport.port)
            number = family_id(client, "pci-tsm")
            (answer,) = do(client, evidence_request(number, 1, NAME))
            client.close()
            return answer.error if answer.type == NLMSG_ERROR else 0

        assert as_nobody(ask) == errno.EPERM


def test_owner_may_ask_for_evidence(served: Served) -> None:
    client = connect(served.port)
    client.send(evidence_request(family_id(client, "pci-tsm"), 1, NAME))
    assert read_evidence(client, 7, 4096).objects == {0: b""}
    client.close()


def largest(client: NetlinkConnection, request: bytes) -> int:
    client.send(request)
    return max(read_evidence(client, 7, 65536).datagrams)


def stays_remembered(client: NetlinkConnection, request: bytes) -> bool:
    """Ask for longer than LINGER with shorter pauses; False if one of them was longer than that."""
    last = time.monotonic()
    size = largest(client, reader(32768) + request)
    for _ in range(3):
        assert size > 32000
        time.sleep(usersock.LINGER / 2)
        before, last = last, time.monotonic()
        size = largest(client, request)
        if time.monotonic() - before >= usersock.LINGER:
            return False
    assert size > 32000
    return True


def test_client_is_remembered_for_a_time(served: Served, monkeypatch: pytest.MonkeyPatch) -> None:
    """What a reader has said of its buffer holds for its next requests, and not for ever."""
    monkeypatch.setattr(usersock, "LINGER", 0.2)
    served.device.objects = {0: bytes(100_000)}
    with Server(served.server.genl) as server:
        transport = UsersockTransport()
        server.add(transport)
        client = connect(transport.port)
        request = evidence_request(family_id(client, "pci-tsm"), 1, NAME)
        assert largest(client, request) < 4096
        assert eventually(lambda: stays_remembered(client, request))
        assert eventually(lambda: not transport._clients)
        assert largest(client, request) < 4096
        client.close()


def test_client_that_reads_nothing_loses_requests_and_nothing_else(served: Served) -> None:
    """Its answers fill its buffer, its requests wait, and what is too much is dropped."""
    client, other = connect(served.port), connect(served.port)
    request = message(NLCTRL, REQUEST, genl(200)) * 100
    client.socket.settimeout(20)
    for _ in range(10):
        for _ in range(200):
            client.send(request)
        assert family_id(other, "nlctrl") == NLCTRL
    client.close()
    assert family_id(other, "nlctrl") == NLCTRL
    other.close()
