"""Free-text answers are generated greedily and compared as lm-eval compares them."""

from __future__ import annotations

import dataclasses
import statistics
from pathlib import Path
from typing import Any

import pytest
import torch
from evaluated import RUNTIME, configured, direct_nll, score_with_lm_eval, write_free_text

from bitrank import evaluation, harness, identity, models, paths, records, tasks
from bitrank.errors import UserError


def test_free_text_is_what_the_model_says_greedily(project: Path) -> None:
    write_free_text(paths.PREPARED, [], [])
    model, tokenizer = models.load_model(paths.ORIGINAL), models.load_tokenizer(paths.ORIGINAL)
    record = evaluation.evaluate_model("original", configured(), RUNTIME)

    def greedy(prompt: str) -> str:
        ids = list(tokenizer(prompt).input_ids)
        start = len(ids)
        while len(ids) < start + 6:
            best = int(model(torch.tensor([ids])).logits[0, -1].argmax())
            if best == tokenizer.eos_token_id:
                break
            ids.append(best)
        return tokenizer.decode(ids[start:])

    rows = records.read_jsonl(paths.split("test"))
    items = records.read_items(paths.items("original") / "task.jsonl")
    for row, item in zip(rows, items, strict=True):
        assert item.doc_hash == identity.hash_json(row)
        assert item.prediction == greedy(row["prompt"])
        assert item.target == row["answer"]
        assert item.nll == pytest.approx(
            direct_nll(model, tokenizer, row["prompt"], row["answer"]), abs=1e-4
        )
        assert item.num_tokens == len(row["answer"])
        assert item.choice_nll is None
    found = record.result["tasks"]["task"]
    assert found["nll"] == pytest.approx(statistics.fmean(item.nll or 0 for item in items))
    assert found["num_choices"] is None
    assert record.treatment["tasks"]["task"]["generation"]["max_gen_toks"] == 6
    assert record.treatment["tasks"]["task"]["generation"]["until"] == []


@pytest.mark.parametrize("ignore", [[], ["(?s).+"], [r"\d"], [r"[^\d]"]])
def test_free_text_is_compared_as_lm_eval_compares(project: Path, ignore: list[str]) -> None:
    task = tasks.trained_task(write_free_text(paths.PREPARED, ignore, ["\n"]))
    model, tokenizer = models.load_model(paths.ORIGINAL), models.load_tokenizer(paths.ORIGINAL)
    scores = harness.Scorer(model, tokenizer, 4).run(task)
    alone = score_with_lm_eval(task, model, tokenizer, project)["results"]["task"]
    assert scores.metrics["exact_match"] == alone["exact_match,none"]
    assert scores.metrics["exact_match_stderr"] == alone["exact_match_stderr,none"]
    assert scores.metrics["exact_match"] == (1.0 if ignore == ["(?s).+"] else 0.0)
    for document, (text, correct) in zip(task.documents, scores.generated, strict=True):
        assert correct == tasks.same_answer(text, document["answer"], ignore)
    items = evaluation.list_items(task, scores)
    assert [item.correct for item in items] == [correct for _, correct in scores.generated]


def test_an_answer_ends_at_a_stop_and_spaces_around_it_do_not_count(
    project: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    write_free_text(paths.PREPARED, [], ["\n", "<turn>"])
    model, tokenizer = models.load_model(paths.ORIGINAL), models.load_tokenizer(paths.ORIGINAL)
    texts = [" 0\nmore", "1<turn>2", "  2 ", "5", "4.", " 5\n5"]
    task = tasks.trained_task(paths.PREPARED)
    # In the order in which lm-eval asks: long prompts first.
    order = sorted(range(6), key=lambda n: (-len(task.documents[n]["prompt"]),
                                            task.documents[n]["prompt"]))  # fmt: skip
    said = iter([texts[n] for n in order])

    def generate(_: Any, input_ids: torch.Tensor, **options: Any) -> torch.Tensor:
        assert options["do_sample"] is False
        texts = [tokenizer(f"{next(said):<9}").input_ids for _ in input_ids]
        return torch.cat([input_ids, torch.tensor([row[:9] for row in texts])], dim=1)

    monkeypatch.setattr(type(model), "generate", generate)
    scores = harness.Scorer(model, tokenizer, 4).run(task)
    assert [text.rstrip() for text, _ in scores.generated] == [" 0", "1", "  2", "5", "4.", " 5"]
    assert [correct for _, correct in scores.generated] == [True, True, True, False, False, True]
    assert evaluation._metrics(scores)["acc"] == scores.metrics["exact_match"] == 4 / 6


def test_a_prompt_without_room_for_an_answer_is_refused(project: Path) -> None:
    task = tasks.trained_task(write_free_text(paths.PREPARED, [], []))
    model, tokenizer = models.load_model(paths.ORIGINAL), models.load_tokenizer(paths.ORIGINAL)
    long = [{**task.documents[0], "prompt": "x" * 510}]
    with pytest.raises(
        UserError, match=r"prompt of 510 tokens and `data.task.max_new_tokens` \(6\)"
    ):
        harness.Scorer(model, tokenizer, 4).run(dataclasses.replace(task, documents=long))
