# SPDX-License-Identifier: MIT
"""The stand-ins for kmod's tools speak to the control files and answer as kmod does."""

from __future__ import annotations

import os
import subprocess
from dataclasses import dataclass
from pathlib import Path

import pytest

BIN = Path(__file__).parent.parent / "bin"


@dataclass(frozen=True)
class Result:
    status: int
    out: str
    err: str


@dataclass(frozen=True)
class Machine:
    """Control files, and the tools run on them."""

    sysfs: Path
    path: str = os.environ["PATH"]

    def run(self, tool: str, *arguments: str) -> Result:
        finished = subprocess.run(
            [BIN / tool, *arguments],
            env={"TSMFS_SYSFS": str(self.sysfs), "PATH": self.path},
            capture_output=True,
            text=True,
            check=False,
        )
        return Result(finished.returncode, finished.stdout, finished.stderr)

    def written(self, name: str) -> str:
        return (self.sysfs / "kernel/tsmfs" / name).read_text()


@pytest.fixture
def machine(fake_sysfs: Path) -> Machine:
    return Machine(fake_sysfs)


def failing_writes(machine: Machine, directory: Path, text: str) -> Machine:
    """The machine, with every write to a control file answered by an error of that text."""
    cat = directory / "cat"
    cat.write_text(
        "#!/bin/sh\n"
        f'[ $# -gt 0 ] || {{ echo "cat: write error: {text}" >&2; exit 1; }}\n'
        'while read -r line; do printf "%s\\n" "$line"; done <"$1"\n'
    )
    cat.chmod(0o755)
    return Machine(machine.sysfs, f"{directory}:{machine.path}")


def failed(message: str) -> Result:
    return Result(1, "", message + "\n")


SILENT_SUCCESS = Result(0, "", "")


def test_modprobe_writes_the_name_and_the_parameters(machine: Machine) -> None:
    assert machine.run("modprobe", "devsec_pci", "autoprobe=0", "depth=2") == SILENT_SUCCESS
    assert machine.written("modprobe") == "devsec_pci autoprobe=0 depth=2\n"


def test_modprobe_reads_a_dash_as_an_underscore(machine: Machine) -> None:
    assert machine.run("modprobe", "devsec-link-tsm") == SILENT_SUCCESS
    assert machine.written("modprobe") == "devsec_link_tsm\n"


def test_modprobe_quotes_a_value_that_has_a_space_in_it(machine: Machine) -> None:
    assert machine.run("modprobe", "devsec_pci", "a=b c", 'd="e f"') == SILENT_SUCCESS
    assert machine.written("modprobe") == 'devsec_pci a="b c" d="e f"\n'


def test_modprobe_of_a_loaded_module_does_nothing(machine: Machine) -> None:
    assert machine.run("modprobe", "devsec_bus") == SILENT_SUCCESS
    assert machine.written("modprobe") == ""


def test_modprobe_first_time_refuses_a_loaded_module(machine: Machine) -> None:
    assert machine.run("modprobe", "--first-time", "devsec_bus") == failed(
        "modprobe: ERROR: could not insert 'devsec_bus': Module already in kernel"
    )


@pytest.mark.parametrize("options", [(), ("-r",), ("-a",)])
def test_modprobe_does_not_find_an_unknown_module(
    machine: Machine, options: tuple[str, ...]
) -> None:
    assert machine.run("modprobe", *options, "no-such") == failed(
        "modprobe: FATAL: Module no-such not found."
    )


def test_modprobe_quiet_fails_without_a_word(machine: Machine) -> None:
    assert machine.run("modprobe", "-q", "nosuch") == Result(1, "", "")


def test_modprobe_all_goes_on_after_a_failure(machine: Machine) -> None:
    result = machine.run("modprobe", "-a", "nosuch", "devsec_pci")
    assert result == failed("modprobe: FATAL: Module nosuch not found.")
    assert machine.written("modprobe") == "devsec_pci\n"


@pytest.mark.parametrize(
    ("answer", "told"),
    [
        ("Invalid argument", "Invalid argument"),
        ("No such device or address", "No such device or address"),
        (
            "No such file or directory",
            "Unknown symbol in module, or unknown parameter (see dmesg)",
        ),
    ],
)
def test_modprobe_tells_the_errno_of_a_failed_load(
    machine: Machine, tmp_path: Path, answer: str, told: str
) -> None:
    broken = failing_writes(machine, tmp_path, answer)
    assert broken.run("modprobe", "devsec_pci", "depth=x") == failed(
        f"modprobe: ERROR: could not insert 'devsec_pci': {told}"
    )


