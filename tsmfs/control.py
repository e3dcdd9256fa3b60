# SPDX-License-Identifier: MIT
"""Control files below ``kernel/tsmfs``: the emulator is steered as a kernel is, through files."""

from __future__ import annotations

import errno
import os
import re
from collections.abc import Callable, Iterator
from typing import TYPE_CHECKING, Any, Protocol

from tsmfs.base.kobject import Attribute, AttributeGroup, BinAttribute, Kobject, Reader
from tsmfs.base.uevent import Uevents
from tsmfs.kernel.errors import fail, parse_errno
from tsmfs.kernel.fault import FaultAttr, Faults, Point
from tsmfs.kernel.module import ModuleTable, kstrtobool, kstrtoint
from tsmfs.kernel.printk import ByteRing, Log
from tsmfs.kernel.resource import Resource
from tsmfs.kernel.task import CAP_SYS_ADMIN, current
from tsmfs.pci.core import PciCore
from tsmfs.pci.hardware import HwBus, pci_name

if TYPE_CHECKING:
    from tsmfs.pci.cma import CmaDevice

_BDF = re.compile(r"([0-9a-fA-F]{4,8}):([0-9a-fA-F]{2}):([0-9a-fA-F]{2})\.([0-7])")


def parse_bdf(data: bytes) -> tuple[int, int, int, int]:
    """Domain, bus, device and function of ``DDDD:BB:DD.F``; EINVAL when it is none."""
    match = _BDF.fullmatch(_text(data))
    if match is None or int(match[3], 16) > 0x1F:
        fail(errno.EINVAL)
    return int(match[1], 16), int(match[2], 16), int(match[3], 16), int(match[4])


def _text(data: bytes) -> str:
    try:
        return data.decode().removesuffix("\n")
    except UnicodeDecodeError:
        fail(errno.EINVAL)


def _module_line(data: bytes) -> tuple[str, str]:
    text = _text(data).strip()
    if not text or not text.isprintable():
        fail(errno.EINVAL)
    name, _, args = text.partition(" ")
    return name, args


def _modprobe(table: ModuleTable[Any]) -> Callable[[Kobject, bytes], None]:
    def store(_: Kobject, data: bytes) -> None:
        name, args = _module_line(data)
        table.modprobe(name, args)

    return store


def _rmmod(table: ModuleTable[Any]) -> Callable[[Kobject, bytes], None]:
    def store(_: Kobject, data: bytes) -> None:
        name, args = _module_line(data)
        if args:
            fail(errno.EINVAL)
        table.rmmod(name)

    return store


def _module_files(table: ModuleTable[Any]) -> list[Attribute | BinAttribute]:
    return [
        Attribute("modprobe", 0o200, store=_modprobe(table)),
        Attribute("rmmod", 0o200, store=_rmmod(table)),
        _text_file("modules", table.proc_modules),
        _text_file("modinfo", table.modinfo),
    ]


def _text_file(name: str, text: Callable[[], str]) -> BinAttribute:
    """A file of any length, rendered anew at each read of its start."""

    def open_file(_: Kobject) -> Reader:
        rendered = b""

        def read(offset: int, count: int) -> bytes:
            nonlocal rendered
            if offset == 0 or not rendered:
                rendered = text().encode()
            return rendered[offset : offset + count]

        return read

    return BinAttribute(name, 0o444, open=open_file)


def _ring_file(name: str, ring: ByteRing) -> BinAttribute:
    """A file that begins, for each open file, with the oldest record kept by then."""

    def open_file(_: Kobject) -> Reader:
        start = ring.start

        def read(offset: int, count: int) -> bytes:
            nonlocal start
            # What was dropped before it was read is passed over.
            start = max(start, ring.start - offset)
            return ring.read(start + offset, count)

        return read

    return BinAttribute(name, 0o444, open=open_file)


def _slot(pci: PciCore, domain: int, number: int, device: int, function: int) -> tuple[HwBus, int]:
    """Bus and device number of a function of the machine: ENODEV when there is none."""
    bus = pci.find_slot(domain, number, device)
    if device << 3 | function not in bus.functions:
        fail(errno.ENODEV)
    return bus, device


def _plug_files(pci: PciCore) -> list[Attribute]:
    def plug(_: Kobject, data: bytes) -> None:
        place = parse_bdf(data)
        with pci.changing_topology_killable():
            pci.plug(*_slot(pci, *place))

    def unplug(_: Kobject, data: bytes) -> None:
        place = parse_bdf(data)
        with pci.changing_topology_killable():
            pci.unplug(*_slot(pci, *place))

    return [Attribute("plug", 0o200, store=plug), Attribute("unplug", 0o200, store=unplug)]


def _devices_with_keys(pci: PciCore) -> Iterator[tuple[str, CmaDevice]]:
    """The device security managers of the machine, plugged or not, by the names of functions."""
    for bridge in pci.host_bridges:
        for bus, function in bridge.hw_root.walk():
            if function.cma is not None:
                yield pci_name(bridge.domain, bus.number, function.devfn), function.cma


