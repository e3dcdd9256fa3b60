# SPDX-License-Identifier: MIT
"""Sizing base address registers through config space (``__pci_read_base()``)."""

from __future__ import annotations

from collections.abc import Iterator

from tsmfs.kernel.resource import (
    IORESOURCE_IO,
    IORESOURCE_MEM,
    IORESOURCE_MEM_64,
    IORESOURCE_PREFETCH,
    IORESOURCE_SIZEALIGN,
)
from tsmfs.pci import regs
from tsmfs.pci.config import ConfigSpace


def read_bases(config: ConfigSpace, base: int, count: int) -> Iterator[tuple[int, int, int, int]]:
    """Size the *count* base address registers at *base* by writing ones (``__pci_read_base()``).

    Yields index, address, size in bytes and resource flags of each that is there.
    """
    index = 0
    while index < count:
        pos = base + 4 * index
        low = config.read(pos, 4)
        config.write(pos, 4, 0xFFFFFFFF)
        mask = config.read(pos, 4)
        config.write(pos, 4, low)
        this = index
        index += 1
        if not mask:
            continue
        if mask & regs.PCI_BASE_ADDRESS_SPACE_IO:
            bits = mask & regs.PCI_BASE_ADDRESS_IO_MASK & 0xFFFFFFFF
            size = (~bits & 0xFFFFFFFF) + 1
            start = low & regs.PCI_BASE_ADDRESS_IO_MASK
            flags = IORESOURCE_IO | IORESOURCE_SIZEALIGN | regs.PCI_BASE_ADDRESS_SPACE_IO
            yield this, start, size, flags
            continue
        flags = IORESOURCE_MEM | IORESOURCE_SIZEALIGN | mask & 0xF
        start = low & ~0xF & 0xFFFFFFFF
        bits = mask & ~0xF & 0xFFFFFFFF
        width = 0xFFFFFFFF
        if mask & regs.PCI_BASE_ADDRESS_MEM_TYPE_MASK == regs.PCI_BASE_ADDRESS_MEM_TYPE_64:
            flags |= IORESOURCE_MEM_64
            high = config.read(pos + 4, 4)
            config.write(pos + 4, 4, 0xFFFFFFFF)
            bits |= config.read(pos + 4, 4) << 32
            config.write(pos + 4, 4, high)
            start |= high << 32
            width = (1 << 64) - 1
            index += 1
        if mask & regs.PCI_BASE_ADDRESS_MEM_PREFETCH:
            flags |= IORESOURCE_PREFETCH
        yield this, start, (~bits & width) + 1, flags
