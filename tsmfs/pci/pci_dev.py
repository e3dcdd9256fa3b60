# SPDX-License-Identifier: MIT
"""PCI functions, buses and drivers as the kernel knows them (include/linux/pci.h)."""

from __future__ import annotations

import errno
import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, ClassVar

from tsmfs.base.bus import BusType
from tsmfs.base.class_ import Class
from tsmfs.base.core import DriverCore
from tsmfs.base.device import Device
from tsmfs.base.driver import DeviceDriver
from tsmfs.base.kobject import Attribute, AttributeGroup
from tsmfs.base.uevent import Env
from tsmfs.kernel.errors import fail
from tsmfs.kernel.module import LoadedModule
from tsmfs.kernel.resource import Resource
from tsmfs.pci.config import ConfigSpace
from tsmfs.pci.hardware import HwBus, HwFunction, pci_name
from tsmfs.pci.regs import PciExpType

if TYPE_CHECKING:
    from tsmfs.pci.doe import DoeTransport
    from tsmfs.pci.host_bridge import PciHostBridge
    from tsmfs.pci.iov import PciSriov
    from tsmfs.pci.tsm import PciTsm

PCI_ANY_ID = 0xFFFFFFFF
PCI_ROM_RESOURCE = 6
PCI_IOV_RESOURCES = 7
PCI_BRIDGE_RESOURCES = 13
DEVICE_COUNT_RESOURCE = 17


class Ida:
    """Small numbers, the lowest free one first (lib/idr.c)."""

    __slots__ = ("_used",)

    def __init__(self) -> None:
        self._used: set[int] = set()

    def alloc(self, limit: int) -> int | None:
        """The lowest free number below *limit*, None when all are taken."""
        for number in range(limit):
            if number not in self._used:
                self._used.add(number)
                return number
        return None

    def reserve(self, number: int) -> bool:
        """Take *number*; False when it is taken."""
        if number in self._used:
            return False
        self._used.add(number)
        return True

    def free(self, number: int) -> None:
        """Give *number* back."""
        self._used.discard(number)

    def __len__(self) -> int:
        return len(self._used)


class PciBus(Device):
    """``struct pci_bus``, with its device in class ``pci_bus``."""

    __slots__ = ("bridge", "devices", "host_bridge", "hw", "number", "self_dev")

    def __init__(
        self,
        core: DriverCore,
        cls: Class,
        host_bridge: PciHostBridge,
        hw: HwBus,
        self_dev: PciDev | None,
    ) -> None:
        bridge: Device = self_dev or host_bridge
        name = f"{host_bridge.domain:04x}:{hw.number:02x}"
        super().__init__(core, name, parent=bridge, cls=cls)
        self.host_bridge = host_bridge
        self.hw = hw
        self.number = hw.number
        self.bridge = bridge
        self.self_dev = self_dev
        """The port that leads here, None on a root bus."""
        self.devices: dict[int, PciDev] = {}
        """Functions on the bus by devfn."""

    def walk(self) -> Iterator[PciDev]:
        """Every function below, ports before what is behind them (``pci_walk_bus()``)."""
        for dev in list(self.devices.values()):
            yield dev
            if dev.subordinate is not None:
                yield from dev.subordinate.walk()

    def find_bus(self, number: int) -> PciBus | None:
        """The bus of that number, this one or below it."""
        if self.number == number:
            return self
        for dev in list(self.devices.values()):
            if dev.subordinate is not None and (found := dev.subordinate.find_bus(number)):
                return found
        return None


