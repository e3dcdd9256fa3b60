# SPDX-License-Identifier: MIT
"""Sample devsec: a PCI driver that maps its device's memory, private or not."""

from __future__ import annotations

from typing import ClassVar

from tsmfs.drivers.devsec_bus import DEVSEC_DEVICE_ID, PCI_VENDOR_ID_INTEL
from tsmfs.drivers.host import Host, HostModule
from tsmfs.kernel.module import LoadedModule
from tsmfs.pci.driver import pci_driver_register, pcim_enable_device, pcim_iomap_region
from tsmfs.pci.pci_dev import PciDev, PciDeviceId, PciDriver


class DevsecPciDriver(PciDriver):
    """Binds only by ``driver_override``."""

    __slots__ = ()
    id_table: ClassVar = (PciDeviceId(PCI_VENDOR_ID_INTEL, DEVSEC_DEVICE_ID, override_only=True),)

    def probe(self, dev: PciDev) -> None:
        """Enable the device and map BAR 0; EINVAL when any of it is private."""
        pcim_enable_device(dev)
        pcim_iomap_region(dev, 0, self.name)


def _init(host: Host, module: LoadedModule) -> None:
    pci_driver_register(DevsecPciDriver(host.core, host.pci.bus_type, "devsec_pci", module), module)


MODULE = HostModule("devsec_pci", _init, "Device Security sample: secure PCI driver")
