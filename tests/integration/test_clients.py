# SPDX-License-Identifier: MIT
"""Programs that know nothing of tsmfs, at work in a session: clients, tools, load."""

from __future__ import annotations

import contextlib
import os
import shlex
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import pytest

from .conftest import ROOT

CLIENTS = ROOT / "tests/clients"
FUNCTION = "10000:01:00.0"
SECOND = "10000:01:00.1"
CERTS = os.urandom(16 << 20)
"""As much as an object may have, so that a dump waits for its reader many times."""
TRANSCRIPT = os.urandom(4096)

EXPECTED = {
    **{f"cert{slot}": b"" for slot in range(8)},
    **{"vca": b"", "report": b"", "cert0": CERTS, "measurements": TRANSCRIPT},
}
NOBODY = ["setpriv", "--reuid=65534", "--regid=65534", "--clear-groups"]


@dataclass(frozen=True, slots=True)
class Ended:
    """How a command in a session ended."""

    status: int
    out: str
    err: str


class Session:
    """A session whose command is a shell that is told what to run."""

    def __init__(self, directory: Path, *options: str) -> None:
        self._files = directory
        self._errors = (directory / "session").open("w+")
        self._process = subprocess.Popen(
            [sys.executable, "-m", "tsmfs", "exec", *options, "--", "sh"],
            cwd=ROOT,
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=self._errors,
            text=True,
        )

    def run(self, *words: str | Path) -> Ended:
        """Run a command, with nothing on its standard input."""
        assert self._process.stdin is not None
        assert self._process.stdout is not None
        out, err = (self._files / name for name in ("out", "err"))
        self._process.stdin.write(
            f"{shlex.join(map(str, words))} >{out} 2>{err} </dev/null\necho $?\n"
        )
        self._process.stdin.flush()
        status = self._process.stdout.readline()
        assert status, f"the session ended: {self.said()}"
        return Ended(int(status), out.read_text(errors="replace"), err.read_text(errors="replace"))

    def said(self) -> str:
        """What the session itself had to say: warnings, tracebacks."""
        return (self._files / "session").read_text()

    def close(self) -> int:
        """End the session, and tell its exit status."""
        with self._process as process, self._errors:
            assert process.stdin is not None
            process.stdin.close()
            return process.wait(timeout=60)


@contextlib.contextmanager
def session(directory: Path, *options: str) -> Iterator[Session]:
    """A session that says nothing, and ends well."""
    running = Session(directory, *options)
    try:
        yield running
    finally:
        status = running.close()
    assert (status, running.said()) == (0, "")


@pytest.fixture(scope="module")
def clients() -> Iterator[Path]:
    """The compiled clients, in a directory that every user may enter."""
    with tempfile.TemporaryDirectory() as name:
        os.chmod(name, 0o755)
        subprocess.run(["make", "-s", "-C", CLIENTS, f"OUT={name}"], check=True)
        yield Path(name)


@pytest.fixture(scope="module")
def connected(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Session]:
    """A session with one device connected whose evidence is known."""
    directory = tmp_path_factory.mktemp("session")
    with session(directory) as running:
        for name, content in (("certs", CERTS), ("transcript", TRANSCRIPT)):
            (directory / name).write_bytes(content)
            blob = f"/sys/bus/faux/devices/devsec_link_tsm/{name}"
            assert running.run("dd", f"if={directory / name}", f"of={blob}", "bs=64K").status == 0
        connect = f"/sys/bus/pci/devices/{FUNCTION}/tsm/connect"
        assert running.run("sh", "-c", f"echo tsm0 >{connect}") == Ended(0, "", "")
        yield running


PROGRAMS = ["evidence_libmnl", "evidence_libnl", "evidence_libnl_static", "evidence_go", "pyroute2"]
STATIC = {"evidence_libnl_static", "evidence_go"}


def command(program: str, clients: Path) -> list[str | Path]:
    """The command that starts a client."""
    if program == "pyroute2":
        return [sys.executable, CLIENTS / "evidence.py"]
    return [clients / program]


def objects(directory: Path) -> dict[str, bytes]:
    """The objects that a client has written."""
    return {file.stem: file.read_bytes() for file in directory.iterdir()}


def dynamic(program: Path) -> bool:
    """Whether the program is loaded by the dynamic linker."""
    return subprocess.run(["ldd", program], capture_output=True, check=False).returncode == 0


# --- Evidence --------------------------------------------------------------------------------


def test_clients_are_static_and_dynamic(clients: Path) -> None:
    compiled = {program for program in PROGRAMS if program != "pyroute2"}
    assert {name for name in compiled if not dynamic(clients / name)} == STATIC


