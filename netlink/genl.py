# SPDX-License-Identifier: MIT
"""Generic netlink: a registry of families, and the dispatch of requests to them (``genetlink.c``).

A family is its specification and a handler. The handler has a method ``do_<operation>`` or
``dump_<operation>`` for each that the specification knows, dashes as underscores. Both take a
:class:`GenlInfo`; a do returns the replies, a dump returns the :class:`~netlink.af_netlink.Dump`
that goes on, for which :class:`Messages` serves where all messages are small.
"""

from __future__ import annotations

import errno
import os
import threading
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass
from typing import Final, TypeAlias, cast

from pyroute2.netlink import (
    GENL_ID_CTRL,
    GENL_MAX_ID,
    NLM_F_ACK,
    NLM_F_DUMP,
    NLM_F_ECHO,
    NLM_F_MULTI,
    NLM_F_REQUEST,
)

from netlink.af_netlink import Dump, NetlinkSock, check_idle
from netlink.codec import (
    GENL_HDRLEN,
    NLMSG_HDRLEN,
    AttributeCodec,
    GenlMsgHdr,
    Nla,
    NlMsgHdr,
    Skb,
    Value,
    Values,
    parse_genlmsghdr,
)
from netlink.policy import ExtAck, NetlinkError, Policy, Validate, nlmsg_parse, policy_of
from netlink.spec import AttributeSet, Exchange, Family, Operation

GENL_START_ALLOC: Final = GENL_ID_CTRL + 3
"""First number of a family: those of VFS_DQUOT and PMCRAID after nlctrl's are taken."""


@dataclass(frozen=True, slots=True)
class SplitOp:
    """``struct genl_split_ops``: the do or the dump of an operation."""

    operation: Operation
    policy: Policy
    validate: Validate
    handler: Callable[[GenlInfo], Iterable[Values] | Dump | None]
    dump: bool


@dataclass(frozen=True, slots=True)
class GenlFamily:
    """``struct genl_family``: a registered family."""

    id: int
    spec: Family
    ops: Mapping[tuple[int, bool], SplitOp]
    """By command, and whether it is for a dump."""
    codec: AttributeCodec


class GenlInfo:
    """``struct genl_info``: a request that has passed validation."""

    __slots__ = (
        "_headers",
        "attribute_set",
        "attrs",
        "extack",
        "family",
        "genlhdr",
        "nlhdr",
        "op",
        "sock",
    )

    def __init__(
        self,
        family: GenlFamily,
        op: SplitOp,
        sock: NetlinkSock,
        nlhdr: NlMsgHdr,
        genlhdr: GenlMsgHdr,
        attrs: Mapping[int, Nla],
        extack: ExtAck,
    ) -> None:
        self.family = family
        self.op = op
        self.sock = sock
        self.nlhdr = nlhdr
        self.genlhdr = genlhdr
        self.attrs = attrs
        self.extack = extack
        self.attribute_set: AttributeSet = family.spec.attributes_of(op.operation)
        self._headers: dict[int, bytes] = {}

    def nla(self, name: str) -> Nla | None:
        """The attribute as it stands in the request, or None when it does not."""
        return self.attrs.get(self.attribute_set[name].value)

    def get(self, name: str) -> Value | None:
        """The value of an attribute, or None when the request does not have it."""
        nla = self.nla(name)
        if nla is None:
            return None
        return self.family.codec.decode_payload(self.attribute_set[name], nla.payload)

    def integer(self, name: str) -> int | None:
        """The value of an attribute of an integer type."""
        return cast("int | None", self.get(name))

    def require(self, name: str, msg: str) -> Nla:
        """The attribute, or NetlinkError(EINVAL) with *msg*: ``GENL_REQ_ATTR_CHECK()``."""
        nla = self.nla(name)
        if nla is None:
            missing = self.attribute_set[name].value
            raise NetlinkError(errno.EINVAL, msg, miss_type=missing)
        return nla

    def put_message(self, skb: Skb, flags: int) -> int:
        """Begin a reply in *skb*: ``genlmsg_put()``; returns where it begins."""
        start = len(skb.data)
        skb.put(self._headers.get(flags) or self._reply_headers(flags))
        return start

    def _reply_headers(self, flags: int) -> bytes:
        """Both headers of replies to this request, of which all but the length are alike."""
        genlhdr = GenlMsgHdr(self.op.operation.reply_value, self.family.spec.version)
        nlhdr = NlMsgHdr(0, self.family.id, flags, self.nlhdr.seq, self.sock.portid)
        self._headers[flags] = nlhdr.pack() + genlhdr.pack()
        return self._headers[flags]

    def message(self, values: Values, flags: int) -> bytes:
        """A reply with the attributes *values*, whole."""
        skb = Skb(2**32 - 1)
        start = self.put_message(skb, flags)
        skb.put(self.family.codec.encode(self.attribute_set, values))
        skb.nlmsg_end(start)
        return bytes(skb.data)


class Messages:
    """A dump of messages that are made one by one; as many as fit go in a datagram.

    *messages* is not asked for the next one before there is room for it. An exception that it
    raises ends the dump, after the messages before it.
    """

    def __init__(self, info: GenlInfo, messages: Iterable[Values]) -> None:
        self._info = info
        self._messages = iter(messages)
        self._waiting: bytes | None = None

    def fill(self, skb: Skb) -> bool:
        while True:
            if self._waiting is None:
                values = next(self._messages, None)
                if values is None:
                    return False
                self._waiting = self._info.message(values, NLM_F_MULTI)
            skb.put(self._waiting)
            self._waiting = None

    def done(self) -> None:
        close = getattr(self._messages, "close", None)
        if close is not None:
            close()


