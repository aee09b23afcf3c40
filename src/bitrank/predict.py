"""The four models of the pipeline side by side on one prompt.

One model is in memory at a time. The text is put into `data.prompt` as the training rows were, and
tokenized as they were, so that a model is asked what it was trained on. Beside the greedy answer
stand the choices of the trained task with their shares: the softmax over the choices' summed
log-likelihoods, which is what `choice_nll` is the logarithm of.
"""

from __future__ import annotations

import json
import string
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from bitrank import (
    adapters,
    batches,
    chain,
    conversations,
    identity,
    models,
    paths,
    prompts,
    tasks,
    weights,
)
from bitrank.config import DataConfig
from bitrank.data_config import ChatFormat
from bitrank.errors import UserError

PARTS = {
    "original": ((paths.ORIGINAL, "fetch"),),
    "quantized": ((paths.QUANTIZED, "quantize"),),
    "adapter": ((paths.QUANTIZED, "quantize"), (paths.ADAPTER, "train")),
    "merged": ((paths.MERGED, "merge"),),
}
"""The folders of each subject, the one with the base first, and the stages that make them."""
ROWS_AT_ONCE = 32
NUM_SHOWN = 3


@dataclass(frozen=True, kw_only=True)
class Answer:
    subject: str
    missing: str | None
    """The stage that makes the model, when it is not there yet; all else is then empty."""
    why_not: str | None = None
    """Why no stage makes it: the method is not merged."""
    held_as: str = ""
    """What the live weights are, e.g. "nf4" or "float32"."""
    text: str = ""
    choices: tuple[tuple[str, float], ...] = ()
    """The likeliest choices with their shares among all choices, best first."""


def complete_prompt(text: str, template: str) -> str:
    """`text` in the place of the template's field.

    A text that already begins and ends as the template does is a whole prompt, and so is any text
    when the template has several fields, which one text cannot fill: both stay as they are.

    Raises:
        UserError: the text is empty.
    """
    if not text.strip():
        raise UserError('the prompt is empty; try: bitrank predict "..."')
    fields = prompts.fields_of(template)
    if len(fields) != 1:
        return text
    literals = [literal for literal, *_ in string.Formatter().parse(template)]
    before, after = literals[0], literals[1] if len(literals) > 1 else ""
    if text.startswith(before) and text.endswith(after) and before + after:
        return text
    return prompts.fill(template, {fields[0]: text}, "the prompt")


def make_prompt(text: str, config: DataConfig, tokenizer: Path = paths.TOKENIZER) -> str:
    """`text` as the training rows were: in `data.prompt`, and in the chat template if they were.

    Raises:
        UserError: the text is empty, or there is no tokenizer yet.
    """
    asked = complete_prompt(text, config.prompt or "{text}")
    if not isinstance(config.format, ChatFormat):
        return asked
    if not tokenizer.is_dir():
        raise UserError(f"{tokenizer} does not exist; `dvc repro fetch` makes it")
    return conversations.ask(models.load_tokenizer(tokenizer), config.format.system, asked)


def read_choices(prepared: Path = paths.PREPARED) -> list[str]:
    """All answers of the trained task; [] before they are prepared."""
    file = prepared / "choices.json"
    return list(json.loads(file.read_text(encoding="utf-8"))) if file.is_file() else []


def predict(prompt: str, device: torch.device, max_new_tokens: int = 8) -> Iterator[Answer]:
    """Yield the answer of each of `paths.SUBJECTS`, as it is there.

    Raises:
        UserError: no model is there at all, or the adapter belongs to another base.
    """
    missing = {subject: _missing_stage(subject) for subject in paths.SUBJECTS}
    if all(missing.values()):
        raise UserError("there is no model yet: `dvc repro` makes them")
    choices, free_text = read_choices(), tasks.read_generation(paths.PREPARED)
    stops = [] if free_text is None else free_text.stop
    for subject, stage in missing.items():
        if stage is None:
            yield _answer(subject, prompt, choices, stops, device, max_new_tokens)
        else:
            yield Answer(subject=subject, missing=stage, why_not=_why_not(subject))


