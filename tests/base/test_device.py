# SPDX-License-Identifier: MIT
"""Devices: where they are, what they show, and that they go without a trace."""

from __future__ import annotations

import errno

import pytest

from tests.base.hardware import add_device, add_driver, declines
from tests.machines import boot, fails, pci, summary
from tsmfs.base.bus import BusType
from tsmfs.base.class_ import Class
from tsmfs.base.core import DriverCore
from tsmfs.base.device import Device
from tsmfs.base.kobject import Attribute, AttributeGroup, File, Link, find
from tsmfs.base.uevent import Action, Uevent


@pytest.fixture
def bus(core: DriverCore) -> BusType:
    return BusType(core, "test", uevent_vars=lambda dev: [("NAME", dev.name)])


def show(dev: Device, name: str) -> str:
    node = find(dev, name)
    assert isinstance(node, File)
    return node.show().decode()


def store(dev: Device, name: str, data: bytes) -> None:
    node = find(dev, name)
    assert isinstance(node, File)
    node.store(data)


def link(dev: Device, name: str) -> str:
    node = dev.lookup(name)
    assert isinstance(node, Link)
    return node.readlink()


def test_a_device_without_a_parent_is_at_the_top(core: DriverCore) -> None:
    dev = Device(core, "dev0")
    dev.device_add()
    assert dev.path() == "/devices/dev0"
    assert set(dev.names()) == {"uevent", "power"}
    assert dev.subsystem is None


def test_a_device_on_a_bus_is_linked_from_it(core: DriverCore, bus: BusType) -> None:
    parent = Device(core, "parent")
    parent.device_add()
    dev = add_device(bus, "dev0", parent)
    assert dev.path() == "/devices/parent/dev0"
    at_bus = find(core.root, "/bus/test/devices/dev0")
    assert isinstance(at_bus, Link)
    assert at_bus.readlink() == "../../../devices/parent/dev0"
    assert link(dev, "subsystem") == "../../../bus/test"
    assert dev.subsystem == "test"


def test_a_class_device_is_in_a_directory_of_its_class(core: DriverCore) -> None:
    cls = Class(core, "tsm")
    parent = Device(core, "parent")
    parent.device_add()
    devices = [Device(core, name, parent=parent, cls=cls) for name in ("tsm0", "tsm1")]
    for dev in devices:
        dev.device_add()
    assert devices[0].path() == "/devices/parent/tsm/tsm0"
    assert link(devices[0], "device") == "../../../parent"
    assert link(devices[0], "subsystem") == "../../../../class/tsm"
    at_class = find(core.root, "/class/tsm/tsm0")
    assert isinstance(at_class, Link)
    assert at_class.readlink() == "../../devices/parent/tsm/tsm0"
    assert list(cls) == devices

    devices[0].device_del()
    assert find(core.root, "/devices/parent/tsm/tsm1") is devices[1]
    devices[1].device_del()
    assert parent.lookup("tsm") is None
    assert cls.kobj.names() == []


def test_a_class_device_below_a_class_device_needs_no_directory(core: DriverCore) -> None:
    cls = Class(core, "tsm")
    parent = Device(core, "tsm0", cls=cls)
    parent.device_add()
    child = Device(core, "tsm0-child", parent=parent, cls=cls)
    child.device_add()
    assert child.path() == "/devices/virtual/tsm/tsm0/tsm0-child"
    assert parent.lookup("device") is None
    child.device_del()
    assert find(core.root, "/devices/virtual/tsm/tsm0") is parent


def test_the_uevent_file_reads_the_devices_variables(bus: BusType) -> None:
    dev = add_device(bus, "dev0")
    assert show(dev, "uevent") == "NAME=dev0\n"
    add_driver(bus, "drv")
    assert show(dev, "uevent") == "DRIVER=drv\nNAME=dev0\n"


def test_a_device_of_no_subsystem_sends_no_uevents(core: DriverCore, heard: list[Uevent]) -> None:
    dev = Device(core, "dev0")
    dev.device_add()
    store(dev, "uevent", b"change")
    with fails(errno.EINVAL):
        store(dev, "uevent", b"bogus")
    dev.device_del()
    assert heard == []


def test_a_device_is_complete_when_its_add_is_sent(core: DriverCore, bus: BusType) -> None:
    seen: dict[Action, set[str]] = {}
    dev = Device(core, "dev0", bus=bus)
    dev.groups = (AttributeGroup([Attribute("own", 0o444)]),)
    core.uevents.listeners.append(lambda event: seen.update({event.action: set(dev.names())}))
    add_driver(bus)
    dev.device_add()
    assert seen[Action.ADD] == {"uevent", "own", "subsystem", "power"}
    assert seen[Action.BIND] == {"uevent", "own", "subsystem", "power", "driver"}
    dev.device_del()
    assert seen[Action.UNBIND] == seen[Action.REMOVE] == seen[Action.ADD]


def test_uevents_of_a_life(bus: BusType, heard: list[Uevent]) -> None:
    add_driver(bus)
    dev = add_device(bus, "dev0")
    dev.device_del()
    assert summary(heard) == ["add drv", "add dev0", "bind dev0", "unbind dev0", "remove dev0"]
    keys = [[key for key, _ in event.env] for event in heard[1:]]
    start, end = ["ACTION", "DEVPATH", "SUBSYSTEM"], ["NAME", "SEQNUM"]
    assert keys == [
        [*start, *end],
        [*start, "DRIVER", *end],
        [*start, *end],
        [*start, *end],
    ]


