# SPDX-License-Identifier: MIT
"""Generic netlink beside the kernel's: calls of filtered processes are looked at as they are made.

Sockets are real ones of the kernel, and what is for the kernel the kernel gets. See
``Documentation/interposition.md``.
"""

from __future__ import annotations

import contextlib
import errno
import fcntl
import logging
import os
import select
import socket
import struct
import threading
import time
from collections import OrderedDict
from collections.abc import Callable
from functools import partial
from typing import Final

from netlink.credentials import CAP_NET_ADMIN
from netlink.server import Server
from netlink.transport import kernel
from netlink.transport.caller import (
    Caller,
    capabilities,
    disconnect,
    is_single_threaded,
    limited_to,
    name_of,
    namespace,
    new_socket,
    own_number,
    signals_waiting,
    thread_group,
    write,
)
from netlink.transport.interposed import (
    NOTICE,
    BesideKernel,
    Forwarded,
    InterposedSocket,
    OpenSocket,
    Request,
    Sorter,
    Whose,
    forward,
    options_of,
    refused_for_room,
)
from netlink.transport.loop import Loop, Next, State
from netlink.transport.seccomp import (
    AF_NETLINK,
    ERESTARTSYS,
    F_DUPFD_CLOEXEC,
    NETLINK_GENERIC,
    RESERVED,
    Listener,
    Notification,
    native_abi,
)
from netlink.transport.usermsg import (
    MSG_DONTWAIT,
    MSG_PEEK,
    RECEIVES,
    SENDS,
    Datagram,
    Incoming,
    Outgoing,
    Receives,
    Sends,
    deliver,
    from_kernel,
    receive,
)

log = logging.getLogger(__name__)

LINGER: Final = 1.0
"""Seconds that a socket is remembered after its last request."""
SWEEP: Final = 0.25
"""Seconds after which it is seen that sockets are not used any more."""
SIGNALS: Final = 0.02
"""Seconds after which a signal ends a call that waits for a datagram."""
SIGNALS_EACH: Final = 0.001
"""Seconds that it takes longer for each of many calls that wait."""
MAX_CALLERS: Final = 128
"""Threads that are remembered by a descriptor; it is opened again for those beyond."""
MAX_TOLD: Final = 1024
STOP_TIMEOUT: Final = 10.0

MAX_RECOGNIZED: Final = 4096
"""Sockets of which is remembered that they are of generic netlink, and of this namespace."""

_SO_NETNS_COOKIE: Final = 71
_COOKIE: Final = struct.Struct("=Q")
_S_IFMT: Final = 0o170000
_S_IFSOCK: Final = 0o140000
_TIMEVAL: Final = struct.Struct("=qq")
_LENGTH: Final = struct.Struct("=I")
_SND_OVERHEAD: Final = 32
"""What ``netlink_sendmsg()`` takes off the send buffer for the largest datagram."""


