# SPDX-License-Identifier: MIT
"""Buses: how devices and drivers come together and part, and what each attempt answers."""

from __future__ import annotations

import errno
import os
import threading
import time
from collections.abc import Callable
from concurrent.futures import Future
from pathlib import Path

import pytest

from tests.base.hardware import AnyDriver, add_device, add_driver, crashes, declines, loaded
from tests.machines import STUCK, boot, errno_from, errno_of_result, fails, pci, summary, threads
from tsmfs.base.bus import BusType
from tsmfs.base.core import DriverCore
from tsmfs.base.device import Device
from tsmfs.base.driver import driver_unregister
from tsmfs.base.kobject import Attribute, AttributeGroup, File, find
from tsmfs.base.uevent import Uevent
from tsmfs.kernel.errors import EPROBE_DEFER
from tsmfs.kernel.fault import FaultAttr, Point


@pytest.fixture
def bus(core: DriverCore) -> BusType:
    return BusType(core, "test")


def write(bus: BusType, path: str, text: str | bytes) -> None:
    node = find(bus, path)
    assert isinstance(node, File), path
    node.store(text if isinstance(text, bytes) else f"{text}\n".encode())


def read(bus: BusType, path: str) -> str:
    node = find(bus, path)
    assert isinstance(node, File), path
    return node.show().decode()


def test_a_bus_has_its_files(core: DriverCore, bus: BusType, heard: list[Uevent]) -> None:
    assert set(bus.names()) == {
        "devices", "drivers", "drivers_autoprobe", "drivers_probe", "uevent",
    }  # fmt: skip
    bus.destroy()
    assert find(core.root, "/bus/test") is None
    assert summary(heard) == ["remove test"]


def test_a_new_device_gets_a_driver(bus: BusType) -> None:
    driver = add_driver(bus)
    dev = add_device(bus, "dev0")
    assert dev.driver is driver
    assert driver.devices == {"dev0": dev}
    assert find(bus, "drivers/drv/dev0") is not None
    assert dev.lookup("driver") is not None


def test_a_new_driver_gets_the_devices_that_have_none(bus: BusType) -> None:
    first = add_driver(bus, "first")
    taken = add_device(bus, "dev0")
    first.prefix = "other"
    free = add_device(bus, "dev1")
    second = add_driver(bus, "second")
    assert (taken.driver, free.driver) == (first, second)
    assert second.calls == ["probe dev1"]


def test_drivers_are_tried_in_turn_until_one_takes_the_device(bus: BusType) -> None:
    drivers = [add_driver(bus, name) for name in ("a", "b", "c")]
    drivers[0].on_probe = declines(errno.ENODEV)
    dev = add_device(bus, "dev0")
    assert dev.driver is drivers[1]
    assert [driver.calls for driver in drivers] == [["probe dev0"], ["probe dev0"], []]


def test_a_driver_that_does_not_match_is_not_asked(bus: BusType) -> None:
    driver = add_driver(bus)
    driver.prefix = "other"
    assert add_device(bus, "dev0").driver is None
    assert driver.calls == []


# Probes that fail


@pytest.mark.parametrize(
    ("probe", "number"),
    [
        (declines(errno.ENODEV), errno.ENODEV),
        (declines(errno.ENOMEM), errno.ENOMEM),
        (declines(EPROBE_DEFER), errno.EAGAIN),
        (declines(100000), errno.EIO),
        (crashes, errno.EIO),
    ],
)
def test_a_probe_that_fails_leaves_the_device_as_it_was(
    bus: BusType, heard: list[Uevent], probe: Callable[[Device], object], number: int
) -> None:
    bus.drivers_autoprobe = False
    dev = add_device(bus, "dev0")
    driver = add_driver(bus)
    released: list[str] = []

    def managed(dev: Device) -> None:
        dev.devres.callback(lambda: released.append("first"))
        dev.devres.callback(lambda: released.append("second"))
        probe(dev)

    driver.on_probe = managed
    names, before = set(dev.names()), len(heard)
    with fails(number):
        write(bus, "drivers/drv/bind", "dev0")
    assert dev.driver is None
    assert driver.devices == {}
    assert set(dev.names()) == names
    assert find(bus, "drivers/drv/dev0") is None
    assert released == ["second", "first"]
    assert heard[before:] == []
    # And nothing is in the way of the next attempt.
    driver.on_probe = lambda dev: None
    write(bus, "drivers/drv/bind", "dev0")
    assert dev.driver is driver


