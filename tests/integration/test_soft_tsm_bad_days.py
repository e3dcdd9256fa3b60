# SPDX-License-Identifier: MIT
"""Bad days of a mounted machine with keys: clients that die or collide, and a daemon that dies."""

from __future__ import annotations

import contextlib
import errno
import os
import random
import signal
import subprocess
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest
from cryptography.hazmat.primitives.asymmetric import ec

from netlink.client import DeviceEvidenceClient
from netlink.connection import Connection, UnixEndpoint
from tests.machines import STUCK, boot
from tsmfs.mailbox import Mailbox

from .conftest import mounting, tsmfs, write

NIC, SWITCH, ACCELERATOR, NVME = "0000:01:00.0", "0000:02:00.0", "0000:00:08.0", "0000:81:00.0"
DSMS = (NIC, SWITCH, ACCELERATOR, NVME)
TEES = (NIC, ACCELERATOR)
GET_VERSION = bytes((0x10, 0x84, 0, 0))
LINK, DEVSEC = "tsm0", "tsm1"
BIND = "bus/faux/devices/soft_link_tsm/tsm_bind"


@pytest.fixture(scope="module")
def machine(server: Path) -> Iterator[Path]:
    yield server
    assert "Traceback" not in (server / "kernel/tsmfs/log").read_text()


@pytest.fixture
def whole(machine: Path) -> Iterator[Path]:
    """A machine which can do all that it could before when the test is over."""
    yield machine
    recover(machine)
    for name in DSMS:
        assert attempt(machine, name, "connect", LINK) is None
        assert {"vca", "measurements"} < refresh(machine, name, os.urandom(32)).keys()
    done = tsmfs("evidence", "verify", NIC, "--sysfs", machine)
    assert done.returncode == 0, done.stdout + done.stderr
    for name in DSMS:
        assert attempt(machine, name, "disconnect", LINK) is None
    for name in TEES:
        for file, value in (("lock", DEVSEC), ("accept", "1"), ("unlock", DEVSEC)):
            assert attempt(machine, name, file, value) is None
    assert nothing_held(machine)


def function(machine: Path, name: str) -> Path:
    return machine / "bus/pci/devices" / name


def attempt(machine: Path, name: str, file: str, value: str) -> str | None:
    """Name of the errno of a write to a function's TSM file, None if it succeeds."""
    try:
        write(function(machine, name) / "tsm" / file, value)
    except OSError as error:
        return errno.errorcode[error.errno or 0]
    return None


def refresh(machine: Path, name: str, nonce: bytes) -> dict[str, bytes]:
    """The evidence over *nonce*. Raises OSError."""
    socket = Path((machine / "kernel/tsmfs/netlink_socket").read_text().strip())
    with DeviceEvidenceClient(Connection(UnixEndpoint(socket))) as client:
        return client.read(name, nonce=nonce)


def control(machine: Path, file: str, text: str) -> None:
    write(machine / "kernel/tsmfs" / file, text)


def delay(machine: Path, step: int, milliseconds: int) -> None:
    """Have the data object number *step* from now on take that long."""
    for name, value in (
        ("errno", 0),
        ("delay_ms", milliseconds),
        ("space", step),
        ("times", 1),
        ("probability", 100),
    ):
        control(machine, f"fault/doe_transfer/{name}", str(value))


def delays(machine: Path) -> int:
    return (machine / "kernel/tsmfs/log").read_text().count("name doe_transfer")


def wait_for(condition: Callable[[], bool]) -> None:
    deadline = time.monotonic() + STUCK
    while not condition():
        assert time.monotonic() < deadline
        time.sleep(0.01)


def nothing_held(machine: Path) -> bool:
    left = [*machine.glob("devices/pci*/stream*"), *machine.glob("class/tsm/*/stream*")]
    free = [int(file.read_text()) for file in machine.glob("devices/pci*/available_secure_streams")]
    iomem = (machine / "kernel/tsmfs/iomem").read_text()
    return not left and sorted(free) == [4, 8] and "Encrypted" not in iomem


def recover(machine: Path) -> None:
    """What an administrator does on the day after."""
    control(machine, "fault/doe_transfer/probability", "0")
    for module in ("soft_devsec_tsm", "soft_link_tsm"):
        with contextlib.suppress(OSError):
            control(machine, "rmmod", module)
    for module in ("soft_link_tsm", "soft_devsec_tsm"):
        control(machine, "modprobe", module)
    for name in DSMS:
        with contextlib.suppress(OSError):
            control(machine, "plug", name)
    write(machine / "bus/pci/rescan", "1")
    assert nothing_held(machine)


@pytest.mark.parametrize(("file", "tsm", "step"), [
    ("connect", LINK, 1), ("connect", LINK, 9), ("connect", LINK, 18), ("lock", DEVSEC, 10),
])  # fmt: skip
def test_a_client_that_is_killed_in_the_middle_leaves_nothing(
    whole: Path, file: str, tsm: str, step: int
) -> None:
    before = delays(whole)
    delay(whole, step, 60_000)
    place = function(whole, NIC) / "tsm" / file
    with subprocess.Popen(["sh", "-c", f"echo {tsm} > {place}"]) as client:
        wait_for(lambda: delays(whole) > before)
        client.kill()
        assert client.wait(STUCK) == -signal.SIGKILL
    wait_for(lambda: nothing_held(whole))
    assert attempt(whole, NIC, file, tsm) is None


