# SPDX-License-Identifier: MIT
"""Capability lists: placing, linking, finding, and what each structure's registers do."""

from __future__ import annotations

import itertools
import re
import subprocess
import tracemalloc
from collections.abc import Sequence
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tsmfs.pci import regs
from tsmfs.pci.capability import (
    AccessControl,
    Aer,
    Ari,
    Capability,
    DeviceSerialNumber,
    Doe,
    ExtendedCapability,
    Ide,
    Msi,
    Msix,
    PcieCap,
    PowerManagement,
    Sriov,
    add_capabilities,
    find_capability,
    find_ext_capability,
    set_stream_state,
)
from tsmfs.pci.config import Bar, ConfigSpace, Header0, Header1, bar_address, set_bar_address
from tsmfs.pci.regs import PciBusSpeed, PciExpType, field_get

ALL = 0xFFFF_FFFF


def function(*capabilities: Capability) -> ConfigSpace:
    config = ConfigSpace()
    Header0(0x8086, 0xFFFF, class_code=0x120000, bars=(Bar(0, 1 << 21, True, True),)).write(config)
    add_capabilities(config, capabilities)
    return config


def devsec_endpoint() -> ConfigSpace:
    return function(
        PcieCap(cap_version=0, flr=True, tee_io=True),
        Doe(),
        Ide(nr_link_streams=4, nr_sel_streams=1, nr_addr_assoc=1),
    )


CLASSIC = (
    PowerManagement(pme=0x19),
    Msi(vectors=4, per_vector_masking=True),
    Msix(16, 0, 0x1000, 0, 0x2000),
    PcieCap(flr=True, tee_io=True),
)
EXTENDED = (
    Aer(),
    Ari(next_function=1),
    AccessControl(),
    DeviceSerialNumber(0x0011_2233_4455_6677),
    Sriov(8, vf_device_id=0x10ED, bars=(Bar(0, 1 << 14, True),)),
    Doe(interrupt_message=3),
    Ide(nr_link_streams=2, nr_sel_streams=2),
)


@given(st.permutations(CLASSIC + EXTENDED))
def test_capabilities_are_found_where_they_were_placed_in_any_order(
    capabilities: Sequence[Capability],
) -> None:
    config = ConfigSpace()
    positions = add_capabilities(config, capabilities)

    for capability, pos in zip(capabilities, positions, strict=True):
        if isinstance(capability, ExtendedCapability):
            assert find_ext_capability(config, capability.id) == pos
            header = config.read(pos, 4)
            assert field_get(regs.PCI_EXT_CAP_VER_MASK, header) == capability.version
        else:
            assert find_capability(config, capability.id) == pos
    spans = sorted((pos, pos + cap.size) for pos, cap in zip(positions, capabilities, strict=True))
    assert all(end <= start for (_, end), (start, _) in itertools.pairwise(spans))


def test_no_list_means_nothing_is_found() -> None:
    config = function()
    assert find_capability(config, regs.PCI_CAP_ID_EXP) == 0
    assert find_ext_capability(config, regs.PCI_EXT_CAP_ID_IDE) == 0
    assert find_ext_capability(ConfigSpace(256), regs.PCI_EXT_CAP_ID_IDE) == 0


def test_absent_capabilities_are_not_found() -> None:
    config = devsec_endpoint()
    assert find_capability(config, regs.PCI_CAP_ID_MSIX) == 0
    assert find_ext_capability(config, regs.PCI_EXT_CAP_ID_ERR) == 0


def test_the_next_capability_of_the_same_kind_is_found() -> None:
    config = function(Doe(), Ide(), Doe())
    first = find_ext_capability(config, regs.PCI_EXT_CAP_ID_DOE)
    second = find_ext_capability(config, regs.PCI_EXT_CAP_ID_DOE, first)
    assert (first, second) == (0x100, 0x118 + Ide().size)
    assert find_ext_capability(config, regs.PCI_EXT_CAP_ID_DOE, second) == 0
    assert find_capability(function(*CLASSIC), regs.PCI_CAP_ID_EXP, 0x40) != 0


@given(st.integers(0, 255), st.integers(0, 0xFFF))
def test_a_list_that_loops_ends(following: int, extended: int) -> None:
    config = devsec_endpoint()
    config.set(0x41, 1, following)
    config.set(0x100, 4, regs.PCI_EXT_CAP_ID_DOE | extended << 20)
    assert find_capability(config, 0x7E) == 0
    assert find_ext_capability(config, 0x7E7E) == 0


