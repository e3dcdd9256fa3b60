# SPDX-License-Identifier: MIT
"""The SPDM messages of DSP0274 1.2 and 1.3 (chapter 10): codes, flags, errors and layouts."""

from __future__ import annotations

import errno as _errno
from collections.abc import Mapping
from dataclasses import dataclass, field
from enum import IntEnum, IntFlag
from typing import Any, ClassVar, Self

from tsmfs.spdm.wire import (
    HEADER_SIZE,
    NO_SIZES,
    Item,
    Message,
    Sizes,
    SpdmDecodeError,
    array,
    count,
    counted,
    declare,
    digests,
    raw,
    reserved,
    rest,
    since,
    sized,
    total,
    u8,
    u16,
    u32,
    when,
)

NONCE_SIZE = 32
"""Bytes of a nonce and of the random data of KEY_EXCHANGE."""

CONTEXT_SIZE = 8
"""Bytes of RequesterContext, from 1.3 on."""

SLOT_COUNT = 8
SLOT_MASK = 0x0F
CONTENT_MASK = 0x30
"""Where `ContentChanged` is in the byte that has the slot, too."""
PUBLIC_KEY_SLOT = 0x0F
"""Slot number that means a provisioned public key instead of a certificate chain."""

MIN_DATA_TRANSFER_SIZE = 42
"""Least DataTransferSize that an endpoint may tell (10.4)."""

MAX_OPAQUE_SIZE = 1024
"""Most bytes of OpaqueData in a message (10.8 to 10.16)."""

PADDING = 3
"""Bytes that a transport which counts in dwords may leave behind a message."""

CHAIN_HEADER_SIZE = 4
"""Bytes of length and reserved before the root hash of a certificate chain (10.6.1)."""


class Version(IntEnum):
    """SPDM versions by the value of the version byte."""

    V1_0 = 0x10
    """Only the version of GET_VERSION and VERSION here."""
    V1_1 = 0x11
    V1_2 = 0x12
    V1_3 = 0x13


class Code(IntEnum):
    """RequestResponseCode (tables 4 and 5)."""

    DIGESTS = 0x01
    CERTIFICATE = 0x02
    CHALLENGE_AUTH = 0x03
    VERSION = 0x04
    CHUNK_SEND_ACK = 0x05
    CHUNK_RESPONSE = 0x06
    ENDPOINT_INFO = 0x07
    MEASUREMENTS = 0x60
    CAPABILITIES = 0x61
    SUPPORTED_EVENT_TYPES = 0x62
    ALGORITHMS = 0x63
    KEY_EXCHANGE_RSP = 0x64
    FINISH_RSP = 0x65
    PSK_EXCHANGE_RSP = 0x66
    PSK_FINISH_RSP = 0x67
    HEARTBEAT_ACK = 0x68
    KEY_UPDATE_ACK = 0x69
    ENCAPSULATED_REQUEST = 0x6A
    ENCAPSULATED_RESPONSE_ACK = 0x6B
    END_SESSION_ACK = 0x6C
    CSR = 0x6D
    SET_CERTIFICATE_RSP = 0x6E
    MEASUREMENT_EXTENSION_LOG = 0x6F
    SUBSCRIBE_EVENT_TYPES_ACK = 0x70
    EVENT_ACK = 0x71
    KEY_PAIR_INFO = 0x7C
    SET_KEY_PAIR_INFO_ACK = 0x7D
    VENDOR_DEFINED_RESPONSE = 0x7E
    ERROR = 0x7F

    GET_DIGESTS = 0x81
    GET_CERTIFICATE = 0x82
    CHALLENGE = 0x83
    GET_VERSION = 0x84
    CHUNK_SEND = 0x85
    CHUNK_GET = 0x86
    GET_ENDPOINT_INFO = 0x87
    GET_MEASUREMENTS = 0xE0
    GET_CAPABILITIES = 0xE1
    GET_SUPPORTED_EVENT_TYPES = 0xE2
    NEGOTIATE_ALGORITHMS = 0xE3
    KEY_EXCHANGE = 0xE4
    FINISH = 0xE5
    PSK_EXCHANGE = 0xE6
    PSK_FINISH = 0xE7
    HEARTBEAT = 0xE8
    KEY_UPDATE = 0xE9
    GET_ENCAPSULATED_REQUEST = 0xEA
    DELIVER_ENCAPSULATED_RESPONSE = 0xEB
    END_SESSION = 0xEC
    GET_CSR = 0xED
    SET_CERTIFICATE = 0xEE
    GET_MEASUREMENT_EXTENSION_LOG = 0xEF
    SUBSCRIBE_EVENT_TYPES = 0xF0
    SEND_EVENT = 0xF1
    GET_KEY_PAIR_INFO = 0xFC
    SET_KEY_PAIR_INFO = 0xFD
    VENDOR_DEFINED_REQUEST = 0xFE
    RESPOND_IF_READY = 0xFF


