# SPDX-License-Identifier: MIT
"""``tsmfs evidence verify``: evidence of a mounted machine and saved evidence, good and bad."""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.command_line import Result, Run
from tests.integration.conftest import mounting
from tsmfs.verify import CheckName

DEVICE = "0000:01:00.0"
FUNCTION = f"bus/pci/devices/{DEVICE}"
NONCE = bytes(range(32)).hex()
GUIDE = Path(__file__).parent.parent / "Documentation/spdm.md"


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    """The machine whose devices have keys; every test leaves its devices disconnected."""
    place = tmp_path_factory.mktemp("verify") / "sys"
    with mounting(place, "--machine", "server") as sysfs:
        yield sysfs


def write(sysfs: Path, path: str, text: str) -> None:
    descriptor = os.open(sysfs / path, os.O_WRONLY)
    try:
        os.write(descriptor, f"{text}\n".encode())
    finally:
        os.close(descriptor)


@pytest.fixture
def connected(server: Path) -> Iterator[Path]:
    """The machine with its NIC connected."""
    write(server, f"{FUNCTION}/tsm/connect", "tsm0")
    yield server
    write(server, f"{FUNCTION}/tsm/disconnect", "tsm0")


@pytest.fixture
def locked(connected: Path) -> Iterator[Path]:
    """The machine with its NIC connected, and the interface of that locked."""
    write(connected, "bus/faux/devices/soft_link_tsm/tsm_bind", DEVICE)
    yield connected
    write(connected, "bus/faux/devices/soft_link_tsm/tsm_unbind", DEVICE)


@pytest.fixture
def saved(run: Run, locked: Path, tmp_path: Path) -> Path:
    """Good evidence with a report, in files, over `NONCE`, and the root that it is under."""
    out = tmp_path / "evidence"
    read = ("evidence", "read", "--sysfs", locked, DEVICE)
    assert run(*read, "--nonce", NONCE, "--out", out).status == 0
    assert run(*read, "--digest", "--out", tmp_path / "digests").status == 0
    (tmp_path / "root.pem").write_bytes((locked / "kernel/tsmfs/spdm_root").read_bytes())
    return out


# --- A device of a machine ------------------------------------------------------------------------


def test_good_evidence_is_a_table_of_checks_that_hold(run: Run, connected: Path) -> None:
    result = run("evidence", "verify", "--sysfs", connected, DEVICE)
    assert (result.status, result.err) == (0, "")
    assert list(result.checks) == [str(name) for name in CheckName]
    absent = {"reference", "report", "ranges", "resource"}
    assert {name for name, mark in result.checks.items() if mark == "-"} == absent
    title, root, *_, verdict = result.out.splitlines()
    assert re.fullmatch(rf"{DEVICE}  device-evidence  generation \d+  nonce [0-9a-f]{{64}}", title)
    assert root.startswith("root of this machine: CN=tsmfs root ")
    assert verdict == "13 checks, all hold"


def test_locked_interface_has_a_report_that_is_checked(run: Run, locked: Path) -> None:
    result = run("evidence", "verify", "--sysfs", locked, DEVICE)
    assert (result.status, result.failed) == (0, set())
    assert {result.checks[name] for name in ("report", "ranges", "resource")} == {"ok"}


def test_nonce_that_is_given_is_the_one_signed(run: Run, connected: Path) -> None:
    verify = ("evidence", "verify", "--sysfs", connected, DEVICE)
    result = run(*verify, "--nonce", NONCE)
    assert result.status == 0
    assert re.search(rf"^nonce +ok +{NONCE}$", result.out, re.MULTILINE)
    assert run(*verify, "--no-refresh", "--nonce", NONCE).status == 0
    assert run(*verify, "--no-refresh", "--nonce", "ff" * 32).failed == {"nonce"}


def test_evidence_that_is_there_has_no_nonce_to_compare(run: Run, connected: Path) -> None:
    options = ("--no-refresh", "--family", "pci-tsm")
    result = run("evidence", "verify", "--sysfs", connected, *options, DEVICE)
    assert (result.status, result.checks["nonce"]) == (0, "-")
    assert result.out.splitlines()[0] == f"{DEVICE}  pci-tsm"


def test_json_has_the_same_in_it(run: Run, connected: Path) -> None:
    options = ("--json", "--nonce", NONCE)
    result = run("evidence", "verify", "--sysfs", connected, *options, DEVICE)
    shown = json.loads(result.out)
    assert (shown["device"], shown["family"], shown["nonce"]) == (DEVICE, "device-evidence", NONCE)
    assert shown["ok"] is True
    assert [check["name"] for check in shown["checks"]] == [str(name) for name in CheckName]
    assert {check["ok"] for check in shown["checks"]} == {True, None}


