# SPDX-License-Identifier: MIT
"""Malformed and odd datagrams: the running kernel's genetlink and this server answer the same."""

from __future__ import annotations

import errno
import random
import socket
import struct

import pytest

from tests.netlink.conftest import Served
from tests.netlink.devices import BDF
from tests.netlink.wire import (
    ACK,
    DUMP,
    ECHO,
    FAMILY_ID,
    FAMILY_NAME,
    GENERIC,
    GETFAMILY,
    GETPOLICY,
    MATCH,
    MCAST_GROUPS,
    NETLINK_CAP_ACK,
    NETLINK_EXT_ACK,
    NLA_F_NESTED,
    NLCTRL,
    NLMSG_DONE,
    NLMSG_ERROR,
    OP,
    REQUEST,
    ROOT,
    SOL_NETLINK,
    Connection,
    Message,
    NetlinkConnection,
    attribute,
    attributes,
    do,
    evidence_request,
    family_id,
    genl,
    message,
    reader,
    split,
    u32,
)

NAME = attribute(FAMILY_NAME, b"nlctrl\0")
SELF = attribute(FAMILY_ID, struct.pack("=H", NLCTRL))
NO_FAMILY = 0x3FE
"""A number that no family has."""


def policy(*parts: bytes, flags: int = 0) -> bytes:
    """A request that is validated strictly."""
    return message(NLCTRL, REQUEST | DUMP | flags, genl(GETPOLICY, *parts))


def family(*parts: bytes, flags: int = 0) -> bytes:
    """A request that is validated leniently."""
    return message(NLCTRL, REQUEST | flags, genl(GETFAMILY, *parts))


def noise(size: int) -> bytes:
    return random.Random(size).randbytes(size)


