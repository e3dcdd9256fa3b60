# SPDX-License-Identifier: MIT
"""Tests of IDE_KM: layouts, the device's side and the host's side."""

from __future__ import annotations

import errno
import re
from collections.abc import Callable
from dataclasses import dataclass

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tsmfs.spdm import ide_km
from tsmfs.spdm.ide_km import (
    Direction,
    IdeKmError,
    IdeKmResponder,
    KeyProg,
    KeySlot,
    KGoStopAck,
    KpAck,
    KpAckStatus,
    KSetGo,
    KSetStop,
    MemoryKeySlots,
    ObjectId,
    Query,
    QueryResp,
    SubStream,
    k_set_go,
    k_set_stop,
    key_prog,
    query,
    stream_slots,
)
from tsmfs.spdm.messages import ErrorCode, SpdmError
from tsmfs.spdm.wire import Record, SpdmDecodeError

KEY = bytes.fromhex("df254152056e02e0ef8b7feb9739d4d96a4eb80103241df7cd5e24b49ccd2720")
KEY_ON_THE_WIRE = "524125df e0026e05 eb7f8bef d9d43997 01b84e6a f71d2403 b4245ecd 2027cd9c"
SLOT = KeySlot(1, 7, 0, Direction.RX, SubStream.PR)


@dataclass(frozen=True)
class OneSession:
    id: int


@dataclass
class Device:
    """A responder and its hardware, with a way to talk to it in a session."""

    keys: MemoryKeySlots
    responder: IdeKmResponder

    def send(self, session: int = 1) -> Callable[[bytes], bytes]:
        return lambda payload: self.responder.respond(OneSession(session), payload)


@pytest.fixture
def device() -> Device:
    keys = MemoryKeySlots()
    return Device(keys, IdeKmResponder(keys))


BYTE = st.integers(0, 0xFF)
SLOT_FIELDS = {"stream_id": BYTE, "selector": BYTE, "port": BYTE}
MESSAGES = st.one_of(
    st.builds(Query, port=BYTE),
    st.builds(
        QueryResp,
        port=BYTE,
        dev_func=BYTE,
        bus=BYTE,
        segment=BYTE,
        max_port=BYTE,
        registers=st.binary(max_size=80),
    ),
    st.builds(
        KeyProg,
        **SLOT_FIELDS,
        key=st.binary(min_size=32, max_size=32),
        ifv=st.integers(0, 2**64 - 1),
    ),
    st.builds(KpAck, **SLOT_FIELDS, status=BYTE),
    st.builds(KSetGo, **SLOT_FIELDS),
    st.builds(KSetStop, **SLOT_FIELDS),
    st.builds(KGoStopAck, **SLOT_FIELDS),
)


@given(MESSAGES)
def test_messages_are_parsed_as_they_were_packed(message: Record) -> None:
    assert ide_km.parse(message.pack()) == message


@given(MESSAGES, st.data())
def test_mutated_messages_raise_nothing_but_the_decode_error(
    message: Record, data: st.DataObject
) -> None:
    packed = bytearray(message.pack())
    for _ in range(data.draw(st.integers(0, 3))):
        packed[data.draw(st.integers(0, len(packed) - 1))] = data.draw(BYTE)
    cut = bytes(packed)[: data.draw(st.integers(0, len(packed)))] + data.draw(st.binary(max_size=4))
    try:
        parsed = ide_km.parse(cut)
    except SpdmDecodeError:
        return
    assert ide_km.parse(parsed.pack()) == parsed


