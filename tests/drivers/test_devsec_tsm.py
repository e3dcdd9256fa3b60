# SPDX-License-Identifier: MIT
"""The sample devsec TSM: private memory appears with accept and goes with unlock."""

from __future__ import annotations

import errno

import pytest

from tests.machines import SAMPLE_TSMS, Shell, boot, fails, pci
from tsmfs.drivers.devsec_common import BLOB_MAX, common_of
from tsmfs.kernel.resource import IORESOURCE_MEM, Resource

EP = "10000:01:00.0"
TSM = f"{pci(EP)}/tsm"
PRIVATE = "PCI MMIO Encrypted"


@pytest.fixture
def sh() -> Shell:
    return boot("devsec")


def bar(sh: Shell, name: str = EP) -> str:
    resource = sh.dev(name).resource[0]
    assert resource is not None
    return f"{resource.start:08x}-{resource.end:08x}"


def lock(sh: Shell) -> None:
    sh.echo("tsm1", f"{TSM}/lock")


def accept(sh: Shell) -> None:
    sh.echo("1", f"{TSM}/accept")


def unlock(sh: Shell) -> None:
    sh.echo("tsm1", f"{TSM}/unlock")


def test_accept_lists_the_memory_as_private_and_unlock_takes_it_back(sh: Shell) -> None:
    before = sh.iomem()
    lock(sh)
    assert sh.iomem() == before
    accept(sh)
    lines = sh.iomem().splitlines()
    at = lines.index(f"    {bar(sh)} : {PRIVATE}")
    assert lines[at + 1] == f"      {bar(sh)} : {EP}"
    unlock(sh)
    assert sh.iomem() == before


def test_a_lock_without_accept_has_nothing_to_tear_down(sh: Shell) -> None:
    before = sh.iomem()
    lock(sh)
    unlock(sh)
    assert sh.iomem() == before
    assert "Traceback" not in sh.dmesg()


def test_a_lock_that_cannot_present_its_evidence_leaves_the_blobs_writable(sh: Shell) -> None:
    common = common_of(sh.machine.host)
    common.blobs["certs"].extend(bytes(BLOB_MAX + 1))
    with fails(errno.EFBIG):
        lock(sh)
    assert common.contexts == 0
    sh.write("/bus/faux/devices/devsec_tsm/certs", b"\0")
    lock(sh)
    unlock(sh)


def test_a_second_accept_lists_nothing_twice(sh: Shell) -> None:
    lock(sh)
    accept(sh)
    with fails(errno.EBUSY):
        accept(sh)
    assert sh.iomem().count(PRIVATE) == 1
    unlock(sh)
    assert PRIVATE not in sh.iomem()


def test_functions_are_accepted_each_for_itself(sh: Shell) -> None:
    other = "10000:01:00.1"
    for name in (EP, other):
        sh.echo("tsm1", f"{pci(name)}/tsm/lock")
        sh.echo("on", f"{pci(name)}/tsm/accept")
    assert sh.iomem().count(PRIVATE) == 2
    unlock(sh)
    assert f"{bar(sh, other)} : {PRIVATE}" in sh.iomem()
    assert f"{bar(sh)} : {PRIVATE}" not in sh.iomem()


def test_a_range_that_cannot_be_listed_leaves_the_function_locked(sh: Shell) -> None:
    bars = [sh.dev(name).resource[0] for name in (EP, "10000:01:00.1")]
    assert bars[0] is not None
    assert bars[1] is not None
    window = bars[0].parent
    assert window is not None
    for resource in bars:
        assert resource is not None
        resource.remove()
    across = Resource(bars[0].start + 1, bars[1].start, "in the way", IORESOURCE_MEM)
    window.request(across)
    lock(sh)
    with fails(errno.EBUSY):
        accept(sh)
    assert sh.cat(f"{TSM}/accept") == "0\n"
    assert PRIVATE not in sh.iomem()
    across.remove()
    accept(sh)


@pytest.mark.parametrize("accepted", [False, True])
def test_unloading_unlocks(sh: Shell, accepted: bool) -> None:
    lock(sh)
    if accepted:
        accept(sh)
    sh.rmmod("devsec_tsm")
    assert PRIVATE not in sh.iomem()
    assert common_of(sh.machine.host).contexts == 0
    assert "lock" not in (sh.ls(TSM) if sh.exists(TSM) else set())
    assert sh.ls("/class/tsm") == {"tsm0"}


@pytest.mark.parametrize("how", ["remove", "unplug", "rmmod"])
def test_an_accepted_function_that_goes_leaves_no_private_range(sh: Shell, how: str) -> None:
    lock(sh)
    accept(sh)
    match how:
        case "remove":
            sh.echo("1", f"{pci(EP)}/remove")
        case "unplug":
            sh.echo(EP, "/kernel/tsmfs/unplug")
        case _:
            sh.rmmod("devsec_bus")
    assert PRIVATE not in sh.iomem()
    assert EP not in sh.iomem()
    assert common_of(sh.machine.host).contexts == 0


def test_only_memory_is_made_private() -> None:
    sh = boot("server", SAMPLE_TSMS)
    accelerator = "0000:00:08.0"
    sh.echo("tsm1", f"{pci(accelerator)}/tsm/lock")
    sh.echo("1", f"{pci(accelerator)}/tsm/accept")
    assert sh.iomem().count(PRIVATE) == 2
    assert PRIVATE not in sh.cat("/kernel/tsmfs/ioports")
