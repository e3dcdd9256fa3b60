# SPDX-License-Identifier: MIT
"""The command ``tsmfs evidence verify``: a device's evidence, judged as a relying party does."""

from __future__ import annotations

import contextlib
import errno
import json
import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING

import click

from tsmfs.command import NONCE_SIZE, check_nonce, complete_function, on_instance, parse_nonce
from tsmfs.evidence_cli import FAMILIES, asking, connect_to
from tsmfs.instance import Instance, InstanceError, find_instance

if TYPE_CHECKING:
    from cryptography.x509 import Certificate

    from netlink.client import EvidenceClient
    from tsmfs.verify import Check, DeviceFacts, Evidence

#: The control file that has the machine's own root certificates.
_OWN_ROOTS = "spdm_root"

#: How often evidence is read anew that somebody else had produced again meanwhile.
_ATTEMPTS = 3

_DIRECTORY = click.Path(path_type=Path, file_okay=False, exists=True)


@dataclass(frozen=True, slots=True)
class _Roots:
    """Certificates that are trusted, and where they are from."""

    source: str
    certificates: Sequence[Certificate]


@dataclass(frozen=True, slots=True)
class _Subject:
    """What is verified: the evidence, and how it was come by."""

    title: Mapping[str, str | int | None]
    evidence: Evidence
    nonce: bytes
    before: Sequence[Evidence] = ()
    """What was there before it was refreshed."""


def _asked_nonce(ctx: click.Context, param: click.Parameter, text: str | None) -> bytes | None:
    """The bytes of ``--nonce``; none for random ones, None when it is not given."""
    if text is None:
        return None
    return b"" if text == "random" else parse_nonce(ctx, param, text)


@click.command("verify")
@on_instance
@click.option(
    "--root",
    "roots",
    multiple=True,
    metavar="PEM",
    type=click.Path(path_type=Path, dir_okay=False, exists=True),
    help="Trust the certificates in this file, and no others. May be given several times. "
    "Default: the machine's own root.",
)
@click.option(
    "--nonce",
    metavar="HEX|random",
    callback=_asked_nonce,
    help="The evidence has to be signed over these 32 bytes. Default: random ones.",
)
@click.option("--no-refresh", is_flag=True, help="Take the evidence that is there.")
@click.option(
    "--family",
    type=click.Choice(FAMILIES),
    default=FAMILIES[1],
    metavar="FAMILY",
    help="Ask by this family, pci-tsm or device-evidence. Default: device-evidence.",
)
@click.option(
    "--from",
    "saved",
    type=_DIRECTORY,
    metavar="DIR",
    help="Verify what 'evidence read --out DIR' wrote instead.",
)
@click.option(
    "--digests",
    type=_DIRECTORY,
    metavar="DIR",
    help="With --from: the digests that 'evidence read --digest --out DIR' wrote.",
)
@click.option(
    "--reference",
    type=_DIRECTORY,
    metavar="DIR",
    help="The measurements have to be those of the evidence in DIR.",
)
@click.option(
    "--earlier",
    multiple=True,
    type=_DIRECTORY,
    metavar="DIR",
    help="Nothing may come again that was in the evidence in DIR. May be given several times.",
)
@click.option("--json", "as_json", is_flag=True, help="Print JSON instead of a table.")
@click.argument("bdf", metavar="[BDF]", required=False, shell_complete=complete_function)
def verify(
    sysfs: Path | None,
    roots: tuple[Path, ...],
    nonce: bytes | None,
    no_refresh: bool,
    family: str,
    saved: Path | None,
    digests: Path | None,
    reference: Path | None,
    earlier: tuple[Path, ...],
    as_json: bool,
    bdf: str | None,
) -> None:
    """Verify the evidence of the PCI function BDF.

    Has the TSM produce evidence over a nonce, reads it, and compares it with what the kernel shows
    of the device: the chain up to the root, the name in the certificate, the signature over
    negotiation and measurements, the nonce, the digests, and the interface report if there is one.
    Nothing of the evidence that was there before may come again. Prints a line for each check with
    its reason; '-' is one that does not apply. The exit status is 1 when a check fails.

    With --from the evidence comes from files, BDF may be left out, and nothing is compared with a
    device then.

    \b
    Examples:
      tsmfs evidence verify 0000:01:00.0
      tsmfs evidence verify 0000:01:00.0 --root root.pem --no-refresh --json
      tsmfs evidence verify --from evidence --root root.pem --nonce 00112233...
    """
    from tsmfs.verify import load, verify_evidence

    if bdf is None and saved is None:
        raise click.UsageError("BDF or --from is needed")
    if bdf is None and not roots:
        raise click.UsageError("--root is needed where no machine is asked")
    if digests is not None and saved is None:
        raise click.UsageError("--digests is of use with --from only")
    if nonce == b"" and (no_refresh or saved is not None):
        raise click.UsageError("--nonce random is for new evidence, not for what is there")
    nonce = check_nonce(nonce or b"")
    instance = find_instance(sysfs) if bdf is not None else None
    trusted = _trusted(roots, instance)
    if saved is not None:
        subject = _Subject({"saved": str(saved)}, load(saved, digests), nonce)
    else:
        assert instance is not None
        assert bdf is not None
        subject = _read(instance, bdf, family, nonce, refresh=not no_refresh)
    checks = verify_evidence(
        subject.evidence,
        roots=trusted.certificates,
        device=_facts(instance, bdf) if instance is not None and bdf is not None else None,
        nonce=subject.nonce or None,
        reference=_reference(reference) if reference is not None else None,
        earlier=[*map(load, earlier), *subject.before],
    )
    title = {"device": bdf, **subject.title, "nonce": subject.nonce.hex() or None}
    click.echo(_to_json(title, trusted, checks) if as_json else _table(title, trusted, checks))
    if any(check.ok is False for check in checks):
        raise click.exceptions.Exit(1)


