# SPDX-License-Identifier: MIT
"""Large messages on the responder's side: CHUNK_SEND and CHUNK_GET (DSP0274 10.28).

The requester's side needs no state between calls and is in `exchange`. A connection outside of
sessions has its own `Chunks`, and so has each session: a transfer does not leave the one it is in.
"""

from __future__ import annotations

from tsmfs.spdm.messages import (
    LARGE_SIZE_SIZE,
    LAST_CHUNK,
    MIN_DATA_TRANSFER_SIZE,
    ChunkGet,
    ChunkResponse,
    ChunkSend,
    ErrorCode,
    SpdmError,
)

SEQUENCE_COUNT = 1 << 16
"""Chunks that one transfer has at most: their number has two bytes and does not wrap."""


class EarlyError(SpdmError):
    """A chunk that cannot be, which ends the transfer: told in CHUNK_SEND_ACK itself."""

    def __init__(self, text: str) -> None:
        super().__init__(ErrorCode.INVALID_REQUEST, text)


def capacity(transfer_size: int) -> int:
    """Bytes of a message that can be sent in chunks of `transfer_size`."""
    return (transfer_size - ChunkResponse.OVERHEAD) * SEQUENCE_COUNT - LARGE_SIZE_SIZE


class _Request:
    """A large request as far as it has come."""

    __slots__ = ("data", "handle", "sequence", "size")

    def __init__(self, handle: int, size: int) -> None:
        self.handle = handle
        self.size = size
        self.sequence = 0
        self.data = bytearray()


class _Response:
    """A large response as far as it has been got."""

    __slots__ = ("at", "data", "handle", "sequence", "transfer_size")

    def __init__(self, handle: int, data: bytes, transfer_size: int) -> None:
        self.handle = handle
        self.data = data
        self.transfer_size = transfer_size
        self.at = 0
        self.sequence = 0


class Chunks:
    """The large message that is under way, in one direction or the other."""

    __slots__ = ("_handle", "_max_message_size", "_request", "_response", "_transfer_size")

    def __init__(self, transfer_size: int, max_message_size: int) -> None:
        """Both in bytes, of what we receive: one chunk, and the message they make up."""
        self._transfer_size = transfer_size
        self._max_message_size = max_message_size
        self._handle = 0
        self._request: _Request | None = None
        self._response: _Response | None = None

    @property
    def sending(self) -> bool:
        """Whether a large request has begun: nothing but CHUNK_SEND may follow."""
        return self._request is not None

    @property
    def getting(self) -> bool:
        """Whether a large response waits: nothing but CHUNK_GET may follow."""
        return self._response is not None

    def put(self, request: ChunkSend, size: int) -> bytes | None:
        """Take a piece of a large request, of `size` bytes as a message: the whole with the last.

        Raises SpdmError for one out of place, EarlyError, after which the transfer is over, for one
        that does not fit.
        """
        if self._response is not None:
            raise SpdmError(ErrorCode.UNEXPECTED_REQUEST, "a large response waits")
        try:
            if size > self._transfer_size:
                raise EarlyError(f"a chunk of {size} bytes, {self._transfer_size} are possible")
            if self._request is None:
                self._request = self._first(request)
            else:
                self._next(self._request, request)
            return self._added(self._request, request, size)
        except EarlyError:
            self._request = None
            raise

    def _first(self, request: ChunkSend) -> _Request:
        if request.sequence != 0 or request.attributes & LAST_CHUNK:
            raise EarlyError(f"a large request that begins with chunk {request.sequence}")
        limit = min(self._max_message_size, capacity(self._transfer_size))
        if not MIN_DATA_TRANSFER_SIZE < request.large_size <= limit:
            raise EarlyError(f"a large request of {request.large_size} bytes")
        return _Request(request.handle, request.large_size)

    @staticmethod
    def _next(current: _Request, request: ChunkSend) -> None:
        if request.handle != current.handle:
            raise EarlyError(f"handle {request.handle} in the transfer {current.handle}")
        if request.sequence != current.sequence + 1:
            raise EarlyError(f"chunk {request.sequence} behind chunk {current.sequence}")
        current.sequence = request.sequence

    def _added(self, current: _Request, request: ChunkSend, size: int) -> bytes | None:
        last = bool(request.attributes & LAST_CHUNK)
        if not last and size < MIN_DATA_TRANSFER_SIZE:
            raise EarlyError(f"a chunk of {size} bytes that is not the last")
        current.data += request.chunk
        missing = current.size - len(current.data)
        if missing < 0 or last != (missing == 0):
            raise EarlyError(f"{missing} bytes are missing, the last chunk says otherwise")
        if not last:
            return None
        self._request = None
        return bytes(current.data)

    def hold(self, response: bytes, transfer_size: int) -> int:
        """Keep a large response for chunks of `transfer_size` bytes; its handle.

        Raises SpdmError if it takes more chunks than can be counted.
        """
        if len(response) > capacity(transfer_size):
            raise SpdmError(
                ErrorCode.RESPONSE_TOO_LARGE,
                f"{len(response)} bytes in chunks of {transfer_size}",
                extended=len(response).to_bytes(4, "little"),
            )
        self._handle = (self._handle + 1) & 0xFF
        self._response = _Response(self._handle, response, transfer_size)
        return self._handle

    def get(self, request: ChunkGet) -> ChunkResponse:
        """The piece that is asked for, which is the next one. Raises SpdmError."""
        current = self._response
        if current is None or self._request is not None:
            raise SpdmError(ErrorCode.UNEXPECTED_REQUEST, "no large response waits")
        if (request.handle, request.sequence) != (current.handle, current.sequence):
            raise SpdmError(
                ErrorCode.INVALID_REQUEST,
                f"chunk {request.sequence} of {request.handle}, "
                f"{current.sequence} of {current.handle} is the next",
            )
        first = current.sequence == 0
        room = current.transfer_size - ChunkResponse.OVERHEAD - (LARGE_SIZE_SIZE if first else 0)
        piece = current.data[current.at : current.at + room]
        current.at += len(piece)
        current.sequence += 1
        last = current.at == len(current.data)
        if last:
            self._response = None
        return ChunkResponse(
            version=request.version,
            attributes=LAST_CHUNK if last else 0,
            handle=request.handle,
            sequence=request.sequence,
            large_size=len(current.data) if first else 0,
            chunk=piece,
        )
