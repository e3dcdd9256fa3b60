# SPDX-License-Identifier: MIT
"""``tsmfs spdm``: what is printed of messages, and devices and hosts on real sockets."""

from __future__ import annotations

import os
import signal
import socket
import struct
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, nullcontext, suppress
from dataclasses import dataclass
from pathlib import Path

import pytest
from cryptography import x509
from cryptography.hazmat.primitives.serialization import Encoding, NoEncryption, PrivateFormat

from tests.command_line import Result, Run
from tests.integration.conftest import mounting
from tsmfs.spdm.algorithms import BaseAsym, BaseHash
from tsmfs.spdm.doe import DataObject, ObjectType
from tsmfs.spdm.emu import CLIENT_HELLO, SERVER_HELLO, Command, Frame
from tsmfs.spdm.identity import make_identity, root_pem
from tsmfs.spdm.standalone import SUBJECT

ROOT = Path(__file__).parent.parent
DEVICE = "0000:01:00.0"
NONCE = bytes(range(32)).hex()
GET_VERSION = bytes((0x10, 0x84, 0, 0))
HEADER = struct.Struct(">III")
PATIENCE = 20.0


@dataclass(frozen=True)
class Responding:
    """A responder as a process of its own; what it prints is in a file."""

    process: subprocess.Popen[bytes]
    output: Path
    port: int

    @property
    def address(self) -> str:
        return f"127.0.0.1:{self.port}"

    def connect(self) -> socket.socket:
        return socket.create_connection(("127.0.0.1", self.port), PATIENCE)

    def wait_for(self, text: str) -> None:
        wait_for(self.output, text)

    def ended(self) -> int:
        """The exit status, once it ended by itself."""
        return self.process.wait(PATIENCE)


def wait_for(output: Path, text: str) -> None:
    deadline = time.monotonic() + PATIENCE
    while text not in output.read_text():
        assert time.monotonic() < deadline, output.read_text()
        time.sleep(0.02)


Respond = Callable[..., Responding]


@pytest.fixture
def respond(tmp_path: Path) -> Iterator[Respond]:
    """Starts responders on free ports; those that still run are ended."""
    started: list[subprocess.Popen[bytes]] = []

    def start(*options: str | Path) -> Responding:
        output = tmp_path / f"respond{len(started)}"
        command = ("spdm", "respond", "--listen", "127.0.0.1:0", *map(str, options))
        with output.open("wb") as file:
            process = subprocess.Popen(
                [sys.executable, "-m", "tsmfs", *command],
                stdout=file,
                stderr=subprocess.STDOUT,
                cwd=ROOT,
            )
        started.append(process)
        wait_for(output, "\n")
        line = output.read_text().splitlines()[-1]
        assert line.startswith("listening on 127.0.0.1:"), line
        return Responding(process, output, int(line.rpartition(":")[2]))

    yield start
    for process in started:
        process.terminate()
        process.wait(PATIENCE)


def ask(client: socket.socket, command: int, payload: bytes = b"") -> tuple[int, bytes]:
    """The command and the payload that answer a frame."""
    client.sendall(Frame(command, payload).pack())
    header = client.recv(HEADER.size, socket.MSG_WAITALL)
    answered, _, size = HEADER.unpack(header)
    return answered, client.recv(size, socket.MSG_WAITALL) if size else b""


def message(data: bytes) -> bytes:
    """The frame of an SPDM message in the clear."""
    return Frame(Command.NORMAL, DataObject(ObjectType.CMA_SPDM, data).pack()).pack()


# --- Printing -------------------------------------------------------------------------------------


def test_message_is_decoded_from_bytes_and_from_hexadecimal(run: Run, tmp_path: Path) -> None:
    (tmp_path / "binary").write_bytes(GET_VERSION)
    (tmp_path / "hex").write_text(" 10 84\n0000\n")
    expected = Result(0, "GET_VERSION (SPDM 1.0, 4 bytes)\n", "")
    assert run("spdm", "decode", tmp_path / "binary") == expected
    assert run("spdm", "decode", tmp_path / "hex") == expected


