# SPDX-License-Identifier: MIT
"""What the programs of a session see: /sys, /proc, /run and the tools for modules.

All of it is mounts in the mount namespace of the session, so nothing has to be undone.
"""

from __future__ import annotations

import contextlib
import errno
import os
from collections.abc import Iterator, Sequence
from pathlib import Path

from tsmfs.instance import mounts
from tsmfs.session import namespaces
from tsmfs.session.environment import STAND_INS
from tsmfs.session.namespaces import Mount, Namespace
from tsmfs.session.registry import SessionDirectory

_ROOT = Path("/")
_RUN = Path("/run")

PROC_FILES = ("iomem", "ioports", "modules")
"""Files in /proc that tell of hardware and modules: control files of the machine do so instead."""

TOOLS = ("modprobe", "rmmod", "insmod", "lsmod", "modinfo")
"""The programs that have a stand-in (kmod)."""

_TOOL_DIRECTORIES = ("/sbin", "/usr/sbin", "/bin", "/usr/bin")
_REPLACED = ("proc", "sys", "run")
_PROC_FLAGS = Mount.NOSUID | Mount.NODEV | Mount.NOEXEC
_RUN_FLAGS = Mount.NOSUID | Mount.NODEV


def arrange(directory: SessionDirectory, kept: Sequence[Path]) -> list[str]:
    """Make the mounts of the session in a new mount namespace, and be in it.

    The process is in the daemon's mount namespace, and first in its PID namespace. Of what is
    below /run only *kept* stays. Returns in a line each what could not be had. OSError when there
    can be no session.
    """
    before = os.umask(0o022)
    try:
        return list(_arrange(directory, kept))
    finally:
        os.umask(before)


def _arrange(directory: SessionDirectory, kept: Sequence[Path]) -> Iterator[str]:
    namespaces.unshare(Namespace.MOUNT)
    namespaces.make_mounts_private()
    covers = _covers(directory)
    held = list(_hold([directory.netlink_socket, *kept], covers))
    tools = list(_installed_tools())
    try:
        _detach_sysfs()
    except OSError:
        # An ordinary user may not take away what the host has mounted.
        yield from _build_root(directory.root, directory.machine)
        top = directory.root
    else:
        namespaces.mount(directory.machine, "/sys", flags=Mount.MOVE)
        yield from _replace_proc(directory.root)
        top = _ROOT
    for name in PROC_FILES:
        # A kernel without modules has no list of them, and a file cannot be made in /proc.
        if (top / "proc" / name).exists():
            namespaces.bind(top / "sys/kernel/tsmfs" / name, top / "proc" / name)
    for tool in tools:
        namespaces.bind(STAND_INS / "kmod", below(top, tool))
    for cover in covers:
        namespaces.mount("tmpfs", below(top, cover), "tmpfs", _RUN_FLAGS, "mode=755")
    if _RUN in covers:
        lock = below(top, _RUN / "lock")
        lock.mkdir()
        lock.chmod(0o1777)
    _show(held, top)
    if top != _ROOT:
        namespaces.become_root_directory(top)
        namespaces.mount("none", "/", flags=Mount.PRIVATE)
        namespaces.mount("none", "/", flags=Mount.REMOUNT | Mount.BIND | Mount.RDONLY)


def _covers(directory: SessionDirectory) -> list[Path]:
    """The directories that another one covers: /run, and wherever sessions are kept."""
    sessions = directory.path.parent
    wanted = [_RUN] if sessions.is_relative_to(_RUN) else [_RUN, sessions]
    return [path for path in wanted if path.is_dir()]


def _hold(paths: Sequence[Path], covers: Sequence[Path]) -> Iterator[tuple[Path, int]]:
    """Each of *paths* that is below one of *covers*, with a descriptor of what is there.

    OSError when one is not there.
    """
    last = None
    for path in sorted({Path(os.path.realpath(path)) for path in paths}):
        covered = any(path != cover and path.is_relative_to(cover) for cover in covers)
        if covered and not (last and path.is_relative_to(last)):
            last = path
            yield path, os.open(path, os.O_PATH | os.O_CLOEXEC)


def _show(held: Sequence[tuple[Path, int]], top: Path) -> None:
    """Bind what is held at its place below *top*, and let go of it."""
    for path, descriptor in held:
        source = Path(f"/proc/self/fd/{descriptor}")
        target = below(top, path)
        target.parent.mkdir(mode=0o755, parents=True, exist_ok=True)
        if source.is_dir():
            target.mkdir(exist_ok=True)
        else:
            target.touch()
        namespaces.bind(source, target)
        os.close(descriptor)


def _mount_proc(place: Path) -> Iterator[str]:
    """A /proc of the session's processes on *place*; when it is refused, that of the host."""
    try:
        namespaces.mount("proc", place, "proc", _PROC_FLAGS)
    except OSError as error:
        yield f"/proc shows the processes of the host, too: {error.strerror} to mount another"
        namespaces.bind("/proc", place)


def _replace_proc(place: Path) -> Iterator[str]:
    """The same on /proc, made on *place* first."""
    yield from _mount_proc(place)
    # The one of the host may be there for good; then the other lies over it.
    with contextlib.suppress(OSError):
        namespaces.detach("/proc")
    namespaces.mount(place, "/proc", flags=Mount.MOVE)


def below(top: Path, path: Path) -> Path:
    """Where the absolute *path* is when *top* is to be the root directory."""
    return top / path.relative_to("/")


def _detach_sysfs() -> None:
    """Take every sysfs away, and whatever else is on /sys; OSError when that is not allowed."""
    # What is mounted in another comes after it.
    for place, kind in reversed(list(mounts())):
        if kind == "sysfs" or place == Path("/sys"):
            namespaces.detach(place)


def _build_root(top: Path, machine: Path) -> Iterator[str]:
    """Make a root directory of all that is in the host's, but what is replaced.

    *machine* is moved on its ``sys``.
    """
    namespaces.mount("tmpfs", top, "tmpfs", Mount.NOSUID | Mount.NODEV, "mode=755")
    # The place of it may be inside one of the directories that are bound.
    namespaces.mount("none", top, flags=Mount.UNBINDABLE)
    for name in _REPLACED:
        if (_ROOT / name).is_dir():
            (top / name).mkdir()
    namespaces.mount(machine, top / "sys", flags=Mount.MOVE)
    yield from _mount_proc(top / "proc")
    for entry in os.scandir(_ROOT):
        target = top / entry.name
        if entry.name in _REPLACED:
            continue
        if entry.is_symlink():
            target.symlink_to(os.readlink(entry.path))
            continue
        if entry.is_dir():
            target.mkdir()
        else:
            target.touch()
        namespaces.bind(entry.path, target)


def _installed_tools() -> Iterator[Path]:
    """The files behind the absolute paths of the tools.

    A file that is other programs too, as busybox is, is none of them; PATH has to do then.
    """
    found = set()
    for directory in _TOOL_DIRECTORIES:
        for tool in TOOLS:
            path = Path(os.path.realpath(f"{directory}/{tool}"))
            if path.is_file() and path.name in (*TOOLS, "kmod") and path not in found:
                found.add(path)
                yield path


def go_to(directory: str) -> Iterator[str]:
    """Change to *directory*, or to / when it is not there: one line says so."""
    try:
        os.chdir(directory)
    except OSError as error:
        os.chdir("/")
        what = "not there" if error.errno == errno.ENOENT else error.strerror
        yield f"the working directory is /: {directory} is {what}"
