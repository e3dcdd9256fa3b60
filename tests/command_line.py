# SPDX-License-Identifier: MIT
"""Commands that are run inside the process of the tests, as the console script runs them."""

from __future__ import annotations

import re
from collections.abc import Callable
from dataclasses import dataclass


@dataclass(frozen=True)
class Result:
    """How a command ended, and what it printed."""

    status: int
    out: str
    err: str

    @property
    def steps(self) -> dict[str, str]:
        """What came of each step of a walk, ``spdm request``."""
        rows = (line.split("  ", 1) for line in self.out.splitlines() if not line.startswith("  "))
        return {name: result.strip() for name, result in rows}

    @property
    def checks(self) -> dict[str, str]:
        """The mark of each check in the table of ``evidence verify``."""
        rows = re.findall(r"^(\w+) +(ok|FAIL|-) +\S.*$", self.out, re.MULTILINE)
        return dict(rows)

    @property
    def failed(self) -> set[str]:
        """The checks in it that failed."""
        return {name for name, mark in self.checks.items() if mark == "FAIL"}


Run = Callable[..., Result]
"""Runs the command with these arguments."""
