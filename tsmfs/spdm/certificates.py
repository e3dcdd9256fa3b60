# SPDX-License-Identifier: MIT
"""Certificate chains of SPDM: their format, what is in them, and whether they hold.

The format is that of DSP0274 10.6.1, what a leaf has to have that of 10.6.2, and the name of a
device in it that of PCIe 6.1, 6.31.3: later revisions demand the name and leave its form open,
so that one stayed in use (Linux: drivers/pci/cma.c).
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from functools import cached_property
from typing import Self, TypeVar

from cryptography import x509
from cryptography.exceptions import InvalidSignature, UnsupportedAlgorithm
from cryptography.hazmat.primitives.asymmetric import ec, rsa
from cryptography.hazmat.primitives.serialization import Encoding
from cryptography.x509.oid import ExtensionOID, ObjectIdentifier, SignatureAlgorithmOID

from tsmfs.spdm.algorithms import BaseAsym, BaseHash, PublicKey
from tsmfs.spdm.messages import CHAIN_HEADER_SIZE, Version

HARDWARE_IDENTITY = x509.ObjectIdentifier("1.3.6.1.4.1.412.274.2")
"""id-DMTF-hardware-identity: the certificate is of the hardware itself."""

EKU_RESPONDER_AUTH = x509.ObjectIdentifier("1.3.6.1.4.1.412.274.3")
"""id-DMTF-eku-responder-auth: the key may authenticate a responder."""

EKU_REQUESTER_AUTH = x509.ObjectIdentifier("1.3.6.1.4.1.412.274.4")
"""id-DMTF-eku-requester-auth: the key may authenticate a requester."""

MUTABLE_CERTIFICATE = x509.ObjectIdentifier("1.3.6.1.4.1.412.274.5")
"""id-DMTF-mutable-certificate: the device may make the certificate anew by itself."""

SPDM_EXTENSION = x509.ObjectIdentifier("1.3.6.1.4.1.412.274.6")
"""id-DMTF-spdm-extension: a list of the object identifiers above."""

PCI_CMA_NAME = x509.ObjectIdentifier("2.23.147")
"""Type of the otherName that has a device's name; it is the PCI-SIG's own arc."""

CHAIN_LIMIT = 0xFFFF
"""Bytes that a chain has at most: its length field has two."""

_SEQUENCE = 0x30
_OBJECT_IDENTIFIER = 0x06
_UTF8_STRING = 0x0C
_LONG_FORM = 0x80
_LENGTH_BYTES = 4
_OID_LIMIT = 128

_PROCESSED = frozenset(
    {
        ExtensionOID.BASIC_CONSTRAINTS,
        ExtensionOID.KEY_USAGE,
        ExtensionOID.EXTENDED_KEY_USAGE,
        ExtensionOID.SUBJECT_ALTERNATIVE_NAME,
        SPDM_EXTENSION,
    }
)


_HASHES = frozenset({"sha256", "sha384", "sha512"})

E = TypeVar("E", bound=x509.ExtensionType)


class CertificateError(ValueError):
    """A certificate or a chain is not what it should be; the text says expected and found."""


# --- DER ---------------------------------------------------------------------------------------


def _element(data: bytes, at: int) -> tuple[int, int, int]:
    """Tag of the element at `at`, where its content starts and where it ends."""
    if at + 2 > len(data):
        raise CertificateError(f"DER ends at {len(data)}, in the head of an element")
    tag, size = data[at], data[at + 1]
    at += 2
    if size >= _LONG_FORM:
        count = size - _LONG_FORM
        if not 1 <= count <= _LENGTH_BYTES or at + count > len(data):
            raise CertificateError(f"a DER length of {count} bytes")
        size = int.from_bytes(data[at : at + count], "big")
        at += count
    if at + size > len(data):
        raise CertificateError(f"a DER element needs {size} bytes, {len(data) - at} are left")
    return tag, at, at + size


def _expect(data: bytes, at: int, tag: int) -> tuple[int, int]:
    found, start, end = _element(data, at)
    if found != tag:
        raise CertificateError(f"DER tag {tag:#04x} expected, {found:#04x} found")
    return start, end


def _der(tag: int, content: bytes) -> bytes:
    size = len(content)
    if size < _LONG_FORM:
        return bytes((tag, size)) + content
    length = size.to_bytes((size.bit_length() + 7) // 8, "big")
    return bytes((tag, _LONG_FORM | len(length))) + length + content


def _oid_der(oid: x509.ObjectIdentifier) -> bytes:
    first, second, *rest = map(int, oid.dotted_string.split("."))
    content = bytearray()
    for arc in (40 * first + second, *rest):
        group = [arc & 0x7F]
        while arc := arc >> 7:
            group.append(arc & 0x7F | 0x80)
        content += bytes(reversed(group))
    return _der(_OBJECT_IDENTIFIER, bytes(content))


def split_der(data: bytes) -> tuple[bytes, ...]:
    """The DER certificates that `data` is made of. Raises CertificateError."""
    ders = []
    at = 0
    while at < len(data):
        _, end = _expect(data, at, _SEQUENCE)
        ders.append(data[at:end])
        at = end
    return tuple(ders)


# --- The chain ---------------------------------------------------------------------------------


@dataclass(frozen=True)
class Chain:
    """A certificate chain (10.6.1): the hash of the root certificate, then the certificates."""

    root_hash: bytes
    ders: tuple[bytes, ...]
    """DER certificates, each signed by the one before it; the root itself may be left out."""

    @classmethod
    def of(cls, certificates: Sequence[x509.Certificate], base_hash: BaseHash) -> Self:
        """The chain of `certificates`, whose first one is the root."""
        ders = tuple(one.public_bytes(Encoding.DER) for one in certificates)
        return cls(base_hash.digest(ders[0]), ders)

    def pack(self) -> bytes:
        """The bytes of the chain, as GET_CERTIFICATE reads them. Raises CertificateError."""
        body = self.root_hash + b"".join(self.ders)
        size = CHAIN_HEADER_SIZE + len(body)
        if size > CHAIN_LIMIT:
            raise CertificateError(f"a chain of {size} bytes, {CHAIN_LIMIT} are possible")
        return size.to_bytes(2, "little") + bytes(2) + body

    @classmethod
    def parse(cls, data: bytes, base_hash: BaseHash) -> Self:
        """The chain in `data`, under the negotiated hash. Raises CertificateError."""
        start = CHAIN_HEADER_SIZE + base_hash.size
        if len(data) <= start:
            raise CertificateError(f"a chain of {len(data)} bytes has no certificate")
        size = int.from_bytes(data[:2], "little")
        if size != len(data):
            raise CertificateError(f"length {size} in a chain of {len(data)} bytes")
        if any(data[2:CHAIN_HEADER_SIZE]):
            raise CertificateError(
                f"reserved bytes 0000 expected, {data[2:CHAIN_HEADER_SIZE].hex()} found"
            )
        return cls(data[CHAIN_HEADER_SIZE:start], split_der(data[start:]))

    @cached_property
    def certificates(self) -> tuple[x509.Certificate, ...]:
        """The certificates, read. Raises CertificateError."""
        read = []
        for number, der in enumerate(self.ders):
            try:
                read.append(x509.load_der_x509_certificate(der))
            except (ValueError, x509.InvalidVersion, UnsupportedAlgorithm) as error:
                raise CertificateError(f"certificate {number}: {error}") from None
        return tuple(read)

    @property
    def leaf(self) -> x509.Certificate:
        """The last certificate: that of the device. Raises CertificateError."""
        return self.certificates[-1]


# --- The device's name -------------------------------------------------------------------------


def _hex(text: str, key: str, digits: int) -> int:
    if not re.fullmatch(f"[0-9A-Fa-f]{{{digits}}}", text):
        raise CertificateError(f"{key}={text!r} has not {digits} hexadecimal digits")
    return int(text, 16)


@dataclass(frozen=True)
class CmaName:
    """The name of a PCIe function in its leaf certificate (PCIe 6.1, 6.31.3)."""

    vendor: int
    device: int
    class_code: int
    """Base class, subclass and programming interface, three bytes."""
    revision: int
    subsystem_vendor: int | None = None
    """None for a function whose header has none: a bridge."""
    subsystem: int | None = None
    serial: bytes | None = None
    """Device Serial Number, eight bytes, most significant first; None without the capability."""

    @property
    def text(self) -> str:
        """The name as Linux makes it up to compare it."""
        parts = [
            f"Vendor={self.vendor:04x}",
            f"Device={self.device:04x}",
            f"CC={self.class_code:06x}",
            f"REV={self.revision:02x}",
        ]
        if self.subsystem_vendor is not None:
            parts.append(f"SSVID={self.subsystem_vendor:04x}")
        if self.subsystem is not None:
            parts.append(f"SSID={self.subsystem:04x}")
        if self.serial is not None:
            parts.append(self.serial.hex())
        return ":".join(parts)

    @classmethod
    def parse(cls, text: str) -> Self:
        """The name that `text` is. Raises CertificateError.

        Digits may be of both cases, and `SN=` may be before the serial number.
        """
        values: dict[str, str] = {}
        for number, part in enumerate(text.split(":")):
            key, sign, value = part.partition("=")
            if not sign:
                key, value = "SN", part
            if key not in _NAME_KEYS or key in values:
                raise CertificateError(f"part {number} of the name, {part!r}, is none or repeated")
            values[key] = value
        missing = [key for key in ("Vendor", "Device", "CC", "REV") if key not in values]
        if missing:
            raise CertificateError(f"the name {text!r} has no {', '.join(missing)}")
        found = {
            field: _hex(values[key], key, digits) if key in values else None
            for key, (field, digits) in _NAME_KEYS.items()
        }
        serial = found.pop("serial")
        return cls(
            **found,  # type: ignore[arg-type]  # Those that must be there are, as told above.
            serial=None if serial is None else serial.to_bytes(8, "big"),
        )

    def general_name(self) -> x509.OtherName:
        """The otherName that has this name."""
        return x509.OtherName(PCI_CMA_NAME, _der(_UTF8_STRING, self.text.encode()))


_NAME_KEYS = {
    "Vendor": ("vendor", 4),
    "Device": ("device", 4),
    "CC": ("class_code", 6),
    "REV": ("revision", 2),
    "SSVID": ("subsystem_vendor", 4),
    "SSID": ("subsystem", 4),
    "SN": ("serial", 16),
}


def cma_name(certificate: x509.Certificate) -> CmaName:
    """The name of the device in a leaf. Raises CertificateError, also if there is none."""
    names = _extension(certificate, x509.SubjectAlternativeName)
    if names is None:
        raise CertificateError("the leaf has no subject alternative name")
    for name in names.get_values_for_type(x509.OtherName):
        if name.type_id == PCI_CMA_NAME:
            start, end = _expect(name.value, 0, _UTF8_STRING)
            try:
                return CmaName.parse(name.value[start:end].decode())
            except UnicodeDecodeError:
                raise CertificateError("the name of the device is not UTF-8") from None
    raise CertificateError(
        f"no otherName of type {PCI_CMA_NAME.dotted_string} in the subject alternative name"
    )


# --- The SPDM extension ------------------------------------------------------------------------


def spdm_extension(*oids: x509.ObjectIdentifier) -> x509.UnrecognizedExtension:
    """The SPDM extension with `oids`, none of which has a value."""
    entries = b"".join(_der(_SEQUENCE, _oid_der(oid)) for oid in oids)
    return x509.UnrecognizedExtension(SPDM_EXTENSION, _der(_SEQUENCE, entries))


def spdm_oids(certificate: x509.Certificate) -> frozenset[str]:
    """What the SPDM extension lists, in dots; empty without it. Raises CertificateError."""
    for extension in _extensions(certificate):
        if extension.oid == SPDM_EXTENSION:
            value = extension.value.public_bytes()
            break
    else:
        return frozenset()
    at, end = _expect(value, 0, _SEQUENCE)
    if end != len(value):
        raise CertificateError(f"{len(value) - end} bytes behind the SPDM extension")
    found = set()
    while at < end:
        start, at = _expect(value, at, _SEQUENCE)
        first, last = _expect(value, start, _OBJECT_IDENTIFIER)
        found.add(_dotted(value[first:last]))
    return frozenset(found)


def _dotted(content: bytes) -> str:
    if len(content) > _OID_LIMIT:
        raise CertificateError(f"an object identifier of {len(content)} bytes")
    arcs: list[int] = []
    arc = 0
    for byte in content:
        arc = arc << 7 | byte & 0x7F
        if not byte & 0x80:
            arcs.append(arc)
            arc = 0
    if not arcs or content[-1] & 0x80:
        raise CertificateError("an object identifier is cut off")
    first = min(arcs[0] // 40, 2)
    return ".".join(map(str, (first, arcs[0] - 40 * first, *arcs[1:])))


# --- Checks ------------------------------------------------------------------------------------


def _extensions(certificate: x509.Certificate) -> x509.Extensions:
    try:
        return certificate.extensions
    except (ValueError, x509.DuplicateExtension, x509.UnsupportedGeneralNameType) as error:
        raise CertificateError(f"extensions of {subject_of(certificate)}: {error}") from None


def _extension(certificate: x509.Certificate, kind: type[E]) -> E | None:
    for extension in _extensions(certificate):
        if isinstance(extension.value, kind):
            return extension.value
    return None


def subject_of(certificate: x509.Certificate) -> str:
    """The subject of a certificate, to be shown; what the text says when there is none."""
    try:
        return _shown(certificate.subject) or "a certificate without a subject"
    # TypeError: a bit string under a type that cannot have one.
    except (ValueError, TypeError):
        return "a certificate with a malformed subject"


def issuer_of(certificate: x509.Certificate) -> str:
    """The issuer of a certificate, to be shown; empty without one. Raises CertificateError."""
    try:
        return _shown(certificate.issuer)
    except (ValueError, TypeError) as error:
        raise CertificateError(f"issuer: {error}") from None


def _shown(name: x509.Name) -> str:
    # A device must not speak to the terminal of those who look at its certificate.
    return "".join(
        one if one.isprintable() else "".join(f"\\{byte:02X}" for byte in one.encode())
        for one in name.rfc4514_string()
    )


def public_key(certificate: x509.Certificate) -> PublicKey:
    """The key of a certificate. Raises CertificateError if SPDM here has no algorithm for it."""
    try:
        key = certificate.public_key()
    except (ValueError, UnsupportedAlgorithm) as error:
        raise CertificateError(f"key of {subject_of(certificate)}: {error}") from None
    if not isinstance(key, ec.EllipticCurvePublicKey | rsa.RSAPublicKey):
        raise CertificateError(
            f"key of {subject_of(certificate)} is neither one of ECDSA nor of RSA"
        )
    return key


def is_self_signed(certificate: x509.Certificate) -> bool:
    """Whether a certificate is signed with its own key."""
    try:
        check_issued(certificate, certificate)
    except CertificateError:
        return False
    return True


def _algorithm(certificate: x509.Certificate) -> str:
    """What SPDM here has no use for, by its name if it has one."""
    oid = certificate.signature_algorithm_oid
    names = (
        name
        for name, known in vars(SignatureAlgorithmOID).items()
        if isinstance(known, ObjectIdentifier) and known == oid
    )
    return f"{next(names, oid.dotted_string)}, not with ECDSA or RSA"


def check_issued(certificate: x509.Certificate, issuer: x509.Certificate) -> None:
    """Raise CertificateError unless the key of `issuer` signed `certificate`, under its name."""
    subject = subject_of(certificate)
    try:
        kind = certificate.signature_hash_algorithm
        if kind is None or kind.name not in _HASHES:
            if kind is None:
                raise CertificateError(f"{subject} is signed with {_algorithm(certificate)}")
            raise CertificateError(f"{subject} is signed over {kind.name}, not SHA-2")
        certificate.verify_directly_issued_by(issuer)
    except InvalidSignature:
        raise CertificateError(
            f"the signature of {subject} is not one of {subject_of(issuer)}"
        ) from None
    except CertificateError:
        raise
    except (ValueError, TypeError, UnsupportedAlgorithm) as error:
        raise CertificateError(f"{subject} under {subject_of(issuer)}: {error}") from None


def check_path(certificates: Sequence[x509.Certificate]) -> None:
    """Raise CertificateError unless each certificate may sign, and signed, the one behind it.

    That is RFC 5280, 6.1, for what devices use: names, signatures, basic constraints, key usage
    and no critical extension that is not processed here. The first one is taken as it is.
    """
    for certificate in certificates:
        if certificate.version is not x509.Version.v3:
            raise CertificateError(
                f"{subject_of(certificate)} is {certificate.version.name}, not v3"
            )
        for extension in _extensions(certificate):
            if extension.critical and extension.oid not in _PROCESSED:
                raise CertificateError(
                    f"{subject_of(certificate)} has the critical extension "
                    f"{extension.oid.dotted_string}, which is not known"
                )
    last = len(certificates) - 1
    for number, issuer in enumerate(certificates[:-1]):
        _check_authority(issuer, last - number - 1)
        check_issued(certificates[number + 1], issuer)


def _check_authority(issuer: x509.Certificate, below: int) -> None:
    """Raise unless `issuer` may sign a certificate with `below` authorities before the leaf."""
    constraints = _extension(issuer, x509.BasicConstraints)
    if constraints is None or not constraints.ca:
        raise CertificateError(f"{subject_of(issuer)} signs and is no CA")
    if constraints.path_length is not None and constraints.path_length < below:
        raise CertificateError(
            f"{subject_of(issuer)} allows {constraints.path_length} authorities below it, "
            f"{below} found"
        )
    usage = _extension(issuer, x509.KeyUsage)
    if usage is not None and not usage.key_cert_sign:
        raise CertificateError(f"{subject_of(issuer)} signs without the key usage keyCertSign")


def check_root(
    chain: Chain, base_hash: BaseHash, roots: Iterable[x509.Certificate], now: datetime
) -> x509.Certificate:
    """The one of `roots` that a chain begins at.

    Raises CertificateError if there is none: the chain names its root by a hash, and begins with
    it or with what it signed. A root that the chain leaves out has to be valid at `now`; the
    others are for `check_validity`.
    """
    trusted = {base_hash.digest(root.public_bytes(Encoding.DER)): root for root in roots}
    first = chain.certificates[0]
    root = trusted.get(chain.root_hash)
    if root is None:
        if len(chain.ders) == 1 and is_self_signed(first):
            raise CertificateError(f"the leaf, {subject_of(first)}, is self-signed and no root")
        raise CertificateError(
            f"root hash {_list(digest.hex() for digest in trusted)} expected, "
            f"{chain.root_hash.hex()} found: {subject_of(first)} is none of the roots"
        )
    if base_hash.digest(chain.ders[0]) != chain.root_hash:
        _check_authority(root, len(chain.ders) - 1)
        check_issued(first, root)
        check_validity((root,), now)
    return root


def _list(words: Iterable[str]) -> str:
    return " or ".join(words) or "none"


def utc(moment: datetime) -> str:
    """`moment`, which has a time zone, as reports show it."""
    return f"{moment.astimezone(UTC):%Y-%m-%d %H:%M:%S} UTC"


def check_validity(certificates: Iterable[x509.Certificate], now: datetime) -> None:
    """Raise CertificateError unless all certificates are valid at `now`, which has a time zone."""
    for certificate in certificates:
        try:
            start, end = certificate.not_valid_before_utc, certificate.not_valid_after_utc
        except ValueError as error:
            raise CertificateError(f"validity of {subject_of(certificate)}: {error}") from None
        if now < start:
            raise CertificateError(
                f"{subject_of(certificate)} is valid from {utc(start)}, it is {utc(now)}"
            )
        if now > end:
            raise CertificateError(
                f"{subject_of(certificate)} was valid until {utc(end)}, it is {utc(now)}"
            )


def check_usage(leaf: x509.Certificate, base_asym: BaseAsym, version: int) -> None:
    """Raise CertificateError unless a responder may sign with a leaf (10.6.2, 10.6.3).

    Its key is one of `base_asym`, it is no CA, which from SPDM `version` 1.3 on it has to say, its
    key usage has digitalSignature, and an extended key usage with purposes of SPDM has that of a
    responder. The SPDM extension does not call it mutable.
    """
    subject = subject_of(leaf)
    key = public_key(leaf)
    try:
        found = BaseAsym.of_key(key)
    except ValueError:
        raise CertificateError(
            f"a key of {base_asym.name} expected, {key.key_size} bits found"
        ) from None
    if found is not base_asym:
        raise CertificateError(f"a key of {base_asym.name} expected, {found.name} found")
    constraints = _extension(leaf, x509.BasicConstraints)
    if constraints is None and version >= Version.V1_3:
        raise CertificateError(f"{subject} has no basic constraints")
    if constraints is not None and constraints.ca:
        raise CertificateError(f"{subject} is a CA")
    usage = _extension(leaf, x509.KeyUsage)
    if usage is None or not usage.digital_signature:
        raise CertificateError(f"{subject} has not the key usage digitalSignature")
    purposes = _extension(leaf, x509.ExtendedKeyUsage)
    if (
        purposes is not None
        and EKU_REQUESTER_AUTH in purposes
        and EKU_RESPONDER_AUTH not in purposes
    ):
        raise CertificateError(f"{subject} may authenticate requesters alone")
    oids = spdm_oids(leaf)
    if {HARDWARE_IDENTITY.dotted_string, MUTABLE_CERTIFICATE.dotted_string} <= oids:
        raise CertificateError(f"{subject} is of hardware and mutable at once")


def check_chain(
    data: bytes,
    *,
    base_hash: BaseHash,
    base_asym: BaseAsym,
    roots: Iterable[x509.Certificate],
    now: datetime,
    version: int = Version.V1_2,
) -> x509.Certificate:
    """The leaf of a chain in the format of SPDM, all of whose checks hold.

    Raises CertificateError with the reason of the first that does not.
    """
    chain = Chain.parse(data, base_hash)
    check_root(chain, base_hash, roots, now)
    check_path(chain.certificates)
    check_validity(chain.certificates, now)
    check_usage(chain.leaf, base_asym, version)
    return chain.leaf
