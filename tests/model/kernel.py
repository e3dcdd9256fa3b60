# SPDX-License-Identifier: MIT
"""A small model of what user space sees of a machine, written from the ABI and from nothing else.

Each operation is a method. It raises :class:`WriteError` with the errno that the write returns, and
changes nothing then; otherwise the model is in the state that user space sees afterwards, which
:meth:`Model.visible` lists.
"""

from __future__ import annotations

import contextlib
import errno
import itertools
import re
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from typing import NoReturn

from tests.model.hardware import SAMPLE_BRIDGES, Bridge, Function, Kind

PLATFORM_STREAM_IDS = 4
"""Stream IDs that one sample link TSM has."""

DRIVERS = {"pci-stub": "pci_stub", "pci-pf-stub": "pci_pf_stub", "devsec_pci": "devsec_pci"}
"""Each PCI driver with its module."""

TSM_MODES = {
    "devsec_link_tsm": "link",
    "devsec_tsm": "devsec",
    "test_link_tsm": "link",
    "test_devsec_tsm": "devsec",
    "test_plain_tsm": None,
}
"""Each module that registers a TSM with the mode of that TSM."""

DEPENDS = {
    "devsec_common": (),
    "devsec_bus": ("devsec_common",),
    "devsec_link_tsm": ("devsec_common",),
    "devsec_tsm": ("devsec_common",),
    "test_link_tsm": ("devsec_common",),
    "test_devsec_tsm": ("devsec_common",),
    "test_plain_tsm": (),
    "pci_stub": (),
    "pci_pf_stub": (),
    "devsec_pci": (),
}
"""Every module with the modules it needs."""


class WriteError(Exception):
    """A write fails."""

    def __init__(self, number: int) -> None:
        super().__init__(errno.errorcode[number])
        self.errno = number


def refuse(number: int) -> NoReturn:
    """The write fails with that errno."""
    raise WriteError(number)


def boolean(text: bytes) -> bool:
    """What ``kstrtobool()`` takes."""
    if re.match(rb"[1yYtT]|[oO][nN]", text):
        return True
    if re.match(rb"[0nNfF]|[oO][fF]", text):
        return False
    refuse(errno.EINVAL)


def number(text: bytes) -> int:
    """An unsigned number that C would take."""
    try:
        return int(text, 0) if re.fullmatch(rb"[0-9]\w*\n?", text) else refuse(errno.EINVAL)
    except ValueError:
        refuse(errno.EINVAL)


def tsm_number(text: bytes) -> int:
    """The number of ``tsm%d``."""
    match = re.match(rb"tsm(-?[0-9]+)", text)
    return int(match[1]) if match else refuse(errno.EINVAL)


def same(text: bytes, name: str) -> bool:
    """``sysfs_streq()``."""
    return text in (name.encode(), name.encode() + b"\n")


def lowest_free(used: set[int], limit: int) -> int | None:
    """The lowest number below *limit* that is not used."""
    return next((n for n in range(limit) if n not in used), None)


@dataclass(eq=False)
class Module:
    """A loaded module."""

    name: str
    autoprobe: bool
    all_bridges: bool = False


@dataclass(eq=False)
class Tsm:
    """A registered TSM."""

    name: str
    module: Module
    mode: str | None


@dataclass(frozen=True)
class Stream:
    """A secure stream."""

    id: int
    bridge: int
    port: int
    endpoint: int

    @property
    def name(self) -> str:
        """Its link at the host bridge."""
        return f"stream{self.bridge}.{self.port}.{self.endpoint}"


@dataclass(eq=False)
class Context:
    """What a TSM holds of a device."""

    tsm: Tsm
    dsm: Device | None
    """None for a lock."""
    stream: Stream | None = None
    vm: str | None = None
    """The VM that the function is bound to."""
    accepted: bool = False


@dataclass(eq=False)
class Device:
    """A function that the kernel knows."""

    fn: Function
    bridge: Bridge
    pf: Device | None = None
    context: Context | None = None
    driver: str | None = None
    override: str | None = None
    num_vfs: int = 0
    vfs: dict[int, Device] = field(default_factory=dict)

    @property
    def name(self) -> str:
        """``DDDD:BB:DD.F``."""
        return self.fn.name

    @property
    def connected(self) -> bool:
        """It is the DSM of a connected device."""
        return self.context is not None and self.context.dsm is self

    @property
    def locked(self) -> bool:
        """A devsec TSM holds it."""
        return self.context is not None and self.context.dsm is None

    @property
    def accepted(self) -> bool:
        """It is in RUN."""
        return self.context is not None and self.context.accepted


