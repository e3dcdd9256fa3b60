# SPDX-License-Identifier: MIT
"""Policies follow from specifications, and refuse what the kernel's validation refuses."""

from __future__ import annotations

import errno
import struct

import pytest
from hypothesis import given
from hypothesis import strategies as st

from netlink.codec import NLA_F_NESTED, Nla, pack_nla
from netlink.policy import (
    ExtAck,
    NetlinkError,
    NlaPolicy,
    Policy,
    Validate,
    describe,
    nlmsg_parse,
    policy_of,
)
from netlink.spec import parse

FAMILY = parse("""\
name: checks
doc: One attribute of each check.
definitions:
  - {name: colour, type: enum, entries: [red, green, blue]}
  - {name: high, type: enum, value-start: 5, entries: [five, six]}
  - {name: mode, type: flags, entries: [fast, safe]}
attribute-sets:
  - name: main
    attributes:
      - {name: plain, type: u32}
      - {name: min, type: u16, checks: {min: 10}}
      - {name: max, type: u8, checks: {max: 10}}
      - {name: range, type: s32, checks: {min: -5, max: 5}}
      - {name: mask, type: u32, checks: {flags-mask: mode}}
      - {name: colour, type: u32, enum: colour}
      - {name: high, type: u32, enum: high}
      - {name: modes, type: u64, enum: mode}
      - {name: as-flags, type: u8, enum: colour, enum-as-flags: true}
      - {name: signed, type: s8, enum: colour}
      - {name: string, type: string, checks: {max-len: 4}}
      - {name: free, type: string}
      - {name: raw, type: string, checks: {max-len: 4, unterminated-ok: true}}
      - {name: any, type: binary}
      - {name: short, type: binary, checks: {max-len: 4}}
      - {name: long, type: binary, checks: {min-len: 4}}
      - {name: exact, type: binary, checks: {exact-len: 4}}
      - {name: exact-string, type: string, checks: {exact-len: 4}}
      - {name: flag, type: flag}
      - {name: bits, type: bitfield32, enum: mode}
      - {name: uint, type: uint, checks: {max: 10}}
      - {name: sint, type: sint, checks: {min: -1}}
      - {name: nest, type: nest, nested-attributes: inner}
      - {name: array, type: indexed-array, sub-type: nest, nested-attributes: inner}
      - {name: unused, type: unused}
      - {name: late, type: u32}
      - {name: network, type: u16, byte-order: big-endian, checks: {max: 10}}
  - name: inner
    attributes:
      - {name: n, type: u32}
operations: {list: []}
""")
MAIN = FAMILY.attribute_sets["main"]
NUMBERS = {name: one.value for name, one in MAIN.by_name.items()}
POLICY = policy_of(FAMILY, MAIN, [name for name in NUMBERS if name != "late"])
START = 20
FAILED = "Attribute failed policy validation"


def check(
    *attributes: tuple[str | int, bytes], validate: Validate = Validate.STRICT, tail: bytes = b""
) -> ExtAck:
    extack = ExtAck()
    data = bytes(START)
    for name, payload in attributes:
        kind = name if isinstance(name, int) else NUMBERS[name]
        data += pack_nla(kind, payload)
    nlmsg_parse(POLICY, data + tail, START, validate, extack)
    return extack


def u(bits: int, value: int, order: str = "=") -> bytes:
    code = {8: "B", 16: "H", 32: "I", 64: "Q"}[bits]
    return struct.pack(order + (code.lower() if value < 0 else code), value)


