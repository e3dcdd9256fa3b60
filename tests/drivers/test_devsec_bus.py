# SPDX-License-Identifier: MIT
"""The sample bus: two host bridges with TEE-I/O endpoints."""

from __future__ import annotations

import errno
from functools import partial

import pytest

from tests.machines import Shell, boot, fails, pci
from tsmfs.drivers import devsec_bus
from tsmfs.kernel.errors import fail
from tsmfs.pci import regs
from tsmfs.pci.capability import find_capability, find_ext_capability
from tsmfs.pci.pci_dev import PciDev
from tsmfs.pci.regs import PciExpType, field_get

ENDPOINTS = ("10000:01:00.0", "10000:01:00.1", "10001:03:00.0", "10001:03:00.1")
PORTS = ("10000:00:00.0", "10001:02:00.0")


@pytest.fixture
def sh() -> Shell:
    return boot("devsec", ["devsec_bus"])


def test_its_functions_are_below_its_faux_device(sh: Shell) -> None:
    assert set(sh.devices()) == {*ENDPOINTS, *PORTS}
    assert sh.realpath(pci("10000:01:00.0")) == (
        "/devices/faux/devsec_bus/pci10000:00/10000:00:00.0/10000:01:00.0"
    )
    assert sh.realpath(pci("10001:03:00.1")) == (
        "/devices/faux/devsec_bus/pci10001:02/10001:02:00.0/10001:03:00.1"
    )


def test_each_bridge_has_four_streams(sh: Shell) -> None:
    for bridge in ("pci10000:00", "pci10001:02"):
        path = f"/devices/faux/devsec_bus/{bridge}/available_secure_streams"
        assert sh.cat(path) == "4\n"


@pytest.mark.parametrize("name", ENDPOINTS)
def test_an_endpoint_is_as_described(sh: Shell, name: str) -> None:
    files = {n: sh.cat(f"{pci(name)}/{n}") for n in ("vendor", "device", "class")}
    assert files == {"vendor": "0x8086\n", "device": "0xffff\n", "class": "0x120000\n"}
    dev = sh.dev(name)
    assert find_capability(dev.config, regs.PCI_CAP_ID_EXP) == 0x40
    assert dev.pcie_type is PciExpType.ENDPOINT
    assert dev.devcap & regs.PCI_EXP_DEVCAP_FLR
    assert dev.devcap & regs.PCI_EXP_DEVCAP_TEE
    assert sh.read(f"{pci(name)}/config", 0x0E, 1) == b"\x80"
    assert (sh.cat(f"{pci(name)}/max_link_speed"), sh.cat(f"{pci(name)}/max_link_width")) == (
        "2.5 GT/s PCIe\n",
        "1\n",
    )
    bars = list(dev.bars())
    assert [(index, len(bar)) for index, bar in bars] == [(0, 2 << 20)]
    assert sh.cat(f"{pci(name)}/resource").splitlines()[0].endswith("0x000000000014220c")


@pytest.mark.parametrize("name", ENDPOINTS[::2])
def test_function_0_has_a_mailbox_and_ide(sh: Shell, name: str) -> None:
    dev = sh.dev(name)
    doe = find_ext_capability(dev.config, regs.PCI_EXT_CAP_ID_DOE)
    ide = find_ext_capability(dev.config, regs.PCI_EXT_CAP_ID_IDE)
    assert doe == 0x100
    assert dev.config.read(doe, 4) >> 16 & 0xF == 2
    assert doe < ide < 0x140
    cap = dev.config.read(ide + regs.PCI_IDE_CAP, 4)
    for bit in ("LINK", "SELECTIVE", "IDE_KM", "TEE_LIMITED"):
        assert cap & getattr(regs, f"PCI_IDE_CAP_{bit}")
    assert field_get(regs.PCI_IDE_CAP_LINK_TC_NUM, cap) == 3
    assert (dev.nr_link_ide, dev.nr_sel_ide, dev.nr_ide_mem) == (4, 1, 1)
    assert dev.doe_mailboxes[0].features() == [(1, 0), (1, 1)]


