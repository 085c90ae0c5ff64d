"""What tools print: captured texts and our own, and the traps that other firmware sets."""

from __future__ import annotations

import json
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from typer.testing import CliRunner
from vendor_texts import CAPTURED, FIELDS, OWN, adapters, captured, invented

from flagperf.cli.app import app
from flagperf.parsing.text import decode

MORE_THAN_EXPECTED = {"amd/amd-smi-metric-usage_1.txt": "the text has a second device, which its manifest leaves out"}


def same(found: float | str | None, expected: float | str | None) -> bool:
    if isinstance(expected, int | float) and isinstance(found, int | float):
        return abs(found - expected) <= 0.06  # the manifest rounds bytes to tenths of a MiB
    return found == expected


@pytest.mark.skipif(not CAPTURED.is_dir(), reason="the captured outputs aren't beside this checkout")
@pytest.mark.parametrize("sample", captured(), ids=lambda sample: sample["file"])
def test_a_captured_output_is_read_by_field(sample: dict[str, Any]) -> None:
    text = decode((CAPTURED / sample["file"]).read_bytes())
    said = adapters()[sample["vendor"]].parse(text, sample["command"])
    expected = sample["expected"]["devices"]
    wrong = [
        f"{field} of {wanted['index']}: {getattr(device, field)!r}, expected {wanted.get(field)!r}"
        for device, wanted in zip(said.devices, expected, strict=False)
        for field in ("index", "name", *FIELDS)
        if not same(getattr(device, field), wanted.get(field))
    ]
    assert not wrong
    assert len(said.devices) == len(expected) or sample["file"] in MORE_THAN_EXPECTED
    assert [bool(device.faulty) for device in said.devices[: len(expected)]] == [
        wanted.get("faulty", False) for wanted in expected
    ]
    if "error" in sample["tool"]:
        assert said.error
    assert not list(invented(text, said))


@pytest.mark.parametrize("vendor", OWN)
@pytest.mark.parametrize("ending", ["\n", "\r\n", "\r\r\n"], ids=["LF", "CRLF", "CRCRLF"])
def test_our_own_text_is_read_by_field(vendor: str, ending: str) -> None:
    text, expected = OWN[vendor]
    noisy = f"WARNING: the daemon isn't running\n2026-11-22 06:00:00\n{text}"
    said = adapters()[vendor].parse(decode(noisy.replace("\n", ending).encode()))
    assert said.error is None
    (device,) = said.devices
    assert {field: getattr(device, field) for field in expected} == expected
    assert device.index == 0


def test_every_adapter_with_a_tool_has_a_text_here() -> None:
    assert set(OWN) == set(adapters()) - {"simchip"}


NVIDIA = """\
| GPU  Name                 Persistence-M | Bus-Id          Disp.A | Volatile Uncorr. ECC |
| Fan  Temp   Perf          Pwr:Usage/Cap |           Memory-Usage | GPU-Util  Compute M. |
|=========================================+========================+======================|
|   0  NVIDIA H100 80GB HBM3          On  |   00000000:00:09.0 Off |                    0 |
| N/A   59C    P0            {power} |   19818MiB /  81559MiB |    {util}      Default |
+-----------------------------------------+------------------------+----------------------+
"""


@pytest.mark.parametrize(
    ("power", "watts"),
    [
        ("629W /  700W", 629), ("N/A /  700W", None), ("ERR! /  700W", None), ("Unknown Error /  700W", None),
        ("[N/A] / [N/A]", None), ("629 / 700", 629), ("629.25 W/700 W", 629.25), ("-", None), ("0W / 700W", 0),
    ],
)  # fmt: skip
def test_a_power_cell(power: str, watts: float | None) -> None:
    (device,) = adapters()["nvidia"].parse(NVIDIA.format(power=power, util="100%")).devices
    assert device.power_w == watts
    assert (device.temperature_c, device.memory_used_mib) == (59, 19818)


