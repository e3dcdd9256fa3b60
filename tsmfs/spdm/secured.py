# SPDX-License-Identifier: MIT
"""Sessions: key schedule (DSP0274 12), secured records (DSP0277) and how their version is chosen.

Records are those of the PCI DOE binding: no sequence number on the wire, and no random data unless
a caller asks for some.
"""

from __future__ import annotations

import hmac
from collections.abc import Iterable, Sequence
from dataclasses import dataclass

from tsmfs.spdm.algorithms import AeadSuite, BaseHash, CryptoError, unseal
from tsmfs.spdm.messages import VersionNumber
from tsmfs.spdm.wire import SpdmDecodeError

RECORD_HEADER_SIZE = 6
"""Bytes of session ID and length: the associated data of a record (DSP0277, 6.1)."""

APPLICATION_LENGTH_SIZE = 2
"""Bytes of the length of the application data, which are encrypted with it."""

SEQUENCE_LIMIT = 1 << 64
"""Records that one key protects at most."""

SECURED_VERSIONS: tuple[int, ...] = (0x12, 0x11, 0x10)
"""Versions of DSP0277 by their version byte, the preferred first; over DOE they do not differ."""

_LENGTH_LIMIT = 0xFFFF
_TAG_SIZE = 16

RECORD_ROOM = _LENGTH_LIMIT - APPLICATION_LENGTH_SIZE - _TAG_SIZE
"""Bytes of the largest message that fits a record."""


class RecordError(Exception):
    """A record is malformed, not authentic, or not one of this session."""


# --- Key schedule ------------------------------------------------------------------------------


def bin_str(version: int, length: int, label: bytes, context: bytes = b"") -> bytes:
    """BinConcat (12.1): what a secret of `length` bytes is expanded with."""
    prefix = b"spdm%d.%d " % (version >> 4, version & 0x0F)
    return length.to_bytes(2, "little") + prefix + label + context


def hkdf_extract(base_hash: BaseHash, salt: bytes, material: bytes) -> bytes:
    """HKDF-Extract (RFC 5869)."""
    return hmac.digest(salt, material, base_hash.label)


def hkdf_expand(base_hash: BaseHash, secret: bytes, info: bytes, length: int) -> bytes:
    """HKDF-Expand (RFC 5869)."""
    block = hmac.digest(secret, info + b"\x01", base_hash.label)
    out = block
    count = 1
    while len(out) < length:
        count += 1
        block = hmac.digest(secret, block + info + bytes((count,)), base_hash.label)
        out += block
    return out[:length]


def expand(version: int, base_hash: BaseHash, secret: bytes, label: bytes, th: bytes) -> bytes:
    """A secret as long as the hash, expanded from `secret` by `label` and a transcript hash."""
    size = base_hash.size
    return hkdf_expand(base_hash, secret, bin_str(version, size, label, th), size)


@dataclass(frozen=True, slots=True, repr=False)
class HandshakeSecrets:
    """What follows from the shared secret and TH1 (12.2 to 12.4)."""

    handshake: bytes
    request: bytes
    """S0, request-direction handshake secret."""
    response: bytes
    """S1, response-direction handshake secret."""
    request_finished: bytes
    response_finished: bytes

    @classmethod
    def derive(
        cls, version: int, base_hash: BaseHash, shared: bytes, th1: bytes
    ) -> HandshakeSecrets:
        """The secrets of a session whose key exchange gave `shared`."""
        handshake = hkdf_extract(base_hash, bytes(base_hash.size), shared)
        request = expand(version, base_hash, handshake, b"req hs data", th1)
        response = expand(version, base_hash, handshake, b"rsp hs data", th1)
        return cls(
            handshake,
            request,
            response,
            expand(version, base_hash, request, b"finished", b""),
            expand(version, base_hash, response, b"finished", b""),
        )


