"""`flagperf run`."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from flagperf.cli import common

if TYPE_CHECKING:
    from flagperf.schema.result import RunOutput
    from flagperf.schema.trial import Run


def run(
    context: typer.Context,
    cases: Annotated[
        list[str] | None,
        typer.Argument(
            metavar="CASE…", help="Of `flagperf list cases`; or one of `flagperf list contests` or `surveys`."
        ),
    ] = None,
    preset: Annotated[str, typer.Option(help="Size of the case.")] = "tiny",
    engine: Annotated[
        list[str] | None,
        typer.Option(
            help="Engines to compare, the baseline first: ddp,fsdp or ddp,fsdp:zero=2,micro=2.", show_default="single"
        ),
    ] = None,
    compare: Annotated[
        tuple[str, str] | None,
        typer.Option(
            metavar="CANDIDATE BASELINE",
            help="Two engines with their layouts: compared at the same batch, each at its best, and with communication "
            "overlapped and not.",
        ),
    ] = None,
    search: Annotated[
        bool, typer.Option("--search/--no-search", help="Look for the best layouts in a contest or survey.")
    ] = True,
    memory_budget: Annotated[
        float | None,
        typer.Option(min=1, help="MiB of the allocator in which best layouts must fit.", show_default="any"),
    ] = None,
    budget: Annotated[
        str | None,
        typer.Option(
            metavar="TIME", help="How long a survey looks for the best layout: 10min.", show_default="the survey's"
        ),
    ] = None,
    rank_counts: Annotated[
        str | None,
        typer.Option(metavar="RANKS", help="Of a survey: 1,2,4.", show_default="halves of --ranks, down to 1"),
    ] = None,
    scenario: Annotated[
        list[str] | None,
        typer.Option(
            help="How load comes to inference cases: singlestream, multistream, server, offline, concurrency; or all.",
            show_default="the case's",
        ),
    ] = None,
    scale: Annotated[
        float | None,
        typer.Option(
            metavar="FACTOR",
            help="Shorten inference scenarios for a try-out, which results say: 0.01.",
            show_default="1",
        ),
    ] = None,
    vendor: Annotated[
        str, typer.Option(help="Whose devices; auto takes an accelerator if one is usable, else the CPU.")
    ] = "auto",
    ranks: Annotated[
        int | None, typer.Option(min=1, help="Ranks over all nodes.", show_default="the vendor's choice")
    ] = None,
    layout: Annotated[
        str, typer.Option(help="Layout of every engine: zero=2,tp=1,micro=4,recompute=1,compile=1.")
    ] = "",
    trials: Annotated[int | None, typer.Option(help="Fresh processes an engine.", show_default="the case's")] = None,
    steps: Annotated[int | None, typer.Option(help="Measured steps.", show_default="the case's")] = None,
    warmup: Annotated[
        int | None, typer.Option(help="Steps before the clock starts.", show_default="the case's")
    ] = None,
    dtype: Annotated[str | None, typer.Option(help="fp32, bf16 or fp16.", show_default="the preset's")] = None,
    seed: Annotated[
        int | None, typer.Option(help="Of the first trial; each further one adds 1.", show_default="the case's")
    ] = None,
    set_: Annotated[
        list[str] | None, typer.Option("--set", metavar="KEY=VALUE", help="Change a setting: data.source=synthetic.")
    ] = None,
    out: Annotated[
        Path | None, typer.Option(help="The run's folder; must be new or empty.", show_default="runs/<id>")
    ] = None,
    dry_run: Annotated[bool, typer.Option("--dry-run", help="Print the plan and stop.")] = False,
    resume: Annotated[Path | None, typer.Option(metavar="RUN", help="Finish a run; its valid trials are kept.")] = None,
    keep_going: Annotated[bool, typer.Option("--keep-going", help="Go on after an invalid trial.")] = False,
    timeout: Annotated[float | None, typer.Option(help="Seconds a trial may take.", show_default="the case's")] = None,
    memory_limit: Annotated[float | None, typer.Option(min=1, help="MiB a rank may allocate.")] = None,
    oversubscribe: Annotated[
        bool, typer.Option("--oversubscribe", help="Allow more ranks than devices or cores.")
    ] = False,
    baseline: Annotated[
        str | None, typer.Option(help="Engine the others are compared with.", show_default="the first")
    ] = None,
    launcher: Annotated[str, typer.Option(help="How ranks are started.")] = "local",
    nodes: Annotated[int, typer.Option(min=1, help="Hosts; the same command is given on each.")] = 1,
    node_rank: Annotated[int, typer.Option(min=0, help="Which of the hosts this is, from 0.")] = 0,
    rdzv: Annotated[str, typer.Option(metavar="HOST:PORT", help="Where the nodes meet: an address of node 0.")] = "",
    link: Annotated[
        str,
        typer.Option(
            metavar="RATE,DELAY",
            help="Give each rank a network link of its own, of this bandwidth and delay: 500mbit,1ms. Needs root.",
            show_default="the machine's",
        ),
    ] = "",
    vendor_path: common.VENDOR_PATH = None,
    json: common.JSON = False,
) -> None:
    """Run cases and compare engines: trials in fresh processes, interleaved; ends with a table and an HTML report.

    Example: flagperf run aquila/pretrain --preset tiny --engine ddp,fsdp --ranks 2 --trials 3
    """
    import shlex
    from functools import reduce

    from flagperf import plan as planning
    from flagperf import run as running
    from flagperf.collect.runs import read_run
    from flagperf.errors import UsageError
    from flagperf.schema.link import Link
    from flagperf.schema.trial import Nodes
    from flagperf.settings import merged, parse_assignment, parse_duration, parse_whole_numbers

    registries = common.registries()
    where = Nodes(count=nodes, index=node_rank, rendezvous=rdzv)
    if resume is not None:
        planned, folder = _resumed(resume, context), resume
    else:
        if not cases:
            raise UsageError(
                "No case was given.", "`flagperf list cases` shows them; for example flagperf run aquila/pretrain"
            )
        options = planning.Options(
            cases=cases,
            preset=preset,
            engines=engine or [],
            compare=compare,
            search=search,
            memory_budget=None if memory_budget is None else int(memory_budget * 2**20),
            budget=None if budget is None else parse_duration(budget),
            rank_counts=parse_whole_numbers("--rank-counts", rank_counts) if rank_counts else [],
            scenarios=[part.strip() for text in scenario or [] for part in text.split(",") if part.strip()],
            scale=scale,
            layout=layout,
            vendor=vendor,
            ranks=ranks,
            oversubscribe=oversubscribe,
            trials=trials,
            steps=steps,
            warmup=warmup,
            dtype=dtype,
            seed=seed,
            settings=reduce(merged, map(parse_assignment, set_ or []), {}),
            timeout=timeout,
            memory_limit=None if memory_limit is None else int(memory_limit * 2**20),
            link=Link.parse(link) if link else None,
            launcher=launcher,
            nodes=where,
            plugins=[str(folder) for folder in common.plugins()],
            baseline=baseline,
        )
        planned, folder = planning.plan(options, registries, commit=_commit()), None
    if dry_run:
        from flagperf.cli import preview

        preview.show(planned, registries, where, json=json)
        return
    if folder is None:
        folder = running.new_folder(out, planned, where)

    from flagperf.cli.watch import Terminal

    error: BaseException | None = None
    with Terminal() as terminal:
        try:
            running.execute(planned, folder, registries, terminal, nodes=where, keep_going=keep_going)
        except (KeyboardInterrupt, Exception) as caught:  # told below, after what was measured
            error = caught
    try:
        planned = read_run(folder)  # a search has added to it
        output = _collect(folder, planned)
    except Exception as failed:
        if error is None:
            raise
        common.err().print(f"What was measured is in {folder}, but can't be read now: {failed}", markup=False)
        raise error from None
    if json:
        common.print_json(output)
    else:
        from flagperf.cli import tables

        if output.survey is None:  # its own tables tell batches and ranks apart
            tables.print_results(output.results)
        tables.print_comparisons(output.comparisons)
        if any(result.points for result in output.results):
            from flagperf.cli.points import print_sweeps

            print_sweeps(output.results, output.run)
        if output.contest is not None:
            tables.print_contest(output.contest)
        if output.survey is not None:
            from flagperf.cli.survey import print_survey

            print_survey(output.survey, output.run)
    again = f"flagperf run --resume {shlex.quote(str(folder))}"
    if isinstance(error, KeyboardInterrupt):
        common.err().print(f"Interrupted. What was measured is kept; go on with: {again}", soft_wrap=True)
    if error is not None:
        raise error
    if where.index == 0:
        _report(folder)
    measured = [result for result in output.results if result.purpose == "measure"]
    if any(result.verdict == "invalid" for result in measured) or not measured:
        way = f"Try again with: {again}" if nodes == 1 else "Put the nodes' trials/ together, if they share no folder."
        common.err().print(f"Not all trials are valid. {way}", soft_wrap=True)
        raise typer.Exit(1)


_WITH_RESUME = {"resume", "keep_going", "timeout", "dry_run", "json", "nodes"}
"""Options that mean something when a run is resumed; all others were settled when it was planned."""


def _resumed(folder: Path, context: typer.Context) -> Run:
    """Return the plan of a run that is to be finished; refuse options that would change it, but for the timeout."""
    import msgspec

    from flagperf.collect.runs import read_run
    from flagperf.errors import UsageError

    given = [name for name in context.params if context.get_parameter_source(name).name == "COMMANDLINE"]  # type: ignore[union-attr]
    if refused := [name.strip("_").replace("_", "-") for name in given if name not in _WITH_RESUME]:
        raise UsageError(
            f"--resume goes on with a run as it was planned; {', '.join(refused)} can't be changed.",
            "Start a new run for that. With --resume go --timeout, --keep-going, --dry-run and --json.",
        )
    if context.params["nodes"] > 1:
        raise UsageError("A run over several nodes can't be resumed.", "Start it again with another --out.")
    run = read_run(folder)
    timeout = context.params["timeout"]
    if timeout is None:
        return run
    replace = msgspec.structs.replace
    return replace(run, trials=[replace(t, protocol=replace(t.protocol, timeout=timeout)) for t in run.trials])


def _collect(folder: Path, run: Run) -> RunOutput:
    """Read back from the folder what was measured, and compare."""
    from flagperf.collect import survey
    from flagperf.collect.contest import compared, told
    from flagperf.collect.store import Store
    from flagperf.schema.result import RunOutput

    store = Store([folder])
    results, curves = store.results(), store.curves()
    comparisons = compared(run, results, curves)
    return RunOutput(
        run=str(folder),
        results=results,
        comparisons=comparisons,
        contest=told(run, results, comparisons),
        survey=survey.told(run, results, curves),
    )


def _report(folder: Path) -> None:
    """Write the run's report and say where it is."""
    import importlib

    from flagperf.errors import FlagPerfError

    try:
        page = importlib.import_module("flagperf.reports.page")
        page.write([folder], folder / "report.html")
    except Exception as error:  # whatever it is, the measurements are safe and the page can be made again
        raise FlagPerfError(
            f"The report couldn't be written: {type(error).__name__}: {error}",
            f"What was measured is kept in {folder}; try again with `flagperf report {folder}`.",
        ) from error
    common.err().print(f"Report: {folder / 'report.html'}", soft_wrap=True)


def _commit() -> str | None:
    from flagperf.measure.environment import git_commit

    return git_commit()
