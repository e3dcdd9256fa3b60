# SPDX-License-Identifier: MIT
"""A client of generic netlink on pyroute2: families, dumps, extended acks, and device evidence.

It works over every :class:`~netlink.connection.Connection`, so also with the running kernel.
"""

from __future__ import annotations

import errno
import os
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass
from typing import Any, ClassVar, Final, Self, TypeAlias, cast

from pyroute2.netlink import (
    GENL_ID_CTRL,
    NLM_F_ACK,
    NLM_F_ACK_TLVS,
    NLM_F_CAPPED,
    NLM_F_DUMP,
    NLM_F_REQUEST,
    NLMSG_DONE,
    NLMSG_ERROR,
)

from netlink.codec import (
    GENL_HDRLEN,
    NLA_HDRLEN,
    NLMSG_HDRLEN,
    NLMSGERR,
    CodecError,
    NlMsgHdr,
    Value,
    Values,
    align,
    messages,
    parse_nla,
    parse_nlmsghdr,
)
from netlink.connection import Connection
from netlink.messages import FamilyMessages
from netlink.spec import AttributeSet, Exchange, Family, Operation, builtin

_NLCTRL: Final = builtin("nlctrl")
_NLCTRL_MESSAGES: Final = FamilyMessages(_NLCTRL)


class ExtAckError(OSError):
    """A refused request, or a dump that ended early: the errno, and what the server said of it."""

    def __init__(
        self,
        number: int,
        msg: str | None = None,
        *,
        attribute: str | None = None,
        missing: str | None = None,
        policy: Values | None = None,
    ) -> None:
        super().__init__(number, os.strerror(number))
        self.msg = msg
        """The reason in words, None without any."""
        self.attribute = attribute
        """Name of the attribute that is to blame."""
        self.missing = missing
        """Name of the attribute that is missing."""
        self.policy = policy
        """What was demanded of the attribute, as ``policy-attrs`` of nlctrl."""

    def __str__(self) -> str:
        parts = [str(self.strerror)]
        if self.msg:
            parts.append(self.msg)
        text = ": ".join(parts)
        if self.attribute is not None:
            return f"{text} (attribute {self.attribute})"
        if self.missing is not None:
            return f"{text} (without attribute {self.missing})"
        return text


def _refused(
    family: Family, attribute_set: AttributeSet, request: bytes, answer: bytes
) -> ExtAckError:
    """What NLMSG_ERROR or NLMSG_DONE with an errno says about *request*."""
    header = parse_nlmsghdr(answer)
    start = NLMSG_HDRLEN + NLMSGERR.size
    (number,) = NLMSGERR.unpack_from(answer, NLMSG_HDRLEN)
    if header.type == NLMSG_ERROR:
        echoed = parse_nlmsghdr(answer, start).length
        start += NLMSG_HDRLEN if header.flags & NLM_F_CAPPED else align(echoed)
    tlvs: Values = {}
    if header.flags & NLM_F_ACK_TLVS:
        attributes = _NLCTRL.attribute_sets["nlmsgerr-attrs"]
        tlvs = _NLCTRL_MESSAGES.decode_tlvs(attributes, answer, start)
    offset, missing = tlvs.get("offs"), tlvs.get("miss-type")
    lacking = attribute_set.by_value.get(cast(int, missing)) if missing is not None else None
    return ExtAckError(
        -number,
        cast("str | None", tlvs.get("msg")),
        attribute=(
            attribute_at(family, attribute_set, request, cast(int, offset))
            if offset is not None
            else None
        ),
        missing=lacking.name if lacking is not None else None,
        policy=cast("Values | None", tlvs.get("policy")),
    )


def attribute_at(
    family: Family, attribute_set: AttributeSet, request: bytes, offset: int
) -> str | None:
    """The name of the attribute at *offset* of a request, the nests above it before a dot."""
    start, end = NLMSG_HDRLEN + GENL_HDRLEN, len(request)
    names: list[str] = []
    while True:
        for one in parse_nla(request, start, end)[0]:
            payload = one.offset + NLA_HDRLEN
            if one.offset <= offset < payload + len(one.payload):
                break
        else:
            return None
        attribute = attribute_set.by_value.get(one.type)
        names.append(attribute.name if attribute is not None else str(one.type))
        if one.offset == offset:
            return ".".join(names)
        if attribute is None or attribute.nested is None:
            return None
        attribute_set = family.attribute_sets[attribute.nested]
        start, end = payload, payload + len(one.payload)


