# SPDX-License-Identifier: MIT
"""What the commands share: their group, options and values, files, and what errors look like."""

from __future__ import annotations

import errno
import os
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TypeVar

import click
from click.shell_completion import CompletionItem

from tsmfs.instance import ControlStream, InstanceError, find_instance

Command = TypeVar("Command", bound=Callable[..., object])

#: How long a command waits before it looks for something new in a file, in seconds.
POLL_INTERVAL = 0.1

#: Bytes of the nonces that are made here: those of SPDM have as many.
NONCE_SIZE = 32


class Group(click.Group):
    """Lists the commands in the order of a user's day instead of the alphabet's."""

    def list_commands(self, ctx: click.Context) -> list[str]:
        return list(self.commands)


def complete_machine(
    ctx: click.Context, param: click.Parameter, incomplete: str
) -> list[CompletionItem]:
    """The built-in machines that begin so, else files."""
    from tsmfs.description import builtin_names

    names = [CompletionItem(name) for name in builtin_names() if name.startswith(incomplete)]
    return names or [CompletionItem(incomplete, type="file")]


def complete_function(
    ctx: click.Context, param: click.Parameter, incomplete: str
) -> list[CompletionItem]:
    """The PCI functions of the machine that begin so."""
    try:
        devices = find_instance(ctx.params.get("sysfs")).sysfs / "bus/pci/devices"
        names = sorted(entry.name for entry in devices.iterdir())
    except (InstanceError, OSError):
        return []
    return [CompletionItem(name) for name in names if name.startswith(incomplete)]


_MACHINE_OPTIONS = (
    click.option(
        "--machine",
        default="devsec",
        metavar="NAME|FILE",
        shell_complete=complete_machine,
        help="A built-in machine, or the TOML file of another. Default: devsec.",
    ),
    click.option(
        "--module",
        "modules",
        multiple=True,
        metavar="NAME",
        help="Load this module, besides those of the machine. May be given several times.",
    ),
    click.option("--no-modules", is_flag=True, help="Do not load the modules of the machine."),
)


def starts_machine(command: Command) -> Command:
    """Give a command the options that say which machine is started, with which modules."""
    for option in reversed(_MACHINE_OPTIONS):
        command = option(command)
    return command


def parse_nonce(ctx: click.Context, param: click.Parameter, text: str | None) -> bytes:
    """The bytes that an option ``--nonce`` names; none when it is not given."""
    if text is None:
        return b""
    if text == "random":
        return os.urandom(NONCE_SIZE)
    try:
        nonce = bytes.fromhex(text)
    except ValueError:
        nonce = b""
    if not nonce:
        raise click.BadParameter(f"{text!r} is neither bytes in hexadecimal nor 'random'.")
    return nonce


def check_nonce(nonce: bytes) -> bytes:
    """The nonce, if it is one of SPDM, or none. Raises UsageError."""
    if nonce and len(nonce) != NONCE_SIZE:
        raise click.UsageError(f"a nonce of SPDM has {NONCE_SIZE} bytes, not {len(nonce)}")
    return nonce


def on_instance(command: Command) -> Command:
    """Give a command the option ``--sysfs``, which says on which machine it works."""
    return click.option(
        "--sysfs",
        type=click.Path(path_type=Path),
        metavar="DIR",
        help="The mount point of the machine. Default: the one that TSMFS_SYSFS names, else the "
        "only one that is mounted.",
    )(command)


def function_directory(sysfs: Path | None, name: str) -> Path:
    """The directory of the PCI function called ``name``. Raises InstanceError."""
    directory = find_instance(sysfs).sysfs / "bus/pci/devices" / name
    if not directory.is_dir():
        raise InstanceError(f"{name}: {os.strerror(errno.ENODEV)}")
    return directory


@contextmanager
def about(place: str) -> Iterator[None]:
    """Makes an OSError one line that begins with where it happened."""
    try:
        yield
    except OSError as error:
        raise click.ClickException(f"{place}: {error.strerror or error}") from error


def follow_stream(stream: ControlStream) -> Iterator[bytes]:
    """What is there and what comes, until the machine is unmounted."""
    while True:
        try:
            chunk = stream.read()
        except OSError:
            return
        if chunk:
            yield chunk
        else:
            time.sleep(POLL_INTERVAL)
