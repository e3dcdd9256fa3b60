# SPDX-License-Identifier: MIT
"""IDE_KM: keys for the sub-streams of IDE streams, both sides (PCIe 7.0, 6.33.3)."""

from __future__ import annotations

import errno as _errno
import struct
import threading
from collections.abc import Mapping
from contextlib import suppress
from dataclasses import dataclass, field
from enum import IntEnum
from typing import Protocol, TypeVar

from tsmfs.spdm.messages import ErrorCode, SpdmError
from tsmfs.spdm.vendor import Send, SessionHandle, require_session
from tsmfs.spdm.wire import (
    Item,
    Record,
    Sizes,
    SpdmDecodeError,
    Values,
    constant,
    declare_record,
    reserved,
    rest,
    u8,
)

KEY_SIZE = 32
"""Bytes of a key: AES-GCM-256, the one algorithm of IDE."""

INITIAL_IFV = 1
"""Invocation field of the IV that a key starts with."""

_IFV_SIZE = 8
_DWORD = 4
_SLOT_FIELDS_SIZE = 7
_RX_TX_SHIFT = 1
_SUB_STREAM_SHIFT = 4


class ObjectId(IntEnum):
    """First byte of a message."""

    QUERY = 0x00
    QUERY_RESP = 0x01
    KEY_PROG = 0x02
    KP_ACK = 0x03
    K_SET_GO = 0x04
    K_SET_STOP = 0x05
    K_GOSTOP_ACK = 0x06


class KpAckStatus(IntEnum):
    """Status of KP_ACK."""

    SUCCESS = 0x00
    INCORRECT_LENGTH = 0x01
    UNSUPPORTED_PORT_INDEX = 0x02
    UNSUPPORTED_VALUE = 0x03
    UNSPECIFIED_FAILURE = 0x04


class SubStream(IntEnum):
    """Traffic that a key is for."""

    PR = 0
    """Posted requests."""
    NPR = 1
    """Non-posted requests."""
    CPL = 2
    """Completions."""


class Direction(IntEnum):
    """RxTxB, as the port that holds the key sees it."""

    RX = 0
    TX = 1


class IdeKmError(Exception):
    """A port did not take, start or stop a key; `status` is that of KP_ACK."""

    def __init__(self, status: int, text: str) -> None:
        super().__init__(text)
        try:
            self.status: int = KpAckStatus(status)
        except ValueError:
            self.status = status

    @property
    def errno(self) -> int:
        """What the kernel side reports."""
        if self.status == KpAckStatus.UNSUPPORTED_PORT_INDEX:
            return _errno.ENODEV
        if self.status in (KpAckStatus.INCORRECT_LENGTH, KpAckStatus.UNSUPPORTED_VALUE):
            return _errno.EINVAL
        return _errno.EIO


@dataclass(frozen=True, slots=True)
class KeySlot:
    """Where a port keeps one key."""

    port: int
    """Index of the port in its device."""
    stream_id: int
    key_set: int
    """0 or 1: one can be programmed while the other is in use."""
    direction: Direction
    sub_stream: SubStream

    @property
    def selector(self) -> int:
        """Key set, direction and sub-stream as the byte in a message."""
        return self.key_set | self.direction << _RX_TX_SHIFT | self.sub_stream << _SUB_STREAM_SHIFT

    @classmethod
    def of(cls, port: int, stream_id: int, selector: int) -> KeySlot:
        """The slot that a message names. Raises ValueError for a sub-stream that is reserved."""
        return cls(
            port,
            stream_id,
            selector & 1,
            Direction(selector >> _RX_TX_SHIFT & 1),
            SubStream(selector >> _SUB_STREAM_SHIFT),
        )

    def partner(self, port: int) -> KeySlot:
        """The slot for the same key in `port` of the other end: it receives what this sends."""
        return KeySlot(
            port, self.stream_id, self.key_set, Direction(1 - self.direction), self.sub_stream
        )


