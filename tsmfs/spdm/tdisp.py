# SPDX-License-Identifier: MIT
"""TDISP: messages, interface report and state machine of TEE device interfaces (PCIe 7.0, 11)."""

from __future__ import annotations

import errno as _errno
import hmac
import os
import threading
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field
from enum import IntEnum, IntFlag
from typing import TypeVar

from tsmfs.spdm.messages import ErrorCode, SpdmError
from tsmfs.spdm.vendor import Send, SessionHandle, require_session
from tsmfs.spdm.wire import (
    Item,
    Message,
    Record,
    SpdmDecodeError,
    array,
    count,
    counted,
    declare,
    declare_record,
    i64,
    one,
    raw,
    reserved,
    rest,
    u8,
    u16,
    u32,
    u64,
    uint,
)

TDISP_VERSION_1_0 = 0x10
"""Value of the version byte; the only version."""

HEADER_SIZE = 16
"""Bytes of version, type, reserved and INTERFACE_ID (11.3.3)."""

NONCE_SIZE = 32
"""Bytes of START_INTERFACE_NONCE."""

PAGE_SHIFT = 12
"""Addresses in reports are counted in pages of 4 KiB, whatever the system's page size."""

MAX_REPORT_SIZE = 0xFFFF
"""Bytes of a report that offsets and lengths of 16 bits reach."""

DEFAULT_PORTION = 0x400
"""Bytes of the report that one response holds at most, unless told otherwise."""

_SEGMENT_SHIFT = 16
_SEGMENT_VALID = 1 << 24
_REQUEST_BASE = 0x80
_ADDRESS_MASK = (1 << 64) - 1


class TdispCode(IntEnum):
    """Message types (tables of 11.3.1 and 11.3.2)."""

    TDISP_VERSION = 0x01
    TDISP_CAPABILITIES = 0x02
    LOCK_INTERFACE_RESPONSE = 0x03
    DEVICE_INTERFACE_REPORT = 0x04
    DEVICE_INTERFACE_STATE = 0x05
    START_INTERFACE_RESPONSE = 0x06
    STOP_INTERFACE_RESPONSE = 0x07
    BIND_P2P_STREAM_RESPONSE = 0x08
    UNBIND_P2P_STREAM_RESPONSE = 0x09
    SET_MMIO_ATTRIBUTE_RESPONSE = 0x0A
    VDM_RESPONSE = 0x0B
    SET_TDISP_CONFIG_RESPONSE = 0x0C
    TDISP_ERROR = 0x7F

    GET_TDISP_VERSION = 0x81
    GET_TDISP_CAPABILITIES = 0x82
    LOCK_INTERFACE_REQUEST = 0x83
    GET_DEVICE_INTERFACE_REPORT = 0x84
    GET_DEVICE_INTERFACE_STATE = 0x85
    START_INTERFACE_REQUEST = 0x86
    STOP_INTERFACE_REQUEST = 0x87
    BIND_P2P_STREAM_REQUEST = 0x88
    UNBIND_P2P_STREAM_REQUEST = 0x89
    SET_MMIO_ATTRIBUTE_REQUEST = 0x8A
    VDM_REQUEST = 0x8B
    SET_TDISP_CONFIG_REQUEST = 0x8C


class TdispErrorCode(IntEnum):
    """ERROR_CODE of TDISP_ERROR (11.3.24)."""

    INVALID_REQUEST = 0x0001
    BUSY = 0x0003
    INVALID_INTERFACE_STATE = 0x0004
    UNSPECIFIED = 0x0005
    UNSUPPORTED_REQUEST = 0x0007
    VERSION_MISMATCH = 0x0041
    VENDOR_SPECIFIC_ERROR = 0x00FF
    INVALID_INTERFACE = 0x0101
    INVALID_NONCE = 0x0102
    INSUFFICIENT_ENTROPY = 0x0103
    INVALID_DEVICE_CONFIGURATION = 0x0104


