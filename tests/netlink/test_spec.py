# SPDX-License-Identifier: MIT
"""YNL files become families, and the families of this package are those of the ABI."""

from __future__ import annotations

import re

import pytest

from netlink.spec import SPECS, Checks, SpecError, builtin, load, parse

SMALL = """\
# SPDX-License-Identifier: MIT
---
name: small
doc: A family for tests.
definitions:
  - {name: limit, type: const, value: 9}
  - {name: colour, type: enum, value-start: 3, entries: [red, {name: green, value: 7}, blue]}
  - {name: mode, type: flags, entries: [fast, safe]}
attribute-sets:
  - name: main
    attributes:
      - {name: a, type: u8, checks: {min: 1, max: u8-max}}
      - {name: b, type: string, value: 5, checks: {max-len: limit - 1}}
      - {name: c, type: u32, checks: {flags-mask: mode}}
      - {name: d, type: nest, nested-attributes: main}
  - name: part
    subset-of: main
    attributes: [{name: c}, {name: a}]
operations:
  list:
    - name: reserved
      doc: Takes a number and does nothing.
    - name: get
      doc: Reads.
      attribute-set: main
      flags: [admin-perm]
      do:
        request: {attributes: [a]}
        reply: {attributes: [b, c]}
      dump:
        reply: {attributes: [b]}
    - name: changed
      doc: A notification.
      notify: get
    - name: set
      doc: Writes.
      value: 9
      attribute-set: part
      do:
        request: {attributes: [c]}
"""


def numbers(family: str) -> dict[str, tuple[int, str]]:
    (main,) = builtin(family).attribute_sets.values()
    return {attribute.name: (attribute.value, attribute.type) for attribute in main.attributes}


def test_pci_tsm_has_the_numbers_of_the_abi() -> None:
    family = builtin("pci-tsm")
    assert (family.name, family.version, family.legacy) == ("pci-tsm", 1, False)
    assert numbers("pci-tsm") == {
        "type": (1, "u32"),
        "type-mask": (2, "u32"),
        "flags": (3, "u32"),
        "dev-name": (4, "string"),
        "nonce": (5, "binary"),
        "val": (6, "binary"),
    }
    (read,) = family.operations
    assert (read.name, read.request_value, read.reply_value) == ("evidence-read", 1, 1)
    assert read.do is None
    assert read.dump is not None
    assert read.dump.request == ("type-mask", "flags", "dev-name", "nonce")
    assert read.flags == {"admin-perm"}
    assert family.enums["evidence-type-flag"].mask() == 2047
    assert family.enums["evidence-type"].names(8) == ["vca"]
    assert family.enums["evidence-flag"].value("digest") == 1
    assert family.constants["max-name-len"] == 31
    assert family.constants["max-object-size"] == 16 << 20


def test_device_evidence_has_the_numbers_of_the_abi() -> None:
    family = builtin("device-evidence")
    assert (family.version, family.legacy) == (1, False)
    assert numbers("device-evidence") == {
        "type": (1, "u32"),
        "type-mask": (2, "u32"),
        "flags": (3, "u32"),
        "subsys": (4, "string"),
        "dev-name": (5, "string"),
        "nonce": (6, "binary"),
        "generation": (7, "u32"),
        "count": (8, "u64"),
        "length": (9, "u32"),
        "val": (10, "binary"),
    }
    read, validate = family.operations
    assert (read.name, read.request_value) == ("read", 1)
    assert (read.do, validate.dump) == (None, None)
    assert (validate.name, validate.request_value) == ("validate", 2)
    assert read.flags == validate.flags == {"admin-perm"}
    assert family.attribute_sets["evidence-object"]["nonce"].checks == Checks(max_len=32)


@pytest.mark.parametrize("name", ["pci-tsm", "device-evidence"])
def test_flags_of_objects_are_named_as_the_objects(name: str) -> None:
    enums = builtin(name).enums
    assert [(one.name, one.value) for one in enums["evidence-type"].entries] == [
        (one.name, one.value) for one in enums["evidence-type-flag"].entries
    ]


