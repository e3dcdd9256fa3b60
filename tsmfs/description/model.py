# SPDX-License-Identifier: MIT
"""The model of a machine: its host bridges, the functions below them, the modules it loads."""

from __future__ import annotations

import enum
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Final

from tsmfs.description.capability import Bar, Doe, Ide, Link, Msix, Sriov
from tsmfs.description.cma import Cma

MAX_BUS: Final = 0xFF
MAX_SLOT: Final = 0x1F
MAX_FUNCTION: Final = 7

PCI_CLASS_BRIDGE_PCI: Final = 0x0604
"""Base class and sub-class of every port (PCI Code and ID Assignment, section 1.7)."""


class Kind(enum.Enum):
    """What a function is; the value is the name of its table.

    The PCI Express ones are device/port types of the PCI Express Capabilities register (PCIe 7.0,
    section 7.5.3.2).
    """

    ROOT_PORT = "root_port"
    UPSTREAM_PORT = "upstream_port"
    DOWNSTREAM_PORT = "downstream_port"
    ENDPOINT = "endpoint"
    RC_ENDPOINT = "rc_endpoint"
    CONVENTIONAL = "conventional"

    @property
    def is_port(self) -> bool:
        """Whether it is a bridge: a type 1 header, with a bus below it."""
        return self in PORTS

    @property
    def is_pcie(self) -> bool:
        """Whether it has a PCI Express capability, and with it 4 KiB of config space."""
        return self is not Kind.CONVENTIONAL


PORTS: Final = frozenset({Kind.ROOT_PORT, Kind.UPSTREAM_PORT, Kind.DOWNSTREAM_PORT})
"""Bridges, each with a bus below it."""
LINK_ABOVE: Final = frozenset({Kind.ROOT_PORT, Kind.DOWNSTREAM_PORT})
"""Ports whose link has one device on it, number 0."""


@dataclass(frozen=True, slots=True)
class ModuleLoad:
    """A module to load at the start, with its parameters in the order given."""

    name: str
    parameters: tuple[tuple[str, str], ...] = ()

    @property
    def line(self) -> str:
        """As given to ``modprobe``: the name, then ``key=value`` for each parameter."""
        return " ".join([self.name, *(f"{key}={value}" for key, value in self.parameters)])


@dataclass(frozen=True, slots=True)
class Function:
    """One PCI function, with the functions below it when it is a port.

    ``children`` are in the order of their device and function numbers. ``class_code`` is the 24
    bits of class, sub-class and programming interface. ``msi`` is a number of vectors, 0 for no
    capability. ``ari`` is the ARI capability of an endpoint, and ARI forwarding in a root or
    downstream port. ``plugged`` false: described, and absent until it is plugged in.
    """

    kind: Kind
    slot: int = 0
    function: int = 0
    name: str = ""
    vendor: int = 0x1B36
    device: int = 0x0005
    subsystem_vendor: int = 0x1AF4
    subsystem_device: int = 0x1100
    class_code: int = 0x120000
    revision: int = 0
    plugged: bool = True
    secondary_bus: int | None = None
    link: Link | None = None
    pm: bool = False
    msi: int = 0
    flr: bool = False
    tee_io: bool = False
    aer: bool = False
    ari: bool = False
    acs: bool = False
    serial: int | None = None
    bars: tuple[Bar, ...] = ()
    msix: Msix | None = None
    doe: Doe | None = None
    cma: Cma | None = None
    ide: Ide | None = None
    sriov: Sriov | None = None
    children: tuple[Function, ...] = ()

    @property
    def devfn(self) -> int:
        """Device and function number as in Linux's ``PCI_DEVFN``."""
        return self.slot << 3 | self.function


@dataclass(frozen=True, slots=True)
class HostBridge:
    """A host bridge: its domain, the number of its root bus, and the functions on that bus.

    ``stream_pool`` is ``nr_ide_streams``, 0 for none. Windows are sizes in bytes; one of None is
    as large as the BARs need.
    """

    domain: int = 0
    bus: int = 0
    name: str = ""
    stream_pool: int = 0
    mem32_window: int | None = None
    mem64_window: int | None = None
    io_window: int | None = None
    functions: tuple[Function, ...] = ()


def key_seed(seed: int) -> bytes:
    """What keys come from where the number ``seed`` is given."""
    return f"seed {seed}".encode()


@dataclass(frozen=True, slots=True)
class Machine:
    """A whole machine; ``seed`` makes whatever is drawn at random (keys, faults) repeatable."""

    name: str
    description: str = ""
    seed: int = 0
    modules: tuple[ModuleLoad, ...] = ()
    host_bridges: tuple[HostBridge, ...] = ()

    @property
    def key_seed(self) -> bytes:
        """What the keys of its devices come from; without a seed, the name of the machine."""
        return key_seed(self.seed) if self.seed else f"name {self.name}".encode()


def has_keys(functions: Iterable[Function]) -> bool:
    """Whether any of ``functions``, or of those below them, has keys."""
    return any(function.cma is not None or has_keys(function.children) for function in functions)


_DEFAULTS: Final[Mapping[Kind, Function]] = {
    Kind.ROOT_PORT: Function(
        Kind.ROOT_PORT,
        device=0x000C,
        subsystem_vendor=0,
        subsystem_device=0,
        class_code=PCI_CLASS_BRIDGE_PCI << 8,
        link=Link(),
        pm=True,
        msi=1,
        ari=True,
    ),
    Kind.UPSTREAM_PORT: Function(
        Kind.UPSTREAM_PORT,
        vendor=0x104C,
        device=0x8232,
        subsystem_vendor=0,
        subsystem_device=0,
        class_code=PCI_CLASS_BRIDGE_PCI << 8,
        link=Link(),
        pm=True,
        msi=1,
    ),
    Kind.DOWNSTREAM_PORT: Function(
        Kind.DOWNSTREAM_PORT,
        vendor=0x104C,
        device=0x8233,
        subsystem_vendor=0,
        subsystem_device=0,
        class_code=PCI_CLASS_BRIDGE_PCI << 8,
        link=Link(),
        pm=True,
        msi=1,
        ari=True,
    ),
    Kind.ENDPOINT: Function(Kind.ENDPOINT, link=Link(), pm=True, flr=True),
    Kind.RC_ENDPOINT: Function(Kind.RC_ENDPOINT, pm=True, flr=True),
    Kind.CONVENTIONAL: Function(Kind.CONVENTIONAL),
}


def defaults(kind: Kind) -> Function:
    """The function that a table of ``kind`` with no keys describes."""
    return _DEFAULTS[kind]
