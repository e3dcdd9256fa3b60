# SPDX-License-Identifier: MIT
"""The end of a session, whatever brings it about: nothing is left."""

from __future__ import annotations

import errno
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

import pytest

from tests.integration.test_session import as_caller, directories, processes, run, tsmfs, variables
from tsmfs.session import registry
from tsmfs.session.registry import Record

SECONDS = 20.0
"""So long may it take until all is gone, on a machine that is busy."""

NAME = f"end-{os.getpid()}"


def wait_for(condition: Callable[[], bool], seconds: float = SECONDS) -> bool:
    deadline = time.monotonic() + seconds
    while not condition():
        if time.monotonic() > deadline:
            return False
        time.sleep(0.01)
    return True


@contextmanager
def session(
    script: str, first: str = ":", program: Callable[..., list[str]] = as_caller
) -> Iterator[tuple[subprocess.Popen[str], Record]]:
    """A session whose COMMAND is a script, and what is told of it.

    The script has printed ``ready``, after what comes *first*.
    """
    process = subprocess.Popen(
        program("exec", "--name", NAME, "--", "sh", "-c", f"{first}; echo ready; {script}", NAME),
        env=variables(),
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )
    try:
        assert process.stdout is not None
        assert process.stdout.readline() == "ready\n"
        yield process, registry.find(NAME)[1]
    finally:
        process.kill()
        process.communicate(timeout=SECONDS)
        assert wait_for(lambda: not processes(NAME))


def is_gone(record: Record) -> bool:
    """Whether no process of the session and nothing of its directory is there."""
    alive = any(Path(f"/proc/{pid}/exe").exists() for pid in (record.daemon, record.init))
    return not (alive or processes(NAME) or any(path.name == NAME for path in directories()))


@pytest.mark.parametrize(
    ("number", "status"),
    [(signal.SIGTERM, 143), (signal.SIGHUP, 129), (signal.SIGINT, 130), (signal.SIGUSR2, 140)],
)
def test_signal_to_the_front_is_for_the_command(number: signal.Signals, status: int) -> None:
    with session("exec sleep 100") as (process, record):
        process.send_signal(number)
        _, errors = process.communicate(timeout=SECONDS)
        assert (process.returncode, errors) == (status, "")
        assert is_gone(record)


def test_command_may_handle_signals() -> None:
    trap = "trap 'echo got; exit 4' TERM"
    with session("while :; do sleep 0.01; done", trap) as (process, _):
        process.send_signal(signal.SIGTERM)
        output, _ = process.communicate(timeout=SECONDS)
        assert (process.returncode, output) == (4, "got\n")


@pytest.mark.parametrize("first", [":", "trap '' HUP TERM INT"], ids=["meek", "stubborn"])
def test_all_ends_with_a_front_that_is_killed(first: str) -> None:
    with session("sleep 100 & wait", first) as (process, record):
        process.kill()
        assert wait_for(lambda: is_gone(record))


SLOW_TO_ANNOUNCE = """
import time
from tsmfs.cli import main
from tsmfs.session.registry import SessionDirectory
publish = SessionDirectory.publish
SessionDirectory.publish = lambda *arguments: (time.sleep(0.5), publish(*arguments))
main()
"""


def test_whoever_hears_of_the_command_finds_the_session() -> None:
    def program(*arguments: str) -> list[str]:
        return [sys.executable, "-c", SLOW_TO_ANNOUNCE, *arguments]

    with session("read -r line", program=program) as (process, _):
        assert tsmfs("enter", NAME, "--", "true").returncode == 0
        process.communicate("go\n", timeout=SECONDS)
        assert process.returncode == 0


NOT_ANNOUNCED = """
import errno, os, sys
from tsmfs.cli import main
from tsmfs.session.registry import SessionDirectory
def publish(*_):
    if sys.argv[1] == "killed":
        os.kill(os.getpid(), 9)
    raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
SessionDirectory.publish = publish
main(sys.argv[2:])
"""


@pytest.mark.parametrize(
    ("end", "status", "said"),
    [("killed", -signal.SIGKILL, ""), ("refused", 125, "tsmfs: No space left on device\n")],
)
def test_a_session_that_was_not_announced_runs_no_command(end: str, status: int, said: str) -> None:
    arguments = ("exec", "--name", NAME, "--", "echo", "ran")
    done = run([sys.executable, "-c", NOT_ANNOUNCED, end, *arguments])
    assert (done.returncode, done.stdout, done.stderr) == (status, "", said)
    assert wait_for(lambda: not processes(NAME))
    assert not any(path.name == NAME for path in directories())


def test_all_ends_with_a_daemon_that_is_killed() -> None:
    with session("setsid sleep 100 & sleep 100") as (process, record):
        os.kill(record.daemon, signal.SIGKILL)
        _, errors = process.communicate(timeout=SECONDS)
        assert process.returncode == 125
        assert errors == "tsmfs: the daemon of the session died, and the session with it\n"
        assert is_gone(record)


def test_all_ends_with_the_first_process_that_is_killed() -> None:
    with session("setsid sleep 100 & sleep 100") as (process, record):
        os.kill(record.init, signal.SIGKILL)
        _, errors = process.communicate(timeout=SECONDS)
        assert process.returncode == 125
        assert errors == "tsmfs: the session was killed, and COMMAND with it\n"
        assert is_gone(record)


