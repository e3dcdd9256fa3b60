# SPDX-License-Identifier: MIT
"""The files of a PCI function: what each reads, takes and refuses."""

from __future__ import annotations

import errno
import re

import pytest

from tests.machines import USER, Shell, boot, fails, pci
from tsmfs.pci import regs
from tsmfs.pci.sysfs import pci_disable_device, pci_enable_device

NIC, BMC, PORT = pci("0000:01:00.0"), pci("0000:00:1e.0"), pci("0000:00:01.0")

COMMON = {
    "ari_enabled": 0o444, "broken_parity_status": 0o644, "class": 0o444, "config": 0o644,
    "consistent_dma_mask_bits": 0o444, "d3cold_allowed": 0o644, "device": 0o444,
    "dma_mask_bits": 0o444, "driver_override": 0o644, "enable": 0o644, "irq": 0o444,
    "local_cpulist": 0o444, "local_cpus": 0o444, "modalias": 0o444, "msi_bus": 0o644,
    "numa_node": 0o644, "power_state": 0o444, "remove": 0o220, "rescan": 0o200,
    "resource": 0o444, "revision": 0o444, "subsystem_device": 0o444, "subsystem_vendor": 0o444,
    "uevent": 0o644, "vendor": 0o444,
}  # fmt: skip
"""Files of every function with their modes."""


@pytest.fixture
def sh() -> Shell:
    return boot("server")


def test_every_function_has_the_common_files(sh: Shell) -> None:
    for name in sh.devices():
        modes = {file: sh.mode(f"{pci(name)}/{file}") for file in COMMON}
        assert modes == COMMON, name
        assert {"power", "link", "subsystem"} < sh.ls(pci(name))


@pytest.mark.parametrize(
    ("file", "text"),
    [
        ("vendor", "0x1af4\n"),
        ("device", "0x1041\n"),
        ("subsystem_vendor", "0x1af4\n"),
        ("subsystem_device", "0x1100\n"),
        ("class", "0x020000\n"),
        ("revision", "0x01\n"),
        ("irq", "0\n"),
        ("enable", "0\n"),
        ("broken_parity_status", "0\n"),
        ("msi_bus", "1\n"),
        ("numa_node", "-1\n"),
        ("d3cold_allowed", "1\n"),
        ("power_state", "D0\n"),
        ("dma_mask_bits", "32\n"),
        ("consistent_dma_mask_bits", "32\n"),
        ("driver_override", "(null)\n"),
        ("ari_enabled", "1\n"),
        ("max_link_speed", "32.0 GT/s PCIe\n"),
        ("current_link_speed", "32.0 GT/s PCIe\n"),
        ("max_link_width", "16\n"),
        ("current_link_width", "16\n"),
        ("modalias", "pci:v00001AF4d00001041sv00001AF4sd00001100bc02sc00i00\n"),
        (
            "uevent",
            "PCI_CLASS=20000\nPCI_ID=1AF4:1041\nPCI_SUBSYS_ID=1AF4:1100\n"
            "PCI_SLOT_NAME=0000:01:00.0\n"
            "MODALIAS=pci:v00001AF4d00001041sv00001AF4sd00001100bc02sc00i00\n",
        ),
    ],
)
def test_files_of_the_nic_read_as_in_a_kernel(sh: Shell, file: str, text: str) -> None:
    assert sh.cat(f"{NIC}/{file}") == text


def test_files_follow_config_space(sh: Shell) -> None:
    sh.write(f"{NIC}/config", b"\x2a", regs.PCI_INTERRUPT_LINE)
    assert sh.cat(f"{NIC}/irq") == "42\n"


def test_the_class_of_a_uevent_has_at_least_four_digits(sh: Shell) -> None:
    assert "PCI_CLASS=10802\n" in sh.cat(f"{pci('0000:81:00.0')}/uevent")
    assert "PCI_CLASS=60400\n" in sh.cat(f"{PORT}/uevent")


def test_files_that_only_some_functions_have(sh: Shell) -> None:
    extra = {name: sh.ls(pci(name)) - set(COMMON) for name in sh.devices()}
    for name, files in extra.items():
        dev = sh.dev(name)
        assert ("max_link_speed" in files) == dev.is_pcie
        assert ("secondary_bus_number" in files) == (dev.subordinate is not None)
        assert ("pci_bus" in files) == (dev.subordinate is not None)
    assert extra["0000:00:1e.0"] == {
        "link", "power", "resource0", "resource1", "resource2", "subsystem",
    }  # fmt: skip


def test_a_bridge_shows_its_buses(sh: Shell) -> None:
    switch = pci("0000:02:00.0")
    assert sh.cat(f"{switch}/secondary_bus_number") == "3\n"
    assert sh.cat(f"{switch}/subordinate_bus_number") == "5\n"


def test_an_unknown_link_speed_says_so(sh: Shell) -> None:
    dev = sh.dev("0000:01:00.0")
    dev.config.set(dev.pcie_cap + regs.PCI_EXP_LNKSTA, 2, 0x0F | 4 << 4)
    assert sh.cat(f"{NIC}/current_link_speed") == "Unknown\n"
    assert sh.cat(f"{NIC}/current_link_width") == "4\n"


