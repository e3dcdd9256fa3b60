# SPDX-License-Identifier: MIT
"""Who a device is: its keys and certificate chains, made from a seed or read from PEM files.

From a seed come the same bytes each time: keys, serial numbers and signatures. A chain has three
certificates: the root, which is the machine's and the same for all its devices, an intermediate of
the device's slot, and the leaf. All slots of a device have one key, as DSP0274 wants it where
several keys are not negotiated.
"""

from __future__ import annotations

import hashlib
import os
import re
import stat
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from datetime import UTC, datetime
from functools import cached_property, lru_cache, partial
from math import isqrt, lcm
from pathlib import Path
from threading import Lock

from cryptography import x509
from cryptography.exceptions import UnsupportedAlgorithm
from cryptography.hazmat.primitives.asymmetric import ec, rsa
from cryptography.hazmat.primitives.serialization import (
    Encoding,
    PublicFormat,
    load_pem_private_key,
)
from cryptography.x509.oid import NameOID

from tsmfs.spdm.algorithms import BaseAsym, BaseHash, PrivateKey, PublicKey
from tsmfs.spdm.certificates import (
    EKU_RESPONDER_AUTH,
    HARDWARE_IDENTITY,
    CertificateError,
    Chain,
    CmaName,
    check_issued,
    check_path,
    is_self_signed,
    public_key,
    spdm_extension,
)
from tsmfs.spdm.messages import SLOT_COUNT

NOT_BEFORE = datetime(2024, 1, 1, tzinfo=UTC)
"""From when on certificates made here are valid."""

NOT_AFTER = datetime(9999, 12, 31, 23, 59, 59, tzinfo=UTC)
"""Until when: the time that stands for no end (RFC 5280, 4.1.2.5)."""

ORGANIZATION = "tsmfs"

_COMMON_NAME_MAX = 64
_KEY_LABEL = re.compile(rb"-----BEGIN [A-Z ]*KEY-----")
_SERIAL_BYTES = 16
_EXPONENT = 65537
_SIEVE_LIMIT = 1 << 16
_SIEVE_SIZE = 1 << 13
_WITNESSES = (2, 3, 5, 7)
_NAME_RESERVE = len(" slot 0 CA")


class IdentityError(ValueError):
    """Files that should make an identity do not fit together."""


@dataclass(frozen=True)
class Subject:
    """The device that an identity is of."""

    vendor: int
    device: int
    subsystem_vendor: int | None
    """None for a function whose header has none: a bridge."""
    subsystem: int | None
    class_code: int
    """Base class, subclass and programming interface, three bytes."""
    revision: int
    serial: bytes | None = None
    """Device Serial Number, eight bytes, most significant first; None without the capability."""
    name: str = "device"
    """What the common names of its certificates begin with."""

    @property
    def cma_name(self) -> CmaName:
        """The name in the leaf."""
        return CmaName(
            vendor=self.vendor,
            device=self.device,
            class_code=self.class_code,
            revision=self.revision,
            subsystem_vendor=self.subsystem_vendor,
            subsystem=self.subsystem,
            serial=self.serial,
        )


@dataclass(frozen=True)
class Slot:
    """A certificate slot: a chain and the key of its leaf."""

    certificates: tuple[x509.Certificate, ...]
    """The root first, the leaf last."""
    key: PrivateKey = field(repr=False)
    base_hash: BaseHash
    """The hash of `chain`."""

    @cached_property
    def chain(self) -> bytes:
        """The chain in the format of SPDM, with the root hash of `base_hash`."""
        return self.chain_with(self.base_hash)

    @cached_property
    def digest(self) -> bytes:
        """The hash of `chain`, as DIGESTS has it."""
        return self.base_hash.digest(self.chain)

    def chain_with(self, base_hash: BaseHash) -> bytes:
        """The chain as it is where `base_hash` was negotiated."""
        return Chain.of(self.certificates, base_hash).pack()


