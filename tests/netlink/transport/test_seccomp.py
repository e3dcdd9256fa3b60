# SPDX-License-Identifier: MIT
"""Which calls the filter shows, and that a kernel takes it; its listener, and the end of that."""

from __future__ import annotations

import errno
import os
import platform
import select
import signal
import socket
import struct
from collections.abc import Callable

import pytest
from hypothesis import given
from hypothesis import strategies as st

from netlink.transport.seccomp import (
    AARCH64,
    F_DUPFD,
    F_DUPFD_CLOEXEC,
    RESERVED,
    SECCOMP_RET_ALLOW,
    SECCOMP_RET_USER_NOTIF,
    X86_64,
    Abi,
    AuditArch,
    Listener,
    filter_program,
    install,
    native_abi,
    reserved_numbers,
)

BOTH = pytest.mark.parametrize("abi", [X86_64, AARCH64], ids=["x86-64", "arm64"])
GENERIC = 16


def run(program: bytes, nr: int, arch: int, *args: int) -> int:
    """The result of a filter, by an interpreter of the instructions that it may have."""
    data = struct.pack("=iIQ6Q", nr, arch, 0, *(args + (0,) * 6)[:6])
    code = list(struct.iter_unpack("=HBBI", program))
    accumulator, position = 0, 0
    while True:
        operation, then, otherwise, value = code[position]
        position += 1
        if operation == 0x20:
            (accumulator,) = struct.unpack_from("=I", data, value)
        elif operation == 0x54:
            accumulator &= value
        elif operation == 0x15:
            position += then if accumulator == value else otherwise
        else:
            assert operation == 0x06
            return int(value)


def notified(abi: Abi, name: str, *args: int, reserved: range = RESERVED) -> bool:
    result = run(filter_program(abi, reserved), abi.calls[name], abi.arch, *args)
    assert result in (SECCOMP_RET_ALLOW, SECCOMP_RET_USER_NOTIF)
    return result == SECCOMP_RET_USER_NOTIF


@BOTH
def test_sockets_of_generic_netlink_are_shown_and_no_others(abi: Abi) -> None:
    assert notified(abi, "socket", socket.AF_NETLINK, socket.SOCK_RAW, GENERIC)
    assert notified(abi, "socket", socket.AF_NETLINK, socket.SOCK_DGRAM | os.O_CLOEXEC, GENERIC)
    assert not notified(abi, "socket", socket.AF_NETLINK, socket.SOCK_RAW, 0)
    assert not notified(abi, "socket", socket.AF_INET, socket.SOCK_RAW, GENERIC)


@BOTH
@pytest.mark.parametrize(
    "name", ["write", "read", "writev", "readv", "sendmsg", "recvmsg", "sendmmsg", "recvmmsg"]
)
@given(fd=st.integers(0, 2**64 - 1))
def test_transfers_are_shown_at_reserved_descriptors(abi: Abi, name: str, fd: int) -> None:
    assert notified(abi, name, fd) == (fd & 0xFFFFFFFF in RESERVED)


@BOTH
def test_edges_of_the_reserved_range_are_exact(abi: Abi) -> None:
    shown = [fd for fd in range(2048) if notified(abi, "recvfrom", fd)]
    assert shown == list(RESERVED)


@BOTH
def test_sends_to_a_netlink_address_are_shown_at_all_descriptors(abi: Abi) -> None:
    assert notified(abi, "sendto", 3, 0, 0, 0, 0, 12)
    assert not notified(abi, "sendto", 3, 0, 0, 0, 0, 16)
    assert notified(abi, "sendto", 600, 0, 0, 0, 0, 0)


@BOTH
def test_of_fcntl_only_what_makes_descriptors_is_shown(abi: Abi) -> None:
    shown = [command for command in range(2048) if notified(abi, "fcntl", 600, command)]
    assert shown == [F_DUPFD, F_DUPFD_CLOEXEC]
    assert not notified(abi, "fcntl", 5, F_DUPFD)


@BOTH
@given(nr=st.integers(-1, 600), args=st.lists(st.sampled_from([0, 12, 16, 600]), max_size=6))
def test_all_other_calls_are_allowed(abi: Abi, nr: int, args: list[int]) -> None:
    if nr not in abi.calls.values():
        result = run(filter_program(abi, RESERVED), nr, abi.arch, *args)
        assert result == SECCOMP_RET_ALLOW