def test_a_function_that_is_gone_has_no_capabilities() -> None:
    config = ConfigSpace()
    for pos in range(0, 4096, 4):
        config.set(pos, 4, ALL)
    assert find_capability(config, 0xFF) == 0
    assert find_ext_capability(config, 0xFFFF) == 0


def test_a_capability_may_ask_for_its_place() -> None:
    config = function(PcieCap(position=0x80), PowerManagement(position=0x48), Doe(position=0x200))
    assert config.read(regs.PCI_CAPABILITY_LIST, 1) == 0x48
    assert find_capability(config, regs.PCI_CAP_ID_EXP) == 0x80
    assert find_ext_capability(config, regs.PCI_EXT_CAP_ID_DOE) == 0x200
    assert config.read(0x100, 4) == 0x200 << 20


@pytest.mark.parametrize(
    "capabilities",
    [
        (PcieCap(position=0x3C),),
        (PcieCap(position=0x42),),
        (PcieCap(position=0xE0),),
        (PcieCap(position=0x60), PowerManagement(position=0x64)),
        (Doe(position=0xFC),),
        (Ide(nr_sel_streams=256, nr_addr_assoc=15),),
    ],
)
def test_capabilities_without_room_are_refused(capabilities: tuple[Capability, ...]) -> None:
    with pytest.raises(ValueError, match=r"no room|reaches"):
        add_capabilities(ConfigSpace(), capabilities)


def test_a_conventional_function_has_no_extended_capabilities() -> None:
    with pytest.raises(ValueError, match="no room"):
        add_capabilities(ConfigSpace(256), (Doe(),))


def test_adding_capabilities_keeps_the_status_bits_clearable() -> None:
    config = function(PowerManagement())
    config.set(regs.PCI_STATUS, 2, 0xF910)
    config.write(regs.PCI_STATUS, 2, 0xFFFF)
    assert config.read(regs.PCI_STATUS, 2) == regs.PCI_STATUS_CAP_LIST


def test_power_state_takes_d0_and_d3hot_only() -> None:
    config = function(PowerManagement())
    pos = 0x40 + regs.PCI_PM_CTRL
    for wanted, state in ((3, 3), (1, 3), (0, 0), (2, 0)):
        config.write(pos, 2, wanted)
        assert config.read(pos, 2) & regs.PCI_PM_CTRL_STATE_MASK == state
    assert field_get(regs.PCI_PM_CAP_VER_MASK, config.read(0x42, 2)) == 3


def test_msi_programs_address_data_and_masks() -> None:
    config = function(Msi(vectors=8, per_vector_masking=True))
    for pos in range(0x40, 0x58, 2):
        config.write(pos, 2, 0xFFFF)
    assert config.read(0x42, 2) == 0x0001 | 3 << 1 | 7 << 4 | 0x0180
    assert config.read(0x40 + regs.PCI_MSI_ADDRESS_LO, 4) == 0xFFFF_FFFC
    assert config.read(0x40 + regs.PCI_MSI_MASK_64, 4) == 0xFF
    assert config.read(0x40 + regs.PCI_MSI_PENDING_64, 4) == 0
    with pytest.raises(ValueError, match="3 vectors"):
        function(Msi(vectors=3))


def test_msix_enable_and_function_mask_are_all_that_is_writable() -> None:
    config = function(Msix(2048, 2, 0x3000, 4, 0x800))
    config.write_bytes(0x42, b"\xff" * 10)
    assert config.read(0x42, 2) == 0xC7FF
    assert config.read(0x44, 4) == 0x3002
    assert config.read(0x48, 4) == 0x0804
    with pytest.raises(ValueError, match="multiple of 8"):
        function(Msix(1, 0, 0x1004))


def test_initiating_a_function_level_reset_calls_the_hook_and_reads_back_clear() -> None:
    resets: list[int] = []
    config = function(PcieCap(flr=True, on_flr=lambda: resets.append(1)))
    control = 0x40 + regs.PCI_EXP_DEVCTL
    config.write(control, 2, 0x8000 | 0x000F)
    assert (resets, config.read(control, 2)) == ([1], 0x000F)
    config.write(control, 2, 0x000F)
    assert resets == [1]


