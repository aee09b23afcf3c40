"""The one door to lm-eval: its tasks, metrics and scores; only the forward pass is ours.

lm-eval computes logits and their softmax at every position, over the whole vocabulary. With short
labels nearly all of that is thrown away, and on a small model it is a quarter of the work. `Scorer`
asks the model for the positions that are scored; log-probabilities are fp32 (lm-eval's
`softmax_dtype`) always.

Rows with choices go through the model as trees (`prefix_trees`): what prompts have in common is
computed once, and there is no padding. Sums are then taken in another order than lm-eval takes them
in: a log-likelihood differs by rounding (seen: 1e-4 nats of 100), a choice where two are that
close. The same rows give the same bytes on every run. A perplexity is printed with all its digits,
so texts that are read as a whole keep lm-eval's batches (`padded_batches`), as everything does
where the model does not read trees: scores are then lm-eval's to the last digit wherever a row of a
matrix product does not depend on how many others there are, as with MKL on a CPU.

On a CPU trees and slices of batches are computed `side_by_side`, one on each thread.

Import this module where it is needed: it takes seconds.
"""

from __future__ import annotations

import io
import logging
import math
from collections import defaultdict
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from contextlib import redirect_stderr
from copy import deepcopy
from dataclasses import dataclass
from typing import Any

import torch
from datasets import Dataset
from lm_eval.api.instance import Instance
from lm_eval.api.task import ConfigurableTask
from lm_eval.evaluator import evaluate
from lm_eval.models.huggingface import HFLM

from bitrank import padded_batches, prefix_trees, side_by_side
from bitrank.errors import UserError
from bitrank.padded_batches import Slice
from bitrank.prefix_trees import Row, Tree
from bitrank.progress import Progress, progress
from bitrank.tasks import Task

# Advice about command-line flags that are not used here.
logging.getLogger("lm_eval").setLevel(logging.ERROR)

Watch = Callable[[Row, torch.Tensor], None]
"""Sees each row with the logits that predict its last tokens, (targets, vocabulary)."""
Request = tuple[Any, list[int], list[int]]
"""lm-eval's: the strings, the context's token ids, the ids whose log-likelihood is asked for."""


@dataclass(frozen=True)
class Scores:
    metrics: dict[str, float | None]
    """Under lm-eval's names, without the filter's; null where it gives none."""
    loglikelihoods: list[list[float]]
    """For each document, of each choice; or of the reference or the whole text alone. In nats."""
    num_tokens: list[list[int]]
    """Tokens that each log-likelihood sums over."""
    num_forward_rows: int
    """Rows that went through the model: one a document where labels are one token."""
    generated: list[tuple[str, bool]]
    """For each document, its free-text answer and whether that is right; else empty."""


