# SPDX-License-Identifier: MIT
"""Machine descriptions: TOML text to a checked, immutable model of the hardware, and back.

A description says what is soldered and plugged together: host bridges, ports, functions, their
ids, BARs and capabilities, and which modules are loaded at the start. Nothing is built here. The
nesting of the tables is the nesting of the hardware, and the name of a table is the kind of the
function: ``[[host_bridge.root_port.endpoint]]``. ``Documentation/machine-description.md`` is the
guide.
"""

from __future__ import annotations

import difflib
import enum
import os
import re
import tomllib
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, fields, is_dataclass, replace
from importlib import resources
from pathlib import Path
from typing import Final, TypeVar

KIB: Final = 1 << 10
MIB: Final = 1 << 20
GIB: Final = 1 << 30
TIB: Final = 1 << 40

MAX_BUS: Final = 0xFF
MAX_SLOT: Final = 0x1F
MAX_FUNCTION: Final = 7
MAX_CERTIFICATE_SLOT: Final = 7

# A deeper chain of switches than any fabric has; it bounds the recursion over the tables.
MAX_DEPTH: Final = 32

PCI_CLASS_BRIDGE_PCI: Final = 0x0604
"""Base class and sub-class of every port (PCI Code and ID Assignment, section 1.7)."""

DOE_DISCOVERY: Final = (0x0001, 0x00)
"""Vendor and type of DOE discovery, which every mailbox answers (PCIe 7.0, section 6.30.1.1)."""
DOE_CMA: Final = (0x0001, 0x01)
"""CMA/SPDM (PCIe 7.0, section 6.31.3)."""
DOE_SECURED_CMA: Final = (0x0001, 0x02)
"""Secured CMA/SPDM (PCIe 7.0, section 6.31.4)."""

# Bytes of the extended capabilities, headers included, by the key that asks for them.
_EXT_CAP_BYTES: Final[Mapping[str, int]] = {
    "aer": 0x48,
    "ari": 0x08,
    "acs": 0x08,
    "serial": 0x0C,
    "doe": 0x18,
    "sriov": 0x40,
}
_EXT_CONFIG_BYTES: Final = 0x1000 - 0x100

_E = TypeVar("_E", bound=enum.Enum)


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
        return self in _PORTS

    @property
    def is_pcie(self) -> bool:
        """Whether it has a PCI Express capability, and with it 4 KiB of config space."""
        return self is not Kind.CONVENTIONAL


_PORTS: Final = frozenset({Kind.ROOT_PORT, Kind.UPSTREAM_PORT, Kind.DOWNSTREAM_PORT})
_PCIE: Final = frozenset(Kind) - {Kind.CONVENTIONAL}
_LINKED: Final = _PCIE - {Kind.RC_ENDPOINT}
_DEVICES: Final = frozenset({Kind.ENDPOINT, Kind.RC_ENDPOINT})
# The ports whose link has one device on it, number 0.
_LINK_ABOVE: Final = frozenset({Kind.ROOT_PORT, Kind.DOWNSTREAM_PORT})

_ON_ROOT_BUS: Final = frozenset({Kind.ROOT_PORT, Kind.RC_ENDPOINT, Kind.CONVENTIONAL})
_BELOW: Final[Mapping[Kind, frozenset[Kind]]] = {
    Kind.ROOT_PORT: frozenset({Kind.ENDPOINT, Kind.UPSTREAM_PORT}),
    Kind.UPSTREAM_PORT: frozenset({Kind.DOWNSTREAM_PORT}),
    Kind.DOWNSTREAM_PORT: frozenset({Kind.ENDPOINT, Kind.UPSTREAM_PORT}),
    Kind.ENDPOINT: frozenset(),
    Kind.RC_ENDPOINT: frozenset(),
    Kind.CONVENTIONAL: frozenset(),
}
_PLACE_OF: Final[Mapping[Kind, str]] = {
    Kind.ROOT_PORT: "directly below a host bridge",
    Kind.UPSTREAM_PORT: "below a root_port or a downstream_port",
    Kind.DOWNSTREAM_PORT: "below an upstream_port",
    Kind.ENDPOINT: "below a root_port or a downstream_port",
    Kind.RC_ENDPOINT: "directly below a host bridge",
    Kind.CONVENTIONAL: "directly below a host bridge",
}


class BarKind(enum.Enum):
    """What a base address register decodes (PCIe 7.0, section 7.5.1.2.1)."""

    MEM32 = "mem32"
    MEM64 = "mem64"
    IO = "io"


class LinkSpeed(enum.Enum):
    """Maximum link speed in GT/s; the order is the encoding of Link Capabilities, from 1."""

    GT_2_5 = "2.5"
    GT_5 = "5"
    GT_8 = "8"
    GT_16 = "16"
    GT_32 = "32"
    GT_64 = "64"

    @property
    def code(self) -> int:
        """The Supported Link Speeds encoding, 1 to 6 (PCIe 7.0, section 7.5.3.6)."""
        return list(LinkSpeed).index(self) + 1


LINK_WIDTHS: Final = (1, 2, 4, 8, 12, 16, 32)
"""Link widths that Link Capabilities can express (PCIe 7.0, section 7.5.3.6)."""


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
class Bar:
    """A base address register; ``index`` 0..5 (0..1 on a port), ``size`` in bytes."""

    index: int
    size: int
    kind: BarKind = BarKind.MEM32
    prefetch: bool = False


@dataclass(frozen=True, slots=True)
class Link:
    """The fastest and widest link that the function can do; the one in use depends on both ends."""

    speed: LinkSpeed = LinkSpeed.GT_2_5
    width: int = 1


@dataclass(frozen=True, slots=True)
class Msix:
    """MSI-X (PCIe 7.0, section 7.7.2), all in one memory BAR; offsets in bytes."""

    vectors: int
    bar: int
    table_offset: int
    pba_offset: int


@dataclass(frozen=True, slots=True)
class Doe:
    """A DOE mailbox (PCIe 7.0, section 6.30): (vendor, type) pairs beyond discovery."""

    protocols: tuple[tuple[int, int], ...] = (DOE_CMA, DOE_SECURED_CMA)


@dataclass(frozen=True, slots=True)
class Ide:
    """IDE capability (PCIe 7.0, section 7.9.26).

    ``address_associations`` is the number of address blocks of each selective stream.
    """

    link_streams: int = 0
    selective_streams: int = 1
    address_associations: int = 1
    tee_limited: bool = True
    ide_km: bool = True
    selective_config: bool = False
    flow_through: bool = False
    partial_header_encryption: bool = False
    aggregation: bool = False
    pcrc: bool = False

    @property
    def size(self) -> int:
        """Bytes of the capability in config space."""
        selective = 20 + 12 * self.address_associations
        return 12 + 8 * self.link_streams + selective * self.selective_streams


class CmaKey(enum.Enum):
    """Kind of the key that a device signs with (DSP0274, BaseAsymAlgo)."""

    ECDSA_P256 = "ecdsa-p256"
    ECDSA_P384 = "ecdsa-p384"
    RSA_3072 = "rsa-3072"


class CmaHash(enum.Enum):
    """Hash function of certificates and transcripts (DSP0274, BaseHashAlgo)."""

    SHA_256 = "sha-256"
    SHA_384 = "sha-384"
    SHA_512 = "sha-512"


class CmaVersion(enum.Enum):
    """Version of SPDM that a device speaks."""

    V1_2 = "1.2"
    V1_3 = "1.3"


