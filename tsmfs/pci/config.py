# SPDX-License-Identifier: MIT
"""The configuration space of one emulated PCI function, as its hardware holds it.

`ConfigSpace` is a register file: which bits software may write (RW), which it clears by writing a
one (RW1C), and hooks for registers that do more than store. `Header0`, `Header1` and `HeaderVf`
lay out the standard header (PCI Express Base Specification 7.0, 7.5.1 and 9.3.4.1).
"""

from __future__ import annotations

import contextlib
import enum
import threading
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Protocol, TypeAlias, runtime_checkable

from tsmfs.pci.regs import (
    PCI_BASE_ADDRESS_0,
    PCI_BASE_ADDRESS_IO_MASK,
    PCI_BASE_ADDRESS_MEM_MASK,
    PCI_BASE_ADDRESS_MEM_PREFETCH,
    PCI_BASE_ADDRESS_MEM_TYPE_64,
    PCI_BASE_ADDRESS_MEM_TYPE_MASK,
    PCI_BASE_ADDRESS_SPACE_IO,
    PCI_BRIDGE_CONTROL,
    PCI_BRIDGE_CTL_BUS_RESET,
    PCI_BRIDGE_CTL_ISA,
    PCI_BRIDGE_CTL_MASTER_ABORT,
    PCI_BRIDGE_CTL_PARITY,
    PCI_BRIDGE_CTL_SERR,
    PCI_BRIDGE_CTL_VGA,
    PCI_CACHE_LINE_SIZE,
    PCI_CFG_SPACE_EXP_SIZE,
    PCI_CFG_SPACE_SIZE,
    PCI_CLASS_REVISION,
    PCI_COMMAND,
    PCI_COMMAND_INTX_DISABLE,
    PCI_COMMAND_IO,
    PCI_COMMAND_MASTER,
    PCI_COMMAND_MEMORY,
    PCI_COMMAND_PARITY,
    PCI_COMMAND_SERR,
    PCI_HEADER_TYPE,
    PCI_HEADER_TYPE_BRIDGE,
    PCI_HEADER_TYPE_MFD,
    PCI_HEADER_TYPE_NORMAL,
    PCI_INTERRUPT_LINE,
    PCI_INTERRUPT_PIN,
    PCI_IO_BASE,
    PCI_IO_BASE_UPPER16,
    PCI_IO_LIMIT,
    PCI_IO_LIMIT_UPPER16,
    PCI_IO_RANGE_MASK,
    PCI_IO_RANGE_TYPE_32,
    PCI_MEMORY_BASE,
    PCI_MEMORY_LIMIT,
    PCI_MEMORY_RANGE_MASK,
    PCI_PREF_BASE_UPPER32,
    PCI_PREF_LIMIT_UPPER32,
    PCI_PREF_MEMORY_BASE,
    PCI_PREF_MEMORY_LIMIT,
    PCI_PREF_RANGE_MASK,
    PCI_PREF_RANGE_TYPE_64,
    PCI_PRIMARY_BUS,
    PCI_SEC_STATUS,
    PCI_SECONDARY_BUS,
    PCI_STATUS,
    PCI_STATUS_DETECTED_PARITY,
    PCI_STATUS_PARITY,
    PCI_STATUS_REC_MASTER_ABORT,
    PCI_STATUS_REC_TARGET_ABORT,
    PCI_STATUS_SIG_SYSTEM_ERROR,
    PCI_STATUS_SIG_TARGET_ABORT,
    PCI_STD_NUM_BARS,
    PCI_SUBORDINATE_BUS,
    PCI_SUBSYSTEM_VENDOR_ID,
    PCI_VENDOR_ID,
)

ReadHook: TypeAlias = Callable[[int], int]
"""Gets the stored value of a register, returns the value that software reads."""

WriteHook: TypeAlias = Callable[[int, int], int]
"""Gets the old value of a register and the one about to be stored, returns the one to store."""

_SIZE_MASK = {1: 0xFF, 2: 0xFFFF, 4: 0xFFFF_FFFF}

