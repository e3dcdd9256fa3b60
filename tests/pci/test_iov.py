# SPDX-License-Identifier: MIT
"""SR-IOV: virtual functions come and go with ``sriov_numvfs``."""

from __future__ import annotations

import errno
from collections.abc import Callable

import pytest

from tests.machines import Shell, boot, errno_of_result, fails, pci, summary, threads
from tsmfs.base.driver import driver_register
from tsmfs.kernel.errors import fail
from tsmfs.pci import regs
from tsmfs.pci.iov import (
    pci_disable_sriov,
    pci_enable_sriov,
    pci_iov_init,
    pci_sriov_configure_simple,
)
from tsmfs.pci.pci_dev import PciDev, PciDeviceId, PciDriver

NIC = "0000:01:00.0"
PF = pci(NIC)
VFS = [*(f"0000:01:00.{number}" for number in range(1, 8)), "0000:01:01.0"]


def claim(sh: Shell) -> None:
    """Bind the driver that lets the NIC have virtual functions."""
    sh.echo("pci-pf-stub", f"{PF}/driver_override")
    sh.echo(NIC, "/bus/pci/drivers/pci-pf-stub/bind")


@pytest.fixture
def sh() -> Shell:
    sh = boot("server", ["pci_pf_stub"])
    claim(sh)
    return sh


def vfs(sh: Shell) -> list[str]:
    return [name for name in sh.devices() if name in VFS]


def set_vfs(sh: Shell, number: object) -> None:
    sh.echo(str(number), f"{PF}/sriov_numvfs")


def control(sh: Shell) -> tuple[int, int]:
    """Virtual functions as the hardware has them: enable bits and number."""
    dev = sh.dev(NIC)
    assert dev.sriov is not None
    return (
        dev.config.read(dev.sriov.pos + regs.PCI_SRIOV_CTRL, 2),
        dev.config.read(dev.sriov.pos + regs.PCI_SRIOV_NUM_VF, 2),
    )


def test_a_physical_function_has_its_files(sh: Shell) -> None:
    files = {name: sh.cat(f"{PF}/{name}") for name in sh.ls(PF) if name.startswith("sriov_")}
    assert files == {
        "sriov_totalvfs": "8\n",
        "sriov_numvfs": "0\n",
        "sriov_offset": "1\n",
        "sriov_stride": "1\n",
        "sriov_vf_device": "1041\n",
        "sriov_drivers_autoprobe": "1\n",
        "sriov_vf_total_msix": "0\n",
    }
    assert {name: sh.mode(f"{PF}/{name}") for name in files} == {
        name: 0o644 if name in ("sriov_numvfs", "sriov_drivers_autoprobe") else 0o444
        for name in files
    }
    assert not [name for name in sh.ls(pci("0000:81:00.0")) if name.startswith("sriov_")]


def test_a_capability_for_no_functions_counts_as_none(sh: Shell) -> None:
    dev = sh.dev(NIC)
    assert dev.sriov is not None
    dev.config.set(dev.sriov.pos + regs.PCI_SRIOV_TOTAL_VF, 2, 0)
    dev.sriov = None
    pci_iov_init(sh.machine.pci, dev)
    assert dev.sriov is None


@pytest.mark.parametrize("number", [1, 3, 8])
def test_virtual_functions_are_added_with_links_both_ways(sh: Shell, number: int) -> None:
    set_vfs(sh, number)
    assert vfs(sh) == VFS[:number]
    assert sh.cat(f"{PF}/sriov_numvfs") == f"{number}\n"
    for index, name in enumerate(VFS[:number]):
        assert sh.readlink(f"{PF}/virtfn{index}") == f"../{name}"
        assert sh.readlink(f"{pci(name)}/physfn") == f"../{NIC}"
        assert sh.dev(name).is_virtfn
    assert len([name for name in sh.ls(PF) if name.startswith("virtfn")]) == number
    assert control(sh) == (regs.PCI_SRIOV_CTRL_VFE | regs.PCI_SRIOV_CTRL_MSE, number)


