# SPDX-License-Identifier: MIT
"""Machines: they start with what is described, and stop without leaving anything."""

from __future__ import annotations

import errno
import re
from collections.abc import Callable
from importlib.metadata import EntryPoint

import pytest

from tests.machines import Shell, boot, fails, pci
from tsmfs import description, machine
from tsmfs.drivers import devsec_common
from tsmfs.kernel.printk import Log
from tsmfs.machine import Machine, available_modules

RAM = """\
00000000-00000fff : Reserved
00001000-0009fbff : System RAM
0009fc00-000fffff : Reserved
00100000-7fffffff : System RAM
fec00000-fec003ff : IOAPIC 0
fee00000-fee00fff : Local APIC
100000000-27fffffff : System RAM
"""
"""What is in the memory map of a machine without PCI."""


@pytest.mark.parametrize(
    ("name", "modules"),
    [
        ("devsec", ["devsec_common", "devsec_bus", "devsec_link_tsm", "devsec_tsm"]),
        ("server", ["pci_pf_stub", "soft_tsm", "soft_link_tsm", "soft_devsec_tsm"]),
    ],
)
def test_a_machine_loads_the_modules_of_its_description(name: str, modules: list[str]) -> None:
    assert list(boot(name).machine.modules.loaded) == modules


def test_the_tsms_of_the_default_machine_are_a_link_and_a_devsec_one() -> None:
    sh = boot("devsec")
    assert [sh.cat(f"/class/tsm/tsm{n}/pci_mode") for n in (0, 1)] == ["link\n", "devsec\n"]
    assert sh.realpath("/class/tsm/tsm0/device") == "/devices/faux/devsec_link_tsm"


def test_other_modules_may_be_asked_for() -> None:
    sh = boot("devsec", ["devsec_pci autoprobe=0\n", "pci-stub"])
    assert list(sh.machine.modules.loaded) == ["devsec_pci", "pci_stub"]
    assert sh.cat("/module/devsec_pci/parameters/autoprobe") == "N\n"
    assert boot("devsec", []).ls("/module") == {"module"}


def test_the_first_module_that_fails_ends_the_start() -> None:
    with fails(errno.ENOENT):
        boot("devsec", ["devsec_bus", "missing", "devsec_tsm"])
    with fails(errno.EINVAL):
        boot("devsec", ["devsec_bus autoprobe=perhaps"])


def test_its_files_belong_to_who_started_it() -> None:
    built = Machine(*description.find("devsec"), uid=1000, gid=100)
    now = built.core.bus.inode()
    assert (now.uid, now.gid) == (1000, 100)


def test_a_machine_without_pci_has_only_memory() -> None:
    sh = boot('name = "empty"\n')
    assert (sh.iomem(), sh.cat("/kernel/tsmfs/ioports")) == (RAM, "")
    assert sh.devices() == []
    assert sh.cat("/kernel/tsmfs/name") == "empty\n"


def test_machines_do_not_touch_each_other() -> None:
    one, two = boot("devsec"), boot("devsec")
    one.echo("tsm0", f"{pci('10000:01:00.0')}/tsm/connect")
    one.rmmod("devsec_tsm")
    assert two.cat(f"{pci('10000:01:00.0')}/tsm/connect") == "\n"
    assert "devsec_tsm" in two.ls("/module")


def test_the_seed_makes_faults_repeatable() -> None:
    def pattern() -> list[bool]:
        sh = boot("server")
        sh.fault("tsm_lock", probability=50, times=-1)
        path = f"{pci('0000:00:08.0')}/tsm/lock"
        results = []
        for _ in range(30):
            try:
                sh.echo("tsm1", path)
            except OSError:
                results.append(True)
            else:
                results.append(False)
                sh.echo("tsm1", f"{pci('0000:00:08.0')}/tsm/unlock")
        return results

    first = pattern()
    assert first == pattern()
    assert {True, False} == set(first)


# Stopping


def idle(sh: Shell) -> None:
    pass