def test_function_level_reset_without_a_hook_restores_power_on_values() -> None:
    config = function(PcieCap(flr=True))
    set_bar_address(config, 0, 0x2000_0000)
    config.write(0x40 + regs.PCI_EXP_DEVCTL, 2, 0x8000)
    assert bar_address(config, 0) == 0
    assert config.read(0x40 + regs.PCI_EXP_DEVCTL, 2) == 0x2810


def test_function_without_flr_ignores_the_bit() -> None:
    config = function(PcieCap(flr=False))
    set_bar_address(config, 0, 0x2000_0000)
    config.write(0x40 + regs.PCI_EXP_DEVCTL, 2, 0x8000)
    assert bar_address(config, 0) == 0x2000_0000


@pytest.mark.parametrize("speed", list(PciBusSpeed))
def test_link_registers_encode_speed_and_width(speed: PciBusSpeed) -> None:
    config = function(PcieCap(max_link_speed=speed, max_link_width=16, link_width=8))
    lnkcap = config.read(0x40 + regs.PCI_EXP_LNKCAP, 4)
    lnksta = config.read(0x40 + regs.PCI_EXP_LNKSTA, 2)
    assert field_get(regs.PCI_EXP_LNKCAP_SLS, lnkcap) == speed
    assert field_get(regs.PCI_EXP_LNKCAP_MLW, lnkcap) == 16
    assert field_get(regs.PCI_EXP_LNKSTA_CLS, lnksta) == speed
    assert field_get(regs.PCI_EXP_LNKSTA_NLW, lnksta) == 8
    vector = field_get(regs.PCI_EXP_LNKCAP2_SLS, config.read(0x40 + regs.PCI_EXP_LNKCAP2, 4))
    assert vector.bit_length() == speed


def test_an_unplugged_slot_shows_no_link_and_no_card() -> None:
    full = PcieCap(PciExpType.DOWNSTREAM, slot=5, hotplug=True)
    empty = PcieCap(PciExpType.DOWNSTREAM, slot=5, hotplug=True, link_width=0)
    for capability, present in ((full, True), (empty, False)):
        config = function(capability)
        status = config.read(0x40 + regs.PCI_EXP_SLTSTA, 2)
        link = config.read(0x40 + regs.PCI_EXP_LNKSTA, 2)
        assert bool(status & regs.PCI_EXP_SLTSTA_PDS) is present
        assert bool(link & regs.PCI_EXP_LNKSTA_DLLLA) is present


@pytest.mark.parametrize(
    ("capability", "size"),
    [
        (PcieCap(cap_version=0), 0x14),
        (PcieCap(PciExpType.RC_END, cap_version=1), 0x0C),
        (PcieCap(PciExpType.DOWNSTREAM, cap_version=1, slot=1), 0x1C),
        (PcieCap(PciExpType.ROOT_PORT, cap_version=1), 0x24),
        (PcieCap(), 0x3C),
    ],
)
def test_registers_end_where_the_version_says(capability: PcieCap, size: int) -> None:
    config = function(capability)
    assert capability.size == size
    config.write_bytes(0x40 + size, b"\xff" * (0x40 - size))
    assert config.read_bytes(0x40 + size, 0x40 - size) == bytes(0x40 - size)


def test_payload_size_without_encoding_is_refused() -> None:
    with pytest.raises(ValueError, match="Max_Payload_Size"):
        function(PcieCap(max_payload=100))


def test_error_status_is_cleared_by_ones_and_masks_are_writable() -> None:
    config = function(Aer(root=True))
    config.set(0x100 + regs.PCI_ERR_UNCOR_STATUS, 4, regs.PCI_ERR_UNC_UNSUP)
    config.write(0x100 + regs.PCI_ERR_UNCOR_STATUS, 4, regs.PCI_ERR_UNC_UNSUP)
    config.write(0x100 + regs.PCI_ERR_UNCOR_MASK, 4, ALL)
    config.write(0x100 + regs.PCI_ERR_ROOT_COMMAND, 4, ALL)
    assert config.read(0x100 + regs.PCI_ERR_UNCOR_STATUS, 4) == 0
    assert config.read(0x100 + regs.PCI_ERR_UNCOR_MASK, 4) == 0x007F_F030
    assert config.read(0x100 + regs.PCI_ERR_ROOT_COMMAND, 4) == 7


