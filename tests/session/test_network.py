# SPDX-License-Identifier: MIT
"""The network namespace of a session belongs to a user namespace of its own."""

from __future__ import annotations

import errno
import json
import os
import socket
import subprocess
import sys
from pathlib import Path

import pytest

from tests.left_behind import failing, nothing_left
from tsmfs.session import network
from tsmfs.session.namespaces import Namespace

ROOT = Path(__file__).resolve().parents[2]

SCRIPT = """
import fcntl, json, os, socket
from tsmfs.base.uevent import Action, Uevent
from tsmfs.base.uevent_socket import UeventSocket
from tsmfs.session import network
from tsmfs.session.namespaces import bring_up_loopback

NS_GET_USERNS = 0xB701
mine = os.stat("/proc/self/ns/user").st_ino
before = os.stat("/proc/self/ns/net").st_ino
user = os.geteuid()
alone = network.enter_new_network()
with open("/proc/self/ns/net") as net:
    owner = fcntl.ioctl(net, NS_GET_USERNS)
listener = socket.socket(socket.AF_NETLINK, socket.SOCK_RAW, 15)
listener.bind((0, 1))
listener.setsockopt(socket.SOL_SOCKET, socket.SO_PASSCRED, 1)
try:
    with open("/sys/class/mem/null/uevent", "w") as host:
        host.write("change")
except OSError:
    pass
reports = []
sender = UeventSocket(reports.append)
fields = (("ACTION", "change"), ("DEVPATH", "/devices/ours"), ("SUBSYSTEM", "tsm"))
sender.send(Uevent(Action.CHANGE, "/devices/ours", "tsm", fields))
data, credentials, _, address = listener.recvmsg(4096, 100)
bring_up_loopback()
print(json.dumps({
    "alone": alone,
    "new": os.stat("/proc/self/ns/net").st_ino != before,
    "owner is another": os.fstat(owner).st_ino != mine,
    "same user": (os.stat("/proc/self/ns/user").st_ino, os.geteuid()) == (mine, user),
    "first event": data.split(b"\\0")[0].decode(),
    "sender": [int.from_bytes(credentials[0][2][4:8], "little"), *address],
    "reports": reports,
    "loopback": [name for _, name in socket.if_nameindex()],
}))
"""


def test_only_the_events_of_the_machine_come_and_root_is_still_root() -> None:
    prefix = ["unshare", "-r"] if os.geteuid() else []
    done = subprocess.run(
        [*prefix, sys.executable, "-c", SCRIPT],
        cwd=ROOT,
        env={k: v for k, v in os.environ.items() if not k.startswith("COVERAGE_")},
        capture_output=True,
        text=True,
        timeout=30,
        check=False,
    )
    assert done.stderr == ""
    uid, from_kernel, group = 0, 0, 1
    assert json.loads(done.stdout) == {
        "alone": True,
        "new": True,
        "owner is another": True,
        "same user": True,
        "first event": "change@/devices/ours",
        "sender": [uid, from_kernel, group],
        "reports": [],
        "loopback": ["lo"],
    }


def test_without_user_namespaces_there_is_a_network_namespace_all_the_same() -> None:
    script = (
        "import os\n"
        "from tsmfs.session import network\n"
        "def none():\n    raise OSError(1, 'no')\n"
        "network._open_owned_network = none\n"
        "before = os.stat('/proc/self/ns/net').st_ino\n"
        "print(network.enter_new_network(), os.stat('/proc/self/ns/net').st_ino != before)\n"
    )
    prefix = ["unshare", "-r"] if os.geteuid() else []
    done = subprocess.run(
        [*prefix, sys.executable, "-c", script],
        cwd=ROOT,
        capture_output=True,
        text=True,
        timeout=30,
        check=True,
    )
    assert done.stdout.split() == ["False", "True"]


@pytest.fixture
def unshared(monkeypatch: pytest.MonkeyPatch) -> list[Namespace]:
    """What this process would have unshared; a user namespace cannot be made."""
    kinds: list[Namespace] = []

    def unshare(kind: Namespace) -> None:
        if kind is Namespace.USER:
            raise PermissionError(errno.EPERM, os.strerror(errno.EPERM))
        kinds.append(kind)

    monkeypatch.setattr(network, "unshare", unshare)
    return kinds


def test_a_user_namespace_that_is_refused_leaves_nothing(unshared: list[Namespace]) -> None:
    with nothing_left():
        assert network.enter_new_network() is False
    assert unshared == [Namespace.NET]


@pytest.mark.parametrize(
    ("module", "name", "number"),
    [(os, "fork", errno.EAGAIN), (socket, "socketpair", errno.EMFILE)],
)
def test_want_of_a_process_is_no_refusal_and_leaves_nothing(
    unshared: list[Namespace],
    monkeypatch: pytest.MonkeyPatch,
    module: object,
    name: str,
    number: int,
) -> None:
    monkeypatch.setattr(module, name, failing(getattr(module, name), number))
    with nothing_left(), pytest.raises(OSError, match=os.strerror(number)):
        network.enter_new_network()
    assert unshared == []
