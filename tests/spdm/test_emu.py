# SPDX-License-Identifier: MIT
"""Tests of the socket framing of spdm-emu: server and client, and peers that misbehave."""

from __future__ import annotations

import errno
import os
import socket
import struct
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tsmfs.spdm import emu
from tsmfs.spdm.doe import PROTOCOLS, DataObject, ObjectType
from tsmfs.spdm.emu import (
    CLIENT_HELLO,
    SERVER_HELLO,
    Command,
    EndpointGoneError,
    Frame,
    FrameError,
    FrameSocket,
    Server,
    SocketTransport,
)
from tsmfs.spdm.messages import Error, ErrorCode, SpdmError

TIMEOUT = 30.0
"""Seconds after which a peer is taken to hang."""


class Echo:
    """An endpoint that answers with what it gets, marked; nothing to silent messages."""

    def respond(self, request: bytes) -> bytes:
        if request.startswith(b"gone"):
            raise EndpointGoneError("No such device")
        if request.startswith(b"lost"):
            raise OSError(errno.EIO, os.strerror(errno.EIO))
        if request.startswith(b"bug!"):
            raise RuntimeError("a bug")
        return b"" if request.startswith(b"mute") else b"clr:" + request

    def respond_secured(self, record: bytes) -> bytes:
        return b"sec:" + record


@contextmanager
def serving(threads: bool = False) -> Iterator[Server]:
    """A server of `Echo` on a free port, that has ended when the block is left."""
    with Server(Echo, ("127.0.0.1", 0)) as server:
        run = server.serve_in_threads if threads else server.serve_one_by_one
        thread = threading.Thread(target=run)
        thread.start()
        try:
            yield server
        finally:
            server.end()
            thread.join(TIMEOUT)
            assert not thread.is_alive()


@contextmanager
def raw_client(server: Server) -> Iterator[socket.socket]:
    with socket.create_connection(server.address, TIMEOUT) as sock:
        yield sock


def client(server: Server) -> SocketTransport:
    return SocketTransport.connect(*server.address, timeout=TIMEOUT)


def greet_until_it_ends(transport: SocketTransport) -> None:
    """A server ends its connections one after the other, and any may be the last."""
    end = time.monotonic() + TIMEOUT
    while time.monotonic() < end:
        transport.hello()


def header(command: int, size: int, transport: int = 2) -> bytes:
    return struct.pack(">III", command, transport, size)


def answered(sock: socket.socket) -> bytes:
    """What comes until the server closes the connection."""
    data = b""
    try:
        while piece := sock.recv(4096):
            data += piece
    except ConnectionResetError:
        pass
    return data


def test_a_frame_is_three_big_endian_dwords_and_a_payload() -> None:
    assert Frame(Command.TEST, CLIENT_HELLO).pack() == (
        bytes.fromhex("0000dead 00000002 0000000e") + b"Client Hello!\0"
    )


def test_the_server_greets_back_byte_for_byte() -> None:
    with serving() as server, raw_client(server) as sock:
        sock.sendall(header(0xDEAD, 14) + CLIENT_HELLO + header(0xFFFD, 0))
        assert answered(sock) == header(0xDEAD, 14) + SERVER_HELLO + header(0xFFFD, 0)


def test_an_unknown_command_is_answered_and_the_connection_goes_on() -> None:
    with serving() as server, raw_client(server) as sock:
        sock.sendall(header(0x8001, 4) + bytes(4) + header(0xFFFD, 0))
        assert answered(sock) == header(0xFFFF, 0) + header(0xFFFD, 0)


def test_a_client_discovers_and_exchanges_objects_of_both_types() -> None:
    with serving() as server, client(server) as transport:
        transport.hello()
        assert tuple(transport.discover()) == PROTOCOLS
        assert transport.plain(b"ask") == b"clr:ask\0"
        assert transport.secured(b"asks") == b"sec:asks"
        transport.leave()


def test_a_message_without_response_is_not_answered() -> None:
    with serving() as server, raw_client(server) as sock:
        mute = DataObject(ObjectType.CMA_SPDM, b"mute").pack()
        sock.sendall(Frame(Command.NORMAL, mute).pack() + header(0xFFFD, 0))
        assert answered(sock) == header(0xFFFD, 0)


