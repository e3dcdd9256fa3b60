# SPDX-License-Identifier: MIT
"""The socket framing of DMTF's spdm-emu with its PCI DOE transport: a server and a client.

A frame is three big-endian dwords, command, transport type and payload size, then the payload;
that of command `Command.NORMAL` is a DOE data object.
"""

from __future__ import annotations

import contextlib
import errno
import logging
import selectors
import socket
import struct
import threading
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from enum import IntEnum
from types import TracebackType
from typing import Protocol, Self, TypeVar

from tsmfs.spdm.doe import (
    MAX_OBJECT_SIZE,
    NO_VENDOR,
    VENDOR_PCI_SIG,
    DataObject,
    DiscoveryRequest,
    DiscoveryResponse,
    ObjectType,
    discover,
)
from tsmfs.spdm.messages import Error, SpdmError
from tsmfs.spdm.wire import SpdmDecodeError

PORT = 2323
"""TCP port of spdm-emu."""

TRANSPORT_PCI_DOE = 2

CLIENT_HELLO = b"Client Hello!\0"
SERVER_HELLO = b"Server Hello!\0"

FRAME_TIMEOUT = 10.0
"""Seconds in which the rest of a frame must follow its first byte."""

MAX_CONNECTIONS = 64
"""Connections that a server has at a time when each has its own thread."""

ACCEPT_PAUSE = 0.1
"""Seconds before a server that could not accept a connection tries the next one."""

_HEADER = struct.Struct(">III")
_RECEIVE_SIZE = 1 << 16

_log = logging.getLogger(__name__)


class Command(IntEnum):
    """What a frame is."""

    NORMAL = 0x0001
    CONTINUE = 0xFFFD
    """The client leaves, the server waits for the next one."""
    SHUTDOWN = 0xFFFE
    """The client leaves and the server ends."""
    UNKNOWN = 0xFFFF
    """The answer to a command that is none."""
    TEST = 0xDEAD


class FrameError(Exception):
    """The peer does not speak the protocol, or went away in the middle of a frame."""


@dataclass(frozen=True, slots=True)
class Frame:
    """A command and its payload."""

    command: int
    payload: bytes = b""

    def pack(self) -> bytes:
        """The bytes of the frame."""
        return _HEADER.pack(self.command, TRANSPORT_PCI_DOE, len(self.payload)) + self.payload


class FrameSocket:
    """A connected socket that carries frames."""

    def __init__(self, sock: socket.socket, limit: int = MAX_OBJECT_SIZE) -> None:
        """`limit` is the size that the payload of a received frame may have, in bytes."""
        self._sock = sock
        self._limit = limit
        with contextlib.suppress(OSError):
            sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)

    def send(self, frame: Frame) -> None:
        """Send `frame`. Raises OSError."""
        self._sock.settimeout(FRAME_TIMEOUT)
        self._sock.sendall(frame.pack())

    def receive(self, timeout: float | None = None) -> Frame | None:
        """The next frame; None if the peer closed the connection instead.

        Waits `timeout` seconds for its first byte, then `FRAME_TIMEOUT` for the rest. Raises
        FrameError or OSError.
        """
        self._sock.settimeout(timeout)
        first = self._sock.recv(_HEADER.size)
        if not first:
            return None
        self._acknowledge()
        deadline = time.monotonic() + FRAME_TIMEOUT
        header = first + self._receive_exactly(_HEADER.size - len(first), deadline)
        command, transport, size = _HEADER.unpack(header)
        if transport != TRANSPORT_PCI_DOE:
            raise FrameError(f"transport type {transport:#x} is not PCI DOE")
        if size > self._limit:
            raise FrameError(f"a payload of {size} bytes is too large")
        return Frame(command, self._receive_exactly(size, deadline))

    def _receive_exactly(self, size: int, deadline: float) -> bytes:
        data = bytearray()
        while len(data) < size:
            left = deadline - time.monotonic()
            if left <= 0:
                raise FrameError(f"{size - len(data)} bytes of a frame did not come in time")
            self._sock.settimeout(left)
            try:
                piece = self._sock.recv(min(size - len(data), _RECEIVE_SIZE))
            except TimeoutError:
                continue
            if not piece:
                raise FrameError(f"the peer left {size - len(data)} bytes before a frame's end")
            data += piece
        return bytes(data)

    def _acknowledge(self) -> None:
        # spdm-emu writes a frame in four pieces, and holds back the second one for the
        # acknowledgement of the first: without this every frame takes 40 ms.
        with contextlib.suppress(OSError):
            self._sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_QUICKACK, 1)

    def shutdown(self) -> None:
        """Wake whoever waits for this connection: it has ended."""
        with contextlib.suppress(OSError):
            self._sock.shutdown(socket.SHUT_RDWR)

    def close(self) -> None:
        """Close the socket."""
        self._sock.close()


class EndpointGoneError(Exception):
    """What answers behind a server is no more, and does not come back."""


