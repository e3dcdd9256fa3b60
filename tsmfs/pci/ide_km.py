# SPDX-License-Identifier: MIT
"""The keys of IDE streams in the hardware of ports, and the state of streams that follows them.

PCI Express Base Specification 7.0, 6.33.3. A selective stream reads as secure while it is enabled,
and what either end sends is under a key that the other end has for it.
"""

from __future__ import annotations

import threading
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import partial

from tsmfs.pci import regs
from tsmfs.pci.capability import Ide, set_stream_state
from tsmfs.pci.config import ConfigSpace
from tsmfs.pci.regs import field_get
from tsmfs.spdm.ide_km import (
    Direction,
    IdeKmError,
    KeySlot,
    KpAckStatus,
    PortInfo,
    SubStream,
    stream_slots,
)


@dataclass(frozen=True, slots=True)
class _Keys:
    """The keys in use of one port, replaced whole, so that a reader needs no lock."""

    used: Mapping[KeySlot, bytes] = field(default_factory=dict, repr=False)
    sending: Mapping[tuple[int, SubStream], int] = field(default_factory=dict)
    """Key set that is sent under, by stream and sub-stream: that of the last K_SET_GO."""

    def feeds(self, other: _Keys, stream_id: int) -> bool:
        """Whether *other* can read all that this port sends in the stream."""
        for sub_stream in SubStream:
            key_set = self.sending.get((stream_id, sub_stream))
            if key_set is None:
                return False
            slot = KeySlot(0, stream_id, key_set, Direction.TX, sub_stream)
            if other.used.get(slot.partner(0)) != self.used[slot]:
                return False
        return True

    def complete(self, stream_id: int) -> bool:
        """Whether one key set of the stream is in use for all sub-streams."""
        return any(
            all(slot in self.used for slot in stream_slots(0, stream_id, key_set))
            for key_set in (0, 1)
        )


@dataclass(slots=True)
class _Held:
    key: bytes = field(repr=False)
    in_use: bool = False


