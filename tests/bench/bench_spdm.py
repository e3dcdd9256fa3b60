# SPDX-License-Identifier: MIT
"""How long the software TSM takes to connect devices, beside the cryptography that it cannot avoid.

Both are measured in turns in one process. Nothing is asserted.
"""

from __future__ import annotations

import cProfile
import hashlib
import hmac
import statistics
import tempfile
import time
from collections.abc import Callable, Mapping
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from functools import partial
from pathlib import Path

from cryptography import x509
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.hazmat.primitives.ciphers.aead import AESGCM
from cryptography.hazmat.primitives.hashes import SHA384
from cryptography.hazmat.primitives.serialization import Encoding, PublicFormat

from tests.bench.bench_fs import machine as mounted
from tests.machines import ROOT, Shell, pci
from tsmfs.description import (
    Bar,
    BarKind,
    Cma,
    Doe,
    HostBridge,
    Ide,
    Kind,
    ModuleLoad,
    defaults,
    to_toml,
)
from tsmfs.description import Machine as Description
from tsmfs.description.units import KIB
from tsmfs.machine import Machine
from tsmfs.spdm.algorithms import BaseAsym, BaseHash
from tsmfs.spdm.certificates import CmaName
from tsmfs.spdm.identity import leaf_extensions, root_authority

DEVICES = 256
THREADS = 8
ROUNDS = 15
RUNS = 5
STARTS = 5
LOOP = 40
"""Calls of each cryptographic operation in a round."""
GROUP = 32
"""Devices that are compared: the first so many with the last."""

CONNECT_GOAL = 3.0
FLAT_GOAL = 1.3
START_GOAL = 2.0
"""Seconds from the command to a mounted machine."""

_BRIDGES = 8
_PORTS = DEVICES // _BRIDGES
_RECORD = bytes(160)
_PART = bytes(1024)
_NAME = CmaName(vendor=1, device=2, class_code=3, revision=4)


# --- The cryptography ----------------------------------------------------------------------------


def operations() -> dict[str, tuple[str, Callable[[], object]]]:
    """What a connect needs, with a part of its name in a profile and one call of it.

    Sizes are those of P-384, SHA-384, AES-256-GCM and messages as they come in a connect.
    """
    key = ec.generate_private_key(ec.SECP384R1())
    public, algorithm = key.public_key(), ec.ECDSA(SHA384())
    peer = ec.generate_private_key(ec.SECP384R1()).public_key()
    point = public.public_bytes(Encoding.X962, PublicFormat.UncompressedPoint)
    signature = key.sign(_RECORD, algorithm)
    aead, nonce = AESGCM(bytes(32)), bytes(12)
    sealed = aead.encrypt(nonce, _RECORD, b"header")
    root, issuer = root_authority(b"bench", BaseAsym.ECDSA_P384, BaseHash.SHA_384)
    der = root.public_bytes(Encoding.DER)
    extensions = leaf_extensions(_NAME)
    return {
        "ECDH: a key pair": (
            "ec.generate_private_key", lambda: ec.generate_private_key(ec.SECP384R1()),
        ),
        "ECDH: the shared secret": ("'exchange'", lambda: key.exchange(ec.ECDH(), peer)),
        "ECDH: a public key to bytes": ("'public_numbers'", public.public_numbers),
        "ECDH: a public key from bytes": (
            "ec.from_public_bytes",
            lambda: ec.EllipticCurvePublicKey.from_encoded_point(ec.SECP384R1(), point),
        ),
        "ECDSA: sign": ("'sign'", lambda: key.sign(_RECORD, algorithm)),
        "ECDSA: verify": ("'verify'", lambda: public.verify(signature, _RECORD, algorithm)),
        "HKDF and HMAC: a block": (
            "hmac_digest", lambda: hmac.digest(bytes(48), _RECORD, hashlib.sha384),
        ),
        "AEAD: seal a record": ("'encrypt'", lambda: aead.encrypt(nonce, _RECORD, b"header")),
        "AEAD: open a record": ("'decrypt'", lambda: aead.decrypt(nonce, sealed, b"header")),
        "hash of a message": ("_hashlib.new", lambda: hashlib.new("sha384", _PART).digest()),
        "certificate: parse": (
            "load_der_x509_certificate", lambda: x509.load_der_x509_certificate(der).public_key(),
        ),
        "certificate: a key from the seed": (
            "ec.derive_private_key", lambda: ec.derive_private_key(1 << 380, ec.SECP384R1()),
        ),
        "certificate: sign": (
            "create_x509_certificate",
            lambda: issuer.issue("device", public, extensions),
        ),
    }  # fmt: skip