@dataclass(frozen=True, slots=True)
class FamilyInfo:
    """A family of a server, as nlctrl tells of it."""

    id: int
    name: str
    version: int
    maxattr: int
    ops: Mapping[int, int]
    """Flags (``op-flags`` of nlctrl, as a mask) of each operation by its number."""
    groups: Mapping[str, int]
    """Multicast groups with their numbers."""


class GenlClient:
    """Requests to the families of one server, one after the other; a context manager.

    Families are looked up once. What a server sends that is no message raises OSError(EBADMSG).
    """

    def __init__(self, connection: Connection) -> None:
        """Take over *connection*."""
        self.connection = connection
        self._seq = 0
        self._ids: dict[str, int] = {_NLCTRL.name: GENL_ID_CTRL}
        self._messages: dict[str, FamilyMessages] = {_NLCTRL.name: _NLCTRL_MESSAGES}
        self._dumping = False

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def close(self) -> None:
        """Close the connection."""
        self.connection.close()

    def families(self) -> list[FamilyInfo]:
        """All families of the server."""
        return [_family_info(values) for values in self.dump(_NLCTRL, "getfamily", {})]

    def family(self, name: str) -> FamilyInfo:
        """One family. Raises ExtAckError(ENOENT) when the server does not have it."""
        (values,) = self.do(_NLCTRL, "getfamily", {"family-name": name})
        return _family_info(values)

    def do(self, family: Family, operation: str, values: Values) -> list[dict[str, Value]]:
        """The replies to a request. Raises ExtAckError when it is refused."""
        op = family.operation(operation)
        return list(self._exchange(family, op, op.do, NLM_F_ACK, values))

    def dump(self, family: Family, operation: str, values: Values) -> Iterator[dict[str, Value]]:
        """The messages of a dump as they come in.

        Raises ExtAckError, also after some messages: these then are of no use. A dump that is
        not read to its end is given up when the next request is made.
        """
        op = family.operation(operation)
        return self._exchange(family, op, op.dump, NLM_F_DUMP, values)

    def _exchange(
        self, family: Family, op: Operation, exchange: Exchange | None, flags: int, values: Values
    ) -> Iterator[dict[str, Value]]:
        if exchange is None:
            raise ExtAckError(errno.EOPNOTSUPP)
        kind = self._id(family.name)
        if self._dumping:
            self.connection.reopen()
        attribute_set = family.attributes_of(op)
        codec = self._messages_of(family)
        self._seq = seq = self._seq + 1
        request = codec.encode(op, kind, flags | NLM_F_REQUEST, seq, values)
        self._dumping = flags & NLM_F_DUMP == NLM_F_DUMP
        self.connection.send(request)
        while True:
            for header, message in self._receive(seq):
                if header.type in (NLMSG_ERROR, NLMSG_DONE):
                    status = _status(message)
                    self._dumping = False
                    if status:
                        raise _refused(family, attribute_set, request, message)
                    return
                if header.type == kind:
                    yield codec.decode(attribute_set, message)

    def _receive(self, seq: int) -> Iterator[tuple[NlMsgHdr, bytes]]:
        """The messages of the next datagram that answer the request *seq*."""
        if seq != self._seq:
            raise OSError(errno.ECANCELED, os.strerror(errno.ECANCELED))
        try:
            found = list(messages(self.connection.recv()))
        except CodecError as error:
            raise OSError(errno.EBADMSG, str(error)) from error
        return (one for one in found if one[0].seq == seq)

    def _messages_of(self, family: Family) -> FamilyMessages:
        return self._messages.setdefault(family.name, FamilyMessages(family))

    def _id(self, name: str) -> int:
        if name not in self._ids:
            self._ids[name] = self.family(name).id
        return self._ids[name]


def _status(message: bytes) -> int:
    """The errno of NLMSG_ERROR and NLMSG_DONE, 0 when all went well."""
    if len(message) < NLMSG_HDRLEN + NLMSGERR.size:
        raise OSError(errno.EBADMSG, os.strerror(errno.EBADMSG))
    return -int(NLMSGERR.unpack_from(message, NLMSG_HDRLEN)[0])


def _family_info(values: Mapping[str, Any]) -> FamilyInfo:
    return FamilyInfo(
        id=values["family-id"],
        name=values["family-name"],
        version=values.get("version", 0),
        maxattr=values.get("maxattr", 0),
        ops={op["id"]: op.get("flags", 0) for op in values.get("ops", ())},
        groups={group["name"]: group["id"] for group in values.get("mcast-groups", ())},
    )