class SlotTable(Mapping[int, Slot]):
    """Slots that are made when they are first looked at."""

    def __init__(self, numbers: Sequence[int], make: Callable[[int], Slot]) -> None:
        for number in numbers:
            if not 0 <= number < SLOT_COUNT:
                raise ValueError(f"slot {number}, there are {SLOT_COUNT}")
        self._numbers = tuple(sorted(set(numbers)))
        self._make = make
        self._made: dict[int, Slot] = {}
        self._lock = Lock()

    def __getitem__(self, number: int) -> Slot:
        slot = self._made.get(number)
        if slot is None:
            if number not in self._numbers:
                raise KeyError(number)
            with self._lock:
                slot = self._made.get(number)
                if slot is None:
                    slot = self._made[number] = self._make(number)
        return slot

    def __contains__(self, number: object) -> bool:
        return number in self._numbers

    def __iter__(self) -> Iterator[int]:
        return iter(self._numbers)

    def __len__(self) -> int:
        return len(self._numbers)

    def __repr__(self) -> str:
        return f"<slots {', '.join(map(str, self._numbers))}>"


class Identity:
    """Keys and chains of a device, for one signature algorithm."""

    def __init__(self, slots: Mapping[int, Slot], base_asym: BaseAsym, base_hash: BaseHash) -> None:
        self.slots = slots
        """By number, 0 to 7; those without a chain are not there."""
        self.base_asym = base_asym
        self.base_hash = base_hash

    @property
    def root(self) -> bytes:
        """The root certificate of the lowest slot, as PEM."""
        return self.slots[min(self.slots)].certificates[0].public_bytes(Encoding.PEM)

    def __repr__(self) -> str:
        return f"Identity({self.slots!r}, {self.base_asym.name}, {self.base_hash.name})"


# --- From a seed -------------------------------------------------------------------------------


def make_identity(
    seed: bytes,
    subject: Subject,
    base_asym: BaseAsym = BaseAsym.ECDSA_P384,
    base_hash: BaseHash = BaseHash.SHA_384,
    slots: Sequence[int] = (0,),
) -> Identity:
    """The identity of `subject` on the machine whose seed is `seed`.

    It costs nothing before a slot is looked at. Raises ValueError for a number that is no slot.
    """

    return Origin(seed, subject, base_asym, base_hash, slots).identity()


@dataclass(frozen=True)
class Origin:
    """What the identity of a device is made from."""

    seed: bytes = field(repr=False)
    """That of its machine, or its own."""
    subject: Subject
    base_asym: BaseAsym
    base_hash: BaseHash
    slots: Sequence[int]

    def identity(self) -> Identity:
        """The identity; as `make_identity`."""
        return self.identity_with(self.subject.cma_name, NOT_AFTER)

    def identity_with(self, name: CmaName, not_after: datetime) -> Identity:
        """One whose leaf names `name`, and is valid until `not_after`."""
        return Identity(
            SlotTable(self.slots, partial(self._make_slot, name, not_after)),
            self.base_asym,
            self.base_hash,
        )

    def _make_slot(self, name: CmaName, not_after: datetime, number: int) -> Slot:
        root, issuer = root_authority(self.seed, self.base_asym, self.base_hash)
        intermediate, issuer = slot_authority(
            self.seed, self.subject, number, issuer, self.base_asym
        )
        key = leaf_key(self.seed, self.subject, self.base_asym)
        leaf = issuer.issue(
            leaf_name(self.subject, number),
            key.public_key(),
            leaf_extensions(name),
            not_after=not_after,
        )
        return Slot((root, intermediate, leaf), key, self.base_hash)


def root_certificate(
    seed: bytes,
    base_asym: BaseAsym = BaseAsym.ECDSA_P384,
    base_hash: BaseHash = BaseHash.SHA_384,
) -> x509.Certificate:
    """The root of all identities that are made from `seed`."""
    return root_authority(seed, base_asym, base_hash)[0]


def root_pem(
    seed: bytes,
    base_asym: BaseAsym = BaseAsym.ECDSA_P384,
    base_hash: BaseHash = BaseHash.SHA_384,
) -> bytes:
    """The root of all identities that are made from `seed`, as PEM."""
    return root_certificate(seed, base_asym, base_hash).public_bytes(Encoding.PEM)