def stream_slots(port: int, stream_id: int, key_set: int = 0) -> tuple[KeySlot, ...]:
    """The six slots of a stream and key set: three sub-streams received, three sent."""
    return tuple(
        KeySlot(port, stream_id, key_set, direction, sub_stream)
        for direction in Direction
        for sub_stream in SubStream
    )


@dataclass(frozen=True, slots=True)
class PortInfo:
    """What QUERY tells of a port: its place, and the registers of its IDE capability."""

    port: int
    dev_func: int
    """Device in bits 7:3, function in bits 2:0."""
    bus: int
    segment: int
    max_port: int
    """Highest port index of the device."""
    registers: bytes
    """From the IDE Capability Register on, in whole dwords: the extended header is left out."""


class _Key(Item):
    """A key, most significant byte first, as eight dwords with the most significant one first."""

    __slots__ = ()

    @property
    def name(self) -> str:
        return "key"

    def pack(self, out: bytearray, values: Values, sizes: Sizes) -> None:
        key = values["key"]
        if len(key) != KEY_SIZE:
            raise ValueError(f"a key has {KEY_SIZE} bytes, not {len(key)}")
        out += _swap_dwords(key)

    def parse(self, data: bytes, at: int, values: Values, sizes: Sizes) -> int:
        end = at + KEY_SIZE
        if end > len(data):
            raise SpdmDecodeError("the key is cut off")
        values["key"] = _swap_dwords(data[at:end])
        return end


class _Ifv(Item):
    """The invocation field as two dwords, the most significant one first."""

    __slots__ = ()

    @property
    def name(self) -> str:
        return "ifv"

    def pack(self, out: bytearray, values: Values, sizes: Sizes) -> None:
        try:
            out += _swap_dwords(values["ifv"].to_bytes(_IFV_SIZE, "big"))
        except OverflowError:
            raise ValueError(f"the invocation field does not fit {_IFV_SIZE} bytes") from None

    def parse(self, data: bytes, at: int, values: Values, sizes: Sizes) -> int:
        end = at + _IFV_SIZE
        if end > len(data):
            raise SpdmDecodeError("the invocation field is cut off")
        values["ifv"] = int.from_bytes(_swap_dwords(data[at:end]), "big")
        return end


def _swap_dwords(data: bytes) -> bytes:
    count = len(data) // _DWORD
    return struct.pack(f">{count}I", *struct.unpack(f"<{count}I", data))


def _object_id(value: ObjectId) -> Item:
    return constant(value, "object ID")


@declare_record
@dataclass(frozen=True, slots=True, kw_only=True)
class Query(Record):
    """QUERY."""

    WIRE = (_object_id(ObjectId.QUERY), reserved(1), u8("port"))

    port: int = 0


@declare_record
@dataclass(frozen=True, slots=True, kw_only=True)
class QueryResp(Record):
    """QUERY_RESP."""

    WIRE = (
        _object_id(ObjectId.QUERY_RESP),
        reserved(1),
        u8("port"),
        u8("dev_func"),
        u8("bus"),
        u8("segment"),
        u8("max_port"),
        rest("registers"),
    )

    port: int = 0
    dev_func: int = 0
    bus: int = 0
    segment: int = 0
    max_port: int = 0
    registers: bytes = b""


@declare_record
@dataclass(frozen=True, slots=True, kw_only=True)
class KeyProg(Record):
    """KEY_PROG. The key is as AES takes it; it shows in no representation."""

    WIRE = (
        _object_id(ObjectId.KEY_PROG),
        reserved(2),
        u8("stream_id"),
        reserved(1),
        u8("selector"),
        u8("port"),
        _Key(),
        _Ifv(),
    )

    stream_id: int = 0
    selector: int = 0
    port: int = 0
    key: bytes = field(repr=False)
    ifv: int = INITIAL_IFV


@declare_record
@dataclass(frozen=True, slots=True, kw_only=True)
class KpAck(Record):
    """KP_ACK."""

    WIRE = (
        _object_id(ObjectId.KP_ACK),
        reserved(2),
        u8("stream_id"),
        u8("status"),
        u8("selector"),
        u8("port"),
    )

    stream_id: int = 0
    status: int = KpAckStatus.SUCCESS
    selector: int = 0
    port: int = 0


