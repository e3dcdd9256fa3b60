# SPDX-License-Identifier: MIT
"""The topology and the state of each function are read from a sysfs and shown as a tree."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from tsmfs.instance import Instance
from tsmfs.status import Function, Netlink, State, Topology, read_topology, render

BRIDGE = "devices/faux/devsec_bus/pci10000:00"
PORT = f"{BRIDGE}/10000:00:00.0"


class Sysfs:
    """Makes the files that a status is read from."""

    def __init__(self, root: Path) -> None:
        self.root = root
        (root / "bus/pci/devices").mkdir(parents=True)

    def write(self, path: str, text: str) -> None:
        (self.root / path).parent.mkdir(parents=True, exist_ok=True)
        (self.root / path).write_text(f"{text}\n")

    def link(self, path: str, target: str) -> None:
        (self.root / path).parent.mkdir(parents=True, exist_ok=True)
        (self.root / path).symlink_to(target)

    def function(self, path: str, **files: str) -> None:
        name = path.rpartition("/")[2]
        identity = {"vendor": "0x8086", "device": "0xffff", "class": "0x120000"}
        for file, text in {**identity, **files}.items():
            self.write(f"{path}/{file.replace('__', '/')}", text)
        self.link(f"bus/pci/devices/{name}", f"../../../{path}")

    def tsm(self, name: str, mode: str, parent: str) -> None:
        self.write(f"devices/faux/{parent}/tsm/{name}/pci_mode", mode)
        self.link(f"devices/faux/{parent}/tsm/{name}/device", f"../../../{parent}")
        self.link(f"class/tsm/{name}", f"../../devices/faux/{parent}/tsm/{name}")

    def topology(self) -> Topology:
        return read_topology(Instance(self.root))

    def only(self) -> Function:
        (bridge,) = self.topology().host_bridges
        (function,) = bridge.functions
        return function


@pytest.fixture
def sysfs(tmp_path: Path) -> Sysfs:
    made = Sysfs(tmp_path)
    made.tsm("tsm0", "link", "devsec_link_tsm")
    made.tsm("tsm1", "devsec", "devsec_tsm")
    return made


@pytest.fixture
def busy(sysfs: Sysfs) -> Sysfs:
    """A connected device of two functions below a port, one of them bound."""
    sysfs.write(f"{BRIDGE}/available_secure_streams", "3")
    sysfs.link(f"{BRIDGE}/stream0.0.0", "10000:00:00.0/10000:01:00.0")
    sysfs.function(PORT, **{"class": "0x060400"})
    sysfs.link(f"{PORT}/driver", "../../../../../bus/pci/drivers/pcieport")
    sysfs.function(
        f"{PORT}/10000:01:00.0",
        authenticated="tsm0",
        tsm__connect="tsm0",
        tsm__dsm="10000:01:00.0",
        tsm__bound="",
    )
    sysfs.function(
        f"{PORT}/10000:01:00.1",
        authenticated="tsm0",
        tsm__dsm="10000:01:00.0",
        tsm__bound="tsm0",
    )
    return sysfs


def test_tree_shows_everything_in_its_place(busy: Sysfs) -> None:
    assert list(render(busy.topology(), lambda text, state: text)) == [
        "tsm0  link  devsec_link_tsm",
        "tsm1  devsec  devsec_tsm",
        "",
        "pci10000:00  3 of 4 streams available",
        "└─ 10000:00:00.0  8086:ffff  [060400]  driver pcieport",
        "   ├─ 10000:01:00.0  8086:ffff  [120000]  connected tsm0  dsm 10000:01:00.0  stream0.0.0",
        "   └─ 10000:01:00.1  8086:ffff  [120000]  bound tsm0  dsm 10000:01:00.0",
    ]


def test_paint_gets_each_state(busy: Sysfs) -> None:
    lines = list(render(busy.topology(), lambda text, state: f"<{state}>"))
    assert "<connected>" in lines[-2]
    assert "<bound>" in lines[-1]
    assert "<" not in lines[-3]


def test_dictionary_is_json_with_the_tree_in_it(busy: Sysfs) -> None:
    decoded = json.loads(json.dumps(busy.topology().to_dict()))
    (bridge,) = decoded["host_bridges"]
    assert bridge["streams"] == {"stream0.0.0": "10000:01:00.0"}
    first, second = bridge["functions"][0]["children"]
    assert (first["state"], first["connect"], first["lock"]) == ("connected", "tsm0", None)
    assert (second["state"], second["bound"], second["streams"]) == ("bound", "tsm0", [])


@pytest.mark.parametrize(
    ("files", "state"),
    [
        ({}, State.NONE),
        ({"tsm__connect": "", "tsm__dsm": ""}, State.IDLE),
        ({"authenticated": ""}, State.IDLE),
        ({"tsm__connect": "tsm0", "tsm__lock": "tsm0", "tsm__accept": "0"}, State.CONNECTED),
        ({"tsm__connect": "tsm0", "tsm__bound": "tsm0"}, State.BOUND),
        ({"tsm__connect": "tsm1", "tsm__lock": "tsm1", "tsm__accept": "0"}, State.LOCKED),
        ({"tsm__lock": "tsm1", "tsm__accept": "1"}, State.ACCEPTED),
    ],
)
def test_state_follows_from_the_holder_and_its_mode(
    sysfs: Sysfs, files: dict[str, str], state: State
) -> None:
    sysfs.function(f"{BRIDGE}/10000:00:00.0", **files)
    assert sysfs.only().state is state


def test_virtual_function_names_its_physical_one(sysfs: Sysfs) -> None:
    sysfs.function("devices/pci0000:00/0000:00:01.0")
    sysfs.link("devices/pci0000:00/0000:00:01.0/physfn", "../0000:00:00.0")
    assert sysfs.only().physfn == "0000:00:00.0"
    assert "VF of 0000:00:00.0" in list(render(sysfs.topology(), lambda text, state: text))[-1]


def test_function_that_vanishes_in_between_is_left_out(sysfs: Sysfs) -> None:
    sysfs.function("devices/pci0000:00/0000:00:01.0")
    sysfs.link("bus/pci/devices/0000:00:02.0", "../../../devices/pci0000:00/0000:00:02.0")
    assert sysfs.only().name == "0000:00:01.0"


def test_place_of_netlink_is_shown_when_there_is_one(sysfs: Sysfs) -> None:
    sysfs.write("kernel/tsmfs/netlink_socket", "")
    sysfs.write("kernel/tsmfs/netlink_port", "")
    assert sysfs.topology().netlink == Netlink(None, None)
    sysfs.write("kernel/tsmfs/netlink_socket", "/run/x.sock")
    sysfs.write("kernel/tsmfs/netlink_port", "17")
    assert sysfs.topology().netlink == Netlink("/run/x.sock", 17)
    assert list(render(sysfs.topology(), lambda text, state: text))[-1] == (
        "netlink  /run/x.sock  port 17"
    )


def test_sysfs_without_a_pci_bus_is_empty(tmp_path: Path) -> None:
    assert read_topology(Instance(tmp_path)) == Topology([], [])


def test_running_kernel_can_be_shown() -> None:
    topology = read_topology(Instance(Path("/sys")))
    shown = "\n".join(render(topology, lambda text, state: text))
    for link in Path("/sys/bus/pci/devices").glob("*"):
        assert link.name in shown
