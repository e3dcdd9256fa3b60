# SPDX-License-Identifier: MIT
"""Seccomp user notification: a filter that shows the system calls of generic netlink to another
process, and the listener from which that process takes and answers them.

The numbers are those of ``linux/seccomp.h``, ``linux/audit.h``, ``linux/bpf_common.h`` and the
system call tables of the kernel. Only the standard library is needed, so that a program can
install the filter before it becomes another one.
"""

from __future__ import annotations

import contextlib
import ctypes
import errno
import fcntl
import os
import platform
import resource
import struct
from collections.abc import Mapping
from dataclasses import dataclass
from enum import IntEnum
from typing import Final, NamedTuple

AF_NETLINK: Final = 16
NETLINK_GENERIC: Final = 16
SOCKADDR_NL_SIZE: Final = 12
F_DUPFD: Final = 0
F_DUPFD_CLOEXEC: Final = 1030
"""``linux/fcntl.h``."""
SYS_SOCKET: Final = 1
"""The operation of ``socketcall`` (``linux/net.h``)."""

RESERVED: Final = range(512, 1024)
"""Descriptors for sockets of generic netlink, where the limit of open files allows for them."""
_SMALLEST_LIMIT: Final = 16


class AuditArch(IntEnum):
    """``AUDIT_ARCH_*``: whose numbers a system call has."""

    X86_64 = 0xC000003E
    I386 = 0x40000003
    AARCH64 = 0xC00000B7
    ARM = 0x40000028


@dataclass(frozen=True, slots=True)
class Abi:
    """The system calls of one kind of machine."""

    arch: AuditArch
    seccomp: int
    capget: int
    calls: Mapping[str, int]
    """Numbers of those that the filter looks at."""
    foreign: Mapping[AuditArch, Mapping[str, int]]
    """What programs of another architecture may call on the same machine."""
    x32_bit: int = 0
    """Set in the numbers of programs with short pointers; 0 where there are none."""


X86_64: Final = Abi(
    AuditArch.X86_64,
    seccomp=317,
    capget=125,
    calls={
        "sendto": 44,
        "sendmsg": 46,
        "write": 1,
        "read": 0,
        "recvmsg": 47,
        "recvfrom": 45,
        "writev": 20,
        "readv": 19,
        "socket": 41,
        "fcntl": 72,
        "dup": 32,
        "dup2": 33,
        "dup3": 292,
        "sendmmsg": 307,
        "recvmmsg": 299,
    },
    foreign={AuditArch.I386: {"socket": 359, "socketcall": 102}},
    x32_bit=0x40000000,
)
AARCH64: Final = Abi(
    AuditArch.AARCH64,
    seccomp=277,
    capget=90,
    calls={
        "sendto": 206,
        "sendmsg": 211,
        "write": 64,
        "read": 63,
        "recvmsg": 212,
        "recvfrom": 207,
        "writev": 66,
        "readv": 65,
        "socket": 198,
        "fcntl": 25,
        "dup": 23,
        "dup3": 24,
        "sendmmsg": 269,
        "recvmmsg": 243,
    },
    foreign={AuditArch.ARM: {"socket": 281}},
)
ABIS: Final[Mapping[str, Abi]] = {"x86_64": X86_64, "aarch64": AARCH64}
"""By the name of the machine (``uname -m``)."""


def native_abi() -> Abi:
    """The system calls of this machine. Raises OSError(ENOSYS) where they are not known."""
    abi = ABIS.get(platform.machine())
    if abi is None:
        raise OSError(errno.ENOSYS, f"no table of the system calls of {platform.machine()}")
    return abi


def reserved_numbers(limit: int | None = None) -> range:
    """Where descriptors of generic netlink go for programs with a *limit* of open files.

    By default that of this process. The range begins at a multiple of its length, which is a
    power of two, so that a filter needs one comparison for it.
    """
    if limit is None:
        limit, _ = resource.getrlimit(resource.RLIMIT_NOFILE)
    if limit == resource.RLIM_INFINITY or limit >= RESERVED.stop:
        return RESERVED
    start = 1 << max(limit.bit_length() - 2, _SMALLEST_LIMIT.bit_length() - 1)
    return range(start, 2 * start)


