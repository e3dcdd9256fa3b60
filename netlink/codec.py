# SPDX-License-Identifier: MIT
"""Netlink messages to bytes and back: headers, attributes, and a buffer that messages are put in.

Every header and every type of attribute is declared once, and that serves both directions. The
names are those of ``include/uapi/linux/netlink.h``, ``genetlink.h`` and ``include/net/netlink.h``.
"""

from __future__ import annotations

import errno
import struct
from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import Final, NamedTuple, TypeAlias, cast

from pyroute2.netlink import NETLINK_EXT_ACK as _NETLINK_EXT_ACK
from pyroute2.netlink import NLA_F_NESTED as _NLA_F_NESTED
from pyroute2.netlink import NLA_F_NET_BYTEORDER as _NLA_F_NET_BYTEORDER

from netlink.spec import Attribute, AttributeSet, Family

NLA_F_NESTED: Final[int] = _NLA_F_NESTED
NLA_TYPE_MASK: Final[int] = ~(_NLA_F_NESTED | _NLA_F_NET_BYTEORDER) & 0xFFFF
NETLINK_EXT_ACK: Final[int] = _NETLINK_EXT_ACK
# pyroute2 does not have these two.
NETLINK_CAP_ACK: Final = 10
NLMSG_ALIGNTO: Final = 4

Value: TypeAlias = "int | str | bytes | Mapping[str, Value] | Sequence[Value]"
"""What an attribute is in Python: a nest is a mapping, a repeated one or an array a list."""

Values: TypeAlias = Mapping[str, Value]


class CodecError(ValueError):
    """Bytes that are no message, or a value that does not fit its attribute."""


class NlMsgHdr(NamedTuple):
    """``struct nlmsghdr``; *length* counts the header."""

    length: int
    type: int
    flags: int
    seq: int
    pid: int

    def pack(self) -> bytes:
        return NLMSGHDR.pack(*self)


class GenlMsgHdr(NamedTuple):
    """``struct genlmsghdr``."""

    cmd: int
    version: int
    reserved: int = 0

    def pack(self) -> bytes:
        return GENLMSGHDR.pack(*self)


NLMSGHDR: Final = struct.Struct("=IHHII")
GENLMSGHDR: Final = struct.Struct("=BBH")
NLATTR: Final = struct.Struct("=HH")
NLMSGERR: Final = struct.Struct("=i")
"""The errno that NLMSG_ERROR and NLMSG_DONE begin with, 0 or negative."""

NLMSG_HDRLEN: Final = NLMSGHDR.size
GENL_HDRLEN: Final = GENLMSGHDR.size
NLA_HDRLEN: Final = NLATTR.size
NLA_MAX_PAYLOAD: Final = 0xFFFF - NLA_HDRLEN
"""What one attribute holds at most, as ``nla_len`` has 16 bits: 65531 bytes."""

READER: Final = struct.Struct("=II")
"""What a reader may tell in an NLMSG_NOOP that is no request, which a kernel skips: the size of
its receive buffer, and its socket options as bits ``1 << NETLINK_CAP_ACK`` and
``1 << NETLINK_EXT_ACK``. The kernel sees both in the socket, a server in user space does not."""

_SCALARS: Final = {
    ("u", 8): "B",
    ("u", 16): "H",
    ("u", 32): "I",
    ("u", 64): "Q",
    ("s", 8): "b",
    ("s", 16): "h",
    ("s", 32): "i",
    ("s", 64): "q",
}
_BYTE_ORDERS: Final = {None: "=", "big-endian": ">", "little-endian": "<"}

SCALARS: Final = {
    (f"{sign}{bits}", order): struct.Struct(prefix + code)
    for (sign, bits), code in _SCALARS.items()
    for order, prefix in _BYTE_ORDERS.items()
}
"""The fixed integer types by name and byte order."""

BITFIELD32: Final = struct.Struct("=II")


