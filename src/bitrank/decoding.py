"""Speed of inference: reading a prompt (prefill) and greedy decoding with a cache of keys.

Step by step, without a library's generation loop, so that what is timed is the model.
"""

from __future__ import annotations

from collections.abc import Sequence
from itertools import cycle, islice
from typing import Any

import torch

from bitrank.meters import StepClock
from bitrank.progress import Progress
from bitrank.prompts import Encoded

PREFILL_REPEATS = 5
BATCHES = {"prefill": 1, "prefill_batched": 8, "decode": 1, "decode_batched": 8}
"""Sequences at once, by the name of the measurement."""
WARMUP = 2


def draw_prompt(rows: Sequence[Encoded], length: int, device: torch.device) -> torch.Tensor:
    """`length` tokens of the rows, one after another and again; shape (1, length)."""
    ids = (token for row in cycle(rows) for token in row.input_ids)
    return torch.tensor([list(islice(ids, length))], device=device)


@torch.inference_mode()
def time_prefill(model: torch.nn.Module, prompt: torch.Tensor, batch: int) -> dict[str, Any]:
    """A forward pass over `batch` copies of the prompt, with logits of its last position only."""
    clock = StepClock(1, prompt.device)
    prompts = prompt.expand(batch, -1)
    clock.start()
    for _ in range(1 + PREFILL_REPEATS):
        model(input_ids=prompts, use_cache=True, logits_to_keep=1)
        clock.tick()
    tokens = batch * prompt.numel()
    return {"batch": batch, "prompt_tokens": prompt.numel(), **_summarize(clock, tokens)}


@torch.inference_mode()
def time_decoding(
    model: torch.nn.Module, prompt: torch.Tensor, batch: int, num_tokens: int
) -> dict[str, Any]:
    """`num_tokens` greedy steps of `batch` copies of the prompt, after a warm-up."""
    clock = StepClock(WARMUP, prompt.device)
    output = model(input_ids=prompt.expand(batch, -1), use_cache=True, logits_to_keep=1)
    clock.start()
    for _ in range(WARMUP + num_tokens):
        token = output.logits[:, -1].argmax(dim=-1, keepdim=True)
        output = model(input_ids=token, past_key_values=output.past_key_values, use_cache=True)
        clock.tick()
    return {
        "batch": batch,
        "prompt_tokens": prompt.numel(),
        "new_tokens": num_tokens,
        **_summarize(clock, batch),
    }


def time_inference(
    model: torch.nn.Module, prompt: torch.Tensor, num_tokens: int, shown: Progress
) -> dict[str, Any]:
    """Prefill and decoding, each at every batch of `BATCHES`, by its name."""
    found = {}
    for name, batch in BATCHES.items():
        if name.startswith("prefill"):
            found[name] = time_prefill(model, prompt, batch)
        else:
            found[name] = time_decoding(model, prompt, batch, num_tokens)
        shown.advance(done=name.replace("_", " "))
    return found


def _summarize(clock: StepClock, tokens_per_step: int) -> dict[str, Any]:
    return {
        "tokens_per_second": tokens_per_step * len(clock.seconds) / sum(clock.seconds),
        "step_seconds": clock.summary(),
    }
