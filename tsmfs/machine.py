# SPDX-License-Identifier: MIT
"""A machine: one emulated kernel on the hardware that a description names."""

from __future__ import annotations

import random
from collections.abc import Iterable, Iterator
from functools import partial
from importlib.metadata import entry_points

from tsmfs import description
from tsmfs.base.core import DriverCore
from tsmfs.base.cpu import add_cpus
from tsmfs.base.faux import FauxBus
from tsmfs.base.kobject import Directory
from tsmfs.base.module import ModuleSysfs
from tsmfs.base.uevent import Uevents
from tsmfs.board import AddKeys, build_host_bridge, without_keys
from tsmfs.coco.tsm import TsmClass
from tsmfs.control import add_control_files
from tsmfs.drivers.host import Host, HostModule
from tsmfs.evidence import EvidenceService
from tsmfs.kernel.fault import Faults
from tsmfs.kernel.module import Module, ModuleTable
from tsmfs.kernel.printk import Log
from tsmfs.kernel.resource import IORESOURCE_MEM, Resource, iomem_resource, ioport_resource
from tsmfs.pci.core import PciCore
from tsmfs.pci.host_bridge import PciHostBridge
from tsmfs.pci.tsm import pci_mode

_MEMORY_MAP = (
    (0x0, 0xFFF, "Reserved"),
    (0x1000, 0x9FBFF, "System RAM"),
    (0x9FC00, 0xFFFFF, "Reserved"),
    (0x100000, 0x7FFFFFFF, "System RAM"),
    (0xFEC00000, 0xFEC003FF, "IOAPIC 0"),
    (0xFEE00000, 0xFEE00FFF, "Local APIC"),
    (0x1_0000_0000, 0x2_7FFF_FFFF, "System RAM"),
)
"""What a small PC has in /proc/iomem besides PCI."""


def available_modules(log: Log) -> Iterator[HostModule]:
    """Every module of the entry point group ``tsmfs.modules``.

    A package may add its own; one that cannot be imported is passed over with a line in the log.
    """
    for entry in entry_points(group="tsmfs.modules"):
        try:
            module = entry.load()
        except Exception as error:
            log.err(f"module {entry.name} ({entry.value}): {error!r}")
            continue
        if isinstance(module, Module):
            yield module
        else:
            log.err(f"module {entry.name} ({entry.value}) is no tsmfs module")


class Machine:
    """A running machine; :meth:`boot` starts it, :meth:`stop` ends it."""

    def __init__(
        self, machine: description.Machine, text: str, *, uid: int = 0, gid: int = 0
    ) -> None:
        """Build the hardware of *machine*, whose description reads *text*.

        *uid* and *gid* own every file: root of this machine. OSError (ENOSPC) when the hardware
        does not fit the address space.
        """
        self.description = machine
        self.log = Log()
        self.log.info(f"tsmfs: machine {machine.name}")
        self.uevents = Uevents()
        self.faults = Faults(self.log, random.Random(machine.seed))
        self.core = DriverCore(self.log, self.faults, self.uevents, uid=uid, gid=gid)
        add_cpus(self.core.devices)
        self.iomem = iomem_resource()
        for start, end, name in _MEMORY_MAP:
            self.iomem.request(Resource(start, end, name, IORESOURCE_MEM))
        self.pci = PciCore(self.core, self.iomem, ioport_resource())
        self.tsm = TsmClass(self.core, self.pci.tsm, pci_mode)
        self.pci.connect_tsm_class(self.tsm.find_tsm_dev)
        self.host = Host(self.core, FauxBus(self.core), self.pci, self.tsm)
        self.modules: ModuleTable[Host] = ModuleTable(
            available_modules(self.log), self.log, self.host
        )
        self.host.modules = self.modules
        self.modules.observers.append(ModuleSysfs(self.core, self.modules))
        self.netlink = EvidenceService(self.pci)
        add_control_files(
            self.core.kernel,
            table=self.modules,
            pci=self.pci,
            log=self.log,
            faults=self.faults,
            uevents=self.uevents,
            netlink=self.netlink,
            roots=self._root_certificates,
            name=machine.name,
            description=text,
        )
        for bridge in machine.host_bridges:
            self._add_host_bridge(bridge)

    @property
    def root(self) -> Directory:
        """Root of the tree that a mount shows."""
        return self.core.root

    def _root_certificates(self) -> str:
        # Few machines have devices with keys, and their cryptography takes long to import.
        from tsmfs.board_cma import root_certificates

        return root_certificates(self.description)

    def _key_maker(self, bridge: description.HostBridge) -> AddKeys:
        if not description.has_keys(bridge.functions):
            return without_keys
        # All that has to do with keys takes time to import, and many machines have none.
        from tsmfs.board_cma import add_keys

        return partial(add_keys, seed=self.description.key_seed, report=self.log.warn)

    def _add_host_bridge(self, bridge: description.HostBridge) -> None:
        root, windows = build_host_bridge(
            bridge, self.iomem, self.pci.ioport, self._key_maker(bridge)
        )
        self.pci.add_host_bridge(
            PciHostBridge(
                self.pci,
                bridge.domain,
                root,
                nr_ide_streams=bridge.stream_pool,
                windows=windows,
            )
        )

    def boot(self, modules: Iterable[str] | None = None) -> None:
        """Load *modules* (``NAME key=value ...``), or those of the description.

        Raises what the first one that fails raises.
        """
        if modules is None:
            modules = [load.line for load in self.description.modules]
        for line in modules:
            name, _, args = line.strip().partition(" ")
            self.modules.modprobe(name, args)

    def stop(self) -> None:
        """Serve no netlink, unload every module and remove every device, last first."""
        self.netlink.stop()
        self.modules.unload_all()
        for bridge in reversed(list(self.pci.host_bridges)):
            self.pci.remove_host_bridge(bridge)
