# SPDX-License-Identifier: MIT
"""Machine descriptions: the format, its mistakes, built-in machines and the way back to TOML."""

from __future__ import annotations

import re
from collections.abc import Iterator, Sequence
from dataclasses import replace
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tsmfs.description import (
    DOE_CMA,
    DOE_SECURED_CMA,
    LINK_WIDTHS,
    MAX_DEPTH,
    Bar,
    BarKind,
    BusRange,
    Cma,
    CmaFiles,
    CmaHash,
    CmaKey,
    CmaVersion,
    DescriptionError,
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
    Mistake,
    ModuleLoad,
    Msix,
    Sriov,
    Tamper,
    assign_buses,
    builtin_names,
    builtin_text,
    defaults,
    find,
    generate,
    load,
    parse,
    to_toml,
)

GUIDE = Path(__file__).parents[1] / "Documentation" / "machine-description.md"


def mistakes(text: str) -> list[str]:
    """What `parse` finds wrong in `text`, without the name of the file."""
    with pytest.raises(DescriptionError) as caught:
        parse(text, "m.toml")
    lines = str(caught.value).splitlines()
    assert lines == [str(error) for error in caught.value.errors]
    assert all(line.startswith("m.toml: ") for line in lines)
    return [line.removeprefix("m.toml: ") for line in lines]


def walk(functions: Sequence[Function]) -> Iterator[Function]:
    """Every function at and below `functions`."""
    for function in functions:
        yield function
        yield from walk(function.children)


def endpoint(text: str = "", port: str = "") -> str:
    """A machine of one root port and one endpoint with the keys of `text`."""
    return f"""
        [[host_bridge]]
        [[host_bridge.root_port]]
        slot = 1
        {port}
        [[host_bridge.root_port.endpoint]]
        {text}
        """


E = "host_bridge[0].root_port[0].endpoint[0]"
KEY_CHOICES = 'key: must be one of "ecdsa-p256", "ecdsa-p384", "rsa-3072", not "p256"'


# --- reading --------------------------------------------------------------------------------------


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


def test_keys_come_from_the_seed_or_without_one_from_the_name() -> None:
    seeds = [parse(text, "m.toml").key_seed for text in ("", "name = 'n'", "seed = 1", "seed = 2")]
    assert len(set(seeds)) == 4
    assert parse("name = 'n'\nseed = 1", "m.toml").key_seed == seeds[2]


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


def test_link_speeds_have_the_encoding_of_link_capabilities() -> None:
    assert [speed.code for speed in LinkSpeed] == [1, 2, 3, 4, 5, 6]
    assert LinkSpeed("2.5").code == 1