class InterposeTransport:
    """Serves processes whose filter's listener is attached, in the network namespace of start."""

    def __init__(self, report: Callable[[str], None]) -> None:
        """*report* is told in a line each what does not work for a program."""
        self.state = State.WAITING
        self._report = report
        self._told: OrderedDict[tuple[str, int], None] = OrderedDict()
        self._lock = threading.Lock()
        self._sockets: dict[int, InterposedSocket] = {}
        """By inode."""
        self._recognized: set[int] = set()
        self._ports: dict[int, InterposedSocket] = {}
        self.pending: dict[int, PendingReceive] = {}
        """Calls that wait for a datagram, by thread."""
        self._supervisors: set[Supervisor] = set()
        self._sweeping = False
        self._sweep_at = 0.0
        self.stopping = -1
        """Becomes readable when all is to end."""

    def start(self, server: Server, loop: Loop) -> None:
        """Serve the network namespace of this thread. Raises OSError."""
        self.server = server
        self.loop = loop
        self.receiver = BesideKernel(server.genl)
        self.sorter = Sorter(server.genl)
        self.net = namespace(None, "net")
        self.user = namespace(None, "user")
        with contextlib.ExitStack() as undo:
            self.answers = kernel.generic_socket()
            undo.callback(self.answers.close)
            self.answers.setblocking(False)
            self.port = int(self.answers.getsockname()[0])
            self.net_cookie = _net_cookie(self.answers)
            self.stopping = os.eventfd(0, os.EFD_CLOEXEC)
            undo.pop_all()

    def attach(self, listener: int, reserved: range = RESERVED) -> None:
        """Take over the listener of a filter whose reserved descriptors are *reserved*.

        Raises OSError when there cannot be a thread for it; the listener is closed then.
        """
        supervisor = Supervisor(self, Listener(listener), reserved)
        with self._lock:
            self._supervisors.add(supervisor)
        try:
            supervisor.start()
        except RuntimeError as error:
            self.detached(supervisor)
            supervisor.close()
            raise OSError(errno.EAGAIN, os.strerror(errno.EAGAIN)) from error

    def detached(self, supervisor: Supervisor) -> None:
        """All processes of a filter have ended."""
        with self._lock:
            self._supervisors.discard(supervisor)

    def stop(self) -> None:
        """Give all listeners back: calls that wait fail, and so do those to come."""
        os.eventfd_write(self.stopping, 1)
        for supervisor in self.supervisors():
            supervisor.join(STOP_TIMEOUT)
        for pending in list(self.pending.values()):
            pending.cancel()
        for client in self.clients():
            client.leave()
        self.answers.close()
        os.close(self.stopping)

    def tell(self, kind: str, tid: int, text: str) -> None:
        """Report something about a process, once for each."""
        try:
            process = thread_group(tid)
        except OSError:
            process = tid
        with self._lock:
            if (kind, process) in self._told:
                return
            self._told[kind, process] = None
            if len(self._told) > MAX_TOLD:
                self._told.popitem(last=False)
        self._report(f"{name_of(tid)}: {text}")

    def clients(self) -> list[InterposedSocket]:
        """The sockets of which anything is known now."""
        with self._lock:
            return list(self._sockets.values())

    def supervisors(self) -> list[Supervisor]:
        """The filters that are served."""
        with self._lock:
            return list(self._supervisors)

    def client(self, inode: int) -> InterposedSocket | None:
        """The socket with an inode, if there is anything to know of it."""
        return self._sockets.get(inode)

    def client_of(self, opened: OpenSocket, tid: int) -> InterposedSocket:
        """What there is to know of a socket, which a thread uses. Raises OSError."""
        inode = opened.inode
        known = self._sockets.get(inode)
        if known is not None and not known.over:
            return known
        with self._lock:
            made = InterposedSocket(self, inode, partial(_port_of, opened, tid))
            self._sockets[inode] = made
            before = self._ports.get(made.sock.portid)
            self._ports[made.sock.portid] = made
        if before is not None and before is not known:
            # Its port is another's now, so it is gone, and must not send any more.
            before.end()
        self._sweep_later()
        _open_to_all(opened)
        return made

    def recognize(self, fd: int, inode: int) -> OpenSocket | None:
        """Take over a descriptor of a socket; None, and it is closed, if it is none of ours.

        Those are of generic netlink, and of the network namespace that is served.
        """
        try:
            opened = OpenSocket(AF_NETLINK, socket.SOCK_RAW, NETLINK_GENERIC, fd)
        except OSError:
            os.close(fd)
            return None
        opened.inode = inode
        if inode in self._recognized:
            return opened
        try:
            if (
                opened.getsockopt(socket.SOL_SOCKET, socket.SO_DOMAIN) == AF_NETLINK
                and opened.getsockopt(socket.SOL_SOCKET, socket.SO_PROTOCOL) == NETLINK_GENERIC
                and _net_cookie(opened) == self.net_cookie
            ):
                if len(self._recognized) >= MAX_RECOGNIZED:
                    self._recognized = set()
                self._recognized.add(inode)
                return opened
        except OSError:
            pass
        opened.close()
        return None

    def forget(self, client: InterposedSocket) -> None:
        """A socket is not served any more."""
        with self._lock:
            if self._sockets.get(client.inode) is client:
                del self._sockets[client.inode]
            if self._ports.get(client.sock.portid) is client:
                del self._ports[client.sock.portid]

    def wait(self, pending: PendingReceive) -> None:
        """Have a call wait for a datagram. Raises OSError when that cannot be."""
        self.pending[pending.call.pid] = pending
        try:
            self.loop.watch(pending.opened.fileno(), lambda _events: self.loop.wake(pending))
        except OSError:
            pending.cancel()
            raise
        self._sweep_later()

    def step(self) -> Next:
        """Look what has ended without a word."""
        self._sweeping = False
        try:
            for pending in list(self.pending.values()):
                pending.look()
            self._end_idle()
        finally:
            if self._sockets or self.pending:
                self._sweep_later()
        return Next.WAIT

    def _end_idle(self) -> None:
        """End the clients of sockets that are not used any more."""
        now = time.monotonic()
        kept: list[InterposedSocket] = []
        for client in self.clients():
            if now - client.used < LINGER:
                continue
            if not client.under_way:
                client.end()
            elif client.kept or client.notices:
                kept.append(client)
        if not kept:
            return
        # Nothing tells when a socket is closed for which something is kept.
        try:
            ports = _ports_in_use()
        except OSError:
            # There may be a descriptor for it the next time.
            return
        for client in kept:
            if client.sock.portid not in ports:
                client.end()

    def _sweep_later(self) -> None:
        """Look again soon: the sooner if calls wait, which signals should end without delay."""
        seconds = max(SIGNALS, len(self.pending) * SIGNALS_EACH) if self.pending else SWEEP
        at = time.monotonic() + seconds
        if not self._sweeping or at < self._sweep_at:
            self._sweeping = True
            self._sweep_at = at
            self.loop.wake_later(self, seconds)