class ErrorCode(IntEnum):
    """Param1 of ERROR (10.13)."""

    INVALID_REQUEST = 0x01
    INVALID_SESSION = 0x02
    BUSY = 0x03
    UNEXPECTED_REQUEST = 0x04
    UNSPECIFIED = 0x05
    DECRYPT_ERROR = 0x06
    UNSUPPORTED_REQUEST = 0x07
    REQUEST_IN_FLIGHT = 0x08
    INVALID_RESPONSE_CODE = 0x09
    SESSION_LIMIT_EXCEEDED = 0x0A
    SESSION_REQUIRED = 0x0B
    RESET_REQUIRED = 0x0C
    RESPONSE_TOO_LARGE = 0x0D
    REQUEST_TOO_LARGE = 0x0E
    LARGE_RESPONSE = 0x0F
    MESSAGE_LOST = 0x10
    INVALID_POLICY = 0x11
    VERSION_MISMATCH = 0x41
    RESPONSE_NOT_READY = 0x42
    REQUEST_RESYNCH = 0x43
    OPERATION_FAILED = 0x44
    NO_PENDING_REQUESTS = 0x45
    INVALID_STATE = 0x47
    VENDOR_DEFINED = 0xFF


_ERRNO: Mapping[int, int] = {
    ErrorCode.BUSY: _errno.EBUSY,
    ErrorCode.RESPONSE_NOT_READY: _errno.EBUSY,
    ErrorCode.REQUEST_IN_FLIGHT: _errno.EBUSY,
    ErrorCode.UNSUPPORTED_REQUEST: _errno.EOPNOTSUPP,
    ErrorCode.VERSION_MISMATCH: _errno.EPROTONOSUPPORT,
    ErrorCode.SESSION_LIMIT_EXCEEDED: _errno.ENOSPC,
    ErrorCode.SESSION_REQUIRED: _errno.EACCES,
    ErrorCode.DECRYPT_ERROR: _errno.EBADMSG,
    ErrorCode.INVALID_SESSION: _errno.ENOTCONN,
    ErrorCode.REQUEST_RESYNCH: _errno.ECONNRESET,
    ErrorCode.RESET_REQUIRED: _errno.ECONNRESET,
    ErrorCode.RESPONSE_TOO_LARGE: _errno.EMSGSIZE,
    ErrorCode.REQUEST_TOO_LARGE: _errno.EMSGSIZE,
}


class SpdmError(Exception):
    """An exchange failed: a responder answers with it as ERROR, a requester raises it.

    `code` is an `ErrorCode` where it is known, `data` is Param2 and `extended` what follows it.
    """

    def __init__(self, code: int, text: str, data: int = 0, extended: bytes = b"") -> None:
        super().__init__(text)
        try:
            self.code: int = ErrorCode(code)
        except ValueError:
            self.code = code
        self.data = data
        self.extended = extended

    @property
    def errno(self) -> int:
        """What the kernel side reports: EPROTO unless the code has a nearer one."""
        return _ERRNO.get(self.code, _errno.EPROTO)


class RequesterFlags(IntFlag):
    """Flags of GET_CAPABILITIES (table 14)."""

    CERT = 1 << 1
    CHAL = 1 << 2
    ENCRYPT = 1 << 6
    MAC = 1 << 7
    MUT_AUTH = 1 << 8
    KEY_EX = 1 << 9
    PSK = 3 << 10
    ENCAP = 1 << 12
    HBEAT = 1 << 13
    KEY_UPD = 1 << 14
    HANDSHAKE_IN_THE_CLEAR = 1 << 15
    PUB_KEY_ID = 1 << 16
    CHUNK = 1 << 17
    EP_INFO_NO_SIG = 1 << 22
    EP_INFO_SIG = 1 << 23
    EVENT = 1 << 25
    MULTI_KEY_ONLY = 1 << 26
    MULTI_KEY_NEG = 1 << 27


