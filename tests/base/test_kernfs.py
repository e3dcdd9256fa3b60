# SPDX-License-Identifier: MIT
"""The rules of kernfs, asked without a mount."""

from __future__ import annotations

import contextlib
import errno
import os
import re
import signal
import stat
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path

import pytest

from tsmfs.base.kernfs import Caller, Kernfs, OpenFile, OpenFiles
from tsmfs.base.kobject import (
    Attribute,
    AttributeGroup,
    BinAttribute,
    File,
    Kobject,
    Tree,
)
from tsmfs.kernel.printk import Log
from tsmfs.kernel.task import running_as

NOBODY = 65534
OWNER_UID, OWNER_GID = 1000, 1000


@dataclass(frozen=True, slots=True)
class FakeCaller(Caller):
    """A caller whose capabilities are given, not looked up."""

    capabilities: frozenset[int] = frozenset()

    def capable(self, capability: int) -> bool:
        return capability in self.capabilities


ALL = frozenset(range(41))
ROOT = FakeCaller(0, 0, os.getpid(), capabilities=ALL)
POOR_ROOT = FakeCaller(0, 0, os.getpid())
USER = FakeCaller(NOBODY, NOBODY, 0)


@dataclass
class Values:
    """What the attributes of the tree give and got."""

    text: str = "one\n"
    shows: int = 0
    stores: list[bytes] = field(default_factory=list)
    blob: bytearray = field(default_factory=lambda: bytearray(range(256)) * 64)


@pytest.fixture
def values() -> Values:
    return Values()


@pytest.fixture
def root(values: Values) -> Kobject:
    def show(_: Kobject) -> str:
        values.shows += 1
        return values.text

    def read(_: Kobject, offset: int, count: int) -> bytes:
        return bytes(values.blob[offset : offset + count])

    def write(_: Kobject, offset: int, data: bytes) -> None:
        values.blob[offset : offset + len(data)] = data

    def store(_: Kobject, data: bytes) -> None:
        values.stores.append(data)

    group = AttributeGroup(
        (
            Attribute("ro", 0o444, show),
            Attribute("rw", 0o644, show, store),
            Attribute("wo", 0o200, None, store),
            Attribute("private", 0o640, show, store),
            Attribute("all", 0o666, show, store),
            Attribute("mute", 0o644),
            BinAttribute("config", 0o644, 16384, read, write),
            BinAttribute("log", 0o444, 0, read),
        )
    )
    top = Kobject(Tree(Log()), "")
    device = top.add_child("devices").add_child("a")
    device.add_groups((group,))
    device.create_link(top.add_child("bus"), "subsystem")
    return top


@pytest.fixture
def kernfs(root: Kobject) -> Kernfs:
    return Kernfs(root)


@pytest.fixture
def files(kernfs: Kernfs) -> OpenFiles:
    return OpenFiles(kernfs)


@pytest.fixture(autouse=True)
def as_root() -> Iterator[None]:
    with running_as(ROOT):
        yield


def opened(kernfs: Kernfs, name: str, flags: int = os.O_RDWR) -> OpenFile:
    return OpenFile(kernfs.open(f"/devices/a/{name}", flags), 0)


def unplug(root: Kobject) -> None:
    devices = root.lookup("devices")
    assert isinstance(devices, Kobject)
    devices.discard("a")


@contextlib.contextmanager
def refused(number: int) -> Iterator[None]:
    """What is done inside fails with that errno."""
    with pytest.raises(OSError, match=rf"^\[Errno {number}\]"):
        yield


@contextlib.contextmanager
def process_in_group(gid: int) -> Iterator[int]:
    """The pid of a process with one supplementary group, or those of the tests' own user."""
    child = os.fork()
    if child == 0:
        if os.geteuid() == 0:
            os.setgroups([gid])
        signal.pause()
    try:
        yield child
    finally:
        os.kill(child, signal.SIGKILL)
        os.waitpid(child, 0)


@pytest.mark.parametrize(
    ("path", "number"),
    [
        ("/none", errno.ENOENT),
        ("/devices/none/x", errno.ENOENT),
        ("/devices/a/ro/x", errno.ENOTDIR),
        ("/devices/a/subsystem/x", errno.ENOTDIR),
    ],
)
def test_a_path_that_leads_nowhere(kernfs: Kernfs, path: str, number: int) -> None:
    with refused(number):
        kernfs.node(path)


