# SPDX-License-Identifier: MIT
"""The one way to declare a message: a table of fields that packs it and parses it.

A message is a frozen dataclass with two class attributes: ``CODE`` and ``WIRE``, the fields that
follow the version and the code on the wire, in order. Integers are little endian (DSP0274 5.3).
What the message itself does not tell, the sizes that the negotiated algorithms give, comes from
`Sizes`. Reserved fields are written as zero and ignored when read (DSP0274 5.2).
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping
from dataclasses import MISSING, dataclass, fields
from typing import Any, ClassVar, Protocol, Self, TypeVar

Values = dict[str, Any]
"""The fields of one message by name, while it is packed or parsed."""


class SpdmDecodeError(ValueError):
    """Bytes are not the message they should be."""


@dataclass(frozen=True, slots=True)
class Sizes:
    """Bytes of the fields whose size is negotiated or follows from the request.

    A field that a message does not carry has size zero: `summary` when no measurement summary
    hash was asked for, `signature` of a MEASUREMENTS that is not signed, `verify` of a
    KEY_EXCHANGE_RSP when the handshake is in the clear.
    """

    hash: int = 0
    signature: int = 0
    exchange: int = 0
    summary: int = 0
    verify: int = 0


NO_SIZES = Sizes()
"""For messages that need none."""


class Item(ABC):
    """One entry of a WIRE table."""

    __slots__ = ()

    @property
    def name(self) -> str | None:
        """The dataclass field that this entry carries; None for what has no value of its own."""
        return None

    @abstractmethod
    def pack(self, out: bytearray, values: Values, sizes: Sizes) -> None:
        """Append the field to `out`. Raises ValueError if the value does not fit."""

    @abstractmethod
    def parse(self, data: bytes, at: int, values: Values, sizes: Sizes) -> int:
        """Store the field at offset `at` in `values`; return the offset behind it.

        Raises SpdmDecodeError.
        """


def _behind(data: bytes, at: int, size: int, what: str) -> int:
    end = at + size
    if end > len(data):
        raise SpdmDecodeError(f"{what} needs {size} bytes, {len(data) - at} are left")
    return end


class _Named(Item):
    __slots__ = ("_name",)

    def __init__(self, name: str) -> None:
        self._name = name

    @property
    def name(self) -> str:
        return self._name


class _UInt(_Named):
    __slots__ = ("_size",)

    def __init__(self, name: str, size: int) -> None:
        super().__init__(name)
        self._size = size

    def pack(self, out: bytearray, values: Values, sizes: Sizes) -> None:
        try:
            out += values[self._name].to_bytes(self._size, "little")
        except OverflowError:
            raise ValueError(f"{self._name} does not fit {self._size} bytes") from None

    def parse(self, data: bytes, at: int, values: Values, sizes: Sizes) -> int:
        end = _behind(data, at, self._size, self._name)
        values[self._name] = int.from_bytes(data[at:end], "little")
        return end


class _I64(_Named):
    __slots__ = ()

    def pack(self, out: bytearray, values: Values, sizes: Sizes) -> None:
        try:
            out += values[self._name].to_bytes(8, "little", signed=True)
        except OverflowError:
            raise ValueError(f"{self._name} does not fit 8 bytes") from None

    def parse(self, data: bytes, at: int, values: Values, sizes: Sizes) -> int:
        end = _behind(data, at, 8, self._name)
        values[self._name] = int.from_bytes(data[at:end], "little", signed=True)
        return end


class _Reserved(Item):
    __slots__ = ("_size",)

    def __init__(self, size: int) -> None:
        self._size = size

    def pack(self, out: bytearray, values: Values, sizes: Sizes) -> None:
        out += bytes(self._size)

    def parse(self, data: bytes, at: int, values: Values, sizes: Sizes) -> int:
        return _behind(data, at, self._size, "reserved")


class _Constant(Item):
    """A byte that is always the same."""

    __slots__ = ("_value", "_what")

    def __init__(self, value: int, what: str) -> None:
        self._value = value
        self._what = what

    def pack(self, out: bytearray, values: Values, sizes: Sizes) -> None:
        out.append(self._value)

    def parse(self, data: bytes, at: int, values: Values, sizes: Sizes) -> int:
        end = _behind(data, at, 1, self._what)
        if data[at] != self._value:
            raise SpdmDecodeError(f"{self._what} is {data[at]:#04x}, not {self._value:#04x}")
        return end


class _Bytes(_Named):
    """Bytes whose number something else tells."""

    __slots__ = ("_size",)

    def __init__(self, name: str, size: Callable[[Values, Sizes], int]) -> None:
        super().__init__(name)
        self._size = size

    def pack(self, out: bytearray, values: Values, sizes: Sizes) -> None:
        value = values[self._name]
        size = self._size(values, sizes)
        if len(value) != size:
            raise ValueError(f"{self._name} has {len(value)} bytes, not {size}")
        out += value

    def parse(self, data: bytes, at: int, values: Values, sizes: Sizes) -> int:
        end = _behind(data, at, self._size(values, sizes), self._name)
        values[self._name] = data[at:end]
        return end


class _Rest(_Named):
    __slots__ = ()

    def pack(self, out: bytearray, values: Values, sizes: Sizes) -> None:
        out += values[self._name]

    def parse(self, data: bytes, at: int, values: Values, sizes: Sizes) -> int:
        values[self._name] = data[at:]
        return len(data)


class _Count(Item):
    """The number of elements (of bytes: their number) of a field that comes later."""

    __slots__ = ("_key", "_of", "_size")

    def __init__(self, of: str, size: int) -> None:
        self._of = of
        self._key = _count_key(of)
        self._size = size

    def pack(self, out: bytearray, values: Values, sizes: Sizes) -> None:
        count = len(values[self._of])
        try:
            out += count.to_bytes(self._size, "little")
        except OverflowError:
            raise ValueError(f"{self._of} is too long: {count}") from None
        values[self._key] = count

    def parse(self, data: bytes, at: int, values: Values, sizes: Sizes) -> int:
        end = _behind(data, at, self._size, f"length of {self._of}")
        values[self._key] = int.from_bytes(data[at:end], "little")
        return end


class Element(Protocol):
    """What an array holds: something with a size that its own bytes tell."""

    def pack_into(self, out: bytearray) -> None:
        """Append the element to `out`."""

    @classmethod
    def parse_at(cls, data: bytes, at: int) -> tuple[Self, int]:
        """The element at offset `at` and the offset behind it. Raises SpdmDecodeError."""


class _Array(_Named):
    __slots__ = ("_element", "_key")

    def __init__(self, name: str, element: type[Element]) -> None:
        super().__init__(name)
        self._key = _count_key(name)
        self._element = element

    def pack(self, out: bytearray, values: Values, sizes: Sizes) -> None:
        for element in values[self._name]:
            element.pack_into(out)

    def parse(self, data: bytes, at: int, values: Values, sizes: Sizes) -> int:
        elements = []
        for _ in range(values[self._key]):
            element, at = self._element.parse_at(data, at)
            elements.append(element)
        values[self._name] = tuple(elements)
        return at


class _One(_Named):
    """An element that is always there."""

    __slots__ = ("_element",)

    def __init__(self, name: str, element: type[Element]) -> None:
        super().__init__(name)
        self._element = element

    def pack(self, out: bytearray, values: Values, sizes: Sizes) -> None:
        values[self._name].pack_into(out)

    def parse(self, data: bytes, at: int, values: Values, sizes: Sizes) -> int:
        values[self._name], at = self._element.parse_at(data, at)
        return at


class _Digests(_Named):
    """As many digests as a mask has bits."""

    __slots__ = ("_mask",)

    def __init__(self, name: str, mask: str) -> None:
        super().__init__(name)
        self._mask = mask

    def pack(self, out: bytearray, values: Values, sizes: Sizes) -> None:
        digests = values[self._name]
        if len(digests) != values[self._mask].bit_count():
            raise ValueError(f"{self._name}: {len(digests)} digests, {self._mask} tells others")
        for digest in digests:
            if len(digest) != sizes.hash:
                raise ValueError(f"a digest has {len(digest)} bytes, not {sizes.hash}")
            out += digest

    def parse(self, data: bytes, at: int, values: Values, sizes: Sizes) -> int:
        size = sizes.hash
        count = values[self._mask].bit_count()
        end = _behind(data, at, count * size, self._name)
        values[self._name] = tuple(data[at + n * size : at + (n + 1) * size] for n in range(count))
        return end


class _Total(Item):
    """The size of the whole message, header included."""

    __slots__ = ("_size",)

    def __init__(self, size: int) -> None:
        self._size = size

    def pack(self, out: bytearray, values: Values, sizes: Sizes) -> None:
        values[_TOTAL] = (len(out), self._size)
        out += bytes(self._size)

    def parse(self, data: bytes, at: int, values: Values, sizes: Sizes) -> int:
        end = _behind(data, at, self._size, "length")
        values[_TOTAL] = int.from_bytes(data[at:end], "little")
        return end


class _When(Item):
    """A field that only some messages carry; the others have its default."""

    __slots__ = ("_condition", "_item")

    def __init__(self, condition: Callable[[Mapping[str, Any]], bool], item: Item) -> None:
        self._condition = condition
        self._item = item

    @property
    def name(self) -> str | None:
        return self._item.name

    def pack(self, out: bytearray, values: Values, sizes: Sizes) -> None:
        if self._condition(values):
            self._item.pack(out, values, sizes)
        elif self.name is not None and values[self.name]:
            raise ValueError(f"{self.name} has a value in a message that does not carry it")

    def parse(self, data: bytes, at: int, values: Values, sizes: Sizes) -> int:
        return self._item.parse(data, at, values, sizes) if self._condition(values) else at


_TOTAL = "#total"


def _count_key(name: str) -> str:
    return f"#{name}"


def u8(name: str) -> Item:
    """One byte."""
    return _UInt(name, 1)


def u16(name: str) -> Item:
    """Two bytes."""
    return _UInt(name, 2)


def u32(name: str) -> Item:
    """Four bytes."""
    return _UInt(name, 4)


def u64(name: str) -> Item:
    """Eight bytes."""
    return _UInt(name, 8)


def uint(name: str, size: int) -> Item:
    """An integer of `size` bytes."""
    return _UInt(name, size)


def i64(name: str) -> Item:
    """Eight bytes, two's complement."""
    return _I64(name)


