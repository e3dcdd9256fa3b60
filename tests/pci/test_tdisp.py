# SPDX-License-Identifier: MIT
"""TEE device interfaces of functions: their reports, and what ends a lock."""

from __future__ import annotations

import os
from collections.abc import Callable
from dataclasses import replace
from functools import partial

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tests.machines import Shell, boot, pci
from tsmfs.pci import regs
from tsmfs.pci.capability import (
    Ide,
    Msix,
    PcieCap,
    PowerManagement,
    add_capabilities,
    find_capability,
    find_ext_capability,
)
from tsmfs.pci.config import Bar, ConfigSpace, Header0, Header1, set_bar_address
from tsmfs.pci.ide_km import IdePort
from tsmfs.pci.tdisp import Tdi, TdiTable, memory_bars
from tsmfs.spdm.ide_km import stream_slots
from tsmfs.spdm.interface import Interface
from tsmfs.spdm.tdisp import (
    InterfaceInfo,
    LockFlags,
    LockParameters,
    RangeAttributes,
    Report,
    TdispError,
    TdispErrorCode,
    TdiState,
)

SESSION = 0xFFFF0001
NIC, GPU = "0000:01:00.0", "0000:04:00.2"
TABLE, PBA = RangeAttributes.MSIX_TABLE, RangeAttributes.MSIX_PBA
MSIX = LockParameters(flags=LockFlags.LOCK_MSIX)

BARS = (
    Bar(0, 0x8000),
    Bar(1, 0x100),
    Bar(2, 0x1000, is_io=False, is_64bit=True),
    Bar(4, 0x100, is_io=True),
)


def function(msix: Msix | None = None, bars: tuple[Bar, ...] = BARS) -> ConfigSpace:
    config = ConfigSpace()
    Header0(0x1AF4, 0x1041, bars=bars).write(config)
    caps = [PowerManagement(), PcieCap(flr=True, tee_io=True)]
    add_capabilities(config, [*caps, msix] if msix is not None else caps)
    for bar in bars:
        set_bar_address(
            config, bar.index, (0x1000 if bar.is_io else 0x8000_0000) + bar.index * 0x10000
        )
    return config


def tdi_of(config: ConfigSpace, bars: tuple[Bar, ...] = BARS, port: IdePort | None = None) -> Tdi:
    return Tdi(0x0100, config, memory_bars(config, bars), port=port)


def ranges(interface: Interface, parameters: LockParameters) -> list[tuple[int, int, int, int]]:
    """BAR, address, size and attributes of each range in the report of a lock."""
    interface.lock(parameters, SESSION)
    report = Report.parse(interface.report())
    interface.stop()
    return [(r.range_id, r.address(), r.size, r.attributes) for r in report.mmio_ranges]


# Reports


def test_a_report_has_the_memory_bars_that_have_a_page_at_least() -> None:
    interface = tdi_of(function()).interface
    assert ranges(interface, LockParameters()) == [
        (0, 0x8000_0000, 0x8000, 0),
        (2, 0x8002_0000, 0x1000, 0),
    ]


@pytest.mark.parametrize(
    ("msix", "locked", "unlocked"),
    [
        pytest.param(
            Msix(16, 0, 0x2000, 0, 0x3000),
            [(0, 2, 0), (2, 1, TABLE), (3, 1, PBA), (4, 4, 0)],
            [(0, 2, 0), (4, 4, 0)],
            id="a page each",
        ),
        pytest.param(
            Msix(16, 0, 0, 0, 0x800),
            [(0, 1, TABLE | PBA), (1, 7, 0)],
            [(1, 7, 0)],
            id="both in the first page",
        ),
        pytest.param(
            Msix(512, 0, 0x5800, 0, 0x7800),
            [(0, 5, 0), (5, 2, TABLE), (7, 1, TABLE | PBA)],
            [(0, 5, 0)],
            id="a table over three pages, up to the end",
        ),
    ],
)
def test_pages_of_msix_are_flagged_if_it_is_locked_and_left_out_if_not(
    msix: Msix, locked: list[tuple[int, int, int]], unlocked: list[tuple[int, int, int]]
) -> None:
    bars = (Bar(0, 0x8000),)
    interface = tdi_of(function(msix, bars), bars).interface
    for parameters, wanted in ((MSIX, locked), (LockParameters(), unlocked)):
        assert ranges(interface, parameters) == [
            (0, 0x8000_0000 + page * 0x1000, pages * 0x1000, attributes)
            for page, pages, attributes in wanted
        ]