class MeasurementKind(enum.Enum):
    """What was measured (DSP0274, DMTFSpecMeasurementValueType)."""

    ROM = "rom"
    FIRMWARE = "firmware"
    HARDWARE_CONFIG = "hardware-config"
    FIRMWARE_CONFIG = "firmware-config"
    MANIFEST = "manifest"
    VERSION = "version"


class Tamper(enum.Enum):
    """What is wrong with what a device presents: ``tsmfs.pci.tamper`` tells what each does."""

    EXPIRED_CERTIFICATE = "expired-certificate"
    SELF_SIGNED = "self-signed"
    WRONG_NAME = "wrong-name"
    FOREIGN_CERTIFICATE = "foreign-certificate"
    BAD_SIGNATURE = "bad-signature"
    STALE_NONCE = "stale-nonce"
    CHANGED_MEASUREMENT = "changed-measurement"
    WRONG_RANGE = "wrong-range"
    OVERLAPPING_RANGE = "overlapping-range"
    REPLAYED_TRANSCRIPT = "replayed-transcript"


EXCLUSIVE_TAMPERS: Final = (
    (
        Tamper.EXPIRED_CERTIFICATE,
        Tamper.SELF_SIGNED,
        Tamper.WRONG_NAME,
        Tamper.FOREIGN_CERTIFICATE,
    ),
    (Tamper.STALE_NONCE, Tamper.REPLAYED_TRANSCRIPT),
)
"""Of each of these a device has one at most."""

MAX_MEASUREMENT: Final = 0xEF
"""Highest index of a measurement whose meaning is the device's own (DSP0274, table 50)."""
MEASUREMENT_MANIFEST: Final = 0xFD
"""Index of the manifest."""


@dataclass(frozen=True, slots=True)
class Measurement:
    """One measurement of a device; ``value`` is the text whose UTF-8 bytes are measured."""

    index: int
    kind: MeasurementKind
    value: str


@dataclass(frozen=True, slots=True)
class CmaFiles:
    """PEM files of a certificate slot: certificates from the root to the leaf, and its key."""

    slot: int
    chain: str
    key: str


@dataclass(frozen=True, slots=True)
class Cma:
    """Component Measurement and Authentication (PCIe 7.0, section 6.31): keys of its own.

    The device answers SPDM in its mailbox, and what it has of IDE and TDISP works. Its keys come
    from ``seed``, by default the machine's, unless ``files`` names them. ``measurements`` replace
    those that a device has by itself. ``tamper`` is what a verifier is to find wrong with it.
    """

    key: CmaKey = CmaKey.ECDSA_P384
    hash: CmaHash = CmaHash.SHA_384
    versions: tuple[CmaVersion, ...] = tuple(CmaVersion)
    slots: tuple[int, ...] = (0,)
    seed: int | None = None
    files: tuple[CmaFiles, ...] = ()
    measurements: tuple[Measurement, ...] = ()
    tamper: tuple[Tamper, ...] = ()


@dataclass(frozen=True, slots=True)
class Sriov:
    """SR-IOV capability (PCIe 7.0, section 9.3.3) and what each of its VFs looks like."""

    total_vfs: int
    vf_device: int
    tee_io: bool
    first_vf_offset: int = 1
    vf_stride: int = 1
    bars: tuple[Bar, ...] = ()
    msix: Msix | None = None

    def routing_ids(self, devfn: int) -> range:
        """Routing IDs of all VFs of the PF at ``devfn``, from the start of its bus."""
        first = devfn + self.first_vf_offset
        return range(first, first + self.vf_stride * self.total_vfs, self.vf_stride)


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


# --- bus numbers ----------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class BusRange:
    """The buses at and below a port: ``secondary`` to ``subordinate``, both included."""

    secondary: int
    subordinate: int


def assign_buses(bridge: HostBridge) -> dict[tuple[int, ...], BusRange]:
    """Number every bus of ``bridge``, depth first, devices in ascending order.

    The key is the path to a port, as the ``devfn`` of each function from the root bus down; ``()``
    is the root bus. A port takes its ``secondary_bus``, or the next number. Where VFs reach past
    the bus of their PF, the buses they need follow directly.
    """
    ranges: dict[tuple[int, ...], BusRange] = {}

    def number(functions: Sequence[Function], bus: int, path: tuple[int, ...]) -> int:
        last = bus + _extra_buses(functions)
        for function in sorted(functions, key=_by_devfn):
            if function.kind.is_port:
                explicit = function.secondary_bus
                secondary = last + 1 if explicit is None else explicit
                last = max(last, number(function.children, secondary, (*path, function.devfn)))
        ranges[path] = BusRange(bus, last)
        return last

    number(bridge.functions, bridge.bus, ())
    return ranges


def _extra_buses(functions: Sequence[Function]) -> int:
    """How many buses the VFs of the functions of one bus need beyond that bus."""
    ends = [f.sriov.routing_ids(f.devfn)[-1] for f in functions if f.sriov is not None]
    return max(ends, default=0) >> 8


def _by_devfn(function: Function) -> int:
    return function.devfn


# --- mistakes -------------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class Mistake:
    """One thing wrong in a description; ``key`` is empty when it is about the file as a whole."""

    source: str
    key: str
    reason: str

    def __str__(self) -> str:
        return ": ".join(part for part in (self.source, self.key, self.reason) if part)


class DescriptionError(ValueError):
    """A description that cannot be used: every mistake found, a line each in ``str()``."""

    def __init__(self, errors: Sequence[Mistake]) -> None:
        super().__init__("\n".join(str(error) for error in errors))
        self.errors: tuple[Mistake, ...] = tuple(errors)


# --- TOML to model --------------------------------------------------------------------------------

_NAME: Final = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{0,63}")
_MODULE: Final = re.compile(r"[A-Za-z0-9_-]{1,55}")
_PARAMETER: Final = re.compile(r"([A-Za-z0-9_-]+)=([!-~]*)")
_BARE_KEY: Final = re.compile(r"[A-Za-z0-9_-]+")
_SIZE: Final = re.compile(r"(0[xX][0-9a-fA-F]{1,16}|[0-9]{1,19})([KMGT]?)")
_SERIAL: Final = re.compile(r"[0-9a-fA-F]{2}(-[0-9a-fA-F]{2}){7}")
_TOML_POSITION: Final = re.compile(r"(.*) \(at (line \d+, column \d+|end of document)\)", re.DOTALL)
_UNITS: Final[Mapping[str, int]] = {"": 1, "K": KIB, "M": MIB, "G": GIB, "T": TIB}
_MAX_SIZE: Final = 1 << 63


def _shown(value: object) -> str:
    """A value from the file as an error text shows it: in TOML's terms, and short."""
    if isinstance(value, bool):
        return "true" if value else "false"
    if isinstance(value, int):
        return str(value) if value.bit_length() <= 64 else f"a number of {value.bit_length()} bits"
    if isinstance(value, str):
        return _quoted(value if len(value) <= 40 else value[:37] + "...")
    if isinstance(value, dict):
        return "a table"
    if isinstance(value, list):
        return "an array"
    return str(value)


def _quoted(text: str) -> str:
    """``text`` as a TOML basic string."""
    return '"' + "".join(_ESCAPES.get(char) or _escaped(char) for char in text) + '"'


_ESCAPES: Final[Mapping[str, str]] = {
    '"': '\\"',
    "\\": "\\\\",
    "\b": "\\b",
    "\t": "\\t",
    "\n": "\\n",
    "\f": "\\f",
    "\r": "\\r",
}


