# SPDX-License-Identifier: MIT
"""The commands ``tsmfs spdm``: print messages, answer a requester, ask a responder."""

from __future__ import annotations

import contextlib
import logging
import re
import signal
import socket
import sys
import threading
from collections.abc import Callable, Iterator, Mapping, Sequence
from datetime import UTC, datetime
from pathlib import Path
from typing import TYPE_CHECKING, Any, BinaryIO

import click

from tsmfs.command import NONCE_SIZE, Group, complete_function, on_instance, parse_nonce
from tsmfs.instance import find_instance
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

    from tsmfs.mailbox import Mailbox
    from tsmfs.spdm.algorithms import BaseHash, Offer, PublicKey
    from tsmfs.spdm.emu import Endpoint, Server, SocketTransport
    from tsmfs.spdm.identity import Identity
    from tsmfs.spdm.requester import Requester, Transport
    from tsmfs.spdm.survey import Survey

#: What the keys of a device without a machine are made from, unless it is told.
_SEED = "standalone"

#: The FUNCTION_ID that spdm-emu's requester asks for.
EMU_INTERFACE = 0xBEEF

_HEX = re.compile(rb"[0-9A-Fa-f\s]*")


@click.group(cls=Group)
def spdm() -> None:
    """Speak SPDM as a device or as a host does, and print what was said.

    \b
    Examples:
      tsmfs spdm decode evidence/vca.bin
      tsmfs spdm respond --listen 127.0.0.1:2323
      tsmfs spdm request --connect 127.0.0.1:2323
    """


# --- Printing ----------------------------------------------------------------------------------


@spdm.command()
@click.option("--pem", is_flag=True, help="Print the certificates of a chain, the leaf first.")
@click.argument("file", metavar="FILE", type=click.File("rb"))
def decode(pem: bool, file: BinaryIO) -> None:
    """Print the SPDM messages, certificate chain or interface report in FILE.

    FILE is binary or hexadecimal, '-' is the standard input. Messages may follow one another: VCA,
    or a transcript of measurements. The sizes of signatures and digests come from VCA, so put it
    first where there is one.

    \b
    Examples:
      tsmfs spdm decode evidence/cert0.bin
      tsmfs spdm decode --pem evidence/cert0.bin > chain.pem
      cat evidence/vca.bin evidence/measurements.bin | tsmfs spdm decode -
      echo 10840000 | tsmfs spdm decode -
    """
    from tsmfs.spdm.decode import decode as decode_bytes
    from tsmfs.spdm.wire import SpdmDecodeError

    data = _binary(file.read(), file.name)
    if not data:
        raise click.ClickException(f"{file.name}: nothing to decode")
    try:
        click.echo(_pem(data) if pem else decode_bytes(data))
    except SpdmDecodeError as error:
        raise click.ClickException(f"{file.name}: {error}") from error


def _pem(data: bytes) -> str:
    """The certificates of a chain. Raises SpdmDecodeError."""
    from cryptography.hazmat.primitives.serialization import Encoding

    from tsmfs.spdm.decode import parse_chain

    chain, _ = parse_chain(data)
    leaf_first = reversed(chain.certificates)
    return "".join(one.public_bytes(Encoding.PEM).decode() for one in leaf_first).rstrip()


def _binary(data: bytes, name: str) -> bytes:
    """``data``, or what it says in hexadecimal: no message, chain or report is digits alone."""
    if not _HEX.fullmatch(data):
        return data
    digits = b"".join(data.split())
    if len(digits) % 2:
        text = f"{name}: {len(digits)} hexadecimal digits are no whole bytes"
        raise click.ClickException(text)
    return bytes.fromhex(digits.decode())


@contextlib.contextmanager
def _about(place: str) -> Iterator[None]:
    """Makes an OSError one line that begins with where it happened."""
    try:
        yield
    except OSError as error:
        raise click.ClickException(f"{place}: {error.strerror or error}") from error