@dataclass(frozen=True, slots=True, repr=False)
class DataSecrets:
    """What follows from the handshake secret and TH2 (12.5)."""

    request: bytes
    """S2, request-direction data secret."""
    response: bytes
    """S3, response-direction data secret."""
    export_master: bytes

    @classmethod
    def derive(cls, version: int, base_hash: BaseHash, handshake: bytes, th2: bytes) -> DataSecrets:
        """The secrets of the application phase."""
        salt = expand(version, base_hash, handshake, b"derived", b"")
        master = hkdf_extract(base_hash, salt, bytes(base_hash.size))
        return cls(
            expand(version, base_hash, master, b"req app data", th2),
            expand(version, base_hash, master, b"rsp app data", th2),
            expand(version, base_hash, master, b"exp master", th2),
        )


# --- Records -----------------------------------------------------------------------------------


def session_id(request: int, response: int) -> int:
    """The session ID of the requester's and the responder's half (10.16.2)."""
    return response << 16 | request


def record_session(record: bytes) -> int:
    """The session that a record says it is of. Raises RecordError."""
    if len(record) < RECORD_HEADER_SIZE:
        raise RecordError(f"{len(record)} bytes are no record")
    return int.from_bytes(record[:4], "little")


class Direction:
    """One direction of a session: its key, its IV, and how many records there were (DSP0277 6)."""

    __slots__ = ("_base_hash", "_cipher", "_iv", "_secret", "_suite", "_version", "sequence")

    def __init__(self, version: int, base_hash: BaseHash, suite: AeadSuite, secret: bytes) -> None:
        self._version = version
        self._base_hash = base_hash
        self._suite = suite
        self._secret = secret
        key = hkdf_expand(
            base_hash, secret, bin_str(version, suite.key_size, b"key"), suite.key_size
        )
        iv = hkdf_expand(base_hash, secret, bin_str(version, suite.iv_size, b"iv"), suite.iv_size)
        self._cipher = suite.cipher(key)
        self._iv = int.from_bytes(iv, "little")
        self.sequence = 0
        """Number of the next record."""

    def updated(self) -> Direction:
        """The direction after KEY_UPDATE: new secret, records counted from zero (12.6)."""
        secret = expand(self._version, self._base_hash, self._secret, b"traffic upd", b"")
        return Direction(self._version, self._base_hash, self._suite, secret)

    def _nonce(self) -> bytes:
        if self.sequence >= SEQUENCE_LIMIT:
            raise RecordError("there are no sequence numbers left")
        return (self._iv ^ self.sequence).to_bytes(self._suite.iv_size, "little")

    def seal(self, session: int, plain: bytes, random: bytes = b"") -> bytes:
        """A record of `session` with `plain` in it, and `random` behind that.

        Raises RecordError if it would be too long, or if the key is used up.
        """
        length = APPLICATION_LENGTH_SIZE + len(plain) + len(random) + self._suite.tag_size
        if length > _LENGTH_LIMIT:
            raise RecordError(f"{len(plain)} bytes do not fit a record")
        header = session.to_bytes(4, "little") + length.to_bytes(2, "little")
        body = len(plain).to_bytes(APPLICATION_LENGTH_SIZE, "little") + plain + random
        sealed = self._cipher.encrypt(self._nonce(), body, header)
        self.sequence += 1
        return header + sealed

    def open(self, record: bytes) -> bytes:
        """What is in `record`, which may be padded. Raises RecordError.

        Only an authentic record counts; another one leaves the direction as it was.
        """
        if len(record) < RECORD_HEADER_SIZE:
            raise RecordError(f"{len(record)} bytes are no record")
        length = int.from_bytes(record[4:RECORD_HEADER_SIZE], "little")
        end = RECORD_HEADER_SIZE + length
        if length < APPLICATION_LENGTH_SIZE + self._suite.tag_size or end > len(record):
            raise RecordError(f"a record of {len(record)} bytes says that {length} follow")
        try:
            body = unseal(
                self._cipher,
                self._nonce(),
                record[RECORD_HEADER_SIZE:end],
                record[:RECORD_HEADER_SIZE],
            )
        except CryptoError as error:
            raise RecordError(str(error)) from None
        self.sequence += 1
        size = int.from_bytes(body[:APPLICATION_LENGTH_SIZE], "little")
        if size > len(body) - APPLICATION_LENGTH_SIZE:
            raise RecordError("the application data is longer than its record")
        return body[APPLICATION_LENGTH_SIZE : APPLICATION_LENGTH_SIZE + size]


