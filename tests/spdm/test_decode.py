# SPDX-License-Identifier: MIT
"""Tests of what `tsmfs spdm decode` prints."""

from __future__ import annotations

from collections.abc import Callable
from contextlib import suppress
from functools import cache

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tests.spdm.peers import Link, device
from tsmfs.spdm import ide_km, tdisp
from tsmfs.spdm.algorithms import BaseAsym, BaseHash
from tsmfs.spdm.decode import (
    UnreadableRestError,
    decode,
    decode_chain,
    decode_messages,
    decode_report,
)
from tsmfs.spdm.messages import (
    MEASUREMENT_COUNT,
    ContentChanged,
    Error,
    ErrorCode,
    Measurements,
    RequesterFlags,
    ResponderFlags,
    VendorDefinedRequest,
    VendorDefinedResponse,
)
from tsmfs.spdm.requester import CAPABILITIES, Requester
from tsmfs.spdm.responder import Settings
from tsmfs.spdm.vendor import PciProtocol, vendor_request
from tsmfs.spdm.wire import Sizes, SpdmDecodeError


class Capture:
    """A connection to a device, and all that went over it in the clear."""

    def __init__(
        self, base_asym: BaseAsym, base_hash: BaseHash, version: int, clear: bool = False
    ) -> None:
        flags, capabilities = Settings().flags, CAPABILITIES
        if clear:
            flags |= ResponderFlags.HANDSHAKE_IN_THE_CLEAR
            capabilities |= RequesterFlags.HANDSHAKE_IN_THE_CLEAR
        link = Link(device(base_asym, base_hash, settings=Settings(flags=flags)), self._note)
        self._messages: list[bytes] = []
        requester = Requester(link, versions=(version,), capabilities=capabilities)
        requester.connect()
        requester.digests()
        self.chain = requester.certificate()
        requester.challenge()
        requester.measurements(MEASUREMENT_COUNT)
        requester.measurements(1, raw=True)
        self.measurements = requester.measurements(sign=True).transcript
        requester.key_exchange()
        self.vca = requester.vca
        self.all = b"".join(self._messages)
        self.count = len(self._messages)

    def _note(self, request: bytes, response: bytes) -> bytes:
        self._messages += [request, response]
        return response


@cache
def capture(
    base_asym: BaseAsym = BaseAsym.ECDSA_P256,
    base_hash: BaseHash = BaseHash.SHA_256,
    version: int = 0x13,
    clear: bool = False,
) -> Capture:
    return Capture(base_asym, base_hash, version, clear)


def heads(text: str) -> list[str]:
    """The lines that begin a message."""
    return [line for line in text.splitlines() if not line.startswith(" ")]


def test_vca_is_printed_with_names_for_bits() -> None:
    text = decode(capture().vca)
    assert [line.split()[0] for line in heads(text)] == [
        "GET_VERSION", "VERSION", "GET_CAPABILITIES", "CAPABILITIES", "NEGOTIATE_ALGORITHMS",
        "ALGORITHMS",
    ]  # fmt: skip
    assert "  base_asym: 0x10 (ECDSA_P256)" in text
    assert "    supported: 0x10 (SECP_384_R1)" in text
    assert "CERT|CHAL|MEAS_SIG" in text


@pytest.mark.parametrize("clear", [False, True])
@pytest.mark.parametrize("version", [0x12, 0x13])
@pytest.mark.parametrize(
    ("base_asym", "base_hash"),
    [
        (BaseAsym.ECDSA_P256, BaseHash.SHA_256),
        (BaseAsym.ECDSA_P384, BaseHash.SHA_384),
        (BaseAsym.RSAPSS_3072, BaseHash.SHA_512),
    ],
)
def test_everything_on_a_connection_is_read_to_its_end(
    base_asym: BaseAsym, base_hash: BaseHash, version: int, clear: bool
) -> None:
    captured = capture(base_asym, base_hash, version, clear)
    text = decode_messages(captured.all)
    assert "rest:" not in text
    assert len(heads(text)) == captured.count
    assert ("FINISH_RSP" in text) == clear


@pytest.mark.parametrize("version", [0x12, 0x13])
@pytest.mark.parametrize(
    ("base_asym", "base_hash"),
    [(BaseAsym.ECDSA_P256, BaseHash.SHA_256), (BaseAsym.ECDSA_P384, BaseHash.SHA_384)],
)
def test_a_transcript_of_measurements_is_read_without_vca(
    base_asym: BaseAsym, base_hash: BaseHash, version: int
) -> None:
    captured = capture(base_asym, base_hash, version)
    text = decode(captured.measurements)
    assert len(heads(text)) == 6
    assert f"  signature: {base_asym.signature_size} bytes" in text
    assert text.count("kind: 0x00 (IMMUTABLE_ROM)") == 2
    assert decode_messages(captured.measurements, Sizes(signature=base_asym.signature_size)) == text


def test_a_chain_is_printed_by_its_certificates() -> None:
    text = decode(capture().chain)
    assert text.startswith(f"certificate chain ({len(capture().chain)} bytes, 3 certificates)")
    assert "device: Vendor=1af4:Device=10f0" in text
    assert "key: ECDSA secp256r1" in text


def test_a_report_is_printed_by_its_ranges() -> None:
    report = tdisp.Report(
        interface_info=tdisp.InterfaceInfo.ATS,
        mmio_ranges=(
            tdisp.MmioRange.of(
                0x8000_0000, 0x4000, 0, attributes=tdisp.RangeAttributes.MSIX_TABLE, range_id=2
            ),
        ),
        device_info=b"\xab\xcd",
    )
    text = decode(report.pack())
    assert text.splitlines() == [
        "TDISP device interface report (38 bytes)",
        "  interface_info: 0x08 (ATS)",
        "  msix_message_control: 0",
        "  lnr_control: 0",
        "  tph_control: 0",
        "  mmio_ranges[0]:",
        "    first_page: 0x80000",
        "    pages: 4",
        "    attributes: 0x01 (MSIX_TABLE)",
        "    range_id: 2",
        "  device_info: abcd",
    ]


