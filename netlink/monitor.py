# SPDX-License-Identifier: MIT
"""Recorded datagrams of a server as text: what passed, when, and what it means.

Nothing that passes is taken to be well-formed: what cannot be decoded is shown as bytes.
"""

from __future__ import annotations

import errno
import os
import struct
import time
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Final

from pyroute2.netlink import (
    GENL_ID_CTRL,
    NLM_F_ACK,
    NLM_F_ACK_TLVS,
    NLM_F_CAPPED,
    NLM_F_DUMP,
    NLM_F_ECHO,
    NLM_F_MULTI,
    NLM_F_REQUEST,
    NLMSG_DONE,
    NLMSG_ERROR,
    NLMSG_MIN_TYPE,
    NLMSG_NOOP,
    NLMSG_OVERRUN,
)

from netlink.client import attribute_at
from netlink.codec import (
    GENL_HDRLEN,
    NETLINK_CAP_ACK,
    NETLINK_EXT_ACK,
    NLMSG_HDRLEN,
    NLMSGERR,
    READER,
    AttributeCodec,
    CodecError,
    Nla,
    NlMsgHdr,
    Value,
    align,
    messages,
    parse_genlmsghdr,
    parse_nla,
    parse_nlmsghdr,
)
from netlink.record import RECORD
from netlink.spec import SPECS, Attribute, AttributeSet, Family, builtin

DATAGRAM_MAX: Final = 1 << 20
"""No datagram is larger, in bytes."""
SHOWN: Final = 16
"""Bytes of binary content that are shown."""

_NLCTRL: Final = builtin("nlctrl")
_NLMSGERR_ATTRS: Final = _NLCTRL.attribute_sets["nlmsgerr-attrs"]
_KINDS: Final = {
    NLMSG_NOOP: "noop",
    NLMSG_ERROR: "error",
    NLMSG_DONE: "done",
    NLMSG_OVERRUN: "overrun",
}
_INDENT: Final = "  "
_SUCCESS: Final = "success"


@dataclass(frozen=True, slots=True)
class Record:
    """A datagram that passed a server."""

    sent: bool
    """Whether it is one of the server, and not of a client."""
    time_ns: int
    port: int
    """The client's."""
    datagram: bytes


class Records:
    """Puts records together from pieces of the file in which a machine keeps them."""

    def __init__(self) -> None:
        self._pending = b""
        self.lost = 0
        """How often records were dropped there before they were read here."""

    def feed(self, piece: bytes) -> Iterator[Record]:
        """The records that *piece* completes: what one read gave, which is in one piece there.

        A read goes on where the one before it ended, or at the beginning of a record when that
        place is no more.
        """
        if self._pending and _starts_record(piece):
            self._pending = b""
            self.lost += 1
        data = self._pending + piece
        offset = 0
        while len(data) - offset >= RECORD.size:
            size, sent, time_ns, port, _ = RECORD.unpack_from(data, offset)
            start = offset + RECORD.size
            if size > len(data) - start:
                break
            yield Record(bool(sent), time_ns, port, data[start : start + size])
            offset = start + size
        self._pending = data[offset:]


def _starts_record(piece: bytes) -> bool:
    """Whether a record begins here; by chance, content looks so once in 2**70 times."""
    if len(piece) < RECORD.size:
        return False
    size, sent, time_ns, _, zero = RECORD.unpack_from(piece)
    near = abs(time_ns - time.time_ns()) < 86_400 * 10**9
    return bool(size <= DATAGRAM_MAX and sent in (0, 1) and near and zero == 0)


def known_families() -> Mapping[str, Family]:
    """The families of this package by name."""
    return {path.stem: builtin(path.stem) for path in SPECS.glob("*.yaml")}


