# SPDX-License-Identifier: MIT
"""The user's shell with a prompt that names the session."""

from __future__ import annotations

import os
import pwd
from collections.abc import Mapping
from pathlib import Path

from tsmfs.session.environment import SESSION_VARIABLE

_STARTUP = Path(__file__).resolve().parent / "startup"


def interactive_shell(caller: Mapping[str, str]) -> tuple[tuple[str, ...], dict[str, str]]:
    """The command that runs the shell of who has the environment *caller*, and its variables."""
    path = caller.get("SHELL") or _login_shell()
    match os.path.basename(path):
        case "bash":
            return (path, "--rcfile", str(_STARTUP / "bashrc"), "-i"), {}
        case "zsh":
            home = caller.get("ZDOTDIR") or caller.get("HOME", "")
            return (path, "-i"), {"ZDOTDIR": str(_STARTUP / "zsh"), "TSMFS_ZDOTDIR": home}
        case "fish":
            return (path, "-i", "-C", f"source '{_STARTUP}/config.fish'"), {}
        case _:
            return (path, "-i"), {"PS1": f"(tsmfs ${SESSION_VARIABLE}) $ "}


def _login_shell() -> str:
    try:
        return pwd.getpwuid(os.getuid()).pw_shell or "/bin/sh"
    except KeyError:
        return "/bin/sh"
