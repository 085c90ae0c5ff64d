"""Prints what the protocol says of every operator on the simulated chip: `python simchip_points.py`."""

from __future__ import annotations

import json

from flagperf.case import Case
from flagperf.kernel import Unsupported
from flagperf.kernels import InputSets, ProviderRun
from flagperf.plan import Options, alone
from flagperf.registry import Registries

registries, name = Registries(), "operators/*"
dimensions = {"rows": 8, "columns": 64, "hidden": 64, "tokens": 16, "m": 16, "n": 24, "k": 40}
options = Options(cases=[name], dtype="fp32,int32", settings={"shapes": {"tiny": dimensions}})
case: Case = registries.cases.load(name)(alone(name, options, registries))
runtime = registries.vendors.adapter("simchip").runtime(0, 1, 1)
eager, inductor = (registries.cases.load_entry(name, f".providers:{each}") for each in ("eager", "inductor"))
said = {}
for at in case.points():  # type: ignore[attr-defined]
    sets = InputSets(case, at, 1234, runtime)  # type: ignore[arg-type]
    run = ProviderRun("eager", sets, eager)
    with sets.grad_mode():
        samples = run.judged(run.call(0), 0)
    said[f"{at['operator']} {at['pass']}"] = samples.verdict if samples.memory else "no memory counted"
try:
    ProviderRun("inductor", sets, inductor)
    why = ""
except Unsupported as error:
    why = str(error)
print(json.dumps({"eager": said, "inductor": why}))
