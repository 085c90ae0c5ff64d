"""How a run is shown while it goes on: a live line on a terminal, a line a trial elsewhere; always on stderr."""

from __future__ import annotations

import time

from rich.markup import escape
from rich.progress import BarColumn, Progress, TaskID, TextColumn, TimeElapsedColumn

from flagperf.cli import common
from flagperf.cli.tables import shown
from flagperf.collect.verdict import causes
from flagperf.schema.inference import LoadStart
from flagperf.schema.result import Result
from flagperf.schema.trial import Trial


class Terminal:
    """Shows a run's progress; a context manager that leaves the terminal as it was."""

    def __init__(self) -> None:
        self.console = common.err()
        # Drawn when there is news, never by a timer: while ranks are measured nothing else should run.
        self.progress = Progress(
            TextColumn("{task.description}"),
            BarColumn(bar_width=24),
            TextColumn("{task.fields[news]}"),
            TimeElapsedColumn(),
            console=self.console,
            auto_refresh=False,
            transient=True,
        )
        self.task: TaskID | None = None
        self.title = ""
        self.said = ("", 0.0)

    def __enter__(self) -> Terminal:
        self.progress.start()
        return self

    def __exit__(self, *exception: object) -> None:
        self.progress.stop()

    def stage(self, text: str, share: float | None) -> None:
        """Show a stage of preparation."""
        self._show(escape(text), share, "")
        if not self.console.is_terminal and (self.said[0] != text or time.monotonic() - self.said[1] > 10):
            self.said = (text, time.monotonic())
            self.console.print(escape(text) + (f" {share:.0%}" if share else ""))

    def trial_started(self, number: int, count: int, trial: Trial) -> None:
        """Show which trial runs."""
        self.title = f"[{number}/{count}] {trial.id}"
        self._show(escape(self.title), 0.0, "starting")

    def step(self, done: int, planned: int, loss: float | None, tokens_per_second: float) -> None:
        """Show how far it is."""
        shown = "not finite" if loss is None else f"{loss:.3f}"
        self._show(
            escape(self.title),
            done / planned,
            f"step {done}/{planned}  loss {shown}  {tokens_per_second:,.0f} tokens/s",
        )

    def points(self, done: int, planned: int, where: str) -> None:
        """Show how many of a sweep's points are done."""
        self._show(escape(self.title), done / max(planned, 1), f"{done}/{planned}  {where}")

    def queries(self, done: int, failed: int, share: float, load: LoadStart) -> None:
        """Show how many queries are done."""
        what = [load.scenario if load.clients is None else f"{load.clients} clients"]
        what += [f"{'trying ' if load.probe else ''}{load.rate:.3g} queries/s"] if load.rate else []
        what += [f"{done}/{load.queries} queries" if done < load.queries else f"{done} queries"]
        what += [f"{failed} failed"] if failed else []
        self._show(escape(self.title), share, "  ".join(what))

    def trial_ended(self, trial: Trial, result: Result) -> None:
        """Leave a line behind."""
        self._hide()
        if result.verdict == "valid":
            leading = next((name for name in trial.metrics if name in result.metrics), None)
            value = shown(result.metrics[leading]) if leading else ""
            self.console.print(f"{escape(self.title)}  [green]valid[/]  {escape(value)}")
            return
        self.console.print(f"{escape(self.title)}  [bold red]invalid[/]")
        for reason in causes(result.reasons):
            self.console.print(f"  {escape(reason.message)}", soft_wrap=True)
            if reason.hint:
                self.console.print(f"  [dim]{escape(reason.hint)}[/]", soft_wrap=True)

    def _show(self, text: str, share: float | None, news: str) -> None:
        if self.task is None:
            self.task = self.progress.add_task(text, total=None, news=news)
        self.progress.update(
            self.task, description=text, total=None if share is None else 1.0, completed=share or 0.0, news=escape(news)
        )
        if self.console.is_terminal:
            self.progress.refresh()

    def _hide(self) -> None:
        if self.task is not None:
            self.progress.remove_task(self.task)
            self.task = None