class Supervisor(threading.Thread):
    """Takes the calls of the processes with one filter, and answers them."""

    def __init__(self, transport: InterposeTransport, listener: Listener, reserved: range) -> None:
        super().__init__(name="interpose", daemon=True)
        self.listener = listener
        self._transport = transport
        self._reserved = reserved
        self._callers: OrderedDict[int, Caller] = OrderedDict()
        self._last: dict[int, tuple[int, InterposedSocket]] = {}
        """Where each thread has sent last, by which descriptor."""
        self._lock = threading.Lock()
        abi = native_abi()
        self._abi = abi
        handlers: dict[str, Callable[[Notification], None]] = {
            "socket": self._socket,
            "dup": self._dup,
            "fcntl": self._dup,
            "dup2": self._dup2,
            "dup3": self._dup2,
            **{name: partial(self._send, one) for name, one in SENDS.items()},
            **{name: partial(self._receive, one) for name, one in RECEIVES.items()},
        }
        self._handlers = {number: handlers[name] for name, number in abi.calls.items()}

    def close(self) -> None:
        """Give the listener and all descriptors back."""
        self.listener.close()
        for caller in list(self._callers.values()):
            self._forget(caller)

    def run(self) -> None:
        """Serve calls until all processes have ended, or the transport stops."""
        poll = select.poll()
        poll.register(self.listener.fileno(), select.POLLIN)
        poll.register(self._transport.stopping, select.POLLIN)
        try:
            while True:
                events = dict(poll.poll())
                if self._transport.stopping in events:
                    return
                if events[self.listener.fileno()] & select.POLLIN:
                    call = self.listener.receive()
                    if call is not None:
                        self._handle(call)
                else:
                    return
        except Exception:
            log.exception("a supervisor of generic netlink failed")
        finally:
            self._transport.detached(self)
            for pending in list(self._transport.pending.values()):
                if pending.supervisor is self:
                    pending.cancel()
            self.close()

    def _handle(self, call: Notification) -> None:
        """Answer a call, whatever it is; what cannot be looked at the kernel gets."""
        pending = self._transport.pending
        if call.pid in pending:
            # A thread makes one call at a time.
            with contextlib.suppress(KeyError):
                pending[call.pid].cancel()
        try:
            handler = self._handlers.get(call.nr) if call.arch == self._abi.arch else None
            if handler is None:
                self._foreign(call)
            else:
                handler(call)
            return
        except OSError as error:
            if error.errno in (errno.EMFILE, errno.ENFILE, errno.EPERM, errno.EACCES):
                text = f"its generic netlink goes to the kernel alone: {error.strerror}"
                self._transport.tell("failed", call.pid, text)
        except Exception:
            log.exception("a call of generic netlink was not understood")
        with contextlib.suppress(OSError):
            self.listener.proceed(call.id)

    def _foreign(self, call: Notification) -> None:
        text = "made for another kind of machine: its generic netlink goes to the kernel alone"
        self._transport.tell("foreign", call.pid, text)
        self.listener.proceed(call.id)

    def _caller(self, tid: int) -> Caller:
        """The thread with a number, which makes a call now. Raises OSError."""
        caller = self._callers.get(tid)
        if caller is not None:
            return caller
        caller = Caller(tid)
        self._callers[tid] = caller
        if len(self._callers) > MAX_CALLERS:
            self._forget(next(iter(self._callers.values())))
        try:
            self._transport.loop.watch(caller.pidfd, lambda _events: self._exited(caller))
        except BaseException:
            # Nothing would tell when it has gone.
            self._forget(caller)
            raise
        return caller

    def _exited(self, caller: Caller) -> None:
        if not caller.exited():
            # What has happened has happened to another that had the same descriptor before.
            return
        pending = self._transport.pending.get(caller.tid)
        if pending is not None and not self.listener.valid(pending.call.id):
            pending.cancel()
        self._forget(caller)

    def _forget(self, caller: Caller) -> None:
        if self._callers.get(caller.tid) is caller:
            self._callers.pop(caller.tid, None)
            self._last.pop(caller.tid, None)
        with self._lock:
            if caller.pidfd >= 0:
                self._transport.loop.forget(caller.pidfd)
                caller.close()

    def _open(self, call: Notification) -> tuple[Caller, OpenSocket | None]:
        """Who makes a call, and the socket that it is about, if it is one of ours. OSError."""
        caller, fd = self._descriptor(call)
        try:
            found = os.fstat(fd)
            is_socket = found.st_mode & _S_IFMT == _S_IFSOCK
        except OSError:
            os.close(fd)
            raise
        if is_socket:
            return caller, self._transport.recognize(fd, found.st_ino)
        os.close(fd)
        return caller, None

    def _descriptor(self, call: Notification) -> tuple[Caller, int]:
        """Who makes a call, and the descriptor that it is about as one of ours. Raises OSError."""
        number = call.arg0 & 0xFFFFFFFF
        caller = self._caller(call.pid)
        try:
            return caller, caller.descriptor(number)
        except OSError as error:
            if error.errno != errno.ESRCH:
                raise
        # The number of the thread was another's before.
        self._forget(caller)
        caller = self._caller(call.pid)
        return caller, caller.descriptor(number)

    # Sockets and descriptors.

    def _effective(self, tid: int) -> int:
        """Capabilities of a thread where they count for our network namespace."""
        if namespace(tid, "user") != self._transport.user:
            return 0
        return capabilities(tid)[0]

    def _socket(self, call: Notification) -> None:
        tid = call.pid
        if namespace(tid, "net") != self._transport.net:
            self.listener.proceed(call.id)
            return
        with limited_to(self._effective(tid)):
            try:
                fd = new_socket(AF_NETLINK, call.arg1 & 0xFFFFFFFF, NETLINK_GENERIC)
            except OSError as error:
                if error.errno in (errno.EMFILE, errno.ENFILE):
                    raise
                self.listener.refuse(call.id, error.errno or errno.EIO)
                return
        try:
            flags = call.arg1 & os.O_CLOEXEC
            if self._inject(call, fd, flags, self._reserved.start):
                return
            try:
                self.listener.inject(call.id, fd, None, flags)
            except OSError as error:
                self.listener.refuse(call.id, error.errno or errno.EMFILE)
        finally:
            os.close(fd)

    def _dup(self, call: Notification) -> None:
        _, opened = self._open(call)
        if opened is None:
            self.listener.proceed(call.id)
            return
        try:
            minimum, flags = self._reserved.start, 0
            if call.nr == self._abi.calls["fcntl"]:
                minimum = max(minimum, call.arg2 & 0xFFFFFFFF)
                flags = os.O_CLOEXEC if call.arg1 & 0xFFFFFFFF == F_DUPFD_CLOEXEC else 0
            if not self._inject(call, opened.fileno(), flags, minimum):
                self.listener.proceed(call.id)
        finally:
            opened.close()

    def _dup2(self, call: Notification) -> None:
        _, opened = self._open(call)
        target = call.arg1 & 0xFFFFFFFF
        if opened is not None:
            opened.close()
            if target not in self._reserved:
                self._not_seen(call.pid, f"descriptor {target}")
        self.listener.proceed(call.id)

    def _not_seen(self, tid: int, where: str) -> None:
        text = (
            f"generic netlink at {where} reaches the emulated families only by sendto() with an "
            "address"
        )
        self._transport.tell("unseen", tid, text)

    def _inject(self, call: Notification, fd: int, flags: int, minimum: int) -> bool:
        """Give a caller a descriptor at a reserved number; False when there is none for it."""
        caller = self._caller(call.pid)
        try:
            number = self._free_number(caller, minimum)
        except ProcessLookupError:
            # The number of the thread was another's before.
            self._forget(caller)
            caller = self._caller(call.pid)
            number = self._free_number(caller, minimum)
        caller.renew()
        if number is not None:
            try:
                self.listener.inject(call.id, fd, number, flags)
            except OSError as error:
                if error.errno != errno.EBADF:
                    raise
            else:
                caller.last_number = number
                return True
        reserved = self._reserved
        text = f"no free descriptor from {reserved.start} to {reserved.stop - 1}"
        self._transport.tell("full", call.pid, f"{text}: its generic netlink may not be seen")
        return False

    def _free_number(self, caller: Caller, minimum: int) -> int | None:
        """A reserved number that is not open in a caller, after the one that it got last."""
        reserved = self._reserved
        count = len(reserved)
        first = caller.last_number + 1 - reserved.start if caller.last_number else 0
        for step in range(count):
            number = reserved.start + (first + step) % count
            if number < minimum:
                continue
            try:
                os.close(caller.descriptor(number))
            except OSError as error:
                if error.errno == errno.EBADF:
                    return number
                raise
        return None

    # Sending.

    def _send(self, sends: Sends, call: Notification) -> None:
        caller, opened = self._open(call)
        if opened is None:
            self.listener.proceed(call.id)
            return
        try:

            def limit() -> int:
                room = opened.getsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF)
                return room - _SND_OVERHEAD

            first: Outgoing | None = None
            parts: list[tuple[Whose, bytes]] = []
            for index, outgoing in enumerate(sends(caller, call, limit)):
                found = self._parts(opened, outgoing)
                if index == 0:
                    first, parts = outgoing, found
                if any(whose is not Whose.KERNEL for whose, _ in found):
                    break
            else:
                self.listener.proceed(call.id)
                return
            if not self.listener.valid(call.id):
                return
            if first is None or not parts:
                self.listener.proceed(call.id)
                return
            self._answer(call, opened, first, parts)
        finally:
            opened.close()

    def _parts(self, opened: OpenSocket, outgoing: Outgoing | None) -> list[tuple[Whose, bytes]]:
        """The parts of a datagram to the kernel, none of another. Raises OSError."""
        if outgoing is None:
            return []
        port, groups = outgoing.destination or opened.getpeername()
        if groups or port not in (0, self._transport.port):
            return []
        return self._transport.sorter.split(outgoing.data)

    def _answer(
        self,
        call: Notification,
        opened: OpenSocket,
        outgoing: Outgoing,
        parts: list[tuple[Whose, bytes]],
    ) -> None:
        client = self._transport.client_of(opened, call.pid)
        client.used = time.monotonic()
        self._last[call.pid] = call.arg0 & 0xFFFFFFFF, client
        sent = (call.pid, outgoing.data)
        result = len(outgoing.data)
        try:
            if client.answered != sent:
                for whose, data in parts:
                    self._dispatch(call.pid, opened, whose, data)
            client.answered = None
            if outgoing.sent_at is not None:
                write(call.pid, [(outgoing.sent_at, _LENGTH.pack(result))])
                result = 1
        except OSError as error:
            self.listener.refuse(call.id, error.errno or errno.EIO)
            return
        if not self.listener.answer(call.id, result):
            client.answered = sent

    def _dispatch(self, tid: int, opened: OpenSocket, whose: Whose, data: bytes) -> None:
        """Have a part of a datagram answered. Raises OSError for what the sender is to see."""
        client = self._transport.client_of(opened, tid)
        if whose is Whose.KERNEL:
            effective = self._effective(tid)
            if not client.under_way:
                forward(opened, data, effective)
                return
            forwarded = Forwarded(data, opened.copy(), effective)
            try:
                self._push(opened, tid, forwarded)
            except OSError:
                forwarded.opened.close()
                raise
            return
        sure = whose is Whose.CONTROLLER and self._transport.receiver.never_refuses(data)
        cap_ack, ext_ack = (False, False) if sure else options_of(opened)
        request = Request(data, False, cap_ack, ext_ack)
        if whose is Whose.CONTROLLER and client.answer_now(request, partial(_open_to_all, opened)):
            return
        if whose is Whose.FAMILY:
            request.capable = bool(self._effective(tid) >> CAP_NET_ADMIN & 1)
        _open_to_all(opened)
        self._push(opened, tid, request)

    def _push(self, opened: OpenSocket, tid: int, request: Request | Forwarded) -> None:
        client = self._transport.client_of(opened, tid)
        if client.push(request):
            return
        # It may have been given up for being idle just now.
        again = self._transport.client_of(opened, tid)
        if again is client or not again.push(request):
            raise refused_for_room()

    # Receiving.

    def _not_looked_at(self, call: Notification) -> bool:
        """Whether a call may receive by itself, as far as can be told without a look at it.

        It must not want to know the sender, and nothing may be under way for its socket. That is
        a guess by the descriptor's number; if that is another socket's now there is no harm.
        """
        if call.nr == self._abi.calls["recvfrom"]:
            if call.arg4:
                return False
        elif call.nr != self._abi.calls["read"]:
            return False
        number, client = self._last.get(call.pid, (-1, None))
        if client is None or number != call.arg0 & 0xFFFFFFFF or client.under_way:
            return False
        client.note_room(call.arg2)
        return True

    def _receive(self, receives: Receives, call: Notification) -> None:
        if self._not_looked_at(call):
            self.listener.proceed(call.id)
            return
        caller, opened = self._open(call)
        if opened is None:
            self.listener.proceed(call.id)
            return
        pending: PendingReceive | None = None
        try:
            client = self._transport.client(opened.inode)
            offered = receives(caller, call)
            if client is not None:
                client.note_room(offered.room)
            plain = not offered.name and not offered.control
            if plain and (client is None or not client.under_way or not offered.room):
                # The caller does not look who has sent it.
                self.listener.proceed(call.id)
            elif self.complete(call, opened, offered):
                pass
            elif offered.flags & MSG_DONTWAIT or fcntl.fcntl(opened, fcntl.F_GETFL) & os.O_NONBLOCK:
                self.listener.refuse(call.id, errno.EAGAIN)
            else:
                pending = PendingReceive(self, call, opened, offered)
        finally:
            if pending is None:
                opened.close()
        if pending is not None:
            self._transport.wait(pending)

    def complete(self, call: Notification, opened: OpenSocket, offered: Incoming) -> bool:
        """Receive for a call, and answer it; False when there is nothing to receive."""
        if not self.listener.valid(call.id):
            return True
        client = self._transport.client(opened.inode)
        try:
            datagram = self._take(client, opened, offered)
        except BlockingIOError:
            return False
        except OSError as error:
            self.listener.refuse(call.id, error.errno or errno.EIO)
            return True
        try:
            result = deliver(call.pid, offered, datagram)
        except OSError:
            self.listener.refuse(call.id, errno.EFAULT)
        else:
            answered = self.listener.answer(call.id, result)
            if not answered and not offered.flags & MSG_PEEK:
                with contextlib.suppress(OSError):
                    self._transport.client_of(opened, call.pid).keep(datagram)
        if client is not None:
            client.read_by_client()
        return True

    def _take(
        self, client: InterposedSocket | None, opened: OpenSocket, offered: Incoming
    ) -> Datagram:
        """The next datagram for a call. Raises OSError as receiving it does."""
        peek = offered.flags & MSG_PEEK
        if client is not None and client.kept:
            datagram = client.kept[0]
            if not peek:
                client.kept.popleft()
                self._skip_notices(client, opened)
            return datagram
        if client is not None and client.notices:
            self._skip_notices(client, opened)
        datagram = receive(opened, offered.flags, offered.room, offered.control_room)
        if datagram.port == self._transport.port:
            from_kernel(datagram)
        if client is not None and client.notices and not peek:
            datagram.data = bytes(datagram.data)
            self._skip_notices(client, opened)
        return datagram

    def _skip_notices(self, client: InterposedSocket, opened: OpenSocket) -> None:
        """Receive the notices that are next, so that the socket is readable only for data."""
        with contextlib.suppress(BlockingIOError):
            while client.notices:
                following = receive(opened, MSG_PEEK, len(NOTICE))
                if following.port != self._transport.port or following.length != len(NOTICE):
                    return
                if following.data != NOTICE:
                    return
                receive(opened, 0, len(NOTICE))
                client.notices -= 1