_ERRNO: Mapping[int, int] = {
    TdispErrorCode.INVALID_REQUEST: _errno.EINVAL,
    TdispErrorCode.BUSY: _errno.EBUSY,
    TdispErrorCode.INVALID_INTERFACE_STATE: _errno.EIO,
    TdispErrorCode.UNSUPPORTED_REQUEST: _errno.EOPNOTSUPP,
    TdispErrorCode.VERSION_MISMATCH: _errno.EPROTONOSUPPORT,
    TdispErrorCode.INVALID_INTERFACE: _errno.ENODEV,
    TdispErrorCode.INVALID_NONCE: _errno.EKEYREJECTED,
    TdispErrorCode.INSUFFICIENT_ENTROPY: _errno.EAGAIN,
    TdispErrorCode.INVALID_DEVICE_CONFIGURATION: _errno.EINVAL,
}


class TdispError(Exception):
    """A request failed: the device answers with it as TDISP_ERROR, a requester raises it.

    `code` is a `TdispErrorCode` where it is known, `data` is ERROR_DATA.
    """

    def __init__(self, code: int, text: str, data: int = 0, extended: bytes = b"") -> None:
        super().__init__(text)
        try:
            self.code: int = TdispErrorCode(code)
        except ValueError:
            self.code = code
        self.data = data
        self.extended = extended

    @property
    def errno(self) -> int:
        """What the kernel side reports: EPROTO unless the code has a nearer one."""
        return _ERRNO.get(self.code, _errno.EPROTO)


class TdiState(IntEnum):
    """TDI_STATE (11.3.13)."""

    CONFIG_UNLOCKED = 0
    CONFIG_LOCKED = 1
    RUN = 2
    ERROR = 3


class LockFlags(IntFlag):
    """FLAGS of LOCK_INTERFACE_REQUEST, and LOCK_INTERFACE_FLAGS_SUPPORTED (11.3.8)."""

    NO_FW_UPDATE = 1 << 0
    SYSTEM_CACHE_LINE_SIZE = 1 << 1
    """128 bytes instead of 64."""
    LOCK_MSIX = 1 << 2
    BIND_P2P = 1 << 3
    ALL_REQUEST_REDIRECT = 1 << 4


class InterfaceInfo(IntFlag):
    """INTERFACE_INFO of the report (11.3.11)."""

    NO_FW_UPDATE = 1 << 0
    DMA_WITHOUT_PASID = 1 << 1
    DMA_WITH_PASID = 1 << 2
    ATS = 1 << 3
    """Supported and enabled."""
    PRS = 1 << 4
    """Supported and enabled."""


class RangeAttributes(IntFlag):
    """Low half of the attributes of an MMIO range (11.3.11)."""

    MSIX_TABLE = 1 << 0
    MSIX_PBA = 1 << 1
    IS_NON_TEE_MEM = 1 << 2
    IS_MEM_ATTR_UPDATABLE = 1 << 3


class DsmCaps(IntFlag):
    """DSM_CAPS."""

    XT_MODE = 1 << 0


class TdispConfig(IntFlag):
    """SET_TDISP_CONFIG_REQUEST."""

    XT_MODE_ENABLE = 1 << 0
    XT_BIT_FOR_LOCKED_MSIX = 1 << 1


def function_id(requester_id: int, segment: int = 0) -> int:
    """FUNCTION_ID of a function (11.2). Segment 0 is left out, as in a system with one segment."""
    if not segment:
        return requester_id
    return requester_id | segment << _SEGMENT_SHIFT | _SEGMENT_VALID


def canonical_function_id(value: int) -> int:
    """The same FUNCTION_ID without reserved bits, and with a segment only if it is not 0."""
    segment = value >> _SEGMENT_SHIFT & 0xFF if value & _SEGMENT_VALID else 0
    return function_id(value & 0xFFFF, segment)


def request_mask(codes: Iterable[int]) -> int:
    """REQ_MSGS_SUPPORTED for the requests with these codes (11.3.7)."""
    mask = 0
    for code in codes:
        mask |= 1 << code - _REQUEST_BASE
    return mask


