# SPDX-License-Identifier: MIT
"""Validation of requests as the kernel does it: ``lib/nlattr.c`` and ``net/netlink/policy.c``.

A policy says for each attribute number what its payload has to be. It follows from the request
of an operation in the specification just as ``tools/net/ynl`` generates the kernel's tables.
"""

from __future__ import annotations

import errno
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from enum import Enum, Flag, auto
from typing import Final

from netlink.codec import BITFIELD32, NLA_HDRLEN, SCALARS, Nla, Values, parse_nla
from netlink.spec import Attribute, AttributeSet, Family

MAX_POLICY_RECURSION_DEPTH: Final = 10


class Validate(Flag):
    """What is checked beyond the payloads: ``enum netlink_validation``."""

    LIBERAL = 0
    TRAILING = auto()
    MAXTYPE = auto()
    UNSPEC = auto()
    STRICT_ATTRS = auto()
    NESTED = auto()
    STRICT = TRAILING | MAXTYPE | UNSPEC | STRICT_ATTRS | NESTED


class Validation(Enum):
    """What more is asked of a payload of the right length: ``enum nla_policy_validation``."""

    NONE = auto()
    RANGE = auto()
    MIN = auto()
    MAX = auto()
    MASK = auto()


@dataclass(frozen=True, slots=True)
class NlaPolicy:
    """``struct nla_policy``: the demand on one attribute.

    *type* has the names of the ``attr-type`` definition of nlctrl, and ``unspec`` and ``reject``.
    """

    type: str
    len: int = 0
    byte_order: str | None = None
    validation: Validation = Validation.NONE
    min: int = 0
    max: int = 0
    mask: int = 0
    nested: Policy | None = None


@dataclass(frozen=True, slots=True)
class Policy:
    """The demands on the attributes of a message or a nest, up to *maxtype*."""

    maxtype: int
    entries: tuple[tuple[int, NlaPolicy], ...]
    by_type: Mapping[int, NlaPolicy] = field(compare=False, repr=False)


@dataclass(slots=True)
class ExtAck:
    """``struct netlink_ext_ack``: what is reported beyond an errno."""

    msg: str | None = None
    bad_attr: int | None = None
    """Offset of the attribute that is to blame, from the start of the request."""
    policy: NlaPolicy | None = None
    miss_type: int | None = None
    miss_nest: int | None = None
    cookie: bytes = b""


class NetlinkError(OSError):
    """A refusal with what an extended ack says of it."""

    def __init__(
        self,
        error: int,
        msg: str | None = None,
        *,
        bad_attr: int | None = None,
        policy: NlaPolicy | None = None,
        miss_type: int | None = None,
    ) -> None:
        super().__init__(error, msg or "")
        self.extack = ExtAck(msg, bad_attr, policy, miss_type)


UNSPEC: Final = NlaPolicy("unspec")

_UNSIGNED: Final = {"u8": 1, "u16": 2, "u32": 4, "u64": 8}
_SIGNED: Final = {"s8": 1, "s16": 2, "s32": 4, "s64": 8}
_FIXED: Final = _UNSIGNED | _SIGNED
_NESTS: Final = ("nested", "nested-array")


def policy_of(family: Family, attribute_set: AttributeSet, names: Iterable[str]) -> Policy:
    """The policy that accepts the attributes *names* of a set and no other."""
    entries = tuple(
        sorted(
            (attribute_set[name].value, _nla_policy(family, attribute_set[name])) for name in names
        )
        if names
        else ()
    )
    return Policy(max((kind for kind, _ in entries), default=0), entries, dict(entries))


def _nla_policy(family: Family, attribute: Attribute) -> NlaPolicy:
    checks = attribute.checks
    match attribute.type:
        case "string":
            if checks.exact_len is not None:
                return _binary(attribute)
            kind = "string" if checks.unterminated_ok else "nul-string"
            return NlaPolicy(kind, checks.max_len or 0)
        case "binary":
            return _binary(attribute)
        case "flag":
            return NlaPolicy("flag")
        case "bitfield32":
            mask = family.enums[attribute.enum].mask() if attribute.enum else 0
            return NlaPolicy("bitfield32", mask=mask)
        case "nest" | "indexed-array":
            kind = "nested" if attribute.type == "nest" else "nested-array"
            if attribute.nested is None:
                return NlaPolicy(kind)
            inner = family.attribute_sets[attribute.nested]
            nested = policy_of(family, inner, [one.name for one in inner.attributes])
            return NlaPolicy(kind, nested.maxtype, nested=nested)
        case "nest-type-value":
            return NlaPolicy("nested")
        case "pad" | "unused":
            return NlaPolicy("reject")
        case _:
            return _scalar(family, attribute)


