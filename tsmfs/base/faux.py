# SPDX-License-Identifier: MIT
"""Faux devices: a device for code that has no hardware (drivers/base/faux.c)."""

from __future__ import annotations

import errno
from collections.abc import Callable, Sequence
from typing import ClassVar

from tsmfs.base.bus import BusType
from tsmfs.base.core import DriverCore
from tsmfs.base.device import Device
from tsmfs.base.driver import DeviceDriver, driver_register
from tsmfs.base.kobject import AttributeGroup
from tsmfs.kernel.errors import fail


class FauxDevice(Device):
    """A device on the faux bus; *driver_data* is its owner's."""

    __slots__ = ("driver_data", "faux_probe")

    def __init__(
        self,
        faux: FauxBus,
        name: str,
        groups: Sequence[AttributeGroup],
        probe: Callable[[FauxDevice], None],
    ) -> None:
        super().__init__(faux.core, name, parent=faux.root, bus=faux.bus)
        self.groups = groups
        self.faux_probe = probe
        self.driver_data: object = None


class _FauxDriver(DeviceDriver):
    """The one driver of the bus: it calls the device's own probe."""

    __slots__ = ()
    suppress_bind_attrs: ClassVar[bool] = True

    def match(self, dev: Device) -> bool:
        return True

    def probe(self, dev: FauxDevice) -> None:
        dev.faux_probe(dev)


class FauxBus:
    """``bus/faux`` and ``devices/faux``."""

    def __init__(self, core: DriverCore) -> None:
        self.core = core
        self.root = Device(core, "faux")
        self.root.device_add()
        self.bus = BusType(core, "faux")
        driver_register(_FauxDriver(core, self.bus, "faux_driver", None))

    def create(
        self,
        name: str,
        probe: Callable[[FauxDevice], None] = lambda dev: None,
        groups: Sequence[AttributeGroup] = (),
    ) -> FauxDevice:
        """Make and probe a faux device (``faux_device_create_with_groups()``).

        *probe* registers what undoes it on ``dev.devres``. The device is gone again, and the
        error of *probe* raised, when that fails. EEXIST when the name is taken.
        """
        errors: list[Exception] = []

        def remembering(dev: FauxDevice) -> None:
            try:
                probe(dev)
            except Exception as error:
                errors.append(error)
                raise

        dev = FauxDevice(self, name, groups, remembering)
        dev.device_add()
        if dev.driver is None:
            self.destroy(dev)
            if errors:
                raise errors[0]
            fail(errno.ENODEV, f"faux device {name} has no driver")
        return dev

    def destroy(self, dev: FauxDevice) -> None:
        """Unbind and remove a faux device (``faux_device_destroy()``)."""
        dev.device_del()