@declare_record
@dataclass(frozen=True, slots=True, kw_only=True)
class MmioRange(Record):
    """A range of the interface's memory, as in the report (11.3.11)."""

    WIRE = (u64("first_page"), u32("pages"), u16("attributes"), u16("range_id"))

    first_page: int = 0
    """Number of the first 4 KiB page, after the reporting offset was added."""
    pages: int = 0
    attributes: int = 0
    """`RangeAttributes`."""
    range_id: int = 0
    """Of a range in a BAR: the BAR equivalent indicator."""

    @classmethod
    def of(
        cls, address: int, size: int, reporting_offset: int, *, attributes: int, range_id: int
    ) -> MmioRange:
        """The range of `size` bytes at `address`: its report is moved by `reporting_offset`."""
        return cls(
            first_page=(address + reporting_offset & _ADDRESS_MASK) >> PAGE_SHIFT,
            pages=size >> PAGE_SHIFT,
            attributes=attributes,
            range_id=range_id,
        )

    def address(self, reporting_offset: int = 0) -> int:
        """Address of the first byte; with the offset of the lock, the one that is real."""
        return (self.first_page << PAGE_SHIFT) - reporting_offset & _ADDRESS_MASK

    @property
    def size(self) -> int:
        """Bytes of the range."""
        return self.pages << PAGE_SHIFT


@declare_record
@dataclass(frozen=True, slots=True, kw_only=True)
class Report(Record):
    """The TDI report, whole (11.3.11)."""

    WIRE = (
        u16("interface_info"),
        reserved(2),
        u16("msix_message_control"),
        u16("lnr_control"),
        u32("tph_control"),
        count("mmio_ranges", 4),
        array("mmio_ranges", MmioRange),
        count("device_info", 4),
        counted("device_info"),
    )

    interface_info: int = 0
    """`InterfaceInfo`."""
    msix_message_control: int = 0
    """Message Control of MSI-X; zero if the table is not locked."""
    lnr_control: int = 0
    tph_control: int = 0
    """TPH Requester Control; zero if the MSI-X table is not locked."""
    mmio_ranges: tuple[MmioRange, ...] = ()
    """In the order of the BARs, the lowest first."""
    device_info: bytes = b""


@declare_record
@dataclass(frozen=True, slots=True, kw_only=True)
class LockParameters(Record):
    """What LOCK_INTERFACE_REQUEST asks for (11.3.8)."""

    WIRE = (
        u16("flags"),
        u8("stream_id"),
        reserved(1),
        i64("mmio_reporting_offset"),
        u64("bind_p2p_address_mask"),
    )

    flags: int = 0
    """`LockFlags`."""
    stream_id: int = 0
    """Stream ID of the IDE stream that is to be the default one."""
    mmio_reporting_offset: int = 0
    """Signed; added to the addresses in the report, so that it does not tell the real ones."""
    bind_p2p_address_mask: int = 0


REQUIRED_REQUESTS = frozenset(
    TdispCode(code)
    for code in range(TdispCode.GET_TDISP_VERSION, TdispCode.STOP_INTERFACE_REQUEST + 1)
)
"""Requests that every device supports (11.3.1)."""

SUPPORTED_REQUESTS = REQUIRED_REQUESTS | {TdispCode.SET_MMIO_ATTRIBUTE_REQUEST}
"""Requests that `Interface` supports."""


@declare_record
@dataclass(frozen=True, slots=True, kw_only=True)
class TdispCapabilities(Record):
    """What a device tells of an interface (11.3.7)."""

    WIRE = (
        u32("dsm_caps"),
        uint("requests", 16),
        u16("lock_flags"),
        reserved(3),
        u8("address_width"),
        u8("outstanding"),
        u8("outstanding_all"),
    )

    dsm_caps: int = 0
    """`DsmCaps`."""
    requests: int = request_mask(SUPPORTED_REQUESTS)
    """A bit for each supported request, by its code less 80h."""
    lock_flags: int = (
        LockFlags.NO_FW_UPDATE | LockFlags.SYSTEM_CACHE_LINE_SIZE | LockFlags.LOCK_MSIX
    )
    """`LockFlags` that are supported."""
    address_width: int = 64
    outstanding: int = 1
    """Requests for this interface that may be under way at a time."""
    outstanding_all: int = 1
    """Requests for all interfaces of the device that may be under way at a time."""

    def supports(self, code: int) -> bool:
        """Whether the request with this code is supported."""
        return code >= _REQUEST_BASE and bool(self.requests >> code - _REQUEST_BASE & 1)


