# SPDX-License-Identifier: MIT
"""Tests of large messages in chunks."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tsmfs.spdm.chunks import SEQUENCE_COUNT, Chunks, EarlyError, capacity
from tsmfs.spdm.messages import (
    LAST_CHUNK,
    MIN_DATA_TRANSFER_SIZE,
    ChunkGet,
    ChunkSend,
    ErrorCode,
    SpdmError,
)

SIZE = 64
LIMIT = 4096


def pieces(whole: bytes, size: int = SIZE, handle: int = 1) -> list[ChunkSend]:
    """The requests that send `whole` in chunks of `size` bytes."""
    requests: list[ChunkSend] = []
    at = 0
    while at < len(whole):
        first = not requests
        room = size - ChunkSend.OVERHEAD - (4 if first else 0)
        piece = whole[at : at + room]
        at += len(piece)
        requests.append(
            ChunkSend(
                attributes=LAST_CHUNK if at == len(whole) else 0,
                handle=handle,
                sequence=len(requests),
                large_size=len(whole) if first else 0,
                chunk=piece,
            )
        )
    return requests


def put(chunks: Chunks, request: ChunkSend) -> bytes | None:
    return chunks.put(request, len(request.pack()))


@given(st.binary(min_size=MIN_DATA_TRANSFER_SIZE + 8, max_size=500), st.integers(42, 200))
def test_a_large_request_comes_together(whole: bytes, size: int) -> None:
    chunks = Chunks(size, LIMIT)
    requests = pieces(whole, size)
    if len(requests) < 2:
        return
    for request in requests[:-1]:
        assert put(chunks, request) is None
        assert chunks.sending
    assert put(chunks, requests[-1]) == whole
    assert not chunks.sending


@given(st.binary(min_size=100, max_size=600), st.integers(42, 99))
def test_a_large_response_comes_together(whole: bytes, size: int) -> None:
    chunks = Chunks(SIZE, LIMIT)
    handle = chunks.hold(whole, size)
    got = b""
    sequence = 0
    while chunks.getting:
        response = chunks.get(ChunkGet(handle=handle, sequence=sequence))
        assert (response.handle, response.sequence) == (handle, sequence)
        assert len(response.pack()) <= size
        assert response.large_size == (0 if sequence else len(whole))
        assert bool(response.attributes & LAST_CHUNK) == (not chunks.getting)
        got += response.chunk
        sequence += 1
    assert got == whole


WHOLE = bytes(range(200))


def changed(number: int, **fields: int) -> list[ChunkSend]:
    """The chunks of WHOLE up to one that differs in `fields`."""
    requests = pieces(WHOLE)[: number + 1]
    wrong = requests[number]
    values = {
        "attributes": wrong.attributes, "handle": wrong.handle, "sequence": wrong.sequence,
        "large_size": wrong.large_size,
    }  # fmt: skip
    values.update(fields)
    requests[number] = ChunkSend(chunk=wrong.chunk, **values)
    return requests


@pytest.mark.parametrize(
    "requests",
    [
        changed(0, attributes=LAST_CHUNK),
        changed(0, sequence=1, large_size=0),
        changed(0, large_size=MIN_DATA_TRANSFER_SIZE),
        changed(0, large_size=LIMIT + 1),
        changed(1, handle=2),
        changed(1, sequence=2),
        changed(1, sequence=0, large_size=200),
        changed(1, attributes=LAST_CHUNK),
        changed(3, attributes=0),
    ],
)
def test_a_chunk_that_cannot_be_ends_the_transfer(requests: list[ChunkSend]) -> None:
    chunks = Chunks(SIZE, LIMIT)
    for request in requests[:-1]:
        put(chunks, request)
    with pytest.raises(EarlyError) as caught:
        put(chunks, requests[-1])
    assert caught.value.code == ErrorCode.INVALID_REQUEST
    assert not chunks.sending
    for request in pieces(WHOLE):
        received = put(chunks, request)
    assert received == WHOLE


def test_a_chunk_that_is_too_short_or_too_long_ends_the_transfer() -> None:
    for piece in (b"x", bytes(SIZE)):
        chunks = Chunks(SIZE, LIMIT)
        with pytest.raises(EarlyError):
            put(chunks, ChunkSend(large_size=200, chunk=piece))
        assert not chunks.sending


def test_more_bytes_than_were_told_end_the_transfer() -> None:
    chunks = Chunks(SIZE, LIMIT)
    put(chunks, ChunkSend(large_size=50, chunk=bytes(48)))
    with pytest.raises(EarlyError):
        put(chunks, ChunkSend(sequence=1, attributes=LAST_CHUNK, chunk=bytes(3)))


def test_there_is_one_transfer_at_a_time() -> None:
    chunks = Chunks(SIZE, LIMIT)
    handle = chunks.hold(WHOLE, SIZE)
    with pytest.raises(SpdmError) as caught:
        put(chunks, pieces(WHOLE)[0])
    assert caught.value.code == ErrorCode.UNEXPECTED_REQUEST
    assert chunks.get(ChunkGet(handle=handle, sequence=0)).chunk == WHOLE[:48]


@pytest.mark.parametrize("request_", [ChunkGet(handle=2), ChunkGet(handle=1, sequence=1)])
def test_another_chunk_than_the_next_is_refused_and_the_transfer_goes_on(
    request_: ChunkGet,
) -> None:
    chunks = Chunks(SIZE, LIMIT)
    assert chunks.hold(WHOLE, SIZE) == 1
    with pytest.raises(SpdmError) as caught:
        chunks.get(request_)
    assert caught.value.code == ErrorCode.INVALID_REQUEST
    assert chunks.get(ChunkGet(handle=1)).chunk == WHOLE[:48]


def test_nothing_can_be_got_when_nothing_waits() -> None:
    with pytest.raises(SpdmError) as caught:
        Chunks(SIZE, LIMIT).get(ChunkGet())
    assert caught.value.code == ErrorCode.UNEXPECTED_REQUEST


def test_each_large_response_has_a_handle_of_its_own() -> None:
    chunks = Chunks(SIZE, LIMIT)
    handles = [chunks.hold(WHOLE, SIZE) for _ in range(257)]
    assert handles[:2] == [1, 2]
    assert handles[255:] == [0, 1]


def test_a_response_of_more_chunks_than_can_be_counted_is_refused() -> None:
    assert capacity(MIN_DATA_TRANSFER_SIZE) == 30 * SEQUENCE_COUNT - 4
    with pytest.raises(SpdmError) as caught:
        Chunks(SIZE, LIMIT).hold(bytes(capacity(42) + 1), 42)
    assert caught.value.code == ErrorCode.RESPONSE_TOO_LARGE
    assert int.from_bytes(caught.value.extended, "little") == capacity(42) + 1
