# SPDX-License-Identifier: MIT
"""Tables to the model: the machine, its host bridges and functions."""

from __future__ import annotations

import re
from collections.abc import Sequence
from typing import Final

from tsmfs.description.model import (
    MAX_BUS,
    MAX_FUNCTION,
    MAX_SLOT,
    Function,
    HostBridge,
    Kind,
    Machine,
    ModuleLoad,
    defaults,
)
from tsmfs.description.quoting import shown
from tsmfs.description.read_capability import (
    read_bars,
    read_doe,
    read_ide,
    read_link,
    read_msix,
    read_serial,
    read_sriov,
)
from tsmfs.description.read_cma import read_cma
from tsmfs.description.table import Table

# A deeper chain of switches than any fabric has; it bounds the recursion over the tables.
MAX_DEPTH: Final = 32

MACHINE_NAME: Final = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{0,63}")
_MODULE: Final = re.compile(r"[A-Za-z0-9_-]{1,55}")
_PARAMETER: Final = re.compile(r"([A-Za-z0-9_-]+)=([!-~]*)")


def read_machine(table: Table, fallback_name: str) -> Machine:
    """The machine of a whole file, called ``fallback_name`` when it has no name of its own."""
    name = table.string("name", fallback_name)
    if not MACHINE_NAME.fullmatch(name):
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


def _read_modules(table: Table) -> tuple[ModuleLoad, ...]:
    modules: dict[str, ModuleLoad] = {}
    for index, value in enumerate(table.array("modules")):
        key = f"modules[{index}]"
        words = value.split() if isinstance(value, str) else []
        if not words:
            table.wrong(key, f"must be a module name with its parameters, not {shown(value)}")
            continue
        # Module names are one with '-' and '_' exchanged, as for modprobe.
        name = words[0].replace("-", "_")
        if not _MODULE.fullmatch(name):
            table.wrong(key, f"{shown(words[0])} is not a module name")
        elif name in modules:
            table.wrong(key, f"{name} is listed before")
        else:
            parameters = _read_parameters(table, key, words[1:])
            modules[name] = ModuleLoad(name, parameters)
    return tuple(modules.values())


def _read_parameters(table: Table, key: str, words: Sequence[str]) -> tuple[tuple[str, str], ...]:
    parameters: list[tuple[str, str]] = []
    for word in words:
        if match := _PARAMETER.fullmatch(word):
            parameters.append((match[1], match[2]))
        else:
            table.wrong(key, f"{shown(word)} is not of the form parameter=value")
    return tuple(parameters)


def _read_host_bridge(table: Table) -> HostBridge:
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


def _read_functions(table: Table, depth: int) -> tuple[Function, ...]:
    functions: list[Function] = []
    for kind in Kind:
        for sub in table.tables(kind.value):
            if depth > MAX_DEPTH:
                table.wrong(kind.value, f"more than {MAX_DEPTH} functions below one another")
                break
            functions.append(_read_function(sub, kind, depth))
    return tuple(functions)


def _read_function(table: Table, kind: Kind, depth: int) -> Function:
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
        link=read_link(table, base.link),
        pm=table.boolean("pm", base.pm),
        msi=table.integer("msi", base.msi, 0, 32),
        flr=table.boolean("flr", base.flr),
        tee_io=tee_io,
        aer=table.boolean("aer", base.aer),
        ari=table.boolean("ari", base.ari),
        acs=table.boolean("acs", base.acs),
        serial=read_serial(table),
        bars=read_bars(table),
        msix=read_msix(table),
        doe=read_doe(table),
        cma=read_cma(table),
        ide=read_ide(table),
        sriov=read_sriov(table, device, tee_io),
        children=_read_functions(table, depth + 1),
    )
    table.finish()
    return function
