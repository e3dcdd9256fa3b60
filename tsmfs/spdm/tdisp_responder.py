# SPDX-License-Identifier: MIT
"""TDISP: the device's side, in front of its interfaces (PCIe 7.0, 11.3)."""

from __future__ import annotations

from collections.abc import Mapping

from tsmfs.spdm.interface import Interface
from tsmfs.spdm.messages import ErrorCode, SpdmError
from tsmfs.spdm.tdisp import (
    DEFAULT_PORTION,
    HEADER_SIZE,
    MESSAGES,
    TDISP_VERSION_1_0,
    CapabilitiesResponse,
    DeviceInterfaceReport,
    DeviceInterfaceState,
    ErrorResponse,
    GetDeviceInterfaceReport,
    GetDeviceInterfaceState,
    GetTdispCapabilities,
    GetTdispVersion,
    LockInterfaceRequest,
    LockInterfaceResponse,
    SetMmioAttributeRequest,
    SetMmioAttributeResponse,
    StartInterfaceRequest,
    StartInterfaceResponse,
    StopInterfaceRequest,
    StopInterfaceResponse,
    TdispCode,
    TdispError,
    TdispErrorCode,
    TdispMessage,
    VersionResponse,
    canonical_function_id,
)
from tsmfs.spdm.vendor import SessionHandle, require_session
from tsmfs.spdm.wire import SpdmDecodeError


class TdispResponder:
    """The device's side: a `VendorResponder` for `PciProtocol.TDISP`.

    An interface that a session locked obeys only that session, until it is unlocked or the
    session ends. The keys of `interfaces` are what `function_id` gives.
    """

    def __init__(
        self, interfaces: Mapping[int, Interface], *, portion_limit: int = DEFAULT_PORTION
    ) -> None:
        self._interfaces = interfaces
        self._portion_limit = portion_limit

    def respond(self, session: SessionHandle | None, payload: bytes) -> bytes:
        """The answer to a message, TDISP_ERROR included.

        Raises SpdmError outside of a session, and for what is too short to be answered.
        """
        owner = require_session(session).id
        if len(payload) < HEADER_SIZE:
            raise SpdmError(ErrorCode.INVALID_REQUEST, f"{len(payload)} bytes are no TDISP message")
        function = int.from_bytes(payload[4:8], "little")
        try:
            return self._respond(owner, function, payload).pack()
        except TdispError as error:
            return ErrorResponse(
                function_id=function, error=error.code, data=error.data, extended=error.extended
            ).pack()

    def session_ended(self, session: int) -> None:
        """Tell every interface that the session with this ID ended."""
        for interface in list(self._interfaces.values()):
            interface.session_ended(session)

    def _respond(self, session: int, function: int, payload: bytes) -> TdispMessage:
        version, code = payload[0], payload[1]
        same_major = version >> 4 == TDISP_VERSION_1_0 >> 4
        asks_version = code == TdispCode.GET_TDISP_VERSION
        if version != TDISP_VERSION_1_0 and not (asks_version and same_major):
            raise TdispError(TdispErrorCode.VERSION_MISMATCH, f"version {version:#04x}")
        kind = MESSAGES.get(code)
        interface = self._interfaces.get(canonical_function_id(function))
        if kind is None or (interface is not None and not interface.capabilities.supports(code)):
            raise TdispError(TdispErrorCode.UNSUPPORTED_REQUEST, f"request {code:#04x}", code)
        if interface is None:
            raise TdispError(TdispErrorCode.INVALID_INTERFACE, f"no interface {function:#x}")
        try:
            request = kind.parse(payload)
        except SpdmDecodeError as error:
            raise TdispError(TdispErrorCode.INVALID_REQUEST, str(error)) from None
        return self._answer(session, interface, request)

    def _answer(self, session: int, interface: Interface, request: TdispMessage) -> TdispMessage:
        function = request.function_id
        match request:
            case GetTdispVersion():
                return VersionResponse(function_id=function)
            case GetTdispCapabilities():
                return CapabilitiesResponse(
                    function_id=function, capabilities=interface.capabilities
                )
            case GetDeviceInterfaceState():
                return DeviceInterfaceState(function_id=function, state=interface.state)
            case LockInterfaceRequest():
                nonce = interface.lock(request.parameters, session)
                return LockInterfaceResponse(function_id=function, nonce=nonce)
        if interface.owner not in (None, session):
            raise TdispError(TdispErrorCode.INVALID_REQUEST, "another session locked the interface")
        match request:
            case GetDeviceInterfaceReport():
                return self._portion(interface.report(), request)
            case StartInterfaceRequest():
                interface.start(request.nonce)
                return StartInterfaceResponse(function_id=function)
            case StopInterfaceRequest():
                interface.stop()
                return StopInterfaceResponse(function_id=function)
            case SetMmioAttributeRequest():
                interface.set_mmio_attribute(request.mmio_range)
                return SetMmioAttributeResponse(function_id=function)
        raise TdispError(TdispErrorCode.UNSUPPORTED_REQUEST, type(request).__name__, request.CODE)

    def _portion(self, report: bytes, request: GetDeviceInterfaceReport) -> DeviceInterfaceReport:
        if request.offset >= len(report) or not request.length:
            raise TdispError(
                TdispErrorCode.INVALID_REQUEST,
                f"{request.length} bytes at {request.offset} of {len(report)}",
            )
        length = min(request.length, self._portion_limit)
        portion = report[request.offset : request.offset + length]
        return DeviceInterfaceReport(
            function_id=request.function_id,
            portion=portion,
            remainder=len(report) - request.offset - len(portion),
        )