def counted(call: Callable[[], object]) -> dict[str, int]:
    """How often *call* makes each of the operations."""
    profile = cProfile.Profile()
    profile.runcall(call)
    return {
        name: sum(
            entry.callcount
            for entry in profile.getstats()
            if isinstance(entry.code, str) and part in entry.code
        )
        for name, (part, _) in operations().items()
    }


def loops(count: int = LOOP) -> dict[str, float]:
    """Seconds that one call of each operation takes, in a loop."""
    taken = {}
    for name, (_, call) in operations().items():
        start = time.perf_counter()
        for _ in range(count):
            call()
        taken[name] = (time.perf_counter() - start) / count
    return taken


def bare(counts: Mapping[str, int], seconds: Mapping[str, float]) -> float:
    """Seconds of all operations of a connect."""
    return sum(count * seconds[name] for name, count in counts.items())


# --- Machines ------------------------------------------------------------------------------------


def description() -> Description:
    """256 devices with keys of P-384; all but one have a stream, of which there are 255."""
    port = replace(defaults(Kind.ROOT_PORT), ide=Ide())
    device = replace(
        defaults(Kind.ENDPOINT),
        tee_io=True,
        doe=Doe(),
        ide=Ide(),
        cma=Cma(),
        bars=(Bar(0, 64 * KIB, BarKind.MEM64),),
    )
    bridges = []
    for domain in range(_BRIDGES):
        ports = [replace(port, slot=slot, children=(device,)) for slot in range(_PORTS)]
        if domain == _BRIDGES - 1:
            ports[-1] = replace(ports[-1], children=(replace(device, ide=None),))
        bridges.append(HostBridge(domain=domain, stream_pool=_PORTS, functions=tuple(ports)))
    return Description(
        name="keys",
        seed=1,
        modules=(ModuleLoad("soft_link_tsm"),),
        host_bridges=tuple(bridges),
    )


def boot() -> Shell:
    """A shell on the machine."""
    made = description()
    machine = Machine(made, to_toml(made))
    machine.boot()
    return Shell(machine, ROOT)


def endpoints(sh: Shell) -> list[str]:
    """The devices with keys."""
    return [name for name in sh.devices() if sh.exists(f"{pci(name)}/tsm/connect")]


def connect(sh: Shell, name: str) -> float:
    """Connect a device; the seconds that it took."""
    start = time.perf_counter()
    sh.echo("tsm0", f"{pci(name)}/tsm/connect")
    return time.perf_counter() - start


def disconnect(sh: Shell, *names: str) -> None:
    """Disconnect devices."""
    for name in names:
        sh.echo("tsm0", f"{pci(name)}/tsm/disconnect")


# --- Tables --------------------------------------------------------------------------------------


