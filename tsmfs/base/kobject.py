# SPDX-License-Identifier: MIT
"""The tree of kobjects with their attributes, groups and links: what the mount shows.

A :class:`Kobject` is a directory. Its attributes come from :class:`AttributeGroup` tables
that all kobjects of a kind share; the node of one attribute is made when somebody looks at
it, so that a machine of thousands of functions costs little more than their names.

Rules are kernfs' and sysfs' (fs/kernfs, fs/sysfs): see ``Documentation/sysfs-rules.md``.
"""

from __future__ import annotations

import errno
import itertools
import stat
import threading
import time
import traceback
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from functools import partial
from typing import Any

from tsmfs.kernel.errors import errno_of, fail
from tsmfs.kernel.printk import Log

PAGE_SIZE = 4096
"""Most bytes that one ``show()`` returns and one ``store()`` takes."""

FILE_TYPE_REG = stat.S_IFREG
FILE_TYPE_DIR = stat.S_IFDIR
FILE_TYPE_LINK = stat.S_IFLNK


@dataclass(frozen=True, slots=True, eq=False)
class Attribute:
    """A text file: *show* renders it, *store* takes what one ``write()`` brought.

    Both are handed the kobject. They raise ``OSError`` with the errno that the caller sees;
    any other exception, or a *show* that returns no text, is EIO and a line in the log.
    """

    name: str
    mode: int
    show: Callable[[Any], str | bytes] | None = None
    store: Callable[[Any, bytes], None] | None = None


Reader = Callable[[int, int], bytes]
"""``reader(offset, count)``: at most *count* bytes of one open file."""


@dataclass(frozen=True, slots=True, eq=False)
class BinAttribute:
    """A binary file of *size* bytes (0: open-ended), read and written at offsets."""

    name: str
    mode: int
    size: int | Callable[[Any], int] = 0
    read: Callable[[Any, int, int], bytes] | None = None
    """``read(kobj, offset, count)``: at most *count* bytes."""
    write: Callable[[Any, int, bytes], None] | None = None
    open: Callable[[Any], Reader] | None = None
    """Instead of *read*: called for each open file, gives the function that reads that one."""
    mappable: bool = False
    """It has an ``mmap`` operation only: it opens, but read and write are EIO."""


AnyAttribute = Attribute | BinAttribute


@dataclass(frozen=True, slots=True, eq=False)
class AttributeGroup:
    """Attributes that appear together, in a directory of their own when it has a name."""

    attributes: Sequence[AnyAttribute]
    name: str | None = None
    is_visible: Callable[[Any, AnyAttribute], int] | None = None
    """Mode of an attribute on this kobject; 0 hides it. None: all visible."""
    group_visible: Callable[[Any], bool] | None = None
    """Whether a named group has its directory at all (``SYSFS_GROUP_VISIBLE``)."""

    def modes(self, kobj: Any) -> dict[str, int]:
        """Name and mode of every attribute that is visible on *kobj*."""
        if self.group_visible is not None and not self.group_visible(kobj):
            return {}
        if self.is_visible is None:
            return {a.name: a.mode for a in self.attributes}
        modes = ((a.name, self.is_visible(kobj, a)) for a in self.attributes)
        return {name: mode for name, mode in modes if mode}

    def attribute(self, name: str) -> AnyAttribute:
        """The attribute of that name."""
        return next(a for a in self.attributes if a.name == name)


@dataclass(slots=True)
class Iattr:
    """What ``chmod``, ``chown`` and ``utimens`` changed; lasts as long as the node."""

    mode: int
    uid: int
    gid: int
    mtime: float


@dataclass(slots=True)
class Tree:
    """What all nodes of one mounted tree share."""

    log: Log
    uid: int = 0
    gid: int = 0
    """Owner of every node: root of the emulated machine."""
    created: float = field(default_factory=time.time)
    lock: threading.RLock = field(default_factory=threading.RLock)
    """Held while the tree changes shape; looking needs no lock."""
    _inodes: Iterator[int] = field(default_factory=lambda: itertools.count(1))

    def next_ino(self) -> int:
        """An inode number never used before."""
        return next(self._inodes)