def test_virtual_functions_are_removed_without_a_trace(sh: Shell) -> None:
    before, iomem = sh.ls(PF), sh.iomem()
    set_vfs(sh, 4)
    assert sh.iomem() != iomem
    set_vfs(sh, 0)
    assert vfs(sh) == []
    assert (sh.ls(PF), sh.iomem()) == (before, iomem)
    assert control(sh) == (0, 0)
    set_vfs(sh, 8)
    assert vfs(sh) == VFS


def test_a_virtual_function_is_a_part_of_its_physical_one(sh: Shell) -> None:
    set_vfs(sh, 2)
    vf = pci(VFS[1])
    assert {n: sh.cat(f"{vf}/{n}") for n in ("vendor", "device", "class", "subsystem_vendor")} == {
        "vendor": "0x1af4\n",
        "device": "0x1041\n",
        "class": "0x020000\n",
        "subsystem_vendor": "0x1af4\n",
    }
    assert sh.read(f"{vf}/config", 0, 4) == b"\xff\xff\xff\xff"
    assert sh.cat(f"{vf}/resource").splitlines()[0] == (
        "0x0000004301010000 0x000000430101ffff 0x000000000014220c"
    )
    assert (
        "    4301000000-430107ffff : 0000:01:00.0\n"
        "      4301000000-430100ffff : 0000:01:00.1\n"
        "      4301010000-430101ffff : 0000:01:00.2\n"
    ) in sh.iomem()


def test_a_virtual_function_has_neither_pools_nor_numvfs(sh: Shell) -> None:
    set_vfs(sh, 1)
    files = sh.ls(pci(VFS[0]))
    assert {name for name in files if "sriov" in name} == {"sriov_vf_msix_count"}
    assert "physfn" in files
    dev = sh.dev(VFS[0])
    assert (dev.sriov, dev.ide_cap, dev.doe_mailboxes) == (None, 0, [])


def test_uevents_of_virtual_functions(sh: Shell) -> None:
    events = sh.uevents()
    set_vfs(sh, 2)
    set_vfs(sh, 0)
    assert summary(events) == [
        f"add {VFS[0]}",
        f"change {VFS[0]}",
        f"add {VFS[1]}",
        f"change {VFS[1]}",
        f"change {NIC}",
        f"remove {VFS[1]}",
        f"remove {VFS[0]}",
    ]


# What is refused


@pytest.mark.parametrize(
    ("text", "number"),
    [
        ("9", errno.ERANGE),
        ("65535", errno.ERANGE),
        ("65536", errno.EINVAL),
        ("-1", errno.EINVAL),
        ("", errno.EINVAL),
        ("x", errno.EINVAL),
        ("4 ", errno.EINVAL),
        ("0x", errno.EINVAL),
    ],
)
def test_numbers_that_are_refused(sh: Shell, text: str, number: int) -> None:
    with fails(number):
        set_vfs(sh, text)
    assert vfs(sh) == []


def test_numbers_are_in_c_notation(sh: Shell) -> None:
    set_vfs(sh, "0x2")
    assert vfs(sh) == VFS[:2]


def test_the_number_changes_only_through_zero(sh: Shell) -> None:
    set_vfs(sh, 2)
    set_vfs(sh, 2)
    for other in (1, 3):
        with fails(errno.EBUSY):
            set_vfs(sh, other)
    assert vfs(sh) == VFS[:2]
    assert "2 VFs already enabled. Disable before enabling 3 VFs" in sh.dmesg()


def test_without_a_driver_there_are_no_virtual_functions() -> None:
    sh = boot("server", ["pci_stub"])
    with fails(errno.ENOENT):
        set_vfs(sh, 1)
    assert "no driver bound to device; cannot configure SR-IOV" in sh.dmesg()
    set_vfs(sh, 0)
    # The range is checked before that.
    with fails(errno.ERANGE):
        set_vfs(sh, 9)
    sh.echo("pci-stub", f"{PF}/driver_override")
    sh.echo(NIC, "/bus/pci/drivers/pci-stub/bind")
    with fails(errno.ENOENT):
        set_vfs(sh, 1)
    assert "driver does not support SRIOV" in sh.dmesg().replace("SR-IOV", "SRIOV")


