# SPDX-License-Identifier: MIT
"""A mounted machine as seen from another process: where it is, and its control files."""

from __future__ import annotations

import errno
import os
import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path

#: The variable that names the sysfs root of the machine to work on.
ENVIRONMENT_VARIABLE = "TSMFS_SYSFS"

#: The filesystem type of a mounted machine: FUSE with the subtype ``tsmfs``.
FILESYSTEM_TYPE = "fuse.tsmfs"

#: The directory of the control files, below the sysfs root.
CONTROL_DIRECTORY = "kernel/tsmfs"

_READ_SIZE = 1 << 16
_OCTAL_ESCAPE = re.compile(rb"\\([0-7]{3})")


class InstanceError(Exception):
    """No machine, or not exactly one, fits what was asked for; the text is one line."""


@dataclass(frozen=True, slots=True)
class Instance:
    """One mounted machine.

    ``sysfs`` is the directory that stands for ``/sys``. Every method that touches a control file
    raises ``OSError`` with the errno which the machine answered.
    """

    sysfs: Path

    def control(self, name: str) -> Path:
        """Where the control file ``name`` is, for instance ``modprobe``."""
        return self.sysfs / CONTROL_DIRECTORY / name

    def read(self, name: str) -> bytes:
        """What the control file ``name`` holds, to its end."""
        with self.open_stream(name) as stream:
            return b"".join(stream.rest())

    def write(self, name: str, line: str) -> None:
        """Write one line to the control file ``name`` in a single ``write()``."""
        descriptor = os.open(self.control(name), os.O_WRONLY)
        try:
            os.write(descriptor, line.encode() + b"\n")
        finally:
            os.close(descriptor)

    def open_stream(self, name: str) -> ControlStream:
        """Open a control file to which records are only ever appended: ``log``, ``uevents``."""
        return ControlStream(os.open(self.control(name), os.O_RDONLY | os.O_CLOEXEC))

    def module_names(self) -> list[str]:
        """The names of the modules that this machine can load, sorted."""
        lines = self.read("modinfo").decode(errors="replace").splitlines()
        return sorted(line.partition("\t")[0] for line in lines if line)


class ControlStream:
    """A control file that grows, read piece by piece from its beginning."""

    def __init__(self, descriptor: int) -> None:
        """Take over the open file ``descriptor``."""
        self._descriptor = descriptor
        self._offset = 0

    def __enter__(self) -> ControlStream:
        return self

    def __exit__(self, *exception: object) -> None:
        os.close(self._descriptor)

    def read(self) -> bytes:
        """What was appended since the last call; empty when there is nothing new yet."""
        chunk = os.pread(self._descriptor, _READ_SIZE, self._offset)
        self._offset += len(chunk)
        return chunk

    def rest(self) -> Iterator[bytes]:
        """All that is there and was not read yet, in pieces."""
        return iter(self.read, b"")


def mounts(mountinfo: Path = Path("/proc/self/mountinfo")) -> Iterator[tuple[Path, str]]:
    """Mount point and type of everything in this mount namespace, in the order of mounting.

    The format is that of ``/proc/PID/mountinfo`` (proc(5)): the optional fields end with a single
    hyphen, after which comes the type; white space in a path is written as octal escapes.
    """
    # Bytes, since a path may hold whatever text would take for the end of a line.
    for line in mountinfo.read_bytes().split(b"\n"):
        fields, hyphen, tail = line.partition(b" - ")
        if hyphen:
            escaped = fields.split(b" ")[4]
            place = _OCTAL_ESCAPE.sub(lambda match: bytes([int(match[1], 8)]), escaped)
            yield Path(os.fsdecode(place)), os.fsdecode(tail.split(b" ", 1)[0])


def mounted(mountinfo: Path = Path("/proc/self/mountinfo")) -> list[Path]:
    """The mount points of all machines in this mount namespace, in the order of mounting."""
    found = dict.fromkeys(place for place, kind in mounts(mountinfo) if kind == FILESYSTEM_TYPE)
    return list(found)


def find_instance(
    sysfs: Path | None,
    environment: Mapping[str, str] = os.environ,
    mountinfo: Path = Path("/proc/self/mountinfo"),
) -> Instance:
    """The machine to work on: the one named, or the only one that is mounted.

    ``sysfs`` goes before :data:`ENVIRONMENT_VARIABLE`, which goes before the mount table.
    Raises ``InstanceError`` when the named directory is not the sysfs of a machine, when none is
    mounted, and when several are.
    """
    if sysfs is None and (named := environment.get(ENVIRONMENT_VARIABLE)):
        sysfs = Path(named)
    if sysfs is not None:
        if (problem := _problem(sysfs)) is not None:
            raise InstanceError(f"{sysfs}: {problem}")
        return Instance(sysfs)
    everywhere = mounted(mountinfo)
    alive = [place for place in everywhere if _problem(place) is None]
    if len(alive) == 1:
        return Instance(alive[0])
    if alive:
        places = ", ".join(str(place) for place in alive)
        raise InstanceError(
            f"several machines are mounted ({places}): choose one by --sysfs DIR or "
            f"{ENVIRONMENT_VARIABLE}"
        )
    if everywhere:
        raise InstanceError(f"{everywhere[0]}: {_problem(everywhere[0])}")
    raise InstanceError("no machine is mounted: mount one by 'tsmfs mount DIR'")


def _problem(sysfs: Path) -> str | None:
    """Why ``sysfs`` is not the root of a living machine; None when it is one."""
    try:
        os.stat(sysfs / CONTROL_DIRECTORY)
    except OSError as error:
        if error.errno in (errno.ENOENT, errno.ENOTDIR):
            return f"not the sysfs of a machine: it has no {CONTROL_DIRECTORY}"
        if error.errno == errno.ENOTCONN:
            return f"its daemon is gone: clean up by 'tsmfs umount {sysfs}'"
        return error.strerror
    return None