def _escaped(char: str) -> str:
    return f"\\u{ord(char):04x}" if ord(char) < 0x20 or ord(char) == 0x7F else char


class _Findings:
    """The mistakes so far, and the keys and tables whose values are stand-ins because of one."""

    def __init__(self, source: str) -> None:
        self.source = source
        self.mistakes: list[Mistake] = []
        self.doubtful: set[str] = set()

    def add(self, key: str, reason: str) -> None:
        """Record one mistake."""
        self.mistakes.append(Mistake(self.source, key, reason))

    def doubts(self, owner: str, *names: str) -> bool:
        """Whether any of these keys of ``owner`` holds a stand-in."""
        return any(f"{owner}.{name}" in self.doubtful for name in names)


class _Table:
    """One TOML table being read: every key asked for, with its type and range checked.

    A value that is wrong is reported and answered with a stand-in, so that reading goes on and
    finds the other mistakes of the file. ``key`` is the path of the table, empty for the file.
    """

    def __init__(self, data: Mapping[str, object], key: str, findings: _Findings) -> None:
        self._data = data
        self.key = key
        self._findings = findings
        self._known: set[str] = set()

    def _at(self, name: str) -> str:
        return f"{self.key}.{name}" if self.key else name

    def _get(self, name: str) -> object:
        self._known.add(name)
        return self._data.get(name)

    def __contains__(self, name: str) -> bool:
        return name in self._data

    def wrong(self, name: str, reason: str) -> None:
        """Report a mistake in the value of ``name`` (a key, perhaps followed by an index)."""
        self._findings.add(self._at(name), reason)
        self._findings.doubtful.update((self._at(name), self.key))

    def _number(self, name: str, low: int, high: int, show: Callable[[int], str]) -> int | None:
        value = self._get(name)
        if value is None:
            return None
        if isinstance(value, bool) or not isinstance(value, int):
            self.wrong(name, f"must be an integer, not {_shown(value)}")
        elif not low <= value <= high:
            given = show(value) if value.bit_length() <= 64 else _shown(value)
            self.wrong(name, f"must be in {show(low)}..{show(high)}, not {given}")
        else:
            return value
        return None

    def integer(self, name: str, default: int, low: int, high: int) -> int:
        """A number in ``low``..``high``."""
        value = self._number(name, low, high, str)
        return default if value is None else value

    def required_integer(self, name: str, low: int, high: int) -> int:
        """A number in ``low``..``high`` that has no default."""
        if name not in self:
            self.wrong(name, "is required")
        return self.integer(name, low, low, high)

    def identifier(self, name: str, default: int, low: int, high: int) -> int:
        """A number that is usually written, and always shown, in hexadecimal."""
        value = self._number(name, low, high, hex)
        return default if value is None else value

    def optional_identifier(self, name: str, low: int, high: int) -> int | None:
        """As ``identifier``, or None when the key is absent."""
        return self._number(name, low, high, hex)

    def boolean(self, name: str, default: bool) -> bool:
        """``true`` or ``false``."""
        value = self._get(name)
        if value is None:
            return default
        if isinstance(value, bool):
            return value
        self.wrong(name, f"must be true or false, not {_shown(value)}")
        return default

    def string(self, name: str, default: str) -> str:
        """Any text."""
        value = self._get(name)
        if value is None:
            return default
        if isinstance(value, str):
            return value
        self.wrong(name, f"must be a string, not {_shown(value)}")
        return default

    def one_of(self, name: str, default: _E) -> _E:
        """A string that is the value of a member of ``default``'s enumeration."""
        value = self._get(name)
        if value is None:
            return default
        members = list(type(default))
        for member in members:
            if member.value == value:
                return member
        choices = ", ".join(_shown(member.value) for member in members)
        self.wrong(name, f"must be one of {choices}, not {_shown(value)}")
        return default

    def several(self, name: str, default: tuple[_E, ...]) -> tuple[_E, ...]:
        """An array of strings, each the value of a member of an enumeration, none twice."""
        if name not in self:
            return default
        members = {member.value: member for member in type(default[0])}
        found: list[_E] = []
        for index, value in enumerate(self.filled_array(name)):
            member = members.get(value) if isinstance(value, str) else None
            if member is None:
                choices = ", ".join(map(_shown, members))
                self.wrong(f"{name}[{index}]", f"must be one of {choices}, not {_shown(value)}")
            elif member in found:
                self.wrong(f"{name}[{index}]", "is listed before")
            else:
                found.append(member)
        return tuple(found)

    def integers(self, name: str, default: tuple[int, ...], low: int, high: int) -> tuple[int, ...]:
        """An array of numbers in ``low``..``high``, none twice."""
        if name not in self:
            return default
        found: list[int] = []
        for index, value in enumerate(self.filled_array(name)):
            key = f"{name}[{index}]"
            if isinstance(value, bool) or not isinstance(value, int):
                self.wrong(key, f"must be an integer, not {_shown(value)}")
            elif not low <= value <= high:
                self.wrong(key, f"must be in {low}..{high}, not {_shown(value)}")
            elif value in found:
                self.wrong(key, "is listed before")
            else:
                found.append(value)
        return tuple(found)

    def required_string(self, name: str) -> str:
        """Text that has no default, and is not empty."""
        text = self.string(name, "")
        if not text and not self._findings.doubts(self.key, name):
            self.wrong(name, "is required" if name not in self else "must not be empty")
        return text

    def size(self, name: str) -> int | None:
        """A number of bytes: an integer, or a string with a unit such as ``"2M"``."""
        value = self._get(name)
        if value is None:
            return None
        size = 0
        if isinstance(value, int) and not isinstance(value, bool):
            size = value
        elif isinstance(value, str) and (match := _SIZE.fullmatch(value)):
            size = int(match[1], 16 if "x" in match[1].lower() else 10) * _UNITS[match[2]]
        if 0 < size <= _MAX_SIZE:
            return size
        self.wrong(name, f'must be a size such as 4096, "64K", "2M" or "4G", not {_shown(value)}')
        return None

    def required_size(self, name: str) -> int:
        """A number of bytes that has no default."""
        if name not in self:
            self.wrong(name, "is required")
        return self.size(name) or 4 * KIB

    def array(self, name: str) -> list[object]:
        """An array of anything; empty when absent."""
        value = self._get(name)
        if value is None:
            return []
        if isinstance(value, list):
            return value
        self.wrong(name, f"must be an array, not {_shown(value)}")
        return []

    def filled_array(self, name: str) -> list[object]:
        """An array of anything that is not empty."""
        value = self.array(name)
        if not value and isinstance(self._data.get(name), list):
            self.wrong(name, "must have one entry at least")
        return value

    def tables(self, name: str) -> Iterator[_Table]:
        """The tables of an array of tables; none when absent."""
        if isinstance(self._get(name), dict):
            header = re.sub(r"\[\d+\]", "", self._at(name))
            self.wrong(name, f"must be an array of tables: write [[{header}]]")
            return
        for index, value in enumerate(self.array(name)):
            key = f"{name}[{index}]"
            if isinstance(value, dict):
                yield _Table(value, self._at(key), self._findings)
            else:
                self.wrong(key, f"must be a table, not {_shown(value)}")

    def table(self, name: str) -> _Table | None:
        """A table, or None when absent."""
        value = self._get(name)
        if value is None:
            return None
        if isinstance(value, dict):
            return _Table(value, self._at(name), self._findings)
        self.wrong(name, f"must be a table, not {_shown(value)}")
        return None

    def capability(self, name: str) -> _Table | None:
        """A capability: a table, or ``true`` for all defaults; None for ``false`` or absent."""
        value = self._get(name)
        if value is True:
            return _Table({}, self._at(name), self._findings)
        return None if value is False else self.table(name)

    def finish(self) -> None:
        """Report the keys that nobody asked for."""
        for name in self._data:
            if name not in self._known:
                near = difflib.get_close_matches(name, self._known, 1) if len(name) < 40 else []
                hint = f"; did you mean {near[0]}?" if near else ""
                part = name if _BARE_KEY.fullmatch(name) else _shown(name)
                self._findings.add(self._at(part), f"unknown key{hint}")


