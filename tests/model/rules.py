# SPDX-License-Identifier: MIT
"""The rules: everything that user space can write, done to a machine and to the model alike."""

from __future__ import annotations

import errno
import functools
from collections import Counter
from collections.abc import Callable, Iterable
from dataclasses import dataclass, field
from typing import ClassVar, ParamSpec

from hypothesis import strategies as st
from hypothesis.stateful import (
    RuleBasedStateMachine,
    initialize,
    invariant,
    precondition,
    rule,
)

from tests.machines import without_keys
from tests.model.hardware import CROWDED, CROWDED_TOML, SERVER, Bridge, Function
from tests.model.kernel import DEPENDS, DRIVERS, TSM_MODES, Device, Model, WriteError
from tests.model.modules import TEST_MODULES
from tests.model.tree import Watcher
from tsmfs import description
from tsmfs.base.kobject import Attribute, Directory, File, Link
from tsmfs.kernel.fault import Point
from tsmfs.machine import Machine

LINK_MODULES = tuple(name for name, mode in TSM_MODES.items() if mode == "link")
SAMPLE_MODULES = tuple(name for name, mode in TSM_MODES.items() if mode is not None)
MODPROBE_LINES = (
    *DEPENDS,
    "devsec_bus",
    "devsec-bus",
    "devsec_tsm unknown=1",
    "devsec_link_tsm all_bridges=1",
    "devsec_link_tsm all_bridges",
    "devsec_link_tsm all_bridges=perhaps",
    "devsec_pci autoprobe=0",
    "pci_stub autoprobe=0",
    "pci_stub autoprobe=1",
    "pci_pf_stub autoprobe=x",
    "no_such_module",
)
BOOT_LINES = (
    ("devsec_bus", "devsec_link_tsm", "devsec_tsm"),
    ("devsec_tsm", "devsec_link_tsm all_bridges=1", "devsec_bus"),
    ("devsec_bus", "devsec_link_tsm all_bridges=1", "devsec_tsm", "pci_pf_stub"),
    (
        "pci_pf_stub",
        "pci_stub",
        "test_link_tsm",
        "devsec_link_tsm all_bridges=y",
        "test_devsec_tsm",
    ),
    ("test_plain_tsm", "devsec_link_tsm all_bridges=1", "test_link_tsm", "devsec_tsm"),
    ("devsec_link_tsm all_bridges=1", "devsec_tsm", "devsec_bus", "test_devsec_tsm"),
    (),
)
ERRNOS = (errno.EIO, errno.ENOMEM, errno.EBUSY, errno.ENXIO, errno.EAGAIN, errno.ETIMEDOUT)
BAD_NAMES = (b"\n", b"tsm", b"TSM0\n", b"0\n", b"tsmx\n", b"\xff\xfe", b"tsm99\n", b"tsm-1\n")
SAMPLED = st.sampled_from(range(60))
"""Which of the targets there are: this number modulo their count."""
CONNECT_POINTS = (
    Point.TSM_PROBE,
    Point.TSM_PROBE,
    Point.TSM_CONNECT,
    Point.DOE_TRANSFER,
    Point.IDE_STREAM_ENABLE,
)
NEWLINE = st.sampled_from((b"\n", b"\n", b"\n", b""))
TRUTHS = (b"1\n", b"1", b"y\n", b"on\n")
NO_TRUTHS = (b"0\n", b"off", b"2\n", b"\n")
NUMBERS = (b"0\n", b"1\n", b"2\n", b"3", b"8\n", b"9\n", b"70000\n", b"-1\n", b"x\n")

MANY = 4
"""Functions that a machine has at least before it loses any more, so that something happens."""

Operation = Callable[[], None]


@dataclass
class Statistics:
    """What the machines of this process did."""

    machines: int = 0
    steps: int = 0
    rules: Counter[str] = field(default_factory=Counter)
    outcomes: Counter[tuple[str, str]] = field(default_factory=Counter)
    """How often each file that was written had each outcome."""


STATISTICS = Statistics()

Arguments = ParamSpec("Arguments")