def reserved(size: int) -> Item:
    """`size` bytes without a meaning."""
    return _Reserved(size)


def constant(value: int, what: str) -> Item:
    """One byte that has to be `value`; `what` names it in the error."""
    return _Constant(value, what)


def raw(name: str, size: int) -> Item:
    """`size` bytes."""
    return _Bytes(name, lambda values, sizes: size)


def sized(name: str, attribute: str) -> Item:
    """As many bytes as `attribute` of `Sizes` tells."""
    return _Bytes(name, lambda values, sizes: int(getattr(sizes, attribute)))


def count(of: str, size: int) -> Item:
    """The number of elements or bytes of the later field `of`, in `size` bytes."""
    return _Count(of, size)


def counted(name: str) -> Item:
    """As many bytes as `count(name)` told before."""
    key = _count_key(name)
    return _Bytes(name, lambda values, sizes: int(values[key]))


def array(name: str, element: type[Element]) -> Item:
    """As many elements as `count(name)` told before."""
    return _Array(name, element)


def one(name: str, element: type[Element]) -> Item:
    """One element."""
    return _One(name, element)


def digests(name: str, mask: str) -> Item:
    """A digest for each bit that is set in the earlier field `mask`."""
    return _Digests(name, mask)


def total(size: int) -> Item:
    """The size of the whole message, in `size` bytes."""
    return _Total(size)


