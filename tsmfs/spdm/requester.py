# SPDX-License-Identifier: MIT
"""The SPDM requester: a connection to one responder, and the sessions on it (DSP0274 10, 12).

Every signature and HMAC of the responder is verified before a call returns; what they sign is
kept, so that others can verify it again.
"""

from __future__ import annotations

import hmac
import os
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Protocol, TypeVar

from tsmfs.spdm.algorithms import (
    AeadSuite,
    Algorithms,
    BaseAsym,
    BaseHash,
    CryptoError,
    DheGroup,
    MeasurementHash,
    Offer,
    PublicKey,
    bits,
)
from tsmfs.spdm.certificates import CHAIN_LIMIT, CertificateError, Chain, public_key
from tsmfs.spdm.exchange import Exchange, Limits, PeerError, VerificationError
from tsmfs.spdm.messages import (
    CONTENT_MASK,
    CONTEXT_SIZE,
    MEASUREMENT_ALL,
    MEASUREMENT_COUNT,
    MEASUREMENT_SPECIFICATION_DMTF,
    MIN_DATA_TRANSFER_SIZE,
    NONCE_SIZE,
    SLOT_COUNT,
    SLOT_MASK,
    AlgorithmsResponse,
    AlgorithmType,
    Capabilities,
    Certificate,
    Challenge,
    ChallengeAuth,
    Digests,
    EndSession,
    EndSessionAck,
    ErrorCode,
    Finish,
    FinishResponse,
    GetCapabilities,
    GetCertificate,
    GetDigests,
    GetMeasurements,
    GetVersion,
    Heartbeat,
    HeartbeatAck,
    KeyExchange,
    KeyExchangeResponse,
    KeyOperation,
    KeyUpdate,
    KeyUpdateAck,
    MeasurementAttributes,
    Measurements,
    NegotiateAlgorithms,
    OtherParams,
    RequesterFlags,
    ResponderFlags,
    SessionPolicy,
    SpdmError,
    SummaryType,
    VendorDefinedResponse,
    Version,
    VersionResponse,
)
from tsmfs.spdm.secured import (
    SECURED_VERSIONS,
    RecordError,
    SecuredSession,
    parse_selected_version,
    session_id,
    supported_versions,
)
from tsmfs.spdm.transcript import (
    SessionTranscript,
    SigningContext,
    Transcript,
    Transcripts,
    signing_message,
)
from tsmfs.spdm.vendor import vendor_answer, vendor_request
from tsmfs.spdm.wire import NO_SIZES, Message, Sizes, SpdmDecodeError

VERSIONS: tuple[Version, ...] = (Version.V1_3, Version.V1_2)
"""What a requester speaks, in the order of its preference."""

CAPABILITIES = (
    RequesterFlags.ENCRYPT
    | RequesterFlags.MAC
    | RequesterFlags.KEY_EX
    | RequesterFlags.HBEAT
    | RequesterFlags.KEY_UPD
    | RequesterFlags.CHUNK
)
"""What a requester tells unless it is told otherwise; PCIe wants encrypted sessions (6.31.3)."""

DATA_TRANSFER_SIZE = 4096
MAX_MESSAGE_SIZE = 1 << 20
CT_EXPONENT = 20
"""CTExponent: a second for cryptography on our side, in powers of two of a microsecond."""

_CERTIFICATE_HEADER = 8
_SESSION_HALF = 0xFFFF

_SKIPS_CHALLENGE = (GetMeasurements, KeyExchange, KeyUpdate, Heartbeat, EndSession)
"""Requests that begin M1/M2 again as long as there was no CHALLENGE (10.8.3); FINISH follows
KEY_EXCHANGE at once."""

M = TypeVar("M", bound=Message)


class Transport(Protocol):
    """What carries messages to a responder and back: a mailbox, a socket, a function call."""

    def plain(self, request: bytes) -> bytes:
        """The response to an SPDM message in the clear, perhaps padded; empty for none."""

    def secured(self, record: bytes) -> bytes:
        """The response to a secured record, perhaps padded; empty for none."""


Trust = Callable[[bytes, BaseHash], PublicKey]
"""Gets a certificate chain in SPDM format; returns the leaf's key, or raises SpdmError."""


