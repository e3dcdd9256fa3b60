# SPDX-License-Identifier: MIT
"""SR-IOV: virtual functions come and go (drivers/pci/iov.c; PCIe 7.0, 9)."""

from __future__ import annotations

import errno
from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

from tsmfs.base.kobject import AnyAttribute, Attribute, AttributeGroup
from tsmfs.base.uevent import Action
from tsmfs.kernel.errors import fail
from tsmfs.kernel.module import kstrtobool
from tsmfs.kernel.resource import Resource
from tsmfs.pci import regs
from tsmfs.pci.bars import read_bases
from tsmfs.pci.capability import find_ext_capability
from tsmfs.pci.config import set_bar_address
from tsmfs.pci.kstrto import kstrtouint
from tsmfs.pci.pci_dev import PCI_IOV_RESOURCES, PciDev, PciDriver

if TYPE_CHECKING:
    from tsmfs.pci.core import PciCore


@dataclass(slots=True, eq=False)
class PciSriov:
    """``struct pci_sriov`` of a physical function."""

    pci: PciCore
    pos: int
    total_vfs: int
    offset: int
    stride: int
    vf_device: int
    num_vfs: int = 0
    drivers_autoprobe: bool = True
    virtfns: list[PciDev] = field(default_factory=list)

    def rid_offset(self, index: int) -> int:
        """Requester ID of virtual function *index* less that of the physical function."""
        return self.offset + self.stride * index

    def bars(self, pf: PciDev) -> Iterator[tuple[int, Resource]]:
        """Number and whole range (all virtual functions') of each VF BAR."""
        for number in range(6):
            resource = pf.resource[PCI_IOV_RESOURCES + number]
            if resource is not None:
                yield number, resource


def pci_iov_init(pci: PciCore, dev: PciDev) -> None:
    """Read the SR-IOV capability of a new physical function (``pci_iov_init()``)."""
    if not dev.is_pcie or dev.is_virtfn:
        return
    pos = find_ext_capability(dev.config, regs.PCI_EXT_CAP_ID_SRIOV)
    if not pos:
        return
    config = dev.config
    total = config.read(pos + regs.PCI_SRIOV_TOTAL_VF, 2)
    if not total:
        return
    dev.sriov = PciSriov(
        pci,
        pos,
        total,
        config.read(pos + regs.PCI_SRIOV_VF_OFFSET, 2),
        config.read(pos + regs.PCI_SRIOV_VF_STRIDE, 2),
        config.read(pos + regs.PCI_SRIOV_VF_DID, 2),
    )
    for index, start, size, flags in read_bases(config, pos + regs.PCI_SRIOV_BAR, 6):
        whole = Resource(start, start + size * total - 1, dev.name, flags)
        pci.claim(dev, PCI_IOV_RESOURCES + index, whole)


def pci_enable_sriov(dev: PciDev, num_vfs: int) -> None:
    """Enable *num_vfs* virtual functions and add them (``pci_enable_sriov()``).

    ENODEV for a function without SR-IOV, EINVAL for too many. All or none: when one cannot be
    added, those before it are removed again.
    """
    sriov = dev.sriov
    if sriov is None:
        fail(errno.ENODEV)
    if sriov.num_vfs:
        fail(errno.EINVAL)
    if not 0 < num_vfs <= sriov.total_vfs:
        fail(errno.EINVAL)
    sriov.num_vfs = num_vfs
    _start_vfs(dev, sriov)
    try:
        for index in range(num_vfs):
            vf = sriov.pci.add_virtfn(dev, sriov, index)
            sriov.virtfns.append(vf)
            dev.create_link(vf, f"virtfn{index}")
            vf.create_link(dev, "physfn")
            vf.uevent(Action.CHANGE)
            sriov.pci.bus_add_device(vf)
    except BaseException:
        pci_disable_sriov(sriov.pci, dev)
        raise
    dev.uevent(Action.CHANGE)


def _start_vfs(dev: PciDev, sriov: PciSriov) -> None:
    config = dev.config
    config.write(sriov.pos + regs.PCI_SRIOV_NUM_VF, 2, sriov.num_vfs)
    config.write(
        sriov.pos + regs.PCI_SRIOV_CTRL,
        2,
        config.read(sriov.pos + regs.PCI_SRIOV_CTRL, 2)
        | regs.PCI_SRIOV_CTRL_VFE
        | regs.PCI_SRIOV_CTRL_MSE,
    )


def pci_restore_iov_state(dev: PciDev) -> None:
    """Write again what a reset of *dev* cleared (``pci_restore_iov_state()``)."""
    sriov = dev.sriov
    if sriov is None:
        return
    for number, whole in sriov.bars(dev):
        set_bar_address(dev.config, number, whole.start, sriov.pos + regs.PCI_SRIOV_BAR)
    if sriov.num_vfs:
        _start_vfs(dev, sriov)