def test_virtual_functions_stay_when_the_driver_goes(sh: Shell) -> None:
    set_vfs(sh, 1)
    sh.echo(NIC, "/bus/pci/drivers/pci-pf-stub/unbind")
    assert vfs(sh) == VFS[:1]
    set_vfs(sh, 1)
    with fails(errno.ENOENT):
        set_vfs(sh, 0)


# In the life of other things


@pytest.mark.parametrize("how", ["remove", "unplug", "upstream"])
def test_virtual_functions_go_with_the_physical_one(sh: Shell, how: str) -> None:
    set_vfs(sh, 3)
    match how:
        case "remove":
            sh.echo("1", f"{PF}/remove")
        case "unplug":
            sh.echo(NIC, "/kernel/tsmfs/unplug")
        case _:
            sh.echo("1", f"{pci('0000:00:01.0')}/remove")
    assert vfs(sh) == []
    if how == "unplug":
        sh.echo(NIC, "/kernel/tsmfs/plug")
    sh.echo("1", "/bus/pci/rescan")
    assert sh.cat(f"{PF}/sriov_numvfs") == "0\n"
    assert vfs(sh) == []
    claim(sh)
    set_vfs(sh, 1)
    assert vfs(sh) == VFS[:1]


def test_a_virtual_function_removed_by_hand_leaves_no_link(sh: Shell) -> None:
    set_vfs(sh, 2)
    sh.echo("1", f"{pci(VFS[0])}/remove")
    assert vfs(sh) == VFS[1:2]
    assert {name for name in sh.ls(PF) if name.startswith("virtfn")} == {"virtfn1"}
    set_vfs(sh, 0)
    assert vfs(sh) == []
    set_vfs(sh, 2)
    assert vfs(sh) == VFS[:2]


def test_a_rescan_does_not_find_virtual_functions(sh: Shell) -> None:
    set_vfs(sh, 2)
    sh.echo("1", f"{pci(VFS[0])}/remove")
    sh.echo("1", "/bus/pci/rescan")
    assert vfs(sh) == VFS[1:2]


# Drivers of virtual functions


def test_drivers_take_virtual_functions_unless_autoprobe_is_off(sh: Shell) -> None:
    sh.modprobe("pci_stub")
    sh.echo("1af4 1041", "/bus/pci/drivers/pci-stub/new_id")
    set_vfs(sh, 1)
    assert sh.exists(f"{pci(VFS[0])}/driver")
    set_vfs(sh, 0)
    sh.echo("0", f"{PF}/sriov_drivers_autoprobe")
    assert sh.cat(f"{PF}/sriov_drivers_autoprobe") == "0\n"
    set_vfs(sh, 2)
    assert not sh.exists(f"{pci(VFS[0])}/driver")
    with fails(errno.ENODEV):
        sh.echo(VFS[0], "/bus/pci/drivers/pci-stub/bind")
    sh.echo("pci-stub", f"{pci(VFS[1])}/driver_override")
    sh.echo(VFS[1], "/bus/pci/drivers/pci-stub/bind")
    assert sh.exists(f"{pci(VFS[1])}/driver")


@pytest.mark.parametrize("text", ["", "2", "maybe"])
def test_drivers_autoprobe_is_a_boolean(sh: Shell, text: str) -> None:
    with fails(errno.EINVAL):
        sh.echo(text, f"{PF}/sriov_drivers_autoprobe")


def test_the_number_of_vectors_cannot_be_set(sh: Shell) -> None:
    set_vfs(sh, 1)
    with fails(errno.EOPNOTSUPP):
        sh.echo("4", f"{pci(VFS[0])}/sriov_vf_msix_count")
    with fails(errno.EINVAL):
        sh.echo("x", f"{pci(VFS[0])}/sriov_vf_msix_count")