def test_the_report_moves_by_the_offset_of_the_lock() -> None:
    interface = tdi_of(function()).interface
    moved = ranges(interface, LockParameters(mmio_reporting_offset=-0x4000_0000))
    assert [address for _, address, _, _ in moved] == [0x4000_0000, 0x4002_0000]


def test_msix_control_is_reported_if_it_is_locked() -> None:
    config = function(Msix(16, 0, 0x2000, 0, 0x3000))
    interface = tdi_of(config).interface
    pos = find_capability(config, regs.PCI_CAP_ID_MSIX)
    config.write(pos + regs.PCI_MSIX_FLAGS, 2, regs.PCI_MSIX_FLAGS_ENABLE)
    for parameters, wanted in ((MSIX, 0x800F), (LockParameters(), 0)):
        interface.lock(parameters, SESSION)
        assert Report.parse(interface.report()).msix_message_control == wanted
        interface.stop()


def test_flags_of_the_lock_are_in_the_report() -> None:
    interface = tdi_of(function()).interface
    interface.lock(LockParameters(flags=LockFlags.NO_FW_UPDATE), SESSION)
    info = Report.parse(interface.report()).interface_info
    assert info == InterfaceInfo.NO_FW_UPDATE | InterfaceInfo.DMA_WITHOUT_PASID


def test_a_bar_without_an_address_cannot_be_locked() -> None:
    config = function()
    config.reset()
    interface = tdi_of(config).interface
    with pytest.raises(TdispError) as info:
        interface.lock(LockParameters(), SESSION)
    assert info.value.code == TdispErrorCode.INVALID_DEVICE_CONFIGURATION
    assert interface.state is TdiState.CONFIG_UNLOCKED


@pytest.mark.parametrize("name", [NIC, GPU, "0000:00:08.0", "0000:02:00.0"])
def test_reports_of_a_machine_match_its_resource_files(name: str) -> None:
    sh = boot("server")
    lines = sh.cat(f"{pci(name)}/resource").splitlines()[:6]
    files = [tuple(int(word, 16) for word in line.split()) for line in lines]
    dsm = sh.dev(name if name != GPU else "0000:02:00.0").hw.cma
    assert dsm is not None
    reported = ranges(dsm.tdis[sh.dev(name).devid], MSIX)
    memory = {n: (start, end) for n, (start, end, flags) in enumerate(files) if flags & 0x200}
    covered: dict[int, int] = {}
    for bar, address, size, _ in reported:
        start, end = memory[bar]
        assert address == start + covered.get(bar, 0)
        covered[bar] = covered.get(bar, 0) + size
        assert address + size - 1 <= end
    assert covered == {n: end - start + 1 for n, (start, end) in memory.items()}


# What ends a lock


def write(size: int, value: int, pos: int) -> Callable[[ConfigSpace], None]:
    return lambda config: config.write(pos, size, value)


def in_capability(kind: int, offset: int, value: int) -> Callable[[ConfigSpace], None]:
    def change(config: ConfigSpace) -> None:
        pos = find_capability(config, kind) + offset
        config.write(pos, 2, config.read(pos, 2) ^ value)

    return change


COMMAND = regs.PCI_COMMAND_MEMORY | regs.PCI_COMMAND_MASTER
FATAL: dict[str, Callable[[ConfigSpace], None]] = {
    "memory space": write(2, regs.PCI_COMMAND_MASTER, regs.PCI_COMMAND),
    "bus master": write(2, regs.PCI_COMMAND_MEMORY, regs.PCI_COMMAND),
    "a BAR": write(4, 0x9000_0000, regs.PCI_BASE_ADDRESS_0),
    "half of a 64-bit BAR": write(4, 1, regs.PCI_BASE_ADDRESS_0 + 12),
    "an I/O BAR": write(4, 0x2000, regs.PCI_BASE_ADDRESS_0 + 16),
    "sizing a BAR": write(4, 0xFFFF_FFFF, regs.PCI_BASE_ADDRESS_0),
    "a byte of a BAR": write(1, 0x90, regs.PCI_BASE_ADDRESS_0 + 3),
    "power state": in_capability(regs.PCI_CAP_ID_PM, regs.PCI_PM_CTRL, 3),
    "function level reset": in_capability(
        regs.PCI_CAP_ID_EXP, regs.PCI_EXP_DEVCTL, regs.PCI_EXP_DEVCTL_BCR_FLR
    ),
    "reset": ConfigSpace.reset,
}
HARMLESS: dict[str, Callable[[ConfigSpace], None]] = {
    "the same command": write(2, COMMAND, regs.PCI_COMMAND),
    "another bit of it": write(2, COMMAND | regs.PCI_COMMAND_SERR, regs.PCI_COMMAND),
    "the same BAR": write(4, 0x8000_0000, regs.PCI_BASE_ADDRESS_0),
    "interrupt line": write(1, 5, regs.PCI_INTERRUPT_LINE),
    "MSI-X control that is not locked": in_capability(
        regs.PCI_CAP_ID_MSIX, regs.PCI_MSIX_FLAGS, regs.PCI_MSIX_FLAGS_ENABLE
    ),
    "device control": in_capability(
        regs.PCI_CAP_ID_EXP, regs.PCI_EXP_DEVCTL, regs.PCI_EXP_DEVCTL_CERE
    ),
}


