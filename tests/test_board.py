# SPDX-License-Identifier: MIT
"""From a description to hardware: every key has its registers, and all fit into the windows."""

from __future__ import annotations

import errno

import pytest

from tests.machines import Shell, boot, fails, pci, without_keys
from tsmfs import description
from tsmfs.board import build_host_bridge, placeholder_mailbox
from tsmfs.kernel.resource import Resource, iomem_resource, ioport_resource
from tsmfs.pci import regs
from tsmfs.pci.capability import find_capability, find_ext_capability
from tsmfs.pci.hardware import HwBus
from tsmfs.pci.regs import PciExpType, field_get

ENDPOINT = """\
[[host_bridge]]
bus = 0x20
  [[host_bridge.root_port]]
  slot = 1
    [[host_bridge.root_port.endpoint]]
    {}
"""

DEVICE = "0000:21:00.0"


def endpoint(*lines: str) -> Shell:
    """A machine with one endpoint that has these keys."""
    return boot(ENDPOINT.format("\n    ".join(lines)))


def cap(sh: Shell, capability: int, name: str = DEVICE) -> int:
    return find_capability(sh.dev(name).config, capability)


def ext_cap(sh: Shell, capability: int, name: str = DEVICE) -> int:
    return find_ext_capability(sh.dev(name).config, capability)


def test_ids_are_those_described() -> None:
    sh = endpoint(
        "vendor = 0x1234", "device = 0x5678", "subsystem_vendor = 0x9abc",
        "subsystem_device = 0xdef0", "class = 0x123456", "revision = 0x78",
    )  # fmt: skip
    assert sh.cat(f"{pci(DEVICE)}/modalias") == (
        "pci:v00001234d00005678sv00009ABCsd0000DEF0bc12sc34i56\n"
    )
    assert sh.cat(f"{pci(DEVICE)}/revision") == "0x78\n"


@pytest.mark.parametrize(
    ("line", "capability"),
    [
        ("pm = true", regs.PCI_CAP_ID_PM),
        ("msi = 4", regs.PCI_CAP_ID_MSI),
        (
            'bar = [{ index = 0, size = "4K" }]\n'
            "    msix = { vectors = 4, bar = 0, pba_offset = 0x800 }",
            regs.PCI_CAP_ID_MSIX,
        ),
    ],
)
def test_capabilities_are_those_described(line: str, capability: int) -> None:
    assert cap(endpoint(line), capability)
    assert not cap(endpoint("pm = false"), capability)


@pytest.mark.parametrize(
    ("line", "capability"),
    [
        ("aer = true", regs.PCI_EXT_CAP_ID_ERR),
        ("ari = true", regs.PCI_EXT_CAP_ID_ARI),
        ("acs = true", regs.PCI_EXT_CAP_ID_ACS),
        ('serial = "52-54-00-ff-fe-00-01-00"', regs.PCI_EXT_CAP_ID_DSN),
        ("doe = true", regs.PCI_EXT_CAP_ID_DOE),
        ("ide = true", regs.PCI_EXT_CAP_ID_IDE),
        ("sriov = { total_vfs = 4 }", regs.PCI_EXT_CAP_ID_SRIOV),
    ],
)
def test_extended_capabilities_are_those_described(line: str, capability: int) -> None:
    assert ext_cap(endpoint(line), capability)
    assert not ext_cap(endpoint(), capability)


@pytest.mark.parametrize(
    ("line", "bit", "value"),
    [
        ("tee_io = true", regs.PCI_EXP_DEVCAP_TEE, True),
        ("tee_io = false", regs.PCI_EXP_DEVCAP_TEE, False),
        ("flr = true", regs.PCI_EXP_DEVCAP_FLR, True),
        ("flr = false", regs.PCI_EXP_DEVCAP_FLR, False),
    ],
)
def test_device_capability_bits(line: str, bit: int, value: bool) -> None:
    assert bool(endpoint(line).dev(DEVICE).devcap & bit) is value


def test_the_link_is_the_one_described_and_down_without_a_device() -> None:
    sh = boot("server", [])
    assert sh.cat(f"{pci('0000:80:01.0')}/max_link_speed") == "16.0 GT/s PCIe\n"
    assert sh.cat(f"{pci('0000:80:01.0')}/current_link_width") == "4\n"
    bare = boot("[[host_bridge]]\n  [[host_bridge.root_port]]\n  slot = 1\n")
    assert bare.cat(f"{pci('0000:00:01.0')}/current_link_width") == "0\n"


def test_kinds_of_ports_and_endpoints() -> None:
    sh = boot("server", [])
    kinds = {name: sh.dev(name).pcie_type for name in sh.devices()}
    assert {kind for kind in kinds.values() if kind is not None} == {
        PciExpType.ROOT_PORT,
        PciExpType.UPSTREAM,
        PciExpType.DOWNSTREAM,
        PciExpType.ENDPOINT,
        PciExpType.RC_END,
    }
    assert [name for name, kind in kinds.items() if kind is None] == ["0000:00:1e.0"]
    assert sh.dev("0000:00:1e.0").config.size == 256


