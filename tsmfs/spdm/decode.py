# SPDX-License-Identifier: MIT
"""Print what evidence and captures hold: messages, transcripts, certificate chains, TDISP reports.

The WIRE tables of the messages drive it. What the bytes themselves do not tell, the sizes that
were negotiated, comes from ALGORITHMS where a transcript has it, and is tried out where not.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import fields, is_dataclass
from enum import Enum, IntEnum, IntFlag
from itertools import product

from cryptography import x509
from cryptography.hazmat.primitives.asymmetric import ec

from tsmfs.spdm import ide_km, tdisp
from tsmfs.spdm.algorithms import AeadSuite, BaseAsym, BaseHash, DheGroup, MeasurementHash
from tsmfs.spdm.certificates import (
    CertificateError,
    Chain,
    cma_name,
    issuer_of,
    public_key,
    spdm_oids,
    subject_of,
    utc,
)
from tsmfs.spdm.measurements import MeasurementBlock, MeasurementKind, parse_record
from tsmfs.spdm.messages import (
    CONTENT_MASK,
    MESSAGES,
    AlgorithmsResponse,
    AlgorithmTable,
    AlgorithmType,
    Capabilities,
    Challenge,
    ChallengeAuth,
    Code,
    ContentChanged,
    Digests,
    Finish,
    FinishResponse,
    GetCapabilities,
    GetMeasurements,
    KeyExchange,
    KeyExchangeResponse,
    MeasurementAttributes,
    Measurements,
    NegotiateAlgorithms,
    OtherParams,
    RequesterFlags,
    ResponderFlags,
    SummaryType,
    VendorDefinedRequest,
    VendorDefinedResponse,
    Version,
)
from tsmfs.spdm.vendor import PciProtocol, is_pci_sig, parse_payload
from tsmfs.spdm.wire import HEADER_SIZE, NO_SIZES, Message, Sizes, SpdmDecodeError

INDENT = "  "
BYTES_PER_LINE = 32

_WINDOW = 1 << 13
"""Bytes that nearly every message fits; more are copied only for one that does not."""

_IN_THE_CLEAR = RequesterFlags.HANDSHAKE_IN_THE_CLEAR
_VERSIONS = frozenset(Version)

_HASH_SIZES = tuple(member.size for member in BaseHash)
_SIGNATURE_SIZES = tuple(member.signature_size for member in BaseAsym)
_EXCHANGE_SIZES = tuple(member.exchange_size for member in DheGroup)

_ENUMS: Mapping[tuple[type, str], type[IntEnum] | type[IntFlag]] = {
    (GetCapabilities, "flags"): RequesterFlags,
    (Capabilities, "flags"): ResponderFlags,
    (NegotiateAlgorithms, "other_params"): OtherParams,
    (AlgorithmsResponse, "other_params"): OtherParams,
    (Challenge, "summary_type"): SummaryType,
    (KeyExchange, "summary_type"): SummaryType,
    (GetMeasurements, "attributes"): MeasurementAttributes,
    (AlgorithmTable, "kind"): AlgorithmType,
    (MeasurementBlock, "kind"): MeasurementKind,
    (tdisp.LockParameters, "flags"): tdisp.LockFlags,
    (tdisp.Report, "interface_info"): tdisp.InterfaceInfo,
    (tdisp.MmioRange, "attributes"): tdisp.RangeAttributes,
}

_BITS: Mapping[str, type[Enum]] = {
    "base_hash": BaseHash,
    "base_asym": BaseAsym,
    "measurement_hash": MeasurementHash,
}

_TABLE_BITS: Mapping[int, type[Enum]] = {
    AlgorithmType.DHE: DheGroup,
    AlgorithmType.AEAD: AeadSuite,
    AlgorithmType.REQ_BASE_ASYM: BaseAsym,
}


# --- Lines -------------------------------------------------------------------------------------


def _indented(lines: Iterable[str]) -> Iterator[str]:
    return (INDENT + line for line in lines)


def _hex(name: str, value: bytes) -> Iterator[str]:
    if len(value) <= BYTES_PER_LINE:
        yield f"{name}: {value.hex() or '(empty)'}"
        return
    yield f"{name}: {len(value)} bytes"
    for at in range(0, len(value), BYTES_PER_LINE):
        yield INDENT + value[at : at + BYTES_PER_LINE].hex()


def _member(kind: type[Enum], value: int) -> str:
    """`value` with the names that `kind` has for it or for its bits."""
    if issubclass(kind, IntEnum):
        known = kind._value2member_map_.get(value)
        return f"{value:#04x}" if known is None else f"{value:#04x} ({known.name})"
    bits: dict[int, str] = {getattr(one, "bit", one.value): one.name for one in kind}
    names = [name for bit, name in bits.items() if bit & value == bit]
    return f"{value:#04x} ({'|'.join(names)})" if names else f"{value:#04x}"


def _value(owner: object, name: str, value: object, default: object) -> Iterator[str]:
    """The lines of one field."""
    if isinstance(value, bytes):
        yield from _hex(name, value)
    elif isinstance(value, tuple):
        for number, element in enumerate(value):
            yield from _value(owner, f"{name}[{number}]", element, None)
    elif is_dataclass(value):
        yield f"{name}:"
        yield from _indented(_fields(value))
    elif isinstance(value, int) and not isinstance(value, bool):
        kind = _ENUMS.get((type(owner), name), _BITS.get(name))
        if isinstance(owner, AlgorithmTable) and name == "supported":
            kind = _TABLE_BITS.get(owner.kind)
        if kind is None and isinstance(default, Enum):
            kind = type(default)
        yield f"{name}: {_member(kind, value) if kind else f'{value:#x}' if value > 9 else value}"
    else:
        yield f"{name}: {value}"


def _fields(owner: object) -> Iterator[str]:
    """The lines of a dataclass, a field each or more."""
    for field in fields(owner):  # type: ignore[arg-type]  # Callers have a dataclass.
        value = getattr(owner, field.name)
        if field.name == "payload" and isinstance(
            owner, VendorDefinedRequest | VendorDefinedResponse
        ):
            yield from _payload(owner)
        elif field.name == "slot" and isinstance(owner, Measurements):
            yield from _value(owner, "slot", value & ~CONTENT_MASK, 0)
            yield f"content_changed: {_member(ContentChanged, value & CONTENT_MASK)}"
        elif not field.repr:
            yield f"{field.name}: {len(value)} bytes, not shown"
        elif field.name == "record":
            yield from _record(value)
        elif field.name != "version" or not isinstance(owner, Message):
            yield from _value(owner, field.name, value, field.default)


def _record(record: bytes) -> Iterator[str]:
    try:
        blocks = parse_record(record)
    except SpdmDecodeError as error:
        yield f"record is malformed: {error}"
        yield from _hex("record", record)
        return
    for block in blocks:
        yield f"measurement {block.index}:"
        yield from _indented(line for line in _fields(block) if not line.startswith("index:"))


_PROTOCOLS: Mapping[int, Callable[[bytes], object]] = {
    PciProtocol.IDE_KM: ide_km.parse,
    PciProtocol.TDISP: tdisp.parse,
}


def _payload(message: VendorDefinedRequest | VendorDefinedResponse) -> Iterator[str]:
    payload = message.payload
    if not is_pci_sig(message) or not payload or payload[0] not in _PROTOCOLS:
        yield from _hex("payload", payload)
        return
    protocol, content = parse_payload(payload)
    try:
        decoded = _PROTOCOLS[protocol](content)
    except SpdmDecodeError as error:
        # Perhaps a key is in it, so the bytes are not shown.
        yield f"payload: {PciProtocol(protocol).name}, {len(content)} bytes, malformed: {error}"
        return
    yield f"{PciProtocol(protocol).name} {type(decoded).__name__}:"
    yield from _indented(_fields(decoded))


# --- Messages ----------------------------------------------------------------------------------


class _Reader:
    """Reads messages one behind the other, and remembers what tells the sizes in later ones."""

    def __init__(self, sizes: Sizes | None = None) -> None:
        self._sizes = sizes
        self._request: Message | None = None
        self._requester_flags = 0
        self._clear_handshake: bool | None = None

    def take(self, data: bytes) -> tuple[Message, int]:
        """The message that `data` starts with, and its size. Raises SpdmDecodeError."""
        if len(data) < HEADER_SIZE:
            raise SpdmDecodeError(f"{len(data)} bytes are no SPDM message")
        if data[0] not in _VERSIONS:
            raise SpdmDecodeError(f"version {data[0]:#04x} is not known")
        kind = MESSAGES.get(data[1])
        if kind is None:
            raise SpdmDecodeError(f"no message has the code {data[1]:#04x}")
        problem: SpdmDecodeError | None = None
        fallback: tuple[Message, int] | None = None
        for sizes in self._candidates(kind, data):
            try:
                message, size = kind.take(data, sizes)
            except SpdmDecodeError as error:
                problem = problem or error
                continue
            if _continues(data, size):
                self._remember(message)
                return message, size
            fallback = fallback or (message, size)
        if fallback is None:
            raise problem or SpdmDecodeError(f"{kind.__name__} has no possible size")
        self._remember(fallback[0])
        return fallback

    def _candidates(self, kind: type[Message], data: bytes) -> Iterator[Sizes]:
        """What the sizes in a message may be, the likely ones first."""
        if kind not in _SIZED:
            yield NO_SIZES
            return
        if self._sizes is not None:
            hashes: tuple[int, ...] = (self._sizes.hash,)
            signatures: tuple[int, ...] = (self._sizes.signature,)
            exchanges: tuple[int, ...] = (self._sizes.exchange,)
        else:
            hashes, signatures, exchanges = _HASH_SIZES, _SIGNATURE_SIZES, _EXCHANGE_SIZES
        for digest, signature, exchange in product(
            hashes if kind in _HASHED else (0,),
            self._signatures(kind, signatures),
            exchanges if kind in (KeyExchange, KeyExchangeResponse) else (0,),
        ):
            for summary in self._summaries(kind, digest):
                for verify in self._verifies(kind, digest):
                    yield Sizes(digest, signature, exchange, summary, verify)

    def _signatures(self, kind: type[Message], signatures: tuple[int, ...]) -> tuple[int, ...]:
        if kind is Measurements:
            if isinstance(self._request, GetMeasurements):
                signed = self._request.attributes & MeasurementAttributes.SIGNATURE
                return signatures if signed else (0,)
            return (0, *signatures)
        return signatures if kind in (ChallengeAuth, KeyExchangeResponse, Finish) else (0,)

    def _summaries(self, kind: type[Message], digest: int) -> tuple[int, ...]:
        if kind not in (ChallengeAuth, KeyExchangeResponse):
            return (0,)
        if isinstance(self._request, Challenge | KeyExchange):
            return (digest if self._request.summary_type else 0,)
        return (0, digest)

    def _verifies(self, kind: type[Message], digest: int) -> tuple[int, ...]:
        if kind is Finish:
            return (digest,)
        if kind not in (KeyExchangeResponse, FinishResponse):
            return (0,)
        if self._clear_handshake is None:
            return (0, digest)
        return (digest if self._clear_handshake == (kind is FinishResponse) else 0,)

    def _remember(self, message: Message) -> None:
        if message.CODE >= _FIRST_REQUEST:
            self._request = message
        match message:
            case GetCapabilities():
                self._requester_flags = message.flags
            case Capabilities():
                self._clear_handshake = bool(self._requester_flags & message.flags & _IN_THE_CLEAR)
            case AlgorithmsResponse():
                self._sizes = _negotiated(message) or self._sizes


_FIRST_REQUEST = 0x80
_HASHED = frozenset({Digests, ChallengeAuth, KeyExchangeResponse, Finish, FinishResponse})
_SIZED = _HASHED | {Measurements, KeyExchange}


def _continues(data: bytes, at: int) -> bool:
    """Whether at `at` the data end, or another message of the same connection begins."""
    if at == len(data):
        return True
    return at + HEADER_SIZE <= len(data) and data[at] == data[0] and data[at + 1] in MESSAGES


def _negotiated(message: AlgorithmsResponse) -> Sizes | None:
    tables = {table.kind: table.supported for table in message.tables}
    digest = next((one.size for one in BaseHash if one.bit == message.base_hash), None)
    signature = next((one.signature_size for one in BaseAsym if one.bit == message.base_asym), None)
    exchange = next(
        (one.exchange_size for one in DheGroup if one.bit == tables.get(AlgorithmType.DHE)), 0
    )
    if digest is None or signature is None:
        return None
    return Sizes(hash=digest, signature=signature, exchange=exchange)


def _message_lines(message: Message, size: int) -> Iterator[str]:
    version = f"{message.version >> 4}.{message.version & 0x0F}"
    yield f"{Code(message.CODE).name} (SPDM {version}, {size} bytes)"
    yield from _indented(_fields(message))


def _take(reader: _Reader, data: bytes, at: int) -> tuple[Message, int]:
    window = data[at : at + _WINDOW]
    try:
        return reader.take(window)
    except SpdmDecodeError:
        if at + len(window) == len(data):
            raise
        return reader.take(data[at:])


class UnreadableRestError(SpdmDecodeError):
    """Messages can be read up to a place, and no further."""

    def __init__(self, printed: str, reason: str) -> None:
        super().__init__(reason)
        self.printed = printed
        """The messages, and the rest as bytes."""


def decode_messages(data: bytes, sizes: Sizes | None = None) -> str:
    """Print the messages in `data`, one behind the other: VCA, L1/L2, or a single one.

    `sizes` are those negotiated, where `data` does not have ALGORITHMS. Raises SpdmDecodeError if
    `data` does not begin with a message, UnreadableRestError for what cannot be read behind one.
    """
    reader = _Reader(sizes)
    lines: list[str] = []
    at = 0
    while at < len(data):
        try:
            message, size = _take(reader, data, at)
        except SpdmDecodeError as error:
            if at == 0:
                raise
            lines.append(f"at {at:#x}:")
            lines.extend(_indented(_hex("rest", data[at:])))
            raise UnreadableRestError("\n".join(lines), f"at {at:#x}: {error}") from None
        lines.extend(_message_lines(message, size))
        at += size
    return "\n".join(lines)


# --- Certificate chains ------------------------------------------------------------------------


def parse_chain(data: bytes) -> tuple[Chain, BaseHash]:
    """The chain that `data` is, and its hash: the one whose size leaves certificates.

    Raises SpdmDecodeError if it is none.
    """
    problem = ""
    for base_hash in BaseHash:
        try:
            chain = Chain.parse(data, base_hash)
            if chain.certificates:
                return chain, base_hash
        except CertificateError as error:
            problem = str(error)
    raise SpdmDecodeError(f"no certificate chain: {problem}")


def decode_chain(data: bytes) -> str:
    """Print a certificate chain in SPDM format. Raises SpdmDecodeError if it is none."""
    chain, base_hash = parse_chain(data)
    certificates = chain.certificates
    lines = [f"certificate chain ({len(data)} bytes, {len(certificates)} certificates)"]
    lines.extend(_indented(_hex(f"root hash ({base_hash.name})", chain.root_hash)))
    for number, certificate in enumerate(certificates):
        lines.append(f"{INDENT}certificate {number} ({len(chain.ders[number])} bytes):")
        lines.extend(_indented(_indented(_certificate(certificate))))
    return "\n".join(lines)


def _certificate(certificate: x509.Certificate) -> Iterator[str]:
    for name, read in _CERTIFICATE_FIELDS.items():
        try:
            value = read(certificate)
        except (CertificateError, ValueError) as error:
            yield f"{name}: malformed, {error}"
        else:
            if value:
                yield f"{name}: {value}"


def _key_name(certificate: x509.Certificate) -> str:
    key = public_key(certificate)
    if isinstance(key, ec.EllipticCurvePublicKey):
        return f"ECDSA {key.curve.name}"
    return f"RSA {key.key_size}"


def _device_name(certificate: x509.Certificate) -> str:
    try:
        return cma_name(certificate).text
    except CertificateError:
        return ""


_CERTIFICATE_FIELDS: Mapping[str, Callable[[x509.Certificate], str]] = {
    "subject": subject_of,
    "issuer": issuer_of,
    "serial": lambda one: f"{one.serial_number:x}",
    "valid": lambda one: f"{utc(one.not_valid_before_utc)} to {utc(one.not_valid_after_utc)}",
    "key": _key_name,
    "device": _device_name,
    "SPDM extension": lambda one: ", ".join(sorted(spdm_oids(one))),
}


# --- Reports -----------------------------------------------------------------------------------


def decode_report(data: bytes) -> str:
    """Print a TDISP device interface report. Raises SpdmDecodeError if it is none."""
    report = tdisp.Report.parse(data)
    lines = [f"TDISP device interface report ({len(data)} bytes)"]
    lines.extend(_indented(_fields(report)))
    return "\n".join(lines)


_KINDS: Mapping[str, Callable[[bytes], str]] = {
    "certificate chain": decode_chain,
    "messages": decode_messages,
    "report": decode_report,
}


def decode(data: bytes) -> str:
    """Print `data`, whichever of the three it is.

    Raises SpdmDecodeError if it is none, UnreadableRestError as `decode_messages` does.
    """
    problems = []
    for name, print_kind in _KINDS.items():
        try:
            return print_kind(data)
        except UnreadableRestError:
            raise
        except SpdmDecodeError as error:
            problems.append(f"{name}: {error}")
    raise SpdmDecodeError("; ".join(problems))