_HEADER: tuple[Item, ...] = (reserved(2), u32("function_id"), reserved(8))


@dataclass(frozen=True, slots=True, kw_only=True)
class TdispMessage(Message):
    """A TDISP message: version, type and INTERFACE_ID (11.3.3)."""

    version: int = TDISP_VERSION_1_0
    function_id: int = 0


@declare
@dataclass(frozen=True, slots=True, kw_only=True)
class GetTdispVersion(TdispMessage):
    """GET_TDISP_VERSION (11.3.4)."""

    CODE = TdispCode.GET_TDISP_VERSION
    WIRE = _HEADER


@declare
@dataclass(frozen=True, slots=True, kw_only=True)
class VersionResponse(TdispMessage):
    """TDISP_VERSION (11.3.5)."""

    CODE = TdispCode.TDISP_VERSION
    WIRE = (*_HEADER, count("versions", 1), counted("versions"))

    versions: bytes = bytes((TDISP_VERSION_1_0,))


@declare
@dataclass(frozen=True, slots=True, kw_only=True)
class GetTdispCapabilities(TdispMessage):
    """GET_TDISP_CAPABILITIES (11.3.6)."""

    CODE = TdispCode.GET_TDISP_CAPABILITIES
    WIRE = (*_HEADER, u32("tsm_caps"))

    tsm_caps: int = 0


@declare
@dataclass(frozen=True, slots=True, kw_only=True)
class CapabilitiesResponse(TdispMessage):
    """TDISP_CAPABILITIES (11.3.7)."""

    CODE = TdispCode.TDISP_CAPABILITIES
    WIRE = (*_HEADER, one("capabilities", TdispCapabilities))

    capabilities: TdispCapabilities = field(default_factory=TdispCapabilities)


@declare
@dataclass(frozen=True, slots=True, kw_only=True)
class LockInterfaceRequest(TdispMessage):
    """LOCK_INTERFACE_REQUEST (11.3.8)."""

    CODE = TdispCode.LOCK_INTERFACE_REQUEST
    WIRE = (*_HEADER, one("parameters", LockParameters))

    parameters: LockParameters = field(default_factory=LockParameters)


@declare
@dataclass(frozen=True, slots=True, kw_only=True)
class LockInterfaceResponse(TdispMessage):
    """LOCK_INTERFACE_RESPONSE (11.3.9)."""

    CODE = TdispCode.LOCK_INTERFACE_RESPONSE
    WIRE = (*_HEADER, raw("nonce", NONCE_SIZE))

    nonce: bytes = field(default=bytes(NONCE_SIZE), repr=False)


@declare
@dataclass(frozen=True, slots=True, kw_only=True)
class GetDeviceInterfaceReport(TdispMessage):
    """GET_DEVICE_INTERFACE_REPORT (11.3.10)."""

    CODE = TdispCode.GET_DEVICE_INTERFACE_REPORT
    WIRE = (*_HEADER, u16("offset"), u16("length"))

    offset: int = 0
    length: int = 0


@declare
@dataclass(frozen=True, slots=True, kw_only=True)
class DeviceInterfaceReport(TdispMessage):
    """DEVICE_INTERFACE_REPORT (11.3.11): a portion of a `Report` and how much follows it."""

    CODE = TdispCode.DEVICE_INTERFACE_REPORT
    WIRE = (*_HEADER, count("portion", 2), u16("remainder"), counted("portion"))

    remainder: int = 0
    portion: bytes = b""


@declare
@dataclass(frozen=True, slots=True, kw_only=True)
class GetDeviceInterfaceState(TdispMessage):
    """GET_DEVICE_INTERFACE_STATE (11.3.12)."""

    CODE = TdispCode.GET_DEVICE_INTERFACE_STATE
    WIRE = _HEADER


