# SPDX-License-Identifier: MIT
"""A tree on a real mount, on both bindings, beside the real sysfs."""

from __future__ import annotations

import contextlib
import errno
import json
import os
import signal
import stat
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path

import pytest

from tsmfs import fs

ROOT = Path(__file__).resolve().parent.parent
NOBODY = 65534
DEVICE = "bus/pci/devices/0000:01:00.0"

# Other users see a mount of root's only.
USERS = [0, NOBODY] if os.geteuid() == 0 else [os.geteuid()]


def environment(**extra: str) -> dict[str, str]:
    return {**os.environ, "PYTHONPATH": str(ROOT), **extra}


@contextlib.contextmanager
def mounted_tree(directory: Path, binding: str) -> Iterator[Path]:
    """The tree of tree_server.py, mounted on *directory*; its server must stay silent."""
    directory.mkdir()
    # Another user has to come here.
    for parent in (directory.parent, directory.parent.parent, directory.parent.parent.parent):
        with contextlib.suppress(PermissionError):
            parent.chmod(0o755)
    server = subprocess.Popen(
        [sys.executable, "-X", "dev", ROOT / "tests" / "tree_server.py", directory],
        env=environment(TSMFS_FUSE=binding),
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )
    try:
        assert server.stdout is not None
        started = server.stdout.readline() == "mounted\n"
        if not started:
            pytest.fail(server.communicate()[1])
        yield directory
    finally:
        server.send_signal(signal.SIGTERM)
        try:
            _, errors = server.communicate(timeout=10)
        except subprocess.TimeoutExpired:
            server.kill()
            errors = "it did not end"
            subprocess.run(["umount", "-l", directory], check=False)
    assert errors == ""