def _read_machine(table: _Table, fallback_name: str) -> Machine:
    name = table.string("name", fallback_name)
    if not _NAME.fullmatch(name):
        table.wrong("name", "must be 1 to 64 letters, digits, '.', '_' and '-'")
        name = fallback_name
    machine = Machine(
        name=name,
        description=table.string("description", ""),
        seed=table.integer("seed", 0, 0, (1 << 63) - 1),
        modules=_read_modules(table),
        host_bridges=tuple(_read_host_bridge(sub) for sub in table.tables("host_bridge")),
    )
    table.finish()
    return machine


def _read_modules(table: _Table) -> tuple[ModuleLoad, ...]:
    modules: dict[str, ModuleLoad] = {}
    for index, value in enumerate(table.array("modules")):
        key = f"modules[{index}]"
        words = value.split() if isinstance(value, str) else []
        if not words:
            table.wrong(key, f"must be a module name with its parameters, not {_shown(value)}")
            continue
        # Module names are one with '-' and '_' exchanged, as for modprobe.
        name = words[0].replace("-", "_")
        if not _MODULE.fullmatch(name):
            table.wrong(key, f"{_shown(words[0])} is not a module name")
        elif name in modules:
            table.wrong(key, f"{name} is listed before")
        else:
            parameters = _read_parameters(table, key, words[1:])
            modules[name] = ModuleLoad(name, parameters)
    return tuple(modules.values())


def _read_parameters(table: _Table, key: str, words: Sequence[str]) -> tuple[tuple[str, str], ...]:
    parameters: list[tuple[str, str]] = []
    for word in words:
        if match := _PARAMETER.fullmatch(word):
            parameters.append((match[1], match[2]))
        else:
            table.wrong(key, f"{_shown(word)} is not of the form parameter=value")
    return tuple(parameters)


def _read_host_bridge(table: _Table) -> HostBridge:
    bridge = HostBridge(
        domain=table.identifier("domain", 0, 0, 0x7FFFFFFF),
        bus=table.identifier("bus", 0, 0, MAX_BUS),
        name=table.string("name", ""),
        # Stream ID 255 is reserved, so a bridge has 255 at most.
        stream_pool=table.integer("stream_pool", 0, 0, 255),
        mem32_window=table.size("mem32_window"),
        mem64_window=table.size("mem64_window"),
        io_window=table.size("io_window"),
        functions=_read_functions(table, 1),
    )
    table.finish()
    return bridge


def _read_functions(table: _Table, depth: int) -> tuple[Function, ...]:
    functions: list[Function] = []
    for kind in Kind:
        for sub in table.tables(kind.value):
            if depth > MAX_DEPTH:
                table.wrong(kind.value, f"more than {MAX_DEPTH} functions below one another")
                break
            functions.append(_read_function(sub, kind, depth))
    return tuple(functions)


def _read_function(table: _Table, kind: Kind, depth: int) -> Function:
    base = defaults(kind)
    device = table.identifier("device", base.device, 0, 0xFFFF)
    tee_io = table.boolean("tee_io", base.tee_io)
    function = Function(
        kind=kind,
        slot=table.integer("slot", base.slot, 0, MAX_SLOT),
        function=table.integer("function", base.function, 0, MAX_FUNCTION),
        name=table.string("name", base.name),
        # 0 and 0xffff are what an empty slot reads as.
        vendor=table.identifier("vendor", base.vendor, 1, 0xFFFE),
        device=device,
        subsystem_vendor=table.identifier("subsystem_vendor", base.subsystem_vendor, 0, 0xFFFF),
        subsystem_device=table.identifier("subsystem_device", base.subsystem_device, 0, 0xFFFF),
        class_code=table.identifier("class", base.class_code, 0, 0xFFFFFF),
        revision=table.identifier("revision", base.revision, 0, 0xFF),
        plugged=table.boolean("plugged", base.plugged),
        secondary_bus=table.optional_identifier("secondary_bus", 1, MAX_BUS),
        link=_read_link(table, base.link),
        pm=table.boolean("pm", base.pm),
        msi=table.integer("msi", base.msi, 0, 32),
        flr=table.boolean("flr", base.flr),
        tee_io=tee_io,
        aer=table.boolean("aer", base.aer),
        ari=table.boolean("ari", base.ari),
        acs=table.boolean("acs", base.acs),
        serial=_read_serial(table),
        bars=_read_bars(table),
        msix=_read_msix(table),
        doe=_read_doe(table),
        cma=_read_cma(table),
        ide=_read_ide(table),
        sriov=_read_sriov(table, device, tee_io),
        children=_read_functions(table, depth + 1),
    )
    table.finish()
    return function


def _read_link(table: _Table, default: Link | None) -> Link | None:
    sub = table.table("link")
    if sub is None:
        return default
    link = Link(sub.one_of("speed", LinkSpeed.GT_2_5), sub.integer("width", 1, 1, 32))
    if link.width not in LINK_WIDTHS:
        widths = ", ".join(map(str, LINK_WIDTHS))
        sub.wrong("width", f"must be one of {widths}, not {link.width}")
    sub.finish()
    return link


def _read_serial(table: _Table) -> int | None:
    text = table.string("serial", "")
    if _SERIAL.fullmatch(text):
        return int(text.replace("-", ""), 16)
    if text:
        table.wrong("serial", 'must be eight bytes such as "52-54-00-ff-fe-12-34-56"')
    return None


def _read_bars(table: _Table) -> tuple[Bar, ...]:
    bars: list[Bar] = []
    for sub in table.tables("bar"):
        bars.append(
            Bar(
                sub.required_integer("index", 0, 5),
                sub.required_size("size"),
                sub.one_of("kind", BarKind.MEM32),
                sub.boolean("prefetch", False),
            )
        )
        sub.finish()
    return tuple(bars)


def _read_msix(table: _Table) -> Msix | None:
    sub = table.capability("msix")
    if sub is None:
        return None
    vectors = sub.integer("vectors", 1, 1, 2048)
    bar = sub.integer("bar", 0, 0, 5)
    table_offset = sub.integer("table_offset", 0, 0, 0xFFFFFFF8)
    behind = table_offset + 16 * vectors + 7 & ~7
    pba_offset = sub.integer("pba_offset", behind, 0, 0xFFFFFFF8)
    sub.finish()
    return Msix(vectors, bar, table_offset, pba_offset)


def _read_doe(table: _Table) -> Doe | None:
    sub = table.capability("doe")
    if sub is None:
        return None
    protocols: list[tuple[int, int]] = []
    for index, value in enumerate(sub.array("protocols")):
        protocol = _protocol(value)
        reason = (
            "must be [vendor, type], of 16 and 8 bits"
            if protocol is None
            else "is discovery, which every mailbox has: leave it out"
            if protocol == DOE_DISCOVERY
            else "is listed before"
            if protocol in protocols
            else ""
        )
        if protocol is None or reason:
            sub.wrong(f"protocols[{index}]", reason)
        else:
            protocols.append(protocol)
    doe = Doe(tuple(protocols)) if "protocols" in sub else Doe()
    sub.finish()
    return doe