def test_access_control_enables_only_what_it_supports() -> None:
    config = function(AccessControl(regs.PCI_ACS_SV | regs.PCI_ACS_RR))
    config.write(0x100 + regs.PCI_ACS_CTRL, 2, 0xFFFF)
    assert config.read(0x104, 4) == 0x0005_0005


def test_serial_number_and_ari_hold_their_values() -> None:
    config = function(DeviceSerialNumber(0x0123_4567_89AB_CDEF), Ari(next_function=3))
    assert config.read_bytes(0x104, 8) == (0x0123_4567_89AB_CDEF).to_bytes(8, "little")
    assert config.read(0x10C + regs.PCI_ARI_CAP, 2) == 0x0300


def test_vf_enable_tells_how_many_and_locks_their_number() -> None:
    seen: list[int] = []
    config = function(Sriov(8, on_vf_enable=seen.append))
    control, number = 0x100 + regs.PCI_SRIOV_CTRL, 0x100 + regs.PCI_SRIOV_NUM_VF
    config.write(number, 2, 9)
    assert config.read(number, 2) == 0
    config.write(number, 2, 3)
    config.write(control, 2, regs.PCI_SRIOV_CTRL_VFE | regs.PCI_SRIOV_CTRL_MSE)
    config.write(number, 2, 5)
    config.write(control, 2, regs.PCI_SRIOV_CTRL_VFE)
    assert (seen, config.read(number, 2)) == ([3], 3)
    config.write(control, 2, 0)
    config.reset()
    assert seen == [3, 0]


def test_resetting_a_physical_function_takes_its_vfs_away() -> None:
    seen: list[int] = []
    config = function(Sriov(2, on_vf_enable=seen.append))
    config.write(0x100 + regs.PCI_SRIOV_NUM_VF, 2, 2)
    config.write(0x100 + regs.PCI_SRIOV_CTRL, 2, regs.PCI_SRIOV_CTRL_VFE)
    config.reset()
    assert seen == [2, 0]
    assert config.read(0x100 + regs.PCI_SRIOV_NUM_VF, 2) == 0


def test_vf_bars_are_sized_and_page_size_is_one_of_those_supported() -> None:
    config = function(
        Sriov(4, initial_vfs=2, first_vf_offset=0x80, vf_stride=2, bars=(Bar(0, 1 << 14, True),))
    )
    base = 0x100 + regs.PCI_SRIOV_BAR
    config.write(base, 4, ALL)
    assert config.read(base, 4) == 0xFFFF_C004
    set_bar_address(config, 0, 0x10_0000_4000, base)
    assert bar_address(config, 0, base) == 0x10_0000_4000
    config.write(0x100 + regs.PCI_SRIOV_SYS_PGSIZE, 4, ALL)
    assert config.read(0x100 + regs.PCI_SRIOV_SYS_PGSIZE, 4) == 0x553
    assert config.read(0x100 + regs.PCI_SRIOV_INITIAL_VF, 4) == 4 << 16 | 2
    assert config.read(0x100 + regs.PCI_SRIOV_VF_OFFSET, 4) == 2 << 16 | 0x80


def test_devsec_endpoint_is_laid_out_as_the_reference() -> None:
    config = devsec_endpoint()
    assert find_capability(config, regs.PCI_CAP_ID_EXP) == 0x40
    assert config.read(0x42, 2) == 0
    assert config.read(0x44, 4) == regs.PCI_EXP_DEVCAP_FLR | regs.PCI_EXP_DEVCAP_TEE
    assert config.read(0x40 + regs.PCI_EXP_LNKSTA, 2) == 0x11
    assert config.read(0x100, 4) == 0x1182_002E
    assert config.read(0x118, 4) == 0x0001_0030
    assert config.read(0x118 + regs.PCI_IDE_CAP, 4) == 0x0100_6043
    assert config.read(0x118 + 0xC + 4 * 8, 4) == 1


