# SPDX-License-Identifier: MIT
"""Hashes, signatures, key exchange and AEAD of SPDM: their bits and the primitives behind them."""

from __future__ import annotations

import hashlib
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from enum import Enum
from functools import cached_property
from typing import Any, TypeVar

from cryptography.exceptions import InvalidSignature, InvalidTag
from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.asymmetric import ec, padding, rsa
from cryptography.hazmat.primitives.asymmetric.utils import (
    decode_dss_signature,
    encode_dss_signature,
)
from cryptography.hazmat.primitives.ciphers.aead import AESGCM, ChaCha20Poly1305

from tsmfs.spdm.messages import AlgorithmTable, AlgorithmType
from tsmfs.spdm.wire import Sizes

PrivateKey = ec.EllipticCurvePrivateKey | rsa.RSAPrivateKey
PublicKey = ec.EllipticCurvePublicKey | rsa.RSAPublicKey

KEY_SCHEDULE_SPDM = 1 << 0
"""The key schedule of chapter 12, the only one there is."""


class CryptoError(Exception):
    """A primitive refused its input: no point on the curve, a tag that does not match."""


class BaseHash(Enum):
    """BaseHashAlgo (table 21)."""

    SHA_256 = ("sha256", 1 << 0, hashes.SHA256())
    SHA_384 = ("sha384", 1 << 1, hashes.SHA384())
    SHA_512 = ("sha512", 1 << 2, hashes.SHA512())

    def __init__(
        self, label: str, bit: int, primitive: hashes.SHA256 | hashes.SHA384 | hashes.SHA512
    ) -> None:
        self.label = label
        """The name that hashlib and hmac know."""
        self.bit = bit
        self.primitive = primitive
        self.size = primitive.digest_size

    def new(self, data: bytes = b"") -> hashlib._Hash:
        """A running hash, fed with `data`."""
        return hashlib.new(self.label, data)

    def digest(self, data: bytes) -> bytes:
        """The hash of `data`."""
        return hashlib.new(self.label, data).digest()


class MeasurementHash(Enum):
    """MeasurementHashAlgo (table 23); `base` is None where measurements are raw only."""

    RAW_ONLY = (1 << 0, None)
    SHA_256 = (1 << 1, BaseHash.SHA_256)
    SHA_384 = (1 << 2, BaseHash.SHA_384)
    SHA_512 = (1 << 3, BaseHash.SHA_512)

    def __init__(self, bit: int, base: BaseHash | None) -> None:
        self.bit = bit
        self.base = base


class BaseAsym(Enum):
    """BaseAsymAlgo (table 21)."""

    ECDSA_P256 = (1 << 4, 64, ec.SECP256R1())
    ECDSA_P384 = (1 << 7, 96, ec.SECP384R1())
    RSAPSS_3072 = (1 << 3, 384, None)

    def __init__(self, bit: int, size: int, curve: ec.EllipticCurve | None) -> None:
        self.bit = bit
        self.signature_size = size
        self.curve = curve

    @classmethod
    def of_key(cls, key: PrivateKey | PublicKey) -> BaseAsym:
        """The algorithm of a key. Raises ValueError if SPDM here has none for it."""
        for member in cls:
            if isinstance(key, ec.EllipticCurvePrivateKey | ec.EllipticCurvePublicKey):
                if member.curve is not None and key.curve.name == member.curve.name:
                    return member
            elif member.curve is None and key.key_size == member.signature_size * 8:
                return member
        raise ValueError("no signature algorithm for this key")

    def sign(self, key: PrivateKey, message: bytes, base_hash: BaseHash) -> bytes:
        """The signature of `message`: raw r||s for ECDSA, PSS with a salt as long as the hash.

        `message` is what chapter 15 wants signed, see `transcript.signing_message`. Raises
        ValueError if the key is not one of this algorithm.
        """
        if isinstance(key, ec.EllipticCurvePrivateKey):
            if self.curve is None or key.curve.name != self.curve.name:
                raise ValueError(f"the key is not one of {self.name}")
            r, s = decode_dss_signature(key.sign(message, ec.ECDSA(base_hash.primitive)))
            half = self.signature_size // 2
            return r.to_bytes(half, "big") + s.to_bytes(half, "big")
        if self.curve is not None or key.key_size != self.signature_size * 8:
            raise ValueError(f"the key is not one of {self.name}")
        return key.sign(message, _pss(base_hash), base_hash.primitive)

    def verify(self, key: PublicKey, signature: bytes, message: bytes, base_hash: BaseHash) -> bool:
        """Whether `signature` is one of `message` by the owner of `key`."""
        if len(signature) != self.signature_size:
            return False
        try:
            if isinstance(key, ec.EllipticCurvePublicKey):
                if self.curve is None or key.curve.name != self.curve.name:
                    return False
                half = self.signature_size // 2
                r = int.from_bytes(signature[:half], "big")
                s = int.from_bytes(signature[half:], "big")
                key.verify(encode_dss_signature(r, s), message, ec.ECDSA(base_hash.primitive))
            elif self.curve is not None or key.key_size != self.signature_size * 8:
                return False
            else:
                key.verify(signature, message, _pss(base_hash), base_hash.primitive)
        except InvalidSignature:
            return False
        return True


