# SPDX-License-Identifier: MIT
"""Directories, attributes, groups and links: what appears, what goes, and what errors say."""

from __future__ import annotations

import errno
import stat
from collections.abc import Callable
from functools import partial
from typing import Any

import pytest
from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, rule

from tests.machines import STUCK, fails, threads
from tsmfs.base.kobject import (
    PAGE_SIZE,
    AnyAttribute,
    Attribute,
    AttributeGroup,
    BinAttribute,
    Directory,
    File,
    Kobject,
    Link,
    Node,
    Tree,
    find,
)
from tsmfs.kernel.errors import EPROBE_DEFER, fail
from tsmfs.kernel.printk import Log


@pytest.fixture
def log() -> Log:
    return Log()


@pytest.fixture
def root(log: Log) -> Kobject:
    return Kobject(Tree(log), "")


@pytest.fixture
def kobj(root: Kobject) -> Kobject:
    return root.add_child("devices").add_child("dev0")


def text(name: str, mode: int = 0o644) -> Attribute:
    return Attribute(name, mode, lambda _: f"{name}\n", lambda *_: None)


def file(kobj: Directory, name: str) -> File:
    node = kobj.lookup(name)
    assert isinstance(node, File)
    return node


def with_attribute(kobj: Kobject, attribute: AnyAttribute) -> File:
    kobj.add_groups([AttributeGroup([attribute])])
    return file(kobj, attribute.name)


class Shown:
    """A group whose attributes are visible as *modes* says."""

    def __init__(self, *names: str, group: str | None = None, whole: bool = False) -> None:
        self.modes = dict.fromkeys(names, 0o444)
        self.group = AttributeGroup(
            [text(name) for name in names],
            name=group,
            is_visible=lambda _, attribute: self.modes.get(attribute.name, 0),
            group_visible=(lambda _: any(self.modes.values())) if whole else None,
        )

    def show_only(self, kobj: Kobject, *names: str, mode: int = 0o444) -> None:
        self.modes = dict.fromkeys(names, mode)
        kobj.update_group(self.group)


# Nodes


def test_a_path_is_from_the_root(root: Kobject, kobj: Kobject) -> None:
    assert root.path() == ""
    assert kobj.path() == "/devices/dev0"
    assert with_attribute(kobj, text("vendor")).path() == "/devices/dev0/vendor"


def test_inode_numbers_differ_and_stay(root: Kobject, kobj: Kobject) -> None:
    kobj.add_groups([AttributeGroup([text("a"), text("b")]), AttributeGroup([text("c")], name="g")])
    nodes = [root, kobj, *(kobj.lookup(n) for n in ("a", "b", "g"))]
    inodes = [node.ino for node in nodes if node is not None]
    assert len(set(inodes)) == 5
    assert file(kobj, "a").ino == inodes[2]


def test_an_inode_number_is_not_used_again(kobj: Kobject) -> None:
    group = AttributeGroup([text("a")])
    kobj.add_groups([group])
    before = file(kobj, "a").ino
    kobj.remove_groups([group])
    kobj.add_groups([group])
    assert file(kobj, "a").ino > before


def test_types_modes_and_sizes(root: Kobject, kobj: Kobject) -> None:
    kobj.create_link(root, "up")
    link = kobj.lookup("up")
    assert isinstance(link, Link)
    node = with_attribute(kobj, text("vendor", 0o444))
    assert [(n.file_type, n.inode().mode, n.size, n.nlink) for n in (root, kobj, link, node)] == [
        (stat.S_IFDIR, 0o555, 0, 3),
        (stat.S_IFDIR, 0o755, 0, 2),
        (stat.S_IFLNK, 0o777, 0, 1),
        (stat.S_IFREG, 0o444, PAGE_SIZE, 1),
    ]


def test_a_directory_counts_its_subdirectories(kobj: Kobject) -> None:
    kobj.add_child("one")
    kobj.add_groups([AttributeGroup([text("a")], name="two"), AttributeGroup([text("b")])])
    kobj.create_link(kobj, "three")
    assert kobj.nlink == 4
    kobj.discard("one")
    kobj.discard("one")
    assert kobj.nlink == 3