@declare
@dataclass(frozen=True, slots=True, kw_only=True)
class DeviceInterfaceState(TdispMessage):
    """DEVICE_INTERFACE_STATE (11.3.13)."""

    CODE = TdispCode.DEVICE_INTERFACE_STATE
    WIRE = (*_HEADER, u8("state"))

    state: int = TdiState.CONFIG_UNLOCKED


@declare
@dataclass(frozen=True, slots=True, kw_only=True)
class StartInterfaceRequest(TdispMessage):
    """START_INTERFACE_REQUEST (11.3.14)."""

    CODE = TdispCode.START_INTERFACE_REQUEST
    WIRE = (*_HEADER, raw("nonce", NONCE_SIZE))

    nonce: bytes = field(default=bytes(NONCE_SIZE), repr=False)


@declare
@dataclass(frozen=True, slots=True, kw_only=True)
class StartInterfaceResponse(TdispMessage):
    """START_INTERFACE_RESPONSE (11.3.15)."""

    CODE = TdispCode.START_INTERFACE_RESPONSE
    WIRE = _HEADER


@declare
@dataclass(frozen=True, slots=True, kw_only=True)
class StopInterfaceRequest(TdispMessage):
    """STOP_INTERFACE_REQUEST (11.3.16)."""

    CODE = TdispCode.STOP_INTERFACE_REQUEST
    WIRE = _HEADER


@declare
@dataclass(frozen=True, slots=True, kw_only=True)
class StopInterfaceResponse(TdispMessage):
    """STOP_INTERFACE_RESPONSE (11.3.17)."""

    CODE = TdispCode.STOP_INTERFACE_RESPONSE
    WIRE = _HEADER


@declare
@dataclass(frozen=True, slots=True, kw_only=True)
class BindP2pStreamRequest(TdispMessage):
    """BIND_P2P_STREAM_REQUEST (11.3.18)."""

    CODE = TdispCode.BIND_P2P_STREAM_REQUEST
    WIRE = (*_HEADER, u8("stream_id"))

    stream_id: int = 0


@declare
@dataclass(frozen=True, slots=True, kw_only=True)
class BindP2pStreamResponse(TdispMessage):
    """BIND_P2P_STREAM_RESPONSE (11.3.19)."""

    CODE = TdispCode.BIND_P2P_STREAM_RESPONSE
    WIRE = _HEADER


@declare
@dataclass(frozen=True, slots=True, kw_only=True)
class UnbindP2pStreamRequest(TdispMessage):
    """UNBIND_P2P_STREAM_REQUEST (11.3.20)."""

    CODE = TdispCode.UNBIND_P2P_STREAM_REQUEST
    WIRE = (*_HEADER, u8("stream_id"))

    stream_id: int = 0


@declare
@dataclass(frozen=True, slots=True, kw_only=True)
class UnbindP2pStreamResponse(TdispMessage):
    """UNBIND_P2P_STREAM_RESPONSE (11.3.21)."""

    CODE = TdispCode.UNBIND_P2P_STREAM_RESPONSE
    WIRE = _HEADER


@declare
@dataclass(frozen=True, slots=True, kw_only=True)
class SetMmioAttributeRequest(TdispMessage):
    """SET_MMIO_ATTRIBUTE_REQUEST (11.3.22)."""

    CODE = TdispCode.SET_MMIO_ATTRIBUTE_REQUEST
    WIRE = (*_HEADER, one("mmio_range", MmioRange))

    mmio_range: MmioRange = field(default_factory=MmioRange)


@declare
@dataclass(frozen=True, slots=True, kw_only=True)
class SetMmioAttributeResponse(TdispMessage):
    """SET_MMIO_ATTRIBUTE_RESPONSE (11.3.23)."""

    CODE = TdispCode.SET_MMIO_ATTRIBUTE_RESPONSE
    WIRE = _HEADER


_VDM: tuple[Item, ...] = (
    *_HEADER,
    u8("registry"),
    count("vendor", 1),
    counted("vendor"),
    rest("data"),
)