def _slot_wire(code: ObjectId) -> tuple[Item, ...]:
    return (
        _object_id(code),
        reserved(2),
        u8("stream_id"),
        reserved(1),
        u8("selector"),
        u8("port"),
    )


@declare_record
@dataclass(frozen=True, slots=True, kw_only=True)
class KSetGo(Record):
    """K_SET_GO."""

    WIRE = _slot_wire(ObjectId.K_SET_GO)

    stream_id: int = 0
    selector: int = 0
    port: int = 0


@declare_record
@dataclass(frozen=True, slots=True, kw_only=True)
class KSetStop(Record):
    """K_SET_STOP."""

    WIRE = _slot_wire(ObjectId.K_SET_STOP)

    stream_id: int = 0
    selector: int = 0
    port: int = 0


@declare_record
@dataclass(frozen=True, slots=True, kw_only=True)
class KGoStopAck(Record):
    """K_GOSTOP_ACK."""

    WIRE = _slot_wire(ObjectId.K_GOSTOP_ACK)

    stream_id: int = 0
    selector: int = 0
    port: int = 0


MESSAGES: Mapping[int, type[Record]] = {
    ObjectId.QUERY: Query,
    ObjectId.QUERY_RESP: QueryResp,
    ObjectId.KEY_PROG: KeyProg,
    ObjectId.KP_ACK: KpAck,
    ObjectId.K_SET_GO: KSetGo,
    ObjectId.K_SET_STOP: KSetStop,
    ObjectId.K_GOSTOP_ACK: KGoStopAck,
}
"""Every message by its object ID."""


def parse(data: bytes) -> Record:
    """The message in `data`, whichever it is. Raises SpdmDecodeError."""
    kind = MESSAGES.get(data[0]) if data else None
    if kind is None:
        raise SpdmDecodeError(f"no message of IDE_KM starts with {data[:1].hex() or 'nothing'}")
    return kind.parse(data)


class KeySlots(Protocol):
    """The hardware that holds the keys of all ports of a device."""

    def query(self, port: int) -> PortInfo:
        """What the port is. Raises IdeKmError for a port that does not exist."""

    def program(self, slot: KeySlot, key: bytes, ifv: int) -> None:
        """Take `key`, not yet in use, replacing one that was not in use.

        Raises IdeKmError with what KP_ACK is to report.
        """

    def go(self, slot: KeySlot) -> None:
        """Use the key that was programmed. Raises IdeKmError if there is none."""

    def stop(self, slot: KeySlot) -> None:
        """Stop using the key, and forget it; nothing happens without one. Raises IdeKmError."""


