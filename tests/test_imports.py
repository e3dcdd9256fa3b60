# SPDX-License-Identifier: MIT
"""Every module imports only what the architecture allows it, and carries its licence."""

from __future__ import annotations

import ast
import sys
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent

#: How the names of source files end; a program may have no suffix, and says what reads it.
SOURCE_SUFFIXES = {".py", ".sh", ".toml", ".yaml", ".c"}


@dataclass(frozen=True)
class Layer:
    """What one package or module may import besides itself and the standard library."""

    own: frozenset[str] = frozenset()
    """Packages and modules of the project."""
    third_party: frozenset[str] = frozenset()


def layer(*own: str, third_party: tuple[str, ...] = ()) -> Layer:
    return Layer(frozenset(own), frozenset(third_party))


CORES = ("tsmfs.kernel", "tsmfs.base", "tsmfs.pci", "tsmfs.coco", "tsmfs.spdm")

TABLE: Mapping[str, Layer] = {
    "tsmfs": layer(),
    "tsmfs.__main__": layer("tsmfs.cli"),
    "tsmfs.kernel": layer(),
    "tsmfs.base": layer("tsmfs.kernel"),
    "tsmfs.spdm": layer(third_party=("cryptography",)),
    "tsmfs.pci": layer("tsmfs.base", "tsmfs.kernel", "tsmfs.spdm"),
    "tsmfs.coco": layer("tsmfs.base", "tsmfs.kernel"),
    "tsmfs.drivers": layer(*CORES),
    "tsmfs.description": layer(),
    "tsmfs.board": layer("tsmfs.kernel", "tsmfs.base", "tsmfs.pci", "tsmfs.description"),
    "tsmfs.board_cma": layer(
        "tsmfs.kernel", "tsmfs.pci", "tsmfs.spdm", "tsmfs.description", "tsmfs.board"
    ),
    "tsmfs.control": layer("tsmfs.kernel", "tsmfs.base", "tsmfs.pci"),
    "tsmfs.evidence": layer("tsmfs.kernel", "tsmfs.pci", "netlink"),
    "tsmfs.fs": layer("tsmfs.base", third_party=("fuse", "mfusepy")),
    "tsmfs.machine": layer(
        *CORES,
        "tsmfs.drivers",
        "tsmfs.fs",
        "tsmfs.description",
        "tsmfs.board",
        "tsmfs.board_cma",
        "tsmfs.control",
        "tsmfs.evidence",
        "netlink",
    ),
    "tsmfs.umount": layer(),
    "tsmfs.oserror": layer(),
    "tsmfs.runtime": layer("tsmfs.kernel"),
    "tsmfs.daemon": layer(
        "tsmfs.fs",
        "tsmfs.machine",
        "tsmfs.base",
        "tsmfs.description",
        "tsmfs.instance",
        "tsmfs.umount",
    ),
    "tsmfs.mount": layer(
        "tsmfs.daemon",
        "tsmfs.fs",
        "tsmfs.machine",
        "tsmfs.instance",
        "tsmfs.runtime",
        "tsmfs.umount",
    ),
    "tsmfs.session": layer(
        "tsmfs.daemon",
        "tsmfs.fs",
        "tsmfs.machine",
        "tsmfs.kernel",
        "tsmfs.instance",
        "tsmfs.runtime",
        "tsmfs.umount",
        "tsmfs.oserror",
        "netlink",
    ),
    "tsmfs.verify": layer("tsmfs.spdm", third_party=("cryptography",)),
    "tsmfs.mailbox": layer("tsmfs.pci", "tsmfs.spdm"),
    "tsmfs.instance": layer(),
    "tsmfs.status": layer("tsmfs.instance"),
    "tsmfs.command": layer("tsmfs.instance", "tsmfs.description", third_party=("click",)),
    "tsmfs.evidence_cli": layer(
        "tsmfs.instance", "tsmfs.command", "netlink", third_party=("click",)
    ),
    "tsmfs.spdm_options": layer("tsmfs.spdm", third_party=("click",)),
    "tsmfs.spdm_respond_cli": layer(
        "tsmfs.spdm",
        "tsmfs.mailbox",
        "tsmfs.spdm_options",
        "tsmfs.command",
        third_party=("click",),
    ),
    "tsmfs.spdm_request_cli": layer(
        "tsmfs.spdm",
        "tsmfs.mailbox",
        "tsmfs.verify",
        "tsmfs.spdm_options",
        "tsmfs.command",
        third_party=("click", "cryptography"),
    ),
    "tsmfs.spdm_cli": layer(
        "tsmfs.spdm",
        "tsmfs.spdm_respond_cli",
        "tsmfs.spdm_request_cli",
        "tsmfs.command",
        third_party=("click", "cryptography"),
    ),
    "tsmfs.verify_cli": layer(
        "tsmfs.instance",
        "tsmfs.command",
        "tsmfs.evidence_cli",
        "tsmfs.verify",
        "netlink",
        third_party=("click", "cryptography"),
    ),
    "tsmfs.session_cli": layer(
        "tsmfs.command",
        "tsmfs.daemon",
        "tsmfs.session",
        "tsmfs.oserror",
        third_party=("click",),
    ),
    "tsmfs.cli": layer(
        "tsmfs",
        "tsmfs.instance",
        "tsmfs.oserror",
        "tsmfs.command",
        "tsmfs.evidence_cli",
        "tsmfs.session_cli",
        "tsmfs.spdm_cli",
        "tsmfs.verify_cli",
        "tsmfs.status",
        "tsmfs.mount",
        "tsmfs.description",
        third_party=("click",),
    ),
    "netlink": layer(third_party=("pyroute2", "yaml")),
}