@pytest.mark.parametrize(("size", "shown"), [(0, 0), (256, 256), (lambda _: 4096, 4096)])
def test_a_binary_attribute_has_its_declared_size(
    kobj: Kobject, size: int | Callable[[Any], int], shown: int
) -> None:
    assert with_attribute(kobj, BinAttribute("config", 0o644, size)).size == shown


def test_nodes_belong_to_root_of_the_machine(log: Log) -> None:
    root = Kobject(Tree(log, uid=1000, gid=100), "")
    now = root.add_child("a").inode()
    assert (now.uid, now.gid, now.mtime) == (1000, 100, root.tree.created)


def test_setattr_changes_what_it_is_told_and_lasts_as_long_as_the_node(kobj: Kobject) -> None:
    group = AttributeGroup([text("a", 0o600)])
    kobj.add_groups([group])
    node = file(kobj, "a")
    node.setattr(mode=stat.S_IFREG | 0o640)
    node.setattr(uid=1)
    node.setattr(gid=2, mtime=3.0)
    now = node.inode()
    assert (now.mode, now.uid, now.gid, now.mtime) == (0o640, 1, 2, 3.0)
    kobj.remove_groups([group])
    kobj.add_groups([group])
    assert file(kobj, "a").inode().mode == 0o600


def test_a_node_is_abstract(root: Kobject) -> None:
    node = Node(root.tree, "x", None)
    for name in ("file_type", "default_mode"):
        with pytest.raises(NotImplementedError):
            getattr(node, name)


def test_find_walks_directories_and_groups_but_no_links(root: Kobject, kobj: Kobject) -> None:
    kobj.add_groups([AttributeGroup([text("status")], name="power")])
    root.create_link(kobj, "link")
    assert find(root, "/") is root
    found = find(root, "/devices/dev0/power/status")
    assert isinstance(found, File)
    assert find(root, "//devices//dev0/") is kobj
    for path in ("/devices/dev1", "/link/power", "/devices/dev0/power/status/x", "/x/y"):
        assert find(root, path) is None


# Links


@pytest.mark.parametrize(
    ("place", "target", "text_"),
    [
        ("/bus/pci/devices", "/devices/pci0/dev", "../../../devices/pci0/dev"),
        ("/devices/pci0/dev", "/bus/pci", "../../../bus/pci"),
        ("/devices/pci0/dev", "/devices/pci0", "../../pci0"),
        ("/devices/pci0/tsm/tsm0", "/devices/pci0", "../../../pci0"),
        ("/devices/pci0", "/devices/pci0/dev", "dev"),
        ("/devices/pci0/dev", "/devices/pci0/other", "../other"),
        ("/devices/pci0/dev", "/devices/pci0/dev", "../dev"),
        ("", "/devices", "devices"),
    ],
)
def test_a_link_is_relative(root: Kobject, place: str, target: str, text_: str) -> None:
    def make(path: str) -> Kobject:
        at = root
        for part in filter(None, path.split("/")):
            there = at.lookup(part)
            at = there if isinstance(there, Kobject) else at.add_child(part)
        return at

    here = make(place)
    here.create_link(make(target), "link")
    link = here.lookup("link")
    assert isinstance(link, Link)
    assert link.readlink() == text_


def test_remove_link_removes_nothing_but_a_link(kobj: Kobject) -> None:
    kobj.create_link(kobj, "self")
    kobj.add_child("child")
    for name in ("self", "child", "missing"):
        kobj.remove_link(name)
    assert kobj.names() == ["child"]


# Names that are taken


@pytest.mark.parametrize("name", ["attribute", "group", "child", "link"])
def test_a_name_is_taken_once(kobj: Kobject, name: str) -> None:
    kobj.add_groups([AttributeGroup([text("attribute")]), AttributeGroup([], name="group")])
    kobj.add_child("child")
    kobj.create_link(kobj, "link")
    names = kobj.names()
    for again in (
        lambda: kobj.add_child(name),
        lambda: kobj.create_link(kobj, name),
        lambda: kobj.add_groups([AttributeGroup([text(name)])]),
        lambda: kobj.add_groups([AttributeGroup([text("new")], name=name)]),
    ):
        with fails(errno.EEXIST):
            again()
    assert kobj.names() == names