def leaf_key(chain: bytes, base_hash: BaseHash) -> PublicKey:
    """The key of the leaf, whoever signed it: for those that leave trust to a verifier."""
    try:
        return public_key(Chain.parse(chain, base_hash).leaf)
    except CertificateError as error:
        raise VerificationError(f"no certificate chain: {error}") from None


@dataclass(frozen=True, slots=True)
class ResponderInfo:
    """What a responder told of itself."""

    version: int
    flags: ResponderFlags
    ct_exponent: int
    data_transfer_size: int
    max_message_size: int


@dataclass(frozen=True, slots=True)
class ChallengeResult:
    """An answered CHALLENGE whose signature has been verified."""

    slots: int
    """The slots that hold a chain, a bit for each."""
    nonce: bytes
    """That of the responder."""
    summary: bytes
    """Measurement summary hash; empty when none was asked for."""
    opaque: bytes
    signature: bytes


@dataclass(frozen=True, slots=True)
class MeasurementsResult:
    """MEASUREMENTS, and L1/L2 up to it."""

    transcript: bytes
    """The messages of L1/L2 without VCA, up to this response; with its signature, if it has one."""
    record: bytes
    """Measurement blocks."""
    blocks: int
    total: int
    """How many measurements there are, when that was asked."""
    nonce: bytes
    """That of the responder."""
    opaque: bytes
    content_changed: int
    """`ContentChanged` of a signed response."""
    signature: bytes
    """Empty when none was asked for."""


class _Connection:
    """What was negotiated, and what is known of the responder since."""

    def __init__(
        self,
        info: ResponderInfo,
        algorithms: Algorithms,
        transcripts: Transcripts,
        clear_handshake: bool,
        portion: int,
    ) -> None:
        self.info = info
        self.clear_handshake = clear_handshake
        self.portion = portion
        self.algorithms = algorithms
        self.transcripts = transcripts
        self.digests: dict[int, bytes] = {}
        self.chains: dict[int, bytes] = {}
        self.keys: dict[int, PublicKey] = {}
        self.authenticated = False

    @property
    def measures(self) -> bool:
        return bool(self.info.flags & (ResponderFlags.MEAS_NO_SIG | ResponderFlags.MEAS_SIG))

    def summary_type(self) -> SummaryType:
        return SummaryType.ALL if self.measures else SummaryType.NONE

    def signed_sizes(self, summary: int = SummaryType.NONE) -> Sizes:
        sizes = self.algorithms.sizes
        return replace(sizes, summary=sizes.hash if summary else 0)

    def verify(self, slot: int, context: SigningContext, digest: bytes, signature: bytes) -> None:
        """Raise VerificationError unless the owner of `slot` signed `digest` for `context`."""
        algorithms = self.algorithms
        signed = signing_message(self.info.version, context, digest)
        key = self.keys[slot]
        if not algorithms.base_asym.verify(key, signature, signed, algorithms.base_hash):
            raise VerificationError(f"the signature for {context.value.decode()} is wrong")


def reject(error: VerificationError) -> None:
    """Raise `error`: what a requester does with a wrong signature."""
    raise error


