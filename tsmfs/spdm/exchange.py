# SPDX-License-Identifier: MIT
"""One request and its response, as a requester sees it: retries, waiting, chunks, ERROR.

DSP0274 10.13 (ERROR), 10.14 (RESPOND_IF_READY) and 10.28 (chunks). What goes into a transcript is
the request and its final response, never what it took to get it.
"""

from __future__ import annotations

import errno
import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import TypeVar

from tsmfs.spdm.messages import (
    EARLY_ERROR,
    LAST_CHUNK,
    MIN_DATA_TRANSFER_SIZE,
    PADDING,
    ChunkGet,
    ChunkResponse,
    ChunkSend,
    ChunkSendAck,
    Code,
    Error,
    ErrorCode,
    RespondIfReady,
    SpdmError,
)
from tsmfs.spdm.wire import HEADER_SIZE, NO_SIZES, Message, Sizes, SpdmDecodeError

BUSY_RETRIES = 5
BUSY_DELAY = 0.01
"""Seconds before a request is repeated that a busy responder refused; doubled each time."""

MAX_WAIT = 5.0
"""Seconds that a responder may ask to wait for one response."""

_MICROSECOND = 1e-6
_NOT_READY_SIZE = 4
_CHUNK_SIZE_LIMIT = 1 << 16

M = TypeVar("M", bound=Message)


class PeerError(SpdmError):
    """The responder broke the protocol: no message, the wrong one, one that says other things."""

    def __init__(self, text: str) -> None:
        super().__init__(ErrorCode.INVALID_RESPONSE_CODE, text)

    @property
    def errno(self) -> int:
        """EPROTO."""
        return errno.EPROTO


class VerificationError(SpdmError):
    """A signature, an HMAC, a digest or a nonce of the responder is not what it has to be."""

    def __init__(self, text: str) -> None:
        super().__init__(ErrorCode.DECRYPT_ERROR, text)

    @property
    def errno(self) -> int:
        """EKEYREJECTED."""
        return errno.EKEYREJECTED


@dataclass(frozen=True, slots=True)
class Limits:
    """What the two endpoints told of their buffers, in bytes, and whether both know chunks."""

    transfer: int = MIN_DATA_TRANSFER_SIZE
    """What the responder takes in one piece."""
    message: int = MIN_DATA_TRANSFER_SIZE
    """What it takes at all."""
    response: int = MIN_DATA_TRANSFER_SIZE
    """What we take at all."""
    chunks: bool = False