Extensions = Sequence[tuple[x509.ExtensionType, bool]]
"""Extensions of a certificate, and whether they are critical."""


@dataclass(frozen=True)
class Issuer:
    """A name and a key that sign certificates."""

    name: x509.Name
    key: PrivateKey = field(repr=False)
    base_hash: BaseHash

    def issue(
        self,
        common_name: str,
        key: PublicKey,
        extensions: Extensions,
        *,
        not_before: datetime = NOT_BEFORE,
        not_after: datetime = NOT_AFTER,
    ) -> x509.Certificate:
        """A certificate of `key`: the same one each time."""
        encoded = key.public_bytes(Encoding.DER, PublicFormat.SubjectPublicKeyInfo)
        serial = hashlib.sha256(self.name.public_bytes() + common_name.encode() + encoded).digest()
        builder = (
            x509.CertificateBuilder()
            .subject_name(distinguished_name(common_name))
            .issuer_name(self.name)
            .public_key(key)
            .serial_number(int.from_bytes(serial[:_SERIAL_BYTES], "big") >> 1)
            .not_valid_before(not_before)
            .not_valid_after(not_after)
            .add_extension(x509.SubjectKeyIdentifier.from_public_key(key), critical=False)
            .add_extension(
                x509.AuthorityKeyIdentifier.from_issuer_public_key(self.key.public_key()),
                critical=False,
            )
        )
        for extension, critical in extensions:
            builder = builder.add_extension(extension, critical)
        algorithm = self.base_hash.primitive
        if isinstance(self.key, ec.EllipticCurvePrivateKey):
            return builder.sign(self.key, algorithm, ecdsa_deterministic=True)
        return builder.sign(self.key, algorithm)


def distinguished_name(common_name: str) -> x509.Name:
    """The name of a subject; what does not fit a common name is cut off."""
    return x509.Name(
        [
            x509.NameAttribute(NameOID.ORGANIZATION_NAME, ORGANIZATION),
            x509.NameAttribute(NameOID.COMMON_NAME, common_name[:_COMMON_NAME_MAX]),
        ]
    )


def _usage(*, sign: bool = False, certify: bool = False) -> x509.KeyUsage:
    return x509.KeyUsage(
        digital_signature=sign,
        content_commitment=False,
        key_encipherment=False,
        data_encipherment=False,
        key_agreement=False,
        key_cert_sign=certify,
        crl_sign=certify,
        encipher_only=False,
        decipher_only=False,
    )


def authority_extensions(path_length: int) -> Extensions:
    """Extensions of a certificate that signs others, with `path_length` authorities below it."""
    return (
        (x509.BasicConstraints(ca=True, path_length=path_length), True),
        (_usage(certify=True), True),
    )


def leaf_extensions(name: CmaName) -> Extensions:
    """Extensions of the certificate of a device called `name`."""
    return (
        (x509.BasicConstraints(ca=False, path_length=None), True),
        (_usage(sign=True), True),
        (x509.ExtendedKeyUsage([EKU_RESPONDER_AUTH]), True),
        (x509.SubjectAlternativeName([name.general_name()]), False),
        (spdm_extension(HARDWARE_IDENTITY), False),
    )


def leaf_name(subject: Subject, number: int) -> str:
    """The common name of the leaf in slot `number`."""
    return f"{_shortened(subject.name)} slot {number}"


def _shortened(name: str) -> str:
    return name[: _COMMON_NAME_MAX - _NAME_RESERVE]


def leaf_key(seed: bytes, subject: Subject, base_asym: BaseAsym) -> PrivateKey:
    """The key of a device."""
    return derive_key(seed, f"leaf {_label(subject)}", base_asym)


def _label(subject: Subject) -> str:
    return f"{subject.cma_name.text} {subject.name}"


