# SPDX-License-Identifier: MIT
"""Mounted machines for the tests that want the real thing: a mount, a shell, tools."""

from __future__ import annotations

import contextlib
import os
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from tsmfs.umount import detach

ROOT = Path(__file__).resolve().parents[2]
BINDINGS = ("fusepy", "mfusepy")

Mount = Callable[..., Path]


def tsmfs(*args: str | Path, **environment: str) -> subprocess.CompletedProcess[str]:
    """Run the command line of the checkout."""
    return subprocess.run(
        [sys.executable, "-m", "tsmfs", *map(str, args)],
        cwd=ROOT,
        env={**os.environ, **environment},
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )


def write(file: Path, text: str) -> None:
    """Write a line to an attribute in one call, as ``echo`` does. Raises OSError."""
    descriptor = os.open(file, os.O_WRONLY)
    try:
        os.write(descriptor, f"{text}\n".encode())
    finally:
        os.close(descriptor)


@contextlib.contextmanager
def mounting(directory: Path, *options: str | Path, binding: str = "fusepy") -> Iterator[Path]:
    """A machine mounted on *directory*."""
    directory.mkdir()
    started = tsmfs("mount", *options, directory, TSMFS_FUSE=binding)
    assert started.returncode == 0, started.stderr
    try:
        yield directory
    finally:
        stopped = tsmfs("umount", directory)
        if stopped.returncode:
            # The test has failed; its machine ends nevertheless.
            detach(directory)
        assert stopped.returncode == 0, stopped.stderr


@pytest.fixture(params=BINDINGS)
def binding(request: pytest.FixtureRequest) -> str:
    """Each of the FUSE bindings."""
    return str(request.param)


@pytest.fixture
def mount(tmp_path: Path) -> Iterator[Mount]:
    """A function that mounts a machine for the length of the test."""
    with contextlib.ExitStack() as stack:
        count = 0

        def mount(*options: str | Path, binding: str = "fusepy") -> Path:
            nonlocal count
            count += 1
            return stack.enter_context(
                mounting(tmp_path / f"sys{count}", *options, binding=binding)
            )

        yield mount


@pytest.fixture(scope="module")
def devsec(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    """The default machine; the tests of a module share it and leave it as they found it."""
    with mounting(tmp_path_factory.mktemp("devsec") / "sys") as directory:
        yield directory


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    """The built-in machine ``server``, shared like ``devsec``."""
    options = ("--machine", "server")
    with mounting(tmp_path_factory.mktemp("server") / "sys", *options) as directory:
        yield directory