def test_vendor_defined_messages_are_printed_by_their_protocol() -> None:
    lock = tdisp.LockInterfaceRequest(function_id=0xBEEF).pack()
    text = decode(vendor_request(0x12, PciProtocol.TDISP, lock).pack())
    assert "  TDISP LockInterfaceRequest:\n    function_id: 0xbeef\n    parameters:" in text
    ack = ide_km.KpAck(stream_id=4, status=ide_km.KpAckStatus.UNSUPPORTED_VALUE)
    response = VendorDefinedResponse(payload=bytes((PciProtocol.IDE_KM,)) + ack.pack())
    assert "    status: 0x03 (UNSUPPORTED_VALUE)" in decode(response.pack())


def test_keys_are_not_printed() -> None:
    key = bytes(range(32))
    program = ide_km.KeyProg(key=key).pack()
    for message in (program, program + b"\0", program[:-1]):
        text = decode(vendor_request(0x12, PciProtocol.IDE_KM, message).pack())
        assert "03020100" not in text
        assert "00010203" not in text


def test_payloads_of_others_are_printed_as_bytes() -> None:
    for message in (
        VendorDefinedRequest(vendor=b"\x98\x1e", payload=b"\x00\xaa\xbb"),
        VendorDefinedRequest(payload=b"\x09\xaa\xbb"),
    ):
        assert "aabb" in decode(message.pack())
    assert "payload: (empty)" in decode(VendorDefinedRequest(payload=b"").pack())


def test_an_error_is_printed_by_its_name() -> None:
    text = decode(Error(error=ErrorCode.INVALID_REQUEST).pack())
    assert "error: 0x01 (INVALID_REQUEST)" in text
    assert "error: 0xe0\n" in decode(Error(error=0xE0).pack())


@pytest.mark.parametrize("print_messages", [decode, decode_messages])
def test_messages_in_front_of_what_is_none_are_printed_and_the_rest_told(
    print_messages: Callable[[bytes], str],
) -> None:
    vca = capture().vca
    with pytest.raises(UnreadableRestError) as caught:
        print_messages(vca + b"\x13\x42\x01")
    assert str(caught.value) == f"at {len(vca):#x}: 3 bytes are no SPDM message"
    assert caught.value.printed == f"{decode(vca)}\nat {len(vca):#x}:\n  rest: 134201"


def test_a_message_that_is_cut_off_is_told_behind_those_before_it() -> None:
    with pytest.raises(UnreadableRestError) as caught:
        decode(capture().measurements[:-1])
    assert caught.value.printed.startswith("GET_MEASUREMENTS (SPDM 1.3, ")


def test_slot_and_changes_of_measurements_are_told_apart() -> None:
    message = Measurements(version=0x12, slot=ContentChanged.UNCHANGED | 3).pack()
    assert "\n  slot: 3\n  content_changed: 0x20 (UNCHANGED)\n" in decode(message)


def test_long_transcripts_and_long_messages_are_read_to_their_end() -> None:
    large = VendorDefinedRequest(payload=b"\x09" + bytes(40000)).pack()
    small = Error(error=ErrorCode.BUSY, version=0x13).pack()
    unsigned = capture().measurements.split(b"\x13\xe0")[1]
    data = (b"\x13\xe0" + unsigned) * 500 + large * 3 + small
    text = decode_messages(data)
    assert len(heads(text)) == 1004
    assert text.endswith("extended: (empty)")


def test_malformed_measurement_blocks_are_printed_as_bytes() -> None:
    data = capture().measurements
    broken = data.replace(b"\x01\x01\x0b\x00\x80", b"\x01\x07\x0b\x00\x80", 1)
    assert broken != data
    assert "record is malformed: measurement specification 0x07" in decode_messages(broken)


@pytest.mark.parametrize("data", [b"\x12", b"\x55\x84\0\0", b"\x12\x45\0\0", bytes(64)])
def test_what_is_none_of_the_three_is_refused(data: bytes) -> None:
    with pytest.raises(SpdmDecodeError):
        decode_messages(data)
    with pytest.raises(SpdmDecodeError):
        decode_chain(data)


def test_a_file_that_is_nothing_says_why_for_each_kind() -> None:
    with pytest.raises(SpdmDecodeError, match=r"chain: .*messages: .*report: "):
        decode(b"\xff" * 7)


@settings(max_examples=150)
@given(data=st.data())
def test_changed_evidence_is_printed_or_refused(data: st.DataObject) -> None:
    captured = capture()
    source = data.draw(st.sampled_from([captured.all, captured.measurements, captured.chain]))
    changed = bytearray(source)
    for _ in range(data.draw(st.integers(1, 4))):
        changed[data.draw(st.integers(0, len(changed) - 1))] = data.draw(st.integers(0, 255))
    del changed[data.draw(st.integers(1, len(changed))) :]
    with suppress(SpdmDecodeError):
        assert decode(bytes(changed))


@settings(max_examples=200)
@given(st.binary(max_size=200))
def test_any_bytes_are_printed_or_refused(data: bytes) -> None:
    for printed in (decode, decode_messages, decode_chain, decode_report):
        with suppress(SpdmDecodeError):
            assert isinstance(printed(data), str)