# The filter: classic BPF over struct seccomp_data.

_INSTRUCTION: Final = struct.Struct("=HBBI")
"""``struct sock_filter``."""
_LOAD: Final = 0x20
"""BPF_LD | BPF_W | BPF_ABS."""
_AND: Final = 0x54
"""BPF_ALU | BPF_AND | BPF_K."""
_JUMP_EQUAL: Final = 0x15
"""BPF_JMP | BPF_JEQ | BPF_K."""
_RETURN: Final = 0x06
"""BPF_RET | BPF_K."""

SECCOMP_RET_USER_NOTIF: Final = 0x7FC00000
SECCOMP_RET_ALLOW: Final = 0x7FFF0000

_NR_OFFSET: Final = 0
_ARCH_OFFSET: Final = 4
_ARGS_OFFSET: Final = 16


class BpfProgram:
    """Classic BPF put together with labels to jump to, which come later in the program."""

    def __init__(self) -> None:
        self._code: list[tuple[int, int, str | None, str | None]] = []
        self._labels: dict[str, int] = {}

    def label(self, name: str) -> None:
        """What comes next is the target of jumps to *name*."""
        self._labels[name] = len(self._code)

    def load(self, offset: int) -> None:
        """Load four bytes of ``struct seccomp_data``."""
        self._code.append((_LOAD, offset, None, None))

    def load_arg(self, index: int) -> None:
        """Load the low half of an argument, which is all of an ``int``."""
        self.load(_ARGS_OFFSET + 8 * index)

    def mask(self, mask: int) -> None:
        """Keep only some bits of what was loaded."""
        self._code.append((_AND, mask & 0xFFFFFFFF, None, None))

    def jump_if(self, value: int, then: str | None, otherwise: str | None = None) -> None:
        """Go to *then* if *value* was loaded, else to *otherwise*; None goes on with the next."""
        self._code.append((_JUMP_EQUAL, value, then, otherwise))

    def end(self, action: int) -> None:
        """The result of the filter."""
        self._code.append((_RETURN, action, None, None))

    def assemble(self) -> bytes:
        """The program as the kernel takes it."""
        code = bytearray()
        for position, (operation, value, then, otherwise) in enumerate(self._code):
            code += _INSTRUCTION.pack(
                operation,
                self._distance(position, then),
                self._distance(position, otherwise),
                value,
            )
        return bytes(code)

    def _distance(self, position: int, label: str | None) -> int:
        return self._labels[label] - position - 1 if label is not None else 0


def filter_program(abi: Abi, reserved: range) -> bytes:
    """The filter for programs on a machine with *abi*, with sockets at *reserved* descriptors.

    The kernel finds out at installation which calls are allowed whatever their arguments are, and
    never runs the filter for those. Of the others, those that are made most come first.
    """
    program = BpfProgram()
    program.load(_ARCH_OFFSET)
    program.jump_if(abi.arch, "native")
    for arch in abi.foreign:
        program.jump_if(arch, f"arch-{arch.name}")
    program.end(SECCOMP_RET_ALLOW)

    program.label("native")
    program.load(_NR_OFFSET)
    special = {"sendto": "sendto", "socket": "socket", "fcntl": "fcntl"}
    for name, number in abi.calls.items():
        program.jump_if(number, special.get(name, "descriptor"))
    if abi.x32_bit:
        program.jump_if(abi.calls["socket"] | abi.x32_bit, "socket")
    program.end(SECCOMP_RET_ALLOW)

    program.label("fcntl")
    program.load_arg(1)
    program.jump_if(F_DUPFD, "descriptor")
    program.jump_if(F_DUPFD_CLOEXEC, "descriptor", "allow")
    program.label("sendto")
    program.load_arg(5)
    program.jump_if(SOCKADDR_NL_SIZE, "notify")
    program.label("descriptor")
    program.load_arg(0)
    program.mask(~(len(reserved) - 1))
    program.jump_if(reserved.start, "notify")
    program.label("allow")
    program.end(SECCOMP_RET_ALLOW)

    for arch, calls in abi.foreign.items():
        program.label(f"arch-{arch.name}")
        program.load(_NR_OFFSET)
        for name, number in calls.items():
            program.jump_if(number, name)
        program.end(SECCOMP_RET_ALLOW)
    if any("socketcall" in calls for calls in abi.foreign.values()):
        program.label("socketcall")
        program.load_arg(0)
        program.jump_if(SYS_SOCKET, "notify", "pass")
    program.label("socket")
    program.load_arg(0)
    program.jump_if(AF_NETLINK, None, "pass")
    program.load_arg(2)
    program.jump_if(NETLINK_GENERIC, "notify")
    program.label("pass")
    program.end(SECCOMP_RET_ALLOW)
    program.label("notify")
    program.end(SECCOMP_RET_USER_NOTIF)
    return program.assemble()