def test_groups_are_added_all_or_none(kobj: Kobject) -> None:
    first = AttributeGroup([text("there")])
    kobj.add_groups([first])
    good = [AttributeGroup([text("a"), text("b")]), AttributeGroup([text("c")], name="g")]
    with fails(errno.EEXIST):
        kobj.add_groups([*good, AttributeGroup([text("there")])])
    assert kobj.names() == ["there"]
    kobj.add_groups(good)
    assert set(kobj.names()) == {"there", "a", "b", "g"}


# Groups


def test_an_unnamed_group_is_in_the_directory_itself(kobj: Kobject) -> None:
    kobj.add_groups([AttributeGroup([text("a"), text("b")])])
    assert kobj.names() == ["a", "b"]
    assert file(kobj, "a").show() == b"a\n"


def test_a_named_group_is_a_directory(kobj: Kobject) -> None:
    kobj.add_groups([AttributeGroup([text("a")], name="power")])
    power = kobj.lookup("power")
    assert isinstance(power, Directory)
    assert (kobj.names(), power.names(), power.lookup("b")) == (["power"], ["a"], None)
    assert file(power, "a").show() == b"a\n"


def test_a_link_in_a_named_group_is_listed_with_its_attributes(kobj: Kobject) -> None:
    kobj.add_groups([AttributeGroup([text("a")], name="g")])
    group = kobj.lookup("g")
    assert isinstance(group, Directory)
    file(group, "a")
    group.add(Link(kobj.tree, "link", kobj))
    assert group.names() == ["a", "link"]


def test_is_visible_decides_and_gives_the_mode(kobj: Kobject) -> None:
    modes = {"rw": 0o600, "ro": 0o400, "hidden": 0}
    kobj.add_groups(
        [AttributeGroup([text(n) for n in modes], is_visible=lambda _, attr: modes[attr.name])]
    )
    assert {n: file(kobj, n).inode().mode for n in kobj.names()} == {"rw": 0o600, "ro": 0o400}
    assert kobj.lookup("hidden") is None


def test_is_visible_is_asked_about_its_own_kobject(root: Kobject) -> None:
    group = AttributeGroup([text("a")], is_visible=lambda kobj, _: 0o444 * (kobj.name == "yes"))
    for name in ("yes", "no"):
        root.add_child(name).add_groups([group])
    assert [find(root, f"/{name}/a") is not None for name in ("yes", "no")] == [True, False]


@pytest.mark.parametrize("group", [None, "tsm"])
def test_update_group_keeps_the_nodes_that_stay_and_kills_those_that_go(
    kobj: Kobject, group: str | None
) -> None:
    shown = Shown("stays", "goes", group=group)
    kobj.add_groups([shown.group])
    place = kobj.lookup(group) if group else kobj
    assert isinstance(place, Directory)
    stays, goes = file(place, "stays"), file(place, "goes")

    shown.show_only(kobj, "stays")
    assert file(place, "stays") is stays
    assert stays.show() == b"stays\n"
    assert place.lookup("goes") is None
    with fails(errno.ENODEV):
        goes.show()

    shown.show_only(kobj, "stays", "goes")
    assert file(place, "goes") is not goes
    assert file(place, "goes").show() == b"goes\n"
    with fails(errno.ENODEV):
        goes.show()


def test_a_group_update_without_change_keeps_everything(kobj: Kobject) -> None:
    shown = Shown("a", group="g", whole=True)
    kobj.add_groups([shown.group])
    directory = kobj.lookup("g")
    shown.show_only(kobj, "a")
    assert kobj.lookup("g") is directory


