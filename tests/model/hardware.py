# SPDX-License-Identifier: MIT
"""What the machines of the state machine tests have plugged in, as a person would list it."""

from __future__ import annotations

import enum
from dataclasses import dataclass, replace


class Kind(enum.Enum):
    """Device/port type."""

    ROOT_PORT = enum.auto()
    UPSTREAM = enum.auto()
    DOWNSTREAM = enum.auto()
    ENDPOINT = enum.auto()
    RC_ENDPOINT = enum.auto()
    CONVENTIONAL = enum.auto()


@dataclass(frozen=True, eq=False)
class Function:
    """One function and what matters of it."""

    name: str
    kind: Kind
    parent: str = ""
    """The port above, empty on a root bus."""
    tee: bool = False
    streams: int = 0
    """Selective streams of a usable IDE capability."""
    cma: bool = False
    """It has a mailbox that takes CMA/SPDM."""
    bars: int = 0
    """Memory BARs; the first is BAR 0."""
    vfs: tuple[Function, ...] = ()
    plugged: bool = True

    @property
    def slot(self) -> str:
        """``DDDD:BB:DD``."""
        return self.name[:-2]

    @property
    def bus(self) -> str:
        """``DDDD:BB``."""
        return self.name[:-5]

    @property
    def pf0(self) -> bool:
        """It can be connected."""
        return (
            self.kind in (Kind.ENDPOINT, Kind.UPSTREAM, Kind.RC_ENDPOINT)
            and self.name.endswith(".0")
            and (self.tee or self.streams > 0)
        )


@dataclass(frozen=True, eq=False)
class VirtualFunction(Function):
    """A VF; never function 0 of a device of its own."""

    @property
    def pf0(self) -> bool:
        return False


@dataclass(frozen=True, eq=False)
class Bridge:
    """A host bridge with everything below it, ports before what is behind them."""

    name: str
    pool: int
    """Streams of its pool; with none the attribute is hidden."""
    functions: tuple[Function, ...]
    path: str = "/devices"
    sample: bool = False
    """The sample bus module brought it."""

    @property
    def bus(self) -> str:
        """``DDDD:BB`` of its root bus."""
        return self.name.removeprefix("pci")


def _with_vfs(pf: Function, names: tuple[str, ...], bars: int) -> Function:
    vfs = tuple(VirtualFunction(name, pf.kind, pf.parent, tee=pf.tee, bars=bars) for name in names)
    return replace(pf, vfs=vfs)


def _sample(domain: str, root: str, below: str) -> Bridge:
    port = f"{domain}:{root}:00.0"
    return Bridge(
        f"pci{domain}:{root}",
        4,
        (
            Function(port, Kind.ROOT_PORT, streams=1),
            Function(
                f"{domain}:{below}:00.0",
                Kind.ENDPOINT,
                port,
                tee=True,
                streams=1,
                cma=True,
                bars=1,
            ),
            Function(f"{domain}:{below}:00.1", Kind.ENDPOINT, port, tee=True, bars=1),
        ),
        "/devices/faux/devsec_bus",
        sample=True,
    )


SAMPLE_BRIDGES = (_sample("10000", "00", "01"), _sample("10001", "02", "03"))
"""What the module ``devsec_bus`` brings."""

_K = Kind

