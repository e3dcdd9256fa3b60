# SPDX-License-Identifier: MIT
"""Uevents sent through the kernel, in a network namespace of the tests' own."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]

SCRIPT = """
import json, os, socket, sys
from tsmfs.base.uevent import Action, Uevents
from tsmfs.base.uevent_socket import NETLINK_KOBJECT_UEVENT, UeventSocket

listener = socket.socket(socket.AF_NETLINK, socket.SOCK_RAW, NETLINK_KOBJECT_UEVENT)
listener.bind((0, 1))
listener.settimeout(20)
reports = []
sender = UeventSocket(reports.append)
events = Uevents()
events.listeners.append(sender.send)
events.send(Action.ADD, "/devices/a", "pci", [("LONG", "x" * 4096)])
received = []
for action in (Action.ADD, Action.CHANGE):
    events.send(action, "/devices/a", "pci", [("PCI_ID", "8086:0001")])
    fields = []
    # Where the namespace is one of the host's user namespace, the host's uevents are seen too.
    while "DEVPATH=/devices/a" not in fields:
        data, address = listener.recvfrom(8192)
        fields = data.decode().rstrip("\\0").split("\\0")
    received.append((fields, address))
sender.close()
events.send(Action.REMOVE, "/devices/a", "pci", [])
print(json.dumps([received, reports]))
if os.getuid() == 0 and "as nobody" in sys.argv:
    os.setuid(65534)
    try:
        UeventSocket(reports.append)
    except OSError as error:
        print(error.errno)
"""


def in_a_namespace(*arguments: str) -> list[str]:
    """The lines that the script prints in a network namespace in which it is root."""
    options = "-n" if os.geteuid() == 0 else "-Urn"
    environment = {**os.environ, "PYTHONPATH": str(ROOT)}
    if arguments:
        # Another user could not write down what coverage measures.
        environment = {k: v for k, v in environment.items() if not k.startswith("COVERAGE_")}
    done = subprocess.run(
        ["unshare", options, sys.executable, "-c", SCRIPT, *arguments],
        env=environment,
        capture_output=True,
        text=True,
        timeout=30,
        check=False,
    )
    assert done.stderr == ""
    return done.stdout.splitlines()


def test_listeners_see_a_uevent_as_the_kernels_own() -> None:
    (line,) = in_a_namespace()
    (add, change), reports = json.loads(line)
    for (fields, address), action in ((add, "add"), (change, "change")):
        assert fields[:5] == [
            f"{action}@/devices/a",
            f"ACTION={action}",
            "DEVPATH=/devices/a",
            "SUBSYSTEM=pci",
            "PCI_ID=8086:0001",
        ]
        # The one number is the kernel's.
        assert [field.partition("=")[0] for field in fields[5:]] == ["SEQNUM"]
        from_kernel, group = 0, 1
        assert address == [from_kernel, group]
    too_long, closed = reports
    assert too_long == "/devices/a: uevent not sent to the host: Invalid argument"
    assert closed == "/devices/a: uevent not sent to the host: Bad file descriptor"


@pytest.mark.skipif(os.geteuid() != 0, reason="only root can become another user")
def test_a_user_without_the_right_is_told_so() -> None:
    assert in_a_namespace("as nobody")[1] == "1"