class _Dialogue:
    """The requests that a connection and its sessions carry alike."""

    def __init__(
        self,
        exchange: Exchange,
        connection: _Connection | None,
        random: Callable[[int], bytes],
        trust: Trust,
        slot: int,
    ) -> None:
        self._exchange = exchange
        self._current = connection
        self._random = random
        self._trust = trust
        self.slot = slot
        """The slot that is meant where a call does not name another."""
        self.judge_measurements: Callable[[VerificationError], None] = reject
        """Told of a wrong signature of MEASUREMENTS; if it does not raise, somebody else judges."""
        self._l1 = Transcript()

    @property
    def _connection(self) -> _Connection:
        if self._current is None:
            raise SpdmError(ErrorCode.UNEXPECTED_REQUEST, "there is no connection")
        return self._current

    @property
    def algorithms(self) -> Algorithms:
        """What was negotiated. Raises SpdmError before that."""
        return self._connection.algorithms

    @property
    def version(self) -> int:
        """The version byte that was negotiated. Raises SpdmError before that."""
        return self._connection.info.version

    def _converse(
        self, request: Message, response: type[M], sizes: Sizes = NO_SIZES
    ) -> tuple[M, bytes, bytes]:
        if not isinstance(request, GetMeasurements):
            self._l1.clear()
        if isinstance(request, _SKIPS_CHALLENGE) and not self._connection.authenticated:
            self._connection.transcripts.b.clear()
        return self._exchange.converse(request, response, sizes, asked=self.algorithms.sizes)

    def _note_identity(self, *messages: bytes) -> None:
        """Remember messages that M1/M2 begins with; only those outside sessions count."""

    def _new_identity(self) -> None:
        """Begin M1/M2 again."""

    def digests(self) -> Mapping[int, bytes]:
        """The digest of the chain in each slot that holds one. Raises SpdmError."""
        connection = self._connection
        self._new_identity()
        response, asked, answered = self._converse(
            GetDigests(version=self.version), Digests, self.algorithms.sizes
        )
        self._note_identity(asked, answered)
        slots = [slot for slot in range(SLOT_COUNT) if response.slots >> slot & 1]
        connection.digests = dict(zip(slots, response.digests, strict=True))
        return dict(connection.digests)

    def certificate(self, slot: int | None = None) -> bytes:
        """The chain in `slot`, in SPDM format. Raises SpdmError.

        VerificationError if it is not the one whose digest was told before, or not trusted.
        """
        connection = self._connection
        slot = self.slot if slot is None else slot
        room = connection.portion
        chain = bytearray()
        remainder = room
        while remainder:
            length = min(room, remainder)
            response, asked, answered = self._converse(
                GetCertificate(version=self.version, slot=slot, offset=len(chain), length=length),
                Certificate,
            )
            self._note_identity(asked, answered)
            if response.slot & SLOT_MASK != slot:
                raise PeerError(f"CERTIFICATE of slot {response.slot & SLOT_MASK}, not {slot}")
            if not 0 < len(response.portion) <= length:
                raise PeerError(f"{len(response.portion)} bytes of a chain, {length} were asked")
            if chain and len(response.portion) + response.remainder != remainder:
                raise PeerError("the chain changes its length while it is read")
            chain += response.portion
            remainder = response.remainder
            if len(chain) + remainder > CHAIN_LIMIT:
                raise PeerError("a chain longer than 64 KiB")
        whole = bytes(chain)
        told = connection.digests.get(slot)
        if told is not None and self.algorithms.base_hash.digest(whole) != told:
            raise VerificationError(f"the chain of slot {slot} is not the one in DIGESTS")
        connection.keys[slot] = self._trust(whole, self.algorithms.base_hash)
        connection.chains[slot] = whole
        return whole

    def measurements(
        self,
        operation: int = MEASUREMENT_ALL,
        *,
        raw: bool = False,
        sign: bool = False,
        nonce: bytes | None = None,
        slot: int | None = None,
    ) -> MeasurementsResult:
        """Ask for all measurements, for one by its index, or for their number.

        `raw` asks for bit streams instead of digests. With `sign` the responder signs, by the
        key of `slot`, this and every unsigned answer since the last signed one, over `nonce`
        (random, unless it is given). Raises SpdmError, VerificationError for a wrong signature.
        """
        slot = self.slot if slot is None else slot
        if sign:
            self._need_key(slot)
        attributes = MeasurementAttributes.RAW if raw else MeasurementAttributes(0)
        if sign:
            attributes |= MeasurementAttributes.SIGNATURE
            nonce = self._random(NONCE_SIZE) if nonce is None else nonce
        request = GetMeasurements(
            version=self.version,
            attributes=attributes,
            operation=operation,
            nonce=nonce or b"",
            slot=slot if sign else 0,
            context=self._context(),
        )
        try:
            return self._measure(request, slot)
        except SpdmError:
            self._l1.clear()
            raise

    def _measure(self, request: GetMeasurements, slot: int) -> MeasurementsResult:
        connection = self._connection
        sizes = connection.signed_sizes()
        signed = bool(request.attributes & MeasurementAttributes.SIGNATURE)
        if not signed:
            sizes = replace(sizes, signature=0)
        response, asked, answered = self._converse(request, Measurements, sizes)
        if response.context != request.context:
            raise PeerError("MEASUREMENTS returns another context")
        covered = answered[: len(answered) - sizes.signature]
        self._l1.append(asked, covered)
        if signed:
            if response.slot & SLOT_MASK != slot:
                raise PeerError(f"MEASUREMENTS of slot {response.slot & SLOT_MASK}, not {slot}")
            try:
                connection.verify(
                    slot,
                    SigningContext.MEASUREMENTS,
                    connection.transcripts.l1(self.algorithms.base_hash, self._l1),
                    response.signature,
                )
            except VerificationError as error:
                self.judge_measurements(error)
        result = MeasurementsResult(
            transcript=bytes(self._l1) + response.signature,
            record=response.record,
            blocks=response.blocks,
            total=response.total if request.operation == MEASUREMENT_COUNT else 0,
            nonce=response.nonce,
            opaque=response.opaque,
            content_changed=response.slot & CONTENT_MASK if signed else 0,
            signature=response.signature,
        )
        if signed:
            self._l1.clear()
        return result

    def _context(self) -> bytes:
        return self._random(CONTEXT_SIZE) if self.version >= Version.V1_3 else b""

    def _need_key(self, slot: int) -> None:
        """Read the chain of `slot`, if that was not done on this connection."""
        if slot not in self._connection.keys:
            self.certificate(slot)


