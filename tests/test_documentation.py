# SPDX-License-Identifier: MIT
"""The documents name what is there, all of it, and nothing else."""

from __future__ import annotations

import errno
import json
import os
import re
import stat
import subprocess
import sys
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path

import pytest

from tests.test_imports import TABLE
from tsmfs import description
from tsmfs.base.kobject import Directory, File, Link, Node, find
from tsmfs.kernel.fault import Point
from tsmfs.machine import Machine

ROOT = Path(__file__).parent.parent
DOCUMENTATION = ROOT / "Documentation"
PAGES = sorted((DOCUMENTATION / "ABI/testing").iterdir())
DOCUMENTS = sorted(DOCUMENTATION.glob("*.md"))
EXAMPLE = DOCUMENTATION / "examples/vendor_tsm"

TAGS = ("Date", "KernelVersion", "Contact", "Description")
PLACES = {
    "...": r"(?:[^/]+/)*[^/]+",
    "DDDD:BB:DD.F": r"[0-9a-f]{4,}:[0-9a-f]{2}:[0-9a-f]{2}\.[0-7]",
    "DDDD:BB": r"[0-9a-f]{4,}:[0-9a-f]{2}",
    "tsmN": r"tsm\d+",
    "streamH.R.E": r"stream\d+\.\d+\.\d+",
    "<N>": r"\d+",
}
"""What stands for something else in a path, as a regular expression."""


@dataclass
class Entry:
    """One entry of an ABI page: some paths that are described together."""

    page: str
    what: list[str]
    tags: dict[str, str] = field(default_factory=dict)

    def patterns(self) -> Iterator[tuple[str, re.Pattern[str]]]:
        """Each path with what matches it."""
        places = "|".join(re.escape(place) for place in PLACES)
        for what in self.what:
            expression = ""
            for part in re.split(f"({places}|<[a-z]+>)", what.rstrip("/")):
                if part in PLACES:
                    expression += PLACES[part]
                else:
                    expression += r"[^/]+" if part.startswith("<") else re.escape(part)
            yield what, re.compile(expression)

    @property
    def head(self) -> str:
        """What the description says in its first parentheses: kind and mode."""
        match = re.match(r"\s*\(([^)]*)\)", self.tags["Description"])
        return match[1] if match else ""


def entries(page: Path) -> list[Entry]:
    """The entries of a page in the format of Linux's Documentation/ABI/README."""
    found: list[Entry] = []
    tag = ""
    for line in page.read_text().splitlines():
        match = re.match(r"([A-Za-z]+):\t+(.*)|(Description):$", line)
        name = (match[1] or match[3]) if match else ""
        if match and name == "What":
            if tag != "What":
                found.append(Entry(page.name, []))
            found[-1].what.append(match[2])
            tag = name
        elif match:
            assert name in TAGS, f"{page.name}: {line}"
            assert name not in found[-1].tags, f"{page.name}: {line}"
            found[-1].tags[name] = match[2] or ""
            tag = name
        elif tag:
            assert tag == "Description", f"{page.name}: {line}"
            assert not line or line.startswith("\t\t"), f"{page.name}: {line}"
            found[-1].tags[tag] += f"\n{line}"
    return found


ENTRIES = [entry for page in PAGES for entry in entries(page)]


def boot(name: str, modules: list[str] | None = None) -> Machine:
    machine = Machine(*description.find(name))
    machine.boot(modules)
    return machine


def write(machine: Machine, path: str, text: str) -> None:
    """``echo TEXT > PATH``, links on the way followed."""
    node: Node | None = machine.root
    for name in path.split("/"):
        assert isinstance(node, Directory), path
        node = node.lookup(name)
        node = node.target if isinstance(node, Link) else node
    assert isinstance(node, File), path
    node.store(f"{text}\n".encode())


