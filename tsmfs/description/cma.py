# SPDX-License-Identifier: MIT
"""The keys, measurements and faults of a device that authenticates itself."""

from __future__ import annotations

import enum
from dataclasses import dataclass
from typing import Final

MAX_CERTIFICATE_SLOT: Final = 7


class CmaKey(enum.Enum):
    """Kind of the key that a device signs with (DSP0274, BaseAsymAlgo)."""

    ECDSA_P256 = "ecdsa-p256"
    ECDSA_P384 = "ecdsa-p384"
    RSA_3072 = "rsa-3072"


class CmaHash(enum.Enum):
    """Hash function of certificates and transcripts (DSP0274, BaseHashAlgo)."""

    SHA_256 = "sha-256"
    SHA_384 = "sha-384"
    SHA_512 = "sha-512"


class CmaVersion(enum.Enum):
    """Version of SPDM that a device speaks."""

    V1_2 = "1.2"
    V1_3 = "1.3"


class MeasurementKind(enum.Enum):
    """What was measured (DSP0274, DMTFSpecMeasurementValueType)."""

    ROM = "rom"
    FIRMWARE = "firmware"
    HARDWARE_CONFIG = "hardware-config"
    FIRMWARE_CONFIG = "firmware-config"
    MANIFEST = "manifest"
    VERSION = "version"


class Tamper(enum.Enum):
    """What is wrong with what a device presents: ``tsmfs.pci.tamper`` tells what each does."""

    EXPIRED_CERTIFICATE = "expired-certificate"
    SELF_SIGNED = "self-signed"
    WRONG_NAME = "wrong-name"
    FOREIGN_CERTIFICATE = "foreign-certificate"
    BAD_SIGNATURE = "bad-signature"
    STALE_NONCE = "stale-nonce"
    CHANGED_MEASUREMENT = "changed-measurement"
    WRONG_RANGE = "wrong-range"
    OVERLAPPING_RANGE = "overlapping-range"
    REPLAYED_TRANSCRIPT = "replayed-transcript"


EXCLUSIVE_TAMPERS: Final = (
    (
        Tamper.EXPIRED_CERTIFICATE,
        Tamper.SELF_SIGNED,
        Tamper.WRONG_NAME,
        Tamper.FOREIGN_CERTIFICATE,
    ),
    (Tamper.STALE_NONCE, Tamper.REPLAYED_TRANSCRIPT),
)
"""Of each of these a device has one at most."""

MAX_MEASUREMENT: Final = 0xEF
"""Highest index of a measurement whose meaning is the device's own (DSP0274, table 50)."""
MEASUREMENT_MANIFEST: Final = 0xFD
"""Index of the manifest."""


@dataclass(frozen=True, slots=True)
class Measurement:
    """One measurement of a device; ``value`` is the text whose UTF-8 bytes are measured."""

    index: int
    kind: MeasurementKind
    value: str


@dataclass(frozen=True, slots=True)
class CmaFiles:
    """PEM files of a certificate slot: certificates from the root to the leaf, and its key."""

    slot: int
    chain: str
    key: str


@dataclass(frozen=True, slots=True)
class Cma:
    """Component Measurement and Authentication (PCIe 7.0, section 6.31): keys of its own.

    The device answers SPDM in its mailbox, and what it has of IDE and TDISP works. Its keys come
    from ``seed``, by default the machine's, unless ``files`` names them. ``measurements`` replace
    those that a device has by itself. ``tamper`` is what a verifier is to find wrong with it.
    """

    key: CmaKey = CmaKey.ECDSA_P384
    hash: CmaHash = CmaHash.SHA_384
    versions: tuple[CmaVersion, ...] = tuple(CmaVersion)
    slots: tuple[int, ...] = (0,)
    seed: int | None = None
    files: tuple[CmaFiles, ...] = ()
    measurements: tuple[Measurement, ...] = ()
    tamper: tuple[Tamper, ...] = ()
