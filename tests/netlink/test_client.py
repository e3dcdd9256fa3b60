# SPDX-License-Identifier: MIT
"""The client: families, dumps put together, refusals as exceptions, over every transport."""

from __future__ import annotations

import contextlib
import errno
import hashlib
import os
import socket
import struct
import threading
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from netlink.client import (
    DeviceEvidenceClient,
    EvidenceClient,
    ExtAckError,
    GenlClient,
    PciTsmClient,
    Piece,
    attribute_at,
    evidence_types,
)
from netlink.codec import READER
from netlink.connection import KERNEL, Connection, Endpoint, UnixEndpoint, connect, usersock
from netlink.spec import builtin, parse
from tests.netlink import wire
from tests.netlink.conftest import Served
from tests.netlink.devices import BDF

FAMILIES = pytest.mark.parametrize("family", [PciTsmClient, DeviceEvidenceClient])


@pytest.fixture(params=["unix", "usersock"])
def endpoint(request: pytest.FixtureRequest, served: Served) -> Endpoint:
    return UnixEndpoint(served.path) if request.param == "unix" else usersock(served.port)


# --- Families --------------------------------------------------------------------------------


def test_families_are_listed_with_their_operations(endpoint: Endpoint) -> None:
    with GenlClient(connect(endpoint)) as client:
        families = {family.name: family for family in client.families()}
        assert set(families) == {"nlctrl", "pci-tsm", "device-evidence"}
        assert families["pci-tsm"].ops == {1: 0x0D}
        assert families["device-evidence"].ops == {1: 0x0D, 2: 0x0B}
        assert client.family("pci-tsm") == families["pci-tsm"]


def test_family_that_is_not_there_is_enoent(endpoint: Endpoint) -> None:
    with GenlClient(connect(endpoint)) as client, pytest.raises(ExtAckError) as refused:
        client.family("nosuch")
    assert (refused.value.errno, refused.value.msg) == (errno.ENOENT, None)
    assert str(refused.value) == "No such file or directory"


def test_running_kernel_is_a_server_too() -> None:
    with GenlClient(connect(KERNEL)) as client:
        nlctrl = client.family("nlctrl")
        assert (nlctrl.id, nlctrl.name, nlctrl.groups) == (16, "nlctrl", {"notify": 16})
        assert nlctrl in client.families()
        with pytest.raises(ExtAckError, match="No such file"):
            client.family("pci-nosuch")
        with pytest.raises(ExtAckError) as refused:
            client.family("a-name-beyond-the-limit")
        assert refused.value.attribute == "family-name"


# --- Evidence --------------------------------------------------------------------------------


@FAMILIES
@pytest.mark.parametrize("buffer", [4096, 8192, 32768, 1 << 20])
def test_objects_of_any_size_arrive_exact_whatever_the_buffer(
    served: Served, endpoint: Endpoint, family: type[EvidenceClient], buffer: int
) -> None:
    sizes = {0: 1, 3: 65531, 4: 65532, 8: 0, 9: 65536, 10: 300_000}
    served.device.objects = {kind: os.urandom(size) for kind, size in sizes.items()}
    with family(connect(endpoint, buffer)) as client:
        objects = client.read(BDF)
    assert list(objects) == list(evidence_types())
    assert objects == {
        name: served.device.objects.get(kind, b"") for kind, name in enumerate(evidence_types())
    }


@FAMILIES
def test_object_of_16_mib_arrives_exact(
    served: Served, endpoint: Endpoint, family: type[EvidenceClient]
) -> None:
    served.device.objects = {9: os.urandom(16 << 20)}
    with family(connect(endpoint)) as client:
        assert client.read(BDF, ["measurements"]) == {"measurements": served.device.objects[9]}


@FAMILIES
def test_digests_are_those_of_the_tsm(
    served: Served, endpoint: Endpoint, family: type[EvidenceClient]
) -> None:
    served.device.objects = {0: b"certificates"}
    with family(connect(endpoint)) as client:
        digests = client.read(BDF, ["cert0", "vca"], digest=True)
    assert digests == {"cert0": hashlib.sha384(b"certificates").digest(), "vca": b""}


@FAMILIES
def test_nonce_asks_for_new_evidence(
    served: Served, endpoint: Endpoint, family: type[EvidenceClient]
) -> None:
    with family(connect(endpoint)) as client:
        client.read(BDF, nonce=b"0123")
    assert served.device.refreshed == [b"0123"]
    assert client.generation == (2 if family is DeviceEvidenceClient else None)