class Decoder:
    """Datagrams to lines of text. Knows families by the numbers that they have at a server."""

    def __init__(self, numbers: Mapping[str, int]) -> None:
        """*numbers* are those of the families by name; others are learned as they pass."""
        self._known = known_families()
        self._families: dict[int, Family] = {GENL_ID_CTRL: _NLCTRL}
        for name, number in numbers.items():
            self._learn(number, name)

    def render(self, record: Record) -> Iterator[str]:
        """The lines of a datagram: one for each message, and below it one for each attribute."""
        seconds, nanoseconds = divmod(record.time_ns, 10**9)
        clock = time.strftime("%H:%M:%S", time.localtime(seconds))
        way = "<-" if record.sent else "->"
        head = f"{clock}.{nanoseconds // 1000:06d} port {record.port} {way}"
        end = 0
        try:
            for header, message in messages(record.datagram):
                end += align(header.length)
                title, lines = self._message(header, message, record.sent)
                yield f"{head} {title}"
                yield from (_INDENT + line for line in lines)
        except CodecError as error:
            yield f"{head} no message: {error}: {_bytes(record.datagram[end:])}"

    def _learn(self, number: int, name: str) -> None:
        if name in self._known:
            self._families[number] = self._known[name]

    def _message(self, header: NlMsgHdr, message: bytes, sent: bool) -> tuple[str, Iterator[str]]:
        """The line of a message, and what goes below it."""
        tail = f"seq {header.seq}, {header.length} bytes"
        if header.type in (NLMSG_ERROR, NLMSG_DONE) and sent:
            flags = _flag_names(header.flags, _ACK_FLAGS)
            status = _status(message)
            kind = "ack" if header.type == NLMSG_ERROR and status == _SUCCESS else None
            return (
                f"{kind or _KINDS[header.type]}{flags}, {status}, {tail}",
                self._extended_ack(header, message),
            )
        flags = _flag_names(header.flags, _REPLY_FLAGS if sent else _REQUEST_FLAGS)
        if header.type < NLMSG_MIN_TYPE:
            kind = _KINDS.get(header.type, f"type {header.type:#x}")
            return f"{kind}{flags}, {tail}", _reader(header, message)
        family = self._families.get(header.type)
        name = family.name if family is not None else f"family {header.type:#x}"
        if len(message) < NLMSG_HDRLEN + GENL_HDRLEN:
            return f"{name} without a command{flags}, {tail}", iter(())
        command = parse_genlmsghdr(message).cmd
        operation, attribute_set = _operation(family, command, sent)
        if sent and family is _NLCTRL:
            self._learn_from(message)
        return (
            f"{name} {operation}{flags}, {tail}",
            _attributes(family, attribute_set, message, NLMSG_HDRLEN + GENL_HDRLEN),
        )

    def _learn_from(self, message: bytes) -> None:
        found, _ = parse_nla(message, NLMSG_HDRLEN + GENL_HDRLEN, len(message))
        attributes = _NLCTRL.attribute_sets["ctrl-attrs"]
        payloads = {nla.type: nla.payload for nla in found}
        name = payloads.get(attributes["family-name"].value)
        number = payloads.get(attributes["family-id"].value)
        if name is not None and number is not None and len(number) == 2:
            self._learn(
                struct.unpack("=H", number)[0], name.removesuffix(b"\0").decode(errors="replace")
            )

    def _extended_ack(self, header: NlMsgHdr, message: bytes) -> Iterator[str]:
        start = NLMSG_HDRLEN + NLMSGERR.size
        request: bytes | None = None
        if header.type == NLMSG_ERROR:
            if len(message) < start + NLMSG_HDRLEN:
                yield f"no request: {_bytes(message[start:])}"
                return
            echoed = parse_nlmsghdr(message, start)
            capped = header.flags & NLM_F_CAPPED
            end = start + (NLMSG_HDRLEN if capped else align(echoed.length))
            request = message[start:end]
            start = end
            yield f"of {self._request(echoed, request)}"
        if header.flags & NLM_F_ACK_TLVS:
            for nla in parse_nla(message, start, len(message))[0]:
                lines = _attribute(_NLCTRL, _NLMSGERR_ATTRS, nla)
                yield next(lines) + self._meaning(nla, request)
                yield from lines

    def _request(self, header: NlMsgHdr, request: bytes) -> str:
        family = self._families.get(header.type)
        if family is None:
            return f"type {header.type:#x}, seq {header.seq}"
        if len(request) < NLMSG_HDRLEN + GENL_HDRLEN:
            return f"{family.name}, seq {header.seq}"
        operation, _ = _operation(family, parse_genlmsghdr(request).cmd, False)
        return f"{family.name} {operation}, seq {header.seq}"

    def _meaning(self, nla: Nla, request: bytes | None) -> str:
        """The attribute of the request that an attribute of an extended ack is about."""
        if request is None or len(request) < NLMSG_HDRLEN + GENL_HDRLEN or len(nla.payload) != 4:
            return ""
        family = self._families.get(parse_nlmsghdr(request).type)
        _, attribute_set = _operation(family, parse_genlmsghdr(request).cmd, False)
        if family is None or attribute_set is None:
            return ""
        (number,) = struct.unpack("=I", nla.payload)
        name: str | None = None
        if nla.type == _NLMSGERR_ATTRS["offs"].value:
            name = attribute_at(family, attribute_set, request, number)
        elif nla.type == _NLMSGERR_ATTRS["miss-type"].value:
            attribute = attribute_set.by_value.get(number)
            name = attribute.name if attribute is not None else None
        return f" ({name})" if name is not None else ""