class PendingReceive:
    """A call that waits for a datagram; stepped when its socket changes."""

    def __init__(
        self, supervisor: Supervisor, call: Notification, opened: OpenSocket, offered: Incoming
    ) -> None:
        """Takes over *opened*. Raises OSError."""
        self.state = State.WAITING
        self.supervisor = supervisor
        self.call = call
        self.opened = opened
        self._offered = offered
        self._lock = threading.Lock()
        self._over = False
        self._shared = 0
        """Signals that have waited for the process when it was last looked."""
        self._transport = supervisor._transport
        seconds = _receive_timeout(opened)
        self._deadline: float | None = None
        if seconds:
            self._deadline = time.monotonic() + seconds
            self._transport.loop.wake_later(self, seconds)

    def step(self) -> Next:
        with self._lock:
            if self._over:
                return Next.WAIT
            try:
                done = self.supervisor.complete(self.call, self.opened, self._offered)
                if not done and self._deadline is not None and time.monotonic() >= self._deadline:
                    self.supervisor.listener.refuse(self.call.id, errno.EAGAIN)
                    done = True
            except Exception:
                log.exception("a call that waits for generic netlink failed")
                # Nobody else will answer it.
                with contextlib.suppress(OSError):
                    self.supervisor.listener.refuse(self.call.id, errno.EIO)
                done = True
            if done:
                self._end()
        return Next.WAIT

    def look(self) -> None:
        """End the call if there is a signal for its thread: that waits for the call to end."""
        with self._lock:
            if self._over:
                return
            number = self._interrupted()
            if number is not None:
                if number:
                    self.supervisor.listener.refuse(self.call.id, number)
                self._end()

    def _interrupted(self) -> int | None:
        """The errno to end the call with; 0 if it has gone, None if there is no signal."""
        tid = self.call.pid
        if not self.supervisor.listener.valid(self.call.id):
            return 0
        try:
            own, shared = signals_waiting(tid)
            if own or (shared and is_single_threaded(tid)):
                return ERESTARTSYS
        except (FileNotFoundError, ProcessLookupError):
            return 0
        except OSError:
            # There may be a descriptor for it the next time.
            return None
        # Other threads take a signal to the process at once if they can. One that stays is for
        # a thread that waits here, and the kernel would not make the call of another again.
        if shared & self._shared:
            return errno.EINTR
        self._shared = shared
        return None

    def cancel(self) -> None:
        """The call has gone, or nobody will answer it."""
        with self._lock:
            if not self._over:
                self._end()

    def _end(self) -> None:
        self._over = True
        transport = self._transport
        if transport.pending.get(self.call.pid) is self:
            del transport.pending[self.call.pid]
        if self._deadline is not None:
            transport.loop.drop_timers(self)
        transport.loop.forget(self.opened.fileno())
        self.opened.close()


