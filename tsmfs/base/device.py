# SPDX-License-Identifier: MIT
"""Devices: a kobject with a parent, a bus or class, a driver and uevents (drivers/base/core.c)."""

from __future__ import annotations

import contextlib
import errno
import time
from collections.abc import Sequence
from typing import TYPE_CHECKING

from tsmfs.base.core import DriverCore
from tsmfs.base.kobject import Attribute, AttributeGroup, Directory, Kobject
from tsmfs.base.uevent import Action, Env, parse_synthetic
from tsmfs.kernel.errors import fail
from tsmfs.kernel.locking import Mutex

if TYPE_CHECKING:
    from tsmfs.base.bus import BusType
    from tsmfs.base.class_ import Class
    from tsmfs.base.driver import DeviceDriver


class Device(Kobject):
    """``struct device``. Made first, shown by :meth:`device_add`."""

    __slots__ = (
        "added_at",
        "bus_type",
        "cls",
        "core",
        "dead",
        "devres",
        "driver",
        "driver_override",
        "groups",
        "lock",
        "parent_device",
        "pm_control",
        "pm_enabled",
    )

    def __init__(
        self,
        core: DriverCore,
        name: str,
        *,
        parent: Device | None = None,
        bus: BusType | None = None,
        cls: Class | None = None,
    ) -> None:
        super().__init__(core.root.tree, name)
        self.core = core
        self.parent_device = parent
        self.bus_type = bus
        self.cls = cls
        self.driver: DeviceDriver | None = None
        self.driver_override: str | None = None
        self.groups: Sequence[AttributeGroup] = ()
        """Attribute groups of this device, shown with it."""
        self.lock = Mutex(f"device {name}")
        self.devres = contextlib.ExitStack()
        """What a driver acquired by managed calls; released when it is unbound."""
        self.dead = False
        self.added_at = time.monotonic()
        self.pm_control = "auto"
        self.pm_enabled = False
        """Runtime power management is on (PCI functions); others read ``unsupported``."""

    @property
    def subsystem(self) -> str | None:
        """Name of its bus or class; a device without one sends no uevents."""
        owner = self.bus_type or self.cls
        return owner.name if owner else None

    def uevent_vars(self) -> Env:
        """Variables that the ``uevent`` file reads and every uevent carries."""
        env: Env = []
        if self.driver is not None:
            env.append(("DRIVER", self.driver.name))
        if self.bus_type is not None:
            env += self.bus_type.uevent_vars(self)
        return env

    def uevent(self, action: Action, extra: Env | None = None) -> None:
        """Send a uevent (``kobject_uevent_env()``); *extra* comes before the device's own."""
        if self.subsystem is not None:
            env = [*(extra or []), *self.uevent_vars()]
            self.core.uevent(self, action, self.subsystem, env)

    def device_add(self) -> None:
        """Show the device, tell user space, look for a driver (``device_add()``).

        EEXIST when its name is taken.
        """
        place: Directory
        if self.parent_device is None:
            place = self.core.virtual_parent(self.cls.name) if self.cls else self.core.devices
        elif self.cls is not None and self.parent_device.cls is None:
            place = self.parent_device.ensure_child(self.cls.name)
        else:
            place = self.parent_device
        place.add(self)
        self.added_at = time.monotonic()
        try:
            self.add_groups([UEVENT_GROUP])
            if self.cls is not None:
                self.cls.link_device(self)
                if self.parent_device is not None:
                    self.create_link(self.parent_device, "device")
            self.add_groups(self.groups)
            if self.bus_type is not None:
                self.bus_type.add_device(self)
            self.add_groups([POWER_GROUP])
        except BaseException:
            self._withdraw()
            raise
        self.uevent(Action.ADD)
        if self.bus_type is not None:
            self.bus_type.probe_device(self)

    def device_del(self) -> None:
        """Release its driver, tell user space, take it out (``device_del()``)."""
        with self.lock.lock():
            self.dead = True
        if self.bus_type is not None:
            self.bus_type.release_driver(self)
        self.uevent(Action.REMOVE)
        self._withdraw()

    def _withdraw(self) -> None:
        if self.bus_type is not None:
            self.bus_type.remove_device(self)
        if self.cls is not None:
            self.cls.unlink_device(self)
        glue = self.parent
        self.delete()
        if (
            self.cls is not None
            and self.parent_device is not None
            and glue is not self.parent_device
            and isinstance(glue, Kobject)
            and not glue.children
        ):
            glue.delete()

    def log_prefix(self) -> str:
        """``driver name:`` as ``dev_printk()`` puts before a message."""
        who = self.driver.name if self.driver else (self.subsystem or "")
        return f"{who} {self.name}:"

    def info(self, text: str) -> None:
        """``dev_info()``."""
        self.core.log.info(f"{self.log_prefix()} {text}")

    def warn(self, text: str) -> None:
        """``dev_warn()``."""
        self.core.log.warn(f"{self.log_prefix()} {text}")

    def err(self, text: str) -> None:
        """``dev_err()``."""
        self.core.log.err(f"{self.log_prefix()} {text}")

    def debug(self, text: str) -> None:
        """``dev_dbg()``."""
        self.core.log.debug(f"{self.log_prefix()} {text}")


def _uevent_show(dev: Device) -> str:
    return "".join(f"{key}={value}\n" for key, value in dev.uevent_vars())


def _uevent_store(dev: Device, data: bytes) -> None:
    try:
        action, env = parse_synthetic(data)
    except OSError as error:
        dev.core.log.warn(f"synth uevent: {dev.path()}: {error.strerror}")
        dev.err(f"uevent: failed to send synthetic uevent: -{error.errno}")
        raise
    dev.uevent(action, env)


UEVENT_GROUP = AttributeGroup([Attribute("uevent", 0o644, _uevent_show, _uevent_store)])


def _control_store(dev: Device, data: bytes) -> None:
    value = data.removesuffix(b"\n").decode("latin-1")
    if value not in ("auto", "on"):
        fail(errno.EINVAL)
    dev.pm_control = value


def _runtime_status(dev: Device) -> str:
    return "active\n" if dev.pm_enabled else "unsupported\n"


def _active_time(dev: Device) -> str:
    return f"{int((time.monotonic() - dev.added_at) * 1000) if dev.pm_enabled else 0}\n"


def _no_autosuspend(dev: Device) -> str:
    # drivers/base/power/sysfs.c: without pm_runtime_use_autosuspend() it is an I/O error.
    fail(errno.EIO)


def _no_autosuspend_store(dev: Device, data: bytes) -> None:
    fail(errno.EIO)


POWER_GROUP = AttributeGroup(
    name="power",
    attributes=[
        Attribute("autosuspend_delay_ms", 0o644, _no_autosuspend, _no_autosuspend_store),
        Attribute("control", 0o644, lambda dev: f"{dev.pm_control}\n", _control_store),
        Attribute("runtime_active_time", 0o444, _active_time),
        Attribute("runtime_status", 0o444, _runtime_status),
        Attribute("runtime_suspended_time", 0o444, lambda dev: "0\n"),
    ],
)