def rest(name: str) -> Item:
    """Everything up to the end of the message."""
    return _Rest(name)


def when(condition: Callable[[Mapping[str, Any]], bool], item: Item) -> Item:
    """`item`, if the earlier fields satisfy `condition`."""
    return _When(condition, item)


def since(version: int, item: Item) -> Item:
    """`item`, from SPDM `version` (0x12 is 1.2) on."""
    return _When(lambda values: bool(values["version"] >= version), item)


@dataclass(frozen=True, slots=True, kw_only=True)
class Message:
    """An SPDM message: version, code, and the fields of its WIRE table (DSP0274 8.1)."""

    CODE: ClassVar[int]
    WIRE: ClassVar[tuple[Item, ...]]

    version: int = 0x12
    """SPDM version: major in the high nibble, minor in the low one."""

    def pack(self, sizes: Sizes = NO_SIZES) -> bytes:
        """The bytes of the message. Raises ValueError if a value does not fit its field."""
        values: Values = {name: getattr(self, name) for name in self._names()}
        out = bytearray((self.version, self.CODE))
        for item in self.WIRE:
            item.pack(out, values, sizes)
        if _TOTAL in values:
            at, size = values[_TOTAL]
            out[at : at + size] = len(out).to_bytes(size, "little")
        return bytes(out)

    @classmethod
    def take(cls, data: bytes, sizes: Sizes = NO_SIZES, start: int = 0) -> tuple[Self, int]:
        """The message at offset `start` of `data`, and its size. Raises SpdmDecodeError."""
        if len(data) - start < HEADER_SIZE:
            raise SpdmDecodeError(f"{len(data) - start} bytes are no SPDM message")
        version, code = data[start], data[start + 1]
        if code != cls.CODE:
            raise SpdmDecodeError(f"code {code:#04x}, not {cls.CODE:#04x} ({cls.__name__})")
        values: Values = {"version": version}
        at = start + 2
        for item in cls.WIRE:
            at = item.parse(data, at, values, sizes)
        size = at - start
        if values.get(_TOTAL, size) != size:
            raise SpdmDecodeError(
                f"{size} bytes of {cls.__name__}, its length says {values[_TOTAL]}"
            )
        names = cls._names()
        return cls(**{name: value for name, value in values.items() if name in names}), size

    @classmethod
    def parse(cls, data: bytes, sizes: Sizes = NO_SIZES, *, padding: int = 0) -> Self:
        """The message in `data`, with up to `padding` bytes behind it. Raises SpdmDecodeError."""
        message, size = cls.take(data, sizes)
        if len(data) - size > padding:
            raise SpdmDecodeError(f"{len(data) - size} bytes behind {cls.__name__}")
        return message

    @classmethod
    def _names(cls) -> Mapping[str, None]:
        return _NAMES[cls]


