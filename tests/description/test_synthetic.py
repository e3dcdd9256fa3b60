# SPDX-License-Identifier: MIT
"""Generated machines: of the size asked for, and valid."""

from __future__ import annotations

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tests.description.texts import walk
from tsmfs.description import generate, parse, to_toml


@pytest.mark.parametrize("count", [1, 2, 9, 10, 11, 288, 289, 4096])
def test_a_generated_machine_has_the_number_of_functions_asked_for(count: int) -> None:
    machine = generate(count)
    functions = [f for bridge in machine.host_bridges for f in walk(bridge.functions)]
    assert len(functions) == count
    roots = [(bridge.domain, bridge.bus) for bridge in machine.host_bridges]
    assert len(set(roots)) == len(roots)
    assert all(len(bridge.functions) <= 32 for bridge in machine.host_bridges)


@given(st.integers(min_value=1, max_value=400))
@settings(max_examples=10)
def test_a_generated_machine_is_a_valid_description(count: int) -> None:
    machine = generate(count)
    assert parse(to_toml(machine), "g.toml") == machine


def test_a_machine_of_no_functions_cannot_be_generated() -> None:
    with pytest.raises(ValueError, match="at least one function"):
        generate(0)
