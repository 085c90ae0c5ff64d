"""Memory by formula against what autograd saves and torch allocates, and every engine's ledger by hand."""

from __future__ import annotations

import contextlib
from typing import Any

import msgspec
import pytest
import torch
from torch.autograd.graph import saved_tensors_hooks
from torch.profiler import ProfilerActivity, profile

from flagperf.cases.aquila import formulas, memory
from flagperf.cases.aquila.config import AquilaConfig
from flagperf.cases.aquila.model import Aquila, Block
from flagperf.cases.aquila.weights import fill
from flagperf.plan import Options, plan
from flagperf.registry import Registries
from flagperf.schema.layout import Layout
from flagperf.schema.ledger import WHOLE, Activations, Holding, Ledger

SEVEN = AquilaConfig(dim=4096, layers=32, heads=32, vocab_size=100008, seq_len=2048)
GROUPED = AquilaConfig(dim=96, layers=3, heads=6, kv_heads=2, vocab_size=200, seq_len=64, rotary="half")
LARGE = AquilaConfig(dim=6144, layers=60, heads=48, kv_heads=8, ffn_hidden=24576, vocab_size=100008, seq_len=4096)

SMALL: dict[str, Any] = {
    "data": {"source": "synthetic", "vocab_size": 512},
    "model": {"dim": 64, "layers": 2, "seq_len": 64, "vocab_size": 512},
    "protocol": {"global_batch": 4, "validation": 4},
}


def ledger(engine: str) -> Ledger:
    return Registries().ledger(engine)


@pytest.mark.parametrize("dtype", ["fp32", "bf16"])
@pytest.mark.parametrize("config", [GROUPED, AquilaConfig(dim=64, layers=1, heads=2, vocab_size=64, seq_len=32)])
def test_activation_bytes_of_a_block_are_what_autograd_saves(config: AquilaConfig, dtype: str) -> None:
    torch.manual_seed(0)
    block, model = Block(config), Aquila(config)
    saved: dict[int, int] = {}

    def note(tensor: torch.Tensor) -> torch.Tensor:
        saved[tensor.untyped_storage().data_ptr()] = tensor.untyped_storage().nbytes()
        return tensor

    x = torch.randn(2, config.seq_len, config.dim, requires_grad=True)
    table = model.rotary_table(config.seq_len, x.device)
    weights = {p.untyped_storage().data_ptr() for p in block.parameters()}
    narrow = torch.autocast("cpu", torch.bfloat16) if dtype == "bf16" else contextlib.nullcontext()
    with narrow, saved_tensors_hooks(note, lambda t: t):
        out = block(x, table)
    total = sum(size for address, size in saved.items() if address not in weights)
    if dtype == "bf16":
        total -= 2 * formulas.layer_matrix_parameters(config)  # autocast's copies, counted with the weights
    assert out.requires_grad
    assert total == memory.layer_activation_bytes(config, micro_batch=2, dtype=dtype)


@pytest.mark.parametrize("recompute", [False, True])
@pytest.mark.parametrize("dtype", ["fp32", "bf16"])
def test_memory_estimate_is_within_a_tenth_of_what_is_allocated(dtype: str, recompute: bool) -> None:
    config = AquilaConfig(dim=256, layers=4, heads=4, vocab_size=2048, seq_len=128)
    model = Aquila(config, recompute=recompute)
    fill(model, config, 0)
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-4)
    tokens = torch.randint(config.vocab_size, (8, config.seq_len))
    narrow = torch.autocast("cpu", torch.bfloat16) if dtype == "bf16" else contextlib.nullcontext()

    def accumulate() -> None:
        with narrow:
            loss = model(tokens, tokens)
        loss.backward()

    accumulate()
    optimizer.step()
    optimizer.zero_grad(set_to_none=True)
    # Gradients of the first micro-batch are there while the second one's activations are: the peak a step has.
    with profile(activities=[ProfilerActivity.CPU], profile_memory=True) as profiler:
        accumulate()
        accumulate()
    assert profiler.profiler is not None
    events = [e for e in profiler.profiler.kineto_results.events() if e.name() == "[memory]"]
    now = peak = 0
    for event in sorted(events, key=lambda e: e.start_ns()):
        now += event.nbytes()
        peak = max(peak, now)
    held = 12 * formulas.parameters(config)  # weights and Adam's moments, allocated before the profile
    state = memory.state_bytes(config, dtype=dtype, micro_batches=2)
    expected = state.weights + state.gradients + state.optimizer
    expected += memory.activation_bytes(config, micro_batch=8, dtype=dtype, layout=Layout(recompute=recompute)).peak
    assert expected == pytest.approx(held + peak, rel=0.1)


def test_states_of_torchs_own_engines() -> None:
    config, psi = SEVEN, formulas.parameters(SEVEN)
    for engine in ("single", "ddp"):
        plain = memory.state_bytes(config, ledger(engine), ranks=8)
        assert (plain.weights, plain.gradients, plain.optimizer) == (4 * psi, 4 * psi, 8 * psi)
    assert memory.state_bytes(config, dtype="bf16").weights - 4 * psi == 2 * formulas.matrix_parameters(config)
    fsdp = ledger("fsdp")
    two = memory.state_bytes(config, fsdp, layout=Layout(zero=2), dtype="bf16", ranks=8)
    three = memory.state_bytes(config, fsdp, layout=Layout(zero=3), dtype="bf16", ranks=8)
    assert two.weights == 0.5 * psi + 2 * psi
    assert three.weights < 0.5 * psi + 0.5 * psi
    assert two.gradients == three.gradients < psi
    assert two.optimizer == three.optimizer == psi
    added = memory.state_bytes(config, fsdp, layout=Layout(zero=3), ranks=8, micro_batches=2)
    assert added.gradients == 4.5 * psi