@pytest.fixture(scope="module", params=list(fs.BINDINGS))
def mount(
    request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[Path]:
    """The tree on each of the bindings."""
    binding = str(request.param)
    with mounted_tree(tmp_path_factory.mktemp(binding) / "sys", binding) as directory:
        yield directory


@pytest.fixture
def device(mount: Path) -> Path:
    """A device of its own for the test."""
    (mount / "ctl/unplug").write_text("\n")
    (mount / "ctl/plug").write_text("\n")
    return mount / DEVICE


def answer(call: Callable[[], object]) -> object:
    """What a call returns, or the errno it fails with."""
    try:
        return call()
    except OSError as error:
        return error.errno


# --- the same questions to the real sysfs and to the mount


def roles(directory: Path) -> list[str] | None:
    """Names of a 0444, a 0644 and a write-only file, a link and a directory; None: not all."""
    found: dict[str, str] = {}
    for entry in sorted(os.scandir(directory), key=lambda entry: entry.name):
        st = entry.stat(follow_symlinks=False)
        mode = stat.S_IMODE(st.st_mode)
        if stat.S_ISLNK(st.st_mode):
            found.setdefault("link", entry.name)
        elif stat.S_ISDIR(st.st_mode):
            found.setdefault("subdirectory", entry.name)
        elif mode == 0o444 and st.st_size == 4096:
            found.setdefault("ro", entry.name)
        elif mode == 0o644 and st.st_size == 4096:
            found.setdefault("rw", entry.name)
        elif mode & 0o666 and not mode & 0o444:
            found.setdefault("wo", entry.name)
    names = [found.get(role) for role in ("ro", "rw", "wo", "link", "subdirectory")]
    return [name for name in names if name] if all(names) else None


def real_device() -> tuple[str, list[str]]:
    """Some device of this machine that has a file of each kind."""
    for device in sorted(Path("/sys/bus").glob("*/devices/*")):
        if (names := roles(device)) is not None:
            return str(device.resolve().relative_to("/sys")), names
    raise AssertionError("no device here has a file of each kind")


def probe(root: Path, uid: int, directory: str, names: list[str]) -> dict[str, object]:
    """What a sysfs answers to a user."""
    done = subprocess.run(
        [sys.executable, ROOT / "tests" / "sysfs_probe.py", root, str(uid), directory, *names],
        env=environment(),
        capture_output=True,
        text=True,
        check=True,
    )
    answers: dict[str, object] = json.loads(done.stdout)
    return answers


VFS_ORDER = """The kernel looks whether it is a directory before the filesystem can refuse, since
the mount has no default_permissions."""
NO_GETXATTR = """No getxattr: the kernel would ask for security.capability before each write."""
NO_FLAGS = """libfuse 2 has no rename with flags, and mfusepy does not hand them on."""

#: What differs for every user, and why: the real answer, ours.
DIFFERENCES = {
    **{
        f"getxattr {role} {space}.x": ("ENODATA", "ENOTSUP", NO_GETXATTR)
        for role in ("ro", "rw", "subdirectory", "link")
        for space in ("user", "trusted", "security")
    },
}

#: What differs for root.
ROOT_DIFFERENCES = {
    "renameat2 NOREPLACE": ("EINVAL", "EPERM", NO_FLAGS),
    "renameat2 EXCHANGE": ("EINVAL", "EPERM", NO_FLAGS),
}

#: What differs for others.
OTHERS_DIFFERENCES = {
    "rmdir file": ("EACCES", "ENOTDIR", VFS_ORDER),
    "unlink directory": ("EACCES", "EISDIR", VFS_ORDER),
    "rename directory onto file": ("EACCES", "ENOTDIR", VFS_ORDER),
    "rename file onto directory": ("EACCES", "EISDIR", VFS_ORDER),
    "mknod device": ("EACCES", "EPERM", VFS_ORDER),
    "open temporary": ("EACCES", "ENOTSUP", VFS_ORDER),
    "renameat2 NOREPLACE": ("EACCES", "EINVAL", NO_FLAGS),
    "renameat2 EXCHANGE": ("EACCES", "EINVAL", NO_FLAGS),
}


@pytest.mark.skipif(os.geteuid() != 0, reason="only root owns both trees")
@pytest.mark.parametrize("uid", USERS)
def test_errnos_are_those_of_the_real_sysfs(mount: Path, device: Path, uid: int) -> None:
    real = probe(Path("/sys"), uid, *real_device())
    names = ["vendor", "driver_override", "rescan", "subsystem", "power"]
    place = os.path.relpath(device.resolve(), mount)
    ours = probe(mount, uid, place, names)
    assert ours.keys() == real.keys()
    known = DIFFERENCES | (OTHERS_DIFFERENCES if uid else ROOT_DIFFERENCES)
    different = {name: (real[name], ours[name]) for name in real if real[name] != ours[name]}
    allowed = {name: (theirs, here) for name, (theirs, here, _) in known.items()}
    assert different.items() <= allowed.items()


def test_the_probe_leaves_the_tree_as_it_was(mount: Path, device: Path) -> None:
    names = ["vendor", "driver_override", "rescan", "subsystem", "power"]
    before = sorted(os.listdir(device))
    probe(mount, os.geteuid(), os.path.relpath(device.resolve(), mount), names)
    assert sorted(os.listdir(device)) == before
    assert (device / "calls").read_text() == "[]\n"


SHELL_ERRORS = [
    ("rm -f vendor", "Operation not permitted", "Permission denied"),
    ("rmdir power", "Operation not permitted", "Permission denied"),
    ("rm -r power", "Operation not permitted", "Permission denied"),
    ("mkdir new", "Operation not permitted", "Permission denied"),
    ("touch new", "Permission denied", "Permission denied"),
    ("echo x > new", "Permission denied", "Permission denied"),
    ("mv vendor new", "Operation not permitted", "Permission denied"),
    ("ln vendor new", "Operation not permitted", "Operation not permitted"),
    ("ln -s vendor new", "Operation not permitted", "Permission denied"),
    ("cat {wo}", "Permission denied", "Permission denied"),
    ("echo x > vendor", "Permission denied", "Permission denied"),
    ("chmod 0666 driver_override", None, "Operation not permitted"),
    ("chmod 0644 driver_override", None, "Operation not permitted"),
    ("chown 0:0 driver_override", None, "Operation not permitted"),
    ("truncate -s 0 driver_override", None, "Permission denied"),
    ("touch driver_override", None, "Permission denied"),
    ("test -w driver_override", None, ""),
]


@pytest.mark.skipif(os.geteuid() != 0, reason="only root can become another user")
@pytest.mark.parametrize("uid", USERS)
def test_tools_say_what_they_say_on_the_real_sysfs(device: Path, uid: int) -> None:
    for command, for_root, for_others in SHELL_ERRORS:
        expected = for_others if uid else for_root
        done = subprocess.run(
            ["bash", "-c", command.format(wo="rescan")],
            cwd=device,
            user=uid,
            extra_groups=[],
            capture_output=True,
            text=True,
            check=False,
        )
        assert (done.returncode == 0) == (expected is None), (command, done.stderr)
        assert (expected or "") in done.stderr, (command, done.stderr)


# --- reading and writing


def test_a_whole_read_renders_once(device: Path) -> None:
    assert (device / "count").read_text() == "1\n"
    assert (device / "count").read_text() == "22\n"


def test_short_reads_see_one_text(device: Path) -> None:
    for _ in range(4):
        (device / "count").read_bytes()
    with open(device / "count", "rb", buffering=0) as file:
        pieces = list(iter(lambda: file.read(2), b""))
        assert b"".join(pieces) == b"55555\n"
        assert os.pread(file.fileno(), 100, 0) == b"666666\n"


def test_each_write_is_one_store(device: Path) -> None:
    with open(device / "rescan", "wb", buffering=0) as file:
        assert [file.write(b"x" * count) for count in (1, 2, 5000)] == [1, 2, 4096]
        file.seek(4096)
        assert file.write(b"abc") == 3
    assert (device / "calls").read_text() == "[1, 2, 4096, 3]\n"


def test_writev_is_one_store(device: Path) -> None:
    descriptor = os.open(device / "rescan", os.O_WRONLY | os.O_APPEND)
    try:
        assert os.writev(descriptor, [b"a" * 10, b"b" * 20]) == 30
    finally:
        os.close(descriptor)
    assert (device / "calls").read_text() == "[30]\n"


def test_what_is_written_without_a_truncate_is_what_is_read(device: Path) -> None:
    (device / "driver_override").write_text("vfio-pci\n")
    assert (device / "driver_override").read_text() == "vfio-pci\n"
    with open(device / "driver_override", "r+b", buffering=0) as file:
        file.write(b"none\n")
        assert os.pread(file.fileno(), 100, 0) == b"none\n"


def test_binary_files_are_read_and_written_at_offsets(device: Path) -> None:
    content = bytes(range(256)) * 32
    assert (device / "config").read_bytes() == content
    with open(device / "config", "r+b", buffering=0) as file:
        assert os.pread(file.fileno(), 8192, 0) == content[:4096]
        assert os.pwrite(file.fileno(), b"\xaa\xbb", 0x100) == 2
        assert os.pread(file.fileno(), 4, 0x100) == b"\xaa\xbb\x02\x03"
        assert os.pread(file.fileno(), 4, 8192) == b""
        assert answer(lambda: os.pwrite(file.fileno(), b"x", 8192)) == errno.EFBIG


def test_an_errno_of_a_driver_reaches_the_writer(device: Path) -> None:
    done = subprocess.run(
        ["bash", "-c", f"echo 1 > {device}/busy"], capture_output=True, text=True, check=False
    )
    assert done.stderr.endswith("echo: write error: Device or resource busy\n")


@pytest.mark.parametrize("name", ["broken", "nonsense"])
def test_a_driver_that_errs_is_eio_and_a_line_in_the_log(
    mount: Path, device: Path, name: str
) -> None:
    assert answer((device / name).read_bytes) == errno.EIO
    assert f"/{name}: " in (mount / "ctl/log").read_text()
    assert (device / "vendor").read_text() == "0x8086\n"


def test_a_driver_sees_who_calls(device: Path) -> None:
    assert (device / "who").read_text() == f"{os.geteuid()} {os.getegid()} {os.getpid()}\n"


# --- nodes that come and go


def test_an_open_file_of_a_device_that_went_is_enodev(mount: Path, device: Path) -> None:
    with (
        open(device / "driver_override", "r+b", buffering=0) as text,
        open(device / "config", "r+b", buffering=0) as binary,
    ):
        text.read()
        (mount / "ctl/unplug").write_text("\n")
        for file in (text, binary):
            assert answer(partial(os.pread, file.fileno(), 10, 0)) == errno.ENODEV
            assert answer(partial(os.write, file.fileno(), b"x")) == errno.ENODEV
        assert answer((device / "vendor").read_bytes) == errno.ENOENT
        (mount / "ctl/plug").write_text("\n")
        assert (device / "vendor").read_text() == "0x8086\n"
        assert answer(lambda: os.pread(text.fileno(), 10, 0)) == errno.ENODEV
    assert (device / "calls").read_text() == "[]\n"


def test_a_vanished_directory_is_gone_for_every_call(mount: Path, device: Path) -> None:
    place = device.resolve()
    assert place.is_dir()
    (mount / "ctl/unplug").write_text("\n")
    assert not device.is_symlink()
    for call in (os.stat, os.listdir, os.chdir):
        assert answer(partial(call, place)) == errno.ENOENT
    assert answer(lambda: (place / "power/control").read_text()) == errno.ENOENT
    assert os.listdir(mount / "bus/pci/devices") == []


def test_inode_numbers_are_those_of_readdir_and_change_with_the_node(
    mount: Path, device: Path
) -> None:
    listed = {entry.name: entry.inode() for entry in os.scandir(device)}
    assert listed == {name: os.lstat(device / name).st_ino for name in listed}
    everything = [
        os.lstat(os.path.join(parent, name)).st_ino
        for parent, directories, files in os.walk(mount)
        for name in (*directories, *files)
    ]
    assert len(set(everything)) == len(everything)
    (mount / "ctl/unplug").write_text("\n")
    (mount / "ctl/plug").write_text("\n")
    assert not set(listed.values()) & {os.lstat(device / name).st_ino for name in listed}


def test_readdir_tells_types(device: Path) -> None:
    kinds = {e.name: (e.is_dir(follow_symlinks=False), e.is_symlink()) for e in os.scandir(device)}
    assert kinds["power"] == (True, False)
    assert kinds["subsystem"] == (False, True)
    assert kinds["vendor"] == (False, False)


def test_links_resolve(mount: Path, device: Path) -> None:
    assert device.resolve() == mount / "devices/pci0000:00/0000:00:01.0/0000:01:00.0"
    assert (device / "subsystem").resolve() == mount / "bus/pci"


def test_the_mount_table_names_the_filesystem(mount: Path) -> None:
    table = Path("/proc/self/mountinfo").read_text().splitlines()
    (line,) = [line for line in table if f" {mount} " in line]
    assert line.partition(" - ")[2].startswith("fuse.tsmfs tsmfs ")


# --- slow drivers


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM, signal.SIGKILL])
def test_a_writer_that_is_killed_while_it_waits_is_let_go(
    device: Path, number: signal.Signals
) -> None:
    writer = subprocess.Popen(["bash", "-c", f"echo 60 > {device}/slow"])
    wait_until_inside(device)
    writer.send_signal(number)
    assert writer.wait(timeout=5) == -number
    assert (device / "slow").read_text() == "0\n"


