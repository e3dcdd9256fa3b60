# SPDX-License-Identifier: MIT
"""A thread of another process while a system call of it waits: its memory, files and privilege.

What the calls to the kernel here do does not block, and all of them are short. So they keep the
interpreter's lock: to get it back would often take longer than the call.
"""

from __future__ import annotations

import contextlib
import ctypes
import errno
import os
import select
import struct
import threading
from collections.abc import Iterator, Sequence
from typing import Final

from netlink.transport.seccomp import SOCKADDR_NL_SIZE, native_abi

SOL_SOCKET: Final = 1

_PIDFD_OPEN_THREAD: Final = os.O_EXCL
"""``PIDFD_THREAD`` (``linux/pidfd.h``)."""
_SYS_PIDFD_GETFD: Final = 438
_CAPABILITY_VERSION: Final = 0x20080522
_CAPABILITY_HEADER: Final = struct.Struct("=Ii")
"""``struct __user_cap_header_struct``."""
_CAPABILITY_DATA: Final = struct.Struct("=6I")
"""Two of ``struct __user_cap_data_struct``: effective, permitted, inheritable."""
_IOVEC: Final = struct.Struct("=QQ")
IOV_MAX: Final = 1024
"""``UIO_MAXIOV``."""

_NEAR: Final = 1024
Segment = tuple[int, int]
"""Address and length of memory of the other process."""


_libc: Final = ctypes.PyDLL(None, use_errno=True)

_pidfd_getfd = _libc["syscall"]
_pidfd_getfd.argtypes = (ctypes.c_long, ctypes.c_long, ctypes.c_long, ctypes.c_long)
_pidfd_getfd.restype = ctypes.c_long
_capability = _libc["syscall"]
_capability.argtypes = (ctypes.c_long, ctypes.c_void_p, ctypes.c_void_p)
_capability.restype = ctypes.c_long
_connect = _libc["connect"]
_connect.argtypes = (ctypes.c_int, ctypes.c_char_p, ctypes.c_uint)
_socket = _libc["socket"]
_socket.argtypes = (ctypes.c_int, ctypes.c_int, ctypes.c_int)
_VM_ARGUMENTS: Final = (
    ctypes.c_int,
    ctypes.c_void_p,
    ctypes.c_ulong,
    ctypes.c_void_p,
    ctypes.c_ulong,
    ctypes.c_ulong,
)
_writev = _libc["process_vm_writev"]
_writev.argtypes = _VM_ARGUMENTS
_writev.restype = ctypes.c_ssize_t


def _error() -> OSError:
    number = ctypes.get_errno()
    return OSError(number, os.strerror(number))


class Scratch:
    """A buffer whose address is known, for calls to the kernel; it grows and never shrinks."""

    def __init__(self, size: int) -> None:
        self._allocate(size)

    def _allocate(self, size: int) -> None:
        self.data = bytearray(size)
        # Holding this keeps the bytes where they are.
        self._pin = (ctypes.c_char * size).from_buffer(self.data)
        self.address = ctypes.addressof(self._pin)

    def fit(self, size: int) -> None:
        """Have room for *size* bytes; what was in it may be lost."""
        if size > len(self.data):
            self._allocate(size)


class _Buffers(threading.local):
    """What each thread has for its calls."""

    def __init__(self) -> None:
        self.data = Scratch(65536)
        self.local = Scratch(_IOVEC.size)
        self.remote = Scratch(_IOVEC.size * 16)


_buffers = _Buffers()


def write(tid: int, pieces: Sequence[tuple[int, bytes | memoryview]]) -> None:
    """Put bytes at addresses of a thread's memory. Raises OSError(EFAULT) if not all could be put.

    To be called when the thread's system call has just been seen to wait: its number cannot go to
    another thread as fast as that.
    """
    content = b"".join([piece for _, piece in pieces])
    length = len(content)
    if not length:
        return
    buffers = _buffers
    data, local, remote = buffers.data, buffers.local, buffers.remote
    data.fit(length)
    data.data[:length] = content
    count = len(pieces)
    remote.fit(_IOVEC.size * count)
    position = 0
    for address, piece in pieces:
        _IOVEC.pack_into(remote.data, position, address, len(piece))
        position += _IOVEC.size
    _IOVEC.pack_into(local.data, 0, data.address, length)
    done: int = _writev(tid, local.address, 1, remote.address, count, 0)
    if done < 0:
        raise _error()
    if done != length:
        raise fault()