class IdeKmResponder:
    """The device's side: a `VendorResponder` for `PciProtocol.IDE_KM`.

    The keys of a stream belong to the session that programmed the first of them, until all were
    stopped or the session ended; other sessions cannot touch them (PCIe 7.0, 11.4.5).
    """

    def __init__(self, keys: KeySlots) -> None:
        self._keys = keys
        self._owners: dict[KeySlot, int] = {}
        self._lock = threading.Lock()

    def respond(self, session: SessionHandle | None, payload: bytes) -> bytes:
        """The answer to a message. Raises SpdmError where IDE_KM has none."""
        owner = require_session(session).id
        if payload[:1] == bytes((ObjectId.KEY_PROG,)):
            return self._key_prog(owner, payload).pack()
        try:
            request = parse(payload)
        except SpdmDecodeError as error:
            raise SpdmError(ErrorCode.INVALID_REQUEST, str(error)) from None
        try:
            if isinstance(request, Query):
                return self._query(request).pack()
            if isinstance(request, KSetGo | KSetStop):
                return self._go_stop(owner, request).pack()
        except (IdeKmError, ValueError) as error:
            raise SpdmError(ErrorCode.INVALID_REQUEST, str(error)) from None
        raise SpdmError(ErrorCode.INVALID_REQUEST, f"{type(request).__name__} is no request")

    def session_ended(self, session: int) -> None:
        """Stop every key that the session programmed: its streams become insecure."""
        with self._lock:
            slots = [slot for slot, owner in self._owners.items() if owner == session]
            for slot in slots:
                del self._owners[slot]
        for slot in slots:
            # One port that is gone must not keep the others' keys in use.
            with suppress(IdeKmError):
                self._keys.stop(slot)

    def forget(self) -> None:
        """After a reset of the hardware, which lost the keys: no session has any."""
        with self._lock:
            self._owners.clear()

    def keyed(self, stream_id: int, session: int) -> bool:
        """Whether `session` programmed one key set of the stream for all sub-streams of a port."""
        with self._lock:
            mine = {slot for slot, owner in self._owners.items() if owner == session}
        return any(
            mine.issuperset(stream_slots(slot.port, stream_id, slot.key_set))
            for slot in mine
            if slot.stream_id == stream_id
        )

    def _query(self, request: Query) -> QueryResp:
        info = self._keys.query(request.port)
        return QueryResp(
            port=request.port,
            dev_func=info.dev_func,
            bus=info.bus,
            segment=info.segment,
            max_port=info.max_port,
            registers=info.registers,
        )

    def _key_prog(self, owner: int, payload: bytes) -> KpAck:
        if len(payload) < _SLOT_FIELDS_SIZE:
            raise SpdmError(ErrorCode.INVALID_REQUEST, "KEY_PROG names no slot")
        stream_id, selector, port = payload[3], payload[5], payload[6]
        status: int = KpAckStatus.SUCCESS
        try:
            request = KeyProg.parse(payload)
            slot = KeySlot.of(port, stream_id, selector)
            if request.ifv != INITIAL_IFV:
                raise IdeKmError(KpAckStatus.UNSUPPORTED_VALUE, "the invocation field is not 1")
            self._own(owner, slot)
            self._keys.program(slot, request.key, request.ifv)
            with self._lock:
                self._owners[slot] = owner
        except SpdmDecodeError:
            status = KpAckStatus.INCORRECT_LENGTH
        except IdeKmError as error:
            status = error.status
        except ValueError:
            status = KpAckStatus.UNSUPPORTED_VALUE
        return KpAck(stream_id=stream_id, status=status, selector=selector, port=port)

    def _go_stop(self, owner: int, request: KSetGo | KSetStop) -> KGoStopAck:
        slot = KeySlot.of(request.port, request.stream_id, request.selector)
        self._own(owner, slot)
        if isinstance(request, KSetGo):
            self._keys.go(slot)
        else:
            self._keys.stop(slot)
            with self._lock:
                self._owners.pop(slot, None)
        return KGoStopAck(stream_id=request.stream_id, selector=request.selector, port=request.port)

    def _own(self, session: int, wanted: KeySlot) -> None:
        with self._lock:
            for slot, owner in self._owners.items():
                same = (slot.port, slot.stream_id) == (wanted.port, wanted.stream_id)
                if same and owner != session:
                    raise IdeKmError(
                        KpAckStatus.UNSPECIFIED_FAILURE,
                        f"stream {slot.stream_id} has keys of another session",
                    )


@dataclass(slots=True)
class _Held:
    key: bytes = field(repr=False)
    ifv: int
    in_use: bool = False


_SELECTIVE_AND_IDE_KM = (1 << 1 | 1 << 6).to_bytes(4, "little")
_ONE_SELECTIVE_STREAM = _SELECTIVE_AND_IDE_KM + bytes(6 * 4)