# The register file is grown in steps, so that defining registers one by one copies it rarely.
_GROWTH = 64

_STATUS_RW1C = (
    PCI_STATUS_PARITY
    | PCI_STATUS_SIG_TARGET_ABORT
    | PCI_STATUS_REC_TARGET_ABORT
    | PCI_STATUS_REC_MASTER_ABORT
    | PCI_STATUS_SIG_SYSTEM_ERROR
    | PCI_STATUS_DETECTED_PARITY
)


class ConfigAccess(Protocol):
    """What software sees of a configuration space: its size and naturally aligned accesses."""

    @property
    def size(self) -> int:
        """Bytes in the configuration space: 256, or 4096 for PCI Express."""

    def read(self, pos: int, size: int) -> int:
        """Return the register of `size` bytes (1, 2 or 4) at `pos`."""

    def write(self, pos: int, size: int, value: int) -> None:
        """Write the register of `size` bytes (1, 2 or 4) at `pos`."""


@runtime_checkable
class ConfigStream(ConfigAccess, Protocol):
    """One in which many accesses to a register of 4 bytes go faster together."""

    def write_stream(self, pos: int, dwords: Iterable[int]) -> None:
        """Write each of `dwords` to the register at `pos`."""

    def read_stream(self, pos: int, count: int) -> list[int]:
        """Read the register at `pos` `count` times, and write zero to it after each."""