def fault() -> OSError:
    """What a call with a bad address fails with."""
    return OSError(errno.EFAULT, os.strerror(errno.EFAULT))


def new_socket(domain: int, kind: int, protocol: int) -> int:
    """``socket()`` as it is, whatever the arguments are. Raises OSError."""
    fd: int = _socket(domain, kind | os.O_CLOEXEC, protocol)
    if fd < 0:
        raise _error()
    return fd


def disconnect(fd: int) -> None:
    """Undo ``connect()`` of a socket. Raises OSError."""
    nobody = bytes(SOCKADDR_NL_SIZE)
    if _connect(fd, nobody, len(nobody)) < 0:
        raise _error()


def capabilities(tid: int) -> tuple[int, int, int]:
    """The effective, permitted and inheritable capabilities of a thread, of this one for 0.

    Raises OSError(ESRCH).
    """
    header = ctypes.create_string_buffer(_CAPABILITY_HEADER.pack(_CAPABILITY_VERSION, tid), 8)
    data = ctypes.create_string_buffer(_CAPABILITY_DATA.size)
    number = native_abi().capget
    if _capability(number, ctypes.addressof(header), ctypes.addressof(data)) < 0:
        raise _error()
    words = _CAPABILITY_DATA.unpack(data.raw)
    low, high = words[:3], words[3:]
    effective, permitted, inheritable = (b << 32 | a for a, b in zip(low, high, strict=True))
    return effective, permitted, inheritable


def _set_capabilities(effective: int, permitted: int, inheritable: int) -> None:
    header = ctypes.create_string_buffer(_CAPABILITY_HEADER.pack(_CAPABILITY_VERSION, 0), 8)
    sets = (effective, permitted, inheritable)
    words = [one & 0xFFFFFFFF for one in sets] + [one >> 32 for one in sets]
    data = ctypes.create_string_buffer(_CAPABILITY_DATA.pack(*words), _CAPABILITY_DATA.size)
    # capset comes after capget in all tables.
    number = native_abi().capget + 1
    if _capability(number, ctypes.addressof(header), ctypes.addressof(data)) < 0:
        raise _error()


@contextlib.contextmanager
def limited_to(effective: int) -> Iterator[None]:
    """Run with no more than the capabilities *effective*: this thread alone."""
    own, permitted, inheritable = capabilities(0)
    if not own & ~effective:
        yield
        return
    _set_capabilities(own & effective, permitted, inheritable)
    try:
        yield
    finally:
        _set_capabilities(own, permitted, inheritable)


def namespace(tid: int | None, kind: str) -> tuple[int, int]:
    """What identifies a namespace of a thread, of this one for None. Raises OSError."""
    found = os.stat(f"/proc/{'thread-self' if tid is None else tid}/ns/{kind}")
    return found.st_dev, found.st_ino


def thread_group(tid: int) -> int:
    """The process of a thread. Raises OSError when it is gone."""
    return int(_status(tid, "Tgid:")[-1])


def own_number(tid: int) -> int:
    """The number of a thread's process in its own PID namespace. Raises OSError."""
    return int(_status(tid, "NStgid:")[-1])


def _status(tid: int, key: str) -> list[str]:
    with open(f"/proc/{tid}/status", encoding="ascii", errors="replace") as status:
        for line in status:
            if line.startswith(key):
                return line.split()[1:]
    raise OSError(errno.ESRCH, os.strerror(errno.ESRCH))


