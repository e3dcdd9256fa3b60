# SPDX-License-Identifier: MIT
"""The control files: modules, plugging, faults, logs, and what they make of malformed writes."""

from __future__ import annotations

import errno
import os
import re
from collections.abc import Callable

import pytest

from tests.machines import USER, Shell, boot, errno_from, fails, pci
from tsmfs import description
from tsmfs.control import parse_bdf
from tsmfs.kernel.errors import fail
from tsmfs.kernel.module import LoadedModule, Module, Param, ParamType

CONTROL = "/kernel/tsmfs"

MODES = {
    "modprobe": 0o200, "rmmod": 0o200, "plug": 0o200, "unplug": 0o200, "modules": 0o444,
    "modinfo": 0o444, "iomem": 0o444, "ioports": 0o444, "log": 0o444, "uevents": 0o444,
    "machine": 0o444, "name": 0o444, "pid": 0o444,
}  # fmt: skip

POINTS = {
    "tsm_probe", "tsm_connect", "tsm_disconnect", "tsm_bind", "tsm_lock", "tsm_accept",
    "ide_stream_enable", "doe_transfer", "device_probe",
}  # fmt: skip

ODD = [b"\n", b"\0", b"\xff\xfe\n", b" \n", b"\0" * 4096, b"x" * 5000, "\u2028".encode(),
       bytes(range(256))]  # fmt: skip


@pytest.fixture
def sh() -> Shell:
    return boot("devsec")


def test_the_files_are_there_with_their_modes(sh: Shell) -> None:
    assert {*MODES, "fault"} <= sh.ls(CONTROL)
    assert {name: sh.mode(f"{CONTROL}/{name}") for name in MODES} == MODES


# Modules


def test_modules_are_loaded_with_parameters(sh: Shell) -> None:
    sh.echo("devsec_pci autoprobe=0", f"{CONTROL}/modprobe")
    assert sh.cat("/module/devsec_pci/parameters/autoprobe") == "N\n"
    sh.write(f"{CONTROL}/modprobe", b"  pci-stub  ")
    assert "pci_stub" in sh.ls("/module")
    sh.echo("devsec_pci autoprobe=1", f"{CONTROL}/modprobe")
    assert sh.cat("/module/devsec_pci/parameters/autoprobe") == "N\n"


def test_an_unknown_parameter_is_ignored_with_a_line_in_the_log(sh: Shell) -> None:
    sh.modprobe("devsec_pci colour=red")
    assert "devsec_pci: unknown parameter 'colour' ignored" in sh.dmesg()


@pytest.mark.parametrize(
    ("file", "text", "number"),
    [
        ("modprobe", "unknown", errno.ENOENT),
        ("modprobe", "../devsec_pci", errno.ENOENT),
        ("modprobe", "devsec_pci autoprobe=2", errno.EINVAL),
        ("modprobe", 'devsec_pci "autoprobe=1', errno.EINVAL),
        ("modprobe", "devsec_pci\ndevsec_bus", errno.EINVAL),
        ("modprobe", "devsec_pci\tautoprobe=0", errno.EINVAL),
        ("modprobe", "", errno.EINVAL),
        ("rmmod", "unknown", errno.ENOENT),
        ("rmmod", "devsec_pci", errno.ENOENT),
        ("rmmod", "devsec_common", errno.EAGAIN),
        ("rmmod", "devsec_tsm now", errno.EINVAL),
        ("rmmod", "", errno.EINVAL),
    ],
)
def test_errors_of_loading_and_unloading(sh: Shell, file: str, text: str, number: int) -> None:
    before = sh.cat(f"{CONTROL}/modules")
    with fails(number):
        sh.echo(text, f"{CONTROL}/{file}")
    assert sh.cat(f"{CONTROL}/modules") == before


def test_the_list_of_modules_reads_as_proc_modules(sh: Shell) -> None:
    assert sh.cat(f"{CONTROL}/modules") == (
        "devsec_tsm 16384 0 - Live 0x0000000000000000\n"
        "devsec_link_tsm 16384 0 - Live 0x0000000000000000\n"
        "devsec_bus 16384 0 - Live 0x0000000000000000\n"
        "devsec_common 16384 3 devsec_bus,devsec_link_tsm,devsec_tsm, Live 0x0000000000000000\n"
    )


def test_modinfo_tells_what_can_be_loaded(sh: Shell) -> None:
    lines = sh.cat(f"{CONTROL}/modinfo").splitlines()
    assert all(line.count("\t") == 3 for line in lines)
    fields = {line.split("\t")[0]: line.split("\t")[1:] for line in lines}
    assert {
        "devsec_bus", "devsec_common", "devsec_link_tsm", "devsec_pci", "devsec_tsm",
        "pci_pf_stub", "pci_stub",
    } <= set(fields)  # fmt: skip
    assert fields["devsec_link_tsm"][1] == "devsec_common"
    names = [param.split(":")[0] for param in fields["devsec_link_tsm"][2].split(";")]
    assert names == ["all_bridges", "autoprobe"]


