# SPDX-License-Identifier: MIT
"""The process beside udevd: keeps its log, shows what is wrong with rules, follows new files."""

from __future__ import annotations

import contextlib
import ctypes
import os
import re
import select
import struct
import time
from collections.abc import Iterable, Iterator
from enum import IntEnum, IntFlag
from pathlib import Path

from tsmfs.session.udev_rules import RULES, RulesView

LOG = Path("/run/tsmfs/udevd.log")
"""Everything that udevd says; at most :data:`LOG_SIZE`, and as much again in ``udevd.log.old``."""
LOG_SIZE = 8 << 20

MARK = b"\0"
"""Written into the pipe, asks to be told when all before it is shown. No line has this byte."""

_READ_SIZE = 1 << 16
_MOST_UNSHOWN = 1 << 16
"""Bytes kept for a reader of standard error that does not read; what comes then is in the log."""
_END_SECONDS = 0.3
"""With a session all its processes end, udevd perhaps a moment before this one."""

_libc = ctypes.CDLL(None, use_errno=True)


class Level(IntEnum):
    """Levels of syslog(3), as systemd's ``console-prefixed`` log target writes them."""

    EMERG = 0
    ALERT = 1
    CRIT = 2
    ERR = 3
    WARNING = 4
    NOTICE = 5
    INFO = 6
    DEBUG = 7


_LINE = re.compile(r"<(\d{1,3})>(.*)", re.DOTALL)
_LEVEL_MASK = 7
_PROGRAM_ERROR = re.compile(r"'.*'\(err\) '")
"""How udevd logs, for debugging, a line that a program of a rule wrote to standard error."""
_NO_FAULT = re.compile("Failed to set receive buffer size")
"""An ordinary user's session has this, and no rule can help it."""
_RULES_FILE = re.compile(rf"{RULES}/([^/:\s]+)")


class Watch(IntFlag):
    """What inotify is asked for (include/uapi/linux/inotify.h)."""

    ATTRIB = 0x4
    CLOSE_WRITE = 0x8
    MOVED_FROM = 0x40
    MOVED_TO = 0x80
    CREATE = 0x100
    DELETE = 0x200


_WATCHED = (
    Watch.ATTRIB
    | Watch.CLOSE_WRITE
    | Watch.MOVED_FROM
    | Watch.MOVED_TO
    | Watch.CREATE
    | Watch.DELETE
)
_EVENT = struct.Struct("iIII")


def parse(line: str) -> tuple[Level, str]:
    """The level and the text of a line of the log; one without a prefix is an error's."""
    match = _LINE.fullmatch(line)
    if match is None:
        return Level.ERR, line
    return Level(int(match[1]) & _LEVEL_MASK), match[2]


def concerns_user(level: Level, text: str) -> bool:
    """Whether the author of a rule wants to read this now."""
    if level > Level.WARNING:
        return _PROGRAM_ERROR.search(text) is not None
    return _NO_FAULT.match(text) is None


class Keeper:
    """Reads udevd's log from a pipe until everybody who writes to it has ended."""

    def __init__(self, pipe: int, answer: int, stderr: int, view: RulesView) -> None:
        """Everything that it needs is open from now on; *stderr* is the session's.

        *answer* is the pipe into which a byte is written for a :data:`MARK`.
        """
        self._pipe = pipe
        self._answer = answer
        self._stderr = stderr
        self._view = view
        self._inotify = _watch(source.path for source in view.sources)
        try:
            self._log = _open_log()
        except BaseException:
            os.close(self._inotify)
            raise
        self._unshown = b""
        self._is_asked = False
        self.end_is_known = False
        """Whether somebody else tells that udevd has ended."""

    def descriptors(self) -> list[int]:
        """The open files that it works with."""
        return [self._pipe, self._answer, self._stderr, self._inotify, self._log]

    def close(self) -> None:
        """Let go of what it opened itself, in a process where it does not run."""
        os.close(self._inotify)
        os.close(self._log)

    def run(self) -> None:
        """Work until the end of the pipe."""
        pending = b""
        while True:
            readable = self._wait()
            if self._inotify in readable:
                self._follow()
            if self._pipe in readable:
                chunk = os.read(self._pipe, _READ_SIZE)
                self._is_asked |= MARK in chunk
                *lines, pending = (pending + chunk.replace(MARK, b"")).split(b"\n")
                for line in lines:
                    self._take(line.decode(errors="replace"))
                if not chunk:
                    break
            if self._is_asked and not self._unshown:
                self._is_asked = False
                # Who asked may have lost patience.
                with contextlib.suppress(BrokenPipeError):
                    os.write(self._answer, MARK)
        time.sleep(_END_SECONDS)
        if not self.end_is_known:
            self._take("has ended: no more events are handled in this session")

    def _wait(self) -> list[int]:
        """Wait for something to read, or show something that could not be shown before."""
        writers = [self._stderr] if self._unshown else []
        readable, writable, _ = select.select([self._pipe, self._inotify], writers, [])
        if writable:
            self._show()
        return readable

    def _take(self, line: str) -> None:
        level, text = parse(line)
        text = _RULES_FILE.sub(lambda match: self._view.origin(match[1]), text)
        now = time.time()
        moment = time.strftime("%H:%M:%S", time.localtime(now)) + f".{int(now % 1 * 1000):03}"
        if concerns_user(level, text) and len(self._unshown) < _MOST_UNSHOWN:
            self._unshown += f"udevd: {text}\n".encode()
            if select.select([], [self._stderr], [], 0)[1]:
                self._show()
        # Whoever waits until it is in the log has seen it.
        self._write_log(f"{moment} {level.name.lower()}: {text}\n".encode())

    def _show(self) -> None:
        # A pipe that select() calls writable takes this much without making the writer wait.
        part = self._unshown[: select.PIPE_BUF]
        try:
            done = os.write(self._stderr, part)
        except OSError:
            # Nobody is there to read it.
            done = len(self._unshown)
        self._unshown = self._unshown[done:]

    def _write_log(self, line: bytes) -> None:
        try:
            os.write(self._log, line)
            if os.fstat(self._log).st_size > LOG_SIZE:
                os.close(self._log)
                LOG.rename(LOG.with_name(f"{LOG.name}.old"))
                self._log = _open_log()
        except OSError:
            # The log is not worth udevd's life.
            pass

    def _follow(self) -> None:
        names = set(_names(os.read(self._inotify, _READ_SIZE)))
        self._view.update()
        if self._view.linked and any(name.endswith(b".rules") for name in names):
            # The links are the same when a file was edited: have udevd look.
            os.utime(RULES)


def _open_log() -> int:
    return os.open(LOG, os.O_WRONLY | os.O_CREAT | os.O_APPEND | os.O_CLOEXEC, 0o644)


def _watch(directories: Iterable[Path]) -> int:
    """An inotify descriptor for changes in the directories; OSError when it cannot be had."""
    descriptor = int(_libc.inotify_init1(os.O_CLOEXEC | os.O_NONBLOCK))
    for directory in directories:
        if descriptor >= 0:
            _libc.inotify_add_watch(descriptor, os.fsencode(directory), ctypes.c_uint32(_WATCHED))
    if descriptor < 0:
        number = ctypes.get_errno()
        raise OSError(number, os.strerror(number))
    return descriptor


def _names(data: bytes) -> Iterator[bytes]:
    """The names of files in inotify events."""
    offset = 0
    while offset < len(data):
        *_, length = _EVENT.unpack_from(data, offset)
        offset += _EVENT.size
        yield data[offset : offset + length].rstrip(b"\0")
        offset += length