# --- mistakes -------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        # Types, ranges and names.
        ("nmae = 'x'", "nmae: unknown key; did you mean name?"),
        ("'a b' = 1", '"a b": unknown key'),
        ("name = 'a b'", "name: must be 1 to 64 letters, digits, '.', '_' and '-'"),
        ("name = 1", "name: must be a string, not 1"),
        ("seed = -1", "seed: must be in 0..9223372036854775807, not -1"),
        ("seed = true", "seed: must be an integer, not true"),
        ("modules = 'x'", 'modules: must be an array, not "x"'),
        ("modules = [1]", "modules[0]: must be a module name with its parameters, not 1"),
        ("modules = ['a/b']", 'modules[0]: "a/b" is not a module name'),
        ("modules = ['a', 'a']", "modules[1]: a is listed before"),
        ("modules = ['a b']", 'modules[0]: "b" is not of the form parameter=value'),
        ("host_bridge = 3", "host_bridge: must be an array, not 3"),
        ("host_bridge = [3]", "host_bridge[0]: must be a table, not 3"),
        (
            "[host_bridge]",
            "host_bridge: must be an array of tables: write [[host_bridge]]",
        ),
        (
            "[[host_bridge]]\n[host_bridge.root_port]",
            "host_bridge[0].root_port: must be an array of tables: write [[host_bridge.root_port]]",
        ),
        ("[[host_bridge]]\nbus = 256", "host_bridge[0].bus: must be in 0x0..0xff, not 0x100"),
        (
            "[[host_bridge]]\nstream_pool = 256",
            "host_bridge[0].stream_pool: must be in 0..255, not 256",
        ),
        (
            "[[host_bridge]]\nio_window = 100",
            "host_bridge[0].io_window: must be a multiple of 4K up to 64K",
        ),
        (endpoint("slot = 'x'"), f'{E}.slot: must be an integer, not "x"'),
        (endpoint("function = 8"), f"{E}.function: must be in 0..7, not 8"),
        (endpoint("vendor = 0xffff"), f"{E}.vendor: must be in 0x1..0xfffe, not 0xffff"),
        (endpoint("aer = 1"), f"{E}.aer: must be true or false, not 1"),
        (endpoint("ide = 1"), f"{E}.ide: must be a table, not 1"),
        (endpoint("ide = { ide_mk = true }"), f"{E}.ide.ide_mk: unknown key; did you mean ide_km?"),
        (endpoint("link = true"), f"{E}.link: must be a table, not true"),
        (
            endpoint("link = { speed = '3' }"),
            f'{E}.link.speed: must be one of "2.5", "5", "8", "16", "32", "64", not "3"',
        ),
        (
            endpoint("link = { width = 3 }"),
            f"{E}.link.width: must be one of 1, 2, 4, 8, 12, 16, 32, not 3",
        ),
        (
            endpoint("serial = '00-11'"),
            f'{E}.serial: must be eight bytes such as "52-54-00-ff-fe-12-34-56"',
        ),
        (
            endpoint("doe = { protocols = [[1, 0]] }"),
            f"{E}.doe.protocols[0]: is discovery, which every mailbox has: leave it out",
        ),
        (
            endpoint("doe = { protocols = [[1, 1], [1, 1]] }"),
            f"{E}.doe.protocols[1]: is listed before",
        ),
        (
            endpoint("doe = { protocols = [[1, true]] }"),
            f"{E}.doe.protocols[0]: must be [vendor, type], of 16 and 8 bits",
        ),
        (
            endpoint("doe = { protocols = [[1, 2, 3]] }"),
            f"{E}.doe.protocols[0]: must be [vendor, type], of 16 and 8 bits",
        ),
        # Base address registers and MSI-X.
        (endpoint("bar = [{ index = 0 }]"), f"{E}.bar[0].size: is required"),
        (endpoint("bar = [{ size = '4K' }]"), f"{E}.bar[0].index: is required"),
        (
            endpoint("bar = [{ index = 0, size = '2X' }]"),
            f'{E}.bar[0].size: must be a size such as 4096, "64K", "2M" or "4G", not "2X"',
        ),
        (
            endpoint("bar = [{ index = 0, size = '3K' }]"),
            f"{E}.bar[0].size: must be a power of two",
        ),
        (
            endpoint("bar = [{ index = 0, size = 64 }]"),
            f"{E}.bar[0].size: must be 128 to 2G for mem32",
        ),
        (
            endpoint("bar = [{ index = 0, size = 512, kind = 'io' }]"),
            f"{E}.bar[0].size: must be 4 to 256 for io",
        ),
        (
            endpoint("bar = [{ index = 0, size = 4, kind = 'io', prefetch = true }]"),
            f"{E}.bar[0].prefetch: I/O space is not prefetchable",
        ),
        (
            endpoint(
                "bar = [{ index = 0, size = '4K', kind = 'mem64' }, { index = 1, size = '4K' }]"
            ),
            f"{E}.bar[1].index: BAR 1 is taken",
        ),
        (
            endpoint("bar = [{ index = 5, size = '4K', kind = 'mem64' }]"),
            f"{E}.bar[0].index: its upper half is past the last BAR, 5",
        ),
        (
            "[[host_bridge]]\n[[host_bridge.root_port]]\nbar = [{ index = 2, size = '4K' }]",
            "host_bridge[0].root_port[0].bar[0].index: it is past the last BAR, 1",
        ),
        (
            endpoint("msix = { vectors = 2, bar = 1 }\nbar = [{ index = 0, size = '4K' }]"),
            f"{E}.msix.bar: there is no memory BAR 1",
        ),
        (
            endpoint("msix = { vectors = 256 }\nbar = [{ index = 0, size = '4K' }]"),
            f"{E}.msix.pba_offset: ends past BAR 0, which has 4K",
        ),
        (
            endpoint("msix = { table_offset = 4 }\nbar = [{ index = 0, size = '4K' }]"),
            f"{E}.msix.table_offset: must be a multiple of 8",
        ),
        (
            endpoint("msix = { vectors = 8, pba_offset = 8 }\nbar = [{ index = 0, size = '4K' }]"),
            f"{E}.msix.pba_offset: overlaps the table",
        ),
        (endpoint("msi = 3"), f"{E}.msi: must be 0, 1, 2, 4, 8, 16 or 32 vectors, not 3"),
        # What goes where.
        (
            "[[host_bridge]]\n[[host_bridge.endpoint]]",
            "host_bridge[0].endpoint[0]: endpoint goes below a root_port or a downstream_port",
        ),
        (
            "[[host_bridge]]\n[[host_bridge.root_port]]\n[[host_bridge.root_port.downstream_port]]",
            "host_bridge[0].root_port[0].downstream_port[0]: "
            "downstream_port goes below an upstream_port",
        ),
        (
            "[[host_bridge]]\n[[host_bridge.root_port]]\n[[host_bridge.root_port.upstream_port]]",
            "host_bridge[0].root_port[0].upstream_port[0].downstream_port: "
            "a switch needs at least one",
        ),
        (
            "[[host_bridge]]\n[[host_bridge.rc_endpoint]]\n[[host_bridge.rc_endpoint.conventional]]",
            "host_bridge[0].rc_endpoint[0].conventional[0]: "
            "conventional goes directly below a host bridge",
        ),
        (endpoint("slot = 1"), f"{E}.slot: must be 0: a link has one device, number 0"),
        (
            endpoint("[[host_bridge.root_port.endpoint]]"),
            f"host_bridge[0].root_port[0].endpoint[1].slot: 00.0 is taken by {E}",
        ),
        (endpoint("function = 1"), f"{E}.function: device 00 has no function 0"),
        (
            endpoint("plugged = false\n[[host_bridge.root_port.endpoint]]\nfunction = 1"),
            "host_bridge[0].root_port[0].endpoint[1].plugged: "
            "must be that of function 0: a device is plugged in whole",
        ),
        (
            "[[host_bridge]]\n[[host_bridge.root_port]]\nplugged = false",
            "host_bridge[0].root_port[0].plugged: a root_port is part of what it sits in",
        ),
        # What has which capability.
        (
            "[[host_bridge]]\n[[host_bridge.conventional]]\ntee_io = true",
            "host_bridge[0].conventional[0].tee_io: TEE-IO is for endpoints and upstream ports",
        ),
        (
            "[[host_bridge]]\n[[host_bridge.conventional]]\nide = true",
            "host_bridge[0].conventional[0].ide: needs PCI Express: IDE protects its packets",
        ),
        (
            "[[host_bridge]]\n[[host_bridge.conventional]]\nsriov = { total_vfs = 1 }",
            "host_bridge[0].conventional[0].sriov: SR-IOV is for PCI Express endpoints",
        ),
        (
            "[[host_bridge]]\n[[host_bridge.conventional]]\nserial = '00-00-00-00-00-00-00-00'",
            "host_bridge[0].conventional[0].serial: "
            "needs PCI Express: conventional PCI has no extended capabilities",
        ),
        (
            "[[host_bridge]]\n[[host_bridge.rc_endpoint]]\nlink = { width = 1 }",
            "host_bridge[0].rc_endpoint[0].link: there is no PCI Express link here",
        ),
        (
            "[[host_bridge]]\n[[host_bridge.rc_endpoint]]\nide = { link_streams = 1 }",
            "host_bridge[0].rc_endpoint[0].ide.link_streams: there is no PCI Express link here",
        ),
        (endpoint("secondary_bus = 9"), f"{E}.secondary_bus: only a port has a bus below it"),
        (
            endpoint("class = 0x060400"),
            f"{E}.class: 0x0604xx is the class of ports, of all and of nothing else",
        ),
        (
            endpoint("ide = { selective_streams = 0 }"),
            f"{E}.ide: needs link_streams or selective_streams",
        ),
        (
            endpoint("ide = { selective_streams = 256 }"),
            f"{E}.ide.selective_streams: does not fit in config space: "
            "8204 bytes of extended capabilities in 3840",
        ),
        # SR-IOV.
        (endpoint("sriov = {}"), f"{E}.sriov.total_vfs: is required"),
        (
            endpoint("sriov = { total_vfs = 8 }"),
            f"{E}.ari: must be true for VFs with function numbers above 7",
        ),
        (
            endpoint("ari = true\nsriov = { total_vfs = 8 }", port="ari = false"),
            f"{E}.sriov.total_vfs: the port above does not forward ARI",
        ),
        (
            endpoint("sriov = { total_vfs = 2 }\n[[host_bridge.root_port.endpoint]]\nfunction = 1"),
            f"{E}.sriov.first_vf_offset: a VF has the device and function number of "
            "host_bridge[0].root_port[0].endpoint[1]",
        ),
        (
            endpoint("ari = true\nsriov = { total_vfs = 2, vf_stride = 65535 }"),
            f"{E}.sriov.total_vfs: VF 1 lies past the last bus number",
        ),
        (
            endpoint("sriov = { total_vfs = 1, bar = [{ index = 0, size = 256, kind = 'io' }] }"),
            f"{E}.sriov.bar[0].kind: VFs have no I/O space",
        ),
        (
            endpoint("sriov = { total_vfs = 1, bar = [{ index = 0, size = 2048 }] }"),
            f"{E}.sriov.bar[0].size: must be 4K to 2G for mem32",
        ),
        (
            endpoint("sriov = { total_vfs = 1, msix = true }"),
            f"{E}.sriov.msix.bar: there is no memory BAR 0",
        ),
        # Bus numbers.
        (
            "[[host_bridge]]\n[[host_bridge]]",
            "host_bridge[1].bus: 0000:00 is the root bus of another host bridge",
        ),
        (
            "[[host_bridge]]\n[[host_bridge.root_port]]\nsecondary_bus = 5\n"
            "[[host_bridge.root_port]]\nslot = 1\nsecondary_bus = 5",
            "host_bridge[0].root_port[1].secondary_bus: "
            "0x05 is not free: the numbers up to 0x05 are taken by what comes before",
        ),
        (
            "[[host_bridge]]\n[[host_bridge.root_port]]\nsecondary_bus = 0x80\n"
            "[[host_bridge]]\nbus = 0x80",
            "host_bridge[0].root_port[0].secondary_bus: "
            "needs bus 0x80, and the last of its host bridge is 0x7f",
        ),
        (
            "[[host_bridge]]\nbus = 255\n[[host_bridge.root_port]]",
            "host_bridge[0].root_port[0]: needs bus 0x100, and the last of its host bridge is 0xff",
        ),
        (
            "[[host_bridge]]\nbus = 255\n[[host_bridge.rc_endpoint]]\nslot = 1\n"
            "sriov = { total_vfs = 1, first_vf_offset = 256 }",
            "host_bridge[0].bus: the VFs on the root bus reach past bus 0xff",
        ),
        (endpoint("cma = true"), f"{E}.cma: needs doe, with the protocols [1, 1] and [1, 2]"),
        (
            endpoint("cma = true\ndoe = { protocols = [[1, 1]] }"),
            f"{E}.cma: needs doe, with the protocols [1, 1] and [1, 2]",
        ),
        (
            "[[host_bridge]]\n[[host_bridge.root_port]]\nslot = 1\ndoe = true\ncma = true",
            "host_bridge[0].root_port[0].cma: "
            "keys are for endpoints, and for the upstream ports of switches",
        ),
        (
            endpoint() + "[[host_bridge.root_port.endpoint]]\nfunction = 1\ndoe = true\ncma = true",
            "host_bridge[0].root_port[0].endpoint[1].cma: "
            "the keys of a device are in its function 0",
        ),
        *(
            (endpoint(f"doe = true\ncma = {{ {keys} }}"), f"{E}.cma.{expected}")
            for keys, expected in (
                ('key = "p256"', KEY_CHOICES),
                ("slots = []", "slots: must have one entry at least"),
                ("slots = [8]", "slots[0]: must be in 0..7, not 8"),
                ("slots = [1, 1]", "slots[1]: is listed before"),
                ("slots = [true]", "slots[0]: must be an integer, not true"),
                ("slots = 1", "slots: must be an array, not 1"),
                ("versions = []", "versions: must have one entry at least"),
                ('versions = ["1.1"]', 'versions[0]: must be one of "1.2", "1.3", not "1.1"'),
                ('versions = ["1.2", "1.2"]', "versions[1]: is listed before"),
                ('files = [{ chain = "a" }]', "files[0].key: is required"),
                ('files = [{ chain = "", key = "k" }]', "files[0].chain: must not be empty"),
                (
                    'files = [{ chain = "a", key = "k" }], seed = 1',
                    "seed: is told by files",
                ),
                (
                    'files = [{ chain = "a", key = "k" }, { chain = "a", key = "k" }]',
                    "files[1].slot: slot 0 has its files already",
                ),
                (
                    'measurements = [{ index = 240, value = "a" }]',
                    "measurements[0].index: must be in 1..239, or 253 for the manifest, not 240",
                ),
                (
                    'measurements = [{ index = 1, kind = "manifest", value = "a" }]',
                    "measurements[0].kind: the measurement 253 is the manifest",
                ),
                (
                    'measurements = [{ index = 1, value = "a" }, { index = 1, value = "a" }]',
                    "measurements[1].index: measurement 1 is listed before",
                ),
                ("measurements = [{ index = 1 }]", "measurements[0].value: is required"),
            )
        ),
    ],
)
def test_a_mistake_is_told_with_its_key_and_the_reason(text: str, expected: str) -> None:
    assert mistakes(text) == [expected]


