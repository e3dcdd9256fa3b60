# SPDX-License-Identifier: MIT
"""The daemon: one mounted machine and its lifetime, from the check of the place to its end."""

from __future__ import annotations

import contextlib
import ctypes
import errno
import fcntl
import gc
import hashlib
import os
import select
import shutil
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, NoReturn

from tsmfs import fs
from tsmfs.instance import CONTROL_DIRECTORY, mounted

if TYPE_CHECKING:
    from tsmfs.machine import Machine

FUSE_DEVICE = Path("/dev/fuse")

_STOP_SIGNALS = {signal.SIGTERM, signal.SIGINT, signal.SIGHUP}
_WAKE_SIGNAL = signal.SIGUSR1
_WAKE_INTERVAL = 0.05
_WAKE_TIMES = 5
_STOP_SECONDS = 10.0
"""A machine whose drivers do not let go is given up after that."""

_BUSY_SECONDS = 1.0
"""Who has just ended may keep a mount busy for a moment."""

_MNT_DETACH = 2
_READY = b"\0"


class MountError(Exception):
    """A machine cannot be mounted or unmounted; the text is one line that says why."""


@dataclass(frozen=True, slots=True)
class MountRequest:
    """What to mount, where, and how."""

    directory: Path
    machine: str = "devsec"
    """Name of a built-in machine, or the path of a description."""
    modules: tuple[str, ...] = ()
    """Modules to load, each ``NAME key=value ...``."""
    machine_modules: bool = True
    """Whether the modules that the description names are loaded first."""
    uevents: bool = False
    """Whether uevents are sent into the network namespace as well."""
    foreground: bool = False
    """Whether this process serves the machine, and the call lasts as long."""


def mount_machine(request: MountRequest) -> None:
    """Mount a machine; returns when it can be read, or in the foreground when it has ended.

    Cleans up first, with a line on standard error, where a machine is mounted whose daemon died.
    Raises MountError, and nothing is mounted then.
    """
    directory = Path(os.path.realpath(request.directory))
    with _reserve(directory):
        try:
            binding = fs.choose_binding()
        except fs.BindingError as error:
            raise MountError(str(error)) from error
        _check_fuse_device()
        if request.foreground:
            _serve(request, directory, binding, lambda: None)
        else:
            _start_daemon(request, directory, binding)


def unmount_machine(directory: Path) -> None:
    """Unmount the machine on *directory*, and wait until its daemon has ended.

    Raises MountError when there is none, or somebody uses it.
    """
    place = Path(os.path.realpath(directory))
    if place not in mounted():
        raise MountError(f"{directory}: no machine is mounted there")
    if _is_dead(place):
        _detach(place)
        return
    daemon = _open_daemon(place)
    try:
        _unmount(place)
        if daemon is not None and not select.select([daemon], [], [], 2 * _STOP_SECONDS)[0]:
            raise MountError(f"{directory}: unmounted, but its daemon does not end")
    finally:
        if daemon is not None:
            os.close(daemon)


