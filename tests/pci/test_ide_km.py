# SPDX-License-Identifier: MIT
"""The keys of ports, and the state of their streams that follows them."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterable
from dataclasses import dataclass, field

import pytest
from hypothesis import HealthCheck, settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, rule

from tsmfs.pci import regs
from tsmfs.pci.capability import Ide, add_capabilities
from tsmfs.pci.config import ConfigSpace
from tsmfs.pci.ide_km import DeviceKeySlots, IdePort
from tsmfs.pci.regs import field_get, field_prep
from tsmfs.spdm.ide_km import (
    KEY_SIZE,
    Direction,
    IdeKmError,
    KeySlot,
    KpAckStatus,
    SubStream,
    stream_slots,
)

STREAM = 5
SECURE, INSECURE = regs.PCI_IDE_SEL_STS_STATE_SECURE, regs.PCI_IDE_SEL_STS_STATE_INSECURE


@dataclass
class Port:
    """A port with keys, and what it told of lost streams."""

    ide: Ide = field(default_factory=lambda: Ide(nr_link_streams=1, nr_sel_streams=2))
    config: ConfigSpace = field(default_factory=ConfigSpace)
    lost: list[int] = field(default_factory=list)

    def __post_init__(self) -> None:
        (self.pos,) = add_capabilities(self.config, [self.ide])
        self.port = IdePort(self.config, self.pos, self.ide, segment=1, rid=0x0281)
        self.port.on_lost.append(self.lost.append)

    def enable(self, on: bool = True, index: int = 0, stream_id: int = STREAM) -> None:
        control = field_prep(regs.PCI_IDE_SEL_CTL_ID, stream_id) | on
        block = self.pos + self.ide.stream_offset(index)
        self.config.write(block + regs.PCI_IDE_SEL_CTL, 4, control)

    def status(self, index: int = 0) -> int:
        block = self.pos + self.ide.stream_offset(index)
        return self.config.read(block + regs.PCI_IDE_SEL_STS, 4)

    def state(self, index: int = 0) -> int:
        return field_get(regs.PCI_IDE_SEL_STS_STATE, self.status(index))


@dataclass
class Link:
    """An endpoint and its root port."""

    end: Port = field(default_factory=Port)
    root: Port = field(default_factory=Port)

    def __post_init__(self) -> None:
        self.end.port.partners.append(self.root.port)
        self.root.port.partners.append(self.end.port)

    def program(self, key_set: int = 0, slots: Iterable[KeySlot] | None = None) -> None:
        for slot in slots or stream_slots(0, STREAM, key_set):
            key = os.urandom(KEY_SIZE)
            self.end.port.program(slot, key)
            self.root.port.program(slot.partner(0), key)

    def go(self, key_set: int = 0) -> None:
        for slot in stream_slots(0, STREAM, key_set):
            self.end.port.go(slot)
            self.root.port.go(slot)

    def key(self) -> None:
        self.program()
        self.go()

    def enable(self) -> None:
        self.end.enable()
        self.root.enable()

    @property
    def states(self) -> tuple[int, int]:
        return self.end.state(), self.root.state()


@pytest.fixture
def link() -> Link:
    return Link()


def test_a_stream_without_keys_is_insecure_however_often_it_is_enabled(link: Link) -> None:
    link.enable()
    link.enable()
    assert link.states == (INSECURE, INSECURE)
    assert link.end.lost == []


@pytest.mark.parametrize("order", [("key", "enable"), ("enable", "key")])
def test_a_stream_is_secure_once_it_is_enabled_and_both_ends_use_their_keys(
    link: Link, order: tuple[str, str]
) -> None:
    for step in order:
        assert link.states == (INSECURE, INSECURE)
        getattr(link, step)()
    assert link.states == (SECURE, SECURE)
    assert link.end.port.secure_streams() == {STREAM}


def test_each_end_is_secure_only_while_it_is_enabled_itself(link: Link) -> None:
    link.key()
    link.end.enable()
    assert link.states == (SECURE, INSECURE)
    link.end.enable(False)
    assert link.states == (INSECURE, INSECURE)
    assert (link.end.lost, link.root.lost) == ([STREAM], [])


def test_programmed_keys_are_not_used_before_they_are_started(link: Link) -> None:
    link.enable()
    link.program()
    for slot in stream_slots(0, STREAM):
        link.end.port.go(slot)
        assert link.states == (INSECURE, INSECURE)
    for number, slot in enumerate(stream_slots(0, STREAM), 1):
        link.root.port.go(slot)
        assert link.states == ((SECURE, SECURE) if number == 6 else (INSECURE, INSECURE))


@pytest.mark.parametrize("end", ["end", "root"])
@pytest.mark.parametrize("slot", stream_slots(0, STREAM), ids=str)
def test_a_key_that_one_end_stops_is_lost_to_both(link: Link, end: str, slot: KeySlot) -> None:
    link.key()
    link.enable()
    getattr(link, end).port.stop(slot)
    assert link.states == (INSECURE, INSECURE)
    assert (link.end.lost, link.root.lost) == ([STREAM], [STREAM])


@pytest.mark.parametrize("slot", stream_slots(0, STREAM), ids=str)
def test_a_key_that_the_other_end_does_not_have_fails_the_check_of_integrity(
    link: Link, slot: KeySlot
) -> None:
    link.program()
    link.end.port.program(slot, os.urandom(KEY_SIZE))
    link.go()
    link.enable()
    assert link.states == (INSECURE, INSECURE)
    assert link.end.status() & regs.PCI_IDE_SEL_STS_IDE_FAIL
    assert link.root.status() & regs.PCI_IDE_SEL_STS_IDE_FAIL


def test_keys_are_changed_without_losing_the_stream(link: Link) -> None:
    link.key()
    link.enable()
    link.program(1)
    new = stream_slots(0, STREAM, 1)
    for direction in (Direction.RX, Direction.TX):
        for slot in new:
            if slot.direction is direction:
                link.end.port.go(slot)
                link.root.port.go(slot)
    for slot in stream_slots(0, STREAM, 0):
        link.end.port.stop(slot)
        link.root.port.stop(slot)
    assert link.states == (SECURE, SECURE)
    assert link.end.lost == link.root.lost == []


def test_the_sender_must_not_be_ahead_of_the_receiver(link: Link) -> None:
    link.key()
    link.enable()
    link.program(1)
    ahead = KeySlot(0, STREAM, 1, Direction.TX, SubStream.PR)
    link.end.port.go(ahead)
    assert link.states == (INSECURE, INSECURE)


@pytest.mark.parametrize("end", ["end", "root"])
def test_a_reset_of_either_port_loses_its_keys(link: Link, end: str) -> None:
    link.key()
    link.enable()
    getattr(link, end).config.reset()
    assert link.states == (INSECURE, INSECURE)
    assert link.end.lost == [STREAM]
    link.enable()
    assert link.states == (INSECURE, INSECURE)


def test_another_stream_id_in_the_register_is_another_stream(link: Link) -> None:
    link.key()
    link.enable()
    link.end.enable(stream_id=STREAM + 1)
    assert link.end.state() == INSECURE
    assert link.end.lost == [STREAM]


def test_the_second_block_is_a_stream_like_the_first(link: Link) -> None:
    link.key()
    link.end.enable(index=1)
    assert (link.end.state(0), link.end.state(1)) == (INSECURE, SECURE)


def test_a_port_without_a_partner_that_has_keys_answers_for_itself() -> None:
    alone = Port()
    alone.enable()
    for slot in stream_slots(0, STREAM):
        alone.port.program(slot, bytes(KEY_SIZE))
        alone.port.go(slot)
    assert alone.state() == SECURE


def refusal(call: Callable[[], object]) -> int:
    with pytest.raises(IdeKmError) as info:
        call()
    return info.value.status


def test_a_key_in_use_is_not_replaced(link: Link) -> None:
    link.key()
    slot = stream_slots(0, STREAM)[0]
    status = refusal(lambda: link.end.port.program(slot, bytes(KEY_SIZE)))
    assert status == KpAckStatus.UNSPECIFIED_FAILURE


def test_a_port_has_room_for_as_many_streams_as_it_has_register_blocks(link: Link) -> None:
    for stream_id in range(3):
        link.end.port.program(stream_slots(0, stream_id)[0], bytes(KEY_SIZE))
    fourth = stream_slots(0, 3)[0]
    status = refusal(lambda: link.end.port.program(fourth, bytes(KEY_SIZE)))
    assert status == KpAckStatus.UNSPECIFIED_FAILURE
    link.end.port.stop(stream_slots(0, 0)[0])
    link.end.port.program(fourth, bytes(KEY_SIZE))


def test_a_key_that_nobody_programmed_is_not_started_and_stopping_it_is_nothing(link: Link) -> None:
    slot = stream_slots(0, STREAM)[0]
    assert refusal(lambda: link.end.port.go(slot)) == KpAckStatus.UNSUPPORTED_VALUE
    link.end.port.stop(slot)


def test_a_query_tells_place_and_registers() -> None:
    port = Port()
    port.enable()
    info = DeviceKeySlots([port.port]).query(0)
    assert (info.segment, info.bus, info.dev_func, info.max_port) == (1, 0x02, 0x81, 0)
    start = port.pos + regs.PCI_IDE_CAP
    assert info.registers == port.config.read_bytes(start, port.ide.size - 4)
    assert len(info.registers) % 4 == 0


def test_a_device_has_the_ports_that_it_has() -> None:
    ports = [Port(), Port()]
    keys = DeviceKeySlots([port.port for port in ports])
    slot = stream_slots(1, STREAM)[0]
    keys.program(slot, bytes(KEY_SIZE), 1)
    keys.go(slot)
    keys.stop(slot)
    assert refusal(lambda: keys.query(2)) == KpAckStatus.UNSUPPORTED_PORT_INDEX
    assert refusal(lambda: ports[0].port.go(slot)) == KpAckStatus.UNSUPPORTED_VALUE


def test_no_representation_shows_a_key(link: Link) -> None:
    slot = stream_slots(0, STREAM)[0]
    link.end.port.program(slot, b"\xa5" * KEY_SIZE)
    link.end.port.go(slot)
    shown = repr((link.end.port, link.end.port._held, link.end.port._keys))
    assert "xa5" not in shown
    assert "\\xa5" not in shown


class KeyedLink(RuleBasedStateMachine):
    """Two ports under whatever is done to them, beside a model that thinks of packets."""

    def __init__(self) -> None:
        super().__init__()
        self.link = Link()
        self.ports = (self.link.end, self.link.root)
        self.held: list[dict[KeySlot, tuple[bytes, bool]]] = [{}, {}]
        self.sending: list[dict[int, int]] = [{}, {}]
        self.enabled = [False, False]

    slots = st.sampled_from([s for k in (0, 1) for s in stream_slots(0, STREAM, k)])

    @rule(slots=st.lists(slots, min_size=1, max_size=12), one=st.booleans(), two=st.booleans())
    def program(self, slots: list[KeySlot], one: bool, two: bool) -> None:
        for slot in slots:
            key = os.urandom(KEY_SIZE)
            for side, (wanted, place) in enumerate(((one, slot), (two, slot.partner(0)))):
                if not wanted:
                    continue
                in_use = self.held[side].get(place, (b"", False))[1]
                try:
                    self.ports[side].port.program(place, key)
                    assert not in_use
                    self.held[side][place] = key, False
                except IdeKmError:
                    assert in_use

    @rule(side=st.sampled_from([0, 1]), slots=st.lists(slots, min_size=1, max_size=12))
    def go(self, side: int, slots: list[KeySlot]) -> None:
        for slot in slots:
            try:
                self.ports[side].port.go(slot)
            except IdeKmError:
                assert slot not in self.held[side]
                continue
            self.held[side][slot] = self.held[side][slot][0], True
            if slot.direction is Direction.TX:
                self.sending[side][slot.sub_stream] = slot.key_set

    @rule(side=st.sampled_from([0, 1]), slot=slots)
    def stop(self, side: int, slot: KeySlot) -> None:
        self.ports[side].port.stop(slot)
        known = self.held[side].pop(slot, None)
        current = self.sending[side].get(slot.sub_stream) == slot.key_set
        if known and slot.direction is Direction.TX and current:
            del self.sending[side][slot.sub_stream]

    @rule()
    def key_everything(self) -> None:
        self.program(list(stream_slots(0, STREAM)), True, True)
        for side in (0, 1):
            self.go(side, list(stream_slots(0, STREAM)))

    @rule(side=st.sampled_from([0, 1]), on=st.booleans())
    def enable(self, side: int, on: bool) -> None:
        self.ports[side].enable(on)
        self.enabled[side] = on

    @rule(side=st.sampled_from([0, 1]))
    def reset(self, side: int) -> None:
        self.ports[side].config.reset()
        self.held[side].clear()
        self.sending[side].clear()
        self.enabled[side] = False

    def arrives(self, side: int) -> bool:
        """Whether a packet of each kind from this side can be read at the other."""
        for sub_stream in range(3):
            key_set = self.sending[side].get(sub_stream)
            if key_set is None:
                return False
            slot = next(
                s
                for s in stream_slots(0, STREAM, key_set)
                if (s.direction, s.sub_stream) == (Direction.TX, sub_stream)
            )
            theirs = self.held[1 - side].get(slot.partner(0))
            if theirs is None or theirs != (self.held[side][slot][0], True):
                return False
        return True

    @invariant()
    def the_registers_tell_whether_packets_arrive(self) -> None:
        protected = self.arrives(0) and self.arrives(1)
        for port, enabled in zip(self.ports, self.enabled, strict=True):
            assert (port.state() == SECURE) == (protected and enabled)
            assert port.port.secure_streams() == ({STREAM} if protected and enabled else set())


TestKeyedLink = KeyedLink.TestCase
TestKeyedLink.settings = settings(
    max_examples=60,
    stateful_step_count=25,
    suppress_health_check=list(HealthCheck),
)
