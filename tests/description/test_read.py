# SPDX-License-Identifier: MIT
"""Descriptions read: every key, the defaults, and what is made of them."""

from __future__ import annotations

from dataclasses import replace

import pytest

from tests.description.texts import endpoint
from tsmfs.description import (
    DOE_CMA,
    DOE_SECURED_CMA,
    Bar,
    BarKind,
    Cma,
    CmaFiles,
    CmaHash,
    CmaKey,
    CmaVersion,
    Doe,
    Function,
    HostBridge,
    Ide,
    Kind,
    Link,
    LinkSpeed,
    Machine,
    Measurement,
    MeasurementKind,
    ModuleLoad,
    Msix,
    Sriov,
    Tamper,
    defaults,
    parse,
)


def test_an_empty_file_is_a_machine_without_hardware() -> None:
    assert parse("", "lab/box.toml") == Machine(name="box")


def test_a_file_name_that_is_no_machine_name_is_not_used() -> None:
    assert parse("", "-").name == "machine"


def test_defaults_make_a_short_file_a_whole_device() -> None:
    machine = parse(endpoint(), "m.toml")
    (port,) = machine.host_bridges[0].functions
    assert port == replace(defaults(Kind.ROOT_PORT), slot=1, children=(defaults(Kind.ENDPOINT),))
    assert (port.vendor, port.device, port.class_code) == (0x1B36, 0x000C, 0x060400)
    assert port.children[0].flr
    assert port.children[0].link == Link(LinkSpeed.GT_2_5, 1)


def test_every_key_of_a_function_is_read() -> None:
    text = endpoint(
        port="ari = true",
        text="""
        name = "it"
        vendor = 0x8086
        device = 0x1234
        subsystem_vendor = 1
        subsystem_device = 2
        class = 0x020000
        revision = 3
        plugged = false
        link = { speed = "64", width = 8 }
        pm = false
        msi = 4
        flr = false
        tee_io = true
        aer = true
        ari = true
        acs = true
        serial = "00-11-22-33-44-55-66-ff"
        bar = [{ index = 4, size = "1M", kind = "mem64", prefetch = true },
               { index = 0, size = 4096 }]
        msix = { vectors = 4, bar = 0, table_offset = 8, pba_offset = 128 }
        doe = { protocols = [[1, 1], [0x8086, 3]] }
        ide = { link_streams = 2, selective_streams = 3, address_associations = 4,
                tee_limited = false }
        sriov = { total_vfs = 2, first_vf_offset = 4, vf_stride = 2 }
        """.replace("4,\n                tee", "4, tee"),
    )
    (port,) = parse(text, "m.toml").host_bridges[0].functions
    assert port.children == (
        Function(
            Kind.ENDPOINT,
            name="it",
            vendor=0x8086,
            device=0x1234,
            subsystem_vendor=1,
            subsystem_device=2,
            class_code=0x020000,
            revision=3,
            plugged=False,
            link=Link(LinkSpeed.GT_64, 8),
            msi=4,
            tee_io=True,
            aer=True,
            ari=True,
            acs=True,
            serial=0x00112233445566FF,
            bars=(Bar(0, 4096), Bar(4, 1 << 20, BarKind.MEM64, prefetch=True)),
            msix=Msix(4, 0, 8, 128),
            doe=Doe(((1, 1), (0x8086, 3))),
            ide=Ide(2, 3, 4, tee_limited=False),
            sriov=Sriov(2, vf_device=0x1234, tee_io=True, first_vf_offset=4, vf_stride=2),
        ),
    )


def test_every_key_of_a_host_bridge_is_read() -> None:
    text = """
        name = "box"
        description = "a box"
        seed = 7
        modules = ["pci-stub ids=1234:5678 x=", "devsec_tsm"]
        [[host_bridge]]
        domain = 0x10000
        bus = 0x20
        name = "south"
        stream_pool = 4
        mem32_window = "256M"
        mem64_window = "1T"
        io_window = 4096
        """
    machine = parse(text, "m.toml")
    bridge = HostBridge(0x10000, 0x20, "south", 4, 256 << 20, 1 << 40, 4096)
    modules = (
        ModuleLoad("pci_stub", (("ids", "1234:5678"), ("x", ""))),
        ModuleLoad("devsec_tsm"),
    )
    assert machine == Machine("box", "a box", 7, modules, (bridge,))
    assert machine.modules[0].line == "pci_stub ids=1234:5678 x="


def test_true_is_a_capability_with_its_defaults_and_false_is_none() -> None:
    text = endpoint("doe = true\nide = true\nmsix = true\nbar = [{ index = 0, size = '4K' }]")
    (port,) = parse(text, "m.toml").host_bridges[0].functions
    (function,) = port.children
    assert function.doe == Doe((DOE_CMA, DOE_SECURED_CMA))
    assert function.ide == Ide()
    assert function.msix == Msix(1, 0, 0, 16)
    assert parse(endpoint("ide = false\nsriov = false"), "m.toml") == parse(endpoint(), "m.toml")


def keys_of(text: str, source: str = "m.toml") -> Cma:
    """The keys of an endpoint with that table."""
    machine = parse(endpoint(f"doe = true\ncma = {text}"), source)
    cma = machine.host_bridges[0].functions[0].children[0].cma
    assert cma is not None
    return cma


def test_every_key_of_a_device_with_keys_is_read() -> None:
    assert keys_of("true") == Cma()
    assert keys_of(
        """{ key = "rsa-3072", hash = "sha-512", versions = ["1.3"], slots = [7, 2], seed = 0, """
        """tamper = ["bad-signature"], measurements = [
               { index = 239, value = "a" }, { index = 253, kind = "manifest", value = "b" },
             ] }"""
    ) == Cma(
        CmaKey.RSA_3072,
        CmaHash.SHA_512,
        (CmaVersion.V1_3,),
        (7, 2),
        0,
        (),
        (
            Measurement(239, MeasurementKind.FIRMWARE, "a"),
            Measurement(253, MeasurementKind.MANIFEST, "b"),
        ),
        (Tamper.BAD_SIGNATURE,),
    )


def test_pem_files_are_found_from_the_directory_of_the_description() -> None:
    text = '{ files = [{ slot = 2, chain = "a.pem", key = "../k" }, { chain = "/c", key = "k" }] }'
    assert keys_of(text, "/lab/it/m.toml").files == (
        CmaFiles(2, "/lab/it/a.pem", "/lab/k"),
        CmaFiles(0, "/c", "/lab/it/k"),
    )


def test_functions_come_in_the_order_of_their_numbers() -> None:
    text = """
        [[host_bridge]]
        [[host_bridge.rc_endpoint]]
        slot = 3
        [[host_bridge.conventional]]
        slot = 1
        function = 1
        [[host_bridge.root_port]]
        slot = 2
        [[host_bridge.conventional]]
        slot = 1
        """
    functions = parse(text, "m.toml").host_bridges[0].functions
    assert [(f.slot, f.function) for f in functions] == [(1, 0), (1, 1), (2, 0), (3, 0)]


@pytest.mark.parametrize(
    ("written", "size"),
    [
        ("4096", 4096),
        ('"4096"', 4096),
        ('"0x1000"', 4096),
        ('"64K"', 64 << 10),
        ('"2M"', 2 << 20),
        ('"1G"', 1 << 30),
    ],
)
def test_sizes_are_bytes_or_have_a_unit(written: str, size: int) -> None:
    text = endpoint(f"bar = [{{ index = 0, size = {written} }}]")
    assert parse(text, "m.toml").host_bridges[0].functions[0].children[0].bars[0].size == size