@pytest.mark.parametrize(
    ("message", "packed"),
    [
        (Query(port=2), "00 00 02"),
        (
            QueryResp(port=1, dev_func=8, bus=2, segment=3, max_port=4, registers=b"\xaa" * 4),
            "01 00 01 08 02 03 04 aaaaaaaa",
        ),
        (
            KeyProg(stream_id=7, selector=0x22, port=1, key=KEY, ifv=0x1122334455667788),
            f"02 0000 07 00 22 01 {KEY_ON_THE_WIRE} 44332211 88776655",
        ),
        (KpAck(stream_id=7, status=3, selector=0x22, port=1), "03 0000 07 03 22 01"),
        (KSetGo(stream_id=7, selector=0x22, port=1), "04 0000 07 00 22 01"),
        (KSetStop(stream_id=7, selector=0x22, port=1), "05 0000 07 00 22 01"),
        (KGoStopAck(stream_id=7, selector=0x22, port=1), "06 0000 07 00 22 01"),
    ],
)
def test_layouts_are_those_of_the_specification(message: Record, packed: str) -> None:
    assert message.pack() == bytes.fromhex(packed)


def test_the_invocation_field_1_is_sent_as_peers_expect_it() -> None:
    packed = KeyProg(key=KEY).pack()
    assert packed[-8:] == bytes.fromhex("00000000 01000000")


@pytest.mark.parametrize("key", [b"", b"k" * 31, b"k" * 33])
def test_a_key_of_another_size_is_not_packed(key: bytes) -> None:
    with pytest.raises(ValueError, match="a key has 32 bytes"):
        KeyProg(key=key).pack()


@pytest.mark.parametrize("ifv", [-1, 1 << 64])
def test_an_invocation_field_that_does_not_fit_is_not_packed(ifv: int) -> None:
    with pytest.raises(ValueError, match="does not fit"):
        KeyProg(key=KEY, ifv=ifv).pack()


def test_a_key_shows_in_no_representation(device: Device) -> None:
    key_prog(device.send(), SLOT, KEY)
    shown = re.escape(repr(KEY)[2:-1])
    for thing in (KeyProg(key=KEY), device.keys, device.responder, vars(device.keys)):
        assert not re.search(f"{shown}|{KEY.hex()}", repr(thing))


@given(st.integers(0, 1), st.sampled_from(Direction), st.sampled_from(SubStream))
def test_a_selector_names_its_slot(key_set: int, direction: Direction, kind: SubStream) -> None:
    slot = KeySlot(0, 1, key_set, direction, kind)
    assert slot.selector == key_set | direction * 2 | kind * 16
    assert KeySlot.of(0, 1, slot.selector) == slot
    assert KeySlot.of(0, 1, slot.selector | 0x0C) == slot


def test_the_partner_of_a_slot_is_the_other_direction_at_the_other_port() -> None:
    partner = SLOT.partner(0)
    assert partner == KeySlot(0, 7, 0, Direction.TX, SubStream.PR)
    assert partner.partner(1) == SLOT


def test_a_stream_has_six_slots_in_a_key_set() -> None:
    slots = stream_slots(1, 7, 1)
    assert len(set(slots)) == 6
    assert {slot.key_set for slot in slots} == {1}


def test_query_tells_the_port_and_its_registers(device: Device) -> None:
    info = query(device.send(), 1)
    assert (info.port, info.max_port) == (1, 1)
    assert info.registers[:4] == b"\x42\0\0\0"
    assert len(info.registers) == 28


def test_a_port_that_does_not_exist_is_an_invalid_request(device: Device) -> None:
    with pytest.raises(SpdmError) as caught:
        query(device.send(), 2)
    assert caught.value.code == ErrorCode.INVALID_REQUEST


def test_six_sub_streams_are_programmed_started_and_stopped(device: Device) -> None:
    slots = stream_slots(1, 7)
    for number, slot in enumerate(slots):
        key = bytes((number,)) * 32
        key_prog(device.send(), slot, key)
        assert device.keys.key(slot) == key
        assert not device.keys.in_use(slot)
        k_set_go(device.send(), slot)
        assert device.keys.in_use(slot)
        assert device.responder.keyed(7, 1) == (number == 5)
    assert not device.responder.keyed(7, 2)
    assert not device.responder.keyed(8, 1)
    for slot in slots:
        k_set_stop(device.send(), slot)
        assert device.keys.key(slot) is None
        assert not device.keys.in_use(slot)
    assert not device.responder.keyed(7, 1)