def nodes(directory: Directory) -> Iterator[tuple[str, Node]]:
    """Every node below a directory with its path from there."""
    for name in directory.names():
        node = directory.lookup(name)
        assert node is not None
        yield name, node
        if isinstance(node, Directory):
            for below, deeper in nodes(node):
                yield f"{name}/{below}", deeper


def aliases(machine: Machine) -> dict[str, str]:
    """The directories that have a second path through ``bus`` or ``class``, with that path."""
    found = {}
    for place in ("bus/pci/devices", "bus/faux/devices", "class/tsm", "class/pci_bus"):
        directory = find(machine.root, place)
        assert isinstance(directory, Directory)
        for name in directory.names():
            link = directory.lookup(name)
            assert isinstance(link, Link)
            found[link.target.path()] = f"/{place}/{name}"
    return found


def paths(machine: Machine) -> Iterator[tuple[list[str], Node]]:
    """Every node of a machine with its paths: the real one, and that through the nearest link."""
    short = aliases(machine)
    for path, node in nodes(machine.root):
        real = f"/{path}"
        found = [real]
        above = real
        while above and above not in short:
            above = above.rpartition("/")[0]
        if above and above != real:
            found.append(short[above] + real[len(above) :])
        yield [f"/sys{each}" for each in found], node


@dataclass
class Seen:
    """Something in the tree of a machine: its paths, and its kind or mode."""

    paths: list[str]
    kind: str


def observe(machine: Machine) -> Iterator[Seen]:
    """Everything that a machine shows in its present state."""
    for names, node in paths(machine):
        if isinstance(node, File):
            yield Seen(names, f"{stat.S_IMODE(node.default_mode):04o}")
        else:
            yield Seen(names, "link" if isinstance(node, Link) else "directory")


PCI = "bus/pci/devices"


def walk_through_server() -> Iterator[Seen]:
    machine = boot("server")
    yield from observe(machine)
    write(machine, f"{PCI}/0000:01:00.0/driver_override", "pci-pf-stub")
    write(machine, "bus/pci/drivers/pci-pf-stub/bind", "0000:01:00.0")
    write(machine, f"{PCI}/0000:01:00.0/sriov_numvfs", "2")
    for device in ("0000:01:00.0", "0000:02:00.0", "0000:81:00.0"):
        write(machine, f"{PCI}/{device}/tsm/connect", "tsm0")
    write(machine, f"{PCI}/0000:00:08.0/tsm/lock", "tsm1")
    write(machine, f"{PCI}/0000:00:08.0/tsm/accept", "1")
    for device in ("0000:05:00.0", "0000:82:00.0"):
        write(machine, "kernel/tsmfs/plug", device)
    yield from observe(machine)
    machine.stop()


def walk_through_devsec() -> Iterator[Seen]:
    machine = boot("devsec")
    yield from observe(machine)
    write(machine, f"{PCI}/10000:01:00.0/tsm/connect", "tsm0")
    write(machine, "bus/faux/devices/devsec_link_tsm/tsm_bind", "10000:01:00.1")
    write(machine, "kernel/tsmfs/modprobe", "devsec_pci")
    write(machine, f"{PCI}/10000:01:00.0/driver_override", "devsec_pci")
    write(machine, "bus/pci/drivers/devsec_pci/bind", "10000:01:00.0")
    yield from observe(machine)
    machine.stop()


@pytest.fixture(scope="module")
def seen() -> list[Seen]:
    """Everything that the built-in machines show, in one state or another."""
    return [*walk_through_server(), *walk_through_devsec()]


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_abi_page_has_the_fields_of_linux(page: Path) -> None:
    assert entries(page)
    for entry in entries(page):
        assert tuple(entry.tags) == TAGS, entry.what
        assert entry.tags["Contact"] == "tsmfs developers"
        assert entry.head, entry.what
    assert all(len(line.expandtabs(8)) <= 80 for line in page.read_text().splitlines())