def align(length: int) -> int:
    """*length* rounded up to where the next message or attribute starts."""
    return (length + NLMSG_ALIGNTO - 1) & -NLMSG_ALIGNTO


def parse_nlmsghdr(data: bytes, offset: int = 0) -> NlMsgHdr:
    """The header at *offset*, of which the caller knows that all of it is there."""
    return NlMsgHdr._make(NLMSGHDR.unpack_from(data, offset))


def parse_genlmsghdr(data: bytes, offset: int = NLMSG_HDRLEN) -> GenlMsgHdr:
    """The generic netlink header at *offset*, which follows that of netlink."""
    return GenlMsgHdr._make(GENLMSGHDR.unpack_from(data, offset))


def messages(data: bytes) -> Iterator[tuple[NlMsgHdr, bytes]]:
    """The messages of a datagram, each whole. Raises CodecError where one does not fit."""
    offset = 0
    while offset < len(data):
        if len(data) - offset < NLMSG_HDRLEN:
            raise CodecError(f"{len(data) - offset} bytes are less than a header")
        header = parse_nlmsghdr(data, offset)
        if not NLMSG_HDRLEN <= header.length <= len(data) - offset:
            raise CodecError(f"message of {header.length} bytes in {len(data) - offset}")
        yield header, data[offset : offset + header.length]
        offset += align(header.length)


class Nla(NamedTuple):
    """``struct nlattr`` where it stands in a message."""

    type: int
    """Without the flags."""
    nested: bool
    """Whether NLA_F_NESTED is set."""
    offset: int
    """Of its header, from the start of the message."""
    payload: bytes


def parse_nla(data: bytes, start: int, end: int) -> tuple[list[Nla], int]:
    """The attributes in ``data[start:end]``, and how many bytes are left that are none."""
    attributes: list[Nla] = []
    while end - start >= NLA_HDRLEN:
        length, kind = NLATTR.unpack_from(data, start)
        if not NLA_HDRLEN <= length <= end - start:
            break
        attributes.append(
            Nla(
                kind & NLA_TYPE_MASK,
                bool(kind & NLA_F_NESTED),
                start,
                data[start + NLA_HDRLEN : start + length],
            )
        )
        start += align(length)
    return attributes, max(end - start, 0)


def pack_nla(kind: int, payload: bytes) -> bytes:
    """An attribute with its padding. Raises CodecError when the payload is too long for one."""
    if len(payload) > NLA_MAX_PAYLOAD:
        raise CodecError(f"{len(payload)} bytes do not fit in an attribute")
    length = NLA_HDRLEN + len(payload)
    return NLATTR.pack(length, kind) + payload + bytes(align(length) - length)