def test_standard_input_is_decoded(
    run: Run, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "input").write_bytes(GET_VERSION * 2)
    with (tmp_path / "input").open() as standard_input:
        monkeypatch.setattr(sys, "stdin", standard_input)
        assert run("spdm", "decode", "-").out == "GET_VERSION (SPDM 1.0, 4 bytes)\n" * 2


def test_chain_is_decoded_and_written_as_pem(run: Run, tmp_path: Path) -> None:
    slot = make_identity(b"seed", SUBJECT).slots[0]
    (tmp_path / "cert0.bin").write_bytes(slot.chain)
    shown = run("spdm", "decode", tmp_path / "cert0.bin")
    assert (shown.status, shown.err) == (0, "")
    assert shown.out.startswith(f"certificate chain ({len(slot.chain)} bytes, 3 certificates)\n")
    pem = run("spdm", "decode", "--pem", tmp_path / "cert0.bin").out
    assert x509.load_pem_x509_certificates(pem.encode()) == list(slot.certificates[::-1])


@pytest.mark.parametrize(
    ("content", "options", "message"),
    [
        (b"", [], "nothing to decode"),
        (b"\n \n", [], "nothing to decode"),
        (b"no message", [], "text that is not hexadecimal"),
        (root_pem(b"seed"), [], "PEM is for openssl"),
        (b"Subject: x\n" + root_pem(b"seed"), ["--pem"], "PEM is for openssl"),
        (b"10 8", [], "3 hexadecimal digits are no whole bytes"),
        (GET_VERSION, ["--pem"], "no certificate chain: "),
    ],
)
def test_what_cannot_be_decoded_is_one_line(
    run: Run, tmp_path: Path, content: bytes, options: list[str], message: str
) -> None:
    (tmp_path / "file").write_bytes(content)
    result = run("spdm", "decode", *options, tmp_path / "file")
    assert (result.status, result.out, result.err.count("\n")) == (1, "", 1)
    assert result.err.startswith(f"tsmfs: {tmp_path / 'file'}: ")
    assert message in result.err


def test_messages_in_front_of_a_cut_off_one_are_printed_with_status_1(
    run: Run, tmp_path: Path
) -> None:
    (tmp_path / "file").write_bytes(GET_VERSION * 2 + GET_VERSION[:3])
    result = run("spdm", "decode", tmp_path / "file")
    assert result.status == 1
    assert result.out.splitlines()[1:] == [
        "GET_VERSION (SPDM 1.0, 4 bytes)",
        "at 0x8:",
        "  rest: 108400",
    ]
    assert result.err == f"tsmfs: {tmp_path / 'file'}: at 0x8: 3 bytes are no SPDM message\n"


# --- Both sides -----------------------------------------------------------------------------------


def test_walk_is_told_step_by_step_and_its_evidence_verifies(
    run: Run, respond: Respond, tmp_path: Path
) -> None:
    root, saved = tmp_path / "root.pem", tmp_path / "evidence"
    responder = respond("--save-root", root)
    options = ("--root", root, "--nonce", NONCE, "--save", saved, "--shutdown")
    result = run("spdm", "request", "--connect", responder.address, *options)
    assert (result.status, result.err) == (0, "")
    assert responder.ended() == 0
    steps = result.steps
    assert (steps["discovery"], steps["version"]) == ("0001:00 0001:01 0001:02", "1.3")
    assert steps["algorithms"] == "SHA_384 ECDSA_P384 SHA_384 SECP_384_R1 AES_256_GCM"
    assert steps["measurements"] == f"4, signed over nonce {NONCE}"
    states = [steps[f"TDISP {name}"] for name in ("state", "lock", "start", "stop")]
    assert states == ["CONFIG_UNLOCKED", "CONFIG_LOCKED", "RUN", "CONFIG_UNLOCKED"]
    assert steps["IDE_KM keys"] == "6 of stream 0 programmed and started"
    assert list(steps)[-1] == "end of session"
    assert len(list(saved.iterdir())) == 11
    verified = run("evidence", "verify", "--from", saved, "--root", root, "--nonce", NONCE)
    assert (verified.status, verified.out.splitlines()[-1]) == (0, "13 checks, all hold")
    (tmp_path / "transcript").write_bytes(
        (saved / "vca.bin").read_bytes() + (saved / "measurements.bin").read_bytes()
    )
    decoded = run("spdm", "decode", tmp_path / "transcript").out
    assert "MEASUREMENTS (SPDM 1.3" in decoded
    assert "rest" not in decoded