class Node:
    """Anything with a name in the tree."""

    __slots__ = ("iattr", "ino", "name", "parent", "removed", "tree")

    def __init__(self, tree: Tree, name: str, parent: Directory | None) -> None:
        self.tree = tree
        self.name = name
        self.parent = parent
        self.ino = tree.next_ino()
        self.removed = False
        self.iattr: Iattr | None = None

    @property
    def file_type(self) -> int:
        """``S_IFREG``, ``S_IFDIR`` or ``S_IFLNK``."""
        raise NotImplementedError

    @property
    def default_mode(self) -> int:
        """Permission bits before any chmod."""
        raise NotImplementedError

    @property
    def size(self) -> int:
        """``st_size``."""
        return 0

    @property
    def nlink(self) -> int:
        """``st_nlink``."""
        return 1

    def inode(self) -> Iattr:
        """Mode (permission bits), owner and time as they are now."""
        if self.iattr is not None:
            return self.iattr
        return Iattr(self.default_mode, self.tree.uid, self.tree.gid, self.tree.created)

    def setattr(
        self,
        *,
        mode: int | None = None,
        uid: int | None = None,
        gid: int | None = None,
        mtime: float | None = None,
    ) -> None:
        """``chmod``, ``chown`` and ``utimens`` on this node."""
        now = self.inode()
        self.iattr = Iattr(
            now.mode if mode is None else stat.S_IMODE(mode),
            now.uid if uid is None else uid,
            now.gid if gid is None else gid,
            now.mtime if mtime is None else mtime,
        )

    def path(self) -> str:
        """Path from the root of the tree: ``/devices/...``; the root itself is ``""``."""
        parts: list[str] = []
        node: Node | None = self
        while node is not None and node.parent is not None:
            parts.append(node.name)
            node = node.parent
        return "".join(f"/{part}" for part in reversed(parts))


class Directory(Node):
    """A node with others below it."""

    __slots__ = ("children", "subdirectories")

    def __init__(self, tree: Tree, name: str, parent: Directory | None) -> None:
        super().__init__(tree, name, parent)
        self.children: dict[str, Node] = {}
        self.subdirectories = 0

    @property
    def file_type(self) -> int:
        return FILE_TYPE_DIR

    @property
    def default_mode(self) -> int:
        # Nobody can make anything in sysfs' own root (fs/sysfs/mount.c).
        return 0o555 if self.parent is None else 0o755

    @property
    def nlink(self) -> int:
        return 2 + self.subdirectories

    def lookup(self, name: str) -> Node | None:
        """The node called *name* in this directory."""
        return self.children.get(name)

    def names(self) -> list[str]:
        """All names in this directory."""
        return list(self.children)

    def add(self, node: Node) -> None:
        """Show *node*; EEXIST when its name is taken, ENOENT when this directory has gone."""
        with self.tree.lock:
            if self.removed:
                fail(errno.ENOENT, f"'{self.name}' has gone")
            if self.lookup(node.name) is not None:
                fail(errno.EEXIST, f"cannot create duplicate '{self.path()}/{node.name}'")
            self.children[node.name] = node
            node.parent = self
            self.subdirectories += isinstance(node, Directory)

    def discard(self, name: str) -> None:
        """Take the node called *name* out with all below it; nothing when there is none."""
        with self.tree.lock:
            node = self.children.pop(name, None)
            if node is None:
                return
            self.subdirectories -= isinstance(node, Directory)
            node.removed = True
            if isinstance(node, Directory):
                node.discard_all()

    def discard_all(self) -> None:
        """Take everything below out; files that are open answer ENODEV from now on."""
        for name in list(self.children):
            self.discard(name)


