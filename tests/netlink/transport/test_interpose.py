# SPDX-License-Identifier: MIT
"""Programs that know only the kernel's generic netlink, with families beside it."""

from __future__ import annotations

import contextlib
import ctypes
import errno
import fcntl
import mmap
import os
import platform
import resource
import select
import signal
import socket
import struct
import sys
import textwrap
import threading
import time
import weakref
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Never

import pytest

from netlink.server import Server
from netlink.transport import interpose, interposed
from netlink.transport.interpose import InterposeTransport, PendingReceive
from netlink.transport.loop import Loop
from netlink.transport.usermsg import Datagram
from tests.netlink.devices import BDF
from tests.netlink.transport.harness import (
    PATIENCE,
    Session,
    eventually,
    tell_parent,
    wait_for_parent,
)
from tests.netlink.unprivileged import as_nobody
from tests.netlink.wire import (
    ACK,
    DUMP,
    FAMILY_ID,
    FAMILY_NAME,
    GENERIC,
    GETFAMILY,
    NLCTRL,
    NLMSG_DONE,
    NLMSG_ERROR,
    REQUEST,
    NetlinkConnection,
    attribute,
    attributes,
    evidence_request,
    family_id,
    genl,
    message,
    read_evidence,
    split,
)

NAME = BDF.encode() + b"\0"
KERNEL = (0, 0)
OURS = message(NLCTRL, REQUEST, genl(GETFAMILY, attribute(FAMILY_NAME, b"pci-tsm\0")))
THEIRS = message(NLCTRL, REQUEST, genl(GETFAMILY, attribute(FAMILY_NAME, b"nlctrl\0")), seq=8)
RESERVED = range(512, 1024)
SOL_NETLINK, NETLINK_PKTINFO = 270, 3
PR_SET_DUMPABLE = 4
TGKILL = {"x86_64": 234, "aarch64": 131}.get(platform.machine(), -1)
CLONE_NEWUSER = 0x10000000
CLONE_NEWNET = 0x40000000


@pytest.fixture(scope="module")
def one_session() -> Iterator[Session]:
    session = Session()
    yield session
    session.close()


@pytest.fixture
def session(one_session: Session) -> Iterator[Session]:
    """A session for a test; nothing is left of the test's clients."""
    one_session.device.objects = {0: b"certificates" * 30_000, 2: b"odd"}
    one_session.reports.clear()
    yield one_session
    assert eventually(lambda: not one_session.transport.pending)


def generic(kind: int = socket.SOCK_RAW) -> socket.socket:
    made = socket.socket(socket.AF_NETLINK, kind, GENERIC)
    made.settimeout(None)
    return made


def bound() -> socket.socket:
    made = generic()
    made.bind(KERNEL)
    return made


def asked(request: bytes = OURS) -> socket.socket:
    """A socket with an answer to read."""
    made = bound()
    made.sendto(request, KERNEL)
    return made


def name_in(datagram: bytes) -> str:
    (answer,) = split(datagram)
    assert answer.type == NLCTRL, answer
    return dict(attributes(answer.payload[4:]))[FAMILY_NAME].removesuffix(b"\0").decode()


# Programs.


def test_evidence_is_read_beside_the_families_of_the_kernel(session: Session) -> None:
    def client() -> tuple[int, dict[int, bytes]]:
        connection = NetlinkConnection(GENERIC)
        number = family_id(connection, "pci-tsm")
        assert family_id(connection, "nlctrl") == NLCTRL
        connection.send(evidence_request(number, 5, NAME))
        return number, read_evidence(connection, 7, 65536).objects

    number, objects = session.run(client)
    assert objects == session.device.objects
    family = session.server.genl.by_name("pci-tsm")
    assert family is not None
    assert number == family.id


def test_iproute2_lists_and_finds_the_families(session: Session) -> None:
    listed = session.command("genl", "ctrl", "list")
    names = [line.split()[1] for line in listed.splitlines() if line.startswith("Name:")]
    assert names[0] == "nlctrl"
    assert len(names) == len(set(names))
    assert names[-2:] == ["pci-tsm", "device-evidence"]
    assert "Name: pci-tsm" in session.command("genl", "ctrl", "get", "name", "pci-tsm")
    assert "Name: nlctrl" in session.command("genl", "ctrl", "get", "name", "nlctrl")


def test_libnl_lists_the_families(session: Session) -> None:
    listed = session.command("genl-ctrl-list")
    assert [line.split()[1] for line in listed.split("\n") if line.startswith("0x03f")] == [
        "pci-tsm",
        "device-evidence",
    ]


PYROUTE2 = """
    from pyroute2 import GenericNetlinkSocket
    from pyroute2.netlink import genlmsg, NLM_F_DUMP, NLM_F_REQUEST

    class evidence(genlmsg):
        nla_map = (("UNSPEC", "none"), ("TYPE", "uint32"), ("MASK", "uint32"),
                   ("FLAGS", "uint32"), ("DEV", "asciiz"), ("NONCE", "cdata"), ("VAL", "cdata"))

    with GenericNetlinkSocket() as client:
        client.bind("pci-tsm", evidence)
        request = evidence()
        request["cmd"], request["version"] = 1, 1
        request["attrs"] = [("MASK", 1), ("DEV", "0000:01:00.0")]
        answers = client.nlm_request(request, client.prid, NLM_F_REQUEST | NLM_F_DUMP)
        print(sum(len(answer.get_attr("VAL")) for answer in answers))
"""


def test_pyroute2_reads_evidence(session: Session) -> None:
    out = session.command(sys.executable, "-c", textwrap.dedent(PYROUTE2))
    assert int(out) == len(session.device.objects[0])


def test_program_that_inherits_the_socket_uses_it(session: Session) -> None:
    def client() -> str:
        opened = bound()
        os.set_inheritable(opened.fileno(), True)
        text = f"""
            import socket
            inherited = socket.socket(fileno={opened.fileno()})
            inherited.sendto({OURS!r}, (0, 0))
            print(len(inherited.recvfrom(4096)[0]))
        """
        pid = os.fork()
        if pid == 0:
            os.execv(sys.executable, [sys.executable, "-c", textwrap.dedent(text)])
        assert os.waitpid(pid, 0)[1] == 0
        return "read"

    assert session.run(client) == "read"


