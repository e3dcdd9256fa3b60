# SPDX-License-Identifier: MIT
"""Uevents: their variables, their payload, and what a write to a uevent file may say."""

from __future__ import annotations

import errno
import os
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tests.machines import boot, errno_from, fails, pci
from tsmfs.base.uevent import Action, Uevent, Uevents, parse_synthetic

UUID = "fe4d7c9d-b8c6-4a70-9ef1-3d8a58d18eed"

ACCEPTED = [
    "change",
    "change\n",
    "change\0",
    f"change {UUID}",
    f"change {UUID}\n",
    f"change {UUID.upper()}",
    f"change {UUID} A=1",
    f"change {UUID} A=1\n",
    f"change {UUID} A=1\0",
    f"change {UUID} A=1 BC=23\n",
    f"change {UUID} A=1 A=1",
    f"change {UUID} A={'1' * 1000}",
    f"change {UUID}{' A=1' * 50}",
    "",
]
"""What a kernel takes, as it was seen on 6.18."""

REFUSED = [
    "\n",
    "\0",
    " change",
    "change ",
    "change \n",
    "change\t",
    "change\n\n",
    "change\n\0",
    "change\0\n",
    "chang",
    "changes",
    "CHANGE",
    "bogus",
    f"bogus {UUID}",
    "change 1",
    f"change  {UUID}",
    f"change {UUID} ",
    f"change {UUID} \n",
    f"change {UUID[:-1]}",
    f"change {UUID[:-1]}g",
    f"change {UUID}\nA=1",
    f"change {UUID}\0 A=1",
    f"change {UUID}A=1",
    f"change {UUID} A",
    f"change {UUID} A=",
    f"change {UUID} =1",
    f"change {UUID} A=1  B=2",
    f"change {UUID} A=1 ",
    f"change {UUID} A=1 \n",
    f"change {UUID} A=1\n\n",
    f"change {UUID} A_B=1",
    f"change {UUID} A=b_c",
    f"change {UUID} A=b=c",
    f"change {UUID} A={'1' * 2100}",
    f"change {UUID}{' A=1' * 64}",
    "x" * 4096,
    "\udcff\udcfe",
]
"""What it refuses with EINVAL."""


def raw(text: str) -> bytes:
    return text.encode(errors="surrogateescape")


def kernel_uevent_file() -> Path | None:
    """The uevent file of a real PCI function, if there is one that we may write."""
    files = sorted(Path("/sys/bus/pci/devices").glob("*/uevent"))
    return next((file for file in files if os.access(file, os.W_OK)), None)


def write_to(path: Path, data: bytes) -> None:
    """One write, of any length."""
    descriptor = os.open(path, os.O_WRONLY)
    try:
        os.write(descriptor, data)
    finally:
        os.close(descriptor)


@pytest.mark.parametrize(
    ("text", "result"),
    [*((text, None) for text in ACCEPTED), *((text, "EINVAL") for text in REFUSED)],
    ids=lambda text: repr(text)[1:60] if text else None,
)
def test_synthetic_uevents_are_taken_as_by_a_kernel(text: str, result: str | None) -> None:
    sh = boot("devsec")
    assert errno_from(lambda: sh.write(f"{pci('10000:01:00.0')}/uevent", raw(text))) == result
    real = kernel_uevent_file()
    if real is not None:
        assert errno_from(lambda: write_to(real, raw(text))) == result


@pytest.mark.parametrize("action", list(Action))
def test_every_action_can_be_synthesized(action: Action) -> None:
    assert parse_synthetic(f"{action}\n".encode()) == (action, [("SYNTH_UUID", "0")])


def test_the_actions_are_the_kernels() -> None:
    assert [action.value for action in Action] == [
        "add",
        "remove",
        "change",
        "move",
        "online",
        "offline",
        "bind",
        "unbind",
    ]


def test_arguments_become_variables_in_their_order() -> None:
    action, env = parse_synthetic(f"add {UUID} B=2 A=1 B=3\n".encode())
    assert action is Action.ADD
    assert env == [
        ("SYNTH_UUID", UUID),
        ("SYNTH_ARG_B", "2"),
        ("SYNTH_ARG_A", "1"),
        ("SYNTH_ARG_B", "3"),
    ]


