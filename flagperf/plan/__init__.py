"""Case + options → trials, in an interleaved order; what can be refused is refused here, before anything starts."""

from __future__ import annotations

import fnmatch
import sys
from collections.abc import Sequence
from datetime import UTC, datetime

import msgspec

from flagperf._version import __version__
from flagperf.errors import UnknownName, UsageError
from flagperf.plan import contests, surveys
from flagperf.plan.arms import parse_arms
from flagperf.plan.inference import inference_templates
from flagperf.plan.options import Options
from flagperf.plan.sweeps import sweep_trial
from flagperf.plan.trials import alone, check_link, interleaved, plain, rank_count, sized, template
from flagperf.plan.vendors import choose_vendor
from flagperf.registry import Registries
from flagperf.schema.contest import Arm
from flagperf.schema.result import Result
from flagperf.schema.trial import Run, Trial

__all__ = ["Options", "alone", "choose_vendor", "further", "parse_arms", "plan"]


def plan(options: Options, registries: Registries, *, commit: str | None = None) -> Run:
    """Return the run that the options ask for; raise UsageError or Unavailable for one that can't be."""
    vendor = choose_vendor(options.vendor, registries)
    check_link(vendor, options, registries)
    registries.launchers.get(options.launcher)
    contest = survey = None
    trials: list[Trial] = []
    if surveys.named_survey(options, registries) is not None:
        survey, trials = surveys.survey_trials(options, vendor, registries)
        baseline = str(survey.arm)
    elif options.budget is not None or options.rank_counts:
        raise UsageError("--budget and --rank-counts are for surveys.", "For example flagperf run parallel/throughput")
    elif options.compare is not None or contests.named_contest(options, registries) is not None:
        contest, trials = contests.contest_trials(options, vendor, registries)
        baseline = str(contest.baseline)
    else:
        names = [name for asked in options.cases for name in _matching(asked, registries)]
        kinds = {name: registries.cases.get(name).kind for name in names}
        compared = {"training": "single", "inference": "eager"}  # kinds that have engines, with those that are usual
        usual = [engine for kind, engine in compared.items() if kind in kinds.values()]
        arms = parse_arms(options.engines or usual, options.layout) if usual else []
        if (options.scenarios or options.scale is not None) and "inference" not in kinds.values():
            raise UsageError("--scenario and --scale are for inference.", "For example flagperf run aquila/generate")
        for name, kind in kinds.items():
            if kind == "inference":
                for templates in inference_templates(name, arms, options, vendor, registries):
                    trials += interleaved(templates, first=len(trials))
                continue
            if kind == "training":
                size = sized(name, options, registries, vendor=vendor)
                ranks = rank_count(arms, vendor, options, registries)
                templates = [template(arm, size, vendor, ranks, options, registries) for arm in arms]
            else:
                templates = [sweep_trial(name, options, vendor, registries)]
            trials += interleaved(templates, first=len(trials))
        baseline = _baseline(options, arms, trials) if arms else trials[0].providers[0]
    now = datetime.now(UTC)
    return Run(
        id=f"{now:%Y%m%d-%H%M%S}-{plain(options.cases[0])}-{options.preset}",
        created=now.isoformat(timespec="seconds"),
        command=list(sys.argv),
        flagperf=__version__,
        commit=commit,
        launcher=options.launcher,
        trials=[msgspec.structs.replace(trial, link=options.link) for trial in trials],
        baseline=baseline,
        contest=contest,
        survey=survey,
    )


def further(run: Run, results: Sequence[Result]) -> list[Trial]:
    """Return the trials that follow from the results of those planned so far; none when the run is complete."""
    return contests.further(run, results) or surveys.further(run, results)


def _matching(asked: str, registries: Registries) -> list[str]:
    """Return the cases of this name, or of this pattern: `operators/*`."""
    if not set("*?[") & set(asked):
        return [asked]
    found = fnmatch.filter(registries.cases.names(), asked)
    if not found:
        raise UnknownName("case", asked, registries.cases.names())
    return [name for name in found if registries.cases.get(name).family not in found]  # in it they are measured anyway


def _baseline(options: Options, arms: Sequence[Arm], trials: Sequence[Trial]) -> str:
    """Return how the baseline is called in results: its engine, with the layout where that engine stands twice."""
    named = options.baseline or arms[0].engine
    matching = [arm for arm in arms if arm.engine == named]
    if ":" in named:
        matching = [arm for arm in arms if arm in parse_arms([named], options.layout)]
    if not matching:
        raise UnknownName("engine of this run", named, map(str, arms))
    chosen = matching[0]
    if sum(arm.engine == chosen.engine for arm in arms) == 1:
        return chosen.engine
    return trials[arms.index(chosen)].arm  # the first trials of a run are its arms in order
