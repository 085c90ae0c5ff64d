"""`flagperf list` and `flagperf show`."""

from __future__ import annotations

from enum import StrEnum
from typing import TYPE_CHECKING, Annotated, Any

import typer

from flagperf.cli import common

if TYPE_CHECKING:
    from flagperf.registry import Registries
    from flagperf.schema.manifest import CaseManifest, EngineManifest


class What(StrEnum):
    """What can be listed."""

    cases = "cases"
    presets = "presets"
    contests = "contests"
    surveys = "surveys"
    engines = "engines"
    vendors = "vendors"
    launchers = "launchers"
    metrics = "metrics"


def list_(
    what: Annotated[What, typer.Argument(help="What to list.")] = What.cases,
    json: common.JSON = False,
) -> None:
    """List what can be run: cases, presets, contests, surveys, engines, vendors, launchers, metrics.

    Example: flagperf list engines
    """
    from rich.table import Table

    rows = _rows(what)
    if json:
        common.print_json({what.value: rows})
        return
    if what in (What.cases, What.presets):
        rows = _without_members(rows)
    table = Table(box=None, pad_edge=False)
    for column in rows[0] if rows else []:
        table.add_column(column, overflow="fold")
    for row in rows:
        table.add_row(*("" if value is None else str(value) for value in row.values()))
    common.out().print(table)


def _rows(what: What) -> list[dict[str, Any]]:
    from flagperf.metrics import catalogue
    from flagperf.registry import availability

    registries = common.registries()
    if what is What.metrics:
        return [
            {"name": m.name, "unit": m.unit, "direction": m.direction, "group": m.group, "meaning": m.meaning}
            for m in catalogue().values()
        ]
    if what is What.cases:
        return [
            {
                "name": case.name,
                "kind": case.kind,
                "presets": ", ".join(case.presets),
                "summary": case.summary + (f". Scenarios: {', '.join(case.scenarios)}" if case.scenarios else ""),
            }
            for case in registries.cases.all()
        ] + _broken(registries.cases.broken, ("name", "kind", "presets", "summary"))
    if what is What.contests:
        return [
            {"name": name, "case": case.name, "compares": f"{c.candidate} with {c.baseline}", "summary": c.summary}
            for case in registries.cases.all()
            for name, c in case.contests.items()
        ]
    if what is What.surveys:
        return [
            {"name": name, "case": case.name, "of": ", ".join(s.engines), "summary": s.summary}
            for case in registries.cases.all()
            for name, s in case.surveys.items()
        ]
    if what is What.presets:
        return [
            {"case": case.name, "preset": name, "dtype": preset.dtype, "summary": preset.summary}
            for case in registries.cases.all()
            for name, preset in case.presets.items()
        ]
    registry: Any = getattr(registries, what.value)
    rows = []
    for manifest in registry.all():
        state = availability(manifest)
        rows.append(
            {
                "name": manifest.name,
                **({"runs": _runs(manifest)} if what is What.engines else {}),
                "available": "yes" if state.available else f"no: {state.reason}; {state.remedy}",
                "summary": manifest.summary,
            }
        )
    columns = ("name", "runs", "available", "summary") if what is What.engines else ("name", "available", "summary")
    return rows + _broken(registry.broken, columns)


def _runs(engine: EngineManifest) -> str:
    """Return the kind of cases that an engine runs, and what it can do of them."""
    return engine.kind + (f": {', '.join(engine.tasks)}" if engine.tasks else "")


