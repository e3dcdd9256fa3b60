# SPDX-License-Identifier: MIT
"""The PCI core of one machine: scanning, adding and removing functions (drivers/pci/probe.c)."""

from __future__ import annotations

import contextlib
import errno
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from functools import partial

from tsmfs.base.bus import BusType
from tsmfs.base.class_ import Class
from tsmfs.base.core import DriverCore
from tsmfs.base.device import Device
from tsmfs.kernel import task
from tsmfs.kernel.errors import fail
from tsmfs.kernel.fault import Point
from tsmfs.kernel.locking import Mutex, RwSem
from tsmfs.kernel.resource import (
    IORESOURCE_IO,
    IORESOURCE_MEM,
    IORESOURCE_MEM_64,
    IORESOURCE_PREFETCH,
    Resource,
)
from tsmfs.pci import regs
from tsmfs.pci.bars import read_bases
from tsmfs.pci.capability import find_capability, find_ext_capability
from tsmfs.pci.config import BridgeWindow, bridge_window
from tsmfs.pci.doe import DoeTransport
from tsmfs.pci.hardware import HwBus, HwFunction, power_on
from tsmfs.pci.host_bridge import PciHostBridge
from tsmfs.pci.ide import pci_ide_init
from tsmfs.pci.iov import (
    PciSriov,
    pci_disable_sriov,
    pci_iov_init,
    pci_iov_remove_virtfn_links,
)
from tsmfs.pci.pci_dev import PCI_BRIDGE_RESOURCES, PciBus, PciDev, pci_uevent_vars
from tsmfs.pci.regs import PciExpType
from tsmfs.pci.reset import pci_init_reset_methods
from tsmfs.pci.sysfs import PCI_BUS_CLASS_GROUP, PCI_BUS_TYPE_GROUP, pci_dev_groups
from tsmfs.pci.tsm import PciTsmCore, TsmDev


