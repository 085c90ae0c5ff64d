"""Links between namespaces: as fast as they are made, gone afterwards, and told where they can't be had."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from contextlib import nullcontext
from pathlib import Path

import pytest

from flagperf import links, plan
from flagperf.errors import FlagPerfError, Unavailable, UsageError
from flagperf.plan import Options
from flagperf.registry import Registries
from flagperf.schema.link import Link
from flagperf.schema.trial import Nodes

BYTES = 2_000_000
TALK = f"""
import socket, sys, time
from flagperf import links
place = int(sys.argv[1])
links.enter(sys.argv[2], place)
if place == 0:
    server = socket.create_server((links.address(0), 9000))
    print("ready", flush=True)
    peer, _ = server.accept()
    left, began = {BYTES}, None
    while left:
        left -= len(peer.recv(min(left, 65536)))
        began = began or time.perf_counter()
    print(time.perf_counter() - began, flush=True)
else:
    socket.create_connection((links.address(0), 9000)).sendall(bytes({BYTES}))
"""


@pytest.fixture
def root() -> None:
    """Skip, with the reason, where links can't be shaped."""
    try:
        with links.network(1, Link(rate=1e9)):
            pass
    except FlagPerfError as error:
        pytest.skip(str(error))


def namespaces() -> list[str]:
    return sorted(path.name for path in Path("/run/netns").glob(f"flagperf-{os.getpid()}-*"))


def bits_a_second(link: Link) -> float:
    """Return how fast one rank's bytes come to another's."""
    with links.network(2, link) as network:
        command = [sys.executable, "-c", TALK]
        receiver = subprocess.Popen([*command, "0", network.name], stdout=subprocess.PIPE, text=True)
        assert receiver.stdout is not None and receiver.stdout.readline() == "ready\n"
        subprocess.run([*command, "1", network.name], check=True, timeout=60)
        seconds = float(receiver.communicate(timeout=60)[0])
    return 8 * BYTES / seconds


def test_a_link_is_no_faster_than_it_is_made(root: None) -> None:
    bucket = 2 * 8 * 256 * 1024  # passes at once at either end
    slow, fast = (bits_a_second(Link(rate=rate)) for rate in (2e7, 2e8))
    for rate, seen in ((2e7, slow), (2e8, fast)):
        assert seen < rate * 8 * BYTES / (8 * BYTES - bucket) * 1.1
    assert slow < fast


def test_namespaces_are_gone_afterwards_whatever_happens(root: None) -> None:
    with pytest.raises(KeyboardInterrupt), links.network(2, Link()) as network:
        assert namespaces() == sorted(network.namespace(place) for place in (0, 1, links.SWITCH))
        raise KeyboardInterrupt
    assert namespaces() == []


def test_networks_of_the_killed_are_removed_by_the_next_and_those_of_the_living_stay(root: None) -> None:
    code = (
        "import sys, time; from flagperf import links; from flagperf.schema.link import Link\n"
        "with links.network(1, Link()) as network:\n    print(network.name, flush=True); time.sleep(600)"
    )
    owners = [subprocess.Popen([sys.executable, "-c", code], stdout=subprocess.PIPE, text=True) for _ in range(2)]
    try:
        names = [owner.stdout.readline().strip() for owner in owners if owner.stdout is not None]
        owners[0].kill()
        owners[0].wait()
        with links.network(1, Link()):
            left = [bool(list(Path("/run/netns").glob(f"{name}-*"))) for name in names]
        assert left == [False, True]
    finally:
        for owner in owners:
            owner.terminate()
            owner.wait()
        links._remove(names[1])


def test_what_tc_refuses_is_told_and_nothing_is_left(root: None, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(links, "_BURST", "nonsense")
    with pytest.raises(FlagPerfError, match="tbf") as refused, links.network(2, Link(rate=1e8)):
        pass
    assert "NET_ADMIN" in refused.value.hint
    assert namespaces() == []


def test_where_links_cant_be_shaped_it_is_said_why(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(shutil, "which", lambda name: None if name == "tc" else name)
    with pytest.raises(Unavailable, match="shaped with tc, not found") as refused:
        links.check()
    assert "iproute2" in refused.value.hint
    monkeypatch.setattr(shutil, "which", lambda name: name)
    monkeypatch.setattr(os, "geteuid", lambda: 1000)
    with pytest.raises(Unavailable, match="root"):
        links.check()
    monkeypatch.setattr(sys, "platform", "darwin")
    with pytest.raises(Unavailable, match="lacks"):
        links.check()


def test_only_ranks_of_one_machine_that_talk_over_its_network_get_links(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(links, "network", lambda hosts, link: nullcontext())
    registries, link = Registries(), Link(rate=1e9)
    options = Options(cases=["parallel/collectives"], vendor="cpu", ranks=2, oversubscribe=True, link=link)
    assert [trial.link for trial in plan.plan(options, registries).trials] == [link]
    with pytest.raises(UsageError, match="hosts have real ones"):
        plan.plan(_with(options, nodes=Nodes(count=2, rendezvous="a:1")), registries)
    with pytest.raises(UsageError, match="nccl, by which nvidia"):
        plan.check_link(registries.vendors.adapter("nvidia"), options, registries)


def test_a_link_that_cant_be_made_is_refused_before_anything_starts(
    root: None, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(links, "_BURST", "nonsense")
    link = Link(rate=1e9)
    options = Options(cases=["parallel/collectives"], vendor="cpu", ranks=2, oversubscribe=True, link=link)
    with pytest.raises(FlagPerfError, match="tbf"):
        plan.plan(options, Registries())


def _with(options: Options, **changes: object) -> Options:
    import msgspec

    return msgspec.structs.replace(options, **changes)
