"""Engine `transformers`: Hugging Face's own model, cache and `generate`."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import torch
import transformers

from flagperf.errors import UsageError
from flagperf.inference.engine import GenerationTask, InferenceEngine, Reply, Request
from flagperf.inference.worker import Job, Worker, fault_of, tensor_bytes
from flagperf.schema.inference import HeldByInference
from flagperf.schema.trial import Trial


class Transformers(InferenceEngine):
    """Static batches: requests that wait are generated for together, and the next ones when all of these are done."""

    @classmethod
    def check(cls, trial: Trial) -> None:
        """Refuse what `generate` isn't given here."""
        if trial.settings.get("prefix_cache"):
            raise UsageError(
                "The engine 'transformers' is run without prefix_cache.",
                "Leave --set prefix_cache out, or use 'eager'.",
            )

    def start(self, task: GenerationTask) -> None:
        """Load the weights from their folder."""
        self._batches = _Batches(task, self.context.runtime.device)

    def submit(self, request: Request, reply: Reply) -> None:
        """Queue a request."""
        self._batches.submit(request, reply)

    def held(self) -> HeldByInference:
        """Return the bytes of the weights; each batch has a cache of its own, which is gone with it."""
        return HeldByInference(weights=self._batches.weights)

    def facts(self) -> dict[str, object]:
        """Return how requests were batched."""
        return {"transformers": transformers.__version__, **self._batches.facts()}

    def close(self) -> None:
        """End the thread."""
        if hasattr(self, "_batches"):
            self._batches.close()


class _Batches(Worker[Job]):
    job = Job

    def __init__(self, task: GenerationTask, device: torch.device) -> None:
        super().__init__(task.decoder.seq_len)
        self._task, self._device, self._size = task, device, task.load.batch
        self._jobs: list[Job] = []
        self._generated = self._answered = 0
        self.begin()

    def build(self) -> None:
        """Load the weights."""
        transformers.logging.disable_progress_bar()  # type: ignore[no-untyped-call]
        task = self._task
        model = transformers.AutoModelForCausalLM.from_pretrained(
            task.folder(), dtype=task.dtype, attn_implementation="sdpa", local_files_only=True
        )
        self._model: Any = model.to(str(self._device))  # type: ignore[arg-type] # its decorator hides what it takes
        self.weights = tensor_bytes([*model.parameters(), *model.buffers()])

    def facts(self) -> dict[str, object]:
        """Return how requests were batched."""
        rows = self._answered / self._generated if self._generated else None
        return {"rows": self._size, "context": self.context, "batches": self._generated, "rows_a_batch": rows}

    def in_hand(self) -> Sequence[Job]:
        """Return what is left of a batch that was ended early."""
        return [job for job in self._jobs if not job.done]

    def turn(self) -> None:
        """Answer a batch."""
        self._jobs = [self.queue.popleft() for _ in range(min(self._size, len(self.queue)))]
        try:
            self._generate(self._jobs)
        except Exception as error:  # told to whom it concerns
            for job in self.in_hand():
                job.reply.failed(*fault_of(error))
            self._jobs = []

    def _generate(self, jobs: list[Job]) -> None:
        longest = max(len(job.request.prompt) for job in jobs)
        padding = [longest - len(job.request.prompt) for job in jobs]
        tokens = [[0] * pad + list(job.request.prompt) for pad, job in zip(padding, jobs, strict=True)]
        mask = [[0] * pad + [1] * (longest - pad) for pad in padding]
        most = max(job.request.limit for job in jobs)
        self._generated += 1
        self._answered += len(jobs)
        self._model.generate(
            torch.tensor(tokens, device=self._device),
            attention_mask=torch.tensor(mask, device=self._device),
            max_new_tokens=most,
            do_sample=False,
            num_beams=1,
            eos_token_id=None,
            pad_token_id=0,
            stopping_criteria=transformers.StoppingCriteriaList([_Told(jobs, lambda: self.closing)]),
        )


class _Told(transformers.StoppingCriteria):
    """Tells every token as soon as it's made; a row ends when it has as many as were asked for."""

    def __init__(self, jobs: Sequence[Job], closing: Callable[[], bool]) -> None:
        self._jobs, self._closing = jobs, closing

    def __call__(self, input_ids: torch.Tensor, scores: object, **_: object) -> torch.Tensor:
        """Return which rows have ended."""
        for job, token in zip(self._jobs, input_ids[:, -1].tolist(), strict=True):
            if not job.done and job.tell(token):
                job.reply.done()
        return torch.tensor([self._closing() or job.done for job in self._jobs], device=input_ids.device)
