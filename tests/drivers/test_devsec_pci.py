# SPDX-License-Identifier: MIT
"""The sample PCI driver: bound only by override, and never to private memory."""

from __future__ import annotations

import errno

import pytest

from tests.machines import Shell, boot, fails, pci

EP = "10000:01:00.0"
DRIVER = "/bus/pci/drivers/devsec_pci"


@pytest.fixture
def sh() -> Shell:
    sh = boot("devsec")
    sh.echo("devsec_pci", f"{pci(EP)}/driver_override")
    return sh


def bound(sh: Shell) -> set[str]:
    return {name for name in sh.ls(DRIVER) if ":" in name}


def test_it_takes_what_is_overridden_and_nothing_else(sh: Shell) -> None:
    sh.modprobe("devsec_pci")
    assert bound(sh) == {EP}
    with fails(errno.ENODEV):
        sh.echo("10000:01:00.1", f"{DRIVER}/bind")


def test_without_autoprobe_it_is_bound_by_hand(sh: Shell) -> None:
    sh.modprobe("devsec_pci autoprobe=0")
    assert bound(sh) == set()
    assert sh.cat("/module/devsec_pci/parameters/autoprobe") == "N\n"
    sh.echo(EP, f"{DRIVER}/bind")
    assert bound(sh) == {EP}
    sh.echo(EP, f"{DRIVER}/unbind")
    assert bound(sh) == set()


def test_the_default_policy_holds_without_the_option(sh: Shell) -> None:
    sh.echo("0", "/module/module/parameters/modules_autoprobe")
    sh.modprobe("devsec_pci")
    assert bound(sh) == set()
    sh.rmmod("devsec_pci")
    sh.modprobe("devsec_pci autoprobe=1")
    assert bound(sh) == {EP}


def test_while_bound_the_device_is_enabled_and_its_memory_taken(sh: Shell) -> None:
    before = sh.iomem()
    sh.modprobe("devsec_pci")
    assert sh.cat(f"{pci(EP)}/enable") == "1\n"
    assert sh.iomem().count(": devsec_pci\n") == 1
    sh.rmmod("devsec_pci")
    assert sh.iomem() == before
    assert sh.cat(f"{pci(EP)}/enable") == "0\n"
    assert not sh.exists(DRIVER)


def test_private_memory_cannot_be_mapped(sh: Shell) -> None:
    sh.modprobe("devsec_pci autoprobe=0")
    sh.echo("tsm1", f"{pci(EP)}/tsm/lock")
    sh.echo(EP, f"{DRIVER}/bind")
    sh.echo(EP, f"{DRIVER}/unbind")
    sh.echo("1", f"{pci(EP)}/tsm/accept")
    with fails(errno.EINVAL):
        sh.echo(EP, f"{DRIVER}/bind")
    assert (bound(sh), sh.cat(f"{pci(EP)}/enable")) == (set(), "0\n")
    sh.echo("tsm1", f"{pci(EP)}/tsm/unlock")
    sh.echo(EP, f"{DRIVER}/bind")


def test_a_bound_device_cannot_be_locked(sh: Shell) -> None:
    sh.modprobe("devsec_pci")
    with fails(errno.EBUSY):
        sh.echo("tsm1", f"{pci(EP)}/tsm/lock")


def test_it_is_shown_with_its_module(sh: Shell) -> None:
    sh.modprobe("devsec_pci")
    assert sh.realpath("/module/devsec_pci/drivers/pci:devsec_pci") == DRIVER
    assert sh.realpath(f"{DRIVER}/module") == "/module/devsec_pci"
    assert sh.realpath(f"{pci(EP)}/driver") == DRIVER