class Requester(_Dialogue):
    """A connection to the responder behind `transport`."""

    def __init__(
        self,
        transport: Transport,
        *,
        versions: Sequence[int] = VERSIONS,
        capabilities: RequesterFlags = CAPABILITIES,
        offer: Offer | None = None,
        trust: Trust = leaf_key,
        slot: int = 0,
        data_transfer_size: int = DATA_TRANSFER_SIZE,
        max_message_size: int = MAX_MESSAGE_SIZE,
        random: Callable[[int], bytes] = os.urandom,
        sleep: Callable[[float], None] = time.sleep,
    ) -> None:
        """Nothing is sent before `connect`.

        `versions` and `offer` are what may be negotiated, the best first; `trust` judges chains,
        by default every one that is well formed; sizes are in bytes. Raises ValueError for a
        `data_transfer_size` that the specification does not allow.
        """
        if not MIN_DATA_TRANSFER_SIZE <= data_transfer_size <= max_message_size:
            raise ValueError("a transfer size below the minimum or above that of a message")
        super().__init__(Exchange(transport.plain, sleep=sleep), None, random, trust, slot)
        self._transport = transport
        self._versions = tuple(versions)
        self._capabilities = capabilities
        self._offer = offer or Offer()
        self._data_transfer_size = data_transfer_size
        self._max_message_size = max_message_size
        self._sleep = sleep
        self._sessions: list[Session] = []
        self._session_count = 0

    @property
    def info(self) -> ResponderInfo:
        """What the responder told of itself. Raises SpdmError before `connect`."""
        return self._connection.info

    @property
    def vca(self) -> bytes:
        """The messages of `connect`, one behind the other. Raises SpdmError before it."""
        return bytes(self._connection.transcripts.vca)

    def connect(self) -> None:
        """VERSION, CAPABILITIES and ALGORITHMS; what was before is forgotten, sessions too.

        Raises SpdmError, with VERSION_MISMATCH or UNSUPPORTED_REQUEST if there is nothing that
        both sides know.
        """
        self._current = None
        self._l1.clear()
        while self._sessions:
            self._sessions.pop().forget()
        transcripts = Transcripts()
        version = self._get_version(transcripts)
        info = self._get_capabilities(transcripts, version)
        algorithms = self._negotiate(transcripts, info)
        both = self._capabilities & info.flags & RequesterFlags.HANDSHAKE_IN_THE_CLEAR
        portion = min(self._data_transfer_size - _CERTIFICATE_HEADER, CHAIN_LIMIT)
        self._current = _Connection(info, algorithms, transcripts, bool(both), portion)

    def _get_version(self, transcripts: Transcripts) -> int:
        self._exchange.version = Version.V1_0
        self._exchange.limits = Limits(response=self._max_message_size)
        response, asked, answered = self._exchange.converse(
            GetVersion(version=Version.V1_0), VersionResponse
        )
        transcripts.vca.append(asked, answered)
        told = {entry.version for entry in response.entries}
        version = next((version for version in self._versions if version in told), None)
        if version is None:
            raise SpdmError(ErrorCode.VERSION_MISMATCH, "the responder speaks no version of ours")
        self._exchange.version = version
        return version

    def _get_capabilities(self, transcripts: Transcripts, version: int) -> ResponderInfo:
        chunks = bool(self._capabilities & RequesterFlags.CHUNK)
        transfer = self._data_transfer_size
        request = GetCapabilities(
            version=version,
            ct_exponent=CT_EXPONENT,
            flags=self._capabilities,
            data_transfer_size=transfer,
            max_message_size=self._max_message_size if chunks else transfer,
        )
        response, asked, answered = self._exchange.converse(request, Capabilities)
        transcripts.vca.append(asked, answered)
        if not MIN_DATA_TRANSFER_SIZE <= response.data_transfer_size <= response.max_message_size:
            raise PeerError("the sizes in CAPABILITIES are impossible")
        flags = ResponderFlags(response.flags)
        self._exchange.limits = Limits(
            transfer=response.data_transfer_size,
            message=response.max_message_size,
            response=request.max_message_size,
            chunks=chunks and bool(flags & ResponderFlags.CHUNK),
        )
        return ResponderInfo(
            version, flags, response.ct_exponent, response.data_transfer_size,
            response.max_message_size,
        )  # fmt: skip

    def _negotiate(self, transcripts: Transcripts, info: ResponderInfo) -> Algorithms:
        offer = self._offer
        sessions = bool(self._capabilities & RequesterFlags.KEY_EX)
        request = NegotiateAlgorithms(
            version=info.version,
            measurement_specification=MEASUREMENT_SPECIFICATION_DMTF,
            other_params=OtherParams.OPAQUE_FORMAT_1,
            base_asym=bits(offer.base_asym),
            base_hash=bits(offer.base_hash),
            tables=offer.tables if sessions else (),
        )
        response, asked, answered = self._exchange.converse(request, AlgorithmsResponse)
        transcripts.vca.append(asked, answered)
        if response.other_params & ~request.other_params:
            raise PeerError(f"the responder selects {response.other_params:#x}, not offered")
        selected = {table.kind: table.supported for table in response.tables}
        return Algorithms(
            base_hash=_selected(offer.base_hash, response.base_hash, "hash"),
            base_asym=_selected(offer.base_asym, response.base_asym, "signature"),
            measurement_hash=_perhaps(
                tuple(MeasurementHash), response.measurement_hash, "measurement hash"
            ),
            dhe=_perhaps(offer.dhe, selected.get(AlgorithmType.DHE, 0), "key exchange"),
            aead=_perhaps(offer.aead, selected.get(AlgorithmType.AEAD, 0), "AEAD"),
            other_params=response.other_params,
        )

    def _note_identity(self, *messages: bytes) -> None:
        self._connection.transcripts.b.append(*messages)

    def _new_identity(self) -> None:
        self._connection.transcripts.b.clear()

    def challenge(
        self,
        slot: int | None = None,
        nonce: bytes | None = None,
        summary_type: SummaryType | None = None,
    ) -> ChallengeResult:
        """Have the responder prove that it owns the key of `slot`, over `nonce`.

        The summary hash is that of all measurements, if it can measure. Raises SpdmError,
        VerificationError for a wrong signature.
        """
        slot = self.slot if slot is None else slot
        self._need_key(slot)
        connection = self._connection
        if summary_type is None:
            summary_type = connection.summary_type()
        request = Challenge(
            version=self.version,
            slot=slot,
            summary_type=summary_type,
            nonce=self._random(NONCE_SIZE) if nonce is None else nonce,
            context=self._context(),
        )
        sizes = connection.signed_sizes(summary_type)
        response, asked, answered = self._converse(request, ChallengeAuth, sizes)
        base_hash = self.algorithms.base_hash
        digest = connection.transcripts.m1(base_hash, asked, answered[: -sizes.signature])
        self._new_identity()
        if response.slot & SLOT_MASK != slot:
            raise PeerError(f"CHALLENGE_AUTH of slot {response.slot & SLOT_MASK}, not {slot}")
        if response.context != request.context:
            raise PeerError("CHALLENGE_AUTH returns another context")
        if response.chain_hash != base_hash.digest(connection.chains[slot]):
            raise VerificationError("CHALLENGE_AUTH is for another certificate chain")
        connection.verify(slot, SigningContext.CHALLENGE_AUTH, digest, response.signature)
        connection.authenticated = True
        return ChallengeResult(
            response.slots, response.nonce, response.summary, response.opaque, response.signature
        )

    def key_exchange(
        self,
        slot: int | None = None,
        *,
        policy: SessionPolicy = SessionPolicy(0),  # noqa: B008
        summary_type: SummaryType | None = None,
    ) -> Session:
        """A session: KEY_EXCHANGE signed by the key of `slot`, and FINISH.

        Raises SpdmError; UNSUPPORTED_REQUEST if the responder has no encrypted sessions.
        """
        slot = self.slot if slot is None else slot
        suite, group = self._session_algorithms()
        self._need_key(slot)
        connection = self._connection
        summary_type = connection.summary_type() if summary_type is None else summary_type
        private, exchange = group.generate()
        request = KeyExchange(
            version=self.version,
            summary_type=summary_type,
            slot=slot,
            session=self._new_session_half(),
            policy=policy,
            random=self._random(NONCE_SIZE),
            exchange=exchange,
            opaque=supported_versions(),
        )
        sizes = connection.signed_sizes(summary_type)
        if connection.clear_handshake:
            sizes = replace(sizes, verify=0)
        response, asked, answered = self._converse(request, KeyExchangeResponse, sizes)
        base_hash = self.algorithms.base_hash
        th = SessionTranscript(base_hash, self.vca, base_hash.digest(connection.chains[slot]))
        verify_at = len(answered) - sizes.verify
        signature_at = verify_at - sizes.signature
        th.append(asked)
        th.append(answered[:signature_at])
        connection.verify(slot, SigningContext.KEY_EXCHANGE_RSP, th.digest(), response.signature)
        th.append(answered[signature_at:verify_at])
        if response.mutual_authentication:
            raise PeerError("the responder wants our certificate, which was not negotiated")
        try:
            secured_version = parse_selected_version(response.opaque)
            shared = group.shared(private, response.exchange)
        except (SpdmDecodeError, CryptoError) as error:
            raise PeerError(f"KEY_EXCHANGE_RSP: {error}") from None
        if secured_version not in SECURED_VERSIONS:
            raise PeerError(f"secured messages of version {secured_version:#04x} were not offered")
        secured = SecuredSession(
            session_id(request.session, response.session),
            self.version,
            base_hash,
            suite,
            shared,
            th.digest(),
        )
        if not connection.clear_handshake:
            _check_mac(th, secured, response.verify)
        session = Session(self, secured, response)
        self._finish(session, secured, th)
        self._sessions = [one for one in self._sessions if not one.ended]
        self._sessions.append(session)
        return session

    def _finish(self, session: Session, secured: SecuredSession, th: SessionTranscript) -> None:
        """FINISH, in the clear or with the keys of the handshake (10.17)."""
        connection = self._connection
        size = self.algorithms.base_hash.size
        unsigned = Finish(version=self.version).pack()
        th.append(unsigned)
        request = Finish(version=self.version, verify=th.verify_data(secured.request_finished))
        th.append(request.verify)
        sizes = Sizes(verify=size if connection.clear_handshake else 0)
        exchange = self._exchange if connection.clear_handshake else session.exchange
        response, _, answered = exchange.converse(
            request, FinishResponse, sizes, asked=Sizes(verify=size)
        )
        th.append(answered[: len(answered) - sizes.verify])
        if connection.clear_handshake:
            _check_mac(th, secured, response.verify)
        secured.establish(th.digest())

    def _session_algorithms(self) -> tuple[AeadSuite, DheGroup]:
        algorithms, flags = self.algorithms, self.info.flags
        wanted = ResponderFlags.KEY_EX | ResponderFlags.ENCRYPT | ResponderFlags.MAC
        if (
            algorithms.aead is None
            or algorithms.dhe is None
            or flags & wanted != wanted
            or not algorithms.other_params & OtherParams.OPAQUE_FORMAT_1
        ):
            raise SpdmError(ErrorCode.UNSUPPORTED_REQUEST, "the responder has no secure sessions")
        return algorithms.aead, algorithms.dhe

    def _new_session_half(self) -> int:
        self._session_count += 1
        return -self._session_count & _SESSION_HALF


