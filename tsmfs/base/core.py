# SPDX-License-Identifier: MIT
"""The driver core of one machine: the root of its tree and the services all devices share."""

from __future__ import annotations

from tsmfs.base.kobject import Attribute, AttributeGroup, Kobject, Tree
from tsmfs.base.uevent import Action, Env, Uevents
from tsmfs.kernel.fault import Faults
from tsmfs.kernel.printk import Log


class DriverCore:
    """The top of sysfs and what stands behind it.

    Holds no devices itself: buses, classes and parents do.
    """

    def __init__(self, log: Log, faults: Faults, uevents: Uevents, *, uid: int, gid: int) -> None:
        self.log = log
        self.faults = faults
        self.uevents = uevents
        self.root = Kobject(Tree(log, uid, gid), "")
        self.root.setattr(mode=0o555)
        self.bus = self.root.add_child("bus")
        self.class_ = self.root.add_child("class")
        self.devices = self.root.add_child("devices")
        self.module = self.root.add_child("module")
        self.kernel = self.root.add_child("kernel")
        self.kernel.add_groups(
            [AttributeGroup([Attribute("uevent_seqnum", 0o444, lambda _: f"{uevents.seqnum}\n")])]
        )
        # Tools look into these; nothing of this machine is in them.
        for name in ("block", "firmware", "fs", "power"):
            self.root.add_child(name)
        for name in ("block", "char"):
            self.root.ensure_child("dev").add_child(name)

    def virtual_parent(self, subsystem: str) -> Kobject:
        """``devices/virtual/<subsystem>``: where class devices without a parent are."""
        return self.devices.ensure_child("virtual").ensure_child(subsystem)

    def uevent(self, kobj: Kobject, action: Action, subsystem: str, env: Env) -> None:
        """Send a uevent of *kobj*."""
        self.uevents.send(action, kobj.path(), subsystem, env)
