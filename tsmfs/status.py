# SPDX-License-Identifier: MIT
"""The topology below a sysfs root, each PCI function with its security state, as a tree or JSON."""

from __future__ import annotations

import os
import re
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, field, replace
from enum import StrEnum
from pathlib import Path

from tsmfs.instance import Instance

_HOST_BRIDGE = re.compile(r"pci[0-9a-f]{4,}:[0-9a-f]{2}")
_STREAM = re.compile(r"stream\d+\.\d+\.\d+")


class State(StrEnum):
    """How far a function is on its way to being trusted."""

    NONE = "none"  #: no TSM has a use for it
    IDLE = "idle"  #: a TSM could take it and has not
    CONNECTED = "connected"  #: it has a context of a link TSM
    BOUND = "bound"  #: that, and a TDI is bound
    LOCKED = "locked"  #: it has a context of a devsec TSM
    ACCEPTED = "accepted"  #: that, and its MMIO is accepted


@dataclass(frozen=True, slots=True)
class Tsm:
    """One TSM class device: ``pci_mode`` as read, None when the file is absent."""

    name: str
    mode: str | None
    parent: str | None


@dataclass(frozen=True, slots=True)
class Function:
    """One PCI function and what its files say; None for a file that is not there.

    An empty string is a file that reads as an empty line: visible, but with nothing to tell.
    ``children`` are the functions on the buses behind it.
    """

    name: str
    vendor: str
    device: str
    class_code: str
    driver: str | None
    physfn: str | None
    state: State
    authenticated: str | None
    connect: str | None
    dsm: str | None
    bound: str | None
    lock: str | None
    accept: str | None
    streams: list[str]
    children: list[Function] = field(default_factory=list)

    @property
    def holder(self) -> str | None:
        """Name of the TSM that holds the context: each of these files reads it."""
        return self.connect or self.lock or self.authenticated or None


@dataclass(frozen=True, slots=True)
class HostBridge:
    """One PCI host bridge, its streams by name with the function in which each one ends."""

    name: str
    available_secure_streams: int | None
    streams: dict[str, str]
    functions: list[Function] = field(default_factory=list)


@dataclass(frozen=True, slots=True)
class Netlink:
    """Where the machine serves netlink: path of a Unix socket, port of NETLINK_USERSOCK."""

    socket: str | None = None
    port: int | None = None


@dataclass(frozen=True, slots=True)
class Topology:
    """Everything that ``tsmfs status`` shows."""

    tsms: list[Tsm]
    host_bridges: list[HostBridge]
    netlink: Netlink = Netlink()

    def to_dict(self) -> dict[str, object]:
        """Plain lists and dictionaries with the names of the fields as keys, for JSON."""
        return asdict(self)


def read_topology(instance: Instance) -> Topology:
    """Read the state of all functions from the sysfs of ``instance``.

    What vanishes while this runs is left out.
    """
    tsms = list(_read_tsms(instance))
    modes = {tsm.name: tsm.mode for tsm in tsms}
    bridges: dict[str, HostBridge] = {}
    functions: dict[str, Function] = {}
    parents: dict[str, str] = {}
    for link in _entries(instance.sysfs / "bus/pci/devices"):
        place = _target(link)
        bridge_path = None if place is None else _host_bridge_above(place)
        if place is None or bridge_path is None:
            continue
        if bridge_path.name not in bridges:
            bridges[bridge_path.name] = _read_host_bridge(bridge_path)
        function = _read_function(place, bridges[bridge_path.name].streams, modes)
        if function is not None:
            functions[place.name] = function
            parents[place.name] = place.parent.name
    for name, function in functions.items():
        parent = parents[name]
        if parent in functions:
            functions[parent].children.append(function)
        elif parent in bridges:
            bridges[parent].functions.append(function)
    return Topology(tsms, [bridges[name] for name in sorted(bridges)], _read_netlink(instance))


#: Gives a text the look that belongs to a state.
Paint = Callable[[str, State], str]


def render(topology: Topology, paint: Paint) -> Iterator[str]:
    """The lines of the tree: TSMs, every host bridge with what is below it, netlink."""
    for tsm in topology.tsms:
        yield f"{tsm.name}  {tsm.mode or 'no PCI operations'}  {tsm.parent or ''}".rstrip()
    for bridge in topology.host_bridges:
        yield ""
        yield bridge.name + _stream_count(bridge)
        yield from _render_functions(bridge.functions, paint, "")
    if topology.netlink.socket is not None:
        yield ""
        yield f"netlink  {topology.netlink.socket}  port {topology.netlink.port}"


