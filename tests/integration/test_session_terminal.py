# SPDX-License-Identifier: MIT
"""Sessions at a terminal: job control of the shell outside, and of one inside."""

from __future__ import annotations

import contextlib
import fcntl
import os
import pty
import re
import select
import signal
import struct
import sys
import termios
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.integration.test_session import processes, variables

SECONDS = 30
NAME = f"inside-{os.getpid()}"
INTERRUPT, QUIT, SUSPEND, END = "\x03", "\x1c", "\x1a", "\x04"
TASK_COMM_LEN = 15
READY = r"(^|\s)ready\r\n"
SHELL = ("bash", "--norc", "--noprofile", "-i")


class Screen:
    """A terminal with a shell in which ``tsmfs`` is a command, and somebody who types."""

    def __init__(self, home: Path) -> None:
        self._text = ""
        self.pid, self._terminal = pty.fork()
        if self.pid == 0:
            os.chdir(home)
            environment = {**variables(), "PS1": "outside> ", "TERM": "dumb", "HOME": str(home)}
            os.execvpe(SHELL[0], SHELL, {**environment, "SHELL": "/bin/bash", "HISTFILE": ""})
        self.expect("outside> ")
        self.line(f'alias tsmfs="{sys.executable} -m tsmfs"')
        self.expect("outside> ")
        self.line("bind 'set enable-bracketed-paste off'")
        self.expect("outside> ")

    def type(self, keys: str) -> None:
        os.write(self._terminal, keys.encode())

    def line(self, text: str) -> None:
        self.type(f"{text}\n")

    def expect(self, pattern: str) -> None:
        """Wait until something is shown that was not expected before."""
        deadline = time.monotonic() + SECONDS
        while (match := re.search(pattern, self._text)) is None:
            ready, _, _ = select.select([self._terminal], [], [], deadline - time.monotonic())
            assert ready, f"{pattern!r} is not in {self._text!r}"
            self._text += os.read(self._terminal, 4096).decode(errors="replace")
        self._text = self._text[match.end() :]

    def expect_status(self, status: int) -> None:
        """The prompt of the shell outside, and the status of the last command."""
        self.expect("outside> ")
        self.line("echo status=$?")
        self.expect(f"\nstatus={status}\r")
        self.expect("outside> ")

    def wait_for_foreground(self, program: str | Path) -> None:
        """Wait until this program leads the job that has the terminal."""
        name = os.path.basename(program)[:TASK_COMM_LEN]
        deadline = time.monotonic() + SECONDS
        while self._foreground() != name:
            assert time.monotonic() < deadline, f"{self._foreground()} has the terminal"
            time.sleep(0.01)

    def _foreground(self) -> str | None:
        with contextlib.suppress(OSError):
            group = os.tcgetpgrp(self._terminal)
            return Path(f"/proc/{group}/comm").read_text().rstrip("\n")
        return None

    def resize(self) -> None:
        fcntl.ioctl(self._terminal, termios.TIOCSWINSZ, struct.pack("HHHH", 30, 100, 0, 0))

    def close(self) -> None:
        """Hang up, and wait for the shell to end; again: nothing."""
        if self.pid:
            os.close(self._terminal)
            os.waitpid(self.pid, 0)
            self.pid = 0


@pytest.fixture
def screen(tmp_path: Path) -> Iterator[Screen]:
    screen = Screen(tmp_path)
    yield screen
    screen.close()


def test_interrupt_and_quit_end_the_command_once(screen: Screen) -> None:
    screen.line(
        "tsmfs exec -- sh -c \"trap 'echo int' INT; echo ready; while :; do sleep 0.1; done\""
    )
    screen.expect(READY)
    screen.type(INTERRUPT)
    screen.expect(r"\^Cint\r\n")
    time.sleep(0.5)
    screen.type(QUIT)
    screen.expect(r"^\^\\")
    screen.expect_status(128 + signal.SIGQUIT)


def test_suspended_and_resumed(screen: Screen) -> None:
    screen.line("tsmfs exec -- sh -c 'echo ready; exec cat'")
    screen.expect(READY)
    screen.line("one")
    screen.expect("one\r\none\r\n")
    screen.type(SUSPEND)
    screen.expect("Stopped")
    screen.expect_status(128 + signal.SIGTSTP)
    screen.line("fg")
    screen.expect("cat")
    screen.line("two")
    screen.expect("two\r\ntwo\r\n")
    screen.type(END)
    screen.expect_status(0)


def test_in_the_background_it_stops_for_input(screen: Screen) -> None:
    screen.line("tsmfs exec -- sh -c 'echo ready; exec cat'")
    screen.expect(READY)
    screen.type(SUSPEND)
    screen.expect("Stopped")
    screen.expect("outside> ")
    screen.line("bg; until jobs -s | grep -q .; do sleep 0.1; done; jobs")
    screen.expect("Stopped")
    screen.expect("outside> ")
    screen.line("fg")
    screen.expect("cat")
    screen.line("here")
    screen.expect("here\r\nhere\r\n")
    screen.type(INTERRUPT)
    screen.expect_status(128 + signal.SIGINT)


def test_a_command_that_stops_itself_stops_the_job(screen: Screen) -> None:
    screen.line("tsmfs exec -- sh -c 'kill -STOP $$; echo resumed; exit 3'")
    screen.expect("Stopped")
    screen.expect("outside> ")
    screen.line("fg")
    screen.expect("\nresumed")
    screen.expect_status(3)


