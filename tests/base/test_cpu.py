# SPDX-License-Identifier: MIT
"""CPUs: as many as the host has, in the host's words."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from tsmfs.base import cpu
from tsmfs.base.core import DriverCore
from tsmfs.base.kobject import File, Kobject, find

HOST = Path("/sys/devices/system/cpu")


@pytest.fixture
def cpus(core: DriverCore) -> Kobject:
    cpu.add_cpus(core.devices)
    found = find(core.root, "/devices/system/cpu")
    assert isinstance(found, Kobject)
    return found


def show(cpus: Kobject, name: str) -> bytes:
    file = cpus.lookup(name)
    assert isinstance(file, File)
    return file.show()


@pytest.mark.parametrize("name", ["online", "possible", "present", "offline", "isolated"])
def test_files_are_those_of_the_host(cpus: Kobject, name: str) -> None:
    assert show(cpus, name) == (HOST / name).read_bytes()
    assert (HOST / name).stat().st_mode & 0o777 == 0o444


def test_each_cpu_has_a_directory(cpus: Kobject) -> None:
    found = {name for name in cpus.names() if name[3:].isdigit()}
    assert found == {path.name for path in HOST.glob("cpu[0-9]*")}


@pytest.mark.parametrize(
    ("count", "bits", "ranges"),
    [
        (1, "1\n", "0\n"),
        (2, "3\n", "0-1\n"),
        (32, "ffffffff\n", "0-31\n"),
        (33, "1,ffffffff\n", "0-32\n"),
        (100, "f,ffffffff,ffffffff,ffffffff\n", "0-99\n"),
    ],
)
def test_maps_and_lists(
    count: int, bits: str, ranges: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(os, "cpu_count", lambda: count)
    assert cpu.cpumap() == bits
    assert cpu.cpulist() == ranges