CASES: dict[str, bytes] = {
    # Headers of netlink.
    "1 byte": b"\1",
    "15 bytes": family(NAME)[:15],
    "a header of 16 zeros": bytes(16),
    "length 0": message(NLCTRL, REQUEST | ACK, genl(GETFAMILY, NAME), length=0),
    "length 15": message(NLCTRL, REQUEST | ACK, genl(GETFAMILY, NAME), length=15),
    "length one too large": message(NLCTRL, REQUEST | ACK, genl(GETFAMILY), length=21),
    "length 4 GiB": message(NLCTRL, REQUEST | ACK, genl(GETFAMILY), length=2**32 - 1),
    "truncated in the middle": family(NAME, flags=ACK)[:24],
    "length without its last byte": message(
        NLCTRL, REQUEST | ACK, genl(GETFAMILY, NAME), length=len(family(NAME)) - 1
    ),
    "not a request": message(NLCTRL, 0, genl(GETFAMILY, NAME)),
    "not a request, ack wanted": message(NLCTRL, ACK, genl(GETFAMILY, NAME)),
    "not a request, unknown family, ack wanted": message(NO_FAMILY, ACK, genl(1)),
    "NLMSG_NOOP": message(1, REQUEST),
    "NLMSG_NOOP, ack wanted": message(1, REQUEST | ACK),
    "NLMSG_NOOP with a payload of 3 bytes, ack wanted": message(1, ACK, b"abc"),
    "NLMSG_ERROR": message(2, REQUEST, bytes(20)),
    "NLMSG_DONE, ack wanted": message(3, REQUEST | ACK, bytes(4)),
    "type 15, ack wanted": message(15, REQUEST | ACK, noise(32)),
    "unknown family": message(NO_FAMILY, REQUEST, genl(1)),
    "unknown family, ack wanted": message(NO_FAMILY, REQUEST | ACK, genl(1)),
    "unknown family, no genl header": message(NO_FAMILY, REQUEST),
    "unknown family, dump": message(NO_FAMILY, REQUEST | DUMP, genl(1)),
    "type 65535": message(0xFFFF, REQUEST, genl(1)),
    "all flags": message(NLCTRL, 0xFFFF, genl(GETPOLICY, NAME)),
    # Headers of generic netlink.
    "no genl header": message(NLCTRL, REQUEST),
    "2 bytes of genl header": message(NLCTRL, REQUEST, b"\3\1"),
    "3 bytes of genl header": message(NLCTRL, REQUEST, b"\3\1\0"),
    "command 0": message(NLCTRL, REQUEST, genl(0)),
    "unknown command": message(NLCTRL, REQUEST, genl(99, NAME)),
    "unknown command, dump": message(NLCTRL, REQUEST | DUMP, genl(99, NAME)),
    "command 255": message(NLCTRL, REQUEST, genl(255)),
    "do of what only dumps": message(NLCTRL, REQUEST, genl(GETPOLICY, NAME)),
    "do of what only dumps, ack wanted": message(NLCTRL, REQUEST | ACK, genl(GETPOLICY, NAME)),
    "half a dump flag, ROOT": message(NLCTRL, REQUEST | ROOT, genl(GETPOLICY, NAME)),
    "half a dump flag, MATCH": message(NLCTRL, REQUEST | MATCH, genl(GETPOLICY, NAME)),
    "version 77": message(NLCTRL, REQUEST | ACK, genl(GETFAMILY, NAME, version=77)),
    "reserved not 0": message(NLCTRL, REQUEST | ACK, genl(GETFAMILY, NAME, reserved=1)),
    "reserved not 0, unknown command": message(NLCTRL, REQUEST, genl(200, reserved=1)),
    "odd flags, unknown command": message(NLCTRL, REQUEST | 0x800, genl(200)),
    "odd flags, known command": message(NLCTRL, REQUEST | 0x800 | ACK, genl(GETFAMILY, NAME)),
    "echo": family(NAME, flags=ECHO | ACK),
    # Attributes, strictly.
    "strict: none": policy(),
    "strict: none, ack wanted": policy(flags=ACK),
    "strict: attribute 0": policy(NAME, attribute(0, b"")),
    "strict: beyond the policy": policy(NAME, attribute(11, u32(1))),
    "strict: number 16383": policy(attribute(0x3FFF, b"")),
    "strict: not for this request": policy(NAME, attribute(3, u32(1))),
    "strict: u16 of 0 bytes": policy(attribute(FAMILY_ID, b"")),
    "strict: u16 of 1 byte": policy(attribute(FAMILY_ID, b"\x10")),
    "strict: u16 of 4 bytes": policy(attribute(FAMILY_ID, u32(NLCTRL))),
    "strict: u32 of 2 bytes": policy(NAME, attribute(OP, b"\1\0")),
    "strict: u32 of 8 bytes": policy(NAME, attribute(OP, bytes(8))),
    "strict: nested u16": policy(attribute(FAMILY_ID | NLA_F_NESTED, b"\x10\0")),
    "strict: nested string": policy(attribute(FAMILY_NAME | NLA_F_NESTED, b"nlctrl\0")),
    "strict: string of 0 bytes": policy(attribute(FAMILY_NAME, b"")),
    "strict: string without NUL": policy(attribute(FAMILY_NAME, b"nlctrl")),
    "strict: string of a NUL": policy(attribute(FAMILY_NAME, b"\0")),
    "strict: string of 16 characters": policy(attribute(FAMILY_NAME, b"a" * 16 + b"\0")),
    "strict: string of 32 characters": policy(attribute(FAMILY_NAME, b"a" * 32 + b"\0")),
    "strict: string with bytes after NUL": policy(attribute(FAMILY_NAME, b"nlctrl\0abc")),
    "strict: string too long after NUL": policy(attribute(FAMILY_NAME, b"nlctrl\0" + b"a" * 20)),
    "strict: string and many NULs": policy(attribute(FAMILY_NAME, b"nlctrl" + bytes(20))),
    "strict: string of 65531 bytes": policy(attribute(FAMILY_NAME, b"a" * 65531)),
    "strict: unknown name": policy(attribute(FAMILY_NAME, b"no-such\0")),
    "strict: unknown number": policy(attribute(FAMILY_ID, struct.pack("=H", NO_FAMILY))),
    "strict: number 0": policy(attribute(FAMILY_ID, b"\0\0")),
    "strict: unknown operation": policy(NAME, attribute(OP, u32(77))),
    "strict: operation 4 GiB": policy(NAME, attribute(OP, u32(2**32 - 1))),
    "strict: length 0": policy(attribute(FAMILY_NAME, b"nlctrl\0", length=0)),
    "strict: length 3": policy(attribute(FAMILY_NAME, b"nlctrl\0", length=3)),
    "strict: length beyond the message": policy(attribute(FAMILY_NAME, b"nlctrl\0", length=64)),
    "strict: length 65535": policy(attribute(FAMILY_NAME, b"nlctrl\0", length=65535)),
    "strict: length over the next one": policy(attribute(FAMILY_NAME, b"nlc\0", length=12), SELF),
    "strict: 1 byte after the last": policy(NAME, b"\1"),
    "strict: 3 bytes after the last": policy(NAME, b"\1\2\3"),
    "strict: 8 zeros after the last": policy(NAME, bytes(8)),
    "strict: bad before unknown": policy(attribute(OP, b""), attribute(99, b"")),
    "strict: unknown before bad": policy(attribute(99, b""), attribute(OP, b"")),
    "strict: bad after 40 good ones": policy(*[NAME] * 40, attribute(OP, b"")),
    # Attributes, leniently.
    "lenient: none": family(),
    "lenient: none, ack wanted": family(flags=ACK),
    "lenient: beyond the policy": family(NAME, attribute(99, b"abcd"), flags=ACK),
    "lenient: attribute 0": family(NAME, attribute(0, b"abcd"), flags=ACK),
    "lenient: u16 of 1 byte": family(attribute(FAMILY_ID, b"\x10")),
    "lenient: u16 of 4 bytes": family(attribute(FAMILY_ID, u32(NLCTRL)), flags=ACK),
    "lenient: nested string": family(attribute(FAMILY_NAME | NLA_F_NESTED, b"nlctrl\0"), flags=ACK),
    "lenient: string without NUL": family(attribute(FAMILY_NAME, b"nlctrl")),
    "lenient: string of 0 bytes": family(attribute(FAMILY_NAME, b"")),
    "lenient: string of 16 characters": family(attribute(FAMILY_NAME, b"a" * 16 + b"\0")),
    "lenient: 2 bytes after the last": family(NAME, b"\1\2", flags=ACK),
    "lenient: 2 bytes after the last, unknown name": family(
        attribute(FAMILY_NAME, b"no-such\0"), b"\1\2"
    ),
    "lenient: unknown name": family(attribute(FAMILY_NAME, b"no-such\0")),
    "lenient: unknown number": family(attribute(FAMILY_ID, struct.pack("=H", NO_FAMILY))),
    "lenient: name and another number": family(
        attribute(FAMILY_ID, struct.pack("=H", NO_FAMILY)), NAME, flags=ACK
    ),
    "lenient: number and another name": family(SELF, attribute(FAMILY_NAME, b"no-such\0")),
    "lenient: twice, the last counts": family(attribute(FAMILY_NAME, b"no-such\0"), NAME),
    "lenient: twice, the last is unknown": family(NAME, attribute(FAMILY_NAME, b"no-such\0")),
    # Several messages.
    "two requests": family(NAME) + family(NAME),
    "good, bad, good": family(NAME) + family() + family(NAME),
    "good, then a header too short": family(NAME) + b"\1\2\3",
    "good, then a length too large": family(NAME)
    + message(NLCTRL, REQUEST, genl(GETFAMILY), length=64)
    + family(NAME),
    "good, then a length of 0": family(NAME) + bytes(32),
    "three kinds of ack": message(1, ACK) + family(NAME, flags=ACK) + family(flags=ACK),
    "unaligned, then good": message(NLCTRL, REQUEST, genl(GETFAMILY, NAME, b"\1")) + family(NAME),
    "a hundred bad ones": family() * 100,
    # Noise.
    "noise of 16 bytes": noise(16),
    "noise of 64 KiB": noise(65536),
    "a header and noise": message(NLCTRL, REQUEST | ACK, noise(1000)),
    "a header, a command and noise": message(NLCTRL, REQUEST, genl(GETFAMILY, noise(1000))),
    "a header, a dump and noise": message(NLCTRL, REQUEST | DUMP, genl(GETPOLICY, noise(1000))),
    "64 KiB of zeros": bytes(65536),
    "64 KiB of ones": b"\xff" * 65536,
    "64 KiB of attributes": policy(*[attribute(FAMILY_NAME, b"no-such\0")] * 4000),
    "64 KiB of attributes of no length": policy(*[attribute(5, b"")] * 16000),
}