class ResponderFlags(IntFlag):
    """Flags of CAPABILITIES (table 15)."""

    CACHE = 1 << 0
    CERT = 1 << 1
    CHAL = 1 << 2
    MEAS_NO_SIG = 1 << 3
    MEAS_SIG = 1 << 4
    MEAS_FRESH = 1 << 5
    ENCRYPT = 1 << 6
    MAC = 1 << 7
    MUT_AUTH = 1 << 8
    KEY_EX = 1 << 9
    PSK = 1 << 10
    PSK_WITH_CONTEXT = 1 << 11
    ENCAP = 1 << 12
    HBEAT = 1 << 13
    KEY_UPD = 1 << 14
    HANDSHAKE_IN_THE_CLEAR = 1 << 15
    PUB_KEY_ID = 1 << 16
    CHUNK = 1 << 17
    ALIAS_CERT = 1 << 18
    SET_CERT = 1 << 19
    CSR = 1 << 20
    CERT_INSTALL_RESET = 1 << 21
    EP_INFO_NO_SIG = 1 << 22
    EP_INFO_SIG = 1 << 23
    MEL = 1 << 24
    EVENT = 1 << 25
    MULTI_KEY_ONLY = 1 << 26
    MULTI_KEY_NEG = 1 << 27
    GET_KEY_PAIR_INFO = 1 << 28
    SET_KEY_PAIR_INFO = 1 << 29


SUPPORTED_ALGORITHMS = 1 << 0
"""Param1 of GET_CAPABILITIES and CAPABILITIES, 1.3: tell the supported algorithms."""

MEASUREMENT_SPECIFICATION_DMTF = 1 << 0


class OtherParams(IntFlag):
    """OtherParamsSupport and OtherParamsSelection (table 21)."""

    OPAQUE_FORMAT_0 = 1 << 0
    OPAQUE_FORMAT_1 = 1 << 1
    MULTI_KEY = 1 << 4


class AlgorithmType(IntEnum):
    """AlgType of an algorithm structure (table 22)."""

    DHE = 2
    AEAD = 3
    REQ_BASE_ASYM = 4
    KEY_SCHEDULE = 5


class SummaryType(IntEnum):
    """MeasurementSummaryHashType of CHALLENGE and KEY_EXCHANGE."""

    NONE = 0x00
    TCB = 0x01
    ALL = 0xFF


class MeasurementAttributes(IntFlag):
    """Param1 of GET_MEASUREMENTS."""

    SIGNATURE = 1 << 0
    RAW = 1 << 1
    NEW = 1 << 2


MEASUREMENT_COUNT = 0x00
"""MeasurementOperation: how many there are."""

MEASUREMENT_ALL = 0xFF
"""MeasurementOperation: every block."""


class ContentChanged(IntEnum):
    """Bits 5:4 of Param2 of MEASUREMENTS that is signed."""

    NOT_DETECTED = 0x00
    CHANGED = 0x10
    UNCHANGED = 0x20


class SessionPolicy(IntFlag):
    """SessionPolicy of KEY_EXCHANGE."""

    RUNTIME_UPDATE = 1 << 0
    EVENT_ALL = 1 << 1


class KeyOperation(IntEnum):
    """Param1 of KEY_UPDATE."""

    UPDATE_KEY = 1
    UPDATE_ALL_KEYS = 2
    VERIFY_NEW_KEY = 3


PRESERVE_NEGOTIATED_STATE = 1 << 0
"""Param1 of END_SESSION: clear the preserved negotiated state."""

SLOT_SIZE_REQUESTED = 1 << 0
"""Param2 of GET_CERTIFICATE, 1.3: only tell the size of the slot."""

LAST_CHUNK = 1 << 0
"""Param1 of CHUNK_SEND and CHUNK_RESPONSE."""

EARLY_ERROR = 1 << 0
"""Param1 of CHUNK_SEND_ACK."""

FINISH_SIGNED = 1 << 0
"""Param1 of FINISH: the requester's signature is included."""

STANDARD_PCI_SIG = 3
VENDOR_PCI_SIG = (0x0001).to_bytes(2, "little")


@dataclass(frozen=True, slots=True)
class VersionNumber:
    """An entry of VERSION (table 10): the version byte, then update version and alpha."""

    version: int
    update: int = 0

    def pack_into(self, out: bytearray) -> None:
        """Append the entry to `out`."""
        out += bytes((self.update, self.version))

    @classmethod
    def parse_at(cls, data: bytes, at: int) -> tuple[Self, int]:
        """The entry at offset `at` and the offset behind it. Raises SpdmDecodeError."""
        if at + 2 > len(data):
            raise SpdmDecodeError("a version number is cut off")
        return cls(data[at + 1], data[at]), at + 2