def test_progress_tells_what_there_is_of_how_much(served: Served, endpoint: Endpoint) -> None:
    served.device.objects = {9: bytes(100_000)}
    shown: list[Piece] = []
    with DeviceEvidenceClient(connect(endpoint)) as client:
        client.read(BDF, ["vca", "measurements"], progress=shown.append)
    assert [(one.kind, one.received, one.length) for one in (shown[0], shown[-1])] == [
        ("vca", 0, 0),
        ("measurements", 100_000, 100_000),
    ]
    assert all(len(one.data) <= one.received for one in shown)
    assert len(shown) > 3


def test_length_of_objects_is_not_told_by_pci_tsm(served: Served, endpoint: Endpoint) -> None:
    with PciTsmClient(connect(endpoint)) as client:
        assert {piece.length for piece in client.pieces(BDF)} == {None}


def test_current_generation_can_be_validated_and_no_other(
    served: Served, endpoint: Endpoint
) -> None:
    with DeviceEvidenceClient(connect(endpoint)) as client:
        client.read(BDF, ["vca"])
        assert client.generation is not None
        client.validate(BDF, client.generation)
        assert served.device.validated == client.generation
        with pytest.raises(ExtAckError) as refused:
            client.validate(BDF, client.generation + 1)
    assert (refused.value.errno, refused.value.attribute) == (errno.EAGAIN, "generation")


# --- Refusals --------------------------------------------------------------------------------


def test_refusal_has_errno_and_message(endpoint: Endpoint) -> None:
    with PciTsmClient(connect(endpoint)) as client:
        with pytest.raises(ExtAckError) as refused:
            client.read("0000:02:00.0")
        assert refused.value.errno == errno.ENODEV
        assert refused.value.msg == "device '0000:02:00.0' not found"
        assert str(refused.value) == "No such device: device '0000:02:00.0' not found"
        with pytest.raises(ExtAckError, match="no evidence type requested"):
            client.read(BDF, [])


def test_refusal_names_the_attribute_that_is_to_blame(endpoint: Endpoint) -> None:
    with PciTsmClient(connect(endpoint)) as client:
        with pytest.raises(ExtAckError) as refused:
            client.read("x" * 32)
        assert (refused.value.errno, refused.value.attribute) == (errno.EINVAL, "dev-name")
        with pytest.raises(ExtAckError) as refused:
            client.read(BDF, nonce=bytes(300))
    assert (refused.value.errno, refused.value.attribute) == (errno.ERANGE, "nonce")
    assert refused.value.policy is not None
    assert str(refused.value).endswith("binary attribute size out of range (attribute nonce)")


def test_refusal_names_the_attribute_that_is_missing(endpoint: Endpoint) -> None:
    with GenlClient(connect(endpoint)) as client, pytest.raises(ExtAckError) as refused:
        list(client.dump(builtin("pci-tsm"), "evidence-read", {"dev-name": BDF}))
    assert refused.value.missing == "type-mask"
    assert str(refused.value) == (
        "Invalid argument: missing object request mask (without attribute type-mask)"
    )


def test_dump_that_ends_early_raises_what_it_ended_with(served: Served, endpoint: Endpoint) -> None:
    served.device.objects = {9: bytes(4 << 20)}
    with PciTsmClient(connect(endpoint)) as client:
        pieces = client.pieces(BDF)
        next(pieces)
        served.device.present = 5
        with pytest.raises(ExtAckError, match="evidence updated during read") as ended:
            list(pieces)
        assert ended.value.errno == errno.EAGAIN
        assert len(client.read(BDF)["measurements"]) == 4 << 20


def test_operation_that_the_family_does_not_have_is_not_asked_for(endpoint: Endpoint) -> None:
    with GenlClient(connect(endpoint)) as client, pytest.raises(ExtAckError) as refused:
        client.do(builtin("pci-tsm"), "evidence-read", {})
    assert refused.value.errno == errno.EOPNOTSUPP


def test_attribute_in_a_nest_is_named_with_the_nest() -> None:
    family = parse(
        "name: x\ndoc: x\nattribute-sets:\n"
        "- {name: in, attributes: [{name: leaf, type: u32}]}\n"
        "- {name: out, attributes: [{name: nest, type: nest, nested-attributes: in},"
        " {name: word, type: u32}]}\n"
        "operations: {list: []}\n"
    )
    nest = wire.attribute(1 | wire.NLA_F_NESTED, wire.attribute(1, wire.u32(5)))
    request = wire.message(
        20, 0, wire.genl(1, nest, wire.attribute(2, wire.u32(5)), wire.attribute(77, b""))
    )
    named = {
        offset: attribute_at(family, family.attribute_sets["out"], request, offset)
        for offset in range(len(request))
    }
    assert {offset: name for offset, name in named.items() if name is not None} == {
        20: "nest",
        24: "nest.leaf",
        32: "word",
        40: "77",
    }


