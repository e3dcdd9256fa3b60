# SPDX-License-Identifier: MIT
"""Configuration space: masks, hooks, headers, and what an access of each size does."""

from __future__ import annotations

import itertools
import threading
from concurrent.futures import ThreadPoolExecutor

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tsmfs.pci import regs
from tsmfs.pci.config import (
    Bar,
    BridgeWindow,
    ConfigSpace,
    Header0,
    Header1,
    HeaderVf,
    bar_address,
    bridge_window,
    set_bar_address,
    set_bridge_window,
)

# A space small enough that random accesses often meet the same register.
SPAN = 16


@st.composite
def accesses(draw: st.DrawFn) -> tuple[int, int]:
    size = draw(st.sampled_from((1, 2, 4)))
    return draw(st.integers(0, SPAN // size - 1)) * size, size


@st.composite
def definitions(draw: st.DrawFn) -> tuple[int, int, int, int, int]:
    pos, size = draw(accesses())
    values = st.integers(0, (1 << 8 * size) - 1)
    rw = draw(values)
    return pos, size, draw(values), rw, draw(values) & ~rw


@st.composite
def operations(draw: st.DrawFn) -> tuple[str, int, int, int]:
    pos, size = draw(accesses())
    kind = draw(st.sampled_from(("write", "set", "read", "reset")))
    return kind, pos, size, draw(st.integers(0, (1 << 8 * size) - 1))


class Model:
    """The same register file, a byte at a time and with no cleverness."""

    def __init__(self) -> None:
        self.live = bytearray(SPAN)
        self.image = bytearray(SPAN)
        self.rw = bytearray(SPAN)
        self.rw1c = bytearray(SPAN)

    def define(self, pos: int, size: int, value: int, rw: int, rw1c: int) -> None:
        for number in range(size):
            at = pos + number
            self.live[at] = self.image[at] = value >> 8 * number & 0xFF
            self.rw[at] = rw >> 8 * number & 0xFF
            self.rw1c[at] = rw1c >> 8 * number & 0xFF

    def write(self, pos: int, size: int, value: int) -> None:
        for number in range(size):
            at, byte = pos + number, value >> 8 * number & 0xFF
            self.live[at] = self.live[at] & ~self.rw[at] | byte & self.rw[at]
            self.live[at] &= ~(byte & self.rw1c[at])


@given(st.lists(definitions(), max_size=8), st.lists(operations(), max_size=20))
def test_space_behaves_as_a_byte_wise_model(
    registers: list[tuple[int, int, int, int, int]], steps: list[tuple[str, int, int, int]]
) -> None:
    config, model = ConfigSpace(256), Model()
    for register in registers:
        config.define(*register)
        model.define(*register)
    for kind, pos, size, value in steps:
        if kind == "write":
            config.write(pos, size, value)
            model.write(pos, size, value)
        elif kind == "set":
            config.set(pos, size, value)
            model.live[pos : pos + size] = value.to_bytes(size, "little")
        elif kind == "reset":
            config.reset()
            model.live[:] = model.image
        expected = int.from_bytes(model.live[pos : pos + size], "little")
        assert config.read(pos, size) == expected
        assert config.read_bytes(0, SPAN) == model.live


@given(st.integers(0, 300), st.binary(max_size=24))
def test_bytes_written_anywhere_read_back_as_far_as_the_space_goes(
    offset: int, data: bytes
) -> None:
    config = ConfigSpace(256)
    for pos in range(0, 256, 4):
        config.define(pos, 4, 0, rw_mask=0xFFFF_FFFF)

    written = config.write_bytes(offset, data)

    assert written == max(min(len(data), 256 - offset), 0)
    assert config.read_bytes(offset, len(data)) == data[:written]
    assert config.read_bytes(0, 256).count(0) == 256 - written + data[:written].count(0)


@pytest.mark.parametrize(
    ("offset", "length", "expected"),
    [
        (0, 4, [(0, 4)]),
        (1, 7, [(1, 1), (2, 2), (4, 4)]),
        (2, 2, [(2, 2)]),
        (2, 3, [(2, 2), (4, 1)]),
        (3, 8, [(3, 1), (4, 4), (8, 2), (10, 1)]),
        (5, 2, [(5, 1), (6, 1)]),
        (254, 8, [(254, 2)]),
        (256, 4, []),
    ],
)
def test_a_byte_run_is_split_into_naturally_aligned_accesses(
    offset: int, length: int, expected: list[tuple[int, int]], monkeypatch: pytest.MonkeyPatch
) -> None:
    seen: list[tuple[int, int]] = []
    monkeypatch.setattr(
        ConfigSpace, "write", lambda _self, pos, size, _value: seen.append((pos, size))
    )

    ConfigSpace(256).write_bytes(offset, bytes(length))

    assert seen == expected


@pytest.mark.parametrize(("pos", "size"), [(1, 2), (2, 4), (0, 3), (-4, 4), (256, 1), (0, 8)])
def test_accesses_that_no_bus_carries_are_refused(pos: int, size: int) -> None:
    config = ConfigSpace(256)
    for access in (
        lambda: config.read(pos, size),
        lambda: config.write(pos, size, 0),
        lambda: config.set(pos, size, 0),
        lambda: config.define(pos, size, 0),
    ):
        with pytest.raises(ValueError, match="bad configuration access"):
            access()


def test_a_space_has_256_or_4096_bytes() -> None:
    assert ConfigSpace().size == 4096
    with pytest.raises(ValueError, match="not 512"):
        ConfigSpace(512)


def test_undefined_registers_read_zero_and_ignore_writes() -> None:
    config = ConfigSpace()
    config.write(0x800, 4, 0xFFFF_FFFF)
    assert config.read(0x800, 4) == 0
    assert config.read_bytes(0, 5000) == bytes(4096)
    assert config.read_bytes(4096, 1) == b""


def test_a_bit_cannot_be_both_writable_and_write_one_to_clear() -> None:
    with pytest.raises(ValueError, match="both RW and RW1C"):
        ConfigSpace().define(0, 4, 0, rw_mask=3, rw1c_mask=2)


def test_write_hook_sees_its_register_and_decides_what_is_stored() -> None:
    config = ConfigSpace()
    config.define(0x10, 4, 0x1122_3344, rw_mask=0xFFFF_FFFF)
    seen: list[tuple[int, int]] = []

    def hook(old: int, new: int) -> int:
        seen.append((old, new))
        return new ^ 0xFF

    config.on_write(0x12, 2, hook)

    config.write(0x10, 2, 0)
    assert seen == []
    config.write(0x13, 1, 0xAB)
    assert seen == [(0x1122, 0xAB22)]
    assert config.read(0x10, 4) == 0xABDD_0000


def test_read_hook_makes_up_only_its_own_register() -> None:
    config = ConfigSpace()
    config.define(0x20, 4, 0x0102_0304)
    config.on_read(0x22, 1, lambda value: value + 0x40)

    assert config.read(0x20, 4) == 0x0142_0304
    assert config.read(0x22, 1) == 0x42
    assert config.read_bytes(0x21, 2) == b"\x03\x42"
    assert config.read_bytes(0x23, 4) == b"\x01\x00\x00\x00"


def test_deferred_work_runs_before_the_write_returns_and_without_the_lock() -> None:
    config = ConfigSpace()
    config.define(0, 4, 0, rw_mask=0xFF)
    seen: list[int] = []

    def action() -> None:
        # Another thread gets in: were the lock held, it would wait for this one for ever.
        other = threading.Thread(target=lambda: seen.append(config.read(0, 1)))
        other.start()
        other.join(timeout=10)

    def hook(_old: int, new: int) -> int:
        config.defer(action)
        return new

    config.on_write(0, 1, hook)
    config.write(0, 1, 7)
    assert seen == [7]


@given(
    definitions(),
    st.sampled_from(((), ((0, 4),), ((0, 2),), ((0, 4), (2, 2)))),
    st.lists(st.integers(0, 0xFFFF_FFFF), max_size=6),
)
def test_a_stream_of_accesses_is_as_many_single_ones(
    definition: tuple[int, int, int, int, int],
    hooked: tuple[tuple[int, int], ...],
    dwords: list[int],
) -> None:
    calls: list[list[tuple[int, int]]] = []

    def space() -> ConfigSpace:
        config = ConfigSpace()
        config.define(*definition)
        seen: list[tuple[int, int]] = []
        calls.append(seen)

        def hook(old: int, new: int) -> int:
            seen.append((old, new))
            return old + new

        for pos, size in hooked:
            config.on_write(pos, size, hook)
        return config

    together, apart = space(), space()
    together.write_stream(0, dwords)
    for dword in dwords:
        apart.write(0, 4, dword)
    read = []
    for _ in dwords:
        read.append(apart.read(0, 4))
        apart.write(0, 4, 0)
    assert together.read_stream(0, len(dwords)) == read
    assert together.read_bytes(0, SPAN) == apart.read_bytes(0, SPAN)
    assert calls[0] == calls[1]


def test_work_that_a_stream_defers_runs_once_it_is_written_and_without_the_lock() -> None:
    config = ConfigSpace()
    seen: list[tuple[int, bool]] = []

    def look() -> None:
        with ThreadPoolExecutor(1) as other:
            seen.append((config.read(0, 4), other.submit(config.read, 0, 4).result(5) == 2))

    def hook(old: int, new: int) -> int:
        config.defer(look)
        return new

    config.define(0, 4, 0, rw_mask=0xFFFF_FFFF)
    config.on_write(0, 4, hook)
    config.write_stream(0, [1, 2])
    assert seen == [(2, True), (2, True)]


def test_a_register_that_is_made_up_is_not_read_as_a_stream() -> None:
    config = ConfigSpace()
    config.on_read(0, 4, lambda value: value)
    with pytest.raises(ValueError, match="0x0"):
        config.read_stream(0, 1)


def test_reset_hooks_still_see_the_old_values() -> None:
    config = ConfigSpace()
    config.define(0, 4, 1, rw_mask=0xFF)
    seen: list[int] = []
    config.on_reset(lambda: seen.append(config.read(0, 4)))
    config.write(0, 4, 9)

    config.reset()

    assert (seen, config.read(0, 4)) == ([9], 1)


def test_concurrent_writes_to_one_dword_lose_nothing() -> None:
    config = ConfigSpace()
    config.define(0, 4, 0, rw_mask=0xFFFF_FFFF)

    def hammer(pos: int) -> None:
        for value in range(300):
            config.write(pos, 1, value & 0xFF)
            assert config.read(pos, 1) == value & 0xFF

    threads = [threading.Thread(target=hammer, args=(pos,)) for pos in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert config.read_bytes(0, 4) == bytes([299 & 0xFF]) * 4


def endpoint(*bars: Bar) -> ConfigSpace:
    config = ConfigSpace()
    Header0(
        vendor=0x8086,
        device=0xFFFF,
        revision=3,
        class_code=0x120000,
        subsystem_vendor=0x1AF4,
        subsystem_device=0x1100,
        bars=bars,
        multifunction=True,
        interrupt_pin=1,
    ).write(config)
    return config


def test_type_0_header_holds_the_identity() -> None:
    config = endpoint()
    assert config.read(regs.PCI_VENDOR_ID, 2) == 0x8086
    assert config.read(regs.PCI_DEVICE_ID, 2) == 0xFFFF
    assert config.read(regs.PCI_CLASS_DEVICE, 2) == 0x1200
    assert config.read(regs.PCI_REVISION_ID, 1) == 3
    assert config.read(regs.PCI_HEADER_TYPE, 1) == regs.PCI_HEADER_TYPE_MFD
    assert config.read(regs.PCI_SUBSYSTEM_ID, 2) == 0x1100
    assert config.read(regs.PCI_INTERRUPT_PIN, 1) == 1
    config.write_bytes(0, b"\xff" * 4)
    assert config.read(regs.PCI_VENDOR_ID, 4) == 0xFFFF_8086


@pytest.mark.parametrize(
    ("bars", "decode"),
    [
        ((), 0),
        ((Bar(0, 4096),), regs.PCI_COMMAND_MEMORY),
        ((Bar(0, 32, is_io=True),), regs.PCI_COMMAND_IO),
        (
            (Bar(0, 1 << 20, is_64bit=True), Bar(2, 32, is_io=True)),
            regs.PCI_COMMAND_MEMORY | regs.PCI_COMMAND_IO,
        ),
    ],
)
def test_command_register_decodes_only_the_spaces_of_the_bars(
    bars: tuple[Bar, ...], decode: int
) -> None:
    config = endpoint(*bars)
    config.write(regs.PCI_COMMAND, 2, 0xFFFF)
    assert config.read(regs.PCI_COMMAND, 2) == decode | 0x0544


def test_status_errors_are_cleared_by_ones_and_rom_bar_is_absent() -> None:
    config = endpoint()
    config.set(regs.PCI_STATUS, 2, 0xF910)
    config.write(regs.PCI_STATUS, 2, 0x8000)
    assert config.read(regs.PCI_STATUS, 2) == 0x7910
    config.write(regs.PCI_ROM_ADDRESS, 4, 0xFFFF_FFFF)
    assert config.read(regs.PCI_ROM_ADDRESS, 4) == 0


def bar_size(config: ConfigSpace, index: int, is_64bit: bool) -> int:
    pos = regs.PCI_BASE_ADDRESS_0 + 4 * index
    config.write(pos, 4, 0xFFFF_FFFF)
    low = config.read(pos, 4)
    mask = low & (regs.PCI_BASE_ADDRESS_IO_MASK if low & 1 else regs.PCI_BASE_ADDRESS_MEM_MASK)
    if is_64bit:
        config.write(pos + 4, 4, 0xFFFF_FFFF)
        mask |= config.read(pos + 4, 4) << 32
    return mask & -mask


@given(st.integers(4, 40), st.booleans(), st.data())
def test_sizing_a_bar_finds_its_size_and_programming_it_its_address(
    order: int, prefetchable: bool, data: st.DataObject
) -> None:
    is_64bit = order > 31 or data.draw(st.booleans())
    bar = Bar(2, 1 << order, is_64bit=is_64bit, prefetchable=prefetchable)
    config = endpoint(bar)
    assert bar_size(config, 2, is_64bit) == bar.size

    limit = (1 << (64 if is_64bit else 32)) // bar.size - 1
    address = data.draw(st.integers(0, limit)) * bar.size
    set_bar_address(config, 2, address)
    assert bar_address(config, 2) == address
    flags = config.read(regs.PCI_BASE_ADDRESS_2, 4) & 0xF
    assert flags == (8 if prefetchable else 0) | (4 if is_64bit else 0)


def test_io_bar_is_sized_and_programmed() -> None:
    config = endpoint(Bar(1, 32, is_io=True))
    assert bar_size(config, 1, False) == 32
    set_bar_address(config, 1, 0xC0E0)
    assert (bar_address(config, 1), config.read(regs.PCI_BASE_ADDRESS_1, 4)) == (0xC0E0, 0xC0E1)


def test_a_bar_refuses_an_address_that_it_cannot_hold() -> None:
    config = endpoint(Bar(0, 1 << 21, is_64bit=True, prefetchable=True), Bar(2, 4096))
    for index, address in ((0, 0x10_0000), (2, 1 << 32), (3, 0x1000)):
        with pytest.raises(ValueError, match="cannot hold"):
            set_bar_address(config, index, address)


def test_bars_that_no_function_has_are_refused() -> None:
    for arguments in ({"size": 24}, {"size": 8}, {"size": 1 << 32}, {"size": 2, "is_io": True}):
        with pytest.raises(ValueError, match="cannot be"):
            Bar(0, **arguments)  # type: ignore[arg-type]
    with pytest.raises(ValueError, match="neither"):
        Bar(0, 32, is_io=True, prefetchable=True)
    for bars in (
        (Bar(0, 4096, is_64bit=True), Bar(1, 4096)),
        (Bar(5, 4096, is_64bit=True),),
        (Bar(6, 4096),),
    ):
        with pytest.raises(ValueError, match="no room"):
            endpoint(*bars)


def test_virtual_function_header_hides_its_ids_and_decodes_nothing() -> None:
    config = ConfigSpace()
    HeaderVf(class_code=0x020000, subsystem_vendor=0x8086, subsystem_device=1).write(config)
    for pos in itertools.chain((regs.PCI_COMMAND,), range(0x10, 0x28, 4)):
        config.write(pos, 2, 0xFFFF)
    assert config.read(regs.PCI_VENDOR_ID, 4) == 0xFFFF_FFFF
    assert config.read(regs.PCI_COMMAND, 2) == regs.PCI_COMMAND_MASTER
    assert config.read_bytes(0x10, 24) == bytes(24)
    assert config.read(regs.PCI_SUBSYSTEM_VENDOR_ID, 4) == 0x0001_8086


def bridge(forwards_io: bool = True) -> ConfigSpace:
    config = ConfigSpace()
    Header1(0x8086, 0xFFFF, secondary=1, subordinate=1, forwards_io=forwards_io).write(config)
    return config


def test_bridge_has_bus_numbers_and_closed_windows() -> None:
    config = bridge()
    assert config.read(regs.PCI_HEADER_TYPE, 1) == regs.PCI_HEADER_TYPE_BRIDGE
    assert config.read_bytes(regs.PCI_PRIMARY_BUS, 3) == b"\x00\x01\x01"
    config.write_bytes(regs.PCI_PRIMARY_BUS, b"\x02\x03\x07")
    assert config.read_bytes(regs.PCI_PRIMARY_BUS, 3) == b"\x02\x03\x07"
    assert [bridge_window(config, window) for window in BridgeWindow] == [None] * 3


@pytest.mark.parametrize(
    ("window", "base", "limit"),
    [
        (BridgeWindow.IO, 0x1000, 0x2FFF),
        (BridgeWindow.IO, 0x1_0000, 0x1_FFFF),
        (BridgeWindow.MEMORY, 0xFE00_0000, 0xFEBF_FFFF),
        (BridgeWindow.MEMORY, 0, 0xF_FFFF),
        (BridgeWindow.PREFETCHABLE, 0x38_0000_0000, 0x38_3FFF_FFFF),
    ],
)
def test_bridge_windows_hold_what_is_programmed(
    window: BridgeWindow, base: int, limit: int
) -> None:
    config = bridge()
    set_bridge_window(config, window, base, limit)
    assert bridge_window(config, window) == (base, limit)
    assert [bridge_window(config, other) for other in BridgeWindow if other is not window] == [
        None,
        None,
    ]


def test_bridge_windows_refuse_what_they_cannot_hold() -> None:
    config = bridge(forwards_io=False)
    for window, base, limit in (
        (BridgeWindow.IO, 0x1000, 0x1FFF),
        (BridgeWindow.MEMORY, 0x1000, 0xF_FFFF),
        (BridgeWindow.MEMORY, 1 << 32, (1 << 32) + 0xF_FFFF),
    ):
        with pytest.raises(ValueError, match="window cannot be"):
            set_bridge_window(config, window, base, limit)


@pytest.mark.parametrize("forwards_io", [True, False])
def test_bridge_decodes_io_only_with_an_io_window(forwards_io: bool) -> None:
    config = bridge(forwards_io)
    config.write(regs.PCI_COMMAND, 2, 0xFFFF)
    assert config.read(regs.PCI_COMMAND, 2) == 0x0546 | forwards_io


@given(st.integers(0, 31), st.integers(0, 31), st.integers(0, (1 << 32) - 1))
def test_a_field_that_fits_comes_back_and_leaves_the_rest_alone(a: int, b: int, reg: int) -> None:
    mask = regs.genmask(max(a, b), min(a, b))
    field = regs.field_get(mask, reg)
    assert regs.field_prep(mask, field) == reg & mask
    with pytest.raises(ValueError, match="does not fit"):
        regs.field_prep(mask, (mask >> min(a, b)) + 1)
