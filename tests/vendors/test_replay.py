"""Every adapter with its maker's tool replayed: executables on PATH that answer as the tool would, over time."""

from __future__ import annotations

import json
import os
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import msgspec
import psutil
import pytest
from helpers import flagperf
from vendor_texts import OWN, adapters

from flagperf.accelerator import Accelerator
from flagperf.detection import Host, Surroundings
from flagperf.registry import Registries
from flagperf.schema.manifest import Tool
from flagperf.tools import run_tool

HANG = "hang"
SLEEP = f"3612.{os.getpid()}"
"""Seconds, to know the hung tool's child by; other ones in each of several processes that run tests at once."""
Replay = Callable[..., Host]


@pytest.fixture
def replay(tmp_path: Path) -> Replay:
    """Return what puts a tool on a PATH of its own; it gives its answers one after the other, then the last again.

    An answer is a text, a text with an exit status, or HANG.
    """

    def put(tool: str, answers: Sequence[str | tuple[str, int]]) -> Host:
        place = tmp_path / f"{tool}.answers"
        place.mkdir()
        for number, answer in enumerate(answers):
            text, status = answer if isinstance(answer, tuple) else (answer, 0)
            (place / f"{number}.out").write_text(text)
            (place / f"{number}.status").write_text(str(status))
        script = tmp_path / "bin" / tool
        script.parent.mkdir(exist_ok=True)
        script.write_text(
            "#!/bin/sh\n"
            f"cd {place}\n"
            "n=$(cat count 2>/dev/null || echo 0)\n"
            f'[ "$n" -ge {len(answers)} ] && n={len(answers) - 1}\n'
            "echo $((n + 1)) > count\n"
            f'[ "$(cat $n.out)" = {HANG} ] && sleep {SLEEP}\n'
            "cat $n.out\n"
            "exit $(cat $n.status)\n"
        )
        script.chmod(0o755)
        return Host(root=tmp_path, environ={"PATH": f"{tmp_path / 'bin'}:/usr/bin:/bin"}, version=lambda _: None)

    return put


def adapter(name: str, host: Host, timeout: float = 30.0) -> Accelerator:
    """Return a vendor's adapter on a host, without a library to ask, its tools given so many seconds."""
    manifest = Registries().vendors.get(name)
    tools = [msgspec.structs.replace(tool, timeout=timeout) for tool in manifest.tools]
    known = adapters()[name].around
    found = type(adapters()[name])(
        msgspec.structs.replace(manifest, tools=tools), msgspec.structs.replace(known, host=host)
    )
    assert isinstance(found, Accelerator)
    return found


@pytest.mark.parametrize("vendor", OWN)
def test_the_replayed_tools_card_is_listed_as_its_makers(vendor: str, replay: Replay) -> None:
    text, expected = OWN[vendor]
    host = replay(adapters()[vendor].manifest.tools[0].command[0], [text])
    found = adapter(vendor, host)
    (device,) = found.devices()
    assert (device.vendor, device.index, device.name, device.state) == (vendor, 0, expected["name"], "ok")
    assert device.memory_total_mib == expected["memory_total_mib"]
    assert found.slots() == 1
    # Found, but there is no torch for it here.
    assert found.availability().reason.startswith(("torch isn't installed", "torch's plug-in"))


def test_the_command_shows_every_makers_cards(tmp_path: Path, replay: Replay) -> None:
    # A machine with hy-smi has rocm-smi from the same maker: then no AMD card is believed.
    names = {adapters()[vendor].manifest.tools[0].command[0]: vendor for vendor in OWN if vendor != "hygon"}
    for tool, vendor in names.items():
        host = replay(tool, [OWN[vendor][0]])
    done = flagperf("devices", "--json", env={"PATH": host.environ["PATH"], "HOME": str(tmp_path)})
    assert done.returncode == 0, done.stderr
    states = {state["name"]: state["absent"] for state in json.loads(done.stdout)["vendors"]}
    assert [name for name, absent in states.items() if absent and name in OWN] == []
    shown = {(device["vendor"], device["name"]) for device in json.loads(done.stdout)["devices"]}
    # Intel and Kunlunxin call their tool alike, so that one file on PATH can be of one of them only.
    assert shown >= {(vendor, OWN[vendor][1]["name"]) for vendor in names.values()}
    assert len([vendor for vendor, _ in shown if vendor != "cpu"]) == len(names)


def table(*cards: tuple[str, str, str]) -> str:
    rows = "".join(
        f"| {number}    Iluvatar BI-V100         | 00000000:1{number}:00.0     | 1500MHz   1200MHz    |\n"
        f"| 0%   {temperature:5} P0    {power:9} / 250W   | 513MiB / 32768MiB    | {load:9} Default    |\n"
        "+-------------------------------+----------------------+----------------------+\n"
        for number, (temperature, power, load) in enumerate(cards)
    )
    return (
        "| GPU  Name                     | Bus-Id               | Clock-SM  Clock-Mem  |\n"
        "| Fan  Temp  Perf  Pwr:Usage/Cap|      Memory-Usage    | GPU-Util  Compute M. |\n"
        "|===============================+======================+======================|\n" + rows
    )


IDLE, BUSY, DEAD = ("30C", "55W", "0%"), ("71C", "240W", "99%"), ("0C", "65535W", "100%")