@pytest.mark.parametrize("link", [False, True], ids=["directory", "link"])
@pytest.mark.parametrize("place", ["dev0", "drivers/drv"])
def test_a_link_that_cannot_be_made_leaves_the_device_without_a_driver(
    bus: BusType, heard: list[Uevent], place: str, link: bool
) -> None:
    bus.drivers_autoprobe = False
    dev, driver = add_device(bus, "dev0"), add_driver(bus)
    where, name = (dev, "driver") if place == "dev0" else (driver, "dev0")
    if link:
        where.create_link(bus, name)
    else:
        where.add_child(name)
    names, before = (set(dev.names()), set(driver.names())), len(heard)
    for _ in range(2):
        with fails(errno.EEXIST):
            write(bus, "drivers/drv/bind", "dev0")
        assert (dev.driver, driver.devices, driver.calls) == (None, {}, [])
        assert (set(dev.names()), set(driver.names())) == names
    assert heard[before:] == []
    where.discard(name)
    write(bus, "drivers/drv/bind", "dev0")
    assert dev.driver is driver


def test_a_probe_that_crashes_is_in_the_log(bus: BusType) -> None:
    add_driver(bus).on_probe = crashes
    assert add_device(bus, "dev0").driver is None
    assert "dev0: probe raised\n" in bus.core.log.text()
    assert "ZeroDivisionError" in bus.core.log.text()


def test_an_injected_fault_fails_a_probe(bus: BusType) -> None:
    driver = add_driver(bus)
    bus.core.faults.points[Point.DEVICE_PROBE] = FaultAttr(probability=100, errno=errno.ENOMEM)
    dev = add_device(bus, "dev0")
    assert (dev.driver, driver.calls) == (None, [])
    write(bus, "drivers_probe", "dev0")
    assert dev.driver is driver


def test_a_bus_may_forbid_a_probe(core: DriverCore) -> None:
    class Strict(BusType):
        def can_probe(self, dev: Device) -> bool:
            return False

    bus = Strict(core, "strict")
    driver = add_driver(bus)
    dev = add_device(bus, "dev0")
    with fails(errno.ENODEV):
        write(bus, "drivers/drv/bind", "dev0")
    assert (dev.driver, driver.calls) == (None, [])


# Letting go


def test_unbinding_releases_what_the_driver_acquired_last_first(bus: BusType) -> None:
    driver = add_driver(bus)
    order: list[str] = []

    def probe(dev: Device) -> None:
        dev.devres.callback(lambda: order.append("first"))
        dev.devres.callback(lambda: order.append("second"))

    driver.on_probe = probe
    driver.on_remove = lambda dev: order.append("remove")
    dev = add_device(bus, "dev0")
    write(bus, "drivers/drv/unbind", "dev0")
    assert order == ["remove", "second", "first"]
    assert dev.driver is None
    assert dev.lookup("driver") is None


@pytest.mark.parametrize("where", ["remove", "devres"])
def test_a_driver_that_crashes_when_it_lets_go_is_off_all_the_same(
    bus: BusType, heard: list[Uevent], where: str
) -> None:
    driver = add_driver(bus)
    if where == "remove":
        driver.on_remove = crashes
    else:
        driver.on_probe = lambda dev: dev.devres.callback(lambda: crashes(dev))
    dev = add_device(bus, "dev0")
    write(bus, "drivers/drv/unbind", "dev0")
    assert dev.driver is None
    assert driver.devices == {}
    assert find(bus, "drivers/drv/dev0") is None
    assert summary(heard)[-1] == "unbind dev0"
    assert "ZeroDivisionError" in bus.core.log.text()
    write(bus, "drivers/drv/bind", "dev0")


