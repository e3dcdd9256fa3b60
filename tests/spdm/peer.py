# SPDX-License-Identifier: MIT
"""A requester for tests: sends what it is told to, in whatever order, and believes everything."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TypeVar

from tsmfs.spdm.algorithms import AeadSuite, Algorithms, BaseAsym, BaseHash, DheGroup, Offer
from tsmfs.spdm.identity import Identity, Subject, make_identity
from tsmfs.spdm.measurements import Measurement, MeasurementKind
from tsmfs.spdm.messages import (
    AlgorithmsResponse,
    Capabilities,
    Error,
    ErrorCode,
    Finish,
    FinishResponse,
    GetCapabilities,
    GetVersion,
    KeyExchange,
    KeyExchangeResponse,
    NegotiateAlgorithms,
    OtherParams,
    RequesterFlags,
    VersionResponse,
)
from tsmfs.spdm.negotiation import offered
from tsmfs.spdm.responder import Responder
from tsmfs.spdm.secured import SecuredSession, session_id, supported_versions
from tsmfs.spdm.transcript import SessionTranscript
from tsmfs.spdm.wire import NO_SIZES, Message, Sizes

SUBJECT = Subject(0x1234, 0x5678, 0xABCD, 0x00EF, 0x010802, 0x01, bytes(8), "test")
IDENTITY = make_identity(bytes(32), SUBJECT, BaseAsym.ECDSA_P256, BaseHash.SHA_256, (0, 2))
MEASURED: Sequence[Measurement] = (
    Measurement(1, MeasurementKind.IMMUTABLE_ROM, b"rom"),
    Measurement(2, MeasurementKind.MUTABLE_FIRMWARE, b"firmware"),
    Measurement(5, MeasurementKind.SECURE_VERSION_NUMBER, bytes(8)),
)
ALGORITHMS = Algorithms(
    BaseHash.SHA_256, BaseAsym.ECDSA_P256, None, DheGroup.SECP_256_R1, AeadSuite.AES_128_GCM
)
OFFER = Offer(
    base_hash=(BaseHash.SHA_256,),
    base_asym=(BaseAsym.ECDSA_P256,),
    dhe=(DheGroup.SECP_256_R1,),
    aead=(AeadSuite.AES_128_GCM,),
)
FLAGS = (
    RequesterFlags.ENCRYPT
    | RequesterFlags.MAC
    | RequesterFlags.KEY_EX
    | RequesterFlags.HBEAT
    | RequesterFlags.KEY_UPD
    | RequesterFlags.CHUNK
)
SIZES = ALGORITHMS.sizes

M = TypeVar("M", bound=Message)


def device(identity: Identity = IDENTITY) -> Responder:
    """A responder as a device has it."""
    return Responder(identity, lambda: MEASURED)


def error_of(response: bytes) -> tuple[int, int]:
    """Code and data of an ERROR; raises SpdmDecodeError for anything else."""
    error = Error.parse(response)
    return error.error, error.data


def refusal(code: ErrorCode, data: int = 0) -> tuple[int, int]:
    """What `error_of` gives for an ERROR."""
    return code, data


class Peer:
    """The other end of a responder's connection."""

    def __init__(
        self,
        responder: Responder | None = None,
        *,
        version: int = 0x12,
        flags: int = FLAGS,
        transfer_size: int = 4096,
        max_message_size: int = 1 << 16,
        offer: Offer = OFFER,
    ) -> None:
        self.responder = responder or device()
        self.version = version
        self.flags = flags
        self.transfer_size = transfer_size
        self.max_message_size = max_message_size
        self.offer = offer
        self.vca = b""

    def send(self, request: bytes) -> bytes:
        """The response to bytes."""
        return self.responder.respond(request)

    def ask(self, request: Message, sizes: Sizes = NO_SIZES) -> bytes:
        """The response to a message."""
        return self.send(request.pack(sizes))

    def _note(self, request: Message, kind: type[M]) -> M:
        response = self.ask(request)
        self.vca += request.pack() + response
        return kind.parse(response)

    def get_version(self) -> VersionResponse:
        """GET_VERSION."""
        self.vca = b""
        return self._note(GetVersion(version=0x10), VersionResponse)

    def capabilities(self) -> GetCapabilities:
        """The GET_CAPABILITIES of this peer."""
        chunks = self.flags & RequesterFlags.CHUNK
        return GetCapabilities(
            version=self.version,
            flags=self.flags,
            data_transfer_size=self.transfer_size,
            max_message_size=self.max_message_size if chunks else self.transfer_size,
        )

    def get_capabilities(self) -> Capabilities:
        """GET_CAPABILITIES."""
        return self._note(self.capabilities(), Capabilities)

    def algorithms(self) -> NegotiateAlgorithms:
        """The NEGOTIATE_ALGORITHMS of this peer."""
        return offered(self.offer, self.version)

    def negotiate(self) -> AlgorithmsResponse:
        """NEGOTIATE_ALGORITHMS."""
        response = self._note(self.algorithms(), AlgorithmsResponse)
        assert response.other_params == OtherParams.OPAQUE_FORMAT_1
        return response

    def connect(self) -> Peer:
        """The three of them."""
        self.get_version()
        self.get_capabilities()
        self.negotiate()
        return self

    @property
    def clear(self) -> bool:
        """Whether handshakes are in the clear."""
        both = self.flags & int(self.responder.settings.flags)
        return bool(both & RequesterFlags.HANDSHAKE_IN_THE_CLEAR)

    def begin(self, *, slot: int = 0, half: int = 1) -> PeerSession:
        """KEY_EXCHANGE."""
        private, public = DheGroup.SECP_256_R1.generate()
        request = KeyExchange(
            version=self.version,
            slot=slot,
            session=half,
            exchange=public,
            opaque=supported_versions(),
        ).pack(SIZES)
        answered = self.send(request)
        sizes = Sizes(signature=64, exchange=64, verify=0 if self.clear else 32)
        response = KeyExchangeResponse.parse(answered, sizes)
        chain = self.responder.identity.slots[slot].chain_with(BaseHash.SHA_256)
        th = SessionTranscript(BaseHash.SHA_256, self.vca, BaseHash.SHA_256.digest(chain))
        th.append(request)
        th.append(answered[: len(answered) - sizes.verify])
        keys = SecuredSession(
            session_id(half, response.session),
            self.version,
            BaseHash.SHA_256,
            AeadSuite.AES_128_GCM,
            DheGroup.SECP_256_R1.shared(private, response.exchange),
            th.digest(),
        )
        if not self.clear:
            assert th.verify_data(keys.response_finished) == response.verify
            th.append(response.verify)
        return PeerSession(self, keys, th, response)

    def session(self, *, half: int = 1) -> PeerSession:
        """KEY_EXCHANGE and FINISH."""
        session = self.begin(half=half)
        session.finish()
        return session


