# SPDX-License-Identifier: MIT
"""Where the sockets of machines and the directories of sessions are."""

from __future__ import annotations

import contextlib
import errno
import os
import stat
from pathlib import Path

from tsmfs.kernel.errors import fail


def runtime_directory() -> Path:
    """The directory of this user: below /run for root, else where only the user may write."""
    if os.geteuid() == 0:
        return Path("/run/tsmfs")
    runtime = os.environ.get("XDG_RUNTIME_DIR")
    return Path(runtime) / "tsmfs" if runtime else Path(f"/tmp/tsmfs-{os.geteuid()}")


def make_runtime_directory() -> Path:
    """:func:`runtime_directory`, made when it is not there.

    OSError when it cannot be made, or is removed just then; EPERM when it is somebody else's,
    since /tmp is everybody's.
    """
    directory = runtime_directory()
    directory.parent.mkdir(parents=True, exist_ok=True)
    # With exist_ok=True it would fail when another process removes the directory just then.
    with contextlib.suppress(FileExistsError):
        directory.mkdir(mode=0o755)
    found = directory.lstat()
    if not stat.S_ISDIR(found.st_mode) or found.st_uid != os.geteuid():
        fail(errno.EPERM, f"{directory} belongs to another user")
    return directory
