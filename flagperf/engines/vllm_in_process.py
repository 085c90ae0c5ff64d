"""Engine `vllm-in-process`: vLLM without its server, stepped by the thread that serves.

vLLM pins a torch of its own, so FlagPerf must be installed where vLLM is.
"""

from __future__ import annotations

import os
from collections.abc import Sequence
from contextlib import suppress
from typing import Any

from flagperf.engines.endpoint import position_bytes
from flagperf.engines.vllm import environment
from flagperf.inference.engine import GenerationTask, InferenceEngine, Reply, Request
from flagperf.inference.worker import Job, Worker, fault_of
from flagperf.schema.inference import HeldByInference


class VllmInProcess(InferenceEngine):
    """vLLM: the case's weights, its own batching up to `load.batch`, and its prefix cache where the case has one."""

    def start(self, task: GenerationTask) -> None:
        """Have vLLM load the weights from their folder."""
        self._steps = _Steps(task, self.context.runtime.device.type)

    def submit(self, request: Request, reply: Reply) -> None:
        """Queue a request."""
        self._steps.submit(request, reply)

    def held(self) -> HeldByInference:
        """Return the bytes of the cache; vLLM doesn't tell those of the weights."""
        return HeldByInference(cache=self._steps.cache_bytes())

    def facts(self) -> dict[str, object]:
        """Return which vLLM it is, and what it was given."""
        return self._steps.facts()

    def close(self) -> None:
        """End the thread."""
        if hasattr(self, "_steps"):
            self._steps.close()


class _Steps(Worker[Job]):
    """Hands requests over as they come; vLLM says at every step which tokens were made."""

    job = Job

    def __init__(self, task: GenerationTask, device: str) -> None:
        super().__init__(task.decoder.seq_len)
        self._task, self._device = task, device
        self._jobs: dict[str, Job] = {}
        self._taken = 0
        self.begin()

    def build(self) -> None:
        """Start vLLM's engine."""
        told = {**environment(self._task, self._device), "VLLM_ENABLE_V1_MULTIPROCESSING": "0"}
        for name, value in told.items():
            os.environ.setdefault(name, value)
        import vllm

        task, folder = self._task, self._task.folder()
        self._options: dict[str, Any] = {
            "dtype": str(task.dtype).removeprefix("torch."),
            "max_model_len": task.decoder.seq_len,
            "max_num_seqs": task.load.batch,
            "enable_prefix_caching": task.prefix_cache,
            "enforce_eager": self._device == "cpu",
        }
        arguments = vllm.EngineArgs(model=str(folder), skip_tokenizer_init=True, **self._options)
        self._vllm: Any = vllm
        self._engine: Any = vllm.LLMEngine.from_engine_args(arguments)

    def cache_bytes(self) -> int:
        """Return the bytes set aside for keys and values."""
        cache = self._engine.vllm_config.cache_config
        return int(cache.num_gpu_blocks) * int(cache.block_size) * position_bytes(self._task)

    def facts(self) -> dict[str, object]:
        """Return which vLLM it is, and what it was given."""
        return {"vllm": self._vllm.__version__, **self._options}

    def in_hand(self) -> Sequence[Job]:
        """Return the jobs that vLLM has."""
        return list(self._jobs.values())

    def turn(self) -> None:
        """Hand over what has come, and take a step."""
        while self.queue:
            job = self.queue.popleft()
            try:
                self._hand_over(job)
            except Exception as error:  # vLLM won't have it
                job.reply.failed(*fault_of(error))
        try:
            for told in self._engine.step():
                job = self._jobs[told.request_id]
                job.reply.tokens(told.outputs[0].token_ids)
                if told.finished:
                    del self._jobs[told.request_id]
                    job.reply.done()
        except Exception as error:  # of the engine, or for want of memory: told to whom it concerns
            with suppress(Exception):
                self._engine.abort_request(list(self._jobs))
            for job in self._jobs.values():
                job.reply.failed(*fault_of(error))
            self._jobs.clear()

    def _hand_over(self, job: Job) -> None:
        self._taken += 1
        parameters = self._vllm.SamplingParams(
            temperature=0.0,
            max_tokens=job.request.limit,
            ignore_eos=True,
            detokenize=False,
            output_kind=self._vllm.sampling_params.RequestOutputKind.DELTA,
        )
        number = str(self._taken)
        self._engine.add_request(number, {"prompt_token_ids": list(job.request.prompt)}, parameters)
        self._jobs[number] = job
