# SPDX-License-Identifier: MIT
"""A machine that is served: built, booted, mounted on a directory, until its end."""

from __future__ import annotations

import contextlib
import gc
import os
import resource
import signal
import threading
import time
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, NoReturn

from tsmfs import fs
from tsmfs.instance import mounted
from tsmfs.umount import MountError, detach

if TYPE_CHECKING:
    from tsmfs.machine import Machine

FUSE_DEVICE = Path("/dev/fuse")

STOP_SECONDS = 10.0
"""A machine whose drivers do not let go is given up after that."""

READY = b"\0"
"""What :func:`write_ready` writes."""

STOP_SIGNALS = {signal.SIGTERM, signal.SIGINT, signal.SIGHUP}
"""These end the machine; who calls `serve` may have them blocked before."""
_WAKE_SIGNAL = signal.SIGUSR1
_WAKE_INTERVAL = 0.05
_WAKE_TIMES = 5


@dataclass(frozen=True, slots=True)
class MachineRequest:
    """Which machine to build, and how to boot it."""

    machine: str = "devsec"
    """Name of a built-in machine, or the path of a description."""
    modules: tuple[str, ...] = ()
    """Modules to load, each ``NAME key=value ...``."""
    machine_modules: bool = True
    """Whether the modules that the description names are loaded first."""


class Stages:
    """What else happens at each stage of the life of a machine; by default nothing.

    What is raised before :meth:`mounted` ends the machine, and :func:`serve` raises it on.
    """

    def built(self, machine: Machine) -> None:
        """Its hardware is there, and no module is loaded."""

    def booted(self, machine: Machine) -> None:
        """Its modules are loaded, and it is mounted next."""

    def mounted(self) -> None:
        """It can be read. Called in a thread of libfuse."""

    def given_up(self) -> None:
        """It did not end in time: the process does so as soon as this returns."""


def send_uevents(machine: Machine) -> None:
    """Have *machine* send its uevents in the network namespace of this process; MountError."""
    from tsmfs.base.uevent_socket import UeventSocket

    try:
        machine.uevents.listeners.append(UeventSocket(machine.log.warn).send)
    except OSError as error:
        raise MountError(f"uevents cannot be sent: {error.strerror}") from error


def find_binding() -> fs.Binding:
    """The FUSE binding to use; MountError that says what is missing."""
    try:
        binding = fs.choose_binding()
    except fs.BindingError as error:
        raise MountError(str(error)) from error
    try:
        os.close(os.open(FUSE_DEVICE, os.O_RDWR | os.O_CLOEXEC))
    except PermissionError as error:
        raise MountError(f"{FUSE_DEVICE} may not be opened by this user") from error
    except OSError as error:
        raise MountError(
            f"{FUSE_DEVICE}: {error.strerror}: load the kernel module fuse, "
            "or give the container the device"
        ) from error
    return binding


def start_daemon(work: Callable[[int], None], kept: Iterable[int] = ()) -> tuple[int, int]:
    """Fork a daemon, which ends after *work*; returns its PID, and a pipe to read from.

    It has a session of its own, and of the open files only *kept* and its end of the pipe, which
    *work* gets. What goes wrong in *work* is written there, in one line. MountError when there
    can be no such process.
    """
    try:
        reader, writer = os.pipe2(os.O_CLOEXEC)
        try:
            pid = os.fork()
            if pid == 0:
                _live(work, writer, kept)
        except BaseException:
            os.close(reader)
            raise
        finally:
            os.close(writer)
    except OSError as error:
        raise MountError(f"the daemon cannot be started: {error.strerror}") from error
    return pid, reader


def _live(work: Callable[[int], None], pipe: int, kept: Iterable[int]) -> NoReturn:
    status = 1
    try:
        os.setsid()
        null = os.open(os.devnull, os.O_RDWR)
        for descriptor in range(3):
            os.dup2(null, descriptor)
        close_all_but({pipe, *kept})
        _allow_many_files()
        work(pipe)
        status = 0
    except MountError as error:
        _tell(pipe, str(error))
    except BaseException as error:
        _tell(pipe, f"the daemon failed: {error!r}")
    finally:
        os._exit(status)


def close_all_but(descriptors: Iterable[int]) -> None:
    """Close every file but those of *descriptors*, and 0, 1 and 2."""
    first = 3
    for descriptor in sorted(descriptors):
        os.closerange(first, descriptor)
        first = descriptor + 1
    os.closerange(first, os.sysconf("SC_OPEN_MAX"))


def _allow_many_files() -> None:
    """Raise the soft limit of open files: each client of netlink is a descriptor or two."""
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    if soft != hard:
        resource.setrlimit(resource.RLIMIT_NOFILE, (hard, hard))


def _tell(pipe: int, text: str) -> None:
    with contextlib.suppress(OSError):
        os.write(pipe, text.encode(errors="replace"))


