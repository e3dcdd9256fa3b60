# SPDX-License-Identifier: MIT
"""What an OSError says in one line, to those who wait for a command."""

from __future__ import annotations


def reason(error: OSError) -> str:
    """What has happened, and at which file if that is known."""
    happened = error.strerror or str(error)
    return f"{error.filename}: {happened}" if error.filename else happened