@dataclass(frozen=True, slots=True)
class ExtendedAlgorithm:
    """An extended algorithm: registry and number (table 26)."""

    registry: int
    algorithm: int

    def pack_into(self, out: bytearray) -> None:
        """Append the entry to `out`."""
        out += bytes((self.registry, 0)) + self.algorithm.to_bytes(2, "little")

    @classmethod
    def parse_at(cls, data: bytes, at: int) -> tuple[Self, int]:
        """The entry at offset `at` and the offset behind it. Raises SpdmDecodeError."""
        if at + 4 > len(data):
            raise SpdmDecodeError("an extended algorithm is cut off")
        return cls(data[at], int.from_bytes(data[at + 2 : at + 4], "little")), at + 4


@dataclass(frozen=True, slots=True)
class AlgorithmTable:
    """An algorithm structure (table 22): a kind and the bits of what is supported or selected."""

    kind: int
    supported: int
    extended: tuple[ExtendedAlgorithm, ...] = ()

    FIXED_SIZE: ClassVar[int] = 2

    def pack_into(self, out: bytearray) -> None:
        """Append the entry to `out`."""
        out += bytes((self.kind, self.FIXED_SIZE << 4 | len(self.extended)))
        out += self.supported.to_bytes(self.FIXED_SIZE, "little")
        for algorithm in self.extended:
            algorithm.pack_into(out)

    @classmethod
    def parse_at(cls, data: bytes, at: int) -> tuple[Self, int]:
        """The entry at offset `at` and the offset behind it. Raises SpdmDecodeError."""
        if at + 4 > len(data):
            raise SpdmDecodeError("an algorithm structure is cut off")
        kind, counts = data[at], data[at + 1]
        if counts >> 4 != cls.FIXED_SIZE:
            raise SpdmDecodeError(f"an algorithm structure has {counts >> 4} fixed bytes, not 2")
        supported = int.from_bytes(data[at + 2 : at + 4], "little")
        at += 4
        extended = []
        for _ in range(counts & 0x0F):
            algorithm, at = ExtendedAlgorithm.parse_at(data, at)
            extended.append(algorithm)
        return cls(kind, supported, tuple(extended)), at


@declare
@dataclass(frozen=True, slots=True, kw_only=True)
class GetVersion(Message):
    """GET_VERSION (10.2); always of version 1.0."""

    CODE = Code.GET_VERSION
    WIRE = (reserved(2),)


@declare
@dataclass(frozen=True, slots=True, kw_only=True)
class VersionResponse(Message):
    """VERSION (10.2)."""

    CODE = Code.VERSION
    WIRE = (reserved(3), count("entries", 1), array("entries", VersionNumber))

    entries: tuple[VersionNumber, ...] = ()


@declare
@dataclass(frozen=True, slots=True, kw_only=True)
class GetCapabilities(Message):
    """GET_CAPABILITIES (10.3)."""

    CODE = Code.GET_CAPABILITIES
    WIRE = (
        u8("attributes"),
        reserved(2),
        u8("ct_exponent"),
        reserved(2),
        u32("flags"),
        u32("data_transfer_size"),
        u32("max_message_size"),
    )

    attributes: int = 0
    ct_exponent: int = 0
    flags: int = 0
    data_transfer_size: int = 0
    max_message_size: int = 0


def _algorithms_block(values: Mapping[str, Any]) -> bool:
    return values["version"] >= Version.V1_3 and bool(values["attributes"] & SUPPORTED_ALGORITHMS)


@declare
@dataclass(frozen=True, slots=True, kw_only=True)
class Capabilities(Message):
    """CAPABILITIES (10.3). `supported` is a `SupportedAlgorithms` of 1.3, if it was asked for."""

    CODE = Code.CAPABILITIES
    WIRE = (
        u8("attributes"),
        reserved(2),
        u8("ct_exponent"),
        reserved(2),
        u32("flags"),
        u32("data_transfer_size"),
        u32("max_message_size"),
        when(_algorithms_block, rest("supported")),
    )

    attributes: int = 0
    ct_exponent: int = 0
    flags: int = 0
    data_transfer_size: int = 0
    max_message_size: int = 0
    supported: bytes = b""


_REQUEST_ALGORITHMS: tuple[Item, ...] = (
    count("tables", 1),
    reserved(1),
    total(2),
    u8("measurement_specification"),
    u8("other_params"),
    u32("base_asym"),
    u32("base_hash"),
    reserved(12),
    count("extended_asym", 1),
    count("extended_hash", 1),
    reserved(1),
    u8("mel_specification"),
    array("extended_asym", ExtendedAlgorithm),
    array("extended_hash", ExtendedAlgorithm),
    array("tables", AlgorithmTable),
)