OPTIONS = {
    "plain": (False, False),
    "extended": (False, True),
    "capped": (True, False),
    "capped and extended": (True, True),
}


@pytest.fixture(params=OPTIONS, ids=str)
def options(request: pytest.FixtureRequest) -> tuple[bool, bool]:
    """NETLINK_CAP_ACK and NETLINK_EXT_ACK."""
    return OPTIONS[request.param]


def comparable(answers: list[Message]) -> list[object]:
    """Answers without what two servers cannot have in common.

    These are the port of the client; the multicast group of the kernel's nlctrl; and the policies
    that follow when a request turns out to be good, of which only the fact is compared.
    """
    shown: list[object] = []
    for answer in answers:
        if answer.type != NLCTRL:
            shown.append((answer.type, answer.flags, answer.seq, answer.payload))
        elif answer.payload[0] != GETPOLICY:
            found = [one for one in attributes(answer.payload[4:]) if one[0] != MCAST_GROUPS]
            shown.append((answer.flags, answer.seq, answer.payload[:4], found))
    return shown


def kernel_answers(data: bytes, cap_ack: bool, ext_ack: bool) -> list[Message]:
    """What the running kernel's genetlink says."""
    connection = NetlinkConnection(GENERIC)
    try:
        connection.socket.setsockopt(SOL_NETLINK, NETLINK_CAP_ACK, cap_ack)
        connection.socket.setsockopt(SOL_NETLINK, NETLINK_EXT_ACK, ext_ack)
        connection.socket.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 1 << 20)
        return do(connection, data)
    finally:
        connection.close()