def counted(function: Callable[Arguments, None]) -> Callable[Arguments, None]:
    """Count how often a rule is taken."""

    @functools.wraps(function)
    def count(*args: Arguments.args, **kwargs: Arguments.kwargs) -> None:
        STATISTICS.rules[function.__name__] += 1
        function(*args, **kwargs)

    return count


class MachineStates(RuleBasedStateMachine):
    """A machine and its model; a subclass names the hardware."""

    machine_text: ClassVar[str]
    bridges: ClassVar[tuple[Bridge, ...]]

    def __init__(self) -> None:
        super().__init__()
        parsed = description.parse(self.machine_text, "machine")
        self.machine = Machine(parsed, self.machine_text)
        for module in TEST_MODULES:
            self.machine.modules.available[module.name] = module
        self.model = Model(self.bridges)
        self.watcher = Watcher(self.machine)
        self.steps = -1
        STATISTICS.machines += 1

    @initialize(lines=st.sampled_from(BOOT_LINES))
    def boot(self, lines: tuple[str, ...]) -> None:
        self.machine.boot(lines)
        for line in lines:
            self.model.modprobe(line)

    def teardown(self) -> None:
        self.watcher.check_names()
        self.machine.stop()
        self.watcher.check_names()
        assert not self.machine.pci.devices()
        left = {name for name in self.watcher.visible() if not name.startswith("iomem/PCI Bus")}
        assert not left

    # Doing the same to both.

    def write(self, path: str, data: bytes, operation: Operation) -> None:
        """Write *data* to *path*, do *operation* to the model; both must fare alike."""
        expected = actual = "ok"
        try:
            operation()
        except WriteError as error:
            expected = errno.errorcode[error.errno]
        try:
            self.store(path, data)
        except OSError as os_error:
            actual = errno.errorcode[os_error.errno or 0]
        STATISTICS.outcomes[path.rpartition("/")[2], actual] += 1
        assert actual == expected, f"{path} <- {data!r}: {actual}, the model says {expected}"

    def store(self, path: str, data: bytes) -> None:
        """``echo -n data > path``."""
        node = self.machine.root
        for part in path.split("/")[1:]:
            below = node.lookup(part)
            if isinstance(below, Link):
                below = below.target
            if isinstance(below, File):
                if isinstance(below.attribute, Attribute):
                    assert below.store(data) == len(data)
                else:
                    assert below.write(0, data) == len(data)
                return
            if not isinstance(below, Directory):
                raise OSError(errno.ENOENT, path)
            node = below
        raise OSError(errno.EISDIR, path)

    # Targets.

    @property
    def devices(self) -> Iterable[Device]:
        return self.model.devices.values()

    def pick(self, which: int, sensible: Iterable[Device]) -> str:
        """One of some devices."""
        names = [dev.name for dev in sensible]
        return names[which % len(names)]

    def functions(self) -> list[Function]:
        """Every function that the machine could have now."""
        functions = [f for b in self.model.bridges for f in b.functions]
        return functions + [vf for f in functions for vf in f.vfs]

    def unconnected(self) -> list[Device]:
        return [d for d in self.devices if d.fn.pf0 and d.context is None]

    def connected(self) -> list[Device]:
        return [d for d in self.devices if d.connected]

    def held_by_link(self) -> list[Device]:
        return [d for d in self.devices if d.context is not None and not d.locked]

    def lockable(self) -> list[Device]:
        return [d for d in self.devices if d.fn.tee and d.context is None]

    def locked(self) -> list[Device]:
        return [d for d in self.devices if d.locked]

    def overridden(self) -> list[Device]:
        return [d for d in self.devices if d.override in DRIVERS and d.driver is None]

    def driven(self) -> list[Device]:
        return [d for d in self.devices if d.driver is not None]

    def pfs(self) -> list[Device]:
        return [d for d in self.devices if d.fn.vfs]

    def missing(self) -> list[Function]:
        functions = [f for b in self.model.bridges for f in b.functions]
        return [
            f
            for f in functions
            if f.name not in self.model.devices and f.slot not in self.model.unplugged
        ]

    def slots(self, *, plugged: bool) -> list[Function]:
        functions = [f for b in self.model.bridges for f in b.functions]
        return [f for f in functions if (f.slot not in self.model.unplugged) == plugged]

    def tsm_name(self, which: int, mode: str) -> bytes:
        names = [tsm.name for tsm in self.model.tsms.values() if tsm.mode == mode]
        return names[which % len(names)].encode()

    def holder(self, name: str) -> bytes:
        context = self.model.devices[name].context
        assert context is not None
        return context.tsm.name.encode()

    def holding_module(self, name: str) -> str:
        context = self.model.devices[name].context
        assert context is not None
        return context.tsm.module.name

    # Link TSMs.

    @precondition(lambda self: self.model.has("link") and self.unconnected())
    @rule(which=SAMPLED, tsm=SAMPLED, end=NEWLINE)
    @counted
    def connect(self, which: int, tsm: int, end: bytes) -> None:
        name = self.pick(which, self.unconnected())
        self.write_connect(name, self.tsm_name(tsm, "link") + end)

    @precondition(lambda self: self.model.has("link") and self.unconnected())
    @rule(tsm=SAMPLED)
    @counted
    def connect_all(self, tsm: int) -> None:
        data = self.tsm_name(tsm, "link") + b"\n"
        for dev in self.unconnected():
            self.write_connect(dev.name, data)

    @precondition(lambda self: self.model.has("link") and self.unconnected())
    @rule(
        which=SAMPLED,
        tsm=SAMPLED,
        point=st.sampled_from(CONNECT_POINTS),
        number=st.sampled_from(ERRNOS),
        passes=st.sampled_from(range(4)),
    )
    @counted
    def connect_with_fault(
        self, which: int, tsm: int, point: Point, number: int, passes: int
    ) -> None:
        """One of its steps fails, or a function that depends on it is not probed."""
        if point is not Point.TSM_PROBE:
            passes = 0
        self.arm(point, number, passes)
        name = self.pick(which, self.unconnected())
        self.write_connect(name, self.tsm_name(tsm, "link"))

    def write_connect(self, name: str, data: bytes) -> None:
        path = f"/bus/pci/devices/{name}/tsm/connect"
        self.write(path, data, lambda: self.model.connect(name, data))

    @precondition(lambda self: bool(self.connected()))
    @rule(which=SAMPLED, end=NEWLINE)
    @counted
    def disconnect(self, which: int, end: bytes) -> None:
        name = self.pick(which, self.connected())
        self.write_disconnect(name, self.holder(name) + end)

    def write_disconnect(self, name: str, data: bytes) -> None:
        path = f"/bus/pci/devices/{name}/tsm/disconnect"
        self.write(path, data, lambda: self.model.disconnect(name, data))

    @precondition(lambda self: bool(self.held_by_link()))
    @rule(which=SAMPLED, vm=st.sampled_from(("vm0", "vm1")))
    @counted
    def tsm_bind(self, which: int, vm: str) -> None:
        name = self.pick(which, self.held_by_link())
        self.write_tsm_bind(self.holding_module(name), name, vm)

    def write_tsm_bind(self, module: str, name: str, vm: str) -> None:
        """Only the test's own module knows more than one VM."""
        vm = vm if module == "test_link_tsm" else ""
        self.write(
            f"/bus/faux/devices/{module}/tsm_bind",
            f"{name} {vm}".strip().encode(),
            lambda: self.model.tsm_bind(module, name.encode(), vm),
        )

    @precondition(lambda self: bool(self.held_by_link()))
    @rule(which=SAMPLED, end=NEWLINE)
    @counted
    def tsm_unbind(self, which: int, end: bytes) -> None:
        name = self.pick(which, self.held_by_link())
        self.write_tsm_unbind(self.holding_module(name), name.encode() + end)

    def write_tsm_unbind(self, module: str, data: bytes) -> None:
        path = f"/bus/faux/devices/{module}/tsm_unbind"
        self.write(path, data, lambda: self.model.tsm_unbind(module, data))

    @precondition(lambda self: bool(self.held_by_link()))
    @rule(which=SAMPLED, end=NEWLINE)
    @counted
    def tsm_request(self, which: int, end: bytes) -> None:
        bound = [d for d in self.held_by_link() if d.context is not None and d.context.vm == ""]
        name = self.pick(which, bound or self.held_by_link())
        self.write_tsm_request(name.encode() + end)

    def write_tsm_request(self, data: bytes) -> None:
        module = "devsec_link_tsm"
        path = f"/bus/faux/devices/{module}/tsm_request"
        self.write(path, data, lambda: self.model.tsm_request(module, data))

    # Devsec TSMs.

    @precondition(lambda self: self.model.has("devsec") and self.lockable())
    @rule(which=SAMPLED, tsm=SAMPLED, end=NEWLINE)
    @counted
    def lock(self, which: int, tsm: int, end: bytes) -> None:
        name = self.pick(which, self.lockable())
        self.write_lock(name, self.tsm_name(tsm, "devsec") + end)

    @precondition(lambda self: self.model.has("devsec") and self.lockable())
    @rule(which=SAMPLED, tsm=SAMPLED)
    @counted
    def lock_and_accept(self, which: int, tsm: int) -> None:
        name = self.pick(which, self.lockable())
        self.write_lock(name, self.tsm_name(tsm, "devsec"))
        self.write_accept(name, b"1")

    @precondition(lambda self: self.model.has("devsec") and self.lockable())
    @rule(which=SAMPLED, what=SAMPLED)
    @counted
    def lock_driven(self, which: int, what: int) -> None:
        """With a driver bound, if there is such a function, and by any TSM."""
        driven = [d for d in self.lockable() if d.driver is not None]
        self.write_lock(self.pick(which, driven or self.lockable()), self.any_tsm(what))

    def write_lock(self, name: str, data: bytes) -> None:
        path = f"/bus/pci/devices/{name}/tsm/lock"
        self.write(path, data, lambda: self.model.lock(name, data))

    @precondition(lambda self: bool(self.locked()))
    @rule(which=SAMPLED, end=NEWLINE)
    @counted
    def unlock(self, which: int, end: bytes) -> None:
        name = self.pick(which, self.locked())
        self.write_unlock(name, self.holder(name) + end)

    def write_unlock(self, name: str, data: bytes) -> None:
        path = f"/bus/pci/devices/{name}/tsm/unlock"
        self.write(path, data, lambda: self.model.unlock(name, data))

    @precondition(lambda self: bool(self.locked()))
    @rule(which=SAMPLED, data=st.sampled_from(TRUTHS))
    @counted
    def accept(self, which: int, data: bytes) -> None:
        self.write_accept(self.pick(which, self.locked()), data)

    def write_accept(self, name: str, data: bytes) -> None:
        path = f"/bus/pci/devices/{name}/tsm/accept"
        self.write(path, data, lambda: self.model.accept(name, data))

    # Functions come and go.

    @precondition(lambda self: len(self.model.devices) > MANY)
    @rule(which=SAMPLED, data=st.sampled_from((b"1\n", b"1", b"0x1\n")))
    @counted
    def remove(self, which: int, data: bytes) -> None:
        self.write_remove(self.pick(which, self.devices), data)

    def write_remove(self, name: str, data: bytes) -> None:
        path = f"/bus/pci/devices/{name}/remove"
        self.write(path, data, lambda: self.model.remove(name, data))

    @precondition(lambda self: bool(self.missing()))
    @rule(data=st.sampled_from((b"1\n", b"1")))
    @counted
    def rescan(self, data: bytes) -> None:
        self.write_rescan(data)

    def write_rescan(self, data: bytes) -> None:
        self.write("/bus/pci/rescan", data, lambda: self.model.rescan(data))

    @precondition(lambda self: self.missing() and self.model.devices)
    @rule(which=SAMPLED, data=st.sampled_from((b"1\n", b"1")))
    @counted
    def rescan_bus_of(self, which: int, data: bytes) -> None:
        self.write_rescan_bus_of(self.pick(which, self.devices), data)

    def write_rescan_bus_of(self, name: str, data: bytes) -> None:
        path = f"/bus/pci/devices/{name}/rescan"
        self.write(path, data, lambda: self.model.rescan_bus_of(name, data))

    @precondition(lambda self: self.slots(plugged=False))
    @rule(which=SAMPLED, end=NEWLINE)
    @counted
    def plug(self, which: int, end: bytes) -> None:
        slots = self.slots(plugged=False)
        self.write_plug(slots[which % len(slots)].name.encode() + end)

    def write_plug(self, data: bytes) -> None:
        self.write("/kernel/tsmfs/plug", data, lambda: self.model.plug(data))

    @precondition(lambda self: len(self.model.devices) > MANY)
    @rule(which=SAMPLED, end=NEWLINE)
    @counted
    def unplug(self, which: int, end: bytes) -> None:
        slots = self.slots(plugged=True)
        self.write_unplug(slots[which % len(slots)].name.encode() + end)

    def write_unplug(self, data: bytes) -> None:
        self.write("/kernel/tsmfs/unplug", data, lambda: self.model.unplug(data))

    @precondition(lambda self: any(d.driver == "pci-pf-stub" for d in self.pfs()))
    @rule(which=SAMPLED, data=st.sampled_from(NUMBERS))
    @counted
    def sriov_numvfs(self, which: int, data: bytes) -> None:
        bound = [d for d in self.pfs() if d.driver == "pci-pf-stub"]
        self.write_numvfs(self.pick(which, bound), data)

    def write_numvfs(self, name: str, data: bytes) -> None:
        path = f"/bus/pci/devices/{name}/sriov_numvfs"
        self.write(path, data, lambda: self.model.numvfs(name, data))

    @precondition(lambda self: bool(self.pfs()))
    @rule(which=SAMPLED, data=st.sampled_from((b"1\n", b"2\n", b"8\n")))
    @counted
    def enable_vfs(self, which: int, data: bytes) -> None:
        """The whole way to virtual functions, which few random walks find."""
        name = self.pick(which, self.pfs())
        self.write_modprobe("pci_pf_stub")
        self.write_override(name, b"pci-pf-stub\n")
        self.write_driver("pci-pf-stub", "bind", name.encode())
        self.write_numvfs(name, data)

    # Drivers.

    @precondition(lambda self: self.model.devices)
    @rule(which=SAMPLED, driver=st.sampled_from(tuple(DRIVERS)), end=NEWLINE)
    @counted
    def driver_override(self, which: int, driver: str, end: bytes) -> None:
        self.write_override(self.pick(which, self.devices), driver.encode() + end)

    def write_override(self, name: str, data: bytes) -> None:
        path = f"/bus/pci/devices/{name}/driver_override"
        self.write(path, data, lambda: self.model.driver_override(name, data))

    @precondition(lambda self: bool(self.overridden()))
    @rule(which=SAMPLED, end=NEWLINE)
    @counted
    def bind(self, which: int, end: bytes) -> None:
        name = self.pick(which, self.overridden())
        driver = self.model.devices[name].override
        assert driver is not None
        self.write_driver(driver, "bind", name.encode() + end)

    @precondition(lambda self: bool(self.locked()))
    @rule(which=SAMPLED, driver=st.sampled_from(("devsec_pci", "devsec_pci", "pci-stub")))
    @counted
    def bind_locked(self, which: int, driver: str) -> None:
        """The whole way to a driver on a locked function."""
        name = self.pick(which, self.locked())
        self.write_modprobe(f"{DRIVERS[driver]} autoprobe=0")
        self.write_override(name, driver.encode())
        self.write_driver(driver, "bind", name.encode())

    @precondition(lambda self: bool(self.driven()))
    @rule(which=SAMPLED, end=NEWLINE)
    @counted
    def unbind(self, which: int, end: bytes) -> None:
        name = self.pick(which, self.driven())
        driver = self.model.devices[name].driver
        assert driver is not None
        self.write_driver(driver, "unbind", name.encode() + end)

    def write_driver(self, driver: str, file: str, data: bytes) -> None:
        operation = self.model.driver_bind if file == "bind" else self.model.driver_unbind
        path = f"/bus/pci/drivers/{driver}/{file}"
        self.write(path, data, lambda: operation(driver, data))

    @precondition(lambda self: bool(self.overridden()))
    @rule(which=SAMPLED, end=NEWLINE)
    @counted
    def drivers_probe(self, which: int, end: bytes) -> None:
        self.write_drivers_probe(self.pick(which, self.overridden()).encode() + end)

    def write_drivers_probe(self, data: bytes) -> None:
        self.write("/bus/pci/drivers_probe", data, lambda: self.model.drivers_probe(data))

    # Modules.

    @rule(line=st.sampled_from(MODPROBE_LINES))
    @counted
    def modprobe(self, line: str) -> None:
        self.write_modprobe(line)

    @precondition(lambda self: len(self.model.tsms) < 2)
    @rule(lines=st.sampled_from(BOOT_LINES))
    @counted
    def modprobe_all(self, lines: tuple[str, ...]) -> None:
        for line in lines:
            self.write_modprobe(line)

    def write_modprobe(self, line: str) -> None:
        data = f"{line}\n".encode()
        self.write("/kernel/tsmfs/modprobe", data, lambda: self.model.modprobe(line))

    @precondition(lambda self: self.model.modules)
    @rule(which=SAMPLED)
    @counted
    def rmmod(self, which: int) -> None:
        modules = list(self.model.modules)
        self.write_rmmod(modules[which % len(modules)])

    def write_rmmod(self, name: str) -> None:
        data = f"{name}\n".encode()
        self.write("/kernel/tsmfs/rmmod", data, lambda: self.model.rmmod(name))

    @rule(data=st.sampled_from((b"1\n", b"Y\n", b"on", b"0\n", b"N\n", b"f")), of=st.booleans())
    @counted
    def autoprobe_policy(self, data: bytes, of: bool) -> None:
        """``drivers_autoprobe`` of the bus, or ``modules_autoprobe``."""
        if of:
            path = "/bus/pci/drivers_autoprobe"
            self.write(path, data, lambda: self.model.set_drivers_autoprobe(data))
            return
        path = "/module/module/parameters/modules_autoprobe"
        self.write(path, data, lambda: self.model.set_modules_autoprobe(data))

    # Any write to anything.

    def any_name(self, which: int) -> str:
        names = [*(f.name for f in self.functions()), "0000:7f:00.0"]
        return names[which % len(names)]

    def any_tsm(self, which: int) -> bytes:
        names = [*(tsm.name.encode() for tsm in self.model.tsms.values()), *BAD_NAMES]
        return names[which % len(names)]

    @rule(
        file=st.sampled_from(("connect", "disconnect", "lock", "unlock", "accept")),
        which=SAMPLED,
        what=SAMPLED,
    )
    @counted
    def anything_to_tsm(self, file: str, which: int, what: int) -> None:
        name, data = self.any_name(which), self.any_tsm(what)
        match file:
            case "connect":
                self.write_connect(name, data)
            case "disconnect":
                self.write_disconnect(name, data)
            case "lock":
                self.write_lock(name, data)
            case "unlock":
                self.write_unlock(name, data)
            case _:
                truths = TRUTHS + NO_TRUTHS
                self.write_accept(name, truths[what % len(truths)])

    @rule(
        file=st.sampled_from(("tsm_bind", "tsm_unbind", "tsm_request", "certs")),
        module=st.sampled_from(SAMPLE_MODULES),
        which=SAMPLED,
    )
    @counted
    def anything_to_tsm_driver(self, file: str, module: str, which: int) -> None:
        name = self.any_name(which)
        link = module if module in LINK_MODULES else LINK_MODULES[0]
        match file:
            case "tsm_bind":
                self.write_tsm_bind(link, name, "vm0")
            case "tsm_unbind":
                self.write_tsm_unbind(link, name.encode())
            case "tsm_request":
                self.write_tsm_request(name.encode())
            case _:
                path = f"/bus/faux/devices/{module}/certs"
                self.write(path, b"x", lambda: self.model.write_certs(module))

    @rule(
        file=st.sampled_from(
            ("remove", "rescan", "rescan_bus_of", "plug", "unplug", "numvfs", "override")
        ),
        which=SAMPLED,
        data=st.sampled_from((*NUMBERS, b"nobody\n", b"\n", b"a" * 4095)),
    )
    @counted
    def anything_to_functions(self, file: str, which: int, data: bytes) -> None:
        name = self.any_name(which)
        slot = f"{name[:-1]}{which % 9}".encode() if which % 4 else data
        match file:
            case "remove":
                self.write_remove(name, data)
            case "rescan":
                self.write_rescan(data)
            case "rescan_bus_of":
                self.write_rescan_bus_of(name, data)
            case "plug":
                self.write_plug(slot)
            case "unplug":
                self.write_unplug(slot)
            case "numvfs":
                self.write_numvfs(name, data)
            case _:
                self.write_override(name, data)

    @rule(
        file=st.sampled_from(("bind", "unbind", "drivers_probe", "rmmod")),
        driver=st.sampled_from(tuple(DRIVERS)),
        which=SAMPLED,
    )
    @counted
    def anything_to_drivers(self, file: str, driver: str, which: int) -> None:
        name = self.any_name(which)
        match file:
            case "drivers_probe":
                self.write_drivers_probe(name.encode())
            case "rmmod":
                names = (*DEPENDS, "devsec-pci", "no_such_module")
                self.write_rmmod(names[which % len(names)])
            case _:
                self.write_driver(driver, file, name.encode())

    # Faults.

    @rule(
        point=st.sampled_from(tuple(Point)),
        number=st.sampled_from(ERRNOS),
        passes=st.sampled_from((0, 0, 0, 1, 2)),
    )
    @counted
    def fault(self, point: Point, number: int, passes: int) -> None:
        """The call of *point* after *passes* others fails, once."""
        self.arm(point, number, passes)

    def arm(self, point: Point, number: int, passes: int) -> None:
        place = f"/kernel/tsmfs/fault/{point}"
        self.store(f"{place}/space", f"{passes + 1}\n".encode())
        self.store(f"{place}/times", b"1\n")
        self.store(f"{place}/errno", f"{errno.errorcode[number]}\n".encode())
        self.store(f"{place}/probability", b"100\n")
        self.model.arm(point, number, passes)

    @precondition(lambda self: self.model.faults)
    @rule(point=st.sampled_from(tuple(Point)))
    @counted
    def no_fault(self, point: Point) -> None:
        self.store(f"/kernel/tsmfs/fault/{point}/probability", b"0\n")
        self.model.disarm(point)

    # What holds after each step.

    @invariant()
    def shows_what_the_model_says(self) -> None:
        expected, actual = self.model.visible(), self.watcher.visible()
        assert actual == expected, {
            name: (actual.get(name), "the model says", expected.get(name))
            for name in sorted(expected.keys() | actual.keys())
            if actual.get(name) != expected.get(name)
        }

    @invariant()
    def fault_points_count(self) -> None:
        for point, attr in self.machine.faults.points.items():
            armed = bool(attr.probability and attr.times)
            assert armed == (point.value in self.model.faults), f"{point} was hit, or was not"

    @invariant()
    def nothing_is_left_over(self) -> None:
        self.watcher.check()
        self.steps += 1
        STATISTICS.steps += self.steps > 0
        if self.steps % 25 == 0:
            self.watcher.check_names()


class DevsecStates(MachineStates):
    """The default machine: no hardware but what ``devsec_bus`` brings."""

    machine_text = description.find("devsec")[1]
    bridges = ()


class ServerStates(MachineStates):
    """The built-in machine ``server``, whose devices the sample TSMs cannot give keys."""

    machine_text = without_keys("server")
    bridges = SERVER


class CrowdedStates(MachineStates):
    """A machine in which streams run out and DSMs are nested."""

    machine_text = CROWDED_TOML
    bridges = CROWDED


MACHINES = (DevsecStates, ServerStates, CrowdedStates)
