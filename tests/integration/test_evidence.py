# SPDX-License-Identifier: MIT
"""Evidence of mounted machines: by the command, by the client, and by plain sockets."""

from __future__ import annotations

import errno
import hashlib
import json
import os
import re
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from netlink.client import DeviceEvidenceClient, EvidenceClient, ExtAckError, PciTsmClient
from netlink.connection import Connection, Endpoint, UnixEndpoint, connect, usersock
from tests.netlink import wire
from tests.netlink.unprivileged import as_nobody

from .conftest import ROOT, Mount, tsmfs, write

FUNCTION = "10000:01:00.0"
SECOND = "10000:01:00.1"
OTHER = "10001:03:00.0"
CERTS = bytes(range(256)) * 20
TRANSCRIPT = os.urandom(4 << 20)
"""More than the buffers of a socket hold, so that a dump of it waits for its reader."""

LINK = f"bus/pci/devices/{FUNCTION}/tsm"


def write_blob(file: Path, content: bytes) -> None:
    descriptor = os.open(file, os.O_WRONLY)
    try:
        os.write(descriptor, b"x")
        offset = 0
        while offset < len(content):
            offset += os.pwrite(descriptor, content[offset : offset + 65536], offset)
    finally:
        os.close(descriptor)


@pytest.fixture
def machine(mount: Mount) -> Path:
    """A machine of the test's own with both blobs written, and nothing connected."""
    sysfs = mount()
    write_blob(sysfs / "bus/faux/devices/devsec_link_tsm/certs", CERTS)
    write_blob(sysfs / "bus/faux/devices/devsec_link_tsm/transcript", TRANSCRIPT)
    return sysfs


@pytest.fixture(scope="module")
def blobs(devsec: Path) -> Path:
    """The machine that the tests share, with the blobs written."""
    write_blob(devsec / "bus/faux/devices/devsec_tsm/certs", CERTS)
    write_blob(devsec / "bus/faux/devices/devsec_tsm/transcript", TRANSCRIPT)
    return devsec


@pytest.fixture
def connected(blobs: Path) -> Iterator[Path]:
    """The shared machine with one device connected."""
    write(blobs / LINK / "connect", "tsm0")
    yield blobs
    write(blobs / LINK / "disconnect", "tsm0")


def control(sysfs: Path, name: str) -> str:
    return (sysfs / "kernel/tsmfs" / name).read_text().removesuffix("\n")


def endpoints(sysfs: Path) -> list[Endpoint]:
    socket_path = Path(control(sysfs, "netlink_socket"))
    return [UnixEndpoint(socket_path), usersock(int(control(sysfs, "netlink_port")))]


def evidence(sysfs: Path, *args: str | Path) -> subprocess.CompletedProcess[str]:
    return tsmfs("evidence", *args, "--sysfs", sysfs)


EXPECTED = {
    **{f"cert{slot}": b"" for slot in range(8)},
    **{"vca": b"", "report": b"", "cert0": CERTS, "measurements": TRANSCRIPT},
}


# --- Clients ---------------------------------------------------------------------------------


@pytest.mark.parametrize("family", [PciTsmClient, DeviceEvidenceClient])
def test_connected_function_has_the_blobs(connected: Path, family: type[EvidenceClient]) -> None:
    for endpoint in endpoints(connected):
        with family(connect(endpoint)) as client:
            assert client.read(FUNCTION) == EXPECTED
            assert client.generation == (1 if family is DeviceEvidenceClient else None)


def test_client_of_plain_sockets_reads_the_same(connected: Path) -> None:
    port = int(control(connected, "netlink_port"))
    for connection in (
        wire.UnixConnection(Path(control(connected, "netlink_socket"))),
        wire.NetlinkConnection(socket.NETLINK_USERSOCK, port),
    ):
        family = wire.family_id(connection, "pci-tsm")
        connection.send(wire.reader(65536))
        connection.send(wire.evidence_request(family, 2047, FUNCTION.encode() + b"\0", seq=3))
        found = wire.read_evidence(connection, 3, 65536)
        assert found.done is not None
        assert found.done.error == 0
        assert found.objects == {
            kind: EXPECTED[name]
            for kind, name in enumerate(
                [*(f"cert{slot}" for slot in range(8)), "vca", "measurements", "report"]
            )
        }
        connection.close()


def test_script_of_plain_sockets_reads_the_same(connected: Path, tmp_path: Path) -> None:
    for place in ("netlink_socket", "netlink_port"):
        directory = tmp_path / place
        directory.mkdir()
        script = ROOT / "tests/devsec/read_evidence.py"
        subprocess.run(
            [sys.executable, script, control(connected, place), FUNCTION, directory], check=True
        )
        assert {file.stem: file.read_bytes() for file in directory.iterdir()} == EXPECTED


