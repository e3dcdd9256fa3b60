# SPDX-License-Identifier: MIT
"""Reading evidence: what is refused in which order and words, and what arrives."""

from __future__ import annotations

import errno
import hashlib
import struct

import pytest
from hypothesis import given
from hypothesis import strategies as st

from netlink.af_netlink import NetlinkSock, netlink_dump, netlink_rcv
from netlink.evidence import serve_device_evidence, serve_pci_tsm
from netlink.genl import GenericNetlink
from tests.netlink.devices import BDF, Device, Provider
from tests.netlink.wire import (
    ACK,
    DUMP,
    MISS_TYPE,
    NLMSG_DONE,
    NLMSG_ERROR,
    OFFS,
    POLICY,
    REQUEST,
    Evidence,
    Message,
    attribute,
    attributes,
    evidence_request,
    genl,
    message,
    read_evidence,
    reader,
    split,
    u32,
)

PCI_TSM, DEVICE_EVIDENCE = 19, 20
NAME = BDF.encode() + b"\0"
ALL = 2047


class Direct:
    """A client of a registry without any transport, which reads when it likes."""

    def __init__(self, device: Device, *, admin: bool = True) -> None:
        self.registry = GenericNetlink()
        provider = Provider(**{BDF: device})
        serve_pci_tsm(self.registry, provider)
        serve_device_evidence(self.registry, provider)
        self.sock = NetlinkSock(42, admin)
        self.queue: list[bytes] = []

    def send(self, data: bytes) -> None:
        self.queue += map(bytes, netlink_rcv(self.registry, self.sock, data))

    def recv(self, buffer: int = 262144) -> bytes:
        datagram = self.queue.pop(0) if self.queue else bytes(netlink_dump(self.sock))
        assert len(datagram) <= buffer
        return datagram

    def close(self) -> None:
        pass

    def refusal(self, request: bytes) -> Message:
        """The one answer to a request that is refused before it begins."""
        self.send(request)
        assert self.sock.running is None
        (datagram,) = self.queue
        self.queue.clear()
        (answer,) = split(datagram)
        assert answer.type == NLMSG_ERROR
        return answer

    def read(self, request: bytes, **numbers: int) -> Evidence:
        self.send(request)
        return read_evidence(self, 7, 262144, **numbers)


@pytest.fixture
def device() -> Device:
    return Device({0: b"certificate", 9: bytes(range(256)) * 100})


@pytest.fixture
def client(device: Device) -> Direct:
    return Direct(device)


@pytest.mark.parametrize(
    ("request_", "error", "text"),
    [
        (
            evidence_request(PCI_TSM, None, None, flags=8),
            errno.EINVAL,
            "missing object request mask",
        ),
        (
            evidence_request(PCI_TSM, 0x10800, None, flags=8),
            errno.EINVAL,
            "unsupported object request 0x10800",
        ),
        (
            evidence_request(PCI_TSM, 0xFFFFFFFF, None),
            errno.EINVAL,
            "unsupported object request 0xfffff800",
        ),
        (evidence_request(PCI_TSM, 0, None, flags=2), errno.EINVAL, ""),
        (evidence_request(PCI_TSM, 0, None), errno.EINVAL, "missing device name"),
        (evidence_request(PCI_TSM, 0, b"a" * 32 + b"\0"), errno.EINVAL, ""),
        (
            evidence_request(PCI_TSM, 0, b"a" * 31 + b"\0"),
            errno.ENODEV,
            f"device '{'a' * 31}' not found",
        ),
        (evidence_request(PCI_TSM, 0, b"\0"), errno.ENODEV, "device '' not found"),
        (evidence_request(PCI_TSM, 0, NAME), errno.EINVAL, "no evidence type requested"),
    ],
)
def test_mistakes_are_reported_in_this_order(
    client: Direct, request_: bytes, error: int, text: str
) -> None:
    """Each request has the mistakes of those after it as well."""
    answer = client.refusal(request_)
    assert (answer.error, answer.text) == (error, text)


def test_what_is_missing_and_what_is_wrong_is_pointed_at(client: Direct) -> None:
    (mask, name) = (
        client.refusal(evidence_request(PCI_TSM, None, None)).extack,
        client.refusal(evidence_request(PCI_TSM, 1, None)).extack,
    )
    assert (mask[MISS_TYPE], name[MISS_TYPE]) == (u32(2), u32(4))
    # 20 bytes of headers, 8 of the mask, 8 of the flags.
    flags = client.refusal(evidence_request(PCI_TSM, 1, NAME, flags=2)).extack
    long = client.refusal(evidence_request(PCI_TSM, 1, b"a" * 40 + b"\0", flags=1)).extack
    assert (flags, long) == ({OFFS: u32(28)}, {OFFS: u32(36)})