def test_a_group_whose_name_is_taken_stays_hidden_and_leaves_what_has_it(kobj: Kobject) -> None:
    shown = Shown(group="g", whole=True)
    shown.group = AttributeGroup(
        [text("a")], name="g", group_visible=lambda _: any(shown.modes.values())
    )
    kobj.add_groups([shown.group])
    other = kobj.add_child("g")
    for _ in range(2):
        with fails(errno.EEXIST):
            shown.show_only(kobj, "a")
    shown.show_only(kobj)
    assert kobj.lookup("g") is other
    kobj.discard("g")
    shown.show_only(kobj, "a")
    assert isinstance(kobj.lookup("g"), Directory)


def test_a_file_whose_mode_changes_is_made_anew(kobj: Kobject) -> None:
    shown = Shown("a")
    kobj.add_groups([shown.group])
    old = file(kobj, "a")
    shown.show_only(kobj, "a", mode=0o600)
    assert file(kobj, "a").inode().mode == 0o600
    assert old.removed


def test_an_empty_named_group_keeps_its_directory(kobj: Kobject) -> None:
    shown = Shown("a", group="link")
    kobj.add_groups([shown.group])
    directory = kobj.lookup("link")
    shown.show_only(kobj)
    assert kobj.lookup("link") is directory
    assert isinstance(directory, Directory)
    assert directory.names() == []


def test_a_group_that_is_not_visible_has_no_directory(kobj: Kobject) -> None:
    shown = Shown("a", "b", group="tsm", whole=True)
    shown.modes = {}
    kobj.add_groups([shown.group])
    assert kobj.names() == []
    assert kobj.nlink == 2

    shown.show_only(kobj, "a")
    directory = kobj.lookup("tsm")
    assert isinstance(directory, Directory)
    assert (directory.names(), kobj.nlink) == (["a"], 3)
    node = file(directory, "a")

    shown.show_only(kobj, "a", "b")
    assert kobj.lookup("tsm") is directory
    assert file(directory, "a") is node

    shown.show_only(kobj)
    assert (kobj.names(), kobj.nlink) == ([], 2)
    assert directory.removed
    assert directory.lookup("b") is None
    with fails(errno.ENODEV):
        node.show()


def test_groups_that_are_removed_take_their_files(kobj: Kobject) -> None:
    named, unnamed = AttributeGroup([text("a")], name="g"), AttributeGroup([text("b")])
    kobj.add_groups([named, unnamed])
    node = file(kobj, "b")
    kobj.remove_groups([unnamed, named, named])
    assert kobj.names() == []
    with fails(errno.ENODEV):
        node.show()


def test_what_is_below_a_deleted_kobject_is_gone(root: Kobject, kobj: Kobject) -> None:
    kobj.add_groups([AttributeGroup([text("a")]), AttributeGroup([text("b")], name="g")])
    child = kobj.add_child("child")
    below = with_attribute(child, BinAttribute("c", 0o644, 0, lambda *_: b"", lambda *_: None))
    nodes = [file(kobj, "a"), find(root, "/devices/dev0/g/b")]
    kobj.delete()
    assert find(root, "/devices/dev0") is None
    assert kobj.names() == []
    assert kobj.lookup("a") is None
    for node in nodes:
        assert isinstance(node, File)
        with fails(errno.ENODEV):
            node.show()
        with fails(errno.ENODEV):
            node.store(b"1")
    with fails(errno.ENODEV):
        below.read(0, 1)
    with fails(errno.ENODEV):
        below.write(0, b"1")
    kobj.delete()


def test_a_kobject_that_was_never_added_can_be_deleted(root: Kobject) -> None:
    Kobject(root.tree, "never").delete()
    assert root.names() == []


# Text attributes


def test_show_gets_the_kobject_and_may_return_bytes(kobj: Kobject) -> None:
    assert (
        with_attribute(kobj, Attribute("name", 0o444, lambda k: k.name.encode())).show() == b"dev0"
    )


@pytest.mark.parametrize("nonsense", [None, 5, 1.5, ["a"], bytearray(b"a"), object()])
def test_show_that_returns_no_text_is_an_io_error(
    kobj: Kobject, log: Log, nonsense: object
) -> None:
    show: Any = lambda _: nonsense  # noqa: E731 - the types forbid it
    node = with_attribute(kobj, Attribute("a", 0o444, show))
    with fails(errno.EIO):
        node.show()
    assert f"/devices/dev0/a: show returned {type(nonsense).__name__}" in log.text()


