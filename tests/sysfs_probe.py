# SPDX-License-Identifier: MIT
"""Asks a sysfs for errnos as some user: sysfs_probe.py ROOT UID DIRECTORY RO RW WO LINK SUBDIR.

Prints a JSON object of what each system call answered. Nothing is ever written, and what would
succeed leaves everything as it was, so that a real sysfs can be asked.
"""

from __future__ import annotations

import ctypes
import errno
import fcntl
import json
import os
import stat
import sys
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import partial

RENAME_NOREPLACE = 1
RENAME_EXCHANGE = 2
TCGETS = 0x5401

_libc = ctypes.CDLL(None, use_errno=True)

Call = Callable[[], object]


@dataclass(frozen=True)
class Sysfs:
    """The files to ask about, relative to the working directory."""

    directory: str
    ro: str
    """0444."""
    rw: str
    """0644."""
    wo: str
    """Without any read bit, and writable for root."""
    link: str
    subdirectory: str

    @property
    def new(self) -> str:
        """A name that does not exist."""
        return f"{self.directory}/new"


def _checked(result: int) -> None:
    if result:
        number = ctypes.get_errno()
        raise OSError(number, os.strerror(number))


def access(path: str, mode: int) -> None:
    _checked(_libc.access(os.fsencode(path), mode))


def renameat2(old: str, new: str, flags: int) -> None:
    at_cwd = -100
    _checked(_libc.renameat2(at_cwd, os.fsencode(old), at_cwd, os.fsencode(new), flags))


def open_close(path: str, flags: int) -> None:
    os.close(os.open(path, flags))


def with_open(path: str, flags: int, function: Callable[[int], object]) -> object:
    descriptor = os.open(path, flags)
    try:
        return function(descriptor)
    finally:
        os.close(descriptor)


def same_mode(path: str) -> None:
    os.chmod(path, stat.S_IMODE(os.stat(path).st_mode))


def same_owner(path: str) -> None:
    now = os.stat(path)
    os.chown(path, now.st_uid, now.st_gid)


def same_times(path: str) -> None:
    now = os.stat(path)
    os.utime(path, ns=(now.st_atime_ns, now.st_mtime_ns))


def name_calls(s: Sysfs) -> Iterator[tuple[str, Call]]:
    """Calls that would make, remove or rename something."""
    yield "mkdir new", lambda: os.mkdir(s.new)
    yield "mkdir of a file", lambda: os.mkdir(s.ro)
    yield "mkdir of a directory", lambda: os.mkdir(s.subdirectory)
    yield "mkdir below nothing", lambda: os.mkdir(f"{s.new}/x")
    yield "rmdir directory", lambda: os.rmdir(s.subdirectory)
    yield "rmdir file", lambda: os.rmdir(s.ro)
    yield "rmdir nothing", lambda: os.rmdir(s.new)
    yield "unlink file", lambda: os.unlink(s.ro)
    yield "unlink link", lambda: os.unlink(s.link)
    yield "unlink directory", lambda: os.unlink(s.subdirectory)
    yield "unlink nothing", lambda: os.unlink(s.new)
    yield "rename file", lambda: os.rename(s.ro, s.new)
    yield "rename file onto file", lambda: os.rename(s.ro, s.rw)
    yield "rename file onto itself", lambda: os.rename(s.ro, s.ro)
    yield "rename directory", lambda: os.rename(s.subdirectory, s.new)
    yield "rename directory onto file", lambda: os.rename(s.subdirectory, s.rw)
    yield "rename file onto directory", lambda: os.rename(s.ro, s.subdirectory)
    yield "rename file into directory", lambda: os.rename(s.ro, f"{s.subdirectory}/x")
    yield "rename nothing", lambda: os.rename(f"{s.new}er", s.new)
    yield "renameat2 NOREPLACE", lambda: renameat2(s.ro, s.new, RENAME_NOREPLACE)
    yield "renameat2 NOREPLACE onto file", lambda: renameat2(s.ro, s.rw, RENAME_NOREPLACE)
    yield "renameat2 EXCHANGE", lambda: renameat2(s.ro, s.rw, RENAME_EXCHANGE)
    yield "symlink new", lambda: os.symlink("x", s.new)
    yield "symlink over file", lambda: os.symlink("x", s.ro)
    yield "link of ro file", lambda: os.link(s.ro, s.new)
    yield "link of rw file", lambda: os.link(s.rw, s.new)
    yield "link over file", lambda: os.link(s.ro, s.rw)
    yield "link of directory", lambda: os.link(s.subdirectory, s.new)
    yield "link of link", lambda: os.link(s.link, s.new, follow_symlinks=False)
    yield "mknod regular", lambda: os.mknod(s.new, 0o644 | stat.S_IFREG)
    yield "mknod fifo", lambda: os.mknod(s.new, 0o644 | stat.S_IFIFO)
    yield "mknod device", lambda: os.mknod(s.new, 0o644 | stat.S_IFCHR, os.makedev(1, 3))
    yield "mknod over file", lambda: os.mknod(s.ro, 0o644 | stat.S_IFREG)


