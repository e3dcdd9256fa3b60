# SPDX-License-Identifier: MIT
"""The system calls of namespaces and mounts, which Python's standard library lacks.

Each raises OSError with the errno of the kernel and, where there is one, the path it is about.
"""

from __future__ import annotations

import ctypes
import enum
import fcntl
import os
import signal
import socket
import struct
from collections.abc import Iterable
from pathlib import Path
from typing import Any

_libc = ctypes.CDLL(None, use_errno=True)

CAP_SYS_ADMIN = 21
"""include/uapi/linux/capability.h."""


class Namespace(enum.IntFlag):
    """Kinds of namespaces (``CLONE_NEW*`` in include/uapi/linux/sched.h)."""

    MOUNT = 0x0002_0000
    USER = 0x1000_0000
    PID = 0x2000_0000
    NET = 0x4000_0000


NAMESPACE_FILES = {
    Namespace.USER: "user",
    Namespace.MOUNT: "mnt",
    Namespace.NET: "net",
    Namespace.PID: "pid",
}
"""The files in ``/proc/PID/ns`` (namespaces(7))."""


class Mount(enum.IntFlag):
    """Flags of ``mount()`` (``MS_*`` in include/uapi/linux/mount.h)."""

    RDONLY = 1
    NOSUID = 2
    NODEV = 4
    NOEXEC = 8
    REMOUNT = 32
    BIND = 4096
    MOVE = 8192
    REC = 16384
    UNBINDABLE = 1 << 17
    PRIVATE = 1 << 18


_MNT_DETACH = 2
_SYS_PIVOT_ROOT = {"x86_64": 155, "aarch64": 41, "riscv64": 41}
_PR_SET_PDEATHSIG = 1
_SFD_CLOEXEC = os.O_CLOEXEC
_SFD_NONBLOCK = os.O_NONBLOCK
_SIGSET_BYTES = 128
_SIOCGIFFLAGS = 0x8913
_SIOCSIFFLAGS = 0x8914
_IFF_UP = 1
_IFREQ = struct.Struct("16sH22x")


def unshare(kinds: Namespace) -> None:
    """Be in new namespaces of these kinds; of the PIDs, only children are."""
    _call("unshare", int(kinds))


def setns(descriptor: int, kinds: Namespace) -> None:
    """Enter namespaces: *descriptor* is a file of one, or the pidfd of a process in all of them."""
    _call("setns", descriptor, int(kinds))


def same(pid: int, kind: Namespace) -> bool:
    """Whether process *pid* and this one are in the same namespace of a kind."""
    name = NAMESPACE_FILES[kind]
    return os.readlink(f"/proc/{pid}/ns/{name}") == os.readlink(f"/proc/self/ns/{name}")


def mount(
    source: str | Path, target: str | Path, kind: str = "", flags: int = 0, data: str = ""
) -> None:
    """``mount()``; *kind* is the type of filesystem."""
    _call(
        "mount",
        os.fsencode(source),
        os.fsencode(target),
        kind.encode(),
        ctypes.c_ulong(flags),
        data.encode(),
        path=target,
    )


def bind(source: str | Path, target: str | Path) -> None:
    """Show *source*, and what is mounted below it, at *target* too."""
    mount(source, target, flags=Mount.BIND | Mount.REC)


def detach(target: str | Path) -> None:
    """``umount2()`` of a mount and all below it, also of one in use."""
    _call("umount2", os.fsencode(target), _MNT_DETACH, path=target)


def become_root_directory(directory: Path) -> None:
    """Make the mount on *directory* the root of the mount namespace, and let go of the old one."""
    os.chdir(directory)
    number = _SYS_PIVOT_ROOT[os.uname().machine]
    # With both the same the old root comes to lie over the new one (pivot_root(2)).
    _call("syscall", ctypes.c_long(number), b".", b".", path=directory)
    detach(".")
    os.chdir("/")


def make_mounts_private() -> None:
    """Let no mount or unmount go from or to the other mount namespaces."""
    mount("none", "/", flags=Mount.REC | Mount.PRIVATE)


def die_with_parent(number: signal.Signals) -> None:
    """Have a signal sent to this process when the thread that forked it ends.

    Does not outlast a change of credentials; and the parent may have ended already.
    """
    _call("prctl", _PR_SET_PDEATHSIG, ctypes.c_ulong(number))


def signal_descriptor(signals: Iterable[int]) -> int:
    """``signalfd()``: reads the signals, which have to be blocked, as they come."""
    mask = 0
    for number in signals:
        mask |= 1 << (number - 1)
    return _call(
        "signalfd", -1, mask.to_bytes(_SIGSET_BYTES, "little"), _SFD_CLOEXEC | _SFD_NONBLOCK
    )


def bring_up_loopback() -> None:
    """Set the interface ``lo`` of this network namespace up."""
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM | socket.SOCK_CLOEXEC) as any_socket:
        answer = fcntl.ioctl(any_socket, _SIOCGIFFLAGS, _IFREQ.pack(b"lo", 0))
        _, flags = _IFREQ.unpack(answer)
        fcntl.ioctl(any_socket, _SIOCSIFFLAGS, _IFREQ.pack(b"lo", flags | _IFF_UP))


def become_root_of_user_namespace() -> None:
    """Be in a new user namespace, whose root is who calls (user_namespaces(7))."""
    uid, gid = os.geteuid(), os.getegid()
    unshare(Namespace.USER)
    _write("/proc/self/uid_map", f"0 {uid} 1")
    # The kernel wants it before it lets an ordinary user map a group.
    _write("/proc/self/setgroups", "deny")
    _write("/proc/self/gid_map", f"0 {gid} 1")


def has_capability(number: int) -> bool:
    """Whether this process has the capability in effect."""
    for line in Path("/proc/self/status").read_text().splitlines():
        if line.startswith("CapEff:"):
            return bool(int(line.split()[1], 16) >> number & 1)
    return False


def _write(path: str, text: str) -> None:
    descriptor = os.open(path, os.O_WRONLY | os.O_CLOEXEC)
    try:
        os.write(descriptor, text.encode())
    finally:
        os.close(descriptor)


def _call(name: str, *arguments: Any, path: str | Path | None = None) -> int:
    result = int(getattr(_libc, name)(*arguments))
    if result < 0:
        number = ctypes.get_errno()
        if path is None:
            raise OSError(number, os.strerror(number))
        raise OSError(number, os.strerror(number), str(path))
    return result
