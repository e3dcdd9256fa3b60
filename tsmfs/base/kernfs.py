# SPDX-License-Identifier: MIT
"""What system calls do on a tree of kobjects: the rules of fs/kernfs and fs/sysfs.

The errnos are those of a real ``/sys``; ``Documentation/sysfs-rules.md`` has the table, and a
test asks both. This module knows nothing of FUSE: paths, modes and bytes come in, and
``OSError`` with the errno for the caller goes out.
"""

from __future__ import annotations

import errno
import itertools
import os
import threading
from collections import OrderedDict
from collections.abc import Callable, Iterator

from tsmfs.base.kobject import (
    PAGE_SIZE,
    Attribute,
    BinAttribute,
    Directory,
    File,
    Link,
    Node,
    Reader,
)
from tsmfs.kernel.errors import fail
from tsmfs.kernel.task import Task, current
from tsmfs.kernel.task import become as become

Caller = Task
"""Who is inside the system call."""

NAME_MAX = 255
"""Longest name (``simple_statfs()``)."""

UTIME_NOW = (1 << 30) - 1
"""Nanoseconds that mean the time of the call (utimensat(2))."""

UTIME_OMIT = (1 << 30) - 2
"""Nanoseconds that mean to leave a time alone (utimensat(2))."""

_NS = 1_000_000_000

_SERIAL_BITS = 32
_SERIAL_MASK = (1 << _SERIAL_BITS) - 1
_RECENT_MASK = (1 << 12) - 1
_FOLLOWED_MAX = 256

_X, _W, _R = os.X_OK, os.W_OK, os.R_OK
_ALL_CLASSES = 0o111
_ANY_EXECUTE = 0o111

# include/uapi/linux/capability.h
_CAP_CHOWN = 0
_CAP_DAC_OVERRIDE = 1
_CAP_DAC_READ_SEARCH = 2
_CAP_FOWNER = 3

_ACCESS_MASK = {os.O_RDONLY: _R, os.O_WRONLY: _W, os.O_RDWR: _R | _W, os.O_ACCMODE: _R | _W}


class OpenFile:
    """One open file: its node stays the same when another of that name takes its place."""

    __slots__ = ("_file", "_position", "_reader", "_text", "handle")

    def __init__(self, file: File, handle: int) -> None:
        self._file = file
        self._text = b""
        self._position = 0
        self._reader: Reader | None = None
        self.handle = handle
        """Its number in the table of open files."""

    def read(self, offset: int, size: int) -> bytes:
        """Up to *size* bytes from *offset*; ENODEV when the attribute went away.

        Text is rendered when a read does not go on where the last one stopped, and at offset 0;
        else it goes on in the text that is kept (``seq_read_iter()``). Of a binary attribute one
        call gives a page at most (``kernfs_file_read_iter()``).
        """
        file = self._file
        if not isinstance(file.attribute, Attribute):
            if self._reader is None:
                self._reader = file.open_reader()
            return file.read(offset, min(size, PAGE_SIZE), self._reader)
        if offset == 0 or offset != self._position:
            self._text = file.show()
        elif file.removed and offset >= len(self._text):
            fail(errno.ENODEV)
        data = self._text[offset : offset + size]
        self._position = offset + len(data)
        return data

    def write(self, offset: int, data: bytes) -> int:
        """Give *data* to the attribute, a page at most; the number of bytes taken.

        The offset means something to binary attributes only. ENODEV when it went away.
        """
        if not data:
            return 0
        file = self._file
        if isinstance(file.attribute, Attribute):
            return file.store(data)
        return file.write(offset, data)


class OpenFiles:
    """The files that are open, by number; nobody says when one is closed.

    To be told would cost a request for each file. So the last ones are kept, and a handle holds
    the inode number: an older file is found again by its path, and only the text of a read that
    stopped half-way is lost. It is rendered anew then, as after a seek. Of files that somebody
    may follow for long (``BinAttribute.open``) the last ones have a place of their own.
    """

    def __init__(self, kernfs: Kernfs) -> None:
        self._kernfs = kernfs
        self._serials = itertools.count()
        self._recent: list[OpenFile | None] = [None] * (_RECENT_MASK + 1)
        self._followed: OrderedDict[int, OpenFile] = OrderedDict()
        self._followed_lock = threading.Lock()

    def open(self, path: str, flags: int) -> int:
        """Open as :meth:`Kernfs.open` does; the handle of the open file."""
        file = self._kernfs.open(path, flags)
        serial = next(self._serials) & _SERIAL_MASK
        handle = file.ino << _SERIAL_BITS | serial
        opened = self._recent[serial & _RECENT_MASK] = OpenFile(file, handle)
        if isinstance(file.attribute, BinAttribute) and file.attribute.open is not None:
            with self._followed_lock:
                self._followed[handle] = opened
                if len(self._followed) > _FOLLOWED_MAX:
                    self._followed.popitem(last=False)
        return handle

    def get(self, handle: int, path: str) -> OpenFile:
        """The open file of that handle; ENODEV when its node went away."""
        slot = handle & _RECENT_MASK
        found = self._recent[slot]
        if found is not None and found.handle == handle:
            return found
        with self._followed_lock:
            if (followed := self._followed.get(handle)) is not None:
                self._followed.move_to_end(handle)
                return followed
        try:
            file = self._kernfs.node(path)
        except OSError as error:
            raise OSError(errno.ENODEV, f"{path} went away") from error
        if not isinstance(file, File) or file.ino != handle >> _SERIAL_BITS:
            fail(errno.ENODEV)
        found = self._recent[slot] = OpenFile(file, handle)
        return found


