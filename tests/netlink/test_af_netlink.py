# SPDX-License-Identifier: MIT
"""Acks, refusals and dumps, as the core below generic netlink makes them."""

from __future__ import annotations

import errno
import logging
from collections.abc import Iterator

import pytest
from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import (
    Bundle,
    RuleBasedStateMachine,
    consumes,
    invariant,
    precondition,
    rule,
)

from netlink.af_netlink import (
    MAX_RECVMSG_LEN,
    NLMSG_GOODSIZE,
    Dump,
    NetlinkSock,
    check_idle,
    netlink_dump,
    netlink_dump_stop,
    netlink_rcv,
)
from netlink.codec import NlMsgHdr, Skb
from netlink.policy import ExtAck, NetlinkError, NlaPolicy
from tests.netlink.wire import (
    ACK,
    ACK_TLVS,
    CAPPED,
    DUMP,
    MISS_TYPE,
    MSG,
    MULTI,
    NLMSG_DONE,
    NLMSG_ERROR,
    OFFS,
    POLICY,
    REQUEST,
    Message,
    message,
    reader,
    split,
    u32,
)

FAMILY = 0x20


class Numbers:
    """A dump of the numbers below a limit, in messages of a fixed size."""

    def __init__(self, limit: int, size: int = 64, error: OSError | None = None) -> None:
        self.limit = limit
        self.size = size
        self.error = error
        self.next = 0
        self.ended = 0

    def fill(self, skb: Skb) -> bool:
        while self.next < self.limit:
            start = skb.nlmsg_put(FAMILY, MULTI, 7, 1)
            try:
                skb.nla_put(1, u32(self.next) + bytes(self.size))
            except OSError:
                skb.nlmsg_cancel(start)
                raise
            skb.nlmsg_end(start)
            self.next += 1
        if self.error is not None:
            raise self.error
        return False

    def done(self) -> None:
        self.ended += 1


class Script:
    """A receiver that does with every request what it was told to."""

    def __init__(self, answer: Iterator[bytes] | Dump | Exception) -> None:
        self.answer = answer
        self.seen: list[tuple[NlMsgHdr, bytes]] = []

    def rcv_msg(
        self, sock: NetlinkSock, header: NlMsgHdr, message: bytes, extack: ExtAck
    ) -> Iterator[bytes] | Dump:
        self.seen.append((header, message))
        if header.flags & DUMP == DUMP:
            check_idle(sock)
        if isinstance(self.answer, Exception):
            raise self.answer
        return self.answer


def ask(
    answer: Iterator[bytes] | Dump | Exception,
    data: bytes | None = None,
    sock: NetlinkSock | None = None,
) -> list[Message]:
    """What a request is answered by, without the datagrams of a dump after the first."""
    request = message(FAMILY, REQUEST, b"\1\1\0\0payload") if data is None else data
    sock = sock or NetlinkSock(42, True)
    return [one for each in netlink_rcv(Script(answer), sock, request) for one in split(each)]


def drain(sock: NetlinkSock) -> list[bytes | bytearray]:
    """The rest of a dump."""
    datagrams = []
    while sock.running is not None:
        datagrams.append(netlink_dump(sock))
    return datagrams


def test_success_is_acked_when_that_is_wanted() -> None:
    assert ask(iter([])) == []
    (ack,) = ask(iter([]), message(FAMILY, REQUEST | ACK, b"\1\1\0\0", seq=9))
    assert (ack.type, ack.error, ack.flags, ack.seq, ack.pid) == (NLMSG_ERROR, 0, CAPPED, 9, 42)
    assert ack.payload[4:] == message(FAMILY, REQUEST | ACK, b"\1\1\0\0", seq=9)[:16]


def test_refusal_repeats_the_request_and_says_why() -> None:
    policy = NlaPolicy("nul-string", 15)
    (refused,) = ask(NetlinkError(errno.EINVAL, "no good", bad_attr=20, policy=policy))
    request = message(FAMILY, REQUEST, b"\1\1\0\0payload")
    assert (refused.error, refused.flags) == (errno.EINVAL, ACK_TLVS)
    assert refused.payload[4 : 4 + len(request)] == request
    assert refused.extack == {
        MSG: b"no good\0",
        OFFS: u32(20),
        POLICY: b"\x08\0\x07\0\x0f\0\0\0\x08\0\x01\0\x0c\0\0\0",
    }


def test_missing_attribute_is_named() -> None:
    (refused,) = ask(NetlinkError(errno.EINVAL, "missing", miss_type=4))
    assert refused.extack == {MSG: b"missing\0", MISS_TYPE: u32(4)}


def test_capped_refusal_repeats_the_header_only() -> None:
    sock = NetlinkSock(42, True, cap_ack=True)
    (refused,) = ask(NetlinkError(errno.EINVAL, "no good"), sock=sock)
    assert refused.flags == CAPPED | ACK_TLVS
    assert len(refused.payload) == 4 + 16 + 12
    assert refused.text == "no good"


