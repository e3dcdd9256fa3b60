# SPDX-License-Identifier: MIT
"""The messages of ``sendmsg()`` and ``recvmsg()``, and of the calls that are like these, in the
memory of another process.
"""

from __future__ import annotations

import ctypes
import errno
import os
import socket
import struct
import threading
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from typing import Final

from netlink.transport.caller import IOV_MAX, Caller, Scratch, Segment, write
from netlink.transport.seccomp import AF_NETLINK, SOCKADDR_NL_SIZE, Notification

SOCKADDR_NL: Final = struct.Struct("=HHII")
"""``struct sockaddr_nl``: family, padding, port, groups."""
_MSGHDR: Final = struct.Struct("=QI4xQQQQI4x")
"""``struct msghdr``: name, its length, iovec, its length, control, its length, flags."""
_NAMELEN_OFFSET: Final = 8
_CONTROLLEN_OFFSET: Final = 40
_FLAGS_OFFSET: Final = 48
_MMSGHDR_SIZE: Final = 64
_MSG_LEN_OFFSET: Final = _MSGHDR.size
_IOVEC: Final = struct.Struct("=QQ")
_INT: Final = struct.Struct("=i")
_CONTROLLEN_AND_FLAGS: Final = struct.Struct("=QI")
_CMSGHDR: Final = struct.Struct("=Qii")
"""``struct cmsghdr``: its length, level, type."""
_SCM_CREDENTIALS: Final = 2
_UCRED_SIZE: Final = 12
_MAX_ADDRESS: Final = 128
"""``sizeof(struct sockaddr_storage)``: more is refused."""
_MAX_RW_COUNT: Final = 0x7FFFF000
_USER_SPACE: Final = 1 << 63
_LARGEST_DATAGRAM: Final = 1 << 18
"""Bytes of a datagram that are received: more than a socket may send unless told otherwise."""
_LARGEST_CONTROL: Final = 4096
# Plain numbers: those of the socket module count bits slowly.
MSG_PEEK: Final = int(socket.MSG_PEEK)
MSG_TRUNC: Final = int(socket.MSG_TRUNC)
MSG_DONTWAIT: Final = int(socket.MSG_DONTWAIT)
_NO_SEND_FLAGS: Final = ~int(socket.MSG_DONTWAIT | socket.MSG_NOSIGNAL)


def _signed(value: int) -> int:
    """The ``int`` in a register."""
    value &= 0xFFFFFFFF
    return value - (value >> 31 << 32)


@dataclass(slots=True)
class Outgoing:
    """A datagram that another process is about to send."""

    data: bytes
    destination: tuple[int, int] | None
    """Port and groups, None for where the socket is connected to."""
    sent_at: int | None = None
    """Where ``sendmmsg()`` notes how much of it was sent."""


Limit = Callable[[], int]
"""The most bytes that the socket takes."""
_ALWAYS_TAKEN: Final = 2048


def _bounded(length: int, limit: Limit) -> bool:
    return 0 < length <= _ALWAYS_TAKEN or 0 < length <= limit()


def _destination(address: bytes) -> tuple[int, int] | None:
    family, _, port, groups = SOCKADDR_NL.unpack(address)
    return (port, groups) if family == AF_NETLINK else None


def _sendto(caller: Caller, call: Notification, limit: Limit) -> Iterator[Outgoing | None]:
    _, _, _, _, _, _, _, buffer, length, flags, address, size = call
    if flags & _NO_SEND_FLAGS or not _bounded(length, limit):
        yield None
        return
    if address:
        if not SOCKADDR_NL_SIZE <= _signed(size) <= _MAX_ADDRESS:
            yield None
            return
        name, data = caller.read_both((address, SOCKADDR_NL_SIZE), (buffer, length))
        destination = _destination(name)
        yield Outgoing(data, destination) if destination is not None else None
        return
    yield Outgoing(caller.read(buffer, length), None)


def _write(caller: Caller, call: Notification, limit: Limit) -> Iterator[Outgoing | None]:
    if not _bounded(call.arg2, limit):
        yield None
    else:
        yield Outgoing(caller.read(call.arg1, call.arg2), None)


def _writev(caller: Caller, call: Notification, limit: Limit) -> Iterator[Outgoing | None]:
    data = _gather(caller, call.arg1, call.arg2, limit)
    yield Outgoing(data, None) if data else None


def _gather(caller: Caller, iov: int, count: int, limit: Limit) -> bytes | None:
    """What an iovec says, or None if that is nothing or too much."""
    if not 0 < count <= IOV_MAX:
        return None
    segments = list(_IOVEC.iter_unpack(caller.read(iov, count * _IOVEC.size)))
    if not _bounded(sum(length for _, length in segments), limit):
        return None
    return b"".join([caller.read(address, length) for address, length in segments])


def _sendmsg(caller: Caller, call: Notification, limit: Limit) -> Iterator[Outgoing | None]:
    yield _one_sendmsg(caller, call.arg1, call.arg2, limit)