class Link(Node):
    """A symbolic link to another directory of the tree."""

    __slots__ = ("target",)

    def __init__(self, tree: Tree, name: str, target: Directory) -> None:
        super().__init__(tree, name, None)
        self.target = target

    @property
    def file_type(self) -> int:
        return FILE_TYPE_LINK

    @property
    def default_mode(self) -> int:
        return 0o777

    def readlink(self) -> str:
        """The relative path from the link's directory to the target."""
        here = self.parent.path().split("/")[1:] if self.parent else []
        there = self.target.path().split("/")[1:]
        common = 0
        # As the kernel's, it names the target even from inside of it: ``../../../pci0000:00``.
        for ours, theirs in zip(here, there[:-1], strict=False):
            if ours != theirs:
                break
            common += 1
        return "/".join([".."] * (len(here) - common) + there[common:])


class File(Node):
    """One attribute of one kobject."""

    __slots__ = ("attribute", "kobj", "mode")

    def __init__(
        self, parent: Directory, kobj: Kobject, attribute: AnyAttribute, mode: int
    ) -> None:
        super().__init__(parent.tree, attribute.name, parent)
        self.kobj = kobj
        self.attribute = attribute
        self.mode = mode

    @property
    def file_type(self) -> int:
        return FILE_TYPE_REG

    @property
    def default_mode(self) -> int:
        return self.mode

    @property
    def size(self) -> int:
        if isinstance(self.attribute, Attribute):
            return PAGE_SIZE
        size = self.attribute.size
        return size if isinstance(size, int) else size(self.kobj)

    @property
    def _mode_now(self) -> int:
        return self.mode if self.iattr is None else self.iattr.mode

    @property
    def readable(self) -> bool:
        """Whether it can be opened for reading at all (``KERNFS_ROOT_EXTRA_OPEN_PERM_CHECK``)."""
        if not self._mode_now & 0o444:
            return False
        if isinstance(self.attribute, Attribute):
            return self.attribute.show is not None
        attribute = self.attribute
        return any((attribute.read, attribute.open, attribute.mappable))

    @property
    def writable(self) -> bool:
        """Whether it can be opened for writing at all."""
        if not self._mode_now & 0o222:
            return False
        if isinstance(self.attribute, Attribute):
            return self.attribute.store is not None
        return self.attribute.write is not None or self.attribute.mappable

    def show(self) -> bytes:
        """The text of a text attribute now: ENODEV when it went away, EIO on nonsense."""
        attribute = self._live_attribute()
        if not isinstance(attribute, Attribute) or attribute.show is None:
            fail(errno.EIO)
        show = attribute.show

        def render() -> object:
            text: object = show(self.kobj)
            return text.encode() if isinstance(text, str) else text

        data = self._call("show", render)
        if not isinstance(data, bytes):
            self.tree.log.err(f"{self.path()}: show returned {type(data).__name__}")
            fail(errno.EIO)
        if len(data) >= PAGE_SIZE:
            # fs/sysfs/file.c: sysfs_kf_seq_show()
            self.tree.log.err(f"{self.path()}: show returned bad count")
            data = data[: PAGE_SIZE - 1]
        return data

    def store(self, data: bytes) -> int:
        """Give a text attribute what one write brought; the number of bytes taken."""
        attribute = self._live_attribute()
        if not isinstance(attribute, Attribute) or attribute.store is None:
            fail(errno.EIO)
        if not data:
            return 0
        data = data[:PAGE_SIZE]
        store = attribute.store
        self._call("store", lambda: store(self.kobj, data))
        return len(data)

    def open_reader(self) -> Reader:
        """What reads one open file of a binary attribute; EIO when it has no read operation."""
        attribute = self._live_attribute()
        if isinstance(attribute, BinAttribute):
            if attribute.open is not None:
                opened = attribute.open
                reader: Reader = self._call("open", lambda: opened(self.kobj))
                return reader
            if attribute.read is not None:
                return partial(attribute.read, self.kobj)
        fail(errno.EIO)

    def read(self, offset: int, count: int, reader: Reader | None = None) -> bytes:
        """Bytes of a binary attribute, by the *reader* of an open file; empty behind its end."""
        self._live_attribute()
        read = reader or self.open_reader()
        size = self.size
        if size:
            count = max(0, min(count, size - offset))
        if not count:
            return b""
        data = self._call("read", lambda: read(offset, count))
        if not isinstance(data, bytes | bytearray) or len(data) > count:
            self.tree.log.err(f"{self.path()}: read returned nonsense")
            fail(errno.EIO)
        return bytes(data)

    def write(self, offset: int, data: bytes) -> int:
        """Write a binary attribute, at most a page; EFBIG behind its end."""
        attribute = self._live_attribute()
        if not isinstance(attribute, BinAttribute) or attribute.write is None:
            fail(errno.EIO)
        data = data[:PAGE_SIZE]
        size = self.size
        if size:
            if offset >= size:
                fail(errno.EFBIG)
            data = data[: size - offset]
        if not data:
            return 0
        write = attribute.write
        self._call("write", lambda: write(self.kobj, offset, data))
        return len(data)

    def _live_attribute(self) -> AnyAttribute:
        if self.removed:
            fail(errno.ENODEV)
        return self.attribute

    def _call(self, what: str, function: Callable[[], Any]) -> Any:
        try:
            return function()
        except OSError as error:
            number = errno_of(error)
            if number == error.errno:
                raise
            self.tree.log.err(f"{self.path()}: {what}: {error}")
            raise OSError(number, str(error)) from error
        except Exception:
            self.tree.log.err(f"{self.path()}: {what} raised\n{traceback.format_exc()}")
            raise OSError(errno.EIO, f"{what} raised") from None