class PciDev(Device):
    """``struct pci_dev``: one function."""

    __slots__ = (
        "broken_parity_status",
        "bus",
        "cc_accepted",
        "class_code",
        "d3cold_allowed",
        "devcap",
        "devfn",
        "device",
        "doe_mailboxes",
        "enable_cnt",
        "hw",
        "ide_cap",
        "ide_cfg",
        "ide_stream_ida",
        "ide_tee_limit",
        "is_added",
        "no_msi",
        "nr_ide_mem",
        "nr_link_ide",
        "nr_sel_ide",
        "numa_node",
        "pcie_cap",
        "pcie_flags",
        "physfn",
        "reset_methods",
        "resource",
        "revision",
        "sriov",
        "subordinate",
        "subsystem_device",
        "subsystem_vendor",
        "tsm",
        "vendor",
        "vf_index",
    )

    def __init__(
        self, core: DriverCore, bus_type: BusType, bus: PciBus, hw: HwFunction, devfn: int
    ) -> None:
        domain = bus.host_bridge.domain
        # A virtual function's bus number may lie beyond that of the bus it is enumerated on.
        number = bus.number + (devfn >> 8)
        name = pci_name(domain, number, devfn)
        super().__init__(core, name, parent=bus.bridge, bus=bus_type)
        self.pm_control = "on"
        self.pm_enabled = True
        self.bus = bus
        self.hw = hw
        self.devfn = devfn
        """Device and function number; a virtual function's may carry into further buses."""
        self.vendor = 0
        self.device = 0
        self.subsystem_vendor = 0
        self.subsystem_device = 0
        self.revision = 0
        self.class_code = 0
        self.pcie_cap = 0
        self.pcie_flags = 0
        self.devcap = 0
        self.resource: list[Resource | None] = [None] * DEVICE_COUNT_RESOURCE
        self.subordinate: PciBus | None = None
        self.physfn: PciDev | None = None
        self.vf_index = 0
        self.sriov: PciSriov | None = None
        self.doe_mailboxes: list[DoeTransport] = []
        self.enable_cnt = 0
        self.is_added = False
        """Drivers were offered it (``pci_dev_is_added()``)."""
        self.broken_parity_status = False
        self.d3cold_allowed = True
        self.no_msi = False
        self.numa_node = -1
        self.reset_methods: list[str] = []
        self.ide_cap = 0
        self.ide_cfg = False
        self.ide_tee_limit = False
        self.nr_link_ide = 0
        self.nr_sel_ide = 0
        self.nr_ide_mem = 0
        self.ide_stream_ida = Ida()
        self.tsm: PciTsm | None = None
        self.cc_accepted = False
        """Accepted for private memory (``device_cc_accepted()``)."""

    @property
    def config(self) -> ConfigSpace:
        """Its configuration space."""
        return self.hw.config

    @property
    def host_bridge(self) -> PciHostBridge:
        """``pci_find_host_bridge()``."""
        return self.bus.host_bridge

    @property
    def slot(self) -> int:
        """Device number."""
        return self.devfn >> 3 & 0x1F

    @property
    def function(self) -> int:
        """Function number."""
        return self.devfn & 7

    @property
    def devid(self) -> int:
        """Requester ID: bus, device and function (``pci_dev_id()``)."""
        return (self.bus.number << 8) + self.devfn

    @property
    def is_pcie(self) -> bool:
        """It has a PCI Express capability."""
        return self.pcie_cap != 0

    @property
    def pcie_type(self) -> PciExpType | None:
        """Device/port type, None for conventional PCI."""
        return PciExpType(self.pcie_flags >> 4 & 0xF) if self.pcie_cap else None

    @property
    def is_virtfn(self) -> bool:
        """It is an SR-IOV virtual function."""
        return self.physfn is not None

    @property
    def root_port(self) -> PciDev | None:
        """The root port above it (``pcie_find_root_port()``)."""
        dev: PciDev | None = self
        while dev is not None:
            if dev.pcie_type is PciExpType.ROOT_PORT:
                return dev
            dev = dev.bus.self_dev
        return None

    def bars(self) -> Iterator[tuple[int, Resource]]:
        """Index and place of every base address register in use."""
        for index in range(PCI_ROM_RESOURCE):
            resource = self.resource[index]
            if resource is not None:
                yield index, resource

    def function_at(self, function: int) -> PciDev | None:
        """Another function of the same slot (``pci_get_slot()``)."""
        return self.bus.devices.get((self.devfn & ~7) | function)

    def modalias(self) -> str:
        """``pci:v...``, how udev finds a driver's module."""
        return (
            f"pci:v{self.vendor:08X}d{self.device:08X}"
            f"sv{self.subsystem_vendor:08X}sd{self.subsystem_device:08X}"
            f"bc{self.class_code >> 16 & 0xFF:02X}sc{self.class_code >> 8 & 0xFF:02X}"
            f"i{self.class_code & 0xFF:02X}"
        )


def pci_uevent_vars(dev: Device) -> Env:
    """What the PCI bus adds to a uevent (``pci_uevent()``)."""
    assert isinstance(dev, PciDev)
    return [
        ("PCI_CLASS", f"{dev.class_code:04X}"),
        ("PCI_ID", f"{dev.vendor:04X}:{dev.device:04X}"),
        ("PCI_SUBSYS_ID", f"{dev.subsystem_vendor:04X}:{dev.subsystem_device:04X}"),
        ("PCI_SLOT_NAME", dev.name),
        ("MODALIAS", dev.modalias()),
    ]