def test_show_that_returns_what_cannot_be_written_is_an_io_error(kobj: Kobject, log: Log) -> None:
    node = with_attribute(kobj, Attribute("a", 0o444, lambda _: "\udcff"))
    with fails(errno.EIO):
        node.show()
    assert "UnicodeEncodeError" in log.text()


@pytest.mark.parametrize("length", [PAGE_SIZE - 1, PAGE_SIZE, 3 * PAGE_SIZE])
def test_show_that_returns_too_much_is_cut(kobj: Kobject, log: Log, length: int) -> None:
    node = with_attribute(kobj, Attribute("a", 0o444, lambda _: "x" * length))
    assert len(node.show()) == PAGE_SIZE - 1
    assert ("bad count" in log.text()) == (length >= PAGE_SIZE)


def test_an_exception_is_an_io_error_with_a_traceback_and_later_calls_are_fine(
    kobj: Kobject, log: Log
) -> None:
    calls: list[str] = []

    def show(_: Kobject) -> str:
        calls.append("show")
        return f"{1 // (len(calls) - 1)}\n"

    def store(_: Kobject, data: bytes) -> None:
        raise KeyError(data)

    node = with_attribute(kobj, Attribute("a", 0o644, show, store))
    with fails(errno.EIO):
        node.show()
    with fails(errno.EIO):
        node.store(b"missing")
    for line in ("a: show raised", "Traceback", "ZeroDivisionError", "a: store raised", "KeyError"):
        assert line in log.text()
    assert node.show() == b"1\n"


@pytest.mark.parametrize(
    ("raised", "seen"),
    [(errno.EBUSY, errno.EBUSY), (EPROBE_DEFER, errno.EAGAIN), (0, errno.EIO), (9999, errno.EIO)],
)
def test_an_errno_reaches_the_caller_if_it_is_one_of_user_space(
    kobj: Kobject, log: Log, raised: int, seen: int
) -> None:
    node = with_attribute(kobj, Attribute("a", 0o444, lambda _: fail(raised, "why")))
    with fails(seen):
        node.show()
    assert ("why" in log.text()) == (raised != seen)


def test_an_error_without_errno_is_an_io_error(kobj: Kobject) -> None:
    def show(_: Kobject) -> str:
        raise OSError("no number")

    node = with_attribute(kobj, Attribute("a", 0o444, show))
    with fails(errno.EIO):
        node.show()


def test_store_gets_the_bytes_of_one_write_a_page_at_most(kobj: Kobject) -> None:
    stored: list[bytes] = []
    node = with_attribute(kobj, Attribute("a", 0o200, store=lambda _, data: stored.append(data)))
    assert node.store(b"\0\xff\n") == 3
    assert node.store(b"x" * (PAGE_SIZE + 1)) == PAGE_SIZE
    assert stored == [b"\0\xff\n", b"x" * PAGE_SIZE]


def test_an_empty_write_stores_nothing(kobj: Kobject) -> None:
    node = with_attribute(kobj, Attribute("a", 0o200, store=lambda *_: fail(errno.EINVAL)))
    assert node.store(b"") == 0


def test_what_has_no_show_or_store_cannot_be_opened_so(kobj: Kobject) -> None:
    kobj.add_groups(
        [
            AttributeGroup(
                [
                    Attribute("none", 0o666),
                    Attribute("ro", 0o444, lambda _: "", lambda *_: None),
                    Attribute("wo", 0o222, lambda _: "", lambda *_: None),
                    BinAttribute("none.bin", 0o666),
                    BinAttribute("ro.bin", 0o444, 0, lambda *_: b"", lambda *_: None),
                    BinAttribute("wo.bin", 0o222, 0, lambda *_: b"", lambda *_: None),
                    BinAttribute("mapped", 0o600, 16, mappable=True),
                ]
            )
        ]
    )
    can = {name: (file(kobj, name).readable, file(kobj, name).writable) for name in kobj.names()}
    assert can == {
        "none": (False, False),
        "ro": (True, False),
        "wo": (False, True),
        "none.bin": (False, False),
        "ro.bin": (True, False),
        "wo.bin": (False, True),
        "mapped": (True, True),
    }
    for name in ("none", "none.bin", "mapped"):
        node = file(kobj, name)
        for call in (
            node.show,
            partial(node.read, 0, 1),
            partial(node.store, b"1"),
            partial(node.write, 0, b"1"),
        ):
            with fails(errno.EIO):
                call()


