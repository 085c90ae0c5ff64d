"""Whether an engine answers as the plain model does, and how well either goes on with a text.

The reference reads prompt and answer whole, without a cache, in fp32. A token is right if, given those before it, the
reference puts none higher than that by more than rounding explains. So one early slip isn't counted at every later
token, and two tokens that are as good as each other may change places.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch

from flagperf.errors import FlagPerfError
from flagperf.inference.answers import collected
from flagperf.inference.engine import GenerationTask, InferenceEngine, Request
from flagperf.schema.inference import Agreement

CHECKED = 8
"""Prompts whose answers are compared with the reference."""
TOLERANCES = {torch.float32: 1e-4, torch.float16: 2e-2, torch.bfloat16: 1e-1}
"""Standard deviations of a token's logits by which an answer may lie below the best."""


def agreement(engine: InferenceEngine, task: GenerationTask, requests: Sequence[Request]) -> Agreement:
    """Compare an engine's answers to some requests with the reference, all asked at once so that batching is in it."""
    answers = collected(engine.submit, requests)
    for answer in answers:
        if answer.fault:
            raise FlagPerfError(f"A query of the check has no answer: {answer.fault}: {answer.query().why}.")
    model = task.reference()
    tolerance = TOLERANCES[task.dtype]
    tokens = wrong = 0
    worst, first = 0.0, ""
    for answer in answers:
        prompt = answer.request.prompt
        read = torch.tensor([[*prompt, *answer.ids[:-1]]])
        with torch.inference_mode():
            logits = model(read)[0, len(prompt) - 1 :].float()
        chosen = logits.gather(1, torch.tensor(answer.ids).unsqueeze(1)).squeeze(1)
        below = (logits.max(1).values - chosen) / logits.std(1)
        bad = (below > tolerance).nonzero().flatten().tolist()
        if bad and not first:
            best = int(logits[bad[0]].argmax())
            first = f"prompt {answer.prompt}, token {bad[0]}: {answer.ids[bad[0]]} where the reference has {best}"
        tokens, wrong, worst = tokens + len(answer.ids), wrong + len(bad), max(worst, float(below.max()))
    return Agreement(queries=len(answers), tokens=tokens, wrong=wrong, worst=worst, tolerance=tolerance, first=first)


def next_tokens_right(engine: InferenceEngine, passages: Sequence[tuple[Sequence[int], int]]) -> float:
    """Return the share of held-out passages whose next token is the one that the engine finds likeliest."""
    answers = collected(engine.submit, [Request(prompt, 1) for prompt, _ in passages])
    right = sum(answer.ids == [token] for answer, (_, token) in zip(answers, passages, strict=True))
    return right / len(passages)