class ConfigSpace:
    """The register file of one function. Every method may be called from any thread.

    Bytes that nothing defines read as zero and ignore writes, as the specification asks of
    reserved registers (7.2). Hooks run with the space's lock held: they may use `read`, `set` and
    `defer`, and must not block or `write`. Work that may block belongs in `defer`.
    """

    __slots__ = (
        "_deferred",
        "_image",
        "_live",
        "_lock",
        "_read_hooks",
        "_reset_hooks",
        "_rw",
        "_rw1c",
        "_size",
        "_write_hooks",
    )

    def __init__(self, size: int = PCI_CFG_SPACE_EXP_SIZE) -> None:
        """Make an empty space of `size` bytes: 256 or 4096; ValueError for any other size."""
        if size not in (PCI_CFG_SPACE_SIZE, PCI_CFG_SPACE_EXP_SIZE):
            raise ValueError(f"a configuration space has 256 or 4096 bytes, not {size}")
        self._size = size
        self._lock = threading.RLock()
        # Both end at the last defined register: most functions use a tenth of their 4 KiB.
        self._live = bytearray()
        self._image = bytearray()
        # Dword index to mask, for the dwords with any such bit.
        self._rw: dict[int, int] = {}
        self._rw1c: dict[int, int] = {}
        # Dword index to (shift of the register in the dword, mask of its value, hook).
        self._read_hooks: dict[int, tuple[tuple[int, int, ReadHook], ...]] = {}
        self._write_hooks: dict[int, tuple[tuple[int, int, WriteHook], ...]] = {}
        self._reset_hooks: tuple[Callable[[], None], ...] = ()
        self._deferred: tuple[Callable[[], None], ...] = ()

    @property
    def size(self) -> int:
        """Bytes in the space."""
        return self._size

    # Software's side

    def read(self, pos: int, size: int) -> int:
        """Return the little-endian value of `size` bytes (1, 2 or 4) at `pos`.

        Raises ValueError when the access is not naturally aligned or not inside the space.
        """
        self._check(pos, size)
        with self._lock:
            if pos >> 2 in self._read_hooks:
                return self._hooked_dword(pos >> 2) >> (pos & 3) * 8 & _SIZE_MASK[size]
            return int.from_bytes(self._live[pos : pos + size], "little")

    def write(self, pos: int, size: int, value: int) -> None:
        """Write the low `size` bytes (1, 2 or 4) of `value` at `pos` as a bus access would.

        Bits that are neither RW nor RW1C keep their value. Raises ValueError when the access is
        not naturally aligned or not inside the space, and what a deferred action raises.
        """
        self._check(pos, size)
        index, shift = pos >> 2, (pos & 3) * 8
        enabled = _SIZE_MASK[size] << shift
        data = value << shift & enabled
        with self._lock:
            rw = self._rw.get(index, 0) & enabled
            ones = self._rw1c.get(index, 0) & data
            hooks = self._write_hooks.get(index, ())
            if not rw and not ones and not hooks:
                return
            start = index * 4
            self._reserve(start + 4)
            old = int.from_bytes(self._live[start : start + 4], "little")
            new = (old & ~rw | data & rw) & ~ones
            for at, mask, hook in hooks:
                if mask << at & enabled:
                    stored = hook(old >> at & mask, new >> at & mask) & mask
                    new = new & ~(mask << at) | stored << at
            if new != old:
                self._live[start : start + 4] = new.to_bytes(4, "little")
            if not self._deferred:
                return
            actions = self._take_deferred()
        for action in actions:
            action()

    def read_bytes(self, offset: int, count: int) -> bytes:
        """Return up to `count` bytes from `offset`; fewer, or none, at the end of the space."""
        end = min(offset + count, self._size)
        if end <= offset:
            return b""
        with self._lock:
            data = self._live[offset:end]
            data.extend(bytes(end - offset - len(data)))
            for index in self._read_hooks:
                first, last = max(index * 4, offset), min(index * 4 + 4, end)
                if first < last:
                    dword = self._hooked_dword(index).to_bytes(4, "little")
                    data[first - offset : last - offset] = dword[first & 3 : last - index * 4]
        return bytes(data)

    def write_bytes(self, offset: int, data: bytes) -> int:
        """Write `data` from `offset` on; return how many of its bytes lie inside the space.

        The accesses are those of Linux's ``pci_write_config()``: a byte and a word up to dword
        alignment, then dwords, then what is left as a word and a byte.
        """
        pos, end = offset, min(offset + len(data), self._size)
        while pos < end:
            if pos & 1 or end - pos == 1:
                size = 1
            elif pos & 2 or end - pos < 4:
                size = 2
            else:
                size = 4
            self.write(
                pos, size, int.from_bytes(data[pos - offset : pos - offset + size], "little")
            )
            pos += size
        return max(end - offset, 0)

    def write_stream(self, pos: int, dwords: Iterable[int]) -> None:
        """Write `dwords` to the register of 4 bytes at `pos`, one after the other.

        As `write` for each, but that no other access comes in between, and that the register's
        own hooks must not `set` it. Raises ValueError as `write` does, and what a deferred action
        raises.
        """
        self._check(pos, 4)
        with self._lock:
            rw, rw1c = self._rw.get(pos >> 2, 0), self._rw1c.get(pos >> 2, 0)
            hooks = self._write_hooks.get(pos >> 2, ())
            if not rw and not rw1c and not hooks:
                return
            self._reserve(pos + 4)
            live = int.from_bytes(self._live[pos : pos + 4], "little")
            store = _whole(hooks) or partial(self._merged, hooks)
            for dword in dwords:
                live = store(live, (live & ~rw | dword & rw) & ~(dword & rw1c)) & _SIZE_MASK[4]
            self._live[pos : pos + 4] = live.to_bytes(4, "little")
            actions = self._take_deferred()
        for action in actions:
            action()

    def read_stream(self, pos: int, count: int) -> list[int]:
        """Read the register of 4 bytes at `pos` `count` times, and write zero to it after each.

        So a register is read that goes on when it is written; else as `write_stream`.
        """
        self._check(pos, 4)
        taken: list[int] = []
        with self._lock:
            keep = ~self._rw.get(pos >> 2, 0)
            hooks = self._write_hooks.get(pos >> 2, ())
            if pos >> 2 in self._read_hooks:
                raise ValueError(f"the register at {pos:#x} is made up at each read")
            self._reserve(pos + 4)
            live = int.from_bytes(self._live[pos : pos + 4], "little")
            store = _whole(hooks) or partial(self._merged, hooks)
            for _ in range(count):
                taken.append(live)
                live = store(live, live & keep) & _SIZE_MASK[4]
            self._live[pos : pos + 4] = live.to_bytes(4, "little")
            actions = self._take_deferred()
        for action in actions:
            action()
        return taken

    # The hardware's side

    def define(self, pos: int, size: int, value: int, rw_mask: int = 0, rw1c_mask: int = 0) -> None:
        """Make the `size` bytes at `pos` a register that is `value` after power-on.

        `rw_mask` and `rw1c_mask` are relative to the register and replace earlier ones of these
        bytes. Raises ValueError when they overlap, or for an access that `write` would refuse.
        """
        self._check(pos, size)
        if rw_mask & rw1c_mask:
            raise ValueError(f"bits {rw_mask & rw1c_mask:#x} at {pos:#x} are both RW and RW1C")
        index, shift = pos >> 2, (pos & 3) * 8
        enabled = _SIZE_MASK[size] << shift
        data = value.to_bytes(size, "little")
        with self._lock:
            self._reserve(pos + size)
            self._live[pos : pos + size] = data
            self._image[pos : pos + size] = data
            for masks, mask in ((self._rw, rw_mask), (self._rw1c, rw1c_mask)):
                merged = masks.get(index, 0) & ~enabled | mask << shift & enabled
                if merged:
                    masks[index] = merged
                else:
                    masks.pop(index, None)

    def set(self, pos: int, size: int, value: int) -> None:
        """Store `value` in the `size` bytes at `pos`, whatever the masks; no hook runs.

        Raises ValueError as `read` does, OverflowError when `value` does not fit.
        """
        self._check(pos, size)
        data = value.to_bytes(size, "little")
        with self._lock:
            self._reserve(pos + size)
            self._live[pos : pos + size] = data

    def on_read(self, pos: int, size: int, callback: ReadHook) -> None:
        """Have `callback` make up the value of the register of `size` bytes at `pos`."""
        self._check(pos, size)
        entry = ((pos & 3) * 8, _SIZE_MASK[size], callback)
        with self._lock:
            self._read_hooks[pos >> 2] = (*self._read_hooks.get(pos >> 2, ()), entry)

    def on_write(self, pos: int, size: int, callback: WriteHook) -> None:
        """Have `callback` decide what a write to the register of `size` bytes at `pos` stores.

        It runs for accesses that touch at least one of these bytes, with the masks applied.
        """
        self._check(pos, size)
        entry = ((pos & 3) * 8, _SIZE_MASK[size], callback)
        with self._lock:
            self._write_hooks[pos >> 2] = (*self._write_hooks.get(pos >> 2, ()), entry)

    def on_reset(self, callback: Callable[[], None]) -> None:
        """Have `callback` run at each `reset`, while the registers still hold their old values."""
        with self._lock:
            self._reset_hooks = (*self._reset_hooks, callback)

    def defer(self, action: Callable[[], None]) -> None:
        """From a hook: run `action` in the same thread once the lock is free again.

        It runs before the `write` or `reset` that led to the hook returns.
        """
        with self._lock:
            self._deferred = (*self._deferred, action)

    def atomic(self) -> contextlib.AbstractContextManager[bool]:
        """Return a context in which no other thread's access comes between this one's.

        For hardware that changes several registers at once, outside a hook.
        """
        return self._lock

    def reset(self) -> None:
        """Return every register to its power-on value; what `set` stored is lost."""
        with self._lock:
            for callback in self._reset_hooks:
                callback()
            self._live[:] = self._image
            actions = self._take_deferred()
        for action in actions:
            action()

    def rw_mask(self, pos: int, size: int) -> int:
        """Return which bits of the register of `size` bytes at `pos` software may write."""
        self._check(pos, size)
        return self._rw.get(pos >> 2, 0) >> (pos & 3) * 8 & _SIZE_MASK[size]

    def rw1c_mask(self, pos: int, size: int) -> int:
        """Return which bits of the register of `size` bytes at `pos` a write of one clears."""
        self._check(pos, size)
        return self._rw1c.get(pos >> 2, 0) >> (pos & 3) * 8 & _SIZE_MASK[size]

    def _check(self, pos: int, size: int) -> None:
        if size not in _SIZE_MASK or pos & (size - 1) or not 0 <= pos <= self._size - size:
            raise ValueError(f"bad configuration access: {size} bytes at {pos:#x}")

    def _reserve(self, end: int) -> None:
        missing = end - len(self._live)
        if missing > 0:
            zeros = bytes(missing + -end % _GROWTH)
            self._live.extend(zeros)
            self._image.extend(zeros)

    def _hooked_dword(self, index: int) -> int:
        value = int.from_bytes(self._live[index * 4 : index * 4 + 4], "little")
        for at, mask, hook in self._read_hooks[index]:
            value = value & ~(mask << at) | (hook(value >> at & mask) & mask) << at
        return value

    @staticmethod
    def _merged(hooks: tuple[tuple[int, int, WriteHook], ...], old: int, new: int) -> int:
        for at, mask, hook in hooks:
            stored = hook(old >> at & mask, new >> at & mask) & mask
            new = new & ~(mask << at) | stored << at
        return new

    def _take_deferred(self) -> tuple[Callable[[], None], ...]:
        actions, self._deferred = self._deferred, ()
        return actions


