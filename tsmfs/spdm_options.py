# SPDX-License-Identifier: MIT
"""Options and values of the commands ``tsmfs spdm``: addresses, functions, what is negotiated."""

from __future__ import annotations

import re
from collections.abc import Callable, Sequence
from functools import partial
from typing import TYPE_CHECKING

import click
from click.shell_completion import CompletionItem

if TYPE_CHECKING:
    from tsmfs.spdm.algorithms import Offer

_BDF = re.compile(r"(?:([0-9a-fA-F]{4,8}):)?([0-9a-fA-F]{2}):([01][0-9a-fA-F])\.([0-7])")
_NUMBER = re.compile(r"(?:0[xX])?[0-9a-fA-F]{1,8}")
_MAX_PORT = 0xFFFF
_VERSIONS = {"1.2": 0x12, "1.3": 0x13}


def parse_address(
    ctx: click.Context, param: click.Parameter, text: str | None
) -> tuple[str, int] | None:
    """Host and port of an option's HOST:PORT; an IPv6 address may be in brackets."""
    if text is None:
        return None
    host, _, port = text.rpartition(":")
    if not host or not port.isascii() or not port.isdigit() or int(port) > _MAX_PORT:
        raise click.BadParameter(f"{text!r} is not HOST:PORT.")
    return host.removeprefix("[").removesuffix("]"), int(port)


def parse_interface(ctx: click.Context, param: click.Parameter, text: str | None) -> int | None:
    """The FUNCTION_ID that an option has in hexadecimal, or that of the function it names."""
    if text is None:
        return None
    if _BDF.fullmatch(text):
        return function_id(text)
    if not _NUMBER.fullmatch(text):
        raise click.BadParameter(f"{text!r} is neither DDDD:BB:DD.F nor a FUNCTION_ID.")
    return int(text, 16)


def function_id(name: str) -> int:
    """The FUNCTION_ID of the function called ``name``. Raises BadParameter if it is no name."""
    from tsmfs.spdm import tdisp

    match = _BDF.fullmatch(name)
    if match is None:
        raise click.BadParameter(f"{name!r} is not DDDD:BB:DD.F.")
    domain, bus, device, function = (int(part or "0", 16) for part in match.groups())
    return tdisp.function_id(bus << 8 | device << 3 | function, domain & 0xFF)


#: What may be negotiated: the option, its argument and its names, which are those of spdm-emu.
_ALGORITHMS = (
    ("--asym", "asym", ("ECDSA_P256", "ECDSA_P384", "RSAPSS_3072"), "signatures"),
    ("--hash", "hash_", ("SHA_256", "SHA_384", "SHA_512"), "hashes"),
    ("--dhe", "dhe", ("SECP_256_R1", "SECP_384_R1"), "key exchange"),
    ("--aead", "aead", ("AES_128_GCM", "AES_256_GCM", "CHACHA20_POLY1305"), "secured messages"),
)


def _parse_name(
    names: Sequence[str], ctx: click.Context, param: click.Parameter, text: str | None
) -> str | None:
    if text is None:
        return None
    # click.Choice would tell names in lower case where case does not matter.
    for name in names:
        if name.casefold() == text.casefold():
            return name
    raise click.BadParameter(f"{text!r} is not one of {', '.join(names)}.")


def _complete_name(
    names: Sequence[str], ctx: click.Context, param: click.Parameter, incomplete: str
) -> list[CompletionItem]:
    return [CompletionItem(name) for name in names if name.startswith(incomplete.upper())]


def negotiates(command: Callable[..., None]) -> Callable[..., None]:
    """Give a command the options that say what may be negotiated."""
    for option, argument, names, what in reversed(_ALGORITHMS):
        command = click.option(
            option,
            argument,
            callback=partial(_parse_name, names),
            shell_complete=partial(_complete_name, names),
            metavar="NAME",
            help=f"Use this for {what}: {', '.join(names)}.",
        )(command)
    return click.option(
        "--ver",
        "versions",
        type=click.Choice(tuple(_VERSIONS)),
        multiple=True,
        metavar="VERSION",
        help="Speak this version of SPDM, 1.2 or 1.3. May be given several times. Default: both.",
    )(command)


def offer_of(asym: str | None, hash_: str | None, dhe: str | None, aead: str | None) -> Offer:
    """What may be negotiated: all that is supported, where nothing was chosen."""
    from tsmfs.spdm.algorithms import (
        AeadSuite,
        BaseAsym,
        BaseHash,
        DheGroup,
        MeasurementHash,
        Offer,
    )

    every = Offer()
    return Offer(
        base_hash=(BaseHash[hash_],) if hash_ else every.base_hash,
        base_asym=(BaseAsym[asym],) if asym else every.base_asym,
        measurement_hash=(MeasurementHash[hash_],) if hash_ else every.measurement_hash,
        dhe=(DheGroup[dhe],) if dhe else every.dhe,
        aead=(AeadSuite[aead],) if aead else every.aead,
    )


def version_bytes(versions: Sequence[str]) -> list[int]:
    """The version bytes of ``versions``, the highest first; all if there are none."""
    return sorted((_VERSIONS[version] for version in versions or _VERSIONS), reverse=True)
