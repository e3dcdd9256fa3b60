# SPDX-License-Identifier: MIT
"""udevd in a session: what it logs, what it finds as rules, and a host where it does not work."""

from __future__ import annotations

import errno
import os
import subprocess
import sys
import time
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tests.left_behind import failing, nothing_left
from tsmfs.session import udev_keeper, udev_rules, udevd
from tsmfs.session.udev_keeper import MARK, Keeper, Level, concerns_user, parse
from tsmfs.session.udev_rules import RulesView, Source, UdevdError

ROOT = Path(__file__).resolve().parents[2]


# --- The log ----------------------------------------------------------------------------------


def test_a_line_has_its_level_behind_the_facility() -> None:
    daemon = 3 << 3
    assert parse(f"<{daemon | 4}>tsm0: text") == (Level.WARNING, "tsm0: text")
    assert parse("<7>") == (Level.DEBUG, "")


def test_a_line_without_a_level_is_an_error() -> None:
    assert parse("udevadm: symbol lookup error") == (Level.ERR, "udevadm: symbol lookup error")


@given(st.text(st.characters(exclude_characters="\n")))
def test_no_line_is_lost(line: str) -> None:
    level, text = parse(line)
    assert line.endswith(text)
    assert level in Level


@pytest.mark.parametrize(
    ("level", "text", "shown"),
    [
        (Level.ERR, "/run/udev/rules.d/a.rules:1 Invalid key 'A'", True),
        (Level.WARNING, "tsm0: Process 'a' failed with exit code 1.", True),
        (Level.DEBUG, "tsm0: 'a b'(err) 'no such thing'", True),
        (Level.DEBUG, "tsm0: 'a b'(out) 'hello'", False),
        (Level.INFO, "Using default interface naming scheme 'v252'.", False),
        (Level.WARNING, "Failed to set receive buffer size for device monitor", False),
    ],
)
def test_what_the_author_of_a_rule_wants_to_know_is_shown(
    level: Level, text: str, shown: bool
) -> None:
    assert concerns_user(level, text) is shown


def keep(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, text: bytes, view: RulesView | None = None
) -> tuple[str, str]:
    """What the keeper shows and what it logs of *text*."""
    monkeypatch.setattr(udev_keeper, "LOG", tmp_path / "log")
    monkeypatch.setattr(udev_keeper, "_END_SECONDS", 0.0)
    reader, writer = os.pipe()
    shown = os.open(tmp_path / "shown", os.O_RDWR | os.O_CREAT)
    keeper = Keeper(reader, shown, shown, view or RulesView([]))
    os.write(writer, text)
    os.close(writer)
    keeper.run()
    keeper.close()
    os.close(reader)
    os.close(shown)
    return (tmp_path / "shown").read_text(), (tmp_path / "log").read_text()


