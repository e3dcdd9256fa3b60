# SPDX-License-Identifier: MIT
"""Sizing base address registers by writing ones, and leaving them as they were."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tests.machines import boot, pci
from tsmfs.kernel.resource import (
    IORESOURCE_IO,
    IORESOURCE_MEM,
    IORESOURCE_MEM_64,
    IORESOURCE_PREFETCH,
    IORESOURCE_SIZEALIGN,
)
from tsmfs.pci import regs
from tsmfs.pci.bars import read_bases
from tsmfs.pci.config import Bar, ConfigSpace, Header0, set_bar_address

MEM = IORESOURCE_MEM | IORESOURCE_SIZEALIGN


def space(*bars: Bar) -> ConfigSpace:
    config = ConfigSpace()
    Header0(0x8086, 0xFFFF, bars=list(bars)).write(config)
    return config


def sized(config: ConfigSpace, count: int = 6) -> list[tuple[int, int, int, int]]:
    return list(read_bases(config, regs.PCI_BASE_ADDRESS_0, count))


@pytest.mark.parametrize(
    ("bar", "address", "flags"),
    [
        (Bar(0, 0x1000), 0x80000000, MEM),
        (Bar(0, 1 << 31), 0x80000000, MEM),
        (Bar(0, 0x1000, prefetchable=True), 0xFEB00000, MEM | IORESOURCE_PREFETCH | 0x8),
        (Bar(0, 1 << 34, is_64bit=True), 1 << 40, MEM | IORESOURCE_MEM_64 | 0x4),
        (
            Bar(0, 0x1000, is_64bit=True, prefetchable=True),
            0x1234567000,
            MEM | IORESOURCE_MEM_64 | IORESOURCE_PREFETCH | 0xC,
        ),
        (Bar(0, 32, is_io=True), 0xC020, IORESOURCE_IO | IORESOURCE_SIZEALIGN | 0x1),
    ],
)
def test_each_kind_of_register_is_sized(bar: Bar, address: int, flags: int) -> None:
    config = space(bar)
    set_bar_address(config, 0, address)
    before = config.read_bytes(0, 64)
    assert sized(config) == [(0, address, bar.size, flags)]
    assert config.read_bytes(0, 64) == before


def test_registers_are_numbered_by_their_place() -> None:
    config = space(Bar(1, 0x1000), Bar(2, 0x1000, is_64bit=True), Bar(5, 16, is_io=True))
    assert [index for index, *_ in sized(config)] == [1, 2, 5]
    assert [index for index, *_ in sized(config, 2)] == [1]


def test_no_registers_are_no_resources() -> None:
    assert sized(space()) == []


@given(st.integers(4, 60), st.integers(0, 1 << 20))
def test_any_power_of_two_can_be_sized_anywhere(exponent: int, place: int) -> None:
    size = 1 << exponent
    config = space(Bar(2, size, is_64bit=True, prefetchable=True))
    address = place * size % (1 << 63)
    set_bar_address(config, 2, address)
    assert [found[:3] for found in sized(config)] == [(2, address, size)]


def test_software_can_size_a_register_through_the_config_file() -> None:
    sh = boot("server")
    config = f"{pci('0000:00:1e.0')}/config"
    bar = regs.PCI_BASE_ADDRESS_0
    before = sh.read(config, bar, 4)
    sh.write(config, b"\xff\xff\xff\xff", bar)
    assert int.from_bytes(sh.read(config, bar, 4), "little") == 0xFF000000
    sh.write(config, before, bar)
    assert sh.read(config, bar, 4) == before
