# SPDX-License-Identifier: MIT
"""The driver for physical functions that only provide virtual ones."""

from __future__ import annotations

from tests.machines import boot, pci

NIC = "0000:01:00.0"


def test_it_lets_a_physical_function_have_virtual_ones() -> None:
    sh = boot("server", ["pci_pf_stub"])
    sh.echo("1af4 1041", "/bus/pci/drivers/pci-pf-stub/new_id")
    assert f"pci-pf-stub {NIC}: claimed by pf-stub" in sh.dmesg()
    sh.echo("2", f"{pci(NIC)}/sriov_numvfs")
    assert "0000:01:00.2" in sh.devices()
    sh.echo("0", f"{pci(NIC)}/sriov_numvfs")
    assert "0000:01:00.2" not in sh.devices()


def test_virtual_functions_outlive_the_module() -> None:
    sh = boot("server", ["pci_pf_stub"])
    sh.echo("pci-pf-stub", f"{pci(NIC)}/driver_override")
    sh.echo(NIC, "/bus/pci/drivers/pci-pf-stub/bind")
    sh.echo("1", f"{pci(NIC)}/sriov_numvfs")
    sh.rmmod("pci_pf_stub")
    assert "0000:01:00.1" in sh.devices()
    assert not sh.exists(f"{pci(NIC)}/driver")