def write_ready(pipe: int) -> None:
    """Tell that the machine can be read, and close *pipe*; nobody to tell ends the machine."""
    try:
        os.write(pipe, READY)
    except BrokenPipeError:
        os.kill(os.getpid(), signal.SIGTERM)
    os.close(pipe)


def describe_end(status: int) -> str:
    """How a process ended, from its wait status."""
    code = os.waitstatus_to_exitcode(status)
    return f"exit status {code}" if code >= 0 else signal.strsignal(-code) or f"signal {-code}"


def serve(request: MachineRequest, directory: Path, binding: fs.Binding, stages: Stages) -> None:
    """Build the machine, boot it, mount it on *directory*, and serve until it is unmounted.

    A signal to end unmounts it. Nothing is mounted before all else has gone well, so a failure,
    MountError, leaves nothing behind.
    """
    # The signals that end the machine are waited for by a thread of their own: libfuse runs in
    # many threads, and Python's handlers do not run while the main thread is in C.
    with contextlib.ExitStack() as stack:
        before = signal.pthread_sigmask(signal.SIG_BLOCK, STOP_SIGNALS)
        stack.callback(signal.pthread_sigmask, signal.SIG_SETMASK, before)
        old_handler = signal.signal(_WAKE_SIGNAL, lambda *_: None)
        stack.callback(signal.signal, _WAKE_SIGNAL, old_handler)
        life = _Life(directory, stages.given_up)
        stack.callback(life.over)
        machine = _build(request)
        stack.callback(machine.stop)
        stack.callback(life.end)
        stages.built(machine)
        _boot(machine, request)
        filesystem = fs.Filesystem(machine.root, binding)
        stages.booted(machine)
        os.chdir("/")
        # What is there now stays: the collector need not look at it again and again.
        gc.freeze()
        life.begin(filesystem)
        with _Stderr() as stderr:

            def mounted_now() -> None:
                stderr.restore()
                stages.mounted()

            try:
                filesystem.run(directory, mounted_now)
            except fs.MountError as error:
                raise MountError(f"{error}: {stderr.last_line()}") from error


class _Life:
    """Ends the machine when a signal asks for it, and gives up on one that does not end."""

    def __init__(self, directory: Path, given_up: Callable[[], None]) -> None:
        self._directory = directory
        self._given_up = given_up
        self._filesystem: fs.Filesystem | None = None
        self._booting = True
        self._over = threading.Event()
        self._main = threading.get_ident()
        self._thread = threading.Thread(target=self._wait, name="signals", daemon=True)
        try:
            self._thread.start()
        except RuntimeError as error:
            raise MountError(f"the machine cannot be served: {error}") from error

    def begin(self, filesystem: fs.Filesystem) -> None:
        """From now on there is something to unmount."""
        self._filesystem = filesystem
        self._booting = False

    def end(self) -> None:
        """Nothing is mounted, or no more; what is left to do must not take for ever."""
        self._booting = False
        self._signal_own_thread()

    def over(self) -> None:
        """All is done."""
        self._booting = False
        self._over.set()
        self._signal_own_thread()
        self._thread.join()

    def _signal_own_thread(self) -> None:
        if self._thread.is_alive():
            signal.pthread_kill(self._thread.ident or 0, signal.SIGTERM)

    def _wait(self) -> None:
        signal.sigwait(STOP_SIGNALS)
        deadline = time.monotonic() + STOP_SECONDS
        if self._booting:
            self._give_up()
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
                detach(self._directory)
        self._give_up()

    def _give_up(self) -> None:
        try:
            self._given_up()
        finally:
            os._exit(1)


class _Stderr:
    """Standard error of the process, kept back: libfuse writes there why it cannot mount."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._kept = os.memfd_create("stderr", os.MFD_CLOEXEC)
        try:
            self._original: int | None = os.dup(2)
        except BaseException:
            os.close(self._kept)
            raise

    def __enter__(self) -> _Stderr:
        os.dup2(self._kept, 2)
        return self

    def __exit__(self, *_: object) -> None:
        self.restore()
        os.close(self._kept)

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


def _build(request: MachineRequest) -> Machine:
    """The machine, not booted yet; MountError when its description is at fault."""
    from tsmfs.description import DescriptionError, find
    from tsmfs.machine import Machine

    try:
        description, text = find(request.machine)
    except DescriptionError as error:
        raise MountError(str(error)) from error
    try:
        return Machine(description, text, uid=os.geteuid(), gid=os.getegid())
    except OSError as error:
        raise MountError(f"{request.machine}: {error.strerror}") from error


def _boot(machine: Machine, request: MachineRequest) -> None:
    """Load the modules; MountError that names the one at fault."""
    loads = machine.description.modules if request.machine_modules else ()
    lines = [load.line for load in loads]
    for line in (*lines, *request.modules):
        try:
            machine.boot([line])
        except OSError as error:
            raise MountError(f"cannot load {line}: {error.strerror}") from error