def _net_cookie(opened: socket.SocketType) -> int:
    """The kernel's number of the network namespace of a socket. Raises OSError."""
    raw = opened.getsockopt(socket.SOL_SOCKET, _SO_NETNS_COOKIE, _COOKIE.size)
    return int(_COOKIE.unpack(raw)[0])


def _open_to_all(opened: OpenSocket) -> None:
    """Have a socket that is connected to the kernel receive from others, too.

    Not connected it sends to the kernel all the same, and ``getpeername()`` says the same.
    """
    if opened.getpeername() == (0, 0):
        disconnect(opened.fileno())


def _port_of(opened: OpenSocket, tid: int) -> int:
    """The port of a socket, which gets one as from the kernel when it has none. Raises OSError."""
    port, _ = opened.getsockname()
    if port:
        return int(port)
    try:
        opened.bind((own_number(tid), 0))
    except OSError as error:
        if error.errno == errno.EADDRINUSE:
            kernel.bind_anywhere(opened)
        elif error.errno != errno.EINVAL:
            raise
    return int(opened.getsockname()[0])


def _receive_timeout(opened: OpenSocket) -> float:
    """SO_RCVTIMEO of a socket in seconds, 0 without. Raises OSError."""
    raw = opened.getsockopt(socket.SOL_SOCKET, socket.SO_RCVTIMEO, _TIMEVAL.size)
    seconds, microseconds = _TIMEVAL.unpack(raw)
    return float(seconds + microseconds / 1e6)


def _ports_in_use() -> set[int]:
    """The ports of all sockets of generic netlink in this network namespace."""
    ports: set[int] = set()
    with open("/proc/thread-self/net/netlink", encoding="ascii") as table:
        for line in table:
            _, protocol, port, *_ = line.split()
            if protocol == str(NETLINK_GENERIC):
                ports.add(int(port))
    return ports
