# SPDX-License-Identifier: MIT
"""The sessions of a responder, from KEY_EXCHANGE to END_SESSION (DSP0274 10.16 to 10.24)."""

from __future__ import annotations

import hmac
from collections.abc import Callable, Mapping
from dataclasses import replace
from types import MappingProxyType

from tsmfs.spdm.algorithms import CryptoError
from tsmfs.spdm.attestation import Attester
from tsmfs.spdm.connection import Call, Session, Settings, invalid, unexpected
from tsmfs.spdm.messages import (
    FINISH_SIGNED,
    MAX_OPAQUE_SIZE,
    NONCE_SIZE,
    EndSession,
    EndSessionAck,
    ErrorCode,
    Finish,
    FinishResponse,
    Heartbeat,
    HeartbeatAck,
    KeyExchange,
    KeyExchangeResponse,
    KeyOperation,
    KeyUpdate,
    KeyUpdateAck,
    OtherParams,
    RequesterFlags,
    SessionPolicy,
    SpdmError,
    Version,
)
from tsmfs.spdm.secured import (
    SECURED_VERSIONS,
    SecuredSession,
    parse_supported_versions,
    selected_version,
    session_id,
)
from tsmfs.spdm.transcript import SessionTranscript, SigningContext

MISSED_HEARTBEATS = 2
"""Heartbeat periods without a request after which a session ends (10.20)."""

_SESSION_IDS = 0xFFFF