def busy(sh: Shell) -> None:
    """All states that devices can be in."""
    sh.echo("pci-pf-stub", f"{pci('0000:01:00.0')}/driver_override")
    sh.echo("0000:01:00.0", "/bus/pci/drivers/pci-pf-stub/bind")
    sh.echo("3", f"{pci('0000:01:00.0')}/sriov_numvfs")
    for name in ("0000:01:00.0", "0000:02:00.0", "0000:81:00.0"):
        sh.echo("tsm0", f"{pci(name)}/tsm/connect")
    for name in ("0000:01:00.0", "0000:01:00.2", "0000:04:00.2"):
        sh.echo(name, "/bus/faux/devices/soft_link_tsm/tsm_bind")
    sh.echo("tsm1", f"{pci('0000:00:08.0')}/tsm/lock")
    sh.echo("1", f"{pci('0000:00:08.0')}/tsm/accept")
    sh.modprobe("devsec_bus")
    sh.modprobe("pci_stub")
    sh.echo("1", f"{pci('0000:06:00.0')}/remove")
    sh.echo("0000:05:00.0", "/kernel/tsmfs/plug")


@pytest.mark.parametrize("name", ["devsec", "server"])
@pytest.mark.parametrize("state", [idle, busy])
def test_a_stopped_machine_has_nothing_left(name: str, state: Callable[[Shell], None]) -> None:
    sh = boot(name)
    if state is busy and name == "devsec":
        sh.echo("tsm0", f"{pci('10000:01:00.0')}/tsm/connect")
        sh.echo("tsm1", f"{pci('10001:03:00.1')}/tsm/lock")
    else:
        state(sh)
    sh.machine.stop()
    assert sh.devices() == []
    assert sh.ls("/module") == {"module"}
    assert sh.ls("/class/tsm") == sh.ls("/class/pci_bus") == set()
    assert sh.ls("/bus/pci/drivers") == sh.ls("/bus/faux/devices") == set()
    assert sh.ls("/devices") == {"faux", "system"}
    assert sh.ls("/devices/faux") == {"power", "uevent"}
    owners = {line.split(" : ")[1] for line in sh.iomem().splitlines()}
    assert not [name for name in owners if re.fullmatch(r"\w+:\w+:\w+\.\d|DEVSEC.*|.*Encr.*", name)]
    assert "Traceback" not in sh.dmesg()


def test_stopping_twice_does_nothing() -> None:
    sh = boot("devsec")
    sh.machine.stop()
    events = sh.uevents()
    sh.machine.stop()
    assert events == []


# Modules that can be found


class Points:
    """What the packages that are installed offer."""

    def __init__(self, *targets: tuple[str, str]) -> None:
        self.entries = [EntryPoint(name, value, "tsmfs.modules") for name, value in targets]

    def __call__(self, *, group: str) -> list[EntryPoint]:
        assert group == "tsmfs.modules"
        return self.entries


def test_modules_come_from_the_entry_points(monkeypatch: pytest.MonkeyPatch) -> None:
    log = Log()
    points = Points(("devsec_common", "tsmfs.drivers.devsec_common:MODULE"))
    monkeypatch.setattr(machine, "entry_points", points)
    assert list(available_modules(log)) == [devsec_common.MODULE]
    assert log.text() == ""


@pytest.mark.parametrize(
    ("value", "line"),
    [
        ("no.such.package:MODULE", "module mine (no.such.package:MODULE): ModuleNotFoundError"),
        (
            "tsmfs.drivers.devsec_common:NOTHING",
            "module mine (tsmfs.drivers.devsec_common:NOTHING)",
        ),
        ("tsmfs.machine:Machine", "module mine (tsmfs.machine:Machine) is no tsmfs module"),
    ],
)
def test_what_is_no_module_is_passed_over_with_a_line_in_the_log(
    monkeypatch: pytest.MonkeyPatch, value: str, line: str
) -> None:
    log = Log()
    points = Points(("mine", value), ("devsec_common", "tsmfs.drivers.devsec_common:MODULE"))
    monkeypatch.setattr(machine, "entry_points", points)
    assert list(available_modules(log)) == [devsec_common.MODULE]
    assert line in log.text()
