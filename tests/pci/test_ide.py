# SPDX-License-Identifier: MIT
"""IDE streams: indices and IDs, registers of both ends, and that every step can be undone."""

from __future__ import annotations

import errno
from collections.abc import Callable

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tests.machines import Shell, boot, fails, pci, without_keys
from tsmfs.base.kobject import Directory, Kobject
from tsmfs.kernel.resource import IORESOURCE_MEM, Resource
from tsmfs.pci import regs
from tsmfs.pci.capability import find_ext_capability
from tsmfs.pci.host_bridge import PciHostBridge
from tsmfs.pci.ide import (
    PciIde,
    pci_ide_init,
    pci_ide_stream_alloc,
    pci_ide_stream_disable,
    pci_ide_stream_enable,
    pci_ide_stream_free,
    pci_ide_stream_register,
    pci_ide_stream_release,
    pci_ide_stream_setup,
    pci_ide_stream_teardown,
    pci_ide_stream_unregister,
)
from tsmfs.pci.pci_dev import Ida, PciDev
from tsmfs.pci.regs import field_get

NIC = "0000:01:00.0"
NVME = "0000:81:00.0"

MACHINE = """\
[[host_bridge]]
stream_pool = {pool}
  [[host_bridge.root_port]]
  slot = 1
  ide = {{ selective_streams = {port} }}
    [[host_bridge.root_port.endpoint]]
    ide = {{ selective_streams = {endpoint} }}
  [[host_bridge.root_port]]
  slot = 2
    [[host_bridge.root_port.endpoint]]
    ide = true
"""


@pytest.fixture
def sh() -> Shell:
    return boot(without_keys("server"), ["pci_pf_stub"])


def alloc(dev: PciDev, stream_id: int = 0) -> PciIde:
    ide = pci_ide_stream_alloc(dev)
    assert ide is not None
    ide.stream_id = stream_id
    return ide


def indices(ide: PciIde) -> tuple[int, int, int]:
    return (
        ide.host_bridge_stream,
        ide.root_port_partner.stream_index,
        ide.endpoint_partner.stream_index,
    )


def streams(bridge: PciHostBridge) -> set[str]:
    return {name for name in bridge.names() if name.startswith("stream")}


def everything(sh: Shell, name: str = NIC) -> object:
    """All that a stream of this function may change."""
    dev = sh.dev(name)
    root_port = dev.root_port
    assert root_port is not None
    return (
        dev.config.read_bytes(0, 4096),
        root_port.config.read_bytes(0, 4096),
        streams(dev.host_bridge),
        [len(ida) for ida in (dev.ide_stream_ida, root_port.ide_stream_ida,
                              dev.host_bridge.ide_stream_ida, dev.host_bridge.ide_stream_ids)],
    )  # fmt: skip


def block(port: PciDev, index: int = 0) -> int:
    """Where the register block of a selective stream is."""
    return (
        port.ide_cap
        + regs.PCI_IDE_LINK_STREAM_0
        + port.nr_link_ide * regs.PCI_IDE_LINK_BLOCK_SIZE
        + index * regs.PCI_IDE_SEL_BLOCK_SIZE(port.nr_ide_mem)
    )


def register(port: PciDev, offset: int, index: int = 0) -> int:
    return port.config.read(block(port, index) + offset, 4)


# Capabilities


@pytest.mark.parametrize(
    ("name", "link", "selective", "blocks", "cfg", "tee_limited"),
    [
        (NIC, 1, 2, 3, True, True),
        (NVME, 0, 1, 1, False, False),
        ("0000:02:00.0", 0, 4, 3, False, True),
        ("0000:00:01.0", 0, 4, 1, False, True),
    ],
)
def test_the_capability_says_what_there_is(
    sh: Shell, name: str, link: int, selective: int, blocks: int, cfg: bool, tee_limited: bool
) -> None:
    dev = sh.dev(name)
    assert dev.ide_cap == find_ext_capability(dev.config, regs.PCI_EXT_CAP_ID_IDE)
    assert (dev.nr_link_ide, dev.nr_sel_ide, dev.nr_ide_mem) == (link, selective, blocks)
    assert (dev.ide_cfg, dev.ide_tee_limit) == (cfg, tee_limited)