def locked(state: TdiState, parameters: LockParameters) -> tuple[ConfigSpace, Interface]:
    config = function(Msix(16, 0, 0x2000, 0, 0x3000))
    config.write(regs.PCI_COMMAND, 2, COMMAND)
    interface = tdi_of(config).interface
    nonce = interface.lock(parameters, SESSION)
    if state is TdiState.RUN:
        interface.start(nonce)
    return config, interface


@pytest.mark.parametrize("state", [TdiState.CONFIG_LOCKED, TdiState.RUN])
@pytest.mark.parametrize("change", FATAL)
def test_what_ends_a_lock_moves_the_interface_to_error(state: TdiState, change: str) -> None:
    config, interface = locked(state, LockParameters())
    FATAL[change](config)
    assert (interface.state, bool(interface.reason)) == (TdiState.ERROR, True)
    interface.stop()
    assert interface.state is TdiState.CONFIG_UNLOCKED


@pytest.mark.parametrize("state", [TdiState.CONFIG_LOCKED, TdiState.RUN])
@pytest.mark.parametrize("change", HARMLESS)
def test_what_a_lock_does_not_protect_may_change(state: TdiState, change: str) -> None:
    config, interface = locked(state, LockParameters())
    HARMLESS[change](config)
    assert interface.state is state


@pytest.mark.parametrize("bit", [regs.PCI_MSIX_FLAGS_ENABLE, regs.PCI_MSIX_FLAGS_MASKALL])
def test_a_locked_msix_control_is_protected(bit: int) -> None:
    config, interface = locked(TdiState.RUN, MSIX)
    in_capability(regs.PCI_CAP_ID_MSIX, regs.PCI_MSIX_FLAGS, bit)(config)
    assert interface.state is TdiState.ERROR


def test_bits_that_were_clear_may_be_set() -> None:
    config = function()
    interface = tdi_of(config).interface
    interface.lock(LockParameters(), SESSION)
    config.write(regs.PCI_COMMAND, 2, COMMAND)
    assert interface.state is TdiState.CONFIG_LOCKED


@given(
    st.lists(st.tuples(st.integers(0, 0x3F), st.integers(0, 0xFF)), max_size=12),
    st.sampled_from([TdiState.CONFIG_LOCKED, TdiState.RUN]),
)
@settings(max_examples=150)
def test_no_write_to_the_header_changes_a_bar_under_a_lock(
    writes: list[tuple[int, int]], state: TdiState
) -> None:
    config, interface = locked(state, LockParameters())

    def protected() -> tuple[bytes, int]:
        return config.read_bytes(regs.PCI_BASE_ADDRESS_0, 24), config.read(regs.PCI_COMMAND, 2)

    before, command = protected()
    changed = False
    for pos, value in writes:
        config.write(pos, 1, value)
        bars, now = protected()
        changed |= bars != before or bool(command & ~now & COMMAND)
        command |= now
    assert interface.state is (TdiState.ERROR if changed else state)


@pytest.mark.parametrize(
    ("pos", "size", "value", "state"),
    [
        pytest.param(regs.PCI_BASE_ADDRESS_0, 4, 0x9000_0000, TdiState.ERROR, id="BAR 0"),
        pytest.param(regs.PCI_SUBORDINATE_BUS, 1, 9, TdiState.CONFIG_LOCKED, id="bus number"),
        pytest.param(regs.PCI_MEMORY_LIMIT, 2, 0x9990, TdiState.CONFIG_LOCKED, id="window"),
    ],
)
def test_bus_numbers_and_windows_of_a_switch_are_no_bars(
    pos: int, size: int, value: int, state: TdiState
) -> None:
    config = ConfigSpace()
    bars = (Bar(0, 0x1000),)
    Header1(0x1B36, 0x000C, bars=bars).write(config)
    set_bar_address(config, 0, 0x8000_0000)
    interface = tdi_of(config, bars).interface
    interface.lock(LockParameters(), SESSION)
    before = config.read(pos, size)
    config.write(pos, size, value)
    assert config.read(pos, size) != before
    assert interface.state is state


