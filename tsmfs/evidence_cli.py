# SPDX-License-Identifier: MIT
"""The commands ``tsmfs evidence`` and ``tsmfs netlink``: clients of a machine's netlink server."""

from __future__ import annotations

import contextlib
import json
import os
import signal
import sys
import time
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, NoReturn

import click
from click.shell_completion import CompletionItem

from tsmfs.command import POLL_INTERVAL, Group, complete_function, on_instance, parse_nonce
from tsmfs.instance import ControlStream, Instance, InstanceError, find_instance

if TYPE_CHECKING:
    from netlink.client import EvidenceClient, GenlClient, Piece
    from netlink.connection import Connection

#: From this size on (bytes) the progress of an object is shown.
LARGE = 1 << 20

#: What a shell reports for a process that SIGTERM ended.
_TERMINATED = 143

#: Names of the families that serve evidence.
FAMILIES = ("pci-tsm", "device-evidence")


def connect_to(instance: Instance) -> Connection:
    """A connection to the server of a machine."""
    from netlink.connection import UnixEndpoint, connect

    path = os.fsdecode(instance.read("netlink_socket").removesuffix(b"\n"))
    if not path:
        raise InstanceError(f"{instance.sysfs}: the machine serves no netlink: see 'tsmfs dmesg'")
    return connect(UnixEndpoint(Path(path)))


@contextlib.contextmanager
def asking(about: str | None = None) -> Iterator[None]:
    """Makes what the server refuses an error of the command, about a device if given."""
    from netlink.client import ExtAckError

    try:
        yield
    except ExtAckError as error:
        message = f"{about}: {error}" if about is not None else str(error)
        raise click.ClickException(message) from error


# --- Evidence --------------------------------------------------------------------------------


def _complete_type(
    ctx: click.Context, param: click.Parameter, incomplete: str
) -> list[CompletionItem]:
    from netlink.client import evidence_types

    return [CompletionItem(name) for name in evidence_types() if name.startswith(incomplete)]


def _check_types(
    ctx: click.Context, param: click.Parameter, types: tuple[str, ...]
) -> tuple[str, ...] | None:
    if not types:
        return None
    from netlink.client import evidence_types

    for name in types:
        if name not in evidence_types():
            raise click.BadParameter(f"{name!r} is none of {', '.join(evidence_types())}.")
    return types


@click.group(cls=Group)
def evidence() -> None:
    """Read, verify and validate the evidence of devices.

    \b
    Examples:
      tsmfs evidence read 10000:01:00.0
      tsmfs evidence verify 0000:01:00.0
      tsmfs evidence validate 10000:01:00.0 --generation 1
    """


@evidence.command("read")
@on_instance
@click.option(
    "--type",
    "types",
    multiple=True,
    metavar="NAME",
    callback=_check_types,
    shell_complete=_complete_type,
    help="Read this object: cert0 to cert7, vca, measurements or report. May be given several "
    "times. Default: all of them.",
)
@click.option("--digest", is_flag=True, help="Read the TSM's digests of the objects instead.")
@click.option(
    "--nonce",
    metavar="HEX|random",
    callback=parse_nonce,
    help="Have the TSM produce new evidence over this value first.",
)
@click.option(
    "--family",
    type=click.Choice(FAMILIES),
    default=FAMILIES[0],
    metavar="FAMILY",
    help="Ask by this family: pci-tsm, or device-evidence, which tells the generation, too. "
    "Default: pci-tsm.",
)
@click.option(
    "--out",
    "directory",
    type=click.Path(path_type=Path, file_okay=False),
    metavar="DIR",
    help="Write each object to a file NAME.bin in DIR, which is made if it is not there.",
)
@click.option("--json", "form", flag_value="json", help="Print JSON, with contents in hex.")
@click.option("--hexdump", "form", flag_value="hexdump", help="Print the contents, as hexdump -C.")
@click.argument("bdf", metavar="BDF", shell_complete=complete_function)
def evidence_read(
    sysfs: Path | None,
    types: tuple[str, ...] | None,
    digest: bool,
    nonce: bytes,
    family: str,
    directory: Path | None,
    form: str | None,
    bdf: str,
) -> None:
    """Read the evidence of the PCI function BDF.

    Prints the size of each object, and '-' for one that the TSM does not have; digests are
    printed themselves. Nothing is printed or written before all has arrived.

    \b
    Examples:
      tsmfs evidence read 10000:01:00.0
      tsmfs evidence read 10000:01:00.0 --type cert0 --type measurements --out evidence
      tsmfs evidence read 10000:01:00.0 --family device-evidence --nonce random --json
    """
    from netlink.client import EVIDENCE_CLIENTS

    connection = connect_to(find_instance(sysfs))
    with asking(bdf), EVIDENCE_CLIENTS[family](connection) as client, _Progress() as progress:
        objects = client.read(bdf, types, digest=digest, nonce=nonce, progress=progress.show)
    if directory is not None:
        directory.mkdir(parents=True, exist_ok=True)
        for name, content in objects.items():
            (directory / f"{name}.bin").write_bytes(content)
    if form == "json":
        click.echo(_to_json(bdf, client, digest, nonce, objects))
        return
    click.echo(_title(bdf, client, nonce))
    for name, content in objects.items():
        if form == "hexdump":
            click.echo(f"\n{name}  {len(content)} bytes")
            for line in _hexdump(content):
                click.echo(line)
        else:
            shown = content.hex() if digest else f"{len(content)} bytes"
            click.echo(f"{name:<12}  {shown if content else '-'}")