def test_server_answers_what_the_kernel_answers(
    options: tuple[bool, bool], client: Connection
) -> None:
    cap_ack, ext_ack = options
    client.send(reader(65536, cap_ack=cap_ack, ext_ack=ext_ack))
    wrong = {}
    for name, data in CASES.items():
        expected = comparable(kernel_answers(data, cap_ack, ext_ack))
        got = comparable(do(client, data))
        if got != expected:
            wrong[name] = {"kernel": expected, "server": got}
    assert wrong == {}


def test_table_has_every_kind_of_answer() -> None:
    """A guard: the cases are worth something only if the kernel tells them apart."""
    seen = set()
    for data in CASES.values():
        for answer in kernel_answers(data, True, True):
            if answer.type in (NLMSG_ERROR, NLMSG_DONE):
                seen.add((answer.error, answer.text))
    assert len({error for error, _ in seen}) >= 5
    assert {text for _, text in seen} >= {
        "",
        "Unknown attribute type",
        "Unsupported attribute",
        "invalid attribute length",
        "NLA_F_NESTED not expected",
        "Attribute failed policy validation",
        "bytes leftover after parsing attributes",
        "genlmsghdr.reserved field is not 0",
        "ambiguous or reserved bits set in nlmsg_flags",
    }


def test_second_dump_of_a_port_is_busy_as_in_the_kernel(served: Served, client: Connection) -> None:
    """A dump that does not fit in what is sent at once, and another one behind it."""
    kernel = NetlinkConnection(GENERIC)
    for seq in (1, 2):
        kernel.send(message(NLCTRL, REQUEST | DUMP, genl(GETFAMILY), seq=seq))
    served.device.objects[0] = bytes(4 << 20)
    number = family_id(client, "pci-tsm")
    for seq in (1, 2):
        client.send(evidence_request(number, 1, BDF.encode() + b"\0", seq=seq))
    refusals = [first_error(kernel), first_error(client)]
    kernel.close()
    assert [(one.error, one.seq, one.flags, one.extack) for one in refusals] == [
        (errno.EBUSY, 2, 0, {})
    ] * 2


def first_error(connection: Connection) -> Message:
    while True:
        for one in split(connection.recv()):
            if one.type == NLMSG_ERROR:
                return one