@pytest.mark.parametrize(
    ("name", "payload"),
    [
        ("plain", u(32, 2**32 - 1)),
        ("min", u(16, 10)),
        ("max", u(8, 10)),
        ("range", u(32, -5)),
        ("mask", u(32, 3)),
        ("colour", u(32, 2)),
        ("high", u(32, 6)),
        ("modes", u(64, 3)),
        ("as-flags", u(8, 7)),
        ("signed", u(8, 0)),
        ("string", b"abcd\0"),
        ("free", b"a" * 1000 + b"\0"),
        ("raw", b"abcd"),
        ("raw", b"abcd\0"),
        ("any", b""),
        ("any", bytes(65531)),
        ("short", b""),
        ("short", b"abcd"),
        ("long", bytes(400)),
        ("exact", b"abcd"),
        ("exact-string", b"abcd"),
        ("flag", b""),
        ("bits", u(32, 1) + u(32, 3)),
        ("uint", u(32, 10)),
        ("uint", u(64, 10)),
        ("sint", u(64, 2**63 - 1)),
        ("network", u(16, 10, ">")),
    ],
)
def test_good_attribute_passes(name: str, payload: bytes) -> None:
    assert check((name, payload)) == ExtAck()


RANGE = "integer out of range"
SIZE = "binary attribute size out of range"
LENGTH = "invalid attribute length"


@pytest.mark.parametrize(
    ("name", "payload", "error", "msg"),
    [
        ("plain", b"", errno.EINVAL, LENGTH),
        ("plain", u(64, 1), errno.EINVAL, LENGTH),
        ("min", u(16, 9), errno.ERANGE, RANGE),
        ("max", u(8, 11), errno.ERANGE, RANGE),
        ("range", u(32, -6), errno.ERANGE, RANGE),
        ("range", u(32, 6), errno.ERANGE, RANGE),
        ("colour", u(32, 3), errno.ERANGE, RANGE),
        ("high", u(32, 4), errno.ERANGE, RANGE),
        ("high", u(32, 7), errno.ERANGE, RANGE),
        ("signed", u(8, -1), errno.ERANGE, RANGE),
        ("string", b"", errno.EINVAL, FAILED),
        ("string", b"abc", errno.EINVAL, FAILED),
        ("string", b"abcde\0", errno.EINVAL, FAILED),
        ("string", b"abc\0xyz", errno.ERANGE, FAILED),
        ("free", b"abc", errno.EINVAL, FAILED),
        ("raw", b"", errno.ERANGE, FAILED),
        ("raw", b"abcde", errno.ERANGE, FAILED),
        ("short", b"abcde", errno.ERANGE, SIZE),
        ("long", b"abc", errno.ERANGE, SIZE),
        ("exact", b"abc", errno.ERANGE, SIZE),
        ("exact", b"abcde", errno.ERANGE, SIZE),
        ("exact-string", b"abc\0d", errno.ERANGE, SIZE),
        ("flag", b"\0", errno.ERANGE, FAILED),
        ("bits", u(32, 1), errno.ERANGE, FAILED),
        ("bits", u(32, 4) + u(32, 4), errno.EINVAL, FAILED),
        ("bits", u(32, 2) + u(32, 1), errno.EINVAL, FAILED),
        ("uint", u(16, 1), errno.EINVAL, LENGTH),
        ("uint", u(64, 11), errno.ERANGE, RANGE),
        ("sint", u(32, -2), errno.ERANGE, RANGE),
        ("nest", b"", errno.EINVAL, "NLA_F_NESTED is missing"),
        ("array", b"", errno.EINVAL, "NLA_F_NESTED is missing"),
        ("unused", b"", errno.EINVAL, FAILED),
        ("network", u(16, 11, ">"), errno.ERANGE, RANGE),
    ],
)
def test_bad_attribute_is_refused_with_its_place_and_its_policy(
    name: str, payload: bytes, error: int, msg: str
) -> None:
    with pytest.raises(NetlinkError) as caught:
        check(("any", b"before"), (name, payload))
    extack = caught.value.extack
    assert (caught.value.errno, extack.msg, extack.bad_attr) == (error, msg, START + 12)
    assert extack.policy == POLICY.by_type[NUMBERS[name]]


