# SPDX-License-Identifier: MIT
"""How fast evidence comes over the Unix socket, beside a bare loop with the same datagrams.

The server is a process of its own, as the daemon of a machine is. All of one table is measured in
one run, in turns, so that the ratios mean something on a machine that does other things as well.
Nothing is asserted.
"""

from __future__ import annotations

import contextlib
import multiprocessing
import os
import random
import select
import signal
import socket
import statistics
import struct
import tempfile
import threading
import time
from collections.abc import Iterator
from multiprocessing.connection import Connection
from pathlib import Path

from netlink.evidence import EvidenceReader, serve_pci_tsm
from netlink.server import Server
from netlink.transport.unix import UnixTransport

LARGE = 16 << 20
SMALL = 1 << 20
CLIENTS = 64
ROUNDS = 7
BUFFERS = (4096, 8192, 32768)
READ = 262144

_FORK = multiprocessing.get_context("fork")


class Device:
    """Two objects: a large one and a small one."""

    def __init__(self) -> None:
        source = random.Random(0)
        self.objects = {0: source.randbytes(LARGE), 1: source.randbytes(SMALL)}

    def generation(self) -> int:
        return 1

    def refresh(self, nonce: bytes) -> None:
        raise NotImplementedError

    def object_size(self, kind: int) -> int:
        return len(self.objects[kind])

    def read(self, kind: int, offset: int, count: int) -> bytes:
        return self.objects[kind][offset : offset + count]

    def digest(self, kind: int) -> bytes:
        return b""

    def validate(self, generation: int) -> None:
        raise NotImplementedError


class Provider:
    def __init__(self, device: Device) -> None:
        self.device = device

    def open(self, subsys: str, name: str) -> EvidenceReader:
        return self.device


def serve(path: Path, device: Device, control: Connection) -> None:
    """The process of the server, until it is told to end."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    with Server() as server:
        serve_pci_tsm(server.genl, Provider(device))
        server.add(UnixTransport(path))
        control.send("ready")
        while control.recv() == "watch":
            delays: list[float] = []
            over = threading.Event()
            watcher = threading.Thread(target=wake, args=(delays, over))
            watcher.start()
            control.recv()
            over.set()
            watcher.join()
            control.send(delays)


def wake(delays: list[float], over: threading.Event) -> None:
    """Another thread of the server, such as one that serves a filesystem: how late it wakes up."""
    while not over.is_set():
        start = time.perf_counter()
        time.sleep(0.001)
        delays.append((time.perf_counter() - start - 0.001) * 1e3)


def request(kind: int, buffer: int) -> bytes:
    """A reader's buffer, and the dump of one object."""
    announcement = struct.pack("=IHHIIII", 24, 1, 0, 0, 0, buffer, 1 << 11)
    attributes = struct.pack("=HHI", 8, 2, 1 << kind) + struct.pack("=HH", 11, 4) + b"device\0\0"
    payload = struct.pack("=BBH", 1, 1, 0) + attributes
    return announcement + struct.pack("=IHHII", 16 + len(payload), 19, 0x301, 7, 0) + payload


def connect(path: Path) -> socket.socket:
    connection = socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET)
    connection.connect(str(path))
    return connection


def is_last(datagram: bytes) -> bool:
    """Whether the end of the dump is in it: 20 bytes of NLMSG_DONE are the last ones."""
    return len(datagram) >= 20 and datagram[-20:-12] == b"\x14\0\0\0\3\0\2\0"


def receive(connection: socket.socket, count: int) -> float:
    """Seconds until *count* datagrams have come."""
    recv = connection.recv
    start = time.perf_counter()
    for _ in range(count):
        recv(READ)
    return time.perf_counter() - start


