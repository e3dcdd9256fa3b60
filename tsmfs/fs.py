# SPDX-License-Identifier: MIT
"""The kobject tree as a FUSE filesystem: the only file that knows a FUSE binding.

Two bindings serve: fusepy (libfuse 2) and mfusepy (libfuse 3). What the operations answer is
decided in :mod:`tsmfs.base.kernfs`; here are the policy of caching, who calls, and open files.

The number of requests decides the speed, not the language of the daemon. So names are cached by
the kernel for good and attributes never: the last component of a path is always asked for live,
and the directories on the way cost nothing. Operations that have nothing to do are absent, and
the kernel stops asking for them after the first answer.
"""

from __future__ import annotations

import ctypes
import errno
import importlib.util
import itertools
import os
import stat
import threading
import time
import traceback
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from types import ModuleType
from typing import Any

from tsmfs.base.kernfs import UTIME_NOW, UTIME_OMIT, Caller, Kernfs, OpenFiles, become
from tsmfs.base.kobject import Directory

BINDING_VARIABLE = "TSMFS_FUSE"
"""Environment variable that names the binding to use."""

FILESYSTEM_NAME = "tsmfs"
"""Source and subtype in the mount table: the type reads ``fuse.tsmfs``."""

_LIBRARY_VARIABLE = "FUSE_LIBRARY_PATH"
_ENCODING = "latin-1"
"""A name may be any bytes; this encoding turns each into a character and back."""

_FOREVER = 1 << 30
_MAX_THREADS = 1024
_MOST_PINS = 2048
"""Threads that keep their Python state: some 20 KB each, mostly for nothing once they ended."""

# What fuse_version() returns: 29 for 2.9, 312 for 3.12.
_LIBFUSE_3 = 100
_LIBFUSE_WITH_THREAD_LIMIT = 312


class BindingError(Exception):
    """No FUSE binding can be used; the text is one line that says what to install."""


class MountError(Exception):
    """libfuse could not mount."""


@dataclass(frozen=True, slots=True)
class Binding:
    """A Python module and the C library below it."""

    name: str
    module: str
    libraries: tuple[str, ...]
    packages: str
    """What to install when there is no library."""

    def is_installed(self) -> bool:
        """Whether the Python module is there."""
        return importlib.util.find_spec(self.module) is not None

    def find_library(self) -> str | None:
        """The first of its libraries that loads here; None when none does."""
        for library in (os.environ.get(_LIBRARY_VARIABLE), *self.libraries):
            if library:
                try:
                    ctypes.CDLL(library)
                except OSError:
                    continue
                return library
        return None

    def missing(self) -> str:
        """What to install so that it can be used."""
        if self.is_installed():
            return self.packages
        return f"the Python package {self.name} with {self.packages}"


BINDINGS = {
    binding.name: binding
    for binding in (
        Binding("fusepy", "fuse", ("libfuse.so.2",), "libfuse 2 (libfuse2, fuse-libs or fuse2)"),
        Binding(
            "mfusepy",
            "mfusepy",
            ("libfuse3.so.4", "libfuse3.so.3"),
            "libfuse 3 (libfuse3-3, fuse3-libs or fuse3)",
        ),
    )
}
"""The bindings by name, in the order of preference."""


class _Context(ctypes.Structure):
    """The beginning of ``struct fuse_context``, alike in libfuse 2 and 3."""

    _fields_ = (
        ("fuse", ctypes.c_void_p),
        ("uid", ctypes.c_uint),
        ("gid", ctypes.c_uint),
        ("pid", ctypes.c_int),
    )


class Library:
    """The few functions of libfuse that are called directly, beside the binding."""

    def __init__(self, path: str) -> None:
        # PyDLL keeps the GIL: these return at once, and giving it up would cost more.
        library = ctypes.PyDLL(path)
        self._context = library.fuse_get_context
        self._context.restype = ctypes.POINTER(_Context)
        self._interrupted = library.fuse_interrupted
        self._exit = library.fuse_exit
        self._exit.argtypes = (ctypes.c_void_p,)
        self.version: int = library.fuse_version()
        self._loop: int | None = None
        self._loop_lock = threading.Lock()
        self.thread = threading.local()
        """Has an attribute ``serves`` in the threads that work on requests."""
        self.mounted = False
        """Whether the loop ever ran."""
        self.stopping = False
        """Set when the filesystem goes away: whoever waits in it gives up."""

    def context(self) -> _Context:
        """Who made the request that this thread works on; root when it works on none."""
        # libfuse has rubbish for other threads.
        if not hasattr(self.thread, "serves"):
            return _Context()
        context: _Context = self._context().contents
        return context

    def interrupted(self) -> bool:
        """Whether the request that this thread works on is no longer waited for."""
        if not hasattr(self.thread, "serves"):
            return False
        return self.stopping or bool(self._interrupted())

    def remember_loop(self) -> None:
        """Keep what :meth:`stop` needs; called inside a request."""
        self._loop = self._context().contents.fuse
        self.mounted = True

    def forget_loop(self) -> None:
        """The loop has ended, and libfuse frees it."""
        with self._loop_lock:
            self._loop = None

    def stop(self) -> bool:
        """Ask the loop to end; False when there is none."""
        self.stopping = True
        with self._loop_lock:
            if self._loop is None:
                return False
            self._exit(self._loop)
        return True