def test_stat_of_each_kind_of_node(kernfs: Kernfs) -> None:
    top = kernfs.getattr("/")
    assert (top["st_mode"], top["st_nlink"]) == (stat.S_IFDIR | 0o555, 4)
    directory = kernfs.getattr("/devices")
    assert (directory["st_mode"], directory["st_nlink"]) == (stat.S_IFDIR | 0o755, 3)
    text = kernfs.getattr("/devices/a/rw")
    assert (text["st_mode"], text["st_nlink"]) == (stat.S_IFREG | 0o644, 1)
    assert (text["st_size"], text["st_blksize"]) == (4096, 4096)
    assert kernfs.getattr("/devices/a/config")["st_size"] == 16384
    assert kernfs.getattr("/devices/a/log")["st_size"] == 0
    link = kernfs.getattr("/devices/a/subsystem")
    assert (link["st_mode"], link["st_size"]) == (stat.S_IFLNK | 0o777, 0)


def test_inode_numbers_differ_and_stay(kernfs: Kernfs) -> None:
    names = [name for name, _, _ in kernfs.readdir("/devices/a")]
    numbers = [kernfs.getattr(f"/devices/a/{name}")["st_ino"] for name in names]
    assert len(set(numbers)) == len(names)
    assert numbers == [ino for _, _, ino in kernfs.readdir("/devices/a")]


def test_readdir_names_everything_with_its_type(kernfs: Kernfs) -> None:
    kinds = {name: kind for name, kind, _ in kernfs.readdir("/devices/a")}
    assert kinds.pop("subsystem") == stat.S_IFLNK
    assert set(kinds) == {"ro", "rw", "wo", "private", "all", "mute", "config", "log"}
    assert set(kinds.values()) == {stat.S_IFREG}
    with refused(errno.ENOTDIR):
        list(kernfs.readdir("/devices/a/ro"))


def test_readlink_of_a_link_only(kernfs: Kernfs) -> None:
    assert kernfs.readlink("/devices/a/subsystem") == "../../bus"
    with refused(errno.EINVAL):
        kernfs.readlink("/devices/a/ro")


R, W, RW = os.O_RDONLY, os.O_WRONLY, os.O_RDWR


@pytest.mark.parametrize(
    ("who", "name", "allowed"),
    [
        (ROOT, "ro", {R, R | os.O_TRUNC}),
        (ROOT, "rw", {R, W, RW, W | os.O_TRUNC, R | os.O_TRUNC}),
        (ROOT, "wo", {W, W | os.O_TRUNC}),
        (ROOT, "mute", set()),
        (ROOT, "private", {R, W, RW, W | os.O_TRUNC, R | os.O_TRUNC}),
        (POOR_ROOT, "ro", {R}),
        (USER, "ro", {R}),
        (USER, "rw", {R}),
        (USER, "wo", set()),
        (USER, "private", set()),
        (USER, "all", {R, W, RW, W | os.O_TRUNC, R | os.O_TRUNC}),
    ],
)
def test_who_may_open_what(kernfs: Kernfs, who: Caller, name: str, allowed: set[int]) -> None:
    for flags in (R, W, RW, W | os.O_TRUNC, R | os.O_TRUNC):
        with running_as(who):
            if flags in allowed:
                assert isinstance(kernfs.open(f"/devices/a/{name}", flags), File)
            else:
                with refused(errno.EACCES):
                    kernfs.open(f"/devices/a/{name}", flags)


@pytest.mark.parametrize(("name", "number"), [("", errno.EISDIR), ("/subsystem", errno.ELOOP)])
def test_only_files_can_be_opened(kernfs: Kernfs, name: str, number: int) -> None:
    with refused(number):
        kernfs.open(f"/devices/a{name}", os.O_RDONLY)


@pytest.mark.parametrize(
    ("who", "name", "masks"),
    [
        (ROOT, "ro", {os.R_OK, os.W_OK, os.R_OK | os.W_OK}),
        (ROOT, "wo", {os.R_OK, os.W_OK, os.R_OK | os.W_OK}),
        (ROOT, "", {1, 2, 3, 4, 5, 6, 7}),
        (USER, "ro", {os.R_OK}),
        (USER, "wo", set()),
        (USER, "", {1, 4, 5}),
        (FakeCaller(NOBODY, NOBODY, 0, capabilities=ALL), "wo", set()),
        (FakeCaller(0, 0, 0, capabilities=frozenset({2})), "wo", {os.R_OK, os.W_OK}),
    ],
)
def test_access(kernfs: Kernfs, who: Caller, name: str, masks: set[int]) -> None:
    path = f"/devices/a/{name}".rstrip("/")
    for mask in range(1, 8):
        with running_as(who):
            if mask in masks:
                kernfs.access(path, mask)
            else:
                with refused(errno.EACCES):
                    kernfs.access(path, mask)
    kernfs.access(path, os.F_OK)


def test_a_group_decides_for_its_members(kernfs: Kernfs) -> None:
    group = os.getgid()
    kernfs.chown("/devices/a/private", 12345, group)
    with running_as(FakeCaller(NOBODY, group, 0)):
        kernfs.open("/devices/a/private", os.O_RDONLY)
        with refused(errno.EACCES):
            kernfs.open("/devices/a/private", os.O_WRONLY)


