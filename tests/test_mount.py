# SPDX-License-Identifier: MIT
"""The daemon from its start to its end, whatever ends it."""

from __future__ import annotations

import contextlib
import fcntl
import gc
import os
import select
import signal
import subprocess
import sys
import textwrap
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import IO

import pytest

from tests.command_line import Run
from tests.left_behind import NO_PROCESS, failing, nothing_left
from tsmfs import daemon, fs, mount
from tsmfs.daemon import MachineRequest, Stages
from tsmfs.description import builtin_text
from tsmfs.instance import mounted
from tsmfs.machine import Machine
from tsmfs.mount import MountError, MountRequest, mount_machine, unmount_machine
from tsmfs.runtime import runtime_directory
from tsmfs.umount import umount

PATIENCE = 20.0
"""Seconds after which something is taken to hang."""

ROOT = Path(__file__).resolve().parent.parent
NOBODY = 65534
NEEDS_ROOT = pytest.mark.skipif(os.geteuid() != 0, reason="only root can become another user")


def environment(binding: str = "fusepy") -> dict[str, str]:
    return {**os.environ, "PYTHONPATH": str(ROOT), fs.BINDING_VARIABLE: binding}


def environment_of_another_user(binding: str) -> dict[str, str]:
    """Without the measuring of coverage, which could not write down its results."""
    return {k: v for k, v in environment(binding).items() if not k.startswith("COVERAGE_")}


def command(*arguments: str | Path, binding: str = "fusepy") -> tuple[int, str]:
    """Run ``tsmfs``: its exit status and what it wrote to standard error."""
    done = subprocess.run(
        [sys.executable, "-m", "tsmfs", *arguments],
        env=environment(binding),
        capture_output=True,
        text=True,
        timeout=30,
        check=False,
    )
    return done.returncode, done.stderr


@pytest.fixture(params=list(fs.BINDINGS))
def binding(request: pytest.FixtureRequest) -> str:
    return str(request.param)


@pytest.fixture
def place(tmp_path: Path) -> Iterator[Path]:
    """An empty directory, on which nothing is mounted afterwards and of which no daemon is left."""
    directory = tmp_path / "sys"
    directory.mkdir()
    yield directory
    left = directory in mounted()
    if left:
        subprocess.run(["umount", "-l", directory], check=True)
    wait_for(lambda: serving(directory) == [])
    daemons = serving(directory)
    for pid in daemons:
        os.kill(pid, signal.SIGKILL)
    assert not left
    assert not daemons


def serving(directory: Path) -> list[int]:
    """The processes whose command line names *directory*."""
    found = []
    for entry in Path("/proc").glob("[0-9]*/cmdline"):
        try:
            if os.fsencode(directory) in entry.read_bytes().split(b"\0"):
                found.append(int(entry.parent.name))
        except OSError:
            continue
    return found


def daemon_of(directory: Path) -> int:
    return int((directory / "kernel/tsmfs/pid").read_text())


def alive(pid: int) -> bool:
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] != "Z"
    except FileNotFoundError:
        return False


def wait_for(condition: Callable[[], bool], seconds: float = 10) -> bool:
    deadline = time.monotonic() + seconds
    while not condition():
        if time.monotonic() > deadline:
            return False
        time.sleep(0.01)
    return True


def test_mount_returns_when_the_machine_can_be_read(place: Path, binding: str) -> None:
    assert command("mount", place, binding=binding) == (0, "")
    assert (place / "kernel/tsmfs/name").read_text().strip() == "devsec"
    pid = daemon_of(place)
    assert alive(pid)
    assert command("umount", place) == (0, "")
    assert not alive(pid)
    assert os.listdir(place) == []


