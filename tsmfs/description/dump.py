# SPDX-License-Identifier: MIT
"""A machine to TOML."""

from __future__ import annotations

import enum
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import fields, is_dataclass
from typing import Final

from tsmfs.description.model import Function, Machine, defaults
from tsmfs.description.quoting import quoted
from tsmfs.description.units import in_units

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


def _value(key: str, value: object) -> str:
    """``value`` in TOML, in the base or unit that suits ``key``."""
    if isinstance(value, bool):
        return "true" if value else "false"
    if key == "serial" and isinstance(value, int):
        return f'"{value.to_bytes(8).hex("-")}"'
    if isinstance(value, int):
        if key in _SIZE_KEYS:
            return f'"{in_units(value)}"'
        return f"0x{value:0{_HEX_DIGITS[key]}x}" if key in _HEX_DIGITS else str(value)
    if isinstance(value, enum.Enum):
        return quoted(str(value.value))
    if isinstance(value, tuple):
        items = [_value("", item) for item in value]
        if len(value) > 1 and is_dataclass(value[0]):
            return "\n".join(["[", *(f"  {item}," for item in items), "]"])
        return f"[{', '.join(items)}]"
    if is_dataclass(value):
        # A capability with nothing but defaults.
        return f"{{ {text} }}" if (text := ", ".join(_assignments(value))) else "true"
    return quoted(str(value))


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
    lines = [f"name = {quoted(machine.name)}"]
    if machine.description:
        lines.append(f"description = {quoted(machine.description)}")
    if machine.seed:
        lines.append(f"seed = {machine.seed}")
    if machine.modules:
        lines += ["modules = [", *(f"  {quoted(m.line)}," for m in machine.modules), "]"]
    for bridge in machine.host_bridges:
        lines += ["", *_table_lines("[[host_bridge]]", _assignments(bridge), "")]
        for function in bridge.functions:
            lines += _function_lines(function, "host_bridge", "")
    return "\n".join(lines) + "\n"