# --- One connection, many requests -----------------------------------------------------------


def test_dump_that_is_not_read_to_its_end_is_given_up(served: Served, endpoint: Endpoint) -> None:
    served.device.objects = {9: os.urandom(4 << 20)}
    with PciTsmClient(connect(endpoint)) as client:
        pieces = client.pieces(BDF)
        next(pieces)
        assert client.read(BDF)["measurements"] == served.device.objects[9]
        with pytest.raises(OSError, match="canceled") as cancelled:
            list(pieces)
        assert cancelled.value.errno == errno.ECANCELED


def test_client_that_was_closed_in_mid_dump_is_not_taken_for_the_next(
    served: Served, endpoint: Endpoint
) -> None:
    served.device.objects = {9: os.urandom(4 << 20)}
    for _ in range(5):
        with PciTsmClient(connect(endpoint)) as client:
            next(client.pieces(BDF))
        with PciTsmClient(connect(endpoint)) as client:
            assert client.read(BDF)["measurements"] == served.device.objects[9]


def test_path_without_a_server_is_named(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError) as refused:
        connect(UnixEndpoint(tmp_path / "none"))
    assert refused.value.filename == str(tmp_path / "none")


def test_port_without_a_server_is_refused() -> None:
    with pytest.raises(ConnectionRefusedError):
        connect(usersock(0x7FFF_FFF1))


def test_connection_that_is_refused_leaves_no_descriptor() -> None:
    before = os.listdir("/proc/self/fd")
    with pytest.raises(ConnectionRefusedError) as refused:
        connect(usersock(0x7ABC_DEF1))
    assert os.listdir("/proc/self/fd") == before
    # Up to here its traceback has kept the connection from the collector.
    assert refused.tb is not None


def test_server_that_goes_is_noticed(
    served: Served, endpoint: Endpoint, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("netlink.connection.PROBE_INTERVAL", 0.05)
    with connect(endpoint) as connection:
        ending = threading.Timer(0.2, served.server.close)
        ending.start()
        with pytest.raises(ConnectionError):
            connection.recv()
        ending.join()


def test_datagrams_of_others_are_passed_over(served: Served) -> None:
    with PciTsmClient(connect(usersock(served.port))) as client:
        port, _ = client.connection._socket.getsockname()
        other = wire.NetlinkConnection(socket.NETLINK_USERSOCK, port)
        for seq in range(5):
            other.send(wire.message(wire.NLMSG_DONE, 0, struct.pack("=i", -errno.EIO), seq=seq))
        assert client.read(BDF, ["vca"]) == {"vca": b""}
        other.close()


# --- Servers that send nonsense --------------------------------------------------------------

FAMILY_19 = wire.genl(1, wire.attribute(1, struct.pack("=H", 19)), wire.attribute(2, b"pci-tsm\0"))


def found_family(seq: int) -> list[bytes]:
    return [
        wire.message(wire.NLCTRL, 0, FAMILY_19, seq=seq),
        wire.message(wire.NLMSG_ERROR, wire.CAPPED, struct.pack("=iIHHII", 0, *[0] * 5), seq=seq),
    ]


def reply(seq: int, *attributes: bytes) -> bytes:
    return wire.message(19, wire.MULTI, wire.genl(1, *attributes), seq=seq)


def received(peer: socket.socket) -> bytes:
    try:
        return peer.recv(65536)
    except ConnectionResetError:
        # The client has gone without having read everything.
        return b""


@contextlib.contextmanager
def fake_server(path: Path, answers: Callable[[int], list[bytes]]) -> Iterator[Connection]:
    """A connection to a server that answers its second request with what it is told to."""

    def serve() -> None:
        peer, _ = listener.accept()
        with peer:
            while request := received(peer):
                _, kind, _, seq, _ = struct.unpack_from("=IHHII", request)
                if kind == wire.NLMSG_NOOP:
                    buffer, options = READER.unpack(request[16:])
                    assert (buffer, options) == (32768, 1 << 11)
                    continue
                for answer in found_family(seq) if kind == wire.NLCTRL else answers(seq):
                    peer.send(answer)

    with socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET) as listener:
        listener.bind(str(path))
        listener.listen()
        thread = threading.Thread(target=serve)
        thread.start()
        with connect(UnixEndpoint(path)) as connection:
            yield connection
        thread.join()


