# SPDX-License-Identifier: MIT
"""The core below generic netlink: requests out of datagrams, acks, dumps (``af_netlink.c``).

A transport has a :class:`NetlinkSock` for each of its clients, hands every datagram to
:func:`netlink_rcv` and sends what that yields, one datagram each. While the client has a dump
running it sends :func:`netlink_dump` again and again; so a dump holds one message in memory, and
how fast it goes is for the transport to say.
"""

from __future__ import annotations

import errno
import logging
import os
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Final, Protocol

from pyroute2.netlink import (
    NLM_F_ACK,
    NLM_F_ACK_TLVS,
    NLM_F_CAPPED,
    NLM_F_MULTI,
    NLM_F_REQUEST,
    NLMSG_DONE,
    NLMSG_ERROR,
    NLMSG_MIN_TYPE,
    NLMSG_NOOP,
)

from netlink.codec import (
    NETLINK_CAP_ACK,
    NETLINK_EXT_ACK,
    NLMSG_HDRLEN,
    NLMSGERR,
    READER,
    AttributeCodec,
    NlMsgHdr,
    Skb,
    Value,
    align,
    parse_nlmsghdr,
)
from netlink.policy import ExtAck, NetlinkError, describe
from netlink.spec import builtin

log = logging.getLogger(__name__)

SKB_OVERHEAD: Final = 320
"""What ``SKB_WITH_OVERHEAD()`` takes off for ``struct skb_shared_info`` on a 64-bit machine."""
NLMSG_GOODSIZE: Final = 4096 - SKB_OVERHEAD
"""A datagram of a dump for a reader of whom no buffer is known yet, with pages of 4 KiB."""
MAX_RECVMSG_LEN: Final = 32768 - SKB_OVERHEAD
"""A datagram of a dump for a reader with a large buffer."""

_ERRNO_MAX: Final = 4095
_NLCTRL: Final = builtin("nlctrl")
_NLMSGERR_ATTRS: Final = _NLCTRL.attribute_sets["nlmsgerr-attrs"]
_CODEC: Final = AttributeCodec(_NLCTRL)


class Dump(Protocol):
    """What a dump does after its start: the ``dumpit`` and ``done`` of an operation."""

    def fill(self, skb: Skb) -> bool:
        """Put the next messages in *skb*; True when there are more to come.

        Raises OSError, which ends the dump. EMSGSIZE after something was put only says that
        *skb* is full.
        """
        ...

    def done(self) -> None:
        """The dump is over, whether complete or not. Called exactly once."""
        ...


class Receiver(Protocol):
    """Handles requests: the ``cb`` of ``netlink_rcv_skb()``."""

    def rcv_msg(
        self, sock: NetlinkSock, header: NlMsgHdr, message: bytes, extack: ExtAck
    ) -> Iterator[bytes] | Dump:
        """The replies to a request, or the dump that it starts. Raises OSError to refuse it."""
        ...


@dataclass(slots=True)
class NetlinkSock:
    """``struct netlink_sock``: what the server knows of the socket of a client."""

    portid: int
    capable: bool
    """Whether the client has CAP_NET_ADMIN."""
    cap_ack: bool = False
    ext_ack: bool = True
    max_recvmsg_len: int = 0
    """The largest receive buffer that the reader is known to have offered."""
    running: RunningDump | None = None


@dataclass(slots=True)
class RunningDump:
    """``struct netlink_callback``: a dump between two of its datagrams."""

    dump: Dump
    header: NlMsgHdr
    errno: int | None = None
    """What NLMSG_DONE is going to say, once that is known."""


def netlink_rcv(
    receiver: Receiver, sock: NetlinkSock, datagram: bytes
) -> Iterator[bytes | bytearray]:
    """The datagrams that answer *datagram*, in order: ``netlink_rcv_skb()``.

    What is no message ends it: too few bytes for a header, or a length that does not fit.
    """
    offset = 0
    while len(datagram) - offset >= NLMSG_HDRLEN:
        header = parse_nlmsghdr(datagram, offset)
        if not NLMSG_HDRLEN <= header.length <= len(datagram) - offset:
            return
        message = datagram[offset : offset + header.length]
        yield from _message(receiver, sock, header, message)
        offset += align(header.length)


def _message(
    receiver: Receiver, sock: NetlinkSock, header: NlMsgHdr, message: bytes
) -> Iterator[bytes | bytearray]:
    extack = ExtAck()
    error = 0
    if header.flags & NLM_F_REQUEST and header.type >= NLMSG_MIN_TYPE:
        try:
            answer = receiver.rcv_msg(sock, header, message, extack)
            if isinstance(answer, Iterator):
                yield from answer
            else:
                yield from _dump_start(sock, header, answer)
                return
        except Exception as raised:
            error, extack = refusal(raised, extack)
    elif header.type == NLMSG_NOOP and not header.flags & NLM_F_REQUEST:
        _reader(sock, message[NLMSG_HDRLEN:])
    if error or header.flags & NLM_F_ACK:
        yield netlink_ack(sock, header, message, error, extack)