def test_function_without_keys_is_known_by_those_of_its_dsm(run: Run, connected: Path) -> None:
    write(connected, f"{FUNCTION}/driver_override", "pci-pf-stub")
    write(connected, "bus/pci/drivers/pci-pf-stub/bind", DEVICE)
    write(connected, f"{FUNCTION}/sriov_numvfs", "1")
    try:
        write(connected, "bus/faux/devices/soft_link_tsm/tsm_bind", "0000:01:00.1")
        result = run("evidence", "verify", "--sysfs", connected, "0000:01:00.1")
        assert (result.status, result.checks["name"], result.checks["resource"]) == (0, "ok", "ok")
    finally:
        write(connected, f"{FUNCTION}/sriov_numvfs", "0")
        write(connected, "bus/pci/drivers/pci-pf-stub/unbind", DEVICE)


def test_foreign_root_is_a_check_that_fails_and_status_1(
    run: Run, connected: Path, tmp_path: Path
) -> None:
    from tsmfs.spdm.identity import root_pem

    (tmp_path / "other.pem").write_bytes(root_pem(b"another machine"))
    options = ("--root", tmp_path / "other.pem")
    result = run("evidence", "verify", "--sysfs", connected, *options, DEVICE)
    assert (result.status, result.failed, result.err) == (1, {"root"}, "")
    assert result.out.endswith("1 of 13 checks failed: root\n")


@pytest.mark.parametrize(
    ("wrong", "failing"),
    [
        ("expired-certificate", {"validity"}),
        ("self-signed", {"root"}),
        ("foreign-certificate", {"root"}),
        ("wrong-name", {"name"}),
        ("bad-signature", {"signature"}),
        ("stale-nonce", {"nonce"}),
        ("replayed-transcript", {"nonce", "freshness"}),
        ("changed-measurement", {"reference"}),
        ("wrong-range", {"resource"}),
        ("overlapping-range", {"ranges"}),
    ],
)
def test_each_lie_of_a_device_is_found_by_its_own_check(
    run: Run, server: Path, tmp_path: Path, wrong: str, failing: set[str]
) -> None:
    def lock(*lies: str) -> None:
        write(server, "kernel/tsmfs/fault/tamper", " ".join((DEVICE, *lies)))
        write(server, f"{FUNCTION}/tsm/connect", "tsm0")
        write(server, "bus/faux/devices/soft_link_tsm/tsm_bind", DEVICE)

    def unlock() -> None:
        write(server, f"{FUNCTION}/tsm/disconnect", "tsm0")
        write(server, "kernel/tsmfs/fault/tamper", f"{DEVICE} none")

    lock("none")
    try:
        good = tmp_path / "good"
        assert run("evidence", "read", "--sysfs", server, DEVICE, "--out", good).status == 0
    finally:
        unlock()
    lock(wrong)
    try:
        result = run("evidence", "verify", "--sysfs", server, "--reference", good, DEVICE)
    finally:
        unlock()
    assert (result.status, result.failed) == (1, failing)


@pytest.mark.parametrize(
    ("function", "message"),
    [
        (DEVICE, "No such device: no TSM context"),
        ("0000:99:00.0", "No such device: device '0000:99:00.0' not found"),
    ],
)
def test_device_without_evidence_is_one_line(
    run: Run, server: Path, function: str, message: str
) -> None:
    result = run("evidence", "verify", "--sysfs", server, function)
    assert result == Result(1, "", f"tsmfs: {function}: {message}\n")


def test_machine_without_keys_has_no_root_and_its_samples_sign_nothing(
    run: Run, tmp_path: Path, server: Path
) -> None:
    root = server / "kernel/tsmfs/spdm_root"
    sample = "10000:01:00.0"
    with mounting(tmp_path / "sys") as sysfs:
        verify = ("evidence", "verify", "--sysfs", sysfs, sample)
        write(sysfs, f"bus/pci/devices/{sample}/tsm/connect", "tsm0")
        assert (sysfs / "kernel/tsmfs/spdm_root").read_bytes() == b""
        message = f"tsmfs: {sysfs}: no device has keys of the machine: give --root\n"
        assert run(*verify) == Result(1, "", message)
        refused = run(*verify, "--root", root)
        assert (refused.status, refused.out, refused.err.count("\n")) == (1, "", 1)
        assert refused.err.endswith("--no-refresh takes what is there\n")
        empty = run(*verify, "--root", root, "--no-refresh")
        assert (empty.status, empty.failed) == (1, {"vca", "chain"})


# --- Saved evidence -------------------------------------------------------------------------------


def test_saved_evidence_holds_without_the_machine_and_with_it(
    run: Run, saved: Path, locked: Path
) -> None:
    root = saved.parent / "root.pem"
    verify = ("evidence", "verify", "--from", saved, "--digests", saved.parent / "digests")
    alone = run(*verify, "--root", root, "--nonce", NONCE)
    assert (alone.status, alone.failed) == (0, set())
    assert (alone.checks["name"], alone.checks["digests"], alone.checks["nonce"]) == (
        "-", "ok", "ok",
    )  # fmt: skip
    compared = run(*verify, "--sysfs", locked, DEVICE)
    assert (compared.status, compared.checks["name"], compared.checks["resource"]) == (
        0, "ok", "ok",
    )  # fmt: skip


