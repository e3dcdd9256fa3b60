# SPDX-License-Identifier: MIT
"""The command line: what each command reads and writes, what it prints and how it ends."""

from __future__ import annotations

import hashlib
import json
import os
import signal
import struct
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from types import ModuleType

import click
import pytest

from netlink.evidence import serve_device_evidence, serve_pci_tsm
from netlink.record import RECORD
from netlink.server import Server
from netlink.transport.unix import UnixTransport
from tests.command_line import Result, Run
from tests.netlink.devices import BDF, Device, Provider
from tsmfs import __version__
from tsmfs.cli import cli

ROOT = Path(__file__).parent.parent


@pytest.fixture
def control(fake_sysfs: Path) -> Path:
    return fake_sysfs / "kernel" / "tsmfs"


@dataclass(frozen=True)
class Background:
    """A command that runs until it is told to stop; its output is in a file."""

    process: subprocess.Popen[bytes]
    output: Path

    def wait_for(self, text: str) -> None:
        deadline = time.monotonic() + 20
        while text not in self.output.read_text():
            assert time.monotonic() < deadline, self.output.read_text()
            time.sleep(0.02)


@pytest.fixture
def start(tmp_path: Path, fake_sysfs: Path) -> Iterator[Callable[..., Background]]:
    """Starts a command as a process of its own on the fake machine."""
    running: list[Background] = []

    def start_command(*arguments: str) -> Background:
        output = tmp_path / "output"
        with output.open("wb") as file:
            process = subprocess.Popen(
                [sys.executable, "-m", "tsmfs", *arguments, "--sysfs", str(fake_sysfs)],
                stdout=file,
                stderr=subprocess.STDOUT,
                cwd=ROOT,
            )
        running.append(Background(process, output))
        return running[-1]

    yield start_command
    for background in running:
        background.process.send_signal(signal.SIGINT)
        background.process.wait()


def all_commands() -> list[tuple[str, ...]]:
    def below(path: tuple[str, ...], command: click.Command) -> Iterator[tuple[str, ...]]:
        yield path
        if isinstance(command, click.Group):
            for name, one in command.commands.items():
                yield from below((*path, name), one)

    return list(below((), cli))


# --- All commands ---------------------------------------------------------------------------------


@pytest.mark.parametrize("path", all_commands(), ids=" ".join)
def test_help_has_an_example(run: Run, path: tuple[str, ...]) -> None:
    result = run(*path, "--help")
    assert (result.status, result.err) == (0, "")
    assert "Example" in result.out
    assert f"tsmfs {' '.join(path)}" in result.out.partition("Example")[2]
    assert run(*path, "-h") == result


def test_version_is_that_of_the_package(run: Run) -> None:
    assert run("--version") == Result(0, f"tsmfs {__version__}\n", "")


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["nonsense"], "No such command 'nonsense'"),
        (["modprobe"], "Missing argument 'NAME'"),
        (["lsmod", "--wrong"], "No such option"),
    ],
)
def test_wrong_command_line_is_one_line_and_status_2(
    run: Run, arguments: list[str], message: str
) -> None:
    result = run(*arguments)
    assert (result.status, result.out) == (2, "")
    assert result.err.startswith(f"tsmfs: {message}")
    assert result.err.count("\n") == 1


@pytest.mark.parametrize(
    "command",
    ["lsmod", "dmesg", "monitor", "status", "netlink families", "netlink monitor"],
)
def test_directory_that_is_no_machine_is_one_line_and_status_1(
    run: Run, tmp_path: Path, command: str
) -> None:
    message = f"tsmfs: {tmp_path}: not the sysfs of a machine: it has no kernel/tsmfs\n"
    assert run(*command.split(), "--sysfs", tmp_path) == Result(1, "", message)


