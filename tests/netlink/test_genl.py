# SPDX-License-Identifier: MIT
"""A family is a specification and a handler; requests get to it when they may."""

from __future__ import annotations

import errno
from collections.abc import Iterator, Mapping

import pytest

from netlink.af_netlink import Dump, NetlinkSock, netlink_dump, netlink_rcv
from netlink.codec import Value, Values
from netlink.genl import GENL_START_ALLOC, GenericNetlink, GenlInfo, Messages
from netlink.policy import NetlinkError
from netlink.spec import Family, parse
from tests.netlink.wire import (
    ACK,
    DUMP,
    ECHO,
    MISS_TYPE,
    MULTI,
    NLMSG_DONE,
    OFFS,
    REQUEST,
    ROOT,
    Message,
    attribute,
    attributes,
    genl,
    message,
    split,
    u32,
)

TEXT = """\
name: shop
doc: Keeps things on shelves.
attribute-sets:
  - name: thing
    attributes:
      - {name: shelf, type: u32, checks: {max: 9}}
      - {name: name, type: string, checks: {max-len: 8}}
operations:
  list:
    - name: get-thing
      doc: What is on a shelf, or on all.
      attribute-set: thing
      do:
        request: {attributes: [shelf]}
        reply: {attributes: [shelf, name]}
      dump:
        reply: {attributes: [shelf, name]}
    - name: put
      doc: Puts a thing on a shelf.
      attribute-set: thing
      flags: [admin-perm]
      do:
        request: {attributes: [shelf, name]}
"""
SHOP: Family = parse(TEXT)
GET, PUT = 1, 2
SHELF, NAME = 1, 2


class Shop:
    """All that a family needs besides its specification."""

    def __init__(self) -> None:
        self.things: dict[int, str] = {}

    def do_get_thing(self, info: GenlInfo) -> list[Values]:
        info.require("shelf", "which shelf?")
        shelf = info.integer("shelf") or 0
        if shelf not in self.things:
            raise OSError(errno.ENOENT, "the shelf is empty")
        return [{"shelf": shelf, "name": self.things[shelf]}]

    def dump_get_thing(self, info: GenlInfo) -> Dump:
        return Messages(info, ({"shelf": n, "name": one} for n, one in self.things.items()))

    def do_put(self, info: GenlInfo) -> None:
        shelf, name = info.integer("shelf"), info.get("name")
        if shelf in self.things:
            nla = info.nla("shelf")
            raise NetlinkError(errno.EEXIST, bad_attr=nla.offset if nla else None)
        self.things[shelf or 0] = str(name)


class Client:
    """A client of a registry without any transport."""

    def __init__(self, registry: GenericNetlink, *, admin: bool = True) -> None:
        self.registry = registry
        self.sock = NetlinkSock(42, admin)

    def ask(self, data: bytes) -> list[Message]:
        datagrams = list(netlink_rcv(self.registry, self.sock, data))
        while self.sock.running is not None:
            datagrams.append(netlink_dump(self.sock))
        return [one for each in datagrams for one in split(each)]

    def error(self, data: bytes) -> int:
        (answer,) = self.ask(data)
        return answer.error


@pytest.fixture
def shop() -> Shop:
    return Shop()


@pytest.fixture
def registry(shop: Shop) -> GenericNetlink:
    registry = GenericNetlink()
    registry.register(SHOP, shop)
    return registry


@pytest.fixture
def client(registry: GenericNetlink) -> Client:
    return Client(registry)


ID = GENL_START_ALLOC


def put(shelf: int, name: bytes, flags: int = ACK) -> bytes:
    wanted = genl(PUT, attribute(SHELF, u32(shelf)), attribute(NAME, name))
    return message(ID, REQUEST | flags, wanted)


def get(shelf: int) -> bytes:
    return message(ID, REQUEST, genl(GET, attribute(SHELF, u32(shelf))))


def test_added_family_is_served(client: Client, shop: Shop) -> None:
    assert client.error(put(3, b"apple\0")) == 0
    assert shop.things == {3: "apple"}
    (answer,) = client.ask(get(3))
    assert (answer.type, answer.flags, answer.seq, answer.pid) == (ID, 0, 7, 42)
    assert answer.payload[:4] == b"\1\1\0\0"
    assert dict(attributes(answer.payload[4:])) == {SHELF: u32(3), NAME: b"apple\0"}


def test_dump_has_all_messages_and_done(client: Client, shop: Shop) -> None:
    shop.things = {n: "x" * (n % 8) for n in range(500)}
    *things, done = client.ask(message(ID, REQUEST | DUMP, genl(GET)))
    assert {one.flags for one in things} == {MULTI}
    assert [dict(attributes(one.payload[4:]))[SHELF] for one in things] == list(
        map(u32, range(500))
    )
    assert (done.type, done.error) == (NLMSG_DONE, 0)