class Requester(Caller):
    """The caller of whatever request the asking thread works on.

    One object serves all threads and requests: most operations never ask who calls, and to
    note it down each time would cost more than they do.
    """

    __slots__ = ("_library",)
    _library: Library

    def __init__(self, library: Library, privileged_uid: int) -> None:
        object.__setattr__(self, "_library", library)
        object.__setattr__(self, "privileged_uid", privileged_uid)

    @property
    def uid(self) -> int:
        return int(self._library.context().uid)

    @property
    def gid(self) -> int:
        return int(self._library.context().gid)

    @property
    def pid(self) -> int:
        return int(self._library.context().pid)

    def interrupted(self) -> bool:
        return self._library.interrupted()


class Operations:
    """FUSE operations on a tree. Both bindings call these methods by their names.

    There is no ``getxattr``: the kernel would ask for a capability before each write.
    """

    use_ns = True
    flag_utime_omit_ok = 1

    def __init__(
        self, kernfs: Kernfs, library: Library, requester: Caller, ready: Callable[[], None]
    ) -> None:
        self._kernfs = kernfs
        self._files = OpenFiles(kernfs)
        self._library = library
        self._requester = requester
        self._ready = ready
        self._thread = library.thread
        self._pins = itertools.count()

    def _as_caller(self) -> Kernfs:
        """The tree, after making sure that this thread works for the caller."""
        if not hasattr(self._thread, "serves"):
            become(self._requester)
            # Python gives a thread that it did not start a new state for each call, which takes
            # longer than the rest of an answer. A second reference keeps the state, also after
            # libfuse ended the thread: hence the limit.
            if next(self._pins) < _MOST_PINS:
                ctypes.pythonapi.PyGILState_Ensure()
            self._thread.serves = True
        return self._kernfs

    def init(self, path: str) -> None:
        self._library.remember_loop()
        self._ready()

    def destroy(self, path: str) -> None:
        self._library.forget_loop()

    def getattr(self, path: str, fh: int | None = None) -> dict[str, int]:
        return self._as_caller().getattr(path)

    def access(self, path: str, mask: int) -> None:
        self._as_caller().access(path, mask)

    def open(self, path: str, flags: int) -> int:
        self._as_caller()
        return self._files.open(path, flags)

    def read(self, path: str, size: int, offset: int, fh: int) -> bytes:
        self._as_caller()
        return self._files.get(fh, path).read(offset, size)

    def write(self, path: str, data: bytes, offset: int, fh: int) -> int:
        self._as_caller()
        return self._files.get(fh, path).write(offset, data)

    def readdir(self, path: str, fh: int) -> Iterator[tuple[str, dict[str, int] | None, int]]:
        yield ".", None, 0
        yield "..", None, 0
        for name, file_type, ino in self._as_caller().readdir(path):
            yield name, {"st_mode": file_type, "st_ino": ino}, 0

    def readlink(self, path: str) -> str:
        return self._as_caller().readlink(path)

    def statfs(self, path: str) -> dict[str, int]:
        return self._kernfs.statfs()

    def truncate(self, path: str, length: int, fh: int | None = None) -> None:
        if fh is None:
            self._as_caller().truncate(path)

    def chmod(self, path: str, mode: int) -> None:
        self._as_caller().chmod(path, mode)

    def chown(self, path: str, uid: int, gid: int) -> None:
        self._as_caller().chown(path, None if uid == -1 else uid, None if gid == -1 else gid)

    def utimens(self, path: str, times: tuple[int, int] | None = None) -> None:
        # The bindings add up seconds and nanoseconds; with the two special values of the
        # latter libfuse leaves the seconds 0.
        atime, mtime = times or (UTIME_NOW, UTIME_NOW)
        explicit = not {atime, mtime} <= {UTIME_NOW, UTIME_OMIT}
        if mtime == UTIME_NOW:
            mtime = time.time_ns()
        self._as_caller().utimens(path, None if mtime == UTIME_OMIT else mtime, explicit=explicit)

    def mkdir(self, path: str, mode: int) -> None:
        self._as_caller().make(path)

    def mknod(self, path: str, mode: int, dev: int) -> None:
        if stat.S_ISREG(mode):
            self._as_caller().create(path)
        self._as_caller().make(path)

    def symlink(self, new: str, target: str) -> None:
        self._as_caller().make(new)

    def link(self, new: str, existing: str) -> None:
        self._as_caller().link(existing, new)

    def unlink(self, path: str) -> None:
        self._as_caller().remove(path)

    def rmdir(self, path: str) -> None:
        self._as_caller().remove(path)

    def rename(self, old: str, new: str) -> None:
        self._as_caller().rename(old, new)

    def setxattr(self, path: str, name: str, value: bytes, options: int) -> None:
        self._as_caller().setxattr(path, name)

    def listxattr(self, path: str) -> list[str]:
        return []

    def removexattr(self, path: str, name: str) -> None:
        self._as_caller().removexattr(path, name)