def _protocol(value: object) -> tuple[int, int] | None:
    match value:
        case [bool(), _] | [_, bool()]:
            return None
        case [int(vendor), int(kind)] if 0 <= vendor <= 0xFFFF and 0 <= kind <= 0xFF:
            return vendor, kind
    return None


def _read_cma(table: _Table) -> Cma | None:
    sub = table.capability("cma")
    if sub is None:
        return None
    base = Cma()
    cma = Cma(
        key=sub.one_of("key", base.key),
        hash=sub.one_of("hash", base.hash),
        versions=sub.several("versions", base.versions),
        slots=sub.integers("slots", base.slots, 0, MAX_CERTIFICATE_SLOT),
        seed=sub.integer("seed", 0, 0, (1 << 63) - 1) if "seed" in sub else None,
        files=_read_cma_files(sub),
        measurements=_read_measurements(sub),
        tamper=sub.several("tamper", tuple(Tamper)) if "tamper" in sub else (),
    )
    for group in EXCLUSIVE_TAMPERS:
        found = [one.value for one in group if one in cma.tamper]
        if len(found) > 1:
            sub.wrong("tamper", f"{' and '.join(found)} exclude each other")
    for name in ("key", "slots", "seed"):
        if cma.files and name in sub:
            sub.wrong(name, "is told by files")
    sub.finish()
    return cma


def _read_cma_files(table: _Table) -> tuple[CmaFiles, ...]:
    files: dict[int, CmaFiles] = {}
    for sub in table.tables("files"):
        slot = sub.integer("slot", 0, 0, MAX_CERTIFICATE_SLOT)
        if slot in files:
            sub.wrong("slot", f"slot {slot} has its files already")
        files[slot] = CmaFiles(slot, sub.required_string("chain"), sub.required_string("key"))
        sub.finish()
    return tuple(files.values())


def _read_measurements(table: _Table) -> tuple[Measurement, ...]:
    found: dict[int, Measurement] = {}
    for sub in table.tables("measurements"):
        index = sub.required_integer("index", 1, MEASUREMENT_MANIFEST)
        kind = sub.one_of("kind", MeasurementKind.FIRMWARE)
        if index in found:
            sub.wrong("index", f"measurement {index} is listed before")
        elif index > MAX_MEASUREMENT and index != MEASUREMENT_MANIFEST:
            limits = f"1..{MAX_MEASUREMENT}, or {MEASUREMENT_MANIFEST} for the manifest"
            sub.wrong("index", f"must be in {limits}, not {index}")
        elif (index == MEASUREMENT_MANIFEST) != (kind is MeasurementKind.MANIFEST):
            sub.wrong("kind", f"the measurement {MEASUREMENT_MANIFEST} is the manifest")
        found[index] = Measurement(index, kind, sub.required_string("value"))
        sub.finish()
    return tuple(found.values())


def _read_ide(table: _Table) -> Ide | None:
    sub = table.capability("ide")
    if sub is None:
        return None
    base = Ide()
    ide = Ide(
        # The ranges are those of the register fields: 3 bits, 8 bits and 4 bits.
        link_streams=sub.integer("link_streams", base.link_streams, 0, 8),
        selective_streams=sub.integer("selective_streams", base.selective_streams, 0, 256),
        address_associations=sub.integer("address_associations", base.address_associations, 0, 15),
        tee_limited=sub.boolean("tee_limited", base.tee_limited),
        ide_km=sub.boolean("ide_km", base.ide_km),
        selective_config=sub.boolean("selective_config", base.selective_config),
        flow_through=sub.boolean("flow_through", base.flow_through),
        partial_header_encryption=sub.boolean(
            "partial_header_encryption", base.partial_header_encryption
        ),
        aggregation=sub.boolean("aggregation", base.aggregation),
        pcrc=sub.boolean("pcrc", base.pcrc),
    )
    sub.finish()
    return ide


def _read_sriov(table: _Table, pf_device: int, pf_tee_io: bool) -> Sriov | None:
    sub = table.capability("sriov")
    if sub is None:
        return None
    sriov = Sriov(
        total_vfs=sub.required_integer("total_vfs", 1, 0xFFFF),
        vf_device=sub.identifier("vf_device", pf_device, 0, 0xFFFF),
        first_vf_offset=sub.integer("first_vf_offset", 1, 1, 0xFFFF),
        vf_stride=sub.integer("vf_stride", 1, 1, 0xFFFF),
        tee_io=sub.boolean("tee_io", pf_tee_io),
        bars=_read_bars(sub),
        msix=_read_msix(sub),
    )
    sub.finish()
    return sriov


# --- checks of the whole --------------------------------------------------------------------------

# Which kinds may have what, and why the others may not.
_ONLY: Final[tuple[tuple[str, frozenset[Kind], str], ...]] = (
    ("secondary_bus", _PORTS, "only a port has a bus below it"),
    ("link", _LINKED, "there is no PCI Express link here"),
    ("flr", _DEVICES, "only PCI Express endpoints have function level reset"),
    ("tee_io", _DEVICES | {Kind.UPSTREAM_PORT}, "TEE-IO is for endpoints and upstream ports"),
    ("aer", _PCIE, "needs PCI Express: conventional PCI has no extended capabilities"),
    (
        "ari",
        _LINK_ABOVE | {Kind.ENDPOINT},
        "ARI is a capability of endpoints, and forwarding in root and downstream ports",
    ),
    ("acs", _PCIE, "needs PCI Express: conventional PCI has no extended capabilities"),
    ("serial", _PCIE, "needs PCI Express: conventional PCI has no extended capabilities"),
    ("doe", _PCIE, "needs PCI Express: conventional PCI has no extended capabilities"),
    (
        "cma",
        _DEVICES | {Kind.UPSTREAM_PORT},
        "keys are for endpoints, and for the upstream ports of switches",
    ),
    ("ide", _PCIE, "needs PCI Express: IDE protects its packets"),
    ("sriov", _DEVICES, "SR-IOV is for PCI Express endpoints"),
)
_PLUGGABLE: Final = frozenset({Kind.ENDPOINT, Kind.UPSTREAM_PORT, Kind.CONVENTIONAL})


