# SPDX-License-Identifier: MIT
"""What is encoded decodes to the same, and no bytes make the decoder fail in another way."""

from __future__ import annotations

import errno
from typing import cast

import pytest
from hypothesis import given
from hypothesis import strategies as st

from netlink.codec import (
    NLA_F_NESTED,
    NLA_MAX_PAYLOAD,
    NLMSG_HDRLEN,
    AttributeCodec,
    CodecError,
    GenlMsgHdr,
    NlMsgHdr,
    Skb,
    Value,
    align,
    encode_payload,
    messages,
    pack_nla,
    parse_genlmsghdr,
    parse_nla,
    parse_nlmsghdr,
)
from netlink.spec import parse

FAMILY = parse("""\
name: kinds
doc: One attribute of each type.
definitions:
  - {name: colour, type: enum, entries: [red, green]}
attribute-sets:
  - name: all
    attributes:
      - {name: u8, type: u8}
      - {name: u16, type: u16}
      - {name: u32, type: u32}
      - {name: u64, type: u64}
      - {name: s8, type: s8}
      - {name: s16, type: s16}
      - {name: s32, type: s32}
      - {name: s64, type: s64}
      - {name: uint, type: uint}
      - {name: sint, type: sint}
      - {name: big, type: u32, byte-order: big-endian}
      - {name: little, type: u16, byte-order: little-endian}
      - {name: flag, type: flag}
      - {name: string, type: string}
      - {name: binary, type: binary}
      - {name: bits, type: bitfield32}
      - {name: many, type: u16, multi-attr: true}
      - {name: nest, type: nest, nested-attributes: inner}
      - {name: array, type: indexed-array, sub-type: u32}
      - {name: nests, type: indexed-array, sub-type: nest, nested-attributes: inner}
      - {name: deep, type: nest-type-value, type-value: [x, y], nested-attributes: inner}
      - {name: colour, type: u32, enum: colour}
      - {name: pad, type: pad}
  - name: inner
    attributes:
      - {name: n, type: u32}
      - {name: s, type: string}
operations: {list: []}
""")
ALL = FAMILY.attribute_sets["all"]
CODEC = AttributeCodec(FAMILY)


def unsigned(bits: int) -> st.SearchStrategy[int]:
    return st.integers(0, 2**bits - 1)


def signed(bits: int) -> st.SearchStrategy[int]:
    return st.integers(-(2 ** (bits - 1)), 2 ** (bits - 1) - 1)


text = st.text(st.characters(exclude_characters="\0", exclude_categories=["Cs"]), max_size=20)
inner = st.fixed_dictionaries({}, optional={"n": unsigned(32), "s": text})
VALUES: dict[str, st.SearchStrategy[object]] = {
    **{f"u{bits}": unsigned(bits) for bits in (8, 16, 32, 64)},
    **{f"s{bits}": signed(bits) for bits in (8, 16, 32, 64)},
    "uint": unsigned(64),
    "sint": signed(64),
    "big": unsigned(32),
    "little": unsigned(16),
    "flag": st.just(1),
    "string": text,
    "binary": st.binary(max_size=100),
    "bits": st.fixed_dictionaries({"value": unsigned(32), "selector": unsigned(32)}),
    "many": st.lists(unsigned(16), min_size=1, max_size=5),
    "nest": inner,
    "array": st.lists(unsigned(32), max_size=5),
    "nests": st.lists(inner, max_size=3),
    "deep": st.tuples(unsigned(14), unsigned(14), inner).map(
        lambda three: {"x": three[0], "y": three[1], **three[2]}
    ),
    "colour": unsigned(32),
}


@given(st.fixed_dictionaries({}, optional=VALUES))
def test_values_come_back_as_they_were(values: dict[str, object]) -> None:
    encoded = CODEC.encode(ALL, cast("dict[str, Value]", values))
    assert len(encoded) % 4 == 0
    decoded = CODEC.decode(ALL, encoded)
    if "deep" in decoded:
        decoded["deep"] = cast("list[Value]", decoded["deep"])[0]
    assert decoded == values


@given(unsigned(32), unsigned(16), unsigned(16), unsigned(32), unsigned(32))
def test_header_of_netlink_comes_back(a: int, b: int, c: int, d: int, e: int) -> None:
    header = NlMsgHdr(a, b, c, d, e)
    assert parse_nlmsghdr(b"xx" + header.pack(), 2) == header


@given(unsigned(8), unsigned(8), unsigned(16))
def test_header_of_generic_netlink_comes_back(a: int, b: int, c: int) -> None:
    header = GenlMsgHdr(a, b, c)
    assert parse_genlmsghdr(bytes(NLMSG_HDRLEN) + header.pack()) == header


