"""The training protocol of one rank: build, warm up, measure, judge. Everything it sees goes into the journal."""

from __future__ import annotations

import time

import msgspec
import torch

from flagperf.context import RankContext
from flagperf.data.batches import combine, fingerprint_text
from flagperf.engine import Batch, TrainingEngine, TrainingTask
from flagperf.measure.communication import StepProfiler
from flagperf.measure.peak import pulse
from flagperf.schema.event import Key, Step


def run_training(context: RankContext, task: TrainingTask) -> None:
    """Bring up the trial's engine, train, and take it down."""
    engine: TrainingEngine = context.registries.engines.load(context.trial.engine)(context)
    engine.start()
    train(context, task, engine)
    engine.close()


def train(context: RankContext, task: TrainingTask, engine: TrainingEngine) -> None:
    """Run the protocol on one rank."""
    trial, journal, runtime = context.trial, context.journal, context.runtime
    protocol = trial.protocol
    micro = trial.layout.micro or 1
    share = task.global_batch // engine.data_size
    first = engine.data_rank * share

    with runtime.observe_allocation() as allocation:
        began = time.perf_counter()
        engine.build(task)
        runtime.synchronize()
        journal.write(
            Key.BUILD,
            {
                "seconds": time.perf_counter() - began,
                "flops_per_token": task.flops_per_token,
                "hfu_factor": task.recompute_factor if trial.layout.recompute else 1.0,
                "layout": str(trial.layout),
                "facts": {**runtime.facts(), **engine.facts()},
            },
        )
        journal.write(Key.INIT_STOP)
        _pulse(context, "before")
        journal.write(Key.RUN_START)

        digest = 0
        context.barrier()
        previous = time.perf_counter_ns()
        for step in range(protocol.warmup + protocol.steps):
            if step == protocol.warmup:
                allocation.stop()
                runtime.reset_peak_memory()
                context.barrier()
                previous = time.perf_counter_ns()
            asked = time.perf_counter_ns()
            hosted = [task.batch(step, first + start, micro) for start in range(0, share, micro)]
            batches = [_to_device(batch, runtime.device) for batch in hosted]
            ready = time.perf_counter_ns()
            rate = task.learning_rate(step)
            with allocation.observing(step == protocol.warmup - 1):
                output = engine.step(batches, rate)
                runtime.synchronize()
            now = time.perf_counter_ns()
            journal.write(
                Key.STEP,
                Step(
                    step=step,
                    measured=step >= protocol.warmup,
                    seconds=(now - previous) / 1e9,
                    data_seconds=(ready - asked) / 1e9,
                    tokens=share * task.sequence_length,
                    loss=float(output.loss),
                    gradient_norm=float(output.gradient_norm),
                    learning_rate=rate,
                    leader=engine.leader,
                    skipped=output.skipped,
                    loss_scale=output.loss_scale,
                ),
            )
            if engine.leader:  # of the very tensors the engine was given
                digest += sum(task.digest(step, first + i * micro, batch) for i, batch in enumerate(hosted))
            if step == 0:
                journal.write(Key.FIRST_STEP, {"seconds": _process_age()})
            previous = now
        journal.write(Key.MEMORY, allocation.complete(runtime.memory()))
        held = engine.held()
        # What is offloaded lies where the CPU's own allocator counts it too.
        counted = held.weights + held.gradients + held.optimizer + held.host * (runtime.device.type == "cpu")
        journal.write(Key.HELD, {**held._asdict(), "allocated": counted})

    _validate(context, task, engine)
    _pulse(context, "after")
    if engine.leader:
        samples = share * (protocol.warmup + protocol.steps)
        journal.write(Key.TOKENS, {"fingerprint": fingerprint_text(combine([digest])), "samples": samples})
    if protocol.profile:
        _profile(context, task, engine)


def _validate(context: RankContext, task: TrainingTask, engine: TrainingEngine) -> None:
    """Judge the model on held-out sequences, each data-parallel group on its share."""
    protocol, micro = context.trial.protocol, context.trial.layout.micro or 1
    share = protocol.validation // engine.data_size
    began = time.perf_counter()
    losses, size, tokens = [], 0, 0
    for start in range(0, share, micro):
        count = min(micro, share - start)
        batch, text = task.validation(engine.data_rank * share + start, count)
        losses.append(engine.evaluate(_to_device(batch, context.runtime.device)) * count)
        size, tokens = size + text, tokens + count * task.sequence_length
    loss = float(torch.stack(losses).sum()) / share
    context.journal.write(
        Key.EVAL,
        {
            "loss": loss,
            "tokens": tokens,
            "bytes": size,
            "seconds": time.perf_counter() - began,
            "step": protocol.warmup + protocol.steps,
            "leader": engine.leader,
        },
    )


def _profile(context: RankContext, task: TrainingTask, engine: TrainingEngine) -> None:
    """Take a few more steps under the profiler; rank 0 leaves their trace with the trial's output."""
    protocol, journal, runtime = context.trial.protocol, context.journal, context.runtime
    micro = context.trial.layout.micro or 1
    share = task.global_batch // engine.data_size
    first = engine.data_rank * share
    begun = protocol.warmup + protocol.steps
    with StepProfiler(runtime.device) as profiler:
        for step in range(begun, begun + protocol.profile):
            hosted = [task.batch(step, first + start, micro) for start in range(0, share, micro)]
            batches = [_to_device(batch, runtime.device) for batch in hosted]
            runtime.synchronize()
            with profiler.step():
                engine.step(batches, task.learning_rate(step))
                runtime.synchronize()
    observed = profiler.observed()
    if context.rank == 0 and (failure := profiler.export(journal.path.parent / "output" / "rank0.trace.json.gz")):
        observed = msgspec.structs.replace(observed, failure=observed.failure or f"no trace: {failure}")
    journal.write(Key.COMMUNICATION, observed)


def _pulse(context: RankContext, when: str) -> None:
    """Time a short GEMM on all ranks at once: how fast the machine is just now."""
    context.barrier()
    speed = pulse(context.runtime.device, context.trial.dtype)
    context.journal.write(Key.PULSE, {"flops_per_second": speed, "when": when})


def _to_device(batch: Batch, device: torch.device) -> Batch:
    return Batch(batch.tokens.to(device, non_blocking=True), batch.targets.to(device, non_blocking=True))


def _process_age() -> float:
    """Seconds since this process was started."""
    import psutil

    return time.time() - psutil.Process().create_time()