def test_nlctrl_numbers_requests_and_replies_apart() -> None:
    family = builtin("nlctrl")
    assert family.version == 2
    assert [(one.name, one.request_value, one.reply_value) for one in family.operations] == [
        ("getfamily", 3, 1),
        ("getpolicy", 10, 10),
    ]
    assert family.operation("getfamily").dont_validate == {"strict", "dump"}


@pytest.mark.parametrize("path", sorted(SPECS.glob("*.yaml")), ids=lambda path: str(path.stem))
def test_file_is_called_as_its_family_and_begins_with_a_licence(path: object) -> None:
    (found,) = [one for one in SPECS.glob("*.yaml") if one == path]
    text = found.read_text()
    assert text.startswith("# SPDX-License-Identifier: MIT\n")
    family = load(found)
    assert family.name == found.stem
    names = [*family.constants, *family.enums, *family.attribute_sets]
    names += [name for one in family.attribute_sets.values() for name in one.by_name]
    names += [one.name for one in family.operations]
    assert [name for name in names if not re.fullmatch("[0-9a-z-]+", name)] == []
    assert all(one.doc for one in family.operations)


def test_values_count_on_from_the_one_before() -> None:
    family = parse(SMALL)
    assert [(one.name, one.value) for one in family.enums["colour"].entries] == [
        ("red", 3),
        ("green", 7),
        ("blue", 8),
    ]
    main = family.attribute_sets["main"]
    assert {name: one.value for name, one in main.by_name.items()} == {
        "a": 1,
        "b": 5,
        "c": 6,
        "d": 7,
    }
    assert [(one.name, one.request_value) for one in family.operations] == [("get", 2), ("set", 9)]


def test_subset_has_the_attributes_of_its_parent() -> None:
    family = parse(SMALL)
    assert list(family.attribute_sets["part"].by_value) == [6, 1]
    assert family.attribute_sets["part"]["a"] is family.attribute_sets["main"]["a"]


def test_limits_may_be_names() -> None:
    main = parse(SMALL).attribute_sets["main"]
    assert main["a"].checks == Checks(min=1, max=255)
    assert main["b"].checks == Checks(max_len=8)
    assert main["c"].checks == Checks(mask=3)


def test_enumeration_gives_names_for_numbers_and_back() -> None:
    enums = parse(SMALL).enums
    assert enums["mode"].names(2) == ["safe"]
    assert enums["mode"].value("safe") == 2
    assert enums["colour"].names(8) == ["blue"]
    assert enums["colour"].value("blue") == 8
    with pytest.raises(KeyError):
        enums["mode"].value("slow")


@pytest.mark.parametrize(
    ("old", "new", "reason"),
    [
        ("name: small", "protocol: netlink-raw\nname: small", "netlink-raw"),
        ("type: enum", "type: struct", "struct"),
        ("type: u8", "type: u24", "u24"),
        ("flags-mask: mode", "flags-mask: mood", "mood"),
        ("max-len: limit - 1", "max-len: length", "length"),
        ("max: u8-max", "max: u9-max", "u9-max"),
        ("nested-attributes: main", "nested-attributes: mine", "mine"),
        ("subset-of: main", "subset-of: mine", "mine"),
        ("attributes: [{name: c}", "attributes: [{name: z}", "z"),
        ("reply: {attributes: [b, c]}", "reply: {attributes: [q]}", "q"),
        ("attribute-set: part", "attribute-set: parts", "parts"),
        ("operations:", "operation:", "operations"),
        ("doc: A family for tests.", "dock: A family for tests.", "doc"),
        ("list:", "list: 7\n  more:", "small"),
        ("name: small", "name: [small", "YAML"),
    ],
)
def test_mistake_in_a_file_is_named(old: str, new: str, reason: str) -> None:
    assert old in SMALL
    with pytest.raises(SpecError, match=re.escape(reason)):
        parse(SMALL.replace(old, new, 1))


@pytest.mark.parametrize("text", ["", "- a\n- b\n", "7"])
def test_file_that_is_no_mapping_is_refused(text: str) -> None:
    with pytest.raises(SpecError):
        parse(text)
