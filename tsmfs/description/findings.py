# SPDX-License-Identifier: MIT
"""What is wrong in a description: mistakes, their collection, and the exception that tells them."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class Mistake:
    """One thing wrong in a description; ``key`` is empty when it is about the file as a whole."""

    source: str
    key: str
    reason: str

    def __str__(self) -> str:
        return ": ".join(part for part in (self.source, self.key, self.reason) if part)


class DescriptionError(ValueError):
    """A description that cannot be used: every mistake found, a line each in ``str()``."""

    def __init__(self, errors: Sequence[Mistake]) -> None:
        super().__init__("\n".join(str(error) for error in errors))
        self.errors: tuple[Mistake, ...] = tuple(errors)


class Findings:
    """The mistakes so far, and the keys and tables whose values are stand-ins because of one."""

    def __init__(self, source: str) -> None:
        self.source = source
        self.mistakes: list[Mistake] = []
        self.doubtful: set[str] = set()

    def add(self, key: str, reason: str) -> None:
        """Record one mistake."""
        self.mistakes.append(Mistake(self.source, key, reason))

    def doubts(self, owner: str, *names: str) -> bool:
        """Whether any of these keys of ``owner`` holds a stand-in."""
        return any(f"{owner}.{name}" in self.doubtful for name in names)

    def broken(self, owner: str, key: str, reason: str) -> None:
        """Record a rule that ``key`` of ``owner`` breaks; an empty ``key`` is ``owner`` itself.

        Left out when the mistake may only follow from one recorded before.
        """
        # A key of the owner stands for itself; those of a table in it are doubtful together.
        table = key.rpartition(".")[0]
        if not key:
            self.add(owner, reason)
        elif not self.doubts(owner, key, *filter(None, [table])):
            self.add(f"{owner}.{key}", reason)