# --- What is verified against what -------------------------------------------------------------


def _trusted(paths: Sequence[Path], instance: Instance | None) -> _Roots:
    """The certificates in the files; without any, the machine's own."""
    from cryptography.x509 import load_pem_x509_certificates

    from tsmfs.verify import load_roots

    if paths:
        try:
            found = [root for path in paths for root in load_roots(path)]
        except ValueError as error:
            raise click.ClickException(str(error)) from error
        return _Roots(f"in {', '.join(map(str, paths))}", found)
    assert instance is not None
    pem = instance.read(_OWN_ROOTS)
    if not pem:
        raise InstanceError(f"{instance.sysfs}: no device has keys of the machine: give --root")
    return _Roots("of this machine", load_pem_x509_certificates(pem))


def _read(instance: Instance, bdf: str, family: str, nonce: bytes, *, refresh: bool) -> _Subject:
    """The evidence and the TSM's digests of it, of one generation where the family tells it."""
    from netlink.client import EVIDENCE_CLIENTS
    from tsmfs.verify import Evidence

    if refresh:
        nonce = nonce or os.urandom(NONCE_SIZE)
    with EVIDENCE_CLIENTS[family](connect_to(instance)) as client:
        before = [Evidence.of(_ask(client, bdf, b""))] if refresh else []
        for _ in range(_ATTEMPTS):
            objects = _ask(client, bdf, nonce if refresh else b"")
            generation = client.generation
            with asking(bdf):
                digests = client.read(bdf, digest=True)
            if client.generation == generation:
                title = {"family": family, "generation": generation}
                return _Subject(title, Evidence.of(objects, digests), nonce, before)
    raise click.ClickException(f"{bdf}: evidence updated during read")


def _ask(client: EvidenceClient, bdf: str, nonce: bytes) -> dict[str, bytes]:
    from netlink.client import ExtAckError

    with asking(bdf):
        try:
            return client.read(bdf, nonce=nonce)
        except ExtAckError as error:
            if nonce and error.errno == errno.EOPNOTSUPP:
                text = f"{bdf}: {error}: --no-refresh takes what is there"
                raise click.ClickException(text) from error
            raise


def _facts(instance: Instance, bdf: str) -> DeviceFacts:
    """What the kernel shows of a function; the certificate is that of its DSM."""
    from tsmfs.verify import DeviceFacts

    devices = instance.sysfs / "bus/pci/devices"
    facts = DeviceFacts.from_sysfs(devices / bdf)
    dsm = ""
    with contextlib.suppress(OSError):
        dsm = (devices / bdf / "tsm/dsm").read_text().strip()
    if dsm and dsm != bdf:
        return replace(facts, name=DeviceFacts.from_sysfs(devices / dsm).name)
    return facts


def _reference(directory: Path) -> Mapping[int, bytes]:
    from tsmfs.verify import load, measured_values

    try:
        return measured_values(load(directory))
    except ValueError as error:
        raise click.ClickException(f"{directory}: no measurements: {error}") from error


# --- What is printed ---------------------------------------------------------------------------


def _table(title: Mapping[str, str | int | None], roots: _Roots, checks: Sequence[Check]) -> str:
    words = [str(title["device"] or title["saved"])]
    if title.get("family") is not None:
        words.append(str(title["family"]))
    words += [f"{key} {title[key]}" for key in ("generation", "nonce") if title.get(key)]
    lines = ["  ".join(words)]
    names = "; ".join(one.subject.rfc4514_string() for one in roots.certificates)
    lines.append(f"root {roots.source}: {names}")
    lines += ["", *(_row(check) for check in checks), "", _verdict(checks)]
    return "\n".join(lines)


def _row(check: Check) -> str:
    match check.ok:
        case True:
            mark = click.style(f"{'ok':<4}", fg="green")
        case False:
            mark = click.style("FAIL", fg="red", bold=True)
        case None:
            mark = click.style(f"{'-':<4}", dim=True)
    return f"{check.name:<12}  {mark}  {check.reason}"


def _verdict(checks: Sequence[Check]) -> str:
    failed = [str(check.name) for check in checks if check.ok is False]
    made = sum(check.ok is not None for check in checks)
    if failed:
        return f"{len(failed)} of {made} checks failed: {', '.join(failed)}"
    return f"{made} checks, all hold"


def _to_json(title: Mapping[str, str | int | None], roots: _Roots, checks: Sequence[Check]) -> str:
    shown = {
        **title,
        "root": {
            "from": roots.source,
            "subjects": [one.subject.rfc4514_string() for one in roots.certificates],
        },
        "ok": all(check.ok is not False for check in checks),
        "checks": [
            {"name": check.name, "ok": check.ok, "reason": check.reason} for check in checks
        ],
    }
    return json.dumps(shown, indent=2)
