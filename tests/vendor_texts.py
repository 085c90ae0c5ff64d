"""Texts of vendors' tools: the captured ones beside the checkout, if they are there, and what every parser takes."""

from __future__ import annotations

import functools
import json
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from flagperf.parsing.text import plain_lines
from flagperf.registry import Registries
from flagperf.schema.reading import Reading, Readings
from flagperf.vendor import Vendor

CAPTURED = Path(__file__).parents[2] / "shared" / "data" / "vendor_samples"
FIELDS = ("memory_total_mib", "memory_used_mib", "utilisation_pct", "power_w", "temperature_c")

_NUMBER = re.compile(r"\d+(?:\.\d+)?")
_FACTORS = [1, 1e-3, 1e3, *(2.0**power for power in (-20, -10, 10, 20))]


@functools.cache
def adapters() -> dict[str, Vendor]:
    """Return every adapter that has a tool."""
    vendors = Registries().vendors
    return {manifest.name: vendors.adapter(manifest.name) for manifest in vendors.all() if manifest.tools}


def captured() -> list[dict[str, Any]]:
    """Return the samples as their manifest tells them; none where they aren't."""
    manifest = CAPTURED / "manifest.json"
    samples: list[dict[str, Any]] = json.loads(manifest.read_text("utf-8"))["samples"] if manifest.is_file() else []
    return samples


def invented(text: str, said: Readings) -> Iterator[str]:
    """Return the values of a reading that aren't in the text, but for a change of unit or a sum of used and free."""
    text = "\n".join(plain_lines(text))
    numbers = {float(number[:40]) for source in (text, text.replace(",", "")) for number in _NUMBER.findall(source)}
    known = {round(number * factor, 6) for number in numbers for factor in _FACTORS}
    for device in said.devices:
        for field, value in _numbers(device):
            if round(value, 6) in known or any(abs(value - one) <= 1e-6 * max(1, abs(value)) for one in known):
                continue
            used = device.memory_used_mib
            if field == "memory_total_mib" and used is not None and round(value - used, 6) in known:
                continue
            yield f"{field}={value} of device {device.index}"


def _numbers(device: Reading) -> Iterator[tuple[str, float]]:
    for field in device.__struct_fields__:
        value = getattr(device, field)
        if field != "index" and isinstance(value, int | float):
            yield field, abs(value)


def _box(title: str, header: str, line: str) -> str:
    """Return a table of boxes in the layout that most tools have."""
    border = "+-------------------------------+----------------------+----------------------+"
    return "\n".join([border, f"| {title} |", border, *header.splitlines(), border, *line.splitlines(), border, ""])


_USUAL = (
    "| GPU  Name        Persistence-M| Bus-Id        Disp.A | Volatile Uncorr. ECC |\n"
    "| Fan  Temp  Perf  Pwr:Usage/Cap|         Memory-Usage | GPU-Util  Compute M. |"
)