class CallableOperations(Operations):
    """The same for fusepy, which calls the object with the name of the operation."""

    def __call__(self, operation: str, *arguments: Any) -> Any:
        return getattr(self, operation)(*arguments)


def choose_binding(environment: Mapping[str, str] = os.environ) -> Binding:
    """The binding that :data:`BINDING_VARIABLE` names, or the first that can be used.

    Raises BindingError when the named one, or every one, lacks its module or its library.
    """
    named = environment.get(BINDING_VARIABLE)
    if named is not None and named not in BINDINGS:
        raise BindingError(f"{BINDING_VARIABLE}={named}: not one of {', '.join(BINDINGS)}")
    candidates = [BINDINGS[named]] if named is not None else list(BINDINGS.values())
    for binding in candidates:
        if binding.is_installed() and binding.find_library():
            return binding
    wanted = " or ".join(binding.missing() for binding in candidates)
    raise BindingError(f"FUSE cannot be used here: install {wanted}")


class Filesystem:
    """A tree that can be mounted, once."""

    def __init__(self, root: Directory, binding: Binding) -> None:
        """Prepare to show the tree below *root*; BindingError when *binding* does not load."""
        path = binding.find_library()
        if path is None:
            raise BindingError(f"FUSE cannot be used here: install {binding.missing()}")
        self._fuse = _import(binding.module, path)
        self._library = Library(path)
        self._requester = Requester(self._library, root.tree.uid)
        self._kernfs = Kernfs(root)
        self._report = root.tree.log.err

    def run(self, directory: Path, ready: Callable[[], None]) -> None:
        """Mount on *directory* and serve; *ready* is called, in another thread, when mounted.

        Returns after an unmount from outside or :meth:`stop`, and is not mounted then. Raises
        MountError when it cannot mount: libfuse has said why on the standard error output.
        """
        kind = CallableOperations if self._fuse.__name__ == "fuse" else Operations
        operations = kind(self._kernfs, self._library, self._requester, ready)
        fuse = _lean(self._fuse.FUSE, self._report)
        try:
            fuse(
                operations,
                os.fsencode(directory).decode(_ENCODING),
                encoding=_ENCODING,
                **_mount_options(self._library.version),
            )
        except RuntimeError as error:
            # libfuse 3 fails also when a signal ended its loop.
            if not self._library.mounted:
                raise MountError(f"cannot mount on {directory}") from error

    def stop(self) -> bool:
        """Let :meth:`run` end, and whoever waits inside the filesystem give up.

        False when there is nothing that could end, not yet or no longer. The thread in
        :meth:`run` notices when a signal interrupts it.
        """
        return self._library.stop()


def _lean(binding: Any, report: Callable[[str], None]) -> Any:
    """The class FUSE of a binding with less on the way of the operations that must be quick.

    Its wrapper writes about every unexpected exception to standard error; this one calls
    *report*.
    """

    class LeanFuse(binding):  # type: ignore[misc]
        def open(self, path: bytes, info: Any) -> int:
            opened = info.contents
            opened.fh = self.operations.open(path.decode(_ENCODING), opened.flags)
            return 0

        def read(self, path: bytes, buffer: Any, size: int, offset: int, info: Any) -> int:
            data = self.operations.read(path.decode(_ENCODING), size, offset, info.contents.fh)
            length = len(data)
            ctypes.memmove(buffer, data, length)
            return length

        def _wrapper(self, function: Callable[..., int | None], *arguments: Any) -> int:
            try:
                return function(*arguments) or 0
            except OSError as error:
                return -(error.errno or errno.EIO)
            except Exception:
                report(f"{function.__name__} failed\n{traceback.format_exc()}")
                return -errno.EIO

    return LeanFuse


def _mount_options(version: int) -> dict[str, Any]:
    """Mount options for libfuse of *version*, in the keywords of the bindings."""
    options: dict[str, Any] = {
        "foreground": True,
        "fsname": FILESYSTEM_NAME,
        "subtype": FILESYSTEM_NAME,
        "allow_other": os.geteuid() == 0,
        "entry_timeout": _FOREVER,
        "attr_timeout": 0,
        "negative_timeout": 0,
        "direct_io": True,
        "use_ino": True,
        "hard_remove": True,
    }
    if version < _LIBFUSE_3:
        # libfuse 3 does these without being asked.
        options |= {"big_writes": True, "atomic_o_trunc": True}
    elif version >= _LIBFUSE_WITH_THREAD_LIMIT:
        # The default, 10 threads, would let as many slow writers stop everybody.
        options |= {"max_threads": _MAX_THREADS, "max_idle_threads": _MAX_THREADS}
    return options


def _import(module: str, library: str) -> ModuleType:
    """Import a binding, which looks for its library on its own unless a variable names it."""
    before = os.environ.get(_LIBRARY_VARIABLE)
    os.environ[_LIBRARY_VARIABLE] = library
    try:
        return importlib.import_module(module)
    finally:
        if before is None:
            del os.environ[_LIBRARY_VARIABLE]
        else:
            os.environ[_LIBRARY_VARIABLE] = before