class SecuredSession:
    """The keys of one session, on either side, from KEY_EXCHANGE_RSP on.

    A side sends with `seal_request` and receives with `open_response`, or the other way round.
    `establish` changes from the keys of the handshake to those of the application phase.
    """

    __slots__ = (
        "_base_hash", "_old_request", "_request", "_response", "_secrets", "_suite", "_version",
        "established", "export_master", "id",
    )  # fmt: skip

    def __init__(
        self,
        session: int,
        version: int,
        base_hash: BaseHash,
        suite: AeadSuite,
        shared: bytes,
        th1: bytes,
    ) -> None:
        """`shared` is the secret of the key exchange, `version` the version byte of SPDM."""
        self.id = session
        self.established = False
        self.export_master = b""
        """Export master secret (12.5); empty before `establish`."""
        self._version = version
        self._base_hash = base_hash
        self._suite = suite
        self._secrets: HandshakeSecrets | None = HandshakeSecrets.derive(
            version, base_hash, shared, th1
        )
        self._request = self._direction(self._secrets.request)
        self._response = self._direction(self._secrets.response)
        self._old_request: Direction | None = None

    def _direction(self, secret: bytes) -> Direction:
        return Direction(self._version, self._base_hash, self._suite, secret)

    @property
    def _handshake(self) -> HandshakeSecrets:
        if self._secrets is None:
            raise RecordError("the handshake is over")
        return self._secrets

    @property
    def request_finished(self) -> bytes:
        """The key of RequesterVerifyData. Raises RecordError after the handshake."""
        return self._handshake.request_finished

    @property
    def response_finished(self) -> bytes:
        """The key of ResponderVerifyData. Raises RecordError after the handshake."""
        return self._handshake.response_finished

    def establish(self, th2: bytes) -> None:
        """Go on with the keys of the application phase; those of the handshake are forgotten."""
        secrets = DataSecrets.derive(self._version, self._base_hash, self._handshake.handshake, th2)
        self._secrets = None
        self._request = self._direction(secrets.request)
        self._response = self._direction(secrets.response)
        self.export_master = secrets.export_master
        self.established = True

    def seal_request(self, message: bytes, random: bytes = b"") -> bytes:
        """The record of a request. Raises RecordError."""
        return self._request.seal(self.id, message, random)

    def seal_response(self, message: bytes, random: bytes = b"") -> bytes:
        """The record of a response. Raises RecordError."""
        return self._response.seal(self.id, message, random)

    def open_response(self, record: bytes) -> bytes:
        """The response in a record. Raises RecordError."""
        self._check(record)
        return self._response.open(record)

    def open_request(self, record: bytes) -> tuple[bytes, bool]:
        """The request in a record, and whether it came under the key before an update.

        The latter happens while a new key is not verified: the requester has not seen
        KEY_UPDATE_ACK and repeats its request. Raises RecordError.
        """
        self._check(record)
        if self._old_request is None:
            return self._request.open(record), False
        try:
            return self._request.open(record), False
        except RecordError:
            return self._old_request.open(record), True

    def _check(self, record: bytes) -> None:
        session = record_session(record)
        if session != self.id:
            raise RecordError(f"a record of session {session:#010x}, not {self.id:#010x}")

    @property
    def updating(self) -> bool:
        """Whether there is a new key for requests that has not been verified."""
        return self._old_request is not None

    def update_request(self) -> None:
        """New key for requests; `open_request` takes the old one until `verified`."""
        self._old_request = self._request
        self._request = self._request.updated()

    def update_response(self) -> None:
        """New key for responses, from the next one on."""
        self._response = self._response.updated()

    def verified(self) -> None:
        """Forget the old key for requests."""
        self._old_request = None


# --- Opaque data -------------------------------------------------------------------------------

_DMTF = 0
_SELECTION = 0
_SUPPORTED = 1
_SM_DATA_VERSION = 1
_TABLE_HEADER_SIZE = 4
_ELEMENT_HEADER_SIZE = 4
_ALIGN = 4
_MAX_REGISTRY = 0x0B