def _title(bdf: str, client: EvidenceClient, nonce: bytes) -> str:
    words = [bdf, client.FAMILY]
    if client.generation is not None:
        words.append(f"generation {client.generation}")
    if nonce:
        words.append(f"nonce {nonce.hex()}")
    return "  ".join(words)


def _to_json(
    bdf: str, client: EvidenceClient, digest: bool, nonce: bytes, objects: Mapping[str, bytes]
) -> str:
    shown = {
        "device": bdf,
        "family": client.FAMILY,
        "generation": client.generation,
        "nonce": nonce.hex() or None,
        "digest": digest,
        "objects": {name: content.hex() for name, content in objects.items()},
    }
    return json.dumps(shown, indent=2)


def _hexdump(content: bytes) -> Iterator[str]:
    """The lines that ``hexdump -C`` prints, of which none is left out."""
    for offset in range(0, len(content), 16):
        row = content[offset : offset + 16]
        left, right = row[:8].hex(" "), row[8:].hex(" ")
        text = "".join(chr(byte) if 32 <= byte < 127 else "." for byte in row)
        yield f"{offset:08x}  {left:<23}  {right:<23}  |{text}|"


class _Progress:
    """A bar on the terminal for each object that is large."""

    def __init__(self) -> None:
        self._kind: str | None = None
        self._bars = contextlib.ExitStack()
        self._update: Callable[[int], None] | None = None
        self._terminal = sys.stderr.isatty()

    def __enter__(self) -> _Progress:
        return self

    def __exit__(self, *_: object) -> None:
        self._bars.close()

    def show(self, piece: Piece) -> None:
        """Count what has come in."""
        if piece.kind != self._kind:
            self._bars.close()
            self._kind, self._update = piece.kind, None
        if not self._terminal:
            return
        if self._update is not None:
            self._update(len(piece.data))
        elif max(piece.received, piece.length or 0) >= LARGE:
            bar = self._bars.enter_context(
                # No length is known where the family does not tell it: the bar then only moves.
                click.progressbar(
                    (_ for _ in ()), piece.length, piece.kind, show_pos=True, file=sys.stderr
                )
            )
            self._update = bar.update
            bar.update(piece.received)


@evidence.command("validate")
@on_instance
@click.option(
    "--generation",
    type=click.IntRange(0, 2**32 - 1),
    metavar="N",
    required=True,
    help="The generation that was judged, which 'read --family device-evidence' tells.",
)
@click.argument("bdf", metavar="BDF", shell_complete=complete_function)
def evidence_validate(sysfs: Path | None, generation: int, bdf: str) -> None:
    """Declare evidence of the PCI function BDF good.

    It is refused when the evidence has changed since: then read and judge it again.

    \b
    Example:
      tsmfs evidence validate 10000:01:00.0 --generation 1
    """
    from netlink.client import DeviceEvidenceClient

    connection = connect_to(find_instance(sysfs))
    with asking(bdf), DeviceEvidenceClient(connection) as client:
        client.validate(bdf, generation)


