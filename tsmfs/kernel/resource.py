# SPDX-License-Identifier: MIT
"""Address ranges and who owns them: the tree behind /proc/iomem (kernel/resource.c)."""

from __future__ import annotations

import bisect
import errno
import threading
from collections.abc import Iterator

from tsmfs.kernel.errors import fail

IORESOURCE_IO = 0x00000100
IORESOURCE_MEM = 0x00000200
IORESOURCE_PREFETCH = 0x00002000
IORESOURCE_SIZEALIGN = 0x00040000
IORESOURCE_MEM_64 = 0x00100000
IORESOURCE_BUSY = 0x80000000

_MAX_IORES_LEVEL = 5

_tree_lock = threading.RLock()


class Resource:
    """A range of addresses, both ends included, with the ranges inside it in order."""

    __slots__ = ("children", "end", "flags", "name", "parent", "start")

    def __init__(self, start: int, end: int, name: str, flags: int) -> None:
        self.start = start
        self.end = end
        self.name = name
        self.flags = flags
        self.parent: Resource | None = None
        self.children: list[Resource] = []

    def __repr__(self) -> str:
        return f"Resource({self.start:#x}-{self.end:#x} {self.name!r})"

    def __len__(self) -> int:
        return self.end - self.start + 1

    def __bool__(self) -> bool:
        return True

    def contains(self, other: Resource) -> bool:
        """True when *other* lies inside."""
        return self.start <= other.start and other.end <= self.end

    def overlaps(self, other: Resource) -> bool:
        """True when the two share an address."""
        return self.start <= other.end and other.start <= self.end

    def request(self, new: Resource) -> None:
        """Put *new* below this one (``request_resource()``).

        EBUSY when it is not inside, ends before it starts, or meets another child.
        """
        with _tree_lock:
            if new.end < new.start or not self.contains(new):
                fail(errno.EBUSY, f"{new} is outside {self}")
            at = bisect.bisect_left([c.start for c in self.children], new.start)
            for neighbour in self.children[max(0, at - 1) : at + 1]:
                if neighbour.overlaps(new):
                    fail(errno.EBUSY, f"{new} conflicts with {neighbour}")
            self.children.insert(at, new)
            new.parent = self

    def insert(self, new: Resource) -> None:
        """Put *new* where it fits, above the ranges that it covers (``insert_resource()``).

        EBUSY when it overlaps a range in part.
        """
        with _tree_lock:
            parent = self
            descending = True
            while descending:
                descending = False
                for child in parent.children:
                    same = (child.start, child.end) == (new.start, new.end)
                    if child.contains(new) and not same:
                        parent, descending = child, True
                        break
            covered = [c for c in parent.children if c.overlaps(new)]
            for child in covered:
                if not new.contains(child):
                    fail(errno.EBUSY, f"{new} conflicts with {child}")
            if not parent.contains(new):
                fail(errno.EBUSY, f"{new} is outside {parent}")
            for child in covered:
                parent.children.remove(child)
                child.parent = new
            new.children = covered
            parent.request(new)

    def remove(self) -> None:
        """Take this range out; those inside it move up (``remove_resource()``)."""
        with _tree_lock:
            parent = self.parent
            if parent is None:
                return
            parent.children.remove(self)
            for child in self.children:
                parent.request(child)
            self.children = []
            self.parent = None

    def release(self) -> None:
        """Take this range out with all that is inside (``release_child_resources()``)."""
        with _tree_lock:
            if self.parent is not None:
                self.parent.children.remove(self)
                self.parent = None

    def allocate(
        self, size: int, align: int, low: int, high: int, name: str, flags: int
    ) -> Resource:
        """Request the lowest free range of *size* in [low, high] (``allocate_resource()``).

        EBUSY when there is none.
        """
        with _tree_lock:
            at = -(-max(low, self.start) // align) * align
            for child in self.children:
                if child.end < at:
                    continue
                if child.start >= at + size:
                    break
                at = -(-(child.end + 1) // align) * align
            if at + size - 1 > min(high, self.end):
                fail(errno.EBUSY, f"no room for {size:#x} bytes in {self}")
            new = Resource(at, at + size - 1, name, flags)
            self.request(new)
            return new

    def walk(self, depth: int = 0) -> Iterator[tuple[int, Resource]]:
        """Every range below this one with its depth, parents first, in address order."""
        with _tree_lock:
            children = list(self.children)
        for child in children:
            yield depth, child
            yield from child.walk(depth + 1)

    def find(self, start: int, end: int, name: str) -> Resource | None:
        """A range of exactly this place and name below this one."""
        for _, resource in self.walk():
            if (resource.start, resource.end, resource.name) == (start, end, name):
                return resource
        return None

    def show(self, *, addresses: bool) -> str:
        """The text of /proc/iomem; zeros for addresses when the reader may not see them."""
        width = 4 if self.end < 0x10000 else 8
        lines = []
        for depth, resource in self.walk():
            start, end = (resource.start, resource.end) if addresses else (0, 0)
            # Linux does not count levels beyond MAX_IORES_LEVEL.
            indent = "  " * min(depth, _MAX_IORES_LEVEL)
            lines.append(f"{indent}{start:0{width}x}-{end:0{width}x} : {resource.name}\n")
        return "".join(lines)


def iomem_resource() -> Resource:
    """The root of the memory addresses of a machine."""
    return Resource(0, (1 << 64) - 1, "PCI mem", IORESOURCE_MEM)


def ioport_resource() -> Resource:
    """The root of the I/O ports of a machine."""
    return Resource(0, 0xFFFF, "PCI IO", IORESOURCE_IO)