def _whole(hooks: tuple[tuple[int, int, WriteHook], ...]) -> WriteHook | None:
    """The hook of a register of 4 bytes that has one alone, for all of its bits."""
    return hooks[0][2] if len(hooks) == 1 and hooks[0][:2] == (0, _SIZE_MASK[4]) else None


@dataclass(frozen=True, slots=True)
class Bar:
    """A base address register, 7.5.1.2.1: `index` 0..5, `size` in bytes, a power of two."""

    index: int
    size: int
    is_64bit: bool = False
    prefetchable: bool = False
    is_io: bool = False

    def __post_init__(self) -> None:
        """Refuse what no hardware can have, with ValueError."""
        smallest = 4 if self.is_io else 16
        largest = 1 << (63 if self.is_64bit else 31)
        if self.size & (self.size - 1) or not smallest <= self.size <= largest:
            raise ValueError(f"BAR {self.index} cannot be {self.size:#x} bytes")
        if self.is_io and (self.is_64bit or self.prefetchable):
            raise ValueError(f"I/O BAR {self.index} can be neither 64-bit nor prefetchable")

    @property
    def slots(self) -> int:
        """Base address registers taken: two for a 64-bit BAR."""
        return 2 if self.is_64bit else 1

    def write(self, config: ConfigSpace, base: int = PCI_BASE_ADDRESS_0) -> None:
        """Lay the BAR out in `config`, whose BAR 0 is at `base`; its address is 0."""
        pos = base + 4 * self.index
        writable = -self.size
        if self.is_io:
            config.define(
                pos, 4, PCI_BASE_ADDRESS_SPACE_IO, rw_mask=writable & PCI_BASE_ADDRESS_IO_MASK
            )
            return
        flags = PCI_BASE_ADDRESS_MEM_PREFETCH if self.prefetchable else 0
        if self.is_64bit:
            flags |= PCI_BASE_ADDRESS_MEM_TYPE_64
            config.define(pos + 4, 4, 0, rw_mask=writable >> 32 & 0xFFFF_FFFF)
        config.define(pos, 4, flags, rw_mask=writable & PCI_BASE_ADDRESS_MEM_MASK)