Handlers: TypeAlias = object
"""An object with the methods ``do_...`` and ``dump_...`` of a family."""


class GenericNetlink:
    """The families of a server; the receiver of all requests."""

    def __init__(self, first_id: int = GENL_START_ALLOC) -> None:
        """*first_id* is the least number for a family other than nlctrl."""
        self._first_id = first_id
        self._lock = threading.Lock()
        # Replaced as a whole when it changes, so that requests read it without the lock.
        self._families: Mapping[int, GenlFamily] = {}

    def families(self) -> list[GenlFamily]:
        """All families in ascending order of their numbers."""
        families = self._families
        return [families[number] for number in sorted(families)]

    @property
    def table(self) -> Mapping[int, GenlFamily]:
        """All families by number: another object after each change."""
        return self._families

    def by_id(self, number: int) -> GenlFamily | None:
        return self._families.get(number)

    def by_name(self, name: str) -> GenlFamily | None:
        return next((one for one in self._families.values() if one.spec.name == name), None)

    def register(
        self, spec: Family, handlers: Handlers, family_id: int | None = None
    ) -> GenlFamily:
        """``genl_register_family()``: serve a family from now on, as *family_id* if given.

        Raises OSError(EEXIST) for a name or number in use, OSError(ENOSPC) when all are in use,
        TypeError for handlers that lack an operation of the specification.
        """
        codec = AttributeCodec(spec)
        ops: dict[tuple[int, bool], SplitOp] = {}
        for operation in spec.operations:
            for op in _split(spec, operation, handlers):
                ops[operation.request_value, op.dump] = op
        with self._lock:
            used = self._families
            if self.by_name(spec.name) is not None or family_id in used:
                raise OSError(errno.EEXIST, os.strerror(errno.EEXIST))
            if family_id is None:
                free = (n for n in range(self._first_id, GENL_MAX_ID + 1) if n not in used)
                family_id = next(free, None)
                if family_id is None:
                    raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
            family = GenlFamily(family_id, spec, ops, codec)
            self._families = {**used, family_id: family}
        return family

    def unregister(self, name: str) -> None:
        """``genl_unregister_family()``. Raises OSError(ENOENT). Dumps that run go on."""
        with self._lock:
            family = self.by_name(name)
            if family is None:
                raise OSError(errno.ENOENT, os.strerror(errno.ENOENT))
            self._families = {n: one for n, one in self._families.items() if n != family.id}

    def rcv_msg(
        self, sock: NetlinkSock, header: NlMsgHdr, message: bytes, extack: ExtAck
    ) -> Iterator[bytes] | Dump:
        """``genl_rcv_msg()``: the replies to a request, or its dump. Raises OSError."""
        family = self.by_id(header.type)
        if family is None:
            raise OSError(errno.ENOENT, os.strerror(errno.ENOENT))
        if header.length < NLMSG_HDRLEN + GENL_HDRLEN:
            raise OSError(errno.EINVAL, os.strerror(errno.EINVAL))
        genlhdr = parse_genlmsghdr(message)
        _check_header(family, header, genlhdr)
        dump = header.flags & NLM_F_DUMP == NLM_F_DUMP
        op = family.ops.get((genlhdr.cmd, dump))
        if op is None:
            raise OSError(errno.EOPNOTSUPP, os.strerror(errno.EOPNOTSUPP))
        if op.operation.flags & {"admin-perm", "uns-admin-perm"} and not sock.capable:
            raise OSError(errno.EPERM, os.strerror(errno.EPERM))
        if dump:
            check_idle(sock)
        attrs = nlmsg_parse(op.policy, message, NLMSG_HDRLEN + GENL_HDRLEN, op.validate, extack)
        info = GenlInfo(family, op, sock, header, genlhdr, attrs, extack)
        answer = op.handler(info)
        if dump:
            return cast(Dump, answer)
        replies = cast("Iterable[Values] | None", answer) or ()
        return (info.message(values, 0) for values in replies)


def _split(spec: Family, operation: Operation, handlers: Handlers) -> Iterator[SplitOp]:
    def one(exchange: Exchange, kind: str, lenient: str) -> SplitOp:
        name = f"{kind}_{operation.name.replace('-', '_')}"
        handler = getattr(handlers, name, None)
        if handler is None:
            raise TypeError(f"{type(handlers).__name__} has no {name} for family {spec.name}")
        policy = policy_of(spec, spec.attributes_of(operation), exchange.request)
        strict = lenient not in operation.dont_validate
        validate = Validate.STRICT if strict else Validate.LIBERAL
        return SplitOp(operation, policy, validate, handler, kind == "dump")

    if operation.do is not None:
        yield one(operation.do, "do", "strict")
    if operation.dump is not None:
        yield one(operation.dump, "dump", "dump-strict")


def _check_header(family: GenlFamily, header: NlMsgHdr, genlhdr: GenlMsgHdr) -> None:
    """``genl_header_check()``: nothing that means nothing, for all commands of strict families.

    A legacy family has it only for commands that it does not have yet (``resv_start_op``).
    """
    if family.spec.legacy and genlhdr.cmd <= max((cmd for cmd, _ in family.ops), default=0):
        return
    if genlhdr.reserved:
        raise NetlinkError(errno.EINVAL, "genlmsghdr.reserved field is not 0")
    flags = header.flags
    if flags & NLM_F_DUMP == NLM_F_DUMP:
        flags &= ~NLM_F_DUMP
    if flags & ~(NLM_F_REQUEST | NLM_F_ACK | NLM_F_ECHO):
        raise NetlinkError(errno.EINVAL, "ambiguous or reserved bits set in nlmsg_flags")