@declare
@dataclass(frozen=True, slots=True, kw_only=True)
class NegotiateAlgorithms(Message):
    """NEGOTIATE_ALGORITHMS (10.4)."""

    CODE = Code.NEGOTIATE_ALGORITHMS
    WIRE = _REQUEST_ALGORITHMS

    measurement_specification: int = 0
    other_params: int = 0
    base_asym: int = 0
    base_hash: int = 0
    mel_specification: int = 0
    extended_asym: tuple[ExtendedAlgorithm, ...] = ()
    extended_hash: tuple[ExtendedAlgorithm, ...] = ()
    tables: tuple[AlgorithmTable, ...] = ()

    MAX_SIZE: ClassVar[int] = 0x80
    MAX_EXTENDED: ClassVar[int] = 0x14


@declare
@dataclass(frozen=True, slots=True, kw_only=True)
class AlgorithmsResponse(Message):
    """ALGORITHMS (10.4)."""

    CODE = Code.ALGORITHMS
    WIRE = (
        count("tables", 1),
        reserved(1),
        total(2),
        u8("measurement_specification"),
        u8("other_params"),
        u32("measurement_hash"),
        u32("base_asym"),
        u32("base_hash"),
        reserved(11),
        u8("mel_specification"),
        count("extended_asym", 1),
        count("extended_hash", 1),
        reserved(2),
        array("extended_asym", ExtendedAlgorithm),
        array("extended_hash", ExtendedAlgorithm),
        array("tables", AlgorithmTable),
    )

    measurement_specification: int = 0
    other_params: int = 0
    measurement_hash: int = 0
    base_asym: int = 0
    base_hash: int = 0
    mel_specification: int = 0
    extended_asym: tuple[ExtendedAlgorithm, ...] = ()
    extended_hash: tuple[ExtendedAlgorithm, ...] = ()
    tables: tuple[AlgorithmTable, ...] = ()


@declare
@dataclass(frozen=True, slots=True, kw_only=True)
class GetDigests(Message):
    """GET_DIGESTS (10.5)."""

    CODE = Code.GET_DIGESTS
    WIRE = (reserved(2),)


@declare
@dataclass(frozen=True, slots=True, kw_only=True)
class Digests(Message):
    """DIGESTS (10.5): a digest of the chain of each slot in `slots`.

    From 1.3 on `supported_slots` are those that could hold a chain. A connection with several
    keys per slot is never negotiated, so what it adds to the message is not described.
    """

    CODE = Code.DIGESTS
    WIRE = (u8("supported_slots"), u8("slots"), digests("digests", "slots"))

    supported_slots: int = 0
    slots: int = 0
    digests: tuple[bytes, ...] = ()


@declare
@dataclass(frozen=True, slots=True, kw_only=True)
class GetCertificate(Message):
    """GET_CERTIFICATE (10.6)."""

    CODE = Code.GET_CERTIFICATE
    WIRE = (u8("slot"), u8("attributes"), u16("offset"), u16("length"))

    slot: int = 0
    attributes: int = 0
    offset: int = 0
    length: int = 0


@declare
@dataclass(frozen=True, slots=True, kw_only=True)
class Certificate(Message):
    """CERTIFICATE (10.6): a portion of a chain and how much follows it."""

    CODE = Code.CERTIFICATE
    WIRE = (u8("slot"), u8("info"), count("portion", 2), u16("remainder"), counted("portion"))

    slot: int = 0
    info: int = 0
    remainder: int = 0
    portion: bytes = b""


@declare
@dataclass(frozen=True, slots=True, kw_only=True)
class Challenge(Message):
    """CHALLENGE (10.8)."""

    CODE = Code.CHALLENGE
    WIRE = (
        u8("slot"),
        u8("summary_type"),
        raw("nonce", NONCE_SIZE),
        since(Version.V1_3, raw("context", CONTEXT_SIZE)),
    )

    slot: int = 0
    summary_type: int = 0
    nonce: bytes = bytes(NONCE_SIZE)
    context: bytes = b""


@declare
@dataclass(frozen=True, slots=True, kw_only=True)
class ChallengeAuth(Message):
    """CHALLENGE_AUTH (10.8)."""

    CODE = Code.CHALLENGE_AUTH
    WIRE = (
        u8("slot"),
        u8("slots"),
        sized("chain_hash", "hash"),
        raw("nonce", NONCE_SIZE),
        sized("summary", "summary"),
        count("opaque", 2),
        counted("opaque"),
        since(Version.V1_3, raw("context", CONTEXT_SIZE)),
        sized("signature", "signature"),
    )

    slot: int = 0
    slots: int = 0
    chain_hash: bytes = b""
    nonce: bytes = bytes(NONCE_SIZE)
    summary: bytes = b""
    opaque: bytes = b""
    context: bytes = b""
    signature: bytes = b""