def write_bars(
    config: ConfigSpace,
    bars: Sequence[Bar],
    base: int = PCI_BASE_ADDRESS_0,
    count: int = PCI_STD_NUM_BARS,
) -> None:
    """Lay `bars` out in the `count` base address registers at `base`.

    Raises ValueError when two of them share a register or one lies outside.
    """
    taken: set[int] = set()
    for bar in bars:
        indices = set(range(bar.index, bar.index + bar.slots))
        if taken & indices or min(indices) < 0 or max(indices) >= count:
            raise ValueError(f"no room for BAR {bar.index}")
        taken |= indices
        bar.write(config, base)


def bar_address(config: ConfigAccess, index: int, base: int = PCI_BASE_ADDRESS_0) -> int:
    """Return the address in BAR `index` of the registers at `base`; 0 when it has none yet."""
    pos = base + 4 * index
    low = config.read(pos, 4)
    if low & PCI_BASE_ADDRESS_SPACE_IO:
        return low & PCI_BASE_ADDRESS_IO_MASK
    address = low & PCI_BASE_ADDRESS_MEM_MASK
    if low & PCI_BASE_ADDRESS_MEM_TYPE_MASK == PCI_BASE_ADDRESS_MEM_TYPE_64:
        address |= config.read(pos + 4, 4) << 32
    return address