def test_script_says_what_is_wrong(blobs: Path, tmp_path: Path) -> None:
    ended = subprocess.run(
        [
            sys.executable,
            ROOT / "tests/devsec/read_evidence.py",
            control(blobs, "netlink_port"),
            FUNCTION,
            tmp_path,
        ],
        capture_output=True,
        text=True,
        check=False,
    )
    assert (ended.returncode, ended.stderr) == (1, f"{FUNCTION}: no TSM context\n")


def test_digests_are_sha_384(connected: Path) -> None:
    with PciTsmClient(connect(endpoints(connected)[0])) as client:
        digests = client.read(FUNCTION, digest=True)
    assert {name: digest for name, digest in digests.items() if digest} == {
        "cert0": hashlib.sha384(CERTS).digest(),
        "measurements": hashlib.sha384(TRANSCRIPT).digest(),
    }


REFUSALS = [
    (FUNCTION, {}, 0, None),
    (SECOND, {}, errno.ENXIO, "no evidence available"),
    (OTHER, {}, errno.ENXIO, "no TSM context"),
    ("0000:99:00.0", {}, errno.ENODEV, "device '0000:99:00.0' not found"),
    (FUNCTION, {"nonce": b"12345678"}, errno.EOPNOTSUPP, "evidence refresh failed: -95"),
]


@pytest.mark.parametrize(("device", "options", "number", "msg"), REFUSALS)
def test_what_cannot_be_read_is_refused_in_words(
    connected: Path, device: str, options: dict[str, bytes], number: int, msg: str | None
) -> None:
    for endpoint in endpoints(connected):
        with PciTsmClient(connect(endpoint)) as client:
            if number == 0:
                assert set(client.read(device)) == set(EXPECTED)
                continue
            with pytest.raises(ExtAckError) as refused:
                client.read(device, nonce=options.get("nonce", b""))
        assert (refused.value.errno, refused.value.msg) == (number, msg)


def test_other_users_are_not_permitted(connected: Path) -> None:
    if os.getuid() != 0:
        pytest.fail("takes another user than that of the machine: run the tests as root")
    for endpoint in endpoints(connected):

        def ask(endpoint: Endpoint = endpoint) -> int:
            with PciTsmClient(connect(endpoint)) as client:
                assert client.family("pci-tsm").version == 1
                try:
                    client.read(FUNCTION)
                except ExtAckError as refused:
                    return refused.errno or 0
            return 0

        assert as_nobody(ask) == errno.EPERM


def test_validation_is_of_the_current_generation(connected: Path) -> None:
    with DeviceEvidenceClient(connect(endpoints(connected)[0])) as client:
        client.validate(FUNCTION, 1)
        with pytest.raises(ExtAckError) as refused:
            client.validate(FUNCTION, 2)
        assert refused.value.errno == errno.EAGAIN
        with pytest.raises(ExtAckError):
            client.validate(OTHER, 1)


def test_locked_function_has_evidence_without_another_as_dsm(machine: Path) -> None:
    write(machine / f"bus/pci/devices/{SECOND}/tsm/lock", "tsm1")
    for endpoint in endpoints(machine):
        with PciTsmClient(connect(endpoint)) as client:
            assert client.read(SECOND) == EXPECTED
            with pytest.raises(ExtAckError, match="no TSM context"):
                client.read(FUNCTION)


# --- In mid-dump -----------------------------------------------------------------------------


def disconnect(sysfs: Path) -> None:
    write(sysfs / LINK / "disconnect", "tsm0")


def unlock(sysfs: Path) -> None:
    write(sysfs / LINK / "unlock", "tsm1")


def unplug(sysfs: Path) -> None:
    write(sysfs / "kernel/tsmfs/unplug", FUNCTION)


def remove(sysfs: Path) -> None:
    write(sysfs / f"bus/pci/devices/{FUNCTION}/remove", "1")


def unload(*names: str) -> Callable[[Path], None]:
    def act(sysfs: Path) -> None:
        for name in names:
            write(sysfs / "kernel/tsmfs/rmmod", name)

    return act


CONNECT = ("connect", "tsm0")
LOCK = ("lock", "tsm1")


