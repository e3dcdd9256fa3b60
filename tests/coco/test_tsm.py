# SPDX-License-Identifier: MIT
"""The TSM class: numbers, modes, links to host bridges, and the uevents of a TSM's life."""

from __future__ import annotations

import errno
from collections.abc import Callable

import pytest

from tests.machines import Shell, boot, fails, pci, summary
from tsmfs.base.device import Device
from tsmfs.base.uevent import Uevent
from tsmfs.coco.tsm import TsmDevice
from tsmfs.kernel.errors import fail
from tsmfs.pci.pci_dev import PciDev
from tsmfs.pci.tsm import (
    PciTsm,
    PciTsmDevsec,
    PciTsmDevsecOps,
    PciTsmLinkOps,
    TsmDev,
    pf0_constructor,
)

NIC = "0000:01:00.0"


class LinkOps(PciTsmLinkOps):
    """A link TSM that connects anything."""

    def probe(self, tsm_dev: TsmDev, pdev: PciDev) -> PciTsm | None:
        return pf0_constructor(pdev, tsm_dev)

    def connect(self, pdev: PciDev) -> None:
        pass

    def disconnect(self, pdev: PciDev) -> None:
        pass


class DevsecOps(PciTsmDevsecOps):
    """A devsec TSM that locks anything."""

    def lock(self, tsm_dev: TsmDev, pdev: PciDev) -> PciTsmDevsec:
        return PciTsmDevsec(pdev, tsm_dev)

    def unlock(self, tsm: PciTsmDevsec) -> None:
        pass

    def accept(self, pdev: PciDev) -> None:
        pass


@pytest.fixture
def sh() -> Shell:
    return boot("server", [])


@pytest.fixture
def parent(sh: Shell) -> Device:
    return sh.machine.host.faux.create("provider")


def register(sh: Shell, parent: Device, ops: object = None) -> TsmDevice:
    return sh.machine.tsm.register(parent, ops)


def test_a_tsm_is_in_its_class_below_its_parent(sh: Shell, parent: Device) -> None:
    register(sh, parent, LinkOps())
    assert sh.ls("/class/tsm") == {"tsm0"}
    assert sh.readlink("/class/tsm/tsm0") == "../../devices/faux/provider/tsm/tsm0"
    assert sh.readlink("/class/tsm/tsm0/device") == "../../../provider"
    assert sh.readlink("/class/tsm/tsm0/subsystem") == "../../../../../class/tsm"
    assert sh.ls("/class/tsm/tsm0") == {"device", "pci_mode", "power", "subsystem", "uevent"}
    assert sh.mode("/class/tsm/tsm0/pci_mode") == 0o444


@pytest.mark.parametrize(("ops", "mode"), [(LinkOps(), "link\n"), (DevsecOps(), "devsec\n")])
def test_the_mode_tells_what_a_tsm_can_do(
    sh: Shell, parent: Device, ops: object, mode: str
) -> None:
    register(sh, parent, ops)
    assert sh.cat("/class/tsm/tsm0/pci_mode") == mode


def test_a_tsm_without_pci_operations_has_no_mode(sh: Shell, parent: Device) -> None:
    tsm_dev = register(sh, parent)
    assert "pci_mode" not in sh.ls("/class/tsm/tsm0")
    assert not sh.exists(f"{pci(NIC)}/tsm")
    sh.machine.tsm.unregister(tsm_dev)
    assert sh.ls("/class/tsm") == set()


def test_a_tsm_gets_the_lowest_free_number(sh: Shell, parent: Device) -> None:
    tsms = [register(sh, parent, ops) for ops in (LinkOps(), DevsecOps(), None, LinkOps())]
    assert [tsm_dev.name for tsm_dev in tsms] == ["tsm0", "tsm1", "tsm2", "tsm3"]
    for number in (2, 1):
        sh.machine.tsm.unregister(tsms[number])
    assert sh.ls("/class/tsm") == {"tsm0", "tsm3"}
    assert register(sh, parent, DevsecOps()).name == "tsm1"
    assert register(sh, parent).name == "tsm2"
    assert register(sh, parent).name == "tsm4"
    found = sh.machine.tsm.find_tsm_dev(3)
    assert found is tsms[3]
    assert sh.machine.tsm.find_tsm_dev(9) is None


def test_unregistering_twice_is_no_device(sh: Shell, parent: Device) -> None:
    tsm_dev = register(sh, parent, LinkOps())
    sh.machine.tsm.unregister(tsm_dev)
    with fails(errno.ENODEV):
        sh.machine.tsm.unregister(tsm_dev)
    # Another of its number is not it.
    register(sh, parent, LinkOps())
    with fails(errno.ENODEV):
        sh.machine.tsm.unregister(tsm_dev)
    assert sh.ls("/class/tsm") == {"tsm0"}


def test_a_parent_without_tsms_has_no_directory_for_them(sh: Shell, parent: Device) -> None:
    tsms = [register(sh, parent) for _ in range(2)]
    sh.machine.tsm.unregister(tsms[0])
    assert sh.ls("/devices/faux/provider/tsm") == {"tsm1"}
    sh.machine.tsm.unregister(tsms[1])
    assert "tsm" not in sh.ls("/devices/faux/provider")


