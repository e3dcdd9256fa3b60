# SPDX-License-Identifier: MIT
"""What is chosen before anything is mounted: tools, and what stays visible."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from tsmfs.session import root
from tsmfs.session.registry import SessionDirectory


@pytest.fixture
def sbin(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The only directory of tools."""
    directory = tmp_path / "sbin"
    directory.mkdir()
    monkeypatch.setattr(root, "_TOOL_DIRECTORIES", (str(directory), str(directory)))
    return directory


def test_the_one_binary_behind_all_tools_is_found_once(tmp_path: Path, sbin: Path) -> None:
    kmod = tmp_path / "kmod"
    kmod.touch()
    for tool in root.TOOLS:
        (sbin / tool).symlink_to(kmod)
    assert list(root._installed_tools()) == [kmod]


def test_tools_of_their_own_are_found(sbin: Path) -> None:
    for tool in root.TOOLS:
        (sbin / tool).touch()
    assert list(root._installed_tools()) == [sbin / tool for tool in root.TOOLS]


def test_a_binary_that_is_other_programs_too_is_left_alone(tmp_path: Path, sbin: Path) -> None:
    (tmp_path / "busybox").touch()
    (sbin / "modprobe").symlink_to(tmp_path / "busybox")
    (sbin / "lsmod").symlink_to(tmp_path / "nothing")
    assert list(root._installed_tools()) == []


def test_only_what_is_covered_is_held(tmp_path: Path) -> None:
    cover = tmp_path / "cover"
    inside = cover / "a" / "b"
    inside.mkdir(parents=True)
    (cover / "ab").touch()
    paths = [tmp_path, cover, inside, cover / "a", cover / "ab", cover / "a" / ".." / "ab"]
    held = list(root._hold(paths, [cover]))
    assert [path for path, _ in held] == [cover / "a", cover / "ab"]
    for path, descriptor in held:
        assert os.path.samestat(os.fstat(descriptor), path.stat())
        os.close(descriptor)


def test_links_are_held_where_they_lead(tmp_path: Path) -> None:
    cover = tmp_path / "cover"
    cover.mkdir()
    (cover / "file").touch()
    (tmp_path / "link").symlink_to(cover / "file")
    ((path, descriptor),) = root._hold([tmp_path / "link"], [cover])
    assert path == cover / "file"
    os.close(descriptor)


def test_what_is_not_there_cannot_be_held(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError):
        list(root._hold([tmp_path / "none"], [tmp_path]))


def test_sessions_outside_of_run_are_covered_too(tmp_path: Path) -> None:
    assert root._covers(SessionDirectory(Path("/run/tsmfs/sessions/x"))) == [Path("/run")]
    assert root._covers(SessionDirectory(tmp_path / "x")) == [Path("/run"), tmp_path]


def test_below_puts_an_absolute_path_under_another_root() -> None:
    assert root.below(Path("/top"), Path("/a/b")) == Path("/top/a/b")
    assert root.below(Path("/"), Path("/a/b")) == Path("/a/b")


def test_a_working_directory_that_is_not_there(tmp_path: Path) -> None:
    before = os.getcwd()
    try:
        assert list(root.go_to(str(tmp_path))) == []
        assert os.getcwd() == str(tmp_path)
        place = tmp_path / "none"
        assert list(root.go_to(str(place))) == [f"the working directory is /: {place} is not there"]
        assert os.getcwd() == "/"
    finally:
        os.chdir(before)
