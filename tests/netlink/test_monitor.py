# SPDX-License-Identifier: MIT
"""Recorded datagrams as text: records put together from pieces, messages decoded, noise shown."""

from __future__ import annotations

import errno
import re
import struct
import time

import pytest
from hypothesis import given
from hypothesis import strategies as st

from netlink.client import DeviceEvidenceClient, ExtAckError, GenlClient, PciTsmClient
from netlink.connection import UnixEndpoint, connect
from netlink.monitor import Decoder, Record, Records, known_families
from netlink.record import RECORD
from netlink.server import Direction
from tests.netlink import wire
from tests.netlink.conftest import Served
from tests.netlink.devices import BDF
from tsmfs.kernel.printk import ByteRing

NUMBERS = {"pci-tsm": 19, "device-evidence": 20}


def pack(record: Record) -> bytes:
    return (
        RECORD.pack(len(record.datagram), record.sent, record.time_ns, record.port, 0)
        + record.datagram
    )


def render(datagram: bytes, sent: bool = False) -> list[str]:
    """The lines of a datagram without the time."""
    record = Record(sent, 1_000_000_000, 7, datagram)
    lines = list(Decoder(NUMBERS).render(record))
    return [re.sub(r"^\d\d:\d\d:\d\d\.000000 port 7 ", "", line) for line in lines]


# --- Records ---------------------------------------------------------------------------------


@st.composite
def recorded(draw: st.DrawFn) -> list[Record]:
    return [
        Record(draw(st.booleans()), time.time_ns(), draw(st.integers(0, 2**32 - 1)), datagram)
        for datagram in draw(st.lists(st.binary(max_size=60), max_size=6))
    ]


@given(recorded(), st.integers(1, 100))
def test_records_are_whole_however_they_are_read(expected: list[Record], size: int) -> None:
    records = Records()
    stream = b"".join(map(pack, expected))
    pieces = [stream[start : start + size] for start in range(0, len(stream), size)]
    found = [one for piece in pieces for one in records.feed(piece)]
    # A piece that starts with a whole header cannot be told from one after a gap.
    if not any(_header_at(stream, start, expected) for start in range(0, len(stream), size)):
        assert found == expected
    assert records.lost <= len(pieces)


def _header_at(stream: bytes, start: int, expected: list[Record]) -> bool:
    """Whether a piece that starts in the middle of a record looks like the start of another."""
    begins = {0}
    for record in expected:
        begins.add(max(begins) + len(pack(record)))
    return start not in begins and len(stream) - start >= RECORD.size and _plausible(stream[start:])


def _plausible(data: bytes) -> bool:
    size, sent, time_ns, _, zero = RECORD.unpack_from(data)
    return size < 1 << 20 and sent < 2 and not zero and abs(time_ns - time.time_ns()) < 10**14


def test_records_that_were_dropped_leave_no_fragment() -> None:
    ring, records, decoded = ByteRing(2000), Records(), []
    offset = start = ring.start
    for number in range(100):
        ring.append(pack(Record(True, time.time_ns(), number, bytes([number]) * 300)))
        if number % 3 == 0:
            # As the control file does it, with a reader that is too slow and reads odd amounts.
            start = max(start, ring.start - offset)
            piece = ring.read(start + offset, 500)
            offset += len(piece)
            decoded += list(records.feed(piece))
    assert records.lost > 10
    assert len(decoded) > 10
    assert all(record.datagram == bytes([record.port]) * 300 for record in decoded)


# --- Messages --------------------------------------------------------------------------------


@pytest.fixture
def tapped(served: Served) -> list[Record]:
    """What passes the server."""
    records: list[Record] = []

    def tap(direction: Direction, port: int, datagram: bytes) -> None:
        records.append(Record(direction is Direction.SENT, 0, port, datagram))

    served.server.add_tap(tap)
    return records