def set_bar_address(
    config: ConfigAccess, index: int, address: int, base: int = PCI_BASE_ADDRESS_0
) -> None:
    """Program BAR `index` of the registers at `base` with `address`, as software does.

    Raises ValueError when the BAR does not hold it: not implemented, or address not aligned.
    """
    pos = base + 4 * index
    low = config.read(pos, 4)
    config.write(pos, 4, address & 0xFFFF_FFFF)
    is_64bit = low & (PCI_BASE_ADDRESS_MEM_TYPE_MASK | PCI_BASE_ADDRESS_SPACE_IO)
    if is_64bit == PCI_BASE_ADDRESS_MEM_TYPE_64:
        config.write(pos + 4, 4, address >> 32)
    if bar_address(config, index, base) != address:
        raise ValueError(f"BAR {index} cannot hold {address:#x}")


def _define_common(
    config: ConfigSpace,
    *,
    vendor: int,
    device: int,
    command: int,
    revision: int,
    class_code: int,
    header_type: int,
) -> None:
    config.define(PCI_VENDOR_ID, 4, vendor | device << 16)
    config.define(PCI_COMMAND, 2, 0, rw_mask=command)
    config.define(PCI_STATUS, 2, 0, rw1c_mask=_STATUS_RW1C)
    config.define(PCI_CLASS_REVISION, 4, class_code << 8 | revision)
    config.define(PCI_CACHE_LINE_SIZE, 1, 0, rw_mask=0xFF)
    config.define(PCI_HEADER_TYPE, 1, header_type)


def _bar_command(bars: Sequence[Bar]) -> int:
    command = 0
    for bar in bars:
        command |= PCI_COMMAND_IO if bar.is_io else PCI_COMMAND_MEMORY
    return command


_COMMAND_COMMON = (
    PCI_COMMAND_MASTER | PCI_COMMAND_PARITY | PCI_COMMAND_SERR | PCI_COMMAND_INTX_DISABLE
)


@dataclass(frozen=True, slots=True)
class Header0:
    """Type 0 header of an endpoint, 7.5.1.2.

    `class_code` has 24 bits: base class, sub-class and programming interface. `interrupt_pin` is
    0 for none, 1..4 for INTA..INTD.
    """

    vendor: int
    device: int
    revision: int = 0
    class_code: int = 0
    subsystem_vendor: int = 0
    subsystem_device: int = 0
    bars: Sequence[Bar] = ()
    multifunction: bool = False
    interrupt_pin: int = 0

    def write(self, config: ConfigSpace) -> None:
        """Define the header's registers in `config`; ValueError for BARs that overlap."""
        _define_common(
            config,
            vendor=self.vendor,
            device=self.device,
            command=_COMMAND_COMMON | _bar_command(self.bars),
            revision=self.revision,
            class_code=self.class_code,
            header_type=PCI_HEADER_TYPE_NORMAL | (PCI_HEADER_TYPE_MFD if self.multifunction else 0),
        )
        write_bars(config, self.bars)
        config.define(
            PCI_SUBSYSTEM_VENDOR_ID, 4, self.subsystem_vendor | self.subsystem_device << 16
        )
        config.define(PCI_INTERRUPT_LINE, 1, 0, rw_mask=0xFF)
        config.define(PCI_INTERRUPT_PIN, 1, self.interrupt_pin)


