# SPDX-License-Identifier: MIT
"""A machine written as TOML is the machine that is read from it."""

from __future__ import annotations

from hypothesis import given, settings

from tests.description.strategies import machines
from tsmfs.description import Machine, parse, to_toml


@given(machines())
@settings(max_examples=60)
def test_a_machine_written_as_toml_reads_back_equal(machine: Machine) -> None:
    assert parse(to_toml(machine), "m.toml") == machine