@pytest.mark.parametrize(
    ("name", "failing"),
    [("vca", {"signature", "digests"}), ("measurements", {"signature", "digests"})],
)
def test_byte_that_is_changed_is_found(run: Run, saved: Path, name: str, failing: set[str]) -> None:
    file = saved / f"{name}.bin"
    content = bytearray(file.read_bytes())
    # In VCA the low byte of GET_CAPABILITIES' MaxSPDMmsgSize, in measurements a digest.
    at = 4 + 10 + 16 if name == "vca" else len(content) - 200
    content[at] ^= 1
    file.write_bytes(content)
    options = ("--root", saved.parent / "root.pem", "--digests", saved.parent / "digests")
    result = run("evidence", "verify", "--from", saved, *options)
    assert (result.status, result.failed) == (1, failing)


def test_evidence_that_comes_again_is_found(run: Run, saved: Path) -> None:
    options = ("--root", saved.parent / "root.pem", "--earlier", saved)
    result = run("evidence", "verify", "--from", saved, *options)
    assert (result.status, result.failed) == (1, {"freshness"})


def test_measurements_are_those_of_the_reference(run: Run, saved: Path, tmp_path: Path) -> None:
    options = ("--root", saved.parent / "root.pem", "--reference")
    assert run("evidence", "verify", "--from", saved, *options, saved).checks["reference"] == "ok"
    (tmp_path / "digests/vca.bin").write_bytes(b"nonsense")
    result = run("evidence", "verify", "--from", saved, *options, tmp_path / "digests")
    assert (result.status, result.out, result.err.count("\n")) == (1, "", 1)
    assert f"{tmp_path / 'digests'}: no measurements: " in result.err


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ([], "BDF or --from is needed"),
        (["--from", "."], "--root is needed where no machine is asked"),
        (["--digests", ".", DEVICE], "--digests is of use with --from only"),
        (["--nonce", "xyz", DEVICE], "'xyz' is neither bytes in hexadecimal nor 'random'"),
        (["--nonce", "00", DEVICE], "a nonce of SPDM has 32 bytes, not 1"),
        (["--nonce", "random", "--no-refresh", DEVICE], "--nonce random is for new evidence"),
        (["--nonce", "random", "--from", ".", DEVICE], "--nonce random is for new evidence"),
        (["--root", "/nonexistent", DEVICE], "'/nonexistent' does not exist"),
    ],
)
def test_wrong_command_line_is_one_line_and_status_2(
    run: Run, arguments: list[str], message: str
) -> None:
    result = run("evidence", "verify", *arguments)
    assert (result.status, result.out, result.err.count("\n")) == (2, "", 1)
    assert message in result.err


def test_file_without_certificates_and_directory_without_evidence_are_one_line(
    run: Run, tmp_path: Path
) -> None:
    (tmp_path / "empty.pem").write_text("nothing")
    verify = ("evidence", "verify", "--from", tmp_path, "--root")
    message = f"tsmfs: {tmp_path / 'empty.pem'}: no certificate in PEM\n"
    assert run(*verify, tmp_path / "empty.pem") == Result(1, "", message)
    from tsmfs.spdm.identity import root_pem

    (tmp_path / "root.pem").write_bytes(root_pem(b"seed"))
    message = f"tsmfs: {tmp_path}: no evidence\n"
    assert run(*verify, tmp_path / "root.pem") == Result(1, "", message)


# --- The guide ------------------------------------------------------------------------------------


def test_openssl_verifies_as_the_guide_has_it(saved: Path, server: Path) -> None:
    blocks = re.findall(r"^```sh\n(.*?)^```$", GUIDE.read_text(), re.DOTALL | re.MULTILINE)
    assert len(blocks) == 2
    finished = subprocess.run(
        ["sh", "-e", "-c", "".join(blocks).replace("/mnt/x", str(server))],
        cwd=saved.parent,
        env={**os.environ, "PATH": f"{Path(sys.executable).parent}:{os.environ['PATH']}"},
        capture_output=True,
        text=True,
        check=True,
        timeout=60,
    )
    assert "chain.pem: OK\n" in finished.stdout
    assert "1.3.6.1.4.1.412.274.3" in finished.stdout
    assert "Vendor=1af4:Device=1041:CC=020000:REV=01" in finished.stdout
    assert finished.stdout.endswith("Verified OK\n")


def test_library_call_of_the_guide_works(saved: Path, server: Path) -> None:
    (block,) = re.findall(r"^```python\n(.*?)^```$", GUIDE.read_text(), re.DOTALL | re.MULTILINE)
    program = block.replace("/mnt/x", str(server))
    subprocess.run([sys.executable, "-c", program], cwd=saved.parent, check=True, timeout=60)
