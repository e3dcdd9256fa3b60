# SPDX-License-Identifier: MIT
"""A device's mailbox from user space: registers in ``config`` of a mounted machine."""

from __future__ import annotations

import contextlib
import errno
import os
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.integration.conftest import mounting, write
from tests.machines import fails
from tsmfs.mailbox import ConfigFile, Mailbox
from tsmfs.pci import regs
from tsmfs.spdm.requester import Requester

DEVICE = "0000:01:00.0"


@pytest.fixture(scope="module")
def devices(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    """The PCI functions of a machine with keys."""
    place = tmp_path_factory.mktemp("mailbox") / "sys"
    with mounting(place, "--machine", "server") as sysfs:
        yield sysfs / "bus/pci/devices"


def test_requester_has_a_session_through_the_registers(devices: Path) -> None:
    with Mailbox(devices / DEVICE) as mailbox:
        requester = Requester(mailbox)
        requester.connect()
        session = requester.key_exchange()
        assert session.measurements(sign=True).blocks == 5
        session.end()


def test_second_user_ends_the_session_of_the_first(devices: Path) -> None:
    with Mailbox(devices / DEVICE) as first, Mailbox(devices / DEVICE) as second:
        requester = Requester(first)
        requester.connect()
        session = requester.key_exchange()
        Requester(second).connect()
        with fails(errno.EIO):
            session.heartbeat()
        assert session.ended


def test_endpoint_answers_as_the_transport_does(devices: Path) -> None:
    get_version = bytes((0x10, 0x84, 0, 0))
    with Mailbox(devices / DEVICE) as mailbox:
        assert mailbox.respond(get_version) == mailbox.plain(get_version)
        with fails(errno.EIO):
            mailbox.respond_secured(bytes(32))
        assert mailbox.respond(get_version)[:2] == bytes((0x10, 0x04))


@contextlib.contextmanager
def leaving_nothing_open() -> Iterator[None]:
    before = os.listdir("/proc/self/fd")
    yield
    assert os.listdir("/proc/self/fd") == before


@pytest.mark.parametrize("name", ["0000:00:01.0", "0000:06:00.0"])
def test_function_without_a_mailbox_has_none(devices: Path, name: str) -> None:
    with leaving_nothing_open(), fails(errno.EOPNOTSUPP):
        Mailbox(devices / name)


def test_function_that_is_not_there_is_told(devices: Path) -> None:
    with leaving_nothing_open(), fails(errno.ENOENT):
        Mailbox(devices / "0000:99:00.0")


def test_function_that_goes_while_it_is_opened_leaves_no_file_open(
    devices: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    remove = devices / DEVICE / "remove"
    pread = os.pread

    def pread_of_what_has_gone(descriptor: int, size: int, pos: int) -> bytes:
        if remove.exists():
            write(remove, "1")
        return pread(descriptor, size, pos)

    monkeypatch.setattr(os, "pread", pread_of_what_has_gone)
    try:
        with leaving_nothing_open(), fails(errno.ENODEV):
            Mailbox(devices / DEVICE)
    finally:
        write(devices.parent / "rescan", "1")


def test_head_of_a_configuration_space_is_not_enough(tmp_path: Path) -> None:
    (tmp_path / "config").write_bytes(bytes(64))
    with leaving_nothing_open(), fails(errno.EACCES):
        ConfigFile(tmp_path / "config")


def test_register_that_is_not_all_there_is_an_error(tmp_path: Path) -> None:
    path = tmp_path / "config"
    path.write_bytes(bytes(range(256)))
    config = ConfigFile(path)
    assert config.size == regs.PCI_CFG_SPACE_SIZE
    assert config.read(4, 4) == 0x07060504
    config.write(4, 2, 0x1234)
    assert config.read(4, 4) == 0x07061234
    with fails(errno.EIO):
        config.read(254, 4)
    config.close()