class AttributeCodec:
    """Attributes of one family as Python values, by the names of its specification."""

    def __init__(self, family: Family) -> None:
        self._family = family

    def encode(self, attribute_set: AttributeSet, values: Values) -> bytes:
        """The attributes of *values*, in its order.

        Raises CodecError for a value that its attribute cannot hold, KeyError for an unknown name.
        """
        encoded = bytearray()
        for name, value in values.items():
            attribute = attribute_set[name]
            for one in _items(value) if attribute.multi else (value,):
                encoded += self._encode(attribute, one)
        return bytes(encoded)

    def decode(self, attribute_set: AttributeSet, payload: bytes) -> dict[str, Value]:
        """The attributes in *payload* that *attribute_set* knows; the last of equal ones counts.

        Raises CodecError for bytes that are no attributes or no value of their type.
        """
        decoded: dict[str, Value] = {}
        attributes, left = parse_nla(payload, 0, len(payload))
        if left:
            raise CodecError(f"{left} bytes after the last attribute")
        for nla in attributes:
            attribute = attribute_set.by_value.get(nla.type)
            if attribute is None or attribute.type in ("pad", "unused"):
                continue
            value = self.decode_payload(attribute, nla.payload)
            if attribute.multi or attribute.type == "nest-type-value":
                cast(list[Value], decoded.setdefault(attribute.name, [])).append(value)
            else:
                decoded[attribute.name] = value
        return decoded

    def _encode(self, attribute: Attribute, value: Value) -> bytes:
        match attribute.type:
            case "nest":
                nest = self.encode(self._nested(attribute), _mapping(value))
                return pack_nla(attribute.value | NLA_F_NESTED, nest)
            case "indexed-array":
                # Arrays are older than NLA_F_NESTED, and the kernel sends them without it.
                elements = b"".join(
                    pack_nla(index, self._encode_element(attribute, element))
                    for index, element in enumerate(_items(value), 1)
                )
                return pack_nla(attribute.value, elements)
            case "nest-type-value":
                return self._encode_type_value(attribute, _mapping(value))
            case "flag":
                return pack_nla(attribute.value, b"") if value else b""
            case _:
                number = self._number(attribute, value)
                return pack_nla(attribute.value, encode_payload(attribute, number))

    def _number(self, attribute: Attribute, value: Value) -> Value:
        """The number of a value that is given by its name in the attribute's enumeration."""
        if attribute.enum is None or not isinstance(value, str):
            return value
        try:
            return self._family.enums[attribute.enum].value(value)
        except KeyError as error:
            raise CodecError(f"{attribute.name}: no {attribute.enum} is called {value}") from error

    def _encode_element(self, attribute: Attribute, element: Value) -> bytes:
        if attribute.sub_type == "nest":
            return self.encode(self._nested(attribute), _mapping(element))
        return encode_payload(_element(attribute), element)

    def _encode_type_value(self, attribute: Attribute, value: Values) -> bytes:
        """Nests in each other, whose numbers are values: such as policy, attribute, demands."""
        inner = {name: one for name, one in value.items() if name not in attribute.type_value}
        encoded = self.encode(self._nested(attribute), inner)
        for name in reversed(attribute.type_value):
            encoded = pack_nla(_integer(value[name]) | NLA_F_NESTED, encoded)
        return pack_nla(attribute.value | NLA_F_NESTED, encoded)

    def decode_payload(self, attribute: Attribute, payload: bytes) -> Value:
        """The value of one attribute. Raises CodecError."""
        match attribute.type:
            case "nest":
                return self.decode(self._nested(attribute), payload)
            case "indexed-array":
                elements, left = parse_nla(payload, 0, len(payload))
                if left:
                    raise CodecError(f"{attribute.name}: {left} bytes after the last element")
                return [self._decode_element(attribute, element.payload) for element in elements]
            case "nest-type-value":
                numbers: dict[str, Value] = {}
                for name in attribute.type_value:
                    nests, _ = parse_nla(payload, 0, len(payload))
                    if not nests:
                        raise CodecError(f"{attribute.name}: no nest for {name}")
                    numbers[name] = nests[0].type
                    payload = nests[0].payload
                return numbers | self.decode(self._nested(attribute), payload)
            case _:
                return decode_payload(attribute, payload)

    def _decode_element(self, attribute: Attribute, payload: bytes) -> Value:
        if attribute.sub_type == "nest":
            return self.decode(self._nested(attribute), payload)
        return decode_payload(_element(attribute), payload)

    def _nested(self, attribute: Attribute) -> AttributeSet:
        if attribute.nested is None:
            raise CodecError(f"{attribute.name} says nothing of what is nested in it")
        return self._family.attribute_sets[attribute.nested]


def encode_payload(attribute: Attribute, value: Value) -> bytes:
    """The bytes of a value of a type without parts. Raises CodecError when it is not of it."""
    scalar = SCALARS.get((attribute.type, attribute.byte_order))
    try:
        if scalar is not None:
            return scalar.pack(value)
        match attribute.type, value:
            case "uint" | "sint", int():
                wide = not -(2**31) <= value < 2**31 if attribute.type == "sint" else value >> 32
                kind = attribute.type[0] + ("64" if wide else "32")
                return SCALARS[kind, attribute.byte_order].pack(value)
            case "string", str():
                return value.encode() + b"\0"
            case "binary" | "pad" | "unused", bytes():
                return value
            case "bitfield32", {"value": bits, "selector": selector}:
                return BITFIELD32.pack(bits, selector)
            case "flag", _:
                return b""
    except (struct.error, UnicodeError) as error:
        raise CodecError(f"{attribute.name}: {error}") from error
    raise CodecError(f"{attribute.name}: {type(value).__name__} is no {attribute.type}")