@pytest.mark.parametrize(
    ("request_", "error", "offset"),
    [
        (evidence_request(PCI_TSM, 1, NAME, nonce=bytes(257)), errno.ERANGE, 28 + 20),
        (evidence_request(PCI_TSM, 1, NAME, nonce=bytes(300)), errno.ERANGE, 28 + 20),
        (evidence_request(PCI_TSM, 1, b"a" * 32), errno.EINVAL, 28),
        (evidence_request(PCI_TSM, 1, b""), errno.EINVAL, 28),
        (
            message(PCI_TSM, REQUEST | DUMP, genl(1, attribute(2, b"\1\0"))),
            errno.EINVAL,
            20,
        ),
    ],
)
def test_policy_comes_before_all_that(
    client: Direct, request_: bytes, error: int, offset: int
) -> None:
    answer = client.refusal(request_)
    assert (answer.error, answer.extack[OFFS]) == (error, u32(offset))
    assert POLICY in answer.extack


@pytest.mark.parametrize("kind", [0, 6, 7, 99])
def test_attribute_that_no_request_has_is_refused(client: Direct, kind: int) -> None:
    request = message(PCI_TSM, REQUEST | DUMP, genl(1, attribute(kind, b"")))
    answer = client.refusal(request)
    assert (answer.error, answer.text) == (errno.EINVAL, "Unknown attribute type")
    unsupported = message(PCI_TSM, REQUEST | DUMP, genl(1, attribute(1, u32(1))))
    assert client.refusal(unsupported).text == "Unsupported attribute"


def test_do_is_not_supported_and_others_are_not_permitted(device: Device) -> None:
    request = message(PCI_TSM, REQUEST, genl(1, attribute(2, u32(1)), attribute(4, NAME)))
    assert Direct(device).refusal(request).error == errno.EOPNOTSUPP
    nobody = Direct(device, admin=False)
    assert nobody.refusal(evidence_request(PCI_TSM, None, None)).error == errno.EPERM


def test_every_requested_type_is_answered_in_ascending_order(client: Direct) -> None:
    evidence = client.read(evidence_request(PCI_TSM, ALL, NAME))
    assert list(evidence.objects) == list(range(11))
    expected = dict.fromkeys(range(11), b"")
    assert evidence.objects == expected | {0: b"certificate", 9: bytes(range(256)) * 100}
    assert evidence.done is not None
    assert (evidence.done.type, evidence.done.error) == (NLMSG_DONE, 0)


def test_bytes_after_a_nul_count_for_the_length_of_a_name_only(client: Direct) -> None:
    assert client.read(evidence_request(PCI_TSM, 1, NAME + b"more\0")).objects == {
        0: b"certificate"
    }
    long = evidence_request(PCI_TSM, 1, NAME + b"x" * 40 + b"\0")
    assert client.refusal(long).extack == {OFFS: u32(28)}


def test_messages_that_go_on_have_no_type(client: Direct, device: Device) -> None:
    client.send(evidence_request(PCI_TSM, 1 << 9, NAME))
    first = []
    while client.queue or client.sock.running:
        for one in split(client.recv()):
            if one.type == PCI_TSM:
                assert one.payload[:4] == b"\1\1\0\0"
                first.append([kind for kind, _ in attributes(one.payload[4:])])
    assert first == [[1, 6]] + [[6]] * (len(first) - 1)
    assert len(first) == 7


def test_first_datagrams_are_as_full_as_the_kernels(client: Direct) -> None:
    """Of 3776 bytes: 20 of headers, 8 of the type, 4 of the value, 4 for its padding."""
    evidence = client.read(evidence_request(PCI_TSM, 1 << 9, NAME))
    assert evidence.datagrams[:3] == [3772, 3772, 3772]


def test_digest_is_that_of_the_tsm_or_empty(client: Direct) -> None:
    evidence = client.read(evidence_request(PCI_TSM, 0b11, NAME, flags=1))
    assert evidence.objects == {0: hashlib.sha384(b"certificate").digest(), 1: b""}


def done(evidence: Evidence) -> tuple[int, str]:
    assert evidence.done is not None
    assert evidence.done.type == NLMSG_DONE
    return evidence.done.error, evidence.done.text


@pytest.mark.parametrize(
    ("present", "text"), [(None, "no TSM context"), (0, "no evidence available")]
)
def test_device_without_evidence_ends_the_dump(
    client: Direct, device: Device, present: int | None, text: str
) -> None:
    device.present = present
    evidence = client.read(evidence_request(PCI_TSM, ALL, NAME))
    assert (done(evidence), evidence.objects) == ((errno.ENXIO, text), {})


