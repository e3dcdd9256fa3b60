# SPDX-License-Identifier: MIT
"""Writes the man pages of ``tsmfs`` and its commands from the texts of ``--help``."""

from __future__ import annotations

import inspect
import sys
from collections.abc import Iterator
from pathlib import Path

import click

from tsmfs import __version__
from tsmfs.cli import cli

_VERBATIM = "\b\n"
_EXAMPLES = ("Example:", "Examples:")


def pages() -> dict[str, str]:
    """The text of every page, in roff with the man macros (man(7)), by file name."""
    return {
        f"{context.command_path.replace(' ', '-')}.1": "\n".join(_page(context)) + "\n"
        for context in _contexts(click.Context(cli, info_name="tsmfs", **cli.context_settings))
    }


def _contexts(context: click.Context) -> Iterator[click.Context]:
    """The context of a command, then of all commands below it."""
    yield context
    for command in _subcommands(context):
        yield from _contexts(click.Context(command, parent=context, info_name=command.name))


def _subcommands(context: click.Context) -> list[click.Command]:
    group = context.command
    if not isinstance(group, click.Group):
        return []
    return [group.commands[name] for name in group.list_commands(context)]


def _page(context: click.Context) -> Iterator[str]:
    command = context.command
    title = context.command_path.replace(" ", "-")
    paragraphs = _paragraphs(command)
    examples = [text for text in paragraphs if _is_example(text)]
    yield f'.TH {_escape(title.upper())} 1 "" "tsmfs {__version__}" "tsmfs"'
    yield ".SH NAME"
    yield f"{_escape(title)} \\- {_escape(_summary(command))}"
    yield ".SH SYNOPSIS"
    yield f".B {_escape(context.command_path)}"
    yield _escape(" ".join(command.collect_usage_pieces(context)))
    yield ".SH DESCRIPTION"
    for text in paragraphs:
        if text not in examples:
            yield from _paragraph(text)
    yield ".SH OPTIONS"
    for option in command.get_params(context):
        if isinstance(option, click.Option):
            value = [] if option.is_flag else [option.metavar or ""]
            yield from _tagged(" ".join([", ".join(option.opts), *value]), option.help or "")
    commands = _subcommands(context)
    if commands:
        yield ".SH COMMANDS"
    for below in commands:
        yield from _tagged(f"{title}-{below.name}(1)", _summary(below) + ".")
    if examples:
        yield ".SH EXAMPLES"
    for text in examples:
        yield from _verbatim(text.removeprefix(_VERBATIM).split("\n")[1:])
    if context.parent is not None:
        yield ".SH SEE ALSO"
        yield f"{_escape(context.parent.command_path.replace(' ', '-'))}(1)"


def _summary(command: click.Command) -> str:
    """The first paragraph of the help, a sentence without its full stop."""
    return " ".join(_paragraphs(command)[0].split()).removesuffix(".")


def _paragraphs(command: click.Command) -> list[str]:
    return inspect.cleandoc(command.help or "").split("\n\n")


def _is_example(text: str) -> bool:
    return text.startswith(tuple(_VERBATIM + title for title in _EXAMPLES))


def _paragraph(text: str) -> Iterator[str]:
    yield ".PP"
    if text.startswith(_VERBATIM):
        yield from _verbatim(text.removeprefix(_VERBATIM).split("\n"))
    else:
        yield _escape(" ".join(text.split()))


def _verbatim(lines: list[str]) -> Iterator[str]:
    yield ".nf"
    yield from (_escape(line) for line in lines)
    yield ".fi"


def _tagged(tag: str, text: str) -> Iterator[str]:
    yield ".TP"
    yield f".B {_escape(tag)}"
    yield _escape(text)


def _escape(text: str) -> str:
    """``text`` as roff prints it: no escapes, no requests, hyphens that can be copied."""
    escaped = text.replace("\\", "\\e").replace("-", "\\-")
    return "\\&" + escaped if escaped.startswith((".", "'")) else escaped


def main(directory: Path) -> None:
    """Write every page into ``directory``."""
    for name, text in pages().items():
        (directory / name).write_text(text)


if __name__ == "__main__":
    main(Path(sys.argv[1]))