def test_all_mistakes_of_a_file_are_told() -> None:
    text = """
        sede = 1
        modules = ["a", "a"]
        [[host_bridge]]
        bus = "x"
        [[host_bridge.root_port]]
        slot = 40
        [[host_bridge.root_port.endpoint]]
        typo = 1
        bar = [{ index = 9, size = "3K" }, { index = 0, size = "3K" }]
        [[host_bridge.root_port]]
        msi = 5
        [[host_bridge.root_port.endpoint]]
        function = 2
        """
    ports = "host_bridge[0].root_port"
    assert mistakes(text) == [
        "modules[1]: a is listed before",
        'host_bridge[0].bus: must be an integer, not "x"',
        f"{ports}[0].slot: must be in 0..31, not 40",
        f"{ports}[0].endpoint[0].bar[0].index: must be in 0..5, not 9",
        f"{ports}[0].endpoint[0].typo: unknown key",
        "sede: unknown key; did you mean seed?",
        f"{ports}[0].endpoint[0].bar[1].size: must be a power of two",
        f"{ports}[1].msi: must be 0, 1, 2, 4, 8, 16 or 32 vectors, not 5",
        f"{ports}[1].endpoint[0].function: device 00 has no function 0",
    ]


def test_a_mistake_in_a_table_hides_none_in_the_tables_below() -> None:
    text = "[[host_bridge]]\nbus = 300\n[[host_bridge.endpoint]]\nrevision = 256\nmsi = 3"
    assert mistakes(text) == [
        "host_bridge[0].bus: must be in 0x0..0xff, not 0x12c",
        "host_bridge[0].endpoint[0].revision: must be in 0x0..0xff, not 0x100",
        "host_bridge[0].endpoint[0]: endpoint goes below a root_port or a downstream_port",
        "host_bridge[0].endpoint[0].msi: must be 0, 1, 2, 4, 8, 16 or 32 vectors, not 3",
    ]