@dataclass(frozen=True, slots=True)
class OpaqueElement:
    """An element of opaque data in the general format (DSP0274 10.16.4, OpaqueDataFmt1)."""

    registry: int
    vendor: bytes
    data: bytes


def pack_opaque(elements: Sequence[OpaqueElement]) -> bytes:
    """Opaque data with `elements`, each aligned to four bytes."""
    out = bytearray((len(elements), 0, 0, 0))
    for element in elements:
        out += bytes((element.registry, len(element.vendor))) + element.vendor
        out += len(element.data).to_bytes(2, "little") + element.data
        out += bytes(-len(out) % _ALIGN)
    return bytes(out)


def parse_opaque(data: bytes) -> tuple[OpaqueElement, ...]:
    """The elements of opaque data. Raises SpdmDecodeError."""
    if len(data) < _TABLE_HEADER_SIZE or len(data) % _ALIGN:
        raise SpdmDecodeError(f"{len(data)} bytes are no opaque data")
    elements = []
    at = _TABLE_HEADER_SIZE
    for _ in range(data[0]):
        if at + _ELEMENT_HEADER_SIZE > len(data):
            raise SpdmDecodeError("an element of opaque data is cut off")
        registry = data[at]
        vendor_end = at + 2 + data[at + 1]
        if vendor_end + 2 > len(data) or registry > _MAX_REGISTRY:
            raise SpdmDecodeError("an element of opaque data has no such vendor")
        start = vendor_end + 2
        end = start + int.from_bytes(data[vendor_end:start], "little")
        if end > len(data):
            raise SpdmDecodeError("an element of opaque data is longer than the data")
        elements.append(OpaqueElement(registry, data[at + 2 : vendor_end], data[start:end]))
        at = end + -end % _ALIGN
    if not elements or at != len(data):
        raise SpdmDecodeError("opaque data is not as long as its elements")
    return tuple(elements)


def _secured_message_data(data: bytes, kind: int) -> bytes:
    for element in parse_opaque(data):
        if (
            element.registry == _DMTF
            and not element.vendor
            and element.data[:2] == bytes((_SM_DATA_VERSION, kind))
        ):
            return element.data[2:]
    raise SpdmDecodeError("opaque data tells no version of secured messages")


def _versions(data: bytes) -> Iterable[int]:
    at = 0
    while at < len(data):
        number, at = VersionNumber.parse_at(data, at)
        yield number.version


def supported_versions(versions: Sequence[int] = SECURED_VERSIONS) -> bytes:
    """OpaqueData of KEY_EXCHANGE: the versions of DSP0277 that the requester knows (8.1)."""
    data = bytearray((_SM_DATA_VERSION, _SUPPORTED, len(versions)))
    for version in versions:
        VersionNumber(version).pack_into(data)
    return pack_opaque((OpaqueElement(_DMTF, b"", bytes(data)),))


def parse_supported_versions(data: bytes) -> tuple[int, ...]:
    """The versions in OpaqueData of KEY_EXCHANGE. Raises SpdmDecodeError."""
    found = _secured_message_data(data, _SUPPORTED)
    if not found or len(found) != 1 + 2 * found[0]:
        raise SpdmDecodeError("the list of versions of secured messages has a wrong length")
    return tuple(_versions(found[1:]))


def selected_version(version: int) -> bytes:
    """OpaqueData of KEY_EXCHANGE_RSP: the version of DSP0277 that the responder chose (8.1)."""
    data = bytearray((_SM_DATA_VERSION, _SELECTION))
    VersionNumber(version).pack_into(data)
    return pack_opaque((OpaqueElement(_DMTF, b"", bytes(data)),))


def parse_selected_version(data: bytes) -> int:
    """The version in OpaqueData of KEY_EXCHANGE_RSP. Raises SpdmDecodeError."""
    found = _secured_message_data(data, _SELECTION)
    if len(found) != 2:
        raise SpdmDecodeError("the selected version of secured messages has a wrong length")
    return next(iter(_versions(found)))