def test_modprobe_tells_that_a_control_file_cannot_be_written(machine: Machine) -> None:
    control = machine.sysfs / "kernel/tsmfs/modprobe"
    control.unlink()
    control.symlink_to("/dev/full")
    assert machine.run("modprobe", "devsec_pci") == failed(
        "modprobe: ERROR: could not insert 'devsec_pci': No space left on device"
    )


def test_modprobe_remove_unloads_an_unused_module(machine: Machine) -> None:
    assert machine.run("modprobe", "-rv", "devsec_bus") == Result(0, "rmmod devsec_bus\n", "")
    assert machine.written("rmmod") == "devsec_bus\n"


def test_modprobe_remove_unloads_dependencies_that_became_unused(machine: Machine) -> None:
    modules = machine.sysfs / "kernel/tsmfs/modules"
    modules.write_text(modules.read_text().replace("8192 2 devsec_tsm,devsec_bus,", "8192 0 -"))
    result = machine.run("modprobe", "-r", "-v", "devsec_bus")
    assert result == Result(0, "rmmod devsec_bus\nrmmod devsec_common\n", "")


def test_modprobe_remove_refuses_a_module_in_use(machine: Machine) -> None:
    assert machine.run("modprobe", "-r", "devsec_common") == failed(
        "modprobe: FATAL: Module devsec_common is in use."
    )
    assert machine.written("rmmod") == ""


def test_modprobe_remove_tells_of_a_user_that_came_in_between(
    machine: Machine, tmp_path: Path
) -> None:
    broken = failing_writes(machine, tmp_path, "Resource temporarily unavailable")
    assert broken.run("modprobe", "-r", "devsec_bus") == failed(
        "modprobe: FATAL: Module devsec_bus is in use."
    )


def test_modprobe_remove_tells_the_errno_of_a_failed_unload(
    machine: Machine, tmp_path: Path
) -> None:
    broken = failing_writes(machine, tmp_path, "Operation not permitted")
    assert broken.run("modprobe", "-r", "devsec_bus") == failed(
        "modprobe: ERROR: could not remove 'devsec_bus': Operation not permitted"
    )


def test_modprobe_remove_of_a_module_that_is_not_loaded_does_nothing(machine: Machine) -> None:
    assert machine.run("modprobe", "-r", "devsec_pci") == SILENT_SUCCESS
    assert machine.run("modprobe", "-r", "--first-time", "devsec_pci") == failed(
        "modprobe: FATAL: Module devsec_pci is not in kernel."
    )


def test_modprobe_takes_options_after_the_name(machine: Machine) -> None:
    assert machine.run("modprobe", "devsec_bus", "-r") == SILENT_SUCCESS
    assert machine.written("rmmod") == "devsec_bus\n"


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ((), "modprobe: ERROR: missing parameters. See -h."),
        (("-z", "devsec_bus"), "modprobe: unrecognized option '-z'"),
        (("--wrong",), "modprobe: unrecognized option '--wrong'"),
    ],
)
def test_modprobe_refuses_a_wrong_command_line(
    machine: Machine, arguments: tuple[str, ...], message: str
) -> None:
    assert machine.run("modprobe", *arguments) == failed(message)


def test_rmmod_writes_each_name(machine: Machine) -> None:
    assert machine.run("rmmod", "devsec-bus") == SILENT_SUCCESS
    assert machine.written("rmmod") == "devsec_bus\n"


def test_rmmod_names_the_users_of_a_module(machine: Machine) -> None:
    assert machine.run("rmmod", "devsec_common") == failed(
        "rmmod: ERROR: Module devsec_common is in use by: devsec_tsm devsec_bus"
    )


def test_rmmod_refuses_a_module_that_is_in_use_by_no_module(machine: Machine) -> None:
    modules = machine.sysfs / "kernel/tsmfs/modules"
    modules.write_text("devsec_bus 16384 1 - Live 0x0000000000000000\n")
    assert machine.run("rmmod", "devsec_bus") == failed("rmmod: ERROR: Module devsec_bus is in use")


def test_rmmod_refuses_a_module_that_is_not_loaded(machine: Machine) -> None:
    assert machine.run("rmmod", "devsec_pci") == failed(
        "rmmod: ERROR: Module devsec_pci is not currently loaded"
    )