@lru_cache(maxsize=64)
def root_authority(
    seed: bytes, base_asym: BaseAsym, base_hash: BaseHash
) -> tuple[x509.Certificate, Issuer]:
    """The machine's root, and what signs in its name."""
    key = derive_key(seed, "root", base_asym)
    mark = hashlib.sha256(
        key.public_key().public_bytes(Encoding.DER, PublicFormat.SubjectPublicKeyInfo)
    ).hexdigest()
    # Stores of trusted roots look them up by name, so each needs its own.
    common_name = f"{ORGANIZATION} root {mark[:16]} {base_hash.name}"
    issuer = Issuer(distinguished_name(common_name), key, base_hash)
    return issuer.issue(common_name, key.public_key(), authority_extensions(path_length=1)), issuer


def slot_authority(
    seed: bytes, subject: Subject, number: int, issuer: Issuer, base_asym: BaseAsym
) -> tuple[x509.Certificate, Issuer]:
    """The authority under `issuer` that signs the leaf of slot `number`, and what signs for it."""
    key = derive_key(seed, f"intermediate {number} {_label(subject)}", base_asym)
    common_name = f"{leaf_name(subject, number)} CA"
    certificate = issuer.issue(common_name, key.public_key(), authority_extensions(path_length=0))
    return certificate, Issuer(certificate.subject, key, issuer.base_hash)


# --- Keys from a seed --------------------------------------------------------------------------


def _stream(seed: bytes, label: str, size: int) -> bytes:
    """Bytes that only who knows the seed can tell; each label has its own."""
    return hashlib.shake_256(len(seed).to_bytes(4, "big") + seed + label.encode()).digest(size)


def derive_key(seed: bytes, label: str, base_asym: BaseAsym) -> PrivateKey:
    """The key called `label` of the machine whose seed is `seed`. Those of RSA take seconds."""
    label = f"tsmfs {base_asym.name} {label}"
    if base_asym.curve is None:
        return _rsa_key(seed, label, base_asym.signature_size * 8)
    order = base_asym.curve.group_order
    # FIPS 186-5, A.2.1: 64 bits more than the order has hide that it is no power of two.
    size = (order.bit_length() + 64 + 7) // 8
    number = int.from_bytes(_stream(seed, label, size), "big")
    return ec.derive_private_key(number % (order - 1) + 1, base_asym.curve)


