# SPDX-License-Identifier: MIT
"""Device classes: devices by what they do (drivers/base/class.c)."""

from __future__ import annotations

from collections.abc import Iterator

from tsmfs.base.core import DriverCore
from tsmfs.base.device import Device
from tsmfs.base.kobject import Kobject


class Class:
    """``struct class``: the directory ``class/<name>`` with a link to each device."""

    def __init__(self, core: DriverCore, name: str) -> None:
        self.name = name
        self.kobj = Kobject(core.root.tree, name)
        self._devices: dict[str, Device] = {}
        core.class_.add(self.kobj)

    def link_device(self, dev: Device) -> None:
        """Show *dev* in the class, and the class as its ``subsystem``."""
        dev.create_link(self.kobj, "subsystem")
        self.kobj.create_link(dev, dev.name)
        self._devices[dev.name] = dev

    def unlink_device(self, dev: Device) -> None:
        """Undo :meth:`link_device`."""
        if self._devices.get(dev.name) is dev:
            del self._devices[dev.name]
            self.kobj.remove_link(dev.name)

    def __iter__(self) -> Iterator[Device]:
        return iter(list(self._devices.values()))

    def destroy(self) -> None:
        """Take the class out; its devices are gone."""
        self.kobj.delete()
