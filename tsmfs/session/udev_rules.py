# SPDX-License-Identifier: MIT
"""What udevd finds in a session: the rules directories that were asked for, and their programs.

udevd reads rules from ``/etc/udev/rules.d``, ``/run/udev/rules.d``, ``/usr/local/lib/udev/rules.d``
and ``/usr/lib/udev/rules.d``, of which the first that has a file name wins, and looks for programs
without a path in ``/usr/lib/udev`` (udev(7)).
"""

from __future__ import annotations

import errno
import os
import stat
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from tsmfs.session import SessionError
from tsmfs.session.namespaces import bind, mount

RULES = Path("/run/udev/rules.d")
"""Where the given rules are for udevd."""

KEPT = Path("/run/tsmfs/udev")
"""Where directories can be reached that others cover."""

_ADMIN_RULES = Path("/etc/udev/rules.d")
_LOCAL_RULES = Path("/usr/local/lib/udev/rules.d")
_PROGRAMS = (Path("/usr/lib/udev"), Path("/lib/udev"))
_RULES_OF_PROGRAMS = "rules.d"
_SUFFIX = ".rules"


class UdevdError(SessionError):
    """udevd cannot be had in this session; the text is one line that says why."""


@dataclass(frozen=True, slots=True)
class Source:
    """A directory with rules and programs."""

    path: Path
    """Where it is in the session."""
    label: str
    """Its name for the user."""


@dataclass(slots=True)
class RulesView:
    """The directories as udevd sees them, kept in step with those that they show."""

    sources: Sequence[Source]
    """What has rules for :data:`RULES`; the last one that has a name wins."""
    programs: Mapping[Path, Mapping[str, Path]] = field(default_factory=dict)
    """Each directory of programs with what the host has there."""

    @property
    def linked(self) -> bool:
        """Whether :data:`RULES` has links to rules, not a directory's own files."""
        return len(self.sources) > 1

    def update(self) -> None:
        """Make links to what has come, and remove those to what has gone."""
        if self.linked:
            _link(RULES, dict(self._files(_is_rules)))
        added = dict(self._files(_is_program))
        for directory, host in self.programs.items():
            _link(directory, {**host, **added})

    def origin(self, name: str) -> str:
        """Where the user finds the rules file *name* that udevd has in :data:`RULES`."""
        for source in reversed(self.sources):
            if (source.path / name).exists():
                return f"{source.label.rstrip('/')}/{name}"
        return f"{RULES}/{name}"

    def _files(self, wanted: Callable[[os.DirEntry[str]], bool]) -> Iterator[tuple[str, Path]]:
        for source in self.sources:
            with os.scandir(source.path) as entries:
                yield from ((e.name, source.path / e.name) for e in entries if wanted(e))


def arrange(rules: Sequence[int], *, host_rules: bool) -> RulesView:
    """Show udevd the directories *rules*, the last one first, before or instead of the host's.

    Covers directories in this mount namespace. UdevdError when one of *rules* cannot be shown.
    """
    RULES.mkdir(parents=True, exist_ok=True)
    sources = []
    # What is in there would go before the rules that were given, where it is.
    if host_rules and _ADMIN_RULES.is_dir() and os.listdir(_ADMIN_RULES):
        sources.append(Source(_keep(_ADMIN_RULES, KEPT / "etc"), str(_ADMIN_RULES)))
    sources += [_source(fd, KEPT / f"rules{number}") for number, fd in enumerate(rules)]
    if _ADMIN_RULES.is_dir():
        _cover(_ADMIN_RULES)
    if _LOCAL_RULES.is_dir() and not host_rules:
        _cover(_LOCAL_RULES)
    view = RulesView(sources, dict(_cover_programs(host_rules=host_rules)))
    if len(sources) == 1:
        bind(sources[0].path, RULES)
    view.update()
    return view


def _source(descriptor: int, place: Path) -> Source:
    """Show the open directory at *place*, whatever covers its path by now."""
    label = os.readlink(f"/proc/self/fd/{descriptor}")
    try:
        return Source(_keep(Path(f"/proc/self/fd/{descriptor}"), place), label)
    except OSError as error:
        if error.errno != errno.EINVAL:
            raise UdevdError(f"{label}: {error.strerror}") from error
    # It was opened in another mount namespace; here its path may still lead to it.
    try:
        same = os.path.samestat(os.stat(label), os.fstat(descriptor))
    except OSError:
        same = False
    if not same:
        raise UdevdError(f"{label}: rules there cannot be seen from inside a session")
    return Source(_keep(Path(label), place), label)


def _keep(directory: Path, place: Path) -> Path:
    place.mkdir(parents=True, exist_ok=True)
    bind(directory, place)
    return place


def _cover(directory: Path) -> None:
    mount("tmpfs", directory, "tmpfs", data="mode=755")


def _cover_programs(*, host_rules: bool) -> Iterator[tuple[Path, dict[str, Path]]]:
    """Cover the host's directories of programs, so that links fit in beside what they have."""
    there = {path.resolve(): None for path in _PROGRAMS if path.is_dir()}
    for number, directory in enumerate(there):
        kept = _keep(directory, KEPT / f"lib{number}")
        _cover(directory)
        host = {name: kept / name for name in os.listdir(kept)}
        if host.pop(_RULES_OF_PROGRAMS, None) is not None:
            (directory / _RULES_OF_PROGRAMS).mkdir()
            if host_rules:
                bind(kept / _RULES_OF_PROGRAMS, directory / _RULES_OF_PROGRAMS)
        yield directory, host


def _is_rules(entry: os.DirEntry[str]) -> bool:
    return entry.name.endswith(_SUFFIX)


def _is_program(entry: os.DirEntry[str]) -> bool:
    try:
        mode = entry.stat().st_mode
    except OSError:
        return False
    return stat.S_ISREG(mode) and bool(mode & 0o111) and not _is_rules(entry)


def _link(directory: Path, wanted: Mapping[str, Path]) -> None:
    """Have links in *directory* to *wanted*, and no others."""
    there = {entry.name for entry in os.scandir(directory) if entry.is_symlink()}
    for name in there - wanted.keys():
        (directory / name).unlink()
    for name, target in wanted.items():
        if name in there and os.readlink(directory / name) == str(target):
            continue
        # In one step: udevd may read the directory at any time.
        fresh = directory / f".{name}"
        fresh.symlink_to(target)
        fresh.rename(directory / name)