def test_environment_names_the_machine(
    run: Run, fake_sysfs: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("TSMFS_SYSFS", str(fake_sysfs))
    assert "devsec_bus" in run("lsmod").out


def test_small_commands_import_nothing_that_takes_long(fake_sysfs: Path) -> None:
    heavy = (
        *("tsmfs.machine", "tsmfs.mount", "tsmfs.pci", "tsmfs.description", "cryptography"),
        *("netlink", "pyroute2", "yaml"),
    )
    program = (
        "import sys, tsmfs.cli\n"
        f"try: tsmfs.cli.main(['lsmod', '--sysfs', {str(fake_sysfs)!r}])\n"
        "except SystemExit: pass\n"
        f"print([name for name in {heavy} if name in sys.modules])\n"
    )
    finished = subprocess.run(
        [sys.executable, "-c", program], cwd=ROOT, capture_output=True, text=True, check=True
    )
    assert finished.stdout.splitlines()[-1] == "[]"


def test_reader_that_goes_away_ends_the_command_quietly(control: Path) -> None:
    (control / "log").write_bytes(b"[    0.000000] a line\n" * 100_000)
    process = subprocess.Popen(
        [sys.executable, "-m", "tsmfs", "dmesg", "--sysfs", str(control.parent.parent)],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        cwd=ROOT,
    )
    assert process.stdout is not None
    assert process.stderr is not None
    process.stdout.readline()
    process.stdout.close()
    assert (process.wait(), process.stderr.read()) == (1, b"")
    process.stderr.close()


# --- Mounting -------------------------------------------------------------------------------------


class MountFailureError(Exception):
    """Stands for the error of the module that mounts."""


@pytest.fixture
def requests(monkeypatch: pytest.MonkeyPatch) -> list[object]:
    """What the command asks of the module that mounts, which is replaced."""
    asked: list[object] = []

    def do(request: object) -> None:
        asked.append(request)
        if "broken" in str(request):
            raise MountFailureError("/mnt/broken: not empty")

    replacement = ModuleType("tsmfs.mount")
    vars(replacement).update(
        MountError=MountFailureError, MountRequest=dict, mount_machine=do, unmount_machine=do
    )
    monkeypatch.setitem(sys.modules, "tsmfs.mount", replacement)
    return asked


def test_mount_asks_for_the_default_machine_and_prints_where(
    run: Run, requests: list[object]
) -> None:
    assert run("mount", "/mnt/x") == Result(0, "devsec is mounted on /mnt/x\n", "")
    assert requests == [
        {
            "directory": Path("/mnt/x"),
            "machine": "devsec",
            "modules": (),
            "machine_modules": True,
            "uevents": False,
            "foreground": False,
        }
    ]


def test_mount_passes_its_options_on(run: Run, requests: list[object]) -> None:
    options = ["--machine", "m.toml", "--no-modules", "--module", "a", "--module", "b"]
    assert run("mount", *options, "--uevents", "-f", "/mnt/x") == Result(0, "", "")
    assert requests == [
        {
            "directory": Path("/mnt/x"),
            "machine": "m.toml",
            "modules": ("a", "b"),
            "machine_modules": False,
            "uevents": True,
            "foreground": True,
        }
    ]


def test_umount_passes_the_directory_on(run: Run, requests: list[object]) -> None:
    assert run("umount", "/mnt/x") == Result(0, "", "")
    assert requests == [Path("/mnt/x")]


@pytest.mark.parametrize("command", ["mount", "umount"])
def test_failure_to_mount_is_one_line(run: Run, requests: list[object], command: str) -> None:
    assert run(command, "/mnt/broken") == Result(1, "", "tsmfs: /mnt/broken: not empty\n")


# --- Modules --------------------------------------------------------------------------------------


def test_modprobe_writes_to_the_control_file(run: Run, fake_sysfs: Path, control: Path) -> None:
    assert run("modprobe", "--sysfs", fake_sysfs, "devsec-pci", "autoprobe=0") == Result(0, "", "")
    assert (control / "modprobe").read_text() == "devsec_pci autoprobe=0\n"


def test_modprobe_remove_writes_to_the_control_file(
    run: Run, fake_sysfs: Path, control: Path
) -> None:
    result = run("modprobe", "--sysfs", fake_sysfs, "-r", "-v", "devsec_bus")
    assert result == Result(0, "rmmod devsec_bus\n", "")
    assert (control / "rmmod").read_text() == "devsec_bus\n"


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["nosuch"], "modprobe: FATAL: Module nosuch not found."),
        (["-r", "devsec_common"], "modprobe: FATAL: Module devsec_common is in use."),
        (
            ["--first-time", "devsec_bus"],
            "modprobe: ERROR: could not insert 'devsec_bus': Module already in kernel",
        ),
    ],
)
def test_modprobe_fails_as_the_real_one(
    run: Run, fake_sysfs: Path, arguments: list[str], message: str
) -> None:
    result = run("modprobe", "--sysfs", fake_sysfs, *arguments)
    assert result == Result(1, "", message + "\n")
    assert run("modprobe", "--sysfs", fake_sysfs, "-q", *arguments) == Result(1, "", "")


