# SPDX-License-Identifier: MIT
"""What interposition costs: a request to generic netlink, and sends of programs that never do one.

Clients are processes of plain sockets that do the same in turns, outside of the filter and in it.
Nothing is asserted.
"""

from __future__ import annotations

import os
import socket
import statistics
import time
from collections.abc import Callable

from tests.netlink.devices import BDF
from tests.netlink.transport.harness import Session, tell_parent, wait_for_parent
from tests.netlink.wire import (
    FAMILY_NAME,
    GENERIC,
    GETFAMILY,
    NLCTRL,
    REQUEST,
    NetlinkConnection,
    attribute,
    evidence_request,
    family_id,
    genl,
    message,
    read_evidence,
)

REQUESTS = 5000
SENDS = 50_000
ROUNDS = 20
"""Of sends: a million with the filter, and as many without."""
REPEATS = 5
LARGE = 16 << 20


def get_family(name: bytes, look: bool) -> Callable[[], float]:
    """Microseconds of a request and its answer; *look* asks who has sent the answer."""

    def client() -> float:
        request = message(NLCTRL, REQUEST, genl(GETFAMILY, attribute(FAMILY_NAME, name + b"\0")))
        opened = socket.socket(socket.AF_NETLINK, socket.SOCK_RAW, GENERIC)
        opened.bind((0, 0))
        kernel = (0, 0)
        receive = opened.recvfrom if look else opened.recv
        start = time.perf_counter()
        for _ in range(REQUESTS):
            opened.sendto(request, kernel)
            receive(65536)
        return (time.perf_counter() - start) / REQUESTS * 1e6

    return client


def requests(session: Session) -> None:
    cases = (
        ("answered by the kernel, no filter", b"nlctrl", True, False),
        ("answered by the kernel, filter", b"nlctrl", True, True),
        ("answered by us", b"pci-tsm", True, True),
        ("answered by us, sender not asked for", b"pci-tsm", False, True),
    )
    found: dict[str, list[float]] = {name: [] for name, *_ in cases}
    for _ in range(REPEATS):
        for name, family, look, filtered in cases:
            client = get_family(family, look)
            found[name].append(session.run(client) if filtered else session.outside(client))
    base = statistics.median(found[cases[0][0]])
    print(f"\nCTRL_CMD_GETFAMILY, send and receive{'median':>18}{'least':>10}{'ratio':>8}")
    for name, times in found.items():
        median = statistics.median(times)
        print(f"  {name:40}{median:>9.1f} us{min(times):>7.1f} us{median / base:>8.1f}")


def evidence(session: Session) -> None:
    session.device.objects = {0: os.urandom(LARGE)}

    def client() -> float:
        connection = NetlinkConnection(GENERIC)
        number = family_id(connection, "pci-tsm")
        start = time.perf_counter()
        connection.send(evidence_request(number, 1, BDF.encode() + b"\0"))
        assert len(read_evidence(connection, 7, 65536).objects[0]) == LARGE
        return time.perf_counter() - start

    seconds = [session.run(client) for _ in range(REPEATS)]
    print(f"\n16 MiB of evidence: {statistics.median(seconds) * 1e3:.0f} ms")


def sender() -> float:
    """Sends datagrams on loopback whenever it is told to; tells the nanoseconds of each."""
    receiver = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
    receiver.bind(("127.0.0.1", 0))
    sending = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
    address = receiver.getsockname()
    send, data = sending.sendto, b"x"
    for _ in range(ROUNDS):
        wait_for_parent()
        start = time.perf_counter()
        for _ in range(SENDS):
            send(data, address)
        tell_parent(b"%f" % ((time.perf_counter() - start) / SENDS * 1e9))
    return 0.0


def sends(session: Session) -> None:
    filtered, bare = session.start(sender), session.start(sender, filtered=False)
    times: dict[bool, list[float]] = {False: [], True: []}
    for _ in range(ROUNDS):
        for child, has_filter in ((bare, False), (filtered, True)):
            child.send()
            times[has_filter].append(float(child.heard()))
    filtered.end()
    bare.end()
    without, with_filter = min(times[False]), min(times[True])
    ratios = [b / a for a, b in zip(times[False], times[True], strict=True)]
    print(f"\na UDP datagram on loopback, {ROUNDS * SENDS} each: {without:.0f} ns, with the filter")
    slower = (with_filter / without - 1) * 100
    print(f"{with_filter:.0f} ns: {slower:+.1f} % (least), ", end="")
    print(f"{(statistics.median(ratios) - 1) * 100:+.1f} % (median of pairs)")


def main() -> None:
    session = Session()
    try:
        requests(session)
        evidence(session)
        sends(session)
    finally:
        session.close()


if __name__ == "__main__":
    main()