def modules(*packages: str) -> list[Path]:
    """The Python files below some directories, relative to the root of the project."""
    return sorted(
        path.relative_to(ROOT) for package in packages for path in (ROOT / package).rglob("*.py")
    )


def sources() -> list[Path]:
    """All source files, relative to the root of the project."""
    everything = [ROOT / "pyproject.toml", ROOT / "Makefile"]
    for directory in (".ci", "bin", "tsmfs", "netlink", "tests", "Documentation"):
        everything += sorted((ROOT / directory).rglob("*"))
    return [path.relative_to(ROOT) for path in everything if is_source(path)]


def is_source(path: Path) -> bool:
    if path.is_symlink() or not path.is_file() or "__pycache__" in path.parts:
        return False
    if path.suffix in SOURCE_SUFFIXES or path.name == "Makefile":
        return True
    with path.open("rb") as file:
        return file.read(2) == b"#!"


def module_name(path: Path) -> str:
    parts = path.with_suffix("").parts
    return ".".join(parts[:-1] if parts[-1] == "__init__" else parts)


def row_of(name: str) -> str | None:
    """The row of the table for a module: its own, or that of the nearest package above it.

    ``tsmfs`` itself has a row for its ``__init__`` only.
    """
    while name and name not in TABLE:
        name = name.rpartition(".")[0]
    return name or None


def imported(path: Path) -> Iterator[str]:
    """Absolute names of all modules that a file imports, wherever in it the import is."""
    package = module_name(path).split(".")
    if path.name != "__init__.py":
        package.pop()
    for node in ast.walk(ast.parse((ROOT / path).read_text())):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.Call) and ast.unparse(node.func).endswith("import_module"):
            literal = node.args[0]
            if isinstance(literal, ast.Constant):
                yield str(literal.value)
        elif isinstance(node, ast.ImportFrom):
            above = package[: len(package) + 1 - node.level] if node.level else []
            source = ".".join([*above, *([node.module] if node.module else [])])
            # `from tsmfs import cli` imports a module, `from tsmfs import __version__` does not.
            for alias in node.names:
                name = f"{source}.{alias.name}"
                yield name if name in TABLE else source


def faults(path: Path) -> list[str]:
    """The imports of a file that the table does not allow."""
    row = row_of(module_name(path))
    if row is None or (row == "tsmfs" and path.name != "__init__.py"):
        return [f"{path}: no row of the table is about this module"]
    allowed = TABLE[row]
    wrong = []
    for name in imported(path):
        top = name.partition(".")[0]
        if top in ("tsmfs", "netlink"):
            fine = row_of(name) in {row, *allowed.own}
        else:
            fine = top in sys.stdlib_module_names or top in allowed.third_party
        if not fine:
            wrong.append(f"{path}: {name}")
    return wrong


@pytest.mark.parametrize("path", modules("tsmfs", "netlink"), ids=str)
def test_module_imports_only_what_the_table_allows(path: Path) -> None:
    assert faults(path) == []


@pytest.mark.parametrize(
    ("path", "text", "wrong"),
    [
        ("tsmfs/kernel/x.py", "import tsmfs.base.bus", ["tsmfs.base.bus"]),
        ("tsmfs/base/x.py", "from tsmfs.kernel import locking", []),
        ("tsmfs/base/x.py", "from .bus import Bus", []),
        ("tsmfs/base/x.py", "from ..pci import tsm", ["tsmfs.pci"]),
        ("tsmfs/pci/x.py", "def f():\n    import fuse", ["fuse"]),
        ("tsmfs/fs.py", "import fuse, os", []),
        ("tsmfs/mount.py", "importlib.import_module('fuse')", ["fuse"]),
        ("tsmfs/cli.py", "from tsmfs import __version__, fs", ["tsmfs.fs"]),
        ("netlink/x.py", "from tsmfs.kernel.errors import fail", ["tsmfs.kernel.errors"]),
        ("netlink/transport/x.py", "import yaml\nfrom netlink import codec", []),
    ],
)
def test_check_sees_an_import_wherever_it_is(
    path: str, text: str, wrong: list[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(sys.modules[__name__], "ROOT", tmp_path)
    (tmp_path / path).parent.mkdir(parents=True)
    (tmp_path / path).write_text(text)
    assert faults(Path(path)) == [f"{path}: {name}" for name in wrong]


def test_module_without_a_row_is_a_fault() -> None:
    assert faults(Path("tsmfs/utils.py")) != []


@pytest.mark.parametrize("path", sources(), ids=str)
def test_source_file_names_its_licence_at_the_top(path: Path) -> None:
    lines = (ROOT / path).read_text().splitlines()
    comment = lines[1] if lines[0].startswith("#!") else lines[0]
    assert comment.strip("#/* ") == "SPDX-License-Identifier: MIT"


@pytest.mark.parametrize("path", modules("tsmfs", "netlink", "tests"), ids=str)
def test_module_says_what_it_is_for(path: Path) -> None:
    docstring = ast.get_docstring(ast.parse((ROOT / path).read_text()))
    assert docstring
    assert docstring.split("\n\n")[0].endswith(".")
