# SPDX-License-Identifier: MIT
"""Measurements of a device: blocks in the DMTF format, their record and summary (DSP0274 10.11)."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from enum import IntEnum

from tsmfs.spdm.algorithms import BaseHash, MeasurementHash
from tsmfs.spdm.messages import MEASUREMENT_SPECIFICATION_DMTF, SummaryType
from tsmfs.spdm.wire import SpdmDecodeError

MANIFEST_INDEX = 0xFD
"""Index of the measurement manifest."""

DEVICE_MODE_INDEX = 0xFE
"""Index of the device mode."""

FIRST_INDEX = 0x01
LAST_INDEX = 0xFE

BLOCK_HEADER_SIZE = 4
"""Bytes of index, specification and size (table 44)."""

DMTF_HEADER_SIZE = 3
"""Bytes of value type and value size (table 45)."""

RAW_BIT = 1 << 7
"""Bit of DMTFSpecMeasurementValueType: a raw bit stream, no digest."""

MAX_VALUE_SIZE = 0xFFFF - DMTF_HEADER_SIZE
"""Bytes of the largest value that a block can tell."""


class MeasurementKind(IntEnum):
    """DMTFSpecMeasurementValueType, bits 6:0 (table 45)."""

    IMMUTABLE_ROM = 0x00
    MUTABLE_FIRMWARE = 0x01
    HARDWARE_CONFIGURATION = 0x02
    FIRMWARE_CONFIGURATION = 0x03
    MEASUREMENT_MANIFEST = 0x04
    DEVICE_MODE = 0x05
    FIRMWARE_VERSION = 0x06
    SECURE_VERSION_NUMBER = 0x07
    HASH_EXTENDED = 0x08
    INFORMATIONAL = 0x09
    STRUCTURED_MANIFEST = 0x0A


ALWAYS_RAW = frozenset(
    {
        MeasurementKind.DEVICE_MODE,
        MeasurementKind.FIRMWARE_VERSION,
        MeasurementKind.SECURE_VERSION_NUMBER,
        MeasurementKind.INFORMATIONAL,
        MeasurementKind.STRUCTURED_MANIFEST,
    }
)
"""Kinds whose value says something by itself and is never replaced by a digest."""

TCB_KINDS = frozenset({MeasurementKind.IMMUTABLE_ROM, MeasurementKind.MUTABLE_FIRMWARE})
"""Kinds that the summary of the TCB covers."""


@dataclass(frozen=True, slots=True)
class Measurement:
    """What a device measures of itself: the value whole, whichever way it is told."""

    index: int
    """1 to 0xEF, `MANIFEST_INDEX` or `DEVICE_MODE_INDEX`; no two are the same."""
    kind: MeasurementKind
    value: bytes

    def __post_init__(self) -> None:
        if not FIRST_INDEX <= self.index <= LAST_INDEX:
            raise ValueError(f"measurement index {self.index:#04x}")

    def block(self, measurement_hash: MeasurementHash, *, raw: bool) -> MeasurementBlock:
        """The block that tells the measurement, as a digest unless `raw` or its kind is.

        A value that does not fit a block is told as its digest; raises ValueError where that is
        not possible.
        """
        base = measurement_hash.base
        fits = len(self.value) <= MAX_VALUE_SIZE
        if base is None or self.kind in ALWAYS_RAW:
            if not fits:
                raise ValueError(f"measurement {self.index} has {len(self.value)} bytes")
        elif not (raw and fits):
            return MeasurementBlock(self.index, self.kind, False, base.digest(self.value))
        return MeasurementBlock(self.index, self.kind, True, self.value)


MeasurementSource = Callable[[], Sequence[Measurement]]
"""Gets the measurements of a device as they are now, in the order of their indices."""


@dataclass(frozen=True, slots=True)
class MeasurementBlock:
    """A measurement block of the DMTF specification (tables 44 and 45)."""

    index: int
    kind: int
    """A `MeasurementKind`, where it is known."""
    raw: bool
    value: bytes
    """A bit stream if `raw`, else a digest."""

    def pack_into(self, out: bytearray) -> None:
        """Append the block to `out`."""
        size = len(self.value)
        out += bytes((self.index, MEASUREMENT_SPECIFICATION_DMTF))
        out += (DMTF_HEADER_SIZE + size).to_bytes(2, "little")
        out += bytes((self.kind | (RAW_BIT if self.raw else 0),)) + size.to_bytes(2, "little")
        out += self.value

    @classmethod
    def parse_at(cls, data: bytes, at: int) -> tuple[MeasurementBlock, int]:
        """The block at offset `at` and the offset behind it. Raises SpdmDecodeError."""
        start = at + BLOCK_HEADER_SIZE + DMTF_HEADER_SIZE
        if start > len(data):
            raise SpdmDecodeError("a measurement block is cut off")
        index, specification = data[at], data[at + 1]
        if specification != MEASUREMENT_SPECIFICATION_DMTF:
            raise SpdmDecodeError(f"measurement specification {specification:#04x}")
        size = int.from_bytes(data[at + 2 : at + BLOCK_HEADER_SIZE], "little")
        kind = data[at + BLOCK_HEADER_SIZE]
        value_size = int.from_bytes(data[start - 2 : start], "little")
        end = start + value_size
        if size != DMTF_HEADER_SIZE + value_size or end > len(data):
            raise SpdmDecodeError(f"measurement {index} has a wrong size")
        value = data[start:end]
        return cls(index, kind & ~RAW_BIT, bool(kind & RAW_BIT), value), end


def pack_record(blocks: Iterable[MeasurementBlock]) -> bytes:
    """MeasurementRecord: blocks one behind the other."""
    out = bytearray()
    for block in blocks:
        block.pack_into(out)
    return bytes(out)


def parse_record(record: bytes) -> tuple[MeasurementBlock, ...]:
    """The blocks of a MeasurementRecord. Raises SpdmDecodeError."""
    blocks = []
    at = 0
    while at < len(record):
        block, at = MeasurementBlock.parse_at(record, at)
        blocks.append(block)
    return tuple(blocks)


def summary_hash(
    blocks: Iterable[MeasurementBlock], summary_type: int, base_hash: BaseHash
) -> bytes:
    """MeasurementSummaryHash over all `blocks` or those of the TCB; empty for type none (10.8)."""
    if summary_type == SummaryType.NONE:
        return b""
    if summary_type == SummaryType.TCB:
        blocks = (block for block in blocks if block.kind in TCB_KINDS)
    return base_hash.digest(pack_record(blocks))