def test_lsmod_prints_the_table(run: Run, fake_sysfs: Path) -> None:
    lines = run("lsmod", "--sysfs", fake_sysfs).out.splitlines()
    assert lines[0].split() == ["Module", "Size", "Used", "by"]
    assert lines[3].split() == ["devsec_common", "8192", "2", "devsec_tsm,devsec_bus"]


# --- Logs and uevents -----------------------------------------------------------------------------


def test_dmesg_prints_the_log_as_it_is(run: Run, fake_sysfs: Path, control: Path) -> None:
    (control / "log").write_text("[    0.000001] first\n[    0.000002] zweitgrößte\n")
    assert run("dmesg", "--sysfs", fake_sysfs).out == (control / "log").read_text()


def test_dmesg_follows_the_log_until_it_is_interrupted(
    start: Callable[..., Background], control: Path
) -> None:
    (control / "log").write_text("[    0.000001] old\n")
    background = start("dmesg", "-w")
    background.wait_for("old")
    with (control / "log").open("a") as log:
        log.write("[    0.000002] new\n")
    background.wait_for("new")
    background.process.send_signal(signal.SIGINT)
    assert background.process.wait() == 130
    # The terminal's line with the ^C in it is ended.
    assert background.output.read_text() == (control / "log").read_text() + "\n"


def uevent(action: str, devpath: str, *variables: str) -> bytes:
    parts = [f"{action}@{devpath}", f"ACTION={action}", f"DEVPATH={devpath}", *variables]
    return "".join(f"{part}\0" for part in parts).encode() + b"\0"


def test_monitor_prints_only_uevents_that_come_after_its_start(
    start: Callable[..., Background], control: Path
) -> None:
    (control / "uevents").write_bytes(uevent("add", "/devices/old", "SUBSYSTEM=pci"))
    background = start("monitor")
    background.wait_for("KERNEL - the kernel uevent\n\n")
    event = uevent("change", "/devices/new", "SUBSYSTEM=tsm", "DRIVER=", "SEQNUM=2")
    with (control / "uevents").open("ab", buffering=0) as stream:
        stream.write(event[:20])
        time.sleep(0.2)
        stream.write(event[20:])
    background.wait_for("SEQNUM=2\n\n")
    heading, _, rest = background.output.read_text().partition("\n\n")
    assert heading == ("monitor will print the received events for:\nKERNEL - the kernel uevent")
    title, *properties = rest.splitlines()
    assert title.startswith("KERNEL[")
    assert title.endswith("] change   /devices/new (tsm)")
    assert properties == [
        "ACTION=change",
        "DEVPATH=/devices/new",
        "SUBSYSTEM=tsm",
        "DRIVER=",
        "SEQNUM=2",
        "",
    ]


# --- Status ---------------------------------------------------------------------------------------


@pytest.fixture
def locked(fake_sysfs: Path) -> Path:
    """A machine with one function, which a devsec TSM has locked."""
    device = fake_sysfs / "devices/pci0000:00/0000:00:01.0"
    (device / "tsm").mkdir(parents=True)
    (fake_sysfs / "bus/pci/devices").mkdir(parents=True)
    (fake_sysfs / "class/tsm/tsm0").mkdir(parents=True)
    (fake_sysfs / "bus/pci/devices/0000:00:01.0").symlink_to(
        "../../../devices/pci0000:00/0000:00:01.0"
    )
    for path, text in {
        device / "vendor": "0x8086",
        device / "device": "0xffff",
        device / "class": "0x120000",
        device / "tsm/lock": "tsm0",
        device / "tsm/accept": "0",
        fake_sysfs / "class/tsm/tsm0/pci_mode": "devsec",
    }.items():
        path.write_text(f"{text}\n")
    return fake_sysfs


def test_status_ends_with_where_netlink_is(run: Run, locked: Path, control: Path) -> None:
    (control / "netlink_socket").write_text("/run/x.sock\n")
    (control / "netlink_port").write_text("4711\n")
    assert run("status", "--sysfs", locked).out.splitlines()[-2:] == [
        "",
        "netlink  /run/x.sock  port 4711",
    ]
    shown = json.loads(run("status", "--sysfs", locked, "--json").out)
    assert shown["netlink"] == {"socket": "/run/x.sock", "port": 4711}


