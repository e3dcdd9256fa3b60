# SPDX-License-Identifier: MIT
"""A vendor's link TSM: it connects devices of every host bridge, each with a stream if it can."""

from __future__ import annotations

import contextlib
import errno

from tsmfs.base.faux import FauxDevice
from tsmfs.coco.tsm import TsmDevice
from tsmfs.drivers.host import Host, HostModule
from tsmfs.kernel.errors import fail
from tsmfs.kernel.module import LoadedModule, Param, ParamType
from tsmfs.pci.ide import (
    PCI_IDE_STREAM_ID_RESERVED,
    pci_ide_stream_alloc,
    pci_ide_stream_disable,
    pci_ide_stream_enable,
    pci_ide_stream_free,
    pci_ide_stream_register,
    pci_ide_stream_setup,
    pci_ide_stream_teardown,
    pci_ide_stream_unregister,
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

DOE_DISCOVERY = 0
"""Type of the DOE protocol that every mailbox answers (PCIe 7.0, 6.30.1.1)."""


class VendorLinkOps(PciTsmLinkOps):
    """Operations of the vendor's TSM, which has *streams* Stream IDs over all host bridges."""

    def __init__(self, streams: int) -> None:
        self._streams = streams
        self._stream_ids = Ida()
        self._connected: dict[PciDev, contextlib.ExitStack] = {}
        """What undoes the connection of each DSM."""

    def probe(self, tsm_dev: TsmDev, pdev: PciDev) -> PciTsm | None:
        """A DSM gets a context with its mailbox, every other function one that names its DSM."""
        if is_pci_tsm_pf0(pdev):
            return pf0_constructor(pdev, tsm_dev)
        return link_constructor(pdev, tsm_dev)

    def connect(self, pdev: PciDev) -> None:
        """Open a session, then set up a stream where the device can have one.

        EBUSY without a free Stream ID, ENOMEM without a free stream, ENXIO when an end does not
        become secure, and what the mailbox raises.
        """
        context = pdev.tsm
        assert isinstance(context, PciTsmPf0)
        with contextlib.ExitStack() as undo:
            self._open_session(context)
            undo.callback(pdev.info, "vendor_tsm: session closed")
            if pdev.pcie_type is PciExpType.ENDPOINT and pdev.ide_cap:
                self._connect_stream(context, undo)
            self._connected[pdev] = undo.pop_all()

    def disconnect(self, pdev: PciDev) -> None:
        """Run what connect left to undo, last step first."""
        self._connected.pop(pdev).close()

    def bind(self, pdev: PciDev, kvm: object, tdi_id: int) -> PciTdi:
        """Only the record: the example has no VM to assign the function to."""
        return PciTdi(pdev, kvm, tdi_id)

    def guest_req(self, tdi: PciTdi, scope: PciTsmReqScope, request: bytes) -> bytes:
        """Answer a guest that asks with its own words."""
        return request

    def _open_session(self, context: PciTsmPf0) -> None:
        # A real driver begins SPDM here. The first entry of DOE discovery is there in any case.
        context.doe_mb.exchange(PCI_VENDOR_ID_PCI_SIG, DOE_DISCOVERY, bytes(4))
        context.pdev.info("vendor_tsm: session open")

    def _connect_stream(self, context: PciTsmPf0, undo: contextlib.ExitStack) -> None:
        pdev, tsm_dev = context.pdev, context.tsm_dev
        assert isinstance(tsm_dev, TsmDevice)
        stream_id = self._stream_ids.alloc(self._streams)
        if stream_id is None:
            fail(errno.EBUSY, "no Stream ID is free")
        undo.callback(self._stream_ids.free, stream_id)

        ide = pci_ide_stream_alloc(pdev)
        if ide is None:
            fail(errno.ENOMEM, "host bridge, root port or endpoint has no free stream")
        undo.callback(pci_ide_stream_free, ide)

        ide.stream_id = stream_id
        pci_ide_stream_register(ide)
        undo.callback(pci_ide_stream_unregister, ide)

        for port in (pdev, ide.root_port):
            pci_ide_stream_setup(port, ide)
            undo.callback(pci_ide_stream_teardown, port, ide)

        tsm_dev.ide_stream_register(pdev.host_bridge)
        undo.callback(tsm_dev.ide_stream_unregister, pdev.host_bridge)

        for port in (pdev, ide.root_port):
            # Registered first: a port that fails to become secure has its enable bit set.
            undo.callback(pci_ide_stream_disable, port, ide)
            pci_ide_stream_enable(port, ide)


def _init(host: Host, module: LoadedModule) -> None:
    streams = module.params["streams"]
    assert isinstance(streams, int)
    if not 0 < streams <= PCI_IDE_STREAM_ID_RESERVED:
        fail(errno.EINVAL, f"streams={streams}")
    ops = VendorLinkOps(streams)

    def probe(fdev: FauxDevice) -> None:
        tsm_dev = host.tsm.register(fdev, ops)
        fdev.devres.callback(lambda: host.tsm.unregister(tsm_dev))

    fdev = host.faux.create("vendor_tsm", probe)
    module.on_exit(lambda: host.faux.destroy(fdev))


MODULE = HostModule(
    "vendor_tsm",
    _init,
    "Example: a vendor's link TSM",
    parameters=(Param("streams", ParamType.INT, 4, "Stream IDs that the platform has, 1 to 255"),),
)
