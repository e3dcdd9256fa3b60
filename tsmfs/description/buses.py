# SPDX-License-Identifier: MIT
"""Bus numbers, as firmware gives them."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from tsmfs.description.model import Function, HostBridge


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
        last = bus + extra_buses(functions)
        for function in sorted(functions, key=lambda f: f.devfn):
            if function.kind.is_port:
                explicit = function.secondary_bus
                secondary = last + 1 if explicit is None else explicit
                last = max(last, number(function.children, secondary, (*path, function.devfn)))
        ranges[path] = BusRange(bus, last)
        return last

    number(bridge.functions, bridge.bus, ())
    return ranges


def extra_buses(functions: Sequence[Function]) -> int:
    """How many buses the VFs of the functions of one bus need beyond that bus."""
    ends = [f.sriov.routing_ids(f.devfn)[-1] for f in functions if f.sriov is not None]
    return max(ends, default=0) >> 8