def test_choice_of_either_side_is_what_is_negotiated(run: Run, respond: Respond) -> None:
    theirs = ("--asym", "ecdsa_p256", "--hash", "sha_256", "--dhe", "SECP_256_R1")
    responder = respond(*theirs)
    ours = ("--ver", "1.2", "--aead", "CHACHA20_POLY1305")
    result = run("spdm", "request", "--connect", responder.address, *ours)
    assert (result.status, result.steps["version"]) == (0, "1.2")
    expected = "SHA_256 ECDSA_P256 SHA_256 SECP_256_R1 CHACHA20_POLY1305"
    assert result.steps["algorithms"] == expected
    refused = run("spdm", "request", "--connect", responder.address, "--asym", "ECDSA_P384")
    assert refused.status == 1
    message = "tsmfs: connection: NEGOTIATE_ALGORITHMS was answered with INVALID_REQUEST\n"
    assert refused.err == message


def test_seed_makes_the_device(respond: Respond, tmp_path: Path) -> None:
    for name, seed in (("a", "one"), ("b", "one"), ("c", "two")):
        respond("--seed", seed, "--save-root", tmp_path / name)
    first, same, other = ((tmp_path / name).read_bytes() for name in "abc")
    assert first == same == root_pem(b"one")
    assert other != first


def test_chain_under_another_root_is_refused(run: Run, respond: Respond, tmp_path: Path) -> None:
    (tmp_path / "other.pem").write_bytes(root_pem(b"another"))
    options = ("--root", tmp_path / "other.pem", "--save", tmp_path / "evidence")
    result = run("spdm", "request", "--connect", respond().address, *options)
    assert (result.status, result.err.count("\n")) == (1, 1)
    assert result.err.startswith("tsmfs: certificate 0: root hash ")
    assert list(result.steps)[-1] == "digests"
    assert not (tmp_path / "evidence").exists()


def test_slot_without_a_chain_is_one_line(run: Run, respond: Respond) -> None:
    result = run("spdm", "request", "--connect", respond().address, "--slot", "3")
    assert result.status == 1
    message = "tsmfs: certificate 3: GET_CERTIFICATE was answered with INVALID_REQUEST\n"
    assert result.err == message


def test_interface_that_a_device_lacks_is_passed_over(run: Run, respond: Respond) -> None:
    options = ("--interface", "0000:02:00.1", "--stream", "7")
    result = run("spdm", "request", "--connect", respond().address, *options)
    assert (result.status, result.steps["TDISP version"]) == (0, "no interface 0x201")
    assert result.steps["IDE_KM keys"] == "6 of stream 7 programmed and started"


# --- The device's side ----------------------------------------------------------------------------


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_signal_ends_a_responder_cleanly_also_with_a_client(
    respond: Respond, number: signal.Signals
) -> None:
    responder = respond()
    with responder.connect() as client:
        assert ask(client, Command.TEST, CLIENT_HELLO) == (Command.TEST, SERVER_HELLO)
        responder.process.send_signal(number)
        assert responder.ended() == 0
        assert client.recv(1) == b""
    assert responder.output.read_text().count("\n") == 1


def test_one_connection_is_served_once(respond: Respond) -> None:
    responder = respond("--once")
    with responder.connect() as client:
        assert ask(client, Command.CONTINUE) == (Command.CONTINUE, b"")
    assert responder.ended() == 0