def test_sockets_of_32_bit_programs_are_shown() -> None:
    program = filter_program(X86_64, RESERVED)
    shown = SECCOMP_RET_USER_NOTIF
    assert run(program, 359, AuditArch.I386, socket.AF_NETLINK, 3, GENERIC) == shown
    assert run(program, 102, AuditArch.I386, 1) == shown
    assert run(program, 102, AuditArch.I386, 2) == SECCOMP_RET_ALLOW
    assert run(program, 44, AuditArch.I386, 600) == SECCOMP_RET_ALLOW
    x32 = X86_64.calls["socket"] | X86_64.x32_bit
    assert run(program, x32, AuditArch.X86_64, socket.AF_NETLINK, 3, GENERIC) == shown
    program = filter_program(AARCH64, RESERVED)
    assert run(program, 281, AuditArch.ARM, socket.AF_NETLINK, 3, GENERIC) == shown


@pytest.mark.parametrize(
    ("limit", "expected"),
    [
        (1 << 30, range(512, 1024)),
        (1024, range(512, 1024)),
        (1023, range(256, 512)),
        (512, range(256, 512)),
        (300, range(128, 256)),
        (64, range(32, 64)),
        (3, range(16, 32)),
    ],
)
def test_reserved_range_is_the_upper_half_of_what_the_limit_allows(
    limit: int, expected: range
) -> None:
    assert reserved_numbers(limit) == expected


@given(limit=st.integers(0, 5000))
def test_reserved_range_needs_one_comparison(limit: int) -> None:
    reserved = reserved_numbers(limit)
    assert len(reserved) & (len(reserved) - 1) == 0
    assert reserved.start % len(reserved) == 0
    assert notified(X86_64, "read", reserved.start, reserved=reserved)
    assert not notified(X86_64, "read", reserved.stop, reserved=reserved)


def test_numbers_of_an_unknown_machine_are_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(platform, "machine", lambda: "vax")
    with pytest.raises(OSError, match="vax") as refused:
        native_abi()
    assert refused.value.errno == errno.ENOSYS


def filtered(function: Callable[[], int]) -> tuple[int, int]:
    """A process that installs the filter, and its listener here."""
    ours, theirs = socket.socketpair()
    pid = os.fork()
    if pid == 0:
        status = 255
        try:
            signal.alarm(20)
            listener = install()
            socket.send_fds(theirs, [b"l"], [listener])
            os.close(listener)
            status = function()
        finally:
            os._exit(status)
    theirs.close()
    with ours:
        _, (listener,), _, _ = socket.recv_fds(ours, 1, 1)
    return pid, listener


def status_of(pid: int) -> int:
    return os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1])


def errno_of_socket() -> int:
    try:
        socket.socket(socket.AF_NETLINK, socket.SOCK_RAW, GENERIC).close()
    except OSError as error:
        return error.errno or 0
    return 0


def test_call_waits_until_it_is_answered() -> None:
    pid, fd = filtered(errno_of_socket)
    listener = Listener(fd)
    call = listener.receive()
    assert call is not None
    assert (call.pid, call.nr, call.arch) == (
        pid,
        native_abi().calls["socket"],
        native_abi().arch,
    )
    assert (call.arg0, call.arg2) == (socket.AF_NETLINK, GENERIC)
    assert listener.valid(call.id)
    assert listener.refuse(call.id, errno.EL2HLT)
    assert not listener.valid(call.id)
    assert not listener.answer(call.id, 0)
    assert status_of(pid) == errno.EL2HLT
    listener.close()


def test_listener_hangs_up_when_all_processes_have_ended() -> None:
    pid, fd = filtered(lambda: 0)
    assert status_of(pid) == 0
    poll = select.poll()
    poll.register(fd, select.POLLIN)
    assert [events & select.POLLHUP for _, events in poll.poll(5000)] == [select.POLLHUP]
    os.close(fd)


def test_call_fails_when_nobody_listens_any_more() -> None:
    pid, fd = filtered(errno_of_socket)
    select.select([fd], [], [], 5)
    os.close(fd)
    assert status_of(pid) == errno.ENOSYS


def test_second_listener_is_refused() -> None:
    def again() -> int:
        try:
            install()
        except OSError as error:
            return error.errno or 0
        return 0

    pid, fd = filtered(again)
    assert status_of(pid) == errno.EBUSY
    os.close(fd)


def test_process_without_privilege_installs_it(monkeypatch: pytest.MonkeyPatch) -> None:
    real = install

    def as_nobody() -> int:
        if os.getuid() == 0:
            os.setgid(65534)
            os.setuid(65534)
        return real()

    monkeypatch.setitem(globals(), "install", as_nobody)
    pid, fd = filtered(lambda: 7)
    assert status_of(pid) == 7
    os.close(fd)
