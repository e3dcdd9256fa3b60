# SPDX-License-Identifier: MIT
"""What a function has: base address registers, its link, and the capabilities in config space."""

from __future__ import annotations

import enum
from dataclasses import dataclass
from typing import Final

DOE_DISCOVERY: Final = (0x0001, 0x00)
"""Vendor and type of DOE discovery, which every mailbox answers (PCIe 7.0, section 6.30.1.1)."""
DOE_CMA: Final = (0x0001, 0x01)
"""CMA/SPDM (PCIe 7.0, section 6.31.3)."""
DOE_SECURED_CMA: Final = (0x0001, 0x02)
"""Secured CMA/SPDM (PCIe 7.0, section 6.31.4)."""


class BarKind(enum.Enum):
    """What a base address register decodes (PCIe 7.0, section 7.5.1.2.1)."""

    MEM32 = "mem32"
    MEM64 = "mem64"
    IO = "io"


class LinkSpeed(enum.Enum):
    """Maximum link speed in GT/s; the order is the encoding of Link Capabilities, from 1."""

    GT_2_5 = "2.5"
    GT_5 = "5"
    GT_8 = "8"
    GT_16 = "16"
    GT_32 = "32"
    GT_64 = "64"

    @property
    def code(self) -> int:
        """The Supported Link Speeds encoding, 1 to 6 (PCIe 7.0, section 7.5.3.6)."""
        return list(LinkSpeed).index(self) + 1


LINK_WIDTHS: Final = (1, 2, 4, 8, 12, 16, 32)
"""Link widths that Link Capabilities can express (PCIe 7.0, section 7.5.3.6)."""


@dataclass(frozen=True, slots=True)
class Bar:
    """A base address register; ``index`` 0..5 (0..1 on a port), ``size`` in bytes."""

    index: int
    size: int
    kind: BarKind = BarKind.MEM32
    prefetch: bool = False


@dataclass(frozen=True, slots=True)
class Link:
    """The fastest and widest link that the function can do; the one in use depends on both ends."""

    speed: LinkSpeed = LinkSpeed.GT_2_5
    width: int = 1


@dataclass(frozen=True, slots=True)
class Msix:
    """MSI-X (PCIe 7.0, section 7.7.2), all in one memory BAR; offsets in bytes."""

    vectors: int
    bar: int
    table_offset: int
    pba_offset: int


@dataclass(frozen=True, slots=True)
class Doe:
    """A DOE mailbox (PCIe 7.0, section 6.30): (vendor, type) pairs beyond discovery."""

    protocols: tuple[tuple[int, int], ...] = (DOE_CMA, DOE_SECURED_CMA)


@dataclass(frozen=True, slots=True)
class Ide:
    """IDE capability (PCIe 7.0, section 7.9.26).

    ``address_associations`` is the number of address blocks of each selective stream.
    """

    link_streams: int = 0
    selective_streams: int = 1
    address_associations: int = 1
    tee_limited: bool = True
    ide_km: bool = True
    selective_config: bool = False
    flow_through: bool = False
    partial_header_encryption: bool = False
    aggregation: bool = False
    pcrc: bool = False

    @property
    def size(self) -> int:
        """Bytes of the capability in config space."""
        selective = 20 + 12 * self.address_associations
        return 12 + 8 * self.link_streams + selective * self.selective_streams


@dataclass(frozen=True, slots=True)
class Sriov:
    """SR-IOV capability (PCIe 7.0, section 9.3.3) and what each of its VFs looks like."""

    total_vfs: int
    vf_device: int
    tee_io: bool
    first_vf_offset: int = 1
    vf_stride: int = 1
    bars: tuple[Bar, ...] = ()
    msix: Msix | None = None

    def routing_ids(self, devfn: int) -> range:
        """Routing IDs of all VFs of the PF at ``devfn``, from the start of its bus."""
        first = devfn + self.first_vf_offset
        return range(first, first + self.vf_stride * self.total_vfs, self.vf_stride)