def test_functions_without_a_capability_have_none(sh: Shell) -> None:
    for name in ("0000:00:1e.0", "0000:06:00.0", "0000:00:08.0", "0000:04:00.0"):
        assert sh.dev(name).ide_cap == 0


def test_an_endpoint_below_a_port_without_ide_counts_as_without() -> None:
    sh = boot(MACHINE.format(pool=1, port=1, endpoint=1))
    assert sh.dev("0000:01:00.0").ide_cap
    assert find_ext_capability(sh.dev("0000:02:00.0").config, regs.PCI_EXT_CAP_ID_IDE)
    assert sh.dev("0000:02:00.0").ide_cap == 0
    assert pci_ide_stream_alloc(sh.dev("0000:02:00.0")) is None


def test_a_capability_without_selective_streams_counts_as_none(sh: Shell) -> None:
    dev = sh.dev(NVME)
    pos, dev.ide_cap = dev.ide_cap, 0
    cap = dev.config.read(pos + regs.PCI_IDE_CAP, 4)
    dev.config.set(pos + regs.PCI_IDE_CAP, 4, cap & ~regs.PCI_IDE_CAP_SELECTIVE)
    pci_ide_init(dev)
    assert dev.ide_cap == 0


def test_streams_that_differ_in_their_address_blocks_are_skipped(sh: Shell) -> None:
    dev = sh.dev("0000:00:01.0")
    dev.config.set(block(dev, 2) + regs.PCI_IDE_SEL_CAP, 4, 5)
    pci_ide_init(dev)
    assert dev.nr_sel_ide == 2
    assert "PCI/IDE: Unsupported Selective Stream 2 capability, SKIP the rest" in sh.dmesg()


# Indices


@given(st.lists(st.integers(0, 5) | st.none(), max_size=30), st.integers(0, 5))
def test_a_pool_gives_the_lowest_free_number(steps: list[int | None], limit: int) -> None:
    ida, model = Ida(), set[int]()
    for step in steps:
        if step is not None:
            ida.free(step)
            model.discard(step)
            continue
        expected = next((n for n in range(limit) if n not in model), None)
        assert ida.alloc(limit) == expected
        if expected is not None:
            model.add(expected)
        assert len(ida) == len(model)


def test_a_number_is_reserved_once() -> None:
    ida = Ida()
    assert ida.reserve(3)
    assert not ida.reserve(3)
    assert [ida.alloc(5) for _ in range(5)] == [0, 1, 2, 4, None]
    ida.free(3)
    assert ida.reserve(3)


def test_each_index_is_the_lowest_free_one(sh: Shell) -> None:
    nic, nvme = sh.dev(NIC), sh.dev(NVME)
    first, second = alloc(nic), alloc(nic)
    assert [indices(ide) for ide in (first, second, alloc(nvme))] == [
        (0, 0, 0),
        (1, 1, 1),
        (0, 0, 0),
    ]
    pci_ide_stream_free(first)
    assert indices(alloc(nic)) == (0, 0, 0)
    assert sh.cat("/devices/pci0000:00/available_secure_streams") == "6\n"
    assert sh.cat("/devices/pci0000:80/available_secure_streams") == "3\n"


@pytest.mark.parametrize(("pool", "port", "endpoint"), [(1, 4, 4), (4, 1, 4), (4, 4, 1)])
def test_when_any_pool_is_empty_nothing_is_taken(pool: int, port: int, endpoint: int) -> None:
    sh = boot(MACHINE.format(pool=pool, port=port, endpoint=endpoint))
    dev = sh.dev("0000:01:00.0")
    ide = alloc(dev)
    before = everything(sh, dev.name)
    assert pci_ide_stream_alloc(dev) is None
    assert everything(sh, dev.name) == before
    pci_ide_stream_free(ide)
    assert indices(alloc(dev)) == (0, 0, 0)