@pytest.mark.parametrize("order", [0, 1])
def test_a_name_that_is_taken_changes_nothing(core: DriverCore, bus: BusType, order: int) -> None:
    places = [Device(core, name) for name in ("a", "b")]
    for place in places:
        place.device_add()
    first = add_device(bus, "dev0", places[0])
    # The same place the one time, the same bus the other.
    again = Device(core, "dev0", parent=places[order], bus=bus)
    names = set(first.names())
    with fails(errno.EEXIST):
        again.device_add()
    assert bus.find_device("dev0") is first
    assert bus.devices_kobj.names() == ["dev0"]
    assert set(first.names()) == names
    assert set(places[1].names()) == {"uevent", "power"}
    assert find(core.root, "/devices/a/dev0") is first


def test_a_class_name_that_is_taken_changes_nothing(core: DriverCore) -> None:
    cls = Class(core, "tsm")
    places = [Device(core, name) for name in ("a", "b")]
    for place in places:
        place.device_add()
    first, second = (Device(core, "tsm0", parent=place, cls=cls) for place in places)
    first.device_add()
    with fails(errno.EEXIST):
        second.device_add()
    assert list(cls) == [first]
    node = cls.kobj.lookup("tsm0")
    assert isinstance(node, Link)
    assert node.target is first
    assert places[1].lookup("tsm") is None


def test_a_group_that_clashes_takes_the_device_back_out(core: DriverCore, bus: BusType) -> None:
    dev = Device(core, "dev0", bus=bus)
    dev.groups = (AttributeGroup([Attribute("uevent", 0o444)]),)
    with fails(errno.EEXIST):
        dev.device_add()
    assert core.devices.names() == []
    assert bus.devices == {}
    assert bus.devices_kobj.names() == []


def test_a_device_that_goes_cannot_be_bound(bus: BusType) -> None:
    dev = add_device(bus, "dev0")
    driver = add_driver(bus, "drv")
    driver.on_remove = lambda gone: bus.attach(driver, dev)
    dev.device_del()
    assert dev.driver is None
    with fails(errno.ENODEV):
        bus.attach(driver, dev)


# power/


def test_power_files_read_as_a_devices_without_runtime_power_management(core: DriverCore) -> None:
    dev = Device(core, "dev0")
    dev.device_add()
    assert {
        name: show(dev, f"power/{name}")
        for name in ("control", "runtime_active_time", "runtime_status", "runtime_suspended_time")
    } == {
        "control": "auto\n",
        "runtime_active_time": "0\n",
        "runtime_status": "unsupported\n",
        "runtime_suspended_time": "0\n",
    }


def test_a_pci_function_is_active() -> None:
    sh = boot("devsec")
    power = f"{pci('10000:01:00.0')}/power"
    assert sh.cat(f"{power}/control") == "on\n"
    assert sh.cat(f"{power}/runtime_status") == "active\n"
    assert int(sh.cat(f"{power}/runtime_active_time")) >= 0


def test_power_control_takes_auto_and_on(core: DriverCore) -> None:
    dev = Device(core, "dev0")
    dev.device_add()
    for value in (b"on", b"auto\n", b"on\n"):
        store(dev, "power/control", value)
        assert show(dev, "power/control").strip() == value.decode().strip()
    for value in (b"off", b"", b"\n", b"ON", b"on\n\n", b"\xff", b"on "):
        if value:
            with fails(errno.EINVAL):
                store(dev, "power/control", value)
    assert show(dev, "power/control") == "on\n"


def test_without_autosuspend_its_delay_is_an_io_error(core: DriverCore) -> None:
    dev = Device(core, "dev0")
    dev.device_add()
    with fails(errno.EIO):
        show(dev, "power/autosuspend_delay_ms")
    with fails(errno.EIO):
        store(dev, "power/autosuspend_delay_ms", b"100\n")


# Messages


def test_messages_name_driver_and_device(core: DriverCore, bus: BusType) -> None:
    free, bound = add_device(bus, "free"), add_device(bus, "dev0")
    lone = Device(core, "lone")
    add_driver(bus, "drv")
    for dev in (free, bound, lone):
        dev.info("info")
        dev.warn("warning")
        dev.err("error")
        dev.debug("debug")
    lines = [line[15:] for line in core.log.text().splitlines()]
    for prefix in ("test free:", "drv dev0:", " lone:"):
        assert [line for line in lines if line.startswith(prefix)] == [
            f"{prefix} {text}" for text in ("info", "warning", "error", "debug")
        ]


def test_a_probe_error_is_logged_unless_it_only_declines(bus: BusType) -> None:
    driver = add_driver(bus)
    for number in (errno.ENODEV, errno.ENXIO, errno.ENOMEM):
        driver.on_probe = declines(number)
        add_device(bus, f"dev{number}")
    lines = [line for line in bus.core.log.text().splitlines() if "probe with driver" in line]
    assert len(lines) == 1
    assert lines[0].endswith(f"dev{errno.ENOMEM}: probe with driver drv failed with error -12")
