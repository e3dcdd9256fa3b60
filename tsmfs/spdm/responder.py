# SPDX-License-Identifier: MIT
"""The SPDM responder: requests in, responses out, whatever the bytes are (DSP0274 10)."""

from __future__ import annotations

import logging
import os
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from types import MappingProxyType

from tsmfs.spdm.algorithms import Algorithms, Offer
from tsmfs.spdm.attestation import Attester, Signer, SigningJob, forget_m1, sign
from tsmfs.spdm.chunks import EarlyError
from tsmfs.spdm.connection import (
    CAPABILITIES,
    Call,
    Connection,
    Phase,
    Session,
    Settings,
    State,
    invalid,
    unexpected,
    unsupported,
)
from tsmfs.spdm.identity import Identity
from tsmfs.spdm.measurements import MeasurementSource
from tsmfs.spdm.messages import (
    EARLY_ERROR,
    PADDING,
    SUPPORTED_ALGORITHMS,
    Capabilities,
    ChunkGet,
    ChunkSend,
    ChunkSendAck,
    Code,
    Error,
    ErrorCode,
    GetCapabilities,
    GetVersion,
    NegotiateAlgorithms,
    RequesterFlags,
    ResponderFlags,
    RespondIfReady,
    SpdmError,
    SupportedAlgorithms,
    VendorDefinedRequest,
    Version,
    VersionNumber,
    VersionResponse,
)
from tsmfs.spdm.negotiation import check_capabilities, negotiate, offered
from tsmfs.spdm.secured import RecordError, record_session
from tsmfs.spdm.sessions import SessionTable
from tsmfs.spdm.vendor import VendorResponder, dispatch, session_ended
from tsmfs.spdm.wire import HEADER_SIZE, Message, SpdmDecodeError

__all__ = [
    "CAPABILITIES",
    "VERSIONS",
    "Responder",
    "Session",
    "Settings",
    "Signer",
    "SigningJob",
    "Transform",
    "sign",
    "unchanged",
]

VERSIONS: tuple[Version, ...] = (Version.V1_2, Version.V1_3)
"""Versions that a responder speaks unless it is told otherwise."""

Transform = Callable[[bytes, bytes], bytes]
"""Gets a request and its response, unless that is ERROR; returns the response to send."""

_log = logging.getLogger(__name__)


def unchanged(request: bytes, response: bytes) -> bytes:
    """`response`: the `Transform` of an honest device."""
    return response


_Handler = Callable[["Responder", Call], Message | bytes]


@dataclass(frozen=True, slots=True)
class _Rule:
    """When a request is answered, and by what."""

    handle: _Handler
    state: State = State.ALGORITHMS
    """The least state of the connection."""
    phases: int = Phase.CLEAR | Phase.APPLICATION
    needs: int = 0
    """Capabilities of ours, any of which is enough."""
    both: int = 0
    """Capabilities that both endpoints must have; their bits are the same on both sides."""
    skips_challenge: bool = False
    """Whether it resets M1/M2 as long as there was no CHALLENGE."""


