# SPDX-License-Identifier: MIT
"""What a machine's tree shows, in the terms of the model, and what must hold of it in any state."""

from __future__ import annotations

import re
from collections import Counter

from tsmfs.base.kobject import Directory, File, GroupDirectory, Link, Node, find
from tsmfs.base.uevent import Action, Uevent
from tsmfs.kernel.resource import IORESOURCE_MEM, Resource
from tsmfs.machine import Machine
from tsmfs.pci.ide import PCI_IDE_STREAM_ID_RESERVED
from tsmfs.pci.tsm import PciTsmPf0

_BDF = re.compile(r"[0-9a-f]{4,8}:[0-9a-f]{2}:[0-9a-f]{2}\.[0-7]")
_FIRMWARE_RANGES = {"Reserved", "System RAM", "IOAPIC 0", "Local APIC"}
_REPLAYED = {"pci", "tsm", "module", "drivers", "faux", "pci_bus"}


def directory(parent: Directory, name: str) -> Directory:
    """The directory called *name*, through a link if it is one."""
    node = parent.lookup(name)
    if isinstance(node, Link):
        node = node.target
    assert isinstance(node, Directory), f"no directory {parent.path()}/{name}"
    return node


def text(parent: Directory, name: str) -> str:
    """What a text file reads, without its newline."""
    node = parent.lookup(name)
    assert isinstance(node, File), f"no file {parent.path()}/{name}"
    data = node.show().decode()
    assert data.endswith("\n"), f"{node.path()} reads {data!r}"
    return data[:-1]