@dataclass(frozen=True, slots=True)
class Piece:
    """What one message brought of an object."""

    kind: str
    """Name of the object: an entry of ``evidence-type``."""
    data: bytes
    received: int
    """Bytes of the object that are there with these."""
    length: int | None
    """Bytes of the whole object, None where the family does not tell."""


Progress: TypeAlias = "Callable[[Piece], None]"
"""Is shown each piece as it comes in."""


def evidence_types() -> tuple[str, ...]:
    """The names of all objects, in their order."""
    return tuple(entry.name for entry in builtin("pci-tsm").enums["evidence-type"].entries)


class EvidenceClient(GenlClient):
    """Reads evidence: what :class:`PciTsmClient` and :class:`DeviceEvidenceClient` share."""

    FAMILY: ClassVar[str]
    OPERATION: ClassVar[str]
    SCOPE: ClassVar[Mapping[str, str]] = {}
    """What a request has besides the name of the device to say which one is meant."""

    def __init__(self, connection: Connection) -> None:
        super().__init__(connection)
        self.spec = builtin(self.FAMILY)
        self.generation: int | None = None
        """That of the evidence that was read last, where the family tells it."""

    def pieces(
        self,
        dev_name: str,
        types: Iterable[str] | None = None,
        *,
        digest: bool = False,
        nonce: bytes = b"",
    ) -> Iterator[Piece]:
        """The objects *types* (all when None) piece by piece, an empty one as an empty piece.

        With *digest* the TSM's digests of them instead; a *nonce* has the TSM produce new
        evidence first. Raises ExtAckError; what came before it is of no use then.
        """
        enum = self.spec.enums["evidence-type"]
        wanted = self.spec.enums["evidence-type-flag"]
        chosen = evidence_types() if types is None else types
        values: dict[str, Value] = {"type-mask": 0, "flags": 0, **self.SCOPE, "dev-name": dev_name}
        values["type-mask"] = sum({wanted.value(name) for name in chosen})
        if digest:
            values["flags"] = self.spec.enums["evidence-flag"].value("digest")
        if nonce:
            values["nonce"] = nonce
        self.generation = None
        kind: str | None = None
        received, length = 0, None
        for reply in self.dump(self.spec, self.OPERATION, values):
            if "type" in reply:
                _check_length(received, length)
                (kind,) = enum.names(cast(int, reply["type"])) or (None,)
                received, length = 0, cast("int | None", reply.get("length"))
                self.generation = cast("int | None", reply.get("generation"))
            if kind is None:
                raise OSError(errno.EBADMSG, "an object without a known type")
            data = _content(reply.get("val", b""))
            received += len(data)
            yield Piece(kind, data, received, length)
        _check_length(received, length)

    def read(
        self,
        dev_name: str,
        types: Iterable[str] | None = None,
        *,
        digest: bool = False,
        nonce: bytes = b"",
        progress: Progress | None = None,
    ) -> dict[str, bytes]:
        """The objects as :meth:`pieces` has them, each whole. Raises ExtAckError."""
        parts: dict[str, list[bytes]] = {}
        for piece in self.pieces(dev_name, types, digest=digest, nonce=nonce):
            parts.setdefault(piece.kind, []).append(piece.data)
            if progress is not None:
                progress(piece)
        return {kind: b"".join(data) for kind, data in parts.items()}


def _content(val: Value) -> bytes:
    """The bytes of ``val``, which a message may have more than once where the family says so."""
    return val if isinstance(val, bytes) else b"".join(cast(Iterable[bytes], val))


def _check_length(received: int, length: int | None) -> None:
    if length is not None and received != length:
        raise OSError(errno.EBADMSG, f"{received} bytes of an object of {length}")


class PciTsmClient(EvidenceClient):
    """Evidence of PCI devices by the family ``pci-tsm``."""

    FAMILY = "pci-tsm"
    OPERATION = "evidence-read"


class DeviceEvidenceClient(EvidenceClient):
    """Evidence of PCI devices by the family ``device-evidence``, which has generations."""

    FAMILY = "device-evidence"
    OPERATION = "read"
    SCOPE: ClassVar[Mapping[str, str]] = {"subsys": "pci"}

    def validate(self, dev_name: str, generation: int) -> None:
        """Declare the evidence of a generation good.

        Raises ExtAckError: EAGAIN when it is not the current one.
        """
        values: Values = {**self.SCOPE, "dev-name": dev_name, "generation": generation}
        self.do(self.spec, "validate", values)


EVIDENCE_CLIENTS: Final[Mapping[str, type[EvidenceClient]]] = {
    client.FAMILY: client for client in (PciTsmClient, DeviceEvidenceClient)
}
"""The client of each family of evidence."""