def test_client_that_breaks_the_framing_ends_its_own_connection_only(
    run: Run, respond: Respond
) -> None:
    responder = respond()
    with responder.connect() as client:
        client.sendall(HEADER.pack(Command.NORMAL, 2, 1 << 31))
        assert client.recv(1) == b""
    responder.wait_for("tsmfs: a connection ended: a payload of 2147483648 bytes is too large\n")
    with responder.connect() as client:
        client.sendall(HEADER.pack(Command.NORMAL, 2, 100) + b"too little")
    responder.wait_for("tsmfs: a connection ended: the peer left 90 bytes before a frame's end\n")
    with responder.connect() as idle:
        assert run("spdm", "request", "--connect", responder.address).status == 0
        assert ask(idle, 0x1234) == (Command.UNKNOWN, b"")


def test_device_has_the_identity_in_files(run: Run, respond: Respond, tmp_path: Path) -> None:
    slot = make_identity(b"files", SUBJECT, BaseAsym.ECDSA_P256, BaseHash.SHA_256).slots[0]
    chain, key = tmp_path / "chain.pem", tmp_path / "key.pem"
    chain.write_bytes(b"".join(one.public_bytes(Encoding.PEM) for one in slot.certificates))
    key.write_bytes(slot.key.private_bytes(Encoding.PEM, PrivateFormat.PKCS8, NoEncryption()))
    key.chmod(0o644)
    responder = respond("--chain", chain, "--key", key, "--hash", "SHA_256")
    warning = f"tsmfs: {key}: mode 0644, others than its owner may use the key\n"
    assert warning in responder.output.read_text()
    (tmp_path / "root.pem").write_bytes(root_pem(b"files", BaseAsym.ECDSA_P256, BaseHash.SHA_256))
    options = ("--root", tmp_path / "root.pem")
    result = run("spdm", "request", "--connect", responder.address, *options)
    assert (result.status, result.steps["algorithms"].split()[:2]) == (0, ["SHA_256", "ECDSA_P256"])


def test_port_in_use_is_one_line(run: Run) -> None:
    with socket.create_server(("127.0.0.1", 0)) as taken:
        address = f"127.0.0.1:{taken.getsockname()[1]}"
        result = run("spdm", "respond", "--listen", address)
    assert (result.status, result.out, result.err.count("\n")) == (1, "", 1)
    assert result.err == f"tsmfs: {address}: Address already in use\n"


def test_host_without_an_address_is_one_line(run: Run) -> None:
    result = run("spdm", "respond", "--listen", "no host:2323")
    assert (result.status, result.out, result.err.count("\n")) == (1, "", 1)
    assert result.err.startswith("tsmfs: no host:2323: ")
    assert "(" not in result.err


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["respond"], "Missing option '--listen'"),
        (["respond", "--listen", "here"], "'here' is not HOST:PORT"),
        (["respond", "--listen", ":2323"], "':2323' is not HOST:PORT"),
        (["respond", "--listen", "a:65536"], "'a:65536' is not HOST:PORT"),
        (
            ["respond", "--listen", "a:1", "--asym", "RSA"],
            "'RSA' is not one of ECDSA_P256, ECDSA_P384, RSA",
        ),
        (["respond", "--listen", "a:1", "--device", "x", "--seed", "y"], "are its own"),
        (["respond", "--listen", "a:1", "--chain", __file__], "--chain and --key go together"),
        (
            ["respond", "--listen", "a:1", "--chain", __file__, "--key", __file__, "--seed", "x"],
            "--seed and --asym are not",
        ),
        (["request"], "either --connect or --device is needed"),
        (["request", "--connect", "a:1", "--device", "x"], "either --connect or --device"),
        (["request", "--connect", "a:1", "--nonce", "00ff"], "a nonce of SPDM has 32 bytes, not 2"),
        (["request", "--connect", "a:1", "--interface", "x"], "neither DDDD:BB:DD.F nor a FUNC"),
        (["request", "--device", "x", "--shutdown"], "--shutdown is of use with --connect only"),
        (["request", "--connect", "a:1", "--ver", "1.1"], "'1.1' is not one of"),
    ],
)
def test_wrong_command_line_is_one_line_and_status_2(
    run: Run, arguments: list[str], message: str
) -> None:
    result = run("spdm", *arguments)
    assert (result.status, result.out, result.err.count("\n")) == (2, "", 1)
    assert message in result.err