def test_the_daemon_is_a_session_of_its_own_and_keeps_nothing_open(place: Path) -> None:
    reader, writer = os.pipe()
    os.set_inheritable(writer, True)
    subprocess.run(
        [sys.executable, "-m", "tsmfs", "mount", place],
        env=environment(),
        pass_fds=[writer],
        check=True,
        stdout=subprocess.PIPE,
    )
    pid = daemon_of(place)
    os.close(writer)
    assert os.read(reader, 1) == b""
    os.close(reader)
    assert os.getsid(pid) == pid
    assert os.readlink(f"/proc/{pid}/cwd") == "/"
    assert {os.readlink(f"/proc/{pid}/fd/{n}") for n in range(3)} == {"/dev/null"}
    unmount_machine(place)


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT, signal.SIGHUP])
def test_a_signal_unmounts(place: Path, binding: str, number: signal.Signals) -> None:
    assert command("mount", place, binding=binding) == (0, "")
    pid = daemon_of(place)
    os.kill(pid, number)
    assert wait_for(lambda: not alive(pid))
    assert os.listdir(place) == []


def test_a_signal_ends_a_machine_in_use(place: Path, binding: str) -> None:
    assert command("mount", place, binding=binding) == (0, "")
    pid = daemon_of(place)
    with open(place / "kernel/tsmfs/name", "rb", buffering=0) as file:
        os.kill(pid, signal.SIGTERM)
        assert wait_for(lambda: not alive(pid))
        with pytest.raises(OSError, match=r"Transport endpoint|abort"):
            os.pread(file.fileno(), 10, 0)
    assert os.listdir(place) == []


def test_an_unmount_from_outside_ends_the_daemon(place: Path, binding: str) -> None:
    assert command("mount", place, binding=binding) == (0, "")
    pid = daemon_of(place)
    umount(place)
    assert wait_for(lambda: not alive(pid))


def test_the_next_mount_cleans_up_after_a_dead_daemon(place: Path, binding: str) -> None:
    assert command("mount", place) == (0, "")
    os.kill(daemon_of(place), signal.SIGKILL)
    assert wait_for(lambda: mount._is_dead(place))
    said = f"tsmfs: {place}: unmounted a machine whose daemon had died\n"
    assert command("mount", place, binding=binding) == (0, said)
    assert mounted().count(place) == 1
    assert command("umount", place) == (0, "")


def test_umount_cleans_up_after_a_dead_daemon(place: Path) -> None:
    assert command("mount", place) == (0, "")
    socket = Path((place / "kernel/tsmfs/netlink_socket").read_text().strip())
    os.kill(daemon_of(place), signal.SIGKILL)
    assert wait_for(lambda: mount._is_dead(place))
    assert socket.exists()
    assert command("umount", place) == (0, "")
    assert not socket.exists()


def test_umount_of_what_is_in_use_is_refused(place: Path) -> None:
    assert command("mount", place) == (0, "")
    with open(place / "kernel/tsmfs/name", "rb"):
        status, errors = command("umount", place)
        assert status == 1
        assert errors.startswith(f"tsmfs: {place}: Device or resource busy")
        assert errors.count("\n") == 1
    assert command("umount", place) == (0, "")


def test_umount_of_another_filesystem_is_refused(tmp_path: Path) -> None:
    for directory in (tmp_path, tmp_path / "none", Path("/proc")):
        with pytest.raises(MountError, match=r"no machine is mounted there$"):
            unmount_machine(directory)


def test_a_second_mount_on_a_living_one_is_refused(place: Path) -> None:
    assert command("mount", place) == (0, "")
    said = f"tsmfs: {place}: a machine is mounted there already\n"
    assert command("mount", place) == (1, said)
    assert command("umount", place) == (0, "")


def test_two_mounts_at_once_are_one(place: Path) -> None:
    arguments = [sys.executable, "-m", "tsmfs", "mount", str(place)]
    both = [
        subprocess.Popen(
            arguments, env=environment(), stderr=subprocess.PIPE, stdout=subprocess.PIPE
        )
        for _ in range(2)
    ]
    for process in both:
        process.communicate(timeout=30)
    assert sorted(process.returncode for process in both) == [0, 1]
    assert mounted().count(place) == 1
    unmount_machine(place)


