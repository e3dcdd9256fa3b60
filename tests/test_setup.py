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


def commands(finished: subprocess.CompletedProcess[str]) -> dict[str, set[str]]:
    """What each package manager is told to install."""
    lines = [line.split("  (")[0].split() for line in finished.stderr.splitlines()]
    return {words[1]: set(words[3:]) for words in lines if words[2:3] in (["install"], ["-S"])}


def test_tests_take_tools_and_compilers(bare_path: Path) -> None:
    named = commands(setup("test", bare_path))
    assert named["apt-get"] >= {
        *("pciutils", "udev", "shellcheck", "strace", "stress-ng", "libnl-utils", "openssl"),
        *("gcc", "libc6-dev", "make", "libmnl-dev", "libnl-genl-3-dev"),
        *("golang-go", "golang-github-mdlayher-genetlink-dev"),
    }
    assert named["dnf"] >= {"libnl3-cli", "libmnl-devel", "glibc-static", "golang"}
    assert named["pacman"] >= {"libnl", "libmnl", "gcc", "go"}
    assert commands(setup("demo", bare_path))["apt-get"] == {
        *("python3", "python3-venv", "libfuse2", "fuse3"),
    }


def test_library_that_the_compiler_finds_is_not_missing(bare_path: Path) -> None:
    for program, script in (
        ("make", "exit 0"),
        ("gcc", 'case "$*" in *libmnl*) exit 1 ;; esac'),
    ):
        tool = bare_path / program
        tool.write_text(f"#!/usr/bin/env bash\n{script}\n")
        tool.chmod(0o755)
    (bare_path / "env").symlink_to("/usr/bin/env")
    named = commands(setup("test", bare_path))["apt-get"]
    assert "libmnl-dev" in named
    assert not named & {"gcc", "make", "libnl-genl-3-dev"}


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