def use_driver(sh: Shell, configure: Callable[[PciDev, int], int]) -> None:
    class Driver(PciDriver):
        __slots__ = ()
        id_table = (PciDeviceId(0x1AF4, 0x1041),)

        def sriov_configure(self, dev: PciDev, num_vfs: int) -> int:
            return configure(dev, num_vfs)

    sh.echo(NIC, "/bus/pci/drivers/pci-pf-stub/unbind")
    sh.echo("", f"{PF}/driver_override")
    driver_register(Driver(sh.machine.core, sh.machine.pci.bus_type, "mine", None))


def test_a_driver_may_enable_less_than_asked_for(sh: Shell) -> None:
    def half(dev: PciDev, num_vfs: int) -> int:
        return pci_sriov_configure_simple(dev, num_vfs // 2)

    use_driver(sh, half)
    set_vfs(sh, 4)
    assert vfs(sh) == VFS[:2]
    assert "4 VFs requested; only 2 enabled" in sh.dmesg()


@pytest.mark.parametrize("crash", [True, False])
def test_a_driver_that_fails_to_enable_is_the_writers_error(sh: Shell, crash: bool) -> None:
    def refuse(dev: PciDev, num_vfs: int) -> int:
        return num_vfs // 0 if crash else fail(errno.ENOSPC)

    use_driver(sh, refuse)
    with fails(errno.EIO if crash else errno.ENOSPC):
        set_vfs(sh, 4)
    assert vfs(sh) == []


def test_enabling_is_all_or_none(sh: Shell, monkeypatch: pytest.MonkeyPatch) -> None:
    before, iomem = sh.ls(PF), sh.iomem()
    add = PciDev.device_add

    def device_add(dev: PciDev) -> None:
        if dev.name == VFS[2]:
            fail(errno.ENOMEM)
        add(dev)

    monkeypatch.setattr(PciDev, "device_add", device_add)
    with fails(errno.ENOMEM):
        set_vfs(sh, 4)
    assert vfs(sh) == []
    assert (sh.ls(PF), sh.iomem()) == (before, iomem)
    assert sh.cat(f"{PF}/sriov_numvfs") == "0\n"
    assert control(sh) == (0, 0)
    assert list(sh.dev(NIC).bus.devices) == [0]
    monkeypatch.undo()
    set_vfs(sh, 4)
    assert vfs(sh) == VFS[:4]


def test_the_calls_behind_the_file(sh: Shell) -> None:
    nic, nvme = sh.dev(NIC), sh.dev("0000:81:00.0")
    with fails(errno.ENODEV):
        pci_enable_sriov(nvme, 1)
    with fails(errno.ENODEV):
        pci_sriov_configure_simple(nvme, 1)
    pci_disable_sriov(sh.machine.pci, nvme)
    for number in (0, 9, -1):
        with fails(errno.EINVAL):
            pci_enable_sriov(nic, number)
    pci_enable_sriov(nic, 1)
    with fails(errno.EINVAL):
        pci_enable_sriov(nic, 2)
    pci_disable_sriov(sh.machine.pci, nic)
    assert vfs(sh) == []


def test_two_writers_enable_once(sh: Shell) -> None:
    with threads() as pool:
        futures = [pool.submit(set_vfs, sh, number) for number in (1, 2, 3, 4)]
        results = [errno_of_result(future) for future in futures]
    assert results.count(None) == 1
    assert results.count(errno.EBUSY) == 3
    assert len(vfs(sh)) == results.index(None) + 1


def test_a_function_that_goes_meanwhile_is_no_device(sh: Shell) -> None:
    file = sh.file(f"{PF}/sriov_numvfs")
    dev = sh.dev(NIC)
    dev.dead = True
    with fails(errno.ENODEV):
        file.store(b"1")