# Sockets and descriptors.


def test_socket_has_a_reserved_descriptor_and_its_flags(session: Session) -> None:
    def client() -> list[tuple[int, int, int]]:
        libc = ctypes.CDLL(None)
        found = []
        for flags in (0, os.O_CLOEXEC, os.O_NONBLOCK, os.O_CLOEXEC | os.O_NONBLOCK):
            fd = libc.socket(socket.AF_NETLINK, socket.SOCK_RAW | flags, GENERIC)
            status = fcntl.fcntl(fd, fcntl.F_GETFL) & os.O_NONBLOCK
            found.append((fd, flags, fcntl.fcntl(fd, fcntl.F_GETFD) * os.O_CLOEXEC | status))
        return found

    found = session.run(client)
    assert all(fd in RESERVED for fd, _, _ in found)
    assert len({fd for fd, _, _ in found}) == 4
    assert [flags for _, flags, _ in found] == [flags for _, _, flags in found]


def test_refused_socket_fails_as_the_kernel_refuses_it(session: Session) -> None:
    def client() -> list[int]:
        numbers = []
        for kind in (socket.SOCK_STREAM, 0x40, 0):
            with pytest.raises(OSError, match=r"\[Errno") as refused:
                generic(kind)
            numbers.append(refused.value.errno or 0)
        return numbers

    assert session.run(client) == client()


def test_descriptor_in_use_is_never_replaced(session: Session) -> None:
    def client() -> list[int]:
        reading, _ = os.pipe()
        taken = [os.dup2(reading, number) for number in range(512, 520)]
        opened = [generic() for _ in range(5)]
        assert all(os.fstat(number).st_ino == os.fstat(reading).st_ino for number in taken)
        return [one.fileno() for one in opened]

    assert sorted(session.run(client)) == [520, 521, 522, 523, 524]


def test_more_sockets_than_reserved_descriptors_still_work(session: Session) -> None:
    def client() -> tuple[int, bytes]:
        resource.setrlimit(resource.RLIMIT_NOFILE, (2000, 2000))
        opened = [bound() for _ in range(len(RESERVED) + 3)]
        low = [one for one in opened if one.fileno() not in RESERVED]
        low[0].sendto(OURS, KERNEL)
        return len(low), low[0].recv(4096)

    count, datagram = session.run(client)
    assert count == 3
    assert name_in(datagram) == "pci-tsm"
    (report,) = session.reports
    assert "512 to 1023" in report


def test_limit_of_open_files_below_the_range_leaves_sockets_to_the_kernel(
    session: Session,
) -> None:
    def client() -> tuple[int, int]:
        soft = 100
        resource.setrlimit(resource.RLIMIT_NOFILE, (soft, soft))
        opened = [generic()]
        with contextlib.suppress(OSError):
            while True:
                opened.append(generic())
        try:
            generic()
        except OSError as error:
            return opened[0].fileno(), error.errno or 0
        return -1, 0

    first, number = session.run(client)
    assert first < 100
    assert number == errno.EMFILE


def test_filter_for_a_low_limit_has_another_range(session: Session) -> None:
    def client() -> tuple[int, tuple[int, int]]:
        resource.setrlimit(resource.RLIMIT_NOFILE, (256, 256))
        opened = asked()
        return opened.fileno(), opened.recvfrom(4096)[1]

    fd, sender = session.run(client, reserved=range(128, 256))
    assert fd in range(128, 256)
    assert sender == KERNEL


def test_duplicates_stay_in_the_reserved_range(session: Session) -> None:
    def client() -> list[tuple[int, bool]]:
        opened = bound()
        numbers = [
            os.dup(opened.fileno()),
            fcntl.fcntl(opened, fcntl.F_DUPFD, 3),
            fcntl.fcntl(opened, fcntl.F_DUPFD_CLOEXEC, 700),
        ]
        opened.close()
        found = []
        for number in numbers:
            flags = fcntl.fcntl(number, fcntl.F_GETFD)
            again = socket.socket(fileno=number)
            again.send(OURS)
            assert again.recvfrom(4096)[1] == KERNEL
            found.append((number, bool(flags)))
        return found

    found = session.run(client)
    assert all(number in RESERVED for number, _ in found)
    # os.dup() makes its descriptor close on exec by itself.
    assert [flag for _, flag in found[1:]] == [False, True]
    assert found[2][0] >= 700


def test_duplicate_at_a_low_descriptor_works_with_an_address(session: Session) -> None:
    def client() -> tuple[str, int]:
        opened = bound()
        low = socket.socket(fileno=os.dup2(opened.fileno(), 20))
        low.sendto(OURS, KERNEL)
        datagram, sender = low.recvfrom(4096)
        return name_in(datagram), sender[0]

    name, port = session.run(client)
    assert name == "pci-tsm"
    assert port == session.transport.port
    (report,) = session.reports
    assert "descriptor 20" in report


def test_socket_passed_to_another_process_works_with_an_address(session: Session) -> None:
    def client() -> str:
        ours, theirs = socket.socketpair()
        opened = bound()
        socket.send_fds(ours, [b"x"], [opened.fileno()])
        _, (fd,), _, _ = socket.recv_fds(theirs, 1, 1)
        passed = socket.socket(fileno=fd)
        passed.sendto(OURS, KERNEL)
        return name_in(passed.recv(4096))

    assert session.run(client) == "pci-tsm"


def test_client_in_another_network_namespace_sees_the_kernel_alone(session: Session) -> None:
    def client() -> int:
        assert ctypes.CDLL(None).unshare(CLONE_NEWNET) == 0
        opened = asked()
        assert opened.fileno() not in RESERVED
        (answer,) = split(opened.recv(4096))
        return answer.error

    assert session.run(client) == errno.ENOENT