@dataclass(slots=True)
class PciCore:
    """PCI as one machine has it: the bus type, the host bridges, the TSM core."""

    core: DriverCore
    iomem: Resource
    ioport: Resource
    bus_type: BusType = field(init=False)
    bus_class: Class = field(init=False)
    host_bridges: list[PciHostBridge] = field(default_factory=list)
    rescan_remove_lock: Mutex = field(default_factory=lambda: Mutex("pci_rescan_remove_lock"))
    tsm_rwsem: RwSem = field(default_factory=lambda: RwSem("pci_tsm_rwsem"))
    tsm: PciTsmCore = field(init=False)

    def __post_init__(self) -> None:
        self.bus_class = Class(self.core, "pci_bus")
        self.bus_type = PciBusType(self)
        self.bus_type.add_child("slots")
        self.tsm = PciTsmCore(self.core, self.devices, self.tsm_rwsem)

    def connect_tsm_class(self, find_tsm_dev: Callable[[int], TsmDev | None]) -> None:
        """Tell the TSM core how to find a TSM by its number."""
        self.tsm.find_tsm_dev = find_tsm_dev

    def devices(self) -> list[PciDev]:
        """Every function in the order of its arrival (``for_each_pci_dev()``)."""
        return [d for d in list(self.bus_type.devices.values()) if isinstance(d, PciDev)]

    def find_device(self, name: str) -> PciDev | None:
        """The function called *name* (``0000:00:00.0``)."""
        dev = self.bus_type.find_device(name)
        return dev if isinstance(dev, PciDev) else None

    @contextlib.contextmanager
    def changing_topology(self) -> Iterator[None]:
        """Hold what adding and removing functions needs, in the order of all locks."""
        with self.rescan_remove_lock.lock(), self.tsm_rwsem.write():
            yield

    @contextlib.contextmanager
    def changing_topology_killable(self) -> Iterator[None]:
        """The same for a user's request: EINTR when the caller gives up waiting."""
        with self.rescan_remove_lock.lock_interruptible(), self.tsm_rwsem.write_killable():
            yield

    def add_host_bridge(self, bridge: PciHostBridge) -> None:
        """Show a host bridge and scan what is below it (``pci_scan_root_bus_bridge()``).

        EEXIST when its domain and bus are in use.
        """
        with self.changing_topology():
            bridge.device_add()
            self.host_bridges.append(bridge)
            try:
                bridge.bus = self._add_bus(bridge, bridge.hw_root, None)
                self.rescan_bus(bridge.bus)
            except BaseException:
                self.remove_host_bridge(bridge)
                raise

    def remove_host_bridge(self, bridge: PciHostBridge) -> None:
        """Remove everything below a host bridge, last first, then the bridge itself."""
        with self.changing_topology():
            if bridge.bus is not None:
                for dev in reversed(list(bridge.bus.devices.values())):
                    self.stop_and_remove(dev)
                bridge.bus.device_del()
            self.host_bridges.remove(bridge)
            bridge.device_del()

    def find_emul_domain(self) -> int:
        """The lowest free domain above those that firmware can number (0x10000 up)."""
        used = {bridge.domain for bridge in self.host_bridges}
        return next(n for n in range(0x10000, 1 << 31) if n not in used)

    def rescan(self) -> None:
        """Look for functions that have come on any bus (``bus/pci/rescan``)."""
        for bridge in list(self.host_bridges):
            if bridge.bus is not None:
                self.rescan_bus(bridge.bus)

    def rescan_bus(self, bus: PciBus) -> None:
        """Find and add new functions on *bus* and below (``pci_rescan_bus()``)."""
        with self.changing_topology():
            # The bus may have gone while the caller waited for the locks.
            if bus.removed:
                fail(errno.ENODEV)
            self._scan_child_bus(bus)
            self._bus_add_devices(bus)

    def _add_bus(self, bridge: PciHostBridge, hw: HwBus, self_dev: PciDev | None) -> PciBus:
        bus = PciBus(self.core, self.bus_class, bridge, hw, self_dev)
        bus.groups = (PCI_BUS_CLASS_GROUP,)
        bus.device_add()
        return bus

    def _scan_child_bus(self, bus: PciBus) -> None:
        """All slots of a bus first, then what is behind its bridges (``pci_scan_child_bus()``)."""
        for hw in bus.hw.present():
            if hw.devfn not in bus.devices:
                self._scan_single_device(bus, hw)
        for dev in list(bus.devices.values()):
            if dev.hw.secondary is not None:
                if dev.subordinate is None:
                    dev.subordinate = self._add_bus(bus.host_bridge, dev.hw.secondary, dev)
                self._scan_child_bus(dev.subordinate)

    def _scan_single_device(self, bus: PciBus, hw: HwFunction) -> None:
        dev = PciDev(self.core, self.bus_type, bus, hw, hw.devfn)
        self._setup_device(dev)
        bus.devices[hw.devfn] = dev
        self._init_capabilities(dev)
        try:
            self._device_add(dev)
        except OSError as error:
            dev.err(f"cannot be added: {error.strerror}")

    def _device_add(self, dev: PciDev) -> None:
        """Show a function, which has no driver yet; nothing of it is left when it cannot be."""
        try:
            dev.device_add()
        except BaseException:
            self.tsm.destroy(dev)
            self._forget(dev)
            raise

    def _bus_add_devices(self, bus: PciBus) -> None:
        """Let drivers have what was scanned (``pci_bus_add_devices()``)."""
        for dev in list(bus.devices.values()):
            if not dev.is_added:
                self.bus_add_device(dev)
        for dev in list(bus.devices.values()):
            if dev.subordinate is not None:
                self._bus_add_devices(dev.subordinate)

    def bus_add_device(self, dev: PciDev) -> None:
        """Look for a driver of a function that is shown (``pci_bus_add_device()``)."""
        dev.is_added = True
        if self.bus_type.drivers_autoprobe:
            self.bus_type.attach_device(dev)

    def _setup_device(self, dev: PciDev) -> None:
        """Read the header (``pci_setup_device()``)."""
        config = dev.config
        dev.vendor = config.read(regs.PCI_VENDOR_ID, 2)
        dev.device = config.read(regs.PCI_DEVICE_ID, 2)
        class_revision = config.read(regs.PCI_CLASS_REVISION, 4)
        dev.revision = class_revision & 0xFF
        dev.class_code = class_revision >> 8
        bridge = dev.hw.secondary is not None
        if not bridge:
            dev.subsystem_vendor = config.read(regs.PCI_SUBSYSTEM_VENDOR_ID, 2)
            dev.subsystem_device = config.read(regs.PCI_SUBSYSTEM_ID, 2)
        self._read_pcie_cap(dev)
        kind = f" {_PCIE_TYPE_NAMES[dev.pcie_type]}" if dev.pcie_type is not None else ""
        dev.info(
            f"[{dev.vendor:04x}:{dev.device:04x}] type {int(bridge):02d} "
            f"class 0x{dev.class_code:06x}{kind or ' conventional PCI'}"
        )
        self._read_bases(dev, 2 if bridge else 6)
        if bridge:
            self._read_windows(dev)

    def _read_pcie_cap(self, dev: PciDev) -> None:
        pos = find_capability(dev.config, regs.PCI_CAP_ID_EXP)
        if pos:
            dev.pcie_cap = pos
            dev.pcie_flags = dev.config.read(pos + regs.PCI_EXP_FLAGS, 2)
            dev.devcap = dev.config.read(pos + regs.PCI_EXP_DEVCAP, 4)

    def _read_bases(self, dev: PciDev, count: int) -> None:
        for index, start, size, flags in read_bases(dev.config, regs.PCI_BASE_ADDRESS_0, count):
            resource = Resource(start, start + size - 1, dev.name, flags)
            dev.info(f"BAR {index} {_range(resource)}")
            self.claim(dev, index, resource)

    def claim(self, dev: PciDev, index: int, resource: Resource) -> None:
        """Make *resource* number *index* of *dev* and put it in the tree of addresses."""
        dev.resource[index] = resource
        try:
            self._parent_window(dev, resource).request(resource)
        except OSError as error:
            dev.warn(f"BAR {index} [{resource.start:#x}-{resource.end:#x}]: {error.strerror}")

    def _parent_window(self, dev: PciDev, resource: Resource) -> Resource:
        port = dev.bus.self_dev
        windows = (
            [w for w in port.resource[PCI_BRIDGE_RESOURCES:] if w is not None]
            if port is not None
            else dev.host_bridge.windows
        )
        kind = IORESOURCE_IO | IORESOURCE_MEM
        for window in windows:
            if (window.flags ^ resource.flags) & kind == 0 and window.contains(resource):
                return window
        return self.ioport if resource.flags & IORESOURCE_IO else self.iomem

    def _read_windows(self, dev: PciDev) -> None:
        assert dev.hw.secondary is not None
        name = f"PCI Bus {dev.host_bridge.domain:04x}:{dev.hw.secondary.number:02x}"
        for offset, (window, flags) in enumerate(_WINDOWS):
            place = bridge_window(dev.config, window)
            if place is not None:
                resource = Resource(place[0], place[1], name, flags)
                self.claim(dev, PCI_BRIDGE_RESOURCES + offset, resource)

    def _init_capabilities(self, dev: PciDev) -> None:
        """``pci_init_capabilities()``."""
        dev.groups = pci_dev_groups(dev)
        if dev.is_pcie and not dev.is_virtfn:
            pos = 0
            while pos := find_ext_capability(dev.config, regs.PCI_EXT_CAP_ID_DOE, pos):
                dev.doe_mailboxes.append(
                    DoeTransport(
                        dev.config,
                        pos,
                        name=dev.name,
                        sleep=task.sleep,
                        fault=partial(self.core.faults.inject, Point.DOE_TRANSFER, dev.name),
                    )
                )
        self._configure_ari(dev)
        pci_ide_init(dev)
        pci_iov_init(self, dev)
        pci_init_reset_methods(dev)
        self.tsm.init(dev)

    def _configure_ari(self, dev: PciDev) -> None:
        """Let the port above forward ARI when the device below has it (``pci_configure_ari()``)."""
        port = dev.bus.self_dev
        if not dev.is_pcie or dev.devfn or port is None or not port.is_pcie:
            return
        capable = port.config.read(port.pcie_cap + regs.PCI_EXP_DEVCAP2, 4)
        if not capable & regs.PCI_EXP_DEVCAP2_ARI:
            return
        pos = port.pcie_cap + regs.PCI_EXP_DEVCTL2
        control = port.config.read(pos, 2) & ~regs.PCI_EXP_DEVCTL2_ARI
        if find_ext_capability(dev.config, regs.PCI_EXT_CAP_ID_ARI):
            control |= regs.PCI_EXP_DEVCTL2_ARI
        port.config.write(pos, 2, control)

    def add_virtfn(self, pf: PciDev, sriov: PciSriov, index: int) -> PciDev:
        """Add virtual function *index* of *pf* (``pci_iov_add_virtfn()``)."""
        assert pf.hw.virtual_functions is not None
        devfn = pf.devfn + sriov.rid_offset(index)
        vf = PciDev(self.core, self.bus_type, pf.bus, pf.hw.virtual_functions(index), devfn)
        vf.physfn, vf.vf_index = pf, index
        vf.vendor, vf.device = pf.vendor, sriov.vf_device
        config = vf.config
        class_revision = config.read(regs.PCI_CLASS_REVISION, 4)
        vf.revision, vf.class_code = class_revision & 0xFF, class_revision >> 8
        vf.subsystem_vendor = config.read(regs.PCI_SUBSYSTEM_VENDOR_ID, 2)
        vf.subsystem_device = config.read(regs.PCI_SUBSYSTEM_ID, 2)
        self._read_pcie_cap(vf)
        for number, whole in sriov.bars(pf):
            size = len(whole) // sriov.total_vfs
            start = whole.start + index * size
            resource = Resource(start, start + size - 1, vf.name, whole.flags)
            vf.resource[number] = resource
            with contextlib.suppress(OSError):
                whole.request(resource)
        pf.bus.devices[devfn] = vf
        self._init_capabilities(vf)
        self._device_add(vf)
        return vf

    def stop_and_remove(self, dev: PciDev) -> None:
        """Remove *dev* and all behind it, last first (``pci_stop_and_remove_bus_device()``)."""
        with self.changing_topology():
            if dev.bus.devices.get(dev.devfn) is not dev:
                return
            if dev.subordinate is not None:
                for child in reversed(list(dev.subordinate.devices.values())):
                    self.stop_and_remove(child)
            pci_iov_remove_virtfn_links(dev)
            self._stop(dev)
            if dev.subordinate is not None:
                dev.subordinate.device_del()
                dev.subordinate = None
            dev.device_del()
            self._forget(dev)

    def _forget(self, dev: PciDev) -> None:
        del dev.bus.devices[dev.devfn]
        for resource in dev.resource:
            if resource is not None:
                resource.release()

    def _stop(self, dev: PciDev) -> None:
        """Take the driver off and end all that hangs on the function, before it goes."""
        with dev.lock.lock():
            dev.dead = True
        self.bus_type.release_driver(dev)
        if dev.sriov is not None and dev.sriov.num_vfs:
            pci_disable_sriov(self, dev)
        self.tsm.destroy(dev)

    def unplug(self, hw_bus: HwBus, slot: int) -> None:
        """The device in *slot* is pulled out: surprise removal of all its functions.

        ENODEV when there is none.
        """
        with self.changing_topology():
            functions = [f for f in hw_bus.slot_functions(slot) if f.present]
            if not functions:
                fail(errno.ENODEV)
            for bridge in self.host_bridges:
                bus = bridge.bus.find_bus(hw_bus.number) if bridge.bus else None
                if bus is None or bus.hw is not hw_bus:
                    continue
                for dev in reversed(list(bus.devices.values())):
                    if dev.slot == slot and not dev.is_virtfn:
                        dev.info("pciehp: Link Down")
                        self.stop_and_remove(dev)
            for function in functions:
                function.present = False

    def plug(self, hw_bus: HwBus, slot: int) -> None:
        """A device is put in *slot*: it starts from power-on and is scanned.

        ENODEV when nothing is known of that slot, EEXIST when it is plugged already.
        """
        with self.changing_topology():
            functions = hw_bus.slot_functions(slot)
            if not functions:
                fail(errno.ENODEV)
            if any(f.present for f in functions):
                fail(errno.EEXIST)
            for function in functions:
                function.present = True
                power_on(function)
            for bridge in self.host_bridges:
                bus = bridge.bus.find_bus(hw_bus.number) if bridge.bus else None
                if bus is not None and bus.hw is hw_bus:
                    self.rescan_bus(bus)

    def find_slot(self, domain: int, number: int, slot: int) -> HwBus:
        """The bus on which that slot is, plugged or not; ENODEV when there is none."""
        for bridge in self.host_bridges:
            if bridge.domain != domain:
                continue
            buses = [bridge.hw_root]
            buses += [f.secondary for _, f in bridge.hw_root.walk() if f.secondary is not None]
            for bus in buses:
                if bus.number == number and bus.slot_functions(slot):
                    return bus
        fail(errno.ENODEV)