def _signed(values: Mapping[str, Any]) -> bool:
    return bool(values["attributes"] & MeasurementAttributes.SIGNATURE)


@declare
@dataclass(frozen=True, slots=True, kw_only=True)
class GetMeasurements(Message):
    """GET_MEASUREMENTS (10.10); nonce and slot only when a signature is asked for."""

    CODE = Code.GET_MEASUREMENTS
    WIRE = (
        u8("attributes"),
        u8("operation"),
        when(_signed, raw("nonce", NONCE_SIZE)),
        when(_signed, u8("slot")),
        since(Version.V1_3, raw("context", CONTEXT_SIZE)),
    )

    attributes: int = 0
    operation: int = MEASUREMENT_COUNT
    nonce: bytes = b""
    slot: int = 0
    context: bytes = b""


@declare
@dataclass(frozen=True, slots=True, kw_only=True)
class Measurements(Message):
    """MEASUREMENTS (10.11). `total` is the answer to `MEASUREMENT_COUNT`."""

    CODE = Code.MEASUREMENTS
    WIRE = (
        u8("total"),
        u8("slot"),
        u8("blocks"),
        count("record", 3),
        counted("record"),
        raw("nonce", NONCE_SIZE),
        count("opaque", 2),
        counted("opaque"),
        since(Version.V1_3, raw("context", CONTEXT_SIZE)),
        sized("signature", "signature"),
    )

    total: int = 0
    slot: int = 0
    """Slot in bits 3:0, `ContentChanged` in bits 5:4."""
    blocks: int = 0
    record: bytes = b""
    nonce: bytes = bytes(NONCE_SIZE)
    opaque: bytes = b""
    context: bytes = b""
    signature: bytes = b""


@declare
@dataclass(frozen=True, slots=True, kw_only=True)
class Error(Message):
    """ERROR (10.13)."""

    CODE = Code.ERROR
    WIRE = (u8("error"), u8("data"), rest("extended"))

    error: int = ErrorCode.UNSPECIFIED
    data: int = 0
    extended: bytes = b""


@declare
@dataclass(frozen=True, slots=True, kw_only=True)
class RespondIfReady(Message):
    """RESPOND_IF_READY (10.14)."""

    CODE = Code.RESPOND_IF_READY
    WIRE = (u8("request"), u8("token"))

    request: int = 0
    token: int = 0


_VENDOR: tuple[Item, ...] = (
    reserved(2),
    u16("standard"),
    count("vendor", 1),
    counted("vendor"),
    count("payload", 2),
    counted("payload"),
)


@declare
@dataclass(frozen=True, slots=True, kw_only=True)
class VendorDefinedRequest(Message):
    """VENDOR_DEFINED_REQUEST (10.15)."""

    CODE = Code.VENDOR_DEFINED_REQUEST
    WIRE = _VENDOR

    standard: int = STANDARD_PCI_SIG
    vendor: bytes = VENDOR_PCI_SIG
    payload: bytes = field(default=b"", repr=False)
    """Left out of the representation: it may hold keys."""


@declare
@dataclass(frozen=True, slots=True, kw_only=True)
class VendorDefinedResponse(Message):
    """VENDOR_DEFINED_RESPONSE (10.15)."""

    CODE = Code.VENDOR_DEFINED_RESPONSE
    WIRE = _VENDOR

    standard: int = STANDARD_PCI_SIG
    vendor: bytes = VENDOR_PCI_SIG
    payload: bytes = field(default=b"", repr=False)
    """Left out of the representation: it may hold keys."""


@declare
@dataclass(frozen=True, slots=True, kw_only=True)
class KeyExchange(Message):
    """KEY_EXCHANGE (10.16)."""

    CODE = Code.KEY_EXCHANGE
    WIRE = (
        u8("summary_type"),
        u8("slot"),
        u16("session"),
        u8("policy"),
        reserved(1),
        raw("random", NONCE_SIZE),
        sized("exchange", "exchange"),
        count("opaque", 2),
        counted("opaque"),
    )

    summary_type: int = 0
    slot: int = 0
    session: int = 0
    """The requester's half of the session ID."""
    policy: int = 0
    random: bytes = bytes(NONCE_SIZE)
    exchange: bytes = b""
    opaque: bytes = b""