SERVER = (
    Bridge(
        "pci0000:00",
        8,
        (
            Function("0000:00:01.0", _K.ROOT_PORT, streams=4),
            _with_vfs(
                Function(
                    "0000:01:00.0",
                    _K.ENDPOINT,
                    "0000:00:01.0",
                    tee=True,
                    streams=2,
                    cma=True,
                    bars=3,
                ),
                (*(f"0000:01:00.{n}" for n in range(1, 8)), "0000:01:01.0"),
                2,
            ),
            Function("0000:00:02.0", _K.ROOT_PORT, streams=4),
            Function("0000:02:00.0", _K.UPSTREAM, "0000:00:02.0", tee=True, streams=4, cma=True),
            Function("0000:03:00.0", _K.DOWNSTREAM, "0000:02:00.0"),
            Function("0000:04:00.0", _K.ENDPOINT, "0000:03:00.0", bars=3),
            Function("0000:04:00.1", _K.ENDPOINT, "0000:03:00.0", bars=1),
            Function("0000:04:00.2", _K.ENDPOINT, "0000:03:00.0", tee=True, bars=1),
            Function("0000:03:01.0", _K.DOWNSTREAM, "0000:02:00.0"),
            Function("0000:05:00.0", _K.ENDPOINT, "0000:03:01.0", bars=2, plugged=False),
            Function("0000:00:08.0", _K.RC_ENDPOINT, tee=True, cma=True, bars=2),
            Function("0000:00:1c.0", _K.ROOT_PORT),
            Function("0000:06:00.0", _K.ENDPOINT, "0000:00:1c.0", bars=2),
            Function("0000:00:1e.0", _K.CONVENTIONAL, bars=2),
        ),
    ),
    Bridge(
        "pci0000:80",
        4,
        (
            Function("0000:80:01.0", _K.ROOT_PORT, streams=2),
            Function("0000:81:00.0", _K.ENDPOINT, "0000:80:01.0", streams=1, cma=True, bars=1),
            Function("0000:80:02.0", _K.ROOT_PORT, streams=2),
            Function(
                "0000:82:00.0",
                _K.ENDPOINT,
                "0000:80:02.0",
                tee=True,
                streams=1,
                cma=True,
                bars=1,
                plugged=False,
            ),
        ),
    ),
)
"""The built-in machine ``server``."""

CROWDED_TOML = """\
name = "crowded"
description = "Too few streams, DSMs below a DSM, VFs of a function other than 0, no CMA"

[[host_bridge]]
stream_pool = 3

[[host_bridge.root_port]]
slot = 1
ide = true
  [[host_bridge.root_port.upstream_port]]
    [[host_bridge.root_port.upstream_port.downstream_port]]
      [[host_bridge.root_port.upstream_port.downstream_port.endpoint]]
      doe = true
      ide = true
      bar = [{ index = 0, size = "64K" }]
    [[host_bridge.root_port.upstream_port.downstream_port]]
    slot = 1
      [[host_bridge.root_port.upstream_port.downstream_port.endpoint]]
      doe = true
      ide = true
      bar = [{ index = 0, size = "64K" }]

[[host_bridge.root_port]]
slot = 2
ide = { selective_streams = 2 }
  [[host_bridge.root_port.endpoint]]
  tee_io = true
  doe = true
  ide = { selective_streams = 2 }
  bar = [{ index = 0, size = "64K" }]
  [[host_bridge.root_port.endpoint]]
  function = 1
  tee_io = true
  bar = [{ index = 0, size = "64K" }]
  [host_bridge.root_port.endpoint.sriov]
  total_vfs = 2
  first_vf_offset = 4
  bar = [{ index = 0, size = "4K" }]
  [[host_bridge.root_port.endpoint]]
  function = 2

[[host_bridge.root_port]]
slot = 3
ide = true
  [[host_bridge.root_port.endpoint]]
  doe = { protocols = [[1, 2]] }
  ide = true

[[host_bridge.root_port]]
slot = 4
ide = true
  [[host_bridge.root_port.endpoint]]
  doe = true
  ide = true
  bar = [{ index = 0, size = "64K" }]
  [[host_bridge.root_port.endpoint]]
  function = 1
  tee_io = true
  bar = [{ index = 0, size = "64K" }]

[[host_bridge.root_port]]
slot = 5
ide = true
  [[host_bridge.root_port.upstream_port]]
  tee_io = true
  doe = true
    [[host_bridge.root_port.upstream_port.downstream_port]]
      [[host_bridge.root_port.upstream_port.downstream_port.endpoint]]
      tee_io = true
      doe = true
      ide = true
      bar = [{ index = 0, size = "64K" }]
      [[host_bridge.root_port.upstream_port.downstream_port.endpoint]]
      function = 1
      tee_io = true
      bar = [{ index = 0, size = "64K" }]

[[host_bridge.root_port]]
slot = 6
  [[host_bridge.root_port.endpoint]]
  doe = true
  ide = true

[[host_bridge]]
bus = 0x40
stream_pool = 3
[[host_bridge.root_port]]
slot = 1
ide = true
  [[host_bridge.root_port.endpoint]]
  doe = true
  ide = true
[[host_bridge.root_port]]
slot = 2
ide = true
  [[host_bridge.root_port.endpoint]]
  tee_io = true
  doe = true
  ide = true
  bar = [{ index = 0, size = "64K" }]

[[host_bridge]]
bus = 0x80
[[host_bridge.root_port]]
slot = 1
ide = true
  [[host_bridge.root_port.endpoint]]
  doe = true
  ide = true
"""
"""A machine in which streams run out in every way and DSMs are nested."""