def _tamper_file(pci: PciCore) -> BinAttribute:
    def show() -> str:
        lies = ((name, device.disguise.names) for name, device in _devices_with_keys(pci))
        return "".join(f"{name} {' '.join(names)}\n" for name, names in lies if names)

    def store(_: Kobject, offset: int, data: bytes) -> None:
        text = _text(data).strip()
        if not text or not text.isprintable():
            fail(errno.EINVAL)
        name, *words = text.split()
        domain, number, slot, function = parse_bdf(name.encode())
        wanted = pci_name(domain, number, slot << 3 | function)
        device = dict(_devices_with_keys(pci)).get(wanted)
        if device is None:
            fail(errno.ENODEV)
        # Machines without keys can do without it.
        from tsmfs.pci.tamper import Tamper, disguise

        if not words or not set(words) <= {"none", *Tamper} or ("none" in words and words[1:]):
            fail(errno.EINVAL)
        disguise(device, [Tamper(word) for word in words if word != "none"])

    readable = _text_file("tamper", show)
    return BinAttribute("tamper", 0o644, open=readable.open, write=store)


_RANGES = {
    "probability": (0, 100),
    "interval": (1, (1 << 31) - 1),
    "times": (-1, (1 << 31) - 1),
    "space": (0, (1 << 31) - 1),
    "delay_ms": (0, 3_600_000),
}


def _fault_attribute(attr: FaultAttr, name: str) -> Attribute:
    def store(_: Kobject, data: bytes) -> None:
        value = kstrtoint(_text(data))
        low, high = _RANGES[name]
        if not low <= value <= high:
            fail(errno.EINVAL)
        setattr(attr, name, value)

    return Attribute(name, 0o644, lambda _: f"{getattr(attr, name)}\n", store)


def _errno_attribute(attr: FaultAttr) -> Attribute:
    def store(_: Kobject, data: bytes) -> None:
        try:
            attr.errno = parse_errno(_text(data))
        except ValueError:
            fail(errno.EINVAL)

    def show(_: Kobject) -> str:
        return f"{errno.errorcode[attr.errno]}\n" if attr.errno else "0\n"

    return Attribute("errno", 0o644, show, store)


def _fault_group(faults: Faults, point: Point) -> AttributeGroup:
    attr = faults.points[point]
    attributes = [_fault_attribute(attr, name) for name in _RANGES]
    return AttributeGroup([*attributes, _errno_attribute(attr)], name=point.value)


def _iomem(tree: Resource) -> Callable[[], str]:
    return lambda: tree.show(addresses=current().capable(CAP_SYS_ADMIN))


class NetlinkService(Protocol):
    """What the control files tell of the netlink server."""

    @property
    def socket_path(self) -> str:
        """Path of its Unix socket, empty while it does not serve."""

    @property
    def port(self) -> int | None:
        """Its port of NETLINK_USERSOCK, None while it does not serve."""

    @property
    def messages(self) -> ByteRing:
        """Datagrams that passed while they were recorded."""

    recording: bool


def _netlink_files(netlink: NetlinkService) -> list[Attribute | BinAttribute]:
    def port(_: Kobject) -> str:
        return f"{netlink.port}\n" if netlink.port is not None else "\n"

    def record(_: Kobject, data: bytes) -> None:
        netlink.recording = kstrtobool(_text(data))

    return [
        Attribute("netlink_socket", 0o444, lambda _: f"{netlink.socket_path}\n"),
        Attribute("netlink_port", 0o444, port),
        Attribute("netlink_record", 0o644, lambda _: f"{netlink.recording:d}\n", record),
        _ring_file("netlink_messages", netlink.messages),
    ]


def add_control_files(
    kernel: Kobject,
    *,
    table: ModuleTable[Any],
    pci: PciCore,
    log: Log,
    faults: Faults,
    uevents: Uevents,
    netlink: NetlinkService,
    roots: Callable[[], str],
    name: str,
    description: str,
) -> Kobject:
    """Make ``tsmfs`` below *kernel* with every control file.

    *roots* has the root certificates of the machine's devices in PEM; *description* is TOML.
    """
    directory = kernel.add_child("tsmfs")
    directory.add_groups(
        [
            AttributeGroup(
                [
                    *_module_files(table),
                    *_plug_files(pci),
                    _text_file("iomem", _iomem(pci.iomem)),
                    _text_file("ioports", _iomem(pci.ioport)),
                    _ring_file("log", log.ring),
                    _ring_file("uevents", uevents.ring),
                    *_netlink_files(netlink),
                    _text_file("spdm_root", roots),
                    _text_file("machine", lambda: description),
                    Attribute("name", 0o444, lambda _: f"{name}\n"),
                    Attribute("pid", 0o444, lambda _: f"{os.getpid()}\n"),
                ]
            )
        ]
    )
    fault = directory.add_child("fault")
    fault.add_groups(
        [AttributeGroup([_tamper_file(pci)]), *(_fault_group(faults, point) for point in Point)]
    )
    return directory