def test_other_sockets_and_files_at_reserved_descriptors_work(session: Session) -> None:
    def client() -> list[bytes]:
        reading, writing = os.pipe()
        os.dup2(reading, 600)
        os.dup2(writing, 601)
        os.write(601, b"by pipe")
        one, other = socket.socketpair(socket.AF_UNIX, socket.SOCK_DGRAM)
        os.dup2(one.fileno(), 602)
        moved = socket.socket(fileno=602)
        moved.send(b"by socket")
        return [os.read(600, 100), other.recv(100)]

    assert session.run(client) == [b"by pipe", b"by socket"]


# Sending.


def iovec(*parts: bytes) -> tuple[ctypes.Array[ctypes.c_uint64], list[object]]:
    """An iovec, and what must live as long."""
    buffers = [ctypes.create_string_buffer(part, len(part)) for part in parts]
    flat = [value for one in buffers for value in (ctypes.addressof(one), len(one))]
    return (ctypes.c_uint64 * len(flat))(*flat), list(buffers)


def by_writev(opened: socket.socket) -> None:
    assert os.writev(opened.fileno(), [OURS[:7], OURS[7:]]) == len(OURS)


def by_sendmmsg(opened: socket.socket) -> None:
    libc = ctypes.CDLL(None, use_errno=True)
    vectors = [iovec(THEIRS), iovec(OURS)]
    headers = ctypes.create_string_buffer(128)
    for index, (vector, _) in enumerate(vectors):
        struct.pack_into(
            "=QI4xQQQQI4xI4x", headers, 64 * index, 0, 0, ctypes.addressof(vector), 1, 0, 0, 0, 0
        )
    sent = 0
    while sent < 2:
        start = ctypes.byref(headers, 64 * sent)
        count = libc.sendmmsg(opened.fileno(), start, 2 - sent, 0)
        assert count > 0, os.strerror(ctypes.get_errno())
        for index in range(sent, sent + count):
            (length,) = struct.unpack_from("=I", headers, 64 * index + 56)
            assert length == len((THEIRS, OURS)[index])
        sent += count
    assert name_in(opened.recv(4096)) == "nlctrl"


SENDS: dict[str, Callable[[socket.socket], object]] = {
    "send": lambda opened: opened.send(OURS),
    "sendto": lambda opened: opened.sendto(OURS, KERNEL),
    "sendmsg": lambda opened: opened.sendmsg([OURS[:5], OURS[5:]], [], 0, KERNEL),
    "sendmsg without address": lambda opened: opened.sendmsg([OURS]),
    "sendmmsg": by_sendmmsg,
    "write": lambda opened: os.write(opened.fileno(), OURS),
    "writev": by_writev,
}


@pytest.mark.parametrize("how", SENDS)
def test_every_way_to_send_is_answered(session: Session, how: str) -> None:
    def client() -> str:
        opened = bound()
        SENDS[how](opened)
        return name_in(opened.recv(4096))

    assert session.run(client) == "pci-tsm"


def test_send_returns_the_length(session: Session) -> None:
    assert session.run(lambda: bound().sendto(OURS, KERNEL)) == len(OURS)


def test_unbound_socket_gets_the_port_that_the_kernel_would_give(session: Session) -> None:
    def client() -> tuple[int, int, str]:
        opened, other = generic(), generic()
        opened.send(OURS)
        other.send(OURS)
        assert other.getsockname() != opened.getsockname()
        assert name_in(other.recv(4096)) == "pci-tsm"
        return opened.getsockname()[0], os.getpid(), name_in(opened.recv(4096))

    port, pid, name = session.run(client)
    assert port == pid
    assert name == "pci-tsm"


def test_connected_socket_is_answered(session: Session) -> None:
    def client() -> list[object]:
        opened = bound()
        opened.connect(KERNEL)
        opened.send(OURS)
        first = name_in(opened.recv(4096))
        opened.connect(KERNEL)
        opened.send(OURS)
        return [first, name_in(opened.recv(4096)), opened.getpeername()]

    assert session.run(client) == ["pci-tsm", "pci-tsm", KERNEL]


def test_mixed_datagram_is_answered_in_order(session: Session) -> None:
    def client() -> list[str]:
        opened = asked(THEIRS + OURS + THEIRS + OURS)
        return [name_in(opened.recv(4096)) for _ in range(4)]

    assert session.run(client) == ["nlctrl", "pci-tsm", "nlctrl", "pci-tsm"]


def test_dump_of_families_ends_once_with_the_sequence_number(session: Session) -> None:
    def client() -> list[tuple[int, int, int]]:
        opened = asked(message(NLCTRL, REQUEST | DUMP, genl(GETFAMILY), seq=99))
        port = opened.getsockname()[0]
        found: list[tuple[int, int, int]] = []
        while not found or found[-1][0] != NLMSG_DONE:
            for one in split(opened.recv(65536)):
                number = 0
                if one.type == NLCTRL:
                    (number,) = struct.unpack("=H", dict(attributes(one.payload[4:]))[FAMILY_ID])
                assert (one.seq, one.pid) == (99, port)
                found.append((one.type, number, one.seq))
        return found

    found = session.run(client)
    numbers = [number for kind, number, _ in found if kind == NLCTRL]
    assert numbers[0] == NLCTRL
    assert len(numbers) == len(set(numbers))
    assert [family.id for family in session.server.genl.families()][1:] == numbers[-2:]


def test_small_reader_gets_all_families_in_small_datagrams(session: Session) -> None:
    def client() -> int:
        opened = asked(message(NLCTRL, REQUEST | DUMP, genl(GETFAMILY)))
        largest = 0
        while True:
            datagram = opened.recv(4096)
            largest = max(largest, len(datagram))
            if any(one.type == NLMSG_DONE for one in split(datagram)):
                return largest

    assert session.run(client) <= 4096


def test_refusal_shows_what_the_socket_asked_for(session: Session) -> None:
    def client() -> list[bytes]:
        found = []
        number = family_id(NetlinkConnection(GENERIC), "pci-tsm")
        request = evidence_request(number, None, NAME)
        for options in ((), (10,), (11,), (10, 11)):
            opened = bound()
            for option in options:
                opened.setsockopt(SOL_NETLINK, option, 1)
            opened.send(request)
            (answer,) = split(opened.recv(4096))
            assert (answer.type, answer.error) == (NLMSG_ERROR, errno.EINVAL)
            found.append(answer.text.encode() + bytes([bool(answer.flags & 0x100)]))
        return found

    text = b"missing object request mask"
    assert session.run(client) == [b"\0", b"\1", text + b"\0", text + b"\1"]


