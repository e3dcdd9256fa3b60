# SPDX-License-Identifier: MIT
"""Programs that none of us wrote, on an emulated machine: lspci, setpci, the shell."""

from __future__ import annotations

import os
import re
import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest

BDF = "10000:01:00.0"


def run(*command: str | Path) -> str:
    result = subprocess.run(
        [str(part) for part in command], capture_output=True, text=True, timeout=60, check=False
    )
    assert result.returncode == 0, result.stderr
    return result.stdout


def lspci(sysfs: Path, *options: str) -> str:
    return run("lspci", "-O", f"sysfs.path={sysfs}/bus/pci", *options)


def block(text: str, name: str) -> str:
    """What ``lspci -vvv`` says of one function."""
    return next(part for part in re.split(r"\n(?=\S)", text) if part.startswith(name))


def test_lspci_lists_the_machine(devsec: Path) -> None:
    lines = lspci(devsec, "-D", "-n").splitlines()
    assert [line.split()[0] for line in lines] == [
        "10000:00:00.0",
        "10000:01:00.0",
        "10000:01:00.1",
        "10001:02:00.0",
        "10001:03:00.0",
        "10001:03:00.1",
    ]
    assert lines[1].startswith("10000:01:00.0 1200: 8086:ffff")
    assert lines[0].startswith("10000:00:00.0 0604: 8086:ffff")


def test_lspci_decodes_the_capabilities_it_knows(devsec: Path) -> None:
    text = block(lspci(devsec, "-D", "-vvv"), BDF)
    assert "Capabilities: [40] Express" in text
    assert "Endpoint" in text
    assert "FLReset+" in text
    assert re.search(r"Region 0: Memory at [0-9a-f]+ \(64-bit, prefetchable\).*\[size=2M\]", text)
    assert re.search(
        r"Capabilities: \[100 v2\] (Extended Capability ID 0x2e|Data Object Exch)", text
    )
    assert re.search(
        r"Capabilities: \[118 v1\] (Extended Capability ID 0x30|Integrity & Data)", text
    )


def test_lspci_draws_the_tree(devsec: Path, server: Path) -> None:
    tree = lspci(devsec, "-t")
    assert "[10000:00]---00.0-[01]--+-00.0" in tree
    tree = lspci(server, "-t", "-n")
    assert re.search(r"02\.0-\[02-05\]----00\.0-\[03-05\]--\+-00\.0-\[04\]--\+-00\.0", tree)


def test_setpci_reads_and_writes_registers(server: Path) -> None:
    def setpci(*arguments: str) -> str:
        path = f"sysfs.path={server}/bus/pci"
        return run("setpci", "-O", path, "-s", "0000:81:00.0", *arguments).strip()

    assert setpci("VENDOR_ID.w") == (
        (server / "bus/pci/devices/0000:81:00.0/vendor").read_text().strip().removeprefix("0x")
    )
    before = setpci("COMMAND.w")
    setpci("COMMAND.w=0006")
    assert setpci("COMMAND.w") == "0006"
    setpci(f"COMMAND.w={before}")
    # What is read-only stays: the hardware has masks.
    setpci("VENDOR_ID.w=1234")
    assert setpci("VENDOR_ID.w") != "1234"


def test_sizing_a_bar_through_config_works(server: Path) -> None:
    config = server / "bus/pci/devices/0000:81:00.0/config"
    start, end, _ = (
        int(word, 16) for word in (config.parent / "resource").read_text().splitlines()[0].split()
    )
    with config.open("r+b", buffering=0) as registers:
        address = os.pread(registers.fileno(), 8, 0x10)
        os.pwrite(registers.fileno(), b"\xff" * 8, 0x10)
        sized = int.from_bytes(os.pread(registers.fileno(), 8, 0x10), "little")
        os.pwrite(registers.fileno(), address, 0x10)
        assert os.pread(registers.fileno(), 8, 0x10) == address
    assert (~(sized & ~0xF) & ((1 << 64) - 1)) + 1 == end - start + 1


@pytest.fixture
def shell(devsec: Path) -> Iterator[Shell]:
    shell = Shell(devsec)
    yield shell
    for file, line in (
        (f"bus/pci/devices/{BDF}/tsm/disconnect", "tsm0"),
        (f"bus/pci/devices/{BDF}/tsm/unlock", "tsm1"),
    ):
        shell.echo(line, file)


class Shell:
    """Bash, writing to files of a machine."""

    def __init__(self, sysfs: Path) -> None:
        self._sysfs = sysfs

    def echo(self, text: str, file: str) -> str:
        """What bash says of ``echo TEXT > FILE``, behind its own name; empty when it worked."""
        result = subprocess.run(
            ["bash", "-c", f'echo "{text}" > {file}'],
            cwd=self._sysfs,
            env={**os.environ, "LC_ALL": "C"},
            capture_output=True,
            text=True,
            timeout=30,
            check=False,
        )
        return result.stderr.strip().removeprefix("bash: line 1: ")

    def cat(self, file: str) -> str:
        return (self._sysfs / file).read_text()


