# SPDX-License-Identifier: MIT
"""Mounted machines are found in the mount table, and their control files read and written."""

from __future__ import annotations

import os
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tsmfs.instance import Instance, InstanceError, find_instance, mounted


def mount_table(directory: Path, *places: Path | str, kind: str = "fuse.tsmfs") -> Path:
    """A file in the format of /proc/self/mountinfo, with a few other mounts in it."""
    lines = ["21 1 0:19 / /sys rw,nosuid shared:7 - sysfs sysfs rw"]
    lines += [
        f"{30 + number} 21 0:{50 + number} / {place} rw,nosuid,nodev - {kind} tsmfs rw,user_id=0"
        for number, place in enumerate(places)
    ]
    lines.append("99 21 0:99 / /mnt/fuse.tsmfs rw shared:1 master:2 - fuse.sshfs host: rw")
    table = directory / "mountinfo"
    table.write_bytes("\n".join(lines).encode() + b"\n")
    return table


def test_only_machines_are_found_in_the_mount_table(tmp_path: Path) -> None:
    assert mounted(mount_table(tmp_path, "/mnt/b", "/mnt/a")) == [Path("/mnt/b"), Path("/mnt/a")]


def test_place_that_is_mounted_over_is_found_once(tmp_path: Path) -> None:
    assert mounted(mount_table(tmp_path, "/mnt/a", "/mnt/a")) == [Path("/mnt/a")]


@given(name=st.text(st.characters(codec="utf-8", exclude_characters="\0/"), min_size=1))
def test_white_space_in_a_mount_point_is_read_back(
    tmp_path_factory: pytest.TempPathFactory, name: str
) -> None:
    escaped = "".join(f"\\{ord(char):03o}" if char in " \t\n\\" else char for char in name)
    table = mount_table(tmp_path_factory.mktemp("table"), f"/mnt/{escaped}")
    assert mounted(table) == [Path(f"/mnt/{name}")]


def test_option_goes_before_environment_before_mount_table(
    tmp_path: Path, fake_sysfs: Path
) -> None:
    for name in ("option", "variable", "table"):
        (tmp_path / name / "kernel" / "tsmfs").mkdir(parents=True)
    table = mount_table(tmp_path, tmp_path / "table")
    environment = {"TSMFS_SYSFS": str(tmp_path / "variable")}
    assert find_instance(tmp_path / "option", environment, table).sysfs == tmp_path / "option"
    assert find_instance(None, environment, table).sysfs == tmp_path / "variable"
    assert find_instance(None, {}, table).sysfs == tmp_path / "table"
    assert find_instance(None, {"TSMFS_SYSFS": ""}, table).sysfs == tmp_path / "table"


def test_without_a_machine_the_error_says_how_to_mount_one(tmp_path: Path) -> None:
    with pytest.raises(InstanceError, match=r"^no machine is mounted: .*tsmfs mount DIR"):
        find_instance(None, {}, mount_table(tmp_path))


def test_several_machines_are_named_in_the_error(tmp_path: Path) -> None:
    places = [tmp_path / "a", tmp_path / "b"]
    for place in places:
        (place / "kernel" / "tsmfs").mkdir(parents=True)
    with pytest.raises(InstanceError, match=f"{places[0]}, {places[1]}.*--sysfs"):
        find_instance(None, {}, mount_table(tmp_path, *places))


@pytest.mark.parametrize("name", ["nowhere", "file", "file/below"])
def test_directory_that_is_no_machine_is_refused(tmp_path: Path, name: str) -> None:
    (tmp_path / "file").touch()
    with pytest.raises(InstanceError, match="not the sysfs of a machine"):
        find_instance(tmp_path / name, {})


def test_dead_mount_does_not_hide_a_living_one(
    tmp_path: Path, fake_sysfs: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    dead = tmp_path / "dead"
    stat = os.stat

    def dying_stat(path: Path) -> os.stat_result:
        if dead in path.parents:
            raise OSError(107, "Transport endpoint is not connected")
        return stat(path)

    monkeypatch.setattr(os, "stat", dying_stat)
    assert find_instance(None, {}, mount_table(tmp_path, dead, fake_sysfs)).sysfs == fake_sysfs
    with pytest.raises(InstanceError, match=f"{dead}: its daemon is gone.*umount"):
        find_instance(None, {}, mount_table(tmp_path, dead))


def test_write_is_one_line(fake_sysfs: Path) -> None:
    Instance(fake_sysfs).write("rmmod", "devsec_bus")
    assert Instance(fake_sysfs).read("rmmod") == b"devsec_bus\n"


def test_write_passes_the_errno_on(fake_sysfs: Path) -> None:
    machine = Instance(fake_sysfs)
    machine.control("rmmod").unlink()
    machine.control("rmmod").symlink_to("/dev/full")
    with pytest.raises(OSError, match="No space left on device"):
        machine.write("rmmod", "devsec_bus")


def test_read_goes_to_the_end_of_a_long_file(fake_sysfs: Path) -> None:
    text = os.urandom(200_000)
    Instance(fake_sysfs).control("log").write_bytes(text)
    assert Instance(fake_sysfs).read("log") == text


def test_stream_gives_what_was_appended_since(fake_sysfs: Path) -> None:
    machine = Instance(fake_sysfs)
    with machine.control("log").open("ab", buffering=0) as log, machine.open_stream("log") as seen:
        log.write(b"one\n")
        assert seen.read() == b"one\n"
        assert seen.read() == b""
        log.write(b"two\n")
        log.write(b"three\n")
        assert b"".join(seen.rest()) == b"two\nthree\n"


def test_module_names_are_those_of_modinfo(fake_sysfs: Path) -> None:
    names = ["devsec_bus", "devsec_common", "devsec_link_tsm", "devsec_pci", "devsec_tsm"]
    assert Instance(fake_sysfs).module_names() == names
