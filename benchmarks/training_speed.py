"""Speed of a training step: this project's Aquila against transformers' Llama of the same shape.

    python benchmarks/training_speed.py [--rounds 12] [--threads 2] [--compile] [--json]

One process, fp32, the same tokens, SDPA and `torch.optim.AdamW(fused=True)` in both. A step is forward, backward and
optimizer. Rounds go A B, B A, A B, …, each with a GEMM timed before it; the ratio is that of the medians, its interval
the 95 % percentile bootstrap over rounds, so that what slows a whole round slows both alike. MFU counts attention in
full and stands on the round's own GEMM. Needs transformers: pip install 'flagperf[benchmarks]'.
"""

from __future__ import annotations

import argparse
import json
import os
import statistics
import sys
import time
from collections.abc import Callable
from typing import Any

import numpy as np
import torch

from flagperf.cases.aquila.formulas import parameters, training_flops_per_token
from flagperf.cases.aquila.model import Aquila
from flagperf.cases.aquila.settings import PretrainSettings
from flagperf.cases.aquila.weights import fill
from flagperf.plan import Options, alone
from flagperf.registry import Registries
from flagperf.settings import typed

PRESET = alone("aquila/pretrain", Options(cases=["aquila/pretrain"], preset="mini", engines=[]), Registries())
CONFIG = typed(PRESET.settings, PretrainSettings).model
SEQUENCES = PRESET.protocol.global_batch
WARM_UP = 3
GEMM_SIZE = 2048
RESAMPLES = 10_000


def aquila_step(compiled: bool) -> Callable[[torch.Tensor, torch.Tensor], torch.Tensor]:
    """A function that computes the loss of a batch with this project's model, and its parameters behind it."""
    model = Aquila(CONFIG)
    fill(model, CONFIG, seed=0)
    if compiled:
        for block in model.blocks:
            block.compile()
    return training_step(model, model)


def llama_step(compiled: bool) -> Callable[[torch.Tensor, torch.Tensor], torch.Tensor]:
    """The same with transformers' Llama, compiled layer by layer as well."""
    try:
        from transformers import LlamaConfig, LlamaForCausalLM
    except ImportError:
        sys.exit(
            "transformers isn't installed; it is what this benchmark compares with: pip install 'flagperf[benchmarks]'"
        )
    config = LlamaConfig(
        vocab_size=CONFIG.vocab_size,
        hidden_size=CONFIG.dim,
        intermediate_size=CONFIG.ffn,
        num_hidden_layers=CONFIG.layers,
        num_attention_heads=CONFIG.heads,
        num_key_value_heads=CONFIG.kv_heads,
        rms_norm_eps=CONFIG.norm_eps,
        max_position_embeddings=CONFIG.seq_len,
        use_cache=False,
        tie_word_embeddings=False,
        attn_implementation="sdpa",  # type: ignore[call-arg]
    )
    torch.manual_seed(0)
    model = LlamaForCausalLM(config).train()
    if sum(p.numel() for p in model.parameters()) != parameters(CONFIG):
        sys.exit("transformers' Llama doesn't have the size of this project's model: nothing to compare.")
    if compiled:
        for layer in model.model.layers:
            layer.compile()

    def loss(tokens: torch.Tensor, targets: torch.Tensor) -> torch.Tensor:
        result: torch.Tensor = model(input_ids=tokens, labels=tokens, shift_labels=targets).loss
        return result

    return training_step(model, loss)


def training_step(
    model: torch.nn.Module, loss: Callable[[torch.Tensor, torch.Tensor], torch.Tensor]
) -> Callable[[torch.Tensor, torch.Tensor], torch.Tensor]:
    """A whole training step of a model: forward, backward, AdamW."""
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-4, weight_decay=0.1, fused=True)

    def step(tokens: torch.Tensor, targets: torch.Tensor) -> torch.Tensor:
        optimizer.zero_grad(set_to_none=True)
        value = loss(tokens, targets)
        value.backward()  # type: ignore[no-untyped-call]
        optimizer.step()
        return value.detach()

    return step


def gemm_flops() -> float:
    """FLOP/s of the best of three square fp32 products: what this machine can do now."""
    left, right = torch.randn(2, GEMM_SIZE, GEMM_SIZE).unbind()
    out = torch.empty_like(left)
    seconds = []
    for _ in range(3):
        start = time.perf_counter()
        torch.mm(left, right, out=out)
        seconds.append(time.perf_counter() - start)
    return float(2 * GEMM_SIZE**3 / min(seconds))