@dataclass(frozen=True, slots=True)
class HeaderVf:
    """Header of an SR-IOV virtual function, 9.3.4.1.

    Vendor and device read as all ones, there are no BARs and no INTx: those come from the
    physical function. Only Bus Master Enable is writable in the command register.
    """

    revision: int = 0
    class_code: int = 0
    subsystem_vendor: int = 0
    subsystem_device: int = 0

    def write(self, config: ConfigSpace) -> None:
        """Define the header's registers in `config`."""
        _define_common(
            config,
            vendor=0xFFFF,
            device=0xFFFF,
            command=PCI_COMMAND_MASTER,
            revision=self.revision,
            class_code=self.class_code,
            header_type=PCI_HEADER_TYPE_NORMAL,
        )
        config.define(PCI_CACHE_LINE_SIZE, 1, 0)
        config.define(
            PCI_SUBSYSTEM_VENDOR_ID, 4, self.subsystem_vendor | self.subsystem_device << 16
        )


class BridgeWindow(enum.Enum):
    """The three address windows of a bridge, 7.5.1.3."""

    IO = "io"
    MEMORY = "memory"
    PREFETCHABLE = "prefetchable"


@dataclass(frozen=True, slots=True)
class Header1:
    """Type 1 header of a port or bridge, 7.5.1.3; its windows are closed after power-on.

    `forwards_io` says whether the I/O window exists; without it its registers are zero and
    read-only, and so is I/O Space Enable unless a BAR needs it.
    """

    vendor: int
    device: int
    revision: int = 0
    class_code: int = 0x060400
    bars: Sequence[Bar] = ()
    multifunction: bool = False
    interrupt_pin: int = 0
    primary: int = 0
    secondary: int = 0
    subordinate: int = 0
    forwards_io: bool = True

    def write(self, config: ConfigSpace) -> None:
        """Define the header's registers in `config`; ValueError for BARs that overlap."""
        command = _COMMAND_COMMON | PCI_COMMAND_MEMORY | _bar_command(self.bars)
        if self.forwards_io:
            command |= PCI_COMMAND_IO
        _define_common(
            config,
            vendor=self.vendor,
            device=self.device,
            command=command,
            revision=self.revision,
            class_code=self.class_code,
            header_type=PCI_HEADER_TYPE_BRIDGE | (PCI_HEADER_TYPE_MFD if self.multifunction else 0),
        )
        write_bars(config, self.bars, count=2)
        config.define(PCI_PRIMARY_BUS, 1, self.primary, rw_mask=0xFF)
        config.define(PCI_SECONDARY_BUS, 1, self.secondary, rw_mask=0xFF)
        config.define(PCI_SUBORDINATE_BUS, 1, self.subordinate, rw_mask=0xFF)
        if self.forwards_io:
            config.define(PCI_IO_BASE, 1, 0xF0 | PCI_IO_RANGE_TYPE_32, rw_mask=PCI_IO_RANGE_MASK)
            config.define(PCI_IO_LIMIT, 1, PCI_IO_RANGE_TYPE_32, rw_mask=PCI_IO_RANGE_MASK)
            config.define(PCI_IO_BASE_UPPER16, 2, 0, rw_mask=0xFFFF)
            config.define(PCI_IO_LIMIT_UPPER16, 2, 0, rw_mask=0xFFFF)
        config.define(PCI_SEC_STATUS, 2, 0, rw1c_mask=_STATUS_RW1C)
        config.define(PCI_MEMORY_BASE, 2, 0xFFF0, rw_mask=PCI_MEMORY_RANGE_MASK)
        config.define(PCI_MEMORY_LIMIT, 2, 0, rw_mask=PCI_MEMORY_RANGE_MASK)
        config.define(
            PCI_PREF_MEMORY_BASE, 2, 0xFFF0 | PCI_PREF_RANGE_TYPE_64, rw_mask=PCI_PREF_RANGE_MASK
        )
        config.define(PCI_PREF_MEMORY_LIMIT, 2, PCI_PREF_RANGE_TYPE_64, rw_mask=PCI_PREF_RANGE_MASK)
        config.define(PCI_PREF_BASE_UPPER32, 4, 0, rw_mask=0xFFFF_FFFF)
        config.define(PCI_PREF_LIMIT_UPPER32, 4, 0, rw_mask=0xFFFF_FFFF)
        config.define(PCI_INTERRUPT_LINE, 1, 0, rw_mask=0xFF)
        config.define(PCI_INTERRUPT_PIN, 1, self.interrupt_pin)
        config.define(
            PCI_BRIDGE_CONTROL,
            2,
            0,
            rw_mask=PCI_BRIDGE_CTL_PARITY
            | PCI_BRIDGE_CTL_SERR
            | PCI_BRIDGE_CTL_ISA
            | PCI_BRIDGE_CTL_VGA
            | PCI_BRIDGE_CTL_MASTER_ABORT
            | PCI_BRIDGE_CTL_BUS_RESET,
        )


