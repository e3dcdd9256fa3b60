# SPDX-License-Identifier: MIT
"""What signatures and keys are computed over: VCA, M1/M2, L1/L2, TH1 and TH2 (DSP0274 10, 12, 15).

Both sides collect the same bytes, so nothing here knows which side it is on.
"""

from __future__ import annotations

import hmac
from enum import Enum

from tsmfs.spdm.algorithms import BaseHash
from tsmfs.spdm.messages import ErrorCode, SpdmError

TRANSCRIPT_LIMIT = 16 << 20
"""Bytes that one collection may reach."""

_PREFIX_SIZE = 100
_PREFIX_REPEATS = 4


class SigningContext(Enum):
    """What a signature is for (15.1)."""

    CHALLENGE_AUTH = b"responder-challenge_auth signing"
    MEASUREMENTS = b"responder-measurements signing"
    KEY_EXCHANGE_RSP = b"responder-key_exchange_rsp signing"


def signing_message(version: int, context: SigningContext, digest: bytes) -> bytes:
    """The combined SPDM prefix of `version` and `context`, then `digest`: what is signed (15.1)."""
    prefix = f"dmtf-spdm-v{version >> 4}.{version & 0x0F}.*".encode() * _PREFIX_REPEATS
    return prefix + context.value.rjust(_PREFIX_SIZE - len(prefix), b"\0") + digest


class Transcript:
    """Messages one behind the other, up to `TRANSCRIPT_LIMIT` bytes."""

    __slots__ = ("_data",)

    def __init__(self) -> None:
        self._data = bytearray()

    def append(self, *messages: bytes) -> None:
        """Append `messages`; if they are too much, forget all and raise SpdmError."""
        if len(self._data) + sum(map(len, messages)) > TRANSCRIPT_LIMIT:
            self.clear()
            raise SpdmError(ErrorCode.UNSPECIFIED, "the transcript is full")
        for message in messages:
            self._data += message

    def clear(self) -> None:
        """Start again."""
        self._data.clear()

    def __bytes__(self) -> bytes:
        return bytes(self._data)

    def __len__(self) -> int:
        return len(self._data)


class Transcripts:
    """The collections of a connection outside sessions.

    `vca` is VERSION, CAPABILITIES and ALGORITHMS; `b` the digests and certificates that M1/M2
    starts with; `measurements` L1/L2 without VCA.
    """

    __slots__ = ("b", "measurements", "vca")

    def __init__(self) -> None:
        self.vca = Transcript()
        self.b = Transcript()
        self.measurements = Transcript()

    def m1(self, base_hash: BaseHash, request: bytes, response: bytes) -> bytes:
        """The digest of M1/M2: VCA, B, CHALLENGE and CHALLENGE_AUTH without its signature."""
        running = base_hash.new(bytes(self.vca))
        running.update(bytes(self.b))
        running.update(request)
        running.update(response)
        return running.digest()

    def l1(self, base_hash: BaseHash, measurements: Transcript) -> bytes:
        """The digest of L1/L2: VCA, then `measurements` whose last message has no signature."""
        return l1(base_hash, bytes(self.vca), bytes(measurements))


def l1(base_hash: BaseHash, vca: bytes, measurements: bytes) -> bytes:
    """The digest of L1/L2: VCA and the measurement messages, the last without its signature."""
    running = base_hash.new(vca)
    running.update(measurements)
    return running.digest()


class SessionTranscript:
    """TH of one session: a running hash over VCA, the hash of the chain and the handshake (12)."""

    __slots__ = ("_hash", "_running")

    def __init__(self, base_hash: BaseHash, vca: bytes, chain_hash: bytes) -> None:
        self._hash = base_hash
        self._running = base_hash.new(vca)
        self._running.update(chain_hash)

    def append(self, data: bytes) -> None:
        """Go on with `data`: a message, or the part of it that is known."""
        self._running.update(data)

    def digest(self) -> bytes:
        """TH so far: what KEY_EXCHANGE_RSP signs, then TH1, then TH2."""
        return self._running.copy().digest()

    def verify_data(self, finished_key: bytes) -> bytes:
        """The HMAC of TH so far under a finished key (12.4)."""
        return hmac.digest(finished_key, self.digest(), self._hash.label)