class Kernfs:
    """One tree, as system calls of the current task see it. Paths start at its root: ``/bus``."""

    def __init__(self, root: Directory) -> None:
        self._root = root
        self._tree = root.tree

    def node(self, path: str) -> Node:
        """The node at *path*, links not followed; ENOENT when there is none.

        Every directory lets everybody pass until somebody changes its mode: then EACCES.
        """
        node: Node = self._root
        if path != "/":
            for name in path[1:].split("/"):
                if not isinstance(node, Directory):
                    fail(errno.ENOTDIR)
                if node.iattr is not None:
                    self._require(node, _X)
                found = node.lookup(name)
                if found is None:
                    fail(errno.ENOENT)
                node = found
        return node

    def getattr(self, path: str) -> dict[str, int]:
        """``lstat()``: the fields by their names; times in nanoseconds."""
        node = self.node(path)
        tree = self._tree
        iattr = node.iattr
        if iattr is None:
            mode, uid, gid, mtime = node.default_mode, tree.uid, tree.gid, tree.created
        else:
            mode, uid, gid, mtime = iattr.mode, iattr.uid, iattr.gid, iattr.mtime
        when = int(mtime * _NS)
        return {
            "st_mode": node.file_type | mode,
            "st_ino": node.ino,
            "st_nlink": node.nlink,
            "st_uid": uid,
            "st_gid": gid,
            "st_size": node.size,
            "st_blksize": PAGE_SIZE,
            "st_atime": when,
            "st_mtime": when,
            "st_ctime": when,
        }

    def statfs(self) -> dict[str, int]:
        """``statvfs()``: the fields by their names."""
        return {"f_bsize": PAGE_SIZE, "f_frsize": PAGE_SIZE, "f_namemax": NAME_MAX}

    def readdir(self, path: str) -> Iterator[tuple[str, int, int]]:
        """Name, file type and inode number of everything in a directory but the dots."""
        directory = self.node(path)
        if not isinstance(directory, Directory):
            fail(errno.ENOTDIR)
        if directory.iattr is not None:
            self._require(directory, _R)
        for name in directory.names():
            node = directory.lookup(name)
            if node is not None:
                yield name, node.file_type, node.ino

    def readlink(self, path: str) -> str:
        """Where a link points, relative to its directory; EINVAL when it is no link."""
        node = self.node(path)
        if not isinstance(node, Link):
            fail(errno.EINVAL)
        return node.readlink()

    def access(self, path: str, mask: int) -> None:
        """``access()``: EACCES unless the caller may do all that *mask* (R_OK...) says.

        The caller's real uid is asked about, so capabilities count for root only
        (``access_override_creds()``).
        """
        node = self.node(path)
        if not self._permits(node, mask, capable=self._root_capable):
            fail(errno.EACCES)

    def open(self, path: str, flags: int) -> File:
        """``open()`` of a file that exists.

        EACCES without the permission, and for root too when no one has the bit or the
        attribute has no such operation (``KERNFS_ROOT_EXTRA_OPEN_PERM_CHECK``).
        """
        file = self.node(path)
        if not isinstance(file, File):
            fail(errno.EISDIR if isinstance(file, Directory) else errno.ELOOP)
        mask = _ACCESS_MASK[flags & os.O_ACCMODE]
        self._require(file, mask | _W if flags & os.O_TRUNC else mask)
        if (mask & _R and not file.readable) or (mask & _W and not file.writable):
            fail(errno.EACCES)
        return file

    def truncate(self, path: str) -> None:
        """``truncate()``: does nothing; EACCES to those who may not write."""
        self._require(self.node(path), _W)

    def chmod(self, path: str, mode: int) -> None:
        """``chmod()``: for the owner and root, else EPERM."""
        node = self.node(path)
        self._require_owner(node)
        node.setattr(mode=mode)

    def chown(self, path: str, uid: int | None, gid: int | None) -> None:
        """``chown()``, None: leave alone. EPERM but for root, and for the owner's own groups."""
        node = self.node(path)
        caller = current()
        now = node.inode()
        owner = caller.uid == now.uid
        may_uid = uid is None or (owner and uid == now.uid)
        may_gid = gid is None or (owner and (gid == now.gid or _in_group(caller, gid)))
        if not (may_uid and may_gid) and not caller.capable(_CAP_CHOWN):
            fail(errno.EPERM)
        node.setattr(uid=uid, gid=gid)

    def utimens(self, path: str, mtime: int | None, *, explicit: bool) -> None:
        """``utimensat()``: *mtime* in nanoseconds, None: leave alone.

        A time that the caller names (*explicit*) is for the owner and root, else EPERM; the
        time of the call is for those who may write as well, else EACCES.
        """
        node = self.node(path)
        if explicit:
            self._require_owner(node)
        elif not self._owns(node):
            self._require(node, _W)
        if mtime is not None:
            node.setattr(mtime=mtime / _NS)

    def make(self, path: str) -> None:
        """``mkdir()``, ``symlink()`` and ``mknod()`` of a special file: EPERM."""
        self._require(self._directory_of(path), _W | _X)
        fail(errno.EPERM)

    def create(self, path: str) -> None:
        """``open(O_CREAT)`` and ``mknod()`` of a regular file: EACCES."""
        self._require(self._directory_of(path), _W | _X)
        fail(errno.EACCES)

    def remove(self, path: str) -> None:
        """``unlink()`` and ``rmdir()`` of what exists: EPERM."""
        self.node(path)
        self._require(self._directory_of(path), _W | _X)
        fail(errno.EPERM)

    def rename(self, old: str, new: str) -> None:
        """``rename()`` of what exists: EPERM."""
        self.remove(old)
        self.make(new)

    def link(self, existing: str, new: str) -> None:
        """``link()`` to what exists: EPERM.

        A caller who neither owns the file nor may read and write it gets no further than that
        (``may_linkat()`` with fs.protected_hardlinks=1, which all distributions set).
        """
        node = self.node(existing)
        if self._owns(node) or self._permits(node, _R | _W, capable=_capable):
            self.make(new)
        fail(errno.EPERM)

    def setxattr(self, path: str, name: str) -> None:
        """``setxattr()``: ENOTSUP to those who may write."""
        del name
        self._require(self.node(path), _W)
        fail(errno.ENOTSUP)

    def removexattr(self, path: str, name: str) -> None:
        """``removexattr()``: there is none to remove."""
        self._require(self.node(path), _W)
        fail(errno.ENODATA if name.startswith(("trusted.", "security.")) else errno.ENOTSUP)

    def _directory_of(self, path: str) -> Node:
        return self.node(path.rpartition("/")[0] or "/")

    def _require(self, node: Node, mask: int) -> None:
        if not self._permits(node, mask, capable=_capable):
            fail(errno.EACCES)

    def _permits(self, node: Node, mask: int, *, capable: Callable[[Caller, int], bool]) -> bool:
        """``generic_permission()``. Who asks is looked up only when it makes a difference."""
        iattr = node.iattr
        mode = node.default_mode if iattr is None else iattr.mode
        wanted = mask * _ALL_CLASSES
        if mode & wanted == wanted:
            return True
        uid, gid = (self._tree.uid, self._tree.gid) if iattr is None else (iattr.uid, iattr.gid)
        caller = current()
        if caller.uid == uid:
            bits = mode >> 6
        elif (mode >> 3 ^ mode) & mask and _in_group(caller, gid):
            bits = mode >> 3
        else:
            bits = mode
        if bits & mask == mask:
            return True
        if isinstance(node, Directory):
            return (not mask & _W and capable(caller, _CAP_DAC_READ_SEARCH)) or capable(
                caller, _CAP_DAC_OVERRIDE
            )
        if mask == _R and capable(caller, _CAP_DAC_READ_SEARCH):
            return True
        if mask & _X and not mode & _ANY_EXECUTE:
            return False
        return capable(caller, _CAP_DAC_OVERRIDE)

    def _root_capable(self, caller: Caller, capability: int) -> bool:
        return caller.uid == self._tree.uid and caller.capable(capability)

    def _owns(self, node: Node) -> bool:
        caller = current()
        return caller.uid == node.inode().uid or caller.capable(_CAP_FOWNER)

    def _require_owner(self, node: Node) -> None:
        if not self._owns(node):
            fail(errno.EPERM)


def _capable(caller: Caller, capability: int) -> bool:
    return caller.capable(capability)


def _in_group(caller: Caller, gid: int) -> bool:
    """``in_group_p()``: the caller's group, or one of its supplementary groups."""
    if caller.gid == gid:
        return True
    try:
        with open(f"/proc/{caller.pid}/status", encoding="ascii", errors="replace") as status:
            for line in status:
                if line.startswith("Groups:"):
                    return str(gid) in line.split()[1:]
    except OSError:
        pass
    return False