def test_ack_follows_the_answer(session: Session) -> None:
    def client() -> list[tuple[int, int]]:
        request = genl(GETFAMILY, attribute(FAMILY_NAME, b"pci-tsm\0"))
        opened = asked(message(NLCTRL, REQUEST | ACK, request, seq=4711))
        return [(one.type, one.seq) for _ in range(2) for one in split(opened.recv(4096))]

    assert session.run(client) == [(NLCTRL, 4711), (NLMSG_ERROR, 4711)]


def test_requests_go_to_the_kernel_as_they_are(session: Session) -> None:
    unknown = message(NLCTRL, REQUEST, genl(GETFAMILY, attribute(FAMILY_NAME, b"nosuch\0")))
    requests = [THEIRS, unknown, message(NLCTRL, REQUEST, genl(77)), message(3000, REQUEST), b"x"]

    def client() -> list[list[bytes]]:
        found: list[list[bytes]] = []
        for request in requests:
            opened = asked(request)
            opened.settimeout(seconds[len(found)])
            answers = []
            with contextlib.suppress(TimeoutError):
                answers.append(opened.recv(4096))
            found.append([answer[:12] + answer[16:] for answer in answers])
        return found

    # The kernel answers before the request returns.
    seconds: list[float] = [0.2] * len(requests)
    native = client()
    seconds = [10 if answers else 0.2 for answers in native]
    assert session.run(client) == native


def errno_of(function: Callable[[], object]) -> int:
    try:
        function()
    except OSError as error:
        return error.errno or 0
    return 0


def test_bad_sends_fail_as_in_the_kernel(session: Session) -> None:
    libc = ctypes.CDLL(None, use_errno=True)

    def raw(opened: socket.socket, address: object, length: int) -> None:
        if libc.send(opened.fileno(), address, ctypes.c_size_t(length), 0) < 0:
            raise OSError(ctypes.get_errno(), "")

    def client() -> list[int]:
        opened = bound()
        return [
            errno_of(lambda: raw(opened, ctypes.c_void_p(8), 100)),
            errno_of(lambda: opened.send(bytes(1 << 22))),
            errno_of(lambda: opened.send(OURS, socket.MSG_OOB)),
            errno_of(lambda: opened.send(b"")),
            errno_of(lambda: raw(opened, ctypes.c_void_p(2**64 - 100), 50)),
        ]

    assert session.run(client) == client()


def test_client_without_privilege_is_refused_evidence(session: Session) -> None:
    def client() -> int:
        connection = NetlinkConnection(GENERIC)
        number = family_id(connection, "pci-tsm")
        os.setgid(65534)
        os.setuid(65534)
        (answer,) = do_evidence(connection, number)
        return answer

    assert session.run(client) == errno.EPERM


def do_evidence(connection: NetlinkConnection, number: int) -> list[int]:
    connection.send(evidence_request(number, 1, NAME))
    return [one.error for one in split(connection.recv()) if one.type == NLMSG_ERROR]


def test_client_in_another_user_namespace_has_no_privilege(session: Session) -> None:
    def client() -> list[int]:
        assert ctypes.CDLL(None).unshare(CLONE_NEWUSER) == 0
        connection = NetlinkConnection(GENERIC)
        return do_evidence(connection, family_id(connection, "pci-tsm"))

    assert session.run(client) == [errno.EPERM]


def test_socket_of_a_client_without_privilege_has_none_in_the_kernel(session: Session) -> None:
    """Joining a group needs CAP_NET_ADMIN of the opener for some families; so does a port."""

    def client() -> int:
        os.setgid(65534)
        os.setuid(65534)
        opened = bound()
        # To send to a port of another needs CAP_NET_ADMIN of sender and opener.
        return errno_of(lambda: opened.sendto(THEIRS, (opened.getsockname()[0], 0)))

    assert session.run(client) == errno.EPERM


# Receiving.


def test_sender_of_every_answer_is_the_kernel(session: Session) -> None:
    def client() -> list[object]:
        opened = asked(OURS + OURS + OURS + THEIRS)
        return [
            opened.recvfrom(4096)[1],
            opened.recvmsg(4096)[3],
            opened.recvmsg_into([bytearray(30), bytearray(4096)])[3],
            opened.recvfrom(4096)[1],
        ]

    assert session.run(client) == [KERNEL] * 4


def test_peek_leaves_the_datagram(session: Session) -> None:
    def client() -> list[object]:
        opened = asked()
        peeked = opened.recvfrom(4096, socket.MSG_PEEK)
        again = opened.recvfrom(4096)
        return [peeked == again, errno_of(lambda: opened.recvfrom(1, socket.MSG_DONTWAIT))]

    assert session.run(client) == [True, errno.EAGAIN]


def test_short_buffers_truncate_as_in_the_kernel(session: Session) -> None:
    def shown(request: bytes) -> list[object]:
        found: list[object] = []
        for flags in (0, socket.MSG_TRUNC):
            opened = asked(request + request)
            buffer = bytearray(b"." * 24)
            count, sender = opened.recvfrom_into(buffer, 20, flags)
            found += [count == 20, sender, bytes(buffer[20:])]
            length, _, seen, sender = opened.recvmsg_into([bytearray(20)], 0, flags)
            found += [length == 20, seen, sender]
        opened = asked(request)
        # How much there is is looked at with no buffer at all.
        flags = socket.MSG_PEEK | socket.MSG_TRUNC
        length, _, seen, sender = opened.recvmsg_into([], 0, flags)
        found += [seen, sender, length == len(opened.recv(4096))]
        return found

    native = shown(THEIRS)
    assert session.run(lambda: shown(THEIRS)) == native
    assert session.run(lambda: shown(OURS)) == native