def test_a_gathered_unit_is_never_more_than_the_model() -> None:
    config = AquilaConfig(dim=64, layers=1, heads=2, vocab_size=64, seq_len=32)
    holding = Holding(what="weights", bytes={"fp32": 4}, of="unit", times=5)
    assert memory.state_bytes(config, Ledger(holds=[holding])).weights == 4 * formulas.parameters(config)


def test_a_dtype_that_isnt_named_has_no_such_buffer_and_the_host_is_counted_apart() -> None:
    holding = Holding(what="offloaded", bytes={"bf16": 12}, sharded=True, when={"offload": [1], "zero": [2, 3]})
    only = Ledger(holds=[holding])
    psi = formulas.parameters(GROUPED)
    asked = Layout(zero=2, offload=True)
    assert memory.state_bytes(GROUPED, only, layout=asked, dtype="bf16", ranks=3).offloaded == 4 * psi
    assert memory.state_bytes(GROUPED, only, layout=asked, dtype="fp32", ranks=3) == memory.StateBytes()
    assert memory.state_bytes(GROUPED, only, layout=Layout(zero=2), dtype="bf16") == memory.StateBytes()


def test_model_parallel_ranks_hold_all_of_the_model_between_them() -> None:
    config = LARGE
    psi, norms = formulas.parameters(config), formulas.norm_parameters(config)
    for tp in (1, 2, 8):
        share = memory.shard(config, Layout(tp=tp))
        assert tp * (share.parameters - norms) + norms == psi  # norms are on every rank
        assert tp * share.matrices == formulas.matrix_parameters(config)
    last = memory.shard(config, Layout(pp=4))
    inner = config.layers / 4 * (formulas.layer_matrix_parameters(config) + 2 * config.dim)
    assert last.parameters == psi - 3 * inner - config.vocab_size * config.dim


def test_activations_of_model_parallel_ranks() -> None:
    config = LARGE
    whole = memory.layer_activation_bytes(config, micro_batch=1, dtype="bf16")
    divided = memory.layer_activation_bytes(config, micro_batch=1, dtype="bf16", layout=Layout(tp=4))
    sequence = memory.layer_activation_bytes(config, micro_batch=1, dtype="bf16", layout=Layout(tp=4, sp=True))
    assert sequence == whole / 4 < divided < whole
    # The first stage has as many micro-batches in flight as there are stages, if it's given so many.
    pipeline = Layout(pp=4)
    few, many, more = (
        memory.activation_bytes(config, micro_batch=1, dtype="bf16", layout=pipeline, micro_batches=count).peak
        for count in (1, 4, 8)
    )
    assert few < many == more
    assert many > 60 * whole > few


def test_logits_of_a_chunk_and_of_all() -> None:
    config = SEVEN
    assert memory.logits_bytes(config, tokens=2048) == 2048 * 100008 * 4
    assert memory.logits_bytes(config, tokens=2048, chunk=256) == 256 * 100008 * 4
    kept = Activations(logits={"bf16": 10})
    least = memory.activation_bytes(config, micro_batch=1, dtype="bf16", kept=kept).loss
    assert least > 2048 * 100008 * 10


def test_every_engines_ledger_knows_its_layouts_and_dtypes() -> None:
    """A ledger that holds nothing of a dtype or a ZeRO stage that the engine takes would predict nonsense."""
    config = SEVEN
    for manifest in Registries().engines.all():
        if manifest.kind != "training":
            continue
        rule = manifest.layout.get("zero")
        for stage in rule.values if rule else [0]:
            for dtype in manifest.dtypes:
                held = ledger(manifest.name)
                state = memory.state_bytes(config, held, layout=Layout(zero=stage), dtype=dtype, ranks=2)
                assert min(state.weights, state.gradients, state.optimizer) > 0, (manifest.name, stage, dtype)


def test_an_engine_that_says_nothing_shards_nothing() -> None:
    assert ledger("single") == WHOLE


def test_states_that_come_when_activations_go_are_not_added_to_them() -> None:
    """Gradients that FSDP frees before a step aren't there at the loss, where activations are most."""
    options = Options(
        cases=["aquila/pretrain"],
        engines=["fsdp:zero=2"],
        layout="micro=2",
        ranks=2,
        settings=SMALL,
        oversubscribe=True,
    )
    registries = Registries()
    trial = plan(options, registries).trials[0]
    case = registries.cases.load(trial.case)(trial)
    once = case.estimate(registries.ledger("fsdp"))
    assert once.gradients == 0 and once.activations > 0
    more = msgspec.structs.replace(trial, layout=msgspec.structs.replace(trial.layout, micro=1))
    added = registries.cases.load(trial.case)(more).estimate(registries.ledger("fsdp"))
    assert added.gradients == 4 * added.parameters  # whole while micro-batches are added up
    fewest = Ledger(holds=[Holding(what="gradients", bytes={"fp32": 1e6}, since="end")])
    assert case.estimate(fewest).total == pytest.approx(1e6 * once.parameters)