def test_ari_is_enabled_where_port_and_device_have_it() -> None:
    sh = boot(
        """\
[[host_bridge]]
  [[host_bridge.root_port]]
  slot = 1
  ari = true
    [[host_bridge.root_port.endpoint]]
    ari = true
  [[host_bridge.root_port]]
  slot = 2
  ari = true
    [[host_bridge.root_port.endpoint]]
"""
    )
    assert [sh.cat(f"{pci(f'0000:0{n}:00.0')}/ari_enabled") for n in (1, 2)] == ["1\n", "0\n"]
    assert sh.cat(f"{PORT}/ari_enabled") == "0\n"


# resource


def test_resource_has_a_line_for_each_register_and_window(sh: Shell) -> None:
    line = re.compile(r"0x[0-9a-f]{16} 0x[0-9a-f]{16} 0x[0-9a-f]{16}")
    for path, count in ((NIC, 13), (BMC, 13), (PORT, 17)):
        lines = sh.cat(f"{path}/resource").splitlines()
        assert len(lines) == count
        assert all(line.fullmatch(text) for text in lines)
    assert sh.cat(f"{BMC}/resource").splitlines()[:4] == [
        "0x0000000083000000 0x0000000083ffffff 0x0000000000040200",
        "0x0000000084200000 0x000000008421ffff 0x0000000000040200",
        "0x0000000000002000 0x000000000000207f 0x0000000000040101",
        "0x0000000000000000 0x0000000000000000 0x0000000000000000",
    ]


def test_there_is_a_file_for_each_bar_of_its_size(sh: Shell) -> None:
    bars = {n: sh.node(f"{NIC}/{n}").size for n in sh.ls(NIC) if re.match(r"resource\d", n)}
    assert bars == {
        "resource0": 16 << 20,
        "resource0_wc": 16 << 20,
        "resource2": 64 << 10,
        "resource4": 4 << 10,
    }
    for name in bars:
        assert sh.mode(f"{NIC}/{name}") == 0o600
        with fails(errno.EIO):
            sh.read(f"{NIC}/{name}")
        with fails(errno.EIO):
            sh.write(f"{NIC}/{name}", b"\0")


# config


@pytest.mark.parametrize(("device", "size"), [("0000:01:00.0", 4096), ("0000:00:1e.0", 256)])
def test_config_has_the_size_of_the_space(sh: Shell, device: str, size: int) -> None:
    config = f"{pci(device)}/config"
    assert sh.node(config).size == size
    assert len(sh.read(config)) == size
    assert sh.read(config, size, 4) == b""
    assert len(sh.read(config, size - 2, 4)) == 2


@pytest.mark.parametrize(
    ("offset", "count", "expected"), [(0, 4096, 64), (60, 8, 4), (64, 1, 0), (100, 4, 0), (0, 4, 4)]
)
def test_only_administrators_read_beyond_the_header(
    sh: Shell, offset: int, count: int, expected: int
) -> None:
    config = f"{NIC}/config"
    assert len(sh.as_task(USER).read(config, offset, count)) == expected
    assert len(sh.read(config, offset, count)) == min(count, 4096 - offset)


def test_config_writes_reach_the_registers_and_no_read_only_one(sh: Shell) -> None:
    config = f"{NIC}/config"
    assert sh.write(config, b"\xff\xff\x06\x04", 0x02) == 4
    header = sh.read(config, 0, 6)
    assert header == bytes.fromhex("f41a 4110 0604".replace(" ", ""))


def test_config_writes_behind_the_end_are_too_big(sh: Shell) -> None:
    for offset in (256, 1000):
        with fails(errno.EFBIG):
            sh.write(f"{BMC}/config", b"\0", offset)
    assert sh.write(f"{BMC}/config", b"\0\0\0\0", 254) == 2


# enable


def command(sh: Shell, path: str = NIC) -> int:
    return int.from_bytes(sh.read(f"{path}/config", regs.PCI_COMMAND, 2), "little")


def test_enable_counts_and_lets_the_device_decode(sh: Shell) -> None:
    assert command(sh) & regs.PCI_COMMAND_MEMORY == 0
    sh.echo("1", f"{NIC}/enable")
    assert command(sh) & regs.PCI_COMMAND_MEMORY
    sh.echo("2", f"{NIC}/enable")
    assert sh.cat(f"{NIC}/enable") == "2\n"
    for left in (1, 0):
        sh.echo("0", f"{NIC}/enable")
        assert sh.cat(f"{NIC}/enable") == f"{left}\n"
    with fails(errno.EIO):
        sh.echo("0", f"{NIC}/enable")


def test_enable_covers_the_spaces_that_the_device_has(sh: Shell) -> None:
    sh.echo("1", f"{BMC}/enable")
    both = regs.PCI_COMMAND_IO | regs.PCI_COMMAND_MEMORY
    assert command(sh, BMC) & both == both
    sh.echo("1", f"{NIC}/enable")
    assert command(sh) & both == regs.PCI_COMMAND_MEMORY