def test_text_behind_a_nul_is_refused() -> None:
    with fails(errno.EINVAL):
        parse_synthetic(b"change\0junk")


@given(st.binary(max_size=80) | st.text("change \n\0=A1-").map(str.encode))
def test_any_bytes_are_an_action_or_invalid(data: bytes) -> None:
    assert errno_from(lambda: parse_synthetic(data)) in (None, "EINVAL")


def test_a_refused_synthetic_uevent_is_in_the_log_and_sends_nothing() -> None:
    sh = boot("devsec")
    path, events = f"{pci('10000:01:00.0')}/uevent", sh.uevents()
    with fails(errno.EINVAL):
        sh.echo("bogus", path)
    with fails(errno.EINVAL):
        sh.echo("change x", path)
    assert events == []
    log = sh.dmesg()
    assert "10000:01:00.0: unknown uevent action string" in log
    assert "10000:01:00.0: incorrect uevent action arguments" in log
    assert log.count("uevent: failed to send synthetic uevent: -22") == 2


# Variables


@pytest.fixture
def uevents() -> Uevents:
    return Uevents()


def test_variables_come_in_the_kernels_order(uevents: Uevents) -> None:
    heard: list[Uevent] = []
    uevents.listeners.append(heard.append)
    uevents.send(Action.CHANGE, "/devices/x", "pci", [("DRIVER", "d"), ("MODALIAS", "m")])
    assert heard[0].env == (
        ("ACTION", "change"),
        ("DEVPATH", "/devices/x"),
        ("SUBSYSTEM", "pci"),
        ("DRIVER", "d"),
        ("MODALIAS", "m"),
        ("SEQNUM", "1"),
    )


def test_the_payload_is_what_libudev_reads(uevents: Uevents) -> None:
    heard: list[Uevent] = []
    uevents.listeners.append(heard.append)
    uevents.send(Action.ADD, "/devices/x", "pci", [("A", "b")])
    payload = heard[0].payload()
    assert payload == (
        b"add@/devices/x\0ACTION=add\0DEVPATH=/devices/x\0SUBSYSTEM=pci\0A=b\0SEQNUM=1\0"
    )
    assert uevents.ring.read(0, 1000) == payload + b"\0"


def test_numbers_count_up_from_one(uevents: Uevents) -> None:
    heard: list[Uevent] = []
    uevents.listeners.append(heard.append)
    assert uevents.seqnum == 0
    for _ in range(3):
        uevents.send(Action.ADD, "/x", "s", [])
    assert [event.env[-1] for event in heard] == [("SEQNUM", "1"), ("SEQNUM", "2"), ("SEQNUM", "3")]
    assert uevents.seqnum == 3


def test_a_synthetic_uevent_has_its_variables_before_those_of_the_device() -> None:
    sh = boot("devsec")
    events = sh.uevents()
    sh.echo(f"change {UUID} KEY=value", f"{pci('10000:01:00.0')}/uevent")
    assert [key for key, _ in events[0].env] == [
        "ACTION",
        "DEVPATH",
        "SUBSYSTEM",
        "SYNTH_UUID",
        "SYNTH_ARG_KEY",
        "PCI_CLASS",
        "PCI_ID",
        "PCI_SUBSYS_ID",
        "PCI_SLOT_NAME",
        "MODALIAS",
        "SEQNUM",
    ]


def test_buses_drivers_and_modules_take_synthetic_uevents_too() -> None:
    sh = boot("devsec", ["pci_stub"])
    events = sh.uevents()
    places = {
        "/bus/pci": "bus",
        "/bus/pci/drivers/pci-stub": "drivers",
        "/module/pci_stub": "module",
    }
    for path in places:
        with fails(errno.EINVAL):
            sh.echo("bogus", f"{path}/uevent")
        sh.echo("add", f"{path}/uevent")
    assert [(event.devpath, event.subsystem) for event in events] == list(places.items())


def test_the_sequence_number_is_a_file() -> None:
    sh = boot("devsec")
    before = int(sh.cat("/kernel/uevent_seqnum"))
    sh.echo("change", f"{pci('10000:01:00.0')}/uevent")
    assert int(sh.cat("/kernel/uevent_seqnum")) == before + 1