def test_what_two_killed_processes_leave_the_next_session_removes() -> None:
    with session("sleep 100") as (process, record):
        os.kill(record.daemon, signal.SIGSTOP)
        process.kill()
        os.kill(record.daemon, signal.SIGKILL)
        assert wait_for(lambda: not processes(NAME))
        assert any(path.name == NAME for path in directories())
        assert tsmfs("exec", "--", "true").returncode == 0
        assert is_gone(record)


def test_nobody_inside_can_end_the_first_process() -> None:
    with session("kill -TERM 1; kill -KILL 1; kill -STOP 1; echo $?; read x") as (process, _):
        assert process.stdout is not None
        assert process.stdout.readline() == "0\n"
        process.communicate("go\n", timeout=SECONDS)
        assert process.returncode == 0


def test_interruption_before_the_command_ends_all(tmp_path: Path) -> None:
    fifo = tmp_path / "machine.toml"
    os.mkfifo(fifo)
    process = subprocess.Popen(
        as_caller("exec", "--name", NAME, "--machine", str(fifo), "--", "true"),
        env=variables(),
        stderr=subprocess.PIPE,
        text=True,
    )
    # This waits until the daemon reads it.
    with open(fifo, "w"):
        process.send_signal(signal.SIGINT)
        _, errors = process.communicate(timeout=SECONDS)
    assert (process.returncode, errors) == (130, "")
    assert not processes(NAME)
    assert not any(path.name == NAME for path in directories())


FAILING_FORK = """
import errno, os, sys
from tsmfs.cli import main
fork, own, count = os.fork, "", 0
def fork_or_fail():
    global own, count
    count += 1
    number = f"{own}{count}"
    if number == sys.argv[1]:
        raise OSError(errno.EAGAIN, os.strerror(errno.EAGAIN))
    child = fork()
    if child == 0:
        own, count = f"{number}.", 0
    return child
os.fork = fork_or_fail
main(sys.argv[2:])
"""


@pytest.mark.parametrize(
    ("number", "said"),
    [
        ("1", "the daemon cannot be started: {}"),
        ("1.1", "no mount and network namespaces here ({}); 'tsmfs mount DIR' works without"),
        ("2", "COMMAND cannot be started: {}"),
        ("2.1", "COMMAND cannot be started: {}"),
    ],
    ids=["daemon", "maker of the network", "first process", "command"],
)
def test_want_of_a_process_is_told_and_leaves_nothing(number: str, said: str) -> None:
    arguments = ("exec", "--name", NAME, "--", "true")
    done = run([sys.executable, "-c", FAILING_FORK, number, *arguments])
    assert done.returncode == 125
    assert done.stderr == f"tsmfs: {said.format(os.strerror(errno.EAGAIN))}\n"
    assert wait_for(lambda: not processes(NAME))
    assert not any(path.name == NAME for path in directories())


def test_a_hung_driver_does_not_keep_a_command_that_was_killed() -> None:
    script = (
        "cd /sys/kernel/tsmfs/fault/tsm_connect; echo 3600000 > delay_ms; echo 1 > times; "
        "echo 100 > probability; echo tsm0 > /sys/bus/pci/devices/10000:01:00.0/tsm/connect"
    )
    with session(script) as (process, record):
        time.sleep(0.5)
        process.send_signal(signal.SIGTERM)
        process.communicate(timeout=SECONDS)
        assert process.returncode == 143
        assert is_gone(record)


def test_a_broken_pipe_is_the_command_s() -> None:
    program = " ".join(as_caller("exec", "--", "yes"))
    done = subprocess.run(
        ["bash", "-c", f"{program} | head -n 1; echo ${{PIPESTATUS[0]}}"],
        env=variables(),
        capture_output=True,
        text=True,
        timeout=20,
        check=True,
    )
    assert (done.stdout, done.stderr) == (f"y\n{128 + signal.SIGPIPE}\n", "")


def members(name: str) -> list[int]:
    """The processes with the variables of sessions whose names begin so."""
    found = []
    for entry in Path("/proc").glob("[0-9]*/environ"):
        with suppress(OSError):
            if f"TSMFS_SESSION={name}".encode() in entry.read_bytes():
                found.append(int(entry.parent.name))
    return found


@pytest.mark.timeout(600)
def test_fifty_sessions_leave_nothing() -> None:
    """A namespace lives as long as a process, a mount or a descriptor of one."""
    kinds = ("/sessions/", " nsfs ")
    before = Path("/proc/self/mountinfo").read_text()
    for number in range(50):
        name = f"{NAME}.{number}"
        done = tsmfs("exec", "--name", name, "--", "sh", "-c", "sleep 100 & echo $TSMFS_SESSION")
        assert (done.returncode, done.stdout, done.stderr) == (0, f"{name}\n", "")
    assert not processes(NAME)
    assert not members(NAME)
    assert not [path for path in directories() if path.name.startswith(NAME)]
    now = Path("/proc/self/mountinfo").read_text()
    assert [now.count(kind) for kind in kinds] == [before.count(kind) for kind in kinds]
