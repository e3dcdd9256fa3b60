# SPDX-License-Identifier: MIT
"""Sample devsec: a devsec TSM, as inside a confidential VM."""

from __future__ import annotations

import contextlib

from tsmfs.base.faux import FauxDevice
from tsmfs.drivers.devsec_common import DevsecCommon, blob_group, common_of
from tsmfs.drivers.host import Host, HostModule
from tsmfs.kernel.module import LoadedModule
from tsmfs.kernel.resource import Resource
from tsmfs.pci.pci_dev import PciDev
from tsmfs.pci.tsm import (
    PciTsmDevsec,
    PciTsmDevsecOps,
    TsmDev,
    encrypt_memory_bars,
    free_encrypted_resources,
)


class DevsecOps(PciTsmDevsecOps):
    """Operations of the sample devsec TSM."""

    def __init__(self, common: DevsecCommon, iomem: Resource) -> None:
        self._common = common
        self._iomem = iomem

    def lock(self, tsm_dev: TsmDev, pdev: PciDev) -> PciTsmDevsec:
        """Only the record: the sample's device has no TDISP state."""
        with contextlib.ExitStack() as undo:
            self._common.get()
            undo.callback(self._common.put)
            tsm = PciTsmDevsec(pdev, tsm_dev)
            self._common.present(tsm.evidence)
            undo.pop_all()
            return tsm

    def unlock(self, tsm: PciTsmDevsec) -> None:
        """Make the function's memory shared again."""
        free_encrypted_resources(tsm)
        self._common.put()

    def accept(self, pdev: PciDev) -> None:
        """Mark every memory BAR of the function private."""
        assert isinstance(pdev.tsm, PciTsmDevsec)
        encrypt_memory_bars(pdev.tsm, self._iomem)


def _init(host: Host, module: LoadedModule) -> None:
    common = common_of(host)
    ops = DevsecOps(common, host.pci.iomem)

    def probe(fdev: FauxDevice) -> None:
        tsm_dev = host.tsm.register(fdev, ops)
        fdev.devres.callback(lambda: host.tsm.unregister(tsm_dev))

    fdev = host.faux.create("devsec_tsm", probe, [blob_group(common)])
    module.on_exit(lambda: host.faux.destroy(fdev))


MODULE = HostModule(
    "devsec_tsm",
    _init,
    "Device Security sample: device security TSM driver",
    depends=("devsec_common",),
)
