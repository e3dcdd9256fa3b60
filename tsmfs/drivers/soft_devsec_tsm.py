# SPDX-License-Identifier: MIT
"""Software TSM, the guest's side: locks, evidence and private memory of a confidential VM."""

from __future__ import annotations

import contextlib
from dataclasses import dataclass
from typing import TYPE_CHECKING

from tsmfs.base.faux import FauxDevice
from tsmfs.drivers.host import Host, HostModule
from tsmfs.drivers.soft_tsm import PREFERENCES, Preferences, preferences_of, reporting, world_of
from tsmfs.kernel.module import LoadedModule
from tsmfs.kernel.resource import Resource
from tsmfs.pci.evidence import EvidenceType
from tsmfs.pci.pci_dev import PciDev
from tsmfs.pci.tsm import (
    PciTsm,
    PciTsmDevsec,
    PciTsmDevsecOps,
    TsmDev,
    encrypt_ranges,
    free_encrypted_resources,
)

if TYPE_CHECKING:
    from tsmfs.drivers.secure_world import Dsm, LockedInterface, SecureWorld


@dataclass(slots=True, eq=False, kw_only=True)
class SoftDevsec(PciTsmDevsec):
    """Context of a function whose interface the guest had locked."""

    dsm: Dsm
    interface: LockedInterface


class SoftDevsecOps(PciTsmDevsecOps):
    """Operations of the software devsec TSM."""

    def __init__(self, world: SecureWorld, preferences: Preferences, iomem: Resource) -> None:
        self._world = world
        self._preferences = preferences
        self._iomem = iomem

    def lock(self, tsm_dev: TsmDev, pdev: PciDev) -> PciTsmDevsec:
        """Lock the interface and collect the evidence; all or nothing.

        The host's part is out of a guest's sight: if nobody connected the device, the platform
        opens a session by itself, with this module's parameters. Errors of the device as
        `tsmfs.drivers.secure_world.kernel_errors` has them; ENXIO without a security manager.
        """
        with contextlib.ExitStack() as undo, reporting(pdev, "lock"):
            dsm = self._world.open_for(pdev, self._preferences)
            undo.callback(self._world.close, dsm)
            interface = dsm.lock(pdev)
            undo.callback(dsm.stop, interface)
            evidence = dict(dsm.evidence()) | {EvidenceType.REPORT: interface.report}
            tsm = SoftDevsec(pdev, tsm_dev, dsm=dsm, interface=interface)
            tsm.evidence.slot = dsm.slot
            tsm.evidence.update(evidence)
            undo.pop_all()
            return tsm

    def unlock(self, tsm: PciTsmDevsec) -> None:
        """Make the function's memory shared again, then unlock its interface."""
        assert isinstance(tsm, SoftDevsec)
        free_encrypted_resources(tsm)
        tsm.dsm.stop(tsm.interface)
        self._world.close(tsm.dsm)

    def accept(self, pdev: PciDev) -> None:
        """Start the interface; the ranges of its report are private from then on.

        EINVAL for a report that does not fit the function's BARs, EIO when it is not locked any
        more, and other errors of the device.
        """
        tsm = pdev.tsm
        assert isinstance(tsm, SoftDevsec)
        with reporting(pdev, "accept"):
            encrypt_ranges(tsm, self._iomem, tsm.interface.private_ranges())
            try:
                tsm.dsm.start(tsm.interface)
            except BaseException:
                free_encrypted_resources(tsm)
                raise

    def refresh_evidence(self, tsm: PciTsm, nonce: bytes) -> None:
        """Have the device sign its measurements over *nonce*, of 32 bytes (else EINVAL)."""
        assert isinstance(tsm, SoftDevsec)
        with reporting(tsm.pdev, "refresh"):
            tsm.dsm.refresh(tsm.evidence, nonce)


def _init(host: Host, module: LoadedModule) -> None:
    ops = SoftDevsecOps(world_of(host), preferences_of(host, module), host.pci.iomem)

    def probe(fdev: FauxDevice) -> None:
        tsm_dev = host.tsm.register(fdev, ops)
        fdev.devres.callback(lambda: host.tsm.unregister(tsm_dev))

    fdev = host.faux.create("soft_devsec_tsm", probe)
    module.on_exit(lambda: host.faux.destroy(fdev))


MODULE = HostModule(
    "soft_devsec_tsm",
    _init,
    "Software TSM: device security TSM driver",
    parameters=PREFERENCES,
    depends=("soft_tsm",),
)
