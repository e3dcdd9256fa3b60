# SPDX-License-Identifier: MIT
"""The guide to descriptions: its examples are valid, and it leaves no key out."""

from __future__ import annotations

import re
from pathlib import Path

from tsmfs.description import Kind, parse, to_toml

GUIDE = Path(__file__).parents[2] / "Documentation" / "machine-description.md"


def test_the_examples_of_the_guide_are_valid() -> None:
    blocks = re.findall(r"^```toml\n(.*?)^```", GUIDE.read_text("utf-8"), re.MULTILINE | re.DOTALL)
    assert blocks
    for block in blocks:
        machine = parse(block, "guide.toml")
        assert parse(to_toml(machine), "guide.toml") == machine


def test_the_guide_explains_every_key() -> None:
    guide = GUIDE.read_text("utf-8")
    text = to_toml(parse(FULL, "full.toml"))
    keys = set(re.findall(r"\b([a-z_0-9]+) = ", text)) | {kind.value for kind in Kind}
    assert [key for key in sorted(keys) if f"`{key}`" not in guide] == []


FULL = """
    name = "full"
    description = "every key away from its default"
    seed = 1
    modules = ["devsec_tsm"]
    [[host_bridge]]
    domain = 1
    name = "x"
    stream_pool = 1
    mem32_window = "1M"
    mem64_window = "1M"
    io_window = "4K"
    [[host_bridge.root_port]]
    slot = 1
    secondary_bus = 2
    [[host_bridge.root_port.endpoint]]
    [[host_bridge.root_port.endpoint]]
    function = 1
    name = "x"
    vendor = 1
    device = 1
    subsystem_vendor = 1
    subsystem_device = 1
    class = 1
    revision = 1
    pm = false
    msi = 1
    flr = false
    tee_io = true
    aer = true
    ari = true
    acs = true
    serial = "52-54-00-ff-fe-12-34-56"
    link = { speed = "5", width = 2 }
    bar = [{ index = 0, size = "4K", kind = "mem64", prefetch = true }]
    msix = { vectors = 2, bar = 0, table_offset = 8, pba_offset = 128 }
    doe = { protocols = [[1, 1]] }
    [host_bridge.root_port.endpoint.ide]
    link_streams = 1
    selective_streams = 2
    address_associations = 2
    tee_limited = false
    ide_km = false
    selective_config = true
    flow_through = true
    partial_header_encryption = true
    aggregation = true
    pcrc = true
    [host_bridge.root_port.endpoint.sriov]
    total_vfs = 2
    vf_device = 2
    first_vf_offset = 2
    vf_stride = 2
    [[host_bridge.root_port]]
    slot = 3
    [[host_bridge.root_port.endpoint]]
    doe = true
    [host_bridge.root_port.endpoint.cma]
    key = "ecdsa-p256"
    hash = "sha-256"
    versions = ["1.2"]
    slots = [1]
    seed = 1
    tamper = ["bad-signature"]
    measurements = [{ index = 1, kind = "rom", value = "x" }]
    [[host_bridge.root_port]]
    slot = 4
    [[host_bridge.root_port.endpoint]]
    doe = true
    cma = { files = [{ slot = 1, chain = "a.pem", key = "b.pem" }] }
    [[host_bridge.conventional]]
    slot = 2
    plugged = false
    """