@pytest.mark.parametrize(
    ("state", "act"),
    [
        (CONNECT, disconnect),
        (CONNECT, unplug),
        (CONNECT, remove),
        (CONNECT, unload("devsec_link_tsm")),
        (CONNECT, unload("devsec_bus")),
        (LOCK, unlock),
        (LOCK, unplug),
        (LOCK, unload("devsec_tsm")),
    ],
    ids=[
        "disconnect",
        "unplug",
        "remove",
        "unload the link TSM",
        "unload the bus",
        "unlock",
        "unplug while locked",
        "unload the devsec TSM",
    ],
)
def test_dump_ends_when_the_context_goes(
    machine: Path, state: tuple[str, str], act: Callable[[Path], None]
) -> None:
    write(machine / LINK / state[0], state[1])
    for family in (PciTsmClient, DeviceEvidenceClient):
        running = [family(connect(endpoint)) for endpoint in endpoints(machine)]
        dumps = [client.pieces(FUNCTION, ["measurements"]) for client in running]
        for pieces in dumps:
            assert TRANSCRIPT.startswith(next(pieces).data)
        if family is DeviceEvidenceClient:
            act(machine)
            for pieces in dumps:
                with pytest.raises(ExtAckError) as ended:
                    list(pieces)
                assert (ended.value.errno, ended.value.msg) == (errno.ENXIO, "no TSM context")
        for client in running:
            client.close()


def test_dump_does_not_go_on_with_the_evidence_of_another_context(machine: Path) -> None:
    write(machine / LINK / "connect", "tsm0")
    with PciTsmClient(connect(endpoints(machine)[0])) as client:
        pieces = client.pieces(FUNCTION, ["measurements"])
        next(pieces)
        disconnect(machine)
        write_blob(machine / "bus/faux/devices/devsec_tsm/transcript", bytes(len(TRANSCRIPT)))
        write(machine / LINK / "connect", "tsm0")
        with pytest.raises(ExtAckError) as ended:
            list(pieces)
    assert (ended.value.errno, ended.value.msg) == (errno.EAGAIN, "evidence updated during read")


def test_machine_that_is_unmounted_ends_its_clients(mount: Mount, tmp_path: Path) -> None:
    directory = tmp_path / "short"
    directory.mkdir()
    assert tsmfs("mount", directory).returncode == 0
    clients: list[Connection] = [connect(endpoint) for endpoint in endpoints(directory)]
    path = Path(control(directory, "netlink_socket"))
    assert tsmfs("umount", directory).returncode == 0
    for client in clients:
        with pytest.raises(ConnectionError):
            client.recv()
        client.close()
    assert not path.exists()


# --- Commands --------------------------------------------------------------------------------


def test_command_writes_files_and_prints_sizes(connected: Path, tmp_path: Path) -> None:
    run = evidence(connected, "read", FUNCTION, "--out", tmp_path / "new/out")
    assert (run.returncode, run.stderr) == (0, "")
    head, *lines = run.stdout.splitlines()
    assert head == f"{FUNCTION}  pci-tsm"
    assert [line.split(maxsplit=1) for line in lines][-3:] == [
        ["vca", "-"],
        ["measurements", f"{4 << 20} bytes"],
        ["report", "-"],
    ]
    files = {file.name: file.read_bytes() for file in (tmp_path / "new/out").iterdir()}
    assert files == {f"{name}.bin": content for name, content in EXPECTED.items()}


def test_command_knows_both_families_and_prints_json(connected: Path) -> None:
    options = ("--family", "device-evidence", "--type", "cert0", "--type", "vca", "--json")
    run = evidence(connected, "read", FUNCTION, *options)
    assert json.loads(run.stdout) == {
        "device": FUNCTION,
        "family": "device-evidence",
        "generation": 1,
        "nonce": None,
        "digest": False,
        "objects": {"cert0": CERTS.hex(), "vca": ""},
    }


@pytest.mark.parametrize(
    ("arguments", "error"),
    [
        (("read", OTHER), f"{OTHER}: No such device or address: no TSM context"),
        (
            ("read", SECOND, "--digest"),
            f"{SECOND}: No such device or address: no evidence available",
        ),
        (("read", "nosuch"), "nosuch: No such device: device 'nosuch' not found"),
        (
            ("read", FUNCTION, "--nonce", "random"),
            f"{FUNCTION}: Operation not supported: evidence refresh failed: -95",
        ),
        (
            ("validate", FUNCTION, "--generation", "2"),
            f"{FUNCTION}: Resource temporarily unavailable: not the current generation "
            "(attribute generation)",
        ),
    ],
    ids=lambda value: value[0] if isinstance(value, tuple) else "",
)
def test_command_tells_a_refusal_in_one_line(
    connected: Path, arguments: tuple[str, ...], error: str
) -> None:
    run = evidence(connected, *arguments)
    assert (run.returncode, run.stdout, run.stderr) == (1, "", f"tsmfs: {error}\n")