def test_ancillary_data_passes_through(session: Session) -> None:
    def shown(request: bytes) -> list[object]:
        opened = bound()
        opened.setsockopt(SOL_NETLINK, NETLINK_PKTINFO, 1)
        opened.setsockopt(socket.SOL_SOCKET, socket.SO_PASSCRED, 1)
        opened.send(request + request + request)
        found: list[object] = []
        for room in (4096, 20, 0):
            _, control, seen, sender = opened.recvmsg(4096, room)
            found += [control, seen, sender]
        return found

    native = shown(THEIRS)
    assert session.run(lambda: shown(THEIRS)) == native
    assert session.run(lambda: shown(OURS)) == native


def test_recvmmsg_receives_a_datagram(session: Session) -> None:
    def client() -> tuple[int, int, bytes]:
        libc = ctypes.CDLL(None, use_errno=True)
        opened = asked()
        vector, _buffer = iovec(bytes(4096))
        name = ctypes.create_string_buffer(12)
        headers = ctypes.create_string_buffer(64)
        struct.pack_into(
            "=QI4xQQQQI4xI4x",
            headers,
            0,
            ctypes.addressof(name),
            12,
            ctypes.addressof(vector),
            1,
            0,
            0,
            0,
            0,
        )
        count = libc.recvmmsg(opened.fileno(), headers, 1, 0, None)
        (length,) = struct.unpack_from("=I", headers, 56)
        assert length > 50
        return count, length, name.raw

    count, _, name = session.run(client)
    assert count == 1
    assert name == struct.pack("=HHII", socket.AF_NETLINK, 0, 0, 0)


def test_read_and_readv_receive(session: Session) -> None:
    def client() -> list[str]:
        opened = asked(OURS + OURS)
        first = os.read(opened.fileno(), 4096)
        head, tail = bytearray(10), bytearray(4096)
        length = os.readv(opened.fileno(), [head, tail])
        return [name_in(first), name_in(bytes(head + tail)[:length])]

    assert session.run(client) == ["pci-tsm"] * 2


def test_bad_pointers_of_a_receiver_fail(session: Session) -> None:
    libc = ctypes.CDLL(None, use_errno=True)

    def recvfrom(opened: socket.socket, buffer: object, address: object, length: object) -> int:
        if libc.recvfrom(opened.fileno(), buffer, ctypes.c_size_t(4096), 0, address, length) < 0:
            return ctypes.get_errno()
        return 0

    def shown(request: bytes) -> list[int]:
        buffer, name = ctypes.create_string_buffer(4096), ctypes.create_string_buffer(12)
        size = ctypes.byref(ctypes.c_int(12))
        bad = ctypes.c_void_p(16)
        read_only = mmap.mmap(-1, 4096, prot=mmap.PROT_READ)
        page = ctypes.c_void_p(address_of(read_only))
        cases = [
            (bad, name, size),
            (buffer, bad, size),
            (buffer, name, bad),
            (buffer, name, ctypes.byref(ctypes.c_int(-1))),
            (page, name, size),
        ]
        return [recvfrom(asked(request), *case) for case in cases]

    native = shown(THEIRS)
    assert native[0] == errno.EFAULT
    assert session.run(lambda: shown(OURS)) == native


def address_of(mapped: mmap.mmap) -> int:
    """Where a shared mapping is that must not be written."""
    assert len(mapped)
    with open("/proc/self/maps", encoding="ascii") as maps:
        (line,) = [one for one in maps if " r--s " in one and "/dev/zero" in one]
    return int(line.partition("-")[0], 16)


def test_nothing_to_read_is_said_at_once_if_the_reader_does_not_wait(session: Session) -> None:
    def client() -> list[int]:
        opened = bound()
        found = [errno_of(lambda: opened.recvfrom(10, socket.MSG_DONTWAIT))]
        opened.setblocking(False)
        found.append(errno_of(lambda: opened.recvfrom(10)))
        return found

    assert session.run(client) == [errno.EAGAIN] * 2


def test_timeout_of_the_socket_ends_the_wait(session: Session) -> None:
    def client() -> tuple[int, float]:
        opened = bound()
        timeout = struct.pack("=qq", 0, 200_000)
        opened.setsockopt(socket.SOL_SOCKET, socket.SO_RCVTIMEO, timeout)
        start = time.monotonic()
        number = errno_of(lambda: opened.recvfrom(10))
        return number, time.monotonic() - start

    number, seconds = session.run(client)
    assert number == errno.EAGAIN
    assert 0.19 < seconds < 15


@contextlib.contextmanager
def another_thread_asks(opened: socket.socket) -> Iterator[None]:
    """In a client: a question is sent at a socket once the parent says so."""

    def ask() -> None:
        wait_for_parent()
        opened.sendto(OURS, KERNEL)

    thread = threading.Thread(target=ask)
    thread.start()
    yield
    thread.join()


def test_call_with_a_long_timeout_is_not_remembered_when_it_has_ended(session: Session) -> None:
    def client() -> str:
        opened = bound()
        opened.setsockopt(socket.SOL_SOCKET, socket.SO_RCVTIMEO, struct.pack("=qq", 3600, 0))

        with another_thread_asks(opened):
            datagram, _ = opened.recvfrom(4096)
        return name_in(datagram)

    child = session.start(client)
    assert eventually(lambda: len(session.transport.pending) == 1)
    (left,) = [weakref.ref(pending) for pending in session.transport.pending.values()]
    child.send()
    assert child.end() == "pci-tsm"
    assert eventually(lambda: left() is None)


def test_reader_that_waits_is_woken_by_the_answer(session: Session) -> None:
    def client() -> str:
        opened = bound()
        sender = threading.Timer(0.1, lambda: opened.sendto(OURS, KERNEL))
        sender.start()
        datagram, address = opened.recvfrom(4096)
        sender.join()
        assert address == KERNEL
        return name_in(datagram)

    assert session.run(client) == "pci-tsm"


def test_poll_sees_answers(session: Session) -> None:
    def client() -> list[bool]:
        opened = bound()
        poll = select.poll()
        poll.register(opened, select.POLLIN)
        before = bool(poll.poll(50))
        opened.send(OURS)
        return [before, bool(poll.poll(5000)), bool(opened.recvfrom(4096)), bool(poll.poll(0))]

    assert session.run(client) == [False, True, True, False]