def test_devices_of_several_functions_say_so() -> None:
    sh = boot("server", [])
    multifunction = {
        name for name in sh.devices() if sh.read(f"{pci(name)}/config", 14, 1)[0] & 0x80
    }
    assert multifunction == {"0000:04:00.0", "0000:04:00.1", "0000:04:00.2"}


def test_buses_are_numbered_depth_first() -> None:
    sh = boot("server", [])
    numbers = {
        name: (
            sh.cat(f"{pci(name)}/secondary_bus_number").strip(),
            sh.cat(f"{pci(name)}/subordinate_bus_number").strip(),
        )
        for name in sh.devices()
        if sh.dev(name).subordinate is not None
    }
    assert numbers == {
        "0000:00:01.0": ("1", "1"),
        "0000:00:02.0": ("2", "5"),
        "0000:02:00.0": ("3", "5"),
        "0000:03:00.0": ("4", "4"),
        "0000:03:01.0": ("5", "5"),
        "0000:00:1c.0": ("6", "6"),
        "0000:80:01.0": ("129", "129"),
        "0000:80:02.0": ("130", "130"),
    }


def test_ide_is_as_described() -> None:
    sh = boot("server", [])
    dev = sh.dev("0000:01:00.0")
    capability = dev.config.read(dev.ide_cap + regs.PCI_IDE_CAP, 4)
    assert field_get(regs.PCI_IDE_CAP_SEL_NUM, capability) == 1
    assert field_get(regs.PCI_IDE_CAP_LINK_TC_NUM, capability) == 0
    assert capability & regs.PCI_IDE_CAP_SEL_CFG


def test_a_mailbox_lists_its_protocols_and_serves_none() -> None:
    sh = boot(without_keys("server"))
    mailbox = sh.dev("0000:01:00.0").doe_mailboxes[0]
    assert mailbox.features() == [(1, 0), (1, 1), (1, 2)]
    with fails(errno.EIO):
        mailbox.exchange(1, 1, bytes(4))
    assert placeholder_mailbox([(1, 1)])


def test_virtual_functions_are_as_described() -> None:
    sh = boot("server", ["pci_pf_stub"])
    pf = "0000:01:00.0"
    sh.echo("pci-pf-stub", f"{pci(pf)}/driver_override")
    sh.echo(pf, "/bus/pci/drivers/pci-pf-stub/bind")
    sh.echo("8", f"{pci(pf)}/sriov_numvfs")
    vf = sh.dev("0000:01:01.0")
    assert vf.pcie_type is PciExpType.ENDPOINT
    assert vf.devcap & regs.PCI_EXP_DEVCAP_TEE
    assert cap(sh, regs.PCI_CAP_ID_MSIX, vf.name)
    assert ext_cap(sh, regs.PCI_EXT_CAP_ID_ARI, vf.name)
    assert not ext_cap(sh, regs.PCI_EXT_CAP_ID_IDE, vf.name)
    assert not ext_cap(sh, regs.PCI_EXT_CAP_ID_SRIOV, vf.name)


# Windows


def build(text: str) -> tuple[HwBus, list[Resource]]:
    machine = description.parse(text, "test.toml")
    return build_host_bridge(machine.host_bridges[0], iomem_resource(), ioport_resource())


WINDOWS = """\
[[host_bridge]]
bus = 0x20
{}
  [[host_bridge.conventional]]
  bar = [
    {{ index = 0, size = "2M" }},
    {{ index = 1, size = 32, kind = "io" }},
    {{ index = 2, size = "8M", kind = "mem64", prefetch = true }},
  ]
"""


def test_windows_are_as_large_as_needed() -> None:
    _, windows = build(WINDOWS.format(""))
    assert [(window.name, len(window)) for window in windows] == [
        ("PCI Bus 0000:20", 0x1000),
        ("PCI Bus 0000:20", 0x200000),
        ("PCI Bus 0000:20", 0x800000),
    ]


def test_windows_may_be_larger() -> None:
    _, windows = build(
        WINDOWS.format('io_window = "8K"\nmem32_window = "64M"\nmem64_window = "1G"')
    )
    assert [len(window) for window in windows] == [0x2000, 64 << 20, 1 << 30]


def test_a_bridge_without_needs_has_no_windows() -> None:
    root, windows = build("[[host_bridge]]\n")
    assert (root.functions, windows) == ({}, [])


def test_windows_without_needs_are_made_all_the_same() -> None:
    _, windows = build('[[host_bridge]]\nmem32_window = "16M"\n')
    assert [len(window) for window in windows] == [16 << 20]


@pytest.mark.parametrize("line", ['mem64_window = "4M"', 'mem32_window = "1M"'])
def test_a_window_that_is_too_small_is_no_space(line: str) -> None:
    with fails(errno.ENOSPC):
        build(WINDOWS.format(line))


def test_more_than_the_address_space_holds_is_no_space() -> None:
    bridges = "".join(
        f"[[host_bridge]]\nbus = {bus}\n  [[host_bridge.conventional]]\n"
        '  bar = [{ index = 0, size = "512M" }]\n'
        for bus in range(8)
    )
    with fails(errno.ENOSPC):
        boot(bridges)