@pytest.mark.parametrize(
    ("kind", "payload", "error", "msg"),
    [
        (NUMBERS["mask"], u(32, 4), errno.EINVAL, "reserved bit set"),
        (NUMBERS["modes"], u(64, 2**63), errno.EINVAL, "reserved bit set"),
        (NUMBERS["as-flags"], u(8, 8), errno.EINVAL, "reserved bit set"),
        (0, b"", errno.EINVAL, "Unknown attribute type"),
        (NUMBERS["network"] + 1, b"", errno.EINVAL, "Unknown attribute type"),
        (NUMBERS["late"], u(32, 1), errno.EINVAL, "Unsupported attribute"),
    ],
)
def test_refusal_that_the_kernel_gives_without_a_policy(
    kind: int, payload: bytes, error: int, msg: str
) -> None:
    with pytest.raises(NetlinkError) as caught:
        check((kind, payload))
    extack = caught.value.extack
    assert (caught.value.errno, extack.msg) == (error, msg)
    assert (extack.bad_attr, extack.policy) == (START, None)


def test_nested_flag_on_what_is_no_nest_is_refused() -> None:
    with pytest.raises(NetlinkError, match="NLA_F_NESTED not expected"):
        check((NUMBERS["plain"] | NLA_F_NESTED, u(32, 1)))


NEST, ARRAY = NUMBERS["nest"] | NLA_F_NESTED, NUMBERS["array"] | NLA_F_NESTED


def test_nest_is_checked_by_its_own_policy() -> None:
    check((NEST, b""), (NEST, pack_nla(1, u(32, 1))))
    with pytest.raises(NetlinkError, match=LENGTH) as caught:
        check((NEST, pack_nla(1, u(32, 1)) + pack_nla(1, b"abc")))
    assert caught.value.extack.bad_attr == START + 4 + 8
    with pytest.raises(NetlinkError, match=FAILED):
        check((NEST, b"abc"))
    with pytest.raises(NetlinkError, match="bytes leftover"):
        check((NEST, pack_nla(1, u(32, 1)) + b"abcd"))


def test_elements_of_an_array_are_checked() -> None:
    element = pack_nla(1, u(32, 1))
    check((ARRAY, b""), (ARRAY, pack_nla(1, element) + pack_nla(2, b"")))
    with pytest.raises(NetlinkError, match="Array element too short") as caught:
        check((ARRAY, pack_nla(1, element) + pack_nla(2, b"abc")))
    assert caught.value.extack.bad_attr == START + 4 + 12
    with pytest.raises(NetlinkError, match="Unknown attribute type"):
        check((ARRAY, pack_nla(1, pack_nla(2, b""))))
    with pytest.raises(NetlinkError, match=FAILED):
        check((ARRAY, b"ab"))


def test_nests_are_followed_ten_deep() -> None:
    policy = Policy(1, (), {})
    for _ in range(12):
        demand = NlaPolicy("nested", 1, nested=policy)
        policy = Policy(1, ((1, demand),), {1: demand})
    data = b""
    for _ in range(12):
        data = pack_nla(1 | NLA_F_NESTED, data)
    with pytest.raises(NetlinkError, match="recursion depth"):
        nlmsg_parse(policy, data, 0, Validate.STRICT, ExtAck())


def test_bytes_after_the_last_attribute_are_refused_strictly_and_remarked_leniently() -> None:
    with pytest.raises(NetlinkError, match="bytes leftover after parsing attributes") as caught:
        check(("plain", u(32, 1)), tail=b"\1")
    assert caught.value.extack.bad_attr is None
    extack = check(("plain", u(32, 1)), validate=Validate.LIBERAL, tail=b"\1")
    assert extack.msg == "bytes leftover after parsing attributes"


@pytest.mark.parametrize(
    ("kind", "payload"),
    [
        (0, b""),
        (99, b"abc"),
        (NUMBERS["late"], b""),
        (NUMBERS["plain"], u(64, 1)),
        (NUMBERS["nest"], b""),
        (NUMBERS["plain"] | NLA_F_NESTED, u(32, 1)),
    ],
)
def test_lenient_request_may_have_what_a_strict_one_may_not(kind: int, payload: bytes) -> None:
    with pytest.raises(NetlinkError):
        check((kind, payload))
    assert check((kind, payload), validate=Validate.LIBERAL) == ExtAck()