def test_a_consequence_of_a_mistake_is_not_told_as_another() -> None:
    text = """
        [[host_bridge]]
        domain = "x"
        [[host_bridge]]
        [[host_bridge.root_port]]
        slot = "x"
        [[host_bridge.root_port]]
        slot = 0
        [[host_bridge.root_port.endpoint]]
        bar = [{ index = 0, size = "1X" }]
        msix = { vectors = 2000, bar = 0 }
        """
    assert [line.split(": ")[0] for line in mistakes(text)] == [
        "host_bridge[0].domain",
        "host_bridge[1].root_port[0].slot",
        "host_bridge[1].root_port[1].endpoint[0].bar[0].size",
    ]


@pytest.mark.parametrize(
    ("text", "reason"),
    [
        ("a = 1\nb = = 2", "line 2, column 5: Invalid value"),
        ('a = "x', "end of document: Unterminated string"),
        ("a = " + "9" * 5000, "Exceeds the limit"),
        ("a = " + "[" * 100_000, "nested too deeply"),
    ],
)
def test_what_is_not_toml_is_told_with_its_place(text: str, reason: str) -> None:
    (line,) = mistakes(text)
    assert line.startswith(reason)


def test_a_number_too_long_to_print_is_told_by_its_length() -> None:
    assert mistakes("seed = 0x1" + "0" * 5000) == [
        "seed: must be in 0..9223372036854775807, not a number of 20001 bits"
    ]


