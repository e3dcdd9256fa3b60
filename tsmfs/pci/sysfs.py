# SPDX-License-Identifier: MIT
"""What a PCI function, bus and bus type show in sysfs (drivers/pci/pci-sysfs.c)."""

from __future__ import annotations

import errno
from collections.abc import Callable, Sequence
from functools import lru_cache
from typing import TYPE_CHECKING

from tsmfs.base.cpu import cpulist, cpumap
from tsmfs.base.kobject import AnyAttribute, Attribute, AttributeGroup, BinAttribute
from tsmfs.kernel.errors import fail
from tsmfs.kernel.resource import IORESOURCE_IO, IORESOURCE_PREFETCH
from tsmfs.kernel.task import CAP_SYS_ADMIN, current
from tsmfs.pci import regs
from tsmfs.pci.iov import SRIOV_PF_GROUP, SRIOV_VF_GROUP
from tsmfs.pci.kstrto import kstrtoint, kstrtouint
from tsmfs.pci.pci_dev import (
    DEVICE_COUNT_RESOURCE,
    PCI_BRIDGE_RESOURCES,
    PciBus,
    PciDev,
)
from tsmfs.pci.reset import pci_reset_function, set_reset_methods
from tsmfs.pci.tsm import PCI_TSM_ATTR_GROUP, PCI_TSM_AUTH_ATTR_GROUP

if TYPE_CHECKING:
    from tsmfs.pci.core import PciBusType, PciCore

_PAGE_SIZE = 4096


def _pci(dev: PciDev) -> PciCore:
    return dev.host_bridge.pci


def _require_admin() -> None:
    if not current().capable(CAP_SYS_ADMIN):
        fail(errno.EPERM)


def _resource_show(dev: PciDev) -> str:
    count = DEVICE_COUNT_RESOURCE if dev.subordinate is not None else PCI_BRIDGE_RESOURCES
    lines = []
    for resource in dev.resource[:count]:
        start, end, flags = (
            (resource.start, resource.end, resource.flags) if resource else (0, 0, 0)
        )
        lines.append(f"0x{start:016x} 0x{end:016x} 0x{flags:016x}\n")
    return "".join(lines)


def _bool_field(name: str) -> Callable[[PciDev, bytes], None]:
    def store(dev: PciDev, data: bytes) -> None:
        setattr(dev, name, _truth(data))

    return store


def _enable_store(dev: PciDev, data: bytes) -> None:
    _require_admin()
    value = _truth(data)
    with dev.lock.lock_interruptible():
        if dev.driver is not None:
            fail(errno.EBUSY)
        if value:
            pci_enable_device(dev)
        elif dev.enable_cnt:
            pci_disable_device(dev)
        else:
            fail(errno.EIO)


def pci_enable_device(dev: PciDev) -> None:
    """Let *dev* decode its BARs; counted (``pci_enable_device()``)."""
    dev.enable_cnt += 1
    if dev.enable_cnt > 1:
        return
    command = dev.config.read(regs.PCI_COMMAND, 2)
    for _, resource in dev.bars():
        command |= (
            regs.PCI_COMMAND_IO if resource.flags & IORESOURCE_IO else regs.PCI_COMMAND_MEMORY
        )
    dev.config.write(regs.PCI_COMMAND, 2, command)


def pci_disable_device(dev: PciDev) -> None:
    """Undo one :func:`pci_enable_device`; the last one ends bus mastering."""
    dev.enable_cnt -= 1
    if not dev.enable_cnt:
        command = dev.config.read(regs.PCI_COMMAND, 2)
        dev.config.write(regs.PCI_COMMAND, 2, command & ~regs.PCI_COMMAND_MASTER)


def _numa_node_store(dev: PciDev, data: bytes) -> None:
    _require_admin()
    try:
        node = kstrtoint(data)
    except OSError:
        fail(errno.EINVAL)
    if node not in (-1, 0):
        fail(errno.EINVAL)
    dev.numa_node = node


def _msi_bus_store(dev: PciDev, data: bytes) -> None:
    _require_admin()
    value = _truth(data)
    dev.no_msi = not value
    dev.info(f"MSI/MSI-X {'allowed' if value else 'disallowed'} for future drivers")


def _driver_override_store(dev: PciDev, data: bytes) -> None:
    if len(data) >= _PAGE_SIZE - 1:
        fail(errno.EINVAL)
    text = data.split(b"\n")[0].split(b"\0")[0].decode("latin-1")
    with dev.lock.lock_interruptible():
        dev.driver_override = text or None


def _number(data: bytes) -> int:
    # These files tell a number that is too large from none as little as Linux' do.
    try:
        return kstrtouint(data)
    except OSError:
        fail(errno.EINVAL)