def _pss(base_hash: BaseHash) -> padding.PSS:
    return padding.PSS(padding.MGF1(base_hash.primitive), base_hash.size)


class DheGroup(Enum):
    """DHE of the algorithm structures (table 23)."""

    SECP_256_R1 = (1 << 3, 32, ec.SECP256R1())
    SECP_384_R1 = (1 << 4, 48, ec.SECP384R1())

    def __init__(self, bit: int, size: int, curve: ec.EllipticCurve) -> None:
        self.bit = bit
        self.secret_size = size
        self.exchange_size = 2 * size
        self.curve = curve

    def generate(self) -> tuple[ec.EllipticCurvePrivateKey, bytes]:
        """A new private key, and its public key as X||Y."""
        private = ec.generate_private_key(self.curve)
        numbers = private.public_key().public_numbers()
        size = self.secret_size
        return private, numbers.x.to_bytes(size, "big") + numbers.y.to_bytes(size, "big")

    def shared(self, private: ec.EllipticCurvePrivateKey, peer: bytes) -> bytes:
        """The shared secret with the owner of `peer`, X||Y. Raises CryptoError."""
        if len(peer) != self.exchange_size:
            raise CryptoError(f"{len(peer)} bytes of exchange data, not {self.exchange_size}")
        try:
            public = ec.EllipticCurvePublicKey.from_encoded_point(self.curve, b"\x04" + peer)
            return private.exchange(ec.ECDH(), public)
        except ValueError:
            raise CryptoError("the exchange data is no point on the curve") from None


class AeadSuite(Enum):
    """AEAD of the algorithm structures (table 24)."""

    AES_128_GCM = (1 << 0, 16, AESGCM)
    AES_256_GCM = (1 << 1, 32, AESGCM)
    CHACHA20_POLY1305 = (1 << 2, 32, ChaCha20Poly1305)

    def __init__(
        self, bit: int, key_size: int, primitive: type[AESGCM] | type[ChaCha20Poly1305]
    ) -> None:
        self.bit = bit
        self.key_size = key_size
        self.iv_size = 12
        self.tag_size = 16
        self.primitive = primitive

    def cipher(self, key: bytes) -> AESGCM | ChaCha20Poly1305:
        """The cipher under `key`, for many records."""
        return self.primitive(key)


def unseal(cipher: AESGCM | ChaCha20Poly1305, iv: bytes, sealed: bytes, associated: bytes) -> bytes:
    """The plain text of ciphertext and tag. Raises CryptoError."""
    try:
        return cipher.decrypt(iv, sealed, associated)
    except InvalidTag:
        raise CryptoError("the tag does not match") from None


@dataclass(frozen=True)
class Algorithms:
    """What was negotiated. Without `dhe` and `aead` there are no sessions."""

    base_hash: BaseHash
    base_asym: BaseAsym
    measurement_hash: MeasurementHash | None = None
    dhe: DheGroup | None = None
    aead: AeadSuite | None = None
    other_params: int = 0
    """`OtherParams` that were selected."""

    @cached_property
    def sizes(self) -> Sizes:
        """The sizes of a response that is signed; of a request, with `verify` as FINISH has it."""
        return Sizes(
            hash=self.base_hash.size,
            signature=self.base_asym.signature_size,
            exchange=self.dhe.exchange_size if self.dhe else 0,
            verify=self.base_hash.size,
        )


A = TypeVar("A", BaseHash, BaseAsym, MeasurementHash, DheGroup, AeadSuite)


def bits(members: Iterable[Any]) -> int:
    """The bits of `members`, or-ed."""
    value = 0
    for member in members:
        value |= member.bit
    return value


def choose(preference: Sequence[A], offered: int) -> A | None:
    """The first of `preference` whose bit is among `offered`; None if there is none."""
    return next((member for member in preference if member.bit & offered), None)


@dataclass(frozen=True)
class Offer:
    """What an endpoint supports, each kind in the order of its preference."""

    base_hash: tuple[BaseHash, ...] = (BaseHash.SHA_384, BaseHash.SHA_512, BaseHash.SHA_256)
    base_asym: tuple[BaseAsym, ...] = (
        BaseAsym.ECDSA_P384,
        BaseAsym.ECDSA_P256,
        BaseAsym.RSAPSS_3072,
    )
    measurement_hash: tuple[MeasurementHash, ...] = (
        MeasurementHash.SHA_384,
        MeasurementHash.SHA_512,
        MeasurementHash.SHA_256,
        MeasurementHash.RAW_ONLY,
    )
    dhe: tuple[DheGroup, ...] = (DheGroup.SECP_384_R1, DheGroup.SECP_256_R1)
    aead: tuple[AeadSuite, ...] = (
        AeadSuite.AES_256_GCM,
        AeadSuite.CHACHA20_POLY1305,
        AeadSuite.AES_128_GCM,
    )

    @property
    def tables(self) -> tuple[AlgorithmTable, ...]:
        """The algorithm structures that tell the offer."""
        return (
            AlgorithmTable(AlgorithmType.DHE, bits(self.dhe)),
            AlgorithmTable(AlgorithmType.AEAD, bits(self.aead)),
            AlgorithmTable(AlgorithmType.KEY_SCHEDULE, KEY_SCHEDULE_SPDM),
        )
