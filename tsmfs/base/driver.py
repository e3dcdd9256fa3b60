# SPDX-License-Identifier: MIT
"""Drivers and their directories: bind, unbind, uevent (drivers/base/driver.c, bus.c)."""

from __future__ import annotations

import errno
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any, ClassVar

from tsmfs.base.core import DriverCore
from tsmfs.base.device import Device
from tsmfs.base.kobject import Attribute, AttributeGroup, Kobject
from tsmfs.base.uevent import Action, parse_synthetic
from tsmfs.kernel.errors import fail
from tsmfs.kernel.module import LoadedModule

if TYPE_CHECKING:
    from tsmfs.base.bus import BusType


class DeviceDriver(Kobject):
    """``struct device_driver``; its methods are called under the device's lock.

    A kind of driver derives from it and gives *probe* and *remove*.
    """

    __slots__ = ("bus", "core", "devices", "module")

    groups: ClassVar[Sequence[AttributeGroup]] = ()
    suppress_bind_attrs: ClassVar[bool] = False
    """It has no ``bind`` and ``unbind``."""

    def __init__(
        self, core: DriverCore, bus: BusType, name: str, module: LoadedModule | None
    ) -> None:
        super().__init__(core.root.tree, name)
        self.core = core
        self.bus = bus
        self.module = module
        self.devices: dict[str, Device] = {}
        """Devices bound to it, by name."""

    def match(self, dev: Any) -> bool:
        """Whether it may drive *dev*."""
        raise NotImplementedError

    def probe(self, dev: Any) -> None:
        """Take *dev*; raises OSError to decline."""

    def remove(self, dev: Any) -> None:
        """Let go of *dev*; cannot fail."""

    @property
    def autoprobe(self) -> bool:
        """Whether it attaches to devices by itself (the module's ``autoprobe``)."""
        return self.module is None or self.module.autoprobe


def _device(driver: DeviceDriver, data: bytes) -> Device | None:
    return driver.bus.find_device(data.removesuffix(b"\n").decode("latin-1"))


def _bind_store(driver: DeviceDriver, data: bytes) -> None:
    dev = _device(driver, data)
    if dev is None or not driver.match(dev):
        fail(errno.ENODEV)
    driver.bus.attach(driver, dev)


def _unbind_store(driver: DeviceDriver, data: bytes) -> None:
    dev = _device(driver, data)
    if dev is None or dev.driver is not driver:
        fail(errno.ENODEV)
    with dev.lock.lock_interruptible():
        driver.bus.release_driver(dev, driver)


def _uevent_store(driver: DeviceDriver, data: bytes) -> None:
    action, env = parse_synthetic(data)
    driver.core.uevent(driver, action, "drivers", env)


DRIVER_GROUP = AttributeGroup(
    [
        Attribute("bind", 0o200, store=_bind_store),
        Attribute("unbind", 0o200, store=_unbind_store),
        Attribute("uevent", 0o200, store=_uevent_store),
    ],
    is_visible=lambda driver, attr: (
        0 if driver.suppress_bind_attrs and attr.name != "uevent" else attr.mode
    ),
)


def driver_register(driver: DeviceDriver) -> None:
    """Show *driver* and offer it the devices of its bus; all or nothing.

    EBUSY when its name is taken, EEXIST when that of one of its files is.
    """
    core, bus = driver.core, driver.bus
    if bus.drivers_kobj.lookup(driver.name) is not None:
        core.log.err(f"Driver '{driver.name}' is already registered, aborting...")
        fail(errno.EBUSY, f"driver {driver.name} is registered already")
    bus.drivers_kobj.add(driver)
    try:
        driver.add_groups([DRIVER_GROUP, *driver.groups])
        bus.drivers[driver.name] = driver
        if driver.module is not None:
            _link_module(driver, driver.module)
    except BaseException:
        _withdraw(driver)
        driver.delete()
        raise
    core.uevent(driver, Action.ADD, "drivers", [])
    if bus.drivers_autoprobe:
        try:
            bus.attach_driver(driver)
        except BaseException:
            driver_unregister(driver)
            raise


def driver_unregister(driver: DeviceDriver) -> None:
    """Release every device of *driver* and take it out."""
    _withdraw(driver)
    driver.core.uevent(driver, Action.REMOVE, "drivers", [])
    driver.delete()


def _withdraw(driver: DeviceDriver) -> None:
    bus = driver.bus
    bus.drivers.pop(driver.name, None)
    for dev in reversed(list(driver.devices.values())):
        bus.release_driver(dev, driver)
    if driver.module is not None:
        _unlink_module(driver, driver.module)


def _link_module(driver: DeviceDriver, module: LoadedModule) -> None:
    kobj = driver.core.module.lookup(module.name)
    if not isinstance(kobj, Kobject):
        return
    driver.create_link(kobj, "module")
    drivers = kobj.lookup("drivers")
    directory = drivers if isinstance(drivers, Kobject) else kobj.add_child("drivers")
    directory.create_link(driver, f"{driver.bus.name}:{driver.name}")


def _unlink_module(driver: DeviceDriver, module: LoadedModule) -> None:
    kobj = driver.core.module.lookup(module.name)
    if isinstance(kobj, Kobject) and isinstance(drivers := kobj.lookup("drivers"), Kobject):
        drivers.remove_link(f"{driver.bus.name}:{driver.name}")
        if not drivers.children:
            drivers.delete()
