# SPDX-License-Identifier: MIT
"""Tests of VENDOR_DEFINED messages of the PCI-SIG."""

from __future__ import annotations

from dataclasses import dataclass, field

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tsmfs.spdm.messages import (
    Code,
    ErrorCode,
    SpdmError,
    VendorDefinedRequest,
    VendorDefinedResponse,
)
from tsmfs.spdm.vendor import (
    PciProtocol,
    SessionHandle,
    dispatch,
    pack_payload,
    parse_payload,
    require_session,
    session_ended,
    vendor_answer,
    vendor_request,
)
from tsmfs.spdm.wire import SpdmDecodeError


@dataclass(frozen=True)
class OneSession:
    id: int


@dataclass
class Echo:
    """Answers with what it was asked, reversed."""

    asked: list[tuple[int | None, bytes]] = field(default_factory=list)
    ended: list[int] = field(default_factory=list)

    def respond(self, session: SessionHandle | None, payload: bytes) -> bytes:
        self.asked.append((None if session is None else session.id, payload))
        return payload[::-1]

    def session_ended(self, session: int) -> None:
        self.ended.append(session)


def test_the_layout_is_standard_vendor_and_payload_with_their_lengths() -> None:
    request = vendor_request(0x12, PciProtocol.TDISP, b"\xaa\xbb")
    assert request.pack() == bytes.fromhex("12fe0000 0300 02 0100 0300 01aabb")


@given(st.integers(0, 255), st.binary(max_size=100))
def test_a_payload_keeps_protocol_and_message(protocol: int, message: bytes) -> None:
    assert parse_payload(pack_payload(protocol, message)) == (protocol, message)


def test_a_payload_without_protocol_is_refused() -> None:
    with pytest.raises(SpdmDecodeError):
        parse_payload(b"")


def test_the_responder_of_the_protocol_answers_in_the_requests_version() -> None:
    responders: dict[int, Echo] = {PciProtocol.IDE_KM: Echo(), PciProtocol.TDISP: Echo()}
    response = dispatch(responders, OneSession(7), vendor_request(0x13, PciProtocol.TDISP, b"abc"))
    assert response.version == 0x13
    assert vendor_answer(response, PciProtocol.TDISP) == b"cba"
    assert responders[PciProtocol.TDISP].asked == [(7, b"abc")]
    assert not responders[PciProtocol.IDE_KM].asked


def test_a_request_outside_of_a_session_reaches_the_responder_without_one() -> None:
    echo = Echo()
    dispatch({0: echo}, None, vendor_request(0x12, 0, b"x"))
    assert echo.asked == [(None, b"x")]


@pytest.mark.parametrize(
    ("request_", "code"),
    [
        (vendor_request(0x12, 9, b"x"), ErrorCode.UNSUPPORTED_REQUEST),
        (VendorDefinedRequest(vendor=b"\x98\x1e", payload=b"\0"), ErrorCode.UNSUPPORTED_REQUEST),
        (VendorDefinedRequest(standard=0, payload=b"\0"), ErrorCode.UNSUPPORTED_REQUEST),
        (VendorDefinedRequest(payload=b""), ErrorCode.INVALID_REQUEST),
    ],
)
def test_what_nobody_answers_is_an_error(request_: VendorDefinedRequest, code: int) -> None:
    with pytest.raises(SpdmError) as caught:
        dispatch({0: Echo()}, OneSession(1), request_)
    assert caught.value.code == code
    if code == ErrorCode.UNSUPPORTED_REQUEST:
        assert caught.value.data == Code.VENDOR_DEFINED_REQUEST


@pytest.mark.parametrize(
    "response",
    [
        VendorDefinedResponse(vendor=b"\x98\x1e", payload=b"\0x"),
        VendorDefinedResponse(payload=b""),
        VendorDefinedResponse(payload=b"\1x"),
    ],
)
def test_an_answer_of_something_else_is_refused(response: VendorDefinedResponse) -> None:
    with pytest.raises(SpdmError) as caught:
        vendor_answer(response, PciProtocol.IDE_KM)
    assert caught.value.code == ErrorCode.INVALID_RESPONSE_CODE


def test_every_responder_learns_of_the_end_of_a_session() -> None:
    responders = {0: Echo(), 1: Echo()}
    session_ended(responders, 5)
    assert [echo.ended for echo in responders.values()] == [[5], [5]]


def test_a_protocol_can_insist_on_a_session() -> None:
    assert require_session(OneSession(3)).id == 3
    with pytest.raises(SpdmError) as caught:
        require_session(None)
    assert caught.value.code == ErrorCode.SESSION_REQUIRED


def test_the_payload_stays_out_of_the_representation() -> None:
    request = vendor_request(0x12, PciProtocol.IDE_KM, b"secret")
    assert "secret" not in repr(request)