def wait_until_inside(device: Path) -> None:
    """Wait until a writer waits in the driver."""
    deadline = time.monotonic() + 5
    while (device / "slow").read_text() == "0\n":
        assert time.monotonic() < deadline, "the writer never wrote"
        time.sleep(0.005)


def test_readers_do_not_wait_for_a_slow_writer(device: Path) -> None:
    writer = subprocess.Popen(["bash", "-c", f"echo 60 > {device}/slow"])
    wait_until_inside(device)
    done = []

    def read() -> None:
        for _ in range(10):
            (device / "vendor").read_bytes()
        done.append(True)

    threads = [threading.Thread(target=read) for _ in range(16)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(timeout=10)
    assert writer.poll() is None
    writer.kill()
    writer.wait(timeout=5)
    assert len(done) == 16


def test_many_slow_readers_leave_room_for_others(device: Path) -> None:
    readers = [
        subprocess.Popen(["cat", device / "slow_show"], stderr=subprocess.DEVNULL)
        for _ in range(30)
    ]
    try:
        deadline = time.monotonic() + 5
        while (device / "slow").read_text() != "30\n":
            assert time.monotonic() < deadline
            time.sleep(0.005)
    finally:
        for reader in readers:
            reader.kill()
        for reader in readers:
            reader.wait(timeout=10)
    assert (device / "slow").read_text() == "0\n"


# --- choice of the binding


def test_an_unknown_binding_is_refused() -> None:
    with pytest.raises(fs.BindingError, match="nofuse: not one of fusepy, mfusepy"):
        fs.choose_binding({fs.BINDING_VARIABLE: "nofuse"})


def test_the_first_binding_with_a_library_is_taken(monkeypatch: pytest.MonkeyPatch) -> None:
    assert fs.choose_binding({}).name == "fusepy"
    absent = fs.Binding("absent", "fuse", ("libabsent.so.1",), "libabsent")
    usable = fs.BINDINGS["mfusepy"]
    monkeypatch.setattr(fs, "BINDINGS", {"absent": absent, "mfusepy": usable})
    assert fs.choose_binding({}) is usable
    with pytest.raises(fs.BindingError, match=r"^FUSE cannot be used here: install libabsent$"):
        fs.choose_binding({fs.BINDING_VARIABLE: "absent"})


def test_what_is_missing_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    module = fs.Binding("nopy", "no_such_module", ("libc.so.6",), "libno")
    library = fs.Binding("nolib", "fuse", ("libabsent.so.1",), "libabsent")
    monkeypatch.setattr(fs, "BINDINGS", {"nopy": module, "nolib": library})
    with pytest.raises(
        fs.BindingError, match=r"install the Python package nopy with libno or libabsent$"
    ):
        fs.choose_binding({})