_EMPTY: Mapping[str, int] = {}
_interned_modes: dict[tuple[tuple[str, int], ...], Mapping[str, int]] = {}


def _intern(modes: dict[str, int]) -> Mapping[str, int]:
    """One table for all kobjects that show the same attributes."""
    if not modes:
        return _EMPTY
    return _interned_modes.setdefault(tuple(modes.items()), modes)


class GroupDirectory(Directory):
    """The directory of a named group."""

    __slots__ = ("group", "kobj", "modes")

    def __init__(self, kobj: Kobject, group: AttributeGroup, modes: Mapping[str, int]) -> None:
        assert group.name is not None
        super().__init__(kobj.tree, group.name, kobj)
        self.kobj = kobj
        self.group = group
        self.modes = modes

    def lookup(self, name: str) -> Node | None:
        node = self.children.get(name)
        if node is None and name in self.modes:
            with self.tree.lock:
                # It may have been hidden meanwhile.
                node = _make_file(self, self.kobj, self.group, name, self.modes)
        return node

    def names(self) -> list[str]:
        return [*self.modes, *(n for n in list(self.children) if n not in self.modes)]


def _make_file(
    parent: Directory, kobj: Kobject, group: AttributeGroup, name: str, modes: Mapping[str, int]
) -> Node | None:
    with parent.tree.lock:
        existing = parent.children.get(name)
        if existing is None and not parent.removed and name in modes:
            existing = File(parent, kobj, group.attribute(name), modes[name])
            parent.children[name] = existing
        return existing