# --- Netlink ---------------------------------------------------------------------------------


@click.group(cls=Group)
def netlink() -> None:
    """Look at the machine's generic netlink.

    \b
    Examples:
      tsmfs netlink families
      tsmfs netlink monitor
    """


@netlink.command("families")
@on_instance
def netlink_families(sysfs: Path | None) -> None:
    """List the families with their operations.

    After the name of an operation come 'do' and 'dump' for what it can do, and 'admin' when it
    takes CAP_NET_ADMIN.

    \b
    Example:
      tsmfs netlink families
    """
    from netlink.client import GenlClient

    with asking(), GenlClient(connect_to(find_instance(sysfs))) as client:
        rows = list(_family_rows(client))
    click.echo(f"{'ID':<6}{'NAME':<18}{'VERSION':<9}OPERATIONS")
    for number, name, version, operations in rows:
        click.echo(f"{number:<6}{name:<18}{version:<9}{', '.join(operations)}".rstrip())


def _family_rows(client: GenlClient) -> Iterator[tuple[int, str, int, list[str]]]:
    from netlink.monitor import known_families

    known = known_families()
    flags = known["nlctrl"].enums["op-flags"]
    words = {"cmd-cap-do": "do", "cmd-cap-dump": "dump", "admin-perm": "admin"}
    for family in client.families():
        spec = known.get(family.name)
        names = {one.request_value: one.name for one in spec.operations} if spec else {}
        operations = [
            f"{names.get(number, number)} "
            f"({' '.join(word for flag, word in words.items() if mask & flags.value(flag))})"
            for number, mask in family.ops.items()
        ]
        yield family.id, family.name, family.version, operations


@netlink.command("monitor")
@on_instance
def netlink_monitor(sysfs: Path | None) -> None:
    """Print messages as they pass.

    Those of all clients: '->' goes to the machine and '<-' comes from it, errors and extended
    acks decoded. The machine records while this runs, in the control file netlink_record; the
    command ends when somebody switches that off, or the machine is unmounted.

    \b
    Example:
      tsmfs netlink monitor
    """
    from netlink.client import GenlClient
    from netlink.monitor import Decoder, Records

    instance = find_instance(sysfs)
    with asking(), GenlClient(connect_to(instance)) as client:
        decoder = Decoder({family.name: family.id for family in client.families()})
    records = Records()
    lost = 0
    signal.signal(signal.SIGTERM, _terminate)
    with instance.open_stream("netlink_messages") as stream:
        for _ in stream.rest():
            pass  # What happened before this is not news.
        with _recording(instance):
            click.echo("-> is to the machine, <- from the machine")
            for piece in _pieces(instance, stream):
                lines = [line for record in records.feed(piece) for line in decoder.render(record)]
                if not piece and records.lost != lost:
                    lost = records.lost
                    lines.append("some of the messages before this were lost: they came too fast")
                if lines:
                    click.echo("\n".join(lines))


def _terminate(*_: object) -> NoReturn:
    sys.exit(_TERMINATED)


@contextlib.contextmanager
def _recording(instance: Instance) -> Iterator[None]:
    """The machine keeps what passes."""
    instance.write("netlink_record", "1")
    try:
        yield
    finally:
        # A machine that has gone records no more.
        with contextlib.suppress(OSError):
            instance.write("netlink_record", "0")


def _pieces(instance: Instance, stream: ControlStream) -> Iterator[bytes]:
    """What is recorded, until recording ends or the machine is unmounted; empty after a burst."""
    while True:
        try:
            # Asked first: what was recorded before the end is still there to be read then.
            recording = instance.read("netlink_record").startswith(b"1")
            yield from stream.rest()
        except OSError:
            return
        yield b""
        if not recording:
            return
        time.sleep(POLL_INTERVAL)
