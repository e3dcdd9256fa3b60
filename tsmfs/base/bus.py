# SPDX-License-Identifier: MIT
"""Buses: their devices and drivers, and how these come together (drivers/base/bus.c, dd.c)."""

from __future__ import annotations

import contextlib
import errno
import traceback
from collections.abc import Callable, Sequence

from tsmfs.base.core import DriverCore
from tsmfs.base.device import Device
from tsmfs.base.driver import DeviceDriver
from tsmfs.base.kobject import Attribute, AttributeGroup, Kobject
from tsmfs.base.uevent import Action, Env, parse_synthetic
from tsmfs.kernel.errors import errno_of, fail
from tsmfs.kernel.fault import Point


class BusType(Kobject):
    """``struct bus_type``: ``bus/<name>`` with its devices and drivers."""

    __slots__ = (
        "_uevent_vars",
        "core",
        "devices",
        "devices_kobj",
        "drivers",
        "drivers_autoprobe",
        "drivers_kobj",
    )

    def __init__(
        self,
        core: DriverCore,
        name: str,
        *,
        groups: Sequence[AttributeGroup] = (),
        uevent_vars: Callable[[Device], Env] = lambda dev: [],
    ) -> None:
        super().__init__(core.root.tree, name)
        self.core = core
        self.devices: dict[str, Device] = {}
        self.drivers: dict[str, DeviceDriver] = {}
        self.drivers_autoprobe = True
        self._uevent_vars = uevent_vars
        core.bus.add(self)
        self.devices_kobj = self.add_child("devices")
        self.drivers_kobj = self.add_child("drivers")
        self.add_groups([BUS_GROUP, *groups])
        core.uevent(self, Action.ADD, "bus", [])

    def uevent_vars(self, dev: Device) -> Env:
        """Variables that the bus adds to the uevents of *dev*."""
        return self._uevent_vars(dev)

    def find_device(self, name: str) -> Device | None:
        """The device called *name* (``bus_find_device_by_name()``)."""
        return self.devices.get(name)

    def add_device(self, dev: Device) -> None:
        """Link *dev* (``bus_add_device()``); EEXIST when the name is on the bus already."""
        self.devices_kobj.create_link(dev, dev.name)
        try:
            dev.create_link(self, "subsystem")
        except BaseException:
            self.devices_kobj.remove_link(dev.name)
            raise
        self.devices[dev.name] = dev

    def remove_device(self, dev: Device) -> None:
        """Undo :meth:`add_device`."""
        if self.devices.get(dev.name) is dev:
            del self.devices[dev.name]
            self.devices_kobj.remove_link(dev.name)

    def can_probe(self, dev: Device) -> bool:
        """Whether drivers may take *dev* at all; a bus with such a rule overrides it."""
        return True

    def probe_device(self, dev: Device) -> None:
        """Find a driver for a new device unless the bus does not autoprobe."""
        if self.drivers_autoprobe:
            self.attach_device(dev)

    def attach_device(self, dev: Device) -> None:
        """Offer *dev* to every driver in turn until one takes it (``device_attach()``)."""
        for driver in list(self.drivers.values()):
            if dev.driver is not None:
                return
            self._try(driver, dev)

    def attach_driver(self, driver: DeviceDriver) -> None:
        """Offer every device to *driver* (``driver_attach()``)."""
        for dev in list(self.devices.values()):
            if dev.driver is None:
                self._try(driver, dev)

    def _try(self, driver: DeviceDriver, dev: Device) -> None:
        if not driver.autoprobe or not driver.match(dev):
            return
        try:
            self.attach(driver, dev)
        except OSError as error:
            if error.errno not in (errno.ENODEV, errno.ENXIO, errno.EBUSY):
                dev.warn(f"probe with driver {driver.name} failed with error -{error.errno}")

    def attach(self, driver: DeviceDriver, dev: Device) -> None:
        """Bind *dev* to *driver* (``device_driver_attach()``).

        ENODEV when it is going, EBUSY when it has a driver, ENODEV when *driver* is going, EEXIST
        when a link between them clashes, else the errno of its probe.
        """
        with dev.lock.lock_interruptible():
            if dev.dead:
                fail(errno.ENODEV)
            if dev.driver is not None:
                fail(errno.EBUSY)
            self._really_probe(driver, dev)

    def _really_probe(self, driver: DeviceDriver, dev: Device) -> None:
        dev.driver = driver
        driver.devices[dev.name] = dev
        links = contextlib.ExitStack()
        try:
            # A driver that goes leaves the bus before it releases those among its devices: either
            # it finds this one there, or it is found gone here.
            if self.drivers.get(driver.name) is not driver:
                fail(errno.ENODEV)
            dev.create_link(driver, "driver")
            links.callback(dev.remove_link, "driver")
            driver.create_link(dev, dev.name)
            links.callback(driver.remove_link, dev.name)
            self.core.faults.inject(Point.DEVICE_PROBE, dev.name)
            if not self.can_probe(dev):
                fail(errno.ENODEV)
            driver.probe(dev)
        except Exception as error:
            self._release_devres(dev)
            links.close()
            self._forget(driver, dev)
            if not isinstance(error, OSError):
                dev.err(f"probe raised\n{traceback.format_exc()}")
                fail(errno.EIO)
            if errno_of(error) == errno.EIO != error.errno:
                fail(errno.EIO, str(error))
            raise
        dev.uevent(Action.BIND)

    def _release_devres(self, dev: Device) -> None:
        try:
            dev.devres.close()
        except Exception:
            dev.err(f"release of a managed resource raised\n{traceback.format_exc()}")

    def _forget(self, driver: DeviceDriver, dev: Device) -> None:
        driver.devices.pop(dev.name, None)
        dev.driver = None

    def release_driver(self, dev: Device, expected: DeviceDriver | None = None) -> None:
        """Unbind *dev*, if *expected* is None or its driver (``device_release_driver()``)."""
        with dev.lock.lock():
            driver = dev.driver
            if driver is None or expected not in (None, driver):
                return
            try:
                driver.remove(dev)
            except Exception:
                dev.err(f"remove raised\n{traceback.format_exc()}")
            self._release_devres(dev)
            driver.remove_link(dev.name)
            dev.remove_link("driver")
            self._forget(driver, dev)
            dev.uevent(Action.UNBIND)

    def destroy(self) -> None:
        """Take the bus out; it has no devices or drivers any more."""
        self.core.uevent(self, Action.REMOVE, "bus", [])
        self.delete()


def _drivers_autoprobe_store(bus: BusType, data: bytes) -> None:
    bus.drivers_autoprobe = data[:1] != b"0"


def _drivers_probe_store(bus: BusType, data: bytes) -> None:
    dev = bus.find_device(data.removesuffix(b"\n").decode("latin-1"))
    if dev is None:
        fail(errno.ENODEV)
    if dev.driver is None:
        bus.attach_device(dev)


def _uevent_store(bus: BusType, data: bytes) -> None:
    action, env = parse_synthetic(data)
    bus.core.uevent(bus, action, "bus", env)


BUS_GROUP = AttributeGroup(
    [
        Attribute(
            "drivers_autoprobe",
            0o644,
            lambda bus: f"{bus.drivers_autoprobe:d}\n",
            _drivers_autoprobe_store,
        ),
        Attribute("drivers_probe", 0o200, store=_drivers_probe_store),
        Attribute("uevent", 0o200, store=_uevent_store),
    ]
)
