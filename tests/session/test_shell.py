# SPDX-License-Identifier: MIT
"""The user's shell: which one, what it reads, and its prompt."""

from __future__ import annotations

import subprocess
from pathlib import Path

import pytest

from tsmfs.session.shell import interactive_shell


def test_shell_is_that_of_the_variable() -> None:
    arguments, variables = interactive_shell({"SHELL": "/opt/odd"})
    assert arguments == ("/opt/odd", "-i")
    assert variables["PS1"] == "(tsmfs $TSMFS_SESSION) $ "


def test_shell_without_a_variable_is_that_of_the_user(monkeypatch: pytest.MonkeyPatch) -> None:
    def nobody(uid: int) -> object:
        raise KeyError(uid)

    assert interactive_shell({})[0][0].startswith("/")
    monkeypatch.setattr("pwd.getpwuid", nobody)
    assert interactive_shell({})[0] == ("/bin/sh", "-i")


@pytest.mark.parametrize("shell", ["bash", "zsh", "fish"])
def test_files_that_a_shell_is_told_to_read_exist(shell: str) -> None:
    arguments, variables = interactive_shell({"SHELL": f"/bin/{shell}", "HOME": "/home/x"})
    named = [*arguments, *variables.values()]
    paths = [Path(word.split(" ")[-1].strip("'")) for word in named if "startup" in word]
    assert paths
    assert all(path.exists() for path in paths)


def test_zsh_finds_the_user_s_files() -> None:
    home = {"SHELL": "/bin/zsh", "HOME": "/home/x"}
    assert interactive_shell(home)[1]["TSMFS_ZDOTDIR"] == "/home/x"
    assert interactive_shell({**home, "ZDOTDIR": "/z"})[1]["TSMFS_ZDOTDIR"] == "/z"


def test_bash_reads_the_user_s_file_and_keeps_the_stand_ins_first(tmp_path: Path) -> None:
    (tmp_path / ".bashrc").write_text("PS1='mine> '; PATH=/mine:$PATH; echo read")
    arguments, variables = interactive_shell({"SHELL": "/bin/bash"})
    shown = subprocess.run(
        arguments,
        env={**variables, "HOME": str(tmp_path), "TSMFS_SESSION": "s", "PATH": "/stand-ins:/bin"},
        input='echo $PATH "$PS1"\n',
        capture_output=True,
        text=True,
        check=True,
        timeout=20,
    )
    assert shown.stdout == "read\n/stand-ins:/mine:/stand-ins:/bin (tsmfs s) mine> \n"