# --- The host's side ------------------------------------------------------------------------------


@contextmanager
def answering(*answers: bytes) -> Iterator[str]:
    """A server that answers each frame of one client with the next of some bytes, then leaves."""
    with socket.create_server(("127.0.0.1", 0)) as listener:

        def serve() -> None:
            client, _ = listener.accept()
            with client:
                for answer in answers:
                    header = client.recv(HEADER.size, socket.MSG_WAITALL)
                    client.recv(HEADER.unpack(header)[2], socket.MSG_WAITALL)
                    client.sendall(answer)
                # The client may be gone already.
                with suppress(OSError):
                    client.shutdown(socket.SHUT_WR)
                    client.recv(1 << 16)

        thread = threading.Thread(target=serve)
        thread.start()
        yield f"127.0.0.1:{listener.getsockname()[1]}"
        thread.join(PATIENCE)
        assert not thread.is_alive()


HELLO = Frame(Command.TEST, SERVER_HELLO).pack()


@pytest.mark.parametrize(
    ("answers", "message"),
    [
        ([], "the server closed the connection"),
        ([HELLO], "the server closed the connection"),
        ([b"HTTP/1.1 400 Bad Request\r\n\r\n"], "transport type 0x2f312e31 is not PCI DOE"),
        ([HELLO[:-3]], "the peer left 3 bytes before a frame's end"),
        ([HELLO, Frame(Command.UNKNOWN).pack()], "the server answers 0xffff to 0x1"),
        (
            [HELLO, Frame(Command.NORMAL, struct.pack("<HBxIHBB", 1, 0, 3, 1, 0, 0)).pack()],
            "discovery: the responder has no SPDM data objects",
        ),
    ],
)
def test_server_that_is_no_responder_is_one_line(
    run: Run, answers: list[bytes], message: str
) -> None:
    with answering(*answers) as address:
        result = run("spdm", "request", "--connect", address)
    assert (result.status, result.err.count("\n")) == (1, 1)
    assert result.err.endswith(f"{message}\n")


def test_responder_that_vanishes_is_told_with_the_step(run: Run) -> None:
    def entry(vendor: int, kind: int, following: int) -> bytes:
        response = struct.pack("<HBxIHBB", 1, 0, 3, vendor, kind, following)
        return Frame(Command.NORMAL, response).pack()

    with answering(HELLO, entry(1, 0, 1), entry(1, 1, 2), entry(1, 2, 0)) as address:
        result = run("spdm", "request", "--connect", address)
    assert result.status == 1
    assert result.err == "tsmfs: connection: the server closed the connection\n"


def test_directory_that_takes_no_files_is_told_before_the_walk(
    run: Run, respond: Respond, tmp_path: Path
) -> None:
    (tmp_path / "file").touch()
    directory = tmp_path / "file" / "evidence"
    result = run("spdm", "request", "--connect", respond().address, "--save", directory)
    assert result == Result(1, "", f"tsmfs: {directory}: Not a directory\n")


def test_nobody_who_listens_is_one_line(run: Run) -> None:
    with socket.create_server(("127.0.0.1", 0)) as gone:
        address = f"127.0.0.1:{gone.getsockname()[1]}"
    result = run("spdm", "request", "--connect", address)
    assert result == Result(1, "", f"tsmfs: {address}: Connection refused\n")