class Endpoint(Protocol):
    """What answers SPDM behind a server: a `Responder`, or a device's mailbox.

    Either method may raise EndpointGoneError.
    """

    def respond(self, request: bytes) -> bytes:
        """The response to an SPDM message in the clear; empty for none."""

    def respond_secured(self, record: bytes) -> bytes:
        """The response to a secured record; empty for none."""


def answer(endpoint: Endpoint, request: DataObject) -> DataObject | None:
    """What a DOE instance in front of `endpoint` answers, None for nothing.

    Raises SpdmDecodeError if it supports no such data object.
    """
    if request.vendor == VENDOR_PCI_SIG:
        match request.kind:
            case ObjectType.DISCOVERY:
                index = DiscoveryRequest.parse(request.payload).index
                return DataObject(ObjectType.DISCOVERY, discover(index).pack())
            case ObjectType.CMA_SPDM:
                response = endpoint.respond(request.payload)
                return DataObject(ObjectType.CMA_SPDM, response) if response else None
            case ObjectType.SECURED_CMA_SPDM:
                record = endpoint.respond_secured(request.payload)
                return DataObject(ObjectType.SECURED_CMA_SPDM, record) if record else None
    raise SpdmDecodeError(f"no data object {request.vendor:#06x}:{request.kind:#04x}")


def serve_connection(peer: FrameSocket, endpoint: Endpoint, lock: threading.Lock) -> bool:
    """Answer the frames of `peer` until it leaves; whether the server goes on after that.

    `lock` is held while `endpoint` answers. Raises FrameError, SpdmDecodeError or OSError when
    the connection cannot go on.
    """
    while True:
        frame = peer.receive()
        if frame is None:
            return True
        match frame.command:
            case Command.NORMAL:
                request = DataObject.parse(frame.payload)
                with lock:
                    response = answer(endpoint, request)
                if response is not None:
                    peer.send(Frame(Command.NORMAL, response.pack()))
            case Command.TEST:
                peer.send(Frame(Command.TEST, SERVER_HELLO))
            case Command.CONTINUE | Command.SHUTDOWN:
                peer.send(Frame(frame.command))
                return frame.command == Command.CONTINUE
            case _:
                peer.send(Frame(Command.UNKNOWN))


class Server:
    """A listening socket in front of endpoints.

    `endpoint` is called for each connection; what it returns may be the same object each time:
    its answers are given under one lock. EndpointGoneError, of it or of what it returns, ends the
    server.
    """

    def __init__(
        self,
        endpoint: Callable[[], Endpoint],
        address: tuple[str, int] = ("127.0.0.1", PORT),
        *,
        limit: int = MAX_OBJECT_SIZE,
    ) -> None:
        """Listen on `address`. Raises OSError."""
        self._endpoint = endpoint
        self._limit = limit
        self._listener = socket.create_server(address)
        self._wake, self._waker = socket.socketpair()
        self._answering = threading.Lock()
        self._peers_lock = threading.Lock()
        self._peers: set[FrameSocket] = set()
        self._ended = threading.Event()
        self.gone: EndpointGoneError | None = None
        """Why the server ended by itself."""

    @property
    def address(self) -> tuple[str, int]:
        """Host and port that the server listens on."""
        host, port, *_ = self._listener.getsockname()
        return host, port

    def serve_once(self) -> None:
        """Serve one connection, unless `end` ends the server before it comes."""
        peer = next(self._connections(), None)
        if peer is not None:
            self._serve(peer)

    def serve_one_by_one(self) -> None:
        """Serve one connection after the other, until a client or `end` ends the server."""
        for peer in self._connections():
            self._serve(peer)

    def serve_in_threads(self) -> None:
        """Serve each connection in a thread, until a client or `end` ends the server."""
        threads: list[threading.Thread] = []
        for peer in self._connections():
            threads = [thread for thread in threads if thread.is_alive()]
            if len(threads) >= MAX_CONNECTIONS:
                _log.warning("more than %d connections, one is refused", MAX_CONNECTIONS)
                self._forget(peer)
                continue
            thread = threading.Thread(target=self._serve, args=(peer,), daemon=True)
            try:
                thread.start()
            except RuntimeError as error:
                _log.warning("a connection is refused: %s", error)
                self._forget(peer)
                continue
            threads.append(thread)
        for thread in threads:
            thread.join()

    def end(self) -> None:
        """Make the server end, its connections too; from any thread."""
        with self._peers_lock:
            self._ended.set()
            for peer in self._peers:
                peer.shutdown()
        with contextlib.suppress(OSError):
            # Connections that were not accepted are reset, and there are no new ones.
            self._listener.shutdown(socket.SHUT_RDWR)
        with contextlib.suppress(OSError):
            self._waker.send(b"\0")

    def close(self) -> None:
        """End the server and close its sockets, after it has returned or instead of serving."""
        self.end()
        for sock in (self._listener, self._wake, self._waker):
            sock.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self.close()

    def _connections(self) -> Iterator[FrameSocket]:
        with selectors.DefaultSelector() as selector:
            selector.register(self._listener, selectors.EVENT_READ)
            selector.register(self._wake, selectors.EVENT_READ)
            while not self._ended.is_set():
                if any(key.fileobj is self._wake for key, _ in selector.select()):
                    return
                try:
                    sock, _ = self._listener.accept()
                except OSError as error:
                    if self._ended.is_set():
                        return
                    _log.warning("a connection was not accepted: %s", error.strerror or error)
                    self._ended.wait(ACCEPT_PAUSE)
                    continue
                peer = FrameSocket(sock, self._limit)
                with self._peers_lock:
                    self._peers.add(peer)
                    if self._ended.is_set():
                        peer.shutdown()
                yield peer

    def _serve(self, peer: FrameSocket) -> None:
        try:
            if not serve_connection(peer, self._endpoint(), self._answering):
                self.end()
        except EndpointGoneError as error:
            self.gone = error
            self.end()
        except OSError as error:
            _log.info("a connection ended: %s", error.strerror or error)
        except (FrameError, SpdmDecodeError) as error:
            _log.info("a connection ended: %s", error)
        except Exception:
            _log.exception("a connection ended by an error of its endpoint")
        finally:
            self._forget(peer)

    def _forget(self, peer: FrameSocket) -> None:
        with self._peers_lock:
            self._peers.discard(peer)
        peer.close()


