# SPDX-License-Identifier: MIT
"""TDISP: the host's side, for one interface (PCIe 7.0, 11.3)."""

from __future__ import annotations

from typing import TypeVar

from tsmfs.spdm.messages import ErrorCode, SpdmError
from tsmfs.spdm.tdisp import (
    DEFAULT_PORTION,
    MAX_REPORT_SIZE,
    BindP2pStreamRequest,
    BindP2pStreamResponse,
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
    LockParameters,
    MmioRange,
    SetMmioAttributeRequest,
    SetMmioAttributeResponse,
    SetTdispConfigRequest,
    SetTdispConfigResponse,
    StartInterfaceRequest,
    StartInterfaceResponse,
    StopInterfaceRequest,
    StopInterfaceResponse,
    TdispCapabilities,
    TdispCode,
    TdispError,
    TdispErrorCode,
    TdispMessage,
    TdiState,
    UnbindP2pStreamRequest,
    UnbindP2pStreamResponse,
    VdmRequest,
    VdmResponse,
    VersionResponse,
    parse,
)
from tsmfs.spdm.vendor import Send
from tsmfs.spdm.wire import SpdmDecodeError

_Answer = TypeVar("_Answer", bound=TdispMessage)


class TdispRequester:
    """The host's side for one interface.

    Every method raises TdispError with what the device answered, and SpdmError where its answer
    is none or the exchange failed.
    """

    def __init__(self, send: Send, function_id: int) -> None:
        self._send = send
        self.function_id = function_id

    def versions(self) -> tuple[int, ...]:
        """The versions that the device speaks, as version bytes."""
        request = GetTdispVersion(function_id=self.function_id)
        return tuple(self._ask(request, VersionResponse).versions)

    def capabilities(self) -> TdispCapabilities:
        """What the device supports."""
        request = GetTdispCapabilities(function_id=self.function_id)
        return self._ask(request, CapabilitiesResponse).capabilities

    def lock(self, parameters: LockParameters) -> bytes:
        """Lock the interface; return the nonce for `start`."""
        request = LockInterfaceRequest(function_id=self.function_id, parameters=parameters)
        return self._ask(request, LockInterfaceResponse).nonce

    def report(self, portion: int = DEFAULT_PORTION) -> bytes:
        """The report, asked for in pieces of at most `portion` bytes."""
        report = bytearray()
        wanted, expected = portion, None
        while wanted:
            request = GetDeviceInterfaceReport(
                function_id=self.function_id, offset=len(report), length=wanted
            )
            answer = self._ask(request, DeviceInterfaceReport)
            size = len(report) + len(answer.portion) + answer.remainder
            if (
                not 0 < len(answer.portion) <= wanted
                or size > MAX_REPORT_SIZE
                or expected not in (None, size)
            ):
                raise _wrong("the portions of the report do not fit together")
            expected = size
            report += answer.portion
            wanted = min(portion, answer.remainder)
        return bytes(report)

    def state(self) -> TdiState:
        """The state of the interface."""
        request = GetDeviceInterfaceState(function_id=self.function_id)
        state = self._ask(request, DeviceInterfaceState).state
        try:
            return TdiState(state)
        except ValueError:
            raise _wrong(f"there is no state {state}") from None

    def start(self, nonce: bytes) -> None:
        """Run the interface with the nonce of its lock."""
        request = StartInterfaceRequest(function_id=self.function_id, nonce=nonce)
        self._ask(request, StartInterfaceResponse)

    def stop(self) -> None:
        """Unlock the interface."""
        self._ask(StopInterfaceRequest(function_id=self.function_id), StopInterfaceResponse)

    def bind_p2p_stream(self, stream_id: int) -> None:
        """Let the interface use a stream to a peer."""
        request = BindP2pStreamRequest(function_id=self.function_id, stream_id=stream_id)
        self._ask(request, BindP2pStreamResponse)

    def unbind_p2p_stream(self, stream_id: int) -> None:
        """Undo `bind_p2p_stream`."""
        request = UnbindP2pStreamRequest(function_id=self.function_id, stream_id=stream_id)
        self._ask(request, UnbindP2pStreamResponse)

    def set_mmio_attribute(self, mmio_range: MmioRange) -> None:
        """Make a range TEE or non-TEE memory, by IS_NON_TEE_MEM of its attributes."""
        request = SetMmioAttributeRequest(function_id=self.function_id, mmio_range=mmio_range)
        self._ask(request, SetMmioAttributeResponse)

    def set_config(self, config: int) -> None:
        """Set `TdispConfig` for the interface."""
        request = SetTdispConfigRequest(function_id=self.function_id, config=config)
        self._ask(request, SetTdispConfigResponse)

    def vdm(self, registry: int, vendor: bytes, data: bytes) -> VdmResponse:
        """Exchange a message of a vendor."""
        request = VdmRequest(
            function_id=self.function_id, registry=registry, vendor=vendor, data=data
        )
        return self._ask(request, VdmResponse)

    def _ask(self, request: TdispMessage, answer: type[_Answer]) -> _Answer:
        try:
            response = parse(self._send(request.pack()))
        except SpdmDecodeError as error:
            raise _wrong(str(error)) from None
        if isinstance(response, ErrorResponse):
            try:
                name = TdispErrorCode(response.error).name
            except ValueError:
                name = f"error {response.error:#x}"
            raise TdispError(
                response.error,
                f"{TdispCode(request.CODE).name}: {name}",
                response.data,
                response.extended,
            )
        if (
            not isinstance(response, answer)
            or response.version != request.version
            or response.function_id != request.function_id
        ):
            raise _wrong(f"the answer to {type(request).__name__} is {response}")
        return response


def _wrong(text: str) -> SpdmError:
    return SpdmError(ErrorCode.INVALID_RESPONSE_CODE, text)