def test_a_bridge_without_streams_gives_none() -> None:
    sh = boot(MACHINE.format(pool=0, port=1, endpoint=1))
    assert pci_ide_stream_alloc(sh.dev("0000:01:00.0")) is None


@pytest.mark.parametrize("name", ["0000:02:00.0", "0000:00:08.0", "0000:00:01.0", "0000:06:00.0"])
def test_only_endpoints_with_ide_have_streams(sh: Shell, name: str) -> None:
    assert pci_ide_stream_alloc(sh.dev(name)) is None


# Registration


def test_a_registered_stream_is_a_link_to_its_endpoint(sh: Shell) -> None:
    nic = sh.dev(NIC)
    ide, other = alloc(nic, 7), alloc(nic, 9)
    pci_ide_stream_register(other)
    pci_ide_stream_register(ide)
    assert (ide.name, other.name) == ("stream0.0.0", "stream1.1.1")
    for name in ("stream0.0.0", "stream1.1.1"):
        path = f"/devices/pci0000:00/{name}"
        assert sh.readlink(path) == f"0000:00:01.0/{NIC}"
        assert sh.realpath(path) == nic.path()
    pci_ide_stream_unregister(ide)
    pci_ide_stream_unregister(ide)
    assert (ide.name, streams(nic.host_bridge)) == (None, {"stream1.1.1"})


@pytest.mark.parametrize(
    ("stream_id", "number"),
    [(-1, errno.ENXIO), (256, errno.ENXIO), (255, errno.EBUSY), (3, errno.EBUSY)],
)
def test_a_stream_id_out_of_range_or_in_use_is_refused(
    sh: Shell, stream_id: int, number: int
) -> None:
    nic = sh.dev(NIC)
    pci_ide_stream_register(alloc(nic, 3))
    ide = alloc(nic, stream_id)
    before = everything(sh)
    with fails(number):
        pci_ide_stream_register(ide)
    assert everything(sh) == before
    assert "PCI/IDE: Setup fail" in sh.dmesg()


@pytest.mark.parametrize("stream_id", [0, 254])
def test_a_stream_id_is_free_again_once_unregistered(sh: Shell, stream_id: int) -> None:
    ide = alloc(sh.dev(NIC), stream_id)
    for _ in range(2):
        pci_ide_stream_register(ide)
        pci_ide_stream_unregister(ide)


def test_stream_ids_are_unique_in_a_bridge_only(sh: Shell) -> None:
    for name in (NIC, NVME):
        pci_ide_stream_register(alloc(sh.dev(name), 1))


def test_a_name_that_is_taken_gives_the_id_back(sh: Shell) -> None:
    nic = sh.dev(NIC)
    nic.host_bridge.create_link(nic, "stream0.0.0")
    ide = alloc(nic, 1)
    before = everything(sh)
    with fails(errno.EEXIST):
        pci_ide_stream_register(ide)
    assert everything(sh) == before


def test_a_crash_while_a_stream_is_shown_gives_the_id_back(
    sh: Shell, monkeypatch: pytest.MonkeyPatch
) -> None:
    def crash(bridge: Kobject, target: Directory, name: str) -> None:
        raise MemoryError

    ide = alloc(sh.dev(NIC), 1)
    before = everything(sh)
    monkeypatch.setattr(Kobject, "create_link", crash)
    with pytest.raises(MemoryError):
        pci_ide_stream_register(ide)
    monkeypatch.undo()
    assert everything(sh) == before


# Registers