def test_status_is_a_tree_without_colours_when_it_is_no_terminal(run: Run, locked: Path) -> None:
    assert run("status", "--sysfs", locked) == Result(
        0, "tsm0  devsec\n\npci0000:00\n└─ 0000:00:01.0  8086:ffff  [120000]  locked tsm0\n", ""
    )


def test_status_has_colours_on_a_terminal(locked: Path) -> None:
    leader, follower = os.openpty()
    with os.fdopen(leader, "rb") as terminal:
        subprocess.run(
            [sys.executable, "-m", "tsmfs", "status", "--sysfs", str(locked)],
            stdout=follower,
            cwd=ROOT,
            check=True,
        )
        os.close(follower)
        shown = os.read(terminal.fileno(), 65536)
    assert b"\x1b[33mlocked tsm0\x1b[0m" in shown


def test_status_as_json_has_the_same_in_it(run: Run, locked: Path) -> None:
    topology = json.loads(run("status", "--sysfs", locked, "--json").out)
    assert topology["tsms"] == [{"name": "tsm0", "mode": "devsec", "parent": None}]
    (function,) = topology["host_bridges"][0]["functions"]
    assert function["name"] == "0000:00:01.0"
    assert function["state"] == "locked"


# --- Evidence and netlink -------------------------------------------------------------------------


@pytest.fixture
def device(fake_sysfs: Path, control: Path, tmp_path: Path) -> Iterator[Device]:
    """A device whose evidence the fake machine serves."""
    device = Device({0: bytes(range(40)), 9: b"m" * 5})
    with Server() as server:
        serve_pci_tsm(server.genl, Provider(**{BDF: device}))
        serve_device_evidence(server.genl, Provider(**{BDF: device}))
        server.add(UnixTransport(tmp_path / "socket"))
        (control / "netlink_socket").write_text(f"{tmp_path / 'socket'}\n")
        (control / "netlink_port").write_text("17\n")
        (control / "netlink_record").write_text("0\n")
        (control / "netlink_messages").touch()
        yield device


def test_evidence_is_a_table_of_sizes(run: Run, fake_sysfs: Path, device: Device) -> None:
    result = run("evidence", "read", "--sysfs", fake_sysfs, BDF)
    assert (result.status, result.err) == (0, "")
    assert result.out.splitlines()[:3] == [
        f"{BDF}  pci-tsm",
        "cert0         40 bytes",
        "cert1         -",
    ]
    assert len(result.out.splitlines()) == 12


def test_evidence_digests_are_shown_themselves(run: Run, fake_sysfs: Path, device: Device) -> None:
    options = ("--digest", "--type", "vca", "--type", "measurements")
    result = run("evidence", "read", "--sysfs", fake_sysfs, *options, BDF)
    digest = hashlib.sha384(b"m" * 5).hexdigest()
    assert result.out == f"{BDF}  pci-tsm\nvca           -\nmeasurements  {digest}\n"


def test_evidence_hexdump_is_that_of_hexdump(run: Run, fake_sysfs: Path, device: Device) -> None:
    options = ("--hexdump", "--type", "cert0", "--type", "vca")
    result = run("evidence", "read", "--sysfs", fake_sysfs, *options, BDF)
    assert result.out.splitlines() == [
        f"{BDF}  pci-tsm",
        "",
        "cert0  40 bytes",
        "00000000  00 01 02 03 04 05 06 07  08 09 0a 0b 0c 0d 0e 0f  |................|",
        "00000010  10 11 12 13 14 15 16 17  18 19 1a 1b 1c 1d 1e 1f  |................|",
        "00000020  20 21 22 23 24 25 26 27                           | !\"#$%&'|",
        "",
        "vca  0 bytes",
    ]


def test_evidence_of_a_nonce_is_new_and_the_nonce_is_told(
    run: Run, fake_sysfs: Path, device: Device
) -> None:
    options = ("--family", "device-evidence", "--nonce", "00ff", "--type", "vca")
    result = run("evidence", "read", "--sysfs", fake_sysfs, *options, BDF)
    assert result.out.splitlines()[0] == f"{BDF}  device-evidence  generation 2  nonce 00ff"
    random = run("evidence", "read", "--sysfs", fake_sysfs, "--nonce", "random", "--json", BDF)
    assert device.refreshed == [b"\0\xff", bytes.fromhex(json.loads(random.out)["nonce"])]
    assert len(device.refreshed[1]) == 32