def test_who_continues_the_command_inside_continues_the_job(screen: Screen) -> None:
    name = f"cont-{os.getpid()}"
    screen.line(f"tsmfs exec --name {name} -- sh -c 'kill -STOP $$; echo resumed'")
    screen.expect("Stopped")
    screen.expect("outside> ")
    screen.line(
        f"tsmfs enter {name} -- kill -CONT 2; while jobs -s | grep -q .; do sleep 0.1; done; wait"
    )
    screen.expect("\nresumed")
    screen.expect("outside> ")
    screen.line("wait; jobs; echo none left")
    screen.expect("\nnone left")
    assert not processes(name)


def test_a_pipeline_is_one_job(screen: Screen) -> None:
    screen.line("tsmfs exec -- sh -c 'echo ready; exec sleep 100' | cat")
    screen.expect(READY)
    screen.type(SUSPEND)
    screen.expect("Stopped")
    screen.expect("outside> ")
    screen.line("fg")
    screen.expect("cat")
    screen.wait_for_foreground(sys.executable)
    screen.type(INTERRUPT)
    screen.expect_status(128 + signal.SIGINT)


def test_the_size_of_the_terminal_is_told(screen: Screen) -> None:
    screen.line(
        "tsmfs exec -- sh -c \"trap 'stty size' WINCH; echo ready; while :; do sleep 0.1; done\""
    )
    screen.expect(READY)
    screen.resize()
    screen.expect("30 100\r")
    screen.type(INTERRUPT)
    screen.expect("outside> ")


def test_modes_that_a_killed_command_leaves_are_undone(screen: Screen) -> None:
    screen.line("tsmfs exec -- sh -c 'stty -echo; kill -KILL $$'")
    screen.expect_status(128 + signal.SIGKILL)
    screen.line("stty -a")
    screen.expect(r"[^-]echo ")


def test_modes_that_a_command_sets_stay(screen: Screen) -> None:
    screen.line("tsmfs exec -- stty tostop")
    screen.expect_status(0)
    screen.line("stty -a")
    screen.expect(r"[^-]tostop ")


def test_a_shell_has_its_prompt_and_jobs_of_its_own(screen: Screen) -> None:
    screen.line(f"tsmfs shell --name {NAME}")
    screen.expect(rf"\(tsmfs {NAME}\) .*[$#] ")
    screen.line("echo $TSMFS_SESSION is $(cat /sys/kernel/tsmfs/name)")
    screen.expect(f"\n{NAME} is devsec")
    screen.line("sleep 100")
    screen.expect("sleep 100\r\n")
    screen.wait_for_foreground("sleep")
    screen.type(SUSPEND)
    screen.expect("Stopped +sleep 100")
    screen.line("fg")
    screen.expect("\nsleep 100")
    # The shell shows the job before it lets it have the terminal.
    screen.wait_for_foreground("sleep")
    screen.type(INTERRUPT)
    screen.expect(rf"\(tsmfs {NAME}\)")
    screen.line("exit 5")
    screen.expect_status(5)
    # The shell outside has the terminal again.
    screen.line("sh -c 'echo ready; exec cat'")
    screen.expect(READY)
    screen.line("echoed")
    screen.expect("echoed\r\nechoed")
    screen.type(END)


def test_a_shell_that_suspends_itself_comes_back(screen: Screen) -> None:
    screen.line(f"tsmfs shell --name {NAME}")
    screen.expect(rf"\(tsmfs {NAME}\) .*[$#] ")
    screen.line("suspend -f")
    screen.expect("Stopped")
    screen.expect("outside> ")
    screen.line("fg")
    screen.expect(f"shell --name {NAME}")
    screen.line("")
    screen.expect(rf"\(tsmfs {NAME}\)")
    screen.line("echo in $TSMFS_SESSION")
    screen.expect(f"\nin {NAME}")
    screen.line("exit")
    screen.expect_status(0)


def test_another_shell_leaves_without_complaint(screen: Screen) -> None:
    screen.line(f"SHELL=/bin/dash tsmfs shell --name {NAME}")
    screen.expect(rf"\(tsmfs {NAME}\) \$ ")
    screen.line("exit 6")
    screen.expect(r"^exit 6\r\noutside> ")
    screen.line("echo status=$?")
    screen.expect("\nstatus=6\r")


def test_enter_without_a_command_is_a_shell(screen: Screen) -> None:
    screen.line(f"tsmfs exec --name {NAME} -- sh -c 'echo ready; exec sleep 100' &")
    screen.expect(READY)
    screen.line(f"tsmfs enter {NAME}")
    screen.expect(rf"\(tsmfs {NAME}\) .*[$#] ")
    screen.line("ps -o args= -C sleep; exit 7")
    screen.expect("\nsleep 100")
    screen.expect_status(7)
    screen.line("kill %1; wait")
    screen.expect("outside> ")


def test_hangup_of_the_terminal_ends_the_session(screen: Screen) -> None:
    mark = f"8{os.getpid()}"
    screen.line(f"tsmfs exec -- sh -c 'echo ready; exec sleep {mark}'")
    screen.expect(READY)
    screen.close()
    deadline = time.monotonic() + SECONDS
    while processes(mark):
        assert time.monotonic() < deadline
        time.sleep(0.01)