def test_a_long_chain_of_switches_is_refused() -> None:
    text, header = "[[host_bridge]]\n", "host_bridge.root_port"
    for level in range(MAX_DEPTH + 2):
        text += f"[[{header}]]\n"
        header += ".upstream_port" if level % 2 == 0 else ".downstream_port"
    (line,) = mistakes(text)
    assert line.endswith(f"more than {MAX_DEPTH} functions below one another")


def test_the_errors_of_an_exception_are_data() -> None:
    with pytest.raises(DescriptionError) as caught:
        parse("seed = 'x'", "f.toml")
    assert caught.value.errors == (Mistake("f.toml", "seed", 'must be an integer, not "x"'),)


# --- bus numbers ----------------------------------------------------------------------------------


def test_buses_are_numbered_depth_first_with_room_for_vfs() -> None:
    text = """
        [[host_bridge]]
        bus = 0x10
        [[host_bridge.root_port]]
        slot = 2
        [[host_bridge.root_port]]
        slot = 1
        [[host_bridge.root_port.upstream_port]]
        [[host_bridge.root_port.upstream_port.downstream_port]]
        slot = 1
        secondary_bus = 0x20
        [[host_bridge.root_port.upstream_port.downstream_port]]
        [[host_bridge.root_port.upstream_port.downstream_port.endpoint]]
        sriov = { total_vfs = 1, first_vf_offset = 0x200 }
        """
    (bridge,) = parse(text, "m.toml").host_bridges
    assert assign_buses(bridge) == {
        (): BusRange(0x10, 0x21),
        (8,): BusRange(0x11, 0x20),
        (8, 0): BusRange(0x12, 0x20),
        (8, 0, 0): BusRange(0x13, 0x15),
        (8, 0, 8): BusRange(0x20, 0x20),
        (16,): BusRange(0x21, 0x21),
    }


# --- files and built-in machines ------------------------------------------------------------------


def test_a_file_is_loaded_by_its_path(tmp_path: Path) -> None:
    path = tmp_path / "box.toml"
    path.write_text("seed = 5\n")
    assert load(path) == Machine("box", seed=5)
    assert find(str(path)) == (Machine("box", seed=5), "seed = 5\n")


def test_a_file_that_cannot_be_read_is_a_mistake(tmp_path: Path) -> None:
    binary = tmp_path / "binary.toml"
    binary.write_bytes(b"a\xff")
    cases = {
        str(tmp_path / "none.toml"): "No such file or directory",
        f"{tmp_path}/": "Is a directory",
        str(binary): "not UTF-8 text: byte 1 is 0xff",
        "nul\0.toml": "embedded null byte",
    }
    for path, reason in cases.items():
        with pytest.raises(DescriptionError, match=re.escape(reason)) as caught:
            find(path)
        assert caught.value.errors[0].source == str(Path(path))


def test_an_unknown_machine_is_answered_with_the_known_ones() -> None:
    for ask in (find, builtin_text):
        with pytest.raises(DescriptionError, match=r"^serber: unknown machine; .* devsec, server"):
            ask("serber")


@pytest.mark.parametrize("name", builtin_names())
def test_a_builtin_machine_has_the_name_of_its_file_and_survives_the_round_trip(name: str) -> None:
    machine, text = find(name)
    assert machine.name == name
    assert machine.description
    assert text == builtin_text(name)
    assert parse(to_toml(machine), "again.toml") == machine


def test_devsec_loads_the_sample_modules_and_has_no_hardware_of_its_own() -> None:
    machine, _ = find("devsec")
    assert [module.name for module in machine.modules] == [
        "devsec_bus",
        "devsec_link_tsm",
        "devsec_tsm",
    ]
    assert machine.host_bridges == ()


def test_server_has_an_instance_of_each_visibility_rule() -> None:
    machine, _ = find("server")
    pools = [(bridge.domain, bridge.bus, bridge.stream_pool) for bridge in machine.host_bridges]
    assert pools == [(0, 0x00, 8), (0, 0x80, 4)]
    functions = {f.name: f for bridge in machine.host_bridges for f in walk(bridge.functions)}
    shown = {
        name: (f.kind, f.tee_io, f.ide is not None, f.plugged)
        for name, f in functions.items()
        if f.kind not in (Kind.ROOT_PORT, Kind.DOWNSTREAM_PORT)
    }
    assert shown == {
        "NIC": (Kind.ENDPOINT, True, True, True),
        "switch": (Kind.UPSTREAM_PORT, True, True, True),
        "GPU": (Kind.ENDPOINT, False, False, True),
        "GPU audio": (Kind.ENDPOINT, False, False, True),
        "GPU compute partition": (Kind.ENDPOINT, True, False, True),
        "second GPU": (Kind.ENDPOINT, False, False, False),
        "accelerator": (Kind.RC_ENDPOINT, True, False, True),
        "plain NIC": (Kind.ENDPOINT, False, False, True),
        "BMC": (Kind.CONVENTIONAL, False, False, True),
        "NVMe": (Kind.ENDPOINT, False, True, True),
        "second NVMe": (Kind.ENDPOINT, True, True, False),
    }
    sriov = functions["NIC"].sriov
    assert sriov is not None
    assert (sriov.total_vfs, sriov.tee_io) == (8, True)