def test_overrun_of_the_kernel_is_reported(session: Session) -> None:
    """The kernel drops what does not fit, and says so once."""

    def client() -> int:
        opened = bound()
        opened.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 2048)
        numbers = set()
        for _ in range(40):
            with contextlib.suppress(OSError):
                opened.sendto(THEIRS, KERNEL)
        for _ in range(60):
            number = errno_of(lambda: opened.recvfrom(4096, socket.MSG_DONTWAIT))
            numbers.add(number)
        return errno.ENOBUFS if errno.ENOBUFS in numbers else max(numbers)

    assert session.run(client) == client()


def test_signal_interrupts_a_reader_and_nothing_is_lost(session: Session) -> None:
    def client() -> list[object]:
        opened = bound()
        caught: list[int] = []

        def handler(number: int, _frame: object) -> None:
            caught.append(number)
            if len(caught) == 3:
                opened.sendto(OURS, KERNEL)

        signal.signal(signal.SIGALRM, handler)
        signal.setitimer(signal.ITIMER_REAL, 0.05, 0.05)
        datagram, _ = opened.recvfrom(4096)
        signal.setitimer(signal.ITIMER_REAL, 0)
        return [len(caught) >= 3, name_in(datagram)]

    assert session.run(client) == [True, "pci-tsm"]


@pytest.mark.parametrize("threads", [0, 1])
@pytest.mark.parametrize("restart", [True, False])
def test_signal_ends_a_wait_as_its_handler_says(
    session: Session, threads: int, restart: bool
) -> None:
    def client() -> int:
        opened = bound()
        for _ in range(threads):
            threading.Thread(target=time.sleep, args=(30,), daemon=True).start()

        def handler(number: int, _frame: object) -> None:
            opened.sendto(OURS, KERNEL)

        signal.signal(signal.SIGUSR1, handler)
        signal.siginterrupt(signal.SIGUSR1, not restart)
        libc = ctypes.PyDLL(None, use_errno=True)
        name, size = ctypes.create_string_buffer(12), ctypes.byref(ctypes.c_int(12))
        buffer = ctypes.create_string_buffer(4096)
        process, thread = os.getpid(), threading.get_native_id()
        if os.fork() == 0:
            wait_for_parent()
            libc.syscall(TGKILL, process, thread, signal.SIGUSR1)
            if restart:
                # The wait goes on, so that nothing else ends it.
                time.sleep(0.1)
                os.kill(process, signal.SIGKILL)
            os._exit(0)
        libc.recvfrom(opened.fileno(), buffer, 4096, 0, name, size)
        return ctypes.get_errno()

    child = session.start(client)
    assert eventually(lambda: len(session.transport.pending) == 1)
    child.send()
    if restart:
        assert child.wait() == -signal.SIGKILL
    else:
        assert child.end() == errno.EINTR


def test_wait_goes_on_while_there_is_no_descriptor_to_look_for_signals(
    session: Session, monkeypatch: pytest.MonkeyPatch
) -> None:
    def client() -> str:
        opened = bound()
        with another_thread_asks(opened):
            datagram, _ = opened.recvfrom(4096)
        return name_in(datagram)

    refusals = Refusals(errno.EMFILE)
    with monkeypatch.context() as patch:
        patch.setattr(interpose, "signals_waiting", refusals)
        child = session.start(client)
        assert eventually(lambda: refusals.count >= 3)
    child.send()
    assert child.end() == "pci-tsm"


def test_wait_that_meets_a_bug_fails_and_does_not_hang(
    session: Session, monkeypatch: pytest.MonkeyPatch
) -> None:
    def client() -> int | None:
        opened = bound()
        with another_thread_asks(opened):
            try:
                opened.recvfrom(4096)
            except OSError as error:
                return error.errno
        return None

    def fail_to_deliver(*_: object) -> int:
        raise ValueError

    child = session.start(client)
    assert eventually(lambda: bool(session.transport.pending))
    monkeypatch.setattr(interpose, "deliver", fail_to_deliver)
    child.send()
    assert child.end() == errno.EIO


def test_storm_of_signals_loses_and_doubles_nothing(session: Session) -> None:
    def client() -> list[int]:
        opened = bound()
        signal.signal(signal.SIGALRM, lambda _number, _frame: None)
        signal.setitimer(signal.ITIMER_REAL, 0.0002, 0.0002)
        received = []
        for number in range(400):
            request = genl(GETFAMILY, attribute(FAMILY_NAME, b"pci-tsm\0"))
            opened.sendto(message(NLCTRL, REQUEST, request, seq=number), KERNEL)
            while not select.select([opened], [], [], 2)[0]:
                pass
            (answer,) = split(opened.recvfrom(4096)[0])
            received.append(answer.seq)
        signal.setitimer(signal.ITIMER_REAL, 0)
        return received

    assert session.run(client) == list(range(400))


def test_datagram_kept_for_a_reader_that_was_interrupted_comes_next(session: Session) -> None:
    """A call has received it that was gone when it was to return."""

    def client() -> list[object]:
        opened = asked()
        opened.recvfrom(4096)
        opened.sendto(OURS, KERNEL)
        tell_parent(b"ready")
        wait_for_parent()
        readable = bool(select.select([opened], [], [], 2)[0])
        peeked, _ = opened.recvfrom(4096, socket.MSG_PEEK)
        kept, sender = opened.recvfrom(4096)
        answer = opened.recv(4096)
        left = bool(select.select([opened], [], [], 0)[0])
        number = errno_of(lambda: opened.recvfrom(10, socket.MSG_DONTWAIT))
        return [readable, peeked == kept, kept, sender, name_in(answer), left, number]

    child = session.start(client)
    assert child.heard() == b"ready"
    known = session.transport.clients()[-1]
    known.keep(Datagram(b"kept", 4, 0, 0))
    child.send()
    assert child.end() == [True, True, b"kept", KERNEL, "pci-tsm", False, errno.EAGAIN]


# Errors of the server's own system.


