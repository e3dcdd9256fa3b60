# SPDX-License-Identifier: MIT
"""The evidence blobs that the sample TSMs share."""

from __future__ import annotations

import errno

import pytest

from tests.machines import Shell, boot, fails, pci
from tsmfs.drivers.devsec_common import BLOB_MAX, DevsecCommon

LINK, DEVSEC = "/bus/faux/devices/devsec_link_tsm", "/bus/faux/devices/devsec_tsm"
ENDPOINT = pci("10000:01:00.0")


@pytest.fixture
def sh() -> Shell:
    return boot("devsec")


@pytest.mark.parametrize("name", ["certs", "transcript"])
def test_a_blob_is_one_file_in_two_places(sh: Shell, name: str) -> None:
    for path in (LINK, DEVSEC):
        assert sh.mode(f"{path}/{name}") == 0o644
        assert sh.node(f"{path}/{name}").size == 0
    sh.write(f"{LINK}/{name}", b"evidence")
    assert sh.read(f"{DEVSEC}/{name}") == b"evidence"
    sh.write(f"{DEVSEC}/{name}", b"E")
    assert sh.read(f"{LINK}/{name}") == b""


def test_blobs_are_two(sh: Shell) -> None:
    sh.write(f"{LINK}/certs", b"certificates")
    assert sh.read(f"{LINK}/transcript") == b""


def test_writes_extend_and_overwrite_at_their_offset(sh: Shell) -> None:
    path = f"{LINK}/certs"
    sh.write(path, b"0123456789")
    sh.write(path, b"abc", 8)
    assert sh.read(path) == b"01234567abc"
    sh.write(path, b"xy", 0)
    assert sh.read(path) == b"xy234567abc"
    sh.write(path, b"end", 15)
    assert sh.read(path) == b"xy234567abc\0\0\0\0end"
    assert sh.read(path, 2, 3) == b"234"
    assert sh.read(path, 100, 3) == b""


def test_one_byte_at_the_start_empties_and_elsewhere_it_is_a_byte(sh: Shell) -> None:
    path = f"{LINK}/certs"
    sh.write(path, b"0123")
    sh.write(path, b"x", 1)
    assert sh.read(path) == b"0x23"
    sh.write(path, b"\0")
    assert sh.read(path) == b""


def test_a_blob_holds_16_mib(sh: Shell) -> None:
    path = f"{LINK}/certs"
    assert BLOB_MAX == 16 << 20
    sh.write(path, b"ab", BLOB_MAX - 2)
    assert len(sh.read(path, 0, 1 << 30)) == BLOB_MAX
    for data, offset in ((b"ab", BLOB_MAX - 1), (b"a", BLOB_MAX), (b"a", 1 << 40)):
        with fails(errno.EFBIG):
            sh.write(path, data, offset)
    sh.write(path, b"\0")


@pytest.mark.parametrize(
    ("begin", "end"),
    [
        (("connect", "tsm0"), ("disconnect", "tsm0")),
        (("lock", "tsm1"), ("unlock", "tsm1")),
    ],
)
def test_blobs_cannot_be_written_while_a_context_presents_them(
    sh: Shell, begin: tuple[str, str], end: tuple[str, str]
) -> None:
    sh.write(f"{LINK}/certs", b"before")
    sh.echo(begin[1], f"{ENDPOINT}/tsm/{begin[0]}")
    for path in (f"{LINK}/certs", f"{DEVSEC}/transcript"):
        with fails(errno.EBUSY):
            sh.write(path, b"x")
    with fails(errno.EBUSY):
        sh.write(f"{LINK}/certs", b"x", BLOB_MAX)
    assert sh.read(f"{LINK}/certs") == b"before"
    sh.echo(end[1], f"{ENDPOINT}/tsm/{end[0]}")
    sh.write(f"{LINK}/certs", b"after")


def test_contexts_are_counted() -> None:
    common = DevsecCommon()
    common.get()
    common.get()
    common.put()
    with fails(errno.EBUSY):
        common.write("certs", 0, b"xx")
    common.put()
    common.write("certs", 0, b"xx")
    assert common.read("certs", 1, 5) == b"x"


def test_the_blobs_go_with_the_modules(sh: Shell) -> None:
    sh.write(f"{LINK}/certs", b"evidence")
    for module in ("devsec_tsm", "devsec_link_tsm", "devsec_bus", "devsec_common"):
        sh.rmmod(module)
    sh.modprobe("devsec_link_tsm")
    assert sh.read(f"{LINK}/certs") == b""
