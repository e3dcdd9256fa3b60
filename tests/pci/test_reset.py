# SPDX-License-Identifier: MIT
"""Function resets: which there are, choosing among them, and what survives one."""

from __future__ import annotations

import errno

import pytest

from tests.machines import boot, fails, pci
from tsmfs.pci import regs
from tsmfs.pci.capability import PowerManagement, find_capability, find_ext_capability
from tsmfs.pci.reset import pci_init_reset_methods, pci_reset_function

NIC = pci("0000:01:00.0")

PLAIN = """\
[[host_bridge]]
  [[host_bridge.conventional]]
  slot = 2
  pm = true
  bar = [{ index = 0, size = "4K" }]
  [[host_bridge.root_port]]
  slot = 1
    [[host_bridge.root_port.endpoint]]
    flr = false
    pm = true
  [[host_bridge.root_port]]
  slot = 3
    [[host_bridge.root_port.endpoint]]
    flr = false
    [[host_bridge.root_port.endpoint]]
    function = 1
    flr = false
"""


@pytest.mark.parametrize(
    ("device", "methods"),
    [
        ("0000:01:00.0", "flr bus\n"),
        ("0000:04:00.0", "flr\n"),
        ("0000:04:00.2", "flr\n"),
        ("0000:00:08.0", "flr\n"),
        ("0000:81:00.0", "flr bus\n"),
    ],
)
def test_methods_are_listed_in_the_order_of_trial(device: str, methods: str) -> None:
    assert boot("server").cat(f"{pci(device)}/reset_method") == methods


@pytest.mark.parametrize("device", ["0000:04:00.1", "0000:00:1e.0", "0000:00:01.0"])
def test_a_function_without_a_method_has_no_files(device: str) -> None:
    assert not {"reset", "reset_method"} & boot("server").ls(pci(device))


def test_a_function_alone_on_its_bus_is_reset_with_the_bus() -> None:
    sh = boot(PLAIN)
    assert "bus" in sh.cat(f"{pci('0000:01:00.0')}/reset_method").split()
    assert not sh.exists(f"{pci('0000:02:00.0')}/reset_method")


def test_power_management_resets_unless_the_state_survives_d3() -> None:
    sh = boot(PLAIN)
    dev = sh.dev("0000:00:02.0")
    pos = find_capability(dev.config, regs.PCI_CAP_ID_PM)
    control = dev.config.read(pos + regs.PCI_PM_CTRL, 2)
    dev.config.set(pos + regs.PCI_PM_CTRL, 2, control & ~regs.PCI_PM_CTRL_NO_SOFT_RESET)
    pci_init_reset_methods(dev)
    assert dev.reset_methods == ["pm"]
    dev.config.set(pos + regs.PCI_PM_CTRL, 2, control | regs.PCI_PM_CTRL_NO_SOFT_RESET)
    pci_init_reset_methods(dev)
    assert dev.reset_methods == []
    assert PowerManagement.id == regs.PCI_CAP_ID_PM


def test_methods_can_be_chosen_and_brought_back() -> None:
    sh = boot("server")
    for text, expected in (
        ("bus", "bus\n"),
        ("bus flr", "bus flr\n"),
        ("  flr   bus  ", "flr bus\n"),
        ("flr flr", "flr\n"),
        ("", ""),
        ("default", "flr bus\n"),
    ):
        sh.echo(text, f"{NIC}/reset_method")
        assert sh.cat(f"{NIC}/reset_method") == expected


@pytest.mark.parametrize(
    "text", ["pm", "flr pm", "what", "flr default", "FLR", "flr,bus", "\udcff"]
)
def test_a_method_that_is_unknown_or_not_there_changes_nothing(text: str) -> None:
    sh = boot("server")
    with fails(errno.EINVAL):
        sh.write(f"{NIC}/reset_method", text.encode(errors="surrogateescape"))
    assert sh.cat(f"{NIC}/reset_method") == "flr bus\n"


@pytest.mark.parametrize("text", ["0", "2", "", "x", "-1", "11111111111111111111111"])
def test_only_a_one_resets(text: str) -> None:
    sh = boot("server")
    with fails(errno.EINVAL):
        sh.echo(text, f"{NIC}/reset")
    assert "reset by" not in sh.dmesg()


def test_a_reset_restores_what_the_kernel_had_programmed() -> None:
    sh = boot("server")
    sh.echo("1", f"{NIC}/enable")
    header = sh.read(f"{NIC}/config", 0, 64)
    aer = find_ext_capability(sh.dev("0000:01:00.0").config, regs.PCI_EXT_CAP_ID_ERR)
    mask = aer + regs.PCI_ERR_COR_MASK
    before = sh.read(f"{NIC}/config", mask, 4)
    sh.write(f"{NIC}/config", bytes(4), mask)
    sh.echo("1", f"{NIC}/reset")
    assert sh.read(f"{NIC}/config", 0, 64) == header
    assert sh.read(f"{NIC}/config", mask, 4) == before
    assert "0000:01:00.0: reset by flr" in sh.dmesg()


@pytest.mark.parametrize("num_vfs", [0, 3])
def test_a_reset_keeps_virtual_functions(num_vfs: int) -> None:
    sh = boot("server")
    sh.echo("pci-pf-stub", f"{NIC}/driver_override")
    sh.echo("0000:01:00.0", "/bus/pci/drivers/pci-pf-stub/bind")
    sh.echo(str(num_vfs), f"{NIC}/sriov_numvfs")
    dev = sh.dev("0000:01:00.0")
    assert dev.sriov is not None
    pos = dev.sriov.pos
    before = sh.read(f"{NIC}/config", pos, regs.PCI_EXT_CAP_SRIOV_SIZEOF)
    sh.echo("1", f"{NIC}/reset")
    assert sh.read(f"{NIC}/config", pos, regs.PCI_EXT_CAP_SRIOV_SIZEOF) == before


def test_a_function_without_virtual_functions_is_reset_too() -> None:
    sh = boot("server")
    nvme = pci("0000:81:00.0")
    before = sh.read(f"{nvme}/config")
    sh.echo("1", f"{nvme}/reset")
    assert sh.read(f"{nvme}/config") == before


def test_without_a_method_there_is_no_reset() -> None:
    sh = boot("server")
    sh.echo("", f"{NIC}/reset_method")
    with fails(errno.ENOTTY):
        sh.echo("1", f"{NIC}/reset")
    with fails(errno.ENOTTY):
        pci_reset_function(sh.dev("0000:00:1e.0"))
