# SPDX-License-Identifier: MIT
"""Descriptions in files, and the built-in machines."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

from tests.description.texts import walk
from tsmfs.description import (
    DescriptionError,
    Kind,
    Machine,
    assign_buses,
    builtin_names,
    builtin_text,
    find,
    load,
    parse,
    to_toml,
)


def test_a_file_is_loaded_by_its_path(tmp_path: Path) -> None:
    path = tmp_path / "box.toml"
    path.write_text("seed = 5\n")
    assert load(path) == Machine("box", seed=5)
    assert find(str(path)) == (Machine("box", seed=5), "seed = 5\n")


def test_a_file_that_cannot_be_read_is_a_mistake(tmp_path: Path) -> None:
    binary = tmp_path / "binary.toml"
    binary.write_bytes(b"a\xff")
    cases = {
        str(tmp_path / "none.toml"): "No such file or directory",
        f"{tmp_path}/": "Is a directory",
        str(binary): "not UTF-8 text: byte 1 is 0xff",
        "nul\0.toml": "embedded null byte",
    }
    for path, reason in cases.items():
        with pytest.raises(DescriptionError, match=re.escape(reason)) as caught:
            find(path)
        assert caught.value.errors[0].source == str(Path(path))


def test_an_unknown_machine_is_answered_with_the_known_ones() -> None:
    for ask in (find, builtin_text):
        with pytest.raises(DescriptionError, match=r"^serber: unknown machine; .* devsec, server"):
            ask("serber")


@pytest.mark.parametrize("name", builtin_names())
def test_a_builtin_machine_has_the_name_of_its_file_and_survives_the_round_trip(name: str) -> None:
    machine, text = find(name)
    assert machine.name == name
    assert machine.description
    assert text == builtin_text(name)
    assert parse(to_toml(machine), "again.toml") == machine


def test_devsec_loads_the_sample_modules_and_has_no_hardware_of_its_own() -> None:
    machine, _ = find("devsec")
    assert [module.name for module in machine.modules] == [
        "devsec_bus",
        "devsec_link_tsm",
        "devsec_tsm",
    ]
    assert machine.host_bridges == ()


def test_server_has_an_instance_of_each_visibility_rule() -> None:
    machine, _ = find("server")
    pools = [(bridge.domain, bridge.bus, bridge.stream_pool) for bridge in machine.host_bridges]
    assert pools == [(0, 0x00, 8), (0, 0x80, 4)]
    functions = {f.name: f for bridge in machine.host_bridges for f in walk(bridge.functions)}
    shown = {
        name: (f.kind, f.tee_io, f.ide is not None, f.plugged)
        for name, f in functions.items()
        if f.kind not in (Kind.ROOT_PORT, Kind.DOWNSTREAM_PORT)
    }
    assert shown == {
        "NIC": (Kind.ENDPOINT, True, True, True),
        "switch": (Kind.UPSTREAM_PORT, True, True, True),
        "GPU": (Kind.ENDPOINT, False, False, True),
        "GPU audio": (Kind.ENDPOINT, False, False, True),
        "GPU compute partition": (Kind.ENDPOINT, True, False, True),
        "second GPU": (Kind.ENDPOINT, False, False, False),
        "accelerator": (Kind.RC_ENDPOINT, True, False, True),
        "plain NIC": (Kind.ENDPOINT, False, False, True),
        "BMC": (Kind.CONVENTIONAL, False, False, True),
        "NVMe": (Kind.ENDPOINT, False, True, True),
        "second NVMe": (Kind.ENDPOINT, True, True, False),
    }
    sriov = functions["NIC"].sriov
    assert sriov is not None
    assert (sriov.total_vfs, sriov.tee_io) == (8, True)


def test_the_buses_of_server_are_those_its_comments_name() -> None:
    machine, text = find("server")
    first, second = (assign_buses(bridge) for bridge in machine.host_bridges)
    buses = {0x00: first, 0x80: second}
    named = {
        name: int(bus, 16)
        for bus, name in re.findall(r"^#   0000:(\w\w):\w\w\.\w  (.+?)  ", text, re.MULTILINE)
    }
    for bridge in machine.host_bridges:
        for path, ranges in buses[bridge.bus].items():
            below = bridge.functions
            for devfn in path:
                below = next(f for f in below if f.devfn == devfn).children
            for function in below:
                if function.name in named:
                    assert named.pop(function.name) == ranges.secondary
    assert named == {}
