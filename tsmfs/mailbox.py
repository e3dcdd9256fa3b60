# SPDX-License-Identifier: MIT
"""A function's DOE mailbox as user space drives it: through the file ``config`` in sysfs."""

from __future__ import annotations

import contextlib
import errno
import os
from collections.abc import Iterator
from pathlib import Path
from types import TracebackType
from typing import Self

from tsmfs.pci import regs
from tsmfs.pci.capability import find_ext_capability
from tsmfs.pci.doe import DoeTransport
from tsmfs.spdm.doe import VENDOR_PCI_SIG, ObjectType
from tsmfs.spdm.emu import EndpointGoneError

_FEATURES = {(VENDOR_PCI_SIG, ObjectType.CMA_SPDM), (VENDOR_PCI_SIG, ObjectType.SECURED_CMA_SPDM)}


_GONE = {
    errno.ENODEV: "the function is no more",
    errno.ENOTCONN: "the machine is no more",
    errno.ECONNABORTED: "the machine is no more",
}
"""What a file says of its end: the last one when that comes during the call."""


class ConfigFile:
    """The registers of a function in its file ``config``: a `ConfigAccess`."""

    def __init__(self, path: Path) -> None:
        """Open `path`. Raises OSError, also (EACCES) if only the head of it may be read."""
        self._descriptor = os.open(path, os.O_RDWR | os.O_CLOEXEC)
        try:
            self._size = self._measure(path)
        except BaseException:
            self.close()
            raise

    def _measure(self, path: Path) -> int:
        # The function may go between the opening and this.
        size = len(os.pread(self._descriptor, regs.PCI_CFG_SPACE_EXP_SIZE, 0))
        if size < regs.PCI_CFG_SPACE_SIZE:
            raise PermissionError(
                errno.EACCES, "only the head of it may be read, by others than root", str(path)
            )
        return size

    @property
    def size(self) -> int:
        """Bytes in the configuration space."""
        return self._size

    def read(self, pos: int, size: int) -> int:
        """The register of `size` bytes at `pos`. Raises OSError."""
        data = os.pread(self._descriptor, size, pos)
        if len(data) != size:
            raise OSError(errno.EIO, f"{len(data)} of {size} bytes at {pos:#x} of a config space")
        return int.from_bytes(data, "little")

    def write(self, pos: int, size: int, value: int) -> None:
        """Write the register of `size` bytes at `pos`. Raises OSError."""
        written = os.pwrite(self._descriptor, value.to_bytes(size, "little"), pos)
        if written != size:
            raise OSError(errno.EIO, f"{written} of {size} bytes at {pos:#x} of a config space")

    def close(self) -> None:
        """Close the file."""
        os.close(self._descriptor)


@contextlib.contextmanager
def _telling_of_the_end() -> Iterator[None]:
    """Makes an error of a function, or of a machine, that is no more EndpointGoneError."""
    try:
        yield
    except OSError as error:
        if error.errno in _GONE:
            raise EndpointGoneError(_GONE[error.errno]) from error
        raise


class Mailbox:
    """The mailbox for SPDM of one function.

    It is a transport for a requester, and an endpoint that a server may be put in front of. The
    kernel's TSM uses the same mailbox: who sends GET_VERSION ends the sessions of the other.
    """

    def __init__(self, device: Path) -> None:
        """Open the mailbox of the function whose sysfs directory is `device`.

        Raises OSError, with EOPNOTSUPP if it has none for SPDM.
        """
        self._config = ConfigFile(device / "config")
        try:
            self._doe = self._find(device.name)
        except BaseException:
            self._config.close()
            raise

    def _find(self, name: str) -> DoeTransport:
        pos = 0
        while pos := find_ext_capability(self._config, regs.PCI_EXT_CAP_ID_DOE, pos):
            doe = DoeTransport(self._config, pos, name=name)
            if set(doe.features()) >= _FEATURES:
                return doe
        raise OSError(errno.EOPNOTSUPP, f"{name}: no DOE mailbox for SPDM")

    def plain(self, request: bytes) -> bytes:
        """The response to an SPDM message in the clear, with padding behind it. Raises OSError."""
        return self._doe.exchange(VENDOR_PCI_SIG, ObjectType.CMA_SPDM, request)

    def secured(self, record: bytes) -> bytes:
        """The response to a secured record, with padding behind it. Raises OSError."""
        return self._doe.exchange(VENDOR_PCI_SIG, ObjectType.SECURED_CMA_SPDM, record)

    def alive(self) -> Self:
        """The mailbox, for a server's next connection. Raises OSError, EndpointGoneError."""
        with _telling_of_the_end():
            self._config.read(regs.PCI_VENDOR_ID, 2)
        return self

    def respond(self, request: bytes) -> bytes:
        """As `plain`, for a server. Raises OSError, EndpointGoneError."""
        with _telling_of_the_end():
            return self.plain(request)

    def respond_secured(self, record: bytes) -> bytes:
        """As `secured`, for a server. Raises OSError, EndpointGoneError."""
        with _telling_of_the_end():
            return self.secured(record)

    def close(self) -> None:
        """Close the file of the function."""
        self._config.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self.close()