_REQUEST_FLAGS: Final = {
    NLM_F_REQUEST: "request",
    NLM_F_ACK: "ack",
    NLM_F_ECHO: "echo",
    NLM_F_DUMP: "dump",
}
_REPLY_FLAGS: Final = {NLM_F_MULTI: "multi"}
_ACK_FLAGS: Final = {NLM_F_MULTI: "multi", NLM_F_CAPPED: "capped", NLM_F_ACK_TLVS: "tlvs"}


def _flag_names(flags: int, names: Mapping[int, str]) -> str:
    """The names of all flags that are set, each with a space before it."""
    shown = []
    for mask, name in names.items():
        if flags & mask == mask:
            shown.append(name)
            flags &= ~mask
    if flags:
        shown.append(f"{flags:#x}")
    return "".join(f" {name}" for name in shown)


def _status(message: bytes) -> str:
    if len(message) < NLMSG_HDRLEN + NLMSGERR.size:
        return "without a status"
    number = -int(NLMSGERR.unpack_from(message, NLMSG_HDRLEN)[0])
    if number == 0:
        return _SUCCESS
    return f"{errno.errorcode.get(number, number)} ({os.strerror(number)})"


def _reader(header: NlMsgHdr, message: bytes) -> Iterator[str]:
    """What a reader says of itself in an NLMSG_NOOP."""
    payload = message[NLMSG_HDRLEN:]
    if header.type == NLMSG_NOOP and len(payload) == READER.size:
        length, options = READER.unpack(payload)
        names = {1 << NETLINK_CAP_ACK: "cap-ack", 1 << NETLINK_EXT_ACK: "ext-ack"}
        yield f"buffer: {length}"
        yield f"options:{_flag_names(options, names)}"
    elif payload:
        yield _bytes(payload)


def _operation(family: Family | None, command: int, sent: bool) -> tuple[str, AttributeSet | None]:
    """The name of a command, and the attributes of its messages."""
    for operation in family.operations if family is not None else ():
        if command == (operation.reply_value if sent else operation.request_value):
            assert family is not None
            return operation.name, family.attributes_of(operation)
    return f"command {command}", None


def _attributes(
    family: Family | None, attribute_set: AttributeSet | None, message: bytes, start: int
) -> Iterator[str]:
    found, left = parse_nla(message, start, len(message))
    for nla in found:
        yield from _attribute(family, attribute_set, nla)
    if left:
        yield f"no attribute: {_bytes(message[len(message) - left :])}"


def _attribute(
    family: Family | None, attribute_set: AttributeSet | None, nla: Nla
) -> Iterator[str]:
    """The line of an attribute, and those of what is in it."""
    attribute = attribute_set.by_value.get(nla.type) if attribute_set is not None else None
    if family is None or attribute is None:
        yield f"{nla.type}: {_bytes(nla.payload)}"
        return
    inner = family.attribute_sets[attribute.nested] if attribute.nested is not None else None
    if attribute.type == "nest":
        yield f"{attribute.name}:"
        for line in _attributes(family, inner, nla.payload, 0):
            yield _INDENT + line
    elif attribute.type == "indexed-array" and attribute.sub_type == "nest":
        yield f"{attribute.name}:"
        elements, left = parse_nla(nla.payload, 0, len(nla.payload))
        for element in elements:
            yield f"{_INDENT}{element.type}:"
            for line in _attributes(family, inner, element.payload, 0):
                yield _INDENT * 2 + line
        if left:
            yield f"{_INDENT}no element: {_bytes(nla.payload[-left:])}"
    else:
        try:
            value = AttributeCodec(family).decode_payload(attribute, nla.payload)
        except CodecError:
            yield f"{attribute.name}: no {attribute.type}: {_bytes(nla.payload)}"
        else:
            yield f"{attribute.name}: {_value(family, attribute, value)}"


def _value(family: Family, attribute: Attribute, value: Value) -> str:
    if isinstance(value, bytes):
        return _bytes(value)
    if isinstance(value, str):
        # As in a literal: nothing of it may steer a terminal.
        return repr(value)[1:-1]
    if isinstance(value, int):
        return _integer(family, attribute, value)
    if isinstance(value, Mapping):
        return ", ".join(f"{name} {one!r}" for name, one in value.items())
    return str(value)


def _integer(family: Family, attribute: Attribute, value: int) -> str:
    """A number with its names, when the attribute has an enumeration."""
    if attribute.enum is None:
        return str(value)
    enum = family.enums[attribute.enum]
    if attribute.as_flags or enum.flags:
        names = [entry.name for entry in enum.entries if value >> entry.value & 1]
    else:
        names = enum.names(value)
    return f"{value} ({' '.join(names)})" if names else str(value)


def _bytes(data: bytes) -> str:
    """The size of *data* and how it begins."""
    if not data:
        return "0 bytes"
    more = " ..." if len(data) > SHOWN else ""
    return f"{len(data)} bytes: {data[:SHOWN].hex(' ')}{more}"