def test_connecting_shows_in_every_file(shell: Shell, devsec: Path) -> None:
    tsm = f"bus/pci/devices/{BDF}/tsm"
    bridge = devsec / "devices/faux/devsec_bus/pci10000:00"
    assert (bridge / "available_secure_streams").read_text() == "4\n"
    assert shell.echo("tsm0", f"{tsm}/connect") == ""
    assert shell.cat(f"{tsm}/connect") == "tsm0\n"
    assert shell.cat(f"{tsm}/dsm") == f"{BDF}\n"
    assert shell.cat(f"bus/pci/devices/{BDF}/authenticated") == "tsm0\n"
    assert (bridge / "available_secure_streams").read_text() == "3\n"
    listing = run("ls", "-l", f"{devsec}/class/tsm/tsm0/pci10000:00/")
    assert re.search(rf"^l.* stream0\.0\.0 -> .*{BDF}$", listing, re.MULTILINE)
    assert sorted(os.listdir(devsec / "bus/pci/devices/10000:01:00.1/tsm")) == [
        "accept",
        "bound",
        "dsm",
        "lock",
        "unlock",
    ]


INVALID = "echo: write error: Invalid argument"
BUSY = "echo: write error: Device or resource busy"
NO_ADDRESS = "echo: write error: No such device or address"


def test_the_shell_reports_each_error_of_the_write_table(shell: Shell) -> None:
    tsm = f"bus/pci/devices/{BDF}/tsm"

    def connect(text: str) -> str:
        return shell.echo(text, f"{tsm}/connect")

    assert connect("nonsense") == INVALID
    assert connect("tsm9") == NO_ADDRESS
    assert connect("tsm1") == NO_ADDRESS
    assert shell.echo("tsm0", f"{tsm}/disconnect") == NO_ADDRESS
    assert connect("tsm0") == ""
    assert connect("tsm0") == BUSY
    assert connect("nonsense") == INVALID
    assert shell.echo("tsm1", f"{tsm}/lock") == BUSY
    assert shell.echo("tsm0", f"{tsm}/unlock") == INVALID
    assert shell.echo("1", f"{tsm}/accept") == INVALID
    assert shell.echo("tsm1", f"{tsm}/disconnect") == INVALID
    assert shell.echo("tsm0", f"{tsm}/disconnect") == ""

    assert shell.echo("x", f"{tsm}/lock") == INVALID
    assert shell.echo("tsm0", f"{tsm}/lock") == NO_ADDRESS
    assert shell.echo("1", f"{tsm}/accept") == INVALID
    assert shell.echo("tsm1", f"{tsm}/unlock") == INVALID
    assert shell.echo("tsm1", f"{tsm}/lock") == ""
    assert shell.echo("tsm1", f"{tsm}/lock") == BUSY
    assert shell.echo("tsm1", f"{tsm}/disconnect") == NO_ADDRESS
    assert shell.cat(f"{tsm}/dsm") == shell.cat(f"{tsm}/bound") == "\n"
    assert shell.echo("0", f"{tsm}/accept") == INVALID
    assert shell.echo("maybe", f"{tsm}/accept") == INVALID
    assert shell.cat(f"{tsm}/accept") == "0\n"
    assert shell.echo("1", f"{tsm}/accept") == ""
    assert shell.cat(f"{tsm}/accept") == "1\n"
    assert shell.echo("1", f"{tsm}/accept") == BUSY
    assert "PCI MMIO Encrypted" in shell.cat("kernel/tsmfs/iomem")
    assert shell.echo("tsm0", f"{tsm}/unlock") == INVALID
    assert shell.echo("tsm1", f"{tsm}/unlock") == ""
    assert "PCI MMIO Encrypted" not in shell.cat("kernel/tsmfs/iomem")


def test_a_bound_driver_stands_in_the_way_of_lock(shell: Shell, devsec: Path) -> None:
    device = f"bus/pci/devices/{BDF}"
    assert shell.echo("devsec_pci autoprobe=0", "kernel/tsmfs/modprobe") == ""
    try:
        assert shell.echo("devsec_pci", f"{device}/driver_override") == ""
        assert not (devsec / device / "driver").exists()
        assert shell.echo(BDF, "bus/pci/drivers/devsec_pci/bind") == ""
        assert shell.echo("tsm1", f"{device}/tsm/lock") == BUSY
        assert shell.echo(BDF, "bus/pci/drivers/devsec_pci/unbind") == ""
        assert shell.echo("tsm1", f"{device}/tsm/lock") == ""
        assert shell.echo("1", f"{device}/tsm/accept") == ""
        assert shell.echo(BDF, "bus/pci/drivers/devsec_pci/bind") == INVALID
    finally:
        shell.echo("devsec_pci", "kernel/tsmfs/rmmod")
        shell.echo("", f"{device}/driver_override")