@contextlib.contextmanager
def _reserve(directory: Path) -> Iterator[None]:
    """Check that *directory* can be mounted on, and keep others from doing so meanwhile."""
    while directory in mounted():
        if not _is_dead(directory):
            raise MountError(f"{directory}: a machine is mounted there already")
        _detach(directory)
        print(f"tsmfs: {directory}: unmounted a machine whose daemon had died", file=sys.stderr)
    try:
        place = os.open(directory, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    except OSError as error:
        raise MountError(f"{directory}: {error.strerror}") from error
    try:
        try:
            fcntl.flock(place, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            raise MountError(f"{directory}: a machine is being mounted there") from None
        names = os.listdir(place)
        if names:
            raise MountError(f"{directory}: not empty, there is {min(names)}")
        yield
    finally:
        os.close(place)


def _check_fuse_device() -> None:
    try:
        os.close(os.open(FUSE_DEVICE, os.O_RDWR | os.O_CLOEXEC))
    except PermissionError as error:
        raise MountError(f"{FUSE_DEVICE} may not be opened by this user") from error
    except OSError as error:
        raise MountError(
            f"{FUSE_DEVICE}: {error.strerror}: load the kernel module fuse, "
            "or give the container the device"
        ) from error


def _start_daemon(request: MountRequest, directory: Path, binding: fs.Binding) -> None:
    """Serve in a child that outlives this process; returns after a read through the mount."""
    reader, writer = os.pipe2(os.O_CLOEXEC)
    sys.stdout.flush()
    sys.stderr.flush()
    daemon = os.fork()
    if daemon == 0:
        _run_daemon(request, directory, binding, writer)
    os.close(writer)
    try:
        with open(reader, "rb") as pipe:
            answer = pipe.read()
        if answer == _READY:
            os.listdir(directory)
            return
    except OSError as error:
        _end_daemon(daemon)
        raise MountError(f"{directory}: {error.strerror}") from error
    except BaseException:
        _end_daemon(daemon)
        raise
    _, status = os.waitpid(daemon, 0)
    if directory in mounted() and _is_dead(directory):
        _detach(directory)
    raise MountError(answer.decode(errors="replace") or f"the daemon died: {_ending(status)}")


def _end_daemon(daemon: int) -> None:
    os.kill(daemon, signal.SIGTERM)
    os.waitpid(daemon, 0)


def _ending(status: int) -> str:
    code = os.waitstatus_to_exitcode(status)
    return f"exit status {code}" if code >= 0 else signal.strsignal(-code) or f"signal {-code}"


def _run_daemon(request: MountRequest, directory: Path, binding: fs.Binding, pipe: int) -> NoReturn:
    """The life of the daemon; what goes wrong before it is ready is written to *pipe*."""
    status = 1
    try:
        os.setsid()
        null = os.open(os.devnull, os.O_RDWR)
        for descriptor in range(3):
            os.dup2(null, descriptor)
        os.closerange(3, pipe)
        os.closerange(pipe + 1, os.sysconf("SC_OPEN_MAX"))

        def ready() -> None:
            try:
                os.write(pipe, _READY)
            except BrokenPipeError:
                # Who wanted the machine is gone.
                os.kill(os.getpid(), signal.SIGTERM)
            os.close(pipe)

        _serve(request, directory, binding, ready)
        status = 0
    except MountError as error:
        with contextlib.suppress(OSError):
            os.write(pipe, str(error).encode(errors="replace"))
    except BaseException as error:
        with contextlib.suppress(OSError):
            os.write(pipe, f"the daemon failed: {error!r}".encode(errors="replace"))
    finally:
        os._exit(status)


def _serve(
    request: MountRequest, directory: Path, binding: fs.Binding, ready: Callable[[], None]
) -> None:
    """Build the machine, boot it, mount it, and serve until it is unmounted.

    Nothing is mounted before all else has gone well, so a failure leaves nothing behind.
    """
    # The signals that end the machine are waited for by a thread of their own: libfuse runs in
    # many threads, and Python's handlers do not run while the main thread is in C.
    before = signal.pthread_sigmask(signal.SIG_BLOCK, _STOP_SIGNALS)
    old_handler = signal.signal(_WAKE_SIGNAL, lambda *_: None)
    life = _Life(directory)
    try:
        machine = _build(request)
        filesystem = fs.Filesystem(machine.root, binding)
        _serve_netlink(machine, directory)
        os.chdir("/")
        # What is there now stays: the collector need not look at it again and again.
        gc.freeze()
        life.begin(filesystem)
        stderr = _Stderr()

        def mounted_now() -> None:
            stderr.restore()
            ready()

        try:
            filesystem.run(directory, mounted_now)
        except fs.MountError as error:
            raise MountError(f"{error}: {stderr.last_line()}") from error
        finally:
            stderr.restore()
        life.end()
        machine.stop()
    finally:
        life.over()
        signal.signal(_WAKE_SIGNAL, old_handler)
        signal.pthread_sigmask(signal.SIG_SETMASK, before)


class _Life:
    """Ends the machine when a signal asks for it, and gives up on one that does not end."""

    def __init__(self, directory: Path) -> None:
        self._directory = directory
        self._filesystem: fs.Filesystem | None = None
        self._over = threading.Event()
        self._main = threading.get_ident()
        self._thread = threading.Thread(target=self._wait, name="signals", daemon=True)
        self._thread.start()

    def begin(self, filesystem: fs.Filesystem) -> None:
        """From now on there is something to unmount."""
        self._filesystem = filesystem

    def end(self) -> None:
        """Nothing is mounted any more; what is left to do must not take for ever."""
        self._signal_own_thread()

    def over(self) -> None:
        """All is done."""
        self._over.set()
        self._signal_own_thread()
        self._thread.join()

    def _signal_own_thread(self) -> None:
        if self._thread.is_alive():
            signal.pthread_kill(self._thread.ident or 0, signal.SIGTERM)

    def _wait(self) -> None:
        signal.sigwait(_STOP_SIGNALS)
        deadline = time.monotonic() + _STOP_SECONDS
        if self._filesystem is None and not self._over.is_set():
            os._exit(1)
        kicks = _WAKE_TIMES
        while time.monotonic() < deadline:
            if self._filesystem is not None and self._filesystem.stop() and kicks:
                # The main thread sleeps in libfuse, and looks up only when a signal comes.
                kicks -= 1
                signal.pthread_kill(self._main, _WAKE_SIGNAL)
            if self._over.wait(_WAKE_INTERVAL):
                return
        with contextlib.suppress(MountError):
            if self._directory in mounted():
                _detach(self._directory)
        os._exit(1)


class _Stderr:
    """Standard error of the process, kept back: libfuse writes there why it cannot mount."""

    def __init__(self) -> None:
        sys.stderr.flush()
        self._lock = threading.Lock()
        self._original: int | None = os.dup(2)
        self._kept = os.memfd_create("stderr", os.MFD_CLOEXEC)
        os.dup2(self._kept, 2)

    def restore(self) -> None:
        """Let standard error be what it was; again: nothing."""
        with self._lock:
            if self._original is not None:
                os.dup2(self._original, 2)
                os.close(self._original)
                self._original = None

    def last_line(self) -> str:
        """The last line that was kept back."""
        text = os.pread(self._kept, 1 << 16, 0).decode(errors="replace")
        lines = text.strip().splitlines()
        return lines[-1] if lines else "libfuse does not say why"


def _build(request: MountRequest) -> Machine:
    """The booted machine; MountError when its description or a module is at fault."""
    from tsmfs.description import DescriptionError, find
    from tsmfs.machine import Machine

    try:
        description, text = find(request.machine)
    except DescriptionError as error:
        raise MountError(str(error)) from error
    try:
        machine = Machine(description, text, uid=os.geteuid(), gid=os.getegid())
    except OSError as error:
        raise MountError(f"{request.machine}: {error.strerror}") from error
    if request.uevents:
        from tsmfs.base.uevent_socket import UeventSocket

        try:
            machine.uevents.listeners.append(UeventSocket(machine.log.warn).send)
        except OSError as error:
            raise MountError(f"uevents cannot be sent: {error.strerror}") from error
    lines = [load.line for load in description.modules] if request.machine_modules else []
    for line in (*lines, *request.modules):
        try:
            machine.boot([line])
        except OSError as error:
            raise MountError(f"cannot load {line}: {error.strerror}") from error
    return machine


def _serve_netlink(machine: Machine, directory: Path) -> None:
    path = _runtime_directory() / f"{hashlib.sha256(os.fsencode(directory)).hexdigest()[:16]}.sock"
    try:
        path.parent.mkdir(mode=0o755, parents=True, exist_ok=True)
        machine.netlink.start(path, os.geteuid())
    except OSError as error:
        # All that is not evidence works without it.
        machine.log.warn(f"netlink cannot be served at {path}: {error.strerror}")


def _runtime_directory() -> Path:
    """Where the sockets are, each named after its mount point: the next mount there takes it."""
    if os.geteuid() == 0:
        return Path("/run/tsmfs")
    runtime = os.environ.get("XDG_RUNTIME_DIR")
    return Path(runtime) / "tsmfs" if runtime else Path(f"/tmp/tsmfs-{os.geteuid()}")


def _is_dead(directory: Path) -> bool:
    """Whether the daemon of the machine that is mounted on *directory* has gone."""
    try:
        os.stat(directory)
    except OSError as error:
        return error.errno in (errno.ENOTCONN, errno.ECONNABORTED)
    return False


def _open_daemon(directory: Path) -> int | None:
    """A descriptor that becomes readable when the daemon ends; None when it cannot be found."""
    try:
        return os.pidfd_open(int((directory / CONTROL_DIRECTORY / "pid").read_bytes()))
    except (OSError, ValueError):
        return None


def _unmount(directory: Path) -> None:
    """Unmount what nobody uses; MountError otherwise."""
    deadline = time.monotonic() + _BUSY_SECONDS
    while True:
        try:
            _umount(directory, lazily=False)
            return
        except MountError:
            if time.monotonic() > deadline:
                raise
            time.sleep(_WAKE_INTERVAL)


def _detach(directory: Path) -> None:
    """Unmount also what is in use."""
    _umount(directory, lazily=True)


def _umount(directory: Path, *, lazily: bool) -> None:
    """``umount()``, or fusermount for a user who may not."""
    libc = ctypes.CDLL(None, use_errno=True)
    if libc.umount2(os.fsencode(directory), _MNT_DETACH if lazily else 0) == 0:
        return
    number = ctypes.get_errno()
    program = shutil.which("fusermount3") or shutil.which("fusermount")
    if number != errno.EPERM or program is None:
        hint = f": see who uses it by 'fuser -vm {directory}'" if number == errno.EBUSY else ""
        raise MountError(f"{directory}: {os.strerror(number)}{hint}")
    options = ["-u", "-z"] if lazily else ["-u"]
    done = subprocess.run(
        [program, *options, "--", directory], capture_output=True, text=True, check=False
    )
    if done.returncode:
        raise MountError(done.stderr.strip().splitlines()[-1])