def _missing_stage(subject: str) -> str | None:
    absent = (stage for folder, stage in PARTS[subject] if not any(folder.glob("*.safetensors")))
    return next(absent, None)


def _why_not(subject: str) -> str | None:
    unmerged = subject == "merged" and (paths.MERGED / chain.STAMP).is_file()
    return chain.check_merged(paths.MERGED).why_not if unmerged else None


def _answer(
    subject: str,
    prompt: str,
    choices: Sequence[str],
    stops: Sequence[str],
    device: torch.device,
    max_new_tokens: int,
) -> Answer:
    folder = PARTS[subject][0][0]
    tokenizer = models.load_tokenizer(folder)
    base = models.load_model(folder, device)
    held = weights.describe_precision(base)
    types = held["quant_types"] or held["stored_elements_by_dtype"]
    model: Any = base
    if subject == "adapter":
        model = adapters.load_adapter(base, paths.ADAPTER, identity.hash_weights(folder))
    return Answer(
        subject=subject,
        missing=None,
        held_as=" + ".join(types),
        text=generate(model, tokenizer, prompt, max_new_tokens, stops),
        choices=tuple(rank_choices(model, tokenizer, prompt, choices)[:NUM_SHOWN]),
    )


@torch.inference_mode()
def generate(
    model: Any, tokenizer: Any, prompt: str, max_new_tokens: int, stops: Sequence[str] = ()
) -> str:
    """The likeliest token at each step, whatever the model's own settings.

    The end token ends an answer, and so does any text of `stops`, as in evaluation.
    """
    ids = list(tokenizer(prompt).input_ids)
    if ids[-1] == tokenizer.eos_token_id:
        ids.pop()  # some tokenizers add it themselves
    cache, step, answer = None, torch.tensor([ids], device=model.device), []
    for _ in range(max_new_tokens):
        output = model(input_ids=step, past_key_values=cache, use_cache=True, logits_to_keep=1)
        best = int(output.logits[0, -1].argmax())
        if best == tokenizer.eos_token_id:
            break
        answer.append(best)
        text = str(tokenizer.decode(answer))
        ends = [text.index(stop) for stop in stops if stop in text]
        if ends:
            return text[: min(ends)]
        cache, step = output.past_key_values, torch.tensor([[best]], device=model.device)
    return str(tokenizer.decode(answer))


@torch.inference_mode()
def rank_choices(
    model: Any, tokenizer: Any, prompt: str, choices: Sequence[str]
) -> list[tuple[str, float]]:
    """Each choice with its share among the choices, best first.

    The log-likelihood of a choice is summed over all its tokens, without the end token.
    """
    window = model.config.max_position_embeddings
    rows = [prompts.encode(tokenizer, prompt, choice, window) for choice in choices]
    sums: list[float] = []
    for start in range(0, len(rows), ROWS_AT_ONCE):
        batch = batches.collate(rows[start : start + ROWS_AT_ONCE], tokenizer.eos_token_id)
        batch = {name: tensor.to(model.device) for name, tensor in batch.items()}
        labels = batch.pop("labels")
        labels[labels == tokenizer.eos_token_id] = prompts.IGNORED
        first = int((labels != prompts.IGNORED).any(dim=0).nonzero()[0])
        positions = torch.arange(first - 1, labels.shape[1] - 1, device=model.device)
        logits = model(**batch, logits_to_keep=positions, use_cache=False).logits.float()
        losses = torch.nn.functional.cross_entropy(
            logits.transpose(1, 2), labels[:, first:], ignore_index=prompts.IGNORED,
            reduction="none",
        )  # fmt: skip
        sums += (-losses.sum(dim=1)).tolist()
    shares = torch.tensor(sums, dtype=torch.float64).softmax(dim=0).tolist()
    return sorted(zip(choices, shares, strict=True), key=lambda pair: -pair[1])
