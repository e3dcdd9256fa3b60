# SPDX-License-Identifier: MIT
"""The shell suite on mounted machines, and in sessions."""

from __future__ import annotations

import os
import re
import subprocess
import sys
from pathlib import Path

from .conftest import ROOT, Mount

SUITE = ROOT / "tests/devsec/devsec.sh"


def suite(*command: str | Path) -> tuple[int, str]:
    result = subprocess.run(
        command,
        # Where there is no .venv, the suite takes the Python that runs the tests.
        env={**os.environ, "PATH": f"{Path(sys.executable).parent}:{os.environ['PATH']}"},
        capture_output=True,
        text=True,
        timeout=100,
        check=False,
    )
    return result.returncode, result.stdout + result.stderr


def passed(output: str) -> list[str]:
    """The steps that the suite printed, which are many, and all passed."""
    plan = re.search(r"^1\.\.(\d+)$", output, re.MULTILINE)
    assert plan is not None
    results = re.findall(r"^(?:not )?ok \d+ - .*$", output, re.MULTILINE)
    assert len(results) == int(plan[1]) > 100
    assert [line for line in results if not line.startswith("ok") or "TODO" in line] == []
    return results


def test_the_suite_passes_in_both_load_orders(mount: Mount, binding: str) -> None:
    status, output = suite(SUITE, mount("--no-modules", binding=binding))
    assert status == 0, output
    passed(output)


def test_the_suite_passes_in_a_session_at_the_usual_places() -> None:
    status, output = suite(sys.executable, "-m", "tsmfs", "exec", "--", SUITE)
    assert status == 0, output
    steps = passed(output)
    assert len([step for step in steps if "evidence by NETLINK_GENERIC" in step]) == 6


def test_the_suite_passes_with_the_software_tsm_and_devices_with_keys(mount: Mount) -> None:
    sysfs = mount("--machine", "server")
    status, output = suite(SUITE, sysfs)
    assert status == 0, output
    steps = passed(output)
    assert any("evidence over a nonce has it" in step for step in steps)
    assert (sysfs / "kernel/tsmfs/modules").read_text().split()[0] == "pci_pf_stub"


def test_the_suite_wants_an_emulated_machine(tmp_path: Path) -> None:
    for arguments in ((), (tmp_path,)):
        status, output = suite(SUITE, *arguments)
        assert status == 2
        assert f"no emulated machine on {tmp_path if arguments else '/sys'};" in output


def test_the_suite_unloads_what_it_finds_loaded(mount: Mount) -> None:
    sysfs = mount()
    status, output = suite(SUITE, sysfs)
    assert status == 0, output
    assert (sysfs / "kernel/tsmfs/modules").read_text() == ""