def test_a_failed_probe_whose_cleanup_crashes_is_off_all_the_same(bus: BusType) -> None:
    driver = add_driver(bus)

    def probe(dev: Device) -> None:
        dev.devres.callback(lambda: crashes(dev))
        declines(errno.ENOMEM)(dev)

    driver.on_probe = probe
    dev = add_device(bus, "dev0")
    with fails(errno.ENOMEM):
        write(bus, "drivers/drv/bind", "dev0")
    assert dev.driver is None


def test_release_driver_lets_another_driver_be(bus: BusType) -> None:
    driver, other = add_driver(bus, "drv"), add_driver(bus, "other")
    dev = add_device(bus, "dev0")
    bus.release_driver(dev, other)
    assert driver.calls == ["probe dev0"]
    for _ in range(2):
        bus.release_driver(dev, driver)
        assert driver.calls == ["probe dev0", "remove dev0"]
    bus.release_driver(dev)
    assert dev.driver is None


# The files of drivers and of the bus


def test_bind_and_unbind(bus: BusType, heard: list[Uevent]) -> None:
    bus.drivers_autoprobe = False
    add_device(bus, "dev0")
    driver = add_driver(bus)
    write(bus, "drivers/drv/bind", b"dev0")
    assert list(driver.devices) == ["dev0"]
    write(bus, "drivers/drv/unbind", "dev0")
    assert list(driver.devices) == []
    assert summary(heard)[-2:] == ["bind dev0", "unbind dev0"]


@pytest.mark.parametrize(
    ("file", "text", "number"),
    [
        ("bind", "none", errno.ENODEV),
        ("bind", "", errno.ENODEV),
        ("bind", "dev0\n", errno.ENODEV),
        ("bind", "dev0 ", errno.ENODEV),
        ("bind", "dev0", errno.EBUSY),
        ("bind", "other0", errno.ENODEV),
        ("unbind", "none", errno.ENODEV),
        ("unbind", "", errno.ENODEV),
        ("unbind", "free0", errno.ENODEV),
    ],
)
def test_bind_and_unbind_that_cannot_be(bus: BusType, file: str, text: str, number: int) -> None:
    driver = add_driver(bus)
    dev = add_device(bus, "dev0")
    add_device(bus, "other0")
    add_device(bus, "free0")
    with fails(number):
        write(bus, f"drivers/drv/{file}", text)
    assert dev.driver is driver


def test_unbind_from_another_driver_is_no_such_device(bus: BusType) -> None:
    driver = add_driver(bus, "drv")
    add_driver(bus, "other")
    dev = add_device(bus, "dev0")
    with fails(errno.ENODEV):
        write(bus, "drivers/other/unbind", "dev0")
    with fails(errno.EBUSY):
        write(bus, "drivers/other/bind", "dev0")
    assert dev.driver is driver


def test_drivers_probe_looks_for_a_driver(bus: BusType) -> None:
    bus.drivers_autoprobe = False
    dev = add_device(bus, "dev0")
    driver = add_driver(bus)
    write(bus, "drivers_probe", "dev0")
    assert dev.driver is driver
    write(bus, "drivers_probe", "dev0")
    assert driver.calls == ["probe dev0"]


@pytest.mark.parametrize("name", ["none", "", b"\xff", "dev0\n"])
def test_drivers_probe_of_an_unknown_device(bus: BusType, name: str | bytes) -> None:
    add_device(bus, "dev0")
    with fails(errno.ENODEV):
        write(bus, "drivers_probe", name)


def test_drivers_probe_without_a_driver_is_no_error(bus: BusType) -> None:
    dev = add_device(bus, "dev0")
    write(bus, "drivers_probe", "dev0")
    assert dev.driver is None


