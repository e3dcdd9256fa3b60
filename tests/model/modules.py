# SPDX-License-Identifier: MIT
"""Modules that only tests load: a second TSM of each mode, and one without PCI operations."""

from __future__ import annotations

import errno
from typing import Any

from tsmfs.base.faux import FauxDevice
from tsmfs.base.kobject import Attribute, AttributeGroup
from tsmfs.coco.tsm import TsmDevice
from tsmfs.drivers.devsec_common import blob_group, common_of
from tsmfs.drivers.devsec_link_tsm import DevsecLinkOps
from tsmfs.drivers.devsec_tsm import DevsecOps
from tsmfs.drivers.host import Host, HostModule
from tsmfs.kernel.errors import fail
from tsmfs.kernel.module import LoadedModule
from tsmfs.pci.pci_dev import PciDev

_VMS = {name: object() for name in ("vm0", "vm1")}


def _register(
    host: Host, module: LoadedModule, ops: Any, groups: list[AttributeGroup]
) -> FauxDevice:
    def probe(fdev: FauxDevice) -> None:
        tsm_dev = host.tsm.register(fdev, ops)
        fdev.devres.callback(lambda: host.tsm.unregister(tsm_dev))

    fdev = host.faux.create(module.name, probe, groups)
    module.on_exit(lambda: host.faux.destroy(fdev))
    return fdev


def _link_init(host: Host, module: LoadedModule) -> None:
    ops = DevsecLinkOps(common_of(host), all_bridges=True)

    def held(fdev: FauxDevice, name: str) -> PciDev:
        pdev = host.pci.find_device(name) or fail(errno.ENODEV)
        tsm_dev = pdev.tsm.tsm_dev if pdev.tsm is not None else None
        if not isinstance(tsm_dev, TsmDevice) or tsm_dev.parent_device is not fdev:
            fail(errno.ENXIO)
        return pdev

    def bind(fdev: FauxDevice, data: bytes) -> None:
        name, vm = data.decode().split()
        pdev = held(fdev, name)
        host.pci.tsm.bind(pdev, _VMS[vm], pdev.devid)

    def unbind(fdev: FauxDevice, data: bytes) -> None:
        host.pci.tsm.unbind(held(fdev, data.decode().strip()))

    files = AttributeGroup(
        [
            Attribute("tsm_bind", 0o200, store=bind),
            Attribute("tsm_unbind", 0o200, store=unbind),
        ]
    )
    _register(host, module, ops, [files, blob_group(common_of(host))])


def _devsec_init(host: Host, module: LoadedModule) -> None:
    ops = DevsecOps(common_of(host), host.pci.iomem)
    _register(host, module, ops, [blob_group(common_of(host))])


def _plain_init(host: Host, module: LoadedModule) -> None:
    _register(host, module, None, [])


TEST_MODULES = (
    HostModule("test_link_tsm", _link_init, "Another link TSM", depends=("devsec_common",)),
    HostModule("test_devsec_tsm", _devsec_init, "Another devsec TSM", depends=("devsec_common",)),
    HostModule("test_plain_tsm", _plain_init, "A TSM without PCI operations"),
)
"""To be put among the modules that a machine has available."""