def signals_waiting(tid: int) -> tuple[int, int]:
    """The signals, as masks, that wait for a thread and for its process, blocked ones apart.

    Those of the process are another thread's when there are others. Raises OSError.
    """
    found = {"SigPnd:": 0, "ShdPnd:": 0, "SigBlk:": 0}
    with open(f"/proc/{tid}/status", encoding="ascii", errors="replace") as status:
        for line in status:
            key, _, value = line.partition("\t")
            if key in found:
                found[key] = int(value, 16)
    own, shared, blocked = found.values()
    return own & ~blocked, shared & ~blocked


def is_single_threaded(tid: int) -> bool:
    """Whether a thread is the only one of its process. Raises OSError."""
    return _status(tid, "Threads:") == ["1"]


def name_of(tid: int) -> str:
    """What to call a thread's program in a message: its name and the number of the process."""
    try:
        with open(f"/proc/{tid}/comm", encoding="utf-8", errors="replace") as comm:
            return f"{comm.read().strip()}[{thread_group(tid)}]"
    except OSError:
        return f"process {tid}"


class Caller:
    """A thread that makes calls, remembered from one to the next."""

    def __init__(self, tid: int) -> None:
        """Raises OSError(ESRCH) when it is gone."""
        self.tid = tid
        self.last_number = 0
        """The reserved descriptor that it was given last."""
        self._lock = threading.Lock()
        self._memory = -1
        try:
            self.pidfd = os.pidfd_open(tid, _PIDFD_OPEN_THREAD)
        except OSError as error:
            if error.errno != errno.EINVAL:
                raise
            # Before Linux 6.9 there are only those of processes.
            self.pidfd = os.pidfd_open(thread_group(tid))

    def descriptor(self, number: int) -> int:
        """One of the files that the thread has open, as a descriptor of this process.

        Raises OSError: EBADF when *number* is not open there, ESRCH when the thread is gone.
        """
        with self._lock:
            if self.pidfd < 0:
                raise OSError(errno.ESRCH, os.strerror(errno.ESRCH))
            fd: int = _pidfd_getfd(_SYS_PIDFD_GETFD, self.pidfd, number, 0)
        if fd < 0:
            raise _error()
        return fd

    def read(self, address: int, length: int) -> bytes:
        """The thread's memory. Raises OSError(EFAULT) if not all is there.

        What was read counts only after the thread's call has been seen to wait still: it may have
        become another's before.
        """
        if not length:
            return b""
        with self._lock:
            data = b"" if self._memory < 0 else self._read(address, length)
            if not data and self.pidfd >= 0:
                # What was open may be the memory of the program that it was before.
                self._close_memory()
                self._memory = os.open(f"/proc/{self.tid}/mem", os.O_RDONLY | os.O_CLOEXEC)
                data = self._read(address, length)
        if len(data) != length:
            raise fault()
        return data

    def read_both(self, one: Segment, other: Segment) -> tuple[bytes, bytes]:
        """Two pieces of memory, at once where they are near each other. As :meth:`read`."""
        (low, low_size), (high, high_size) = sorted((one, other))
        span = high + high_size - low
        if low + low_size <= high and span <= _NEAR:
            # What is between two things on one stack is there, too.
            with contextlib.suppress(OSError):
                data = self.read(low, span)
                first, second = data[:low_size], data[high - low :]
                return (first, second) if one[0] == low else (second, first)
        return self.read(*one), self.read(*other)

    def _read(self, address: int, length: int) -> bytes:
        try:
            return os.pread(self._memory, length, address)
        except (OSError, OverflowError):
            return b""

    def exited(self) -> bool:
        """Whether the thread is gone."""
        with self._lock:
            if self.pidfd < 0:
                return True
            poll = select.poll()
            poll.register(self.pidfd, select.POLLIN)
            return bool(poll.poll(0))

    def renew(self) -> None:
        """It may be another program now, which has other memory."""
        with self._lock:
            self._close_memory()

    def _close_memory(self) -> None:
        if self._memory >= 0:
            os.close(self._memory)
        self._memory = -1

    def close(self) -> None:
        """Forget the thread."""
        with self._lock:
            self._close_memory()
            if self.pidfd >= 0:
                os.close(self.pidfd)
            self.pidfd = -1