def _reader(sock: NetlinkSock, payload: bytes) -> None:
    """Take note of what a reader says of its buffer and its socket options."""
    if len(payload) != READER.size:
        return
    length, options = READER.unpack(payload)
    sock.max_recvmsg_len = max(sock.max_recvmsg_len, min(length, MAX_RECVMSG_LEN))
    sock.cap_ack = bool(options >> NETLINK_CAP_ACK & 1)
    sock.ext_ack = bool(options >> NETLINK_EXT_ACK & 1)


def refusal(raised: Exception, extack: ExtAck) -> tuple[int, ExtAck]:
    """The errno for user space and the extended ack of an exception.

    One that is no OSError is a bug of a handler: it is logged, and user space sees EIO.
    """
    if not isinstance(raised, OSError):
        log.error("a handler of generic netlink failed", exc_info=raised)
        return errno.EIO, extack
    number = raised.errno
    if not isinstance(number, int) or not 0 < number <= _ERRNO_MAX:
        number = errno.EIO
    if isinstance(raised, NetlinkError):
        extack = raised.extack
    elif raised.strerror and raised.strerror != os.strerror(number):
        extack.msg = raised.strerror
    return number, extack


def _tlvs(sock: NetlinkSock, error: int, extack: ExtAck) -> bytes:
    """``netlink_ack_tlv_fill()``; where and why only go with an error."""
    if not sock.ext_ack:
        return b""
    shown: dict[str, Value] = {}
    if extack.msg:
        shown["msg"] = extack.msg
    if extack.cookie:
        shown["cookie"] = extack.cookie
    if error:
        if extack.bad_attr is not None:
            shown["offs"] = extack.bad_attr
        demand = describe(extack.policy) if extack.policy is not None else None
        if demand is not None:
            shown["policy"] = demand
        if extack.miss_type is not None:
            shown["miss-type"] = extack.miss_type
        if extack.miss_nest is not None:
            shown["miss-nest"] = extack.miss_nest
    return _CODEC.encode(_NLMSGERR_ATTRS, shown)


def netlink_ack(
    sock: NetlinkSock, header: NlMsgHdr, message: bytes, error: int, extack: ExtAck
) -> bytes:
    """NLMSG_ERROR for a request: *error* is an errno, or 0 for success."""
    flags = 0
    if error and not sock.cap_ack:
        request = message + bytes(align(len(message)) - len(message))
    else:
        request = message[:NLMSG_HDRLEN]
        flags |= NLM_F_CAPPED
    tlvs = _tlvs(sock, error, extack)
    if tlvs:
        flags |= NLM_F_ACK_TLVS
    payload = NLMSGERR.pack(-error) + request + tlvs
    length = NLMSG_HDRLEN + len(payload)
    return NlMsgHdr(length, NLMSG_ERROR, flags, header.seq, sock.portid).pack() + payload


def _dump_start(sock: NetlinkSock, header: NlMsgHdr, dump: Dump) -> Iterator[bytes | bytearray]:
    """The rest of ``__netlink_dump_start()``: its first datagram goes out at once."""
    sock.running = RunningDump(dump, header)
    yield netlink_dump(sock)


def check_idle(sock: NetlinkSock) -> None:
    """Raise OSError(EBUSY) when the client has a dump running: one at a time."""
    if sock.running is not None:
        raise OSError(errno.EBUSY, os.strerror(errno.EBUSY))


def netlink_dump(sock: NetlinkSock) -> bytes | bytearray:
    """The next datagram of the dump that *sock* has running. It is over when none runs after."""
    running = sock.running
    assert running is not None
    skb = Skb(max(NLMSG_GOODSIZE, sock.max_recvmsg_len))
    extack: ExtAck | None = None
    if running.errno is None:
        try:
            if running.dump.fill(skb):
                return skb.data
            running.errno = 0
        except Exception as raised:
            if getattr(raised, "errno", None) == errno.EMSGSIZE and skb.data:
                return skb.data
            running.errno, extack = refusal(raised, ExtAck())
    if skb.tailroom >= NLMSG_HDRLEN + NLMSGERR.size:
        _dump_done(sock, running, skb, extack or ExtAck())
    return skb.data


def _dump_done(sock: NetlinkSock, running: RunningDump, skb: Skb, extack: ExtAck) -> None:
    assert running.errno is not None
    tlvs = _tlvs(sock, running.errno, extack)
    flags = NLM_F_MULTI | (NLM_F_ACK_TLVS if tlvs else 0)
    status = NLMSGERR.pack(-running.errno)
    start = skb.nlmsg_put(NLMSG_DONE, flags, running.header.seq, sock.portid, status)
    if tlvs and skb.tailroom >= len(tlvs):
        skb.put(tlvs)
    skb.nlmsg_end(start)
    netlink_dump_stop(sock)


def netlink_dump_stop(sock: NetlinkSock) -> None:
    """End the dump that *sock* has running, if any: the client has gone, or all is sent."""
    running, sock.running = sock.running, None
    if running is None:
        return
    try:
        running.dump.done()
    except Exception:
        log.exception("the end of a dump failed")
