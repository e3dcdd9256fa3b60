# SPDX-License-Identifier: MIT
"""The CPUs of a machine, those of its host: ``devices/system/cpu`` (drivers/base/cpu.c)."""

from __future__ import annotations

import os

from tsmfs.base.kobject import Attribute, AttributeGroup, Kobject

KERNEL_MAX = 8191
"""The last CPU that a kernel with CONFIG_MAXSMP could have."""


def cpu_count() -> int:
    """How many there are; all of them are online."""
    return os.cpu_count() or 1


def cpumap() -> str:
    """All CPUs as a bit map, with a newline."""
    count = cpu_count()
    words = []
    for low in range(0, count, 32):
        bits = min(32, count - low)
        words.append(f"{(1 << bits) - 1:x}" if low + 32 >= count else f"{(1 << bits) - 1:08x}")
    return ",".join(reversed(words)) + "\n"


def cpulist() -> str:
    """All CPUs as a list of ranges, with a newline."""
    count = cpu_count()
    return "0\n" if count == 1 else f"0-{count - 1}\n"


CPU_ROOT_GROUP = AttributeGroup(
    [
        *(
            Attribute(name, 0o444, lambda _: cpulist())
            for name in ("enabled", "online", "possible", "present")
        ),
        *(Attribute(name, 0o444, lambda _: "\n") for name in ("isolated", "offline")),
        Attribute("kernel_max", 0o444, lambda _: f"{KERNEL_MAX}\n"),
    ]
)


def add_cpus(devices: Kobject) -> None:
    """Show below *devices* how many CPUs there are; of a single one, that it is there.

    C libraries count them here, and tools that look for them give up without.
    """
    cpus = devices.ensure_child("system").add_child("cpu")
    cpus.add_groups([CPU_ROOT_GROUP])
    for number in range(cpu_count()):
        cpus.add_child(f"cpu{number}")