def test_the_second_key_set_is_programmed_while_the_first_is_in_use(device: Device) -> None:
    key_prog(device.send(), SLOT, KEY)
    k_set_go(device.send(), SLOT)
    second = KeySlot(1, 7, 1, Direction.RX, SubStream.PR)
    key_prog(device.send(), second, bytes(32))
    k_set_go(device.send(), second)
    assert device.keys.key(SLOT) == KEY
    assert device.keys.key(second) == bytes(32)


def test_a_key_in_use_is_not_replaced(device: Device) -> None:
    key_prog(device.send(), SLOT, KEY)
    k_set_go(device.send(), SLOT)
    with pytest.raises(IdeKmError) as caught:
        key_prog(device.send(), SLOT, bytes(32))
    assert caught.value.status == KpAckStatus.UNSPECIFIED_FAILURE
    assert device.keys.key(SLOT) == KEY


def test_a_key_that_was_not_started_is_replaced(device: Device) -> None:
    key_prog(device.send(), SLOT, KEY)
    key_prog(device.send(), SLOT, bytes(32))
    assert device.keys.key(SLOT) == bytes(32)


def test_stop_without_a_key_is_acknowledged(device: Device) -> None:
    k_set_stop(device.send(), SLOT)


@pytest.mark.parametrize("action", [k_set_go, k_set_stop])
def test_go_and_stop_of_a_port_that_does_not_exist_fail(
    device: Device, action: Callable[[Callable[[bytes], bytes], KeySlot], None]
) -> None:
    with pytest.raises(SpdmError) as caught:
        action(device.send(), KeySlot(9, 7, 0, Direction.RX, SubStream.PR))
    assert caught.value.code == ErrorCode.INVALID_REQUEST


def test_go_without_a_key_fails(device: Device) -> None:
    with pytest.raises(SpdmError) as caught:
        k_set_go(device.send(), SLOT)
    assert caught.value.code == ErrorCode.INVALID_REQUEST


GOOD_PROG = KeyProg(stream_id=7, selector=SLOT.selector, port=1, key=KEY).pack()


@pytest.mark.parametrize(
    ("payload", "status"),
    [
        (GOOD_PROG, KpAckStatus.SUCCESS),
        (GOOD_PROG[:-4], KpAckStatus.INCORRECT_LENGTH),
        (GOOD_PROG[:7], KpAckStatus.INCORRECT_LENGTH),
        (GOOD_PROG + bytes(4), KpAckStatus.INCORRECT_LENGTH),
        (GOOD_PROG[:6] + b"\x02" + GOOD_PROG[7:], KpAckStatus.UNSUPPORTED_PORT_INDEX),
        (GOOD_PROG[:5] + b"\x30" + GOOD_PROG[6:], KpAckStatus.UNSUPPORTED_VALUE),
        (GOOD_PROG[:-4] + b"\x02\0\0\0", KpAckStatus.UNSUPPORTED_VALUE),
    ],
)
def test_kp_ack_repeats_the_slot_and_tells_the_status(
    device: Device, payload: bytes, status: KpAckStatus
) -> None:
    ack = KpAck.parse(device.send()(payload))
    assert ack == KpAck(stream_id=7, selector=payload[5], port=payload[6], status=status)
    assert (device.keys.key(SLOT) == KEY) == (status == KpAckStatus.SUCCESS)


def test_another_session_cannot_touch_the_keys_of_a_stream(device: Device) -> None:
    key_prog(device.send(1), SLOT, KEY)
    k_set_go(device.send(1), SLOT)
    other = KeySlot(1, 7, 1, Direction.TX, SubStream.CPL)
    with pytest.raises(IdeKmError) as caught:
        key_prog(device.send(2), other, bytes(32))
    assert caught.value.status == KpAckStatus.UNSPECIFIED_FAILURE
    with pytest.raises(SpdmError):
        k_set_stop(device.send(2), SLOT)
    assert device.keys.in_use(SLOT)
    key_prog(device.send(2), KeySlot(1, 8, 0, Direction.RX, SubStream.PR), bytes(32))


