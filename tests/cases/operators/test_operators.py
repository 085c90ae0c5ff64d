"""Operators: all there, right in every data type, wrong ones caught, FLOPs and bytes as counted by hand."""

from __future__ import annotations

import sys
import types
from collections.abc import Callable
from typing import Any

import pytest
import torch

from flagperf.case import Case
from flagperf.cli.catalogue import What, list_
from flagperf.errors import FlagPerfError
from flagperf.kernel import Unsupported
from flagperf.kernels import InputSets, ProviderRun
from flagperf.plan import Options, alone, plan
from flagperf.registry import Registries
from flagperf.schema.sweep import Samples

# The table of operators of FlagPerf at commit 1b5a0303.
TABLE = """
    abs add addmm all amax argmax bitwise_and bitwise_not bitwise_or bmm cos cross_entropy_loss div dropout eq exp
    ge gelu group_norm gt isinf isnan layer_norm le linear log_softmax lt max mean min mm mul mv native_dropout
    native_group_norm ne neg outer pow prod reciprocal relu rsqrt rsub sigmoid silu sin softmax sub sum tanh triu
"""
FLAGPERF = TABLE.split()
DIMENSIONS = {
    "blocks": 2, "rows": 8, "columns": 32, "m": 16, "n": 24, "k": 40, "hidden": 64,
    "classes": 50, "tokens": 16, "dim": 32, "ffn": 48, "vocab": 60,
}  # fmt: skip
MINUTE = {
    "shapes": {"tiny": DIMENSIONS},
    "sweep": {"dtype": ["fp32", "fp16", "bf16", "int32", "int16"]},
}
REGISTRIES = Registries()
Function = Callable[..., Any]


def case_of(name: str, **settings: Any) -> Any:
    options = Options(cases=[name], settings={**MINUTE, **settings})
    case: Case = REGISTRIES.cases.load(name)(alone(name, options, REGISTRIES))
    return case


def plain(operator: Function, inputs: tuple[torch.Tensor, ...], arguments: dict[str, Any]) -> Function:
    return operator


def judged(case: Any, at: dict[str, Any], provider: Function) -> Samples:
    """Return what the protocol says of a provider at a point, without times."""
    runtime = REGISTRIES.vendors.adapter("cpu").runtime(0, 1, 1)
    sets = InputSets(case, at, 1234, runtime)
    run = ProviderRun("it", sets, provider)
    with sets.grad_mode():
        return run.judged(run.call(0), 0)


def point(operator: str, dtype: str = "fp32", which: str = "forward") -> dict[str, Any]:
    return {"operator": operator, "pass": which, "shape": "tiny", "dtype": dtype}


@pytest.fixture(scope="module")
def every() -> Any:
    return case_of("operators/*")


def test_all_that_flagperf_lists_are_there(every: Any) -> None:
    assert len(FLAGPERF) == len(set(FLAGPERF)) == 52
    assert set(FLAGPERF) <= set(every.operators)
    assert {f"operators/{name}" for name in FLAGPERF} <= set(REGISTRIES.cases.names())
    assert {"rms_norm", "rotary", "swiglu", "embedding"} == set(every.operators) - set(FLAGPERF)


def test_each_is_right_in_each_of_its_data_types(every: Any) -> None:
    points = every.points()
    assert {(at["operator"], at["dtype"]) for at in points} == {
        (name, dtype) for name, each in every.operators.items() for dtype in each.dtypes
    }
    wrong = {str(at): said.why for at in points if (said := judged(every, at, plain)).verdict != "valid"}
    assert not wrong


def _other(change: Function) -> Function:
    """Return a provider whose results are changed."""

    def provider(operator: Function, inputs: tuple[torch.Tensor, ...], arguments: dict[str, Any]) -> Function:
        return lambda *given, **more: change(operator, *given, **more)

    return provider