def _range(resource: Resource) -> str:
    """``[mem 0x...-0x... 64bit pref]``, as ``%pR`` prints a resource."""
    kind = "io " if resource.flags & IORESOURCE_IO else "mem"
    width = 4 if resource.flags & IORESOURCE_IO else 8
    wide = " 64bit" if resource.flags & IORESOURCE_MEM_64 else ""
    prefetch = " pref" if resource.flags & IORESOURCE_PREFETCH else ""
    return f"[{kind} 0x{resource.start:0{width}x}-0x{resource.end:0{width}x}{wide}{prefetch}]"


class PciBusType(BusType):
    """``bus/pci``."""

    __slots__ = ("pci", "resource_alignment")

    def __init__(self, pci: PciCore) -> None:
        self.pci = pci
        self.resource_alignment = ""
        super().__init__(pci.core, "pci", groups=(PCI_BUS_TYPE_GROUP,), uevent_vars=pci_uevent_vars)

    def probe_device(self, dev: Device) -> None:
        """Nothing: functions get their drivers when the whole scan is done."""

    def can_probe(self, dev: Device) -> bool:
        """A VF needs its PF's consent, or an override (``pci_device_can_probe()``)."""
        assert isinstance(dev, PciDev)
        sriov = dev.physfn.sriov if dev.physfn is not None else None
        return sriov is None or sriov.drivers_autoprobe or dev.driver_override is not None


_PCIE_TYPE_NAMES = {
    PciExpType.ENDPOINT: "PCIe Endpoint",
    PciExpType.LEG_END: "PCIe Legacy Endpoint",
    PciExpType.ROOT_PORT: "PCIe Root Port",
    PciExpType.UPSTREAM: "PCIe Switch Upstream Port",
    PciExpType.DOWNSTREAM: "PCIe Switch Downstream Port",
    PciExpType.PCI_BRIDGE: "PCIe to PCI/PCI-X bridge",
    PciExpType.RC_END: "PCIe Root Complex Integrated Endpoint",
}
"""As the kernel log names them (``pcie_type_names()``)."""

_WINDOWS = (
    (BridgeWindow.IO, IORESOURCE_IO | regs.PCI_IO_RANGE_TYPE_32),
    (BridgeWindow.MEMORY, IORESOURCE_MEM),
    (
        BridgeWindow.PREFETCHABLE,
        IORESOURCE_MEM | IORESOURCE_PREFETCH | IORESOURCE_MEM_64 | regs.PCI_PREF_RANGE_TYPE_64,
    ),
)
