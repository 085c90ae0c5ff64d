"""Classification: one forward pass an input, of fixed size, in batches as large as what waits.

A query asks for the class of one of the task's inputs, by its number; the answer is one token, the class. So loads,
journals and metrics are those of generation.
"""

from __future__ import annotations

import time
from abc import ABC, abstractmethod
from collections.abc import Sequence

import torch

from flagperf.context import RankContext
from flagperf.errors import FlagPerfError
from flagperf.inference.agreement import TOLERANCES
from flagperf.inference.answers import collected
from flagperf.inference.engine import InferenceEngine, ModuleEngine, Reply, Request
from flagperf.inference.worker import Job, Worker, fault_of, tensor_bytes
from flagperf.measure.inputs import DTYPES
from flagperf.schema.inference import Agreement, HeldByInference, LoadSettings
from flagperf.schema.trial import Trial


class ClassificationTask(ABC):
    """What a case of classification gives to an engine."""

    def __init__(self, load: LoadSettings, trial: Trial) -> None:
        self.load, self.seed = load, trial.seed
        self.dtype = DTYPES[trial.dtype]
        """In which engines compute and hold weights."""

    @abstractmethod
    def module(self, dtype: torch.dtype) -> torch.nn.Module:
        """Return the model on the host, weights filled in: of inputs [B, …] it makes logits [B, classes]."""

    @abstractmethod
    def inputs(self) -> torch.Tensor:
        """Return `load.count` inputs [count, …] on the host, floating ones in `dtype`."""

    def requests(self) -> list[Request]:
        """Return a query an input."""
        return [Request([number], 1) for number in range(self.load.count)]

    def agreement(self, engine: InferenceEngine, requests: Sequence[Request]) -> Agreement:
        """Compare an engine's classes of all inputs with what torch makes of them, in fp32, by the module as it is."""
        answers = collected(engine.submit, requests)
        for answer in answers:
            if answer.fault:
                raise FlagPerfError(f"A query of the check has no answer: {answer.fault}: {answer.query().why}.")
        module, inputs = self.module(torch.float32).eval(), self.inputs()
        with torch.inference_mode():
            logits = torch.cat([module(_wide(each)) for each in torch.split(inputs, self.load.batch)])
        chosen = torch.tensor([answer.ids[0] for answer in answers])
        below = (logits.max(1).values - logits.gather(1, chosen.unsqueeze(1)).squeeze(1)) / logits.std(1)
        bad = (below > TOLERANCES[self.dtype]).nonzero().flatten().tolist()
        first = (
            f"input {bad[0]}: {int(chosen[bad[0]])} where the reference has {int(logits[bad[0]].argmax())}"
            if bad
            else ""
        )
        return Agreement(
            queries=len(answers),
            tokens=len(answers),
            wrong=len(bad),
            worst=float(below.max()),
            tolerance=TOLERANCES[self.dtype],
            first=first,
        )


class Classifier(InferenceEngine):
    """Serves a module that an engine has compiled."""

    def __init__(self, context: RankContext, engine: ModuleEngine) -> None:
        super().__init__(context)
        self._engine, self.exact = engine, engine.exact
        self._batches: _Batches

    def start(self, task: ClassificationTask) -> None:  # type: ignore[override]
        """Compile the module and start the thread."""
        self._batches = _Batches(self.context, self._engine, task)

    def submit(self, request: Request, reply: Reply) -> None:
        """Queue a request."""
        self._batches.submit(request, reply)

    def held(self) -> HeldByInference:
        """Return the bytes of the weights."""
        return HeldByInference(weights=self._batches.weights)

    def facts(self) -> dict[str, object]:
        """Return how large batches were, and what the model alone took."""
        return {**self._engine.facts(), **self._batches.facts()}

    def close(self) -> None:
        """End the thread."""
        if hasattr(self, "_batches"):
            self._batches.close()
        self._engine.close()


class _Batches(Worker[Job]):
    """Takes what waits as a batch."""

    job = Job

    def __init__(self, context: RankContext, engine: ModuleEngine, task: ClassificationTask) -> None:
        super().__init__(context=2)  # an input's number and its class
        self._engine, self._task = engine, task
        self._runtime, self._size = context.runtime, task.load.batch
        self._passes = self._answered = 0
        self._core = 0.0
        self.begin()

    def build(self) -> None:
        """Make the inputs and the weights, and have the engine compile the model."""
        task = self._task
        self._inputs = task.inputs()
        module = task.module(task.dtype).eval().to(self._runtime.device)
        example = self._inputs[: min(2, len(self._inputs))].to(self._runtime.device)
        self.forward = self._engine.compile(module, (example,), {0: (0,)})
        self.weights = tensor_bytes([*module.parameters(), *module.buffers()])

    def facts(self) -> dict[str, object]:
        """Return how large batches were, and what the model alone took."""
        rows = self._answered / self._passes if self._passes else None
        return {"rows_a_step": rows, "core_seconds": self._core, "answered": self._answered}

    def in_hand(self) -> Sequence[Job]:
        """Return none: a batch is done when its turn is."""
        return []

    def turn(self) -> None:
        """Answer a batch."""
        jobs = [self.queue.popleft() for _ in range(min(len(self.queue), self._size))]
        try:
            classes = self._classes([job.request.prompt[0] for job in jobs])
        except Exception as error:  # of the engine, or for want of memory: told to whom it concerns
            for job in jobs:
                job.reply.failed(*fault_of(error))
            return
        for job, found in zip(jobs, classes, strict=True):
            job.tell(found)
            job.reply.done()

    def _classes(self, numbers: Sequence[int]) -> list[int]:
        """Return the classes of some inputs: fetching and moving them is part of the whole, not of the core."""
        batch = self._inputs[torch.tensor(numbers)].to(self._runtime.device)
        self._runtime.synchronize()
        began = time.perf_counter()
        logits = self.forward(batch)
        self._runtime.synchronize()
        self._core += time.perf_counter() - began
        self._passes += 1
        self._answered += len(numbers)
        classes: list[int] = logits.argmax(-1).tolist()
        return classes


def _wide(inputs: torch.Tensor) -> torch.Tensor:
    return inputs.float() if inputs.is_floating_point() else inputs
