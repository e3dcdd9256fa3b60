# SPDX-License-Identifier: MIT
"""Generic netlink families as YNL files describe them, read into plain data.

The files follow the ``genetlink`` and ``genetlink-legacy`` schemas of Linux's
``Documentation/netlink/``; defaults and numbering are those of its ``ynl`` tool. All numbers of a
family stand in its file and nowhere else.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from functools import cache
from pathlib import Path
from typing import Any

import yaml

SPECS = Path(__file__).parent / "specs"
"""Directory of the families of this package."""

PROTOCOLS = ("genetlink", "genetlink-legacy")

SCALAR_TYPES = ("u8", "u16", "u32", "u64", "s8", "s16", "s32", "s64", "uint", "sint")
OTHER_TYPES = ("unused", "pad", "flag", "binary", "bitfield32", "string")
NEST_TYPES = ("nest", "indexed-array", "nest-type-value")
ATTRIBUTE_TYPES = frozenset((*SCALAR_TYPES, *OTHER_TYPES, *NEST_TYPES))
"""What the ``type`` of an attribute may be."""


class SpecError(ValueError):
    """A file that does not describe a family; the text says what is wrong with it."""


@dataclass(frozen=True, slots=True)
class EnumEntry:
    """One name of an enumeration; *value* is the position of the bit when it is one of flags."""

    name: str
    value: int
    doc: str = ""


@dataclass(frozen=True, slots=True)
class EnumSet:
    """A definition of type ``enum`` or ``flags``."""

    name: str
    flags: bool
    entries: tuple[EnumEntry, ...]
    doc: str = ""

    def mask(self) -> int:
        """All bits that have a name."""
        return sum(1 << entry.value for entry in self.entries)

    def value(self, name: str) -> int:
        """The number of an entry: the bit itself for flags. Raises KeyError for no such name."""
        for entry in self.entries:
            if entry.name == name:
                return 1 << entry.value if self.flags else entry.value
        raise KeyError(name)

    def names(self, value: int) -> list[str]:
        """The names of the bits of *value*, or the one name of an enumeration's value."""
        if self.flags:
            return [entry.name for entry in self.entries if value >> entry.value & 1]
        return [entry.name for entry in self.entries if entry.value == value]


@dataclass(frozen=True, slots=True)
class Checks:
    """What the payload of an attribute has to satisfy in a request; None asks for nothing."""

    min: int | None = None
    max: int | None = None
    min_len: int | None = None
    max_len: int | None = None
    exact_len: int | None = None
    mask: int | None = None
    unterminated_ok: bool = False


@dataclass(frozen=True, slots=True)
class Attribute:
    """One attribute of a set; *value* is its number on the wire."""

    name: str
    value: int
    type: str
    doc: str = ""
    byte_order: str | None = None
    multi: bool = False
    nested: str | None = None
    """Name of the set inside it."""
    sub_type: str | None = None
    type_value: tuple[str, ...] = ()
    """Names of the numbers in the types of the nests, for ``nest-type-value``."""
    enum: str | None = None
    as_flags: bool = False
    checks: Checks = Checks()


@dataclass(frozen=True, slots=True)
class AttributeSet:
    """A space of attribute numbers, by name and by number."""

    name: str
    attributes: tuple[Attribute, ...]
    by_name: Mapping[str, Attribute] = field(compare=False, repr=False)
    by_value: Mapping[int, Attribute] = field(compare=False, repr=False)

    def __getitem__(self, name: str) -> Attribute:
        return self.by_name[name]


@dataclass(frozen=True, slots=True)
class Exchange:
    """What a ``do`` or a ``dump`` of an operation carries, by names of attributes."""

    request: tuple[str, ...] = ()
    reply: tuple[str, ...] = ()


@dataclass(frozen=True, slots=True)
class Operation:
    """One command of a family; request and reply differ in number in the directional model."""

    name: str
    request_value: int
    reply_value: int
    attribute_set: str
    do: Exchange | None = None
    dump: Exchange | None = None
    flags: frozenset[str] = frozenset()
    """``admin-perm`` and ``uns-admin-perm``."""
    dont_validate: frozenset[str] = frozenset()
    """``strict``, ``dump`` and ``dump-strict``: the leniency of families older than strictness."""
    doc: str = ""