def test_evidence_is_written_with_nothing_for_what_is_empty(
    run: Run, fake_sysfs: Path, device: Device, tmp_path: Path
) -> None:
    out = tmp_path / "a/b"
    options = ("--out", out, "--type", "measurements", "--type", "vca")
    assert run("evidence", "read", "--sysfs", fake_sysfs, *options, BDF).status == 0
    written = {file.name: file.read_bytes() for file in out.iterdir()}
    assert written == {"measurements.bin": b"mmmmm", "vca.bin": b""}


def test_evidence_that_is_refused_writes_nothing(
    run: Run, fake_sysfs: Path, device: Device, tmp_path: Path
) -> None:
    device.present = None
    result = run("evidence", "read", "--sysfs", fake_sysfs, "--out", tmp_path / "new", BDF)
    error = f"tsmfs: {BDF}: No such device or address: no TSM context\n"
    assert result == Result(1, "", error)
    assert not (tmp_path / "new").exists()


def test_evidence_is_validated_or_refused(run: Run, fake_sysfs: Path, device: Device) -> None:
    validate = ("evidence", "validate", "--sysfs", fake_sysfs, BDF, "--generation")
    assert run(*validate, "1") == Result(0, "", "")
    assert device.validated == 1
    result = run(*validate, "7")
    assert (result.status, result.err.count("\n")) == (1, 1)
    assert "Resource temporarily unavailable: not the current generation" in result.err


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--type", "cert8"], "'cert8' is none of cert0, cert1,"),
        (["--nonce", "xyz"], "'xyz' is neither bytes in hexadecimal nor 'random'"),
        (["--nonce", ""], "'' is neither bytes in hexadecimal nor 'random'"),
        (["--family", "nosuch"], "'nosuch' is not one of 'pci-tsm', 'device-evidence'"),
    ],
)
def test_evidence_of_a_wrong_kind_is_not_asked_for(
    run: Run, fake_sysfs: Path, arguments: list[str], message: str
) -> None:
    result = run("evidence", "read", "--sysfs", fake_sysfs, *arguments, BDF)
    assert (result.status, result.out, result.err.count("\n")) == (2, "", 1)
    assert message in result.err


def test_machine_that_serves_no_netlink_says_where_to_look(
    run: Run, fake_sysfs: Path, control: Path
) -> None:
    (control / "netlink_socket").write_text("\n")
    message = f"tsmfs: {fake_sysfs}: the machine serves no netlink: see 'tsmfs dmesg'\n"
    assert run("evidence", "read", "--sysfs", fake_sysfs, BDF) == Result(1, "", message)


def test_server_that_is_gone_is_told_with_its_path(
    run: Run, fake_sysfs: Path, control: Path, tmp_path: Path
) -> None:
    (control / "netlink_socket").write_text(f"{tmp_path}/none\n")
    message = f"tsmfs: {tmp_path}/none: No such file or directory\n"
    assert run("netlink", "families", "--sysfs", fake_sysfs) == Result(1, "", message)


def test_netlink_families_are_a_table(run: Run, fake_sysfs: Path, device: Device) -> None:
    assert run("netlink", "families", "--sysfs", fake_sysfs).out.splitlines() == [
        "ID    NAME              VERSION  OPERATIONS",
        "16    nlctrl            2        getfamily (do dump), getpolicy (dump)",
        "19    pci-tsm           1        evidence-read (dump admin)",
        "20    device-evidence   1        read (dump admin), validate (do admin)",
    ]


def recorded(datagram: bytes) -> bytes:
    return RECORD.pack(len(datagram), 0, time.time_ns(), 3, 0) + datagram


