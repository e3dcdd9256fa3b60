# SPDX-License-Identifier: MIT
"""What is particular to the Unix socket."""

from __future__ import annotations

import errno
import os
import socket
import stat
import threading
import time
from pathlib import Path

import pytest

from netlink.server import Direction, Server
from netlink.transport import unix
from netlink.transport.loop import Loop, Next
from netlink.transport.unix import UnixTransport
from tests.netlink.conftest import Served
from tests.netlink.devices import BDF
from tests.netlink.unprivileged import as_nobody
from tests.netlink.wire import (
    ACK,
    NLCTRL,
    NLMSG_ERROR,
    REQUEST,
    UnixConnection,
    do,
    evidence_request,
    family_id,
    genl,
    message,
    read_evidence,
    split,
)

NAME = BDF.encode() + b"\0"


def test_any_user_may_connect(served: Served) -> None:
    assert stat.S_IMODE(served.path.stat().st_mode) == 0o666


def test_other_user_may_ask_for_families_and_not_for_evidence(
    tmp_path: Path, served: Served, monkeypatch: pytest.MonkeyPatch
) -> None:
    tmp_path.chmod(0o755)
    monkeypatch.chdir(tmp_path)
    with Server(served.server.genl) as server:
        server.add(UnixTransport(Path("other"), owner=12345))

        def ask() -> int:
            client = UnixConnection(Path("other"))
            number = family_id(client, "pci-tsm")
            (answer,) = do(client, evidence_request(number, 1, NAME))
            client.close()
            return answer.error if answer.type == NLMSG_ERROR else 0

        assert as_nobody(ask) == errno.EPERM


def test_owner_may_ask_for_evidence(served: Served) -> None:
    client = UnixConnection(served.path)
    client.send(evidence_request(family_id(client, "pci-tsm"), 1, NAME))
    assert read_evidence(client, 7, 4096).objects == {0: b""}
    client.close()


def test_empty_datagram_is_no_end(served: Served) -> None:
    client = UnixConnection(served.path)
    client.send(b"")
    assert family_id(client, "nlctrl") == NLCTRL
    client.close()


def test_client_that_goes_at_once_leaves_the_server_at_rest(served: Served) -> None:
    for _ in range(50):
        UnixConnection(served.path).close()
    time.sleep(0.1)
    before = time.process_time()
    time.sleep(0.3)
    assert time.process_time() - before < 0.1


def test_client_that_floods_is_one_of_many(served: Served) -> None:
    """It sends what is not answered as fast as it can, and another one is served."""
    flood, other = UnixConnection(served.path), UnixConnection(served.path)
    over = threading.Event()

    def send() -> None:
        while not over.is_set():
            flood.send(b"noise")

    thread = threading.Thread(target=send)
    thread.start()
    served.device.objects = {0: bytes(1 << 20)}
    other.send(evidence_request(family_id(other, "pci-tsm"), 1, NAME))
    evidence = read_evidence(other, 7, 4096)
    over.set()
    thread.join()
    assert evidence.objects == {0: bytes(1 << 20)}
    flood.close()
    other.close()


def test_reader_that_has_closed_its_sending_side_gets_its_answers(served: Served) -> None:
    served.device.objects = {0: bytes(1 << 20)}
    client = UnixConnection(served.path)
    number = family_id(client, "pci-tsm")
    client.send(evidence_request(number, 1, NAME))
    client.socket.shutdown(socket.SHUT_WR)
    assert read_evidence(client, 7, 4096).objects == {0: bytes(1 << 20)}
    assert client.recv() == b""
    client.close()


def test_client_that_reads_no_answers_gets_them_all_later(served: Served) -> None:
    client = UnixConnection(served.path)
    request = message(NLCTRL, REQUEST | ACK, genl(200)) * 3000
    client.send(request)
    answers = [one for _ in range(3000) for one in split(client.recv())]
    assert {one.error for one in answers} == {errno.EOPNOTSUPP}
    assert len(answers) == 3000
    client.close()


def test_path_in_use_is_refused_and_one_left_behind_is_taken(tmp_path: Path) -> None:
    path = tmp_path / "netlink"
    with socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET) as left:
        left.bind(str(path))
    with Server() as server, Server() as second:
        server.add(UnixTransport(path))
        with pytest.raises(OSError, match="in use"):
            second.add(UnixTransport(path))
        client = UnixConnection(path)
        assert family_id(client, "nlctrl") == NLCTRL
        client.close()


@pytest.mark.parametrize("path", ["a" * 200, "missing/netlink"])
def test_path_that_cannot_be_leaves_no_descriptor(tmp_path: Path, path: str) -> None:
    before = os.listdir("/proc/self/fd")
    with Server() as server, pytest.raises(OSError, match=r"too long|No such file"):
        server.add(UnixTransport(tmp_path / path))
    assert os.listdir("/proc/self/fd") == before


def test_server_whose_socket_cannot_be_watched_leaves_nothing(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = tmp_path / "netlink"
    transport = UnixTransport(path)
    before = os.listdir("/proc/self/fd")
    with Server() as server, monkeypatch.context() as patch:
        patch.setattr(Loop, "watch", no_space)
        with pytest.raises(OSError, match="No space left"):
            server.add(transport)
    assert os.listdir("/proc/self/fd") == before
    assert not path.exists()


def test_connection_that_cannot_be_watched_is_closed_and_the_next_one_is_served(
    served: Served, monkeypatch: pytest.MonkeyPatch
) -> None:
    with monkeypatch.context() as patch:
        patch.setattr(Loop, "watch", no_space)
        refused = UnixConnection(served.path)
        assert refused.recv() == b""
    client = UnixConnection(served.path)
    assert family_id(client, "nlctrl") == NLCTRL
    client.close()
    refused.close()


def test_connections_behind_one_that_cannot_be_watched_are_accepted(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Nothing tells of them again: they came before."""
    path = tmp_path / "netlink"
    loop = Loop()
    transport = UnixTransport(path)
    transport.start(Server(), loop)
    clients = [UnixConnection(path) for _ in range(2)]
    monkeypatch.setattr(loop, "watch", lambda *_: no_space(loop))
    assert [transport.step() for _ in range(3)] == [Next.AGAIN, Next.AGAIN, Next.WAIT]
    assert [client.recv() for client in clients] == [b"", b""]
    transport.stop()
    loop.stop()
    for client in clients:
        client.close()


def test_client_that_meets_a_bug_is_closed_and_others_are_served(
    served: Served, caplog: pytest.LogCaptureFixture
) -> None:
    def tap(direction: Direction, _port: int, datagram: bytes) -> None:
        if direction is Direction.RECEIVED and datagram == b"bug":
            raise RuntimeError("a bug")

    served.server.add_tap(tap)
    unlucky, other = UnixConnection(served.path), UnixConnection(served.path)
    unlucky.send(b"bug")
    assert unlucky.recv() == b""
    assert family_id(other, "nlctrl") == NLCTRL
    assert caplog.text.count("RuntimeError: a bug") == 1
    unlucky.close()
    other.close()


def no_space(_loop: Loop, *_: object) -> None:
    """What watching a descriptor does beyond ``max_user_watches``."""
    raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))


def test_connections_beyond_the_limit_are_closed(
    served: Served, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(unix, "MAX_CLIENTS", 2)
    clients = [UnixConnection(served.path) for _ in range(3)]
    assert [family_id(each, "nlctrl") for each in clients[:2]] == [NLCTRL] * 2
    assert clients[2].recv() == b""
    for each in clients:
        each.close()