@pytest.mark.parametrize(
    ("text", "on"), [("0", False), ("1", True), ("n", True), ("00", False), ("", True)]
)
def test_drivers_autoprobe_is_off_only_with_a_zero_in_front(
    bus: BusType, text: str, on: bool
) -> None:
    write(bus, "drivers_autoprobe", text)
    assert read(bus, "drivers_autoprobe") == f"{on:d}\n"
    add_driver(bus)
    assert (add_device(bus, "dev0").driver is not None) == on


def test_a_new_driver_gets_no_device_without_autoprobe(bus: BusType) -> None:
    write(bus, "drivers_autoprobe", "0")
    dev = add_device(bus, "dev0")
    add_driver(bus)
    assert dev.driver is None


def test_drivers_of_a_module_without_autoprobe_are_bound_by_hand_alone(bus: BusType) -> None:
    module = loaded("shy", autoprobe=False)
    early = add_device(bus, "dev0")
    driver = add_driver(bus, module=module)
    late = add_device(bus, "dev1")
    write(bus, "drivers_probe", "dev0")
    assert (early.driver, late.driver, driver.calls) == (None, None, [])
    write(bus, "drivers/drv/bind", "dev0")
    assert early.driver is driver
    module.params["autoprobe"] = True
    write(bus, "drivers_probe", "dev1")
    assert late.driver is driver


def test_two_writers_bind_one_device_once(bus: BusType) -> None:
    bus.drivers_autoprobe = False
    add_device(bus, "dev0")
    drivers = [add_driver(bus, f"drv{number}") for number in range(8)]
    with threads() as pool:
        futures = [pool.submit(write, bus, f"drivers/{d.name}/bind", "dev0") for d in drivers]
        results = [errno_of_result(future) for future in futures]
    assert sorted(results, key=str) == [errno.EBUSY] * 7 + [None]
    assert sum(len(driver.devices) for driver in drivers) == 1


def test_a_driver_that_is_unregistered_meanwhile_binds_nothing(bus: BusType) -> None:
    driver = add_driver(bus)
    dev = add_device(bus, "other")
    driver_unregister(driver)
    with fails(errno.ENODEV):
        bus.attach(driver, dev)


class Going(dict[str, Device]):
    """The devices of a driver that goes in another thread while it gets its first one."""

    def __init__(self, driver: AnyDriver) -> None:
        self.driver = driver

    def __setitem__(self, name: str, dev: Device) -> None:
        with threads() as pool:
            pool.submit(driver_unregister, self.driver).result(STUCK)
        super().__setitem__(name, dev)


def test_a_driver_that_goes_while_it_gets_a_device_leaves_it_to_the_next(bus: BusType) -> None:
    bus.drivers_autoprobe = False
    dev, driver = add_device(bus, "dev0"), add_driver(bus)
    driver.devices = Going(driver)
    with fails(errno.ENODEV):
        write(bus, "drivers/drv/bind", "dev0")
    assert (dev.driver, driver.devices, driver.calls) == (None, {}, [])
    assert dev.lookup("driver") is None
    again = add_driver(bus)
    write(bus, "drivers/drv/bind", "dev0")
    assert dev.driver is again


def test_a_driver_that_goes_while_it_probes_lets_go_of_the_device(bus: BusType) -> None:
    bus.drivers_autoprobe = False
    dev, driver = add_device(bus, "dev0"), add_driver(bus)
    with threads() as pool:
        gone: list[Future[None]] = []

        def probe(_: Device) -> None:
            gone.append(pool.submit(driver_unregister, driver))
            while bus.drivers:
                time.sleep(0.001)

        driver.on_probe = probe
        write(bus, "drivers/drv/bind", "dev0")
        gone[0].result(STUCK)
    assert (dev.driver, driver.devices) == (None, {})
    assert driver.calls == ["probe dev0", "remove dev0"]


# Devices that cannot be shown


