# SPDX-License-Identifier: MIT
"""VENDOR_DEFINED messages of the PCI-SIG: a protocol ID, then a message (PCIe 7.0, 6.31.3)."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from enum import IntEnum
from typing import Protocol

from tsmfs.spdm.messages import (
    STANDARD_PCI_SIG,
    VENDOR_PCI_SIG,
    Code,
    ErrorCode,
    SpdmError,
    VendorDefinedRequest,
    VendorDefinedResponse,
)
from tsmfs.spdm.wire import SpdmDecodeError

PROTOCOL_SIZE = 1
"""Bytes of the protocol ID in front of a message."""


class PciProtocol(IntEnum):
    """Protocol ID, the first byte of the payload."""

    IDE_KM = 0x00
    TDISP = 0x01


class SessionHandle(Protocol):
    """The SPDM session that a message came in, as far as the message's receiver may know it."""

    @property
    def id(self) -> int:
        """The session ID, which no two sessions of a connection share at one time."""


class VendorResponder(Protocol):
    """The device's side of a protocol inside VENDOR_DEFINED messages."""

    def respond(self, session: SessionHandle | None, payload: bytes) -> bytes:
        """The answer to `payload`, both without protocol ID; `session` is None outside of one.

        Raises SpdmError where the protocol has no answer of its own.
        """

    def session_ended(self, session: int) -> None:
        """Forget what was bound to the session with this ID, which ended or was reset."""


Send = Callable[[bytes], bytes]
"""Exchange a message of one protocol, without its ID, for its answer. Raises SpdmError."""


def pack_payload(protocol: int, message: bytes) -> bytes:
    """The payload of VENDOR_DEFINED that carries `message`."""
    return bytes((protocol,)) + message


def parse_payload(payload: bytes) -> tuple[int, bytes]:
    """Protocol ID and message of a payload. Raises SpdmDecodeError."""
    if len(payload) < PROTOCOL_SIZE:
        raise SpdmDecodeError("a vendor-defined payload of the PCI-SIG has no protocol")
    return payload[0], payload[PROTOCOL_SIZE:]


def is_pci_sig(message: VendorDefinedRequest | VendorDefinedResponse) -> bool:
    """Whether `message` is one that this module is for."""
    return message.standard == STANDARD_PCI_SIG and message.vendor == VENDOR_PCI_SIG


def dispatch(
    responders: Mapping[int, VendorResponder],
    session: SessionHandle | None,
    request: VendorDefinedRequest,
) -> VendorDefinedResponse:
    """Have the responder of the request's protocol answer it.

    Raises SpdmError: UNSUPPORTED_REQUEST for another vendor or protocol, INVALID_REQUEST for a
    payload without protocol, and what the responder raises.
    """
    if not is_pci_sig(request):
        raise SpdmError(
            ErrorCode.UNSUPPORTED_REQUEST,
            f"no vendor {request.vendor.hex()} of standard {request.standard}",
            Code.VENDOR_DEFINED_REQUEST,
        )
    try:
        protocol, message = parse_payload(request.payload)
    except SpdmDecodeError as error:
        raise SpdmError(ErrorCode.INVALID_REQUEST, str(error)) from None
    responder = responders.get(protocol)
    if responder is None:
        raise SpdmError(
            ErrorCode.UNSUPPORTED_REQUEST,
            f"no protocol {protocol} of the PCI-SIG",
            Code.VENDOR_DEFINED_REQUEST,
        )
    answer = responder.respond(session, message)
    return VendorDefinedResponse(version=request.version, payload=pack_payload(protocol, answer))


def vendor_request(version: int, protocol: int, message: bytes) -> VendorDefinedRequest:
    """The VENDOR_DEFINED_REQUEST that carries `message` of `protocol`."""
    return VendorDefinedRequest(version=version, payload=pack_payload(protocol, message))


def vendor_answer(response: VendorDefinedResponse, protocol: int) -> bytes:
    """The message of `protocol` in a response. Raises SpdmError if it holds something else."""
    if not is_pci_sig(response):
        raise SpdmError(ErrorCode.INVALID_RESPONSE_CODE, "the answer is of another vendor")
    try:
        answered, message = parse_payload(response.payload)
    except SpdmDecodeError as error:
        raise SpdmError(ErrorCode.INVALID_RESPONSE_CODE, str(error)) from None
    if answered != protocol:
        raise SpdmError(ErrorCode.INVALID_RESPONSE_CODE, f"the answer is of protocol {answered}")
    return message


def session_ended(responders: Mapping[int, VendorResponder], session: int) -> None:
    """Tell every responder that the session with this ID ended."""
    for responder in responders.values():
        responder.session_ended(session)


def require_session(session: SessionHandle | None) -> SessionHandle:
    """`session`; raises SpdmError if the message came outside of one."""
    if session is None:
        raise SpdmError(ErrorCode.SESSION_REQUIRED, "this protocol needs a secure session")
    return session