def test_function_1_has_neither(sh: Shell) -> None:
    for name in ENDPOINTS[1::2]:
        dev = sh.dev(name)
        assert find_ext_capability(dev.config, regs.PCI_EXT_CAP_ID_DOE) == 0
        assert (dev.ide_cap, dev.doe_mailboxes) == (0, [])


@pytest.mark.parametrize("name", PORTS)
def test_a_root_port_has_ide_alone(sh: Shell, name: str) -> None:
    dev = sh.dev(name)
    assert (dev.pcie_type, dev.class_code) == (PciExpType.ROOT_PORT, 0x060400)
    assert dev.ide_cap == 0x100
    assert dev.config.read(0x100, 4) >> 20 == 0
    assert dev.nr_sel_ide == 1


def test_the_mailbox_answers_discovery_and_refuses_the_rest(sh: Shell) -> None:
    mailbox = sh.dev("10000:01:00.0").doe_mailboxes[0]
    with fails(errno.EIO):
        mailbox.exchange(1, 1, b"\x10\x84\0\0")


def test_addresses_are_listed(sh: Shell) -> None:
    bar = sh.dev("10000:01:00.1").resource[0]
    assert bar is not None
    lines = sh.iomem().splitlines()
    assert sum(line.endswith(": DEVSEC MMIO") for line in lines) == 2
    assert sum(line.endswith(": DEVSEC PREFETCH") for line in lines) == 2
    assert f"    {bar.start:08x}-{bar.end:08x} : 10000:01:00.1" in lines


def test_it_goes_without_a_trace_and_comes_back(sh: Shell) -> None:
    devices = sh.devices()
    sh.rmmod("devsec_bus")
    assert sh.devices() == []
    assert "DEVSEC" not in sh.iomem()
    assert not sh.exists("/bus/faux/devices/devsec_bus")
    assert sh.ls("/class/pci_bus") == set()
    sh.modprobe("devsec_bus")
    assert sh.devices() == devices


def test_it_comes_beside_real_bridges() -> None:
    sh = boot("server", ["devsec_bus"])
    assert {*ENDPOINTS, "0000:01:00.0"} < set(sh.devices())


def _no_room(add: object, host: object, fdev: object, index: int) -> None:
    if index == 1:
        fail(errno.ENOSPC)
    add(host, fdev, index)  # type: ignore[operator]


def test_a_bridge_that_cannot_be_added_takes_the_other_back_out(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    sh = boot("devsec", ["devsec_common"])
    iomem = sh.iomem()
    monkeypatch.setattr(
        devsec_bus, "_add_host_bridge", partial(_no_room, devsec_bus._add_host_bridge)
    )
    with fails(errno.ENOSPC):
        sh.modprobe("devsec_bus")
    assert sh.devices() == []
    assert sh.iomem() == iomem
    assert "devsec_bus" not in sh.ls("/module")
    assert not sh.exists("/bus/faux/devices/devsec_bus")
    monkeypatch.undo()
    sh.modprobe("devsec_bus")
    assert len(sh.devices()) == 6


def test_no_room_for_its_memory_fails_its_load(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(devsec_bus, "MMIO_SIZE", 1 << 31)
    sh = boot("devsec", ["devsec_common"])
    with fails(errno.EBUSY):
        sh.modprobe("devsec_bus")
    assert sh.devices() == []


def test_endpoints_are_the_only_functions_that_can_be_dsm(sh: Shell) -> None:
    sh.modprobe("devsec_link_tsm")
    shown = {name for name in sh.devices() if sh.exists(f"{pci(name)}/tsm/connect")}
    assert shown == set(ENDPOINTS[::2])
    assert isinstance(sh.dev(ENDPOINTS[0]), PciDev)