def _without_members(rows: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """Return the rows without those of members of a family, whose names are told in their family's."""
    members = {case.name: case.family for case in common.registries().cases.all() if case.family}
    kept = [row for row in rows if next(iter(row.values())) not in members]
    for row in kept:
        own = [name.rpartition("/")[2] for name, family in members.items() if family == next(iter(row.values()))]
        if own and "kind" in row:
            row["summary"] += f". One by one: {', '.join(own)}"
    return kept


def _broken(broken: dict[str, str], columns: tuple[str, ...]) -> list[dict[str, Any]]:
    """Return rows for manifests that can't be read: they are shown, not hidden."""
    return [
        {**dict.fromkeys(columns), "name": path, columns[-1]: f"can't be read: {why}"} for path, why in broken.items()
    ]


def show(
    case: Annotated[str, typer.Argument(metavar="CASE", help="As `flagperf list cases` names it.")],
    json: common.JSON = False,
) -> None:
    """Show a case's rules: model, data, protocol, presets, metrics, target, and what each preset costs by formula.

    Example: flagperf show aquila/pretrain
    """

    registries = common.registries()
    manifest = registries.cases.get(case)
    presets = {name: _preset(registries, manifest, name) for name in manifest.presets}
    if json:
        import msgspec

        plain: dict[str, Any] = msgspec.to_builtins(manifest)
        common.print_json({**plain, "presets": presets})
        return
    out = common.out()
    out.print(f"[bold]{manifest.name}[/]  {manifest.title}\n{manifest.summary}\n", soft_wrap=True)
    if manifest.scenarios:
        usual = f"{', '.join(manifest.scenario)} unless --scenario says"
        out.print(f"[bold]Scenarios[/]\n  {', '.join(manifest.scenarios)}; {usual}\n", soft_wrap=True)
    out.print("[bold]Protocol[/]")
    for key in manifest.protocol.__struct_fields__:
        out.print(f"  {key}: {getattr(manifest.protocol, key)}", soft_wrap=True)
    out.print(
        f"\n[bold]Target[/]\n  {manifest.target}\n\n[bold]Settings[/] (change one with --set key=value)", soft_wrap=True
    )
    for key, value in _flat(presets[next(iter(presets))]["settings"]):
        out.print(f"  {key} = {value}", soft_wrap=True)
    out.print("\n[bold]Presets[/]")
    for name, preset in presets.items():
        out.print(f"  {name}: {preset['summary']}", soft_wrap=True)
    if manifest.kind == "training":
        _print_sizes(presets)
    elif manifest.kind == "inference":
        _print_engines(registries, manifest)
    else:
        _print_sweep(manifest, presets)
    out.print(f"\n[bold]Metrics[/]\n  {', '.join(manifest.metrics)}", soft_wrap=True)


def _print_sizes(presets: dict[str, Any]) -> None:
    """Print what each preset costs by formula."""
    from rich.table import Table

    out = common.out()
    table = Table(box=None, pad_edge=False)
    table.add_column("preset")
    for column in ("parameters", "GFLOP/token", "tokens/step", "dtype", "GiB a rank"):
        table.add_column(column, justify="right", no_wrap=True)
    for name, preset in presets.items():
        size = preset["estimate"]
        table.add_row(
            *(name, f"{size['parameters']:,}", f"{size['flops_per_token'] / 1e9:,.3f}", f"{size['tokens_per_step']:,}"),
            *(preset["dtype"], f"{size['total'] / 2**30:,.2f}"),
        )
    out.print()
    out.print(table)
    out.print("Memory by formula, one rank that shards nothing; FLOPs a token of training, recomputation not counted.")


def _print_engines(registries: Registries, manifest: CaseManifest) -> None:
    """Print who can run an inference case."""
    from rich.table import Table

    from flagperf.registry import availability

    table = Table(box=None, pad_edge=False)
    for column in ("engine", "what it is", "available"):
        table.add_column(column, overflow="fold")
    for engine in registries.engines.all():
        if engine.kind == manifest.kind and manifest.task in engine.tasks:
            state = availability(engine)
            table.add_row(
                engine.name, engine.title, "yes" if state.available else f"no: {state.reason}; {state.remedy}"
            )
    out = common.out()
    out.print()
    out.print(table)


def _print_sweep(manifest: CaseManifest, presets: dict[str, Any]) -> None:
    """Print how many points each preset has, and who can be measured."""
    from rich.table import Table

    from flagperf.registry import installed

    table = Table(box=None, pad_edge=False)
    for column in ("provider", "what it is", "available"):
        table.add_column(column, overflow="fold")
    for name, provider in manifest.providers.items():
        state = installed(name, provider.requires)
        only = f"on {', '.join(provider.device_types)}" if provider.device_types else "yes"
        table.add_row(name, provider.title, only if state.available else f"no: {state.reason}; {state.remedy}")
    out = common.out()
    out.print("\n[bold]Points[/]")
    for name, preset in presets.items():
        out.print(f"  {name}: {preset['points']}")
    out.print()
    out.print(table)


def _preset(registries: Registries, manifest: CaseManifest, name: str) -> dict[str, Any]:
    """Return a preset with its settings complete and its estimate for one rank."""
    import msgspec

    from flagperf.case import Case
    from flagperf.plan import Options, alone

    trial = alone(manifest.name, Options(cases=[manifest.name], preset=name, engines=[]), registries)
    case: Case = registries.cases.load(manifest.name)(trial)
    estimate = case.estimate()
    return {
        "summary": manifest.presets[name].summary,
        "dtype": trial.dtype,
        "protocol": msgspec.to_builtins(trial.protocol),
        "settings": trial.settings,
        "estimate": {**msgspec.to_builtins(estimate), "total": estimate.total} if estimate else None,
        "points": case.size(),
    }


def _flat(tree: dict[str, Any], prefix: str = "") -> list[tuple[str, Any]]:
    rows: list[tuple[str, Any]] = []
    for key, value in tree.items():
        rows += _flat(value, f"{prefix}{key}.") if isinstance(value, dict) else [(prefix + key, value)]
    return rows