class PeerSession:
    """The other end of a responder's session."""

    def __init__(
        self,
        peer: Peer,
        keys: SecuredSession,
        th: SessionTranscript,
        response: KeyExchangeResponse,
    ) -> None:
        self.peer = peer
        self.keys = keys
        self.th = th
        self.response = response

    def send(self, request: bytes) -> bytes:
        """The response to bytes in a record."""
        record = self.peer.responder.respond_secured(self.keys.seal_request(request))
        return self.keys.open_response(record)

    def ask(self, request: Message, sizes: Sizes = NO_SIZES) -> bytes:
        """The response to a message in a record."""
        return self.send(request.pack(sizes))

    def finished(self) -> Finish:
        """The FINISH that ends the handshake."""
        unsigned = Finish(version=self.peer.version)
        self.th.append(unsigned.pack())
        return Finish(
            version=self.peer.version, verify=self.th.verify_data(self.keys.request_finished)
        )

    def finish(self) -> None:
        """FINISH."""
        request = self.finished()
        self.th.append(request.verify)
        clear = self.peer.clear
        answered = (self.peer if clear else self).ask(request, SIZES)
        response = FinishResponse.parse(answered, Sizes(verify=32 if clear else 0))
        self.th.append(answered[:4])
        if clear:
            assert self.th.verify_data(self.keys.response_finished) == response.verify
            self.th.append(response.verify)
        self.keys.establish(self.th.digest())