def _binary(attribute: Attribute) -> NlaPolicy:
    checks = attribute.checks
    if checks.exact_len is not None:
        length = checks.exact_len
        return NlaPolicy("binary", validation=Validation.RANGE, min=length, max=length)
    if checks.min_len is not None:
        return NlaPolicy("binary", validation=Validation.MIN, min=checks.min_len)
    if checks.max_len is not None:
        return NlaPolicy("binary", validation=Validation.MAX, max=checks.max_len)
    return NlaPolicy("binary")


def _scalar(family: Family, attribute: Attribute) -> NlaPolicy:
    """A scalar with an enumeration takes its values only, or its bits when they are flags."""
    checks, order = attribute.checks, attribute.byte_order
    low, high, mask = checks.min, checks.max, checks.mask
    if attribute.enum is not None:
        enum = family.enums[attribute.enum]
        if enum.flags or attribute.as_flags:
            mask = enum.mask()
        else:
            values = [entry.value for entry in enum.entries]
            high = max(values) if high is None else high
            if low is None and (min(values) or attribute.type.startswith("s")):
                low = min(values)
    kind = attribute.type
    if mask is not None:
        return NlaPolicy(kind, byte_order=order, validation=Validation.MASK, mask=mask)
    if low is not None and high is not None:
        return NlaPolicy(kind, 0, order, Validation.RANGE, low, high)
    if low is not None:
        return NlaPolicy(kind, byte_order=order, validation=Validation.MIN, min=low)
    if high is not None:
        return NlaPolicy(kind, byte_order=order, validation=Validation.MAX, max=high)
    return NlaPolicy(kind, byte_order=order)


def nlmsg_parse(
    policy: Policy, message: bytes, start: int, validate: Validate, extack: ExtAck
) -> dict[int, Nla]:
    """The attributes of *message* from *start* on by number; the last of equal ones counts.

    Raises NetlinkError when the policy refuses one. What the kernel only remarks is set in
    *extack*.
    """
    return _validate_parse(policy, message, start, len(message), validate, extack, 0)


def _validate_parse(
    policy: Policy,
    message: bytes,
    start: int,
    end: int,
    validate: Validate,
    extack: ExtAck,
    depth: int,
) -> dict[int, Nla]:
    """``__nla_validate_parse()``."""
    if depth >= MAX_POLICY_RECURSION_DEPTH:
        raise NetlinkError(errno.EINVAL, "allowed policy recursion depth exceeded")
    attributes, left = parse_nla(message, start, end)
    table: dict[int, Nla] = {}
    for nla in attributes:
        if nla.type == 0 or nla.type > policy.maxtype:
            if validate & Validate.MAXTYPE:
                raise NetlinkError(errno.EINVAL, "Unknown attribute type", bad_attr=nla.offset)
            continue
        demand = policy.by_type.get(nla.type, UNSPEC)
        _validate_nla(demand, nla, message, validate, extack, depth)
        table[nla.type] = nla
    if left:
        extack.msg = "bytes leftover after parsing attributes"
        if validate & Validate.TRAILING:
            raise NetlinkError(errno.EINVAL, extack.msg)
    return table


def _validate_nla(
    demand: NlaPolicy, nla: Nla, message: bytes, validate: Validate, extack: ExtAck, depth: int
) -> None:
    """``validate_nla()``."""

    def refuse(error: int, msg: str) -> NetlinkError:
        return NetlinkError(error, msg, bad_attr=nla.offset, policy=demand)

    length = len(nla.payload)
    if demand.type in _FIXED and length != _FIXED[demand.type] and validate & Validate.STRICT_ATTRS:
        raise refuse(errno.EINVAL, "invalid attribute length")
    if validate & Validate.NESTED:
        if demand.type in _NESTS and not nla.nested:
            raise refuse(errno.EINVAL, "NLA_F_NESTED is missing")
        if demand.type not in (*_NESTS, "unspec") and nla.nested:
            raise refuse(errno.EINVAL, "NLA_F_NESTED not expected")

    failed = "Attribute failed policy validation"
    match demand.type:
        case "reject":
            raise refuse(errno.EINVAL, failed)
        case "unspec":
            if validate & Validate.UNSPEC:
                raise NetlinkError(errno.EINVAL, "Unsupported attribute", bad_attr=nla.offset)
        case "flag":
            if length:
                raise refuse(errno.ERANGE, failed)
        case "bitfield32":
            if length != BITFIELD32.size:
                raise refuse(errno.ERANGE, failed)
            value, selector = BITFIELD32.unpack(nla.payload)
            if not demand.mask or (selector | value) & ~demand.mask or value & ~selector:
                raise refuse(errno.EINVAL, failed)
        case "nul-string" | "string":
            if demand.type == "nul-string":
                window = min(length, demand.len + 1) if demand.len else length
                if b"\0" not in nla.payload[:window]:
                    raise refuse(errno.EINVAL, failed)
            if length < 1:
                raise refuse(errno.ERANGE, failed)
            if demand.len and length - (nla.payload[-1] == 0) > demand.len:
                raise refuse(errno.ERANGE, failed)
        case "binary":
            if demand.len and length > demand.len:
                raise refuse(errno.ERANGE, failed)
        case "uint" | "sint":
            if length not in (4, 8):
                raise refuse(errno.EINVAL, "invalid attribute length")
        case "nested" | "nested-array":
            if length and length < NLA_HDRLEN:
                raise refuse(errno.ERANGE, failed)
            if length and demand.nested is not None:
                _validate_nest(demand, nla, message, validate, extack, depth)
        case _:
            if length < _FIXED[demand.type]:
                raise refuse(errno.ERANGE, failed)
    _validate_value(demand, nla)


