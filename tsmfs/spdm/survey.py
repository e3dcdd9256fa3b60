# SPDX-License-Identifier: MIT
"""All that a requester can ask of a device, step by step, and the evidence that comes of it."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from typing import TypeVar

from tsmfs.spdm import ide_km
from tsmfs.spdm.algorithms import BaseHash
from tsmfs.spdm.certificates import Chain, subject_of
from tsmfs.spdm.ide_km import PortInfo, stream_slots
from tsmfs.spdm.measurements import MeasurementBlock, MeasurementKind, parse_record
from tsmfs.spdm.messages import (
    NONCE_SIZE,
    SLOT_COUNT,
    ErrorCode,
    ResponderFlags,
    SpdmError,
)
from tsmfs.spdm.requester import Requester, Session
from tsmfs.spdm.tdisp import LockParameters, Report, TdispError, TdispErrorCode, TdiState
from tsmfs.spdm.tdisp_requester import TdispRequester
from tsmfs.spdm.vendor import PciProtocol, Send

OBJECTS = (*(f"cert{slot}" for slot in range(SLOT_COUNT)), "vca", "measurements", "report")
"""Names of the objects of evidence."""

_MEASURES = ResponderFlags.MEAS_NO_SIG | ResponderFlags.MEAS_SIG
_SESSIONS = ResponderFlags.KEY_EX | ResponderFlags.ENCRYPT | ResponderFlags.MAC


@dataclass(frozen=True, slots=True)
class Step:
    """Something that was asked, and what came of it in one line."""

    name: str
    result: str


class Survey:
    """One walk through everything that the device behind a requester can do."""

    def __init__(
        self,
        requester: Requester,
        *,
        nonce: bytes | None = None,
        interface: int,
        stream_id: int = 0,
        random: Callable[[int], bytes] = os.urandom,
    ) -> None:
        """`nonce` is what the measurements are signed over, random unless it is given.

        The interface that is locked has the FUNCTION_ID `interface`; `stream_id` is the stream
        that it is locked with.
        """
        self._requester = requester
        self._nonce = random(NONCE_SIZE) if nonce is None else nonce
        self._random = random
        self._interface = interface
        self._stream_id = stream_id
        self.doing = ""
        """The step that is under way, or that failed."""
        self.evidence: dict[str, bytes] = {}
        """The objects of `OBJECTS` that were collected so far."""

    def steps(self) -> Iterator[Step]:
        """Take the steps, in their order.

        Raises OSError, SpdmError, IdeKmError and TdispError in the step that fails; what the
        device does not support is left out, with a line that says so.
        """
        yield from self._connection()
        yield from self._identity()
        yield from self._measurements()
        self.doing = "key exchange"
        if not self._can(_SESSIONS):
            yield self._unsupported()
            return
        session = self._requester.key_exchange()
        with _undo_on_failure(session.end):
            yield from self._session(session)

    # --- Without a session ---------------------------------------------------------------------

    def _connection(self) -> Iterator[Step]:
        requester = self._requester
        self.doing = "connection"
        requester.connect()
        self.evidence["vca"] = requester.vca
        info, algorithms = requester.info, requester.algorithms
        yield Step("version", f"{info.version >> 4}.{info.version & 0x0F}")
        yield Step("capabilities", " ".join(_flags(info.flags)))
        chosen = (
            algorithms.base_hash,
            algorithms.base_asym,
            algorithms.measurement_hash,
            algorithms.dhe,
            algorithms.aead,
        )
        yield Step("algorithms", " ".join(one.name for one in chosen if one is not None))

    def _identity(self) -> Iterator[Step]:
        requester = self._requester
        self.doing = "digests"
        if not self._can(ResponderFlags.CERT):
            yield self._unsupported()
            return
        slots = sorted(requester.digests())
        yield Step("digests", f"of slot {', '.join(map(str, slots))}")
        for slot in sorted({*slots, requester.slot}):
            self.doing = f"certificate {slot}"
            chain = requester.certificate(slot)
            self.evidence[f"cert{slot}"] = chain
            yield Step(self.doing, _describe_chain(chain, requester.algorithms.base_hash))
        self.doing = "challenge"
        if self._can(ResponderFlags.CHAL):
            requester.challenge()
            yield Step("challenge", f"signed with the key of slot {requester.slot}")
        else:
            yield self._unsupported()

    def _measurements(self) -> Iterator[Step]:
        self.doing = "measurements"
        if not self._can(_MEASURES):
            yield self._unsupported()
            return
        sign = self._can(ResponderFlags.MEAS_SIG)
        result = self._requester.measurements(sign=sign, nonce=self._nonce if sign else None)
        self.evidence["measurements"] = result.transcript
        manner = f"signed over nonce {self._nonce.hex()}" if sign else "without a signature"
        yield Step("measurements", f"{result.blocks}, {manner}")
        for block in parse_record(result.record):
            yield Step(f"  {block.index}", _describe_block(block))

    # --- In a session --------------------------------------------------------------------------

    def _session(self, session: Session) -> Iterator[Step]:
        aead = self._requester.algorithms.aead
        name = aead.name if aead is not None else "no cipher"
        yield Step("key exchange", f"session {session.id:#010x}, {name}")
        self.doing = "secured measurements"
        if self._can(_MEASURES):
            result = session.measurements()
            yield Step(self.doing, f"{result.blocks}, without a signature")
        else:
            yield self._unsupported()
        self.doing = "heartbeat"
        if self._can(ResponderFlags.HBEAT) and session.heartbeat_period:
            session.heartbeat()
            yield Step("heartbeat", f"every {session.heartbeat_period} seconds")
        else:
            yield self._unsupported()
        self.doing = "key update"
        if self._can(ResponderFlags.KEY_UPD):
            session.key_update()
            yield Step("key update", "both directions")
        else:
            yield self._unsupported()
        yield from self._keyed_interface(session)
        self.doing = "end of session"
        session.end()
        yield Step(self.doing, f"{session.id:#010x}")

    def _keyed_interface(self, session: Session) -> Iterator[Step]:
        send = _sender(session, PciProtocol.IDE_KM)
        self.doing = "IDE_KM query"
        port = _unless_unsupported(lambda: ide_km.query(send))
        if port is None:
            yield self._unsupported()
            yield from self._tdisp(session)
            return
        yield Step(self.doing, _describe_port(port))
        self.doing = "IDE_KM keys"
        slots = stream_slots(port.port, self._stream_id)
        for slot in slots:
            ide_km.key_prog(send, slot, self._random(ide_km.KEY_SIZE))
        for slot in slots:
            ide_km.k_set_go(send, slot)
        yield Step(self.doing, f"{len(slots)} of stream {self._stream_id} programmed and started")
        yield from self._tdisp(session)
        self.doing = "IDE_KM stop"
        for slot in slots:
            ide_km.k_set_stop(send, slot)
        yield Step(self.doing, f"{len(slots)} keys")

    def _tdisp(self, session: Session) -> Iterator[Step]:
        interface = TdispRequester(_sender(session, PciProtocol.TDISP), self._interface)
        self.doing = "TDISP version"
        try:
            versions = _unless_unsupported(interface.versions)
        except TdispError as error:
            if error.code != TdispErrorCode.INVALID_INTERFACE:
                raise
            yield Step(self.doing, f"no interface {self._interface:#x}")
            return
        if versions is None:
            yield self._unsupported()
            return
        yield Step(self.doing, ", ".join(f"{one >> 4}.{one & 0x0F}" for one in versions))
        self.doing = "TDISP capabilities"
        capabilities = interface.capabilities()
        yield Step(
            self.doing,
            f"requests {capabilities.requests:#x}, lock flags {capabilities.lock_flags:#x}, "
            f"{capabilities.address_width} address bits",
        )
        self.doing = "TDISP state"
        state = interface.state()
        yield Step(self.doing, state.name)
        if state is not TdiState.CONFIG_UNLOCKED:
            # The session that had locked it ended when this one's connection was made.
            interface.stop()
        self.doing = "TDISP lock"
        nonce = interface.lock(LockParameters(stream_id=self._stream_id))
        with _undo_on_failure(interface.stop):
            yield Step(self.doing, interface.state().name)
            self.doing = "TDISP report"
            self.evidence["report"] = report = interface.report()
            yield Step(self.doing, _describe_report(report))
            self.doing = "TDISP start"
            interface.start(nonce)
            yield Step(self.doing, interface.state().name)
        self.doing = "TDISP stop"
        interface.stop()
        yield Step(self.doing, interface.state().name)

    def _can(self, flags: ResponderFlags) -> bool:
        """Whether the device has `flags`: any of those of measurements, all of others."""
        found = self._requester.info.flags & flags
        return bool(found) if flags == _MEASURES else found == flags

    def _unsupported(self) -> Step:
        return Step(self.doing, "not supported")


def _sender(session: Session, protocol: PciProtocol) -> Send:
    return lambda message: session.vendor(protocol, message)


T = TypeVar("T")


def _unless_unsupported(ask: Callable[[], T]) -> T | None:
    """What `ask` returns; None if the device does not support the request."""
    try:
        return ask()
    except SpdmError as error:
        if error.code != ErrorCode.UNSUPPORTED_REQUEST:
            raise
        return None


@contextmanager
def _undo_on_failure(undo: Callable[[], None]) -> Iterator[None]:
    """Call `undo` if the block fails, and tell its failure, not that of `undo`."""
    try:
        yield
    except BaseException:
        with suppress(OSError, SpdmError, TdispError):
            undo()
        raise


# --- Lines -------------------------------------------------------------------------------------


def _flags(flags: ResponderFlags) -> list[str]:
    return [one.name for one in ResponderFlags if one & flags == one and one.name is not None]


def _describe_chain(data: bytes, base_hash: BaseHash) -> str:
    chain = Chain.parse(data, base_hash)
    last = subject_of(chain.leaf)
    return f"{len(data)} bytes, {len(chain.ders)} certificates, the last of {last}"


def _describe_block(block: MeasurementBlock) -> str:
    kinds = MeasurementKind._value2member_map_
    name = MeasurementKind(block.kind).name if block.kind in kinds else f"kind {block.kind:#04x}"
    return f"{name} {'raw' if block.raw else 'digest'} {block.value.hex()}"


def _describe_port(port: PortInfo) -> str:
    place = f"{port.bus:02x}:{port.dev_func >> 3:02x}.{port.dev_func & 7}"
    return (
        f"port {port.port} of {port.max_port + 1}, segment {port.segment:02x}, {place}, "
        f"{len(port.registers)} bytes of registers"
    )


def _describe_report(packed: bytes) -> str:
    report = Report.parse(packed)
    places = (f"{one.address():#x}-{one.address() + one.size - 1:#x}" for one in report.mmio_ranges)
    return f"{len(packed)} bytes, {', '.join(places) or 'no ranges'}"