@pytest.mark.parametrize(
    ("present", "error", "text"),
    [(2, errno.EAGAIN, "evidence updated during read"), (None, errno.ENXIO, "no TSM context")],
)
@pytest.mark.parametrize("before", [0, 1, 5])
def test_change_during_a_dump_ends_it(
    client: Direct, device: Device, present: int | None, error: int, text: str, before: int
) -> None:
    client.send(evidence_request(PCI_TSM, 1 << 9, NAME))
    datagrams = [client.recv() for _ in range(before + 1)]
    device.present = present
    datagrams.append(client.recv())
    assert client.sock.running is None
    last = list(split(datagrams[-1]))
    assert [(one.type, one.error, one.text) for one in last] == [(NLMSG_DONE, error, text)]


def test_change_during_a_read_is_seen(device: Device) -> None:
    """The evidence is replaced after its content was read and before it is sent."""

    class Racing(Device):
        def read(self, kind: int, offset: int, count: int) -> bytes:
            content = super().read(kind, offset, count)
            self.present = 2
            return content

    evidence = Direct(Racing(device.objects)).read(evidence_request(PCI_TSM, 1, NAME))
    assert done(evidence) == (errno.EAGAIN, "evidence updated during read")
    assert evidence.objects == {}


def test_read_that_fails_for_a_change_is_that_change(device: Device) -> None:
    class Gone(Device):
        def read(self, kind: int, offset: int, count: int) -> bytes:
            self.present = None
            raise KeyError(kind)

    evidence = Direct(Gone(device.objects)).read(evidence_request(PCI_TSM, 1, NAME))
    assert done(evidence) == (errno.ENXIO, "no TSM context")


@pytest.mark.parametrize("short", [True, False])
def test_read_that_fails_without_a_change_is_an_error(device: Device, short: bool) -> None:
    class Bad(Device):
        def read(self, kind: int, offset: int, count: int) -> bytes:
            if short:
                return b""
            raise OSError(errno.EIO, "the store is broken")

    evidence = Direct(Bad(device.objects)).read(evidence_request(PCI_TSM, 1, NAME))
    assert done(evidence)[0] == errno.EIO


def test_nonce_refreshes_once_before_the_first_message(client: Direct, device: Device) -> None:
    nonce = bytes(256)
    evidence = client.read(evidence_request(PCI_TSM, ALL, NAME, nonce=nonce))
    assert done(evidence) == (0, "")
    assert (device.refreshed, device.present) == ([nonce], 2)


def test_nonce_makes_the_first_evidence(client: Direct, device: Device) -> None:
    device.present = 0
    evidence = client.read(evidence_request(PCI_TSM, 1, NAME, nonce=b"n"))
    assert (done(evidence), evidence.objects) == ((0, ""), {0: b"certificate"})


def test_empty_nonce_is_none(client: Direct, device: Device) -> None:
    assert done(client.read(evidence_request(PCI_TSM, 1, NAME, nonce=b""))) == (0, "")
    assert device.refreshed == []


@pytest.mark.parametrize(
    ("error", "text"),
    [
        (errno.EOPNOTSUPP, "evidence refresh failed: -95"),
        (errno.EIO, "evidence refresh failed: -5"),
        (errno.ENXIO, "the TSM says no"),
    ],
)
def test_refresh_that_fails_ends_the_dump(
    client: Direct, device: Device, error: int, text: str
) -> None:
    device.refresh_error = error
    evidence = client.read(evidence_request(PCI_TSM, ALL, NAME, nonce=b"nonce"))
    assert (done(evidence), evidence.objects) == ((error, text), {})


@given(
    st.dictionaries(st.integers(0, 10), st.integers(0, 9000).map(bytes), max_size=4),
    st.integers(1, 2047),
    st.sampled_from([0, 4096, 5000, 32768]),
)
def test_any_objects_arrive_whole(objects: dict[int, bytes], mask: int, buffer: int) -> None:
    client = Direct(Device(objects))
    request = (reader(buffer) if buffer else b"") + evidence_request(PCI_TSM, mask, NAME)
    evidence = client.read(request)
    assert evidence.objects == {
        kind: objects.get(kind, b"") for kind in range(11) if mask >> kind & 1
    }


# device-evidence


def request2(
    cmd: int = 1,
    *,
    mask: int | None = None,
    flags: int | None = None,
    subsys: bytes | None = None,
    name: bytes | None = None,
    nonce: bytes | None = None,
    generation: int | None = None,
) -> bytes:
    """A request of ``device-evidence``; None leaves an attribute out."""
    wanted = [
        attribute(kind, payload)
        for kind, payload in (
            (2, None if mask is None else u32(mask)),
            (3, None if flags is None else u32(flags)),
            (4, subsys),
            (5, name),
            (6, nonce),
            (7, None if generation is None else u32(generation)),
        )
        if payload is not None
    ]
    return message(DEVICE_EVIDENCE, REQUEST | (DUMP if cmd == 1 else ACK), genl(cmd, *wanted))