class Scorer(HFLM):  # type: ignore[misc]
    """A live model for lm-eval. Subclassing is its way to bring a model of one's own."""

    def __init__(
        self, model: Any, tokenizer: Any, batch_size: int, watch: Watch | None = None
    ) -> None:
        # lm-eval asks for a context again with each of its choices, and `_count` for every text.
        self._encoded: dict[str, list[int]] = {}
        super().__init__(pretrained=model, tokenizer=tokenizer, batch_size=batch_size)
        self.num_forward_rows = 0
        self._shown: Progress | None = None
        self._watch = watch

    def run(self, task: Task) -> Scores:
        """Score every document of a task.

        Raises:
            UserError: a prompt with its answer is longer than the model takes.
        """
        before = self.num_forward_rows
        found = evaluate(self, {"tasks": {task.name: _Task(task)}}, log_samples=True)
        samples = sorted(found["samples"][task.name], key=lambda sample: int(sample["doc_id"]))
        free_text = task.output_type == "generate_until"
        likelihoods, counts = (
            self._score_references(task) if free_text else self._score_samples(samples)
        )
        return Scores(
            {
                name.partition(",")[0]: value if isinstance(value, float) else None
                for name, value in found["results"][task.name].items()
                if "," in name
            },
            likelihoods,
            counts,
            self.num_forward_rows - before,
            [(sample["resps"][0][0], bool(sample["exact_match"] == 1.0)) for sample in samples]
            if free_text
            else [],
        )

    def _score_samples(self, samples: Any) -> tuple[list[list[float]], list[list[int]]]:
        return (
            [[_loglikelihood(answer[0]) for answer in sample["resps"]] for sample in samples],
            [[self._count(*strings) for strings in sample["arguments"]] for sample in samples],
        )

    def _score_references(self, task: Task) -> tuple[list[list[float]], list[list[int]]]:
        """Log-likelihood and tokens of each document's own answer, as if it were a single choice.

        A generated answer is right or wrong; how far off a wrong one is, only this tells.
        """
        keys = (task.config["doc_to_text"], task.config["doc_to_target"])
        pairs = [(document[keys[0]], document[keys[1]]) for document in task.documents]
        requests = [
            Instance("loglikelihood", document, pair, 0, (task.name, number, 1))
            for number, (document, pair) in enumerate(zip(task.documents, pairs, strict=True))
        ]
        scored = self.loglikelihood(requests)
        return [[value] for value, _ in scored], [[self._count(*pair)] for pair in pairs]

    def generate_until(self, requests: Any, disable_tqdm: bool = True) -> list[str]:
        longest = max((self.tok_encode(request.args[0]) for request in requests), key=len)
        room = requests[0].args[1]["max_gen_toks"]
        if len(longest) + room > self.max_length:
            raise UserError(
                f"an evaluated prompt of {len(longest)} tokens and `data.task.max_new_tokens` "
                f"({room}) are more than the model takes, {self.max_length}: lower it, or leave "
                "such rows out"
            )
        with progress(f"evaluate {requests[0].task_name}", len(requests), "answers") as self._shown:
            return list(super().generate_until(requests, disable_tqdm=True))

    def _model_generate(self, context: torch.Tensor, *given: Any, **options: Any) -> torch.Tensor:
        generated: torch.Tensor = super()._model_generate(context, *given, **options)
        self.num_forward_rows += len(context)
        if self._shown is not None:
            self._shown.advance(len(context))
        return generated

    def loglikelihood(self, requests: Any, disable_tqdm: bool = True) -> list[tuple[float, bool]]:
        self._encode_ahead({text for request in requests for text in _encoded_texts(*request.args)})
        with progress(f"evaluate {requests[0].task_name}", len(requests), "choices") as self._shown:
            return list(super().loglikelihood(requests, disable_tqdm=True))

    def loglikelihood_rolling(self, requests: Any, disable_tqdm: bool = True) -> list[float]:
        # A text longer than the model takes is read in several windows.
        lengths = [len(self.tok_encode(request.args[0])) for request in requests]
        num_windows = sum(math.ceil(length / self.max_length) for length in lengths)
        with progress(f"evaluate {requests[0].task_name}", num_windows, "texts") as self._shown:
            return list(super().loglikelihood_rolling(requests, disable_tqdm=True))

    def tok_encode(self, string: str, **options: Any) -> list[int]:
        if options:
            return list(super().tok_encode(string, **options))
        if string not in self._encoded:
            self._encoded[string] = super().tok_encode(string)
        return self._encoded[string].copy()

    def _encode_ahead(self, strings: Collection[str]) -> None:
        """Encode many strings in one call, which costs half of as many calls.

        Not those that begin with a BOS of their own: lm-eval adds none to them, one by one.
        """
        bos = self.tokenizer.decode(self.prefix_token_id)
        wanted = sorted(text for text in strings if text and not text.startswith(bos))
        given = {} if self.add_bos_token is None else {"add_special_tokens": self.add_bos_token}
        if wanted:
            encoded = self.tokenizer(wanted, return_attention_mask=False, **given).input_ids
            self._encoded.update(zip(wanted, encoded, strict=True))

    def _loglikelihood_tokens(
        self, requests: Sequence[Request], disable_tqdm: bool = True, override_bs: int | None = None
    ) -> list[tuple[float, bool]]:
        """Log-likelihood of each request, and whether its tokens are the most likely ones.

        Requests that differ in their last token alone share a row.
        """
        sharing: dict[Row, dict[int, list[int]]] = defaultdict(lambda: defaultdict(list))
        for index, (_, context, target) in enumerate(requests):
            sharing[(*context, *target[:-1])][len(target)].append(index)
        num_targets = {row: max(by_length) for row, by_length in sharing.items()}
        answers: list[tuple[float, bool]] = [(0.0, False)] * len(requests)
        is_text = requests[0][0] is None  # lm-eval's mark of a text that is read as a whole
        for row, logits in self._read_rows(num_targets, in_trees=not is_text):
            if self._watch is not None:
                self._watch(row, logits)
            for indices in sharing[row].values():
                scored = _score_targets(logits, [requests[index][2] for index in indices])
                for index, answer in zip(indices, scored, strict=True):
                    answers[index] = answer
                if self._shown is not None:
                    self._shown.advance(len(indices))
        return answers

    def _read_rows(
        self, num_targets: Mapping[Row, int], in_trees: bool
    ) -> Iterator[tuple[Row, torch.Tensor]]:
        """Each row with the logits that predict its last `num_targets` tokens."""
        rows = list(num_targets)
        longest = max(rows, key=len)
        self._check_length(longest)
        self.num_forward_rows += len(rows)
        workers = side_by_side.count_workers(self.model, self.device)
        parts: list[Tree | Slice]
        if in_trees and prefix_trees.reads_trees(self.model, longest, self.device):
            parts = list(prefix_trees.grow(rows, self.batch_size))
        else:
            parts = list(padded_batches.cut(rows, self.batch_size, workers))

        def read(part: Tree | Slice) -> list[torch.Tensor]:
            wanted = [num_targets[row] for row in part.rows]
            if isinstance(part, Tree):
                return prefix_trees.target_logits(self.model, part, wanted, self.device)
            return padded_batches.target_logits(self.model, part, wanted, self.device)

        found = side_by_side.compute_all(read, parts, workers)
        for part, logits in zip(parts, found, strict=True):
            yield from zip(part.rows, logits, strict=True)

    def _check_length(self, row: Sequence[int]) -> None:
        if len(row) > self.max_length:
            raise UserError(
                f"an evaluated prompt with its answer has {len(row) + 1} tokens, the model takes "
                f"{self.max_length}: leave such rows out"
            )

    def _count(self, text: str, continuation: str | None = None) -> int:
        if continuation is None:
            return len(self.tok_encode(text))
        return len(self._encode_pair(text, continuation)[1])


