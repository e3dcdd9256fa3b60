# SPDX-License-Identifier: MIT
"""``tsmfs spdm respond``: a device that answers a requester on a socket."""

from __future__ import annotations

import contextlib
import signal
import sys
import threading
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from tsmfs.command import about, complete_function, function_directory, on_instance
from tsmfs.spdm_options import negotiates, offer_of, parse_address, version_bytes

if TYPE_CHECKING:
    import socket

    from tsmfs.spdm.algorithms import Offer
    from tsmfs.spdm.emu import Endpoint, Server
    from tsmfs.spdm.identity import Identity

#: What the keys of a device without a machine are made from, unless it is told.
_SEED = "standalone"


@click.command()
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
    framing ends its own connection only, which is told in a line. Once the machine of a --device
    is no more, the next client or message ends the responder with exit status 1.

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
            connected = _always(_standalone(seed, chain, key, save_root, **negotiation))
        elif any((seed, chain, key, save_root, *negotiation.values())):
            raise click.UsageError("the identity and algorithms of a --device are its own")
        else:
            from tsmfs.mailbox import Mailbox

            connected = stack.enter_context(Mailbox(function_directory(sysfs, device))).alive
        with about(place), _without_address():
            server = stack.enter_context(Server(connected, address))
        click.echo("listening on {}:{}".format(*server.address))
        _serve(server, server.serve_once if once else server.serve_in_threads)
        if server.gone is not None:
            raise click.ClickException(f"{device}: {server.gone}")


@contextlib.contextmanager
def _without_address() -> Iterator[None]:
    """Takes from the words of an OSError what Python adds to them: the address, as a tuple."""
    try:
        yield
    except OSError as error:
        words, _, _ = str(error.strerror).partition(" (while attempting to bind")
        raise OSError(error.errno, words) from error


def _always(endpoint: Endpoint) -> Callable[[], Endpoint]:
    return lambda: endpoint


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
    import socket

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
    import logging

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