PCI = b"pci\0"


@pytest.mark.parametrize(
    ("request_", "error", "text"),
    [
        (request2(), errno.EINVAL, "missing subsystem"),
        (request2(subsys=b"x" * 32 + b"\0"), errno.EINVAL, ""),
        (request2(subsys=b"usb\0"), errno.EINVAL, "missing device name"),
        (request2(subsys=b"usb\0", name=b"x" * 32 + b"\0"), errno.EINVAL, ""),
        (
            request2(subsys=b"usb\0", name=b"x\0"),
            errno.EOPNOTSUPP,
            "no evidence from subsystem 'usb'",
        ),
        (request2(subsys=PCI, name=b"x\0"), errno.ENODEV, "device 'x' not found"),
        (request2(subsys=PCI, name=NAME), errno.EINVAL, "missing object request mask"),
        (
            request2(subsys=PCI, name=NAME, mask=4096, flags=2),
            errno.EINVAL,
            "unsupported object request 0x1000",
        ),
        (request2(subsys=PCI, name=NAME, mask=0, flags=2), errno.EINVAL, ""),
        (request2(subsys=PCI, name=NAME, mask=0), errno.EINVAL, "no evidence type requested"),
        (
            request2(subsys=PCI, name=NAME, mask=1, nonce=bytes(33)),
            errno.ERANGE,
            "binary attribute size out of range",
        ),
    ],
)
def test_device_evidence_looks_at_the_device_first(
    client: Direct, request_: bytes, error: int, text: str
) -> None:
    answer = client.refusal(request_)
    assert (answer.error, answer.text) == (error, text)


@pytest.mark.parametrize(
    ("present", "text"), [(None, "no TSM context"), (0, "no evidence available")]
)
def test_device_without_evidence_is_no_device(
    client: Direct, device: Device, present: int | None, text: str
) -> None:
    device.present = present
    answer = client.refusal(request2(subsys=PCI, name=NAME, mask=1))
    assert (answer.error, answer.text) == (errno.ENODEV, text)


def test_first_message_has_generation_and_length(client: Direct, device: Device) -> None:
    device.present = 77
    evidence = client.read(request2(subsys=PCI, name=NAME, mask=ALL), val=10)
    assert evidence.objects[9] == device.objects[9]
    assert list(evidence.heads) == list(range(11))
    for kind, head in evidence.heads.items():
        size = len(device.objects.get(kind, b""))
        assert head == {1: u32(kind), 7: u32(77), 9: u32(size)}


def test_nonce_shows_in_the_generation(client: Direct) -> None:
    evidence = client.read(request2(subsys=PCI, name=NAME, mask=1, nonce=bytes(32)), val=10)
    assert struct.unpack("=I", evidence.heads[0][7]) == (2,)


def test_validate_takes_the_current_generation_only(client: Direct, device: Device) -> None:
    device.present = 5
    good = client.refusal(request2(2, subsys=PCI, name=NAME, generation=5))
    assert (good.error, device.validated) == (0, 5)
    for generation in (0, 4, 6, 2**32 - 1):
        stale = client.refusal(request2(2, subsys=PCI, name=NAME, generation=generation))
        assert (stale.error, stale.text) == (errno.EAGAIN, "not the current generation")
        assert stale.extack[OFFS] == u32(20 + 8 + 20)
    assert device.validated == 5


def test_validate_needs_a_generation_and_is_for_administrators(
    client: Direct, device: Device
) -> None:
    missing = client.refusal(request2(2, subsys=PCI, name=NAME))
    assert (missing.error, missing.text) == (errno.EINVAL, "missing generation")
    assert missing.extack[MISS_TYPE] == u32(7)
    nobody = Direct(device, admin=False)
    request = request2(2, subsys=PCI, name=NAME, generation=1)
    assert nobody.refusal(request).error == errno.EPERM
    assert nobody.refusal(request2()).error == errno.EPERM


def test_validate_passes_other_errors_on(device: Device) -> None:
    class Refuses(Device):
        def validate(self, generation: int) -> None:
            raise OSError(errno.EPERM, "not by you")

    answer = Direct(Refuses()).refusal(request2(2, subsys=PCI, name=NAME, generation=1))
    assert (answer.error, answer.text) == (errno.EPERM, "not by you")


def test_provider_that_fails_in_another_way_is_heard(device: Device) -> None:
    client = Direct(device)

    class Busy(Provider):
        def open(self, subsys: str, name: str) -> Device:
            raise OSError(errno.EINTR, "interrupted")

    client.registry.unregister("pci-tsm")
    serve_pci_tsm(client.registry, Busy())
    answer = client.refusal(evidence_request(PCI_TSM, 1, NAME))
    assert (answer.error, answer.text) == (errno.EINTR, "interrupted")
