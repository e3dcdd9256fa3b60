# SPDX-License-Identifier: MIT
"""A PCI driver for physical functions that only provide VFs (drivers/pci/pci-pf-stub.c)."""

from __future__ import annotations

from tsmfs.drivers.host import Host, HostModule
from tsmfs.kernel.module import LoadedModule
from tsmfs.pci.driver import pci_driver_register
from tsmfs.pci.iov import pci_sriov_configure_simple
from tsmfs.pci.pci_dev import PciDev, PciDriver


class PciPfStubDriver(PciDriver):
    """Takes what ``new_id`` or ``driver_override`` gives it; ``sriov_numvfs`` works then."""

    __slots__ = ()

    def probe(self, dev: PciDev) -> None:
        """Claim the physical function."""
        dev.info("claimed by pf-stub")

    def sriov_configure(self, dev: PciDev, num_vfs: int) -> int:
        """All that is asked for."""
        return pci_sriov_configure_simple(dev, num_vfs)


def _init(host: Host, module: LoadedModule) -> None:
    pci_driver_register(
        PciPfStubDriver(host.core, host.pci.bus_type, "pci-pf-stub", module), module
    )


MODULE = HostModule("pci_pf_stub", _init, "PCI driver that lets a physical function have VFs")
