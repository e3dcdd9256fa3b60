# SPDX-License-Identifier: MIT
"""A bus with drivers that do as they are told."""

from __future__ import annotations

from collections.abc import Callable
from typing import NoReturn

from tsmfs.base.bus import BusType
from tsmfs.base.core import DriverCore
from tsmfs.base.device import Device
from tsmfs.base.driver import DeviceDriver, driver_register
from tsmfs.kernel.errors import fail
from tsmfs.kernel.module import AUTOPROBE, LoadedModule


class AnyDriver(DeviceDriver):
    """Takes the devices whose name starts with *prefix*."""

    __slots__ = ("calls", "on_probe", "on_remove", "prefix")

    def __init__(
        self,
        core: DriverCore,
        bus: BusType,
        name: str,
        module: LoadedModule | None = None,
        prefix: str = "dev",
    ) -> None:
        super().__init__(core, bus, name, module)
        self.prefix = prefix
        self.calls: list[str] = []
        self.on_probe: Callable[[Device], object] = lambda dev: None
        self.on_remove: Callable[[Device], object] = lambda dev: None

    def match(self, dev: Device) -> bool:
        return dev.name.startswith(self.prefix)

    def probe(self, dev: Device) -> None:
        self.calls.append(f"probe {dev.name}")
        self.on_probe(dev)

    def remove(self, dev: Device) -> None:
        self.calls.append(f"remove {dev.name}")
        self.on_remove(dev)


def add_device(bus: BusType, name: str, parent: Device | None = None) -> Device:
    dev = Device(bus.core, name, parent=parent, bus=bus)
    dev.device_add()
    return dev


def add_driver(bus: BusType, name: str = "drv", module: LoadedModule | None = None) -> AnyDriver:
    driver = AnyDriver(bus.core, bus, name, module)
    driver_register(driver)
    return driver


def declines(number: int) -> Callable[[Device], NoReturn]:
    """A probe that fails with this errno."""
    return lambda dev: fail(number)


def loaded(name: str, *, autoprobe: bool = True) -> LoadedModule:
    """A module as its driver sees it."""
    return LoadedModule(name, {"autoprobe": autoprobe}, {"autoprobe": AUTOPROBE})


def crashes(_: object) -> NoReturn:
    """What no driver should do."""
    raise ZeroDivisionError
