# SPDX-License-Identifier: MIT
"""The environment variables of a session's programs."""

from __future__ import annotations

import sys
from collections.abc import Mapping
from pathlib import Path

from tsmfs.instance import ENVIRONMENT_VARIABLE

SESSION_VARIABLE = "TSMFS_SESSION"
"""Names the session to the programs in it."""

_PACKAGE = Path(__file__).resolve().parent.parent

STAND_INS = _PACKAGE / "bin"
"""The directory of ``modprobe`` and the others."""

SCRIPTS = Path(sys.prefix) / "bin"
"""Where the installation has its commands."""

INSTALLATION = (_PACKAGE.parent, Path(sys.prefix), Path(sys.base_prefix))
"""Where this program and its interpreter are: they work inside as well."""

_KEPT = {
    *("HOME", "USER", "LOGNAME", "SHELL", "PATH"),
    *("TERM", "COLORTERM", "LANG", "LANGUAGE", "TZ"),
}
_DEFAULT_PATH = "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin"

_OF_THE_HOST = {"XDG_RUNTIME_DIR", "DBUS_SESSION_BUS_ADDRESS", "NOTIFY_SOCKET"}
"""These name what is below /run, which is another one inside."""


def clean(caller: Mapping[str, str]) -> dict[str, str]:
    """Of the caller's variables those that say who and where the user is."""
    return {k: v for k, v in caller.items() if k in _KEPT or k.startswith("LC_")}


def kept(caller: Mapping[str, str]) -> dict[str, str]:
    """The caller's variables but those that would lead astray inside."""
    return {k: v for k, v in caller.items() if k not in _OF_THE_HOST}


def of_session(variables: Mapping[str, str], name: str) -> dict[str, str]:
    """*variables* with those of session *name*.

    PATH has the stand-ins first, and last where the command ``tsmfs`` is.
    """
    return {
        **variables,
        "PATH": f"{STAND_INS}:{variables.get('PATH', _DEFAULT_PATH)}:{SCRIPTS}",
        ENVIRONMENT_VARIABLE: "/sys",
        SESSION_VARIABLE: name,
        # The tree is FUSE, and udev believes in sysfs only, unless told.
        "SYSTEMD_DEVICE_VERIFY_SYSFS": "0",
    }
