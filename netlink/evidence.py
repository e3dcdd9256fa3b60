# SPDX-License-Identifier: MIT
"""The families ``pci-tsm`` and ``device-evidence`` over what a machine knows of its devices.

The counterpart of ``drivers/pci/tsm/evidence.c`` in Linux's ``devsec/tsm.git``. What is said in
an extended ack, and which of several mistakes is reported, are part of the ABI.
"""

from __future__ import annotations

import errno
from dataclasses import dataclass
from typing import Final, Protocol

from pyroute2.netlink import NLM_F_MULTI

from netlink.af_netlink import Dump
from netlink.codec import NLA_HDRLEN, NLA_MAX_PAYLOAD, NLMSG_ALIGNTO, Skb, Values
from netlink.genl import GenericNetlink, GenlInfo
from netlink.policy import NetlinkError
from netlink.spec import builtin

PCI_TSM: Final = builtin("pci-tsm")
DEVICE_EVIDENCE: Final = builtin("device-evidence")

_VAL_OVERHEAD: Final = NLA_HDRLEN + NLMSG_ALIGNTO
"""Of the room for an attribute: its header, and its padding at worst."""


class EvidenceReader(Protocol):
    """The evidence of one device; every function may raise OSError(ENXIO, "no TSM context")."""

    def generation(self) -> int:
        """The number of the present set of evidence.

        Raises OSError(ENXIO, "no evidence available") when there is none yet. Once it has
        returned a number, whatever was read since the same number was returned before belongs
        to that set.
        """
        ...

    def refresh(self, nonce: bytes) -> None:
        """Have the TSM collect evidence anew over *nonce*; increments the generation.

        Raises OSError: EOPNOTSUPP when the TSM cannot, else what went wrong.
        """
        ...

    def object_size(self, kind: int) -> int:
        """Bytes of an object; 0 for one that the TSM does not have."""
        ...

    def read(self, kind: int, offset: int, count: int) -> bytes:
        """*count* bytes of an object, of which the caller knows that they are there."""
        ...

    def digest(self, kind: int) -> bytes:
        """The TSM's digest of an object; empty when it has none."""
        ...

    def validate(self, generation: int) -> None:
        """Take the evidence as good. Raises OSError(EAGAIN) for another generation."""
        ...


class EvidenceProvider(Protocol):
    """Where the handlers find devices."""

    def open(self, subsys: str, name: str) -> EvidenceReader:
        """The evidence of a device of a subsystem (``pci``).

        Raises OSError: ENODEV for no such device, EOPNOTSUPP for a subsystem without evidence.
        """
        ...


def serve_pci_tsm(genl: GenericNetlink, provider: EvidenceProvider) -> None:
    """Register ``pci-tsm``."""
    genl.register(PCI_TSM, PciTsm(provider))


def serve_device_evidence(genl: GenericNetlink, provider: EvidenceProvider) -> None:
    """Register ``device-evidence``."""
    genl.register(DEVICE_EVIDENCE, DeviceEvidence(provider))


@dataclass(frozen=True, slots=True)
class Wanted:
    """What a request asks for."""

    kinds: tuple[int, ...]
    digest: bool
    nonce: bytes


class PciTsm:
    """The operation of ``pci-tsm``."""

    def __init__(self, provider: EvidenceProvider) -> None:
        self._provider = provider

    def dump_evidence_read(self, info: GenlInfo) -> Dump:
        """``pci_tsm_nl_evidence_read_pre()``; checks in its order."""
        mask, flags = _type_mask(info), _flags(info)
        name = _name(info, "dev-name", "missing device name")
        reader = _open(self._provider, "pci", name)
        return EvidenceDump(info, reader, _wanted(info, mask, flags))


class DeviceEvidence:
    """The operations of ``device-evidence``."""

    def __init__(self, provider: EvidenceProvider) -> None:
        self._provider = provider

    def dump_read(self, info: GenlInfo) -> Dump:
        """Checks of the device first, then of what is wanted of it."""
        reader = self._device(info)
        mask, flags = _type_mask(info), _flags(info)
        return EvidenceDump(info, reader, _wanted(info, mask, flags))

    def do_validate(self, info: GenlInfo) -> None:
        """Accept the evidence of a generation. Raises OSError as the specification says."""
        reader = self._device(info)
        info.require("generation", "missing generation")
        generation = info.integer("generation")
        assert generation is not None
        try:
            reader.validate(generation)
        except OSError as error:
            if error.errno != errno.EAGAIN:
                raise
            stale = info.family.spec.constants["stale-generation"]
            raise NetlinkError(
                stale, "not the current generation", bad_attr=_offset(info, "generation")
            ) from error

    def _device(self, info: GenlInfo) -> EvidenceReader:
        subsys = _name(info, "subsys", "missing subsystem")
        name = _name(info, "dev-name", "missing device name")
        reader = _open(self._provider, subsys, name)
        try:
            reader.generation()
        except OSError as error:
            if error.errno == errno.ENXIO:
                raise NetlinkError(errno.ENODEV, error.strerror) from error
            raise
        return reader