def _one_sendmsg(caller: Caller, header: int, flags: int, limit: Limit) -> Outgoing | None:
    name, size, iov, count, _, _, _ = _MSGHDR.unpack(caller.read(header, _MSGHDR.size))
    if flags & _NO_SEND_FLAGS:
        return None
    destination = None
    if name and size:
        if not SOCKADDR_NL_SIZE <= size <= _MAX_ADDRESS:
            return None
        destination = _destination(caller.read(name, SOCKADDR_NL_SIZE))
        if destination is None:
            return None
    data = _gather(caller, iov, count, limit)
    return Outgoing(data, destination) if data else None


def _sendmmsg(caller: Caller, call: Notification, limit: Limit) -> Iterator[Outgoing | None]:
    for index in range(min(call.arg2 & 0xFFFFFFFF, IOV_MAX)):
        header = call.arg1 + index * _MMSGHDR_SIZE
        one = _one_sendmsg(caller, header, call.arg3, limit)
        if one is not None:
            one.sent_at = header + _MSG_LEN_OFFSET
        yield one


Sends = Callable[[Caller, Notification, Limit], Iterator[Outgoing | None]]
"""What a call is to send, None for what only the kernel need look at.

Raises OSError(EFAULT) for what is not there.
"""
SENDS: Final[Mapping[str, Sends]] = {
    "sendto": _sendto,
    "sendmsg": _sendmsg,
    "sendmmsg": _sendmmsg,
    "write": _write,
    "writev": _writev,
}


@dataclass(slots=True)
class Incoming:
    """What another process offers for a datagram."""

    segments: list[Segment]
    room: int
    """Bytes of the segments."""
    flags: int = 0
    name: int = 0
    """Address for the sender's address; 0 when that is not wanted."""
    name_room: int = 0
    name_length_at: int = 0
    control: int = 0
    control_room: int | None = None
    """None where the call has none."""
    header: int = 0
    """Address of the ``struct msghdr``, 0 without one."""
    received_at: int = 0
    """Where ``recvmmsg()`` notes how much was received; 0 for other calls."""


def _recvfrom(caller: Caller, call: Notification) -> Incoming:
    one = _read(caller, call)
    one.flags = call.arg3 & 0xFFFFFFFF
    if call.arg4:
        one.name, one.name_length_at = call.arg4, call.arg5
        (one.name_room,) = _INT.unpack(caller.read(call.arg5, _INT.size))
        if one.name_room < 0:
            raise OSError(errno.EINVAL, os.strerror(errno.EINVAL))
    return one


def _read(caller: Caller, call: Notification) -> Incoming:
    room = min(call.arg2, _MAX_RW_COUNT)
    return Incoming([(call.arg1, room)], room)


def _readv(caller: Caller, call: Notification) -> Incoming:
    segments = _segments(caller, call.arg1, call.arg2)
    return Incoming(segments, sum(length for _, length in segments))


def _segments(caller: Caller, iov: int, count: int) -> list[Segment]:
    """An iovec that is received into. Raises OSError(EINVAL) or OSError(EFAULT) as the kernel."""
    if count > IOV_MAX:
        raise OSError(errno.EINVAL, os.strerror(errno.EINVAL))
    if not count:
        return []
    segments = list(_IOVEC.iter_unpack(caller.read(iov, count * _IOVEC.size)))
    if any(length >= _USER_SPACE for _, length in segments):
        raise OSError(errno.EINVAL, os.strerror(errno.EINVAL))
    return segments


def _recvmsg(caller: Caller, call: Notification) -> Incoming:
    return _one_recvmsg(caller, call.arg1, call.arg2)


def _one_recvmsg(caller: Caller, header: int, flags: int) -> Incoming:
    name, size, iov, count, control, control_room, _ = _MSGHDR.unpack(
        caller.read(header, _MSGHDR.size)
    )
    if count > IOV_MAX:
        raise OSError(errno.EMSGSIZE, os.strerror(errno.EMSGSIZE))
    size = _signed(size)
    if name and size < 0:
        raise OSError(errno.EINVAL, os.strerror(errno.EINVAL))
    segments = _segments(caller, iov, count)
    return Incoming(
        segments,
        sum(length for _, length in segments),
        flags & 0xFFFFFFFF,
        name,
        size,
        header + _NAMELEN_OFFSET,
        control,
        control_room if control else 0,
        header,
    )


def _recvmmsg(caller: Caller, call: Notification) -> Incoming:
    # One datagram is as much as a caller may count on.
    one = _one_recvmsg(caller, call.arg1, call.arg3)
    one.received_at = call.arg1 + _MSG_LEN_OFFSET
    return one


Receives = Callable[[Caller, Notification], Incoming]
"""What a call offers. Raises OSError as the call would fail before it receives anything."""
RECEIVES: Final[Mapping[str, Receives]] = {
    "recvfrom": _recvfrom,
    "recvmsg": _recvmsg,
    "recvmmsg": _recvmmsg,
    "read": _read,
    "readv": _readv,
}


@dataclass(slots=True)
class Datagram:
    """What has been received, as far as there was room for it."""

    data: bytes | memoryview
    """Of a buffer of the thread, so until it receives again."""
    length: int
    """Bytes of the whole datagram."""
    port: int
    groups: int
    control: bytes = b""
    flags: int = 0