def content(datagrams: list[bytes]) -> bytes:
    """The bytes of the one object in them."""
    parts = []
    for datagram in datagrams:
        (length,) = struct.unpack_from("=I", datagram)
        offset = 20
        while offset < length:
            size, kind = struct.unpack_from("=HH", datagram, offset)
            if kind == 6 and datagram[4] == 19:
                parts.append(datagram[offset + 4 : offset + size])
            offset += size + -size % 4
    return b"".join(parts)


def collect(path: Path, kind: int, buffer: int) -> list[bytes]:
    with connect(path) as connection:
        connection.send(request(kind, buffer))
        datagrams = [connection.recv(READ)]
        while not is_last(datagrams[-1]):
            datagrams.append(connection.recv(READ))
        return datagrams


def dump(path: Path, buffer: int, count: int) -> float:
    with connect(path) as connection:
        connection.send(request(0, buffer))
        return receive(connection, count)


def bare(datagrams: list[bytes]) -> float:
    """A loop in one process that sends and another that receives."""
    ours, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
    go = os.eventfd(0)
    child = os.fork()
    if child == 0:
        os.eventfd_read(go)
        send = theirs.send
        for datagram in datagrams:
            send(datagram)
        os._exit(0)
    with ours, theirs:
        os.eventfd_write(go, 1)
        seconds = receive(ours, len(datagrams))
        os.waitpid(child, 0)
        os.close(go)
    return seconds


def bare_in_turns(datagrams: list[bytes]) -> float:
    """One process that sends each datagram and receives it."""
    ours, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
    with ours, theirs:
        send, recv = theirs.send, ours.recv
        start = time.perf_counter()
        for datagram in datagrams:
            send(datagram)
            recv(READ)
        return time.perf_counter() - start


def peak(pid: int) -> int:
    """Most KiB resident since the last :func:`forget_peak`."""
    with open(f"/proc/{pid}/status", encoding="ascii") as status:
        (line,) = [one for one in status if one.startswith("VmHWM:")]
    return int(line.split()[1])


def forget_peak(pid: int) -> None:
    Path(f"/proc/{pid}/clear_refs").write_text("5")


def large(path: Path, device: Device, pid: int) -> None:
    print(f"\n{LARGE >> 20} MiB over the Unix socket, MiB/s (best of {ROUNDS}, median)\n")
    print(f"{'':22}{'server':>16}{'bare loop':>16}{'in turns':>16}{'ratio':>14}{'peak':>12}")
    for buffer in BUFFERS:
        datagrams = collect(path, 0, buffer)
        assert content(datagrams) == device.objects[0]
        forget_peak(pid)
        before = peak(pid)
        times: dict[str, list[float]] = {"server": [], "bare": [], "turns": []}
        for _ in range(ROUNDS):
            times["server"].append(dump(path, buffer, len(datagrams)))
            times["bare"].append(bare(datagrams))
            times["turns"].append(bare_in_turns(datagrams))
        growth = peak(pid) - before
        row = f"{len(datagrams):>6} of {max(map(len, datagrams)):<6} bytes"
        for one in times.values():
            best, median = 16 / min(one), 16 / statistics.median(one)
            row += f"{best:>9.0f} {median:>6.0f}"
        ratios = [
            min(times["bare"]) / min(times["server"]),
            statistics.median(times["bare"]) / statistics.median(times["server"]),
        ]
        print(f"{row}{ratios[0]:>8.2f} {ratios[1]:>5.2f}{growth:>8} KiB")


def one_client(path: Path, start: int, results: Connection, expected: bytes) -> None:
    with connect(path) as connection:
        os.read(start, 1)
        connection.send(request(1, READ))
        datagrams = [connection.recv(READ)]
        while not is_last(datagrams[-1]):
            datagrams.append(connection.recv(READ))
        end = time.perf_counter()
    results.send((end, content(datagrams) == expected))