class _Task(ConfigurableTask):  # type: ignore[misc]
    """A task whose documents are in memory: no cache, no type guessed, no network."""

    def __init__(self, task: Task) -> None:
        self._documents = task.documents
        super().__init__(config=deepcopy(task.config))  # lm-eval writes into it

    def download(self, dataset_kwargs: Any = None, **_: Any) -> None:
        self.dataset = {"test": Dataset.from_list(self._documents)}

    def build_all_requests(self, **options: Any) -> None:
        with redirect_stderr(io.StringIO()):  # a bar of its own, over in an instant
            super().build_all_requests(**options)


def _encoded_texts(context: str, continuation: str) -> tuple[str, str]:
    """What lm-eval encodes of a pair: white space that ends the context goes to the other."""
    return context.rstrip(), context + continuation


def _score_targets(
    logits: torch.Tensor, targets: Sequence[Sequence[int]]
) -> list[tuple[float, bool]]:
    """Log-likelihood of each target, and whether its tokens are the most likely ones.

    `logits` (tokens, vocabulary) end with those of the last token; targets are equally long.
    """
    wanted = torch.tensor(targets, device=logits.device).t()
    logprobs = logits[-len(wanted) :].log_softmax(dim=-1, dtype=torch.float32)
    sums: list[float] = logprobs.gather(1, wanted).sum(dim=0).tolist()
    likeliest = logprobs.argmax(dim=-1, keepdim=True)
    greedy: list[bool] = (likeliest == wanted).all(dim=0).tolist()
    return list(zip(sums, greedy, strict=True))


def _loglikelihood(answer: Any) -> float:
    """lm-eval gives a pair for a choice, a bare number for a whole text."""
    return float(answer[0] if isinstance(answer, tuple) else answer)
