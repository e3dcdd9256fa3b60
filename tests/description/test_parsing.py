# SPDX-License-Identifier: MIT
"""Any text is a machine or is refused with a reason."""

from __future__ import annotations

import re

from hypothesis import given, settings
from hypothesis import strategies as st

from tsmfs.description import DescriptionError, builtin_text, parse, to_toml

VALUE = re.compile(r"(?<= = )(?:\"[^\"\n]*\"|0x[0-9a-f]+|\d+|true|false)|\b[a-z_]+(?= = )")
VALUES = """-1 0 1 3 7 8 64 255 256 65536 0xffffffffffffffff0 1.5 nan true false 1979-05-27
    [] [[]] [{}] {} {a=1} [[1,1]] [1,2] ' " "" "x" "4K" "3M" "99999999999T" "io" "mem64" "2.5" """
KEYS = "slot function index size kind bar vectors sriov ide tee_io plugged secondary_bus class"
SUBSTITUTES = st.sampled_from([*VALUES.split(), *KEYS.split()])


@given(st.data())
@settings(max_examples=150)
def test_a_changed_value_or_key_gives_a_machine_or_a_description_error(data: st.DataObject) -> None:
    text = builtin_text("server")
    spots = list(VALUE.finditer(text))
    chosen = data.draw(st.lists(st.sampled_from(spots), min_size=1, max_size=4, unique=True))
    for spot in sorted(chosen, key=lambda match: match.start(), reverse=True):
        text = text[: spot.start()] + data.draw(SUBSTITUTES) + text[spot.end() :]
    check_total(text)


@given(st.data())
@settings(max_examples=100)
def test_lines_lost_doubled_or_moved_give_a_machine_or_a_description_error(
    data: st.DataObject,
) -> None:
    lines = builtin_text("server").splitlines()
    for _ in range(data.draw(st.integers(1, 4))):
        at = data.draw(st.integers(0, len(lines) - 1))
        to = data.draw(st.integers(0, len(lines) - 1))
        match data.draw(st.sampled_from(["lose", "double", "move"])):
            case "lose":
                del lines[at]
            case "double":
                lines.insert(to, lines[at])
            case _:
                lines.insert(to, lines.pop(at))
    check_total("\n".join(lines))


@given(st.text(max_size=60))
@settings(max_examples=100)
def test_any_text_gives_a_machine_or_a_description_error(text: str) -> None:
    check_total(text)


def check_total(text: str) -> None:
    """`text` parses to a machine that survives the round trip, or is refused with a reason."""
    try:
        machine = parse(text, "m.toml")
    except DescriptionError as error:
        errors = error.errors
    else:
        assert parse(to_toml(machine), "m.toml") == machine
        return
    assert errors
    assert all(error.reason for error in errors)