@pytest.mark.parametrize(
    ("util", "percent"), [("100%", 100), ("N/A", None), ("101%", None), ("0 %", 0), ("ERR!", None)]
)
def test_a_utilisation_cell(util: str, percent: float | None) -> None:
    (device,) = adapters()["nvidia"].parse(NVIDIA.format(power="1W / 2W", util=util)).devices
    assert device.utilisation_pct == percent


def test_a_card_that_answers_in_sentinels_is_faulty_and_keeps_no_value() -> None:
    (device,) = adapters()["nvidia"].parse(NVIDIA.format(power="65535W / 700W", util="100%")).devices
    assert device.faulty and "65535" in device.faulty
    assert (device.power_w, device.temperature_c, device.utilisation_pct) == (None, None, None)
    assert device.memory_total_mib == 81559


@pytest.mark.parametrize(
    ("header", "row", "total"),
    [
        ("memory.total [MiB]", "16384 MiB", 16384), ("memory.total [GiB]", "16", 16384),
        ("memory.total", "16 GiB", 16384), ("memory.total (KiB)", "16777216", 16384),
        ("memory.total (B)", "17179869184", 16384), ("memory.total", "xxxxx MiB", None),
        ("memory.total", "[Not Supported]", None), ("memory.total", "16384 W", None),
        ("memory.total", "1e400 MiB", None), ("memory.total", '"16,384 MiB"', 16384),
    ],
)  # fmt: skip
def test_memory_in_any_unit(header: str, row: str, total: float | None) -> None:
    (device,) = adapters()["biren"].parse(f"name, index, {header}\nBiren106, 3, {row}\n").devices
    assert (device.index, device.memory_total_mib) == (3, total)


@pytest.mark.parametrize(("written", "degrees"), [("39 C", 39), ("34℃", 34), ("35", 35), ("N/A", None), ("-", None)])
def test_a_temperature_with_and_without_its_unit(written: str, degrees: float | None) -> None:
    text = OWN["enflame"][0].replace("52℃ ", f"{written:<4}")
    (device,) = adapters()["enflame"].parse(text).devices
    assert (device.temperature_c, device.power_w) == (degrees, 140)


def test_two_chips_of_one_ascend_card_are_two_devices() -> None:
    text = OWN["ascend"][0].replace("| Chip             |", "| Chip  Phy-ID     |")
    first = text.splitlines()[6:8]
    first[1] = first[1].replace("| 0                |", "| 0     6          |")
    second = [first[0].replace("101.4", "-    "), first[1].replace("| 0     6          |", "| 1     7          |")]
    said = adapters()["ascend"].parse("\n".join([*text.splitlines()[:6], *first, *second]))
    assert [(d.index, d.power_w, d.facts["npu_id"], d.facts["chip_id"]) for d in said.devices] == [
        (6, 101.4, 0, 0),
        (7, None, 0, 1),
    ]


def test_processes_are_those_of_their_device() -> None:
    text = NVIDIA.format(power="1W / 2W", util="3%") + (
        "| Processes:                                                       GPU Memory |\n"
        "|  GPU   GI   CI        PID   Type   Process name                  Usage      |\n"
        "|=============================================================================|\n"
        "|    0   N/A  N/A     12345      C   python train.py                  1490MiB |\n"
        "|    0   N/A  N/A     12346    C+G   /usr/bin/x                           N/A |\n"
    )
    (device,) = adapters()["nvidia"].parse(text).devices
    assert [(p.pid, p.name, p.memory_mib) for p in device.processes or []] == [
        (12345, "python train.py", 1490),
        (12346, "/usr/bin/x", None),
    ]


def test_a_list_without_a_header_is_read_by_its_command_line_only() -> None:
    text = "1, 30, Iluvatar BI-V100, 32768 MiB\n"
    iluvatar = adapters()["iluvatar"]
    assert iluvatar.parse(text).devices == []
    (device,) = iluvatar.parse(
        text, "ixsmi --query-gpu=index,temperature.gpu,name,memory.total --format=csv,noheader"
    ).devices
    assert (device.index, device.temperature_c, device.memory_total_mib) == (1, 30, 32768)


