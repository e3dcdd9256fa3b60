# SPDX-License-Identifier: MIT
"""Software TSM, the host's side: sessions, keyed IDE streams and locked interfaces."""

from __future__ import annotations

import contextlib
import errno
from dataclasses import dataclass
from typing import TYPE_CHECKING

from tsmfs.base.faux import FauxDevice
from tsmfs.coco.tsm import TsmDevice
from tsmfs.drivers.host import Host, HostModule
from tsmfs.drivers.link_files import link_group, tsm_device
from tsmfs.drivers.soft_tsm import PREFERENCES, Preferences, preferences_of, reporting, world_of
from tsmfs.kernel.errors import fail
from tsmfs.kernel.module import LoadedModule
from tsmfs.pci import regs
from tsmfs.pci.evidence import EvidenceType
from tsmfs.pci.ide import (
    pci_ide_stream_alloc,
    pci_ide_stream_enable,
    pci_ide_stream_register,
    pci_ide_stream_release,
    pci_ide_stream_setup,
)
from tsmfs.pci.pci_dev import Ida, PciDev
from tsmfs.pci.regs import PciExpType
from tsmfs.pci.tsm import (
    PciTdi,
    PciTsm,
    PciTsmLinkOps,
    PciTsmPf0,
    PciTsmReqScope,
    TsmDev,
    is_pci_tsm_pf0,
    link_constructor,
    pf0_constructor,
)

if TYPE_CHECKING:
    from tsmfs.drivers.secure_world import Dsm, LockedInterface, SecureWorld
    from tsmfs.pci.ide_km import IdePort

NR_TSM_STREAMS = 255
"""Stream IDs that the platform has, over all bridges; 255 itself is reserved."""


@dataclass(frozen=True, slots=True)
class _Connection:
    dsm: Dsm
    undo: contextlib.ExitStack
    """What undoes connect, the last first."""


@dataclass(slots=True, eq=False)
class SoftTdi(PciTdi):
    """A function whose interface is locked."""

    interface: LockedInterface