def test_power_on_unlocks_every_interface() -> None:
    config = function()
    tdi = tdi_of(config)
    table = TdiTable()
    table.add(tdi)
    for fail in (False, True):
        tdi.interface.lock(LockParameters(), SESSION)
        if fail:
            config.reset()
        table.power_on()
        assert tdi.interface.state is TdiState.CONFIG_UNLOCKED


# IDE streams


def keyed_port() -> tuple[ConfigSpace, int, IdePort]:
    config = ConfigSpace()
    ide = Ide(nr_sel_streams=2)
    (pos,) = add_capabilities(config, [ide])
    port = IdePort(config, pos, ide)
    for slot in stream_slots(0, 3):
        port.program(slot, os.urandom(32))
        port.go(slot)
    block = pos + ide.stream_offset(0)
    config.write(block + regs.PCI_IDE_SEL_CTL, 4, 3 << 24 | regs.PCI_IDE_SEL_CTL_EN)
    return config, block, port


LOSSES: dict[str, Callable[[ConfigSpace, int, IdePort], None]] = {
    "disabled": lambda config, block, port: config.write(block + regs.PCI_IDE_SEL_CTL, 4, 3 << 24),
    "stopped": lambda config, block, port: port.stop(stream_slots(0, 3)[0]),
    "reset": lambda config, block, port: config.reset(),
}


@pytest.mark.parametrize("state", [TdiState.CONFIG_LOCKED, TdiState.RUN])
@pytest.mark.parametrize("loss", LOSSES)
def test_losing_the_stream_of_the_lock_is_an_error(state: TdiState, loss: str) -> None:
    config, block, port = keyed_port()
    interface = tdi_of(function(), port=port).interface
    nonce = interface.lock(LockParameters(stream_id=3), SESSION)
    if state is TdiState.RUN:
        interface.start(nonce)
    LOSSES[loss](config, block, port)
    assert interface.state is TdiState.ERROR


def test_a_device_with_secure_streams_is_locked_with_one_of_them() -> None:
    _, _, port = keyed_port()
    interface = tdi_of(function(), port=port).interface
    with pytest.raises(TdispError) as info:
        interface.lock(LockParameters(stream_id=4), SESSION)
    assert info.value.code == TdispErrorCode.INVALID_REQUEST


def test_a_stream_whose_keys_are_of_another_session_is_refused() -> None:
    _, _, port = keyed_port()
    config = function()
    tdi = Tdi(0x0100, config, [], port=port, keyed=lambda stream, session: session == SESSION)
    with pytest.raises(TdispError):
        tdi.interface.lock(LockParameters(stream_id=3), SESSION + 1)
    tdi.interface.lock(LockParameters(stream_id=3), SESSION)


def test_a_stream_that_is_lost_while_the_lock_is_under_way_fails_it() -> None:
    _, _, port = keyed_port()

    def keyed(stream: int, session: int) -> bool:
        port.stop(stream_slots(0, 3)[0])
        return True

    tdi = Tdi(0x0100, function(), [], port=port, keyed=keyed)
    with pytest.raises(TdispError) as info:
        tdi.interface.lock(LockParameters(stream_id=3), SESSION)
    assert info.value.code == TdispErrorCode.INVALID_DEVICE_CONFIGURATION
    assert tdi.interface.state is TdiState.CONFIG_UNLOCKED


def test_a_stream_that_is_not_the_locks_may_be_lost() -> None:
    config, block, port = keyed_port()
    config.write(block + regs.PCI_IDE_SEL_CTL, 4, 0)
    interface = tdi_of(function(), port=port).interface
    interface.lock(LockParameters(stream_id=3), SESSION)
    config.write(block + regs.PCI_IDE_SEL_CTL, 4, 3 << 24 | regs.PCI_IDE_SEL_CTL_EN)
    config.write(block + regs.PCI_IDE_SEL_CTL, 4, 0)
    assert interface.state is TdiState.CONFIG_LOCKED