def test_a_mount_that_is_over_before_the_place_is_reserved_is_seen(
    place: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    real = fcntl.flock

    def mount_first(descriptor: int, operation: int) -> None:
        assert command("mount", place) == (0, "")
        real(descriptor, operation)

    monkeypatch.setattr(fcntl, "flock", mount_first)
    with nothing_left(), pytest.raises(MountError) as error:
        mount_machine(MountRequest(place))
    assert str(error.value) == f"{place}: a machine is mounted there already"
    assert mounted().count(place) == 1
    unmount_machine(place)


@pytest.mark.parametrize("foreground", [False, True])
@pytest.mark.parametrize(
    ("name", "reason"),
    [
        ("none", "No such file or directory"),
        ("file", "Not a directory"),
        ("full", "not empty, there is a"),
    ],
)
def test_a_place_that_will_not_do(
    tmp_path: Path, name: str, reason: str, *, foreground: bool
) -> None:
    (tmp_path / "file").touch()
    (tmp_path / "full/a").mkdir(parents=True)
    place = tmp_path / name
    with pytest.raises(MountError) as error:
        mount_machine(MountRequest(place, foreground=foreground))
    assert str(error.value) == f"{place}: {reason}"


@pytest.mark.parametrize(
    ("options", "reason"),
    [
        (["--machine", "nosuch"], "nosuch: unknown machine"),
        (["--machine", "./nosuch.toml"], "nosuch.toml"),
        (["--module", "nosuch"], "cannot load nosuch"),
    ],
)
def test_a_machine_that_does_not_start_leaves_nothing(
    place: Path, options: list[str], reason: str
) -> None:
    for more in ([], ["-f"]):
        status, errors = command("mount", *options, *more, place)
        assert status == 1
        assert errors.startswith("tsmfs: ")
        assert reason in errors
        assert errors.count("\n") == 1
        assert mounted().count(place) == 0


REFUSED_BY_LIBFUSE = """
import sys
from tsmfs import fs
from tsmfs.cli import main
def run(self, directory, ready):
    raise fs.MountError(f"cannot mount on {directory}")
fs.Filesystem.run = run
main(sys.argv[1:])
"""


@pytest.mark.parametrize("options", [[], ["-f"]])
def test_a_mount_that_libfuse_refuses_leaves_no_socket(place: Path, options: list[str]) -> None:
    socket = runtime_directory() / mount._socket_name(place)
    done = subprocess.run(
        [sys.executable, "-c", REFUSED_BY_LIBFUSE, "mount", *options, place],
        env=environment(),
        capture_output=True,
        text=True,
        timeout=30,
        check=False,
    )
    left = socket.exists()
    socket.unlink(missing_ok=True)
    said = f"tsmfs: cannot mount on {place}: libfuse does not say why\n"
    assert (done.returncode, done.stderr) == (1, said)
    assert not left


@pytest.fixture
def in_process(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A machine may be served in the process of the test, which goes on afterwards."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(gc, "freeze", lambda: None)


@pytest.mark.usefixtures("in_process")
def test_a_mount_that_libfuse_refuses_leaves_nothing_in_the_process(
    place: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def refuse(*_: object) -> None:
        raise fs.MountError("cannot mount")

    monkeypatch.setattr(mount, "make_runtime_directory", lambda: tmp_path)
    monkeypatch.setattr(fs.Filesystem, "run", refuse)
    with nothing_left(), pytest.raises(MountError, match=r"^cannot mount: libfuse"):
        mount_machine(MountRequest(place, foreground=True))
    assert not list(tmp_path.glob("*.sock"))


@pytest.mark.usefixtures("in_process")
@pytest.mark.parametrize("stage", ["built", "booted"])
def test_a_machine_is_stopped_whose_life_ends_before_it_is_mounted(place: Path, stage: str) -> None:
    seen: list[Machine] = []

    def fail(machine: Machine) -> None:
        seen.append(machine)
        raise MountError("no further")

    stages = Stages()
    setattr(stages, stage, fail)
    with nothing_left(), pytest.raises(MountError, match=r"^no further$"):
        daemon.serve(MachineRequest("server"), place, daemon.find_binding(), stages)
    (machine,) = seen
    assert not machine.modules.loaded
    assert not list(machine.pci.host_bridges)


def test_a_machine_that_cannot_be_mounted_and_does_not_stop_ends_in_time(
    place: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fail(_: Machine) -> None:
        raise MountError("no further")

    def hang(_: Machine) -> None:
        time.sleep(2 * PATIENCE)

    stages = Stages()
    monkeypatch.setattr(stages, "booted", fail)
    monkeypatch.setattr(Machine, "stop", hang)
    monkeypatch.setattr(daemon, "STOP_SECONDS", 0.2)
    pid = os.fork()
    if pid == 0:
        try:
            daemon.serve(MachineRequest(), place, daemon.find_binding(), stages)
        finally:
            os._exit(7)
    ended = os.pidfd_open(pid)
    assert select.select([ended], [], [], PATIENCE)[0]
    os.close(ended)
    assert os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]) == 1


@pytest.mark.usefixtures("in_process")
def test_signals_are_what_they_were_when_no_thread_can_wait_for_them(
    place: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def refuse(_: threading.Thread) -> None:
        raise RuntimeError("can't start new thread")

    binding = daemon.find_binding()
    monkeypatch.setattr(threading.Thread, "start", refuse)
    said = "^the machine cannot be served: can't start new thread$"
    with nothing_left(), pytest.raises(MountError, match=said):
        daemon.serve(MachineRequest(), place, binding, Stages())


@NO_PROCESS
def test_a_daemon_that_cannot_be_started_is_told_and_leaves_nothing(
    place: Path, run: Run, monkeypatch: pytest.MonkeyPatch, name: str, number: int
) -> None:
    monkeypatch.setattr(os, name, failing(getattr(os, name), number))
    with nothing_left():
        result = run("mount", place)
    said = f"tsmfs: the daemon cannot be started: {os.strerror(number)}\n"
    assert (result.status, result.err) == (1, said)


def test_modules_are_those_that_were_asked_for(place: Path) -> None:
    assert command("mount", "--no-modules", "--module", "devsec_bus", place) == (0, "")
    modules = (place / "kernel/tsmfs/modules").read_text()
    assert "devsec_bus " in modules
    assert "devsec_link_tsm" not in modules
    unmount_machine(place)


def test_the_fuse_device_is_looked_at_first(
    place: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    device = tmp_path / "fuse"
    monkeypatch.setattr(daemon, "FUSE_DEVICE", device)
    with pytest.raises(MountError, match=r"^.*/fuse: No such file or directory: load the kernel"):
        mount_machine(MountRequest(place))


def test_a_missing_library_is_named(place: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    absent = fs.Binding("fusepy", "fuse", ("libabsent.so.1",), "libfuse 2")
    monkeypatch.setattr(fs, "BINDINGS", {"fusepy": absent})
    monkeypatch.delenv(fs.BINDING_VARIABLE, raising=False)
    with pytest.raises(MountError, match=r"^FUSE cannot be used here: install libfuse 2$"):
        mount_machine(MountRequest(place))


def test_foreground_stays_until_a_signal(place: Path, binding: str) -> None:
    process = subprocess.Popen(
        [sys.executable, "-m", "tsmfs", "mount", "-f", place],
        env=environment(binding),
        stderr=subprocess.PIPE,
    )
    assert wait_for(lambda: place in mounted())
    assert daemon_of(place) == process.pid
    process.send_signal(signal.SIGINT)
    assert process.communicate(timeout=10)[1] == b""
    assert process.returncode == 0


@contextlib.contextmanager
def booting(place: Path, tmp_path: Path) -> Iterator[tuple[subprocess.Popen[bytes], IO[str]]]:
    """``tsmfs mount`` whose daemon waits for the description of its machine, and the way in."""
    description = tmp_path / "machine.toml"
    os.mkfifo(description)
    process = subprocess.Popen(
        [sys.executable, "-m", "tsmfs", "mount", "--machine", str(description), str(place)],
        env=environment(),
        stdout=subprocess.DEVNULL,
        stderr=subprocess.PIPE,
    )
    # This waits until the daemon opens it for reading.
    with open(description, "w") as text:
        yield process, text
    process.communicate(timeout=10)


def test_the_daemon_ends_with_the_command_that_was_interrupted(place: Path, tmp_path: Path) -> None:
    with booting(place, tmp_path) as (process, _):
        process.send_signal(signal.SIGINT)
        assert process.wait(timeout=10) != 0
        assert wait_for(lambda: serving(place) == [])
    assert place not in mounted()


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGKILL])
def test_a_machine_that_nobody_waits_for_any_more_is_unmounted(
    place: Path, tmp_path: Path, number: signal.Signals
) -> None:
    with booting(place, tmp_path) as (process, text):
        process.send_signal(number)
        assert process.wait(timeout=10) == -number
        text.write(builtin_text("devsec"))
    assert wait_for(lambda: serving(place) == [])
    assert place not in mounted()


def test_a_daemon_that_dies_before_it_is_ready_is_reported(place: Path, tmp_path: Path) -> None:
    with booting(place, tmp_path) as (process, _):
        (daemon,) = (pid for pid in serving(place) if pid != process.pid)
        os.kill(daemon, signal.SIGKILL)
        _, errors = process.communicate(timeout=10)
    assert process.returncode == 1
    assert errors == b"tsmfs: the daemon died: Killed\n"
    assert place not in mounted()


MOUNT_AS_NOBODY = """
import os, sys
from pathlib import Path
sys.path.insert(0, sys.argv[2])
# All that is imported later, from where the other user may not look.
import ctypes, subprocess, tsmfs.fs, tsmfs.mount, tsmfs.machine, tsmfs.description
binding = tsmfs.fs.choose_binding()
machine, text = tsmfs.description.find("devsec")
running = tsmfs.machine.Machine(machine, text)
running.boot(None)
running.netlink.start(Path(sys.argv[1]).with_suffix(".sock"), 0)
running.stop()
tsmfs.fs.Filesystem(running.root, binding)
os.setgroups([])
os.setgid(65534)
os.setuid(65534)
tsmfs.mount.mount_machine(tsmfs.mount.MountRequest(Path(sys.argv[1])))
device = Path(sys.argv[1]) / "bus/pci/devices/10000:01:00.0"
assert len((device / "config").read_bytes()) > 64
(device / "tsm/connect").write_text("tsm0\\n")
print((device / "tsm/connect").read_text(), os.stat(device).st_uid, flush=True)
tsmfs.mount.unmount_machine(Path(sys.argv[1]))
"""


@NEEDS_ROOT
def test_a_user_is_root_of_the_machine_that_he_mounts(place: Path, binding: str) -> None:
    os.chown(place, NOBODY, NOBODY)
    for parent in (place.parent, place.parent.parent, place.parent.parent.parent):
        parent.chmod(parent.stat().st_mode | 0o055)
    done = subprocess.run(
        [sys.executable, "-c", textwrap.dedent(MOUNT_AS_NOBODY), place, ROOT],
        env=environment_of_another_user(binding),
        capture_output=True,
        text=True,
        timeout=30,
        check=False,
    )
    assert (done.stdout, done.stderr) == (f"tsm0\n {NOBODY}\n", "")


@NEEDS_ROOT
def test_libfuse_is_quoted_when_it_cannot_mount(place: Path, binding: str) -> None:
    for parent in (place.parent, place.parent.parent, place.parent.parent.parent):
        parent.chmod(parent.stat().st_mode | 0o055)
    done = subprocess.run(
        [sys.executable, "-c", textwrap.dedent(MOUNT_AS_NOBODY), place, ROOT],
        env=environment_of_another_user(binding),
        capture_output=True,
        text=True,
        timeout=30,
        check=False,
    )
    last = done.stderr.splitlines()[-1]
    assert last.startswith(f"tsmfs.umount.MountError: cannot mount on {place}: fusermount")
    assert "write access" in last