def test_everything_that_a_machine_shows_is_on_an_abi_page(seen: list[Seen]) -> None:
    patterns = [pattern for entry in ENTRIES for _, pattern in entry.patterns()]
    named = {
        path: any(pattern.fullmatch(path) for pattern in patterns)
        for path in {path for one in seen for path in one.paths}
    }
    nameless = {
        one.paths[-1]
        for one in seen
        if one.kind != "directory" and not any(named[path] for path in one.paths)
    }
    assert nameless == set()


@pytest.mark.parametrize("entry", ENTRIES, ids=lambda entry: entry.what[0].removeprefix("/sys/"))
def test_what_an_abi_page_describes_is_there_as_it_says(entry: Entry, seen: list[Seen]) -> None:
    for what, pattern in entry.patterns():
        kinds = {one.kind for one in seen if any(map(pattern.fullmatch, one.paths))}
        assert kinds, f"no machine has {what}"
        for kind in kinds:
            assert re.search(rf"\b{kind}\b", entry.head), f"{what} is {kind}: ({entry.head})"


def links(document: Path) -> Iterator[str]:
    """Targets of the links of a Markdown document to other files, headings left away."""
    for target in re.findall(r"\]\(([^)\s]+)\)", document.read_text()):
        path = str(target).partition("#")[0]
        if path and "://" not in path:
            yield path


@pytest.mark.parametrize("document", DOCUMENTS, ids=lambda document: document.name)
def test_links_between_documents_lead_somewhere(document: Path) -> None:
    assert [path for path in links(document) if not (document.parent / path).exists()] == []


@pytest.mark.parametrize("document", [*DOCUMENTS, *PAGES], ids=lambda document: document.name)
def test_files_of_the_project_that_a_document_names_exist(document: Path) -> None:
    named = re.findall(
        r"(?<![\w/.-])((?:tsmfs|netlink|tests|bin|Documentation)/[\w./-]*\w)(?![\w<*])",
        document.read_text(),
    )
    # `Documentation/ABI` of Linux and `tsmfs/<something>` of a path in sysfs are none of these.
    missing = {name for name in named if not (ROOT / name).exists()}
    assert missing == set()


def test_index_leads_to_every_document() -> None:
    listed = set(links(DOCUMENTATION / "index.md"))
    wanted = {path.name for path in DOCUMENTS if path.name != "index.md"}
    wanted |= {f"ABI/testing/{page.name}" for page in PAGES}
    assert wanted <= listed


def test_architecture_has_the_table_of_imports() -> None:
    def place(module: str) -> str:
        path = module.replace(".", "/")
        return f"{path}/" if (ROOT / path).is_dir() else f"{path}.py"

    text = (DOCUMENTATION / "architecture.md").read_text()
    shown = {
        row[1]: set(re.findall(r"`([^`]+)`", row[2]))
        for row in re.finditer(r"^\| `([\w/.]+)` \|[^|]*\|([^|]*)\|$", text, re.MULTILINE)
    }
    there = {
        place(module): layer for module, layer in TABLE.items() if (ROOT / place(module)).exists()
    }
    checked = {
        row: {name for name in map(place, layer.own) if name in there} | layer.third_party
        for row, layer in there.items()
        if row not in ("tsmfs/", "tsmfs/__main__.py")
    }
    assert shown == checked


def test_every_fault_point_is_explained() -> None:
    text = (DOCUMENTATION / "fault-injection.md").read_text()
    assert re.findall(r"^\| `(\w+)` \|", text, re.MULTILINE) == [point.value for point in Point]


def test_guide_shows_every_control_file() -> None:
    machine = boot("devsec", [])
    directory = find(machine.root, "/kernel/tsmfs")
    assert isinstance(directory, Directory)
    text = (DOCUMENTATION / "control-files.md").read_text()
    shown = set(re.findall(r"^\| `([\w/]+)`", text, re.MULTILINE))
    machine.stop()
    assert shown == set(directory.names())