def test_the_buses_of_server_are_those_its_comments_name() -> None:
    machine, text = find("server")
    first, second = (assign_buses(bridge) for bridge in machine.host_bridges)
    buses = {0x00: first, 0x80: second}
    named = {
        name: int(bus, 16)
        for bus, name in re.findall(r"^#   0000:(\w\w):\w\w\.\w  (.+?)  ", text, re.MULTILINE)
    }
    for bridge in machine.host_bridges:
        for path, ranges in buses[bridge.bus].items():
            below = bridge.functions
            for devfn in path:
                below = next(f for f in below if f.devfn == devfn).children
            for function in below:
                if function.name in named:
                    assert named.pop(function.name) == ranges.secondary
    assert named == {}


# --- generated machines ---------------------------------------------------------------------------


@pytest.mark.parametrize("count", [1, 2, 9, 10, 11, 288, 289, 4096])
def test_a_generated_machine_has_the_number_of_functions_asked_for(count: int) -> None:
    machine = generate(count)
    functions = [f for bridge in machine.host_bridges for f in walk(bridge.functions)]
    assert len(functions) == count
    roots = [(bridge.domain, bridge.bus) for bridge in machine.host_bridges]
    assert len(set(roots)) == len(roots)
    assert all(len(bridge.functions) <= 32 for bridge in machine.host_bridges)


@given(st.integers(min_value=1, max_value=400))
@settings(max_examples=10, deadline=None)
def test_a_generated_machine_is_a_valid_description(count: int) -> None:
    machine = generate(count)
    assert parse(to_toml(machine), "g.toml") == machine


def test_a_machine_of_no_functions_cannot_be_generated() -> None:
    with pytest.raises(ValueError, match="at least one function"):
        generate(0)


# --- properties -----------------------------------------------------------------------------------

IDS = st.integers(0, 0xFFFF)
TEXT = st.text(st.characters(exclude_categories=["Cs"]), max_size=12)
NAMES = st.from_regex(r"[A-Za-z0-9][A-Za-z0-9._-]{0,20}", fullmatch=True)


@st.composite
def bar_sets(draw: st.DrawFn, registers: int, least: int) -> tuple[Bar, ...]:
    """Memory BARs that fit in `registers` registers, of `least` bytes or more."""
    bars: list[Bar] = []
    index = draw(st.integers(0, registers))
    while index < registers:
        wide = index + 1 < registers and draw(st.booleans())
        kind = BarKind.MEM64 if wide else BarKind.MEM32
        size = 1 << draw(st.integers(least.bit_length() - 1, 40 if wide else 31))
        bars.append(Bar(index, size, kind, draw(st.booleans())))
        index += (2 if wide else 1) + draw(st.integers(0, 2))
    return tuple(bars)


@st.composite
def msix_in(draw: st.DrawFn, bars: tuple[Bar, ...]) -> Msix | None:
    """MSI-X in one of `bars` that has the room."""
    fitting = [bar for bar in bars if bar.size >= 4096]
    if not fitting or draw(st.booleans()):
        return None
    vectors = draw(st.integers(1, 120))
    return Msix(vectors, draw(st.sampled_from(fitting)).index, 8, 2048)


MEASURED = st.dictionaries(st.integers(1, 0xEF), TEXT.filter(bool), max_size=3).map(
    lambda found: tuple(
        Measurement(index, MeasurementKind.HARDWARE_CONFIG, value) for index, value in found.items()
    )
)
CMAS = st.builds(
    Cma,
    st.sampled_from(CmaKey),
    st.sampled_from(CmaHash),
    st.sampled_from([tuple(CmaVersion), (CmaVersion.V1_2,), (CmaVersion.V1_3,)]),
    st.lists(st.integers(0, 7), min_size=1, unique=True).map(tuple),
    st.none() | st.integers(0, 2**63 - 1),
    st.just(()),
    MEASURED,
    st.sampled_from([(), (Tamper.WRONG_RANGE,)]),
) | st.builds(
    Cma,
    hash=st.sampled_from(CmaHash),
    files=st.sampled_from(
        [(CmaFiles(0, "/a", "/b"),), (CmaFiles(1, "/a", "/k"), CmaFiles(7, "/c", "/k"))]
    ),
    measurements=MEASURED,
)


