# SPDX-License-Identifier: MIT
"""Scanning, removing, rescanning, plugging: which functions there are at any time."""

from __future__ import annotations

import errno
from collections.abc import Callable

import pytest

from tests.machines import Shell, boot, fails, pci, summary
from tsmfs.kernel.resource import IORESOURCE_IO, IORESOURCE_MEM, Resource
from tsmfs.pci.core import PciCore
from tsmfs.pci.hardware import HwBus
from tsmfs.pci.host_bridge import PciHostBridge
from tsmfs.pci.pci_dev import PciDev

# In the order of a scan: all slots of a bus, then what is behind its bridges.
SERVER = [
    "0000:00:01.0", "0000:00:02.0", "0000:00:08.0", "0000:00:1c.0", "0000:00:1e.0",
    "0000:01:00.0", "0000:02:00.0", "0000:03:00.0", "0000:03:01.0",
    "0000:04:00.0", "0000:04:00.1", "0000:04:00.2", "0000:06:00.0",
    "0000:80:01.0", "0000:80:02.0", "0000:81:00.0",
]  # fmt: skip

SWITCH = ["0000:02:00.0", "0000:03:00.0", "0000:04:00.0", "0000:04:00.1", "0000:04:00.2",
          "0000:03:01.0"]  # fmt: skip

TWO_DOMAINS = """\
[[host_bridge]]
bus = 0x10
  [[host_bridge.rc_endpoint]]
[[host_bridge]]
domain = 1
bus = 0x10
  [[host_bridge.rc_endpoint]]
"""


def control(sh: Shell, file: str, text: str) -> None:
    sh.echo(text, f"/kernel/tsmfs/{file}")


def names(path: str) -> Callable[[Shell], set[str]]:
    return lambda sh: sh.ls(path)


@pytest.fixture
def sh() -> Shell:
    return boot("server")


# Scanning


def test_a_scan_finds_every_function_that_is_plugged(sh: Shell) -> None:
    assert sh.devices() == SERVER
    assert sh.ls("/bus/pci/devices") == set(SERVER)


def test_functions_are_where_their_bridges_are(sh: Shell) -> None:
    assert sh.realpath(pci("0000:04:00.2")) == (
        "/devices/pci0000:00/0000:00:02.0/0000:02:00.0/0000:03:00.0/0000:04:00.2"
    )
    assert sh.readlink(pci("0000:04:00.2")) == (
        "../../../devices/pci0000:00/0000:00:02.0/0000:02:00.0/0000:03:00.0/0000:04:00.2"
    )
    assert sh.readlink(f"{pci('0000:00:08.0')}/subsystem") == "../../../bus/pci"


def test_every_bus_is_in_its_class_below_its_bridge(sh: Shell) -> None:
    assert sh.ls("/class/pci_bus") == {
        f"0000:{number:02x}" for number in (0, 1, 2, 3, 4, 5, 6, 0x80, 0x81, 0x82)
    }
    assert sh.readlink("/class/pci_bus/0000:04") == (
        "../../devices/pci0000:00/0000:00:02.0/0000:02:00.0/0000:03:00.0/pci_bus/0000:04"
    )
    assert sh.readlink("/class/pci_bus/0000:04/device") == "../../../0000:03:00.0"
    assert sh.readlink("/class/pci_bus/0000:80/device") == "../../../pci0000:80"
    assert sh.ls("/class/pci_bus/0000:00") == {
        "cpuaffinity", "cpulistaffinity", "device", "power", "rescan", "subsystem", "uevent",
    }  # fmt: skip


def test_domains_keep_apart_what_has_the_same_bus_number() -> None:
    sh = boot(TWO_DOMAINS)
    assert sh.devices() == ["0000:10:00.0", "0001:10:00.0"]
    control(sh, "unplug", "0001:10:00.0")
    assert sh.devices() == ["0000:10:00.0"]
    control(sh, "plug", "0001:10:00.0")
    assert sh.devices() == ["0000:10:00.0", "0001:10:00.0"]


def test_a_device_without_function_0_does_not_answer(sh: Shell) -> None:
    hw = sh.dev("0000:04:00.0").hw
    sh.echo("1", f"{pci('0000:03:00.0')}/remove")
    hw.present = False
    sh.echo("1", "/bus/pci/rescan")
    assert "0000:03:00.0" in sh.devices()
    assert not any(name.startswith("0000:04") for name in sh.devices())


