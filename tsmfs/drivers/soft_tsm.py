# SPDX-License-Identifier: MIT
"""Software TSM: the secure world that its two drivers share, as a platform's TSM is shared."""

from __future__ import annotations

import contextlib
import errno
from collections.abc import Iterator
from dataclasses import dataclass
from typing import TYPE_CHECKING, NoReturn

from tsmfs.drivers.host import Host, HostModule
from tsmfs.kernel.errors import fail
from tsmfs.kernel.module import LoadedModule, Param, ParamType
from tsmfs.pci.pci_dev import PciDev

if TYPE_CHECKING:
    from tsmfs.drivers.secure_world import SecureWorld

_VERSIONS = {"1.2": 0x12, "1.3": 0x13}
_SLOTS = 8


@dataclass(frozen=True, slots=True)
class Preferences:
    """How a driver wants new sessions."""

    slot: int = 0
    """Certificate slot."""
    versions: tuple[int, ...] = (0x13, 0x12)
    """Version bytes of SPDM, the best first."""
    strict: bool = False
    """The platform itself refuses chains and signatures that do not hold."""


PREFERENCES = (
    Param("slot", ParamType.INT, 0, "certificate slot to authenticate devices with, 0 to 7"),
    Param("version", ParamType.CHARP, "", "SPDM version, 1.2 or 1.3; empty for the best there is"),
    Param(
        "strict",
        ParamType.BOOL,
        False,
        "refuse certificates and measurements that do not hold; a relying party cannot read them",
    ),
)
"""Parameters of a driver that opens sessions."""


def preferences_of(host: Host, module: LoadedModule) -> Preferences:
    """What the parameters of *module* tell.

    EINVAL, with a line in the log, for a slot or a version that does not exist.
    """
    slot, version = module.params["slot"], module.params["version"]
    assert isinstance(slot, int)
    assert isinstance(version, str)
    if not 0 <= slot < _SLOTS:
        _invalid(host, module, "slot", f"0 to {_SLOTS - 1}")
    if version and version not in _VERSIONS:
        _invalid(host, module, "version", " or ".join(_VERSIONS))
    versions = (_VERSIONS[version],) if version else Preferences().versions
    return Preferences(slot, versions, module.params["strict"] is True)


def _invalid(host: Host, module: LoadedModule, name: str, allowed: str) -> NoReturn:
    text = f"{module.name}: `{module.params[name]}' invalid for parameter `{name}': {allowed}"
    host.core.log.err(text)
    fail(errno.EINVAL, text)


@contextlib.contextmanager
def reporting(pdev: PciDev, what: str) -> Iterator[None]:
    """Have the log tell why *what*, the block, failed for *pdev*."""
    try:
        yield
    except OSError as error:
        pdev.err(f"soft_tsm: {what} failed: {error.strerror}")
        raise


def world_of(host: Host) -> SecureWorld:
    """What ``soft_tsm`` exports."""
    from tsmfs.drivers.secure_world import SecureWorld

    exports = host.modules.loaded["soft_tsm"].exports
    assert isinstance(exports, SecureWorld)
    return exports


def _init(host: Host, module: LoadedModule) -> None:
    # Every machine imports this module to know of it; few need the cryptography.
    from tsmfs.drivers.secure_world import SecureWorld

    module.exports = SecureWorld()


MODULE = HostModule("soft_tsm", _init, "Software TSM: the secure world that its drivers share")