class Exchange:
    """Sends requests over `send` and sees to it that there is a response to each."""

    def __init__(
        self, send: Callable[[bytes], bytes], *, sleep: Callable[[float], None] = time.sleep
    ) -> None:
        self._send = send
        self._sleep = sleep
        self._handle = 0
        self.version = 0x10
        """The version byte of what is sent here without having been asked for."""
        self.limits = Limits()

    def ask(self, request: bytes) -> bytes:
        """The response to `request`, which may have padding behind it.

        Raises SpdmError if it is ERROR, PeerError if it is no response at all.
        """
        if len(request) > self.limits.transfer:
            return self._large(request)
        return self._settled(request, self._send_patiently(request))

    def converse(
        self,
        request: Message,
        response: type[M],
        sizes: Sizes = NO_SIZES,
        *,
        asked: Sizes = NO_SIZES,
    ) -> tuple[M, bytes, bytes]:
        """Send `request`; the response, then the bytes of both without padding.

        `asked` are the sizes of the request. Raises SpdmError.
        """
        sent = request.pack(asked)
        received = self.ask(sent)
        message, size = read(response, received, sizes)
        if message.version != request.version:
            raise PeerError(f"{response.__name__} has version {message.version:#04x}")
        return message, sent, received[:size]

    def _send_patiently(self, request: bytes) -> bytes:
        delay = BUSY_DELAY
        for _ in range(BUSY_RETRIES):
            response = self._send(request)
            if _error_code(response) != ErrorCode.BUSY:
                return response
            self._sleep(delay)
            delay *= 2
        return self._send(request)

    def _settled(self, request: bytes, response: bytes) -> bytes:
        waited = 0.0
        while _error_code(response) == ErrorCode.RESPONSE_NOT_READY:
            exponent, code, token = _not_ready(response)
            pause = (1 << exponent) * _MICROSECOND
            # However short the pauses are, there is an end to asking.
            waited += max(pause, BUSY_DELAY)
            if waited > MAX_WAIT or code != request[1]:
                break
            self._sleep(pause)
            again = RespondIfReady(version=self.version, request=code, token=token)
            response = self._send_patiently(again.pack())
        if _error_code(response) == ErrorCode.LARGE_RESPONSE and self.limits.chunks:
            response = self._collect(response)
        if _error_code(response) is not None:
            raise _refusal(request, response)
        if len(response) < HEADER_SIZE:
            raise PeerError(f"no response to {_name(request[1])}")
        return response

    def _large(self, request: bytes) -> bytes:
        """Send `request` in chunks (10.28.1)."""
        limits = self.limits
        if not limits.chunks or len(request) > limits.message:
            raise SpdmError(
                ErrorCode.REQUEST_TOO_LARGE,
                f"{len(request)} bytes of {_name(request[1])} are too much for the responder",
            )
        self._handle = (self._handle + 1) & 0xFF
        sequence = at = 0
        while True:
            first = sequence == 0
            room = limits.transfer - (ChunkSend.OVERHEAD + (4 if first else 0))
            piece = request[at : at + room]
            at += len(piece)
            chunk = ChunkSend(
                version=self.version,
                attributes=LAST_CHUNK if at == len(request) else 0,
                handle=self._handle,
                sequence=sequence,
                large_size=len(request) if first else 0,
                chunk=piece,
            )
            response = self._send_patiently(chunk.pack())
            if _error_code(response) is not None:
                raise _refusal(request, response)
            ack, _ = read(ChunkSendAck, response, NO_SIZES)
            if (ack.handle, ack.sequence) != (self._handle, sequence):
                raise PeerError("a chunk was acknowledged that was not sent")
            if ack.attributes & EARLY_ERROR or at == len(request):
                return self._settled(request, ack.response)
            sequence += 1
            if sequence >= _CHUNK_SIZE_LIMIT:
                raise SpdmError(ErrorCode.REQUEST_TOO_LARGE, "more chunks than can be counted")

    def _collect(self, error: bytes) -> bytes:
        """Get the response that `error`, a LargeResponse, announces (10.28.2)."""
        announced, _ = read(Error, error, NO_SIZES)
        if not announced.extended:
            raise PeerError("LargeResponse without a handle")
        handle = announced.extended[0]
        data = bytearray()
        size = sequence = 0
        while True:
            request = ChunkGet(version=self.version, handle=handle, sequence=sequence)
            response = self._send_patiently(request.pack())
            if _error_code(response) is not None:
                raise _refusal(request.pack(), response)
            chunk, _ = read(ChunkResponse, response, NO_SIZES)
            if (chunk.handle, chunk.sequence) != (handle, sequence):
                raise PeerError("a chunk came that was not asked for")
            if sequence == 0:
                size = chunk.large_size
                if size > self.limits.response:
                    raise PeerError(f"a response of {size} bytes is more than we take")
            data += chunk.chunk
            last = bool(chunk.attributes & LAST_CHUNK)
            if last and len(data) == size:
                return bytes(data)
            if last or len(data) >= size or not chunk.chunk:
                raise PeerError("the chunks of a response are not as long as it said")
            sequence += 1
            if sequence >= _CHUNK_SIZE_LIMIT:
                raise PeerError("a response in more chunks than can be counted")


def read(kind: type[M], data: bytes, sizes: Sizes) -> tuple[M, int]:
    """The message `kind` in `data`, which may be padded, and its size. Raises PeerError."""
    try:
        message, size = kind.take(data, sizes)
    except SpdmDecodeError as error:
        raise PeerError(f"{kind.__name__}: {error}") from None
    if len(data) - size > PADDING:
        raise PeerError(f"{len(data) - size} bytes behind {kind.__name__}")
    return message, size


def _error_code(response: bytes) -> int | None:
    return response[2] if len(response) >= HEADER_SIZE and response[1] == Code.ERROR else None


def _not_ready(response: bytes) -> tuple[int, int, int]:
    """RDTExponent, request code and token of ResponseNotReady (table 58)."""
    error, _ = read(Error, response, NO_SIZES)
    if len(error.extended) < _NOT_READY_SIZE:
        raise PeerError("ResponseNotReady without its data")
    return error.extended[0], error.extended[1], error.extended[2]


def _refusal(request: bytes, response: bytes) -> SpdmError:
    error, _ = read(Error, response, NO_SIZES)
    refusal = SpdmError(error.error, "", error.data, error.extended)
    name = refusal.code.name if isinstance(refusal.code, ErrorCode) else f"{error.error:#04x}"
    refusal.args = (f"{_name(request[1])} was answered with {name}",)
    return refusal


def _name(code: int) -> str:
    return Code(code).name if code in Code._value2member_map_ else f"request {code:#04x}"