@declare
@dataclass(frozen=True, slots=True, kw_only=True)
class VdmRequest(TdispMessage):
    """VDM_REQUEST (11.3.25)."""

    CODE = TdispCode.VDM_REQUEST
    WIRE = _VDM

    registry: int = 0
    vendor: bytes = b""
    data: bytes = b""


@declare
@dataclass(frozen=True, slots=True, kw_only=True)
class VdmResponse(TdispMessage):
    """VDM_RESPONSE (11.3.26)."""

    CODE = TdispCode.VDM_RESPONSE
    WIRE = _VDM

    registry: int = 0
    vendor: bytes = b""
    data: bytes = b""


@declare
@dataclass(frozen=True, slots=True, kw_only=True)
class SetTdispConfigRequest(TdispMessage):
    """SET_TDISP_CONFIG_REQUEST."""

    CODE = TdispCode.SET_TDISP_CONFIG_REQUEST
    WIRE = (*_HEADER, u32("config"))

    config: int = 0
    """`TdispConfig`."""


@declare
@dataclass(frozen=True, slots=True, kw_only=True)
class SetTdispConfigResponse(TdispMessage):
    """SET_TDISP_CONFIG_RESPONSE."""

    CODE = TdispCode.SET_TDISP_CONFIG_RESPONSE
    WIRE = _HEADER


@declare
@dataclass(frozen=True, slots=True, kw_only=True)
class ErrorResponse(TdispMessage):
    """TDISP_ERROR (11.3.24)."""

    CODE = TdispCode.TDISP_ERROR
    WIRE = (*_HEADER, u32("error"), u32("data"), rest("extended"))

    error: int = TdispErrorCode.UNSPECIFIED
    data: int = 0
    extended: bytes = b""


MESSAGES: Mapping[int, type[TdispMessage]] = {
    message.CODE: message
    for message in (
        GetTdispVersion, VersionResponse, GetTdispCapabilities, CapabilitiesResponse,
        LockInterfaceRequest, LockInterfaceResponse, GetDeviceInterfaceReport,
        DeviceInterfaceReport, GetDeviceInterfaceState, DeviceInterfaceState,
        StartInterfaceRequest, StartInterfaceResponse, StopInterfaceRequest,
        StopInterfaceResponse, BindP2pStreamRequest, BindP2pStreamResponse,
        UnbindP2pStreamRequest, UnbindP2pStreamResponse, SetMmioAttributeRequest,
        SetMmioAttributeResponse, VdmRequest, VdmResponse, SetTdispConfigRequest,
        SetTdispConfigResponse, ErrorResponse,
    )
}  # fmt: skip
"""Every message by its type."""


def parse(data: bytes) -> TdispMessage:
    """The message in `data`, whichever it is. Raises SpdmDecodeError."""
    if len(data) < HEADER_SIZE:
        raise SpdmDecodeError(f"{len(data)} bytes are no TDISP message")
    kind = MESSAGES.get(data[1])
    if kind is None:
        raise SpdmDecodeError(f"no TDISP message has the type {data[1]:#04x}")
    return kind.parse(data)


ReportSource = Callable[[LockParameters], Report]
"""Describes the interface as it is to be locked. May raise TdispError."""

Lockable = Callable[[LockParameters, int], None]
"""Raises TdispError unless the interface may be locked by the session with this ID."""

StateChange = Callable[["Interface", TdiState, TdiState], None]
"""Told of a change from one state to another; called without locks held."""


def _always_lockable(parameters: LockParameters, session: int) -> None:
    pass