# --- The device's side -------------------------------------------------------------------------


@spdm.command()
@on_instance
@click.option(
    "--listen",
    "address",
    callback=parse_address,
    required=True,
    metavar="HOST:PORT",
    help="Where to listen. spdm-emu's port is 2323; 0 takes a free one.",
)
@click.option(
    "--device",
    metavar="BDF",
    shell_complete=complete_function,
    help="Let this function of a mounted machine answer, through its mailbox.",
)
@click.option("--once", is_flag=True, help="End after the first connection.")
@negotiates
@click.option("--seed", metavar="TEXT", help="Make keys and certificates from this.")
@click.option(
    "--chain",
    type=click.Path(path_type=Path, dir_okay=False, exists=True),
    metavar="PEM",
    help="Take the certificates from this file, from the root to the leaf.",
)
@click.option(
    "--key",
    type=click.Path(path_type=Path, dir_okay=False, exists=True),
    metavar="PEM",
    help="Take the private key of the leaf from this file.",
)
@click.option(
    "--save-root",
    type=click.Path(path_type=Path, dir_okay=False),
    metavar="PEM",
    help="Write the root certificate to this file.",
)
def respond(
    sysfs: Path | None,
    address: tuple[str, int],
    device: str | None,
    once: bool,
    seed: str | None,
    chain: Path | None,
    key: Path | None,
    save_root: Path | None,
    **negotiation: Any,
) -> None:
    """Answer SPDM requesters on a socket.

    The framing is that of DMTF's spdm-emu with its PCI DOE transport, so its requester can be the
    other side. Without --device a device of its own answers, with measurements, ports for IDE keys
    and an interface for TDISP, which --seed gives an identity, or --chain and --key. With
    --device it is a device of a mounted machine: what is done to it is done, and a requester's
    GET_VERSION ends the session of the machine's TSM.

    Ends at SIGINT, SIGTERM, or when a client says so. A client that vanishes or breaks the
    framing ends its own connection only, which is told in a line.

    \b
    Examples:
      tsmfs spdm respond --listen 127.0.0.1:2323
      tsmfs spdm respond --listen 127.0.0.1:2323 --ver 1.2 --asym ECDSA_P256 --hash SHA_256
      tsmfs spdm respond --listen 127.0.0.1:2323 --device 0000:01:00.0 --once
    """
    from tsmfs.spdm.emu import Server

    place = f"{address[0]}:{address[1]}"
    with contextlib.ExitStack() as stack:
        if device is None:
            endpoint = _standalone(seed, chain, key, save_root, **negotiation)
        elif any((seed, chain, key, save_root, *negotiation.values())):
            raise click.UsageError("the identity and algorithms of a --device are its own")
        else:
            endpoint = stack.enter_context(_mailbox(sysfs, device))
        with _about(place):
            server = stack.enter_context(Server(lambda: endpoint, address))
        click.echo("listening on {}:{}".format(*server.address))
        _serve(server, server.serve_once if once else server.serve_in_threads)


def _mailbox(sysfs: Path | None, device: str) -> Mailbox:
    from tsmfs.mailbox import Mailbox

    return Mailbox(find_instance(sysfs).sysfs / "bus/pci/devices" / device)


def _standalone(
    seed: str | None,
    chain: Path | None,
    key: Path | None,
    save_root: Path | None,
    versions: Sequence[str],
    asym: str | None,
    hash_: str | None,
    dhe: str | None,
    aead: str | None,
) -> Endpoint:
    """The device that answers where there is no machine."""
    from tsmfs.spdm.standalone import standalone_device

    if (chain is None) != (key is None):
        raise click.UsageError("--chain and --key go together")
    if chain is not None and (seed or asym):
        raise click.UsageError("--chain and --key are the identity: --seed and --asym are not")
    offer = offer_of(asym, hash_, dhe, aead)
    if chain is not None and key is not None:
        identity = _load_identity(chain, key, offer)
    else:
        identity = _made_identity(seed or _SEED, offer)
    if save_root is not None:
        save_root.write_bytes(identity.root)
    return standalone_device(identity, versions=version_bytes(versions), offer=offer)