@dataclass(frozen=True, slots=True)
class Family:
    """All that a file says of a family."""

    name: str
    protocol: str
    version: int
    doc: str
    constants: Mapping[str, int]
    enums: Mapping[str, EnumSet]
    attribute_sets: Mapping[str, AttributeSet]
    operations: tuple[Operation, ...]

    @property
    def legacy(self) -> bool:
        """Whether the family is older than the checks of header fields (``resv_start_op``)."""
        return self.protocol != "genetlink"

    def operation(self, name: str) -> Operation:
        """The operation of a name. Raises KeyError when there is none."""
        for operation in self.operations:
            if operation.name == name:
                return operation
        raise KeyError(name)

    def attributes_of(self, operation: Operation) -> AttributeSet:
        """The set that the messages of *operation* are made of."""
        return self.attribute_sets[operation.attribute_set]


def parse(text: str) -> Family:
    """The family that *text* describes. Raises SpecError."""
    try:
        raw = yaml.safe_load(text)
    except yaml.YAMLError as error:
        raise SpecError(f"not YAML: {error}") from error
    if not isinstance(raw, dict):
        raise SpecError("a specification is a mapping")
    try:
        return _family(raw)
    except KeyError as error:
        raise SpecError(f"{raw.get('name', '?')}: {error} is missing or not defined") from error
    except (TypeError, AttributeError) as error:
        raise SpecError(f"{raw.get('name', '?')}: {error}") from error


def load(path: Path) -> Family:
    """The family that the file *path* describes. Raises SpecError, OSError."""
    return parse(path.read_text(encoding="utf-8"))


@cache
def builtin(name: str) -> Family:
    """One of the families of this package, by name."""
    return load(SPECS / f"{name}.yaml")


def _family(raw: Mapping[str, Any]) -> Family:
    protocol = raw.get("protocol", "genetlink")
    if protocol not in PROTOCOLS:
        raise SpecError(f"{raw['name']}: protocol {protocol!r} is not generic netlink")
    constants: dict[str, int] = {}
    enums: dict[str, EnumSet] = {}
    for definition in raw.get("definitions", ()):
        if definition["type"] == "const":
            constants[definition["name"]] = int(definition["value"])
        elif definition["type"] in ("enum", "flags"):
            enums[definition["name"]] = _enum(definition)
        else:
            raise SpecError(f"{definition['name']}: no definitions of type {definition['type']!r}")
    sets: dict[str, AttributeSet] = {}
    for entry in raw["attribute-sets"]:
        sets[entry["name"]] = _attribute_set(entry, sets, constants, enums)
    family = Family(
        name=raw["name"],
        protocol=protocol,
        version=raw.get("version", 1),
        doc=raw["doc"],
        constants=constants,
        enums=enums,
        attribute_sets=sets,
        operations=tuple(_operations(raw["operations"])),
    )
    _check_names(family)
    return family


def _enum(raw: Mapping[str, Any]) -> EnumSet:
    entries: list[EnumEntry] = []
    value = int(raw.get("value-start", 0))
    for entry in raw["entries"]:
        item: Mapping[str, Any] = {"name": entry} if isinstance(entry, str) else entry
        value = int(item.get("value", value))
        entries.append(EnumEntry(item["name"], value, item.get("doc", "")))
        value += 1
    return EnumSet(raw["name"], raw["type"] == "flags", tuple(entries), raw.get("doc", ""))


def _attribute_set(
    raw: Mapping[str, Any],
    sets: Mapping[str, AttributeSet],
    constants: Mapping[str, int],
    enums: Mapping[str, EnumSet],
) -> AttributeSet:
    attributes: list[Attribute] = []
    parent = sets[raw["subset-of"]] if "subset-of" in raw else None
    value = 1
    for entry in raw["attributes"]:
        if parent is not None:
            # A subset names attributes of its parent and says nothing new of them.
            attributes.append(parent[entry["name"]])
            continue
        value = entry.get("value", value)
        attributes.append(_attribute(entry, value, constants, enums))
        value += 1
    return AttributeSet(
        raw["name"],
        tuple(attributes),
        {attribute.name: attribute for attribute in attributes},
        {attribute.value: attribute for attribute in attributes},
    )


