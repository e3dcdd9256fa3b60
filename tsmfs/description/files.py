# SPDX-License-Identifier: MIT
"""Where descriptions are: in files, and built into tsmfs."""

from __future__ import annotations

from importlib import resources
from pathlib import Path

from tsmfs.description.findings import DescriptionError, Mistake
from tsmfs.description.model import Machine
from tsmfs.description.parsing import parse


def _read_text(path: Path) -> str:
    try:
        return path.read_bytes().decode()
    except OSError as error:
        reason = error.strerror or str(error)
    except UnicodeDecodeError as error:
        reason = f"not UTF-8 text: byte {error.start} is {error.object[error.start]:#04x}"
    except ValueError as error:
        reason = str(error)
    raise DescriptionError([Mistake(str(path), "", reason)])


def load(path: Path) -> Machine:
    """The machine that the file at ``path`` describes.

    Raises DescriptionError, also when the file cannot be read.
    """
    return parse(_read_text(path), str(path))


def _builtin_texts() -> dict[str, str]:
    files = resources.files("tsmfs").joinpath("machines").iterdir()
    return {
        file.name.removesuffix(".toml"): file.read_text("utf-8")
        for file in sorted(files, key=lambda file: file.name)
        if file.name.endswith(".toml")
    }


def builtin_names() -> list[str]:
    """Names of the machines that come with tsmfs, in alphabetical order."""
    return list(_builtin_texts())


def builtin_text(name: str) -> str:
    """The TOML text of a built-in machine; an unknown name raises DescriptionError."""
    texts = _builtin_texts()
    if name in texts:
        return texts[name]
    known = ", ".join(texts)
    reason = f"unknown machine; built in are {known}; for a file give a path ending in .toml"
    raise DescriptionError([Mistake(name, "", reason)])


def find(name_or_path: str) -> tuple[Machine, str]:
    """A built-in machine by its name, or one from a file, with its TOML text.

    Anything with a ``/`` or ending in ``.toml`` is a path. Raises DescriptionError.
    """
    if "/" in name_or_path or name_or_path.endswith(".toml"):
        text = _read_text(Path(name_or_path))
        return parse(text, name_or_path), text
    text = builtin_text(name_or_path)
    return parse(text, f"{name_or_path}.toml"), text