def test_setup_tells_each_end_about_the_other(sh: Shell) -> None:
    nic = sh.dev(NIC)
    ide = alloc(nic, 0x2A)
    port = ide.root_port
    for end, other in ((nic, port), (port, nic)):
        pci_ide_stream_setup(end, ide)
        assert field_get(regs.PCI_IDE_SEL_RID_1_LIMIT, register(end, regs.PCI_IDE_SEL_RID_1)) == (
            other.devid
        )
        rid_2 = register(end, regs.PCI_IDE_SEL_RID_2)
        assert field_get(regs.PCI_IDE_SEL_RID_2_BASE, rid_2) == other.devid
        assert rid_2 & regs.PCI_IDE_SEL_RID_2_VALID
        control = register(end, regs.PCI_IDE_SEL_CTL)
        assert field_get(regs.PCI_IDE_SEL_CTL_ID, control) == 0x2A
        assert bool(control & regs.PCI_IDE_SEL_CTL_CFG_EN) == end.ide_cfg
        assert bool(control & regs.PCI_IDE_SEL_CTL_TEE_LIMITED) == end.ide_tee_limit
        assert not control & regs.PCI_IDE_SEL_CTL_EN
        assert ide.partner(end).setup


def test_the_port_covers_the_virtual_functions_and_the_memory_behind_it(sh: Shell) -> None:
    nic = sh.dev(NIC)
    sh.echo("pci-pf-stub", f"{pci(NIC)}/driver_override")
    sh.echo(NIC, "/bus/pci/drivers/pci-pf-stub/bind")
    sh.echo("8", f"{pci(NIC)}/sriov_numvfs")
    ide = alloc(nic)
    port = ide.root_port
    pci_ide_stream_setup(port, ide)
    assert field_get(regs.PCI_IDE_SEL_RID_1_LIMIT, register(port, regs.PCI_IDE_SEL_RID_1)) == 0x108
    assert field_get(regs.PCI_IDE_SEL_RID_2_BASE, register(port, regs.PCI_IDE_SEL_RID_2)) == 0x100
    # One block: the first of the port's two windows.
    window = port.resource[14]
    assert window is not None
    low = register(port, regs.PCI_IDE_SEL_ADDR_1(0))
    assert low & regs.PCI_IDE_SEL_ADDR_1_VALID
    assert (
        field_get(regs.PCI_IDE_SEL_ADDR_1_BASE_LOW, low) << 20
        | register(port, regs.PCI_IDE_SEL_ADDR_3(0)) << 32
    ) == window.start
    assert (
        field_get(regs.PCI_IDE_SEL_ADDR_1_LIMIT_LOW, low) << 20
        | register(port, regs.PCI_IDE_SEL_ADDR_2(0)) << 32
        | 0xFFFFF
    ) == window.end


def test_address_blocks_hold_64_bit_ranges(sh: Shell) -> None:
    nic = sh.dev(NIC)
    ide = alloc(nic)
    start, end = 0x12345_678_00000, 0x12399_ABC_FFFFF
    ide.endpoint_partner.addresses = [Resource(start, end, "x", IORESOURCE_MEM)]
    pci_ide_stream_setup(nic, ide)
    low = register(nic, regs.PCI_IDE_SEL_ADDR_1(0))
    assert field_get(regs.PCI_IDE_SEL_ADDR_1_BASE_LOW, low) == 0x678
    assert field_get(regs.PCI_IDE_SEL_ADDR_1_LIMIT_LOW, low) == 0xABC
    assert register(nic, regs.PCI_IDE_SEL_ADDR_2(0)) == 0x12399
    assert register(nic, regs.PCI_IDE_SEL_ADDR_3(0)) == 0x12345