def bridge_window(config: ConfigAccess, window: BridgeWindow) -> tuple[int, int] | None:
    """Return the first and last address that the bridge forwards, None for a closed window."""
    if window is BridgeWindow.IO:
        low, high = config.read(PCI_IO_BASE, 1), config.read(PCI_IO_LIMIT, 1)
        if not low and not high:
            return None
        base = (low & PCI_IO_RANGE_MASK) << 8 | config.read(PCI_IO_BASE_UPPER16, 2) << 16
        limit = (high & PCI_IO_RANGE_MASK) << 8 | config.read(PCI_IO_LIMIT_UPPER16, 2) << 16
        limit |= 0xFFF
    else:
        low_pos, high_pos = PCI_MEMORY_BASE, PCI_MEMORY_LIMIT
        base = limit = 0
        if window is BridgeWindow.PREFETCHABLE:
            low_pos, high_pos = PCI_PREF_MEMORY_BASE, PCI_PREF_MEMORY_LIMIT
            base = config.read(PCI_PREF_BASE_UPPER32, 4) << 32
            limit = config.read(PCI_PREF_LIMIT_UPPER32, 4) << 32
        base |= (config.read(low_pos, 2) & PCI_MEMORY_RANGE_MASK) << 16
        limit |= (config.read(high_pos, 2) & PCI_MEMORY_RANGE_MASK) << 16 | 0xF_FFFF
    return (base, limit) if base <= limit else None


def set_bridge_window(config: ConfigAccess, window: BridgeWindow, base: int, limit: int) -> None:
    """Program a window of a bridge to forward `base`..`limit`, as software does.

    Raises ValueError when the registers do not hold that range: the window does not exist, or the
    range is not aligned (4 KiB for I/O, 1 MiB for memory) or too high.
    """
    if window is BridgeWindow.IO:
        config.write(PCI_IO_BASE, 1, base >> 8)
        config.write(PCI_IO_LIMIT, 1, limit >> 8)
        config.write(PCI_IO_BASE_UPPER16, 2, base >> 16)
        config.write(PCI_IO_LIMIT_UPPER16, 2, limit >> 16)
    elif window is BridgeWindow.MEMORY:
        config.write(PCI_MEMORY_BASE, 2, base >> 16)
        config.write(PCI_MEMORY_LIMIT, 2, limit >> 16)
    else:
        config.write(PCI_PREF_MEMORY_BASE, 2, base >> 16)
        config.write(PCI_PREF_MEMORY_LIMIT, 2, limit >> 16)
        config.write(PCI_PREF_BASE_UPPER32, 4, base >> 32)
        config.write(PCI_PREF_LIMIT_UPPER32, 4, limit >> 32)
    if bridge_window(config, window) != (base, limit):
        raise ValueError(f"{window.value} window cannot be {base:#x}-{limit:#x}")
