# SPDX-License-Identifier: MIT
"""Sample devsec: a link TSM whose streams are real registers and whose sessions are not."""

from __future__ import annotations

import contextlib
import errno

from tsmfs.base.faux import FauxDevice
from tsmfs.coco.tsm import TsmDevice
from tsmfs.drivers.devsec_common import DevsecCommon, DevsecSysdata, blob_group, common_of
from tsmfs.drivers.host import Host, HostModule
from tsmfs.drivers.link_files import link_group, tsm_device
from tsmfs.kernel.errors import fail
from tsmfs.kernel.module import LoadedModule, Param, ParamType
from tsmfs.pci import regs
from tsmfs.pci.ide import (
    PciIde,
    pci_ide_stream_alloc,
    pci_ide_stream_enable,
    pci_ide_stream_register,
    pci_ide_stream_release,
    pci_ide_stream_setup,
)
from tsmfs.pci.pci_dev import Ida, PciDev
from tsmfs.pci.regs import PciExpType
from tsmfs.pci.tsm import (
    PCI_VENDOR_ID_PCI_SIG,
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

NR_TSM_STREAMS = 4
"""Stream IDs that the platform has, over all bridges."""


class DevsecLinkOps(PciTsmLinkOps):
    """Operations of the sample link TSM."""

    def __init__(self, common: DevsecCommon, *, all_bridges: bool) -> None:
        self._common = common
        self._all_bridges = all_bridges
        self._stream_ids = Ida()
        self._streams: dict[PciDev, PciIde] = {}

    def probe(self, tsm_dev: TsmDev, pdev: PciDev) -> PciTsm | None:
        """Take only functions of the sample's own bridges, unless told otherwise."""
        if not self._all_bridges and not isinstance(pdev.host_bridge.sysdata, DevsecSysdata):
            return None
        if is_pci_tsm_pf0(pdev):
            return pf0_constructor(pdev, tsm_dev)
        return link_constructor(pdev, tsm_dev)

    def connect(self, pdev: PciDev) -> None:
        """Set up a stream step by step; each step registers what undoes it.

        EIO when the mailbox does not answer, EBUSY without a free Stream ID, ENOMEM without a
        free stream, ENXIO when the endpoint does not become secure. A device that cannot have a
        stream gets a session alone.
        """
        tsm = pdev.tsm
        assert isinstance(tsm, PciTsmPf0)
        # All that there is of a session: the sample's devices have no SPDM responder.
        tsm.doe_mb.exchange(PCI_VENDOR_ID_PCI_SIG, regs.PCI_DOE_FEATURE_DISCOVERY, bytes(4))
        with contextlib.ExitStack() as undo:
            self._common.get()
            undo.callback(self._common.put)
            if pdev.pcie_type is PciExpType.ENDPOINT and pdev.ide_cap:
                self._streams[pdev] = self._connect_stream(pdev, tsm_device(tsm), undo)
                undo.callback(self._streams.pop, pdev)
            self._common.present(tsm.evidence)
            undo.pop_all()

    def _connect_stream(
        self, pdev: PciDev, tsm_dev: TsmDevice, undo: contextlib.ExitStack
    ) -> PciIde:
        stream_id = self._stream_ids.alloc(NR_TSM_STREAMS)
        if stream_id is None:
            fail(errno.EBUSY)
        undo.callback(lambda: self._stream_ids.free(stream_id))
        ide = pci_ide_stream_alloc(pdev)
        if ide is None:
            fail(errno.ENOMEM)
        undo.callback(lambda: pci_ide_stream_release(ide))
        ide.stream_id = stream_id
        pci_ide_stream_register(ide)
        pci_ide_stream_setup(pdev, ide)
        pci_ide_stream_setup(ide.root_port, ide)
        tsm_dev.ide_stream_register(pdev.host_bridge)
        undo.callback(lambda: tsm_dev.ide_stream_unregister(pdev.host_bridge))
        pci_ide_stream_enable(pdev, ide)
        return ide

    def disconnect(self, pdev: PciDev) -> None:
        """Undo :meth:`connect` in reverse."""
        ide = self._streams.pop(pdev, None)
        if ide is not None:
            assert pdev.tsm is not None
            tsm_device(pdev.tsm).ide_stream_unregister(pdev.host_bridge)
            pci_ide_stream_release(ide)
            self._stream_ids.free(ide.stream_id)
        self._common.put()

    def bind(self, pdev: PciDev, kvm: object, tdi_id: int) -> PciTdi:
        """Nothing but the record: the sample has no VM."""
        return PciTdi(pdev, kvm, tdi_id)

    def guest_req(self, tdi: PciTdi, scope: PciTsmReqScope, request: bytes) -> bytes:
        """Take the request and answer nothing."""
        return b""


def _init(host: Host, module: LoadedModule) -> None:
    common = common_of(host)
    ops = DevsecLinkOps(common, all_bridges=module.params["all_bridges"] is True)

    def probe(fdev: FauxDevice) -> None:
        tsm_dev = host.tsm.register(fdev, ops)
        fdev.devres.callback(lambda: host.tsm.unregister(tsm_dev))

    group = link_group(host, lambda pdev, data: data)
    fdev = host.faux.create("devsec_link_tsm", probe, [group, blob_group(common)])
    module.on_exit(lambda: host.faux.destroy(fdev))


MODULE = HostModule(
    "devsec_link_tsm",
    _init,
    "Device Security sample: platform link TSM driver",
    parameters=(
        Param(
            "all_bridges",
            ParamType.BOOL,
            False,
            "connect devices of every host bridge, not only of devsec_bus",
        ),
    ),
    depends=("devsec_common",),
)