@given(st.binary(max_size=200))
def test_any_bytes_are_attributes_and_a_rest(data: bytes) -> None:
    attributes, left = parse_nla(data, 0, len(data))
    used = sum(align(4 + len(one.payload)) for one in attributes)
    assert max(len(data) - used, 0) == left
    for one in attributes:
        assert data[one.offset + 4 : one.offset + 4 + len(one.payload)] == one.payload


@given(st.binary(max_size=200))
def test_decoding_any_bytes_gives_values_or_says_what_is_wrong(data: bytes) -> None:
    try:
        decoded = CODEC.decode(ALL, data)
    except CodecError:
        return
    assert set(decoded) <= set(ALL.by_name)


@given(st.lists(st.tuples(unsigned(14), st.binary(max_size=30)), max_size=10))
def test_attributes_stand_where_they_were_put(wanted: list[tuple[int, bytes]]) -> None:
    data = b"".join(pack_nla(kind, payload) for kind, payload in wanted)
    attributes, left = parse_nla(data, 0, len(data))
    assert left == 0
    assert [(one.type, one.payload) for one in attributes] == wanted


@given(st.lists(st.binary(max_size=30), max_size=5))
def test_datagram_splits_into_its_messages(payloads: list[bytes]) -> None:
    skb = Skb(4096)
    for number, payload in enumerate(payloads):
        skb.nlmsg_put(0x20, 0, number, 0, payload + bytes(-len(payload) % 4))
    found = list(messages(bytes(skb.data)))
    assert [header.seq for header, _ in found] == list(range(len(payloads)))


@pytest.mark.parametrize("length", [0, 15, 17, 2**32 - 1])
def test_message_that_does_not_fit_its_datagram_is_refused(length: int) -> None:
    with pytest.raises(CodecError):
        list(messages(NlMsgHdr(length, 0x10, 1, 0, 0).pack()))


def test_nested_flag_is_no_part_of_the_number() -> None:
    (one,), _ = parse_nla(pack_nla(5 | NLA_F_NESTED, b""), 0, 4)
    assert (one.type, one.nested) == (5, True)


def test_attribute_holds_65531_bytes_and_not_one_more() -> None:
    (one,), _ = parse_nla(pack_nla(1, bytes(NLA_MAX_PAYLOAD)), 0, 65536)
    assert len(one.payload) == NLA_MAX_PAYLOAD == 65531
    with pytest.raises(CodecError):
        pack_nla(1, bytes(NLA_MAX_PAYLOAD + 1))


def test_value_may_be_given_by_its_name() -> None:
    assert CODEC.decode(ALL, CODEC.encode(ALL, {"colour": "green"})) == {"colour": 1}
    with pytest.raises(CodecError, match="no colour is called blue"):
        CODEC.encode(ALL, {"colour": "blue"})


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("u8", 256),
        ("u32", -1),
        ("u16", "7"),
        ("string", 7),
        ("binary", "7"),
        ("uint", "7"),
        ("bits", 7),
        ("nest", 7),
        ("many", 7),
        ("array", "7"),
        ("deep", [7]),
    ],
)
def test_value_of_another_type_is_refused(name: str, value: Value) -> None:
    with pytest.raises(CodecError):
        CODEC.encode(ALL, {name: value})


def test_flag_that_is_off_is_left_out() -> None:
    assert CODEC.encode(ALL, {"flag": 0}) == b""


def test_uint_is_as_wide_as_it_must_be() -> None:
    assert len(encode_payload(ALL["uint"], 2**32 - 1)) == 4
    assert len(encode_payload(ALL["uint"], 2**32)) == 8
    assert len(encode_payload(ALL["sint"], -(2**31) - 1)) == 8


def test_full_buffer_stays_as_it_was() -> None:
    skb = Skb(24)
    start = skb.nlmsg_put(0x10, 0, 1, 2)
    skb.nla_put(1, b"abcd")
    before = bytes(skb.data)
    assert skb.tailroom == 0
    with pytest.raises(OSError, match="full") as caught:
        skb.nla_put(1, b"")
    assert caught.value.errno == errno.EMSGSIZE
    with pytest.raises(OSError, match="full"):
        skb.put(b"1234")
    assert bytes(skb.data) == before
    skb.nlmsg_end(start)
    assert parse_nlmsghdr(bytes(skb.data)).length == 24
    skb.nlmsg_cancel(start)
    assert skb.tailroom == 24


def test_buffer_takes_no_attribute_over_65531_bytes_however_large_it_is() -> None:
    skb = Skb(1 << 20)
    skb.nla_put(1, bytes(65531))
    with pytest.raises(OSError, match="full"):
        skb.nla_put(1, bytes(65532))