def one_device() -> None:
    """The table of one connect."""
    sh = boot()
    fresh = iter(endpoints(sh))
    warm = next(fresh)
    for _ in range(3):
        connect(sh, warm)
        disconnect(sh, warm)
    counts = {
        "first": counted(lambda: connect(sh, next(fresh))),
        "again": counted(lambda: connect(sh, warm)),
    }
    disconnect(sh, warm)
    seconds: dict[str, list[float]] = {}
    connects: dict[str, list[float]] = {"first": [], "again": []}
    for _ in range(ROUNDS):
        for name, taken in loops().items():
            seconds.setdefault(name, []).append(taken)
        for _ in range(5):
            connects["first"].append(connect(sh, next(fresh)))
            connects["again"].append(connect(sh, warm))
            disconnect(sh, warm)
    print("| operation | microseconds, best | first connect | later ones |")
    print("| --- | ---: | ---: | ---: |")
    for name, taken_by in seconds.items():
        print(
            f"| {name} | {min(taken_by) * 1e6:.0f} | {counts['first'][name] or ''} "
            f"| {counts['again'][name] or ''} |"
        )
    print("\nconnect, milliseconds\n")
    print("| | best | median | cryptography, best | median | ratio of best | ratio of median |")
    print("| --- | ---: | ---: | ---: | ---: | ---: | ---: |")
    for label, key in (
        ("the first of a device, which makes its keys", "first"),
        ("later", "again"),
    ):
        figures = []
        for of in (min, statistics.median):
            whole = of(connects[key])
            figures.append((whole, bare(counts[key], {n: of(s) for n, s in seconds.items()})))
        (best, best_bare), (median, median_bare) = figures
        print(
            f"| {label} | {best * 1e3:.2f} | {median * 1e3:.2f} | {best_bare * 1e3:.2f} "
            f"| {median_bare * 1e3:.2f} | {best / best_bare:.2f} | {median / median_bare:.2f} |"
        )
    print(f"\ngoal for the ratio: {CONNECT_GOAL}")


def many_devices() -> None:
    """The table of 256 connects, one after the other and from threads, keys made before."""
    sh = boot()
    names = endpoints(sh)
    for name in names:
        connect(sh, name)
    disconnect(sh, *names)
    lonely, first, last, alone, together = [], [], [], [], []
    for _ in range(RUNS):
        taken = []
        for name in names[:GROUP]:
            taken.append(connect(sh, name))
            disconnect(sh, name)
        lonely.append(statistics.mean(taken))
        taken = [connect(sh, name) for name in names]
        disconnect(sh, *names)
        first.append(statistics.mean(taken[:GROUP]))
        # The very last one has no stream.
        last.append(statistics.mean(taken[-GROUP - 1 : -1]))
        alone.append(statistics.mean(taken))
        begun = time.perf_counter()
        with ThreadPoolExecutor(THREADS) as pool:
            for _ in pool.map(partial(connect, sh), names):
                pass
        together.append((time.perf_counter() - begun) / len(names))
        disconnect(sh, *names)
    rows = {
        f"one after the other, the first {GROUP}": first,
        f"the last {GROUP}": last,
        "all": alone,
        f"{GROUP} while no other is connected": lonely,
        f"from {THREADS} threads, all": together,
    }
    print(f"\n{DEVICES} devices whose keys are made, milliseconds a connect\n")
    print(f"| | best of {RUNS} | median | ratio of best | ratio of median |")
    print("| --- | ---: | ---: | ---: | ---: |")
    for name, values in rows.items():
        best, median = min(values), statistics.median(values)
        ratios = f"{best / min(first):.2f} | {median / statistics.median(first):.2f}"
        print(f"| {name} | {best * 1e3:.2f} | {median * 1e3:.2f} | {ratios} |")
    print(f"\ngoal for the ratios to the first row: {FLAT_GOAL}")


def start() -> None:
    """The table of machine starts."""
    built = []
    mounts = []
    with tempfile.TemporaryDirectory(prefix="tsmfs-bench-") as directory:
        file = Path(directory, "keys.toml")
        file.write_text(to_toml(description()))
        for number in range(STARTS):
            begun = time.perf_counter()
            boot()
            built.append(time.perf_counter() - begun)
            begun = time.perf_counter()
            with mounted(Path(directory, f"sys{number}"), "--machine", file):
                mounts.append(time.perf_counter() - begun)
    print(f"\nstart of a machine with {DEVICES} devices that have keys, seconds\n")
    print(f"| | best | median of {STARTS} |\n| --- | ---: | ---: |")
    for name, values in (("in this process", built), ("`tsmfs mount`", mounts)):
        print(f"| {name} | {min(values):.2f} | {statistics.median(values):.2f} |")
    print(f"\ngoal: {START_GOAL}")


def main() -> None:
    """Print the tables."""
    print("\n## Devices with keys\n\none device with P-384 on the software TSM\n")
    one_device()
    many_devices()
    start()


if __name__ == "__main__":
    main()