def test_root_file_without_certificates_is_one_line(run: Run, tmp_path: Path) -> None:
    (tmp_path / "root.pem").write_text("none")
    options = ("--connect", "127.0.0.1:1", "--root", tmp_path / "root.pem")
    message = f"tsmfs: {tmp_path / 'root.pem'}: no certificate in PEM\n"
    assert run("spdm", "request", *options) == Result(1, "", message)


# --- A device of a machine ------------------------------------------------------------------------


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    """A machine whose devices have keys."""
    place = tmp_path_factory.mktemp("spdm") / "sys"
    with mounting(place, "--machine", "server") as sysfs:
        yield sysfs


def test_device_is_asked_through_its_mailbox(run: Run, server: Path, tmp_path: Path) -> None:
    options = ("--root", server / "kernel/tsmfs/spdm_root", "--save", tmp_path / "evidence")
    result = run("spdm", "request", "--sysfs", server, "--device", DEVICE, *options)
    assert (result.status, result.err) == (0, "")
    assert result.steps["TDISP start"] == "RUN"
    saved = ("--from", tmp_path / "evidence", "--sysfs", server)
    assert run("evidence", "verify", *saved, DEVICE).status == 0


def test_device_answers_on_a_socket_and_its_tsm_loses_the_session(
    run: Run, respond: Respond, server: Path
) -> None:
    connect = server / f"bus/pci/devices/{DEVICE}/tsm/connect"
    connect.write_text("tsm0\n")
    try:
        responder = respond("--sysfs", server, "--device", DEVICE, "--once")
        options = ("--interface", DEVICE, "--root", server / "kernel/tsmfs/spdm_root")
        result = run("spdm", "request", "--connect", responder.address, *options)
        assert (result.status, result.steps["TDISP start"]) == (0, "RUN")
        assert responder.ended() == 0
        refused = run("evidence", "verify", "--sysfs", server, DEVICE)
        assert (refused.status, refused.err.count("\n")) == (1, 1)
        assert "evidence refresh failed" in refused.err
    finally:
        (connect.parent / "disconnect").write_text("tsm0\n")


@pytest.mark.parametrize("connected", [False, True])
def test_responder_ends_with_its_machine(respond: Respond, tmp_path: Path, connected: bool) -> None:
    with mounting(tmp_path / "sys", "--machine", "server") as sysfs:
        responder = respond("--sysfs", sysfs, "--device", DEVICE)
        before = responder.output.read_text()
        daemon = int((sysfs / "kernel/tsmfs/pid").read_text())
        with responder.connect() if connected else nullcontext() as client:
            if client is not None:
                assert ask(client, Command.TEST, CLIENT_HELLO)[0] == Command.TEST
            os.kill(daemon, signal.SIGKILL)
            with client or responder.connect() as client:
                client.sendall(message(GET_VERSION))
                assert client.recv(1) == b""
        assert responder.ended() == 1
        told = responder.output.read_text().removeprefix(before)
        assert told == f"tsmfs: {DEVICE}: the machine is no more\n"


@pytest.mark.parametrize(
    ("device", "message"),
    [
        ("0000:99:00.0", "tsmfs: 0000:99:00.0: No such device"),
        ("0000:06:00.0", "0000:06:00.0: no DOE mailbox for SPDM"),
    ],
)
def test_function_without_a_mailbox_is_one_line(
    run: Run, server: Path, device: str, message: str
) -> None:
    for command in (["request"], ["respond", "--listen", "127.0.0.1:0"]):
        result = run("spdm", *command, "--sysfs", server, "--device", device)
        assert (result.status, result.out, result.err.count("\n")) == (1, "", 1)
        assert result.err.endswith(f"{message}\n")


def test_private_key_is_in_nothing_that_is_printed(run: Run, respond: Respond) -> None:
    key = make_identity(b"secret", SUBJECT).slots[0].key
    number = key.private_numbers()
    responder = respond("--seed", "secret")
    result = run("spdm", "request", "--connect", responder.address)
    private = f"{getattr(number, 'private_value', 0):x}"
    assert private not in result.out + responder.output.read_text()
    assert os.fsencode(private) not in responder.output.read_bytes()