CROWDED = (
    Bridge(
        "pci0000:00",
        3,
        (
            # Two endpoints behind one root port with one stream.
            Function("0000:00:01.0", _K.ROOT_PORT, streams=1),
            Function("0000:01:00.0", _K.UPSTREAM, "0000:00:01.0"),
            Function("0000:02:00.0", _K.DOWNSTREAM, "0000:01:00.0"),
            Function("0000:03:00.0", _K.ENDPOINT, "0000:02:00.0", streams=1, cma=True, bars=1),
            Function("0000:02:01.0", _K.DOWNSTREAM, "0000:01:00.0"),
            Function("0000:04:00.0", _K.ENDPOINT, "0000:02:01.0", streams=1, cma=True, bars=1),
            # VFs that belong to function 1.
            Function("0000:00:02.0", _K.ROOT_PORT, streams=2),
            Function(
                "0000:05:00.0",
                _K.ENDPOINT,
                "0000:00:02.0",
                tee=True,
                streams=2,
                cma=True,
                bars=1,
            ),
            _with_vfs(
                Function("0000:05:00.1", _K.ENDPOINT, "0000:00:02.0", tee=True, bars=1),
                ("0000:05:00.5", "0000:05:00.6"),
                1,
            ),
            Function("0000:05:00.2", _K.ENDPOINT, "0000:00:02.0"),
            # A mailbox without CMA.
            Function("0000:00:03.0", _K.ROOT_PORT, streams=1),
            Function("0000:06:00.0", _K.ENDPOINT, "0000:00:03.0", streams=1),
            # Function 0 has IDE alone: function 1 cannot depend on it.
            Function("0000:00:04.0", _K.ROOT_PORT, streams=1),
            Function("0000:07:00.0", _K.ENDPOINT, "0000:00:04.0", streams=1, cma=True, bars=1),
            Function("0000:07:00.1", _K.ENDPOINT, "0000:00:04.0", tee=True, bars=1),
            # A DSM below a switch that is one too.
            Function("0000:00:05.0", _K.ROOT_PORT, streams=1),
            Function("0000:08:00.0", _K.UPSTREAM, "0000:00:05.0", tee=True, cma=True),
            Function("0000:09:00.0", _K.DOWNSTREAM, "0000:08:00.0"),
            Function(
                "0000:0a:00.0",
                _K.ENDPOINT,
                "0000:09:00.0",
                tee=True,
                streams=1,
                cma=True,
                bars=1,
            ),
            Function("0000:0a:00.1", _K.ENDPOINT, "0000:09:00.0", tee=True, bars=1),
            # IDE below a root port without is of no use.
            Function("0000:00:06.0", _K.ROOT_PORT),
            Function("0000:0b:00.0", _K.ENDPOINT, "0000:00:06.0", cma=True),
        ),
    ),
    Bridge(
        "pci0000:40",
        3,
        (
            Function("0000:40:01.0", _K.ROOT_PORT, streams=1),
            Function("0000:41:00.0", _K.ENDPOINT, "0000:40:01.0", streams=1, cma=True),
            Function("0000:40:02.0", _K.ROOT_PORT, streams=1),
            Function(
                "0000:42:00.0",
                _K.ENDPOINT,
                "0000:40:02.0",
                tee=True,
                streams=1,
                cma=True,
                bars=1,
            ),
        ),
    ),
    Bridge(
        "pci0000:80",
        0,
        (
            Function("0000:80:01.0", _K.ROOT_PORT, streams=1),
            Function("0000:81:00.0", _K.ENDPOINT, "0000:80:01.0", streams=1, cma=True),
        ),
    ),
)
"""What :data:`CROWDED_TOML` describes."""