class SessionTable:
    """Sessions by ID, those in their handshake included, and the requests that are about them."""

    def __init__(
        self,
        settings: Settings,
        attester: Attester,
        random: Callable[[int], bytes],
        clock: Callable[[], float],
        ended: Callable[[int], None],
    ) -> None:
        """`ended` is called with the ID of each session that is there no longer."""
        self._settings = settings
        self._attester = attester
        self._random = random
        self._clock = clock
        self._ended = ended
        self._sessions: dict[int, Session] = {}
        self._last_id = 0

    @property
    def by_id(self) -> Mapping[int, Session]:
        """The sessions, the oldest first."""
        return MappingProxyType(self._sessions)

    def end(self, session: int) -> None:
        """End the session with this ID, if there is one."""
        if self._sessions.pop(session, None) is not None:
            self._ended(session)

    def end_all(self) -> None:
        """End all sessions."""
        for session in tuple(self._sessions):
            self.end(session)

    def expire(self) -> None:
        """End the sessions whose requester was silent for too long."""
        if not self._sessions:
            return
        now = self._clock()
        for session in tuple(self._sessions.values()):
            if session.deadline is not None and now > session.deadline:
                self.end(session.id)

    def touch(self, session: Session) -> None:
        """A request came: the session does not end for now."""
        if session.deadline is not None:
            session.deadline = self._next_deadline()

    def _next_deadline(self) -> float:
        return self._clock() + MISSED_HEARTBEATS * self._settings.heartbeat_period

    def _period(self, call: Call) -> int:
        return self._settings.heartbeat_period if call.both(RequesterFlags.HBEAT) else 0

    def _new_id(self, request: int) -> int:
        """An ID that no session has, for the requester's half."""
        if len(self._sessions) >= self._settings.max_sessions:
            # A handshake that was given up must not keep others out.
            stale = next((one for one in self._sessions.values() if not one.established), None)
            if stale is None:
                raise SpdmError(ErrorCode.SESSION_LIMIT_EXCEEDED, "there are no sessions left")
            self.end(stale.id)
        self._last_id = self._last_id % _SESSION_IDS + 1
        while (new := session_id(request, self._last_id)) in self._sessions:
            self._last_id = self._last_id % _SESSION_IDS + 1
        return new

    def key_exchange(self, call: Call) -> bytes:
        """KEY_EXCHANGE_RSP."""
        algorithms = call.algorithms
        message, asked = call.take(KeyExchange, algorithms.sizes)
        dhe, aead = algorithms.dhe, algorithms.aead
        if dhe is None or aead is None:
            raise unexpected("no algorithms of sessions were negotiated")
        if algorithms.other_params & OtherParams.OPAQUE_FORMAT_1 == 0:
            raise invalid("sessions need OpaqueDataFmt1")
        if call.version >= Version.V1_3 and message.policy & SessionPolicy.EVENT_ALL:
            raise invalid("there are no events")
        _, chain_hash = self._attester.chain(call, message.slot)
        summary = self._attester.summary(call, message.summary_type)
        opaque = _secured_version(message.opaque)
        private, public = dhe.generate()
        try:
            shared = dhe.shared(private, message.exchange)
        except CryptoError as error:
            raise invalid(str(error)) from None
        new = self._new_id(message.session)
        sizes = replace(algorithms.sizes, summary=len(summary), signature=0, verify=0)
        answer = KeyExchangeResponse(
            version=call.version,
            heartbeat_period=self._period(call),
            session=new >> 16,
            random=self._random(NONCE_SIZE),
            exchange=public,
            summary=summary,
            opaque=opaque,
        ).pack(sizes)
        base_hash = algorithms.base_hash
        th = SessionTranscript(base_hash, bytes(call.connection.transcripts.vca), chain_hash)
        th.append(asked)
        th.append(answer)
        signature = self._attester.signature(
            call, message.slot, SigningContext.KEY_EXCHANGE_RSP, th.digest()
        )
        th.append(signature)
        keys = SecuredSession(new, call.version, base_hash, aead, shared, th.digest())
        verify = b""
        if not call.in_the_clear:
            verify = th.verify_data(keys.response_finished)
            th.append(verify)
        self._sessions[new] = Session(keys, th, self._settings)
        return answer + signature + verify

    def _handshaking(self, call: Call) -> Session:
        """The session of a FINISH; where handshakes are in the clear, the last one that began."""
        if call.session is not None:
            return call.session
        for session in reversed(self._sessions.values()):
            if not session.established:
                return session
        raise SpdmError(ErrorCode.SESSION_REQUIRED, "no handshake is under way")

    def finish(self, call: Call) -> bytes:
        """FINISH_RSP."""
        message, asked = call.take(Finish, call.algorithms.sizes)
        session = self._handshaking(call)
        if message.attributes & FINISH_SIGNED:
            raise invalid("a signature without mutual authentication")
        th, keys = session.th, session.keys
        th.append(asked[: -len(message.verify)])
        if not hmac.compare_digest(th.verify_data(keys.request_finished), message.verify):
            call.then = lambda: self.end(session.id)
            raise SpdmError(ErrorCode.DECRYPT_ERROR, "RequesterVerifyData is wrong")
        th.append(message.verify)
        answer = FinishResponse(version=call.version).pack()
        th.append(answer)
        if call.in_the_clear:
            verify = th.verify_data(keys.response_finished)
            th.append(verify)
            answer += verify
        period = self._period(call)

        def establish() -> None:
            keys.establish(th.digest())
            if period:
                session.deadline = self._next_deadline()

        call.then = establish
        return answer

    def heartbeat(self, call: Call) -> HeartbeatAck:
        """HEARTBEAT_ACK."""
        call.take(Heartbeat)
        if not self._period(call):
            raise unexpected("sessions have no heartbeat")
        return HeartbeatAck(version=call.version)

    def key_update(self, call: Call) -> KeyUpdateAck:
        """KEY_UPDATE_ACK, which is already under the new key when responses have one."""
        message, _ = call.take(KeyUpdate)
        session = call.inside
        keys = session.keys
        update = message.operation, message.tag
        if message.operation == KeyOperation.VERIFY_NEW_KEY:
            if session.last_update is None or session.old_key:
                raise invalid("there is no new key to verify")
            keys.verified()
            session.last_update = None
        elif message.operation not in (KeyOperation.UPDATE_KEY, KeyOperation.UPDATE_ALL_KEYS):
            raise invalid(f"key operation {message.operation}")
        elif session.last_update is None:
            keys.update_request()
            if message.operation == KeyOperation.UPDATE_ALL_KEYS:
                keys.update_response()
            session.last_update = update
        # The same request under the old key is one whose acknowledgement was lost.
        elif session.last_update != update or not session.old_key:
            raise invalid("the last new key has not been verified")
        return KeyUpdateAck(version=call.version, operation=message.operation, tag=message.tag)

    def end_session(self, call: Call) -> EndSessionAck:
        """END_SESSION_ACK, after which the session ends."""
        call.take(EndSession)
        session = call.inside.id
        call.then = lambda: self.end(session)
        return EndSessionAck(version=call.version)


def _secured_version(opaque: bytes) -> bytes:
    """The answer to the requester's versions of secured messages; empty to none."""
    if not opaque:
        return b""
    if len(opaque) > MAX_OPAQUE_SIZE:
        raise invalid(f"{len(opaque)} bytes of opaque data")
    known = parse_supported_versions(opaque)
    version = next((one for one in SECURED_VERSIONS if one in known), None)
    if version is None:
        raise invalid("no version of secured messages that both sides know")
    return selected_version(version)
