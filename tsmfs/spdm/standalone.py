# SPDX-License-Identifier: MIT
"""A device without a machine: a responder with keys, measurements, IDE_KM and TDISP."""

from __future__ import annotations

from collections.abc import Sequence

from tsmfs.spdm.algorithms import Offer
from tsmfs.spdm.ide_km import IdeKmResponder, MemoryKeySlots
from tsmfs.spdm.identity import Identity, Subject
from tsmfs.spdm.interface import fixed_interface
from tsmfs.spdm.measurements import Measurement, MeasurementKind
from tsmfs.spdm.responder import VERSIONS, Responder, Settings
from tsmfs.spdm.tdisp_responder import TdispResponder
from tsmfs.spdm.vendor import PciProtocol

SUBJECT = Subject(
    vendor=0x1AF4,
    device=0x10F0,
    subsystem_vendor=0x1AF4,
    subsystem=0x1100,
    class_code=0x120000,
    revision=1,
    serial=bytes.fromhex("0000000000000001"),
    name="standalone",
)
"""What the certificates of a device without a machine name."""

MEASUREMENTS: tuple[Measurement, ...] = (
    Measurement(1, MeasurementKind.IMMUTABLE_ROM, b"boot ROM"),
    Measurement(2, MeasurementKind.MUTABLE_FIRMWARE, b"firmware"),
    Measurement(3, MeasurementKind.HARDWARE_CONFIGURATION, b"fuses"),
    Measurement(4, MeasurementKind.FIRMWARE_CONFIGURATION, b"settings"),
)

INTERFACE = 0xBEEF
"""FUNCTION_ID of the interface, the one that spdm-emu's requester asks for."""

HEARTBEAT_PERIOD = 30
"""Seconds; after two of them without a request a session ends."""

_BARS = ((0x8000_0000, 0x10000), (0x9000_0000, 0x4000))


def standalone_device(
    identity: Identity, *, versions: Sequence[int] = VERSIONS, offer: Offer | None = None
) -> Responder:
    """A device with `identity`: `MEASUREMENTS`, two ports for keys, and `INTERFACE`."""
    return Responder(
        identity,
        lambda: MEASUREMENTS,
        vendor={
            PciProtocol.IDE_KM: IdeKmResponder(MemoryKeySlots()),
            PciProtocol.TDISP: TdispResponder({INTERFACE: fixed_interface(INTERFACE, _BARS)}),
        },
        versions=versions,
        algorithms=offer,
        settings=Settings(heartbeat_period=HEARTBEAT_PERIOD),
    )
