# SPDX-License-Identifier: MIT
"""The messages of a family as classes of pyroute2, made from its specification."""

from __future__ import annotations

import errno
import os
import struct
from collections.abc import Iterable, Mapping
from typing import Any, Final, cast

from pyroute2.netlink import NLA_F_NESTED, genlmsg, nla, nlmsg
from pyroute2.netlink.exceptions import NetlinkDecodeError

from netlink.codec import (
    GENL_HDRLEN,
    NLMSG_HDRLEN,
    AttributeCodec,
    CodecError,
    Value,
    Values,
    encode_payload,
    parse_nla,
)
from netlink.spec import Attribute, AttributeSet, Family, Operation

_ATOMS: Final[Mapping[tuple[str, str | None], str]] = {
    **{(f"u{bits}", None): f"uint{bits}" for bits in (8, 16, 32, 64)},
    **{(f"s{bits}", None): f"int{bits}" for bits in (8, 16, 32, 64)},
    **{(f"u{bits}", "big-endian"): f"be{bits}" for bits in (8, 16, 32, 64)},
    **{(f"s{bits}", "big-endian"): f"sbe{bits}" for bits in (8, 16, 32, 64)},
    ("string", None): "asciiz",
    ("binary", None): "cdata",
    ("flag", None): "flag",
}
"""The types that pyroute2 has, too. The others it carries as bytes, which our codec reads."""


class _Tlvs(nlmsg):  # type: ignore[misc]
    """Attributes without a header before them."""

    __slots__ = ()
    header = None


class FamilyMessages:
    """The messages of one family as classes of pyroute2, made when they are first needed."""

    def __init__(self, family: Family) -> None:
        self.family = family
        self._codec = AttributeCodec(family)
        self._classes: dict[tuple[str, type], Any] = {}

    def encode(self, op: Operation, kind: int, flags: int, seq: int, values: Values) -> bytes:
        """A request to the family, which has the number *kind*, with the attributes *values*.

        Raises KeyError for an unknown name, CodecError or struct.error for a value that its
        attribute cannot hold.
        """
        attribute_set = self.family.attributes_of(op)
        message = self._class(attribute_set, genlmsg)()
        message["header"].update(type=kind, flags=flags, sequence_number=seq, pid=0)
        message["cmd"] = op.request_value
        message["version"] = self.family.version
        message["attrs"] = self._attrs(attribute_set, values)
        message.encode()
        return bytes(message.data)

    def decode(self, attribute_set: AttributeSet, message: bytes) -> dict[str, Value]:
        """What a message says; attributes that the set does not have are left out.

        Raises OSError(EBADMSG) for one that cannot be read.
        """
        _, left = parse_nla(message, NLMSG_HDRLEN + GENL_HDRLEN, len(message))
        if left:
            # pyroute2 would make the last attribute end with the message.
            raise OSError(errno.EBADMSG, f"{left} bytes after the last attribute")
        return self._decode(attribute_set, self._class(attribute_set, genlmsg)(message))

    def decode_tlvs(
        self, attribute_set: AttributeSet, message: bytes, start: int
    ) -> dict[str, Value]:
        """What the attributes from *start* of a message on say. Raises OSError(EBADMSG)."""
        made = self._class(attribute_set, _Tlvs)
        return self._decode(attribute_set, made(message, offset=start, length=len(message) - start))

    def _decode(self, attribute_set: AttributeSet, parsed: Any) -> dict[str, Value]:
        try:
            parsed.decode()
            return self._values(attribute_set, parsed)
        except (NetlinkDecodeError, CodecError, struct.error, UnicodeError) as error:
            raise OSError(errno.EBADMSG, f"{os.strerror(errno.EBADMSG)}: {error}") from error

    def _class(self, attribute_set: AttributeSet, base: type) -> Any:
        made = self._classes.get((attribute_set.name, base))
        if made is not None:
            return made
        made = cast(Any, type)(
            f"{self.family.name} {attribute_set.name}", (base,), {"__slots__": ()}
        )
        # Before what is in it, which may be the same again.
        self._classes[attribute_set.name, base] = made
        nla_map = []
        for attribute in attribute_set.attributes:
            atom = _ATOMS.get((attribute.type, attribute.byte_order), "cdata")
            if _is_nest(attribute):
                atom = attribute.name
                setattr(made, atom, self._class(self._nested(attribute), nla))
            elif _is_array(attribute):
                setattr(made, attribute.name, self._class(self._nested(attribute), nla))
                atom = f"*{attribute.name}"
            flags = NLA_F_NESTED if _is_nest(attribute) else 0
            nla_map.append((attribute.value, attribute.name, atom, flags))
        made.nla_map = tuple(nla_map)
        return made

    def _nested(self, attribute: Attribute) -> AttributeSet:
        assert attribute.nested is not None
        return self.family.attribute_sets[attribute.nested]

    def _values(self, attribute_set: AttributeSet, parsed: Any) -> dict[str, Value]:
        found: dict[str, Value] = {}
        for name, content in parsed["attrs"]:
            attribute = attribute_set.by_name.get(name)
            if attribute is None or attribute.type in ("pad", "unused"):
                continue
            value: Value = content
            if _is_nest(attribute):
                value = self._values(self._nested(attribute), content)
            elif _is_array(attribute):
                inner = self._nested(attribute)
                value = [self._values(inner, element) for element in content]
            elif attribute.type == "flag":
                value = 1
            elif _is_foreign(attribute):
                value = self._codec.decode_payload(attribute, content)
            if attribute.multi or attribute.type == "nest-type-value":
                cast(list[Value], found.setdefault(name, [])).append(value)
            else:
                found[name] = value
        return found

    def _attrs(self, attribute_set: AttributeSet, values: Values) -> list[tuple[str, Any]]:
        attrs: list[tuple[str, Any]] = []
        for name, value in values.items():
            attribute = attribute_set[name]
            for one in cast(Iterable[Value], value) if attribute.multi else (value,):
                if _is_nest(attribute):
                    inner = self._attrs(self._nested(attribute), cast(Values, one))
                    attrs.append((name, {"attrs": inner}))
                elif _is_foreign(attribute):
                    attrs.append((name, encode_payload(attribute, one)))
                else:
                    attrs.append((name, one))
        return attrs


def _is_nest(attribute: Attribute) -> bool:
    return attribute.type == "nest" and attribute.nested is not None


def _is_array(attribute: Attribute) -> bool:
    return attribute.type == "indexed-array" and attribute.sub_type == "nest"


def _is_foreign(attribute: Attribute) -> bool:
    """Whether what pyroute2 has as bytes is something else in the specification."""
    return (attribute.type, attribute.byte_order) not in _ATOMS