class EvidenceDump:
    """``pci_tsm_nl_evidence_read_dumpit()``: the objects that are wanted, one message a datagram.

    A set of evidence that is replaced while it is read ends the dump with EAGAIN, so a reader
    that gets to the end has objects of one set.
    """

    def __init__(self, info: GenlInfo, reader: EvidenceReader, wanted: Wanted) -> None:
        self._info = info
        self._reader = reader
        self._digest = wanted.digest
        self._kinds = iter(wanted.kinds)
        self._kind = next(self._kinds)
        self._nonce = wanted.nonce
        self._generation: int | None = None
        self._offset: int | None = None
        """In the object, or None before its first message."""
        self._size = 0
        self._val = info.attribute_set["val"].value
        exchange = info.op.operation.dump
        self._reply = exchange.reply if exchange is not None else ()

    def fill(self, skb: Skb) -> bool:
        """The next part of an object. Raises OSError as ``abi/netlink`` lists."""
        if self._nonce:
            self._refresh()
        if self._generation is None:
            self._generation = self._reader.generation()
        start = self._info.put_message(skb, NLM_F_MULTI)
        try:
            complete = self._put_object(skb)
        except Exception as error:
            skb.nlmsg_cancel(start)
            if not isinstance(error, OSError) or error.errno != errno.EMSGSIZE:
                # That the evidence went away below a read says more than how the read failed.
                self._check_generation()
            raise
        skb.nlmsg_end(start)
        if not complete:
            return True
        self._offset = None
        kind = next(self._kinds, None)
        if kind is None:
            return False
        self._kind = kind
        return True

    def done(self) -> None:
        """Nothing is held between two messages."""

    def _refresh(self) -> None:
        """Once for a dump, before anything is read."""
        nonce, self._nonce = self._nonce, b""
        try:
            self._reader.refresh(nonce)
        except OSError as error:
            if error.errno == errno.ENXIO:
                raise
            number = error.errno or errno.EIO
            raise NetlinkError(number, f"evidence refresh failed: {-number}") from error

    def _put_object(self, skb: Skb) -> bool:
        """Put as much of the object as fits; True when that was the rest of it."""
        digest = self._reader.digest(self._kind) if self._digest else b""
        offset = self._offset
        if offset is None:
            offset = 0
            self._size = len(digest) if self._digest else self._reader.object_size(self._kind)
            skb.put(self._first())
        available = skb.tailroom
        if available <= _VAL_OVERHEAD:
            raise OSError(errno.EMSGSIZE, "the message is full")
        count = min(available - _VAL_OVERHEAD, self._size - offset, NLA_MAX_PAYLOAD)
        if self._digest:
            data = digest[offset : offset + count]
        else:
            data = self._reader.read(self._kind, offset, count) if count else b""
        # After the read: a set that is still the same now was the same during it.
        self._check_generation()
        if len(data) != count:
            raise OSError(errno.EIO, f"{len(data)} bytes of an object in place of {count}")
        skb.nla_put(self._val, data)
        self._offset = offset + count
        return self._offset == self._size

    def _first(self) -> bytes:
        """What the first message of an object says before its content."""
        known = {"type": self._kind, "generation": self._generation or 0, "length": self._size}
        values: Values = {name: known[name] for name in self._reply if name in known}
        return self._info.family.codec.encode(self._info.attribute_set, values)

    def _check_generation(self) -> None:
        if self._reader.generation() != self._generation:
            raise NetlinkError(errno.EAGAIN, "evidence updated during read")


def _type_mask(info: GenlInfo) -> int:
    """The bits of the objects that are wanted. Raises NetlinkError."""
    info.require("type-mask", "missing object request mask")
    mask = info.integer("type-mask") or 0
    unknown = mask & ~info.family.spec.enums["evidence-type-flag"].mask()
    if unknown:
        raise NetlinkError(errno.EINVAL, f"unsupported object request {unknown:#x}")
    return mask


def _flags(info: GenlInfo) -> int:
    """The flags of a request, none when it has none. Raises NetlinkError."""
    flags = info.integer("flags") or 0
    if flags & ~info.family.spec.enums["evidence-flag"].mask():
        raise NetlinkError(errno.EINVAL, bad_attr=_offset(info, "flags"))
    return flags


def _wanted(info: GenlInfo, mask: int, flags: int) -> Wanted:
    kinds = tuple(
        entry.value
        for entry in info.family.spec.enums["evidence-type"].entries
        if mask >> entry.value & 1
    )
    if not kinds:
        raise NetlinkError(errno.EINVAL, "no evidence type requested")
    digest = bool(flags & info.family.spec.enums["evidence-flag"].value("digest"))
    nonce = info.nla("nonce")
    return Wanted(kinds, digest, nonce.payload if nonce is not None else b"")


def _name(info: GenlInfo, attribute: str, missing: str) -> str:
    """A name as ``nla_strscpy()`` copies it. Raises NetlinkError when it is missing or too long.

    The length is that of the attribute without its last NUL: bytes after a NUL count.
    """
    nla = info.require(attribute, missing)
    copied = nla.payload.removesuffix(b"\0")
    if len(copied) > info.family.spec.constants["max-name-len"]:
        raise NetlinkError(errno.EINVAL, bad_attr=nla.offset)
    return copied.partition(b"\0")[0].decode(errors="backslashreplace")


def _offset(info: GenlInfo, attribute: str) -> int | None:
    nla = info.nla(attribute)
    return nla.offset if nla is not None else None


def _open(provider: EvidenceProvider, subsys: str, name: str) -> EvidenceReader:
    try:
        return provider.open(subsys, name)
    except OSError as error:
        if error.errno == errno.ENODEV:
            raise NetlinkError(errno.ENODEV, f"device '{name}' not found") from error
        if error.errno == errno.EOPNOTSUPP:
            msg = f"no evidence from subsystem '{subsys}'"
            raise NetlinkError(errno.EOPNOTSUPP, msg) from error
        raise
