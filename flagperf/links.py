"""Links of chosen bandwidth and delay between the ranks of one machine, by Linux's network namespaces and `tc`.

Every rank has a namespace of its own, as a host would have, and one link to a switch that all share. A link is shaped
at both of its ends: what a rank sends and what it receives each get the bandwidth, and what it sends waits the delay.
Nothing is added to the machine's own network. Needs root and iproute2.

Bandwidth is by a token bucket (`tc tbf`): what fits the bucket, 256 KiB, passes at once. Delay is by `tc netem`.
"""

from __future__ import annotations

import ctypes
import ipaddress
import os
import re
import shutil
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import psutil

from flagperf.errors import FlagPerfError, Unavailable
from flagperf.schema.link import Link

INTERFACE = "flagperf0"
"""What a rank's link is called within its namespace."""
SWITCH = "switch"
"""The place in a network where all links meet; a rank's place is its number."""
NETWORK = "FLAGPERF_NETWORK"
"""Environment variable with the name of the network that a process is to enter."""

_SUBNET = ipaddress.ip_network("10.77.0.0/16")
_NAMESPACES = Path("/run/netns")
_OURS = re.compile(r"(flagperf-(\d+)-(\d+))-\w+")
_BURST, _QUEUE = "256kb", "200ms"
_PACKETS = 100_000
"""That a link may have under way: enough that a delay costs no bandwidth."""
_CLONE_NEWNET = 0x40000000


class Network:
    """Namespaces that are there, with links between them."""

    def __init__(self, name: str, hosts: int) -> None:
        self.name, self.hosts = name, hosts

    def namespace(self, place: int | str) -> str:
        """Return the name of a namespace, as `ip netns exec` takes it."""
        return f"{self.name}-{place}"

    @property
    def environment(self) -> dict[str, str]:
        """Return the variables by which processes find their place and torch's backends their interface."""
        return {NETWORK: self.name, "GLOO_SOCKET_IFNAME": INTERFACE, "TP_SOCKET_IFNAME": INTERFACE}


def address(place: int | str) -> str:
    """Return the address of a place: of the switch, or of a rank."""
    return str(_SUBNET[1 if place == SWITCH else int(place) + 2])


def check() -> None:
    """Raise Unavailable where links can't be shaped, with what to do about it."""
    if sys.platform != "linux":
        raise Unavailable(
            "Links are shaped by Linux's network namespaces, which this system lacks.", "Leave out --link."
        )
    if missing := [tool for tool in ("ip", "tc") if shutil.which(tool) is None]:
        raise Unavailable(f"Links are shaped with {' and '.join(missing)}, not found here.", "apt-get install iproute2")
    if os.geteuid() != 0:
        raise Unavailable("Shaping links takes root: it makes network namespaces.", "Use sudo, or leave out --link.")


@contextmanager
def network(hosts: int, link: Link) -> Iterator[Network]:
    """Have a network of so many hosts while the body runs; what is left of networks whose owners died is removed."""
    check()
    _remove_orphans()
    own = Network(f"flagperf-{os.getpid()}-{_started(os.getpid())}", hosts)
    try:
        _make(own, link)
        yield own
    finally:
        _remove(own.name)


def enter(name: str, place: int | str) -> None:
    """Move this thread, and those it starts, into a place of a network; sockets that are open stay where they are."""
    handle = os.open(_NAMESPACES / f"{name}-{place}", os.O_RDONLY | os.O_CLOEXEC)
    try:
        if ctypes.CDLL(None, use_errno=True).setns(handle, _CLONE_NEWNET) != 0:
            raise OSError(ctypes.get_errno(), f"can't enter the namespace {name}-{place}")
    finally:
        os.close(handle)


def _make(own: Network, link: Link) -> None:
    switch = own.namespace(SWITCH)
    _run("ip", "netns", "add", switch)
    _run("ip", "-n", switch, "link", "add", INTERFACE, "type", "bridge")
    _up(switch, SWITCH)
    for rank in range(own.hosts):
        namespace, port = own.namespace(rank), f"port{rank}"
        _run("ip", "netns", "add", namespace)
        ends = ("name", INTERFACE, "netns", namespace, "type", "veth", "peer", "name", port, "netns", switch)
        _run("ip", "link", "add", *ends)
        _run("ip", "-n", switch, "link", "set", port, "master", INTERFACE, "up")
        _up(namespace, rank)
        _shape(namespace, INTERFACE, link)
        _shape(switch, port, Link(rate=link.rate))


def _up(namespace: str, place: int | str) -> None:
    _run("ip", "-n", namespace, "address", "add", f"{address(place)}/{_SUBNET.prefixlen}", "dev", INTERFACE)
    for device in ("lo", INTERFACE):
        _run("ip", "-n", namespace, "link", "set", device, "up")


def _shape(namespace: str, device: str, link: Link) -> None:
    """Shape what leaves a device."""
    add = ("tc", "-n", namespace, "qdisc", "add", "dev", device)
    above: tuple[str, ...] = ("root",)
    if link.rate is not None:
        bucket = ("rate", f"{link.rate:.0f}bit", "burst", _BURST, "latency", _QUEUE)
        _run(*add, *above, "handle", "1:", "tbf", *bucket)
        above = ("parent", "1:1")
    if link.delay:
        _run(*add, *above, "handle", "2:", "netem", "delay", f"{link.delay * 1e6:.0f}us", "limit", str(_PACKETS))


def _run(*command: str) -> None:
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    if done.returncode != 0:
        said = done.stderr.strip().rstrip(".") or done.returncode
        raise FlagPerfError(
            f"Links can't be shaped here: `{' '.join(command)}` says: {said}.",
            "In a container it takes --cap-add NET_ADMIN --cap-add SYS_ADMIN, and the kernel's modules veth, bridge, "
            "sch_tbf and sch_netem; or leave out --link.",
        )


def _remove(name: str) -> None:
    for namespace in sorted(_NAMESPACES.glob(f"{name}-*")):
        subprocess.run(["ip", "netns", "delete", namespace.name], check=False, capture_output=True)


def _remove_orphans() -> None:
    """Remove the networks of processes that were killed before they could do it."""
    names = {found[1]: found for path in _NAMESPACES.glob("flagperf-*") if (found := _OURS.fullmatch(path.name))}
    for name, (_, pid, started) in ((name, found.groups()) for name, found in names.items()):
        if _started(int(pid)) != int(started):
            _remove(name)


def _started(pid: int) -> int | None:
    """Return when a process was started, in hundredths of a second; None if it is gone."""
    try:
        return round(psutil.Process(pid).create_time() * 100)
    except psutil.NoSuchProcess:
        return None