def test_a_device_is_found_by_its_name(sh: Shell) -> None:
    assert sh.dev("0000:81:00.0").name == "0000:81:00.0"
    assert sh.machine.pci.find_device("0000:ff:00.0") is None


def test_uevents_of_a_scan_come_ports_first() -> None:
    sh = boot("devsec", [])
    events = sh.uevents()
    sh.modprobe("devsec_bus")
    added = [line for line in summary(events) if line.startswith("add 1")]
    assert added == [
        "add 10000:00",
        "add 10000:00:00.0",
        "add 10000:01",
        "add 10000:01:00.0",
        "add 10000:01:00.1",
        "add 10001:02",
        "add 10001:02:00.0",
        "add 10001:03",
        "add 10001:03:00.0",
        "add 10001:03:00.1",
    ]


# remove and rescan


@pytest.mark.parametrize("value", ["0", "00"])
def test_a_zero_removes_and_rescans_nothing(sh: Shell, value: str) -> None:
    sh.echo(value, f"{pci('0000:81:00.0')}/remove")
    assert sh.devices() == SERVER
    sh.echo("1", f"{pci('0000:81:00.0')}/remove")
    for path in ("/bus/pci", pci("0000:80:01.0"), "/class/pci_bus/0000:81"):
        sh.echo(value, f"{path}/rescan")
    assert "0000:81:00.0" not in sh.devices()


def test_remove_takes_one_function(sh: Shell) -> None:
    sh.echo("1", f"{pci('0000:04:00.1')}/remove")
    assert sh.devices() == [name for name in SERVER if name != "0000:04:00.1"]
    assert not sh.exists("/devices/pci0000:00/0000:00:02.0/0000:02:00.0/0000:03:00.0/0000:04:00.1")
    assert "0000:04:00.1" not in sh.iomem()


def test_remove_of_a_bridge_takes_all_below_it_last_first(sh: Shell) -> None:
    events = sh.uevents()
    sh.echo("1", f"{pci('0000:02:00.0')}/remove")
    assert sh.devices() == [name for name in SERVER if name not in SWITCH]
    removed = [line.removeprefix("remove ") for line in summary(events)]
    assert removed == [
        "0000:05",
        "0000:03:01.0",
        "0000:04:00.2",
        "0000:04:00.1",
        "0000:04:00.0",
        "0000:04",
        "0000:03:00.0",
        "0000:03",
        "0000:02:00.0",
    ]
    assert not {"0000:03", "0000:04", "0000:05"} & sh.ls("/class/pci_bus")
    assert "0000:02" in sh.ls("/class/pci_bus")


@pytest.mark.parametrize(
    "path", ["/bus/pci", pci("0000:00:01.0"), "/class/pci_bus/0000:00", "/class/pci_bus/0000:02"]
)
def test_rescan_brings_back_what_was_removed(sh: Shell, path: str) -> None:
    iomem = sh.iomem()
    sh.echo("1", f"{pci('0000:02:00.0')}/remove")
    events = sh.uevents()
    sh.echo("1", f"{path}/rescan")
    assert set(sh.devices()) == set(SERVER)
    assert sh.iomem() == iomem
    assert summary(events)[0] == "add 0000:02:00.0"
    sh.echo("1", f"{path}/rescan")
    assert len(sh.devices()) == len(SERVER)


def test_rescan_of_another_bus_finds_nothing(sh: Shell) -> None:
    sh.echo("1", f"{pci('0000:02:00.0')}/remove")
    sh.echo("1", "/class/pci_bus/0000:80/rescan")
    assert "0000:02:00.0" not in sh.devices()


@pytest.mark.parametrize("text", ["", "x", "-1", "1 1", "on"])
def test_remove_and_rescan_take_numbers(sh: Shell, text: str) -> None:
    for path in ("/bus/pci/rescan", f"{pci('0000:81:00.0')}/remove",
                 f"{pci('0000:81:00.0')}/rescan", "/class/pci_bus/0000:81/rescan"):  # fmt: skip
        with fails(errno.EINVAL):
            sh.echo(text, path)
    assert sh.devices() == SERVER


