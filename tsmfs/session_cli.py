# SPDX-License-Identifier: MIT
"""The commands for sessions: ``exec``, ``shell``, ``enter``, ``sessions``."""

from __future__ import annotations

import json
import os
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click
from click.shell_completion import CompletionItem

from tsmfs.command import starts_machine
from tsmfs.oserror import reason

if TYPE_CHECKING:
    from tsmfs.session.front import Program, SessionRequest

#: The status of env(1) and others for a failure of their own, before COMMAND runs.
_FAILED = 125

#: Options end at COMMAND: what comes behind it is its own.
_COMMAND_SETTINGS = {"allow_interspersed_args": False}


class SessionFailure(click.ClickException):
    """A session did not start, or broke."""

    exit_code = _FAILED


def _complete_session(
    ctx: click.Context, param: click.Parameter, incomplete: str
) -> list[CompletionItem]:
    from tsmfs.session import registry

    names = [record.name for record in registry.running()]
    return [CompletionItem(name) for name in names if name.startswith(incomplete)]


_keep_env = click.option("--keep-env", is_flag=True, help="Keep all environment variables.")

_OPTIONS = (
    starts_machine,
    click.option("--udevd", is_flag=True, help="Run the host's systemd-udevd in the session."),
    click.option(
        "--rules",
        multiple=True,
        metavar="DIR",
        type=click.Path(exists=True, file_okay=False, path_type=Path, resolve_path=True),
        help="A directory of rules for udevd. May be given several times.",
    ),
    click.option("--host-rules", is_flag=True, help="Let udevd read the rules of the host, too."),
    _keep_env,
    click.option("--name", metavar="NAME", help="Name of the session. Default: MACHINE-PID."),
)


def _starts_session(command: Callable[..., int]) -> Callable[..., int]:
    """Give a command the options of one that starts a session."""
    for option in reversed(_OPTIONS):
        command = option(command)
    return command


@click.command("exec", context_settings=_COMMAND_SETTINGS)
@_starts_session
@click.argument("command", nargs=-1, required=True, metavar="COMMAND [ARG]...")
def exec_(command: tuple[str, ...], keep_env: bool, **options: Any) -> int:
    """Run COMMAND inside an emulated machine, which ends with it.

    In there /sys is the machine, and so are /proc/iomem, /proc/ioports and /proc/modules; modprobe
    and its kin load its modules; uevents come as the kernel's, and generic netlink programs find
    its families. Network, processes, /run and mounts are the session's own; all other files are
    those of the host. Any user may do this.

    Terminal, signals and job control are passed through, and the exit status is that of COMMAND,
    128+N when signal N killed it. It is 127 when COMMAND is not found, 126 when it cannot be run,
    and 125 when the session cannot be started or breaks, which is told in one line. Processes that
    COMMAND leaves behind end with it.

    \b
    Examples:
      tsmfs exec -- lspci -t
      tsmfs exec --machine server -- ./my-test --verbose
      tsmfs exec --udevd --rules ./rules.d -- udevadm monitor
    """
    from tsmfs.session.front import Program, run_session

    with _failing_in_one_line():
        program = Program(command, _variables(keep_env))
        return run_session(_request(program, **options))


@click.command()
@_starts_session
def shell(keep_env: bool, **options: Any) -> int:
    """Run your shell inside an emulated machine, as tsmfs exec does.

    Its prompt says so. Bash, zsh and fish read your own start-up files first.

    \b
    Example:
      tsmfs shell --machine server
    """
    from tsmfs.session.front import run_session

    with _failing_in_one_line():
        return run_session(_request(_shell(_variables(keep_env)), **options))


@click.command(context_settings=_COMMAND_SETTINGS)
@_keep_env
@click.argument("name", metavar="NAME", shell_complete=_complete_session)
@click.argument("command", nargs=-1, metavar="[[--] COMMAND [ARG]...]")
def enter(name: str, command: tuple[str, ...], keep_env: bool) -> int:
    """Run COMMAND, or your shell, in the running session NAME.

    It is killed when the session ends.

    \b
    Examples:
      tsmfs enter devsec-4711
      tsmfs enter devsec-4711 -- udevadm monitor --kernel
    """
    from tsmfs.session.enter import run_in_session
    from tsmfs.session.front import Program

    variables = _variables(keep_env)
    arguments = command[1:] if command[:1] == ("--",) else command
    with _failing_in_one_line():
        program = Program(arguments, variables) if arguments else _shell(variables)
        return run_in_session(name, program)


@click.command()
@click.option("--json", "as_json", is_flag=True, help="Print JSON instead of a table.")
def sessions(as_json: bool) -> None:
    """List your running sessions.

    Each with its name, its machine, the process that was called, its start, and its command.

    \b
    Example:
      tsmfs sessions
    """
    from tsmfs.session import registry

    running = registry.running()
    if as_json:
        click.echo(json.dumps([record.to_dict() for record in running], indent=2))
        return
    for record in running:
        start = time.strftime("%Y-%m-%d %H:%M:%S", time.localtime(record.started))
        command = " ".join(record.command)
        click.echo(f"{record.name:<20} {record.machine:<12} {record.front:>7} {start}  {command}")


def _variables(keep: bool) -> dict[str, str]:
    from tsmfs.session import environment

    return environment.kept(os.environ) if keep else environment.clean(os.environ)


def _shell(variables: Mapping[str, str]) -> Program:
    from tsmfs.session.front import Program
    from tsmfs.session.shell import interactive_shell

    arguments, more = interactive_shell(os.environ)
    return Program(arguments, {**variables, **more}, is_shell=True)


def _request(
    program: Program,
    *,
    machine: str,
    modules: tuple[str, ...],
    no_modules: bool,
    udevd: bool,
    rules: tuple[Path, ...],
    host_rules: bool,
    name: str | None,
) -> SessionRequest:
    from tsmfs.daemon import MachineRequest
    from tsmfs.session.front import SessionRequest

    machine_request = MachineRequest(machine, modules, not no_modules)
    if udevd:
        from tsmfs.session.services import udevd_service

        return SessionRequest(
            program, machine_request, name, rules, udevd_service(rules, host_rules)
        )
    if rules or host_rules:
        raise click.UsageError("--rules and --host-rules are of use with --udevd only")
    return SessionRequest(program, machine_request, name)


@contextmanager
def _failing_in_one_line() -> Iterator[None]:
    """Turn what goes wrong outside of COMMAND into a line and the exit status for it."""
    from tsmfs.session import SessionError
    from tsmfs.session.front import Interrupted

    try:
        yield
    except SessionError as error:
        raise SessionFailure(str(error)) from error
    except OSError as error:
        raise SessionFailure(reason(error)) from error
    except Interrupted as error:
        raise click.exceptions.Exit(128 + error.number) from error
