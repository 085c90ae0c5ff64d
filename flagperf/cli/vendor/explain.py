"""`flagperf vendor explain`."""

from __future__ import annotations

from collections.abc import Iterable
from typing import TYPE_CHECKING, Annotated

import typer

from flagperf.cli import common

if TYPE_CHECKING:
    from flagperf.schema.chip import Chip
    from flagperf.schema.explanation import ExplainOutput
    from flagperf.schema.manifest import CaseOverride

_FIGURES = ("fp64_tflops", "fp32_tflops", "tf32_tflops", "fp16_tflops", "bf16_tflops", "fp8_tflops")


def explain(
    name: Annotated[str, typer.Argument(metavar="NAME", help="The vendor: `flagperf list vendors`.")],
    vendor_path: common.VENDOR_PATH = None,
    json: common.JSON = False,
) -> None:
    """Tell all that is known of a vendor and why: markers, tools, environment, limits, peaks, and what is unknown.

    Example: flagperf vendor explain ascend --json
    """
    from flagperf.conformance.explanation import explain as explained

    said = explained(name, common.registries())
    if json:
        common.print_json(said)
    else:
        _print(said)


def _print(said: ExplainOutput) -> None:
    from rich.markup import escape

    out = common.out()
    out.print(f"[bold]{escape(said.title)}[/] {escape(said.title_zh)} ({said.vendor}): {escape(said.summary)}")
    out.print(f"[dim]{escape(said.path)}[/]", soft_wrap=True)
    for title, lines in _sections(said):
        told = list(lines)
        if told:
            out.print(f"\n[bold]{title}[/]")
        for line in told:
            out.print(f"  {escape(line)}", soft_wrap=True)


def _sections(said: ExplainOutput) -> Iterable[tuple[str, Iterable[str]]]:
    state = said.availability
    yes = f"They can be used. {state.version}".strip()
    yield "Here", [yes if state.available else f"They can't be used: {state.reason}. {state.remedy}".strip()]
    devices = (f"{each.index} {each.name}, {each.state}" for each in said.devices)
    yield "Devices", [*devices, f"Looked for: {said.found}."]
    yield (
        "Markers",
        (
            f"{marker.kind} {marker.pattern}: {', '.join(marker.found) or 'not here'}"
            + (f" (also {', '.join(marker.also)}'s)" if marker.also else "")
            for marker in said.markers
            if marker.kind != "name"
        ),
    )
    names = [marker.pattern for marker in said.markers if marker.kind == "name"]
    yield "What its products are called", [", ".join(names)] if names else []
    yield (
        "Tools, in order of preference",
        (
            f"{tool.command}: {tool.path or 'not on PATH'}; given up after {tool.timeout:g} s"
            + ("; asked as well, for what the others leave unknown" if tool.adds else "")
            for tool in said.tools
        ),
    )
    yield "Torch", _torch(said)
    yield (
        "Environment of every rank",
        (
            f"{each.name}={each.value}: {each.why}" + (f" ({each.case} only)" if each.case else "")
            for each in said.environment
        ),
    )
    yield "Can't be computed in", (f"{dtype}: {why}" for dtype, why in said.limits.items())
    yield "The backend lacks", (f"{operation}: {why}" for operation, why in said.lacking.items())
    container = said.container
    options = [" ".join(("docker run", *container.options, container.image)).strip()] if container.options else []
    yield "In a container", options + ([f"from {container.source}"] if container.source else [])
    yield (
        "Kernels",
        (
            f"{each.distribution} ({each.version or 'not installed'}): {', '.join(each.operations)}"
            for each in said.kernels
        ),
    )
    yield (
        "Chosen for cases",
        (f"{case}: {_chosen(each)} ({each.why})" for case, each in said.cases.items()),
    )
    yield "Rated peaks, dense", map(_chip, said.chips)
    yield "Unknown: no source said", said.unknown


def _torch(said: ExplainOutput) -> Iterable[str]:
    yield f"device type {said.device_type}, backend {said.backend}; installed: torch {said.torch or '–'}"
    if said.plugin:
        yield f"plug-in {said.plugin}: {'installed' if said.plugin_installed else 'not installed'}"
    if said.visible_devices:
        yield f"{said.visible_devices} limits the devices; it is {said.visible_now or 'not set'}"
    if said.install:
        yield f"to be had: {said.install}"


def _chosen(override: CaseOverride) -> str:
    values = (("micro", override.micro), ("dtype", override.dtype))
    return ", ".join(f"{key}={value}" for key, value in values if value is not None)


def _chip(chip: Chip) -> str:
    figures = [
        f"{name.removesuffix('_tflops')} {value:g}" for name in _FIGURES if (value := getattr(chip, name)) is not None
    ]
    told = f"{', '.join(figures)} TFLOP/s" if figures else "no figure"
    memory = f", {chip.memory_gb:g} GB" if chip.memory_gb else ""
    return f"{chip.chip}{memory}: {told}; {chip.source or 'no source'} (confidence {chip.confidence})"