def test_a_supplementary_group_counts(kernfs: Kernfs) -> None:
    group = 4321 if os.geteuid() == 0 else os.getgroups()[0]
    kernfs.chown("/devices/a/private", 12345, group)
    with process_in_group(group) as member:
        wait_for_groups(member, group)
        with running_as(FakeCaller(NOBODY, NOBODY, member)):
            kernfs.open("/devices/a/private", os.O_RDONLY)
    with running_as(FakeCaller(NOBODY, NOBODY, member)), refused(errno.EACCES):
        kernfs.open("/devices/a/private", os.O_RDONLY)


def wait_for_groups(pid: int, gid: int) -> None:
    status = Path(f"/proc/{pid}/status")
    while not re.search(rf"^Groups:.*\b{gid}\b", status.read_text(), re.MULTILINE):
        time.sleep(0.001)


def test_a_directory_closed_by_chmod_lets_nobody_pass(kernfs: Kernfs) -> None:
    kernfs.chmod("/devices/a", 0o700)
    kernfs.getattr("/devices/a/ro")
    with running_as(USER):
        for call in (
            lambda: kernfs.getattr("/devices/a/ro"),
            lambda: list(kernfs.readdir("/devices/a")),
        ):
            with refused(errno.EACCES):
                call()


def test_text_is_rendered_once_for_reads_in_a_row(kernfs: Kernfs, values: Values) -> None:
    file = opened(kernfs, "ro", os.O_RDONLY)
    first = file.read(0, 2)
    values.text = "something else\n"
    assert first + file.read(2, 1) + file.read(3, 100) + file.read(4, 100) == b"one\n"
    assert values.shows == 1
    assert file.read(0, 100) == b"something else\n"
    assert file.read(10, 100) == b"else\n"
    assert values.shows == 3


def test_two_open_files_keep_a_text_each(kernfs: Kernfs, values: Values) -> None:
    first = opened(kernfs, "ro", os.O_RDONLY)
    assert first.read(0, 1) == b"o"
    values.text = "two\n"
    second = opened(kernfs, "ro", os.O_RDONLY)
    assert second.read(0, 1) == b"t"
    assert first.read(1, 100) == b"ne\n"
    assert second.read(1, 100) == b"wo\n"


def test_each_write_is_one_store_whatever_the_offset(kernfs: Kernfs, values: Values) -> None:
    file = opened(kernfs, "rw")
    assert file.write(0, b"one") == 3
    assert file.write(3, b"two") == 3
    assert file.write(9999, b"x" * 5000) == 4096
    assert file.write(0, b"") == 0
    assert values.stores == [b"one", b"two", b"x" * 4096]


def test_binary_files_have_offsets(kernfs: Kernfs, values: Values) -> None:
    file = opened(kernfs, "config")
    assert file.read(0x10, 4) == b"\x10\x11\x12\x13"
    assert file.write(0x10, b"\xff\xfe") == 2
    assert file.read(0x10, 4) == b"\xff\xfe\x12\x13"
    assert len(file.read(0, 16384)) == 4096
    assert file.read(16384, 1) == b""
    assert file.read(16383, 10) == b"\xff"
    with refused(errno.EFBIG):
        file.write(16384, b"x")
    assert opened(kernfs, "log", os.O_RDONLY).read(16380, 100) == b"\xfc\xfd\xfe\xff"


@pytest.mark.parametrize("name", ["rw", "config"])
def test_a_file_that_went_away_is_enodev(kernfs: Kernfs, root: Kobject, name: str) -> None:
    file = opened(kernfs, name)
    unplug(root)
    for call in (lambda: file.read(0, 100), lambda: file.write(0, b"x")):
        with refused(errno.ENODEV):
            call()
    assert file.write(0, b"") == 0


def test_text_that_was_begun_can_be_finished_after_the_end(kernfs: Kernfs, root: Kobject) -> None:
    file = opened(kernfs, "ro", os.O_RDONLY)
    assert file.read(0, 2) == b"on"
    unplug(root)
    assert file.read(2, 100) == b"e\n"
    with refused(errno.ENODEV):
        file.read(4, 100)


def test_handles_stay_with_their_node(files: OpenFiles, kernfs: Kernfs, root: Kobject) -> None:
    old = files.open("/devices/a/rw", os.O_RDWR)
    ino = kernfs.getattr("/devices/a/rw")["st_ino"]
    unplug(root)
    devices = root.lookup("devices")
    assert isinstance(devices, Kobject)
    devices.add_child("a").add_groups(
        (AttributeGroup((Attribute("rw", 0o644, lambda _: "new\n"),)),)
    )
    assert kernfs.getattr("/devices/a/rw")["st_ino"] != ino
    with refused(errno.ENODEV):
        files.get(old, "/devices/a/rw").read(0, 10)
    new = files.open("/devices/a/rw", os.O_RDONLY)
    assert files.get(new, "/devices/a/rw").read(0, 10) == b"new\n"


