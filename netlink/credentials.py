# SPDX-License-Identifier: MIT
"""Who a client is: whether a process has CAP_NET_ADMIN, as far as another process can tell."""

from __future__ import annotations

import struct
from typing import Final, NamedTuple

CAP_NET_ADMIN: Final = 12
"""Position of the capability in the sets of ``/proc/PID/status`` (``linux/capability.h``)."""

UCRED: Final = struct.Struct("=3i")
"""``struct ucred``, which SO_PEERCRED and SCM_CREDENTIALS have."""


class Credentials(NamedTuple):
    """``struct ucred``: a process and the user and group that it ran as."""

    pid: int
    uid: int
    gid: int

    @classmethod
    def unpack(cls, data: bytes) -> Credentials:
        return cls(*UCRED.unpack(data))


def capable(credentials: Credentials, owner: int) -> bool:
    """Whether a client has CAP_NET_ADMIN over the machine that user *owner* runs.

    The superuser and the owner have it, and so has a process with the capability in its
    effective set. A process that is gone has not.
    """
    if credentials.uid in (0, owner):
        return True
    try:
        with open(f"/proc/{credentials.pid}/status", encoding="ascii", errors="replace") as status:
            for line in status:
                if line.startswith("CapEff:"):
                    return bool(int(line.split()[1], 16) >> CAP_NET_ADMIN & 1)
    except (OSError, ValueError, IndexError):
        return False
    return False