def test_the_end_of_a_session_stops_its_keys_and_frees_the_stream(device: Device) -> None:
    other = KeySlot(1, 8, 0, Direction.RX, SubStream.PR)
    key_prog(device.send(1), SLOT, KEY)
    k_set_go(device.send(1), SLOT)
    key_prog(device.send(2), other, KEY)
    device.responder.session_ended(1)
    assert device.keys.key(SLOT) is None
    assert device.keys.key(other) == KEY
    key_prog(device.send(2), SLOT, bytes(32))


def test_after_a_reset_no_session_has_keys(device: Device) -> None:
    for slot in stream_slots(1, 7):
        key_prog(device.send(1), slot, KEY)
    device.responder.forget()
    assert not device.responder.keyed(7, 1)
    key_prog(device.send(2), SLOT, KEY)


def test_messages_outside_of_a_session_are_refused(device: Device) -> None:
    with pytest.raises(SpdmError) as caught:
        device.responder.respond(None, GOOD_PROG)
    assert caught.value.code == ErrorCode.SESSION_REQUIRED
    assert device.keys.key(SLOT) is None


@given(st.one_of(st.binary(max_size=60), MESSAGES.map(lambda message: message.pack())))
def test_whatever_comes_is_answered_or_an_spdm_error(payload: bytes) -> None:
    responder = IdeKmResponder(MemoryKeySlots())
    refused = None
    try:
        answer = ide_km.parse(responder.respond(OneSession(1), payload))
    except SpdmError as error:
        refused = error.code
    else:
        assert isinstance(answer, QueryResp | KpAck | KGoStopAck)
    assert refused in (None, ErrorCode.INVALID_REQUEST)


@pytest.mark.parametrize(
    "answer",
    [
        b"",
        b"\x03\0\0",
        KGoStopAck(stream_id=7, selector=SLOT.selector, port=1).pack(),
        KpAck(stream_id=8, selector=SLOT.selector, port=1).pack(),
        KpAck(stream_id=7, selector=SLOT.selector ^ 1, port=1).pack(),
        KpAck(stream_id=7, selector=SLOT.selector, port=0).pack(),
    ],
)
def test_the_host_refuses_an_answer_to_something_else(answer: bytes) -> None:
    with pytest.raises(SpdmError) as caught:
        key_prog(lambda payload: answer, SLOT, KEY)
    assert caught.value.code == ErrorCode.INVALID_RESPONSE_CODE


@pytest.mark.parametrize(
    "answer", [QueryResp(port=1), QueryResp(port=0, registers=b"abc"), Query(port=0)]
)
def test_the_host_refuses_registers_that_are_not_those_of_the_port(answer: Record) -> None:
    with pytest.raises(SpdmError) as caught:
        query(lambda payload: answer.pack(), 0)
    assert caught.value.code == ErrorCode.INVALID_RESPONSE_CODE


@pytest.mark.parametrize(
    ("status", "number"),
    [
        (KpAckStatus.INCORRECT_LENGTH, errno.EINVAL),
        (KpAckStatus.UNSUPPORTED_PORT_INDEX, errno.ENODEV),
        (KpAckStatus.UNSUPPORTED_VALUE, errno.EINVAL),
        (KpAckStatus.UNSPECIFIED_FAILURE, errno.EIO),
        (0x77, errno.EIO),
    ],
)
def test_a_refused_key_has_an_errno(status: int, number: int) -> None:
    ack = KpAck(stream_id=7, selector=SLOT.selector, port=1, status=status)
    with pytest.raises(IdeKmError) as caught:
        key_prog(lambda payload: ack.pack(), SLOT, KEY)
    assert (caught.value.status, caught.value.errno) == (status, number)


def test_every_object_has_a_layout() -> None:
    assert set(ide_km.MESSAGES) == set(ObjectId)