def test_ide_blocks_lie_where_linux_computes_them() -> None:
    ide = Ide(nr_link_streams=3, nr_sel_streams=5, nr_addr_assoc=2)
    config = function(ide)
    cap = config.read(0x104, 4)
    nr_link = 1 + field_get(regs.PCI_IDE_CAP_LINK_TC_NUM, cap)
    nr_sel = 1 + field_get(regs.PCI_IDE_CAP_SEL_NUM, cap)
    first = regs.PCI_IDE_LINK_STREAM_0 + nr_link * regs.PCI_IDE_LINK_BLOCK_SIZE
    assert (nr_link, nr_sel) == (3, 5)
    for index in range(nr_sel):
        block = first + index * regs.PCI_IDE_SEL_BLOCK_SIZE(2)
        assert ide.stream_offset(index) == block
        assert config.read(0x100 + block, 4) == 2
        assert config.rw_mask(0x100 + block + regs.PCI_IDE_SEL_CTL, 4) & regs.PCI_IDE_SEL_CTL_EN
    assert ide.size == ide.stream_offset(5)


@pytest.mark.parametrize(
    ("register", "writable"),
    [
        (regs.PCI_IDE_SEL_CAP, 0),
        (regs.PCI_IDE_SEL_CTL, 0xFFFF_C001),
        (regs.PCI_IDE_SEL_STS, 0),
        (regs.PCI_IDE_SEL_RID_1, 0x00FF_FF00),
        (regs.PCI_IDE_SEL_RID_2, 0xFFFF_FF01),
        (regs.PCI_IDE_SEL_ADDR_1(0), 0xFFFF_FF01),
        (regs.PCI_IDE_SEL_ADDR_2(0), ALL),
        (regs.PCI_IDE_SEL_ADDR_3(0), ALL),
    ],
)
def test_selective_stream_registers_hold_only_the_fields_of_the_specification(
    register: int, writable: int
) -> None:
    ide = Ide(nr_addr_assoc=1)
    pos = 0x100 + ide.stream_offset(0) + register
    config = function(ide)
    before = config.read(pos, 4)
    config.write(pos, 4, ALL)
    assert config.read(pos, 4) & ~0xF == (before | writable) & ~0xF
    assert config.rw_mask(pos, 4) == writable


def test_optional_ide_features_have_their_control_bits() -> None:
    bare = Ide(nr_link_streams=1, tee_limited=False, ide_km=False)
    rich = Ide(
        nr_link_streams=1,
        selective_config=True,
        flow_through=True,
        partial_header_encryption=True,
        aggregation=True,
        pcrc=True,
    )
    for ide, capability, flow, link, selective in (
        (bare, 0x03, 0, 0xFF3F_C001, 0xFF7F_C001),
        (rich, 0x0100_00FF, 4, 0xFF3F_FDFD, 0xFFFF_FFFD),
    ):
        config = function(ide)
        assert config.read(0x104, 4) == capability
        assert config.rw_mask(0x108, 4) == flow
        assert config.rw_mask(0x10C, 4) == link
        assert config.rw_mask(0x100 + ide.stream_offset(0) + 4, 4) == selective


def test_only_link_streams_is_a_legal_ide_capability() -> None:
    config = function(Ide(nr_link_streams=2, nr_sel_streams=0))
    assert config.read(0x104, 4) & 3 == regs.PCI_IDE_CAP_LINK


@given(st.lists(st.tuples(st.integers(0, 1), st.booleans(), st.integers(0, 255)), max_size=12))
def test_stream_state_follows_the_enable_bit_of_its_own_stream(
    writes: list[tuple[int, bool, int]],
) -> None:
    ide = Ide(nr_sel_streams=2)
    config = function(ide)
    expected = [0, 0]
    for index, enable, stream_id in writes:
        config.write(0x100 + ide.stream_offset(index) + 4, 4, stream_id << 24 | enable)
        expected[index] = 2 if enable else 0
        states = [config.read(0x108 + ide.stream_offset(number), 4) & 0xF for number in (0, 1)]
        assert states == expected


def test_a_gate_keeps_a_stream_insecure() -> None:
    allowed = {1}
    ide = Ide(nr_sel_streams=2, stream_gate=allowed.__contains__)
    config = function(ide)
    states = []
    for index in (0, 1, 0):
        config.write(0x104 + ide.stream_offset(index), 4, 1)
        states.append(config.read(0x108 + ide.stream_offset(index), 4))
        allowed.add(0)
    assert states == [0, 2, 2]