VAL = wire.attribute(6, b"content")
DONE = struct.pack("=i", 0)


@pytest.mark.parametrize(
    "answers",
    [
        lambda seq: [b"short"],
        lambda seq: [wire.message(19, 0, b"", seq=seq, length=400)],
        lambda seq: [wire.message(wire.NLMSG_DONE, 0, b"", seq=seq)],
        lambda seq: [wire.message(wire.NLMSG_ERROR, 0, b"\1", seq=seq)],
        lambda seq: [reply(seq, VAL)],
        lambda seq: [reply(seq, wire.attribute(1, wire.u32(99)), VAL)],
        lambda seq: [reply(seq, wire.attribute(1, b""), VAL)],
        lambda seq: [reply(seq, wire.attribute(1, wire.u32(1), length=3000), VAL)],
    ],
    ids=[
        "no header",
        "too long",
        "done without status",
        "error without status",
        "no type",
        "unknown type",
        "type without a number",
        "attribute beyond its message",
    ],
)
def test_what_is_no_answer_is_ebadmsg(
    tmp_path: Path, answers: Callable[[int], list[bytes]]
) -> None:
    def then_done(seq: int) -> list[bytes]:
        return [*answers(seq), wire.message(wire.NLMSG_DONE, wire.MULTI, DONE, seq=seq)]

    with (
        fake_server(tmp_path / "s", then_done) as connection,
        pytest.raises(OSError, match=r".") as failed,
    ):
        PciTsmClient(connection).read(BDF)
    assert failed.value.errno == errno.EBADMSG


def test_answers_to_others_and_unknown_attributes_are_passed_over(tmp_path: Path) -> None:
    def answers(seq: int) -> list[bytes]:
        return [
            reply(seq + 7, wire.attribute(1, wire.u32(0)), VAL),
            wire.message(77, 0, b"", seq=seq),
            reply(seq, wire.attribute(1, wire.u32(3)), wire.attribute(99, b"new"), VAL)
            + reply(seq, VAL)
            + wire.message(wire.NLMSG_DONE, wire.MULTI, DONE, seq=seq),
        ]

    with fake_server(tmp_path / "s", answers) as connection:
        assert PciTsmClient(connection).read(BDF) == {"cert3": b"contentcontent"}


@pytest.mark.parametrize("sizes", [(10, 7), (0, 14), (7, 0)], ids=["less", "none", "more"])
def test_object_that_is_not_as_long_as_was_said_is_ebadmsg(
    tmp_path: Path, sizes: tuple[int, int]
) -> None:
    def answers(seq: int) -> list[bytes]:
        length, second = sizes
        heads = [wire.attribute(1, wire.u32(0)), wire.attribute(9, wire.u32(length))]
        parts = [wire.attribute(10, bytes(7)), wire.attribute(10, bytes(second))]
        return [
            reply(seq, *heads, *parts[:1]),
            reply(seq, *parts[1:]),
            wire.message(wire.NLMSG_DONE, wire.MULTI, DONE, seq=seq),
        ]

    total = 7 + sizes[1]
    with fake_server(tmp_path / "s", answers) as connection:
        client = DeviceEvidenceClient(connection)
        if total == sizes[0]:
            assert client.read(BDF) == {"cert0": bytes(total)}
            return
        with pytest.raises(OSError, match=f"{total} bytes of an object of {sizes[0]}"):
            client.read(BDF)


def test_capped_error_is_understood(tmp_path: Path) -> None:
    def answers(seq: int) -> list[bytes]:
        echoed = struct.pack("=IHHII", 56, 19, 0x301, seq, 0)
        tlvs = wire.attribute(wire.MSG, b"why\0") + wire.attribute(wire.OFFS, wire.u32(28))
        payload = struct.pack("=i", -errno.EINVAL) + echoed + tlvs
        flags = wire.CAPPED | wire.ACK_TLVS
        return [wire.message(wire.NLMSG_ERROR, flags, payload, seq=seq)]

    with (
        fake_server(tmp_path / "s", answers) as connection,
        pytest.raises(ExtAckError) as refused,
    ):
        PciTsmClient(connection).read(BDF)
    assert (refused.value.msg, refused.value.attribute) == ("why", "flags")
