# SPDX-License-Identifier: MIT
"""Sample devsec: two host bridges with TEE-I/O endpoints that need no hardware."""

from __future__ import annotations

import errno

from tsmfs.base.faux import FauxDevice
from tsmfs.drivers.devsec_common import DevsecSysdata
from tsmfs.drivers.host import Host, HostModule
from tsmfs.kernel.errors import fail
from tsmfs.kernel.module import LoadedModule
from tsmfs.kernel.resource import (
    IORESOURCE_MEM,
    IORESOURCE_MEM_64,
    IORESOURCE_PREFETCH,
    Resource,
)
from tsmfs.pci.capability import Doe, Ide, PcieCap, add_capabilities
from tsmfs.pci.config import (
    Bar,
    BridgeWindow,
    ConfigSpace,
    Header0,
    Header1,
    set_bar_address,
    set_bridge_window,
)
from tsmfs.pci.doe import DoeMailbox
from tsmfs.pci.hardware import HwBus, HwFunction, power_on
from tsmfs.pci.host_bridge import PciHostBridge
from tsmfs.pci.regs import PciExpType

NR_DEVSEC_HOST_BRIDGES = 2
NR_FUNCTIONS = 2
NR_PLATFORM_STREAMS = 4
"""Secure streams that each host bridge has."""
NR_LINK_STREAMS = 4
MMIO_SIZE = 2 << 20
PREFETCH_SIZE = 2 << 20
PCI_VENDOR_ID_INTEL = 0x8086
DEVSEC_DEVICE_ID = 0xFFFF
PCI_CLASS_ACCELERATOR_PROCESSING = 0x120000


def _no_spdm(payload: bytes) -> bytes:
    """The sample device only lists CMA; a request to it is a DOE error."""
    fail(errno.EIO, "the sample device has no SPDM responder")


def _endpoint(function: int, address: int) -> HwFunction:
    config = ConfigSpace()
    Header0(
        PCI_VENDOR_ID_INTEL,
        DEVSEC_DEVICE_ID,
        class_code=PCI_CLASS_ACCELERATOR_PROCESSING,
        bars=[Bar(0, PREFETCH_SIZE, is_64bit=True, prefetchable=True)],
        multifunction=True,
    ).write(config)
    express = PcieCap(cap_version=0, flr=True, tee_io=True)
    if function == 0:
        positions = add_capabilities(config, [express, Doe(), Ide(nr_link_streams=NR_LINK_STREAMS)])
        DoeMailbox({(0x0001, 1): _no_spdm}).attach(config, positions[1])
    else:
        add_capabilities(config, [express])
    endpoint = HwFunction(function, config)
    endpoint.settings.append(lambda: set_bar_address(config, 0, address))
    return endpoint


def _root_port(number: int, secondary: HwBus, mmio: Resource, prefetch: Resource) -> HwFunction:
    config = ConfigSpace()
    Header1(
        PCI_VENDOR_ID_INTEL,
        DEVSEC_DEVICE_ID,
        revision=1,
        primary=number,
        secondary=secondary.number,
        subordinate=secondary.number,
        forwards_io=False,
    ).write(config)
    add_capabilities(
        config,
        [PcieCap(port_type=PciExpType.ROOT_PORT, flr=True), Ide(nr_link_streams=NR_LINK_STREAMS)],
    )
    port = HwFunction(0, config, secondary)
    port.settings += [
        lambda: set_bridge_window(config, BridgeWindow.MEMORY, mmio.start, mmio.end),
        lambda: set_bridge_window(config, BridgeWindow.PREFETCHABLE, prefetch.start, prefetch.end),
    ]
    return port


def _add_host_bridge(host: Host, fdev: FauxDevice, index: int) -> None:
    pci = host.pci
    mmio = pci.iomem.allocate(
        MMIO_SIZE * NR_FUNCTIONS, MMIO_SIZE, 0, (1 << 32) - 1, "DEVSEC MMIO", IORESOURCE_MEM
    )
    fdev.devres.callback(mmio.release)
    prefetch = pci.iomem.allocate(
        PREFETCH_SIZE * NR_FUNCTIONS,
        PREFETCH_SIZE,
        1 << 32,
        (1 << 64) - 1,
        "DEVSEC PREFETCH",
        IORESOURCE_MEM | IORESOURCE_MEM_64 | IORESOURCE_PREFETCH,
    )
    fdev.devres.callback(prefetch.release)
    root = HwBus(2 * index)
    below = HwBus(2 * index + 1)
    for function in range(NR_FUNCTIONS):
        below.add(_endpoint(function, prefetch.start + function * PREFETCH_SIZE))
    port = root.add(_root_port(root.number, below, mmio, prefetch))
    power_on(port)
    bridge = PciHostBridge(
        pci,
        pci.find_emul_domain(),
        root,
        parent=fdev,
        nr_ide_streams=NR_PLATFORM_STREAMS,
        windows=[mmio, prefetch],
        sysdata=DevsecSysdata(),
    )
    pci.add_host_bridge(bridge)
    fdev.devres.callback(lambda: pci.remove_host_bridge(bridge))


def _init(host: Host, module: LoadedModule) -> None:
    def probe(fdev: FauxDevice) -> None:
        for index in range(NR_DEVSEC_HOST_BRIDGES):
            _add_host_bridge(host, fdev, index)

    fdev = host.faux.create("devsec_bus", probe)
    module.on_exit(lambda: host.faux.destroy(fdev))


MODULE = HostModule(
    "devsec_bus",
    _init,
    "Device Security sample: TDISP device emulation",
    depends=("devsec_common",),
)