@dataclass
class Fault:
    """A fault point that is armed for one fault."""

    errno: int
    passes: int
    """Calls that still succeed before the one that fails."""


class Model:
    """The visible state."""

    def __init__(self, bridges: tuple[Bridge, ...]) -> None:
        self.bridges = list(bridges)
        self.unplugged = {f.slot for b in bridges for f in b.functions if not f.plugged}
        self.devices: dict[str, Device] = {}
        """In the order of arrival."""
        self.modules: dict[str, Module] = {}
        self.tsms: dict[int, Tsm] = {}
        self.faults: dict[str, Fault] = {}
        self.drivers_autoprobe = True
        self.modules_autoprobe = True
        for bridge in bridges:
            self._scan(bridge)

    def hit(self, point: str) -> None:
        """A call of a fault point."""
        fault = self.faults.get(point)
        if fault is None:
            return
        if fault.passes:
            fault.passes -= 1
        else:
            del self.faults[point]
            refuse(fault.errno)

    def arm(self, point: str, number: int, passes: int) -> None:
        """Let the call of *point* after *passes* others fail, once."""
        self.faults[point] = Fault(number, passes)

    def disarm(self, point: str) -> None:
        """Let no call of *point* fail."""
        self.faults.pop(point, None)

    # Who is whose.

    def has(self, mode: str) -> bool:
        """A TSM of that mode is there."""
        return any(tsm.mode == mode for tsm in self.tsms.values())

    def dsm_of(self, dev: Device) -> Device | None:
        """Itself if it can be connected, else the connected DSM that it depends on."""
        if dev.fn.pf0:
            return dev
        zero = self.devices.get((dev.pf or dev).fn.slot + ".0")
        if zero is None or zero.connected:
            return zero
        port = self.devices.get(dev.fn.parent)
        above = self.devices.get(port.fn.parent) if port is not None else None
        if above is not None and above.fn.kind is Kind.UPSTREAM and above.connected:
            return above
        return None

    def _dependents(self, dsm: Device) -> Iterator[Device]:
        """Every function that may depend on *dsm*, in the order in which it is offered them."""
        for function in range(8):
            pf = self.devices.get(f"{dsm.fn.slot}.{function}")
            if pf is not None and pf.pf is None:
                if function:
                    yield pf
                yield from pf.vfs.values()
        if dsm.fn.kind is Kind.UPSTREAM:
            yield from self._below(dsm.name)

    def _below(self, port: str) -> Iterator[Device]:
        for dev in list(self.devices.values()):
            if dev.fn.parent == port:
                yield dev
                yield from self._below(dev.name)

    def root_port(self, dev: Device) -> Device:
        """The port below the host bridge."""
        while dev.fn.parent:
            dev = self.devices[dev.fn.parent]
        return dev

    def streams(self) -> Iterator[tuple[Device, Context, Stream]]:
        """Every stream with its endpoint."""
        for dev in self.devices.values():
            if dev.context is not None and dev.context.stream is not None:
                yield dev, dev.context, dev.context.stream

    # Files of a function.

    def files(self, dev: Device) -> set[str]:
        """Which files of ``tsm/`` it has, and ``authenticated``."""
        fn, context = dev.fn, dev.context
        dsm_is_tee = context is not None and context.dsm is not None and context.dsm.fn.tee
        names: set[str] = set()
        if self.has("link"):
            if fn.pf0:
                names |= {"connect", "disconnect"}
            if fn.pf0 or dsm_is_tee:
                names.add("dsm")
            if (fn.pf0 and fn.tee) or dsm_is_tee:
                names.add("bound")
            if fn.kind is not Kind.CONVENTIONAL and (fn.pf0 or context is not None):
                names.add("authenticated")
        if self.has("devsec") and fn.tee:
            names |= {"lock", "unlock", "accept"}
        return names

    def read(self, dev: Device, name: str) -> str:
        """What such a file reads, ``-`` for one that cannot be read."""
        context = dev.context
        match name:
            case "connect" | "lock" | "authenticated":
                return context.tsm.name if context else ""
            case "dsm":
                return context.dsm.name if context and context.dsm else ""
            case "bound":
                return context.tsm.name if context and context.vm is not None else ""
            case "accept":
                return str(int(dev.accepted))
            case _:
                return "-"

    def _open(self, name: str, file: str) -> Device:
        dev = self.devices.get(name)
        if dev is None or file not in self.files(dev):
            refuse(errno.ENOENT)
        return dev

    def _device(self, name: str) -> Device:
        return self.devices.get(name) or refuse(errno.ENOENT)

    # Link TSMs.

    def connect(self, name: str, text: bytes) -> None:
        """Write ``tsm/connect``."""
        dev = self._open(name, "connect")
        wanted = tsm_number(text)
        if dev.context is not None:
            refuse(errno.EBUSY)
        tsm = self.tsms.get(wanted)
        if tsm is None or tsm.mode != "link" or not self._probe(tsm, dev):
            refuse(errno.ENXIO)
        self.hit("tsm_connect")
        self.hit("doe_transfer")
        dev.context = Context(tsm, dev, self._stream(tsm, dev))
        if dev.fn.tee:
            for function in self._dependents(dev):
                if self.dsm_of(function) is dev:
                    self._offer(function)

    def _probe(self, tsm: Tsm, dev: Device) -> bool:
        try:
            self.hit("tsm_probe")
        except WriteError:
            return False
        if tsm.module.name == "devsec_link_tsm" and not (
            tsm.module.all_bridges or dev.bridge.sample
        ):
            return False
        return dev.fn.cma or not dev.fn.pf0

    def _offer(self, dev: Device) -> None:
        dsm = self.dsm_of(dev)
        if dev.context is None and dsm is not None and dsm is not dev:
            assert dsm.context is not None
            if dsm.fn.tee and self._probe(dsm.context.tsm, dev):
                dev.context = Context(dsm.context.tsm, dsm)

    def _stream(self, tsm: Tsm, dev: Device) -> Stream | None:
        if dev.fn.kind is not Kind.ENDPOINT or not dev.fn.streams:
            return None
        port = self.root_port(dev)
        ids = {s.id for _, c, s in self.streams() if c.tsm is tsm}
        here = [(d, s) for d, _, s in self.streams() if d.bridge is dev.bridge]
        stream_id = lowest_free(ids, PLATFORM_STREAM_IDS)
        if stream_id is None:
            refuse(errno.EBUSY)
        bridge_index = lowest_free({s.bridge for _, s in here}, dev.bridge.pool)
        port_index = lowest_free(
            {s.port for d, s in here if self.root_port(d) is port}, port.fn.streams
        )
        if bridge_index is None or port_index is None:
            refuse(errno.ENOMEM)
        if stream_id in {s.id for _, s in here}:
            refuse(errno.EBUSY)
        self.hit("ide_stream_enable")
        return Stream(stream_id, bridge_index, port_index, 0)

    def disconnect(self, name: str, text: bytes) -> None:
        """Write ``tsm/disconnect``."""
        dev = self._open(name, "disconnect")
        if dev.context is None or dev.locked:
            refuse(errno.ENXIO)
        if not same(text, dev.context.tsm.name):
            refuse(errno.EINVAL)
        self.hit("tsm_disconnect")
        self._end(dev)

    def _held(self, module: str, name: bytes) -> Context:
        if module not in self.modules:
            refuse(errno.ENOENT)
        dev = next((d for d in self.devices.values() if same(name, d.name)), None)
        if dev is None:
            refuse(errno.ENODEV)
        if dev.context is None or dev.context.tsm.module.name != module:
            refuse(errno.ENXIO)
        return dev.context

    def tsm_bind(self, module: str, name: bytes, vm: str) -> None:
        """Write ``tsm_bind`` of the faux device of a link TSM."""
        context = self._held(module, name)
        if context.vm is not None:
            return None if context.vm == vm else refuse(errno.EBUSY)
        self.hit("tsm_bind")
        context.vm = vm

    def tsm_unbind(self, module: str, name: bytes) -> None:
        """Write ``tsm_unbind``."""
        self._held(module, name).vm = None

    def tsm_request(self, module: str, name: bytes) -> None:
        """Write ``tsm_request``."""
        if self._held(module, name).vm is None:
            refuse(errno.ENXIO)

    def write_certs(self, module: str) -> None:
        """Write ``certs`` of the faux device of a sample TSM."""
        if module not in self.modules:
            refuse(errno.ENOENT)
        if any(d.connected or d.locked for d in self.devices.values()):
            refuse(errno.EBUSY)

    # Devsec TSMs.

    def lock(self, name: str, text: bytes) -> None:
        """Write ``tsm/lock``."""
        dev = self._open(name, "lock")
        wanted = tsm_number(text)
        if dev.context is not None:
            refuse(errno.EBUSY)
        tsm = self.tsms.get(wanted)
        if tsm is None or tsm.mode != "devsec":
            refuse(errno.ENXIO)
        if dev.driver is not None:
            refuse(errno.EBUSY)
        self.hit("tsm_lock")
        dev.context = Context(tsm, None)

    def unlock(self, name: str, text: bytes) -> None:
        """Write ``tsm/unlock``."""
        dev = self._open(name, "unlock")
        if dev.context is None or not dev.locked or not same(text, dev.context.tsm.name):
            refuse(errno.EINVAL)
        if dev.driver is not None:
            refuse(errno.EBUSY)
        dev.context = None

    def accept(self, name: str, text: bytes) -> None:
        """Write ``tsm/accept``."""
        dev = self._open(name, "accept")
        if not boolean(text):
            refuse(errno.EINVAL)
        if dev.context is None or not dev.locked:
            refuse(errno.EINVAL)
        if dev.driver is not None or dev.context.accepted:
            refuse(errno.EBUSY)
        self.hit("tsm_accept")
        dev.context.accepted = True

    def _end(self, dev: Device) -> None:
        """End what a TSM holds of *dev*, whatever it is."""
        if dev.locked:
            dev.driver = None
        if dev.connected:
            for other in self.devices.values():
                if other.context is not None and other.context.dsm is dev:
                    other.context = None
        dev.context = None

    # Functions come and go.

    def _arrive(self, dev: Device) -> None:
        self.devices[dev.name] = dev
        self._offer(dev)
        self._autoprobe(dev)

    def _scan(self, bridge: Bridge, bus: str | None = None) -> None:
        """Everything arrives, then drivers get it: a bus first, then what is behind its ports."""
        fresh: set[str] = set()
        self._scan_bus(bridge, bus or bridge.bus, fresh)
        self._probe_bus(bridge, bus or bridge.bus, fresh)

    def _scan_bus(self, bridge: Bridge, bus: str, fresh: set[str]) -> None:
        for fn in bridge.functions:
            if fn.bus != bus or fn.slot in self.unplugged or fn.name in self.devices:
                continue
            if fn.parent and fn.parent not in self.devices:
                continue
            dev = self.devices[fn.name] = Device(fn, bridge)
            self._offer(dev)
            fresh.add(fn.name)
        for below in self._buses_below(bridge, bus):
            self._scan_bus(bridge, below, fresh)

    def _probe_bus(self, bridge: Bridge, bus: str, fresh: set[str]) -> None:
        for dev in list(self.devices.values()):
            if dev.fn.bus == bus and dev.name in fresh:
                self._autoprobe(dev)
        for below in self._buses_below(bridge, bus):
            self._probe_bus(bridge, below, fresh)

    def _buses_below(self, bridge: Bridge, bus: str) -> list[str]:
        ports = [dev.name for dev in self.devices.values() if dev.fn.bus == bus]
        found = [fn.bus for port in ports for fn in bridge.functions if fn.parent == port]
        return list(dict.fromkeys(found))

    def _remove(self, dev: Device) -> None:
        for child in reversed([d for d in self.devices.values() if d.fn.parent == dev.name]):
            if child.name in self.devices:
                self._remove(child)
        dev.driver = None
        for vf in list(dev.vfs.values()):
            self._remove(vf)
        self._end(dev)
        del self.devices[dev.name]
        if dev.pf is not None:
            dev.pf.vfs = {n: vf for n, vf in dev.pf.vfs.items() if vf is not dev}

    def remove(self, name: str, text: bytes) -> None:
        """Write ``remove`` of a function."""
        dev = self._device(name)
        if number(text):
            self._remove(dev)

    def rescan(self, text: bytes) -> None:
        """Write ``bus/pci/rescan``."""
        if number(text):
            for bridge in self.bridges:
                self._scan(bridge)

    def rescan_bus_of(self, name: str, text: bytes) -> None:
        """Write ``rescan`` of a function."""
        dev = self._device(name)
        if number(text):
            self._scan(dev.bridge, (dev.pf or dev).fn.bus)

    def _slot(self, text: bytes) -> tuple[Bridge, list[Function]]:
        match = re.fullmatch(rb"([0-9a-f]{4,8}:[0-9a-f]{2}:[0-9a-f]{2}\.[0-7])\n?", text)
        if match is None:
            refuse(errno.EINVAL)
        for bridge in self.bridges:
            fn = next((f for f in bridge.functions if f.name == match[1].decode()), None)
            if fn is not None:
                return bridge, [f for f in bridge.functions if f.slot == fn.slot]
        refuse(errno.ENODEV)

    def plug(self, text: bytes) -> None:
        """Write ``plug``."""
        bridge, functions = self._slot(text)
        if functions[0].slot not in self.unplugged:
            refuse(errno.EEXIST)
        self.unplugged.discard(functions[0].slot)
        self._scan_if_known(bridge, functions[0])

    def _scan_if_known(self, bridge: Bridge, fn: Function) -> None:
        if not fn.parent or fn.parent in self.devices:
            self._scan(bridge, fn.bus)

    def unplug(self, text: bytes) -> None:
        """Write ``unplug``."""
        _, functions = self._slot(text)
        if functions[0].slot in self.unplugged:
            refuse(errno.ENODEV)
        for fn in reversed(functions):
            if fn.name in self.devices:
                self._remove(self.devices[fn.name])
        self.unplugged.add(functions[0].slot)

    def numvfs(self, name: str, text: bytes) -> None:
        """Write ``sriov_numvfs`` of a physical function."""
        pf = self._device(name)
        if not pf.fn.vfs:
            refuse(errno.ENOENT)
        count = number(text)
        if count >= 1 << 16:
            refuse(errno.EINVAL)
        if count > len(pf.fn.vfs):
            refuse(errno.ERANGE)
        if count == pf.num_vfs:
            return
        if pf.driver != "pci-pf-stub":
            refuse(errno.ENOENT)
        if count and pf.num_vfs:
            refuse(errno.EBUSY)
        for vf in list(pf.vfs.values()):
            self._remove(vf)
        pf.num_vfs = count
        for index, fn in enumerate(pf.fn.vfs[:count]):
            pf.vfs[index] = Device(fn, pf.bridge, pf)
            self._arrive(pf.vfs[index])

    # Drivers.

    def _attach(self, driver: str, dev: Device) -> None:
        if dev.driver is not None:
            refuse(errno.EBUSY)
        self.hit("device_probe")
        if driver == "devsec_pci" and (not dev.fn.bars or dev.accepted):
            refuse(errno.EINVAL)
        dev.driver = driver

    def _autoprobe(self, dev: Device, *, drivers_probe: bool = False) -> None:
        driver = dev.override
        if dev.driver is not None or driver not in DRIVERS:
            return
        module = self.modules.get(DRIVERS[driver])
        if module is None or not module.autoprobe:
            return
        if self.drivers_autoprobe or drivers_probe:
            with contextlib.suppress(WriteError):
                self._attach(driver, dev)

    def driver_override(self, name: str, text: bytes) -> None:
        """Write ``driver_override`` of a function."""
        dev = self._device(name)
        if len(text) >= 4095:
            refuse(errno.EINVAL)
        dev.override = text.decode().removesuffix("\n") or None

    def driver_bind(self, driver: str, name: bytes) -> None:
        """Write ``bind`` of a driver."""
        if DRIVERS[driver] not in self.modules:
            refuse(errno.ENOENT)
        dev = next((d for d in self.devices.values() if same(name, d.name)), None)
        if dev is None or dev.override != driver:
            refuse(errno.ENODEV)
        self._attach(driver, dev)

    def driver_unbind(self, driver: str, name: bytes) -> None:
        """Write ``unbind`` of a driver."""
        if DRIVERS[driver] not in self.modules:
            refuse(errno.ENOENT)
        dev = next((d for d in self.devices.values() if same(name, d.name)), None)
        if dev is None or dev.driver != driver:
            refuse(errno.ENODEV)
        dev.driver = None

    def drivers_probe(self, name: bytes) -> None:
        """Write ``bus/pci/drivers_probe``."""
        dev = next((d for d in self.devices.values() if same(name, d.name)), None)
        if dev is None:
            refuse(errno.ENODEV)
        self._autoprobe(dev, drivers_probe=True)

    # Modules.

    def refcnt(self, name: str) -> int:
        """How many loaded modules need it."""
        return len(self.holders(name))

    def holders(self, name: str) -> list[str]:
        """The loaded modules that need it."""
        return [m for m in self.modules if name in DEPENDS[m]]

    def modprobe(self, line: str) -> None:
        """Load a module with what it needs."""
        name, *args = line.split()
        name = name.replace("-", "_")
        if name in self.modules:
            return
        if name not in DEPENDS:
            refuse(errno.ENOENT)
        module = Module(name, self.modules_autoprobe)
        for arg in args:
            key, _, value = arg.partition("=") if "=" in arg else (arg, "=", "1")
            if key == "autoprobe":
                module.autoprobe = boolean(value.encode())
            elif key == "all_bridges" and name == "devsec_link_tsm":
                module.all_bridges = boolean(value.encode())
        fresh = [d for d in DEPENDS[name] if d not in self.modules]
        for dependency in fresh:
            self.modprobe(dependency)
        self.modules[name] = module
        try:
            self._init(module)
        except WriteError:
            for gone in (name, *fresh):
                del self.modules[gone]
            raise

    def _init(self, module: Module) -> None:
        if module.name == "devsec_bus" or module.name in TSM_MODES:
            try:
                # Its faux device is a device too.
                self.hit("device_probe")
            except WriteError:
                refuse(errno.ENODEV)
        if module.name == "devsec_bus":
            for bridge in SAMPLE_BRIDGES:
                self.unplugged -= {f.slot for f in bridge.functions}
                self.bridges.append(bridge)
                self._scan(bridge)
        elif module.name in TSM_MODES:
            lowest = next(n for n in itertools.count() if n not in self.tsms)
            self.tsms[lowest] = Tsm(f"tsm{lowest}", module, TSM_MODES[module.name])
        elif module.name in DRIVERS.values():
            for dev in self.devices.values():
                if dev.override in DRIVERS and DRIVERS[dev.override] == module.name:
                    self._autoprobe(dev)

    def rmmod(self, name: str) -> None:
        """Unload a module."""
        module = self.modules.get(name.replace("-", "_"))
        if module is None:
            refuse(errno.ENOENT)
        if self.refcnt(module.name):
            refuse(errno.EAGAIN)
        if module.name == "devsec_bus":
            for bridge in SAMPLE_BRIDGES:
                for dev in [d for d in self.devices.values() if d.bridge is bridge]:
                    if dev.name in self.devices:
                        self._remove(dev)
                self.bridges.remove(bridge)
        for dev in self.devices.values():
            if dev.driver is not None and DRIVERS[dev.driver] == module.name:
                dev.driver = None
            if dev.context is not None and dev.context.tsm.module is module:
                self._end(dev)
        self.tsms = {n: tsm for n, tsm in self.tsms.items() if tsm.module is not module}
        del self.modules[module.name]

    def set_drivers_autoprobe(self, text: bytes) -> None:
        """Write ``bus/pci/drivers_autoprobe``; Linux looks at its first byte alone."""
        self.drivers_autoprobe = text[:1] != b"0"

    def set_modules_autoprobe(self, text: bytes) -> None:
        """Write ``module/module/parameters/modules_autoprobe``."""
        self.modules_autoprobe = boolean(text)

    # The whole.

    def path(self, dev: Device) -> str:
        """Its place below ``devices``."""
        above = self.devices.get(dev.fn.parent)
        parent = self.path(above) if above else f"{dev.bridge.path}/{dev.bridge.name}"
        return f"{parent}/{dev.name}"

    def visible(self) -> dict[str, str]:
        """Every visible fact of interest: a name, and what it reads or where it leads."""
        seen: dict[str, str] = {}
        for part in (
            self._visible_devices,
            self._visible_bridges,
            self._visible_tsms,
            self._visible_modules,
            self._visible_memory,
        ):
            part(seen.__setitem__)
        return seen

    def _visible_devices(self, put: Callable[[str, str], None]) -> None:
        for name, dev in self.devices.items():
            put(name, self.path(dev))
            for file in self.files(dev):
                put(f"{name}/{file}", self.read(dev, file))
            put(f"{name}/driver_override", dev.override or "(null)")
            if dev.driver is not None:
                put(f"{name}/driver", dev.driver)
            if dev.pf is not None:
                put(f"{name}/physfn", dev.pf.name)
            if dev.fn.vfs:
                put(f"{name}/sriov_numvfs", str(dev.num_vfs))
            for index, vf in dev.vfs.items():
                put(f"{name}/virtfn{index}", vf.name)

    def _visible_bridges(self, put: Callable[[str, str], None]) -> None:
        streams = list(self.streams())
        for bridge in self.bridges:
            put(bridge.name, f"{bridge.path}/{bridge.name}")
            here = [(dev, stream) for dev, _, stream in streams if dev.bridge is bridge]
            if bridge.pool:
                put(f"{bridge.name}/available_secure_streams", str(bridge.pool - len(here)))
            for dev, stream in here:
                put(f"{bridge.name}/{stream.name}", dev.name)

    def _visible_tsms(self, put: Callable[[str, str], None]) -> None:
        for tsm in self.tsms.values():
            put(tsm.name, f"/devices/faux/{tsm.module.name}/tsm/{tsm.name}")
            if tsm.mode is not None:
                put(f"{tsm.name}/pci_mode", tsm.mode)
        for dev, context, _ in self.streams():
            put(f"{context.tsm.name}/{dev.bridge.name}", f"{dev.bridge.path}/{dev.bridge.name}")

    def _visible_modules(self, put: Callable[[str, str], None]) -> None:
        for name, module in self.modules.items():
            put(f"module/{name}/refcnt", str(self.refcnt(name)))
            put(f"module/{name}/holders", " ".join(sorted(self.holders(name))))
            put(f"module/{name}/initstate", "live")
            put(f"module/{name}/parameters/autoprobe", "NY"[module.autoprobe])
        for driver, name in DRIVERS.items():
            if name in self.modules:
                bound = sorted(d.name for d in self.devices.values() if d.driver == driver)
                put(f"driver/{driver}", " ".join(bound))

    def _visible_memory(self, put: Callable[[str, str], None]) -> None:
        for name, dev in self.devices.items():
            vf_bars = dev.fn.vfs[0].bars if dev.fn.vfs else 0
            if dev.fn.bars + vf_bars:
                put(f"iomem/{name}", str(dev.fn.bars + vf_bars))
            if dev.accepted and dev.fn.bars:
                put(f"iomem/{name}/PCI MMIO Encrypted", str(dev.fn.bars))
            if dev.driver == "devsec_pci":
                put(f"iomem/{name}/devsec_pci", "1")
        for bridge in self.bridges:
            for bus in self._windows(bridge):
                put(f"iomem/PCI Bus {bus}", "")
            if bridge.sample:
                put("iomem/DEVSEC MMIO", "2")
                put("iomem/DEVSEC PREFETCH", "2")

    def _windows(self, bridge: Bridge) -> set[str]:
        """Buses with a window to them: those of present ports with memory somewhere below."""
        by_name = {fn.name: fn for fn in bridge.functions}
        has_memory = any(fn.bars for fn in bridge.functions)
        buses = {bridge.bus} if has_memory and not bridge.sample else set()
        for fn in bridge.functions:
            here = fn if fn.bars else None
            while here is not None and here.parent:
                if here.parent in self.devices:
                    buses.add(here.bus)
                here = by_name[here.parent]
        return buses