def test_lenient_request_may_not_have_too_little() -> None:
    with pytest.raises(NetlinkError, match=FAILED) as caught:
        check(("plain", b"abc"), validate=Validate.LIBERAL)
    assert caught.value.errno == errno.ERANGE


def test_last_of_equal_attributes_counts() -> None:
    data = pack_nla(1, u(32, 1)) + pack_nla(1, u(32, 2))
    table = nlmsg_parse(POLICY, data, 0, Validate.STRICT, ExtAck())
    assert table[1].payload == u(32, 2)


def attempt(data: bytes, validate: Validate) -> tuple[dict[int, Nla], NetlinkError | None]:
    """The attributes, or why there are none."""
    try:
        return nlmsg_parse(POLICY, data, 0, validate, ExtAck()), None
    except NetlinkError as error:
        return {}, error


@given(st.binary(max_size=300), st.sampled_from([Validate.STRICT, Validate.LIBERAL]))
def test_any_bytes_are_accepted_or_refused(data: bytes, validate: Validate) -> None:
    table, refused = attempt(data, validate)
    assert all(0 < kind <= POLICY.maxtype for kind in table)
    assert refused is None or refused.errno in (errno.EINVAL, errno.ERANGE)
    assert refused is None or refused.extack.msg


@given(st.lists(st.tuples(st.integers(0, 30), st.binary(max_size=12)), max_size=6))
def test_attributes_of_any_kind_are_accepted_or_refused(wanted: list[tuple[int, bytes]]) -> None:
    data = b"".join(pack_nla(kind, payload) for kind, payload in wanted)
    table, refused = attempt(data, Validate.STRICT)
    if refused is None:
        assert {kind: one.payload for kind, one in table.items()} == dict(wanted)
    else:
        assert refused.extack.bad_attr in range(len(data))


def test_policy_without_attributes_accepts_none() -> None:
    empty = policy_of(FAMILY, MAIN, [])
    assert nlmsg_parse(empty, b"", 0, Validate.STRICT, ExtAck()) == {}
    with pytest.raises(NetlinkError, match="Unknown attribute type"):
        nlmsg_parse(empty, pack_nla(1, b""), 0, Validate.STRICT, ExtAck())


@pytest.mark.parametrize(
    ("name", "shown"),
    [
        ("plain", {"min-value-u": 0, "max-value-u": 2**32 - 1, "type": "u32"}),
        ("min", {"min-value-u": 10, "max-value-u": 2**16 - 1, "type": "u16"}),
        ("range", {"min-value-s": -5, "max-value-s": 5, "type": "s32"}),
        ("sint", {"min-value-s": -1, "max-value-s": 2**63 - 1, "type": "sint"}),
        ("mask", {"mask": 3, "type": "u32"}),
        ("string", {"max-length": 4, "type": "nul-string"}),
        ("raw", {"max-length": 4, "type": "string"}),
        ("free", {"type": "nul-string"}),
        # The kernel shows the length of a range and not that of a maximum alone.
        ("short", {"type": "binary"}),
        ("exact", {"min-length": 4, "max-length": 4, "type": "binary"}),
        ("flag", {"type": "flag"}),
        ("bits", {"bitfield32-mask": 3, "type": "bitfield32"}),
        ("nest", {"type": "nested"}),
        ("unused", None),
    ],
)
def test_demand_is_shown_as_the_kernel_shows_it(name: str, shown: object) -> None:
    assert describe(POLICY.by_type[NUMBERS[name]]) == shown


def test_nested_policies_are_shown_by_number() -> None:
    demand = POLICY.by_type[NUMBERS["nest"]]
    assert demand.nested is not None
    assert describe(demand, {demand.nested: 4}) == {
        "policy-idx": 4,
        "policy-maxtype": 1,
        "type": "nested",
    }


def test_attribute_that_is_not_accepted_is_not_shown() -> None:
    assert describe(NlaPolicy("unspec")) is None