def test_exchange_is_shown_by_the_names_of_the_specification(
    served: Served, tapped: list[Record]
) -> None:
    served.device.objects = {0: b"c" * 40}
    with DeviceEvidenceClient(connect(UnixEndpoint(served.path))) as client:
        client.read(BDF, ["cert0", "vca"])
        client.validate(BDF, 1)
        with pytest.raises(ExtAckError):
            client.validate(BDF, 2)
    decoder = Decoder({})
    lines = [line for record in tapped for line in decoder.render(record)]
    assert [re.sub(r"^\d\d:\d\d:\d\d\.000000 port 1 ", "", line) for line in lines] == [
        "-> noop, seq 0, 24 bytes",
        "  buffer: 32768",
        "  options: ext-ack",
        "-> nlctrl getfamily request ack, seq 1, 40 bytes",
        "  family-name: device-evidence",
        "<- nlctrl getfamily, seq 1, 116 bytes",
        "  family-name: device-evidence",
        "  family-id: 20",
        "  version: 1",
        "  hdrsize: 0",
        "  maxattr: 0",
        "  ops:",
        "    1:",
        "      id: 1",
        "      flags: 13 (admin-perm cmd-cap-dump cmd-cap-haspol)",
        "    2:",
        "      id: 2",
        "      flags: 11 (admin-perm cmd-cap-do cmd-cap-haspol)",
        "<- ack capped, success, seq 1, 36 bytes",
        "  of nlctrl, seq 1",
        "-> device-evidence read request dump, seq 2, 64 bytes",
        "  type-mask: 257",
        "  flags: 0",
        "  subsys: pci",
        "  dev-name: 0000:01:00.0",
        "<- device-evidence read multi, seq 2, 88 bytes",
        "  type: 0 (cert0)",
        "  generation: 1",
        "  length: 40",
        "  val: 40 bytes: 63 63 63 63 63 63 63 63 63 63 63 63 63 63 63 63 ...",
        "<- device-evidence read multi, seq 2, 48 bytes",
        "  type: 8 (vca)",
        "  generation: 1",
        "  length: 0",
        "  val: 0 bytes",
        "<- done multi, success, seq 2, 20 bytes",
        "-> device-evidence validate request ack, seq 3, 56 bytes",
        "  subsys: pci",
        "  dev-name: 0000:01:00.0",
        "  generation: 1",
        "<- ack capped, success, seq 3, 36 bytes",
        "  of device-evidence, seq 3",
        "-> device-evidence validate request ack, seq 4, 56 bytes",
        "  subsys: pci",
        "  dev-name: 0000:01:00.0",
        "  generation: 2",
        "<- error tlvs, EAGAIN (Resource temporarily unavailable), seq 4, 116 bytes",
        "  of device-evidence validate, seq 4",
        "  msg: not the current generation",
        "  offs: 48 (generation)",
    ]


def test_refusal_is_shown_with_the_attribute_that_is_missing(
    served: Served, tapped: list[Record]
) -> None:
    with (
        GenlClient(connect(UnixEndpoint(served.path))) as client,
        pytest.raises(ExtAckError),
    ):
        list(client.dump(known_families()["pci-tsm"], "evidence-read", {"dev-name": BDF}))
    lines = list(Decoder(NUMBERS).render(tapped[-1]))
    assert lines[2:] == ["  msg: missing object request mask", "  miss-type: 2 (type-mask)"]


def test_policies_and_other_nests_are_shown(served: Served, tapped: list[Record]) -> None:
    with PciTsmClient(connect(UnixEndpoint(served.path))) as client:
        values = {"family-name": "pci-tsm"}
        list(client.dump(known_families()["nlctrl"], "getpolicy", values))
        with pytest.raises(ExtAckError):
            client.read(BDF, nonce=bytes(300))
    shown = [line for record in tapped for line in Decoder(NUMBERS).render(record)]
    assert "  op-policy: op-id 1, dump 0" in shown
    assert "  policy: policy-id 0, attr-id 4, type 12" in shown
    assert shown[-2:] == ["  policy:", "    type: 10 (binary)"]


