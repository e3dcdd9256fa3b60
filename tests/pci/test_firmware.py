# SPDX-License-Identifier: MIT
"""What firmware does: every BAR and window has its place, and gets it again after power-on."""

from __future__ import annotations

import itertools

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tests.machines import boot
from tsmfs.pci.bars import read_bases
from tsmfs.pci.capability import PcieCap, Sriov, add_capabilities
from tsmfs.pci.config import Bar, BridgeWindow, ConfigSpace, Header0, Header1, bridge_window
from tsmfs.pci.firmware import Space, demands
from tsmfs.pci.hardware import HwBus, HwFunction, power_on
from tsmfs.pci.regs import PCI_BASE_ADDRESS_0, PciExpType

BASE = 1 << 44


def endpoint(devfn: int, *bars: Bar) -> HwFunction:
    config = ConfigSpace()
    Header0(0x8086, 0xFFFF, bars=list(bars)).write(config)
    return HwFunction(devfn, config)


def port(devfn: int, secondary: HwBus) -> HwFunction:
    config = ConfigSpace()
    Header1(0x8086, 0xFFFF, secondary=secondary.number, subordinate=secondary.number).write(config)
    add_capabilities(config, [PcieCap(port_type=PciExpType.ROOT_PORT)])
    return HwFunction(devfn, config, secondary)


def bus(number: int, *functions: HwFunction) -> HwBus:
    made = HwBus(number)
    for function in functions:
        made.add(function)
    return made


def place_all(root: HwBus, base: int = 0) -> dict[Space, tuple[int, int]]:
    """Give each space of *root* its base; (base, size) of each."""
    placed = {}
    for demand in demands(root):
        at = -(-(base or 1 << 28) // demand.align) * demand.align
        demand.place(at)
        placed[demand.space] = (at, demand.size)
    return placed


def addresses(function: HwFunction) -> list[int]:
    return [start for _, start, _, _ in read_bases(function.config, PCI_BASE_ADDRESS_0, 6)]


def test_a_bus_without_registers_asks_for_nothing() -> None:
    assert list(demands(bus(0, endpoint(0)))) == []


def test_each_space_is_asked_for_in_its_granularity() -> None:
    root = bus(
        0,
        endpoint(
            0,
            Bar(0, 0x100),
            Bar(1, 32, is_io=True),
            Bar(2, 0x1000, is_64bit=True, prefetchable=True),
        ),
    )
    assert {d.space: (d.size, d.align) for d in demands(root)} == {
        Space.IO: (0x1000, 0x1000),
        Space.MEMORY: (0x100000, 0x100000),
        Space.PREFETCHABLE: (0x100000, 0x100000),
    }


def test_the_largest_alignment_comes_first() -> None:
    small, large = endpoint(0, Bar(0, 0x1000)), endpoint(8, Bar(0, 0x100000))
    place_all(bus(0, small, large), 0x80000000)
    assert (addresses(large), addresses(small)) == ([0x80000000], [0x80100000])


def test_a_port_gets_windows_around_what_is_below_it() -> None:
    below = endpoint(0, Bar(0, 0x1000), Bar(1, 32, is_io=True))
    at = port(8, bus(1, below))
    place_all(bus(0, endpoint(0, Bar(0, 0x200000)), at), 0x80000000)
    assert bridge_window(at.config, BridgeWindow.MEMORY) == (0x80200000, 0x802FFFFF)
    assert bridge_window(at.config, BridgeWindow.PREFETCHABLE) is None
    assert bridge_window(at.config, BridgeWindow.IO) is not None
    assert addresses(below)[0] == 0x80200000


def test_64_bit_registers_that_are_not_prefetchable_go_high_only_on_a_root_bus() -> None:
    direct, below = (endpoint(0, Bar(0, 0x1000, is_64bit=True)) for _ in range(2))
    assert [d.space for d in demands(bus(0, direct))] == [Space.PREFETCHABLE]
    assert [d.space for d in demands(bus(0, port(0, bus(1, below))))] == [Space.MEMORY]


def test_virtual_functions_get_room_for_all() -> None:
    pf = endpoint(0)
    sriov = Sriov(8, first_vf_offset=1, vf_stride=1, vf_device_id=1, bars=[Bar(0, 0x10000)])
    add_capabilities(pf.config, [PcieCap(), sriov])
    assert list(demands(bus(0, pf))) == []
    pf.virtual_functions = lambda index: endpoint(index)
    assert [(d.space, d.size) for d in demands(bus(0, pf))] == [(Space.MEMORY, 0x100000)]


def test_power_on_brings_the_places_back() -> None:
    below = endpoint(0, Bar(0, 0x1000))
    at = port(8, bus(1, below))
    place_all(bus(0, at), 0x80000000)
    programmed = (addresses(below), bridge_window(at.config, BridgeWindow.MEMORY))
    at.config.reset()
    below.config.reset()
    assert addresses(below) == [0]
    power_on(at)
    assert (addresses(below), bridge_window(at.config, BridgeWindow.MEMORY)) == programmed


def bar_sizes(exponents: list[int]) -> list[Bar]:
    return [Bar(index, 1 << size) for index, size in enumerate(exponents)]


SIZES = st.lists(st.integers(4, 24), max_size=4)


@settings(max_examples=60)
@given(st.lists(SIZES, min_size=1, max_size=4), st.lists(SIZES, max_size=4))
def test_no_two_ranges_overlap_and_all_are_aligned_and_inside(
    direct: list[list[int]], below: list[list[int]]
) -> None:
    functions = [endpoint(8 * at, *bar_sizes(sizes)) for at, sizes in enumerate(direct)]
    behind = [endpoint(8 * at, *bar_sizes(sizes)) for at, sizes in enumerate(below)]
    at = port(0xF8, bus(1, *behind))
    root = bus(0, *functions, at)
    placed = place_all(root, 0x40000000)
    ranges = []
    for function in (*functions, *behind):
        for _, start, size, _ in read_bases(function.config, PCI_BASE_ADDRESS_0, 6):
            assert start % size == 0
            ranges.append((start, start + size - 1))
    ranges.sort()
    for (_, end), (start, _) in itertools.pairwise(ranges):
        assert end < start
    if ranges:
        base, size = placed[Space.MEMORY]
        assert base <= ranges[0][0]
        assert ranges[-1][1] < base + size
    window = bridge_window(at.config, BridgeWindow.MEMORY)
    for function in behind:
        for start in addresses(function):
            assert window is not None
            assert window[0] <= start <= window[1]


@pytest.mark.parametrize("machine", ["server", "devsec"])
def test_every_bar_of_a_built_in_machine_is_in_the_window_above_it(machine: str) -> None:
    sh = boot(machine)
    for dev in sh.machine.pci.devices():
        for index, bar in dev.bars():
            assert bar.parent is not None, f"{dev.name} BAR {index}"
            assert bar.parent.name.startswith(("PCI Bus", "DEVSEC"))
    assert "BAR" not in "".join(
        line for line in sh.dmesg().splitlines() if "conflict" in line or "outside" in line
    )