def test_command_validates_the_current_generation(connected: Path) -> None:
    run = evidence(connected, "validate", FUNCTION, "--generation", "1")
    assert (run.returncode, run.stdout, run.stderr) == (0, "", "")


def test_families_are_listed(blobs: Path) -> None:
    run = tsmfs("netlink", "families", "--sysfs", blobs)
    rows = [re.split(r"\s{2,}", line, maxsplit=3) for line in run.stdout.splitlines()]
    assert rows[0] == ["ID", "NAME", "VERSION", "OPERATIONS"]
    assert [row[1:] for row in rows[1:]] == [
        ["nlctrl", "2", "getfamily (do dump), getpolicy (dump)"],
        ["pci-tsm", "1", "evidence-read (dump admin)"],
        ["device-evidence", "1", "read (dump admin), validate (do admin)"],
    ]


def test_status_says_where_netlink_is(blobs: Path) -> None:
    path, port = control(blobs, "netlink_socket"), int(control(blobs, "netlink_port"))
    assert tsmfs("status", "--sysfs", blobs).stdout.splitlines()[-1] == (
        f"netlink  {path}  port {port}"
    )
    shown = json.loads(tsmfs("status", "--sysfs", blobs, "--json").stdout)
    assert shown["netlink"] == {"socket": path, "port": port}


def wait_for(condition: Callable[[], bool]) -> None:
    deadline = time.monotonic() + 30
    while not condition():
        assert time.monotonic() < deadline
        time.sleep(0.02)


@pytest.mark.parametrize("ending", [signal.SIGINT, signal.SIGTERM])
def test_monitor_shows_messages_while_it_runs(
    connected: Path, tmp_path: Path, ending: signal.Signals
) -> None:
    output = tmp_path / "output"
    with output.open("wb") as file:
        process = subprocess.Popen(
            [sys.executable, "-m", "tsmfs", "netlink", "monitor", "--sysfs", connected],
            stdout=file,
            stderr=subprocess.STDOUT,
            cwd=ROOT,
        )
    try:
        wait_for(lambda: "from the machine\n" in output.read_text())
        assert control(connected, "netlink_record") == "1"
        for endpoint in endpoints(connected):
            with PciTsmClient(connect(endpoint)) as client:
                client.read(FUNCTION, ["cert0"])
                with pytest.raises(ExtAckError):
                    client.read(OTHER)
        wait_for(lambda: output.read_text().count("msg: no TSM context\n") >= 2)
    finally:
        process.send_signal(ending)
        status = process.wait()
    assert status == 128 + ending
    assert control(connected, "netlink_record") == "0"
    text = output.read_text()
    assert "Traceback" not in text
    shown = re.sub(r"^[\d:.]+ port \d+ ", "", text, flags=re.MULTILINE)
    begins = CERTS[:16].hex(" ")
    dump = (
        "-> pci-tsm evidence-read request dump, seq 2, 56 bytes\n"
        f"  type-mask: 1\n  flags: 0\n  dev-name: {FUNCTION}\n"
        "<- pci-tsm evidence-read multi, seq 2, 5152 bytes\n"
        f"  type: 0\n  val: 5120 bytes: {begins} ...\n"
        "<- done multi, success, seq 2, 20 bytes\n"
    )
    assert shown.count(dump) == 2
    ports = set(re.findall(r" port (\d+) ", text))
    assert len(ports) == 2


def test_monitor_ends_when_recording_is_switched_off(blobs: Path) -> None:
    process = subprocess.Popen(
        [sys.executable, "-m", "tsmfs", "netlink", "monitor", "--sysfs", blobs],
        stdout=subprocess.PIPE,
        cwd=ROOT,
    )
    with process:
        assert process.stdout is not None
        process.stdout.readline()
        write(blobs / "kernel/tsmfs/netlink_record", "0")
        assert process.wait(timeout=30) == 0


def test_progress_of_large_objects_shows_on_a_terminal(connected: Path) -> None:
    leader, follower = os.openpty()
    process = subprocess.Popen(
        [
            *(sys.executable, "-m", "tsmfs", "evidence", "read", FUNCTION),
            *("--family", "device-evidence", "--sysfs", connected),
        ],
        stdout=subprocess.DEVNULL,
        stderr=follower,
        cwd=ROOT,
    )
    os.close(follower)
    shown = b""
    with os.fdopen(leader, "rb", buffering=0) as terminal:
        try:
            while piece := terminal.read(65536):
                shown += piece
        except OSError:
            pass  # The end of a terminal is EIO.
    assert process.wait() == 0
    assert b"measurements" in shown
    assert f"{4 << 20}/{4 << 20}".encode() in shown
    assert b"cert0" not in shown