def _render_functions(functions: Sequence[Function], paint: Paint, indent: str) -> Iterator[str]:
    for function in functions:
        last = function is functions[-1]
        yield f"{indent}{'└─ ' if last else '├─ '}{_render_function(function, paint)}"
        deeper = indent + ("   " if last else "│  ")
        yield from _render_functions(function.children, paint, deeper)


def _render_function(function: Function, paint: Paint) -> str:
    words = [function.name, f"{function.vendor}:{function.device}", f"[{function.class_code}]"]
    if function.driver is not None:
        words.append(f"driver {function.driver}")
    if function.physfn is not None:
        words.append(f"VF of {function.physfn}")
    if function.state is not State.NONE:
        words.append(paint(f"{function.state} {function.holder or ''}".rstrip(), function.state))
    if function.dsm:
        words.append(f"dsm {function.dsm}")
    return "  ".join(words + function.streams)


def _stream_count(bridge: HostBridge) -> str:
    if bridge.available_secure_streams is None:
        return ""
    total = bridge.available_secure_streams + len(bridge.streams)
    return f"  {bridge.available_secure_streams} of {total} streams available"


def _read_tsms(instance: Instance) -> Iterator[Tsm]:
    for link in _entries(instance.sysfs / "class/tsm"):
        yield Tsm(link.name, _read(link / "pci_mode"), _target_name(link / "device"))


def _read_netlink(instance: Instance) -> Netlink:
    socket, port = (
        _read(instance.control("netlink_socket")),
        _read(instance.control("netlink_port")),
    )
    return Netlink(socket or None, int(port) if port else None)


def _read_host_bridge(path: Path) -> HostBridge:
    available = _read(path / "available_secure_streams")
    streams = {}
    for entry in _entries(path):
        if _STREAM.fullmatch(entry.name) and (end := _target_name(entry)) is not None:
            streams[entry.name] = end
    return HostBridge(path.name, int(available) if available else None, streams)


def _read_function(
    path: Path, streams: Mapping[str, str], modes: Mapping[str, str | None]
) -> Function | None:
    """Read one function's directory; None when the function has gone."""
    identity = [_read(path / name) for name in ("vendor", "device", "class")]
    if None in identity:
        return None
    vendor, device, class_code = (str(word).removeprefix("0x") for word in identity)
    tsm = path / "tsm"
    function = Function(
        name=path.name,
        vendor=vendor,
        device=device,
        class_code=class_code,
        driver=_target_name(path / "driver"),
        physfn=_target_name(path / "physfn"),
        state=State.NONE,
        authenticated=_read(path / "authenticated"),
        connect=_read(tsm / "connect"),
        dsm=_read(tsm / "dsm"),
        bound=_read(tsm / "bound"),
        lock=_read(tsm / "lock"),
        accept=_read(tsm / "accept"),
        streams=[name for name, end in streams.items() if end == path.name],
    )
    return replace(function, state=_state_of(function, modes))


def _state_of(function: Function, modes: Mapping[str, str | None]) -> State:
    if function.holder is None:
        files = (function.authenticated, function.connect, function.lock, function.dsm)
        return State.NONE if all(content is None for content in files) else State.IDLE
    if modes.get(function.holder) == "devsec":
        return State.ACCEPTED if function.accept == "1" else State.LOCKED
    return State.BOUND if function.bound else State.CONNECTED


def _host_bridge_above(place: Path) -> Path | None:
    """The directory of the host bridge that ``place`` is below."""
    for ancestor in place.parents:
        if _HOST_BRIDGE.fullmatch(ancestor.name):
            return ancestor
    return None


def _entries(directory: Path) -> list[Path]:
    try:
        return sorted(directory.iterdir())
    except FileNotFoundError:
        return []


def _read(path: Path) -> str | None:
    """The text of an attribute without its newline; None when it is not there or not readable."""
    try:
        return path.read_text(errors="replace").removesuffix("\n")
    except OSError:
        return None


def _target(link: Path) -> Path | None:
    """The path that a link names; None when there is no such link.

    Joined without a look at the components in between: a sysfs has no links on the way from
    ``bus/pci/devices`` to ``devices``.
    """
    try:
        return Path(os.path.normpath(link.parent / link.readlink()))
    except OSError:
        return None


def _target_name(link: Path) -> str | None:
    """The name of the directory that ``link`` leads to."""
    return link.resolve().name if link.is_symlink() else None