# Virtual functions


@pytest.fixture
def vfs() -> Shell:
    sh = boot("server")
    sh.echo("pci-pf-stub", f"{pci(NIC)}/driver_override")
    sh.echo(NIC, "/bus/pci/drivers/pci-pf-stub/bind")
    sh.echo("8", f"{pci(NIC)}/sriov_numvfs")
    return sh


def table_of(sh: Shell) -> TdiTable:
    cma = sh.dev(NIC).hw.cma
    assert cma is not None
    return cma.tdis


def test_virtual_functions_have_interfaces_while_they_are_enabled(vfs: Shell) -> None:
    table = table_of(vfs)
    assert set(table) == set(range(0x100, 0x109))
    vfs.echo("0", f"{pci(NIC)}/sriov_numvfs")
    assert set(table) == {0x100}
    vfs.echo("2", f"{pci(NIC)}/sriov_numvfs")
    assert set(table) == {0x100, 0x101, 0x102}
    assert 0x103 not in table


def test_a_virtual_function_reports_its_part_of_each_bar(vfs: Shell) -> None:
    for index, name in ((0, "0000:01:00.1"), (7, "0000:01:01.0")):
        lines = vfs.cat(f"{pci(name)}/resource").splitlines()
        starts = {n: int(lines[n].split()[0], 16) for n in (0, 2)}
        assert ranges(table_of(vfs)[0x101 + index], MSIX) == [
            (0, starts[0], 0x10000, 0),
            (2, starts[2], 0x1000, TABLE | PBA),
        ]


def sriov(offset: int, size: int, change: Callable[[int], int], sh: Shell) -> None:
    config = sh.dev(NIC).config
    pos = find_ext_capability(config, regs.PCI_EXT_CAP_ID_SRIOV) + offset
    config.write(pos, size, change(config.read(pos, size)))


@pytest.mark.parametrize(
    "change",
    [
        pytest.param(
            partial(sriov, regs.PCI_SRIOV_CTRL, 2, lambda v: v & ~regs.PCI_SRIOV_CTRL_MSE),
            id="memory space of the VFs",
        ),
        pytest.param(
            partial(sriov, regs.PCI_SRIOV_CTRL, 2, lambda v: v & ~regs.PCI_SRIOV_CTRL_VFE),
            id="VF enable",
        ),
        pytest.param(
            partial(sriov, regs.PCI_SRIOV_BAR, 4, lambda v: v ^ 0x100000), id="a BAR of the VFs"
        ),
        pytest.param(partial(sriov, regs.PCI_SRIOV_SYS_PGSIZE, 4, lambda v: 2), id="the page size"),
        pytest.param(lambda sh: sh.echo("1", f"{pci(NIC)}/reset"), id="reset of the PF"),
        pytest.param(lambda sh: sh.echo("1", f"{pci('0000:01:00.3')}/reset"), id="its own reset"),
    ],
)
def test_what_changes_a_virtual_function_ends_its_lock(
    vfs: Shell, change: Callable[[Shell], None]
) -> None:
    interface = table_of(vfs)[0x103]
    interface.lock(LockParameters(), SESSION)
    change(vfs)
    assert interface.state is TdiState.ERROR


def test_a_virtual_function_that_comes_again_is_unlocked(vfs: Shell) -> None:
    table_of(vfs)[0x101].lock(LockParameters(), SESSION)
    vfs.echo("0", f"{pci(NIC)}/sriov_numvfs")
    vfs.echo("1", f"{pci(NIC)}/sriov_numvfs")
    assert table_of(vfs)[0x101].state is TdiState.CONFIG_UNLOCKED


# Which functions


def test_functions_with_tee_io_are_interfaces_of_the_manager_that_secures_them() -> None:
    sh = boot("server")
    managers = {dev.name: set(dev.hw.cma.tdis) for dev in map(sh.dev, sh.devices()) if dev.hw.cma}
    assert managers == {
        NIC: {0x0100},
        "0000:02:00.0": {0x0200, 0x0402},
        "0000:00:08.0": {0x0040},
        "0000:81:00.0": set(),
    }


def test_a_report_filter_may_change_what_is_reported() -> None:
    config = function()

    def emptied(report: Report) -> Report:
        return replace(report, mmio_ranges=())

    tdi = Tdi(0x100, config, memory_bars(config, BARS), report_filter=lambda: emptied)
    assert ranges(tdi.interface, LockParameters()) == []