class Interface:
    """A TEE device interface: the state machine of 11.2, which no byte from outside bypasses.

    The hardware describes the interface through `report_source` and `lockable`. It calls `error`
    when something that a lock protects is lost or changed, and `reset` after a conventional
    reset; a function level reset is an `error` (11.4.9). Both may be called with locks of the
    hardware held: the callbacks run without the one of the interface.
    """

    def __init__(
        self,
        function_id: int,
        report_source: ReportSource,
        lockable: Lockable = _always_lockable,
        *,
        capabilities: TdispCapabilities | None = None,
        random: Callable[[int], bytes] = os.urandom,
        on_change: StateChange | None = None,
    ) -> None:
        self.function_id = canonical_function_id(function_id)
        self.capabilities = capabilities or TdispCapabilities()
        self._report_source = report_source
        self._lockable = lockable
        self._random = random
        self._on_change = on_change
        self._mutex = threading.Lock()
        self._state = TdiState.CONFIG_UNLOCKED
        self._locking: int | None = None
        self._disturbed: str | None = None
        self._reason: str | None = None
        self._owner: int | None = None
        self._parameters: LockParameters | None = None
        self._report: Report | None = None
        self._packed = b""
        self._nonce: bytes | None = None
        self._non_tee: dict[MmioRange, bool] = {}

    @property
    def state(self) -> TdiState:
        """The state that GET_DEVICE_INTERFACE_STATE tells."""
        return self._state

    @property
    def reason(self) -> str | None:
        """Why the interface is in ERROR."""
        return self._reason

    @property
    def owner(self) -> int | None:
        """ID of the session that locked the interface, while it lives."""
        return self._owner

    @property
    def parameters(self) -> LockParameters | None:
        """What the interface was locked with; None while it is unlocked."""
        return self._parameters

    def lock(self, parameters: LockParameters, session: int) -> bytes:
        """Lock the configuration for `session` and return the nonce to start with.

        Raises TdispError: INVALID_REQUEST for flags that are not supported,
        INVALID_INTERFACE_STATE unless unlocked, BUSY while another lock is under way,
        INSUFFICIENT_ENTROPY, INVALID_DEVICE_CONFIGURATION if the configuration changed meanwhile
        or cannot be reported, and what `lockable` and `report_source` raise.
        """
        unsupported = parameters.flags & ~self.capabilities.lock_flags & _ALL_LOCK_FLAGS
        if unsupported:
            raise TdispError(
                TdispErrorCode.INVALID_REQUEST, f"lock flags {unsupported:#x} are not supported"
            )
        with self._mutex:
            self._require(TdiState.CONFIG_UNLOCKED)
            if self._locking is not None:
                raise TdispError(TdispErrorCode.BUSY, "the interface is being locked")
            self._locking = session
            self._disturbed = None
        try:
            self._lockable(parameters, session)
            report = self._report_source(parameters)
            packed = _packed_report(report)
            nonce = self._new_nonce()
            with self._mutex:
                if self._disturbed is not None:
                    raise TdispError(TdispErrorCode.INVALID_DEVICE_CONFIGURATION, self._disturbed)
                self._state = TdiState.CONFIG_LOCKED
                self._owner = session
                self._parameters = parameters
                self._report, self._packed = report, packed
                self._nonce = nonce
        finally:
            with self._mutex:
                self._locking = None
        self._changed(TdiState.CONFIG_UNLOCKED, TdiState.CONFIG_LOCKED)
        return nonce

    def report(self) -> bytes:
        """The packed report that was made for the lock. Raises TdispError."""
        with self._mutex:
            self._require(TdiState.CONFIG_LOCKED, TdiState.RUN)
            return self._packed

    def start(self, nonce: bytes) -> None:
        """Run, if `nonce` is that of the lock; it is used up. Raises TdispError."""
        with self._mutex:
            self._require(TdiState.CONFIG_LOCKED)
            if self._nonce is None or not hmac.compare_digest(nonce, self._nonce):
                raise TdispError(TdispErrorCode.INVALID_NONCE, "the nonce is not that of the lock")
            self._nonce = None
            self._state = TdiState.RUN
        self._changed(TdiState.CONFIG_LOCKED, TdiState.RUN)

    def stop(self) -> None:
        """Unlock, from whichever state."""
        self._unlock()

    def error(self, reason: str) -> None:
        """A protection of the lock failed: go to ERROR if locked or running."""
        with self._mutex:
            old = self._state
            if self._locking is not None:
                self._disturbed = reason
            if old not in (TdiState.CONFIG_LOCKED, TdiState.RUN):
                return
            self._state = TdiState.ERROR
            self._reason = reason
            self._nonce = None
        self._changed(old, TdiState.ERROR)

    def reset(self) -> None:
        """A conventional reset: the interface is unlocked, and nothing is left of the lock."""
        self._unlock("the device was reset")

    def session_ended(self, session: int) -> None:
        """The session with this ID ended: to ERROR if it had locked the interface (11.4.5)."""
        with self._mutex:
            if session not in (self._owner, self._locking):
                return
            self._owner = None
        self.error("the SPDM session that locked the interface ended")

    def set_mmio_attribute(self, wanted: MmioRange) -> None:
        """Make a range of the report, which allows it, TEE or non-TEE memory. Raises TdispError."""
        with self._mutex:
            self._require(TdiState.RUN)
            ranges = () if self._report is None else self._report.mmio_ranges
            for known in ranges:
                if _place(known) == _place(wanted):
                    break
            else:
                raise TdispError(TdispErrorCode.INVALID_REQUEST, "no such range in the report")
            if not known.attributes & RangeAttributes.IS_MEM_ATTR_UPDATABLE:
                raise TdispError(TdispErrorCode.INVALID_REQUEST, "the range is not updatable")
            self._non_tee[known] = bool(wanted.attributes & RangeAttributes.IS_NON_TEE_MEM)

    def is_non_tee(self, mmio_range: MmioRange) -> bool:
        """Whether a range of the report is accessible from outside of the TEE now."""
        with self._mutex:
            reported = bool(mmio_range.attributes & RangeAttributes.IS_NON_TEE_MEM)
            return self._non_tee.get(mmio_range, reported)

    def _require(self, *states: TdiState) -> None:
        if self._state not in states:
            raise TdispError(
                TdispErrorCode.INVALID_INTERFACE_STATE, f"the interface is {self._state.name}"
            )

    def _unlock(self, disturbed: str | None = None) -> None:
        with self._mutex:
            if self._locking is not None and disturbed is not None:
                self._disturbed = disturbed
            old, self._state = self._state, TdiState.CONFIG_UNLOCKED
            self._reason = self._owner = self._parameters = self._report = self._nonce = None
            self._packed = b""
            self._non_tee.clear()
        if old is not TdiState.CONFIG_UNLOCKED:
            self._changed(old, TdiState.CONFIG_UNLOCKED)

    def _new_nonce(self) -> bytes:
        try:
            nonce = self._random(NONCE_SIZE)
        except (OSError, NotImplementedError) as error:
            raise TdispError(TdispErrorCode.INSUFFICIENT_ENTROPY, str(error)) from None
        if len(nonce) != NONCE_SIZE:
            raise TdispError(TdispErrorCode.INSUFFICIENT_ENTROPY, "there is no nonce")
        return nonce

    def _changed(self, old: TdiState, new: TdiState) -> None:
        if self._on_change is not None:
            self._on_change(self, old, new)