def test_all_is_logged_and_mistakes_are_shown_with_the_path_of_the_user(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    rules = tmp_path / "rules"
    rules.mkdir()
    (rules / "a.rules").touch()
    shown, log = keep(
        monkeypatch,
        tmp_path,
        b"<31>Reading rules file: /run/udev/rules.d/a.rules\n"
        b"<27>/run/udev/rules.d/a.rules:1 Invalid key\n<31>half",
        RulesView([Source(rules, "/home/user/rules")]),
    )
    ended = "has ended: no more events are handled in this session"
    assert shown == f"udevd: /home/user/rules/a.rules:1 Invalid key\nudevd: {ended}\n"
    assert [line.split(" ", 1)[1] for line in log.splitlines()] == [
        "debug: Reading rules file: /home/user/rules/a.rules",
        "err: /home/user/rules/a.rules:1 Invalid key",
        f"err: {ended}",
    ]


def test_the_log_does_not_grow_for_ever(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setattr(udev_keeper, "LOG_SIZE", 1000)
    _, log = keep(monkeypatch, tmp_path, b"<31>a line of a log\n" * 200)
    assert len(log) <= 1000
    assert 1000 < (tmp_path / "log.old").stat().st_size < 1100


def test_who_does_not_read_standard_error_does_not_stop_udevd(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setattr(udev_keeper, "LOG", tmp_path / "log")
    monkeypatch.setattr(udev_keeper, "_END_SECONDS", 0.0)
    reader, writer = os.pipe()
    unread, stderr = os.pipe()
    answer, other = os.pipe()
    if (pid := os.fork()) == 0:
        os.close(writer)
        Keeper(reader, other, stderr, RulesView([])).run()
        os._exit(0)
    os.close(reader)
    os.close(other)
    line = b"<27>" + b"x" * 1000 + b"\n"
    for _ in range(1000):
        os.write(writer, line)
    os.write(writer, MARK)
    os.close(writer)
    os.close(stderr)
    assert os.waitpid(pid, 0)[1] == 0
    assert (tmp_path / "log").stat().st_size > 1000 * 1000
    # What was not shown was not said to be.
    assert os.read(answer, 1) == b""
    os.close(answer)
    assert os.read(unread, 8) == b"udevd: x"
    os.close(unread)


def test_a_mark_is_answered_when_all_before_it_is_shown_and_is_in_no_line(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    shown, log = keep(monkeypatch, tmp_path, b"<27>before\n<27>be" + MARK + b"hind\n")
    assert shown.split("\n")[:2] == ["udevd: before", "udevd: behind"]
    assert shown.count(MARK.decode()) == 1
    assert MARK.decode() not in log


def test_a_line_is_in_the_log_once_it_is_shown(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    written: list[str] = []
    write = os.write

    def note(descriptor: int, data: bytes) -> int:
        written.append(os.path.basename(os.readlink(f"/proc/self/fd/{descriptor}")))
        return write(descriptor, data)

    monkeypatch.setattr(os, "write", note)
    keep(monkeypatch, tmp_path, b"<27>a line\n")
    assert [name for name in written if name in ("shown", "log")] == ["shown", "log"] * 2


def test_a_log_that_cannot_be_opened_leaves_nothing_open(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setattr(udev_keeper, "LOG", tmp_path / "none/log")
    with nothing_left(), pytest.raises(FileNotFoundError):
        Keeper(0, 1, 2, RulesView([Source(tmp_path, "rules")]))


# --- What udevd finds ---------------------------------------------------------------------------


@pytest.fixture
def view(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> RulesView:
    """Two directories of rules, and one of programs, in which the host has one."""
    monkeypatch.setattr(udev_rules, "RULES", tmp_path / "rules.d")
    for name in ("rules.d", "lib", "1", "2"):
        (tmp_path / name).mkdir()
    sources = [Source(tmp_path / name, f"/home/{name}") for name in ("1", "2")]
    return RulesView(sources, {tmp_path / "lib": {"ata_id": Path("/host/ata_id")}})


def links(directory: Path) -> dict[str, str]:
    return {path.name: os.readlink(path) for path in directory.iterdir()}


def program(path: Path, mode: int = 0o755) -> None:
    path.write_text("#!/bin/sh\n")
    path.chmod(mode)


def test_rules_of_the_last_directory_win(view: RulesView, tmp_path: Path) -> None:
    for name in ("1/a.rules", "2/a.rules", "1/b.rules", "2/c.rules", "2/README"):
        (tmp_path / name).touch()
    view.update()
    assert links(tmp_path / "rules.d") == {
        "a.rules": f"{tmp_path}/2/a.rules",
        "b.rules": f"{tmp_path}/1/b.rules",
        "c.rules": f"{tmp_path}/2/c.rules",
    }
    assert view.origin("a.rules") == "/home/2/a.rules"
    assert view.origin("b.rules") == "/home/1/b.rules"


def test_programs_are_beside_those_of_the_host(view: RulesView, tmp_path: Path) -> None:
    program(tmp_path / "1/helper")
    program(tmp_path / "1/notes", 0o644)
    program(tmp_path / "1/x.rules")
    program(tmp_path / "2/ata_id")
    (tmp_path / "2/directory").mkdir()
    (tmp_path / "2/nowhere").symlink_to("/no/such/program")
    view.update()
    assert links(tmp_path / "lib") == {
        "helper": f"{tmp_path}/1/helper",
        "ata_id": f"{tmp_path}/2/ata_id",
    }


def test_what_comes_and_goes_is_followed(view: RulesView, tmp_path: Path) -> None:
    program(tmp_path / "2/ata_id")
    (tmp_path / "1/a.rules").touch()
    view.update()
    (tmp_path / "2/ata_id").unlink()
    (tmp_path / "1/a.rules").rename(tmp_path / "1/b.rules")
    view.update()
    assert links(tmp_path / "lib") == {"ata_id": "/host/ata_id"}
    assert links(tmp_path / "rules.d") == {"b.rules": f"{tmp_path}/1/b.rules"}


# --- A host where udevd does not work -----------------------------------------------------------


def test_a_host_without_udevd_is_told_the_package(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(udevd, "_DAEMONS", (Path("/no/such/udevd"),))
    monkeypatch.setattr(udevd, "_ADMIN_PLACES", "/no/such/place")
    with pytest.raises(UdevdError, match=r"^there is no systemd-udevd on this host: .*\budev\b"):
        udevd.start([], False, {})


def test_a_host_with_udevd_in_udevadm_has_it_under_the_other_name(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    program(tmp_path / "udevadm")
    monkeypatch.setattr(udevd, "_DAEMONS", (Path("/no/such/udevd"),))
    monkeypatch.setattr(udevd, "_ADMIN_PLACES", str(tmp_path))
    assert udevd._find_daemon() == [f"{tmp_path}/udevadm", "systemd-udevd"]


@pytest.mark.parametrize(
    ("name", "number", "call"),
    [
        ("pipe2", errno.EMFILE, 1),
        ("pipe2", errno.EMFILE, 2),
        ("dup", errno.EMFILE, 1),
        ("fork", errno.EAGAIN, 1),
        ("pipe2", errno.EMFILE, 3),
        ("fork", errno.EAGAIN, 2),
    ],
    ids=["pipe of the log", "its answer", "standard error", "keeper", "pipe of udevd", "udevd"],
)
def test_want_of_a_process_is_told_and_leaves_nothing(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, name: str, number: int, call: int
) -> None:
    program(tmp_path / "udevd")
    program(tmp_path / "udevadm")
    monkeypatch.setattr(udevd, "_DAEMONS", (tmp_path / "udevd",))
    monkeypatch.setattr(udevd, "_ADMIN_PLACES", str(tmp_path))
    monkeypatch.setattr(udevd, "arrange", lambda *_, **__: RulesView([]))
    for module, path in ((udevd, "CONTROL"), (udevd, "ENVIRONMENT"), (udevd, "LOG")):
        monkeypatch.setattr(module, path, tmp_path / path.lower())
    monkeypatch.setattr(udev_keeper, "LOG", tmp_path / "log")
    monkeypatch.setattr(os, name, failing(getattr(os, name), number, call=call))
    said = f"^udevd cannot be started: {os.strerror(number)}$"
    with nothing_left(), pytest.raises(UdevdError, match=said):
        udevd.start([], False, {})


# Runs start() with a fake udevd and a fake udevadm, in namespaces that end with it.
START = """
import os, sys, time
from pathlib import Path
from tsmfs.session import udev_keeper, udevd
from tsmfs.session.namespaces import Mount, Namespace, make_mounts_private, mount, unshare

unshare(Namespace.MOUNT)
make_mounts_private()
mount("tmpfs", "/run", "tmpfs")
fakes = Path(sys.argv[1])
udevd._DAEMONS = (fakes / "udevd",)
udevd._ADMIN_PLACES = str(fakes)
udevd.READY_SECONDS, udevd.TRIGGER_SECONDS = map(float, sys.argv[2:4])
udevd.SETTLE_SECONDS = 1
exec(sys.argv[4])
try:
    print("started", udevd.start([], False, {"PATH": os.environ["PATH"], "ODD": "a 'b'"}) > 0)
except udevd.UdevdError as error:
    print(error)
    try:
        os.waitpid(-1, os.WNOHANG)
        print("a child is left")
    except ChildProcessError:
        pass
print(udevd.ENVIRONMENT.read_text(), file=sys.stderr)
"""

LISTEN = ": >/run/udev/control; exec sleep 60"
LONG = 30
"""Seconds that are enough for a fake that does what is waited for."""


def start(
    tmp_path: Path,
    daemon: str,
    admin: str,
    *,
    interpreter: str = "/bin/sh",
    ready: int = LONG,
    trigger: int = LONG,
    change: str = "",
) -> tuple[str, str]:
    """Both outputs of the script with these for udevd and udevadm, which are shell scripts.

    *ready* and *trigger* are the seconds that they get, and *change* is run before.
    """
    for name, body in (("udevd", daemon), ("udevadm", admin)):
        (tmp_path / name).write_text(f"#!{interpreter}\n{body}\n")
        (tmp_path / name).chmod(0o755)
    command = [sys.executable, "-c", START, str(tmp_path), str(ready), str(trigger), change]
    began = time.monotonic()
    # In a PID namespace of their own, so that all of them end with the first.
    done = subprocess.run(
        ["unshare", *(["-r"] if os.geteuid() else []), "-pf", "--kill-child", *command],
        cwd=ROOT,
        env={k: v for k, v in os.environ.items() if not k.startswith("COVERAGE_")},
        capture_output=True,
        text=True,
        timeout=100,
        check=True,
    )
    # Neither of the fakes that hang has ended by itself.
    assert time.monotonic() - began < 50
    return done.stdout, done.stderr


def test_a_udevd_that_ends_at_once_is_told(tmp_path: Path) -> None:
    out, err = start(tmp_path, "echo '<27>cannot work here' >&2; exit 1", "exit 0")
    assert out.startswith("udevd ended at once")
    assert out.count("\n") == 1
    assert err.startswith("udevd: cannot work here\nexport ")


def test_a_udevd_that_cannot_be_executed_is_told(tmp_path: Path) -> None:
    out, err = start(tmp_path, "", "exit 0", interpreter="/no/such/shell")
    assert out == f"udevd cannot be started: {tmp_path}/udevd: No such file or directory\n"
    assert "udevd: " not in err


def test_a_udevd_that_never_listens_is_given_up(tmp_path: Path) -> None:
    out, _ = start(tmp_path, "exec sleep 60", "exit 0", ready=1)
    assert out == "udevd is not ready after 1 s: it does not answer\n"


def test_a_udevd_that_does_not_answer_is_given_up(tmp_path: Path) -> None:
    out, _ = start(tmp_path, LISTEN, "echo connection refused >&2; exit 1", ready=5)
    assert out == "udevd is not ready after 5 s: connection refused\n"


def test_a_udevadm_that_cannot_be_executed_is_told(tmp_path: Path) -> None:
    out, _ = start(tmp_path, f"rm {tmp_path}/udevadm; {LISTEN}", "exit 0")
    assert out == f"udevd cannot be started: {tmp_path}/udevadm: No such file or directory\n"


def test_a_ping_that_hangs_is_given_up(tmp_path: Path) -> None:
    out, _ = start(tmp_path, LISTEN, "exec sleep 60", ready=1)
    assert out == "udevd is not ready after 1 s: it does not answer\n"


def test_a_udevadm_without_ping_is_enough(tmp_path: Path) -> None:
    no_ping = "case $* in *--ping*) echo \"unrecognized option '--ping'\" >&2; exit 1;; esac"
    out, _ = start(tmp_path, LISTEN, no_ping)
    assert out == "started True\n"


def test_a_trigger_that_hangs_is_given_up(tmp_path: Path) -> None:
    out, _ = start(tmp_path, LISTEN, "case $1 in trigger) exec sleep 60;; esac", trigger=1)
    assert out == "udevd: the events of coldplug cannot be triggered in 1 s\n"


def test_rules_that_do_not_settle_are_told_and_go_on(tmp_path: Path) -> None:
    out, err = start(tmp_path, LISTEN, "case $1 in settle) exit 1;; esac")
    assert out == "started True\n"
    assert "udevd: rules are not through after 1 s, and go on" in err


SLOW_KEEPER = """
keep = udevd._keep
udevd._keep = lambda keeper: (time.sleep(0.5), keep(keeper))
"""

HUNG_KEEPER = """
udev_keeper.Keeper.run = lambda keeper: time.sleep(60)
udevd._LAST_WORDS_SECONDS = 0.2
"""

DEAD_KEEPER = "udev_keeper.Keeper.run = lambda keeper: os._exit(1)"

UNREAD = """
start = udevd.start
def unread(*arguments):
    stderr = os.dup(2)
    reader, writer = os.pipe()
    os.dup2(writer, 2)
    os.close(writer)
    os.close(reader)
    pid = start(*arguments)
    os.dup2(stderr, 2)
    print(udevd.LOG.read_text(), end="")
    return pid
udevd.start = unread
"""


def test_what_udevd_says_of_coldplug_is_shown_before_the_command_can_end_all(
    tmp_path: Path,
) -> None:
    daemon = (
        "mkfifo /run/go; : >/run/udev/control; read -r line </run/go; "
        "echo '<27>last words' >&2; : >/run/said; exec sleep 60"
    )
    said = "echo >/run/go; until [ -e /run/said ]; do sleep 0.01; done"
    admin = f"case $1 in settle) {said};; esac"
    out, err = start(tmp_path, daemon, admin, change=SLOW_KEEPER)
    assert out == "started True\n"
    assert err.startswith("udevd: last words\nexport ")


def test_what_a_udevd_says_that_ends_at_once_is_shown_by_a_slow_keeper(tmp_path: Path) -> None:
    out, err = start(tmp_path, "echo '<27>no' >&2; exit 1", "exit 0", change=SLOW_KEEPER)
    assert out.startswith("udevd ended at once")
    assert err.startswith("udevd: no\nexport ")


@pytest.mark.parametrize("change", [HUNG_KEEPER, DEAD_KEEPER], ids=["hangs", "is gone"])
def test_a_keeper_that_does_not_answer_keeps_no_session(tmp_path: Path, change: str) -> None:
    assert start(tmp_path, LISTEN, "exit 0", change=change)[0] == "started True\n"
    out, _ = start(tmp_path, "exit 1", "exit 0", change=change)
    assert out.startswith("udevd ended at once")
    assert out.count("\n") == 1


def test_udevd_is_logged_when_nobody_reads_what_is_shown(tmp_path: Path) -> None:
    daemon = f"echo '<27>one' >&2; echo '<27>two' >&2; {LISTEN}"
    out, _ = start(tmp_path, daemon, "exit 0", change=UNREAD)
    assert [line.partition(" ")[2] for line in out.splitlines()] == ["err: one", "err: two", "True"]


def test_a_shell_can_read_the_environment(tmp_path: Path) -> None:
    _, err = start(tmp_path, LISTEN, "exit 0")
    assert "export ODD='a '\"'\"'b'\"'\"''" in err
