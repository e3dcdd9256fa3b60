# SPDX-License-Identifier: MIT
"""The tree of address ranges: what may be where, and how it reads in /proc/iomem."""

from __future__ import annotations

import errno

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.stateful import Bundle, RuleBasedStateMachine, consumes, initialize, invariant, rule

from tests.machines import fails
from tsmfs.kernel.resource import (
    IORESOURCE_MEM,
    Resource,
    iomem_resource,
    ioport_resource,
)


def res(start: int, end: int, name: str = "x") -> Resource:
    return Resource(start, end, name, IORESOURCE_MEM)


def names(tree: Resource) -> list[str]:
    return [f"{'  ' * depth}{resource.name}" for depth, resource in tree.walk()]


@pytest.fixture
def tree() -> Resource:
    return res(0, 0xFFFF, "root")


def test_a_range_has_both_its_ends(tree: Resource) -> None:
    range_ = res(0x100, 0x1FF)
    assert len(range_) == 0x100
    assert tree.contains(range_)
    assert not range_.contains(tree)
    assert range_.overlaps(res(0x1FF, 0x300))
    assert not range_.overlaps(res(0x200, 0x300))
    assert repr(range_) == "Resource(0x100-0x1ff 'x')"
    assert res(1, 0), "an empty range is a range all the same"


def test_requests_are_kept_in_order_of_address(tree: Resource) -> None:
    for start in (0x300, 0x100, 0x200):
        tree.request(res(start, start + 0xFF, hex(start)))
    assert names(tree) == ["0x100", "0x200", "0x300"]


@pytest.mark.parametrize(
    ("start", "end"),
    [
        (0x1000, 0x1FFF),
        (0x1800, 0x27FF),
        (0x0800, 0x17FF),
        (0x1400, 0x17FF),
        (0x0000, 0xFFFF),
        (0x1FFF, 0x2000),
        (0xFFFF, 0x10000),
        (0x9000, 0x8000),
    ],
)
def test_a_request_that_meets_another_or_is_outside_is_busy(
    tree: Resource, start: int, end: int
) -> None:
    tree.request(res(0x1000, 0x1FFF, "there"))
    with fails(errno.EBUSY):
        tree.request(res(start, end))
    assert names(tree) == ["there"]


def test_insert_goes_below_the_smallest_range_around_it(tree: Resource) -> None:
    window = res(0x1000, 0x1FFF, "window")
    tree.request(window)
    window.request(res(0x1000, 0x17FF, "bar"))
    tree.insert(res(0x1000, 0x10FF, "part"))
    tree.insert(res(0x1800, 0x18FF, "free"))
    assert names(tree) == ["window", "  bar", "    part", "  free"]


def test_insert_goes_above_what_it_covers(tree: Resource) -> None:
    for start in (0x1000, 0x1400, 0x2000):
        tree.request(res(start, start + 0xFF, hex(start)))
    tree.insert(res(0x1000, 0x1FFF, "cover"))
    assert names(tree) == ["cover", "  0x1000", "  0x1400", "0x2000"]


def test_insert_of_the_same_range_goes_above_it(tree: Resource) -> None:
    tree.request(res(0x1000, 0x1FFF, "bar"))
    tree.insert(res(0x1000, 0x1FFF, "private"))
    assert names(tree) == ["private", "  bar"]


@pytest.mark.parametrize(("start", "end"), [(0x1800, 0x27FF), (0x0800, 0x17FF), (0xF000, 0x1F000)])
def test_insert_that_overlaps_in_part_is_busy_and_changes_nothing(
    tree: Resource, start: int, end: int
) -> None:
    tree.request(res(0x1000, 0x1FFF, "there"))
    with fails(errno.EBUSY):
        tree.insert(res(start, end))
    assert names(tree) == ["there"]