def open_calls(s: Sysfs) -> Iterator[tuple[str, Call]]:
    """Opening, in every way."""
    modes = {"r": os.O_RDONLY, "w": os.O_WRONLY, "rw": os.O_RDWR}
    for role in ("ro", "rw", "wo", "subdirectory"):
        path = getattr(s, role)
        for name, mode in modes.items():
            yield f"open {role} {name}", partial(open_close, path, mode)
        for name, mode in modes.items():
            yield (
                f"open {role} {name} truncating",
                partial(open_close, path, mode | os.O_TRUNC),
            )
    yield "open appending", lambda: open_close(s.rw, os.O_WRONLY | os.O_APPEND)
    yield "open creating new", lambda: open_close(s.new, os.O_WRONLY | os.O_CREAT)
    yield "open creating rw", lambda: open_close(s.rw, os.O_WRONLY | os.O_CREAT)
    yield "open creating ro", lambda: open_close(s.ro, os.O_RDONLY | os.O_CREAT)
    yield "open creating directory", lambda: open_close(s.subdirectory, os.O_CREAT)
    yield "open exclusively", lambda: open_close(s.ro, os.O_CREAT | os.O_EXCL)
    yield "open temporary", lambda: open_close(s.directory, os.O_TMPFILE | os.O_RDWR)
    yield "open nothing", lambda: open_close(s.new, os.O_RDONLY)
    yield "open below a file", lambda: open_close(f"{s.ro}/x", os.O_RDONLY)
    yield "open file as directory", lambda: open_close(s.ro, os.O_DIRECTORY)
    yield "open link without following", lambda: open_close(s.link, os.O_NOFOLLOW)
    yield "open a long name", lambda: open_close(f"{s.directory}/{'n' * 255}", os.O_RDONLY)
    yield "open bytes", lambda: open_close(f"{s.directory}/\udcff", os.O_RDONLY)


def file_calls(s: Sysfs) -> Iterator[tuple[str, Call]]:
    """On a path, or on an open file, what does not write."""
    for role in ("ro", "rw", "wo", "subdirectory"):
        path = getattr(s, role)
        for name, mode in {"f": 0, "r": 4, "w": 2, "x": 1, "rw": 6, "rx": 5}.items():
            yield f"access {role} {name}", partial(access, path, mode)
        yield f"truncate {role}", partial(os.truncate, path, 0)
        yield f"chmod {role}", partial(same_mode, path)
        yield f"chown {role}", partial(same_owner, path)
        yield f"utime {role}", partial(same_times, path)
    yield "truncate to more", lambda: os.truncate(s.rw, 100_000)
    yield "truncate to less than nothing", lambda: os.truncate(s.rw, -1)
    yield "chown of nothing", lambda: os.chown(s.ro, -1, -1)
    yield "chdir", lambda: os.chdir(s.directory)
    yield "write to a reader", lambda: with_open(s.ro, os.O_RDONLY, lambda fd: os.write(fd, b"x"))
    yield "ftruncate of a reader", lambda: with_open(s.ro, os.O_RDONLY, lambda fd: truncate(fd, 0))
    yield "ftruncate of a writer", lambda: with_open(s.rw, os.O_WRONLY, lambda fd: truncate(fd, 0))
    yield "empty write", lambda: with_open(s.rw, os.O_WRONLY, lambda fd: os.write(fd, b""))
    yield "fsync", lambda: with_open(s.ro, os.O_RDONLY, os.fsync)
    yield (
        "ioctl",
        lambda: with_open(s.ro, os.O_RDONLY, lambda fd: fcntl.ioctl(fd, TCGETS, bytes(64))),
    )
    yield "lseek end", lambda: with_open(s.ro, os.O_RDONLY, lambda fd: os.lseek(fd, 0, 2))
    yield "lseek before", lambda: with_open(s.ro, os.O_RDONLY, lambda fd: os.lseek(fd, -1, 0))


