# SPDX-License-Identifier: MIT
"""The files of a link TSM's device by which functions are bound to a VM and asked for things.

They stand in for a VMM, as those of the samples do (samples/devsec/link_tsm.c).
"""

from __future__ import annotations

import errno
from collections.abc import Callable

from tsmfs.base.faux import FauxDevice
from tsmfs.base.kobject import Attribute, AttributeGroup
from tsmfs.coco.tsm import TsmDevice
from tsmfs.drivers.host import Host
from tsmfs.kernel.errors import fail
from tsmfs.pci.pci_dev import PciDev
from tsmfs.pci.tsm import PciTsm, PciTsmReqScope

KVM = object()
"""The one VM that functions are bound to here."""

GuestRequest = Callable[[PciDev, bytes], bytes]
"""What a guest asks of its function, from what was written to the file."""


def tsm_device(tsm: PciTsm) -> TsmDevice:
    """The class device of a context's TSM.

    Taken from the context: the first connect may come with the TSM's ``change`` uevent, before
    its registration has returned.
    """
    assert isinstance(tsm.tsm_dev, TsmDevice)
    return tsm.tsm_dev


def link_group(host: Host, guest_request: GuestRequest) -> AttributeGroup:
    """``tsm_bind``, ``tsm_unbind`` and ``tsm_request``, which take the name of a function.

    ENODEV when there is none of that name, ENXIO when this TSM does not hold it.
    """

    def held(fdev: FauxDevice, data: bytes) -> PciDev:
        pdev = host.pci.find_device(data.removesuffix(b"\n").decode("latin-1"))
        if pdev is None:
            fail(errno.ENODEV)
        tsm = pdev.tsm
        if tsm is None or tsm_device(tsm).parent_device is not fdev:
            fail(errno.ENXIO)
        return pdev

    def bind_store(fdev: FauxDevice, data: bytes) -> None:
        with host.pci.tsm_rwsem.read_interruptible():
            pdev = held(fdev, data)
            host.pci.tsm.bind(pdev, KVM, pdev.devid)

    def unbind_store(fdev: FauxDevice, data: bytes) -> None:
        with host.pci.tsm_rwsem.read_interruptible():
            host.pci.tsm.unbind(held(fdev, data))

    def request_store(fdev: FauxDevice, data: bytes) -> None:
        with host.pci.tsm_rwsem.read_interruptible():
            pdev = held(fdev, data)
            host.pci.tsm.guest_req(pdev, PciTsmReqScope.INFO, guest_request(pdev, data))

    return AttributeGroup(
        [
            Attribute("tsm_bind", 0o200, store=bind_store),
            Attribute("tsm_unbind", 0o200, store=unbind_store),
            Attribute("tsm_request", 0o200, store=request_store),
        ]
    )