def test_user_space_that_takes_the_mailbox_over_has_the_tsm_begin_anew(whole: Path) -> None:
    assert attempt(whole, NIC, "connect", LINK) is None
    asked = tsmfs("spdm", "request", "--device", NIC, "--sysfs", whole)
    assert asked.returncode == 0, asked.stderr
    assert tsmfs("evidence", "verify", NIC, "--sysfs", whole).returncode == 1
    assert attempt(whole, NIC, "disconnect", LINK) is None


class Storm:
    """One user among many, who does all that one can do, whatever comes of it."""

    def __init__(self, machine: Path, seed: int) -> None:
        self._machine = machine
        self._random = random.Random(seed)

    def run(self, seconds: float) -> float:
        """The longest time that a call took."""
        end, longest = time.monotonic() + seconds, 0.0
        while (start := time.monotonic()) < end:
            with contextlib.suppress(OSError):
                self._act(self._random.choice((*DSMS, "0000:04:00.2")))
            longest = max(longest, time.monotonic() - start)
        return longest

    def _act(self, name: str) -> None:
        place = function(self._machine, name)
        tsm = place / "tsm"
        match self._random.randrange(16):
            case 0 | 1 | 2:
                write(tsm / "connect", LINK)
            case 3:
                write(tsm / "disconnect", LINK)
            case 4 | 5:
                write(tsm / "lock", DEVSEC)
            case 6 | 7:
                write(tsm / "accept", "1")
            case 8:
                write(tsm / "unlock", DEVSEC)
            case 9:
                write(self._machine / BIND, name)
            case 10:
                write(place / "reset", "1")
            case 11:
                size = self._random.choice((1, 31, 32, 32, 32, 33, 256))
                refresh(self._machine, name, bytes(size))
            case 12:
                with Mailbox(place) as mailbox:
                    mailbox.plain(self._random.choice((GET_VERSION, bytes(40))))
            case 13:
                write(place / "remove", "1")
                write(self._machine / "bus/pci/rescan", "1")
            case 14:
                control(self._machine, "unplug", name)
                control(self._machine, "plug", name)
            case 15:
                module = self._random.choice(("soft_link_tsm", "soft_devsec_tsm"))
                control(self._machine, "rmmod", module)
                for name in ("soft_link_tsm", "soft_devsec_tsm"):
                    control(self._machine, "modprobe", name)


def test_many_who_are_in_the_way_of_each_other_get_stuck_nowhere(whole: Path) -> None:
    storms = [Storm(whole, seed) for seed in range(6)]
    with ThreadPoolExecutor(len(storms)) as pool:
        futures = [pool.submit(storm.run, 3) for storm in storms]
        assert max(future.result(60) for future in futures) < STUCK


def test_a_daemon_that_is_killed_while_it_connects_leaves_nothing(tmp_path: Path) -> None:
    with contextlib.ExitStack() as undo:
        machine = undo.enter_context(mounting(tmp_path / "sys", "--machine", "server"))
        socket = Path((machine / "kernel/tsmfs/netlink_socket").read_text().strip())
        daemon = int((machine / "kernel/tsmfs/pid").read_text())
        delay(machine, 9, 60_000)
        place = function(machine, NIC) / "tsm/connect"
        client = undo.enter_context(subprocess.Popen(["sh", "-c", f"echo {LINK} > {place}"],
                                                     stderr=subprocess.DEVNULL))  # fmt: skip
        wait_for(lambda: delays(machine) == 1)
        os.kill(daemon, signal.SIGKILL)
        assert client.wait(STUCK) != 0
    assert not socket.exists()
    assert str(machine) not in Path("/proc/mounts").read_text()


def readable(machine: Path) -> Iterator[tuple[Path, bytes]]:
    for directory, _, files in os.walk(machine):
        for file in (Path(directory, name) for name in files):
            # What waits for uevents has no end.
            if file.name == "uevents" or file.is_symlink() or not file.stat().st_mode & 0o444:
                continue
            with contextlib.suppress(OSError):
                yield file, file.read_bytes()


def test_private_keys_can_be_read_nowhere(whole: Path) -> None:
    sh = boot("server", [])
    secrets = []
    for name in DSMS:
        device = sh.dev(name).hw.cma
        assert device is not None
        key = device.identity.slots[0].key
        if isinstance(key, ec.EllipticCurvePrivateKey):
            number = key.private_numbers().private_value
            secrets.append(number.to_bytes(-(-number.bit_length() // 8), "big"))
        public = device.identity.slots[0].chain
        assert attempt(whole, name, "connect", LINK) is None
        # It is the same machine: what it does not show is not something else.
        if name == NIC:
            control(whole, "netlink_record", "1")
            out = whole.parent / "secrets"
            assert tsmfs("evidence", "read", NIC, "--out", out, "--sysfs", whole).returncode == 0
            assert (out / "cert0.bin").read_bytes() == public
            write(whole / BIND, NIC)
    control(whole, "netlink_record", "0")
    assert len(secrets) >= 3
    seen = dict(readable(whole))
    assert any(file.name == "netlink_messages" and data for file, data in seen.items())
    for file, data in seen.items():
        assert b"PRIVATE KEY" not in data, file
        for secret in secrets:
            assert secret not in data, file
            assert secret[::-1] not in data, file
            assert secret.hex().encode() not in data.lower(), file