HEADER_SIZE = 4
"""Bytes of version, code, Param1 and Param2."""

_NAMES: dict[type[Message], Mapping[str, None]] = {}


M = TypeVar("M", bound=Message)


def declare(cls: type[M]) -> type[M]:
    """Check the WIRE table of a message against its fields; use as the outermost decorator."""
    names = {item.name for item in cls.WIRE if item.name is not None}
    own = {field.name: field for field in fields(cls)}
    if names | {"version"} != own.keys():
        raise TypeError(f"{cls.__name__}: WIRE and the fields differ: {names ^ own.keys()}")
    for item in cls.WIRE:
        name = item.name
        if isinstance(item, _When) and name and own[name].default is MISSING:
            raise TypeError(f"{cls.__name__}.{name} may be absent and has no default")
    _NAMES[cls] = dict.fromkeys(own)
    return cls


@dataclass(frozen=True, slots=True, kw_only=True)
class Record:
    """Fields of a WIRE table one behind the other, without a header; also an `Element`."""

    WIRE: ClassVar[tuple[Item, ...]]

    def pack_into(self, out: bytearray) -> None:
        """Append the record to `out`. Raises ValueError if a value does not fit its field."""
        values: Values = {name: getattr(self, name) for name in _RECORDS[type(self)]}
        for item in self.WIRE:
            item.pack(out, values, NO_SIZES)

    def pack(self) -> bytes:
        """The bytes of the record. Raises ValueError if a value does not fit its field."""
        out = bytearray()
        self.pack_into(out)
        return bytes(out)

    @classmethod
    def parse_at(cls, data: bytes, at: int) -> tuple[Self, int]:
        """The record at offset `at` and the offset behind it. Raises SpdmDecodeError."""
        values: Values = {}
        for item in cls.WIRE:
            at = item.parse(data, at, values, NO_SIZES)
        names = _RECORDS[cls]
        return cls(**{name: value for name, value in values.items() if name in names}), at

    @classmethod
    def parse(cls, data: bytes) -> Self:
        """The record that `data` is. Raises SpdmDecodeError."""
        record, end = cls.parse_at(data, 0)
        if end != len(data):
            raise SpdmDecodeError(f"{len(data) - end} bytes behind {cls.__name__}")
        return record


_RECORDS: dict[type[Record], Mapping[str, None]] = {}


R = TypeVar("R", bound=Record)


def declare_record(cls: type[R]) -> type[R]:
    """Check the WIRE table of a record against its fields; use as the outermost decorator."""
    names = dict.fromkeys(item.name for item in cls.WIRE if item.name is not None)
    if names.keys() != {field.name for field in fields(cls)}:
        raise TypeError(f"{cls.__name__}: WIRE and the fields differ")
    _RECORDS[cls] = names
    return cls