def test_chmod_opens_a_file_for_what_it_has(kobj: Kobject) -> None:
    node = with_attribute(kobj, Attribute("a", 0o444, lambda _: "", lambda *_: None))
    node.setattr(mode=0o200)
    assert (node.readable, node.writable) == (False, True)


# Binary attributes


def blob(kobj: Kobject, size: int) -> tuple[File, bytearray]:
    data = bytearray(range(size)) if size else bytearray(b"open-ended")

    def read(_: Kobject, offset: int, count: int) -> bytes:
        return bytes(data[offset : offset + count])

    def write(_: Kobject, offset: int, new: bytes) -> None:
        data[offset : offset + len(new)] = new

    return with_attribute(kobj, BinAttribute("blob", 0o644, size, read, write)), data


@pytest.mark.parametrize(
    ("offset", "count", "expected"),
    [(0, 16, 16), (0, 100, 16), (12, 8, 4), (15, 1, 1), (16, 1, 0), (100, 1, 0), (3, 0, 0)],
)
def test_reads_of_a_binary_attribute_end_at_its_size(
    kobj: Kobject, offset: int, count: int, expected: int
) -> None:
    node, data = blob(kobj, 16)
    assert node.read(offset, count) == bytes(data[offset : offset + expected])


@pytest.mark.parametrize(("offset", "taken"), [(0, 4), (12, 4), (14, 2), (15, 1)])
def test_writes_of_a_binary_attribute_end_at_its_size(
    kobj: Kobject, offset: int, taken: int
) -> None:
    node, data = blob(kobj, 16)
    assert node.write(offset, b"\xff" * 4) == taken
    assert data[offset:] == (b"\xff" * taken + bytes(range(16))[offset + taken :])
    assert len(data) == 16


@pytest.mark.parametrize("data", [b"x", b""])
@pytest.mark.parametrize("offset", [16, 17, 1 << 40])
def test_writes_behind_the_end_of_a_binary_attribute_are_too_big(
    kobj: Kobject, offset: int, data: bytes
) -> None:
    node, _ = blob(kobj, 16)
    with fails(errno.EFBIG):
        node.write(offset, data)


def test_an_open_ended_binary_attribute_takes_any_offset(kobj: Kobject) -> None:
    node, data = blob(kobj, 0)
    assert node.write(10, b"!") == 1
    assert node.write(20, b"") == 0
    assert node.read(5, 100) == b"ended!"
    assert node.read(100, 5) == b""
    assert bytes(data) == b"open-ended!"


def test_one_write_of_a_binary_attribute_is_a_page_at_most(kobj: Kobject) -> None:
    node, data = blob(kobj, 0)
    assert node.write(0, bytes(PAGE_SIZE + 5)) == PAGE_SIZE
    assert len(data) == PAGE_SIZE


@pytest.mark.parametrize("nonsense", [None, "text", 5, bytes(9)])
def test_a_binary_read_that_returns_nonsense_is_an_io_error(
    kobj: Kobject, log: Log, nonsense: object
) -> None:
    read: Any = lambda *_: nonsense  # noqa: E731 - the types forbid it
    node = with_attribute(kobj, BinAttribute("b", 0o444, 0, read))
    with fails(errno.EIO):
        node.read(0, 8)
    assert "/devices/dev0/b: read returned nonsense" in log.text()


def test_a_short_binary_read_is_fine(kobj: Kobject) -> None:
    node = with_attribute(kobj, BinAttribute("b", 0o444, 16, lambda *_: b"short"))
    assert node.read(0, 16) == b"short"


