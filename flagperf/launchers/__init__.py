"""The launcher contract: how ranks are started, watched and ended.

A launcher is a manifest (`*.toml`, see `LauncherManifest`) and an entry class derived from `Launcher`. Whatever it goes
through, it ends in an agent on every node, and one `flagperf.worker` a rank: see `flagperf.launchers.elastic`.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable
from pathlib import Path

from flagperf.schema.trial import Nodes, Outcome, Trial


class Launcher(ABC):
    """Starts the ranks of a trial and stays until the last of them has ended, whatever happens."""

    def __init__(self, nodes: Nodes) -> None:
        self.nodes = nodes

    @abstractmethod
    def launch(
        self, trial: Trial, folder: Path, environment: dict[str, str], timeout: float, tick: Callable[[], None]
    ) -> Outcome:
        """Run a trial whose `trial{nodes.suffix}.json` is in `folder`; return how it ended, leave no process behind.

        `tick` is called about once a second while ranks work; the caller otherwise sleeps. `environment` is added to
        the ranks'. KeyboardInterrupt ends the ranks and is raised again.
        """

    def command(self, trial: Trial, folder: Path) -> list[str]:
        """Return the command that is run on this node, for `--dry-run`."""
        return []