@dataclass
class _Room:
    """Where a thread receives."""

    data: Scratch = field(default_factory=lambda: Scratch(_LARGEST_DATAGRAM))
    name: Scratch = field(default_factory=lambda: Scratch(SOCKADDR_NL.size))
    control: Scratch = field(default_factory=lambda: Scratch(_LARGEST_CONTROL))
    iov: Scratch = field(default_factory=lambda: Scratch(_IOVEC.size))
    header: Scratch = field(default_factory=lambda: Scratch(_MSGHDR.size))

    def __post_init__(self) -> None:
        self.view = memoryview(self.data.data)


class _Local(threading.local):
    def __init__(self) -> None:
        self.room = _Room()


_local = _Local()
_libc: Final = ctypes.PyDLL(None, use_errno=True)
_libc_recvmsg = _libc["recvmsg"]
_libc_recvmsg.argtypes = (ctypes.c_int, ctypes.c_void_p, ctypes.c_int)
_libc_recvmsg.restype = ctypes.c_ssize_t


def receive(
    sock: socket.SocketType, flags: int, size: int, control_room: int | None = None
) -> Datagram:
    """The next datagram of a socket, without waiting. Raises OSError(EAGAIN) if there is none.

    *size* is the room that the reader has: the kernel makes the datagrams of a dump as large as a
    reader has shown to have room for. *control_room* is that for ancillary data, None for a call
    that does not tell of it.
    """
    room = _local.room
    size = min(size, _LARGEST_DATAGRAM)
    flags |= MSG_DONTWAIT | MSG_TRUNC
    if control_room is not None or not size:
        return _recvmsg_raw(sock, flags, size, control_room or 0)
    length, (port, groups) = sock.recvfrom_into(room.view, size, flags)
    return Datagram(room.view[: min(length, size)], length, port, groups)


def _recvmsg_raw(sock: socket.SocketType, flags: int, size: int, control_room: int) -> Datagram:
    room = _local.room
    _IOVEC.pack_into(room.iov.data, 0, room.data.address, size)
    _MSGHDR.pack_into(
        room.header.data,
        0,
        room.name.address,
        SOCKADDR_NL.size,
        room.iov.address,
        1,
        room.control.address,
        min(control_room, _LARGEST_CONTROL),
        0,
    )
    # It does not wait, so it may keep the interpreter's lock.
    length: int = _libc_recvmsg(sock.fileno(), room.header.address, flags)
    if length < 0:
        number = ctypes.get_errno()
        raise OSError(number, os.strerror(number))
    _, _, _, _, _, control, shown = _MSGHDR.unpack(room.header.data)
    _, _, port, groups = SOCKADDR_NL.unpack(room.name.data)
    return Datagram(
        room.view[: min(length, size)],
        length,
        port,
        groups,
        bytes(memoryview(room.control.data)[:control]) if control else b"",
        shown & ~MSG_TRUNC,
    )


def from_kernel(datagram: Datagram) -> None:
    """Have a datagram look as if the kernel had sent it: port 0, and credentials of nobody."""
    datagram.port = 0
    offset = 0
    control = datagram.control
    while len(control) - offset >= _CMSGHDR.size:
        length, level, kind = _CMSGHDR.unpack_from(control, offset)
        if length < _CMSGHDR.size:
            break
        if (level, kind) == (socket.SOL_SOCKET, _SCM_CREDENTIALS):
            start = offset + _CMSGHDR.size
            end = min(start + _UCRED_SIZE, len(control))
            control = control[:start] + bytes(end - start) + control[end:]
        offset += length + -length % 8
    datagram.control = control


def deliver(tid: int, offered: Incoming, datagram: Datagram) -> int:
    """Put a datagram where a call wants it; what the call is to return.

    Raises OSError(EFAULT) when it cannot be put there.
    """
    data, flags = datagram.data, datagram.flags
    length = datagram.length
    pieces: list[tuple[int, bytes | memoryview]] = []
    if length > offered.room:
        flags |= MSG_TRUNC
        if not offered.flags & MSG_TRUNC:
            length = offered.room
    position = 0
    for address, size in offered.segments:
        if position >= len(data):
            break
        pieces.append((address, data[position : position + size]))
        position += size
    if offered.name:
        sender = SOCKADDR_NL.pack(AF_NETLINK, 0, datagram.port, datagram.groups)
        pieces.append((offered.name, sender[: offered.name_room]))
        pieces.append((offered.name_length_at, _INT.pack(SOCKADDR_NL.size)))
    if offered.header:
        control = datagram.control[: offered.control_room or 0]
        if control:
            pieces.append((offered.control, control))
        pieces.append(
            (
                offered.header + _CONTROLLEN_OFFSET,
                _CONTROLLEN_AND_FLAGS.pack(len(control), flags),
            )
        )
    if offered.received_at:
        pieces.append((offered.received_at, _INT.pack(length)))
    write(tid, pieces)
    return 1 if offered.received_at else length
