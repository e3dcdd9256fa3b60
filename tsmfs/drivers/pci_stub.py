# SPDX-License-Identifier: MIT
"""A PCI driver that takes a device and does nothing with it (drivers/pci/pci-stub.c)."""

from __future__ import annotations

from tsmfs.drivers.host import Host, HostModule
from tsmfs.kernel.module import LoadedModule
from tsmfs.pci.driver import pci_driver_register
from tsmfs.pci.pci_dev import PciDev, PciDriver


class PciStubDriver(PciDriver):
    """Takes what ``new_id`` or ``driver_override`` gives it."""

    __slots__ = ()

    def probe(self, dev: PciDev) -> None:
        """Claim the device."""
        dev.info("claimed by stub")


def _init(host: Host, module: LoadedModule) -> None:
    pci_driver_register(PciStubDriver(host.core, host.pci.bus_type, "pci-stub", module), module)


MODULE = HostModule("pci_stub", _init, "PCI driver that claims a device and leaves it alone")