def test_reader_without_extended_acks_gets_the_errno() -> None:
    sock = NetlinkSock(42, True, ext_ack=False)
    (refused,) = ask(NetlinkError(errno.EINVAL, "no good", bad_attr=20), sock=sock)
    assert (refused.flags, len(refused.payload)) == (0, 4 + 28)


def test_message_of_an_oserror_is_passed_on_and_that_of_its_errno_is_not() -> None:
    (said,) = ask(OSError(errno.ENXIO, "no TSM context"))
    (plain,) = ask(OSError(errno.ENXIO, "No such device or address"))
    assert (said.error, said.text) == (errno.ENXIO, "no TSM context")
    assert (plain.error, plain.extack) == (errno.ENXIO, {})


@pytest.mark.parametrize("wrong", [OSError("text only"), OSError(517000, "x"), OSError(-5, "x")])
def test_errno_that_is_none_becomes_eio(wrong: OSError) -> None:
    (refused,) = ask(wrong)
    assert refused.error == errno.EIO


def test_bug_in_a_handler_becomes_eio_and_a_log_line(caplog: pytest.LogCaptureFixture) -> None:
    with caplog.at_level(logging.ERROR):
        (refused,) = ask(ZeroDivisionError("oops"))
    assert refused.error == errno.EIO
    assert "ZeroDivisionError: oops" in caplog.text


def test_reader_tells_its_buffer_and_options() -> None:
    sock = NetlinkSock(42, True)
    assert list(netlink_rcv(Script(iter([])), sock, reader(8192, cap_ack=True))) == []
    assert (sock.max_recvmsg_len, sock.cap_ack, sock.ext_ack) == (8192, True, True)
    # A smaller buffer after a larger one says nothing new, as in the kernel.
    list(netlink_rcv(Script(iter([])), sock, reader(4096, ext_ack=False)))
    assert (sock.max_recvmsg_len, sock.cap_ack, sock.ext_ack) == (8192, False, False)
    list(netlink_rcv(Script(iter([])), sock, reader(2**32 - 1)))
    assert sock.max_recvmsg_len == MAX_RECVMSG_LEN


@pytest.mark.parametrize("payload", [b"", b"abc", bytes(4), bytes(12)])
def test_noop_of_another_size_is_skipped(payload: bytes) -> None:
    sock = NetlinkSock(42, True)
    assert list(netlink_rcv(Script(iter([])), sock, message(1, 0, payload))) == []
    assert sock == NetlinkSock(42, True)


@pytest.mark.parametrize(
    ("buffer", "size"),
    [
        (0, NLMSG_GOODSIZE),
        (1024, NLMSG_GOODSIZE),
        (4096, 4096),
        (8192, 8192),
        (32768, MAX_RECVMSG_LEN),
        (1 << 20, MAX_RECVMSG_LEN),
    ],
)
def test_datagrams_of_a_dump_are_as_large_as_the_reader_can_take(buffer: int, size: int) -> None:
    sock = NetlinkSock(42, True)
    data = (reader(buffer) if buffer else b"") + message(FAMILY, REQUEST | DUMP, bytes(4))
    datagrams = list(netlink_rcv(Script(Numbers(3000)), sock, data)) + drain(sock)
    assert size - 84 < max(map(len, datagrams)) <= size
    assert max(map(len, datagrams)) <= max(buffer, NLMSG_GOODSIZE)
    numbers = [one.payload[4:8] for each in datagrams for one in split(each) if one.type == FAMILY]
    assert numbers == [u32(number) for number in range(3000)]


def test_dump_ends_with_done_and_is_not_acked() -> None:
    sock = NetlinkSock(42, True)
    dump = Numbers(2)
    *numbers, done = ask(dump, message(FAMILY, REQUEST | DUMP | ACK, bytes(4)), sock)
    assert [one.type for one in numbers] == [FAMILY] * 2
    assert (done.type, done.flags, done.error, done.extack) == (NLMSG_DONE, MULTI, 0, {})
    assert (sock.running, dump.ended) == (None, 1)


def test_error_of_a_dump_is_in_done_with_its_reasons() -> None:
    dump = Numbers(2, error=NetlinkError(errno.EAGAIN, "changed"))
    *numbers, done = ask(dump, message(FAMILY, REQUEST | DUMP, bytes(4)))
    assert len(numbers) == 2
    assert (done.flags, done.error, done.text) == (MULTI | ACK_TLVS, errno.EAGAIN, "changed")
    assert dump.ended == 1


def test_done_that_does_not_fit_comes_alone() -> None:
    """The one message leaves room for nothing."""
    sock = NetlinkSock(42, True)
    dump = Numbers(1, size=NLMSG_GOODSIZE - 24 - 8)
    (number,) = ask(dump, message(FAMILY, REQUEST | DUMP, bytes(4)), sock)
    assert number.type == FAMILY
    assert dump.ended == 0
    ((done,),) = [list(split(each)) for each in drain(sock)]
    assert (done.type, done.error) == (NLMSG_DONE, 0)
    assert dump.ended == 1