T = TypeVar("T")


def _parsed(parse: Callable[[bytes], T], data: bytes) -> T:
    try:
        return parse(data)
    except SpdmDecodeError as error:
        raise OSError(errno.EPROTO, str(error)) from None


class SocketTransport:
    """The client: a `Transport` to an endpoint behind a socket."""

    def __init__(
        self, sock: socket.socket, *, timeout: float | None = None, limit: int = MAX_OBJECT_SIZE
    ) -> None:
        """Use the connected `sock`; wait `timeout` seconds for each answer."""
        self._frames = FrameSocket(sock, limit)
        self._timeout = timeout

    @classmethod
    def connect(cls, host: str, port: int = PORT, *, timeout: float = FRAME_TIMEOUT) -> Self:
        """Connect to a server. Raises OSError."""
        return cls(socket.create_connection((host, port), timeout), timeout=timeout)

    def hello(self) -> None:
        """Greet the server, as a test of the connection. Raises OSError."""
        if self._command(Command.TEST, CLIENT_HELLO) != SERVER_HELLO:
            raise OSError(errno.EPROTO, "the server does not answer the greeting")

    def discover(self) -> list[tuple[int, int]]:
        """Vendor ID and type of each data object that the server supports. Raises OSError."""
        found: list[tuple[int, int]] = []
        index = 0
        while True:
            payload = self._object(ObjectType.DISCOVERY, DiscoveryRequest(index).pack()).payload
            entry = _parsed(DiscoveryResponse.parse, payload)
            if entry.vendor == NO_VENDOR:
                return found
            found.append((entry.vendor, entry.kind))
            if entry.next_index <= index:
                return found
            index = entry.next_index

    def plain(self, request: bytes) -> bytes:
        """The response to a message in the clear, with padding behind it. Raises OSError."""
        response = self._object(ObjectType.CMA_SPDM, request)
        if response.kind != ObjectType.CMA_SPDM:
            raise OSError(errno.EPROTO, f"a data object of type {response.kind:#x} for a message")
        return response.payload

    def secured(self, record: bytes) -> bytes:
        """The response to a secured record, with padding behind it.

        Raises SpdmError if the responder answers with ERROR in the clear, OSError otherwise.
        """
        response = self._object(ObjectType.SECURED_CMA_SPDM, record)
        if response.kind == ObjectType.CMA_SPDM:
            error = _parsed(Error.parse, response.payload)
            raise SpdmError(error.error, "the session is refused", error.data, error.extended)
        if response.kind != ObjectType.SECURED_CMA_SPDM:
            raise OSError(errno.EPROTO, f"a data object of type {response.kind:#x} for a record")
        return response.payload

    def leave(self) -> None:
        """Tell the server to wait for its next client. Raises OSError."""
        self._command(Command.CONTINUE)

    def shut_down(self) -> None:
        """Tell the server to end. Raises OSError."""
        self._command(Command.SHUTDOWN)

    def close(self) -> None:
        """Close the connection."""
        self._frames.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self.close()

    def _object(self, kind: int, payload: bytes) -> DataObject:
        data = self._command(Command.NORMAL, DataObject(kind, payload).pack())
        return _parsed(DataObject.parse, data)

    def _command(self, command: Command, payload: bytes = b"") -> bytes:
        try:
            self._frames.send(Frame(command, payload))
            frame = self._frames.receive(self._timeout)
        except FrameError as error:
            raise OSError(errno.EPROTO, str(error)) from None
        if frame is None:
            raise ConnectionResetError(errno.ECONNRESET, "the server closed the connection")
        if frame.command != command:
            raise OSError(errno.EPROTO, f"the server answers {frame.command:#x} to {command:#x}")
        return frame.payload