@pytest.mark.parametrize(
    ("datagram", "sent", "expected"),
    [
        (b"", False, []),
        (b"abc", False, ["-> no message: 3 bytes are less than a header: 3 bytes: 61 62 63"]),
        (
            wire.message(19, 1, length=500),
            False,
            [
                "-> no message: message of 500 bytes in 16: 16 bytes: "
                "f4 01 00 00 13 00 01 00 07 00 00 00 00 00 00 00"
            ],
        ),
        (wire.message(19, 1), False, ["-> pci-tsm without a command request, seq 7, 16 bytes"]),
        (
            wire.message(99, 0x1800, wire.genl(9, wire.attribute(3, b"xy"))),
            True,
            ["<- family 0x63 command 9 0x1800, seq 7, 28 bytes", "  3: 2 bytes: 78 79"],
        ),
        (
            wire.message(19, 1, wire.genl(7)),
            False,
            ["-> pci-tsm command 7 request, seq 7, 20 bytes"],
        ),
        (
            wire.message(19, 0x301, wire.genl(1, wire.attribute(2, b"xyz"), b"\1\2\3\4")),
            False,
            [
                "-> pci-tsm evidence-read request dump, seq 7, 32 bytes",
                "  type-mask: no u32: 3 bytes: 78 79 7a",
                "  no attribute: 4 bytes: 01 02 03 04",
            ],
        ),
        (wire.message(3, 0), False, ["-> done, seq 7, 16 bytes"]),
        (wire.message(3, 2), True, ["<- done multi, without a status, seq 7, 16 bytes"]),
        (
            wire.message(2, 0, struct.pack("=i", -errno.EPERM)),
            True,
            ["<- error, EPERM (Operation not permitted), seq 7, 20 bytes", "  no request: 0 bytes"],
        ),
        (
            wire.message(2, 0, struct.pack("=i", -4000) + wire.message(99, 1)),
            True,
            ["<- error, 4000 (Unknown error 4000), seq 7, 36 bytes", "  of type 0x63, seq 7"],
        ),
        (
            wire.message(1, 0, b"wxyz"),
            False,
            ["-> noop, seq 7, 20 bytes", "  4 bytes: 77 78 79 7a"],
        ),
        (wire.message(9, 4), False, ["-> type 0x9 ack, seq 7, 16 bytes"]),
    ],
)
def test_what_is_no_message_or_unknown_is_shown_as_bytes(
    datagram: bytes, sent: bool, expected: list[str]
) -> None:
    assert render(datagram, sent) == expected


def test_strings_do_not_steer_the_terminal() -> None:
    name = wire.attribute(4, "\x1b[2J\n\x07größe\udcff\0".encode(errors="surrogateescape"))
    (_, line) = render(wire.message(19, 1, wire.genl(1, name)))
    assert line == r"  dev-name: \x1b[2J\n\x07größe\udcff"


families = st.sampled_from([16, 19, 20, 2, 3, 1, 77])
noisy = st.builds(
    wire.message,
    families,
    st.integers(0, 0xFFFF),
    st.one_of(
        st.binary(max_size=60),
        st.builds(
            lambda command, attributes: wire.genl(command, *attributes),
            st.sampled_from([1, 2, 3, 10]),
            st.lists(st.builds(wire.attribute, st.integers(0, 12), st.binary(max_size=40))),
        ),
        st.builds(
            lambda status, echoed, tlvs: struct.pack("=i", status) + echoed + b"".join(tlvs),
            st.integers(-5000, 0),
            st.builds(wire.message, families, st.integers(0, 0xFFFF), st.binary(max_size=30)),
            st.lists(st.builds(wire.attribute, st.integers(0, 7), st.binary(max_size=9))),
        ),
    ),
)


@given(st.lists(noisy, max_size=3).map(b"".join) | st.binary(max_size=80), st.booleans())
def test_anything_that_passes_is_shown_in_printable_lines(datagram: bytes, sent: bool) -> None:
    for line in render(datagram, sent):
        assert line.isprintable()