def clients_each_a_process(path: Path, device: Device) -> tuple[list[float], int]:
    """Seconds from the common start to each end, and how many got all; the processors decide."""
    start, go = os.pipe()
    ends, processes = [], []
    for _ in range(CLIENTS):
        ours, theirs = _FORK.Pipe(duplex=False)
        arguments = (path, start, theirs, device.objects[1])
        processes.append(_FORK.Process(target=one_client, args=arguments))
        ends.append(ours)
        processes[-1].start()
    # Until all of them wait for the start.
    time.sleep(1)
    begin = time.perf_counter()
    os.write(go, bytes(CLIENTS))
    results = [end.recv() for end in ends]
    for process in processes:
        process.join()
    os.close(start)
    os.close(go)
    return [end - begin for end, _ in results], sum(exact for _, exact in results)


def clients_in_one_process(path: Path, device: Device) -> tuple[list[float], int]:
    """The same, read by one process wherever there is something: the server decides."""
    with contextlib.ExitStack() as closing:
        clients = [closing.enter_context(connect(path)) for _ in range(CLIENTS)]
        poll = select.epoll()
        closing.callback(poll.close)
        got: dict[int, list[bytes]] = {}
        for client in clients:
            poll.register(client, select.EPOLLIN)
            got[client.fileno()] = []
        by_fd = {client.fileno(): client for client in clients}
        seconds: list[float] = []
        begin = time.perf_counter()
        for client in clients:
            client.send(request(1, READ))
        while len(seconds) < CLIENTS:
            for fd, _ in poll.poll():
                datagram = by_fd[fd].recv(READ)
                got[fd].append(datagram)
                if is_last(datagram):
                    seconds.append(time.perf_counter() - begin)
                    poll.unregister(fd)
    return seconds, sum(content(each) == device.objects[1] for each in got.values())


def many(path: Path, device: Device, pid: int, control: Connection) -> None:
    """Many clients at once."""
    print(f"\n{CLIENTS} clients at once, {SMALL >> 20} MiB each, {ROUNDS} times\n")
    print(f"{'':24}{'exact':>8}{'fastest':>12}{'slowest':>12}{'ratio (best, median, worst)':>32}")
    delays: list[float] = []
    growth = 0
    for name, measure in (
        ("clients in one process", clients_in_one_process),
        ("each client a process", clients_each_a_process),
    ):
        ratios, fastest, slowest, exact = [], [], [], 0
        for _ in range(ROUNDS):
            control.send("watch")
            forget_peak(pid)
            before = peak(pid)
            seconds, good = measure(path, device)
            control.send("enough")
            delays += control.recv()
            growth = max(growth, peak(pid) - before)
            exact += good
            fastest.append(min(seconds) * 1e3)
            slowest.append(max(seconds) * 1e3)
            ratios.append(max(seconds) / min(seconds))
        ratios.sort()
        row = f"{name:24}{exact:>8}{statistics.median(fastest):>9.0f} ms"
        row += f"{statistics.median(slowest):>9.0f} ms"
        print(f"{row}{ratios[0]:>18.2f} {statistics.median(ratios):>6.2f} {ratios[-1]:>6.2f}")
    delays.sort()
    late = f"{statistics.median(delays):.2f} ms (median), {delays[len(delays) * 99 // 100]:.1f} ms"
    print(f"\nanother thread of the server woke up {late} (99 %) late meanwhile")
    print(f"peak memory of the server: {growth:+} KiB")


@contextlib.contextmanager
def running(device: Device) -> Iterator[tuple[Path, int, Connection]]:
    """A server; its path, its process, and the way to talk to it."""
    with tempfile.TemporaryDirectory() as directory:
        path = Path(directory) / "netlink"
        ours, theirs = _FORK.Pipe()
        process = _FORK.Process(target=serve, args=(path, device, theirs))
        process.start()
        assert process.pid is not None
        ours.recv()
        try:
            yield path, process.pid, ours
        finally:
            ours.send("end")
            process.join()


def main() -> None:
    device = Device()
    with running(device) as (path, pid, control):
        large(path, device, pid)
        many(path, device, pid, control)


if __name__ == "__main__":
    main()
