# SPDX-License-Identifier: MIT
"""The sessions of a user: a directory each, with a lock that is held while the session lives."""

from __future__ import annotations

import contextlib
import dataclasses
import fcntl
import json
import os
import re
import shutil
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from tsmfs.runtime import make_runtime_directory, runtime_directory
from tsmfs.session import SessionError

_SESSIONS = "sessions"
_NAME = re.compile(r"[A-Za-z0-9_][A-Za-z0-9._-]{0,39}")
"""Forty characters leave room in the 108 bytes of the path of a socket."""


@dataclass(frozen=True, slots=True)
class Record:
    """What is told of a running session. The pids are those outside of it."""

    name: str
    machine: str
    command: tuple[str, ...]
    front: int
    """The process that was called."""
    daemon: int
    """The process that serves the machine."""
    init: int
    """The process that is number 1 inside."""
    started: float
    """Seconds since the epoch."""

    def to_dict(self) -> dict[str, object]:
        """As JSON has it."""
        return dataclasses.asdict(self)


@dataclass(frozen=True, slots=True)
class SessionDirectory:
    """The directory of one session; only its user may look into it."""

    path: Path

    @property
    def name(self) -> str:
        """The name of the session."""
        return self.path.name

    @property
    def machine(self) -> Path:
        """Where the daemon mounts the machine, for itself."""
        return self.path / "machine"

    @property
    def root(self) -> Path:
        """A place to mount on while what the session sees is made."""
        return self.path / "root"

    @property
    def netlink_socket(self) -> Path:
        """The Unix socket of the machine's netlink server, at the same path inside."""
        return self.path / "netlink.sock"

    @property
    def control_socket(self) -> Path:
        """Where the daemon takes the descriptors of those who enter."""
        return self.path / "control.sock"

    def publish(self, record: Record) -> None:
        """Let the session be listed and entered."""
        fresh = self.path / "session.json.new"
        fresh.write_text(json.dumps(record.to_dict()))
        fresh.rename(self.path / "session.json")

    def record(self) -> Record | None:
        """What was published; None when nothing was, yet."""
        try:
            fields: dict[str, Any] = json.loads((self.path / "session.json").read_bytes())
            return Record(**{**fields, "command": tuple(fields["command"])})
        except (OSError, ValueError, TypeError, KeyError):
            return None

    def is_alive(self) -> bool:
        """Whether somebody holds its lock."""
        try:
            lock = os.open(self.path / "lock", os.O_RDWR | os.O_CLOEXEC)
        except OSError:
            return False
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            return True
        finally:
            os.close(lock)
        return False

    def remove(self) -> None:
        """Remove it, and the directories above that are empty then. No error if it is gone."""
        with contextlib.suppress(FileNotFoundError), _locked(self.path.parent):
            shutil.rmtree(self.path, ignore_errors=True)
            with contextlib.suppress(OSError):
                self.path.parent.rmdir()
                self.path.parent.parent.rmdir()


def create(name: str) -> tuple[SessionDirectory, int]:
    """The directory of a new session, and its lock: a descriptor to be kept open as it lives.

    What is left of sessions that were killed is removed on the way. SessionError when the name
    will not do or is taken; OSError when nothing can be made there.
    """
    if not _NAME.fullmatch(name):
        raise SessionError(f"{name}: a name is up to 40 letters, digits and any of ._-")
    while True:
        # Another session may end, and remove what is empty, between any two of these steps.
        with contextlib.suppress(FileNotFoundError):
            base = make_runtime_directory() / _SESSIONS
            with contextlib.suppress(FileExistsError):
                base.mkdir(mode=0o700)
            with _locked(base):
                _remove_stale(base)
                directory = SessionDirectory(base / name)
                if directory.path.exists():
                    raise SessionError(f"{name}: a session of this name is running")
                directory.path.mkdir(mode=0o700)
                directory.machine.mkdir()
                directory.root.mkdir()
                lock = os.open(directory.path / "lock", os.O_RDWR | os.O_CREAT | os.O_CLOEXEC)
                fcntl.flock(lock, fcntl.LOCK_EX)
                return directory, lock


def running() -> list[Record]:
    """The sessions of this user that have started, oldest first."""
    base = runtime_directory() / _SESSIONS
    records = []
    with contextlib.suppress(FileNotFoundError):
        with _locked(base):
            _remove_stale(base)
            records = [SessionDirectory(path).record() for path in base.iterdir()]
        if not records:
            SessionDirectory(base / "none").remove()
    return sorted((record for record in records if record), key=lambda record: record.started)


def find(name: str) -> tuple[SessionDirectory, Record]:
    """The running session of that name; SessionError when there is none."""
    records = {record.name: record for record in running()}
    if name not in records:
        others = f": there are {', '.join(records)}" if records else ""
        raise SessionError(f"{name}: no session of this name is running{others}")
    return SessionDirectory(runtime_directory() / _SESSIONS / name), records[name]


def default_name(machine: str, pid: int) -> str:
    """``MACHINE-PID``, where the machine may be the path of a description."""
    stem = re.sub(r"[^A-Za-z0-9_]+", "-", Path(machine).stem).strip("-")
    return f"{stem[:32] or 'machine'}-{pid}"


@contextlib.contextmanager
def _locked(base: Path) -> Iterator[None]:
    """Keep others from adding and removing sessions. FileNotFoundError when *base* is not there."""
    while True:
        descriptor = os.open(base, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX)
            if os.path.samestat(os.fstat(descriptor), os.stat(base)):
                yield
                return
        finally:
            os.close(descriptor)


def _remove_stale(base: Path) -> None:
    for path in base.iterdir():
        if not SessionDirectory(path).is_alive():
            shutil.rmtree(path, ignore_errors=True)