def test_a_function_that_came_back_is_another_one(sh: Shell) -> None:
    old = sh.dev("0000:81:00.0")
    held = sh.file(f"{pci('0000:81:00.0')}/vendor")
    sh.echo("1", f"{pci('0000:81:00.0')}/remove")
    sh.echo("1", "/bus/pci/rescan")
    assert sh.dev("0000:81:00.0") is not old
    assert old.dead
    with fails(errno.ENODEV):
        held.show()
    assert sh.cat(f"{pci('0000:81:00.0')}/vendor") == "0x1b36\n"


def test_removing_twice_does_nothing(sh: Shell) -> None:
    dev = sh.dev("0000:81:00.0")
    sh.machine.pci.stop_and_remove(dev)
    events = sh.uevents()
    sh.machine.pci.stop_and_remove(dev)
    assert events == []


def test_remove_releases_the_driver_and_rescan_binds_it_again(sh: Shell) -> None:
    sh.modprobe("pci_stub")
    sh.echo("1b36 0010", "/bus/pci/drivers/pci-stub/new_id")
    assert sh.exists("/bus/pci/drivers/pci-stub/0000:81:00.0")
    events = sh.uevents()
    sh.echo("1", f"{pci('0000:81:00.0')}/remove")
    assert not sh.exists("/bus/pci/drivers/pci-stub/0000:81:00.0")
    sh.echo("1", "/bus/pci/rescan")
    assert summary(events) == [
        f"{action} 0000:81:00.0" for action in ("unbind", "remove", "add", "bind")
    ]


def test_a_driver_that_did_not_take_a_device_may_take_it_after_a_rescan(sh: Shell) -> None:
    sh.echo("0", "/bus/pci/drivers_autoprobe")
    sh.modprobe("pci_stub")
    sh.echo("1b36 0010", "/bus/pci/drivers/pci-stub/new_id")
    sh.echo("0000:81:00.0", "/bus/pci/drivers/pci-stub/unbind")
    sh.echo("1", f"{pci('0000:81:00.0')}/remove")
    sh.echo("1", "/bus/pci/rescan")
    assert not sh.exists(f"{pci('0000:81:00.0')}/driver")


# plug and unplug


def test_an_absent_device_can_be_plugged(sh: Shell) -> None:
    events = sh.uevents()
    control(sh, "plug", "0000:05:00.0")
    assert sh.devices() == [*SERVER, "0000:05:00.0"]
    assert summary(events) == ["add 0000:05:00.0"]
    assert "4200000000-42ffffffff : 0000:05:00.0" in sh.iomem()


def test_unplugging_takes_every_function_of_the_slot(sh: Shell) -> None:
    control(sh, "unplug", "0000:04:00.1")
    assert [name for name in SERVER if name not in sh.devices()] == [
        "0000:04:00.0",
        "0000:04:00.1",
        "0000:04:00.2",
    ]
    assert "0000:04:00.0: pciehp: Link Down" in sh.dmesg()
    sh.echo("1", "/bus/pci/rescan")
    assert "0000:04:00.0" not in sh.devices()
    control(sh, "plug", "0000:04:00.2")
    assert set(sh.devices()) == set(SERVER)


def test_unplugging_a_switch_takes_all_below_it(sh: Shell) -> None:
    iomem = sh.iomem()
    control(sh, "unplug", "0000:02:00.0")
    assert sh.devices() == [name for name in SERVER if name not in SWITCH]
    control(sh, "plug", "0000:02:00.0")
    assert set(sh.devices()) == set(SERVER)
    assert sh.iomem() == iomem


def test_a_plugged_device_starts_from_power_on(sh: Shell) -> None:
    nvme = pci("0000:81:00.0")
    sh.echo("1", f"{nvme}/enable")
    sh.write(f"{nvme}/config", b"\x42", 0x3C)
    resource = sh.cat(f"{nvme}/resource")
    control(sh, "unplug", "0000:81:00.0")
    control(sh, "plug", "0000:81:00.0")
    assert (sh.cat(f"{nvme}/enable"), sh.cat(f"{nvme}/irq")) == ("0\n", "0\n")
    assert sh.cat(f"{nvme}/resource") == resource