def test_the_last_disable_ends_bus_mastering(sh: Shell) -> None:
    dev = sh.dev("0000:01:00.0")
    pci_enable_device(dev)
    pci_enable_device(dev)
    dev.config.write(regs.PCI_COMMAND, 2, command(sh) | regs.PCI_COMMAND_MASTER)
    pci_disable_device(dev)
    assert command(sh) & regs.PCI_COMMAND_MASTER
    pci_disable_device(dev)
    assert command(sh) & (regs.PCI_COMMAND_MASTER | regs.PCI_COMMAND_MEMORY) == (
        regs.PCI_COMMAND_MEMORY
    )


def test_enable_of_a_device_with_a_driver_is_busy(sh: Shell) -> None:
    sh.echo("pci-pf-stub", f"{NIC}/driver_override")
    sh.echo("0000:01:00.0", "/bus/pci/drivers/pci-pf-stub/bind")
    for text in ("1", "0"):
        with fails(errno.EBUSY):
            sh.echo(text, f"{NIC}/enable")


@pytest.mark.parametrize("file", ["enable", "msi_bus", "numa_node"])
def test_files_for_administrators_say_so_before_they_read(sh: Shell, file: str) -> None:
    before = sh.cat(f"{NIC}/{file}")
    for text in ("0", "nonsense"):
        with fails(errno.EPERM):
            sh.as_task(USER).echo(text, f"{NIC}/{file}")
    assert sh.cat(f"{NIC}/{file}") == before


# Other files that can be written


@pytest.mark.parametrize("file", ["broken_parity_status", "d3cold_allowed", "msi_bus"])
def test_switches_take_any_number(sh: Shell, file: str) -> None:
    for text, value in (("1", "1"), ("0", "0"), ("7", "1"), ("0x0", "0"), ("017", "1")):
        sh.echo(text, f"{NIC}/{file}")
        assert sh.cat(f"{NIC}/{file}") == f"{value}\n"


@pytest.mark.parametrize(
    "file",
    ["broken_parity_status", "d3cold_allowed", "enable", "msi_bus", "numa_node", "remove",
     "rescan"],
)  # fmt: skip
@pytest.mark.parametrize("text", ["", "x", "0x", "08", "1 ", "on", "9" * 30, "\udcff\0\udc80"])
def test_numbers_that_are_none_are_invalid(sh: Shell, file: str, text: str) -> None:
    with fails(errno.EINVAL):
        sh.write(f"{NIC}/{file}", f"{text}\n".encode(errors="surrogateescape"))


@pytest.mark.parametrize(("text", "number"), [("-2", 22), ("1", 22), ("1000", 22), ("5", 22)])
def test_a_node_must_be_there(sh: Shell, text: str, number: int) -> None:
    with fails(number):
        sh.echo(text, f"{NIC}/numa_node")


def test_the_node_can_be_set(sh: Shell) -> None:
    for text in ("0", "-1"):
        sh.echo(text, f"{NIC}/numa_node")
        assert sh.cat(f"{NIC}/numa_node") == f"{text}\n"


@pytest.mark.parametrize(
    ("data", "reads"),
    [
        (b"vfio-pci\n", b"vfio-pci\n"),
        (b"vfio-pci", b"vfio-pci\n"),
        (b"first\nsecond\n", b"first\n"),
        (b"with space\n", b"with space\n"),
        (b"\xff\xfe\n", b"\xff\xfe\n"),
        (b"\n", b"(null)\n"),
        (b"\0junk", b"(null)\n"),
        (b"x" * 4000 + b"\n", b"x" * 4000 + b"\n"),
    ],
)
def test_driver_override_is_one_line_and_an_empty_one_clears_it(
    sh: Shell, data: bytes, reads: bytes
) -> None:
    sh.echo("before", f"{NIC}/driver_override")
    sh.write(f"{NIC}/driver_override", data)
    assert sh.read(f"{NIC}/driver_override") == reads


@pytest.mark.parametrize("length", [4095, 4096, 5000])
def test_driver_override_of_a_page_is_invalid(sh: Shell, length: int) -> None:
    with fails(errno.EINVAL):
        sh.write(f"{NIC}/driver_override", b"x" * length)
    assert sh.cat(f"{NIC}/driver_override") == "(null)\n"


def test_resource_alignment_is_kept(sh: Shell) -> None:
    path = "/bus/pci/resource_alignment"
    assert sh.cat(path) == ""
    sh.echo("20@0000:01:00.0", path)
    assert sh.cat(path) == "20@0000:01:00.0\n"
    sh.write(path, b"\xe9\n")
    assert sh.read(path) == b"\xe9\n"
    sh.echo("", path)
    assert sh.cat(path) == ""


# CPUs


def test_every_cpu_is_local_to_functions_and_buses(sh: Shell) -> None:
    assert sh.cat(f"{NIC}/local_cpus") == sh.cat("/class/pci_bus/0000:01/cpuaffinity")
    assert sh.cat(f"{NIC}/local_cpulist") == sh.cat("/class/pci_bus/0000:01/cpulistaffinity")