def decode_payload(attribute: Attribute, payload: bytes) -> Value:
    """The value in the bytes of a type without parts. Raises CodecError when they are none."""
    scalar = SCALARS.get((attribute.type, attribute.byte_order))
    try:
        if scalar is not None:
            # A legacy request may have more bytes than the type: the first ones count.
            return cast(int, scalar.unpack_from(payload)[0])
        match attribute.type:
            case "uint" | "sint":
                kind = f"{attribute.type[0]}{8 * len(payload)}"
                return cast(int, SCALARS[kind, attribute.byte_order].unpack(payload)[0])
            case "string":
                return payload.partition(b"\0")[0].decode(errors="surrogateescape")
            case "bitfield32":
                bits, selector = BITFIELD32.unpack(payload)
                return {"value": bits, "selector": selector}
            case "flag":
                return 1
            case _:
                return payload
    except (struct.error, KeyError) as error:
        wrong = f"{attribute.name}: {len(payload)} bytes are no {attribute.type}"
        raise CodecError(wrong) from error


def _element(attribute: Attribute) -> Attribute:
    """The element of an array as if it were an attribute."""
    return Attribute(
        attribute.name,
        attribute.value,
        attribute.sub_type or "binary",
        byte_order=attribute.byte_order,
    )


def _items(value: Value) -> Iterable[Value]:
    if isinstance(value, str | bytes | int | Mapping):
        raise CodecError(f"{type(value).__name__} is no list")
    return value


def _mapping(value: Value) -> Values:
    if not isinstance(value, Mapping):
        raise CodecError(f"{type(value).__name__} is no mapping")
    return value


def _integer(value: Value) -> int:
    if not isinstance(value, int):
        raise CodecError(f"{type(value).__name__} is no integer")
    return value


class Skb:
    """A buffer of a fixed size that messages are put in: what one datagram holds.

    Functions that put something raise OSError(EMSGSIZE) when it does not fit, and leave the
    buffer as it was.
    """

    __slots__ = ("data", "size")

    def __init__(self, size: int) -> None:
        self.data = bytearray()
        self.size = size

    @property
    def tailroom(self) -> int:
        """Bytes that still fit."""
        return self.size - len(self.data)

    def put(self, data: bytes) -> None:
        """Append bytes that are a whole number of words."""
        if len(data) > self.size - len(self.data):
            raise OSError(errno.EMSGSIZE, "the message is full")
        self.data += data

    def nla_put(self, kind: int, payload: bytes) -> None:
        """Append an attribute; the length of the message is set at its end."""
        length = NLA_HDRLEN + len(payload)
        if align(length) > self.size - len(self.data) or length > 0xFFFF:
            raise OSError(errno.EMSGSIZE, "the message is full")
        self.data += NLATTR.pack(length, kind)
        self.data += payload
        if length & 3:
            self.data += bytes(-length & 3)

    def nlmsg_put(self, kind: int, flags: int, seq: int, pid: int, payload: bytes = b"") -> int:
        """Begin a message; returns where, for :meth:`nlmsg_end` and :meth:`nlmsg_cancel`."""
        start = len(self.data)
        self.put(NLMSGHDR.pack(NLMSG_HDRLEN + len(payload), kind, flags, seq, pid) + payload)
        return start

    def nlmsg_end(self, start: int) -> None:
        """Set the length of the message that begins at *start*: it ends here."""
        struct.pack_into("=I", self.data, start, len(self.data) - start)

    def nlmsg_cancel(self, start: int) -> None:
        """Take the message that begins at *start* back."""
        del self.data[start:]