def test_a_device_may_be_unplugged_while_its_bridge_is_removed(sh: Shell) -> None:
    sh.echo("1", f"{pci('0000:80:01.0')}/remove")
    control(sh, "unplug", "0000:81:00.0")
    sh.echo("1", "/bus/pci/rescan")
    assert "0000:80:01.0" in sh.devices()
    assert "0000:81:00.0" not in sh.devices()
    sh.echo("1", f"{pci('0000:80:01.0')}/remove")
    control(sh, "plug", "0000:81:00.0")
    assert "0000:81:00.0" not in sh.devices()
    sh.echo("1", "/bus/pci/rescan")
    assert "0000:81:00.0" in sh.devices()


@pytest.mark.parametrize(
    ("file", "bdf", "number"),
    [
        ("plug", "0000:81:00.0", errno.EEXIST),
        ("plug", "0000:04:00.1", errno.EEXIST),
        ("unplug", "0000:05:00.0", errno.ENODEV),
        ("plug", "0000:05:00.1", errno.ENODEV),
        ("unplug", "0000:81:00.7", errno.ENODEV),
        ("plug", "0000:05:01.0", errno.ENODEV),
        ("plug", "0000:ff:00.0", errno.ENODEV),
        ("plug", "0001:05:00.0", errno.ENODEV),
        ("unplug", "0000:01:00.1", errno.ENODEV),
    ],
)
def test_what_cannot_be_plugged_or_unplugged(sh: Shell, file: str, bdf: str, number: int) -> None:
    with fails(number):
        control(sh, file, bdf)
    assert sh.devices() == SERVER


@pytest.mark.parametrize(
    "text",
    ["", "x", "81:00.0", "0000:81:00", "0000:81:00.8", "0000:81:20.0", "0000:81:00.0 ",
     "000:81:00.0", "0000:081:00.0", "0000:81:00.0\n", "0000:81:00.0\0", "\udcff", "*" * 5000],
)  # fmt: skip
def test_what_is_no_bdf_is_invalid(sh: Shell, text: str) -> None:
    for file in ("plug", "unplug"):
        with fails(errno.EINVAL):
            sh.write(f"/kernel/tsmfs/{file}", f"{text}\n".encode(errors="surrogateescape"))


def test_a_sixteen_bit_domain_may_have_more_digits(sh: Shell) -> None:
    control(sh, "unplug", "00000000:81:00.0")
    assert "0000:81:00.0" not in sh.devices()


# Host bridges


def core_of(sh: Shell) -> PciCore:
    return sh.machine.pci


def test_a_host_bridge_shows_its_stream_pool_if_it_has_one() -> None:
    sh = boot("[[host_bridge]]\nstream_pool = 0\n[[host_bridge]]\nbus = 1\nstream_pool = 3\n")
    assert sh.ls("/devices/pci0000:00") == {"power", "uevent", "pci_bus"}
    assert sh.cat("/devices/pci0000:01/available_secure_streams") == "3\n"
    assert sh.mode("/devices/pci0000:01/available_secure_streams") == 0o444


def test_a_rescan_of_a_bus_that_has_gone_brings_nothing_back(sh: Shell) -> None:
    dev = sh.dev("0000:02:00.0")
    gone = dev.subordinate
    assert gone is not None
    core_of(sh).stop_and_remove(dev)
    with fails(errno.ENODEV):
        core_of(sh).rescan_bus(gone)
    core_of(sh).rescan()
    assert set(sh.devices()) == set(SERVER)
    assert sh.realpath("/bus/pci/devices/0000:04:00.0").endswith("/0000:03:00.0/0000:04:00.0")


def test_functions_are_all_shown_before_the_first_gets_a_driver() -> None:
    sh = boot("server", [])
    sh.modprobe("pci_stub")
    core_of(sh).stop_and_remove(sh.dev("0000:00:02.0"))
    for function in ("104c 8232", "1af4 1050"):
        sh.echo(function, "/bus/pci/drivers/pci-stub/new_id")
    heard = sh.uevents()
    core_of(sh).rescan()
    assert [(e.action.value, e.devpath.rpartition("/")[2]) for e in heard] == [
        ("add", "0000:00:02.0"),
        ("add", "0000:02"),
        ("add", "0000:02:00.0"),
        ("add", "0000:03"),
        ("add", "0000:03:00.0"),
        ("add", "0000:03:01.0"),
        ("add", "0000:04"),
        ("add", "0000:04:00.0"),
        ("add", "0000:04:00.1"),
        ("add", "0000:04:00.2"),
        ("add", "0000:05"),
        ("bind", "0000:02:00.0"),
        ("bind", "0000:04:00.0"),
        ("bind", "0000:04:00.2"),
    ]


