# SPDX-License-Identifier: MIT
"""The commands ``tsmfs spdm``: their group, and the one that prints messages."""

from __future__ import annotations

import re
from typing import BinaryIO

import click

from tsmfs.command import Group
from tsmfs.spdm_request_cli import request
from tsmfs.spdm_respond_cli import respond

_HEX = re.compile(rb"[0-9A-Fa-f\s]*")
_PEM = re.compile(rb"^-----BEGIN [A-Z0-9 ]+-----\r?$", re.MULTILINE)
_TEXT = re.compile(rb"[\t\n\r\x20-\x7e\x80-\xff]*")


@click.group(cls=Group)
def spdm() -> None:
    """Speak SPDM as a device or as a host does, and print what was said.

    \b
    Examples:
      tsmfs spdm decode evidence/vca.bin
      tsmfs spdm respond --listen 127.0.0.1:2323
      tsmfs spdm request --connect 127.0.0.1:2323
    """


@spdm.command()
@click.option("--pem", is_flag=True, help="Print the certificates of a chain, the leaf first.")
@click.argument("file", metavar="FILE", type=click.File("rb"))
def decode(pem: bool, file: BinaryIO) -> None:
    """Print the SPDM messages, certificate chain or interface report in FILE.

    FILE is binary or hexadecimal, '-' is the standard input. Messages may follow one another: VCA,
    or a transcript of measurements. The sizes of signatures and digests come from VCA, so put it
    first where there is one.
    What cannot be read behind a message is printed as bytes, and makes the exit status 1.

    \b
    Examples:
      tsmfs spdm decode evidence/cert0.bin
      tsmfs spdm decode --pem evidence/cert0.bin > chain.pem
      cat evidence/vca.bin evidence/measurements.bin | tsmfs spdm decode -
      echo 10840000 | tsmfs spdm decode -
    """
    from tsmfs.spdm.decode import UnreadableRestError
    from tsmfs.spdm.decode import decode as decode_bytes
    from tsmfs.spdm.wire import SpdmDecodeError

    data = _binary(file.read(), file.name)
    if not data:
        raise click.ClickException(f"{file.name}: nothing to decode")
    try:
        click.echo(_pem(data) if pem else decode_bytes(data))
    except UnreadableRestError as error:
        click.echo(error.printed)
        raise click.ClickException(f"{file.name}: {error}") from error
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
    """``data``, or what it says in hexadecimal: no message, chain or report is text."""
    if not _HEX.fullmatch(data):
        if _PEM.search(data):
            text = f"{name}: PEM is for openssl: the bytes of SPDM are expected, or hexadecimal"
            raise click.ClickException(text)
        if _TEXT.fullmatch(data):
            raise click.ClickException(f"{name}: text that is not hexadecimal")
        return data
    digits = b"".join(data.split())
    if len(digits) % 2:
        text = f"{name}: {len(digits)} hexadecimal digits are no whole bytes"
        raise click.ClickException(text)
    return bytes.fromhex(digits.decode())


spdm.add_command(respond)
spdm.add_command(request)