def test_hardware_can_drop_a_stream_and_leave_the_fail_bit_to_software() -> None:
    ide = Ide()
    config = function(ide)
    block = 0x100 + ide.stream_offset(0)
    config.write(block + 4, 4, 1)
    config.set(block + 8, 4, regs.PCI_IDE_SEL_STS_IDE_FAIL | 2)
    set_stream_state(config, block, regs.PCI_IDE_SEL_STS_STATE_INSECURE)
    assert config.read(block + 8, 4) == regs.PCI_IDE_SEL_STS_IDE_FAIL
    config.write(block + 8, 4, ALL)
    assert config.read(block + 8, 4) == 0


def test_reset_makes_streams_insecure() -> None:
    ide = Ide()
    config = function(ide)
    config.write(0x104 + ide.stream_offset(0), 4, 1)
    config.reset()
    assert config.read(0x108 + ide.stream_offset(0), 4) == 0


def test_thousands_of_functions_fit_in_memory() -> None:
    devsec_endpoint()
    tracemalloc.start()
    try:
        functions = [devsec_endpoint() for _ in range(100)]
        used, _ = tracemalloc.get_traced_memory()
    finally:
        tracemalloc.stop()
    assert used / len(functions) < 8192


def lspci(tmp_path: Path, config: ConfigSpace) -> str:
    image = config.read_bytes(0, 4096)
    lines = ["00:00.0 a function"]
    for pos in range(0, 4096, 16):
        lines.append(f"{pos:02x}: {image[pos : pos + 16].hex(' ')}")
    dump = tmp_path / "dump"
    dump.write_text("\n".join(lines) + "\n\n")
    command = ["lspci", "-F", str(dump), "-n", "-vvv"]
    return subprocess.run(command, check=True, capture_output=True, text=True, timeout=30).stdout


def test_lspci_decodes_an_endpoint(tmp_path: Path) -> None:
    config = function(*CLASSIC, *EXTENDED)
    text = lspci(tmp_path, config)
    for pattern in (
        r"8086:ffff",
        r"Power Management version 3",
        r"PME\(D0\+,D1-,D2-,D3hot\+,D3cold\+\)",
        r"MSI: Enable- Count=1/4 Maskable\+ 64bit\+",
        r"MSI-X: Enable- Count=16 Masked-",
        r"Vector table: BAR=0 offset=00001000",
        r"PBA: BAR=0 offset=00002000",
        r"Express \(v2\) Endpoint",
        r"FLReset\+",
        r"LnkSta:\s+Speed 2.5GT/s.*, Width x1",
        r"Advanced Error Reporting",
        r"Alternative Routing-ID Interpretation",
        r"Access Control Services",
        r"Device Serial Number 00-11-22-33-44-55-66-77",
        r"Single Root I/O Virtualization",
        r"Initial VFs: 8, Total VFs: 8, Number of VFs: 0",
        r"Device ID: 10ed",
        r"Data Object Exchange",
        r"DOECap: IntSup\+",
        r"Interrupt Message Number 003|IntMsgNum 3",
        r"Extended Capability ID 0x30|Integrity & Data Encryption",
    ):
        assert re.search(pattern, text), f"{pattern!r} is not in:\n{text}"


def test_lspci_decodes_a_root_port(tmp_path: Path) -> None:
    config = ConfigSpace()
    Header1(0x8086, 0xFFFF, secondary=1, subordinate=1).write(config)
    port = PcieCap(
        PciExpType.ROOT_PORT,
        max_link_speed=PciBusSpeed.PCIE_SPEED_32_0GT,
        max_link_width=16,
        slot=7,
        hotplug=True,
        ari_forwarding=True,
        port_number=2,
    )
    add_capabilities(config, (port, Ide(nr_link_streams=4)))
    text = lspci(tmp_path, config)
    for pattern in (
        r"Bus: primary=00, secondary=01, subordinate=01",
        r"Express \(v2\) Root Port \(Slot\+\)",
        r"LnkCap:\s+Port #2, Speed 32GT/s, Width x16",
        r"DLActive\+",
        r"Slot #7",
        r"HotPlug\+ Surprise\+",
        r"PresDet\+",
        r"ARIFwd\+",
        r"\[100 v1\] (Extended Capability ID 0x30|Integrity & Data Encryption)",
    ):
        assert re.search(pattern, text), f"{pattern!r} is not in:\n{text}"
