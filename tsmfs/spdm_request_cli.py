# SPDX-License-Identifier: MIT
"""``tsmfs spdm request``: a host that asks a responder everything."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator, Mapping, Sequence
from datetime import UTC, datetime
from pathlib import Path
from tempfile import TemporaryFile
from typing import TYPE_CHECKING

import click

from tsmfs.command import (
    about,
    check_nonce,
    complete_function,
    function_directory,
    on_instance,
    parse_nonce,
)
from tsmfs.spdm_options import (
    function_id,
    negotiates,
    offer_of,
    parse_address,
    parse_interface,
    version_bytes,
)

if TYPE_CHECKING:
    from cryptography.x509 import Certificate

    from tsmfs.spdm.algorithms import BaseHash, PublicKey
    from tsmfs.spdm.emu import SocketTransport
    from tsmfs.spdm.requester import Requester, Transport
    from tsmfs.spdm.survey import Survey

#: The FUNCTION_ID that spdm-emu's requester asks for.
EMU_INTERFACE = 0xBEEF


@click.command()
@on_instance
@click.option(
    "--connect",
    "address",
    callback=parse_address,
    metavar="HOST:PORT",
    help="The responder: a socket with the framing of spdm-emu.",
)
@click.option(
    "--device",
    metavar="BDF",
    shell_complete=complete_function,
    help="The responder: this function of a mounted machine, through its mailbox.",
)
@click.option(
    "--root",
    "roots",
    multiple=True,
    type=click.Path(path_type=Path, dir_okay=False, exists=True),
    metavar="PEM",
    help="Trust chains that begin with a certificate in this file, and no others. May be given "
    "several times. Default: any chain is taken.",
)
@click.option("--slot", type=click.IntRange(0, 7), default=0, metavar="N", help="Use this slot.")
@click.option(
    "--nonce",
    metavar="HEX|random",
    callback=parse_nonce,
    help="Have the measurements signed over these 32 bytes. Default: random.",
)
@click.option(
    "--interface",
    callback=parse_interface,
    metavar="BDF|ID",
    help="Lock this interface: a function, or its FUNCTION_ID in hexadecimal. Default: that of "
    "--device, or the one of spdm-emu, beef.",
)
@click.option(
    "--stream",
    type=click.IntRange(0, 255),
    default=0,
    metavar="ID",
    help="Key the IDE stream with this ID. Default: 0.",
)
@negotiates
@click.option(
    "--save",
    "directory",
    type=click.Path(path_type=Path, file_okay=False),
    metavar="DIR",
    help="Write the evidence to DIR, as tsmfs evidence read --out does.",
)
@click.option("--shutdown", is_flag=True, help="Tell the server to end afterwards.")
def request(
    sysfs: Path | None,
    address: tuple[str, int] | None,
    device: str | None,
    roots: tuple[Path, ...],
    slot: int,
    nonce: bytes,
    interface: int | None,
    stream: int,
    versions: tuple[str, ...],
    directory: Path | None,
    shutdown: bool,
    **algorithms: str | None,
) -> None:
    """Ask a responder everything, and tell what came of each step.

    From the version on, with certificates, challenge and measurements, into a session; there a
    stream is keyed and an interface locked, reported, started and stopped. All signatures are
    verified. The first step that fails ends the walk and makes the exit status 1; what the
    responder does not support is passed over.

    \b
    Examples:
      tsmfs spdm request --connect 127.0.0.1:2323
      tsmfs spdm request --connect 127.0.0.1:2323 --root root.pem --save evidence
      tsmfs spdm request --device 0000:01:00.0
    """
    if (address is None) == (device is None):
        raise click.UsageError("either --connect or --device is needed")
    check_nonce(nonce)
    if shutdown and address is None:
        raise click.UsageError("--shutdown is of use with --connect only")
    from tsmfs.spdm.survey import Survey

    trusted = _load_roots(roots)
    if directory is not None:
        _check_writable(directory)
    with contextlib.ExitStack() as stack:
        if device is not None:
            from tsmfs.mailbox import Mailbox

            transport: Transport = stack.enter_context(Mailbox(function_directory(sysfs, device)))
        else:
            assert address is not None
            transport = stack.enter_context(_connected(address))
        if interface is None:
            interface = function_id(device) if device is not None else EMU_INTERFACE
        survey = Survey(
            _requester(transport, trusted, slot, versions, algorithms),
            nonce=nonce or None,
            interface=interface,
            stream_id=stream,
        )
        with _farewell(transport, shutdown):
            _walk(survey)
    if directory is not None:
        _save(survey.evidence, directory)


def _load_roots(paths: Sequence[Path]) -> list[Certificate]:
    from tsmfs.verify import load_roots

    try:
        return [root for path in paths for root in load_roots(path)]
    except ValueError as error:
        raise click.ClickException(str(error)) from error


def _connected(address: tuple[str, int]) -> SocketTransport:
    """A connection to a server that has greeted, and supports what is needed."""
    from tsmfs.spdm.doe import PROTOCOLS
    from tsmfs.spdm.emu import SocketTransport

    with about(f"{address[0]}:{address[1]}"):
        transport = SocketTransport.connect(*address)
        try:
            transport.hello()
            found = transport.discover()
        except BaseException:
            transport.close()
            raise
    _tell("discovery", " ".join(f"{vendor:04x}:{kind:02x}" for vendor, kind in found))
    if not set(PROTOCOLS) <= set(found):
        transport.close()
        raise click.ClickException("discovery: the responder has no SPDM data objects")
    return transport


def _requester(
    transport: Transport,
    roots: Sequence[Certificate],
    slot: int,
    versions: Sequence[str],
    algorithms: Mapping[str, str | None],
) -> Requester:
    from tsmfs.spdm.requester import Requester, leaf_key

    def trust(chain: bytes, base_hash: BaseHash) -> PublicKey:
        from tsmfs.spdm.certificates import CertificateError, check_chain, public_key
        from tsmfs.spdm.exchange import VerificationError

        try:
            leaf = check_chain(
                chain,
                base_hash=base_hash,
                base_asym=requester.algorithms.base_asym,
                roots=roots,
                now=datetime.now(UTC),
                version=requester.version,
            )
        except CertificateError as error:
            raise VerificationError(str(error)) from None
        return public_key(leaf)

    requester = Requester(
        transport,
        versions=version_bytes(versions),
        offer=offer_of(**algorithms),
        trust=trust if roots else leaf_key,
        slot=slot,
    )
    return requester


@contextlib.contextmanager
def _farewell(transport: Transport, shutdown: bool) -> Iterator[None]:
    """Tells a server afterwards to end, or to wait for the next client, as far as it can hear."""
    from tsmfs.spdm.emu import SocketTransport

    try:
        yield
    finally:
        if isinstance(transport, SocketTransport):
            with contextlib.suppress(OSError):
                (transport.shut_down if shutdown else transport.leave)()


def _walk(survey: Survey) -> None:
    """Take the steps of ``survey`` and tell each."""
    from tsmfs.spdm.ide_km import IdeKmError
    from tsmfs.spdm.messages import SpdmError
    from tsmfs.spdm.tdisp import TdispError
    from tsmfs.spdm.wire import SpdmDecodeError

    try:
        for step in survey.steps():
            _tell(step.name, step.result)
    except OSError as error:
        raise click.ClickException(f"{survey.doing}: {error.strerror or error}") from error
    except (IdeKmError, SpdmDecodeError, SpdmError, TdispError) as error:
        raise click.ClickException(f"{survey.doing}: {error}") from error


def _tell(name: str, result: str) -> None:
    click.echo(f"{name:<20}  {result}")


def _check_writable(directory: Path) -> None:
    """Raise ClickException unless ``directory``, or what it will be made in, takes files."""
    existing = next(one for one in (directory, *directory.absolute().parents) if one.exists())
    # Permissions do not tell: root may write everywhere, and yet some filesystems take nothing.
    with about(str(directory)), TemporaryFile(dir=existing):
        pass


def _save(evidence: Mapping[str, bytes], directory: Path) -> None:
    from tsmfs.spdm.survey import OBJECTS

    directory.mkdir(parents=True, exist_ok=True)
    for name in OBJECTS:
        (directory / f"{name}.bin").write_bytes(evidence.get(name, b""))
