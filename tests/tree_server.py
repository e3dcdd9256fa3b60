# SPDX-License-Identifier: MIT
"""A small tree of every kind of node, served on a directory: tree_server.py DIRECTORY.

Prints a line when mounted, and ends after the unmount. ``ctl`` steers it from the tests.
"""

from __future__ import annotations

import os
import sys
from pathlib import Path

from tsmfs import fs
from tsmfs.base.kobject import (
    Attribute,
    AttributeGroup,
    BinAttribute,
    Kobject,
    Tree,
)
from tsmfs.kernel import task
from tsmfs.kernel.errors import fail
from tsmfs.kernel.printk import Log

BRIDGE = "devices/pci0000:00/0000:00:01.0"
DEVICE = "0000:01:00.0"


class Device(Kobject):
    """A device whose attributes remember what is done to them."""

    __slots__ = ("blob", "calls", "inside", "shows", "value")

    def __init__(self, tree: Tree) -> None:
        super().__init__(tree, DEVICE)
        self.calls: list[int] = []
        self.shows = 0
        self.inside = 0
        self.value = b"(null)\n"
        self.blob = bytearray(range(256)) * 32

    def count(self) -> str:
        """A text that differs each time."""
        self.shows += 1
        return f"{self.shows % 10}" * self.shows + "\n"

    def store(self, data: bytes) -> None:
        self.calls.append(len(data))
        self.value = data

    def read_blob(self, offset: int, count: int) -> bytes:
        return bytes(self.blob[offset : offset + count])

    def write_blob(self, offset: int, data: bytes) -> None:
        self.blob[offset : offset + len(data)] = data


def slow(device: Device, data: bytes) -> None:
    """Take as many seconds as are written."""
    device.inside += 1
    try:
        task.sleep(float(data))
    finally:
        device.inside -= 1


def slow_show(device: Device) -> str:
    """Take a minute."""
    slow(device, b"60")
    return "\n"


def broken(_: Device) -> str:
    raise RuntimeError("a driver's mistake")


def who(_: Device) -> str:
    caller = task.current()
    return f"{caller.uid} {caller.gid} {caller.pid}\n"


ATTRIBUTES = AttributeGroup(
    (
        Attribute("vendor", 0o444, lambda device: "0x8086\n"),
        Attribute("driver_override", 0o644, lambda device: device.value, Device.store),
        Attribute("rescan", 0o200, None, Device.store),
        Attribute("calls", 0o444, lambda device: f"{device.calls}\n"),
        Attribute("count", 0o444, Device.count),
        Attribute("slow", 0o666, lambda device: f"{device.inside}\n", slow),
        Attribute("slow_show", 0o444, slow_show),
        Attribute("broken", 0o444, broken),
        Attribute("nonsense", 0o444, lambda device: 42),  # type: ignore[arg-type,return-value]
        Attribute("busy", 0o200, None, lambda device, data: fail(16)),
        Attribute("mute", 0o644),
        Attribute("who", 0o444, who),
        BinAttribute("config", 0o644, 8192, Device.read_blob, Device.write_blob),
    )
)
POWER = AttributeGroup((Attribute("control", 0o644, lambda device: "auto\n"),), name="power")


def build_tree() -> Kobject:
    """The root of the tree."""
    tree = Tree(Log(), uid=os.geteuid(), gid=os.getegid())
    root = Kobject(tree, "")
    bus = root.add_child("bus").add_child("pci")
    devices = bus.add_child("devices")
    parent = root
    for name in BRIDGE.split("/"):
        parent = parent.add_child(name)

    def plug(*_: object) -> None:
        device = Device(tree)
        parent.add(device)
        device.add_groups((ATTRIBUTES, POWER))
        device.create_link(bus, "subsystem")
        devices.create_link(device, DEVICE)

    def unplug(*_: object) -> None:
        devices.remove_link(DEVICE)
        parent.discard(DEVICE)

    plug()
    control = (
        Attribute("plug", 0o200, None, plug),
        Attribute("unplug", 0o200, None, unplug),
        Attribute("log", 0o444, lambda _: tree.log.text()),
    )
    root.add_child("ctl").add_groups((AttributeGroup(control),))
    return root


if __name__ == "__main__":
    fs.Filesystem(build_tree(), fs.choose_binding()).run(
        Path(sys.argv[1]), lambda: print("mounted", flush=True)
    )
