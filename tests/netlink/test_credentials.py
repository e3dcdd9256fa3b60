# SPDX-License-Identifier: MIT
"""CAP_NET_ADMIN as another process can tell it."""

from __future__ import annotations

import io
import os
import struct
import subprocess
import sys

import pytest

from netlink.credentials import CAP_NET_ADMIN, Credentials, capable

NOBODY = 65534


def test_superuser_and_owner_are_capable() -> None:
    assert capable(Credentials(1, 0, 0), owner=1000)
    assert capable(Credentials(1, 1000, 1000), owner=1000)


def test_process_that_is_gone_is_not() -> None:
    with subprocess.Popen([sys.executable, "-c", ""]) as process:
        process.wait()
    assert not capable(Credentials(process.pid, NOBODY, NOBODY), owner=1000)
    assert not capable(Credentials(-1, NOBODY, NOBODY), owner=1000)


@pytest.mark.parametrize(
    ("effective", "expected"),
    [(0, False), (1 << CAP_NET_ADMIN, True), ((1 << 41) - 1 ^ 1 << CAP_NET_ADMIN, False)],
)
def test_effective_set_of_the_process_decides(
    effective: int, expected: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    opened = []

    def fake(path: str, **_: object) -> object:
        opened.append(path)
        return io.StringIO(f"Name:\tx\nCapPrm:\t{2**41 - 1:016x}\nCapEff:\t{effective:016x}\n")

    monkeypatch.setattr("builtins.open", fake)
    assert capable(Credentials(42, NOBODY, NOBODY), owner=1000) is expected
    assert opened == ["/proc/42/status"]


def test_real_process_is_judged_by_its_real_set() -> None:
    with open("/proc/self/status", encoding="ascii") as status:
        (line,) = [one for one in status if one.startswith("CapEff:")]
    has = bool(int(line.split()[1], 16) >> 12 & 1)
    # As if it ran as nobody: only its capabilities speak for it.
    assert capable(Credentials(os.getpid(), NOBODY, NOBODY), owner=1000) is has


def test_credentials_come_from_a_ucred() -> None:
    assert Credentials.unpack(struct.pack("=3i", 1, 2, 3)) == (1, 2, 3)
