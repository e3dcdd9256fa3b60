# SPDX-License-Identifier: MIT
"""What PCI drivers call: registration, enabling, mapping (drivers/pci/pci-driver.c, devres.c)."""

from __future__ import annotations

import errno

from tsmfs.base.driver import driver_register, driver_unregister
from tsmfs.kernel.errors import fail
from tsmfs.kernel.module import LoadedModule
from tsmfs.kernel.resource import IORESOURCE_BUSY, IORESOURCE_MEM, Resource
from tsmfs.pci.pci_dev import PciDev, PciDriver
from tsmfs.pci.sysfs import pci_disable_device, pci_enable_device
from tsmfs.pci.tsm import PCI_MMIO_ENCRYPTED


def pci_driver_register(driver: PciDriver, module: LoadedModule) -> None:
    """Register *driver* for as long as *module* is loaded (``module_pci_driver()``)."""
    driver_register(driver)
    module.on_exit(lambda: driver_unregister(driver))


def pcim_enable_device(dev: PciDev) -> None:
    """Enable *dev* until its driver is unbound."""
    pci_enable_device(dev)
    dev.devres.callback(lambda: pci_disable_device(dev))


def pcim_iomap_region(dev: PciDev, bar: int, name: str) -> Resource:
    """Reserve and map a BAR for the driver *name* until it is unbound.

    EINVAL when there is no such BAR, or any part of it is private: this platform is not a
    confidential VM. EBUSY when somebody has it.
    """
    resource = dev.resource[bar]
    if resource is None or resource.parent is None:
        fail(errno.EINVAL, f"{dev.name}: no BAR {bar}")
    if _private(resource):
        fail(errno.EINVAL, f"{dev.name}: BAR {bar} is private")
    region = Resource(resource.start, resource.end, name, IORESOURCE_MEM | IORESOURCE_BUSY)
    resource.request(region)
    dev.devres.callback(region.remove)
    return region


def _private(resource: Resource) -> bool:
    above = resource.parent
    while above is not None:
        if above.name == PCI_MMIO_ENCRYPTED:
            return True
        above = above.parent
    return any(below.name == PCI_MMIO_ENCRYPTED for _, below in resource.walk())
