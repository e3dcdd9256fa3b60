# SPDX-License-Identifier: MIT
"""``tsmfs mount`` and ``tsmfs umount``: a machine on a directory, and the daemon that serves it."""

from __future__ import annotations

import contextlib
import errno
import fcntl
import hashlib
import os
import select
import signal
import sys
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from tsmfs import fs
from tsmfs.daemon import (
    READY,
    STOP_SECONDS,
    MachineRequest,
    Stages,
    describe_end,
    find_binding,
    send_uevents,
    serve,
    start_daemon,
    write_ready,
)
from tsmfs.instance import CONTROL_DIRECTORY, mounted
from tsmfs.runtime import make_runtime_directory, runtime_directory
from tsmfs.umount import MountError, detach, umount

if TYPE_CHECKING:
    from tsmfs.machine import Machine

__all__ = ["MountError", "MountRequest", "mount_machine", "unmount_machine"]

_BUSY_SECONDS = 1.0
"""Who has just ended may keep a mount busy for a moment."""

_BUSY_INTERVAL = 0.05


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
        binding = find_binding()
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
        _clean_up(place)
        return
    daemon = _open_daemon(place)
    try:
        _unmount(place)
        if daemon is not None and not select.select([daemon], [], [], 2 * STOP_SECONDS)[0]:
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
        _clean_up(directory)
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
        if directory in mounted():
            raise MountError(f"{directory}: a machine is mounted there already")
        names = os.listdir(place)
        if names:
            raise MountError(f"{directory}: not empty, there is {min(names)}")
        yield
    finally:
        os.close(place)


def _start_daemon(request: MountRequest, directory: Path, binding: fs.Binding) -> None:
    """Serve in a child that outlives this process; returns after a read through the mount."""

    def work(pipe: int) -> None:
        _serve(request, directory, binding, lambda: write_ready(pipe))

    sys.stdout.flush()
    sys.stderr.flush()
    daemon, reader = start_daemon(work)
    try:
        with open(reader, "rb") as pipe:
            answer = pipe.read()
        if answer == READY:
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
        _clean_up(directory)
    raise MountError(answer.decode(errors="replace") or f"the daemon died: {describe_end(status)}")


def _end_daemon(daemon: int) -> None:
    os.kill(daemon, signal.SIGTERM)
    os.waitpid(daemon, 0)


def _serve(
    request: MountRequest, directory: Path, binding: fs.Binding, ready: Callable[[], None]
) -> None:
    wanted = MachineRequest(request.machine, request.modules, request.machine_modules)
    kind = _StagesWithUevents if request.uevents else _Stages
    serve(wanted, directory, binding, kind(directory, ready))


class _Stages(Stages):
    """A mounted machine serves netlink, at a path that belongs to its mount point."""

    def __init__(self, directory: Path, ready: Callable[[], None]) -> None:
        self._directory = directory
        self._ready = ready

    def booted(self, machine: Machine) -> None:
        name = _socket_name(self._directory)

        def start() -> None:
            machine.netlink.start(make_runtime_directory() / name, os.geteuid())

        try:
            try:
                start()
            except FileNotFoundError:
                # A session that ended has removed the directory, which was empty.
                start()
        except OSError as error:
            # All that is not evidence works without it.
            machine.log.warn(f"netlink cannot be served at {name}: {error.strerror}")

    def mounted(self) -> None:
        self._ready()


class _StagesWithUevents(_Stages):
    """The same with uevents in the network namespace of the daemon."""

    def built(self, machine: Machine) -> None:
        send_uevents(machine)


def _socket_name(directory: Path) -> str:
    return f"{hashlib.sha256(os.fsencode(directory)).hexdigest()[:16]}.sock"


def _clean_up(directory: Path) -> None:
    """Take away what a daemon that died has left: its socket and its mount; MountError."""
    with contextlib.suppress(OSError):
        (runtime_directory() / _socket_name(directory)).unlink()
    detach(directory)


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
            umount(directory)
            return
        except MountError:
            if time.monotonic() > deadline:
                raise
            time.sleep(_BUSY_INTERVAL)