def _truth(data: bytes) -> bool:
    return bool(_number(data))


def _remove_store(dev: PciDev, data: bytes) -> None:
    if _truth(data):
        with _pci(dev).changing_topology_killable():
            _pci(dev).stop_and_remove(dev)


def _rescan_store(dev: PciDev, data: bytes) -> None:
    if _truth(data):
        with _pci(dev).changing_topology_killable():
            _pci(dev).rescan_bus(dev.bus)


_DEV_GROUP = AttributeGroup(
    [
        Attribute("power_state", 0o444, lambda dev: "D0\n"),
        Attribute("resource", 0o444, _resource_show),
        Attribute("vendor", 0o444, lambda dev: f"0x{dev.vendor:04x}\n"),
        Attribute("device", 0o444, lambda dev: f"0x{dev.device:04x}\n"),
        Attribute("subsystem_vendor", 0o444, lambda dev: f"0x{dev.subsystem_vendor:04x}\n"),
        Attribute("subsystem_device", 0o444, lambda dev: f"0x{dev.subsystem_device:04x}\n"),
        Attribute("revision", 0o444, lambda dev: f"0x{dev.revision:02x}\n"),
        Attribute("class", 0o444, lambda dev: f"0x{dev.class_code:06x}\n"),
        Attribute("irq", 0o444, lambda dev: f"{dev.config.read(regs.PCI_INTERRUPT_LINE, 1)}\n"),
        Attribute("local_cpus", 0o444, lambda dev: cpumap()),
        Attribute("local_cpulist", 0o444, lambda dev: cpulist()),
        Attribute("modalias", 0o444, lambda dev: f"{dev.modalias()}\n"),
        Attribute("dma_mask_bits", 0o444, lambda dev: "32\n"),
        Attribute("consistent_dma_mask_bits", 0o444, lambda dev: "32\n"),
        Attribute("enable", 0o644, lambda dev: f"{dev.enable_cnt}\n", _enable_store),
        Attribute("numa_node", 0o644, lambda dev: f"{dev.numa_node}\n", _numa_node_store),
        Attribute(
            "broken_parity_status",
            0o644,
            lambda dev: f"{dev.broken_parity_status:d}\n",
            _bool_field("broken_parity_status"),
        ),
        Attribute("msi_bus", 0o644, lambda dev: f"{not dev.no_msi:d}\n", _msi_bus_store),
        Attribute(
            "d3cold_allowed",
            0o644,
            lambda dev: f"{dev.d3cold_allowed:d}\n",
            _bool_field("d3cold_allowed"),
        ),
        Attribute(
            "driver_override",
            0o644,
            lambda dev: f"{dev.driver_override or '(null)'}\n".encode("latin-1"),
            _driver_override_store,
        ),
        Attribute("ari_enabled", 0o444, lambda dev: f"{_ari_enabled(dev):d}\n"),
        Attribute("remove", 0o220, store=_remove_store),
        Attribute("rescan", 0o200, store=_rescan_store),
    ]
)


def _ari_enabled(dev: PciDev) -> bool:
    port = dev.bus.self_dev
    if port is None or not port.is_pcie:
        return False
    control = port.config.read(port.pcie_cap + regs.PCI_EXP_DEVCTL2, 2)
    return bool(control & regs.PCI_EXP_DEVCTL2_ARI)


_SPEEDS = {
    1: "2.5 GT/s PCIe",
    2: "5.0 GT/s PCIe",
    3: "8.0 GT/s PCIe",
    4: "16.0 GT/s PCIe",
    5: "32.0 GT/s PCIe",
    6: "64.0 GT/s PCIe",
}


def _link_cap(dev: PciDev) -> int:
    return dev.config.read(dev.pcie_cap + regs.PCI_EXP_LNKCAP, 4)


def _link_status(dev: PciDev) -> int:
    return dev.config.read(dev.pcie_cap + regs.PCI_EXP_LNKSTA, 2)


def _speed(code: int) -> str:
    return f"{_SPEEDS.get(code, 'Unknown')}\n"


_PCIE_GROUP = AttributeGroup(
    [
        Attribute("current_link_speed", 0o444, lambda dev: _speed(_link_status(dev) & 0xF)),
        Attribute("current_link_width", 0o444, lambda dev: f"{_link_status(dev) >> 4 & 0x3F}\n"),
        Attribute("max_link_width", 0o444, lambda dev: f"{_link_cap(dev) >> 4 & 0x3F}\n"),
        Attribute("max_link_speed", 0o444, lambda dev: _speed(_link_cap(dev) & 0xF)),
    ],
    is_visible=lambda dev, attr: attr.mode if dev.is_pcie else 0,
)