def test_load_rises_a_card_dies_and_the_tool_begins_to_hang(replay: Replay) -> None:
    host = replay("ixsmi", [table(IDLE, IDLE), table(BUSY, BUSY), table(BUSY, DEAD), HANG])
    iluvatar = adapter("iluvatar", host)
    seen = [iluvatar.sample() for _ in range(3)]
    assert [[card.get("power_w") for card in cards] for cards in seen] == [[55, 55], [240, 240], [240, None]]
    assert [card["utilisation_pct"] for card in seen[1]] == [99, 99]
    assert "65535" in seen[2][1]["faulty"] and "temperature_c" not in seen[2][1]
    hung = adapter("iluvatar", host, timeout=0.5)
    with pytest.raises(OSError, match="no answer within"):
        hung.sample()
    asleep = [p for p in psutil.process_iter(["cmdline"]) if p.info["cmdline"] == ["sleep", SLEEP]]
    assert not psutil.wait_procs(asleep, timeout=5)[1]


def test_a_dead_card_is_shown_and_gets_no_rank(replay: Replay) -> None:
    found = adapter("iluvatar", replay("ixsmi", [table(BUSY, DEAD)]))
    assert [device.state for device in found.devices()] == ["ok", "faulty: its power reads 65535 W"]
    assert found.slots() == 1


def test_a_tool_that_names_anothers_card_is_refused(replay: Replay) -> None:
    found = adapter("nvidia", replay("nvidia-smi", [table(IDLE)]))
    assert found.devices() == []
    assert "iluvatar" in found.availability().reason and "stand-in" in found.availability().reason


def test_a_tool_of_two_makers_is_believed_by_the_names_it_prints_only(replay: Replay) -> None:
    host = replay("rocm-smi", [OWN["hygon"][0]])
    assert adapter("amd", host).devices() == []
    assert [device.name for device in adapter("hygon", host).devices()] == ["K100_AI"]


@pytest.mark.parametrize(
    ("answer", "told"),
    [
        (("NVIDIA-SMI has failed because it couldn't communicate with the NVIDIA driver.", 9), "couldn't communicate"),
        (("ERROR: Driver not initialized", 0), "not initialized"),
        (("", 0), "nothing was printed"),
        (("", 127), "status 127"),
    ],
)
def test_a_tool_that_fails_gives_its_reason(answer: tuple[str, int], told: str, replay: Replay) -> None:
    found = adapter("nvidia", replay("nvidia-smi", [answer]))
    assert found.devices() == []
    assert told in found.availability().reason


def test_the_next_tool_is_asked_where_one_has_no_answer(replay: Replay) -> None:
    replay("mx-smi", [("mx-smi: error while loading shared libraries", 127)])
    (device,) = adapter("metax", replay("ht-smi", [OWN["metax"][0]])).devices()
    assert device.name == "MetaX C550"


def test_visible_devices_limit_the_ranks_by_number_or_uuid(replay: Replay) -> None:
    text = "index, name, uuid, memory.total [MiB]\n" + "".join(
        f"{n}, NVIDIA X, GPU-{n}aaaaaaa-0000, 80000 MiB\n" for n in range(4)
    )
    host = replay("nvidia-smi", [text])
    for visible, slots in (("0,2", 2), ("", 0), ("GPU-3aaaaaaa", 1), ("7", 0)):
        limited = msgspec.structs.replace(host, environ={**host.environ, "CUDA_VISIBLE_DEVICES": visible})
        assert adapter("nvidia", limited).slots() == slots, visible
    assert adapter("nvidia", host).slots() == 4


def test_the_rated_peak_is_that_of_the_chip_and_none_where_cards_differ(replay: Replay) -> None:
    header = "index, name, memory.total [MiB]\n"
    h100, other = "{}, NVIDIA H100 80GB HBM3, 81559 MiB\n", "{}, NVIDIA Unheard-of, 81559 MiB\n"
    host = replay("nvidia-smi", [header + h100.format(0) + h100.format(1), header + h100.format(0) + other.format(1)])
    same = adapter("nvidia", host)
    assert same.rated("bf16") == pytest.approx(989.4e12)
    assert same.rated("fp4") is None
    assert same.facts()["chips"] == ["H100-80GB-SXM5", "H100-80GB-SXM5"]
    mixed = adapter("nvidia", host)
    assert mixed.rated("bf16") is None
    assert "no chip in the table" in mixed.facts()["chips"][1]


def test_a_tool_has_so_much_time_and_output_and_leaves_nothing_behind(replay: Replay, tmp_path: Path) -> None:
    host = replay("slow", [HANG])
    began = time.monotonic()
    output = run_tool(["slow"], 0.3, host.environ)
    assert (output.status, output.problem) == (None, "slow: no answer within 0.3 s")
    assert time.monotonic() - began < 60
    flood = run_tool(["yes", "x" * 1000], 60, {"PATH": "/usr/bin:/bin"})
    assert "MiB of output" in flood.problem
    missing = run_tool(["no-such-tool"], 1, host.environ)
    assert missing.problem == "no-such-tool isn't on PATH"
    words = run_tool(
        ["sh", "-c", "echo $LC_ALL; echo oh >&2; exit 3"], 30, {"PATH": "/usr/bin:/bin", "LC_ALL": "zh_CN"}
    )
    assert (words.stdout, words.stderr, words.status) == (b"C\n", b"oh\n", 3)


def test_surroundings_without_others_still_work() -> None:
    manifest = msgspec.structs.replace(Registries().vendors.get("biren"), tools=[Tool(command=["no-such-tool"])])
    found: Any = type(adapters()["biren"])(manifest, Surroundings(host=Host(root=Path("/nonexistent"))))
    assert found.devices() == [] and "no marker" in found.availability().reason
    assert found.availability().absent
