# SPDX-License-Identifier: MIT
"""Drivers: what their directories show and how they come and go."""

from __future__ import annotations

import errno
from typing import ClassVar

import pytest

from tests.base.hardware import AnyDriver, add_device, add_driver, crashes, loaded
from tests.machines import boot, fails, summary
from tsmfs.base.bus import BusType
from tsmfs.base.core import DriverCore
from tsmfs.base.device import Device
from tsmfs.base.driver import DeviceDriver, driver_register, driver_unregister
from tsmfs.base.kobject import Attribute, AttributeGroup, Kobject, find
from tsmfs.base.uevent import Uevent


@pytest.fixture
def bus(core: DriverCore) -> BusType:
    return BusType(core, "test")


def test_a_driver_has_its_files_and_those_of_its_kind(bus: BusType) -> None:
    class Special(AnyDriver):
        groups: ClassVar = (AttributeGroup([Attribute("new_id", 0o200)]),)

    driver = Special(bus.core, bus, "special")
    driver_register(driver)
    assert set(driver.names()) == {"bind", "unbind", "uevent", "new_id"}
    assert driver.path() == "/bus/test/drivers/special"


def test_a_driver_may_do_without_bind_and_unbind(bus: BusType) -> None:
    class Fixed(AnyDriver):
        suppress_bind_attrs: ClassVar[bool] = True

    driver = Fixed(bus.core, bus, "fixed")
    driver_register(driver)
    assert driver.names() == ["uevent"]


def test_a_driver_decides_for_itself_what_it_matches(bus: BusType) -> None:
    driver = DeviceDriver(bus.core, bus, "abstract", None)
    with pytest.raises(NotImplementedError):
        driver.match(object())
    assert driver.autoprobe


def test_probe_and_remove_may_be_left_out(bus: BusType) -> None:
    class Passive(DeviceDriver):
        def match(self, dev: object) -> bool:
            return True

    driver = Passive(bus.core, bus, "passive", None)
    driver_register(driver)
    dev = add_device(bus, "dev0")
    assert dev.driver is driver
    dev.device_del()
    assert driver.devices == {}


def test_a_name_is_registered_once(bus: BusType) -> None:
    first = add_driver(bus, "drv")
    with fails(errno.EBUSY):
        add_driver(bus, "drv")
    assert bus.drivers == {"drv": first}
    assert "Driver 'drv' is already registered, aborting..." in bus.core.log.text()


@pytest.mark.parametrize(
    "taken", ["bind", pytest.param("module", id="module, when the driver is on the bus already")]
)
def test_a_driver_whose_files_clash_is_not_registered(
    bus: BusType, heard: list[Uevent], taken: str
) -> None:
    class Clashing(AnyDriver):
        groups: ClassVar = (AttributeGroup([Attribute(taken, 0o200)]),)

    kobj = bus.core.module.add_child("mod")
    dev = add_device(bus, "dev0")
    before = len(heard)
    for _ in range(2):
        with fails(errno.EEXIST):
            driver_register(Clashing(bus.core, bus, "drv", loaded("mod")))
        assert (bus.drivers, bus.drivers_kobj.names(), kobj.names()) == ({}, [], [])
        assert dev.driver is None
    # As nobody heard of its coming, nobody hears of its going.
    assert heard[before:] == []
    driver = add_driver(bus, "drv", loaded("mod"))
    assert dev.driver is driver


def test_a_driver_whose_link_below_its_module_clashes_is_not_registered(bus: BusType) -> None:
    kobj = bus.core.module.add_child("mod")
    other = add_driver(bus, "other", loaded("mod"))
    below = kobj.lookup("drivers")
    assert isinstance(below, Kobject)
    below.add_child("test:drv")
    with fails(errno.EEXIST):
        add_driver(bus, "drv", loaded("mod"))
    assert (bus.drivers, bus.drivers_kobj.names()) == ({"other": other}, ["other"])
    assert set(below.names()) == {"test:other", "test:drv"}


def test_a_driver_that_crashes_while_it_is_offered_devices_lets_go_of_them_all(
    bus: BusType, heard: list[Uevent]
) -> None:
    class Crashing(AnyDriver):
        def match(self, dev: Device) -> bool:
            return dev.name == "dev0" or crashes(dev)

    kobj = bus.core.module.add_child("mod")
    devices = [add_device(bus, f"dev{number}") for number in range(2)]
    before = len(heard)
    driver = Crashing(bus.core, bus, "drv", loaded("mod"))
    with pytest.raises(ZeroDivisionError):
        driver_register(driver)
    assert driver.calls == ["probe dev0", "remove dev0"]
    assert [dev.driver for dev in devices] == [None, None]
    assert (bus.drivers, bus.drivers_kobj.names(), kobj.names()) == ({}, [], [])
    assert summary(heard[before:]) == ["add drv", "bind dev0", "unbind dev0", "remove drv"]


def test_unregistering_releases_the_devices_last_first(bus: BusType, heard: list[Uevent]) -> None:
    driver = add_driver(bus)
    for number in range(3):
        add_device(bus, f"dev{number}")
    driver_unregister(driver)
    assert driver.calls[3:] == ["remove dev2", "remove dev1", "remove dev0"]
    assert bus.drivers == {}
    assert bus.drivers_kobj.names() == []
    assert summary(heard)[-2:] == ["unbind dev0", "remove drv"]
    assert heard[-1].subsystem == "drivers"


def test_a_driver_is_linked_with_its_module(bus: BusType) -> None:
    kobj = bus.core.module.add_child("mod")
    first, second = (add_driver(bus, name, loaded("mod")) for name in ("one", "two"))
    assert find(bus.core.root, "/bus/test/drivers/one/module") is not None
    drivers = kobj.lookup("drivers")
    assert drivers is not None
    assert find(kobj, "drivers/test:one") is not None
    driver_unregister(first)
    assert find(kobj, "drivers/test:one") is None
    assert find(kobj, "drivers/test:two") is not None
    driver_unregister(second)
    assert kobj.names() == []


def test_a_module_that_is_not_shown_is_not_linked(bus: BusType) -> None:
    driver = add_driver(bus, "drv", loaded("hidden"))
    assert driver.lookup("module") is None
    driver_unregister(driver)
    assert bus.drivers_kobj.names() == []


def test_links_of_a_real_driver_resolve() -> None:
    sh = boot("devsec", ["pci_stub"])
    assert sh.readlink("/bus/pci/drivers/pci-stub/module") == "../../../../module/pci_stub"
    assert (
        sh.readlink("/module/pci_stub/drivers/pci:pci-stub") == "../../../bus/pci/drivers/pci-stub"
    )