def test_a_second_stream_uses_its_own_registers(sh: Shell) -> None:
    nic = sh.dev(NIC)
    alloc(nic)
    ide = alloc(nic, 5)
    first = nic.config.read_bytes(block(nic, 0), block(nic, 1) - block(nic, 0))
    pci_ide_stream_setup(nic, ide)
    assert nic.config.read_bytes(block(nic, 0), len(first)) == first
    assert field_get(regs.PCI_IDE_SEL_CTL_ID, register(nic, regs.PCI_IDE_SEL_CTL, 1)) == 5


def test_an_enabled_stream_is_secure_until_it_is_disabled(sh: Shell) -> None:
    nic = sh.dev(NIC)
    ide = alloc(nic, 4)
    pci_ide_stream_setup(nic, ide)
    pci_ide_stream_enable(nic, ide)
    assert register(nic, regs.PCI_IDE_SEL_CTL) & regs.PCI_IDE_SEL_CTL_EN
    assert register(nic, regs.PCI_IDE_SEL_STS) == regs.PCI_IDE_SEL_STS_STATE_SECURE
    pci_ide_stream_disable(nic, ide)
    assert not register(nic, regs.PCI_IDE_SEL_CTL) & regs.PCI_IDE_SEL_CTL_EN
    assert register(nic, regs.PCI_IDE_SEL_STS) == regs.PCI_IDE_SEL_STS_STATE_INSECURE
    assert register(nic, regs.PCI_IDE_SEL_RID_2) & regs.PCI_IDE_SEL_RID_2_VALID


def test_a_stream_that_does_not_become_secure_is_no_device_or_address(sh: Shell) -> None:
    nic = sh.dev(NIC)
    ide = alloc(nic)
    nic.config.on_read(block(nic) + regs.PCI_IDE_SEL_STS, 4, lambda _: 0)
    with fails(errno.ENXIO):
        pci_ide_stream_enable(nic, ide)
    pci_ide_stream_release(ide)
    assert not register(nic, regs.PCI_IDE_SEL_CTL) & regs.PCI_IDE_SEL_CTL_EN


def test_an_injected_fault_fails_the_enabling(sh: Shell) -> None:
    sh.fault("ide_stream_enable", errno="ETIMEDOUT")
    before = everything(sh)
    ide = alloc(sh.dev(NIC))
    with fails(errno.ETIMEDOUT):
        pci_ide_stream_enable(ide.pdev, ide)
    pci_ide_stream_release(ide)
    assert everything(sh) == before


def test_teardown_clears_what_setup_wrote(sh: Shell) -> None:
    before = everything(sh)
    ide = alloc(sh.dev(NIC), 9)
    for end in (ide.pdev, ide.root_port):
        pci_ide_stream_setup(end, ide)
    for end in (ide.pdev, ide.root_port):
        pci_ide_stream_teardown(end, ide)
        assert not ide.partner(end).setup
    pci_ide_stream_free(ide)
    assert everything(sh) == before


def test_a_port_that_is_no_end_is_invalid(sh: Shell) -> None:
    ide = alloc(sh.dev(NIC))
    for call in (
        pci_ide_stream_setup,
        pci_ide_stream_teardown,
        pci_ide_stream_enable,
        pci_ide_stream_disable,
    ):
        with fails(errno.EINVAL):
            call(sh.dev(NVME), ide)


STEPS: list[Callable[[PciIde], None]] = [
    pci_ide_stream_register,
    lambda ide: pci_ide_stream_setup(ide.pdev, ide),
    lambda ide: pci_ide_stream_setup(ide.root_port, ide),
    lambda ide: pci_ide_stream_enable(ide.pdev, ide),
    lambda ide: pci_ide_stream_enable(ide.root_port, ide),
]


@pytest.mark.parametrize("done", range(len(STEPS) + 1))
def test_release_undoes_as_many_steps_as_were_done(sh: Shell, done: int) -> None:
    before = everything(sh)
    ide = alloc(sh.dev(NIC), 11)
    for step in STEPS[:done]:
        step(ide)
    assert everything(sh) != before
    pci_ide_stream_release(ide)
    assert everything(sh) == before