@declare
@dataclass(frozen=True, slots=True, kw_only=True)
class KeyExchangeResponse(Message):
    """KEY_EXCHANGE_RSP (10.16)."""

    CODE = Code.KEY_EXCHANGE_RSP
    WIRE = (
        u8("heartbeat_period"),
        reserved(1),
        u16("session"),
        u8("mutual_authentication"),
        u8("requester_slot"),
        raw("random", NONCE_SIZE),
        sized("exchange", "exchange"),
        sized("summary", "summary"),
        count("opaque", 2),
        counted("opaque"),
        sized("signature", "signature"),
        sized("verify", "verify"),
    )

    heartbeat_period: int = 0
    """Seconds; zero is no heartbeat."""
    session: int = 0
    """The responder's half of the session ID."""
    mutual_authentication: int = 0
    requester_slot: int = 0
    random: bytes = bytes(NONCE_SIZE)
    exchange: bytes = b""
    summary: bytes = b""
    opaque: bytes = b""
    signature: bytes = b""
    verify: bytes = b""


@declare
@dataclass(frozen=True, slots=True, kw_only=True)
class Finish(Message):
    """FINISH (10.17); a `signature` only with mutual authentication."""

    CODE = Code.FINISH
    WIRE = (
        u8("attributes"),
        u8("slot"),
        when(lambda values: bool(values["attributes"] & FINISH_SIGNED),
             sized("signature", "signature")),
        sized("verify", "verify"),
    )  # fmt: skip

    attributes: int = 0
    slot: int = 0
    signature: bytes = b""
    verify: bytes = b""


@declare
@dataclass(frozen=True, slots=True, kw_only=True)
class FinishResponse(Message):
    """FINISH_RSP (10.17); `verify` only when the handshake is in the clear."""

    CODE = Code.FINISH_RSP
    WIRE = (reserved(2), sized("verify", "verify"))

    verify: bytes = b""


@declare
@dataclass(frozen=True, slots=True, kw_only=True)
class Heartbeat(Message):
    """HEARTBEAT (10.20)."""

    CODE = Code.HEARTBEAT
    WIRE = (reserved(2),)


@declare
@dataclass(frozen=True, slots=True, kw_only=True)
class HeartbeatAck(Message):
    """HEARTBEAT_ACK (10.20)."""

    CODE = Code.HEARTBEAT_ACK
    WIRE = (reserved(2),)


@declare
@dataclass(frozen=True, slots=True, kw_only=True)
class KeyUpdate(Message):
    """KEY_UPDATE (10.21)."""

    CODE = Code.KEY_UPDATE
    WIRE = (u8("operation"), u8("tag"))

    operation: int = KeyOperation.UPDATE_KEY
    tag: int = 0


@declare
@dataclass(frozen=True, slots=True, kw_only=True)
class KeyUpdateAck(Message):
    """KEY_UPDATE_ACK (10.21)."""

    CODE = Code.KEY_UPDATE_ACK
    WIRE = (u8("operation"), u8("tag"))

    operation: int = KeyOperation.UPDATE_KEY
    tag: int = 0


@declare
@dataclass(frozen=True, slots=True, kw_only=True)
class EndSession(Message):
    """END_SESSION (10.24)."""

    CODE = Code.END_SESSION
    WIRE = (u8("attributes"), reserved(1))

    attributes: int = 0


@declare
@dataclass(frozen=True, slots=True, kw_only=True)
class EndSessionAck(Message):
    """END_SESSION_ACK (10.24)."""

    CODE = Code.END_SESSION_ACK
    WIRE = (reserved(2),)


@declare
@dataclass(frozen=True, slots=True, kw_only=True)
class GetCsr(Message):
    """GET_CSR (10.25)."""

    CODE = Code.GET_CSR
    WIRE = (
        u8("key_pair"),
        u8("attributes"),
        count("requester_info", 2),
        count("opaque", 2),
        counted("requester_info"),
        counted("opaque"),
    )

    key_pair: int = 0
    attributes: int = 0
    requester_info: bytes = b""
    opaque: bytes = b""


@declare
@dataclass(frozen=True, slots=True, kw_only=True)
class Csr(Message):
    """CSR (10.25)."""

    CODE = Code.CSR
    WIRE = (reserved(2), count("csr", 2), reserved(2), counted("csr"))

    csr: bytes = b""


@declare
@dataclass(frozen=True, slots=True, kw_only=True)
class SetCertificate(Message):
    """SET_CERTIFICATE (10.26)."""

    CODE = Code.SET_CERTIFICATE
    WIRE = (u8("attributes"), u8("key_pair"), rest("chain"))

    attributes: int = 0
    """Slot in bits 3:0."""
    key_pair: int = 0
    chain: bytes = b""


@declare
@dataclass(frozen=True, slots=True, kw_only=True)
class SetCertificateResponse(Message):
    """SET_CERTIFICATE_RSP (10.26)."""

    CODE = Code.SET_CERTIFICATE_RSP
    WIRE = (u8("slot"), reserved(1))

    slot: int = 0