def pci_disable_sriov(pci: PciCore, dev: PciDev) -> None:
    """Remove all virtual functions of *dev* (``pci_disable_sriov()``)."""
    sriov = dev.sriov
    if sriov is None:
        return
    for vf in reversed(list(sriov.virtfns)):
        pci.stop_and_remove(vf)
    config = dev.config
    control = config.read(sriov.pos + regs.PCI_SRIOV_CTRL, 2)
    config.write(
        sriov.pos + regs.PCI_SRIOV_CTRL,
        2,
        control & ~(regs.PCI_SRIOV_CTRL_VFE | regs.PCI_SRIOV_CTRL_MSE),
    )
    config.write(sriov.pos + regs.PCI_SRIOV_NUM_VF, 2, 0)
    sriov.num_vfs = 0


def pci_iov_remove_virtfn_links(vf: PciDev) -> None:
    """A virtual function goes, with its siblings or by its own ``remove``: no link may dangle."""
    pf = vf.physfn
    sriov = pf.sriov if pf is not None else None
    if pf is None or sriov is None or vf not in sriov.virtfns:
        return
    pf.remove_link(f"virtfn{vf.vf_index}")
    vf.remove_link("physfn")
    sriov.virtfns.remove(vf)


def pci_sriov_configure_simple(dev: PciDev, num_vfs: int) -> int:
    """A driver's ``sriov_configure`` that needs to do nothing itself."""
    sriov = _sriov(dev)
    if num_vfs:
        pci_enable_sriov(dev, num_vfs)
    else:
        pci_disable_sriov(sriov.pci, dev)
    return num_vfs


def _sriov(dev: PciDev) -> PciSriov:
    if dev.sriov is None:
        fail(errno.ENODEV)
    return dev.sriov


def _numvfs_store(dev: PciDev, data: bytes) -> None:
    try:
        num_vfs = kstrtouint(data, bits=16)
    except OSError:
        fail(errno.EINVAL)
    sriov = _sriov(dev)
    if num_vfs > sriov.total_vfs:
        fail(errno.ERANGE)
    # Functions arrive: what that needs is taken before the device lock, in the order of all locks.
    with sriov.pci.changing_topology_killable(), dev.lock.lock_interruptible():
        if dev.dead:
            fail(errno.ENODEV)
        if num_vfs == sriov.num_vfs:
            return
        driver = dev.driver
        if driver is None:
            dev.info("no driver bound to device; cannot configure SR-IOV")
            fail(errno.ENOENT)
        if (
            not isinstance(driver, PciDriver)
            or type(driver).sriov_configure is PciDriver.sriov_configure
        ):
            dev.info("driver does not support SR-IOV configuration via sysfs")
            fail(errno.ENOENT)
        if num_vfs and sriov.num_vfs:
            dev.warn(f"{sriov.num_vfs} VFs already enabled. Disable before enabling {num_vfs} VFs")
            fail(errno.EBUSY)
        enabled = driver.sriov_configure(dev, num_vfs)
        if enabled != num_vfs:
            dev.warn(f"{num_vfs} VFs requested; only {enabled} enabled")


def _autoprobe_store(dev: PciDev, data: bytes) -> None:
    _sriov(dev).drivers_autoprobe = kstrtobool(data.decode("latin-1"))


def _msix_count_store(dev: PciDev, data: bytes) -> None:
    # No emulated PF driver sizes the MSI-X tables of its virtual functions.
    kstrtouint(data, bits=31)
    fail(errno.EOPNOTSUPP)


SRIOV_PF_GROUP = AttributeGroup(
    [
        Attribute("sriov_totalvfs", 0o444, lambda dev: f"{_sriov(dev).total_vfs}\n"),
        Attribute("sriov_numvfs", 0o644, lambda dev: f"{_sriov(dev).num_vfs}\n", _numvfs_store),
        Attribute("sriov_offset", 0o444, lambda dev: f"{_sriov(dev).offset}\n"),
        Attribute("sriov_stride", 0o444, lambda dev: f"{_sriov(dev).stride}\n"),
        Attribute("sriov_vf_device", 0o444, lambda dev: f"{_sriov(dev).vf_device:x}\n"),
        Attribute(
            "sriov_drivers_autoprobe",
            0o644,
            lambda dev: f"{_sriov(dev).drivers_autoprobe:d}\n",
            _autoprobe_store,
        ),
        Attribute("sriov_vf_total_msix", 0o444, lambda dev: "0\n"),
    ],
    is_visible=lambda dev, attr: attr.mode if dev.sriov is not None else 0,
)


def _vf_visible(dev: PciDev, attr: AnyAttribute) -> int:
    return attr.mode if dev.is_virtfn else 0


SRIOV_VF_GROUP = AttributeGroup(
    [Attribute("sriov_vf_msix_count", 0o200, store=_msix_count_store)], is_visible=_vf_visible
)