class Watcher:
    """Looks at one machine."""

    def __init__(self, machine: Machine) -> None:
        self.machine = machine
        self._announced = self._present()
        """Path and driver (or nothing) of all that uevents have told of."""
        self._tsm_ready: set[str] = set()
        self._seqnum = 0
        self._complaints: list[str] = []
        self._log_read = 0
        machine.uevents.listeners.append(self._uevent)

    # What user space is told.

    def _uevent(self, event: Uevent) -> None:
        env = dict(event.env)
        number = int(env["SEQNUM"])
        if number <= self._seqnum:
            self._complaints.append(f"SEQNUM {number} after {self._seqnum}")
        self._seqnum = number
        if event.subsystem not in _REPLAYED:
            return
        path, known = event.devpath, event.devpath in self._announced
        if event.action is not Action.ADD and not known:
            self._complaints.append(f"{event.action} of unknown {path}")
        match event.action:
            case Action.ADD:
                if known:
                    self._complaints.append(f"second add of {path}")
                self._announced[path] = ""
            case Action.REMOVE:
                self._announced.pop(path, None)
                self._tsm_ready.discard(path)
            case Action.BIND:
                self._announced[path] = env["DRIVER"]
            case Action.UNBIND:
                self._announced[path] = ""
            case Action.CHANGE if event.subsystem == "tsm":
                self._tsm_ready.add(path)
            case _:
                pass

    # What the tree shows.

    def visible(self) -> dict[str, str]:
        """The same facts as the model's."""
        seen: dict[str, str] = {}
        self._devices(seen)
        self._bridges(seen)
        self._tsms(seen)
        self._modules(seen)
        self._memory(seen)
        return seen

    def _links(self, path: str) -> dict[str, Directory]:
        parent = find(self.machine.root, path)
        assert isinstance(parent, Directory)
        return {name: directory(parent, name) for name in parent.names()}

    def _devices(self, seen: dict[str, str]) -> None:
        for name, dev in self._links("/bus/pci/devices").items():
            seen[name] = dev.path()
            group = dev.lookup("tsm")
            if group is not None:
                assert isinstance(group, GroupDirectory)
                for file in group.names():
                    node = group.lookup(file)
                    assert isinstance(node, File)
                    seen[f"{name}/{file}"] = text(group, file) if node.readable else "-"
            if dev.lookup("authenticated") is not None:
                seen[f"{name}/authenticated"] = text(dev, "authenticated")
            seen[f"{name}/driver_override"] = text(dev, "driver_override")
            if dev.lookup("sriov_numvfs") is not None:
                seen[f"{name}/sriov_numvfs"] = text(dev, "sriov_numvfs")
            for link, node in dev.children.items():
                if isinstance(node, Link) and link != "subsystem":
                    seen[f"{name}/{link}"] = node.target.name

    def _bridges(self, seen: dict[str, str]) -> None:
        for bridge in self.machine.pci.host_bridges:
            seen[bridge.name] = bridge.path()
            assert find(self.machine.root, bridge.path()) is bridge
            if bridge.lookup("available_secure_streams") is not None:
                available = text(bridge, "available_secure_streams")
                seen[f"{bridge.name}/available_secure_streams"] = available
            for link, node in bridge.children.items():
                if isinstance(node, Link):
                    seen[f"{bridge.name}/{link}"] = node.target.name

    def _tsms(self, seen: dict[str, str]) -> None:
        for name, tsm in self._links("/class/tsm").items():
            seen[name] = tsm.path()
            if tsm.lookup("pci_mode") is not None:
                seen[f"{name}/pci_mode"] = text(tsm, "pci_mode")
            for link, node in tsm.children.items():
                if isinstance(node, Link) and link not in ("subsystem", "device"):
                    seen[f"{name}/{link}"] = node.target.path()

    def _modules(self, seen: dict[str, str]) -> None:
        for name, module in self._links("/module").items():
            if name == "module":
                continue
            for file in ("refcnt", "initstate"):
                seen[f"module/{name}/{file}"] = text(module, file)
            seen[f"module/{name}/holders"] = " ".join(sorted(directory(module, "holders").names()))
            parameters = directory(module, "parameters")
            seen[f"module/{name}/parameters/autoprobe"] = text(parameters, "autoprobe")
        for name, driver in self._links("/bus/pci/drivers").items():
            bound = [link for link in driver.children if _BDF.fullmatch(link)]
            seen[f"driver/{name}"] = " ".join(sorted(bound))

    def _memory(self, seen: dict[str, str]) -> None:
        counts: Counter[str] = Counter()
        for _, resource in self.machine.iomem.walk():
            name = resource.name
            if name in _FIRMWARE_RANGES:
                continue
            if name.startswith("PCI Bus"):
                seen[f"iomem/{name}"] = ""
                continue
            if name == "PCI MMIO Encrypted":
                below = resource.children[0]
                assert (below.start, below.end) == (resource.start, resource.end)
                name = f"{below.name}/{name}"
            elif name == "devsec_pci":
                assert resource.parent is not None
                name = f"{resource.parent.name}/{name}"
            counts[name] += 1
        for name, count in counts.items():
            seen[f"iomem/{name}"] = str(count)

    # What must hold in any state.

    def check(self) -> None:
        """Raise AssertionError when something is left over, dangling or held."""
        assert not self._complaints, self._complaints
        self._check_log()
        self._check_locks()
        self._check_streams()
        self._check_memory(self.machine.iomem)
        self._check_announced()
        self._check_links(self.machine.root)

    def _check_log(self) -> None:
        ring = self.machine.log.ring
        if ring.end != self._log_read:
            fresh = ring.read(self._log_read, ring.end - self._log_read).decode()
            self._log_read = ring.end
            assert "Traceback" not in fresh, fresh
            assert "nonsense" not in fresh, fresh

    def _check_locks(self) -> None:
        pci = self.machine.pci
        state = vars(pci.tsm_rwsem)
        assert state["_writer"] is None, "pci_tsm_rwsem is held for writing"
        assert not state["_readers"], "pci_tsm_rwsem is held for reading"
        assert not state["_depth"]
        assert not state["_writers_waiting"]
        mutexes = [pci.rescan_remove_lock, *(dev.lock for dev in pci.devices())]
        for dev in pci.devices():
            if isinstance(dev.tsm, PciTsmPf0):
                mutexes.append(dev.tsm.lock)
        for mutex in mutexes:
            assert repr(vars(mutex)["_lock"]).startswith("<unlocked"), f"{mutex.name} is held"
        assert repr(self.machine.root.tree.lock).startswith("<unlocked")

    def _check_streams(self) -> None:
        by_port: Counter[object] = Counter()
        for bridge in self.machine.pci.host_bridges:
            streams = [
                node
                for name, node in bridge.children.items()
                if isinstance(node, Link) and name.startswith("stream")
            ]
            assert len(bridge.ide_stream_ida) == len(streams), f"{bridge.name}: index leaked"
            ids = len(bridge.ide_stream_ids) - len({PCI_IDE_STREAM_ID_RESERVED})
            assert ids == len(streams), f"{bridge.name}: Stream ID leaked"
            for dev in self.machine.pci.devices():
                if any(link.target is dev for link in streams):
                    by_port[dev] += 1
                    by_port[dev.root_port] += 1
        for dev in self.machine.pci.devices():
            assert len(dev.ide_stream_ida) == by_port[dev], f"{dev.name}: stream index leaked"

    def _check_memory(self, resource: Resource) -> None:
        end = resource.start - 1
        for child in resource.children:
            assert child.parent is resource, f"{child} is elsewhere"
            assert child.start > end, f"{child} overlaps"
            assert resource.contains(child), f"{child} is outside {resource}"
            assert child.flags & IORESOURCE_MEM
            end = child.end
            if child.children:
                self._check_memory(child)

    def _present(self) -> dict[str, str]:
        present: dict[str, str] = {}
        for path in ("/bus/pci/devices", "/bus/faux/devices", "/class/tsm", "/class/pci_bus"):
            for node in self._links(path).values():
                driver = node.lookup("driver")
                present[node.path()] = driver.target.name if isinstance(driver, Link) else ""
        for path in ("/bus/pci/drivers", "/module"):
            for node in self._links(path).values():
                if node.name != "module":
                    present[node.path()] = ""
        return present

    def _check_announced(self) -> None:
        told, present = self._announced, self._present()
        assert told == present, {
            "only told": sorted(set(told.items()) - set(present.items())),
            "only there": sorted(set(present.items()) - set(told.items())),
        }
        for tsm in self._links("/class/tsm").values():
            has_mode = tsm.lookup("pci_mode") is not None
            assert has_mode == (tsm.path() in self._tsm_ready), f"{tsm.name}: change uevent"

    def _check_links(self, node: Directory) -> None:
        """Every link leads to a directory that is in the tree."""
        for child in node.children.values():
            if isinstance(child, Link):
                self._check_target(child)
            elif isinstance(child, Directory):
                self._check_links(child)

    def _check_target(self, link: Link) -> None:
        here: Node = link.target
        while here.parent is not None:
            assert here.parent.lookup(here.name) is here, f"{link.path()} dangles"
            here = here.parent
        assert here is self.machine.root, f"{link.path()} leads out of the tree"

    def check_names(self) -> None:
        """Every name in every directory resolves, every link textually too (slow)."""
        known = {dev.path() for dev in self._links("/bus/pci/devices").values()}
        stack: list[Directory] = [self.machine.root]
        while stack:
            parent = stack.pop()
            names = parent.names()
            assert len(names) == len(set(names)), f"{parent.path()}: a name twice"
            for name in names:
                node = parent.lookup(name)
                assert node is not None, f"{parent.path()}/{name} does not resolve"
                assert node.parent is parent
                assert not node.removed
                if isinstance(node, Directory):
                    stack.append(node)
                    if _BDF.fullmatch(name):
                        assert node.path() in known, f"{node.path()} is not on the bus"
                elif isinstance(node, Link):
                    self._check_readlink(parent, node)

    def _check_readlink(self, parent: Directory, link: Link) -> None:
        here: Node | None = parent
        for part in link.readlink().split("/"):
            assert isinstance(here, Directory), f"{link.path()} -> {link.readlink()}"
            here = here.parent if part == ".." else here.lookup(part)
        assert here is link.target, f"{link.path()} -> {link.readlink()}"