class Kobject(Directory):
    """An object of the kernel with a directory in sysfs."""

    __slots__ = ("_groups", "_modes")

    def __init__(self, tree: Tree, name: str) -> None:
        super().__init__(tree, name, None)
        self._groups: tuple[AttributeGroup, ...] = ()
        self._modes: tuple[Mapping[str, int], ...] = ()

    def lookup(self, name: str) -> Node | None:
        node = self.children.get(name)
        if node is None and self._shows(name):
            with self.tree.lock:
                # It may have been hidden meanwhile.
                for group, modes in zip(self._groups, self._modes, strict=True):
                    if group.name is None and name in modes:
                        return _make_file(self, self, group, name, modes)
        return node

    def _shows(self, name: str) -> bool:
        return any(
            group.name is None and name in modes
            for group, modes in zip(self._groups, self._modes, strict=True)
        )

    def names(self) -> list[str]:
        names = dict.fromkeys(list(self.children))
        for group, modes in zip(self._groups, self._modes, strict=True):
            if group.name is None:
                names.update(dict.fromkeys(modes))
        return list(names)

    def add_groups(self, groups: Sequence[AttributeGroup]) -> None:
        """Show *groups* (``sysfs_create_groups()``); EEXIST, and none of them, on a clash."""
        with self.tree.lock:
            before = self._groups
            for group in groups:
                try:
                    self._add_group(group)
                except BaseException:
                    self.remove_groups([g for g in self._groups if g not in before])
                    raise

    def _add_group(self, group: AttributeGroup) -> None:
        modes = _intern(group.modes(self))
        if group.name is None:
            for name in modes:
                if self.lookup(name) is not None:
                    fail(errno.EEXIST, f"cannot create duplicate '{self.path()}/{name}'")
        elif group.group_visible is None or modes:
            self.add(GroupDirectory(self, group, modes))
        self._groups += (group,)
        self._modes += (modes,)

    def update_group(self, group: AttributeGroup) -> None:
        """Decide anew what of *group* is visible (``sysfs_update_group()``).

        A file that stays keeps its node; one that goes is dead, also for those who have it open.
        EEXIST, and nothing changes, when the group is to come and its name is taken.
        """
        with self.tree.lock:
            at = self._groups.index(group)
            modes = _intern(group.modes(self))
            if modes is self._modes[at]:
                return
            old = self._modes[at]
            directory: Directory = self
            if group.name is not None:
                existing = self.children.get(group.name)
                if group.group_visible is not None and not modes:
                    self.discard(group.name)
                    old = {}
                elif isinstance(existing, GroupDirectory):
                    existing.modes = modes
                    directory = existing
                else:
                    # Where the name is taken the group stays as it was.
                    self.add(GroupDirectory(self, group, modes))
                    old = {}
            self._modes = (*self._modes[:at], modes, *self._modes[at + 1 :])
            for name in old:
                if modes.get(name) != old[name]:
                    directory.discard(name)

    def remove_groups(self, groups: Sequence[AttributeGroup]) -> None:
        """Hide *groups* for good (``sysfs_remove_groups()``)."""
        with self.tree.lock:
            for group in groups:
                if group not in self._groups:
                    continue
                at = self._groups.index(group)
                modes = self._modes[at]
                self._groups = (*self._groups[:at], *self._groups[at + 1 :])
                self._modes = (*self._modes[:at], *self._modes[at + 1 :])
                if group.name is not None:
                    self.discard(group.name)
                else:
                    for name in modes:
                        self.discard(name)

    def create_link(self, target: Directory, name: str) -> None:
        """Add a link called *name* to *target* (``sysfs_create_link()``); EEXIST on a clash."""
        self.add(Link(self.tree, name, target))

    def remove_link(self, name: str) -> None:
        """Remove the link called *name* (``sysfs_remove_link()``)."""
        if isinstance(self.children.get(name), Link):
            self.discard(name)

    def add_child(self, name: str) -> Kobject:
        """A plain directory called *name* below (``kobject_create_and_add()``)."""
        child = Kobject(self.tree, name)
        self.add(child)
        return child

    def ensure_child(self, name: str) -> Kobject:
        """The directory called *name* below, made when it is not there."""
        with self.tree.lock:
            existing = self.children.get(name)
            return existing if isinstance(existing, Kobject) else self.add_child(name)

    def delete(self) -> None:
        """Take this kobject out of the tree with all below it (``kobject_del()``)."""
        with self.tree.lock:
            if self.parent is not None:
                self.parent.discard(self.name)

    def discard_all(self) -> None:
        self._groups = ()
        self._modes = ()
        super().discard_all()


def find(root: Directory, path: str) -> Node | None:
    """The node at *path* (``/bus/pci``) below *root*; links on the way are not followed."""
    node: Node | None = root
    for part in path.split("/"):
        if not part:
            continue
        if not isinstance(node, Directory):
            return None
        node = node.lookup(part)
        if node is None:
            return None
    return node
