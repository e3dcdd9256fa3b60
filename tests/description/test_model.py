# SPDX-License-Identifier: MIT
"""What the parts of a machine answer about themselves."""

from __future__ import annotations

from tsmfs.description import LinkSpeed, parse


def test_keys_come_from_the_seed_or_without_one_from_the_name() -> None:
    seeds = [parse(text, "m.toml").key_seed for text in ("", "name = 'n'", "seed = 1", "seed = 2")]
    assert len(set(seeds)) == 4
    assert parse("name = 'n'\nseed = 1", "m.toml").key_seed == seeds[2]


def test_link_speeds_have_the_encoding_of_link_capabilities() -> None:
    assert [speed.code for speed in LinkSpeed] == [1, 2, 3, 4, 5, 6]
    assert LinkSpeed("2.5").code == 1