def test_a_device_that_cannot_be_linked_leaves_its_name_free(bus: BusType) -> None:
    clashing = Device(bus.core, "dev0", bus=bus)
    clashing.groups = (AttributeGroup([Attribute("subsystem", 0o444)]),)
    with fails(errno.EEXIST):
        clashing.device_add()
    assert (bus.devices, bus.devices_kobj.names()) == ({}, [])
    dev = add_device(bus, "dev0")
    assert bus.devices == {"dev0": dev}


# The same questions to a kernel


def kernel_driver() -> Path | None:
    """A real PCI driver with a device, if there is one that we may ask."""
    for driver in sorted(Path("/sys/bus/pci/drivers").glob("*")):
        if os.access(driver / "bind", os.W_OK) and any(driver.glob("????:??:??.?")):
            return driver
    return None


def write_to(path: Path, text: str) -> None:
    descriptor = os.open(path, os.O_WRONLY)
    try:
        os.write(descriptor, text.encode())
    finally:
        os.close(descriptor)


@pytest.mark.parametrize(
    ("file", "text", "result"),
    [
        ("bind", "nonexistent\n", "ENODEV"),
        ("bind", "\n", "ENODEV"),
        ("bind", "{bound}\n", "EBUSY"),
        ("bind", "{bound}", "EBUSY"),
        ("bind", "{bound}\n\n", "ENODEV"),
        ("bind", "{bound} ", "ENODEV"),
        ("unbind", "nonexistent\n", "ENODEV"),
        ("unbind", "\n", "ENODEV"),
        ("new_id", "\n", "EINVAL"),
        ("new_id", "8086", "EINVAL"),
        ("new_id", "x", "EINVAL"),
        ("new_id", "8086 xyz", "EINVAL"),
        ("remove_id", "\n", "EINVAL"),
        ("remove_id", "8086", "EINVAL"),
        ("remove_id", "8086 xyz", "EINVAL"),
        ("remove_id", "8086 1234abcd", "ENODEV"),
        ("uevent", "bogus", "EINVAL"),
        ("../../drivers_probe", "nonexistent\n", "ENODEV"),
        ("../../drivers_probe", "\n", "ENODEV"),
        ("../../drivers_probe", "{bound}\n", None),
        ("../../rescan", "x\n", "EINVAL"),
        ("../../uevent", "bogus", "EINVAL"),
    ],
)
def test_pci_drivers_answer_as_in_a_kernel(file: str, text: str, result: str | None) -> None:
    sh = boot("devsec", ["devsec_bus", "devsec_pci"])
    sh.echo("devsec_pci", f"{pci('10000:01:00.0')}/driver_override")
    sh.echo("10000:01:00.0", "/bus/pci/drivers/devsec_pci/bind")
    path = (
        f"/bus/pci/{file[6:]}" if file.startswith("../") else f"/bus/pci/drivers/devsec_pci/{file}"
    )
    ours = text.format(bound="10000:01:00.0").encode()
    assert errno_from(lambda: sh.write(path, ours)) == result
    real = kernel_driver()
    if real is not None:
        bound = next(real.glob("????:??:??.?")).name
        assert errno_from(lambda: write_to(real / file, text.format(bound=bound))) == result


def test_a_hanging_probe_does_not_keep_others_from_their_drivers(bus: BusType) -> None:
    bus.drivers_autoprobe = False
    slow, quick = add_device(bus, "dev0"), add_device(bus, "dev1")
    driver = add_driver(bus)
    entered, go_on = threading.Event(), threading.Event()

    def probe(dev: Device) -> None:
        if dev is slow:
            entered.set()
            assert go_on.wait(STUCK)

    driver.on_probe = probe
    with threads() as pool:
        future = pool.submit(write, bus, "drivers/drv/bind", "dev0")
        try:
            assert entered.wait(STUCK)
            write(bus, "drivers/drv/bind", "dev1")
            assert quick.driver is driver
            assert not future.done()
        finally:
            go_on.set()
        future.result(STUCK)
    assert slow.driver is driver
