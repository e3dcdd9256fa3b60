# SPDX-License-Identifier: MIT
"""Which environment variables the programs of a session get."""

from __future__ import annotations

import os
from pathlib import Path

from tsmfs.session.environment import SCRIPTS, STAND_INS, clean, kept, of_session

CALLER = {
    "HOME": "/home/x",
    "USER": "x",
    "LC_TIME": "C",
    "PATH": "/usr/bin:/bin",
    "LD_PRELOAD": "/tmp/evil.so",
    "XDG_RUNTIME_DIR": "/run/user/1000",
    "SECRET": "1",
}


def test_clean_environment_says_who_and_where_the_user_is() -> None:
    assert clean(CALLER) == {name: CALLER[name] for name in ("HOME", "USER", "LC_TIME", "PATH")}


def test_kept_environment_lacks_only_what_names_the_host_s_run() -> None:
    assert kept(CALLER) == {
        name: value for name, value in CALLER.items() if name != "XDG_RUNTIME_DIR"
    }


def test_session_adds_where_the_machine_is() -> None:
    variables = of_session(clean(CALLER), "mine")
    assert variables["TSMFS_SYSFS"] == "/sys"
    assert variables["TSMFS_SESSION"] == "mine"
    assert variables["SYSTEMD_DEVICE_VERIFY_SYSFS"] == "0"
    assert variables["HOME"] == "/home/x"


def test_stand_ins_come_first_in_path() -> None:
    assert of_session({"PATH": "/bin"}, "x")["PATH"] == f"{STAND_INS}:/bin:{SCRIPTS}"
    assert of_session({}, "x")["PATH"].startswith(f"{STAND_INS}:/usr/local/sbin:")
    assert all(os.access(STAND_INS / tool, os.X_OK) for tool in ("modprobe", "rmmod", "lsmod"))


def test_stand_ins_are_those_of_the_package() -> None:
    assert (STAND_INS.parent / "session" / "environment.py").samefile(
        Path(__file__).resolve().parents[2] / "tsmfs/session/environment.py"
    )