@lru_cache(maxsize=64)
def _rsa_key(seed: bytes, label: str, bits: int) -> rsa.RSAPrivateKey:
    p, q = (_prime(_stream(seed, f"{label} {name}", bits // 16)) for name in "pq")
    d = pow(_EXPONENT, -1, lcm(p - 1, q - 1))
    return rsa.RSAPrivateNumbers(
        p=p,
        q=q,
        d=d,
        dmp1=d % (p - 1),
        dmq1=d % (q - 1),
        iqmp=pow(q, -1, p),
        public_numbers=rsa.RSAPublicNumbers(_EXPONENT, p * q),
    ).private_key()


def _prime(start: bytes) -> int:
    """The first prime from `start` on whose two highest bits are set, as RSA wants them."""
    bits = len(start) * 8
    first = int.from_bytes(start, "big") | 3 << (bits - 2) | 1
    while True:
        composite = bytearray(_SIEVE_SIZE)
        for small in _small_primes():
            # Where first + 2 * index is a multiple.
            index = -first * (small + 1) // 2 % small
            composite[index::small] = b"\1" * len(range(index, _SIEVE_SIZE, small))
        for index in range(_SIEVE_SIZE):
            candidate = first + 2 * index
            if not composite[index] and (candidate - 1) % _EXPONENT and _is_prime(candidate):
                return candidate
        first += 2 * _SIEVE_SIZE


def _is_prime(odd: int) -> bool:
    """Miller-Rabin; of numbers that nobody chose, as few witnesses as these let none pass."""
    even = odd - 1
    twos = (even & -even).bit_length() - 1
    for witness in _WITNESSES:
        power = pow(witness, even >> twos, odd)
        if power in (1, even):
            continue
        for _ in range(twos - 1):
            power = power * power % odd
            if power == even:
                break
        else:
            return False
    return True


@lru_cache(maxsize=1)
def _small_primes() -> tuple[int, ...]:
    """The odd primes below `_SIEVE_LIMIT`."""
    sieve = bytearray(b"\1") * _SIEVE_LIMIT
    for number in range(3, isqrt(_SIEVE_LIMIT) + 1, 2):
        if sieve[number]:
            multiples = range(number * number, _SIEVE_LIMIT, 2 * number)
            sieve[multiples.start :: multiples.step] = bytes(len(multiples))
    return tuple(number for number in range(3, _SIEVE_LIMIT, 2) if sieve[number])


# --- From files --------------------------------------------------------------------------------


@dataclass(frozen=True)
class SlotFiles:
    """PEM files of a slot."""

    chain: Path
    """Certificates from the root to the leaf, in this order or the reverse."""
    key: Path
    """The private key of the leaf, without a passphrase."""


def load_identity(
    files: Mapping[int, SlotFiles],
    base_hash: BaseHash = BaseHash.SHA_384,
    report: Callable[[str], None] = lambda text: None,
) -> Identity:
    """The identity in PEM files, by slot.

    `report` is told of a key that others than its owner may read. Raises OSError if a file cannot
    be read, IdentityError if one is not what it should be, ValueError for a number that is no slot.
    """
    if not files:
        raise IdentityError("an identity needs a slot")
    made = {number: _load_slot(paths, base_hash, report) for number, paths in files.items()}
    found = {BaseAsym.of_key(slot.key) for slot in made.values()}
    if len(found) != 1:
        names = ", ".join(sorted(one.name for one in found))
        raise IdentityError(f"keys of one algorithm expected, {names} found")
    return Identity(SlotTable(tuple(made), made.__getitem__), found.pop(), base_hash)


def _load_slot(paths: SlotFiles, base_hash: BaseHash, report: Callable[[str], None]) -> Slot:
    certificates = _load_chain(paths.chain)
    key = _load_key(paths.key, report)
    leaf = public_key(certificates[-1])
    if key.public_key() != leaf:
        raise IdentityError(f"{paths.key} is not the key of the leaf in {paths.chain}")
    return Slot(certificates, key, base_hash)


def _load_chain(path: Path) -> tuple[x509.Certificate, ...]:
    data = path.read_bytes()
    try:
        certificates = x509.load_pem_x509_certificates(data)
    except ValueError:
        what = "is a key, not a chain of" if _KEY_LABEL.search(data) else "has no readable"
        raise IdentityError(f"{path} {what} certificates in PEM") from None
    try:
        if not is_self_signed(certificates[0]):
            certificates.reverse()
        if not is_self_signed(certificates[0]):
            for one in certificates:
                if one.subject == one.issuer:
                    check_issued(one, one)
            raise IdentityError(f"{path} has no root, neither first nor last")
        check_path(certificates)
        Chain.of(certificates, BaseHash.SHA_512).pack()
        public_key(certificates[-1])
    except CertificateError as error:
        raise IdentityError(f"{path}: {error}") from None
    return tuple(certificates)


def _load_key(path: Path, report: Callable[[str], None]) -> PrivateKey:
    with path.open("rb") as file:
        mode = os.fstat(file.fileno()).st_mode
        data = file.read()
    if mode & (stat.S_IRWXG | stat.S_IRWXO):
        report(f"{path}: mode {stat.S_IMODE(mode):04o}, others than its owner may use the key")
    try:
        key = load_pem_private_key(data, password=None)
    except TypeError:
        raise IdentityError(f"{path} has a passphrase: the key has to be without one") from None
    except (ValueError, UnsupportedAlgorithm):
        # The library's own words may quote what is in the file.
        raise IdentityError(f"{path} has no private key that can be read") from None
    if not isinstance(key, ec.EllipticCurvePrivateKey | rsa.RSAPrivateKey):
        raise IdentityError(f"{path} has neither a key of ECDSA nor of RSA")
    try:
        BaseAsym.of_key(key)
    except ValueError as error:
        raise IdentityError(f"{path}: {error}") from None
    return key