_ALL_LOCK_FLAGS = sum(LockFlags)


def _packed_report(report: Report) -> bytes:
    try:
        packed = report.pack()
    except ValueError as error:
        raise TdispError(TdispErrorCode.INVALID_DEVICE_CONFIGURATION, str(error)) from None
    if len(packed) > MAX_REPORT_SIZE:
        raise TdispError(
            TdispErrorCode.INVALID_DEVICE_CONFIGURATION, f"a report of {len(packed)} bytes"
        )
    return packed


def _place(mmio_range: MmioRange) -> tuple[int, int, int]:
    return mmio_range.first_page, mmio_range.pages, mmio_range.range_id


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
                function_id=function,
                error=error.code,
                data=error.data,
                extended=error.extended,
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


def fixed_interface(function_id: int, ranges: Iterable[tuple[int, int]] = ()) -> Interface:
    """An interface without a device: `ranges` are address and size of each of its BARs."""
    bars = tuple(ranges)

    def report(parameters: LockParameters) -> Report:
        return Report(
            interface_info=InterfaceInfo.DMA_WITHOUT_PASID
            | (parameters.flags & LockFlags.NO_FW_UPDATE),
            mmio_ranges=tuple(
                MmioRange.of(
                    address, size, parameters.mmio_reporting_offset, attributes=0, range_id=bar
                )
                for bar, (address, size) in enumerate(bars)
            ),
        )

    return Interface(function_id, report)