def fenced(document: Path, language: str) -> list[str]:
    """The blocks of code in a language."""
    return re.findall(rf"^```{language}\n(.*?)^```$", document.read_text(), re.DOTALL | re.M)


def test_guide_for_vendors_quotes_the_example_as_it_is() -> None:
    guide = DOCUMENTATION / "vendor-tsm-driver.md"
    for language, source in (("python", "vendor_tsm.py"), ("toml", "pyproject.toml")):
        text = (EXAMPLE / source).read_text()
        blocks = fenced(guide, language)
        assert blocks
        assert [block for block in blocks if block not in text] == []


SCENARIO = """
import json, sys
from tsmfs import description
from tsmfs.base.kobject import find
from tsmfs.machine import Machine

machine = Machine(*description.find("devsec"))
machine.boot(["devsec_bus", "vendor_tsm streams=1"])
control = find(machine.root, "/kernel/tsmfs")
first, second = (machine.pci.find_device(f"{name}:00.0") for name in ("10000:01", "10001:03"))

def write(kobj, path, text):
    try:
        find(kobj, path).store(f"{text}\\n".encode())
    except OSError as error:
        return error.errno
    return 0

def read(kobj, path):
    return find(kobj, path).show().decode().strip()

def state():
    registers = [d.config.read_bytes(0, 4096).hex() for d in machine.pci.devices()]
    return registers, sorted(first.host_bridge.names()), read(first.host_bridge, STREAMS)

STREAMS = "available_secure_streams"
before = state()
result = {"connect": write(first, "tsm/connect", "tsm0"), "reads": read(first, "tsm/connect")}
result["stream"] = "stream0.0.0" in first.host_bridge.names()
result["second"] = write(second, "tsm/connect", "tsm0")
machine.pci.tsm.bind(machine.pci.find_device("10000:01:00.1"), object(), 1)
result["bound"] = read(machine.pci.find_device("10000:01:00.1"), "tsm/bound")
result["disconnect"] = write(first, "tsm/disconnect", "tsm0")
result["undone"] = [state() == before]
for point in ("tsm_connect", "doe_transfer", "ide_stream_enable"):
    for name, value in (("errno", "EPROTO"), ("times", 1), ("probability", 100)):
        assert write(control, f"fault/{point}/{name}", value) == 0
    result[point] = write(first, "tsm/connect", "tsm0")
    result["undone"].append(state() == before)
result["again"] = write(first, "tsm/connect", "tsm0")
result["rmmod"] = write(control, "rmmod", "vendor_tsm")
result["undone"].append(state() == before)
result["bad"] = [write(control, "modprobe", f"vendor_tsm streams={n}") for n in ("0", "256", "x")]
result["modules"] = "vendor_tsm" in machine.modules.loaded
machine.stop()
json.dump(result, sys.stdout)
"""


def test_vendor_package_is_installed_found_and_connects(tmp_path: Path) -> None:
    target = tmp_path / "site"
    # What builds it is among the tests' own packages: nothing comes from the network.
    options = ("--quiet", "--no-deps", "--no-build-isolation", "--no-index", "--target")
    subprocess.run(
        [sys.executable, "-m", "pip", "install", *options, str(target), str(EXAMPLE)],
        check=True,
        timeout=100,
    )
    run = subprocess.run(
        [sys.executable, "-c", SCENARIO],
        cwd=ROOT,
        env={**os.environ, "PYTHONPATH": str(target)},
        check=True,
        capture_output=True,
        text=True,
        timeout=60,
    )
    assert json.loads(run.stdout) == {
        "connect": 0,
        "reads": "tsm0",
        "stream": True,
        "second": errno.EBUSY,
        "bound": "tsm0",
        "disconnect": 0,
        "tsm_connect": errno.EPROTO,
        "doe_transfer": errno.EPROTO,
        "ide_stream_enable": errno.EPROTO,
        "again": 0,
        "rmmod": 0,
        "undone": [True] * 5,
        "bad": [errno.EINVAL] * 3,
        "modules": False,
    }
