# SPDX-License-Identifier: MIT
"""TOML tables being read: each key with its type and range checked."""

from __future__ import annotations

import difflib
import enum
import re
from collections.abc import Callable, Container, Iterator, Mapping
from typing import Final, TypeVar

from tsmfs.description.findings import Findings
from tsmfs.description.quoting import shown
from tsmfs.description.units import KIB, UNITS

_BARE_KEY: Final = re.compile(r"[A-Za-z0-9_-]+")
_SIZE: Final = re.compile(r"(0[xX][0-9a-fA-F]{1,16}|[0-9]{1,19})([KMGT]?)")
_MAX_SIZE: Final = 1 << 63

_E = TypeVar("_E", bound=enum.Enum)


class Table:
    """One TOML table being read: every key asked for, with its type and range checked.

    A value that is wrong is reported and answered with a stand-in, so that reading goes on and
    finds the other mistakes of the file. ``key`` is the path of the table, empty for the file.
    """

    def __init__(self, data: Mapping[str, object], key: str, findings: Findings) -> None:
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
            self.wrong(name, f"must be an integer, not {shown(value)}")
        elif not low <= value <= high:
            given = show(value) if value.bit_length() <= 64 else shown(value)
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

    def required_number(self, name: str, allowed: Container[int], said: str) -> int | None:
        """A number among ``allowed``, which is ``said`` so, without default; None for none."""
        value = self._get(name)
        if name not in self:
            self.wrong(name, "is required")
        elif isinstance(value, bool) or not isinstance(value, int):
            self.wrong(name, f"must be an integer, not {shown(value)}")
        elif value not in allowed:
            self.wrong(name, f"must be in {said}, not {shown(value)}")
        else:
            return value
        return None

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
        self.wrong(name, f"must be true or false, not {shown(value)}")
        return default

    def string(self, name: str, default: str) -> str:
        """Any text."""
        value = self._get(name)
        if value is None:
            return default
        if isinstance(value, str):
            return value
        self.wrong(name, f"must be a string, not {shown(value)}")
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
        choices = ", ".join(shown(member.value) for member in members)
        self.wrong(name, f"must be one of {choices}, not {shown(value)}")
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
                choices = ", ".join(map(shown, members))
                self.wrong(f"{name}[{index}]", f"must be one of {choices}, not {shown(value)}")
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
                self.wrong(key, f"must be an integer, not {shown(value)}")
            elif not low <= value <= high:
                self.wrong(key, f"must be in {low}..{high}, not {shown(value)}")
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
            size = int(match[1], 16 if "x" in match[1].lower() else 10) * UNITS[match[2]]
        if 0 < size <= _MAX_SIZE:
            return size
        self.wrong(name, f'must be a size such as 4096, "64K", "2M" or "4G", not {shown(value)}')
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
        self.wrong(name, f"must be an array, not {shown(value)}")
        return []

    def filled_array(self, name: str) -> list[object]:
        """An array of anything that is not empty."""
        value = self.array(name)
        if not value and isinstance(self._data.get(name), list):
            self.wrong(name, "must have one entry at least")
        return value

    def tables(self, name: str) -> Iterator[Table]:
        """The tables of an array of tables; none when absent."""
        if isinstance(self._get(name), dict):
            header = re.sub(r"\[\d+\]", "", self._at(name))
            self.wrong(name, f"must be an array of tables: write [[{header}]]")
            return
        for index, value in enumerate(self.array(name)):
            key = f"{name}[{index}]"
            if isinstance(value, dict):
                yield Table(value, self._at(key), self._findings)
            else:
                self.wrong(key, f"must be a table, not {shown(value)}")

    def table(self, name: str) -> Table | None:
        """A table, or None when absent."""
        value = self._get(name)
        if value is None:
            return None
        if isinstance(value, dict):
            return Table(value, self._at(name), self._findings)
        self.wrong(name, f"must be a table, not {shown(value)}")
        return None

    def capability(self, name: str) -> Table | None:
        """A capability: a table, or ``true`` for all defaults; None for ``false`` or absent."""
        value = self._get(name)
        if value is True:
            return Table({}, self._at(name), self._findings)
        return None if value is False else self.table(name)

    def finish(self) -> None:
        """Report the keys that nobody asked for."""
        for name in self._data:
            if name not in self._known:
                near = difflib.get_close_matches(name, self._known, 1) if len(name) < 40 else []
                hint = f"; did you mean {near[0]}?" if near else ""
                part = name if _BARE_KEY.fullmatch(name) else shown(name)
                self._findings.add(self._at(part), f"unknown key{hint}")
