# SPDX-License-Identifier: MIT
"""Bus numbers: depth first, with room for VFs."""

from __future__ import annotations

from tsmfs.description import BusRange, assign_buses, parse


def test_buses_are_numbered_depth_first_with_room_for_vfs() -> None:
    text = """
        [[host_bridge]]
        bus = 0x10
        [[host_bridge.root_port]]
        slot = 2
        [[host_bridge.root_port]]
        slot = 1
        [[host_bridge.root_port.upstream_port]]
        [[host_bridge.root_port.upstream_port.downstream_port]]
        slot = 1
        secondary_bus = 0x20
        [[host_bridge.root_port.upstream_port.downstream_port]]
        [[host_bridge.root_port.upstream_port.downstream_port.endpoint]]
        sriov = { total_vfs = 1, first_vf_offset = 0x200 }
        """
    (bridge,) = parse(text, "m.toml").host_bridges
    assert assign_buses(bridge) == {
        (): BusRange(0x10, 0x21),
        (8,): BusRange(0x11, 0x20),
        (8, 0): BusRange(0x12, 0x20),
        (8, 0, 0): BusRange(0x13, 0x15),
        (8, 0, 8): BusRange(0x20, 0x20),
        (16,): BusRange(0x21, 0x21),
    }