def test_what_is_inside_a_removed_range_moves_up(tree: Resource) -> None:
    tree.request(res(0x1000, 0x10FF, "bar"))
    cover = res(0x1000, 0x1FFF, "cover")
    tree.insert(cover)
    cover.remove()
    assert names(tree) == ["bar"]
    cover.remove()
    assert names(tree) == ["bar"]


def test_what_is_inside_a_released_range_goes_with_it(tree: Resource) -> None:
    window = res(0x1000, 0x1FFF, "window")
    tree.request(window)
    window.request(res(0x1000, 0x10FF, "bar"))
    window.release()
    assert names(tree) == []
    window.release()
    tree.request(res(0x1000, 0x10FF, "other"))


def test_allocate_takes_the_lowest_free_aligned_place(tree: Resource) -> None:
    tree.request(res(0x1000, 0x10FF, "low"))
    tree.request(res(0x1300, 0x13FF, "next"))
    got = tree.allocate(0x200, 0x100, 0x1000, 0xFFFF, "a", IORESOURCE_MEM)
    assert (got.start, got.end, got.parent) == (0x1100, 0x12FF, tree)
    got = tree.allocate(0x200, 0x100, 0x1000, 0xFFFF, "b", IORESOURCE_MEM)
    assert got.start == 0x1400
    got = tree.allocate(0x100, 0x1000, 0x1001, 0xFFFF, "c", IORESOURCE_MEM)
    assert got.start == 0x2000


@pytest.mark.parametrize(("low", "high"), [(0xF000, 0xFFFF), (0, 0x7FE), (0xFF00, 0x20000)])
def test_allocate_without_room_is_busy(tree: Resource, low: int, high: int) -> None:
    tree.request(res(0xF100, 0xF1FF, "in the middle"))
    tree.request(res(0xF900, 0xF9FF, "further up"))
    with fails(errno.EBUSY):
        tree.allocate(0x800, 0x1, low, high, "x", IORESOURCE_MEM)


def test_find_wants_the_exact_place_and_name(tree: Resource) -> None:
    window = res(0x1000, 0x1FFF, "window")
    bar = res(0x1000, 0x10FF, "bar")
    tree.request(window)
    window.request(bar)
    assert tree.find(0x1000, 0x10FF, "bar") is bar
    assert tree.find(0x1000, 0x1FFF, "bar") is None
    assert tree.find(0x1000, 0x10FF, "window") is None


def test_iomem_reads_as_proc_iomem() -> None:
    tree = iomem_resource()
    low, high = res(0x1000, 0x1FFF, "RAM"), res(1 << 32, (1 << 36) - 1, "PCI Bus 0000:00")
    tree.request(low)
    tree.request(high)
    high.request(res(1 << 32, (1 << 32) + 0xFFF, "0000:00:01.0"))
    assert tree.show(addresses=True) == (
        "00001000-00001fff : RAM\n"
        "100000000-fffffffff : PCI Bus 0000:00\n"
        "  100000000-100000fff : 0000:00:01.0\n"
    )
    assert tree.show(addresses=False) == (
        "00000000-00000000 : RAM\n"
        "00000000-00000000 : PCI Bus 0000:00\n"
        "  00000000-00000000 : 0000:00:01.0\n"
    )


def test_ioports_have_four_digits() -> None:
    tree = ioport_resource()
    tree.request(res(0xC000, 0xCFFF, "PCI Bus 0000:06"))
    assert tree.show(addresses=True) == "c000-cfff : PCI Bus 0000:06\n"


def test_levels_beyond_the_fifth_are_indented_no_further() -> None:
    tree = parent = res(0, 0xFFFF, "root")
    for level in range(8):
        child = res(0, 0xFFFF, f"{level}")
        parent.request(child)
        parent = child
    indents = [len(line) - len(line.lstrip(" ")) for line in tree.show(addresses=True).splitlines()]
    assert indents == [0, 2, 4, 6, 8, 10, 10, 10]