def _attribute(
    raw: Mapping[str, Any],
    value: int,
    constants: Mapping[str, int],
    enums: Mapping[str, EnumSet],
) -> Attribute:
    if raw["type"] not in ATTRIBUTE_TYPES:
        raise SpecError(f"{raw['name']}: no attributes of type {raw['type']!r}")
    checks = raw.get("checks", {})
    return Attribute(
        name=raw["name"],
        value=value,
        type=raw["type"],
        doc=raw.get("doc", ""),
        byte_order=raw.get("byte-order"),
        multi=raw.get("multi-attr", False),
        nested=raw.get("nested-attributes"),
        sub_type=raw.get("sub-type"),
        type_value=tuple(raw.get("type-value", ())),
        enum=raw.get("enum"),
        as_flags=raw.get("enum-as-flags", False),
        checks=Checks(
            min=_limit(checks.get("min"), constants),
            max=_limit(checks.get("max"), constants),
            min_len=_limit(checks.get("min-len"), constants),
            max_len=_limit(checks.get("max-len"), constants),
            exact_len=_limit(checks.get("exact-len"), constants),
            mask=enums[checks["flags-mask"]].mask() if "flags-mask" in checks else None,
            unterminated_ok=checks.get("unterminated-ok", False),
        ),
    )


def _limit(raw: int | str | None, constants: Mapping[str, int]) -> int | None:
    """A number, the name of a constant, that name less one, or a limit of a type (``u8-max``)."""
    if raw is None or isinstance(raw, int):
        return raw
    name, minus, _ = raw.partition(" - 1")
    if name in constants:
        return constants[name] - (1 if minus else 0)
    kind, _, end = name.partition("-")
    if kind[:1] in ("u", "s") and kind[1:] in ("8", "16", "32", "64") and end in ("min", "max"):
        bits = int(kind[1:])
        low, high = (0, 2**bits) if kind[0] == "u" else (-(2 ** (bits - 1)), 2 ** (bits - 1))
        return low if end == "min" else high - 1
    raise KeyError(raw)


def _operations(raw: Mapping[str, Any]) -> Iterable[Operation]:
    directional = raw.get("enum-model", "unified") == "directional"
    request = reply = 1
    for entry in raw["list"]:
        mode = entry.get("do") or entry.get("dump") or {}
        if directional:
            request = mode.get("request", {}).get("value", request)
            reply = mode.get("reply", {}).get("value", reply)
        else:
            request = reply = entry.get("value", request)
        if "do" in entry or "dump" in entry:
            yield Operation(
                name=entry["name"],
                request_value=request,
                reply_value=reply,
                attribute_set=entry["attribute-set"],
                do=_exchange(entry.get("do")),
                dump=_exchange(entry.get("dump")),
                flags=frozenset(entry.get("flags", ())),
                dont_validate=frozenset(entry.get("dont-validate", ())),
                doc=entry["doc"],
            )
        request += 1
        reply += 1 if not directional or "reply" in mode else 0


def _exchange(raw: Mapping[str, Any] | None) -> Exchange | None:
    if raw is None:
        return None
    return Exchange(
        tuple(raw.get("request", {}).get("attributes", ())),
        tuple(raw.get("reply", {}).get("attributes", ())),
    )


def _check_names(family: Family) -> None:
    """Raise KeyError when a name is used that nothing defines."""
    for attribute_set in family.attribute_sets.values():
        for attribute in attribute_set.attributes:
            if attribute.nested is not None and attribute.nested not in family.attribute_sets:
                raise KeyError(attribute.nested)
            if attribute.enum is not None and attribute.enum not in family.enums:
                raise KeyError(attribute.enum)
    for operation in family.operations:
        known = family.attributes_of(operation).by_name
        for exchange in (operation.do, operation.dump):
            for name in (*exchange.request, *exchange.reply) if exchange else ():
                if name not in known:
                    raise KeyError(name)