@pytest.mark.parametrize("program", PROGRAMS)
def test_client_reads_all_evidence(
    connected: Session, clients: Path, program: str, tmp_path: Path
) -> None:
    assert connected.run(*command(program, clients), FUNCTION, tmp_path) == Ended(0, "", "")
    assert objects(tmp_path) == EXPECTED


def test_clients_read_the_same_as_the_command(connected: Session, tmp_path: Path) -> None:
    words = ("evidence", "read", FUNCTION, "--out", tmp_path / "out")
    assert connected.run(sys.executable, "-m", "tsmfs", *words).status == 0
    assert objects(tmp_path / "out") == EXPECTED


@pytest.mark.parametrize("program", PROGRAMS)
@pytest.mark.parametrize(
    ("device", "says"), [(SECOND, "no such device or address"), ("nosuch", "no such device")]
)
def test_client_is_told_what_a_kernel_tells(
    connected: Session, clients: Path, program: str, device: str, says: str, tmp_path: Path
) -> None:
    ended = connected.run(*command(program, clients), device, tmp_path)
    if program == "pyroute2":
        says = {SECOND: "no evidence available", "nosuch": "device 'nosuch' not found"}[device]
    assert (ended.status, ended.out) == (1, "")
    assert ended.err.lower().startswith(f"{device}: {says}")
    assert objects(tmp_path) == {}


@pytest.mark.parametrize("program", ["evidence_libmnl", "evidence_libnl_static", "evidence_go"])
def test_other_users_of_the_session_are_not_permitted(
    connected: Session, clients: Path, program: str, tmp_path: Path
) -> None:
    if os.getuid() != 0:
        pytest.fail("a session of an ordinary user has no other: run the tests as root")
    ended = connected.run(*NOBODY, clients / program, FUNCTION, "/nonexistent")
    assert (ended.status, ended.out) == (1, "")
    assert ended.err.lower() == f"{FUNCTION}: operation not permitted\n"


# --- Tools -----------------------------------------------------------------------------------


def kernel_families(text: str) -> set[str]:
    """The names in what genl-ctrl-list, or ``genl ctrl list``, prints."""
    names = set()
    for line in text.splitlines():
        if line.startswith(("Name: ", "0x")):
            names.add(line.split()[1])
    return names


@pytest.mark.parametrize("tool", [["genl-ctrl-list"], ["genl", "ctrl", "list"]], ids=" ".join)
def test_lists_show_families_of_machine_and_kernel(connected: Session, tool: list[str]) -> None:
    # Some families are in the first network namespace only.
    elsewhere = ["unshare", "-rn", *tool]
    kernel = subprocess.run(elsewhere, capture_output=True, text=True, check=True).stdout
    ended = connected.run(*tool)
    assert (ended.status, ended.err) == (0, "")
    assert "nlctrl" in kernel_families(kernel)
    assert kernel_families(ended.out) == kernel_families(kernel) | {"pci-tsm", "device-evidence"}


def test_genl_finds_one_family_by_its_name(connected: Session) -> None:
    ended = connected.run("genl", "ctrl", "get", "name", "pci-tsm")
    assert (ended.status, ended.err) == (0, "")
    assert kernel_families(ended.out) == {"pci-tsm"}
    assert "ID-0x1" in ended.out


def test_client_may_be_traced(connected: Session, clients: Path, tmp_path: Path) -> None:
    trace = tmp_path / "trace"
    out = tmp_path / "out"
    out.mkdir()
    ended = connected.run("strace", "-f", "-o", trace, clients / "evidence_go", FUNCTION, out)
    assert ended == Ended(0, "", "")
    assert objects(out) == EXPECTED
    assert "NETLINK_GENERIC" in trace.read_text()


# --- Load ------------------------------------------------------------------------------------


def answers(running: Session) -> None:
    """See that the machine is there, and works."""
    tsm = f"/sys/bus/pci/devices/{FUNCTION}/tsm"
    assert running.run("sh", "-c", f"echo tsm0 >{tsm}/connect") == Ended(0, "", "")
    assert running.run("cat", f"{tsm}/connect") == Ended(0, "tsm0\n", "")
    assert running.run("sh", "-c", f"echo tsm0 >{tsm}/disconnect") == Ended(0, "", "")
    logged = running.run("cat", "/sys/kernel/tsmfs/log").out
    assert "Traceback" not in logged


def test_machine_answers_after_all_its_files_were_read(tmp_path: Path) -> None:
    with session(tmp_path) as running:
        everything = "find /sys -type f -exec cat {} + >/dev/null 2>&1; true"
        assert running.run("sh", "-c", everything) == Ended(0, "", "")
        answers(running)


def test_machine_answers_under_load(tmp_path: Path) -> None:
    with session(tmp_path) as running:
        ended = running.run("stress-ng", "--sysfs", "2", "-t", "5s")
        assert ended.status == 0, ended.err
        answers(running)