_BRIDGE_GROUP = AttributeGroup(
    [
        Attribute(
            "subordinate_bus_number",
            0o444,
            lambda dev: f"{dev.config.read(regs.PCI_SUBORDINATE_BUS, 1)}\n",
        ),
        Attribute(
            "secondary_bus_number",
            0o444,
            lambda dev: f"{dev.config.read(regs.PCI_SECONDARY_BUS, 1)}\n",
        ),
    ],
    is_visible=lambda dev, attr: attr.mode if dev.hw.secondary is not None else 0,
)


def _reset_store(dev: PciDev, data: bytes) -> None:
    if _number(data) != 1:
        fail(errno.EINVAL)
    pci_reset_function(dev)


def _reset_visible(dev: PciDev, attr: AnyAttribute) -> int:
    return attr.mode if dev.reset_methods else 0


_RESET_GROUP = AttributeGroup(
    [Attribute("reset", 0o200, store=_reset_store)], is_visible=_reset_visible
)
_RESET_METHOD_GROUP = AttributeGroup(
    [
        Attribute(
            "reset_method",
            0o644,
            lambda dev: " ".join(dev.reset_methods) + "\n" if dev.reset_methods else "",
            set_reset_methods,
        )
    ],
    is_visible=_reset_visible,
)


def _config_read(dev: PciDev, offset: int, count: int) -> bytes:
    # Devices have been seen to lock up when registers past the header are read; Linux lets
    # only administrators do it.
    limit = dev.config.size if current().capable(CAP_SYS_ADMIN) else 64
    return dev.config.read_bytes(offset, max(0, min(count, limit - offset)))


def _config_write(dev: PciDev, offset: int, data: bytes) -> None:
    dev.config.write_bytes(offset, data)


_CONFIG_GROUP = AttributeGroup(
    [BinAttribute("config", 0o644, lambda dev: dev.config.size, _config_read, _config_write)]
)

_ASPM_GROUP = AttributeGroup([], name="link")
"""Linux shows the directory always; its files are there only where ASPM can be controlled."""


@lru_cache(maxsize=64)
def _resource_group(bars: tuple[tuple[int, int, int], ...]) -> AttributeGroup:
    attributes: list[BinAttribute] = []
    for index, size, flags in bars:
        attributes.append(BinAttribute(f"resource{index}", 0o600, size, mappable=True))
        if flags & IORESOURCE_PREFETCH:
            attributes.append(BinAttribute(f"resource{index}_wc", 0o600, size, mappable=True))
    return AttributeGroup(attributes)


_COMMON = (_DEV_GROUP, _BRIDGE_GROUP, _PCIE_GROUP, _CONFIG_GROUP, _RESET_GROUP)
_TAIL = (
    _RESET_METHOD_GROUP,
    SRIOV_PF_GROUP,
    SRIOV_VF_GROUP,
    _ASPM_GROUP,
    PCI_TSM_AUTH_ATTR_GROUP,
    PCI_TSM_ATTR_GROUP,
)


def pci_dev_groups(dev: PciDev) -> Sequence[AttributeGroup]:
    """Every attribute group of a function."""
    # A BAR of a virtual function is part of the physical function's; Linux shows it all the same.
    bars = tuple((index, len(res), res.flags) for index, res in dev.bars())
    return (*_COMMON, _resource_group(bars), *_TAIL)


def _bus_rescan_store(bus: PciBus, data: bytes) -> None:
    if _truth(data):
        pci = bus.host_bridge.pci
        with pci.changing_topology_killable():
            pci.rescan_bus(bus)


PCI_BUS_CLASS_GROUP = AttributeGroup(
    [
        Attribute("cpuaffinity", 0o444, lambda bus: cpumap()),
        Attribute("cpulistaffinity", 0o444, lambda bus: cpulist()),
        Attribute("rescan", 0o200, store=_bus_rescan_store),
    ]
)


def _bus_type_rescan_store(bus_type: PciBusType, data: bytes) -> None:
    if _truth(data):
        with bus_type.pci.changing_topology_killable():
            bus_type.pci.rescan()


def _resource_alignment_store(bus_type: PciBusType, data: bytes) -> None:
    bus_type.resource_alignment = data.decode("latin-1").strip()


def _resource_alignment_show(bus_type: PciBusType) -> bytes:
    text = f"{bus_type.resource_alignment}\n" if bus_type.resource_alignment else ""
    return text.encode("latin-1")


PCI_BUS_TYPE_GROUP = AttributeGroup(
    [
        Attribute("rescan", 0o200, store=_bus_type_rescan_store),
        Attribute("resource_alignment", 0o644, _resource_alignment_show, _resource_alignment_store),
    ]
)