def test_message_that_no_datagram_holds_ends_the_dump() -> None:
    (done,) = ask(Numbers(1, size=5000), message(FAMILY, REQUEST | DUMP, bytes(4)))
    assert (done.type, done.error) == (NLMSG_DONE, errno.EMSGSIZE)


def test_dump_is_told_of_its_end_once_when_the_client_goes() -> None:
    sock = NetlinkSock(42, True)
    dump = Numbers(3000)
    ask(dump, message(FAMILY, REQUEST | DUMP, bytes(4)), sock)
    assert dump.ended == 0
    netlink_dump_stop(sock)
    netlink_dump_stop(sock)
    assert (dump.ended, sock.running) == (1, None)


def test_dump_whose_end_fails_is_over_all_the_same(caplog: pytest.LogCaptureFixture) -> None:
    class Fails(Numbers):
        def done(self) -> None:
            raise ValueError("cannot end")

    sock = NetlinkSock(42, True)
    *_, done = ask(Fails(1), message(FAMILY, REQUEST | DUMP, bytes(4)), sock)
    assert done.error == 0
    assert sock.running is None
    assert "cannot end" in caplog.text


class Dumps(RuleBasedStateMachine):
    """Any order of requests, reads and departures of several clients."""

    clients: Bundle[int] = Bundle("clients")

    def __init__(self) -> None:
        super().__init__()
        self.socks: dict[int, NetlinkSock] = {}
        self.dumps: dict[int, Numbers] = {}
        self.got: dict[int, list[int]] = {}
        self.over: list[Numbers] = []
        self.ports = 0

    @rule(target=clients, buffer=st.sampled_from([0, 4096, 8192, 32768]))
    def arrive(self, buffer: int) -> int:
        self.ports += 1
        self.socks[self.ports] = NetlinkSock(self.ports, True)
        if buffer:
            list(netlink_rcv(Script(iter([])), self.socks[self.ports], reader(buffer)))
        return self.ports

    @rule(
        client=clients,
        limit=st.integers(0, 1500),
        error=st.sampled_from([None, errno.EAGAIN, errno.ENXIO, errno.ENODEV]),
    )
    def start(self, client: int, limit: int, error: int | None) -> None:
        sock = self.socks[client]
        busy = sock.running is not None
        dump = Numbers(limit, error=OSError(error, "over") if error else None)
        request = message(FAMILY, REQUEST | DUMP, bytes(4))
        (datagram,) = netlink_rcv(Script(dump), sock, request)
        if busy:
            (refused,) = split(datagram)
            assert (refused.type, refused.error) == (NLMSG_ERROR, errno.EBUSY)
            assert dump.ended == 0
            return
        self.dumps[client], self.got[client] = dump, []
        self.take(client, datagram)

    @rule(client=clients)
    def read(self, client: int) -> None:
        sock = self.socks[client]
        if sock.running is not None:
            self.take(client, netlink_dump(sock))

    def take(self, client: int, datagram: bytes | bytearray) -> None:
        sock, dump = self.socks[client], self.dumps[client]
        assert len(datagram) <= max(NLMSG_GOODSIZE, sock.max_recvmsg_len)
        found = list(split(datagram))
        assert found, "a datagram of a dump has a message"
        for one in found:
            if one.type == FAMILY:
                self.got[client].append(int.from_bytes(one.payload[4:8], "little"))
        if found[-1].type == NLMSG_DONE:
            assert self.got[client] == list(range(dump.limit))
            expected = dump.error.errno if dump.error else 0
            assert found[-1].error == expected
            assert sock.running is None
            self.over.append(self.dumps.pop(client))
        else:
            assert sock.running is not None

    @rule(client=clients)
    def ask_meanwhile(self, client: int) -> None:
        sock = self.socks[client]
        running = sock.running
        (ack,) = netlink_rcv(Script(iter([])), sock, message(FAMILY, REQUEST | ACK, bytes(4)))
        assert next(split(ack)).error == 0
        assert sock.running is running

    @rule(client=consumes(clients))
    def leave(self, client: int) -> None:
        netlink_dump_stop(self.socks.pop(client))
        if client in self.dumps:
            self.over.append(self.dumps.pop(client))

    @precondition(lambda self: self.over)
    @rule()
    def forget(self) -> None:
        assert all(dump.ended == 1 for dump in self.over)
        self.over.clear()

    @invariant()
    def running_dumps_are_those_that_have_not_ended(self) -> None:
        running = {port for port, sock in self.socks.items() if sock.running is not None}
        assert running == set(self.dumps)
        assert all(dump.ended == 0 for dump in self.dumps.values())
        for client, dump in self.dumps.items():
            assert self.got[client] == list(range(dump.next))


TestDumps = Dumps.TestCase
TestDumps.settings = settings(max_examples=40, stateful_step_count=30)