def test_shutdown_is_echoed_and_ends_the_server() -> None:
    with Server(Echo, ("127.0.0.1", 0)) as server:
        thread = threading.Thread(target=server.serve_one_by_one)
        thread.start()
        with client(server) as transport:
            transport.shut_down()
        thread.join(TIMEOUT)
        assert not thread.is_alive()


def test_a_server_for_one_connection_ends_with_it() -> None:
    with Server(Echo, ("127.0.0.1", 0)) as server:
        thread = threading.Thread(target=server.serve_once)
        thread.start()
        with client(server) as transport:
            transport.hello()
            transport.leave()
        thread.join(TIMEOUT)
        assert not thread.is_alive()


def test_connections_come_one_after_the_other() -> None:
    with serving() as server:
        for _ in range(3):
            with client(server) as transport:
                transport.hello()


def test_in_threads_connections_live_side_by_side() -> None:
    with serving(threads=True) as server, client(server) as one, client(server) as other:
        for transport in (one, other, one):
            transport.hello()


def test_more_connections_than_the_limit_are_closed(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(emu, "MAX_CONNECTIONS", 1)
    with serving(threads=True) as server, client(server) as one:
        one.hello()
        with raw_client(server) as sock:
            assert answered(sock) == b""
        one.hello()


def test_a_connection_without_a_thread_is_closed_and_the_server_goes_on(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    def refuse(_thread: threading.Thread) -> None:
        raise RuntimeError("can't start new thread")

    with serving(threads=True) as server:
        with monkeypatch.context() as patch:
            patch.setattr(threading.Thread, "start", refuse)
            with raw_client(server) as sock:
                assert answered(sock) == b""
        with client(server) as transport:
            transport.hello()


def test_the_end_of_a_server_ends_connections_that_wait() -> None:
    with serving(threads=True) as server, client(server) as transport, raw_client(server) as sock:
        transport.hello()
        # Once it is answered, the server has accepted it.
        sock.sendall(header(0x8001, 0))
        assert sock.recv(len(header(0, 0)), socket.MSG_WAITALL) == header(0xFFFF, 0)
        sock.sendall(b"\0")
        server.end()
        assert answered(sock) == b""


def test_the_end_of_a_server_ends_connections_that_it_has_not_accepted() -> None:
    with Server(Echo, ("127.0.0.1", 0)) as server, raw_client(server) as sock:
        server.end()
        assert answered(sock) == b""


BAD_FRAMES = {
    "a payload larger than any object": header(1, (1 << 20) + 1),
    "a payload of four gigabytes": header(1, 0xFFFF_FFFF),
    "another transport": header(1, 0, transport=1),
    "a data object shorter than its header": header(1, 4) + bytes(4),
    "a data object that lies about its length": header(1, 12) + bytes.fromhex("0100010004000000")
    + bytes(4),
    "a data object that is not in dwords": header(1, 9) + bytes(9),
    "a data object of another vendor": header(1, 12) + bytes.fromhex("8680010003000000") + bytes(4),
    "a data object of another type": header(1, 12) + bytes.fromhex("0100030003000000") + bytes(4),
    "a discovery of eight bytes": header(1, 16) + bytes.fromhex("0100000004000000") + bytes(8),
}  # fmt: skip


@pytest.mark.parametrize("threads", [False, True])
def test_peers_that_lie_end_their_own_connection_only(threads: bool) -> None:
    with serving(threads=threads) as server:
        for name, frame in BAD_FRAMES.items():
            with raw_client(server) as sock:
                sock.sendall(frame)
                assert answered(sock) == b"", name
        with client(server) as transport:
            transport.hello()


def test_a_bug_of_an_endpoint_ends_the_connection_that_met_it(
    caplog: pytest.LogCaptureFixture,
) -> None:
    with serving() as server:
        with raw_client(server) as sock:
            sock.sendall(normal(ObjectType.CMA_SPDM, b"bug!"))
            assert answered(sock) == b""
        with client(server) as transport:
            transport.hello()
    assert "a bug" in caplog.text


def test_a_server_whose_endpoint_is_gone_ends_with_all_its_connections() -> None:
    with serving(threads=True) as server, raw_client(server) as sock, client(server) as other:
        other.hello()
        sock.sendall(normal(ObjectType.CMA_SPDM, b"gone"))
        assert answered(sock) == b""
        with pytest.raises(ConnectionError):
            greet_until_it_ends(other)
        assert str(server.gone) == "No such device"


def test_an_error_of_an_endpoint_is_told_by_its_words(caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level("INFO")
    with serving() as server, raw_client(server) as sock:
        sock.sendall(normal(ObjectType.CMA_SPDM, b"lost"))
        assert answered(sock) == b""
    assert caplog.messages == ["a connection ended: Input/output error"]
    assert server.gone is None


@pytest.mark.parametrize("sent", [b"\0", header(1, 12), header(1, 12) + b"\1\0\1\0"])
def test_a_peer_that_vanishes_ends_its_own_connection_only(sent: bytes) -> None:
    with serving() as server:
        with raw_client(server) as sock:
            sock.sendall(sent)
        with client(server) as transport:
            transport.hello()


def test_a_peer_that_stops_in_the_middle_of_a_frame_is_given_up(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(emu, "FRAME_TIMEOUT", 0.05)
    with serving() as server, raw_client(server) as sock:
        sock.sendall(header(1, 12))
        assert answered(sock) == b""


@contextmanager
def stub_server(*frames: bytes) -> Iterator[SocketTransport]:
    """A client whose server has already sent `frames` and closed."""
    near, far = socket.socketpair()
    with far:
        far.sendall(b"".join(frames))
        far.shutdown(socket.SHUT_WR)
        with SocketTransport(near, timeout=TIMEOUT) as transport:
            yield transport


def normal(kind: int, payload: bytes) -> bytes:
    return Frame(Command.NORMAL, DataObject(kind, payload).pack()).pack()


@pytest.mark.parametrize(
    ("frames", "code"),
    [
        ((), errno.ECONNRESET),
        ((header(1, 8),), errno.EPROTO),
        ((header(0xFFFF, 0),), errno.EPROTO),
        ((header(1, 4) + bytes(4),), errno.EPROTO),
        ((normal(ObjectType.SECURED_CMA_SPDM, b"oops"),), errno.EPROTO),
    ],
)
def test_a_client_reports_servers_that_misbehave(frames: tuple[bytes, ...], code: int) -> None:
    with stub_server(*frames) as transport, pytest.raises(OSError) as caught:  # noqa: PT011
        transport.plain(b"ask.")
    assert caught.value.errno == code


def test_error_in_the_clear_is_raised_as_the_answer_to_a_record() -> None:
    error = Error(error=ErrorCode.INVALID_SESSION).pack()
    with (
        stub_server(normal(ObjectType.CMA_SPDM, error)) as transport,
        pytest.raises(SpdmError) as caught,
    ):
        transport.secured(b"record..")
    assert caught.value.code == ErrorCode.INVALID_SESSION


def test_a_greeting_that_is_not_answered_is_an_error() -> None:
    with (
        stub_server(Frame(Command.TEST, b"Go away!").pack()) as transport,
        pytest.raises(OSError, match="greeting"),
    ):
        transport.hello()


def test_discovery_of_a_server_that_goes_round_in_circles_ends() -> None:
    entry = normal(ObjectType.DISCOVERY, bytes.fromhex("01000001"))
    with stub_server(entry, entry) as transport:
        assert transport.discover() == [(1, 0), (1, 0)]


@settings(max_examples=100)
@given(st.binary(max_size=64))
def test_any_bytes_are_frames_or_refused(data: bytes) -> None:
    near, far = socket.socketpair()
    with near, far:
        far.sendall(data)
        far.close()
        frames = FrameSocket(near, limit=32)
        whole = b""
        try:
            while frame := frames.receive(TIMEOUT):
                whole += frame.pack()
        except FrameError:
            assert data.startswith(whole)
        else:
            assert whole == data
