# SPDX-License-Identifier: MIT
"""What a responder keeps of its connection and of each session, and one request on its way."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from enum import IntEnum, IntFlag
from typing import TypeVar

from tsmfs.spdm.algorithms import Algorithms
from tsmfs.spdm.chunks import Chunks
from tsmfs.spdm.measurements import Measurement
from tsmfs.spdm.messages import (
    MIN_DATA_TRANSFER_SIZE,
    PADDING,
    ErrorCode,
    RequesterFlags,
    ResponderFlags,
    SpdmError,
    Version,
)
from tsmfs.spdm.secured import RECORD_ROOM, SecuredSession
from tsmfs.spdm.transcript import SessionTranscript, Transcript, Transcripts
from tsmfs.spdm.wire import NO_SIZES, Message, Sizes, SpdmDecodeError

CAPABILITIES = (
    ResponderFlags.CERT
    | ResponderFlags.CHAL
    | ResponderFlags.MEAS_SIG
    | ResponderFlags.MEAS_FRESH
    | ResponderFlags.ENCRYPT
    | ResponderFlags.MAC
    | ResponderFlags.KEY_EX
    | ResponderFlags.HBEAT
    | ResponderFlags.KEY_UPD
    | ResponderFlags.CHUNK
)
"""What a device tells unless it is told otherwise. GET_CSR and SET_CERTIFICATE are not in it."""

M = TypeVar("M", bound=Message)


@dataclass(frozen=True, slots=True)
class Settings:
    """What a responder tells of itself in CAPABILITIES, and its limits."""

    flags: ResponderFlags = CAPABILITIES
    ct_exponent: int = 20
    """Time for cryptography: a power of two, in microseconds."""
    data_transfer_size: int = 0x10000
    """Bytes of the largest request that is taken in one piece."""
    max_message_size: int = 1 << 20
    """Bytes of the largest request that is taken in chunks."""
    send_size: int = 0x10000
    """Bytes of the largest response that is sent in one piece."""
    heartbeat_period: int = 0
    """Seconds; a session ends after two of them without a request. Zero: sessions never do."""
    max_sessions: int = 4

    def __post_init__(self) -> None:
        if not MIN_DATA_TRANSFER_SIZE <= self.data_transfer_size <= self.max_message_size:
            raise ValueError("a transfer size below the minimum or above that of a message")
        if self.send_size < MIN_DATA_TRANSFER_SIZE:
            raise ValueError("a send size below the minimum")
        if not 0 <= self.heartbeat_period <= 0xFF:
            raise ValueError("a heartbeat period that does not fit a byte")
        chunks = bool(self.flags & ResponderFlags.CHUNK)
        if not chunks and self.data_transfer_size != self.max_message_size:
            raise ValueError("messages in pieces without CHUNK_CAP")


class State(IntEnum):
    """How far a connection is: what was answered last."""

    NONE = 0
    VERSION = 1
    CAPABILITIES = 2
    ALGORITHMS = 3


class Phase(IntFlag):
    """Where a request may come: outside of sessions, or in which phase of one."""

    CLEAR = 1
    HANDSHAKE = 2
    APPLICATION = 4


class Channel:
    """What the connection and each session have of their own: L1/L2 and large messages."""

    __slots__ = ("chunks", "l1", "measured")

    def __init__(self, settings: Settings) -> None:
        self.chunks = Chunks(settings.data_transfer_size, settings.max_message_size)
        self.l1 = Transcript()
        self.measured: Sequence[Measurement] | None = None
        """Measurements as they were when L1/L2 began."""

    def forget_l1(self) -> None:
        """Begin L1/L2 again."""
        self.l1.clear()
        self.measured = None


class Connection:
    """What was negotiated since GET_VERSION."""

    __slots__ = (
        "algorithms", "authenticated", "chains", "channel", "flags", "max_message_size", "state",
        "transcripts", "transfer_size", "version",
    )  # fmt: skip

    def __init__(self, settings: Settings) -> None:
        self.state = State.NONE
        self.version: int = Version.V1_0
        self.flags = 0
        """Capabilities of the requester, `RequesterFlags`."""
        self.transfer_size = settings.send_size
        """Bytes of the largest response that the requester takes in one piece."""
        self.max_message_size = settings.send_size
        """Bytes of the largest that it takes at all."""
        self.algorithms: Algorithms | None = None
        self.authenticated = False
        """Whether CHALLENGE was answered: from then on other requests leave M1/M2 alone."""
        self.transcripts = Transcripts()
        self.channel = Channel(settings)
        self.chains: dict[int, tuple[bytes, bytes]] = {}
        """Chain and its digest by slot, under the negotiated hash."""


class Session:
    """A session of a responder; for others, the `SessionHandle` of vendor-defined messages."""

    __slots__ = ("channel", "deadline", "keys", "last_update", "old_key", "th")

    def __init__(self, keys: SecuredSession, th: SessionTranscript, settings: Settings) -> None:
        self.keys = keys
        self.th = th
        self.channel = Channel(settings)
        self.deadline: float | None = None
        """When the session ends unless a request comes; None for never."""
        self.last_update: tuple[int, int] | None = None
        """Operation and tag of the KEY_UPDATE whose new key has not been verified."""
        self.old_key = False
        """Whether the last request came under the key before that KEY_UPDATE."""

    @property
    def id(self) -> int:
        """The session ID."""
        return self.keys.id

    @property
    def established(self) -> bool:
        """Whether FINISH was answered."""
        return self.keys.established

    @property
    def phase(self) -> Phase:
        """The phase that it is in."""
        return Phase.APPLICATION if self.established else Phase.HANDSHAKE


class Call:
    """A request while it is answered."""

    __slots__ = ("connection", "request", "session", "settings", "then")

    def __init__(
        self, request: bytes, connection: Connection, session: Session | None, settings: Settings
    ) -> None:
        self.request = request
        self.connection = connection
        self.session = session
        """The session that it came in; None outside of one."""
        self.settings = settings
        self.then: Callable[[], None] | None = None
        """What has to wait until the response is sealed: new keys, or the session's end."""

    @property
    def version(self) -> int:
        """The version byte of the connection."""
        return self.connection.version

    @property
    def algorithms(self) -> Algorithms:
        """What was negotiated. Raises SpdmError before that."""
        if self.connection.algorithms is None:
            raise unexpected("no algorithms were negotiated")
        return self.connection.algorithms

    @property
    def channel(self) -> Channel:
        """That of the session, or of the connection outside of one."""
        return self.connection.channel if self.session is None else self.session.channel

    @property
    def phase(self) -> Phase:
        """Where the request came."""
        return Phase.CLEAR if self.session is None else self.session.phase

    @property
    def inside(self) -> Session:
        """The session. Raises SpdmError outside of one."""
        if self.session is None:
            raise SpdmError(ErrorCode.SESSION_REQUIRED, "the request needs a session")
        return self.session

    def both(self, flags: int) -> bool:
        """Whether both endpoints have all capabilities in `flags`."""
        wanted = int(flags)
        return self.connection.flags & int(self.settings.flags) & wanted == wanted

    @property
    def in_the_clear(self) -> bool:
        """Whether handshakes are in the clear."""
        return self.both(RequesterFlags.HANDSHAKE_IN_THE_CLEAR)

    @property
    def room(self) -> int:
        """Bytes of the largest response that goes out in one piece."""
        room = min(self.connection.transfer_size, self.settings.send_size)
        return room if self.session is None else min(room, RECORD_ROOM)

    def take(self, kind: type[M], sizes: Sizes = NO_SIZES) -> tuple[M, bytes]:
        """The request as a message, and its bytes without padding. Raises SpdmDecodeError."""
        message, size = kind.take(self.request, sizes)
        behind = len(self.request) - size
        if behind > (PADDING if self.session is None else 0):
            raise SpdmDecodeError(f"{behind} bytes behind {kind.__name__}")
        return message, self.request[:size]


def invalid(text: str) -> SpdmError:
    """InvalidRequest: a field has a value that it cannot have."""
    return SpdmError(ErrorCode.INVALID_REQUEST, text)


def unexpected(text: str) -> SpdmError:
    """UnexpectedRequest: not now, or not here."""
    return SpdmError(ErrorCode.UNEXPECTED_REQUEST, text)


def unsupported(code: int, text: str) -> SpdmError:
    """UnsupportedRequest: never, on this connection."""
    return SpdmError(ErrorCode.UNSUPPORTED_REQUEST, text, code)