def test_a_file_open_since_long_is_found_again(
    files: OpenFiles, root: Kobject, values: Values
) -> None:
    old = files.open("/devices/a/ro", os.O_RDONLY)
    gone = files.open("/devices/a/rw", os.O_RDONLY)
    assert files.get(old, "/devices/a/ro").read(0, 2) == b"on"
    for _ in range(10_000):
        files.open("/devices/a/all", os.O_RDONLY)
    values.text = "another\n"
    assert files.get(old, "/devices/a/ro").read(2, 100) == b"other\n"
    unplug(root)
    with refused(errno.ENODEV):
        files.get(gone, "/devices/a/rw")


def test_chmod_chown_and_utime_last_as_long_as_the_node(kernfs: Kernfs) -> None:
    kernfs.chmod("/devices/a/ro", stat.S_IFREG | 0o600)
    kernfs.chown("/devices/a/ro", 12, None)
    kernfs.chown("/devices/a/ro", None, 34)
    kernfs.utimens("/devices/a/ro", 5_000_000_000, explicit=True)
    now = kernfs.getattr("/devices/a/ro")
    assert now["st_mode"] == stat.S_IFREG | 0o600
    assert (now["st_uid"], now["st_gid"], now["st_mtime"]) == (12, 34, 5_000_000_000)


def test_an_owner_may_what_others_may_not(kernfs: Kernfs) -> None:
    path = "/devices/a/ro"
    kernfs.chown(path, OWNER_UID, OWNER_GID)
    with running_as(FakeCaller(OWNER_UID, OWNER_GID, 0)):
        kernfs.chmod(path, 0o400)
        kernfs.chown(path, OWNER_UID, OWNER_GID)
        kernfs.utimens(path, 1, explicit=True)
        with refused(errno.EPERM):
            kernfs.chown(path, NOBODY, None)
        with refused(errno.EPERM):
            kernfs.chown(path, None, NOBODY)
    with running_as(USER):
        calls: list[tuple[Callable[[], object], int]] = [
            (lambda: kernfs.chmod(path, 0o666), errno.EPERM),
            (lambda: kernfs.chown(path, NOBODY, None), errno.EPERM),
            (lambda: kernfs.utimens(path, 1, explicit=True), errno.EPERM),
            (lambda: kernfs.utimens(path, 1, explicit=False), errno.EACCES),
            (lambda: kernfs.truncate(path), errno.EACCES),
            (lambda: kernfs.setxattr(path, "user.x"), errno.EACCES),
            (lambda: kernfs.removexattr(path, "user.x"), errno.EACCES),
        ]
        for call, number in calls:
            with refused(number):
                call()
        kernfs.utimens("/devices/a/all", None, explicit=False)


def test_what_nobody_may_do(kernfs: Kernfs) -> None:
    path, new = "/devices/a/ro", "/devices/a/new"
    calls: list[tuple[Callable[[], object], int, int]] = [
        (lambda: kernfs.make(new), errno.EPERM, errno.EACCES),
        (lambda: kernfs.create(new), errno.EACCES, errno.EACCES),
        (lambda: kernfs.remove(path), errno.EPERM, errno.EACCES),
        (lambda: kernfs.remove(new), errno.ENOENT, errno.ENOENT),
        (lambda: kernfs.rename(path, new), errno.EPERM, errno.EACCES),
        (lambda: kernfs.link(path, new), errno.EPERM, errno.EPERM),
        (lambda: kernfs.make("/new"), errno.EPERM, errno.EACCES),
        (lambda: kernfs.setxattr(path, "user.x"), errno.ENOTSUP, errno.EACCES),
        (lambda: kernfs.removexattr(path, "user.x"), errno.ENOTSUP, errno.EACCES),
        (lambda: kernfs.removexattr(path, "trusted.x"), errno.ENODATA, errno.EACCES),
    ]
    for call, for_root, for_others in calls:
        with refused(for_root):
            call()
        with running_as(USER), refused(for_others):
            call()


def test_truncate_changes_nothing(kernfs: Kernfs, values: Values) -> None:
    kernfs.truncate("/devices/a/ro")
    assert values.stores == []
    assert kernfs.getattr("/devices/a/ro")["st_size"] == 4096


def test_statfs(kernfs: Kernfs) -> None:
    assert kernfs.statfs() == {"f_bsize": 4096, "f_frsize": 4096, "f_namemax": 255}
