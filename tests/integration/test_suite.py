# SPDX-License-Identifier: MIT
"""The shell suite on mounted machines."""

from __future__ import annotations

import os
import re
import subprocess
import sys
from pathlib import Path

from .conftest import ROOT, Mount


def suite(sysfs: Path) -> tuple[int, str]:
    result = subprocess.run(
        [ROOT / "tests/devsec/devsec.sh", sysfs],
        # Where there is no .venv, the suite takes the Python that runs the tests.
        env={**os.environ, "PATH": f"{Path(sys.executable).parent}:{os.environ['PATH']}"},
        capture_output=True,
        text=True,
        timeout=100,
        check=False,
    )
    return result.returncode, result.stdout + result.stderr


def test_the_suite_passes_in_both_load_orders(mount: Mount, binding: str) -> None:
    status, output = suite(mount("--no-modules", binding=binding))
    assert status == 0, output
    plan = re.search(r"^1\.\.(\d+)$", output, re.MULTILINE)
    assert plan is not None
    results = re.findall(r"^(?:not )?ok \d+ - .*$", output, re.MULTILINE)
    assert len(results) == int(plan[1]) > 100
    assert [line for line in results if not line.startswith("ok") or "TODO" in line] == []


def test_the_suite_unloads_what_it_finds_loaded(mount: Mount) -> None:
    sysfs = mount()
    status, output = suite(sysfs)
    assert status == 0, output
    assert (sysfs / "kernel/tsmfs/modules").read_text() == ""