class IdePort:
    """The keys that one port holds, behind its IDE capability.

    Keys come by IDE_KM, or from the platform itself for a root port. `partners` are the ports at
    the other ends of its streams.
    """

    __slots__ = (
        "_bdf",
        "_config",
        "_held",
        "_ide",
        "_keys",
        "_lock",
        "_pos",
        "_secure",
        "on_lost",
        "partners",
    )

    def __init__(
        self, config: ConfigSpace, pos: int, ide: Ide, *, segment: int = 0, rid: int = 0
    ) -> None:
        """Become the hardware behind the IDE capability *ide* at *pos* of *config*.

        *segment* and *rid*, the routing ID, are where the port is, for QUERY.
        """
        self._config = config
        self._pos = pos
        self._ide = ide
        self._bdf = (segment, rid)
        self._lock = threading.Lock()
        self._held: dict[KeySlot, _Held] = {}
        self._keys = _Keys()
        self._secure: frozenset[int] = frozenset()
        self.partners: list[IdePort] = []
        self.on_lost: list[Callable[[int], None]] = []
        """Called with the ID of each stream that was secure and is so no more."""
        for index in range(ide.nr_sel_streams):
            block = pos + ide.stream_offset(index)
            # Behind the capability's own hook, which knows of no keys.
            config.on_write(block + regs.PCI_IDE_SEL_CTL, 4, partial(self._control_written, block))
        config.on_reset(self._reset)

    def query(self, port: int = 0, max_port: int = 0) -> PortInfo:
        """What QUERY tells of the port, as the *port*-th of a device."""
        segment, rid = self._bdf
        start = self._pos + regs.PCI_IDE_CAP
        registers = self._config.read_bytes(start, self._pos + self._ide.size - start)
        return PortInfo(port, rid & 0xFF, rid >> 8 & 0xFF, segment & 0xFF, max_port, registers)

    def program(self, slot: KeySlot, key: bytes) -> None:
        """Hold *key* for *slot*, not yet in use.

        IdeKmError when the slot's key is in use, or there are keys for more streams than the
        port has register blocks.
        """
        slot = _at_home(slot)
        with self._lock:
            held = self._held.get(slot)
            if held is not None and held.in_use:
                raise IdeKmError(KpAckStatus.UNSPECIFIED_FAILURE, "the key is in use")
            streams = {other.stream_id for other in self._held} | {slot.stream_id}
            if len(streams) > self._ide.nr_sel_streams + self._ide.nr_link_streams:
                raise IdeKmError(KpAckStatus.UNSPECIFIED_FAILURE, "no room for another stream")
            self._held[slot] = _Held(key)

    def go(self, slot: KeySlot) -> None:
        """Use the key in *slot*; IdeKmError when there is none."""
        slot = _at_home(slot)
        with self._lock:
            held = self._held.get(slot)
            if held is None:
                raise IdeKmError(KpAckStatus.UNSUPPORTED_VALUE, "no key was programmed")
            held.in_use = True
            sending = dict(self._keys.sending)
            if slot.direction is Direction.TX:
                sending[slot.stream_id, slot.sub_stream] = slot.key_set
            self._publish(sending)
        self._settle_link()

    def stop(self, slot: KeySlot) -> None:
        """Stop using the key in *slot* and forget it; nothing without one."""
        slot = _at_home(slot)
        with self._lock:
            if self._held.pop(slot, None) is None:
                return
            sending = dict(self._keys.sending)
            place = slot.stream_id, slot.sub_stream
            if slot.direction is Direction.TX and sending.get(place) == slot.key_set:
                del sending[place]
            self._publish(sending)
        self._settle_link()

    def secure_streams(self) -> frozenset[int]:
        """IDs of the streams that are secure."""
        return self._secure

    def _publish(self, sending: Mapping[tuple[int, SubStream], int]) -> None:
        used = {slot: held.key for slot, held in self._held.items() if held.in_use}
        self._keys = _Keys(used, sending)

    def _protects(self, stream_id: int) -> bool:
        """Whether the keys make the stream secure."""
        mine = self._keys
        if not self.partners:
            return mine.complete(stream_id)
        theirs = (partner._keys for partner in self.partners)
        return any(mine.feeds(keys, stream_id) and keys.feeds(mine, stream_id) for keys in theirs)

    def _fails(self, stream_id: int) -> bool:
        """Whether both ends have all keys, which are not each other's."""
        return self._keys.complete(stream_id) and any(
            partner._keys.complete(stream_id) for partner in self.partners
        )

    def _control_written(self, block: int, _old: int, new: int) -> int:
        self._show_state(block, new)
        self._config.defer(self._settle)
        return new

    def _show_state(self, block: int, control: int) -> bool:
        stream_id = field_get(regs.PCI_IDE_SEL_CTL_ID, control)
        enabled = bool(control & regs.PCI_IDE_SEL_CTL_EN)
        secure = enabled and self._protects(stream_id)
        state = regs.PCI_IDE_SEL_STS_STATE_SECURE if secure else regs.PCI_IDE_SEL_STS_STATE_INSECURE
        set_stream_state(self._config, block, state)
        if enabled and not secure and self._fails(stream_id):
            pos = block + regs.PCI_IDE_SEL_STS
            status = self._config.read(pos, 4) | regs.PCI_IDE_SEL_STS_IDE_FAIL
            self._config.set(pos, 4, status)
        return secure

    def _settle(self) -> None:
        """Have every status register, and those who listen, know of the keys as they are."""
        with self._config.atomic():
            secure = set()
            for index in range(self._ide.nr_sel_streams):
                block = self._pos + self._ide.stream_offset(index)
                control = self._config.read(block + regs.PCI_IDE_SEL_CTL, 4)
                # A stream that is not enabled has been insecure since it was disabled.
                if control & regs.PCI_IDE_SEL_CTL_EN and self._show_state(block, control):
                    secure.add(field_get(regs.PCI_IDE_SEL_CTL_ID, control))
            lost = self._secure - secure
            self._secure = frozenset(secure)
        for stream_id in sorted(lost):
            for listener in self.on_lost:
                listener(stream_id)

    def _settle_link(self) -> None:
        for port in (self, *self.partners):
            port._settle()

    def _reset(self) -> None:
        with self._lock:
            self._held.clear()
            self._publish({})
        self._config.defer(self._settle_link)


def _at_home(slot: KeySlot) -> KeySlot:
    """*slot* without the index that its port has in a device."""
    return KeySlot(0, slot.stream_id, slot.key_set, slot.direction, slot.sub_stream)


class DeviceKeySlots:
    """`KeySlots` of a device: its ports by their index."""

    def __init__(self, ports: Sequence[IdePort]) -> None:
        self._ports = tuple(ports)

    def query(self, port: int) -> PortInfo:
        """Place and registers of a port; IdeKmError without one of that index."""
        return self._port(port).query(port, len(self._ports) - 1)

    def program(self, slot: KeySlot, key: bytes, ifv: int) -> None:
        """As `IdePort.program`; every key starts with the one invocation field there is."""
        self._port(slot.port).program(slot, key)

    def go(self, slot: KeySlot) -> None:
        """As `IdePort.go`."""
        self._port(slot.port).go(slot)

    def stop(self, slot: KeySlot) -> None:
        """As `IdePort.stop`."""
        self._port(slot.port).stop(slot)

    def _port(self, index: int) -> IdePort:
        if index >= len(self._ports):
            raise IdeKmError(KpAckStatus.UNSUPPORTED_PORT_INDEX, f"no port {index}")
        return self._ports[index]