def ratio_interval(slower: list[float], faster: list[float]) -> tuple[float, float, float]:
    """Ratio of the medians and its 95 % percentile bootstrap interval, rounds drawn whole."""
    pairs = np.array([slower, faster])
    drawn = np.random.default_rng(0).integers(pairs.shape[1], size=(RESAMPLES, pairs.shape[1]))
    medians = np.median(pairs[:, drawn], axis=2)
    low, high = np.quantile(medians[0] / medians[1], [0.025, 0.975])
    return float(np.median(slower) / np.median(faster)), float(low), float(high)


def measure(rounds: int, compiled: bool) -> dict[str, Any]:
    """Time both, interleaved, and return what was measured with the raw samples."""
    torch.manual_seed(0)
    window = torch.randint(CONFIG.vocab_size, (SEQUENCES, CONFIG.seq_len + 1))
    batch = window[:, :-1].contiguous(), window[:, 1:].contiguous()
    steps = {"aquila": aquila_step(compiled), "llama": llama_step(compiled)}
    for _ in range(WARM_UP):
        for name, step in steps.items():
            if not torch.isfinite(step(*batch)):
                sys.exit(f"The loss of {name} isn't finite: a speed would mean nothing.")
    seconds: dict[str, list[float]] = {name: [] for name in steps}
    cpu_seconds: dict[str, list[float]] = {name: [] for name in steps}
    peaks = []
    for number in range(rounds):
        peaks.append(gemm_flops())
        for name in list(steps)[:: -1 if number % 2 else 1]:
            start, cpu_start = time.perf_counter(), time.process_time()
            steps[name](*batch)
            seconds[name].append(time.perf_counter() - start)
            cpu_seconds[name].append(time.process_time() - cpu_start)
    tokens = SEQUENCES * CONFIG.seq_len
    flops = training_flops_per_token(CONFIG) * tokens
    ratio, low, high = ratio_interval(seconds["llama"], seconds["aquila"])
    return {
        "parameters": parameters(CONFIG),
        "tokens_per_step": tokens,
        "threads": torch.get_num_threads(),
        "compiled": compiled,
        "rounds": rounds,
        "load_average": os.getloadavg()[0],
        "torch": torch.__version__,
        "gemm_gflops": statistics.median(peaks) / 1e9,
        "speedup": {"ratio_of_medians": ratio, "low": low, "high": high, "confidence": 0.95},
        "cpu_time_ratio": statistics.median(cpu_seconds["llama"]) / statistics.median(cpu_seconds["aquila"]),
        "models": {
            name: {
                "step_seconds": statistics.median(seconds[name]),
                "cpu_seconds": statistics.median(cpu_seconds[name]),
                "tokens_per_second": tokens / statistics.median(seconds[name]),
                "mfu": statistics.median(flops / s / p for s, p in zip(seconds[name], peaks, strict=True)),
                "samples": seconds[name],
            }
            for name in steps
        },
    }


def main() -> None:
    """Parse, measure, print."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("--rounds", type=int, default=12, help="measured steps of each model (default 12)")
    parser.add_argument("--threads", type=int, default=2, help="compute threads (default 2)")
    parser.add_argument("--compile", action="store_true", help="compile the layers of both with torch.compile")
    parser.add_argument("--json", action="store_true", help="print one JSON object")
    options = parser.parse_args()
    if options.rounds < 2 or options.threads < 1:
        parser.error("--rounds must be at least 2 and --threads at least 1")
    torch.set_num_threads(options.threads)
    result = measure(options.rounds, options.compile)
    if options.json:
        print(json.dumps(result))
        return
    print(
        f"{result['parameters'] / 1e6:.1f}M parameters, {result['tokens_per_step']} tokens a step, fp32, "
        f"{result['threads']} threads, {'compiled' if options.compile else 'eager'}, "
        f"median of {options.rounds} rounds, load {result['load_average']:.1f}; "
        f"GEMM {result['gemm_gflops']:.0f} GFLOP/s\n"
    )
    print(f"{'model':8} {'step, s':>9} {'tokens/s':>10} {'MFU':>7} {'CPU s a step':>13}")
    for name, model in result["models"].items():
        print(
            f"{name:8} {model['step_seconds']:9.3f} {model['tokens_per_second']:10.0f} "
            f"{model['mfu']:7.1%} {model['cpu_seconds']:13.2f}"
        )
    speedup = result["speedup"]
    print(
        f"\nAquila is {speedup['ratio_of_medians']:.3f} times as fast (95 % interval {speedup['low']:.3f} to "
        f"{speedup['high']:.3f}); CPU time, which others on this machine disturb less: {result['cpu_time_ratio']:.3f}"
    )


if __name__ == "__main__":
    main()
