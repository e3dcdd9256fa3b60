# SPDX-License-Identifier: MIT
"""The command ``tsmfs``: mounts machines, and reads and writes the control files of mounted ones.

What a command needs is imported when it runs, so that the small ones start fast.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
import time
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

import click
from click.shell_completion import CompletionItem

from tsmfs import __version__
from tsmfs.command import Group, complete_machine, follow_stream, on_instance, starts_machine
from tsmfs.evidence_cli import evidence, netlink
from tsmfs.instance import (
    ENVIRONMENT_VARIABLE,
    Instance,
    InstanceError,
    find_instance,
)
from tsmfs.oserror import reason
from tsmfs.session_cli import enter, exec_, sessions, shell
from tsmfs.spdm_cli import spdm
from tsmfs.verify_cli import verify

if TYPE_CHECKING:
    from tsmfs.status import State

#: What a shell reports for a process that SIGINT ended.
_INTERRUPTED = 130


def _complete_module(
    ctx: click.Context, param: click.Parameter, incomplete: str
) -> list[CompletionItem]:
    try:
        names = find_instance(ctx.params.get("sysfs")).module_names()
    except (InstanceError, OSError):
        return []
    return [CompletionItem(name) for name in names if name.startswith(incomplete)]


@click.group(cls=Group, context_settings={"help_option_names": ["-h", "--help"]})
@click.version_option(__version__, prog_name="tsmfs", message="%(prog)s %(version)s")
def cli() -> None:
    """Mount an emulated machine with TEE I/O devices, and steer it.

    A mounted machine looks like /sys of a Linux system whose PCI devices can be connected, locked
    and accepted through PCI/TSM. Every command is a thin cover over the files of the mount: the
    control files are below kernel/tsmfs/.

    \b
    Examples:
      tsmfs mount /mnt/x
      echo tsm0 > /mnt/x/bus/pci/devices/10000:01:00.0/tsm/connect
      tsmfs status
      tsmfs umount /mnt/x

    Completion of commands, options, modules and machines, for this shell (bash; zsh and fish
    have zsh_source and fish_source in the place of bash_source):

    \b
      eval "$(_TSMFS_COMPLETE=bash_source tsmfs)"

    The exit status is 0 for success, 1 for a failure, which is told in one line, and 2 for a
    command line that cannot be understood.
    """


@cli.command()
@starts_machine
@click.option("--uevents", is_flag=True, help="Send the uevents into the network namespace too.")
@click.option("-f", "--foreground", is_flag=True, help="Stay until the machine is unmounted.")
@click.argument("directory", metavar="DIR", type=click.Path(path_type=Path))
def mount(
    machine: str,
    modules: tuple[str, ...],
    no_modules: bool,
    uevents: bool,
    foreground: bool,
    directory: Path,
) -> None:
    """Mount an emulated machine on DIR.

    DIR has to be an empty directory. The command returns when the machine can be read; with -f it
    stays, and SIGINT or SIGTERM unmount the machine.

    \b
    Examples:
      tsmfs mount /mnt/x
      tsmfs mount --machine server /mnt/x
      tsmfs mount --no-modules --module devsec_bus /mnt/x
      tsmfs mount --machine ./mine.toml -f /mnt/x
    """
    from tsmfs.mount import MountError, MountRequest, mount_machine

    request = MountRequest(
        directory=directory,
        machine=machine,
        modules=modules,
        machine_modules=not no_modules,
        uevents=uevents,
        foreground=foreground,
    )
    try:
        mount_machine(request)
    except MountError as error:
        raise click.ClickException(str(error)) from error
    if not foreground:
        click.echo(f"{machine} is mounted on {directory}")


@cli.command()
@click.argument("directory", metavar="DIR", type=click.Path(path_type=Path))
def umount(directory: Path) -> None:
    """Unmount the machine on DIR, also one whose daemon is gone.

    \b
    Example:
      tsmfs umount /mnt/x
    """
    from tsmfs.mount import MountError, unmount_machine

    try:
        unmount_machine(directory)
    except MountError as error:
        raise click.ClickException(str(error)) from error


for _command in (exec_, shell, enter, sessions):
    cli.add_command(_command)


@cli.command()
@on_instance
@click.option("-r", "--remove", is_flag=True, help="Unload, with what nothing else depends on.")
@click.option("-a", "--all", "every", is_flag=True, help="All names are modules to load.")
@click.option("-q", "--quiet", is_flag=True, help="Print no errors.")
@click.option("-v", "--verbose", is_flag=True, help="Print what is loaded and unloaded.")
@click.option("--first-time", is_flag=True, help="Fail when there is nothing left to do.")
@click.argument("name", shell_complete=_complete_module)
@click.argument("parameters", nargs=-1, metavar="[PARAMETER=VALUE]...")
def modprobe(
    sysfs: Path | None,
    remove: bool,
    every: bool,
    quiet: bool,
    verbose: bool,
    first_time: bool,
    name: str,
    parameters: tuple[str, ...],
) -> None:
    """Load the module NAME and what it depends on, or unload it.

    Messages and exit statuses are those of the real modprobe. The directory bin of
    this package holds modprobe, rmmod, lsmod, insmod and modinfo as programs of their own.

    \b
    Examples:
      tsmfs modprobe devsec_tsm
      tsmfs modprobe devsec_pci autoprobe=0
      tsmfs modprobe -r devsec_tsm
    """
    chosen = {
        "--remove": remove,
        "--all": every,
        "--quiet": quiet,
        "--verbose": verbose,
        "--first-time": first_time,
    }
    options = [option for option, given in chosen.items() if given]
    _run_kmod("modprobe", [*options, "--", name, *parameters], find_instance(sysfs))


@cli.command()
@on_instance
def lsmod(sysfs: Path | None) -> None:
    """List the loaded modules.

    Each with its size, its reference count and the modules that use it.

    \b
    Example:
      tsmfs lsmod
    """
    _run_kmod("lsmod", [], find_instance(sysfs))


@cli.command()
@on_instance
@click.option("-w", "--follow", is_flag=True, help="Wait for more.")
def dmesg(sysfs: Path | None, follow: bool) -> None:
    """Print the kernel log of the machine.

    \b
    Examples:
      tsmfs dmesg | tail
      tsmfs dmesg -w
    """
    with find_instance(sysfs).open_stream("log") as stream:
        for chunk in follow_stream(stream) if follow else stream.rest():
            click.echo(chunk, nl=False)


@cli.command()
@on_instance
def monitor(sysfs: Path | None) -> None:
    """Print uevents as they happen.

    The output is that of udevadm monitor --property. Ends when the machine is unmounted.

    \b
    Example:
      tsmfs monitor
    """
    with find_instance(sysfs).open_stream("uevents") as stream:
        for _ in stream.rest():
            pass  # What happened before this is not news.
        click.echo("monitor will print the received events for:\nKERNEL - the kernel uevent\n")
        pending = b""
        for chunk in follow_stream(stream):
            *records, pending = (pending + chunk).split(b"\0\0")
            for record in records:
                click.echo(_format_uevent(record))


@cli.command()
@on_instance
@click.option("--json", "as_json", is_flag=True, help="Print JSON instead of a tree.")
def status(sysfs: Path | None, as_json: bool) -> None:
    """Show the topology with the state of every function.

    First the TSMs, then a tree for every host bridge. A function is idle, connected, bound,
    locked or accepted; after that come the TSM that holds it, the function that is its DSM, and
    its streams. Last is where netlink is served.

    \b
    Examples:
      tsmfs status
      tsmfs status --json | jq '.host_bridges[].functions'
    """
    from tsmfs.status import read_topology, render

    topology = read_topology(find_instance(sysfs))
    if as_json:
        click.echo(json.dumps(topology.to_dict(), indent=2))
    else:
        click.echo("\n".join(render(topology, _paint)))


evidence.add_command(verify)
cli.add_command(evidence)
cli.add_command(spdm)
cli.add_command(netlink)


@cli.group()
def machine() -> None:
    """Built-in machines, and the check of others.

    \b
    Examples:
      tsmfs machine list
      tsmfs machine show server > mine.toml
      tsmfs machine check mine.toml
    """


@machine.command("list")
def machine_list() -> None:
    """List the built-in machines.

    \b
    Example:
      tsmfs machine list
    """
    from tsmfs.description import builtin_names, find

    for name in builtin_names():
        described, _ = find(name)
        click.echo(f"{name:<12} {described.description}".rstrip())


@machine.command("show")
@click.argument("name", shell_complete=complete_machine)
def machine_show(name: str) -> None:
    """Print the description of the built-in machine NAME.

    \b
    Example:
      tsmfs machine show server > mine.toml
    """
    from tsmfs.description import find

    _, text = find(name)
    click.echo(text, nl=False)


@machine.command("check")
@click.argument("file", type=click.Path(path_type=Path))
def machine_check(file: Path) -> None:
    """Check the description of a machine in FILE.

    Every mistake is told in a line of its own, with file, key and reason.

    \b
    Example:
      tsmfs machine check mine.toml
    """
    from tsmfs.description import load

    load(file)
    click.echo(f"{file}: ok")


def main(arguments: Sequence[str] | None = None) -> None:
    """Run the command and end the process; an error is one line that starts with ``tsmfs:``."""
    sys.exit(_run(arguments))


def _run(arguments: Sequence[str] | None) -> int:
    """Run the command; returns the exit status."""
    try:
        result: object = cli.main(
            None if arguments is None else list(arguments), prog_name="tsmfs", standalone_mode=False
        )
        return result if isinstance(result, int) else 0
    except click.ClickException as error:
        return _fail([error.format_message()], error.exit_code)
    except (click.Abort, KeyboardInterrupt):
        return _INTERRUPTED
    except InstanceError as error:
        return _fail([str(error)], 1)
    except OSError as error:
        return _fail([reason(error)], 1)
    except ValueError as error:
        from tsmfs.description import DescriptionError

        if not isinstance(error, DescriptionError):
            raise
        return _fail([str(mistake) for mistake in error.errors], 1)


def _fail(messages: Sequence[str], exit_status: int) -> int:
    for message in messages:
        click.echo(f"tsmfs: {' '.join(message.split())}", err=True)
    return exit_status


def _run_kmod(tool: str, arguments: Sequence[str], instance: Instance) -> None:
    """Run one of the stand-ins for kmod's tools on ``instance``, and end as it ends."""
    program = Path(__file__).parent / "bin" / tool
    environment = {**os.environ, ENVIRONMENT_VARIABLE: str(instance.sysfs)}
    finished = subprocess.run([program, *arguments], env=environment, check=False)
    if finished.returncode:
        raise click.exceptions.Exit(finished.returncode)


def _format_uevent(record: bytes) -> str:
    """One uevent as udevadm prints it; the time is that of its arrival here."""
    _, *properties = record.decode(errors="replace").split("\0")
    values = dict(line.split("=", 1) for line in properties if "=" in line)
    title = (
        f"KERNEL[{time.monotonic():.6f}] {values.get('ACTION', ''):<8} "
        f"{values.get('DEVPATH', '')} ({values.get('SUBSYSTEM', '')})"
    )
    return "\n".join([title, *properties, ""])


def _paint(text: str, state: State) -> str:
    """Colour by state: green is trusted, yellow is on the way, dim is idle."""
    from tsmfs.status import State

    match state:
        case State.ACCEPTED | State.BOUND:
            return click.style(text, fg="green", bold=True)
        case State.CONNECTED:
            return click.style(text, fg="green")
        case State.LOCKED:
            return click.style(text, fg="yellow")
        case _:
            return click.style(text, dim=True)