class Refusals:
    """Stands in for a function that fails with an errno."""

    def __init__(self, number: int) -> None:
        self.number = number
        self.count = 0

    def __call__(self, *_: object) -> Never:
        self.count += 1
        raise OSError(self.number, os.strerror(self.number))


@pytest.fixture
def own_session() -> Iterator[Session]:
    """A session in which nothing has happened yet."""
    session = Session()
    yield session
    session.close()


def test_closed_socket_is_seen_once_there_is_a_descriptor_to_look(
    own_session: Session, monkeypatch: pytest.MonkeyPatch
) -> None:
    def client() -> None:
        opened = asked()
        opened.recvfrom(4096)
        tell_parent(b"ready")
        wait_for_parent()

    child = own_session.start(client)
    assert child.heard() == b"ready"
    (known,) = own_session.transport.clients()
    known.keep(Datagram(b"kept", 4, 0, 0))
    monkeypatch.setattr(interpose, "LINGER", 0.0)
    refusals = Refusals(errno.EMFILE)
    with monkeypatch.context() as patch:
        patch.setattr(interpose, "_ports_in_use", refusals)
        assert eventually(lambda: refusals.count >= 2)
        child.send()
        child.end()
    assert eventually(lambda: not own_session.transport.clients())


def test_sockets_are_seen_to_after_a_look_that_failed(
    own_session: Session, monkeypatch: pytest.MonkeyPatch
) -> None:
    looks = 0

    def look(_: PendingReceive) -> None:
        nonlocal looks
        looks += 1
        raise ValueError

    def client() -> str:
        opened = bound()
        with another_thread_asks(opened):
            datagram, _ = opened.recvfrom(4096)
        return name_in(datagram)

    with monkeypatch.context() as patch:
        patch.setattr(PendingReceive, "look", look)
        child = own_session.start(client)
        assert eventually(lambda: looks >= 2)
    child.send()
    assert child.end() == "pci-tsm"
    assert eventually(lambda: not own_session.transport.clients())