# Installation.

_SECCOMP_SET_MODE_FILTER: Final = 1
_SECCOMP_FILTER_FLAG_SPEC_ALLOW: Final = 1 << 2
_SECCOMP_FILTER_FLAG_NEW_LISTENER: Final = 1 << 3
_SECCOMP_FILTER_FLAG_WAIT_KILLABLE_RECV: Final = 1 << 5
_PR_SET_NO_NEW_PRIVS: Final = 38


class _SockFprog(ctypes.Structure):
    """``struct sock_fprog``."""

    _fields_ = (("len", ctypes.c_ushort), ("filter", ctypes.c_void_p))


def install(reserved: range | None = None) -> int:
    """Filter the calling thread and all that it starts, for good; the listener is returned.

    The process must not have other threads, which would not be filtered. Without CAP_SYS_ADMIN
    the programs that it starts gain no privilege by being set-user-ID. *reserved* is by default
    :func:`reserved_numbers`, and whoever takes the listener has to know it.

    Raises OSError: EBUSY when there is a filter with a listener already, ENOSYS or EINVAL when
    the kernel has no user notification.
    """
    abi = native_abi()
    code = filter_program(abi, reserved_numbers() if reserved is None else reserved)
    buffer = ctypes.create_string_buffer(code, len(code))
    program = _SockFprog(len(code) // _INSTRUCTION.size, ctypes.addressof(buffer))
    flags = _SECCOMP_FILTER_FLAG_NEW_LISTENER | _SECCOMP_FILTER_FLAG_SPEC_ALLOW
    libc = ctypes.CDLL(None, use_errno=True)

    def seccomp(flags: int) -> int:
        return int(
            libc.syscall(
                ctypes.c_long(abi.seccomp),
                ctypes.c_ulong(_SECCOMP_SET_MODE_FILTER),
                ctypes.c_ulong(flags),
                ctypes.byref(program),
            )
        )

    # A signal may end a call that waits only until the call has been taken from the listener.
    # Otherwise an answer could be lost to it of which the kernel says that it has arrived.
    flags |= _SECCOMP_FILTER_FLAG_WAIT_KILLABLE_RECV
    listener = seccomp(flags)
    if listener < 0 and ctypes.get_errno() == errno.EACCES:
        libc.prctl(_PR_SET_NO_NEW_PRIVS, *(ctypes.c_ulong(value) for value in (1, 0, 0, 0)))
        listener = seccomp(flags)
    if listener < 0 and ctypes.get_errno() == errno.EINVAL:
        # Before Linux 5.19.
        listener = seccomp(flags & ~_SECCOMP_FILTER_FLAG_WAIT_KILLABLE_RECV)
    if listener < 0:
        number = ctypes.get_errno()
        raise OSError(number, os.strerror(number))
    return listener


# The listener.


class Notification(NamedTuple):
    """``struct seccomp_notif`` with the ``struct seccomp_data`` in it: a call that waits."""

    id: int
    pid: int
    """The thread, as a number in the PID namespace of whoever reads it."""
    flags: int
    nr: int
    arch: int
    instruction_pointer: int
    arg0: int
    arg1: int
    arg2: int
    arg3: int
    arg4: int
    arg5: int


_NOTIF: Final = struct.Struct("=QIIiIQ6Q")
_NOTIF_RESP: Final = struct.Struct("=QqiI")
"""``struct seccomp_notif_resp``."""
_NOTIF_ADDFD: Final = struct.Struct("=QIIII")
"""``struct seccomp_notif_addfd``."""
_NOTIF_ID: Final = struct.Struct("=Q")

_IOC_WRITE: Final = 1
_IOC_READ: Final = 2


def _ioc(direction: int, number: int, size: int) -> int:
    """The number of a request of the listener (``asm-generic/ioctl.h``)."""
    return direction << 30 | size << 16 | ord("!") << 8 | number


_IOCTL_RECV: Final = _ioc(_IOC_READ | _IOC_WRITE, 0, _NOTIF.size)
_IOCTL_SEND: Final = _ioc(_IOC_READ | _IOC_WRITE, 1, _NOTIF_RESP.size)
_IOCTL_ID_VALID: Final = _ioc(_IOC_WRITE, 2, _NOTIF_ID.size)
_IOCTL_ADDFD: Final = _ioc(_IOC_WRITE, 3, _NOTIF_ADDFD.size)
_IOCTL_SET_FLAGS: Final = _ioc(_IOC_WRITE, 4, _NOTIF_ID.size)

_FLAG_CONTINUE: Final = 1
_ADDFD_FLAG_SETFD: Final = 1
_ADDFD_FLAG_SEND: Final = 2
_FD_SYNC_WAKE_UP: Final = 1
_NOTHING: Final = bytes(_NOTIF.size)
ERESTARTSYS: Final = 512
"""What the kernel makes of a call's end for a signal: it is made again after that, or EINTR."""


class Listener:
    """The descriptor on which the calls of filtered processes are taken and answered.

    Answers return whether the call still waited for one: a signal or death may have ended it.
    """

    def __init__(self, fd: int) -> None:
        """Take over *fd*, which :func:`install` has returned."""
        self._fd = fd
        with contextlib.suppress(OSError):
            # The calling thread then runs where this one does, which needs no other processor.
            fcntl.ioctl(fd, _IOCTL_SET_FLAGS, _FD_SYNC_WAKE_UP)

    def fileno(self) -> int:
        """The descriptor, which is readable when a call waits."""
        return self._fd

    def close(self) -> None:
        """Give it up: calls that wait and those to come fail with ENOSYS."""
        os.close(self._fd)

    def receive(self) -> Notification | None:
        """The next call, or None when it has gone meanwhile."""
        try:
            notif = fcntl.ioctl(self._fd, _IOCTL_RECV, _NOTHING)
        except OSError as error:
            if error.errno in (errno.ENOENT, errno.EINTR):
                return None
            raise
        return Notification._make(_NOTIF.unpack(notif))

    def valid(self, call: int) -> bool:
        """Whether a call still waits, so that its thread is the one that made it."""
        return self._ioctl(_IOCTL_ID_VALID, _NOTIF_ID.pack(call))

    def answer(self, call: int, value: int) -> bool:
        """Have the call return *value* without being made."""
        return self._ioctl(_IOCTL_SEND, _NOTIF_RESP.pack(call, value, 0, 0))

    def refuse(self, call: int, number: int) -> bool:
        """Have the call fail with an errno."""
        return self._ioctl(_IOCTL_SEND, _NOTIF_RESP.pack(call, 0, -number, 0))

    def proceed(self, call: int) -> bool:
        """Have the kernel make the call."""
        return self._ioctl(_IOCTL_SEND, _NOTIF_RESP.pack(call, 0, 0, _FLAG_CONTINUE))

    def inject(self, call: int, fd: int, number: int | None, flags: int) -> bool:
        """Give the caller *fd* and have the call return its number there.

        That is *number*, in place of what is open there, or the least free one for None. *flags*
        is 0 or O_CLOEXEC. Raises OSError: EBADF when *number* is beyond the caller's limit of
        open files, EMFILE when there is no free one; the call then waits still.
        """
        how = _ADDFD_FLAG_SEND | (_ADDFD_FLAG_SETFD if number is not None else 0)
        request = _NOTIF_ADDFD.pack(call, how, fd, number or 0, flags)
        return self._ioctl(_IOCTL_ADDFD, request)

    def _ioctl(self, request: int, argument: bytes) -> bool:
        try:
            fcntl.ioctl(self._fd, request, argument)
        except OSError as error:
            if error.errno in (errno.ENOENT, errno.EINPROGRESS):
                return False
            raise
        return True