def _first_chunk(values: Mapping[str, Any]) -> bool:
    return bool(values["sequence"] == 0)


_CHUNK: tuple[Item, ...] = (
    u8("attributes"),
    u8("handle"),
    u16("sequence"),
    reserved(2),
    count("chunk", 4),
    when(_first_chunk, u32("large_size")),
    counted("chunk"),
)


@declare
@dataclass(frozen=True, slots=True, kw_only=True)
class ChunkSend(Message):
    """CHUNK_SEND (10.28): a piece of a request; the first tells the size of the whole."""

    CODE = Code.CHUNK_SEND
    WIRE = _CHUNK

    attributes: int = 0
    handle: int = 0
    sequence: int = 0
    large_size: int = 0
    chunk: bytes = b""

    OVERHEAD: ClassVar[int] = 12


@declare
@dataclass(frozen=True, slots=True, kw_only=True)
class ChunkSendAck(Message):
    """CHUNK_SEND_ACK (10.28): with the last chunk, the response to the large request."""

    CODE = Code.CHUNK_SEND_ACK
    WIRE = (u8("attributes"), u8("handle"), u16("sequence"), rest("response"))

    attributes: int = 0
    handle: int = 0
    sequence: int = 0
    response: bytes = b""

    OVERHEAD: ClassVar[int] = 6


@declare
@dataclass(frozen=True, slots=True, kw_only=True)
class ChunkGet(Message):
    """CHUNK_GET (10.28)."""

    CODE = Code.CHUNK_GET
    WIRE = (reserved(1), u8("handle"), u16("sequence"))

    handle: int = 0
    sequence: int = 0


@declare
@dataclass(frozen=True, slots=True, kw_only=True)
class ChunkResponse(Message):
    """CHUNK_RESPONSE (10.28): a piece of a response; the first tells the size of the whole."""

    CODE = Code.CHUNK_RESPONSE
    WIRE = _CHUNK

    attributes: int = 0
    handle: int = 0
    sequence: int = 0
    large_size: int = 0
    chunk: bytes = b""

    OVERHEAD: ClassVar[int] = 12


LARGE_SIZE_SIZE = 4
"""Bytes of LargeMessageSize, which only the first chunk carries."""


@dataclass(frozen=True, slots=True)
class SupportedAlgorithms:
    """What CAPABILITIES of 1.3 appends: NEGOTIATE_ALGORITHMS as the responder would send it."""

    request: NegotiateAlgorithms = field(default_factory=NegotiateAlgorithms)

    def pack(self) -> bytes:
        """The block: the request without version and code, its length that of the block."""
        body = bytearray(self.request.pack()[2:])
        body[2:4] = len(body).to_bytes(2, "little")
        return bytes(body)

    @classmethod
    def parse(cls, data: bytes) -> Self:
        """The block in `data`. Raises SpdmDecodeError."""
        if len(data) < HEADER_SIZE or int.from_bytes(data[2:4], "little") != len(data):
            raise SpdmDecodeError("the length of the supported algorithms is wrong")
        message = bytearray(bytes((Version.V1_3, Code.NEGOTIATE_ALGORITHMS)) + data)
        message[4:6] = len(message).to_bytes(2, "little")
        return cls(NegotiateAlgorithms.parse(bytes(message)))


MESSAGES: Mapping[int, type[Message]] = {
    message.CODE: message
    for message in (
        GetVersion, VersionResponse, GetCapabilities, Capabilities, NegotiateAlgorithms,
        AlgorithmsResponse, GetDigests, Digests, GetCertificate, Certificate, Challenge,
        ChallengeAuth, GetMeasurements, Measurements, Error, RespondIfReady, VendorDefinedRequest,
        VendorDefinedResponse, KeyExchange, KeyExchangeResponse, Finish, FinishResponse, Heartbeat,
        HeartbeatAck, KeyUpdate, KeyUpdateAck, EndSession, EndSessionAck, GetCsr, Csr,
        SetCertificate, SetCertificateResponse, ChunkSend, ChunkSendAck, ChunkGet, ChunkResponse,
    )
}  # fmt: skip
"""Every message described here, by its code."""


def parse(data: bytes, sizes: Sizes = NO_SIZES, *, padding: int = 0) -> Message:
    """The message in `data`, whichever it is. Raises SpdmDecodeError."""
    if len(data) < HEADER_SIZE:
        raise SpdmDecodeError(f"{len(data)} bytes are no SPDM message")
    kind = MESSAGES.get(data[1])
    if kind is None:
        raise SpdmDecodeError(f"no message has the code {data[1]:#04x}")
    return kind.parse(data, sizes, padding=padding)
