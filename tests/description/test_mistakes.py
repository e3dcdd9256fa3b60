# SPDX-License-Identifier: MIT
"""Mistakes in descriptions: each told with its key and the reason, all at once."""

from __future__ import annotations

import pytest

from tests.description.texts import endpoint
from tsmfs.description import DescriptionError, Mistake, parse
from tsmfs.description.read import MAX_DEPTH


def mistakes(text: str) -> list[str]:
    """What `parse` finds wrong in `text`, without the name of the file."""
    with pytest.raises(DescriptionError) as caught:
        parse(text, "m.toml")
    lines = str(caught.value).splitlines()
    assert lines == [str(error) for error in caught.value.errors]
    assert all(line.startswith("m.toml: ") for line in lines)
    return [line.removeprefix("m.toml: ") for line in lines]


E = "host_bridge[0].root_port[0].endpoint[0]"
KEY_CHOICES = 'key: must be one of "ecdsa-p256", "ecdsa-p384", "rsa-3072", not "p256"'


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
                    'measurements = [{ index = 0, value = "a" }, { index = 1, value = "a" }]',
                    "measurements[0].index: must be in 1..239, or 253 for the manifest, not 0",
                ),
                (
                    'measurements = [{ index = "a", value = "a" }, { index = 1, value = "a" }]',
                    'measurements[0].index: must be an integer, not "a"',
                ),
                ('measurements = [{ value = "a" }]', "measurements[0].index: is required"),
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