def test_rmmod_tells_the_errno(machine: Machine, tmp_path: Path) -> None:
    broken = failing_writes(machine, tmp_path, "Resource temporarily unavailable")
    assert broken.run("rmmod", "devsec_bus") == failed(
        "rmmod: ERROR: could not remove module devsec_bus: Resource temporarily unavailable"
    )


def test_insmod_loads_the_module_that_the_file_is_named_after(machine: Machine) -> None:
    assert machine.run("insmod", "/lib/x/devsec-pci.ko.xz", "depth=1") == SILENT_SUCCESS
    assert machine.written("modprobe") == "devsec_pci depth=1\n"


def test_insmod_does_not_load_dependencies(machine: Machine) -> None:
    modules = machine.sysfs / "kernel/tsmfs/modules"
    modules.write_text("devsec_common 16384 0 - Live 0x0000000000000000\n")
    assert machine.run("insmod", "devsec_link_tsm.ko") == failed(
        "insmod: ERROR: could not insert module devsec_link_tsm.ko: Unknown symbol in module"
    )


@pytest.mark.parametrize(
    ("file", "message"),
    [
        ("nosuch.ko", "could not load module nosuch.ko: No such file or directory"),
        ("devsec_bus.ko", "could not insert module devsec_bus.ko: File exists"),
    ],
)
def test_insmod_refuses_what_cannot_be_loaded(machine: Machine, file: str, message: str) -> None:
    assert machine.run("insmod", file) == failed(f"insmod: ERROR: {message}")


def test_insmod_has_its_own_word_for_a_wrong_parameter(machine: Machine, tmp_path: Path) -> None:
    broken = failing_writes(machine, tmp_path, "Invalid argument")
    assert broken.run("insmod", "devsec_pci.ko", "depth=x") == failed(
        "insmod: ERROR: could not insert module devsec_pci.ko: Invalid parameters"
    )


def test_lsmod_prints_the_table_of_kmod(machine: Machine) -> None:
    assert machine.run("lsmod") == Result(
        0,
        "Module                  Size  Used by\n"
        "devsec_tsm             16384  0\n"
        "devsec_bus             16384  0\n"
        "devsec_common           8192  2 devsec_tsm,devsec_bus\n",
        "",
    )


def test_lsmod_with_nothing_loaded_prints_the_heading(machine: Machine) -> None:
    (machine.sysfs / "kernel/tsmfs/modules").write_text("")
    assert machine.run("lsmod").out == "Module                  Size  Used by\n"


def test_modinfo_prints_the_fields_of_kmod(machine: Machine) -> None:
    assert machine.run("modinfo", "devsec_pci") == Result(
        0,
        "filename:       (emulated)\n"
        "description:    A driver\n"
        "depends:        \n"
        "name:           devsec_pci\n"
        "parm:           autoprobe:bind by itself: 0 or 1 (bool)\n"
        "parm:           depth:how deep (int)\n",
        "",
    )


def test_modinfo_prints_one_field_without_its_name(machine: Machine) -> None:
    result = machine.run("modinfo", "-F", "depends", "devsec-link-tsm", "devsec_tsm")
    assert result == Result(0, "devsec_common,devsec_bus\ndevsec_common\n", "")


def test_modinfo_does_not_find_an_unknown_module(machine: Machine) -> None:
    assert machine.run("modinfo", "nosuch") == failed("modinfo: ERROR: Module nosuch not found.")


@pytest.mark.parametrize("tool", ["modprobe", "rmmod", "insmod", "lsmod", "modinfo"])
def test_tool_says_where_it_looked_for_a_machine(tmp_path: Path, tool: str) -> None:
    arguments = () if tool == "lsmod" else ("devsec_bus",)
    assert Machine(tmp_path).run(tool, *arguments) == failed(
        f"{tool}: ERROR: no emulated machine at {tmp_path} (TSMFS_SYSFS names its sysfs)"
    )


@pytest.mark.parametrize("tool", ["modprobe", "rmmod", "insmod", "lsmod", "modinfo"])
def test_tool_has_a_help_text(machine: Machine, tool: str) -> None:
    result = machine.run(tool, "--help")
    assert (result.status, result.err) == (0, "")
    assert result.out.startswith(f"Usage: {tool}")


def test_program_under_its_own_name_says_how_to_call_it(machine: Machine) -> None:
    result = machine.run("../tsmfs/bin/kmod")
    assert (result.status, result.out) == (1, "")