def test_a_host_bridge_can_go_and_takes_all_below_it(sh: Shell) -> None:
    bridge = core_of(sh).host_bridges[0]
    core_of(sh).remove_host_bridge(bridge)
    assert sh.devices() == ["0000:80:01.0", "0000:80:02.0", "0000:81:00.0"]
    assert not sh.exists("/devices/pci0000:00")
    assert sh.ls("/class/pci_bus") == {"0000:80", "0000:81", "0000:82"}


def test_a_host_bridge_whose_numbers_are_taken_changes_nothing(sh: Shell) -> None:
    before = list(core_of(sh).host_bridges)
    with fails(errno.EEXIST):
        core_of(sh).add_host_bridge(PciHostBridge(core_of(sh), 0, HwBus(0x80)))
    assert core_of(sh).host_bridges == before
    assert sh.devices() == SERVER


def test_a_host_bridge_whose_scan_fails_is_gone(sh: Shell, monkeypatch: pytest.MonkeyPatch) -> None:
    def crash(*_: object) -> None:
        raise ZeroDivisionError

    monkeypatch.setattr(PciCore, "rescan_bus", crash)
    before = list(core_of(sh).host_bridges)
    with pytest.raises(ZeroDivisionError):
        core_of(sh).add_host_bridge(PciHostBridge(core_of(sh), 5, HwBus(0)))
    assert core_of(sh).host_bridges == before
    assert not sh.exists("/devices/pci0005:00")


def test_emulated_domains_start_above_those_of_firmware(sh: Shell) -> None:
    assert core_of(sh).find_emul_domain() == 0x10000
    core_of(sh).add_host_bridge(PciHostBridge(core_of(sh), 0x10000, HwBus(0)))
    core_of(sh).add_host_bridge(PciHostBridge(core_of(sh), 0x10002, HwBus(0)))
    assert core_of(sh).find_emul_domain() == 0x10001


def test_a_bar_that_has_no_room_is_in_the_log(sh: Shell) -> None:
    dev = sh.dev("0000:81:00.0")
    bar = dev.resource[0]
    assert bar is not None
    core_of(sh).claim(dev, 1, Resource(bar.start, bar.end, "again", bar.flags))
    assert "0000:81:00.0: BAR 1" in sh.dmesg()
    assert "conflicts with" in sh.dmesg()


def test_a_bar_outside_every_window_is_in_the_machines_own_tree(sh: Shell) -> None:
    dev = sh.dev("0000:81:00.0")
    for index, place in ((1, (0xFFF00000, 0xFFF00FFF)), (2, (0xF000, 0xF0FF))):
        flags = IORESOURCE_MEM if index == 1 else IORESOURCE_IO
        core_of(sh).claim(dev, index, Resource(*place, dev.name, flags))
    assert "\nfff00000-fff00fff : 0000:81:00.0\n" in sh.iomem()
    assert sh.cat("/kernel/tsmfs/ioports").endswith("\nf000-f0ff : 0000:81:00.0\n")


def test_nothing_is_known_of_an_empty_slot(sh: Shell) -> None:
    bus = core_of(sh).host_bridges[0].hw_root
    for call in (core_of(sh).plug, core_of(sh).unplug):
        with fails(errno.ENODEV):
            call(bus, 0x1F)


def test_a_walk_of_a_bus_meets_ports_before_what_is_behind_them(sh: Shell) -> None:
    bus = core_of(sh).host_bridges[0].bus
    assert bus is not None
    walked: list[PciDev] = list(bus.walk())
    assert {dev.name for dev in walked} == set(SERVER[:13])
    for dev in walked:
        port = dev.bus.self_dev
        assert port is None or walked.index(port) < walked.index(dev)
    found = bus.find_bus(4)
    assert found is not None
    assert found.name == "0000:04"
    assert bus.find_bus(0x81) is None