def _check_mac(th: SessionTranscript, secured: SecuredSession, verify: bytes) -> None:
    """Check ResponderVerifyData, and go on with it in `th`."""
    if not hmac.compare_digest(th.verify_data(secured.response_finished), verify):
        raise VerificationError("the responder's HMAC over the handshake is wrong")
    th.append(verify)


class Session(_Dialogue):
    """A secure session of a requester, from FINISH to `end` or to the connection's next start."""

    def __init__(
        self, requester: Requester, secured: SecuredSession, response: KeyExchangeResponse
    ) -> None:
        """Of `requester`, with the keys `secured`, as KEY_EXCHANGE_RSP began it."""
        exchange = Exchange(self._send, sleep=requester._sleep)
        exchange.version = requester.version
        exchange.limits = requester._exchange.limits
        super().__init__(
            exchange, requester._connection, requester._random, requester._trust, requester.slot
        )
        self._transport = requester._transport
        self._secured: SecuredSession | None = secured
        self._new_key_expected = False
        self.id = secured.id
        """The session ID: the requester's half in bits 15:0, the responder's in bits 31:16."""
        self.heartbeat_period = response.heartbeat_period
        """Seconds without a request after which the responder ends the session; zero: never."""
        self.summary = response.summary
        """Measurement summary hash; empty when none was asked for."""

    @property
    def exchange(self) -> Exchange:
        """The exchange of messages in this session."""
        return self._exchange

    @property
    def ended(self) -> bool:
        """Whether nothing can be asked in this session any more."""
        return self._secured is None

    def request(self, message: bytes) -> bytes:
        """The response to a whole SPDM message. Raises SpdmError, also if it is ERROR."""
        self._l1.clear()
        return self._exchange.ask(message)

    def vendor(self, protocol: int, payload: bytes) -> bytes:
        """The answer to a message of a `protocol` of the PCI-SIG, both without its ID.

        Raises SpdmError.
        """
        request = vendor_request(self.version, protocol, payload)
        response, _, _ = self._converse(request, VendorDefinedResponse)
        return vendor_answer(response, protocol)

    def heartbeat(self) -> None:
        """Tell the responder that the session is in use. Raises SpdmError."""
        self._converse(Heartbeat(version=self.version), HeartbeatAck)

    def key_update(self, operation: KeyOperation = KeyOperation.UPDATE_ALL_KEYS) -> None:
        """New keys, for requests or for both directions, and proof that they work (10.21).

        Raises SpdmError.
        """
        self._new_key_expected = operation is KeyOperation.UPDATE_ALL_KEYS
        try:
            self._update(operation)
            if self._new_key_expected:
                raise PeerError("KEY_UPDATE_ACK came under the old key")
        finally:
            self._new_key_expected = False
        secured = self._keys()
        secured.update_request()
        secured.verified()
        self._update(KeyOperation.VERIFY_NEW_KEY)

    def _update(self, operation: KeyOperation) -> None:
        request = KeyUpdate(version=self.version, operation=operation, tag=self._random(1)[0])
        response, _, _ = self._converse(request, KeyUpdateAck)
        if (response.operation, response.tag) != (request.operation, request.tag):
            raise PeerError("KEY_UPDATE_ACK is for another KEY_UPDATE")

    def end(self) -> None:
        """End the session at the responder. Raises SpdmError; it has ended here all the same."""
        try:
            self._converse(EndSession(version=self.version), EndSessionAck)
        finally:
            self.forget()

    def forget(self) -> None:
        """End the session here alone: its keys are gone."""
        self._secured = None

    def _keys(self) -> SecuredSession:
        if self._secured is None:
            raise SpdmError(ErrorCode.INVALID_SESSION, "the session has ended")
        return self._secured

    def _send(self, message: bytes) -> bytes:
        secured = self._keys()
        try:
            record = self._transport.secured(secured.seal_request(message))
            return self._open(secured, record)
        except RecordError as error:
            self.forget()
            raise SpdmError(ErrorCode.DECRYPT_ERROR, f"the session is lost: {error}") from None
        except (SpdmError, OSError):
            self.forget()
            raise

    def _open(self, secured: SecuredSession, record: bytes) -> bytes:
        try:
            return secured.open_response(record)
        except RecordError:
            if not self._new_key_expected:
                raise
            secured.update_response()
            self._new_key_expected = False
            return secured.open_response(record)


A = TypeVar("A", BaseHash, BaseAsym, MeasurementHash, DheGroup, AeadSuite)


def _perhaps(offered: Sequence[A], selected: int, what: str) -> A | None:
    return _selected(offered, selected, what) if selected else None


def _selected(offered: Sequence[A], selected: int, what: str) -> A:
    member = next((member for member in offered if member.bit == selected), None)
    if member is None:
        text = f"the responder selects {selected:#x} as {what}, which was not offered"
        raise (
            PeerError(text)
            if selected
            else SpdmError(ErrorCode.UNSUPPORTED_REQUEST, f"no {what} that both sides know")
        )
    return member
