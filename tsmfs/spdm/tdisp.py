# SPDX-License-Identifier: MIT
"""TDISP: messages, interface report and errors of TEE device interfaces (PCIe 7.0, 11)."""

from __future__ import annotations

import errno as _errno
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from enum import IntEnum, IntFlag

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
"""Requests that an `Interface` of `tsmfs.spdm.interface` supports."""


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