@st.composite
def function_of(draw: st.DrawFn, kind: Kind, slot: int, number: int, plugged: bool) -> Function:
    """A function of `kind` with no children."""
    flags = st.booleans()
    device = kind in (Kind.ENDPOINT, Kind.RC_ENDPOINT)
    bars = draw(bar_sets(2 if kind.is_port else 6, 128 if kind.is_pcie else 16))
    ides = st.builds(
        Ide,
        st.integers(0, 0 if kind is Kind.RC_ENDPOINT else 8),
        st.integers(1, 8),
        st.integers(0, 15),
        *[flags] * 7,
    )
    protocols = st.tuples(st.integers(2, 0xFFFF), st.integers(0, 0xFF))
    doe = st.lists(protocols, max_size=3, unique=True).map(lambda pairs: Doe(tuple(pairs)))
    cma = None
    if (device or kind is Kind.UPSTREAM_PORT) and number == 0 and draw(flags):
        cma = draw(CMAS)
        doe = st.just(Doe())
    sriov = None
    if device and number == 0 and draw(flags):
        vf_bars = draw(bar_sets(6, 4096))
        # Past every function of the device, and each VF at a number of its own.
        sriov = Sriov(
            draw(st.integers(1, 40)),
            draw(IDS),
            draw(flags),
            draw(st.integers(8 if kind is Kind.ENDPOINT else 256, 600)),
            draw(st.integers(1, 3)),
            vf_bars,
            draw(msix_in(vf_bars)),
        )
    pcie = kind.is_pcie
    linked = pcie and kind is not Kind.RC_ENDPOINT
    return Function(
        kind=kind,
        slot=slot,
        function=number,
        name=draw(TEXT),
        vendor=draw(st.integers(1, 0xFFFE)),
        device=draw(IDS),
        subsystem_vendor=draw(IDS),
        subsystem_device=draw(IDS),
        class_code=0x060400 if kind.is_port else draw(st.integers(0x070000, 0xFFFFFF)),
        revision=draw(st.integers(0, 255)),
        plugged=plugged,
        link=Link(draw(st.sampled_from(LinkSpeed)), draw(st.sampled_from(LINK_WIDTHS)))
        if linked
        else None,
        pm=draw(flags),
        msi=draw(st.sampled_from([0, 1, 2, 4, 8, 16, 32])),
        flr=device and draw(flags),
        tee_io=(device or kind is Kind.UPSTREAM_PORT) and draw(flags),
        aer=pcie and draw(flags),
        ari=linked and kind is not Kind.UPSTREAM_PORT,
        acs=pcie and draw(flags),
        serial=draw(st.none() | st.integers(0, 2**64 - 1)) if pcie else None,
        bars=bars,
        msix=draw(msix_in(bars)),
        doe=draw(doe if cma is not None else st.none() | doe) if pcie else None,
        cma=cma,
        ide=draw(st.none() | ides) if pcie else None,
        sriov=sriov,
    )


@st.composite
def below_link(draw: st.DrawFn, depth: int) -> tuple[Function, ...]:
    """What is at the end of a link: nothing, an endpoint's functions or a switch."""
    plugged = draw(st.booleans())
    if depth and draw(st.integers(0, 3)) == 0:
        upstream = draw(function_of(Kind.UPSTREAM_PORT, 0, 0, plugged))
        slots = draw(st.lists(st.integers(0, 31), min_size=1, max_size=2, unique=True))
        ports = tuple(
            replace(
                draw(function_of(Kind.DOWNSTREAM_PORT, slot, 0, True)),
                children=draw(below_link(depth - 1)),
            )
            for slot in sorted(slots)
        )
        return (replace(upstream, children=ports),)
    return tuple(
        draw(function_of(Kind.ENDPOINT, 0, number, plugged))
        for number in range(draw(st.integers(0, 2)))
    )


@st.composite
def host_bridges(draw: st.DrawFn, domain: int) -> HostBridge:
    """A host bridge in a domain of its own."""
    slots = draw(st.lists(st.integers(0, 31), max_size=2, unique=True))
    functions: list[Function] = []
    for slot in sorted(slots):
        kind = draw(st.sampled_from([Kind.ROOT_PORT, Kind.RC_ENDPOINT, Kind.CONVENTIONAL]))
        plugged = kind is not Kind.CONVENTIONAL or draw(st.booleans())
        function = draw(function_of(kind, slot, 0, plugged))
        # VFs on one root bus must differ: the first device alone has some.
        function = replace(function, sriov=None if functions else function.sriov)
        if kind is Kind.ROOT_PORT:
            function = replace(function, children=draw(below_link(2)))
        functions.append(function)
    bridge = HostBridge(
        domain,
        draw(st.integers(0, 3)),
        draw(TEXT),
        draw(st.integers(0, 255)),
        draw(st.none() | st.integers(1, 2048).map(lambda count: count << 20)),
        draw(st.none() | st.integers(1, 1 << 20).map(lambda count: count << 20)),
        draw(st.none() | st.integers(1, 16).map(lambda count: count << 12)),
        tuple(functions),
    )
    return with_explicit_buses(bridge) if draw(st.booleans()) else bridge


def with_explicit_buses(bridge: HostBridge) -> HostBridge:
    """`bridge` with the number that each port gets anyway written down."""
    ranges = assign_buses(bridge)

    def explicit(functions: tuple[Function, ...], path: tuple[int, ...]) -> tuple[Function, ...]:
        return tuple(
            replace(
                function,
                secondary_bus=ranges[(*path, function.devfn)].secondary,
                children=explicit(function.children, (*path, function.devfn)),
            )
            if function.kind.is_port
            else function
            for function in functions
        )

    return replace(bridge, functions=explicit(bridge.functions, ()))


@st.composite
def machines(draw: st.DrawFn) -> Machine:
    """A valid machine."""
    parameters = st.tuples(
        st.from_regex(r"[a-z_]{1,8}", fullmatch=True), st.from_regex(r"[!-~]{0,8}", fullmatch=True)
    )
    names = draw(
        st.lists(st.from_regex(r"[a-z0-9_]{1,10}", fullmatch=True), max_size=3, unique=True)
    )
    return Machine(
        draw(NAMES),
        draw(TEXT),
        draw(st.integers(0, 2**63 - 1)),
        tuple(ModuleLoad(name, tuple(draw(st.lists(parameters, max_size=2)))) for name in names),
        tuple(draw(host_bridges(domain)) for domain in range(draw(st.integers(0, 2)))),
    )


@given(machines())
@settings(max_examples=60, deadline=None)
def test_a_machine_written_as_toml_reads_back_equal(machine: Machine) -> None:
    assert parse(to_toml(machine), "m.toml") == machine