def _first_half(operator: Function, x: torch.Tensor, *more: Any, **arguments: Any) -> torch.Tensor:
    """Compute from the first half of the first axis, as a kernel with half a grid would."""
    half: torch.Tensor = operator(x[: len(x) // 2], *more, **arguments)
    return half


def _kept_half(operator: Function, *given: torch.Tensor, **arguments: Any) -> torch.Tensor:
    result: torch.Tensor = operator(*given, **arguments).clone()
    result.view(-1)[: result.numel() // 2] = 0
    return result


PLANTED: dict[str, Function] = {
    "abs": lambda f, x: x,
    "eq": lambda f, a, b: torch.zeros_like(a, dtype=torch.bool),
    "isnan": lambda f, x: torch.isinf(x),
    "all": lambda f, x, dim: torch.ones(len(x), dtype=torch.bool),
    "sum": _first_half,
    "mean": lambda f, x: torch.zeros((), dtype=x.dtype),
    "argmax": lambda f, x, dim: (f(x, dim=dim) + 1) % x.shape[dim],
    "softmax": lambda f, x, dim: f(x, dim=dim) * 1.01,
    "mm": lambda f, a, b: f(a[:, :-1], b[:-1]),
    "triu": lambda f, x: f(x, 1),
    "dropout": lambda f, x, p: f(x, p=0.5),
    "native_dropout": lambda f, x, p, train: (x / (1 - p), torch.ones_like(x, dtype=torch.bool)),
    "rms_norm": lambda f, x, w: f(x, w) * 1.01,
    "embedding": lambda f, i, w: f((i + 1) % len(w), w),
    "rotary": lambda f, x, c, s: f(x, c, -s),
    "exp": _kept_half,
}


@pytest.mark.parametrize("name", PLANTED)
def test_a_wrong_one_is_caught(every: Any, name: str) -> None:
    assert judged(every, point(name), _other(PLANTED[name])).verdict == "wrong"


@pytest.mark.parametrize(
    ("name", "change"),
    [
        ("silu", lambda f, x: f(x) + x - x.detach()),
        ("native_dropout", lambda f, x, p, train: f(x * 1.05, p=p, train=train)),
    ],
)
def test_wrong_gradients_of_right_results_are_caught(every: Any, name: str, change: Function) -> None:
    assert judged(every, point(name, which="backward"), _other(change)).verdict == "wrong"


def test_of_several_largest_any_place_is_right() -> None:
    case = case_of("operators/argmax", operators={"argmax": {"inputs": [{"kind": "integers", "high": 4}]}})
    last = _other(lambda f, x, dim: x.shape[dim] - 1 - f(x.flip(dim), dim=dim))
    assert judged(case, point("argmax"), last).verdict == "valid"


@pytest.mark.parametrize("share", [0.1, 0.2, 0.3])
def test_dropout_is_judged_by_its_share_of_zeros(share: float) -> None:
    case = case_of("operators/dropout", shapes={"tiny": {"blocks": 8, "rows": 64, "columns": 64}})

    def mine(operator: Function, x: torch.Tensor, p: float) -> torch.Tensor:
        return torch.where(torch.rand(x.shape) < share, 0, x / (1 - p))

    assert judged(case, point("dropout"), _other(mine)).verdict == ("valid" if share == 0.2 else "wrong")


# Counted by hand of MINUTE: 2·8·32 = 512 elements; m, n, k = 16, 24, 40.
@pytest.mark.parametrize(
    ("at", "flops", "moved"),
    [
        (point("abs"), 512, 2 * 512 * 4),
        (point("add", "bf16"), 512, 3 * 512 * 2),
        (point("eq"), 512, 2 * 512 * 4 + 512),  # a bool is a byte
        (point("bitwise_not", "int16"), 512, 2 * 512 * 2),
        (point("sum", "bf16"), 512, 512 * 2 + 2),
        (point("argmax"), 512, 512 * 4 + 16 * 8),
        (point("mm"), 2 * 16 * 24 * 40, (16 * 40 + 40 * 24 + 16 * 24) * 4),
        (point("addmm"), 2 * 16 * 24 * 40 + 16 * 24, (16 * 40 + 40 * 24 + 2 * 16 * 24) * 4),
        (point("softmax", which="backward"), 2 * 3 * 512, 3 * 512 * 4),
        # Gradient from above and mask in, gradient out.
        (point("native_dropout", which="backward"), 2 * 512, 2 * 512 * 4 + 512),
        # Logits and targets, one loss from above; the gradient of the logits.
        (point("cross_entropy_loss", which="backward"), 2 * 3 * 16 * 50, 2 * 16 * 50 * 4 + 16 * 8 + 4),
        (point("embedding"), 0, 16 * 8 + 2 * 16 * 32 * 4),
        (point("triu"), 0, (24 * 25 // 2 + 24 * 24) * 4),
    ],
    ids=lambda value: f"{value['operator']} {value['pass']}" if isinstance(value, dict) else None,
)
def test_work_is_as_counted_by_hand(every: Any, at: dict[str, Any], flops: float, moved: float) -> None:
    dims = every.dims(at)
    assert every.kernel(dims).work(dims) == (flops, moved)


@pytest.mark.parametrize("preset", ["flagperf", "aquila-7b"])
def test_the_sizes_of_each_preset_can_be_counted(preset: str) -> None:
    case = REGISTRIES.cases.load("operators/*")(
        alone("operators/*", Options(cases=["operators/*"], preset=preset), REGISTRIES)
    )
    work = {at["operator"]: case.kernel(dims).work(dims) for at in case.points() for dims in [case.dims(at)]}
    assert len(work) == len(case.operators)
    if preset == "flagperf":  # of the table, in the last data type
        assert work["abs"].bytes == 2 * 2**30 * 2
        assert work["mm"].flops == 2 * 8192**3
        assert work["bmm"].flops == 2 * 2 * 4096**3
        assert work["log_softmax"].flops == 2 * 4 * 1024 * 1024 * 10


@pytest.mark.parametrize(
    ("settings", "told"),
    [
        ({"operators": {"softmax": {"call": "os.system"}}}, "can't call 'os.system'"),
        ({"operators": {"softmax": {"call": "torch.__loader__"}}}, "can't call"),
        ({"operators": {"softmax": {"call": "torch.hub.load"}}}, "can't call"),
        ({"operators": {"softmax": {"inputs": [{"shape": ["rows", "depth"]}]}}}, "depth"),
        ({"operators": {"softmax": {"kind": "odd"}}}, "kind"),
        ({"operators": {"softmax": {"inputs": [{"kind": "odd"}]}}}, "odd"),
        ({"sweep": {"dtype": ["int32"]}}, "softmax takes fp32"),
        ({"sweep": {"shape": ["huge"]}}, "huge"),
    ],
)
def test_what_cant_be_is_refused(settings: dict[str, Any], told: str) -> None:
    with pytest.raises(FlagPerfError) as error:
        alone("operators/softmax", Options(cases=["operators/softmax"], settings=settings), REGISTRIES)
    assert told in f"{error.value} {error.value.hint}"


def test_a_function_that_this_torch_lacks_is_told() -> None:
    case = case_of("operators/abs", operators={"abs": {"call": "torch.absolutely"}})
    with pytest.raises(FlagPerfError, match=r"has no torch\.absolutely"):
        InputSets(case, point("abs"), 1, REGISTRIES.vendors.adapter("cpu").runtime(0, 1, 1))


def test_what_cant_fit_isnt_begun() -> None:
    from flagperf.kernels import DoesNotFit

    case = case_of("operators/abs", shapes={"tiny": {"blocks": 2**20, "rows": 2**20}})
    with pytest.raises(DoesNotFit, match="GiB"):
        InputSets(case, point("abs"), 1, REGISTRIES.vendors.adapter("cpu").runtime(0, 1, 1))


def test_without_a_compiler_inductor_says_so(every: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("CXX", "no-such-compiler")
    inductor = REGISTRIES.cases.load_entry("operators/*", ".providers:inductor")
    with pytest.raises(Unsupported, match="no-such-compiler"):
        inductor(torch.abs, (torch.ones(1),), {})


@pytest.fixture
def gems(monkeypatch: pytest.MonkeyPatch) -> types.ModuleType:
    """A library with FlagGems' interface that has one kernel, for CPUs: `abs` is off by one."""
    library: Any = types.ModuleType("flag_gems")

    class use_gems:
        def __enter__(self) -> None:
            self.lib = torch.library.Library("aten", "IMPL")
            self.lib.impl("abs", lambda x: torch.where(x < 0, -x, x) + 1, "CPU")

        def __exit__(self, *told: object) -> None:
            self.lib._destroy()

    library.use_gems, library.all_registered_keys = use_gems, lambda: ["abs", "add.Tensor"]
    monkeypatch.setitem(sys.modules, "flag_gems", library)
    return library  # type: ignore[no-any-return]


@pytest.mark.filterwarnings("ignore:Warning only once|Overriding a previously registered kernel")
def test_flaggems_takes_torchs_place_only_around_its_own_calls(every: Any, gems: types.ModuleType) -> None:
    flaggems = REGISTRIES.cases.load_entry("operators/*", ".providers:flaggems")
    assert judged(every, point("abs"), flaggems).verdict == "wrong"
    assert judged(every, point("abs"), plain).verdict == "valid"
    with pytest.raises(Unsupported, match=r"none of _softmax"):
        flaggems(torch.softmax, (torch.ones(2, 2),), {"dim": 1})


def test_the_whole_family_is_one_trial_and_a_part_of_it_one_each() -> None:
    (whole,) = plan(Options(cases=["operators/*"]), REGISTRIES).trials
    assert (whole.case, whole.id, whole.engine) == ("operators/*", "000-operators-all", "eager")
    some = plan(Options(cases=["operators/so*", "operators/m?"]), REGISTRIES).trials
    assert [trial.case for trial in some] == ["operators/softmax", "operators/mm", "operators/mv"]


def test_a_trial_is_told_of_what_it_measures_only() -> None:
    settings = alone("operators/mv", Options(cases=["operators/mv"]), REGISTRIES).settings
    assert list(settings["operators"]) == ["mv"]
    assert settings["shapes"] == {"tiny": {"n": 128, "k": 128}}
    assert settings["sweep"]["dtype"] == ["fp32", "bf16"]


def test_the_list_of_cases_has_a_family_in_one_row(capsys: pytest.CaptureFixture[str]) -> None:
    list_(What.cases)
    shown = capsys.readouterr().out
    assert "operators/*" in shown and "softmax" in shown and "operators/softmax" not in shown
    list_(What.cases, json=True)
    assert "operators/softmax" in capsys.readouterr().out