def install(sh: Shell, init: Callable[..., None], *params: Param) -> None:
    """Make a module of the test's own known to the machine."""
    sh.machine.modules.available["mine"] = Module("mine", init, "Of the test", params)


def test_what_an_init_fails_with_is_the_writers_error(sh: Shell) -> None:
    install(sh, lambda *_: fail(errno.ENODEV))
    with fails(errno.ENODEV):
        sh.modprobe("mine")
    install(sh, lambda *_: fail(1 // 0))
    with fails(errno.EIO):
        sh.modprobe("mine")
    assert "ZeroDivisionError" in sh.dmesg()
    assert "mine" not in sh.ls("/module")
    sh.modprobe("pci_stub")


def test_a_text_parameter_keeps_its_spaces(sh: Shell) -> None:
    loaded: list[LoadedModule] = []
    install(sh, lambda _, module: loaded.append(module), Param("t", ParamType.CHARP, "", "a text"))
    sh.modprobe('mine t="two words" autoprobe')
    assert loaded[0].params == {"t": "two words", "autoprobe": True}
    assert sh.cat("/module/mine/parameters/t") == "two words\n"


# plug and unplug: their work is tested with the PCI core


def test_a_bdf_is_read(sh: Shell) -> None:
    assert parse_bdf(b"0000:01:1f.7\n") == (0, 1, 0x1F, 7)
    assert parse_bdf(b"10000:Ab:00.0") == (0x10000, 0xAB, 0, 0)


@pytest.mark.parametrize("file", ["plug", "unplug"])
def test_devices_are_named_by_any_of_their_functions(sh: Shell, file: str) -> None:
    present = "10000:01:00.1"
    sh.echo(present, f"{CONTROL}/unplug")
    assert present not in sh.devices()
    with fails(errno.ENODEV):
        sh.echo(present, f"{CONTROL}/unplug")
    sh.echo(present, f"{CONTROL}/plug")
    assert {present, "10000:01:00.0"} < set(sh.devices())
    with fails(errno.EEXIST if file == "plug" else errno.ENODEV):
        sh.echo(present if file == "plug" else "10000:01:01.0", f"{CONTROL}/{file}")


# Malformed writes


@pytest.mark.parametrize("file", ["modprobe", "rmmod", "plug", "unplug"])
@pytest.mark.parametrize("data", ODD, ids=repr)
def test_odd_writes_are_refused_and_change_nothing(sh: Shell, file: str, data: bytes) -> None:
    before = (sh.devices(), sh.cat(f"{CONTROL}/modules"))
    result = errno_from(lambda: sh.write(f"{CONTROL}/{file}", data))
    wanted = "ENOENT" if data[:1] == b"x" and "mod" in file else "EINVAL"
    assert result == wanted
    assert sh.write(f"{CONTROL}/{file}", b"") == 0
    assert (sh.devices(), sh.cat(f"{CONTROL}/modules")) == before
    assert "Traceback" not in sh.dmesg()


@pytest.mark.parametrize("name", ["probability", "errno"])
@pytest.mark.parametrize("data", ODD, ids=repr)
def test_odd_values_of_a_fault_point_are_refused(sh: Shell, name: str, data: bytes) -> None:
    path = f"{CONTROL}/fault/tsm_connect/{name}"
    before = sh.cat(path)
    with fails(errno.EINVAL):
        sh.write(path, data)
    assert sh.cat(path) == before
    assert "Traceback" not in sh.dmesg()


# Fault points


def test_each_point_is_a_directory_with_linux_files(sh: Shell) -> None:
    assert sh.ls(f"{CONTROL}/fault") == POINTS | {"tamper"}
    for point in POINTS:
        path = f"{CONTROL}/fault/{point}"
        files = {n: (sh.mode(f"{path}/{n}"), sh.cat(f"{path}/{n}")) for n in sh.ls(path)}
        assert files == {
            "probability": (0o644, "0\n"),
            "interval": (0o644, "1\n"),
            "times": (0o644, "1\n"),
            "space": (0o644, "0\n"),
            "errno": (0o644, "EIO\n"),
            "delay_ms": (0o644, "0\n"),
        }  # fmt: skip


@pytest.mark.parametrize(
    ("name", "low", "high"),
    [
        ("probability", 0, 100),
        ("interval", 1, (1 << 31) - 1),
        ("times", -1, (1 << 31) - 1),
        ("space", 0, (1 << 31) - 1),
        ("delay_ms", 0, 3_600_000),
    ],
)
def test_numbers_have_their_range(sh: Shell, name: str, low: int, high: int) -> None:
    path = f"{CONTROL}/fault/tsm_lock/{name}"
    for value in (low, high):
        sh.echo(str(value), path)
        assert sh.cat(path) == f"{value}\n"
    sh.echo("0x2", path)
    for text, number in ((str(low - 1), errno.EINVAL), ("1 2", errno.EINVAL), ("", errno.EINVAL)):
        with fails(number):
            sh.echo(text, path)
    assert errno_from(lambda: sh.echo(str(high + 1), path)) in ("EINVAL", "ERANGE")
    assert sh.cat(path) == "2\n"


@pytest.mark.parametrize(
    ("text", "reads"),
    [("EBUSY", "EBUSY"), ("ebusy", "EBUSY"), ("16", "EBUSY"), ("-16", "EBUSY"), ("0", "0")],
)
def test_an_errno_is_a_name_or_a_number(sh: Shell, text: str, reads: str) -> None:
    path = f"{CONTROL}/fault/tsm_connect/errno"
    sh.echo(text, path)
    assert sh.cat(path) == f"{reads}\n"


def test_a_point_counts_down_what_is_left(sh: Shell) -> None:
    sh.fault("tsm_lock", times=2, space=1, errno="EDOM")
    for _ in range(2):
        with fails(errno.EDOM):
            sh.echo("tsm1", f"{pci('10000:01:00.0')}/tsm/lock")
    assert sh.cat(f"{CONTROL}/fault/tsm_lock/times") == "0\n"
    sh.echo("tsm1", f"{pci('10000:01:00.0')}/tsm/lock")
    assert sh.cat(f"{CONTROL}/fault/tsm_connect/times") == "1\n"


# What can be read


def test_addresses_are_for_administrators(sh: Shell) -> None:
    for name in ("iomem", "ioports"):
        shown = sh.cat(f"{CONTROL}/{name}")
        hidden = sh.as_task(USER).cat(f"{CONTROL}/{name}")
        assert re.sub(r"[0-9a-f]+-[0-9a-f]+ :", ":", shown) == re.sub(r"0+-0+ :", ":", hidden)
    assert "00100000-7fffffff : System RAM\n" in sh.iomem()


def test_a_long_text_is_one_text_for_who_reads_it_in_pieces(sh: Shell) -> None:
    reader = sh.file(f"{CONTROL}/modules").open_reader()
    other = sh.file(f"{CONTROL}/modules").open_reader()
    text = b""
    while piece := reader(len(text), 50):
        if not text:
            sh.rmmod("devsec_tsm")
        text += piece
    assert b"devsec_tsm 16384" in text
    assert b"devsec_tsm 16384" not in other(0, 4096)
    assert b"devsec_tsm 16384" not in reader(0, 4096)


def test_the_log_begins_with_the_oldest_record_and_goes_on(sh: Shell) -> None:
    reader = sh.file(f"{CONTROL}/log").open_reader()
    start = reader(0, 1 << 20)
    assert start.split(b"\n")[0].endswith(b"tsmfs: machine devsec")
    sh.machine.log.info("more")
    assert reader(len(start), 1 << 20).endswith(b"] more\n")
    assert sh.cat(f"{CONTROL}/log") == sh.dmesg()


def test_a_reader_of_the_log_passes_over_what_was_dropped_before_it(sh: Shell) -> None:
    ring = sh.machine.log.ring
    early = sh.file(f"{CONTROL}/log").open_reader()
    line = b"x" * 1023 + b"\n"
    for _ in range(2000):
        ring.append(line)
    assert ring.start > 0
    assert early(0, 10) == ring.read(ring.start, 10)
    late = sh.file(f"{CONTROL}/log").open_reader()
    seen = late(0, 1 << 21)
    assert seen == line * (len(seen) // 1024)
    ring.append(b"last\n")
    assert late(len(seen), 100) == b"last\n"


def test_uevents_are_records_that_end_with_an_empty_string(sh: Shell) -> None:
    before = len(sh.read(f"{CONTROL}/uevents"))
    sh.echo("change", f"{pci('10000:01:00.0')}/uevent")
    records = sh.read(f"{CONTROL}/uevents", before).split(b"\0\0")
    assert records[1:] == [b""]
    strings = records[0].split(b"\0")
    assert strings[0].startswith(b"change@/devices/faux/devsec_bus/")
    assert strings[1] == b"ACTION=change"
    assert strings[-1] == b"SEQNUM=%d" % sh.machine.uevents.seqnum


@pytest.mark.parametrize("name", ["devsec", "server"])
def test_the_description_in_use_can_be_read(name: str) -> None:
    sh = boot(name, [])
    assert sh.cat(f"{CONTROL}/name") == f"{name}\n"
    text = sh.cat(f"{CONTROL}/machine")
    assert text == description.builtin_text(name)
    assert sh.cat(f"{CONTROL}/pid") == f"{os.getpid()}\n"