def _validate_nest(
    demand: NlaPolicy, nla: Nla, message: bytes, validate: Validate, extack: ExtAck, depth: int
) -> None:
    assert demand.nested is not None
    start, end = nla.offset + NLA_HDRLEN, nla.offset + NLA_HDRLEN + len(nla.payload)
    if demand.type == "nested":
        _validate_parse(demand.nested, message, start, end, validate, extack, depth + 1)
        return
    for entry in parse_nla(message, start, end)[0]:
        if not entry.payload:
            continue
        if len(entry.payload) < NLA_HDRLEN:
            raise NetlinkError(
                errno.ERANGE, "Array element too short", bad_attr=entry.offset, policy=demand
            )
        start = entry.offset + NLA_HDRLEN
        end = start + len(entry.payload)
        _validate_parse(demand.nested, message, start, end, validate, extack, depth + 1)


def _validate_value(demand: NlaPolicy, nla: Nla) -> None:
    """The further validation: ranges of integers and lengths, masks."""
    if demand.validation is Validation.NONE:
        return
    if demand.type == "binary":
        value = len(nla.payload)
    elif demand.type in _FIXED:
        # A liberal request may have more bytes than the type; the kernel reads the first.
        payload = nla.payload[: _FIXED[demand.type]]
        value = SCALARS[demand.type, demand.byte_order].unpack(payload)[0]
    else:
        kind = f"{demand.type[0]}{8 * len(nla.payload)}"
        value = SCALARS[kind, demand.byte_order].unpack(nla.payload)[0]
    if demand.validation is Validation.MASK:
        if value & ~demand.mask:
            raise NetlinkError(errno.EINVAL, "reserved bit set", bad_attr=nla.offset)
        return
    low, high = value_range(demand)
    if not low <= value <= high:
        what = "binary attribute size" if demand.type == "binary" else "integer"
        raise NetlinkError(errno.ERANGE, f"{what} out of range", bad_attr=nla.offset, policy=demand)


def value_range(demand: NlaPolicy) -> tuple[int, int]:
    """``nla_get_range_unsigned()`` and ``nla_get_range_signed()``: least and greatest value."""
    if demand.type in _SIGNED or demand.type == "sint":
        bits = 8 * _SIGNED.get(demand.type, 8)
        low, high = -(2 ** (bits - 1)), 2 ** (bits - 1) - 1
    else:
        size = 2 if demand.type == "binary" else _UNSIGNED.get(demand.type, 8)
        low, high = 0, 2 ** (8 * size) - 1
    if demand.validation in (Validation.RANGE, Validation.MIN):
        low = demand.min
    if demand.validation in (Validation.RANGE, Validation.MAX):
        high = demand.max
    return low, high


def describe(demand: NlaPolicy, index: Mapping[Policy, int] | None = None) -> Values | None:
    """``__netlink_policy_dump_write_attr()``: the demand as ``policy-attrs`` of nlctrl.

    Returns names and numbers, the type as its name; None for an attribute that is never
    accepted. *index* has the numbers of nested policies, when these are shown too.
    """
    shown: dict[str, int | str] = {}
    match demand.type:
        case "unspec" | "reject":
            return None
        case "nested" | "nested-array":
            if index is not None and demand.nested is not None and demand.len:
                shown["policy-idx"] = index[demand.nested]
                shown["policy-maxtype"] = demand.len
        case "bitfield32":
            shown["bitfield32-mask"] = demand.mask
        case "string" | "nul-string" | "binary":
            if demand.validation is Validation.RANGE:
                low, high = value_range(demand)
                if low:
                    shown["min-length"] = low
                if high < 0xFFFF:
                    shown["max-length"] = high
            elif demand.len:
                shown["max-length"] = demand.len
        case "flag":
            pass
        case _:
            low, high = value_range(demand)
            if demand.validation is Validation.MASK:
                shown["mask"] = demand.mask
            elif demand.type in _SIGNED or demand.type == "sint":
                shown |= {"min-value-s": low, "max-value-s": high}
            else:
                shown |= {"min-value-u": low, "max-value-u": high}
    shown["type"] = demand.type
    return shown
