# SPDX-License-Identifier: MIT
"""A tree on a real mount, on both bindings, beside the real sysfs."""

from __future__ import annotations

import contextlib
import ctypes
import errno
import json
import os
import shutil
import signal
import stat
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import partial
from pathlib import Path

import pytest

from tests.tree_server import build_tree
from tsmfs import fs
from tsmfs.base.kernfs import UTIME_NOW, UTIME_OMIT, Caller, Kernfs
from tsmfs.kernel.task import running_as

ROOT = Path(__file__).resolve().parent.parent
NOBODY = 65534
PATIENCE = 30
"""Seconds after which something is taken to hang."""
DEVICE = "bus/pci/devices/0000:01:00.0"

# Other users see a mount of root's only.
USERS = [0, NOBODY] if os.geteuid() == 0 else [os.geteuid()]


def environment(**extra: str) -> dict[str, str]:
    return {**os.environ, "PYTHONPATH": str(ROOT), **extra}


def environment_of_another_user() -> dict[str, str]:
    """Without the measuring of coverage, which could not write down its results."""
    return {k: v for k, v in environment().items() if not k.startswith("COVERAGE_")}


def unmount(directory: Path) -> None:
    programs = [["umount", "-l"]] if os.geteuid() == 0 else []
    programs += [["fusermount3", "-uz"], ["fusermount", "-uz"]]
    for program in programs:
        if shutil.which(program[0]):
            subprocess.run([*program, directory], check=False)
            return


@contextlib.contextmanager
def mounted_tree(directory: Path, binding: str) -> Iterator[Path]:
    """The tree of tree_server.py, mounted on *directory*; its server must stay silent."""
    directory.mkdir()
    # Another user has to come here.
    for parent in (directory.parent, directory.parent.parent, directory.parent.parent.parent):
        with contextlib.suppress(PermissionError):
            parent.chmod(parent.stat().st_mode | 0o055)
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
        unmount(directory)
        try:
            _, errors = server.communicate(timeout=PATIENCE)
        except subprocess.TimeoutExpired:
            server.kill()
            errors = "it did not end"
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
        env=environment_of_another_user(),
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
    assert writer.wait(PATIENCE) == -number
    assert (device / "slow").read_text() == "0\n"


def wait_until_inside(device: Path) -> None:
    """Wait until a writer waits in the driver."""
    deadline = time.monotonic() + PATIENCE
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
        thread.join(PATIENCE)
    assert writer.poll() is None
    writer.kill()
    writer.wait(PATIENCE)
    assert len(done) == 16


def test_many_slow_readers_leave_room_for_others(device: Path) -> None:
    readers = [
        subprocess.Popen(["cat", device / "slow_show"], stderr=subprocess.DEVNULL)
        for _ in range(30)
    ]
    try:
        deadline = time.monotonic() + PATIENCE
        while (device / "slow").read_text() != "30\n":
            assert time.monotonic() < deadline
            time.sleep(0.005)
    finally:
        for reader in readers:
            reader.kill()
        for reader in readers:
            reader.wait(PATIENCE)
    assert (device / "slow").read_text() == "0\n"


# --- the operations, called as the bindings call them


@pytest.fixture
def operations() -> Iterator[fs.CallableOperations]:
    """The operations on the tree of tree_server.py, outside of any request."""
    root = build_tree()
    path = fs.choose_binding({}).find_library()
    assert path is not None
    caller = Caller(root.tree.uid, root.tree.gid, os.getpid())
    with running_as(caller):
        yield fs.CallableOperations(Kernfs(root), fs.Library(path), caller, lambda: None)


FILE = "/devices/pci0000:00/0000:00:01.0/0000:01:00.0/driver_override"
NEW = "/devices/new"


def test_operations_on_a_file(operations: fs.CallableOperations) -> None:
    handle = operations("open", FILE, os.O_RDWR)
    assert operations("write", FILE, b"x\n", 0, handle) == 2
    assert operations("read", FILE, 4096, 0, handle) == b"x\n"
    operations("access", FILE, os.W_OK)
    operations("truncate", FILE, 0)
    operations("truncate", FILE, 0, handle)
    operations("chmod", FILE, 0o100600)
    operations("chown", FILE, 12, -1)
    operations("chown", FILE, -1, 34)
    operations("utimens", FILE, (5_000_000_000, 7_000_000_000))
    operations("utimens", FILE, (UTIME_NOW, UTIME_OMIT))
    attributes = operations("getattr", FILE)
    assert attributes["st_mode"] == stat.S_IFREG | 0o600
    assert (attributes["st_uid"], attributes["st_gid"]) == (12, 34)
    assert attributes["st_mtime"] == 7_000_000_000
    before = time.time_ns()
    operations("utimens", FILE, None)
    assert operations("getattr", FILE)["st_mtime"] >= before - 1_000_000_000
    assert operations("listxattr", FILE) == []


