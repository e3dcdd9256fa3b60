# SPDX-License-Identifier: MIT
"""Setting up a checkout on a machine that lacks what it needs."""

from __future__ import annotations

import shutil
import subprocess
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent


@pytest.fixture
def bare_path(tmp_path: Path) -> Path:
    """A PATH with the shell and no Python, no apt-get and no sudo."""
    directory = tmp_path / "bin"
    directory.mkdir()
    for program in ("bash", "readlink", "id"):
        found = shutil.which(program)
        assert found is not None
        (directory / program).symlink_to(found)
    return directory


def setup(purpose: str, path: Path) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        ["/usr/bin/env", ROOT / "bin/setup", purpose],
        env={"PATH": str(path)},
        capture_output=True,
        text=True,
        check=False,
    )


@pytest.mark.parametrize("purpose", ["demo", "test"])
def test_missing_packages_are_named_for_three_package_managers(
    purpose: str, bare_path: Path
) -> None:
    finished = setup(purpose, bare_path)
    assert (finished.returncode, finished.stdout) == (2, "")
    assert "there is no Python 3.11 or newer" in finished.stderr
    assert "  apt-get install python3 python3-venv libfuse2 fuse3" in finished.stderr
    assert "  dnf install python3 fuse-libs fuse3 fuse3-libs" in finished.stderr
    assert "  pacman -S python fuse2 fuse3" in finished.stderr
    assert ("shellcheck" in finished.stderr) == (purpose == "test")


def test_failing_installation_names_the_packages_too(bare_path: Path) -> None:
    for program in ("apt-get", "apt-cache", "sudo", "env"):
        tool = bare_path / program
        tool.write_text("#!/bin/sh\nexit 1\n")
        tool.chmod(0o755)
    finished = setup("demo", bare_path)
    assert finished.returncode == 2
    assert "apt-get install python3" in finished.stderr


def test_purpose_has_to_be_known(bare_path: Path) -> None:
    finished = setup("nonsense", bare_path)
    assert (finished.returncode, finished.stdout) == (2, "")
    assert finished.stderr == "usage: setup demo|test\n"