def test_a_row_that_was_cut_off_loses_its_last_value() -> None:
    said = adapters()["gaudi"].parse(
        "index, name, memory.used [MiB], power.draw [W]\n0, HL-225, 768 MiB, 320 W\n1, HL-225, 7"
    )
    assert [device.memory_used_mib for device in said.devices] == [768, None]


@pytest.mark.parametrize(
    ("text", "told"),
    [
        ("NVIDIA-SMI has failed because it couldn't communicate with the NVIDIA driver.", "communicate"),
        ("dcmi module initialize failed. ret is -8005", "-8005"),
        ("ERROR:root:Driver not initialized (amdgpu not found in modules)", "not initialized"),
        ("bash: npu-smi: command not found", "not found"),
        ("bash: npu-smi: 未找到命令", "未找到"),
        ("bash：npu-smi：找不到命令", "找不到"),
        ("No devices were found", "No devices"),
        ("Unable to determine the device handle for GPU 0000:3D:00.0: GPU is lost.", "lost"),
        ("", "nothing was printed"),
    ],
)
def test_a_complaint_is_the_error_for_every_vendor(text: str, told: str) -> None:
    for name, adapter in adapters().items():
        said = adapter.parse(text)
        assert (said.devices, told in (said.error or "")) == ([], True), name


def test_chinese_in_another_encoding_is_still_text() -> None:
    assert decode("未找到命令".encode("gb18030")) == "未找到命令"
    assert decode("\ufeffGPU 0".encode("utf-16-le")) == "GPU 0"
    assert decode("34℃".encode()[:-1]).startswith("34")


@pytest.mark.parametrize(
    "junk", ["|" * 2000 + "\n", "a: b\n", "{[" * 500, "<gpu>" * 400, "1 2 3 4\n", ",,,\n", "\x1b[", "N/A / "]
)
def test_megabytes_of_junk_are_no_device(junk: str) -> None:
    """Were it not linear in the length, the suite's own time-out would end it."""
    text = junk * (2**20 // len(junk))
    for name in ("nvidia", "ascend", "amd", "enflame", "kunlunxin", "intel"):
        assert adapters()[name].parse(text).devices == [], name


@settings(max_examples=60, suppress_health_check=list(HealthCheck))
@given(
    order=st.permutations(["index", "name", "memory.total [MiB]", "power.draw [W]", "extra"]), cards=st.integers(1, 20)
)
def test_columns_may_stand_in_any_order(order: list[str], cards: int) -> None:
    rows = [
        {
            "index": f"{n}",
            "name": f"NVIDIA X{n}",
            "memory.total [MiB]": f"{1000 + n} MiB",
            "power.draw [W]": f"{50 + n}.5 W",
        }
        for n in range(cards)
    ]
    lines = [", ".join(order), *(", ".join(row.get(column, "N/A") for column in order) for row in rows)]
    said = adapters()["nvidia"].parse("\n".join(lines))
    assert [(d.index, d.name, d.memory_total_mib, d.power_w) for d in said.devices] == [
        (n, f"NVIDIA X{n}", 1000 + n, 50.5 + n) for n in range(cards)
    ]


def parsed(*arguments: str, given: str | None = None) -> tuple[int, str]:
    done = CliRunner().invoke(app, ["vendor", "parse", *arguments], input=given)
    return done.exit_code, done.stdout


def test_the_command_reads_standard_input_and_prints_json() -> None:
    text, expected = OWN["metax"]
    status, printed = parsed("metax", "-", "--json", given=text)
    assert status == 0
    assert json.loads(printed) == {"devices": [{"index": 0, **expected}], "error": None}


def test_the_command_prints_a_table_for_a_person() -> None:
    status, printed = parsed("metax", "-", given=OWN["metax"][0])
    assert status == 0
    assert "MetaX C550" in printed and "30,000" in printed and "driver 3.0.11" in printed