def truncate(descriptor: int, length: int) -> None:
    os.ftruncate(descriptor, length)


def touch_calls(s: Sysfs) -> Iterator[tuple[str, Call]]:
    """What root would succeed with, and change a real sysfs: for other users only."""
    yield "touch ro", lambda: os.utime(s.ro)
    yield "touch rw", lambda: os.utime(s.rw)
    yield "touch directory", lambda: os.utime(s.subdirectory)
    yield "utime of long ago", lambda: os.utime(s.rw, (1, 1))
    yield "chmod 0666", lambda: os.chmod(s.ro, 0o666)
    yield "chown to myself", lambda: os.chown(s.ro, os.getuid(), -1)
    yield "chgrp to my group", lambda: os.chown(s.ro, -1, os.getgid())
    yield "lchown to myself", lambda: os.lchown(s.link, os.getuid(), -1)


def xattr_calls(s: Sysfs) -> Iterator[tuple[str, Call]]:
    """Extended attributes; a real sysfs would keep root's trusted and security ones."""
    for role in ("ro", "rw", "subdirectory", "link"):
        path = getattr(s, role)
        yield f"listxattr {role}", partial(os.listxattr, path, follow_symlinks=False)
        for name in ("user.x", "foo.x"):
            yield (
                f"setxattr {role} {name}",
                partial(os.setxattr, path, name, b"v", follow_symlinks=False),
            )
        for name in ("user.x", "trusted.x", "security.x", "foo.x"):
            yield (
                f"removexattr {role} {name}",
                partial(os.removexattr, path, name, follow_symlinks=False),
            )
            yield (
                f"getxattr {role} {name}",
                partial(os.getxattr, path, name, follow_symlinks=False),
            )


def fields(path: str) -> list[int]:
    st = os.lstat(path)
    return [st.st_mode, st.st_size, st.st_uid, st.st_gid, st.st_blksize, st.st_blocks]


def stat_calls(s: Sysfs) -> Iterator[tuple[str, Call]]:
    """What stat and statvfs say, as far as it does not depend on the place."""
    for role in ("ro", "rw", "subdirectory", "link"):
        path = getattr(s, role)

        yield f"stat {role}", partial(fields, path)
    yield "stat root", lambda: [os.stat(".").st_mode, os.stat(".").st_uid]
    yield "statvfs", lambda: [*tuple(os.statvfs("."))[:8], os.statvfs(".").f_namemax]


def ask(call: Call) -> object:
    """The name of the errno, or what the call returned."""
    try:
        return call()
    except OSError as error:
        return errno.errorcode[error.errno or 0]


def main(root: str, uid: int, names: list[str]) -> dict[str, object]:
    os.chdir(root)
    directory, *files = names
    sysfs = Sysfs(directory, *(f"{directory}/{file}" for file in files))
    if uid != os.geteuid():
        os.setgroups([])
        os.setgid(uid)
        os.setuid(uid)
    groups = [name_calls, open_calls, file_calls, xattr_calls, stat_calls]
    if uid:
        groups.append(touch_calls)
    answers = {}
    for group in groups:
        for name, call in group(sysfs):
            answers[name] = ask(call)
            os.chdir(root)
    return answers


if __name__ == "__main__":
    print(json.dumps(main(sys.argv[1], int(sys.argv[2]), sys.argv[3:])))
