# SPDX-License-Identifier: MIT
"""DOE data objects as bytes: the header in dwords, and discovery.

PCI Express Base Specification 7.0, 6.30.1 and 6.30.1.1. Nothing here knows of registers: a
mailbox moves these bytes dword by dword, a socket moves them whole.
"""

from __future__ import annotations

import struct
from collections.abc import Sequence
from dataclasses import dataclass
from enum import IntEnum

from tsmfs.spdm.wire import SpdmDecodeError

VENDOR_PCI_SIG = 0x0001
NO_VENDOR = 0xFFFF
"""Vendor ID in the answer to a discovery index that is out of range."""

DWORD = 4
HEADER_SIZE = 2 * DWORD
MAX_DWORDS = 1 << 18
"""Dwords in the largest data object, header included; its Length field reads zero."""

MAX_OBJECT_SIZE = MAX_DWORDS * DWORD

_LENGTH_MASK = MAX_DWORDS - 1
_HEADER = struct.Struct("<HBxI")


class ObjectType(IntEnum):
    """Data object types of the PCI-SIG (table 6-37)."""

    DISCOVERY = 0
    CMA_SPDM = 1
    SECURED_CMA_SPDM = 2


PROTOCOLS: tuple[tuple[int, int], ...] = tuple((VENDOR_PCI_SIG, kind) for kind in ObjectType)
"""Vendor ID and type of what an instance for CMA supports, as discovery lists it."""


@dataclass(frozen=True, slots=True)
class DataObject:
    """A data object: who defined it, what it is, and its payload."""

    kind: int
    payload: bytes
    vendor: int = VENDOR_PCI_SIG

    def pack(self) -> bytes:
        """Header and payload in whole dwords, padded with zeroes. Raises ValueError if too long."""
        padding = -len(self.payload) % DWORD
        dwords = (HEADER_SIZE + len(self.payload) + padding) // DWORD
        if dwords > MAX_DWORDS:
            raise ValueError(f"a data object of {dwords} dwords is too long")
        header = _HEADER.pack(self.vendor, self.kind, dwords & _LENGTH_MASK)
        return b"".join((header, self.payload, bytes(padding)))

    @classmethod
    def parse(cls, data: bytes) -> DataObject:
        """The data object that `data` is, its padding kept. Raises SpdmDecodeError."""
        if len(data) < HEADER_SIZE or len(data) % DWORD:
            raise SpdmDecodeError(f"{len(data)} bytes are no data object")
        vendor, kind, length = _HEADER.unpack_from(data)
        dwords = length & _LENGTH_MASK or MAX_DWORDS
        if dwords * DWORD != len(data):
            raise SpdmDecodeError(f"a data object of {dwords} dwords in {len(data)} bytes")
        return cls(kind, data[HEADER_SIZE:], vendor)


@dataclass(frozen=True, slots=True)
class DiscoveryRequest:
    """The request of DOE Discovery: which entry is asked for."""

    index: int
    version: int = 0

    def pack(self) -> bytes:
        """The payload of the data object."""
        return bytes((self.index, self.version, 0, 0))

    @classmethod
    def parse(cls, payload: bytes) -> DiscoveryRequest:
        """Read the payload of a data object. Raises SpdmDecodeError."""
        if len(payload) != DWORD:
            raise SpdmDecodeError(f"{len(payload)} bytes are no discovery request")
        return cls(payload[0], payload[1])


@dataclass(frozen=True, slots=True)
class DiscoveryResponse:
    """The response of DOE Discovery: an entry, and the index of the next or zero."""

    vendor: int
    kind: int
    next_index: int

    def pack(self) -> bytes:
        """The payload of the data object."""
        return struct.pack("<HBB", self.vendor, self.kind, self.next_index)

    @classmethod
    def parse(cls, payload: bytes) -> DiscoveryResponse:
        """Read the payload of a data object. Raises SpdmDecodeError."""
        if len(payload) != DWORD:
            raise SpdmDecodeError(f"{len(payload)} bytes are no discovery response")
        return cls(*struct.unpack("<HBB", payload))


def discover(index: int, protocols: Sequence[tuple[int, int]] = PROTOCOLS) -> DiscoveryResponse:
    """What an instance that supports `protocols` answers for `index`."""
    if index >= len(protocols):
        return DiscoveryResponse(NO_VENDOR, 0, 0)
    vendor, kind = protocols[index]
    return DiscoveryResponse(vendor, kind, (index + 1) % len(protocols))