VALUE = re.compile(r"(?<= = )(?:\"[^\"\n]*\"|0x[0-9a-f]+|\d+|true|false)|\b[a-z_]+(?= = )")
VALUES = """-1 0 1 3 7 8 64 255 256 65536 0xffffffffffffffff0 1.5 nan true false 1979-05-27
    [] [[]] [{}] {} {a=1} [[1,1]] [1,2] ' " "" "x" "4K" "3M" "99999999999T" "io" "mem64" "2.5" """
KEYS = "slot function index size kind bar vectors sriov ide tee_io plugged secondary_bus class"
SUBSTITUTES = st.sampled_from([*VALUES.split(), *KEYS.split()])


@given(st.data())
@settings(max_examples=150, deadline=None)
def test_a_changed_value_or_key_gives_a_machine_or_a_description_error(data: st.DataObject) -> None:
    text = builtin_text("server")
    spots = list(VALUE.finditer(text))
    chosen = data.draw(st.lists(st.sampled_from(spots), min_size=1, max_size=4, unique=True))
    for spot in sorted(chosen, key=lambda match: match.start(), reverse=True):
        text = text[: spot.start()] + data.draw(SUBSTITUTES) + text[spot.end() :]
    check_total(text)


@given(st.data())
@settings(max_examples=100, deadline=None)
def test_lines_lost_doubled_or_moved_give_a_machine_or_a_description_error(
    data: st.DataObject,
) -> None:
    lines = builtin_text("server").splitlines()
    for _ in range(data.draw(st.integers(1, 4))):
        at = data.draw(st.integers(0, len(lines) - 1))
        to = data.draw(st.integers(0, len(lines) - 1))
        match data.draw(st.sampled_from(["lose", "double", "move"])):
            case "lose":
                del lines[at]
            case "double":
                lines.insert(to, lines[at])
            case _:
                lines.insert(to, lines.pop(at))
    check_total("\n".join(lines))


@given(st.text(max_size=60))
@settings(max_examples=100, deadline=None)
def test_any_text_gives_a_machine_or_a_description_error(text: str) -> None:
    check_total(text)


def check_total(text: str) -> None:
    """`text` parses to a machine that survives the round trip, or is refused with a reason."""
    try:
        machine = parse(text, "m.toml")
    except DescriptionError as error:
        errors = error.errors
    else:
        assert parse(to_toml(machine), "m.toml") == machine
        return
    assert errors
    assert all(error.reason for error in errors)


# --- the guide ------------------------------------------------------------------------------------


def test_the_examples_of_the_guide_are_valid() -> None:
    blocks = re.findall(r"^```toml\n(.*?)^```", GUIDE.read_text("utf-8"), re.MULTILINE | re.DOTALL)
    assert blocks
    for block in blocks:
        machine = parse(block, "guide.toml")
        assert parse(to_toml(machine), "guide.toml") == machine


def test_the_guide_explains_every_key() -> None:
    guide = GUIDE.read_text("utf-8")
    text = to_toml(parse(FULL, "full.toml"))
    keys = set(re.findall(r"\b([a-z_0-9]+) = ", text)) | {kind.value for kind in Kind}
    assert [key for key in sorted(keys) if f"`{key}`" not in guide] == []


FULL = """
    name = "full"
    description = "every key away from its default"
    seed = 1
    modules = ["devsec_tsm"]
    [[host_bridge]]
    domain = 1
    name = "x"
    stream_pool = 1
    mem32_window = "1M"
    mem64_window = "1M"
    io_window = "4K"
    [[host_bridge.root_port]]
    slot = 1
    secondary_bus = 2
    [[host_bridge.root_port.endpoint]]
    [[host_bridge.root_port.endpoint]]
    function = 1
    name = "x"
    vendor = 1
    device = 1
    subsystem_vendor = 1
    subsystem_device = 1
    class = 1
    revision = 1
    pm = false
    msi = 1
    flr = false
    tee_io = true
    aer = true
    ari = true
    acs = true
    serial = "52-54-00-ff-fe-12-34-56"
    link = { speed = "5", width = 2 }
    bar = [{ index = 0, size = "4K", kind = "mem64", prefetch = true }]
    msix = { vectors = 2, bar = 0, table_offset = 8, pba_offset = 128 }
    doe = { protocols = [[1, 1]] }
    [host_bridge.root_port.endpoint.ide]
    link_streams = 1
    selective_streams = 2
    address_associations = 2
    tee_limited = false
    ide_km = false
    selective_config = true
    flow_through = true
    partial_header_encryption = true
    aggregation = true
    pcrc = true
    [host_bridge.root_port.endpoint.sriov]
    total_vfs = 2
    vf_device = 2
    first_vf_offset = 2
    vf_stride = 2
    [[host_bridge.root_port]]
    slot = 3
    [[host_bridge.root_port.endpoint]]
    doe = true
    [host_bridge.root_port.endpoint.cma]
    key = "ecdsa-p256"
    hash = "sha-256"
    versions = ["1.2"]
    slots = [1]
    seed = 1
    tamper = ["bad-signature"]
    measurements = [{ index = 1, kind = "rom", value = "x" }]
    [[host_bridge.root_port]]
    slot = 4
    [[host_bridge.root_port.endpoint]]
    doe = true
    cma = { files = [{ slot = 1, chain = "a.pem", key = "b.pem" }] }
    [[host_bridge.conventional]]
    slot = 2
    plugged = false
    """
