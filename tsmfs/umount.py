# SPDX-License-Identifier: MIT
"""Unmounting, by the system call or by fusermount for a user who may not."""

from __future__ import annotations

import ctypes
import errno
import os
import shutil
import subprocess
from pathlib import Path

_MNT_DETACH = 2


class MountError(Exception):
    """A machine cannot be mounted or unmounted; the text is one line that says why."""


def umount(directory: Path) -> None:
    """Unmount what nobody uses; MountError otherwise."""
    _umount(directory, 0, ["-u"])


def detach(directory: Path) -> None:
    """Unmount also what is in use; MountError when it cannot be."""
    _umount(directory, _MNT_DETACH, ["-u", "-z"])


def _umount(directory: Path, flags: int, options: list[str]) -> None:
    libc = ctypes.CDLL(None, use_errno=True)
    if libc.umount2(os.fsencode(directory), flags) == 0:
        return
    number = ctypes.get_errno()
    program = shutil.which("fusermount3") or shutil.which("fusermount")
    if number != errno.EPERM or program is None:
        hint = f": see who uses it by 'fuser -vm {directory}'" if number == errno.EBUSY else ""
        raise MountError(f"{directory}: {os.strerror(number)}{hint}")
    done = subprocess.run(
        [program, *options, "--", directory], capture_output=True, text=True, check=False
    )
    if done.returncode:
        raise MountError(done.stderr.strip().splitlines()[-1])