class Responder:
    """A device's SPDM responder. It has one connection, and is called by one thread at a time.

    Nothing that comes from outside makes it raise. `signer` and `transform` are where a device for
    tests can lie; they and `measurements` may be replaced at any time.
    """

    def __init__(
        self,
        identity: Identity,
        measurements: MeasurementSource,
        *,
        vendor: Mapping[int, VendorResponder] = MappingProxyType({}),
        versions: Sequence[int] = VERSIONS,
        algorithms: Offer | None = None,
        settings: Settings | None = None,
        signer: Signer = sign,
        transform: Transform = unchanged,
        random: Callable[[int], bytes] = os.urandom,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        """`vendor` are the protocols of the PCI-SIG by number, `algorithms` what may be negotiated.

        Only the signature algorithm of `identity` is ever offered. `clock` is in seconds.
        """
        self.settings = settings or Settings()
        self.vendor = vendor
        self.transform = transform
        self.on_session_end: list[Callable[[int], None]] = []
        """Called with the ID of each session that ends, for whatever reason."""
        self._versions = tuple(sorted(versions))
        self._offer = replace(algorithms or Offer(), base_asym=(identity.base_asym,))
        self._attester = Attester(identity, measurements, signer, random)
        self._table = SessionTable(
            self.settings, self._attester, random, clock, self._session_ended
        )
        self._connection = Connection(self.settings)
        self._lost = False

    @property
    def identity(self) -> Identity:
        """Keys and certificates."""
        return self._attester.identity

    @property
    def measurements(self) -> MeasurementSource:
        """What gets the measurements."""
        return self._attester.measurements

    @measurements.setter
    def measurements(self, source: MeasurementSource) -> None:
        self._attester.measurements = source

    @property
    def signer(self) -> Signer:
        """What makes signatures."""
        return self._attester.signer

    @signer.setter
    def signer(self, signer: Signer) -> None:
        self._attester.signer = signer

    @property
    def sessions(self) -> Mapping[int, Session]:
        """Sessions by ID, those in their handshake included."""
        return self._table.by_id

    @property
    def version(self) -> int | None:
        """The version byte of the connection; None before GET_CAPABILITIES."""
        connection = self._connection
        return connection.version if connection.state >= State.CAPABILITIES else None

    @property
    def algorithms(self) -> Algorithms | None:
        """What was negotiated; None before NEGOTIATE_ALGORITHMS."""
        return self._connection.algorithms

    def reset(self) -> None:
        """Forget the connection and its sessions, as a reset of the device does.

        A requester that goes on is told to begin again (RequestResynch).
        """
        lost = self._connection
        self._lost = self._lost or lost.state > State.NONE
        self._table.end_all()
        self._connection = Connection(self.settings)
        self._connection.version = lost.version

    def expire(self) -> None:
        """End the sessions whose requester was silent for too long."""
        self._table.expire()

    def end_session(self, session: int) -> None:
        """End the session with this ID, if there is one."""
        self._table.end(session)

    def _session_ended(self, session: int) -> None:
        for callback in (*self.on_session_end, self._tell_vendor):
            try:
                callback(session)
            except Exception:
                _log.exception("end of session %#010x", session)

    def _tell_vendor(self, session: int) -> None:
        session_ended(self.vendor, session)

    # --- Frame of every request ----------------------------------------------------------------

    def respond(self, request: bytes) -> bytes:
        """The response to a message outside of sessions, ERROR included.

        Up to three bytes of padding may be behind the request.
        """
        self.expire()
        call = Call(request, self._connection, None, self.settings)
        response = self._answer(call, self.settings.data_transfer_size + PADDING)
        if call.then is not None:
            call.then()
        return response

    def respond_secured(self, record: bytes) -> bytes:
        """The record that answers a secured record; empty if there is no such session."""
        self.expire()
        try:
            session = self.sessions.get(record_session(record))
        except RecordError:
            return b""
        if session is None:
            return b""
        try:
            request, session.old_key = session.keys.open_request(record)
        except RecordError as error:
            _log.debug("session %#010x: %s", session.id, error)
            self.end_session(session.id)
            return self._sealed(
                session, self._error(SpdmError(ErrorCode.DECRYPT_ERROR, str(error)))
            )
        self._table.touch(session)
        call = Call(request, self._connection, session, self.settings)
        sealed = self._sealed(session, self._answer(call, self.settings.data_transfer_size))
        if call.then is not None:
            call.then()
        return sealed

    def _sealed(self, session: Session, response: bytes) -> bytes:
        try:
            return session.keys.seal_response(response)
        except RecordError as error:
            _log.warning("session %#010x: %s", session.id, error)
            self.end_session(session.id)
            return b""

    def _answer(self, call: Call, limit: int, overhead: int = 0) -> bytes:
        """The response to a request of up to `limit` bytes; `overhead` bytes go around it."""
        request = call.request
        try:
            if len(request) < HEADER_SIZE:
                raise invalid(f"{len(request)} bytes are no request")
            if len(request) > limit:
                raise SpdmError(ErrorCode.REQUEST_TOO_LARGE, f"{len(request)} bytes")
            return self._fit(call, self.transform(request, self._response(call)), overhead)
        except SpdmError as error:
            refusal = error
        except SpdmDecodeError as error:
            refusal = invalid(str(error))
        except Exception:
            _log.exception("request %s", request[:HEADER_SIZE].hex())
            refusal = SpdmError(ErrorCode.UNSPECIFIED, "an error of the device")
            call.then = None
        if request[1:2] == bytes((Code.GET_MEASUREMENTS,)):
            call.channel.forget_l1()
        _log.debug("request %s refused: %s", request[:HEADER_SIZE].hex(), refusal)
        return self._error(refusal, self._refusing_version(request))

    def _refusing_version(self, request: bytes) -> int:
        """The version of a refusal: until one is agreed on, what GET_CAPABILITIES asks for."""
        if (
            self._connection.state < State.CAPABILITIES
            and request[1:2] == bytes((Code.GET_CAPABILITIES,))
            and request[0] in self._versions
        ):
            return request[0]
        return self._connection.version

    def _error(self, error: SpdmError, version: int | None = None) -> bytes:
        return Error(
            version=self._connection.version if version is None else version,
            error=error.code,
            data=error.data,
            extended=error.extended,
        ).pack()

    def _fit(self, call: Call, response: bytes, overhead: int) -> bytes:
        """`response`, or the ERROR that says that it is large."""
        if len(response) + overhead <= call.room or response[1] == Code.ERROR:
            return response
        if len(response) > call.connection.max_message_size or not call.both(RequesterFlags.CHUNK):
            raise SpdmError(
                ErrorCode.RESPONSE_TOO_LARGE,
                "too large for the requester",
                extended=len(response).to_bytes(4, "little"),
            )
        handle = call.channel.chunks.hold(response, call.room)
        return self._error(
            SpdmError(ErrorCode.LARGE_RESPONSE, "in chunks", extended=bytes((handle,)))
        )

    def _response(self, call: Call) -> bytes:
        code = call.request[1]
        if self._lost and code != Code.GET_VERSION:
            raise SpdmError(ErrorCode.REQUEST_RESYNCH, "the connection was lost")
        # That it was sent is enough for the transcripts, whatever the answer.
        if code not in _KEEPS_L1:
            call.channel.forget_l1()
        rule = _RULES.get(code)
        if rule is None:
            if code < Code.GET_DIGESTS:
                raise invalid(f"code {code:#04x} is no request")
            raise unsupported(code, f"request {code:#04x}")
        if rule.skips_challenge:
            forget_m1(call.connection)
        self._check(call, rule, code)
        response = rule.handle(self, call)
        return response if isinstance(response, bytes) else response.pack()

    def _check(self, call: Call, rule: _Rule, code: int) -> None:
        """Raise SpdmError unless the request may come here and now."""
        state = call.connection.state
        if state < rule.state:
            raise unexpected(f"request {code:#04x} in state {state.name}")
        self._check_version(code, call.request[0])
        chunks = call.channel.chunks
        if code != Code.GET_VERSION and (
            (chunks.sending and code != Code.CHUNK_SEND)
            or (chunks.getting and code != Code.CHUNK_GET)
        ):
            raise unexpected("a large message is under way")
        if (rule.needs and not self.settings.flags & rule.needs) or not call.both(rule.both):
            raise unsupported(code, f"request {code:#04x} without the capability for it")
        phases = rule.phases
        if code == Code.FINISH and call.in_the_clear:
            phases = Phase.CLEAR
        if int(call.phase) & int(phases):
            return
        if call.session is None:
            raise SpdmError(ErrorCode.SESSION_REQUIRED, f"request {code:#04x}")
        raise unexpected(f"request {code:#04x} in phase {call.phase.name}")

    def _check_version(self, code: int, version: int) -> None:
        if code == Code.GET_VERSION:
            right = version == Version.V1_0
        elif code == Code.GET_CAPABILITIES:
            right = version in self._versions
        else:
            right = version == self._connection.version
        if not right:
            raise SpdmError(ErrorCode.VERSION_MISMATCH, f"version {version:#04x}")

    # --- Connection ----------------------------------------------------------------------------

    def _get_version(self, call: Call) -> bytes:
        _, asked = call.take(GetVersion)
        self._table.end_all()
        self._lost = False
        connection = self._connection = Connection(self.settings)
        entries = tuple(VersionNumber(version) for version in self._versions)
        answer = VersionResponse(version=Version.V1_0, entries=entries).pack()
        connection.transcripts.vca.append(asked, answer)
        connection.state = State.VERSION
        # What is sent is not bound by the connection that was.
        call.connection = connection
        return answer

    def _get_capabilities(self, call: Call) -> bytes:
        connection = call.connection
        if connection.state != State.VERSION:
            raise unexpected("GET_CAPABILITIES after CAPABILITIES")
        message, asked = call.take(GetCapabilities)
        check_capabilities(message)
        settings = self.settings
        supported = b""
        if (
            message.version >= Version.V1_3
            and message.attributes & SUPPORTED_ALGORITHMS
            and settings.flags & ResponderFlags.CHUNK
        ):
            supported = SupportedAlgorithms(offered(self._offer, message.version)).pack()
        answer = Capabilities(
            version=message.version,
            attributes=SUPPORTED_ALGORITHMS if supported else 0,
            ct_exponent=settings.ct_exponent,
            flags=settings.flags,
            data_transfer_size=settings.data_transfer_size,
            max_message_size=settings.max_message_size,
            supported=supported,
        ).pack()
        connection.transcripts.vca.append(asked, answer)
        connection.version = message.version
        connection.flags = message.flags
        connection.transfer_size = message.data_transfer_size
        connection.max_message_size = message.max_message_size
        connection.state = State.CAPABILITIES
        return answer

    def _negotiate_algorithms(self, call: Call) -> bytes:
        connection = call.connection
        if connection.state != State.CAPABILITIES:
            raise unexpected("NEGOTIATE_ALGORITHMS after ALGORITHMS")
        message, asked = call.take(NegotiateAlgorithms)
        if len(asked) > NegotiateAlgorithms.MAX_SIZE:
            raise invalid(f"NEGOTIATE_ALGORITHMS of {len(asked)} bytes")
        connection.algorithms, response = negotiate(
            self._offer,
            message,
            sessions=call.both(RequesterFlags.KEY_EX),
            measures=bool(self.settings.flags & _MEASURES),
        )
        answer = response.pack()
        connection.transcripts.vca.append(asked, answer)
        connection.state = State.ALGORITHMS
        return answer

    # --- Others --------------------------------------------------------------------------------

    def _vendor_defined(self, call: Call) -> Message:
        message, _ = call.take(VendorDefinedRequest)
        return dispatch(self.vendor, call.session, message)

    def _respond_if_ready(self, call: Call) -> Message:
        call.take(RespondIfReady)
        raise unexpected("no response is pending")

    def _chunk_send(self, call: Call) -> Message:
        message, asked = call.take(ChunkSend)
        attributes = 0
        try:
            whole = call.channel.chunks.put(message, len(asked))
            response = b"" if whole is None else self._answer_whole(call, whole)
        except EarlyError as error:
            attributes = EARLY_ERROR
            response = self._error(error)
        return ChunkSendAck(
            version=call.version,
            attributes=attributes,
            handle=message.handle,
            sequence=message.sequence,
            response=response,
        )

    def _answer_whole(self, call: Call, request: bytes) -> bytes:
        if request[1] in (Code.CHUNK_SEND, Code.CHUNK_GET):
            return self._error(invalid("chunks of a chunk"))
        inner = Call(request, call.connection, call.session, self.settings)
        response = self._answer(inner, self.settings.max_message_size, ChunkSendAck.OVERHEAD)
        call.then = inner.then
        return response

    def _chunk_get(self, call: Call) -> Message:
        message, _ = call.take(ChunkGet)
        return call.channel.chunks.get(message)


_MEASURES = ResponderFlags.MEAS_NO_SIG | ResponderFlags.MEAS_SIG
_SECURED = RequesterFlags.KEY_EX | RequesterFlags.ENCRYPT | RequesterFlags.MAC
_ANYWHERE = Phase.CLEAR | Phase.HANDSHAKE | Phase.APPLICATION
_KEEPS_L1 = frozenset(
    {Code.GET_MEASUREMENTS, Code.CHUNK_SEND, Code.CHUNK_GET, Code.RESPOND_IF_READY}
)


def _attester(answer: Callable[[Attester, Call], bytes]) -> _Handler:
    return lambda responder, call: answer(responder._attester, call)


def _table(answer: Callable[[SessionTable, Call], Message | bytes]) -> _Handler:
    return lambda responder, call: answer(responder._table, call)


_RULES: Mapping[int, _Rule] = {
    Code.GET_VERSION: _Rule(Responder._get_version, State.NONE, Phase.CLEAR),
    Code.GET_CAPABILITIES: _Rule(Responder._get_capabilities, State.VERSION, Phase.CLEAR),
    Code.NEGOTIATE_ALGORITHMS: _Rule(
        Responder._negotiate_algorithms, State.CAPABILITIES, Phase.CLEAR
    ),
    Code.GET_DIGESTS: _Rule(_attester(Attester.digests), needs=ResponderFlags.CERT),
    Code.GET_CERTIFICATE: _Rule(_attester(Attester.certificate), needs=ResponderFlags.CERT),
    Code.CHALLENGE: _Rule(
        _attester(Attester.challenge), phases=Phase.CLEAR, needs=ResponderFlags.CHAL
    ),
    Code.GET_MEASUREMENTS: _Rule(
        _attester(Attester.get_measurements), needs=_MEASURES, skips_challenge=True
    ),
    Code.KEY_EXCHANGE: _Rule(
        _table(SessionTable.key_exchange), phases=Phase.CLEAR, both=_SECURED, skips_challenge=True
    ),
    Code.FINISH: _Rule(
        _table(SessionTable.finish), phases=Phase.HANDSHAKE, both=_SECURED, skips_challenge=True
    ),
    Code.HEARTBEAT: _Rule(
        _table(SessionTable.heartbeat),
        phases=Phase.APPLICATION,
        both=RequesterFlags.HBEAT,
        skips_challenge=True,
    ),
    Code.KEY_UPDATE: _Rule(
        _table(SessionTable.key_update),
        phases=Phase.APPLICATION,
        both=RequesterFlags.KEY_UPD,
        skips_challenge=True,
    ),
    Code.END_SESSION: _Rule(
        _table(SessionTable.end_session),
        phases=Phase.APPLICATION,
        both=_SECURED,
        skips_challenge=True,
    ),
    Code.VENDOR_DEFINED_REQUEST: _Rule(Responder._vendor_defined),
    Code.RESPOND_IF_READY: _Rule(Responder._respond_if_ready),
    Code.CHUNK_SEND: _Rule(
        Responder._chunk_send, State.CAPABILITIES, _ANYWHERE, both=RequesterFlags.CHUNK
    ),
    Code.CHUNK_GET: _Rule(
        Responder._chunk_get, State.CAPABILITIES, _ANYWHERE, both=RequesterFlags.CHUNK
    ),
}