OWN: dict[str, tuple[str, dict[str, Any]]] = {
    "nvidia": (
        "index, name, memory.total [MiB], memory.used [MiB], utilization.gpu [%], power.draw [W], temperature.gpu\n"
        "0, NVIDIA H100 80GB HBM3, 81559 MiB, 1200 MiB, 12 %, 301.25 W, 44\n",
        {
            "name": "NVIDIA H100 80GB HBM3",
            "memory_total_mib": 81559,
            "memory_used_mib": 1200,
            "utilisation_pct": 12,
            "power_w": 301.25,
            "temperature_c": 44,
        },
    ),
    "iluvatar": (
        _box(
            "IX-ML: 4.2.0   Driver Version: 4.2.0",
            _USUAL,
            "| 0    Iluvatar BI-V150         | 00000000:13:00.0     | 1500MHz   1600MHz    |\n"
            "| 0%   41C   P0    121W / 350W  | 900MiB / 32768MiB    | 63%       Default    |",
        ),
        {
            "name": "Iluvatar BI-V150",
            "memory_total_mib": 32768,
            "memory_used_mib": 900,
            "utilisation_pct": 63,
            "power_w": 121,
            "temperature_c": 41,
        },
    ),
    "ascend": (
        "+------------------+---------------+--------------------------------------------------+\n"
        "| npu-smi 24.1.0                   Version: 24.1.0                                    |\n"
        "+------------------+---------------+--------------------------------------------------+\n"
        "| NPU   Name       | Health        | Power(W)  Temp(C)         Hugepages-Usage(page)  |\n"
        "| Chip             | Bus-Id        | AICore(%) Memory-Usage(MB)  HBM-Usage(MB)        |\n"
        "+==================+===============+==================================================+\n"
        "| 0     910B3      | OK            | 101.4     52              0    / 0               |\n"
        "| 0                | 0000:C1:00.0  | 37        0    / 0        8200 / 65536           |\n"
        "+==================+===============+==================================================+\n",
        {
            "name": "910B3",
            "memory_total_mib": 65536,
            "memory_used_mib": 8200,
            "utilisation_pct": 37,
            "power_w": 101.4,
            "temperature_c": 52,
        },
    ),
    "cambricon": (
        _box(
            "CNMON v5.10.30    Driver v5.10.30",
            "| Card  VF  Name       Firmware |               Bus-Id | Util        Ecc-Error |\n"
            "| Fan   Temp      Pwr:Usage/Cap |         Memory-Usage | Mode     Compute-Mode |",
            "| 0     /   MLU370-X8    v1.1.6 |         0000:39:00.0 | 71%               0  |\n"
            "|  0%   48C        180 W/ 250 W |  9000 MiB/ 23374 MiB | FULL         Default |",
        ),
        {
            "name": "MLU370-X8",
            "memory_total_mib": 23374,
            "memory_used_mib": 9000,
            "utilisation_pct": 71,
            "power_w": 180,
            "temperature_c": 48,
        },
    ),
    "kunlunxin": (
        _box(
            "XPU-SMI   Driver Version: 5.20.0   XPU-RT Version: 5.20.0",
            "| XPU  Name        Persistence-M| Bus-Id        Disp.A | Volatile Uncorr. ECC |\n"
            "| Fan  Temp  Perf  Pwr:Usage/Cap|         Memory-Usage | XPU-Util  Compute M. |\n"
            "|                               |             L3-Usage |            SR-IOV M. |",
            "|   0  P800 OAM           N/A   | 00000000:03:00.0 N/A |                    0 |\n"
            "| N/A   51C  N/A    233W / 400W |  50000MiB / 98304MiB |     88%      Default |\n"
            "|                               |     64MiB /    96MiB |             Disabled |",
        ),
        {
            "name": "P800 OAM",
            "memory_total_mib": 98304,
            "memory_used_mib": 50000,
            "utilisation_pct": 88,
            "power_w": 233,
            "temperature_c": 51,
        },
    ),
    "mthreads": (
        '{"Driver Version": "3.3.8", "GPU": [{"Index": "0", "Product Name": "MTT S5000", "FB Memory Usage": {"Total": '
        '"81920MiB", "Used": "700MiB"}, "Utilization": {"Gpu": "9%"}, "Temperature": {"GPU Current Temp": "40C"}, '
        '"Power Readings": {"Power Draw ": "150.5W"}}]}',
        {
            "name": "MTT S5000",
            "memory_total_mib": 81920,
            "memory_used_mib": 700,
            "utilisation_pct": 9,
            "power_w": 150.5,
            "temperature_c": 40,
        },
    ),
    "metax": (
        _box(
            "MX-SMI 2.2.8   Kernel Mode Driver Version: 3.0.11",
            "| GPU     NAME         Persistence-M | Bus-id              | GPU-Util      sGPU-M |\n"
            "| Temp    Pwr:Usage/Cap         Perf | Memory-Usage        | GPU-State            |",
            "| 0       MetaX C550             Off | 0000:01:00.0        | 45%           Native |\n"
            "| 61C     310W / 450W             P0 | 30000/65536 MiB     | Available            |",
        ),
        {
            "name": "MetaX C550",
            "memory_total_mib": 65536,
            "memory_used_mib": 30000,
            "utilisation_pct": 45,
            "power_w": 310,
            "temperature_c": 61,
        },
    ),
    "hygon": (
        '{"card0": {"Card Series": "K100_AI", "Average Graphics Package Power (W)": "210.0", "": "", '
        '"Temperature (Sensor edge) (C)": "55.0", "HCU use (%)": "33.5", "vram Total Memory (MiB)": "65520", '
        '"vram Total Used Memory (MiB)": "4100"}}',
        {
            "name": "K100_AI",
            "memory_total_mib": 65520,
            "memory_used_mib": 4100,
            "utilisation_pct": 33.5,
            "power_w": 210,
            "temperature_c": 55,
        },
    ),
    "enflame": (
        _box(
            "EFSMI: 1.6.3   Driver Ver: 1.6.3",
            "| DEV    NAME                 | FW VER            | BUS-ID      ECC           |\n"
            "| TEMP   Lpm   Pwr(Usage/Cap) | Mem      GCU Virt | DUsed       SN            |",
            "| 0      Enflame S60          | 31.5.3            | 00:2e:00.0  Disable       |\n"
            "| 52℃    LP0   140W  300W     | 49120MiB  Disable | 28.5%       A018K30520031 |",
        ),
        {
            "name": "Enflame S60",
            "memory_total_mib": 49120,
            "memory_used_mib": None,
            "utilisation_pct": 28.5,
            "power_w": 140,
            "temperature_c": 52,
        },
    ),
    "biren": (
        "index, name, memory.total [MiB], memory.used [MiB], power.draw [W]\n0, Biren106M, 65536 MiB, 10 MiB, 90 W\n",
        {
            "name": "Biren106M",
            "memory_total_mib": 65536,
            "memory_used_mib": 10,
            "utilisation_pct": None,
            "power_w": 90,
            "temperature_c": None,
        },
    ),
    "thead": (
        "timestamp, index, name, memory.total [MiB], memory.used [MiB]\n"
        "2026/01/02 03:04:05.678, 0, PPU-ZW810E, 98304 MiB, 49 MiB\n",
        {
            "name": "PPU-ZW810E",
            "memory_total_mib": 98304,
            "memory_used_mib": 49,
            "utilisation_pct": None,
            "power_w": None,
            "temperature_c": None,
        },
    ),
    "amd": (
        '{"card0": {"Card Series": "AMD Instinct MI300X", "Max Graphics Package Power (W)": "750.0", '
        '"Average Graphics Package Power (W)": "410.0", "Temperature (Sensor edge) (C)": "N/A", '
        '"Temperature (Sensor junction) (C)": "61.0", "GPU use (%)": "99", "VRAM Total Memory (B)": "206141652992", '
        '"VRAM Total Used Memory (B)": "1048576"}, "system": {"Driver version": "6.3.6"}}',
        {
            "name": "AMD Instinct MI300X",
            "memory_total_mib": 196592,
            "memory_used_mib": 1,
            "utilisation_pct": 99,
            "power_w": 410,
            "temperature_c": 61,
        },
    ),
    "intel": (
        '{"device_list": [{"device_id": 0, "device_name": "Intel(R) Data Center GPU Max 1550", '
        '"pci_bdf_address": "0000:29:00.0"}]}',
        {
            "name": "Intel(R) Data Center GPU Max 1550",
            "memory_total_mib": None,
            "memory_used_mib": None,
            "utilisation_pct": None,
            "power_w": None,
            "temperature_c": None,
        },
    ),
    "gaudi": (
        "index, name, power.draw [W], temperature.aip [C], utilization.aip [%], memory.used [MiB], memory.total [MiB]\n"
        "0, HL-225, 320 W, 44 C, 77 %, 768 MiB, 98304 MiB\n",
        {
            "name": "HL-225",
            "memory_total_mib": 98304,
            "memory_used_mib": 768,
            "utilisation_pct": 77,
            "power_w": 320,
            "temperature_c": 44,
        },
    ),
}
"""A text of our own for each vendor, in a layout of its tool, and what it says of its one device."""