def _load_identity(chain: Path, key: Path, offer: Offer) -> Identity:
    from tsmfs.spdm.identity import IdentityError, SlotFiles, load_identity

    def report(text: str) -> None:
        click.echo(f"tsmfs: {text}", err=True)

    try:
        return load_identity({0: SlotFiles(chain, key)}, offer.base_hash[0], report)
    except IdentityError as error:
        raise click.ClickException(str(error)) from error


def _made_identity(seed: str, offer: Offer) -> Identity:
    from tsmfs.spdm.identity import make_identity
    from tsmfs.spdm.standalone import SUBJECT

    identity = make_identity(seed.encode(), SUBJECT, offer.base_asym[0], offer.base_hash[0])
    # Keys of RSA take a while: the first requester shall not have to wait for them.
    for slot in identity.slots.values():
        _ = slot.chain
    return identity


def _serve(server: Server, run: Callable[[], None]) -> None:
    """Serve until ``run`` returns or a signal comes."""
    with _reporting(), _signals() as (waiter, waker):

        def work() -> None:
            try:
                run()
            finally:
                waker.send(b"\0")

        thread = threading.Thread(target=work)
        thread.start()
        waiter.recv(1)
        server.end()
        thread.join()


@contextlib.contextmanager
def _signals() -> Iterator[tuple[socket.socket, socket.socket]]:
    """Two ends of a pipe: the first can be read from once the process is to end."""
    waiter, waker = socket.socketpair()
    waker.setblocking(False)
    before = signal.set_wakeup_fd(waker.fileno())
    handlers = {
        number: signal.signal(number, lambda *_: None) for number in (signal.SIGINT, signal.SIGTERM)
    }
    try:
        yield waiter, waker
    finally:
        for number, handler in handlers.items():
            signal.signal(number, handler)
        signal.set_wakeup_fd(before)
        waiter.close()
        waker.close()


@contextlib.contextmanager
def _reporting() -> Iterator[None]:
    """Shows what the server has to say of its connections, a line each."""
    logger = logging.getLogger("tsmfs.spdm.emu")
    handler = logging.StreamHandler(sys.stderr)
    handler.setFormatter(logging.Formatter("tsmfs: %(message)s"))
    level = logger.level
    logger.addHandler(handler)
    logger.setLevel(logging.INFO)
    try:
        yield
    finally:
        logger.setLevel(level)
        logger.removeHandler(handler)


# --- The host's side ---------------------------------------------------------------------------


@spdm.command()
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
    if nonce and len(nonce) != NONCE_SIZE:
        raise click.UsageError(f"a nonce of SPDM has {NONCE_SIZE} bytes, not {len(nonce)}")
    if shutdown and address is None:
        raise click.UsageError("--shutdown is of use with --connect only")
    from tsmfs.spdm.survey import Survey

    trusted = _load_roots(roots)
    with contextlib.ExitStack() as stack:
        if device is not None:
            transport: Transport = stack.enter_context(_mailbox(sysfs, device))
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

    found = []
    for path in paths:
        try:
            found += load_roots(path)
        except ValueError as error:
            raise click.ClickException(f"{path}: no certificate in PEM") from error
    return found


def _connected(address: tuple[str, int]) -> SocketTransport:
    """A connection to a server that has greeted, and supports what is needed."""
    from tsmfs.spdm.doe import PROTOCOLS
    from tsmfs.spdm.emu import SocketTransport

    with _about(f"{address[0]}:{address[1]}"):
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


def _save(evidence: Mapping[str, bytes], directory: Path) -> None:
    from tsmfs.spdm.survey import OBJECTS

    directory.mkdir(parents=True, exist_ok=True)
    for name in OBJECTS:
        (directory / f"{name}.bin").write_bytes(evidence.get(name, b""))