class MemoryKeySlots:
    """`KeySlots` without a device: ports that hold keys and do nothing with them."""

    def __init__(self, ports: int = 2, registers: bytes = _ONE_SELECTIVE_STREAM) -> None:
        self._ports = ports
        self._registers = registers
        self._held: dict[KeySlot, _Held] = {}

    def query(self, port: int) -> PortInfo:
        """The port, at 0000:00:00.0. Raises IdeKmError."""
        self._check(port)
        return PortInfo(port, 0, 0, 0, self._ports - 1, self._registers)

    def program(self, slot: KeySlot, key: bytes, ifv: int) -> None:
        """Keep `key`. Raises IdeKmError when the slot's key is in use."""
        self._check(slot.port)
        held = self._held.get(slot)
        if held is not None and held.in_use:
            raise IdeKmError(KpAckStatus.UNSPECIFIED_FAILURE, "the key is in use")
        self._held[slot] = _Held(key, ifv)

    def go(self, slot: KeySlot) -> None:
        """Mark the key as in use. Raises IdeKmError if there is none."""
        self._check(slot.port)
        held = self._held.get(slot)
        if held is None:
            raise IdeKmError(KpAckStatus.UNSUPPORTED_VALUE, "no key was programmed")
        held.in_use = True

    def stop(self, slot: KeySlot) -> None:
        """Drop the key. Raises IdeKmError."""
        self._check(slot.port)
        self._held.pop(slot, None)

    def key(self, slot: KeySlot) -> bytes | None:
        """The key in the slot."""
        held = self._held.get(slot)
        return None if held is None else held.key

    def in_use(self, slot: KeySlot) -> bool:
        """Whether the slot has a key that was started."""
        held = self._held.get(slot)
        return held is not None and held.in_use

    def _check(self, port: int) -> None:
        if port >= self._ports:
            raise IdeKmError(KpAckStatus.UNSUPPORTED_PORT_INDEX, f"no port {port}")


_Answer = TypeVar("_Answer", bound=Record)


def _ask(send: Send, request: Record, answer: type[_Answer]) -> _Answer:
    try:
        return answer.parse(send(request.pack()))
    except SpdmDecodeError as error:
        raise SpdmError(ErrorCode.INVALID_RESPONSE_CODE, str(error)) from None


def query(send: Send, port: int = 0) -> PortInfo:
    """Ask what a port of the device is. Raises SpdmError."""
    answer = _ask(send, Query(port=port), QueryResp)
    if answer.port != port or len(answer.registers) % _DWORD:
        raise SpdmError(ErrorCode.INVALID_RESPONSE_CODE, "QUERY_RESP is not for the QUERY")
    return PortInfo(
        answer.port,
        answer.dev_func,
        answer.bus,
        answer.segment,
        answer.max_port,
        answer.registers,
    )


def key_prog(send: Send, slot: KeySlot, key: bytes, ifv: int = INITIAL_IFV) -> None:
    """Give the device a key for `slot`. Raises IdeKmError if it refuses, and SpdmError."""
    request = KeyProg(
        stream_id=slot.stream_id, selector=slot.selector, port=slot.port, key=key, ifv=ifv
    )
    answer = _ask(send, request, KpAck)
    _check_slot(slot, answer)
    if answer.status != KpAckStatus.SUCCESS:
        raise IdeKmError(answer.status, f"KEY_PROG of {slot} failed with status {answer.status}")


def k_set_go(send: Send, slot: KeySlot) -> None:
    """Have the device use the key in `slot`. Raises SpdmError."""
    request = KSetGo(stream_id=slot.stream_id, selector=slot.selector, port=slot.port)
    _check_slot(slot, _ask(send, request, KGoStopAck))


def k_set_stop(send: Send, slot: KeySlot) -> None:
    """Have the device stop using the key in `slot` and forget it. Raises SpdmError."""
    request = KSetStop(stream_id=slot.stream_id, selector=slot.selector, port=slot.port)
    _check_slot(slot, _ask(send, request, KGoStopAck))


def _check_slot(slot: KeySlot, answer: KpAck | KGoStopAck) -> None:
    if (answer.port, answer.stream_id, answer.selector) != (
        slot.port,
        slot.stream_id,
        slot.selector,
    ):
        raise SpdmError(ErrorCode.INVALID_RESPONSE_CODE, f"the answer is not for {slot}")