def test_operations_on_a_directory(operations: fs.CallableOperations) -> None:
    (link,) = [entry for entry in operations("readdir", "/bus/pci/devices", 0) if entry[1]]
    assert link[0] == "0000:01:00.0"
    assert link[1]["st_mode"] == stat.S_IFLNK
    assert operations("readlink", f"/bus/pci/devices/{link[0]}").startswith("../../../devices/")
    assert operations("statfs", "/")["f_bsize"] == 4096


@pytest.mark.parametrize(
    ("call", "number"),
    [
        (("mkdir", NEW, 0o755), errno.EPERM),
        (("mknod", NEW, stat.S_IFREG, 0), errno.EACCES),
        (("mknod", NEW, stat.S_IFIFO, 0), errno.EPERM),
        (("symlink", NEW, "x"), errno.EPERM),
        (("link", NEW, FILE), errno.EPERM),
        (("unlink", FILE), errno.EPERM),
        (("rmdir", "/devices"), errno.EPERM),
        (("rename", FILE, NEW), errno.EPERM),
        (("setxattr", FILE, "user.x", b"", 0), errno.ENOTSUP),
        (("removexattr", FILE, "trusted.x"), errno.ENODATA),
    ],
)
def test_operations_that_are_refused(
    operations: fs.CallableOperations, call: tuple[object, ...], number: int
) -> None:
    name, *arguments = call
    assert answer(lambda: operations(str(name), *arguments)) == number


def test_a_thread_without_a_request_has_no_caller_to_be_interrupted() -> None:
    path = fs.choose_binding({}).find_library()
    assert path is not None
    library = fs.Library(path)
    requester = fs.Requester(library, 0)
    assert (requester.uid, requester.gid, requester.pid) == (0, 0, 0)
    assert not requester.interrupted()
    assert not library.stop()
    assert library.stopping
    assert not requester.interrupted()


def test_whatever_an_operation_raises_becomes_an_errno() -> None:
    class Binding:
        """Takes the place of the class FUSE of a binding."""

        operations = None

        def call(self, function: Callable[..., object]) -> object:
            return self._wrapper(function)  # type: ignore[attr-defined]

    reports: list[str] = []
    fuse = fs._lean(Binding, reports.append)()

    def busy() -> None:
        raise OSError(errno.EBUSY, "busy")

    def anonymous() -> None:
        raise OSError("without a number")

    def wrong() -> None:
        raise KeyError("wrong")

    assert fuse.call(lambda: None) == 0
    assert fuse.call(lambda: 5) == 5
    assert fuse.call(busy) == -errno.EBUSY
    assert fuse.call(anonymous) == -errno.EIO
    assert reports == []
    assert fuse.call(wrong) == -errno.EIO
    assert "wrong failed\nTraceback" in reports[0]


@dataclass
class FileInfo:
    """As much of ``struct fuse_file_info`` as the quick operations touch."""

    flags: int = os.O_RDONLY
    fh: int = 0

    @property
    def contents(self) -> FileInfo:
        return self


def test_open_and_read_go_straight_to_the_operations(operations: fs.CallableOperations) -> None:
    lean = fs._lean(object, lambda _: None)()
    lean.operations = operations
    info = FileInfo()
    assert lean.open(FILE.encode(), info) == 0
    buffer = ctypes.create_string_buffer(4096)
    assert lean.read(FILE.encode(), buffer, 4096, 0, info) == 7
    assert buffer.value == b"(null)\n"


def test_init_and_destroy_mark_the_time_that_it_is_mounted() -> None:
    path = fs.choose_binding({}).find_library()
    assert path is not None
    library = fs.Library(path)
    states = [library.mounted]

    def ready() -> None:
        states.append(library.mounted)

    operations = fs.Operations(Kernfs(build_tree()), library, Caller(0, 0, 0), ready)
    operations.init("/")
    operations.destroy("/")
    assert states == [False, True]
    assert not library.stop()


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
