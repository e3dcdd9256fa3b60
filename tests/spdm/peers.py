# SPDX-License-Identifier: MIT
"""Devices for the tests of both sides of SPDM, and the ways to reach them without a socket."""

from __future__ import annotations

from collections.abc import Callable
from datetime import UTC, datetime
from functools import cache

from cryptography import x509
from cryptography.hazmat.primitives.asymmetric import rsa
from cryptography.x509.oid import NameOID

from tsmfs.spdm.algorithms import AeadSuite, BaseAsym, BaseHash, DheGroup, MeasurementHash, Offer
from tsmfs.spdm.ide_km import IdeKmResponder, MemoryKeySlots
from tsmfs.spdm.identity import Identity, Slot, make_identity
from tsmfs.spdm.interface import fixed_interface
from tsmfs.spdm.messages import ResponderFlags
from tsmfs.spdm.responder import Responder, Settings
from tsmfs.spdm.standalone import INTERFACE, MEASUREMENTS, SUBJECT
from tsmfs.spdm.tdisp_responder import TdispResponder
from tsmfs.spdm.vendor import PciProtocol

Edit = Callable[[bytes, bytes], bytes]
"""Gets a request and its response; returns the response that arrives instead."""

HEARTBEAT_PERIOD = 30


def untouched(request: bytes, response: bytes) -> bytes:
    """The response as it is."""
    return response


class Link:
    """A `Transport` to a responder in the same thread, which notes and may change what it carries.

    Responses are padded to dwords, as behind a mailbox.
    """

    def __init__(self, responder: Responder, edit: Edit = untouched) -> None:
        self.responder = responder
        self.edit = edit
        self.edit_record: Edit = untouched
        self.requests: list[bytes] = []
        self.records: list[bytes] = []

    def plain(self, request: bytes) -> bytes:
        self.requests.append(request)
        response = self.edit(request, self.responder.respond(_padded(request)))
        return _padded(response)

    def secured(self, record: bytes) -> bytes:
        self.records.append(record)
        response = self.edit_record(record, self.responder.respond_secured(_padded(record)))
        return _padded(response)


def _padded(data: bytes) -> bytes:
    return data + bytes(-len(data) % 4)


@cache
def identity(base_asym: BaseAsym, base_hash: BaseHash) -> Identity:
    """An identity with chains in slots 0 and 2; with RSA, whose keys take long, in slot 0 alone."""
    if base_asym is BaseAsym.RSAPSS_3072:
        return _rsa_identity(base_hash)
    return make_identity(bytes(32), SUBJECT, base_asym, base_hash, (0, 2))


@cache
def _rsa_key() -> rsa.RSAPrivateKey:
    return rsa.generate_private_key(public_exponent=65537, key_size=3072)


def _rsa_identity(base_hash: BaseHash) -> Identity:
    key = _rsa_key()
    name = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, "device")])
    certificate = (
        x509.CertificateBuilder()
        .subject_name(name)
        .issuer_name(name)
        .public_key(key.public_key())
        .serial_number(1)
        .not_valid_before(datetime(2024, 1, 1, tzinfo=UTC))
        .not_valid_after(datetime(2100, 1, 1, tzinfo=UTC))
        .sign(key, base_hash.primitive)
    )
    slot = Slot((certificate,), key, base_hash)
    return Identity({0: slot}, BaseAsym.RSAPSS_3072, base_hash)


def device(
    base_asym: BaseAsym = BaseAsym.ECDSA_P256,
    base_hash: BaseHash = BaseHash.SHA_256,
    *,
    settings: Settings | None = None,
    offer: Offer | None = None,
    versions: tuple[int, ...] = (0x12, 0x13),
) -> Responder:
    """A responder with measurements, two ports for IDE keys, and one TDISP interface."""
    return Responder(
        identity(base_asym, base_hash),
        lambda: MEASUREMENTS,
        vendor={
            PciProtocol.IDE_KM: IdeKmResponder(MemoryKeySlots()),
            PciProtocol.TDISP: TdispResponder(
                {INTERFACE: fixed_interface(INTERFACE, ((0x8000_0000, 0x10000),))}
            ),
        },
        versions=versions,
        algorithms=offer,
        settings=settings or Settings(heartbeat_period=HEARTBEAT_PERIOD),
    )


def offer(
    base_asym: BaseAsym = BaseAsym.ECDSA_P256,
    base_hash: BaseHash = BaseHash.SHA_256,
    dhe: DheGroup = DheGroup.SECP_256_R1,
    aead: AeadSuite = AeadSuite.AES_128_GCM,
) -> Offer:
    """An offer of one algorithm of each kind."""
    measurement_hash = next(one for one in MeasurementHash if one.base is base_hash)
    return Offer((base_hash,), (base_asym,), (measurement_hash,), (dhe,), (aead,))


def without(*flags: ResponderFlags) -> Settings:
    """Settings of a device that lacks `flags`."""
    lacking = ResponderFlags(0)
    for flag in flags:
        lacking |= flag
    settings = Settings()
    transfer = settings.data_transfer_size
    return Settings(
        flags=settings.flags & ~lacking, data_transfer_size=transfer, max_message_size=transfer
    )