class _Checker:
    """The rules that more than one key takes part in."""

    def __init__(self, findings: _Findings) -> None:
        self._findings = findings

    def _wrong(self, owner: str, key: str, reason: str) -> None:
        """Report a mistake of ``owner``, unless it may only follow from one reported before."""
        # A key of the owner stands for itself; those of a table in it are doubtful together.
        table = key.rpartition(".")[0]
        if not key:
            self._findings.add(owner, reason)
        elif not self._findings.doubts(owner, key, *filter(None, [table])):
            self._findings.add(f"{owner}.{key}", reason)

    def machine(self, machine: Machine) -> None:
        """Check everything below ``machine``."""
        certain: list[HostBridge] = []
        for index, bridge in enumerate(machine.host_bridges):
            owner = f"host_bridge[{index}]"
            self._windows(bridge, owner)
            self._bus(bridge.functions, owner, None)
            if self._findings.doubts(owner, "domain", "bus"):
                continue
            if any((b.domain, b.bus) == (bridge.domain, bridge.bus) for b in certain):
                taken = (
                    f"{bridge.domain:04x}:{bridge.bus:02x} is the root bus of another host bridge"
                )
                self._wrong(owner, "bus", taken)
                continue
            certain.append(bridge)
        for index, bridge in enumerate(machine.host_bridges):
            if any(bridge is b for b in certain) and _can_be_numbered(bridge.functions):
                roots = [b.bus for b in certain if b.domain == bridge.domain]
                limit = min((bus - 1 for bus in roots if bus > bridge.bus), default=MAX_BUS)
                self._bus_numbers(bridge, f"host_bridge[{index}]", limit)

    def _windows(self, bridge: HostBridge, owner: str) -> None:
        for key, granule, most in (
            ("mem32_window", MIB, 2 * GIB),
            ("mem64_window", MIB, 64 * TIB),
            ("io_window", 4 * KIB, 64 * KIB),
        ):
            size = getattr(bridge, key)
            if size is not None and (size % granule or not granule <= size <= most):
                granules = f"{_size(granule)} up to {_size(most)}"
                self._wrong(owner, key, f"must be a multiple of {granules}")

    def _bus(self, functions: Sequence[Function], owner: str, port: Function | None) -> None:
        """Check the functions of one bus, and the buses below; ``port`` is None for a root bus."""
        allowed = _ON_ROOT_BUS if port is None else _BELOW[port.kind]
        seen: dict[int, str] = {}
        for function, key in _keyed(functions, owner):
            if function.kind not in allowed:
                place = _PLACE_OF[function.kind]
                self._wrong(key, "", f"{function.kind.value} goes {place}")
            if port is not None and port.kind in _LINK_ABOVE and function.slot:
                self._wrong(key, "slot", "must be 0: a link has one device, number 0")
            if self._findings.doubts(key, "slot", "function"):
                continue
            if function.devfn in seen:
                taken = (
                    f"{function.slot:02x}.{function.function} is taken by {seen[function.devfn]}"
                )
                self._wrong(key, "function" if function.function else "slot", taken)
            seen.setdefault(function.devfn, key)
        self._devices(functions, owner)
        for function, key in _keyed(functions, owner):
            self._function(function, key)
            self._routing_ids(function, seen, key, port)
            if function.kind is Kind.UPSTREAM_PORT and not function.children:
                self._wrong(key, "downstream_port", "a switch needs at least one")
            self._bus(function.children, key, function)

    def _devices(self, functions: Sequence[Function], owner: str) -> None:
        """Check the functions of one bus that share a device number."""
        keyed = list(_keyed(functions, owner))
        if any(self._findings.doubts(key, "slot", "function") for _, key in keyed):
            return
        first = {f.slot: f for f in functions if f.function == 0}
        for function, key in keyed:
            if function.slot not in first:
                reason = f"device {function.slot:02x} has no function 0"
                self._wrong(key, "function", reason)
            elif first[function.slot].plugged != function.plugged:
                reason = "must be that of function 0: a device is plugged in whole"
                self._wrong(key, "plugged", reason)

    def _function(self, function: Function, key: str) -> None:
        kind = function.kind
        for name, kinds, reason in _ONLY:
            if kind not in kinds and _present(getattr(function, name)):
                self._wrong(key, name, reason)
        if not function.plugged and kind not in _PLUGGABLE:
            self._wrong(key, "plugged", f"a {kind.value} is part of what it sits in")
        if (function.class_code >> 8 == PCI_CLASS_BRIDGE_PCI) != kind.is_port:
            self._wrong(key, "class", "0x0604xx is the class of ports, of all and of nothing else")
        if function.msi & (function.msi - 1):
            self._wrong(key, "msi", f"must be 0, 1, 2, 4, 8, 16 or 32 vectors, not {function.msi}")
        self._bars(function.bars, key, "", 2 if kind.is_port else 6, 128 if kind.is_pcie else 16)
        self._msix(function.msix, function.bars, key, "")
        self._cma(function, key)
        self._ide(function, key)
        if function.sriov is not None:
            self._sriov(function.sriov, key)
        self._ext_config(function, key)

    def _bars(
        self, bars: Sequence[Bar], owner: str, prefix: str, registers: int, least: int
    ) -> None:
        used: set[int] = set()
        for position, bar in enumerate(bars):
            key = f"{prefix}bar[{position}]"
            if self._findings.doubts(owner, f"{key}.index", f"{key}.kind"):
                continue
            slots = {bar.index, bar.index + 1} if bar.kind is BarKind.MEM64 else {bar.index}
            if max(slots) >= registers:
                reason = "its upper half is" if bar.index < registers else "it is"
                self._wrong(owner, f"{key}.index", f"{reason} past the last BAR, {registers - 1}")
            elif slots & used:
                self._wrong(owner, f"{key}.index", f"BAR {min(slots & used)} is taken")
            used |= slots
            low, high = _BAR_SIZES[bar.kind]
            low = max(low, least) if bar.kind is not BarKind.IO else low
            if bar.size & (bar.size - 1):
                self._wrong(owner, f"{key}.size", "must be a power of two")
            elif not low <= bar.size <= high:
                limits = f"{_size(low)} to {_size(high)}"
                self._wrong(owner, f"{key}.size", f"must be {limits} for {bar.kind.value}")
            if bar.prefetch and bar.kind is BarKind.IO:
                self._wrong(owner, f"{key}.prefetch", "I/O space is not prefetchable")

    def _msix(self, msix: Msix | None, bars: Sequence[Bar], owner: str, prefix: str) -> None:
        doubtful = (f"{prefix}bar[{position}]" for position in range(len(bars)))
        if msix is None or self._findings.doubts(owner, *doubtful):
            return
        bar = next((bar for bar in bars if bar.index == msix.bar), None)
        if bar is None or bar.kind is BarKind.IO:
            self._wrong(owner, f"{prefix}msix.bar", f"there is no memory BAR {msix.bar}")
            return
        parts = {
            "table_offset": (msix.table_offset, 16 * msix.vectors),
            "pba_offset": (msix.pba_offset, (msix.vectors + 63) // 64 * 8),
        }
        for name, (offset, length) in parts.items():
            if offset % 8:
                self._wrong(owner, f"{prefix}msix.{name}", "must be a multiple of 8")
            elif offset + length > bar.size:
                reason = f"ends past BAR {bar.index}, which has {_size(bar.size)}"
                self._wrong(owner, f"{prefix}msix.{name}", reason)
        (table, table_length), (pba, pba_length) = parts.values()
        if table < pba + pba_length and pba < table + table_length:
            self._wrong(owner, f"{prefix}msix.pba_offset", "overlaps the table")

    def _cma(self, function: Function, owner: str) -> None:
        if function.cma is None or function.kind not in _DEVICES | {Kind.UPSTREAM_PORT}:
            return
        if function.function:
            self._wrong(owner, "cma", "the keys of a device are in its function 0")
        protocols = function.doe.protocols if function.doe is not None else ()
        if not {DOE_CMA, DOE_SECURED_CMA} <= set(protocols) and not self._findings.doubts(
            owner, "doe"
        ):
            self._wrong(owner, "cma", "needs doe, with the protocols [1, 1] and [1, 2]")

    def _ide(self, function: Function, owner: str) -> None:
        ide = function.ide
        if ide is None:
            return
        if not ide.link_streams and not ide.selective_streams:
            self._wrong(owner, "ide", "needs link_streams or selective_streams")
        if ide.link_streams and function.kind is Kind.RC_ENDPOINT:
            self._wrong(owner, "ide.link_streams", "there is no PCI Express link here")

    def _sriov(self, sriov: Sriov, owner: str) -> None:
        # VF BARs are multiples of the system page size (section 9.3.3.14), and never I/O.
        self._bars(sriov.bars, owner, "sriov.", 6, 4 * KIB)
        for position, bar in enumerate(sriov.bars):
            if bar.kind is BarKind.IO:
                self._wrong(owner, f"sriov.bar[{position}].kind", "VFs have no I/O space")
        self._msix(sriov.msix, sriov.bars, owner, "sriov.")

    def _routing_ids(
        self, function: Function, seen: dict[int, str], key: str, port: Function | None
    ) -> None:
        """Check where the VFs of ``function`` come to lie on its bus and the buses after it."""
        if function.sriov is None:
            return
        ids = function.sriov.routing_ids(function.devfn)
        if ids[-1] >> 8 > MAX_BUS:
            self._wrong(key, "sriov.total_vfs", f"VF {len(ids) - 1} lies past the last bus number")
            return
        holder = next((seen[rid] for rid in ids if rid in seen), None)
        if holder is not None:
            reason = f"a VF has the device and function number of {holder}"
            self._wrong(key, "sriov.first_vf_offset", reason)
        for rid in ids:
            seen.setdefault(rid, f"a VF of {key}")
        if port is None or not any(MAX_FUNCTION < rid <= 0xFF for rid in ids):
            return
        if not function.ari:
            self._wrong(key, "ari", "must be true for VFs with function numbers above 7")
        elif not port.ari:
            self._wrong(key, "sriov.total_vfs", "the port above does not forward ARI")

    def _ext_config(self, function: Function, owner: str) -> None:
        needed = sum(
            length for name, length in _EXT_CAP_BYTES.items() if _present(getattr(function, name))
        )
        needed += function.ide.size if function.ide is not None else 0
        if function.kind.is_pcie and needed > _EXT_CONFIG_BYTES:
            key = "ide.selective_streams" if function.ide is not None else ""
            room = f"{needed} bytes of extended capabilities in {_EXT_CONFIG_BYTES}"
            self._wrong(owner, key, f"does not fit in config space: {room}")

    def _bus_numbers(self, bridge: HostBridge, owner: str, limit: int) -> None:
        """Check that the buses of ``bridge`` differ, and that ``limit`` is not exceeded."""
        ranges = assign_buses(bridge)
        highest = bridge.bus + _extra_buses(bridge.functions)
        if highest > limit:
            self._wrong(owner, "bus", f"the VFs on the root bus reach past bus {limit:#04x}")
        for function, key, path in _ports(bridge.functions, owner, ()):
            secondary = ranges[path].secondary
            if secondary <= highest:
                lowest = f"the numbers up to {highest:#04x} are taken by what comes before"
                self._wrong(key, "secondary_bus", f"{secondary:#04x} is not free: {lowest}")
            last = secondary + _extra_buses(function.children)
            if highest <= limit < last:
                reason = f"needs bus {last:#04x}, and the last of its host bridge is {limit:#04x}"
                self._wrong(key, "" if function.secondary_bus is None else "secondary_bus", reason)
            highest = max(highest, last)


def _present(value: object) -> bool:
    return value is not None and value is not False


def _can_be_numbered(functions: Sequence[Function]) -> bool:
    """Whether no bus has two functions of one number, nor VFs past every bus number."""
    return (
        len({f.devfn for f in functions}) == len(functions)
        and _extra_buses(functions) <= MAX_BUS
        and all(_can_be_numbered(f.children) for f in functions)
    )


_BAR_SIZES: Final[Mapping[BarKind, tuple[int, int]]] = {
    BarKind.MEM32: (16, 2 * GIB),
    BarKind.MEM64: (16, 8 * TIB),
    BarKind.IO: (4, 256),
}


def _keyed(functions: Sequence[Function], owner: str) -> Iterator[tuple[Function, str]]:
    """Each function with its key in the file: its position among those of its kind."""
    counts = dict.fromkeys(Kind, 0)
    for function in functions:
        yield function, f"{owner}.{function.kind.value}[{counts[function.kind]}]"
        counts[function.kind] += 1


def _ports(
    functions: Sequence[Function], owner: str, path: tuple[int, ...]
) -> Iterator[tuple[Function, str, tuple[int, ...]]]:
    """Every port in the order in which buses are numbered, with its key and its path."""
    for function, key in sorted(_keyed(functions, owner), key=lambda item: item[0].devfn):
        if function.kind.is_port:
            here = (*path, function.devfn)
            yield function, key, here
            yield from _ports(function.children, key, here)


def _ordered(function: Function) -> Function:
    """``function`` with its BARs and everything below it in the order of their numbers."""
    sriov = function.sriov
    return replace(
        function,
        bars=tuple(sorted(function.bars, key=lambda bar: bar.index)),
        sriov=sriov and replace(sriov, bars=tuple(sorted(sriov.bars, key=lambda bar: bar.index))),
        children=_in_bus_order(function.children),
    )


def _in_bus_order(functions: Sequence[Function]) -> tuple[Function, ...]:
    return tuple(_ordered(function) for function in sorted(functions, key=_by_devfn))


# --- entry points ---------------------------------------------------------------------------------


def parse(text: str, source: str) -> Machine:
    """The machine that ``text`` describes; ``source`` names it in messages.

    Raises DescriptionError with every mistake found.
    """
    try:
        data = tomllib.loads(text)
    except RecursionError:
        raise DescriptionError([Mistake(source, "", "nested too deeply")]) from None
    except ValueError as error:
        match = _TOML_POSITION.fullmatch(str(error))
        position, reason = (match[2], match[1]) if match else ("", str(error))
        raise DescriptionError([Mistake(source, position, reason)]) from None
    findings = _Findings(source)
    stem = Path(source).stem
    machine = _read_machine(
        _Table(data, "", findings), stem if _NAME.fullmatch(stem) else "machine"
    )
    _Checker(findings).machine(machine)
    if findings.mistakes:
        raise DescriptionError(findings.mistakes)
    directory = Path(source).parent
    bridges = tuple(
        replace(
            bridge,
            functions=tuple(
                _with_places(function, directory) for function in _in_bus_order(bridge.functions)
            ),
        )
        for bridge in machine.host_bridges
    )
    return replace(machine, host_bridges=bridges)


def _with_places(function: Function, directory: Path) -> Function:
    """``function`` with the files that it and those below it name found from ``directory``."""
    cma = function.cma
    if cma is not None and cma.files:
        files = tuple(
            CmaFiles(
                file.slot,
                os.path.abspath(directory / file.chain),
                os.path.abspath(directory / file.key),
            )
            for file in cma.files
        )
        cma = replace(cma, files=files)
    children = tuple(_with_places(child, directory) for child in function.children)
    return replace(function, cma=cma, children=children)


def _read_text(path: Path) -> str:
    try:
        return path.read_bytes().decode()
    except OSError as error:
        reason = error.strerror or str(error)
    except UnicodeDecodeError as error:
        reason = f"not UTF-8 text: byte {error.start} is {error.object[error.start]:#04x}"
    except ValueError as error:
        reason = str(error)
    raise DescriptionError([Mistake(str(path), "", reason)])


def load(path: Path) -> Machine:
    """The machine that the file at ``path`` describes.

    Raises DescriptionError, also when the file cannot be read.
    """
    return parse(_read_text(path), str(path))


def _builtin_texts() -> dict[str, str]:
    files = resources.files("tsmfs").joinpath("machines").iterdir()
    return {
        file.name.removesuffix(".toml"): file.read_text("utf-8")
        for file in sorted(files, key=lambda file: file.name)
        if file.name.endswith(".toml")
    }


def builtin_names() -> list[str]:
    """Names of the machines that come with tsmfs, in alphabetical order."""
    return list(_builtin_texts())


def builtin_text(name: str) -> str:
    """The TOML text of a built-in machine; an unknown name raises DescriptionError."""
    texts = _builtin_texts()
    if name in texts:
        return texts[name]
    known = ", ".join(texts)
    reason = f"unknown machine; built in are {known}; for a file give a path ending in .toml"
    raise DescriptionError([Mistake(name, "", reason)])


def find(name_or_path: str) -> tuple[Machine, str]:
    """A built-in machine by its name, or one from a file, with its TOML text.

    Anything with a ``/`` or ending in ``.toml`` is a path. Raises DescriptionError.
    """
    if "/" in name_or_path or name_or_path.endswith(".toml"):
        text = _read_text(Path(name_or_path))
        return parse(text, name_or_path), text
    text = builtin_text(name_or_path)
    return parse(text, f"{name_or_path}.toml"), text


_ROOT_PORTS_PER_BUS: Final = MAX_SLOT + 1
_FUNCTIONS_PER_DEVICE: Final = MAX_FUNCTION + 1
# Far enough apart for the root bus and one bus below each of its root ports.
_GENERATED_ROOT_BUSES: Final = (0x00, 0x40, 0x80, 0xC0)


def generate(functions: int) -> Machine:
    """A synthetic machine of exactly ``functions`` functions, ports included.

    Root ports, up to 32 on a root bus, with an endpoint of up to eight functions below each; four
    host bridges to a domain. Raises ValueError when ``functions`` is not positive.
    """
    if functions < 1:
        raise ValueError(f"a machine has at least one function, not {functions}")
    ports: list[Function] = []
    remaining = functions
    while remaining:
        slot = len(ports) % _ROOT_PORTS_PER_BUS
        count = min(remaining - 1, _FUNCTIONS_PER_DEVICE)
        ports.append(_generated_port(slot, count))
        remaining -= 1 + count
    bridges: list[HostBridge] = []
    for start in range(0, len(ports), _ROOT_PORTS_PER_BUS):
        domain, position = divmod(len(bridges), len(_GENERATED_ROOT_BUSES))
        bridges.append(
            HostBridge(
                domain=domain,
                bus=_GENERATED_ROOT_BUSES[position],
                stream_pool=8,
                functions=tuple(ports[start : start + _ROOT_PORTS_PER_BUS]),
            )
        )
    return Machine(
        name=f"generated-{functions}",
        description=f"{functions} functions, for measurements",
        modules=(ModuleLoad("devsec_link_tsm"), ModuleLoad("devsec_tsm")),
        host_bridges=tuple(bridges),
    )


def _generated_port(slot: int, functions: int) -> Function:
    endpoint = replace(
        defaults(Kind.ENDPOINT),
        tee_io=True,
        bars=(Bar(0, 64 * KIB, BarKind.MEM64, prefetch=True),),
    )
    first = replace(endpoint, doe=Doe(), ide=Ide())
    return replace(
        defaults(Kind.ROOT_PORT),
        slot=slot,
        ide=Ide(selective_streams=4),
        children=tuple(
            replace(endpoint if number else first, function=number) for number in range(functions)
        ),
    )


# --- model to TOML --------------------------------------------------------------------------------

_KEYS: Final[Mapping[str, str]] = {"class_code": "class", "bars": "bar"}
_HEX_DIGITS: Final[Mapping[str, int]] = {
    "domain": 4,
    "bus": 2,
    "slot": 2,
    "secondary_bus": 2,
    "vendor": 4,
    "device": 4,
    "subsystem_vendor": 4,
    "subsystem_device": 4,
    "class": 6,
    "revision": 2,
    "vf_device": 4,
    "table_offset": 1,
    "pba_offset": 1,
}
_SIZE_KEYS: Final = frozenset({"size", "mem32_window", "mem64_window", "io_window"})
# Written as tables of their own, or told by the name of the table.
_STRUCTURE: Final = frozenset({"children", "functions", "sriov"})
_ALWAYS: Final = frozenset({"domain", "bus", "slot"})


def _size(size: int) -> str:
    """``size`` in the largest unit that divides it."""
    unit = next(unit for unit in "TGMK" + " " if not size % _UNITS[unit.strip()])
    return f"{size // _UNITS[unit.strip()]}{unit.strip()}"


def _value(key: str, value: object) -> str:
    """``value`` in TOML, in the base or unit that suits ``key``."""
    if isinstance(value, bool):
        return "true" if value else "false"
    if key == "serial" and isinstance(value, int):
        return f'"{value.to_bytes(8).hex("-")}"'
    if isinstance(value, int):
        if key in _SIZE_KEYS:
            return f'"{_size(value)}"'
        return f"0x{value:0{_HEX_DIGITS[key]}x}" if key in _HEX_DIGITS else str(value)
    if isinstance(value, enum.Enum):
        return _quoted(str(value.value))
    if isinstance(value, tuple):
        items = [_value("", item) for item in value]
        if len(value) > 1 and is_dataclass(value[0]):
            return "\n".join(["[", *(f"  {item}," for item in items), "]"])
        return f"[{', '.join(items)}]"
    if is_dataclass(value):
        # A capability with nothing but defaults.
        return f"{{ {text} }}" if (text := ", ".join(_assignments(value))) else "true"
    return _quoted(str(value))


def _assignments(value: object, default: object = None) -> Iterator[str]:
    """``key = value`` for each field that is there and not at its default, that of ``default``."""
    assert is_dataclass(value)
    for field in fields(value):
        item = getattr(value, field.name)
        usual = field.default if default is None else getattr(default, field.name)
        if item is None or field.name in _STRUCTURE:
            continue
        if field.name in _ALWAYS or item != usual:
            key = _KEYS.get(field.name, field.name)
            yield f"{key} = {_value(key, item)}"


def _table_lines(header: str, assignments: Iterable[str], indent: str) -> Iterator[str]:
    yield indent + header
    for assignment in assignments:
        yield indent + assignment.replace("\n", "\n" + indent)


def _function_lines(function: Function, above: str, indent: str) -> Iterator[str]:
    header = f"{above}.{function.kind.value}"
    yield ""
    assignments = _assignments(function, defaults(function.kind))
    yield from _table_lines(f"[[{header}]]", assignments, indent)
    if function.sriov is not None:
        yield from _table_lines(f"[{header}.sriov]", _assignments(function.sriov), indent)
    for child in function.children:
        yield from _function_lines(child, header, indent + "  ")


def to_toml(machine: Machine) -> str:
    """``machine`` as TOML text that ``parse`` turns into an equal machine."""
    lines = [f"name = {_quoted(machine.name)}"]
    if machine.description:
        lines.append(f"description = {_quoted(machine.description)}")
    if machine.seed:
        lines.append(f"seed = {machine.seed}")
    if machine.modules:
        lines += ["modules = [", *(f"  {_quoted(m.line)}," for m in machine.modules), "]"]
    for bridge in machine.host_bridges:
        lines += ["", *_table_lines("[[host_bridge]]", _assignments(bridge), "")]
        for function in bridge.functions:
            lines += _function_lines(function, "host_bridge", "")
    return "\n".join(lines) + "\n"
