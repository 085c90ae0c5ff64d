"""Generation by engines that run our module: tokens equal the plain model's, however they are batched and cached."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from inference.small import Started

from flagperf.cases.aquila.generation import AquilaGeneration
from flagperf.engines.exported import exported, onnx_of
from flagperf.engines.inductor import Inductor
from flagperf.inference.agreement import agreement
from flagperf.inference.answers import collected
from flagperf.inference.engine import Request

Start = Callable[..., Started]


def plain(task: AquilaGeneration, request: Request) -> list[int]:
    """Return what the plain model goes on with, read whole for every token."""
    model, read = task.reference(), list(request.prompt)
    with torch.inference_mode():
        for _ in range(request.limit):
            read.append(int(model(torch.tensor([read]))[0, -1].argmax()))
    return read[len(request.prompt) :]


@pytest.mark.parametrize("model", [{}, {"kv_heads": 4}, {"rotary": "half"}, {"kv_heads": 1, "rotary": "half"}], ids=str)
def test_eager_makes_the_plain_models_tokens(start: Start, model: dict[str, Any]) -> None:
    engine, task = start(model=model)
    requests = task.requests()
    assert len({len(request.prompt) for request in requests}) > 3  # rows of three join and leave at different steps
    answers = collected(engine.submit, requests)
    assert [answer.ids for answer in answers] == [plain(task, request) for request in requests]
    alone = [collected(engine.submit, [request])[0].ids for request in requests[:2]]
    assert alone == [answer.ids for answer in answers[:2]]
    facts = engine.facts()
    assert facts["rows"] == 3 and 1 < float(str(facts["rows_a_step"])) <= 3


def test_contexts_are_filled_to_the_last_token_and_no_further(start: Start) -> None:
    engine, task = start()
    full = Request([5] * 58, 6)
    (answer,) = collected(engine.submit, [full])
    assert answer.ids == plain(task, full)
    refused, empty = collected(engine.submit, [Request([5] * 58, 7), Request([], 1)])
    assert (refused.fault, empty.fault) == ("too_long", "too_long")
    assert "65" not in refused.query().why and "64" in refused.query().why


def test_a_prefix_that_is_known_is_taken_over(start: Start) -> None:
    engine, task = start(prefix_cache=True)
    beginning = [int(token) for token in torch.arange(7, 47)]
    requests = [Request([*beginning, 60 + number], 5) for number in range(5)]
    expected = [plain(task, request) for request in requests]
    for _ in range(2):  # the second time all blocks are known
        assert [answer.ids for answer in collected(engine.submit, requests)] == expected
    known = float(str(engine.facts()["prefix_known"]))
    assert known > 0.4
    held = engine.held()
    assert held.cache is not None and held.weights is not None and held.cache > 0


@pytest.mark.slow
@pytest.mark.parametrize("name", ["onnxruntime", "openvino", "transformers"])
def test_other_engines_make_them_too(start: Start, name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    threads: list[int] = []
    monkeypatch.setattr(torch, "set_num_threads", threads.append)
    engine, task = start(name)
    _by_the_rank, *by_the_engine = threads
    assert by_the_engine == ([] if name == "transformers" else [1]), "torch's own would spin beside the engine's"
    requests = task.requests()[:5]
    answers = collected(engine.submit, requests)
    assert [answer.ids for answer in answers] == [plain(task, request) for request in requests]


def test_a_graph_is_written_once_for_its_weights(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    pytest.importorskip("onnxscript")
    monkeypatch.setenv("FLAGPERF_CACHE", str(tmp_path))
    written, write = [], torch.onnx.export
    monkeypatch.setattr(torch.onnx, "export", lambda *args, **more: written.append(1) or write(*args, **more))
    module, example = torch.nn.Linear(4, 3), torch.ones(2, 4)

    def entry() -> Path:
        with onnx_of(exported(module, (example,), {0: (0,)})) as path:
            return path

    first = entry()
    assert first.is_relative_to(tmp_path) and entry() == first and len(written) == 1
    weight = module.weight.detach()
    before = weight.clone()
    weight[0, 0] += 1
    assert entry() != first and len(written) == 2
    first.write_bytes(b"torn")
    weight.copy_(before)
    assert entry() == first and len(written) == 3, "a damaged one is made again"
    monkeypatch.setattr("flagperf.engines.exported.KEPT_BYTES", 1)
    assert not entry().exists(), "large ones aren't kept"


def test_an_engine_that_computes_something_else_is_found(start: Start) -> None:
    engine, task = start()
    requests = task.requests()
    assert agreement(engine, task, requests).wrong == 0
    module: Any = engine.batcher._step
    with torch.inference_mode():
        module.cos.copy_(module.cos.roll(1, 0))  # positions one too low
    told = agreement(engine, task, requests)
    assert told.wrong > 0 and "where the reference has" in told.first


def test_narrow_types_stay_within_their_tolerance(start: Start) -> None:
    engine, task = start(dtype="bf16")
    told = agreement(engine, task, task.requests())
    assert told.wrong == 0 and told.tolerance == 0.1


def test_int8_weights_take_less_and_say_how_far_off_they_are(start: Start) -> None:
    whole, _ = start()
    engine, task = start("eager-int8")
    assert not engine.exact
    bytes_of = [each.held().weights or 0 for each in (whole, engine)]
    assert bytes_of[1] < 0.6 * bytes_of[0]
    told = agreement(engine, task, task.requests())
    assert told.wrong < told.tokens / 2  # it is the same model still


@pytest.mark.parametrize(("script", "known"), [("echo 12.2.0", True), ("echo 9", None), ("echo no", None), ("", None)])
def test_a_compiler_of_these_years_is_not_tried_out(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, script: str, known: bool | None
) -> None:
    compiler = tmp_path / "g++"
    compiler.write_text(f"#!/bin/sh\n{script}\n")
    compiler.chmod(0o755)
    monkeypatch.setenv("CXX", str(compiler))
    with torch._inductor.config.patch({"cpp.vec_isa_ok": None}):
        Inductor.compile(None, torch.nn.Linear(1, 1), (), {})  # type: ignore[arg-type]
        assert torch._inductor.config.cpp.vec_isa_ok is known
