# SPDX-License-Identifier: MIT
"""Synthetic machines of any size, for measurements."""

from __future__ import annotations

from dataclasses import replace
from typing import Final

from tsmfs.description.capability import Bar, BarKind, Doe, Ide
from tsmfs.description.model import (
    MAX_FUNCTION,
    MAX_SLOT,
    Function,
    HostBridge,
    Kind,
    Machine,
    ModuleLoad,
    defaults,
)
from tsmfs.description.units import KIB

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
