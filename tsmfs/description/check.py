# SPDX-License-Identifier: MIT
"""The rules that a machine must satisfy: what goes where, and under which numbers."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import Final

from tsmfs.description.buses import assign_buses, extra_buses
from tsmfs.description.check_function import FunctionChecker
from tsmfs.description.findings import Findings
from tsmfs.description.model import (
    LINK_ABOVE,
    MAX_BUS,
    MAX_FUNCTION,
    Function,
    HostBridge,
    Kind,
    Machine,
)
from tsmfs.description.units import GIB, KIB, MIB, TIB, in_units

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


class MachineChecker:
    """The rules about host bridges and buses, and those about every function on them."""

    def __init__(self, findings: Findings) -> None:
        self._findings = findings
        self._functions = FunctionChecker(findings)

    def check(self, machine: Machine) -> None:
        """Record what is wrong with ``machine`` and everything below it."""
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
                self._findings.broken(owner, "bus", taken)
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
                granules = f"{in_units(granule)} up to {in_units(most)}"
                self._findings.broken(owner, key, f"must be a multiple of {granules}")

    def _bus(self, functions: Sequence[Function], owner: str, port: Function | None) -> None:
        """Check the functions of one bus, and the buses below; ``port`` is None for a root bus."""
        allowed = _ON_ROOT_BUS if port is None else _BELOW[port.kind]
        seen: dict[int, str] = {}
        for function, key in _keyed(functions, owner):
            if function.kind not in allowed:
                place = _PLACE_OF[function.kind]
                self._findings.broken(key, "", f"{function.kind.value} goes {place}")
            if port is not None and port.kind in LINK_ABOVE and function.slot:
                self._findings.broken(key, "slot", "must be 0: a link has one device, number 0")
            if self._findings.doubts(key, "slot", "function"):
                continue
            if function.devfn in seen:
                taken = (
                    f"{function.slot:02x}.{function.function} is taken by {seen[function.devfn]}"
                )
                self._findings.broken(key, "function" if function.function else "slot", taken)
            seen.setdefault(function.devfn, key)
        self._devices(functions, owner)
        for function, key in _keyed(functions, owner):
            self._functions.check(function, key)
            self._routing_ids(function, seen, key, port)
            if function.kind is Kind.UPSTREAM_PORT and not function.children:
                self._findings.broken(key, "downstream_port", "a switch needs at least one")
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
                self._findings.broken(key, "function", reason)
            elif first[function.slot].plugged != function.plugged:
                reason = "must be that of function 0: a device is plugged in whole"
                self._findings.broken(key, "plugged", reason)

    def _routing_ids(
        self, function: Function, seen: dict[int, str], key: str, port: Function | None
    ) -> None:
        """Check where the VFs of ``function`` come to lie on its bus and the buses after it."""
        if function.sriov is None:
            return
        ids = function.sriov.routing_ids(function.devfn)
        if ids[-1] >> 8 > MAX_BUS:
            self._findings.broken(
                key, "sriov.total_vfs", f"VF {len(ids) - 1} lies past the last bus number"
            )
            return
        holder = next((seen[rid] for rid in ids if rid in seen), None)
        if holder is not None:
            reason = f"a VF has the device and function number of {holder}"
            self._findings.broken(key, "sriov.first_vf_offset", reason)
        for rid in ids:
            seen.setdefault(rid, f"a VF of {key}")
        if port is None or not any(MAX_FUNCTION < rid <= 0xFF for rid in ids):
            return
        if not function.ari:
            self._findings.broken(key, "ari", "must be true for VFs with function numbers above 7")
        elif not port.ari:
            self._findings.broken(key, "sriov.total_vfs", "the port above does not forward ARI")

    def _bus_numbers(self, bridge: HostBridge, owner: str, limit: int) -> None:
        """Check that the buses of ``bridge`` differ, and that ``limit`` is not exceeded."""
        ranges = assign_buses(bridge)
        highest = bridge.bus + extra_buses(bridge.functions)
        if highest > limit:
            self._findings.broken(
                owner, "bus", f"the VFs on the root bus reach past bus {limit:#04x}"
            )
        for function, key, path in _ports(bridge.functions, owner, ()):
            secondary = ranges[path].secondary
            if secondary <= highest:
                lowest = f"the numbers up to {highest:#04x} are taken by what comes before"
                self._findings.broken(
                    key, "secondary_bus", f"{secondary:#04x} is not free: {lowest}"
                )
            last = secondary + extra_buses(function.children)
            if highest <= limit < last:
                reason = f"needs bus {last:#04x}, and the last of its host bridge is {limit:#04x}"
                self._findings.broken(
                    key, "" if function.secondary_bus is None else "secondary_bus", reason
                )
            highest = max(highest, last)


def _can_be_numbered(functions: Sequence[Function]) -> bool:
    """Whether no bus has two functions of one number, nor VFs past every bus number."""
    return (
        len({f.devfn for f in functions}) == len(functions)
        and extra_buses(functions) <= MAX_BUS
        and all(_can_be_numbered(f.children) for f in functions)
    )


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
