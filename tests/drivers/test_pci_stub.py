# SPDX-License-Identifier: MIT
"""The stub driver: it takes what it is given and does nothing with it."""

from __future__ import annotations

from tests.machines import boot, pci

NVME = "0000:81:00.0"


def test_it_takes_what_new_id_gives_it_and_lets_go_when_unloaded() -> None:
    sh = boot("server", ["pci_stub"])
    assert not sh.exists(f"{pci(NVME)}/driver")
    sh.echo("1b36 0010", "/bus/pci/drivers/pci-stub/new_id")
    assert sh.readlink(f"{pci(NVME)}/driver").endswith("/bus/pci/drivers/pci-stub")
    assert f"pci-stub {NVME}: claimed by stub" in sh.dmesg()
    sh.rmmod("pci_stub")
    assert not sh.exists(f"{pci(NVME)}/driver")
    assert not sh.exists("/bus/pci/drivers/pci-stub")


def test_it_takes_what_is_overridden() -> None:
    sh = boot("server", [])
    sh.echo("pci-stub", f"{pci(NVME)}/driver_override")
    sh.modprobe("pci-stub")
    assert sh.exists(f"{pci(NVME)}/driver")