def test_socket_that_could_not_be_prepared_is_forgotten_in_time(
    own_session: Session, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(interpose, "_open_to_all", Refusals(errno.ENOMEM))
    own_session.run(lambda: bound().sendto(OURS, KERNEL))
    assert eventually(lambda: not own_session.transport.clients())


def test_thread_that_cannot_be_watched_leaves_nothing(
    own_session: Session, monkeypatch: pytest.MonkeyPatch
) -> None:
    def client() -> int:
        tell_parent(b"ready")
        wait_for_parent()
        found: list[int] = []
        thread = threading.Thread(target=lambda: found.append(generic().fileno()))
        thread.start()
        thread.join()
        tell_parent(b"done")
        wait_for_parent()
        return found[0]

    child = own_session.start(client)
    assert child.heard() == b"ready"
    before = len(os.listdir("/proc/self/fd"))
    with monkeypatch.context() as patch:
        patch.setattr(own_session.transport.loop, "watch", Refusals(errno.ENOSPC))
        child.send()
        assert child.heard() == b"done"
    assert eventually(lambda: len(os.listdir("/proc/self/fd")) <= before)
    child.send()
    assert child.end() not in RESERVED


def test_transport_that_does_not_start_leaves_no_descriptor(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    loop, transport = Loop(), InterposeTransport(print)
    before = os.listdir("/proc/self/fd")
    with monkeypatch.context() as patch:
        patch.setattr(os, "eventfd", Refusals(errno.EMFILE))
        with pytest.raises(OSError, match="Too many open files"):
            transport.start(Server(), loop)
    assert os.listdir("/proc/self/fd") == before
    loop.stop()


# Pacing, and those who die.


def test_reader_that_stalls_holds_nobody_up(session: Session) -> None:
    session.device.objects = {0: bytes(4 << 20)}

    def staller() -> int:
        connection = NetlinkConnection(GENERIC)
        connection.send(evidence_request(family_id(connection, "pci-tsm"), 1, NAME))
        tell_parent(b"asked")
        wait_for_parent()
        return len(read_evidence(connection, 7, 65536).objects[0])

    child = session.start(staller)
    assert child.heard() == b"asked"
    # It reads only after these two have ended.
    assert session.run(lambda: name_in(asked().recv(4096))) == "pci-tsm"
    assert session.run(evidence_of_another_type) == b""
    child.send()
    assert child.end() == 4 << 20


def evidence_of_another_type() -> bytes:
    connection = NetlinkConnection(GENERIC)
    connection.send(evidence_request(family_id(connection, "pci-tsm"), 8, NAME))
    return read_evidence(connection, 7, 65536).objects[3]


def test_provider_that_waits_holds_up_only_who_asked(
    session: Session, monkeypatch: pytest.MonkeyPatch
) -> None:
    go_on = threading.Event()
    monkeypatch.setattr(
        type(session.device), "generation", lambda _: go_on.wait(3 * PATIENCE) and 1
    )

    def asker() -> int:
        connection = NetlinkConnection(GENERIC)
        connection.send(evidence_request(family_id(connection, "pci-tsm"), 1, NAME))
        tell_parent(b"asked")
        return len(read_evidence(connection, 7, 65536).objects[0])

    child = session.start(asker)
    assert child.heard() == b"asked"
    try:
        assert session.run(lambda: name_in(asked().recvfrom(4096)[0])) == "pci-tsm"
    finally:
        go_on.set()
    assert child.end() == len(session.device.objects[0])


def test_requests_beyond_what_may_wait_are_refused(session: Session) -> None:
    def client() -> int:
        connection = NetlinkConnection(GENERIC)
        request = evidence_request(family_id(connection, "pci-tsm"), 1, None)
        for _ in range(interposed.MAX_WAITING // len(request) + 5000):
            try:
                connection.send(request)
            except OSError as error:
                return error.errno or 0
        return 0

    assert session.run(client) == errno.ENOBUFS


def test_client_killed_while_it_waits_leaves_nothing(session: Session) -> None:
    def client() -> None:
        opened = bound()
        tell_parent(b"waits")
        opened.recvfrom(10)

    before = len(os.listdir("/proc/self/fd"))
    child = session.start(client)
    assert child.heard() == b"waits"
    assert eventually(lambda: len(session.transport.pending) == 1)
    child.kill()
    assert child.wait() == -signal.SIGKILL
    assert eventually(lambda: not session.transport.pending)
    assert eventually(lambda: len(os.listdir("/proc/self/fd")) <= before)


def test_client_killed_in_a_dump_leaves_nothing(session: Session) -> None:
    session.device.objects = {0: bytes(4 << 20)}

    def client() -> None:
        connection = NetlinkConnection(GENERIC)
        connection.send(evidence_request(family_id(connection, "pci-tsm"), 1, NAME))
        connection.recv()
        tell_parent(b"reads")
        time.sleep(30)

    child = session.start(client)
    assert child.heard() == b"reads"
    child.kill()
    child.wait()
    assert eventually(lambda: not session.transport.clients())


def test_thousands_of_sockets_leave_nothing(session: Session) -> None:
    def client() -> int:
        first = len(os.listdir("/proc/self/fd"))
        for _ in range(2000):
            opened = asked()
            opened.recvfrom(4096)
            opened.close()
        return len(os.listdir("/proc/self/fd")) - first

    before = len(os.listdir("/proc/self/fd"))
    assert session.run(client) == 0
    assert eventually(lambda: not session.transport.clients())
    assert eventually(lambda: len(os.listdir("/proc/self/fd")) <= before)


def test_hundreds_of_threads_open_sockets_at_once(session: Session) -> None:
    def client() -> int:
        names: list[str] = []
        descriptors: list[int] = []
        start, done = threading.Barrier(200), threading.Barrier(200)

        def one() -> None:
            start.wait(PATIENCE)
            opened = asked()
            descriptors.append(opened.fileno())
            names.append(name_in(opened.recvfrom(4096)[0]))
            done.wait(PATIENCE)
            opened.close()

        threads = [threading.Thread(target=one) for _ in range(200)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        assert names == ["pci-tsm"] * 200
        return len(set(descriptors) & set(RESERVED))

    assert session.run(client) == 200


def test_storm_of_forks_is_served(session: Session) -> None:
    def client() -> list[int]:
        children = []
        for _ in range(100):
            pid = os.fork()
            if pid == 0:
                status = 1
                try:
                    status = name_in(asked().recvfrom(4096)[0]) != "pci-tsm"
                finally:
                    os._exit(status)
            children.append(pid)
        return [os.waitpid(pid, 0)[1] for pid in children]

    assert session.run(client) == [0] * 100


def test_clients_killed_at_any_moment_disturb_nobody(session: Session) -> None:
    def client() -> None:
        while True:
            opened = asked()
            opened.recvfrom(4096)
            opened.close()

    for delay in range(12):
        child = session.start(client)
        time.sleep(0.01 + delay / 1700)
        child.kill()
        child.wait()
    assert session.run(lambda: name_in(asked().recv(4096))) == "pci-tsm"


def test_filter_whose_processes_have_ended_leaves_no_thread() -> None:
    session = Session()
    try:
        session.run(lambda: asked().recvfrom(4096)[1])
        names = [thread.name for thread in threading.enumerate()]
        assert eventually(lambda: not session.transport.supervisors()), names
    finally:
        session.close()


def test_calls_fail_when_the_supervisor_has_gone() -> None:
    session = Session()

    def client() -> list[int]:
        opened, waiting = bound(), bound()
        results: list[int] = []
        reader = threading.Thread(
            target=lambda: results.append(errno_of(lambda: waiting.recvfrom(10)))
        )
        reader.start()
        tell_parent(b"ready")
        wait_for_parent()
        reader.join(5)
        results.append(errno_of(lambda: opened.sendto(OURS, KERNEL)))
        results.append(errno_of(generic))
        return results

    child = session.start(client)
    try:
        assert child.heard() == b"ready"
        assert eventually(lambda: bool(session.transport.pending))
        session.call(session.server.close)
        child.send()
        assert child.end() == [errno.ENOSYS] * 3
    finally:
        session.close()


# Programs of other kinds, and other users.

SOCKET_BY_INT_80 = bytes.fromhex(
    "53"  # push rbx
    "b867010000"  # mov eax, 359
    "bb10000000"  # mov ebx, AF_NETLINK
    "b903000000"  # mov ecx, SOCK_RAW
    "ba10000000"  # mov edx, NETLINK_GENERIC
    "cd80"  # int 0x80
    "5b"  # pop rbx
    "c3"  # ret
)


def test_call_of_another_architecture_goes_to_the_kernel_and_is_reported_once(
    session: Session,
) -> None:
    if platform.machine() != "x86_64":
        # There is no such call on other machines.
        return

    def client() -> list[bool]:
        code = mmap.mmap(-1, 4096, prot=mmap.PROT_READ | mmap.PROT_WRITE | mmap.PROT_EXEC)
        code.write(SOCKET_BY_INT_80)
        address = ctypes.addressof(ctypes.c_char.from_buffer(code))
        make = ctypes.CFUNCTYPE(ctypes.c_int)(address)
        return [make() in RESERVED for _ in range(3)]

    assert session.run(client) == [False] * 3
    (report,) = session.reports
    assert "another kind of machine" in report


def test_session_of_an_ordinary_user_works() -> None:
    """In a user namespace, where the only privilege is over the network namespace in it."""

    def user() -> int:
        uid, gid = os.getuid(), os.getgid()
        libc = ctypes.CDLL(None)
        # A process that has changed its user does not own its files in /proc until it says so.
        assert libc.prctl(PR_SET_DUMPABLE, 1, 0, 0, 0) == 0
        assert libc.unshare(CLONE_NEWUSER) == 0
        Path("/proc/self/setgroups").write_text("deny")
        Path("/proc/self/uid_map").write_text(f"0 {uid} 1")
        Path("/proc/self/gid_map").write_text(f"0 {gid} 1")
        session = Session()
        session.device.objects = {0: bytes(100_000), 2: b"odd"}
        test_evidence_is_read_beside_the_families_of_the_kernel(session)
        test_iproute2_lists_and_finds_the_families(session)
        test_mixed_datagram_is_answered_in_order(session)
        session.close()
        return 7

    assert as_nobody(user) == 7