def test_dump_may_fail_after_its_first_messages() -> None:
    class Broken(Shop):
        def dump_get_thing(self, info: GenlInfo) -> Dump:
            def some() -> Iterator[Mapping[str, Value]]:
                yield {"shelf": 1, "name": "a"}
                raise OSError(errno.EAGAIN, "come again")

            return Messages(info, some())

    registry = GenericNetlink()
    registry.register(SHOP, Broken())
    one, done = Client(registry).ask(message(ID, REQUEST | DUMP, genl(GET)))
    assert (one.type, done.error, done.text) == (ID, errno.EAGAIN, "come again")


def test_refusals_of_a_handler_arrive(client: Client) -> None:
    (empty,) = client.ask(get(1))
    assert (empty.error, empty.text) == (errno.ENOENT, "the shelf is empty")
    (missing,) = client.ask(message(ID, REQUEST, genl(GET)))
    assert (missing.error, missing.text) == (errno.EINVAL, "which shelf?")
    assert missing.extack[MISS_TYPE] == u32(SHELF)
    client.ask(put(1, b"a\0"))
    (taken,) = client.ask(put(1, b"b\0"))
    assert (taken.error, taken.extack) == (errno.EEXIST, {OFFS: u32(20)})


def test_policy_is_that_of_the_operation(client: Client) -> None:
    assert client.error(get(10)) == errno.ERANGE
    name = genl(GET, attribute(SHELF, u32(1)), attribute(NAME, b"x\0"))
    (refused,) = client.ask(message(ID, REQUEST, name))
    assert refused.text == "Unknown attribute type"
    assert client.error(put(1, b"much too long\0")) == errno.EINVAL


def test_operation_for_administrators_is_refused_to_others(registry: GenericNetlink) -> None:
    nobody = Client(registry, admin=False)
    (refused,) = nobody.ask(put(1, b"a\0"))
    assert (refused.error, refused.extack) == (errno.EPERM, {})
    # Who may not ask does not learn what is wrong with the request.
    assert nobody.error(put(99, b"")) == errno.EPERM
    assert nobody.error(get(1)) == errno.ENOENT


@pytest.mark.parametrize(
    ("data", "error"),
    [
        (message(ID, REQUEST, genl(PUT, attribute(99, b""))), errno.EINVAL),
        (message(ID, REQUEST | DUMP, genl(PUT)), errno.EOPNOTSUPP),
        (message(ID, REQUEST, genl(3)), errno.EOPNOTSUPP),
        (message(ID, REQUEST, genl(0)), errno.EOPNOTSUPP),
        (message(ID + 1, REQUEST, genl(GET)), errno.ENOENT),
        (message(ID, REQUEST, b"\1\1\0"), errno.EINVAL),
    ],
)
def test_request_for_nothing_there_is_refused(client: Client, data: bytes, error: int) -> None:
    assert client.error(data) == error


def test_header_of_a_strict_family_may_say_only_what_means_something(client: Client) -> None:
    shelf = attribute(SHELF, u32(1))
    (reserved,) = client.ask(message(ID, REQUEST, genl(GET, shelf, reserved=1)))
    assert reserved.text == "genlmsghdr.reserved field is not 0"
    for flags in (ROOT, 0x20, 0x800):
        (odd,) = client.ask(message(ID, REQUEST | flags, genl(GET, shelf)))
        assert odd.text == "ambiguous or reserved bits set in nlmsg_flags"
    assert client.error(message(ID, REQUEST | ECHO, genl(GET, shelf))) == errno.ENOENT


def test_numbers_are_given_in_order_and_once() -> None:
    registry = GenericNetlink(first_id=100)
    names = ["one", "two", "three"]
    for name in names:
        registry.register(parse(TEXT.replace("shop", name)), Shop())
    assert [(one.id, one.spec.name) for one in registry.families()] == [
        (100, "one"),
        (101, "two"),
        (102, "three"),
    ]
    registry.unregister("two")
    assert registry.by_id(101) is None
    assert registry.register(parse(TEXT), Shop(), 500).id == 500
    with pytest.raises(OSError, match="exists"):
        registry.register(parse(TEXT), Shop())
    with pytest.raises(OSError, match="exists"):
        registry.register(parse(TEXT.replace("shop", "four")), Shop(), 500)
    with pytest.raises(FileNotFoundError):
        registry.unregister("two")


def test_all_numbers_may_be_in_use() -> None:
    registry = GenericNetlink(first_id=1023)
    registry.register(SHOP, Shop())
    with pytest.raises(OSError, match="No space"):
        registry.register(parse(TEXT.replace("shop", "other")), Shop())


def test_handler_without_an_operation_is_no_handler() -> None:
    class Half:
        def do_get_thing(self, info: GenlInfo) -> None:
            pass

    with pytest.raises(TypeError, match="dump_get_thing"):
        GenericNetlink().register(SHOP, Half())