RANGES = st.tuples(st.integers(0, 70), st.integers(0, 12)).map(lambda r: (r[0], r[0] + r[1]))


class AnyTree(RuleBasedStateMachine):
    """Random requests, insertions and removals on one small tree."""

    there = Bundle("there")

    @initialize(target=there)
    def root(self) -> Resource:
        self.tree = res(0, 63, "root")
        self.count = 0
        return self.tree

    def _attached(self, resource: Resource) -> bool:
        return any(other is resource for _, other in self.tree.walk())

    def _fits(self, parent: Resource, new: Resource) -> bool:
        return parent.contains(new) and not any(c.overlaps(new) for c in parent.children)

    @rule(target=there, parent=there, place=RANGES)
    def request(self, parent: Resource, place: tuple[int, int]) -> Resource:
        new = res(*place)
        if parent is not self.tree and not self._attached(parent):
            return self.tree
        if not self._fits(parent, new):
            with fails(errno.EBUSY):
                parent.request(new)
            assert new.parent is None
            return parent
        parent.request(new)
        assert new in parent.children
        self.count += 1
        return new

    @rule(target=there, place=RANGES)
    def insert(self, place: tuple[int, int]) -> Resource:
        new = res(*place)
        before = [resource for _, resource in self.tree.walk()]
        crosses = [r for r in before if r.overlaps(new)]
        possible = self.tree.contains(new) and all(
            r.contains(new) or new.contains(r) for r in crosses
        )
        if not possible:
            with fails(errno.EBUSY):
                self.tree.insert(new)
            assert [resource for _, resource in self.tree.walk()] == before
            return self.tree
        self.tree.insert(new)
        assert all(new.contains(child) for child in new.children)
        self.count += 1
        return new

    @rule(target=there, size=st.integers(1, 20), align=st.sampled_from((1, 2, 8, 16)))
    def allocate(self, size: int, align: int) -> Resource:
        free = next(
            (
                start
                for start in range(0, 64, align)
                if self._fits(self.tree, res(start, start + size - 1))
            ),
            None,
        )
        if free is None:
            with fails(errno.EBUSY):
                self.tree.allocate(size, align, 0, 63, "x", IORESOURCE_MEM)
            return self.tree
        new = self.tree.allocate(size, align, 0, 63, "x", IORESOURCE_MEM)
        assert (new.start, len(new)) == (free, size)
        self.count += 1
        return new

    @rule(gone=consumes(there))
    def remove(self, gone: Resource) -> None:
        if self._attached(gone):
            self.count -= 1
            gone.remove()
            assert (gone.parent, gone.children) == (None, [])

    @rule(gone=consumes(there))
    def release(self, gone: Resource) -> None:
        if self._attached(gone):
            self.count -= 1 + sum(1 for _ in gone.walk())
            gone.release()

    @invariant()
    def siblings_are_apart_and_inside_their_parent(self) -> None:
        for _, resource in [(0, self.tree), *self.tree.walk()]:
            for child in resource.children:
                assert child.parent is resource
                assert resource.contains(child)
            for left, right in zip(resource.children, resource.children[1:], strict=False):
                assert left.end < right.start

    @invariant()
    def nothing_is_lost(self) -> None:
        assert sum(1 for _ in self.tree.walk()) == self.count


TestAnyTree = AnyTree.TestCase
TestAnyTree.settings = settings(max_examples=40, stateful_step_count=30)


@given(st.lists(RANGES, max_size=30))
def test_the_text_names_every_range_once(places: list[tuple[int, int]]) -> None:
    tree = res(0, 100, "root")
    kept = []
    for number, place in enumerate(places):
        new = res(*place, f"n{number}")
        try:
            tree.insert(new)
        except OSError:
            continue
        kept.append(new.name)
    shown = [line.split(" : ")[1] for line in tree.show(addresses=True).splitlines()]
    assert sorted(shown) == sorted(kept)