def test_netlink_monitor_prints_what_comes_after_its_start(
    start: Callable[..., Background], control: Path, device: Device
) -> None:
    noop = struct.pack("=IHHII", 16, 1, 0, 5, 0)
    with (control / "netlink_messages").open("ab", buffering=0) as messages:
        messages.write(recorded(noop))
        background = start("netlink", "monitor")
        background.wait_for("-> is to the machine, <- from the machine\n")
        assert (control / "netlink_record").read_text() == "1\n"
        record = recorded(struct.pack("=IHHIIBBH", 20, 19, 0x301, 6, 0, 1, 1, 0))
        messages.write(record[:30])
        time.sleep(0.2)
        messages.write(record[30:])
        background.wait_for("seq 6")
    background.process.send_signal(signal.SIGINT)
    assert background.process.wait() == 130
    assert (control / "netlink_record").read_text() == "0\n"
    (_, line) = background.output.read_text().splitlines()[:2]
    assert line.endswith(" port 3 -> pci-tsm evidence-read request dump, seq 6, 20 bytes")


def test_netlink_monitor_says_that_messages_were_lost(
    start: Callable[..., Background], control: Path, device: Device
) -> None:
    with (control / "netlink_messages").open("ab", buffering=0) as messages:
        background = start("netlink", "monitor")
        background.wait_for("from the machine\n")
        # What is written at once is read at once: half a record with the one before it.
        noop = recorded(struct.pack("=IHHII", 16, 1, 0, 4, 0))
        messages.write(noop + recorded(bytes(500))[:200])
        background.wait_for("noop, seq 4")
        messages.write(recorded(struct.pack("=IHHII", 16, 1, 0, 5, 0)))
        background.wait_for("messages before this were lost")
    assert "noop, seq 5" in background.output.read_text()


# --- Machines -------------------------------------------------------------------------------------


def test_machine_list_names_the_built_in_ones(run: Run) -> None:
    names = [line.split()[0] for line in run("machine", "list").out.splitlines()]
    assert "devsec" in names
    assert "server" in names


def test_machine_show_prints_what_machine_check_takes(run: Run, tmp_path: Path) -> None:
    shown = run("machine", "show", "server")
    file = tmp_path / "mine.toml"
    file.write_text(shown.out)
    assert (shown.status, shown.err) == (0, "")
    assert run("machine", "check", file) == Result(0, f"{file}: ok\n", "")


def test_machine_show_refuses_an_unknown_name(run: Run) -> None:
    result = run("machine", "show", "nosuch")
    assert (result.status, result.out) == (1, "")
    assert result.err.startswith("tsmfs: nosuch: ")


def test_machine_check_tells_every_mistake_with_file_and_key(run: Run, tmp_path: Path) -> None:
    file = tmp_path / "mine.toml"
    file.write_text('name = "mine"\nseeed = 1\n[[host_bridge]]\nbus = 999\n')
    result = run("machine", "check", file)
    assert (result.status, result.out) == (1, "")
    lines = result.err.splitlines()
    assert any(line.startswith(f"tsmfs: {file}: seeed: ") for line in lines)
    assert any(line.startswith(f"tsmfs: {file}: host_bridge[0].bus: ") for line in lines)


def test_machine_check_refuses_a_file_that_is_not_there(run: Run, tmp_path: Path) -> None:
    result = run("machine", "check", tmp_path / "none.toml")
    message = f"tsmfs: {tmp_path / 'none.toml'}: No such file or directory\n"
    assert result == Result(1, "", message)


# --- Completion -----------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("words", "expected"),
    [
        ("tsmfs mod", ["modprobe"]),
        ("tsmfs modprobe devsec_p", ["devsec_pci"]),
        ("tsmfs mount --machine ser", ["server"]),
        ("tsmfs machine show d", ["devsec"]),
        ("tsmfs status --j", ["--json"]),
        ("tsmfs evidence read --type me", ["measurements"]),
        ("tsmfs evidence read 0000:00", ["0000:00:01.0"]),
    ],
)
def test_shell_completes_commands_and_what_they_work_on(
    fake_sysfs: Path, locked: Path, words: str, expected: list[str]
) -> None:
    finished = subprocess.run(
        [sys.executable, "-c", "from tsmfs.cli import main; main()"],
        env={
            **os.environ,
            "TSMFS_SYSFS": str(fake_sysfs),
            "_TSMFS_COMPLETE": "bash_complete",
            "COMP_WORDS": words,
            "COMP_CWORD": str(len(words.split()) - 1),
        },
        cwd=ROOT,
        capture_output=True,
        text=True,
        check=True,
    )
    assert [line.partition(",")[2] for line in finished.stdout.splitlines()] == expected