def test_exceptions_in_a_binary_attribute_are_io_errors(kobj: Kobject, log: Log) -> None:
    def crash(*_: object) -> Any:
        raise RuntimeError("crashed")

    node = with_attribute(kobj, BinAttribute("b", 0o644, 0, crash, crash))
    for call in (lambda: node.read(0, 1), lambda: node.write(0, b"1")):
        with fails(errno.EIO):
            call()
    assert log.text().count("RuntimeError: crashed") == 2


def test_each_open_file_of_a_binary_attribute_can_have_its_own_text(kobj: Kobject) -> None:
    opened: list[int] = []

    def open_file(_: Kobject) -> Callable[[int, int], bytes]:
        opened.append(1)
        content = b"%d" % len(opened)
        return lambda offset, count: content * count

    node = with_attribute(kobj, BinAttribute("b", 0o444, open=open_file))
    first, second = node.open_reader(), node.open_reader()
    assert [node.read(0, 2, r) for r in (first, second, first)] == [b"11", b"22", b"11"]
    assert node.read(0, 1) == b"3"


def test_a_text_attribute_is_not_read_as_a_binary_one(kobj: Kobject) -> None:
    node = with_attribute(kobj, text("a"))
    with fails(errno.EIO):
        node.read(0, 1)
    with fails(errno.EIO):
        node.write(0, b"1")
    binary = with_attribute(kobj, BinAttribute("b", 0o644, 0, lambda *_: b"", lambda *_: None))
    with fails(errno.EIO):
        binary.show()
    with fails(errno.EIO):
        binary.store(b"1")


# All together


NAMES = ("a", "b", "c")


class AnyVisibility(RuleBasedStateMachine):
    """Two groups of which anything may be visible at any time."""

    def __init__(self) -> None:
        super().__init__()
        self.kobj = Kobject(Tree(Log()), "").add_child("dev")
        self.groups = {None: Shown(*NAMES), "g": Shown(*NAMES, group="g", whole=True)}
        self.kobj.add_groups([shown.group for shown in self.groups.values()])
        self.held: dict[tuple[str | None, str], File] = {}

    @rule(where=st.sampled_from((None, "g")), names=st.sets(st.sampled_from(NAMES)))
    def update(self, where: str | None, names: set[str]) -> None:
        gone = {key: node for key, node in self.held.items() if key[0] == where}
        self.groups[where].show_only(self.kobj, *[n for n in NAMES if n in names])
        for (_, name), node in gone.items():
            assert node.removed == (name not in names)
            if node.removed:
                del self.held[where, name]

    @rule(where=st.sampled_from((None, "g")), name=st.sampled_from(NAMES))
    def open(self, where: str | None, name: str) -> None:
        place = self.kobj if where is None else self.kobj.lookup(where)
        node = place.lookup(name) if isinstance(place, Directory) else None
        if name not in self.groups[where].modes:
            assert node is None
            return
        assert isinstance(node, File)
        assert self.held.setdefault((where, name), node) is node

    @invariant()
    def names_are_those_visible(self) -> None:
        top, below = self.groups[None].modes, self.groups["g"].modes
        assert set(self.kobj.names()) == {*top, *(["g"] if below else [])}
        directory = self.kobj.lookup("g")
        assert set(directory.names() if isinstance(directory, Directory) else ()) == set(below)
        assert self.kobj.nlink == 2 + bool(below)

    @invariant()
    def held_files_work(self) -> None:
        for (_, name), node in self.held.items():
            assert node.show() == f"{name}\n".encode()


TestAnyVisibility = AnyVisibility.TestCase
TestAnyVisibility.settings = settings(max_examples=30, stateful_step_count=20)


def test_one_file_has_one_node_however_many_look_at_once(kobj: Kobject) -> None:
    kobj.add_groups([AttributeGroup([text("a")], name="g")])
    directory = kobj.lookup("g")
    assert isinstance(directory, Directory)
    with threads() as pool:
        nodes = list(pool.map(lambda _: directory.lookup("a"), range(64), timeout=STUCK))
    assert len(set(map(id, nodes))) == 1
