# SPDX-License-Identifier: MIT
"""What pyroute2 makes of a specification is what the server's own codec makes of it."""

from __future__ import annotations

import errno
import math

import pytest
from hypothesis import given
from hypothesis import strategies as st

from netlink.codec import AttributeCodec, CodecError, Values, pack_nla
from netlink.messages import FamilyMessages
from netlink.spec import parse

FAMILY = parse("""
name: everything
version: 3
doc: Has attributes of all types.
definitions: []
attribute-sets:
  -
    name: leaf
    attributes:
      - {name: number, type: u32}
      - {name: word, type: string}
      - {name: deeper, type: nest, nested-attributes: leaf}
  -
    name: all
    attributes:
      - {name: u8, type: u8}
      - {name: u16, type: u16}
      - {name: u32, type: u32, value: 7}
      - {name: u64, type: u64}
      - {name: s8, type: s8}
      - {name: s16, type: s16}
      - {name: s32, type: s32}
      - {name: s64, type: s64}
      - {name: be16, type: u16, byte-order: big-endian}
      - {name: be32, type: u32, byte-order: big-endian}
      - {name: le32, type: u32, byte-order: little-endian}
      - {name: uint, type: uint}
      - {name: sint, type: sint}
      - {name: flag, type: flag}
      - {name: text, type: string}
      - {name: bytes, type: binary}
      - {name: many, type: binary, multi-attr: true}
      - {name: bits, type: bitfield32}
      - {name: nest, type: nest, nested-attributes: leaf}
      - {name: nests, type: nest, nested-attributes: leaf, multi-attr: true}
operations:
  list:
    -
      name: all
      doc: Takes all.
      attribute-set: all
      do: {request: {attributes: [u8]}, reply: {attributes: [u8]}}
""")
ALL = FAMILY.attribute_sets["all"]
OPERATION = FAMILY.operation("all")
CODEC = AttributeCodec(FAMILY)
MESSAGES = FamilyMessages(FAMILY)

texts = st.text(st.characters(exclude_characters="\0", exclude_categories=["Cs"]), min_size=1)
contents = st.binary(max_size=70)
leaves: st.SearchStrategy[Values] = st.recursive(
    st.fixed_dictionaries({}, optional={"number": st.integers(0, 2**32 - 1), "word": texts}),
    lambda inner: st.fixed_dictionaries({"number": st.just(1), "deeper": inner}),
    max_leaves=3,
)


def unsigned(bits: int) -> st.SearchStrategy[int]:
    return st.integers(0, 2**bits - 1)


def signed(bits: int) -> st.SearchStrategy[int]:
    return st.integers(-(2 ** (bits - 1)), 2 ** (bits - 1) - 1)


values: st.SearchStrategy[Values] = st.fixed_dictionaries(
    {},
    optional={
        **{f"u{bits}": unsigned(bits) for bits in (8, 16, 32, 64)},
        **{f"s{bits}": signed(bits) for bits in (8, 16, 32, 64)},
        "be16": unsigned(16),
        "be32": unsigned(32),
        "le32": unsigned(32),
        "uint": unsigned(64),
        "sint": signed(64),
        "flag": st.just(1),
        "text": texts,
        "bytes": contents,
        "many": st.lists(contents, min_size=1, max_size=3),
        "bits": st.fixed_dictionaries({"value": unsigned(32), "selector": unsigned(32)}),
        "nest": leaves,
        "nests": st.lists(leaves, min_size=1, max_size=2),
    },
)


@given(values)
def test_request_is_what_the_codec_would_send(sent: Values) -> None:
    message = MESSAGES.encode(OPERATION, 0x1C, 5, 9, sent)
    assert message[20:] == CODEC.encode(ALL, sent)
    assert CODEC.decode(ALL, message[20:]) == sent
    assert message[:20] == bytes.fromhex(
        f"{len(message).to_bytes(4, 'little').hex()}1c00050009000000 00000000 01030000"
    )


@given(values)
def test_reply_is_what_the_codec_would_read(sent: Values) -> None:
    header = MESSAGES.encode(OPERATION, 0x1C, 5, 9, {})
    message = header + CODEC.encode(ALL, sent)
    message = len(message).to_bytes(4, "little") + message[4:]
    assert MESSAGES.decode(ALL, message) == sent


def decoded(message: bytes) -> int | None:
    try:
        MESSAGES.decode(ALL, message)
    except OSError as error:
        return error.errno
    return 0


@given(st.binary(max_size=80) | st.lists(st.tuples(unsigned(6), contents), max_size=4))
def test_noise_is_read_or_ebadmsg(noise: bytes | list[tuple[int, bytes]]) -> None:
    if isinstance(noise, list):
        noise = b"".join(pack_nla(kind, payload) for kind, payload in noise)
    message = MESSAGES.encode(OPERATION, 0x1C, 5, 9, {}) + noise
    message = len(message).to_bytes(4, "little") + message[4:]
    assert decoded(message) in (0, errno.EBADMSG)


def test_unknown_name_and_unfit_value_are_refused() -> None:
    with pytest.raises(KeyError):
        MESSAGES.encode(OPERATION, 0x1C, 0, 0, {"nosuch": 1})
    with pytest.raises(CodecError):
        MESSAGES.encode(OPERATION, 0x1C, 0, 0, {"le32": math.pi})  # type: ignore[dict-item]
