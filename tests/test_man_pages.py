# SPDX-License-Identifier: MIT
"""The man pages are the texts of --help."""

from __future__ import annotations

import importlib.util
from pathlib import Path
from types import ModuleType

import pytest

DOCUMENTATION = Path(__file__).parent.parent / "Documentation"


@pytest.fixture(scope="module")
def manpages() -> ModuleType:
    spec = importlib.util.spec_from_file_location("manpages", DOCUMENTATION / "manpages.py")
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def test_pages_are_up_to_date(manpages: ModuleType) -> None:
    written = {path.name: path.read_text() for path in (DOCUMENTATION / "man").iterdir()}
    assert written == manpages.pages(), "run `make man`"


def test_page_has_the_sections_of_a_command(manpages: ModuleType) -> None:
    lines = manpages.pages()["tsmfs-mount.1"].splitlines()
    assert [line.removeprefix(".SH ") for line in lines if line.startswith(".SH ")] == [
        "NAME",
        "SYNOPSIS",
        "DESCRIPTION",
        "OPTIONS",
        "EXAMPLES",
        "SEE ALSO",
    ]
    assert "tsmfs\\-mount \\- Mount an emulated machine on DIR" in lines


def test_main_writes_every_page(manpages: ModuleType, tmp_path: Path) -> None:
    manpages.main(tmp_path)
    assert {path.name: path.read_text() for path in tmp_path.iterdir()} == manpages.pages()