# Uevents


def test_change_follows_add_once_every_device_is_dispositioned(sh: Shell, parent: Device) -> None:
    shown: dict[str, tuple[bool, ...]] = {}
    devices = ("0000:01:00.0", "0000:02:00.0", "0000:00:08.0", "0000:81:00.0")

    paths = [*(f"{pci(name)}/tsm/connect" for name in devices), "/class/tsm/tsm0/pci_mode"]

    def look(event: Uevent) -> None:
        shown[summary([event])[0]] = tuple(sh.exists(path) for path in paths)

    sh.machine.uevents.listeners.append(look)
    tsm_dev = register(sh, parent, LinkOps())
    assert shown == {"add tsm0": (False,) * 5, "change tsm0": (True,) * 5}
    shown.clear()
    sh.machine.tsm.unregister(tsm_dev)
    assert shown == {"remove tsm0": (False, False, False, False, True)}


def test_uevents_of_a_tsm_name_its_class(sh: Shell, parent: Device) -> None:
    events = sh.uevents()
    sh.machine.tsm.unregister(register(sh, parent, DevsecOps()))
    assert summary(events) == ["add tsm0", "change tsm0", "remove tsm0"]
    assert {(event.subsystem, event.devpath) for event in events} == {
        ("tsm", "/devices/faux/provider/tsm/tsm0")
    }


def test_a_tsm_without_pci_operations_sends_no_change(sh: Shell, parent: Device) -> None:
    events = sh.uevents()
    register(sh, parent)
    assert summary(events) == ["add tsm0"]


def test_a_rule_may_act_on_devices_from_within_change(sh: Shell, parent: Device) -> None:
    sh.machine.uevents.listeners.append(
        lambda event: (
            sh.echo("tsm0", f"{pci(NIC)}/tsm/connect") if event.action == "change" else None
        )
    )
    register(sh, parent, LinkOps())
    assert sh.cat(f"{pci(NIC)}/tsm/connect") == "tsm0\n"


def test_a_device_is_let_go_before_its_tsm_is_removed(sh: Shell, parent: Device) -> None:
    tsm_dev = register(sh, parent, LinkOps())
    sh.echo("tsm0", f"{pci(NIC)}/tsm/connect")
    held: list[object] = []
    sh.machine.uevents.listeners.append(lambda event: held.append(sh.dev(NIC).tsm))
    sh.machine.tsm.unregister(tsm_dev)
    assert held == [None]


# Registrations that fail


def test_operations_that_are_none_take_the_tsm_back_out(sh: Shell, parent: Device) -> None:
    events = sh.uevents()
    with fails(errno.EINVAL):
        register(sh, parent, object())
    assert summary(events) == ["add tsm0", "remove tsm0"]
    assert sh.ls("/class/tsm") == set()
    assert "PCI/TSM registration failure: -22" in sh.dmesg()
    assert register(sh, parent, LinkOps()).name == "tsm0"


@pytest.mark.parametrize(
    ("place", "name"),
    [(lambda sh: sh.machine.pci.tsm, "register"), (lambda sh: sh.machine.tsm, "_pci_mode")],
)
def test_a_registration_that_crashes_takes_the_tsm_back_out(
    sh: Shell,
    parent: Device,
    monkeypatch: pytest.MonkeyPatch,
    place: Callable[[Shell], object],
    name: str,
) -> None:
    def crash(_: object) -> None:
        raise MemoryError

    monkeypatch.setattr(place(sh), name, crash)
    with pytest.raises(MemoryError):
        register(sh, parent, LinkOps())
    monkeypatch.undo()
    assert sh.ls("/class/tsm") == set()
    assert sh.machine.pci.tsm.link_count == 0
    assert register(sh, parent, LinkOps()).name == "tsm0"


def test_a_device_that_cannot_be_shown_is_not_registered(
    sh: Shell, parent: Device, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(TsmDevice, "device_add", lambda dev: fail(errno.ENOMEM))
    with fails(errno.ENOMEM):
        register(sh, parent, LinkOps())
    monkeypatch.undo()
    assert register(sh, parent, LinkOps()).name == "tsm0"


# Streams


def test_a_host_bridge_is_linked_while_it_has_streams_of_the_tsm(sh: Shell, parent: Device) -> None:
    tsm_dev = register(sh, parent, LinkOps())
    first, second = sh.machine.pci.host_bridges
    for bridge in (first, first, second):
        tsm_dev.ide_stream_register(bridge)
    assert sh.readlink("/class/tsm/tsm0/pci0000:00") == "../../../../pci0000:00"
    links = []
    for bridge in (first, second, first):
        tsm_dev.ide_stream_unregister(bridge)
        links.append({name for name in sh.ls("/class/tsm/tsm0") if name.startswith("pci0")})
    assert links == [{"pci0000:00", "pci0000:80"}, {"pci0000:00"}, set()]