class SoftLinkOps(PciTsmLinkOps):
    """Operations of the software link TSM."""

    def __init__(self, world: SecureWorld, preferences: Preferences) -> None:
        self._world = world
        self._preferences = preferences
        self._stream_ids = Ida()
        self._connections: dict[PciDev, _Connection] = {}

    def probe(self, tsm_dev: TsmDev, pdev: PciDev) -> PciTsm | None:
        """Take every device with a mailbox for SPDM in the clear and secured."""
        from tsmfs.drivers.secure_world import find_mailbox

        if not is_pci_tsm_pf0(pdev):
            return link_constructor(pdev, tsm_dev)
        if find_mailbox(pdev) is None:
            return None
        return pf0_constructor(pdev, tsm_dev)

    def connect(self, pdev: PciDev) -> None:
        """Authenticate the device, collect its evidence, and key a stream; all or nothing.

        Errors of the device as `tsmfs.drivers.secure_world.kernel_errors` has them; EBUSY without
        a free Stream ID, ENOMEM without a free stream, ENXIO when it does not become secure. A
        device that cannot have a stream gets a session alone.
        """
        tsm = pdev.tsm
        assert isinstance(tsm, PciTsmPf0)
        with contextlib.ExitStack() as undo, reporting(pdev, "connect"):
            dsm = self._world.open(pdev, self._preferences)
            undo.callback(self._world.close, dsm)
            evidence = dsm.evidence()
            self._connect_stream(pdev, dsm, tsm_device(tsm), undo)
            tsm.evidence.slot = dsm.slot
            tsm.evidence.update(dict(evidence))
            self._connections[pdev] = _Connection(dsm, undo.pop_all())

    def _connect_stream(
        self, pdev: PciDev, dsm: Dsm, tsm_dev: TsmDevice, undo: contextlib.ExitStack
    ) -> None:
        root_port = _key_holder(pdev)
        if root_port is None:
            return
        stream_id = self._stream_ids.alloc(NR_TSM_STREAMS)
        if stream_id is None:
            fail(errno.EBUSY)
        undo.callback(self._stream_ids.free, stream_id)
        ide = pci_ide_stream_alloc(pdev)
        if ide is None:
            fail(errno.ENOMEM)
        undo.callback(pci_ide_stream_release, ide)
        ide.stream_id = stream_id
        pci_ide_stream_register(ide)
        pci_ide_stream_setup(pdev, ide)
        pci_ide_stream_setup(ide.root_port, ide)
        tsm_dev.ide_stream_register(pdev.host_bridge)
        undo.callback(tsm_dev.ide_stream_unregister, pdev.host_bridge)
        undo.callback(dsm.unkey_stream, stream_id, root_port)
        dsm.key_stream(stream_id, root_port)
        pci_ide_stream_enable(ide.root_port, ide)
        pci_ide_stream_enable(pdev, ide)

    def disconnect(self, pdev: PciDev) -> None:
        """Undo :meth:`connect` in reverse: keys, stream, session."""
        self._connections.pop(pdev).undo.close()

    def _connection(self, tsm: PciTsm) -> _Connection:
        connection = self._connections.get(tsm.dsm_dev) if tsm.dsm_dev is not None else None
        if connection is None:
            fail(errno.ENXIO)
        return connection

    def bind(self, pdev: PciDev, kvm: object, tdi_id: int) -> PciTdi:
        """Lock the function's interface; its report is evidence from now on."""
        tsm = pdev.tsm
        assert tsm is not None
        connection = self._connection(tsm)
        with reporting(pdev, "bind"):
            interface = connection.dsm.lock(pdev)
            try:
                evidence = dict(tsm.evidence.objects) or dict(connection.dsm.evidence())
                tdi = SoftTdi(pdev, kvm, tdi_id, interface)
                tsm.evidence.slot = connection.dsm.slot
                tsm.evidence.update(evidence | {EvidenceType.REPORT: interface.report})
                return tdi
            except BaseException:
                connection.dsm.stop(interface)
                raise

    def unbind(self, tdi: PciTdi) -> None:
        """Unlock the interface."""
        assert isinstance(tdi, SoftTdi)
        tsm = tdi.pdev.tsm
        assert tsm is not None
        self._connection(tsm).dsm.stop(tdi.interface)
        # A function that is no DSM has nothing of its own to show without a report.
        own = tsm.evidence.objects if tsm.dsm_dev is tdi.pdev else {}
        tsm.evidence.update(_without_report(own))

    def guest_req(self, tdi: PciTdi, scope: PciTsmReqScope, request: bytes) -> bytes:
        """Pass a TDISP message of the guest to the device, and its answer back.

        EINVAL for what is none, or for another interface; EPERM for one that the scope excludes:
        INFO only asks, STATE_CHANGE may also start the interface.
        """
        assert isinstance(tdi, SoftTdi)
        tsm = tdi.pdev.tsm
        assert tsm is not None
        return self._connection(tsm).dsm.guest_request(
            tdi.interface, request, may_start=scope is PciTsmReqScope.STATE_CHANGE
        )

    def refresh_evidence(self, tsm: PciTsm, nonce: bytes) -> None:
        """Have the device sign its measurements over *nonce*, of 32 bytes (else EINVAL)."""
        connection = self._connection(tsm)
        if not tsm.evidence.objects:
            fail(errno.ENXIO, "no evidence without a bound TDI")
        with reporting(tsm.pdev, "refresh"):
            connection.dsm.refresh(tsm.evidence, nonce)


def _without_report(
    objects: dict[EvidenceType, bytes],
) -> dict[EvidenceType, bytes]:
    return {kind: data for kind, data in objects.items() if kind is not EvidenceType.REPORT}


def _key_holder(pdev: PciDev) -> IdePort | None:
    """The root port's keys of a device that can have a keyed stream, else None."""
    root_port = pdev.root_port
    if pdev.pcie_type is not PciExpType.ENDPOINT or not pdev.ide_cap or root_port is None:
        return None
    capability = pdev.config.read(pdev.ide_cap + regs.PCI_IDE_CAP, 4)
    if not capability & regs.PCI_IDE_CAP_IDE_KM:
        pdev.info("soft_link_tsm: no IDE_KM, the link stays without a stream")
        return None
    return root_port.hw.ide


def _init(host: Host, module: LoadedModule) -> None:
    ops = SoftLinkOps(world_of(host), preferences_of(host, module))

    def ask_state(pdev: PciDev, _: bytes) -> bytes:
        from tsmfs.drivers.secure_world import state_request

        return state_request(pdev)

    def probe(fdev: FauxDevice) -> None:
        tsm_dev = host.tsm.register(fdev, ops)
        fdev.devres.callback(lambda: host.tsm.unregister(tsm_dev))

    fdev = host.faux.create("soft_link_tsm", probe, [link_group(host, ask_state)])
    module.on_exit(lambda: host.faux.destroy(fdev))


MODULE = HostModule(
    "soft_link_tsm",
    _init,
    "Software TSM: platform link TSM driver",
    parameters=PREFERENCES,
    depends=("soft_tsm",),
)