@dataclass(frozen=True, slots=True)
class PciDeviceId:
    """``struct pci_device_id``: which functions a driver takes."""

    vendor: int
    device: int
    subvendor: int = PCI_ANY_ID
    subdevice: int = PCI_ANY_ID
    class_code: int = 0
    class_mask: int = 0
    driver_data: int = 0
    override_only: bool = False
    """Match only a device whose ``driver_override`` names the driver."""

    def matches(self, dev: PciDev) -> bool:
        """``pci_match_one_device()``."""
        return self.covers(
            PciDeviceId(
                dev.vendor, dev.device, dev.subsystem_vendor, dev.subsystem_device, dev.class_code
            )
        )

    def covers(self, other: PciDeviceId) -> bool:
        """It takes every function that *other*, whose IDs are a function's, stands for."""
        return (
            self.vendor in (PCI_ANY_ID, other.vendor)
            and self.device in (PCI_ANY_ID, other.device)
            and self.subvendor in (PCI_ANY_ID, other.subvendor)
            and self.subdevice in (PCI_ANY_ID, other.subdevice)
            and not (self.class_code ^ other.class_code) & self.class_mask
        )


_ANY = PciDeviceId(PCI_ANY_ID, PCI_ANY_ID)


class PciDriver(DeviceDriver):
    """``struct pci_driver``: derive, set *id_table*, give :meth:`probe` and :meth:`remove`."""

    __slots__ = ("dynids",)

    id_table: ClassVar[Sequence[PciDeviceId]] = ()

    def __init__(
        self, core: DriverCore, bus: BusType, name: str, module: LoadedModule | None
    ) -> None:
        super().__init__(core, bus, name, module)
        self.dynids: list[PciDeviceId] = []

    def match(self, dev: PciDev) -> bool:
        return self.match_id(dev) is not None

    def match_id(self, dev: PciDev) -> PciDeviceId | None:
        """The entry that makes it take *dev* (``pci_match_device()``)."""
        override = dev.driver_override
        if override is not None and override != self.name:
            return None
        for entry in (*self.dynids, *self.id_table):
            if entry.matches(dev) and (override is not None or not entry.override_only):
                return entry
        return _ANY if override is not None else None

    def sriov_configure(self, dev: PciDev, num_vfs: int) -> int:
        """Enable *num_vfs* virtual functions, or disable them with 0; returns how many.

        ENOENT when the driver does not support it.
        """
        fail(errno.ENOENT, f"{self.name} does not support SR-IOV")


_HEX_WORD = re.compile(rb"\s*(?:0[xX])?([0-9a-fA-F]+)")


def _scan_ids(data: bytes, least: int) -> list[int]:
    """Hexadecimal words as ``sscanf("%x %x ...")`` reads them; EINVAL below *least*."""
    values: list[int] = []
    rest = data
    while len(values) < 7 and (match := _HEX_WORD.match(rest)):
        values.append(int(match[1], 16) & 0xFFFFFFFF)
        rest = rest[match.end() :]
    if len(values) < least:
        fail(errno.EINVAL)
    return values


def _new_id_store(driver: PciDriver, data: bytes) -> None:
    values = _scan_ids(data, 2)
    defaults = [0, 0, PCI_ANY_ID, PCI_ANY_ID, 0, 0, 0]
    fields = [*values, *defaults[len(values) :]]
    vendor, device, subvendor, subdevice, class_code, class_mask, driver_data = fields
    new = PciDeviceId(vendor, device, subvendor, subdevice, class_code, class_mask, driver_data)
    known = (*driver.dynids, *driver.id_table)
    if len(values) != 7 and any(e.covers(new) and not e.override_only for e in known):
        fail(errno.EEXIST)
    if driver.id_table and all(entry.driver_data != driver_data for entry in driver.id_table):
        fail(errno.EINVAL)
    driver.dynids.append(new)
    driver.bus.attach_driver(driver)


def _remove_id_store(driver: PciDriver, data: bytes) -> None:
    values = _scan_ids(data, 2)
    defaults = [0, 0, PCI_ANY_ID, PCI_ANY_ID, 0, 0]
    vendor, device, subvendor, subdevice, class_code, class_mask = [
        *values[:6],
        *defaults[len(values) :],
    ]
    for entry in driver.dynids:
        if (
            (entry.vendor, entry.device) == (vendor, device)
            and subvendor in (PCI_ANY_ID, entry.subvendor)
            and subdevice in (PCI_ANY_ID, entry.subdevice)
            and not (entry.class_code ^ class_code) & class_mask
        ):
            driver.dynids.remove(entry)
            return
    fail(errno.ENODEV)


PciDriver.groups = (
    AttributeGroup(
        [
            Attribute("new_id", 0o200, store=_new_id_store),
            Attribute("remove_id", 0o200, store=_remove_id_store),
        ]
    ),
)
