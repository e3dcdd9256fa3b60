# SPDX-License-Identifier: MIT
"""Host bridges: the top of a PCI hierarchy, its windows and its pool of secure streams."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

from tsmfs.base.device import Device
from tsmfs.kernel.resource import Resource
from tsmfs.pci.hardware import HwBus
from tsmfs.pci.ide import IDE_HOST_BRIDGE_GROUP, PCI_IDE_STREAM_ID_RESERVED
from tsmfs.pci.pci_dev import Ida, PciBus

if TYPE_CHECKING:
    from tsmfs.pci.core import PciCore


class PciHostBridge(Device):
    """``struct pci_host_bridge``, shown as ``pciDDDD:BB``."""

    __slots__ = (
        "bus",
        "domain",
        "hw_root",
        "ide_stream_ida",
        "ide_stream_ids",
        "nr_ide_streams",
        "pci",
        "sysdata",
        "windows",
    )

    def __init__(
        self,
        pci: PciCore,
        domain: int,
        hw_root: HwBus,
        *,
        parent: Device | None = None,
        nr_ide_streams: int = 0,
        windows: Sequence[Resource] = (),
        sysdata: object = None,
    ) -> None:
        super().__init__(pci.core, f"pci{domain:04x}:{hw_root.number:02x}", parent=parent)
        self.groups = (IDE_HOST_BRIDGE_GROUP,)
        self.pci = pci
        self.domain = domain
        self.hw_root = hw_root
        self.windows = list(windows)
        """Address ranges that it forwards, already in the machine's tree of resources."""
        self.sysdata = sysdata
        """Mark of the driver that brought it."""
        self.nr_ide_streams = nr_ide_streams
        """Secure streams that the platform has for this bridge; 0 hides the attribute."""
        self.ide_stream_ida = Ida()
        self.ide_stream_ids = Ida()
        """Stream IDs in use; unique in a bridge (PCIe 7.0, 6.33.3)."""
        self.ide_stream_ids.reserve(PCI_IDE_STREAM_ID_RESERVED)
        self.bus: PciBus | None = None
