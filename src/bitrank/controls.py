"""The `control` stage: what a bag of words makes of the same rows.

TF-IDF over words and word pairs with logistic regression is trained on the rows that the adapter is
trained on and chooses among the same answers. A fine-tuned model that it beats has shown nothing.
So that it is a fair rival, the strength of its regularization is chosen on the validation split.
Where answers are free text, the control copies the answer of the most similar training row.
"""

from __future__ import annotations

import statistics
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from bitrank import identity, paths, records, tasks
from bitrank.artifacts import whole_folder

ITEMS = paths.items("control")

STRENGTHS = (1.0, 3.0, 10.0, 30.0, 100.0, 300.0)
"""Inverse regularization strengths, tried in this order on the validation split."""

FEATURES: Mapping[str, Any] = {
    "ngram_range": (1, 2),
    "sublinear_tf": True,
    "token_pattern": r"(?u)\b\w+\b",  # words of one letter count too: "type 2", "vitamin b"
}

Rows = Sequence[Mapping[str, Any]]


def bag_of_words(prepared: Path = paths.PREPARED, items: Path = ITEMS) -> records.Record:
    """Train and score the control; write its item log to `items`, beside those of the models.

    In an item, `nll` is `choice_nll`: nothing but the answers is in its vocabulary. A neighbour's
    answer has no likelihood: both are null.

    Raises:
        UserError: a split is missing.
    """
    splits = {name: records.read_jsonl(paths.split(name, prepared)) for name in paths.SPLITS}
    free_text = tasks.read_generation(prepared)
    if free_text is None:
        scored, told = _classify(splits)
    else:
        scored, told = _copy_nearest(splits, free_text.ignore)
    with whole_folder(items) as folder:
        records.write_items(folder / f"{tasks.TRAINED}.jsonl", scored)
        items_hash = identity.hash_file(folder / f"{tasks.TRAINED}.jsonl")
    return records.Record(
        stage="control",
        treatment={
            "features": "tf-idf",
            "feature_options": {**FEATURES, "ngram_range": list(FEATURES["ngram_range"])},
            **told,
            "num_train_rows": len(splits["train"]),
            "data_hash": identity.hash_files(prepared),
        },
        result={**_summarize(scored), "items": {tasks.TRAINED: items_hash}},
        observation={},
    )


def _classify(splits: Mapping[str, Rows]) -> tuple[list[records.Item], dict[str, Any]]:
    fitted = {strength: _fit(splits["train"], strength) for strength in STRENGTHS}
    tried = {strength: _mean_nll(_score(model, splits["validation"]))
             for strength, model in fitted.items()}  # fmt: skip
    chosen = min(tried, key=lambda strength: tried[strength])
    return _score(fitted[chosen], splits["test"]), {
        "classifier": "logistic regression",
        "inverse_regularization": chosen,
        "validation_choice_nll": {str(strength): nll for strength, nll in tried.items()},
    }


def _copy_nearest(
    splits: Mapping[str, Rows], ignore: Sequence[str]
) -> tuple[list[records.Item], dict[str, Any]]:
    """Free text cannot be chosen, but copied: the answer of the training row most alike.

    Of equally near rows the first in the split is taken.
    """
    from sklearn.feature_extraction.text import TfidfVectorizer

    train, test = splits["train"], splits["test"]
    words = TfidfVectorizer(**FEATURES)
    known = words.fit_transform([row["prompt"] for row in train])
    asked = words.transform([row["prompt"] for row in test])
    scored = []
    for row, words_of_row in zip(test, asked, strict=True):
        # One row at a time: the table of all similarities may not fit into memory.
        nearest = int((known @ words_of_row.T).toarray().argmax())
        prediction = train[nearest]["answer"]
        scored.append(
            records.Item(
                doc_hash=identity.hash_json(row),
                target=row["answer"],
                prediction=prediction,
                correct=tasks.same_answer(prediction, row["answer"], ignore),
                nll=None,
                choice_nll=None,
                num_tokens=None,
            )
        )
    return scored, {
        "classifier": "nearest neighbour",
        "inverse_regularization": None,
        "validation_choice_nll": None,
    }


def _fit(rows: Rows, strength: float) -> Any:
    from sklearn.feature_extraction.text import TfidfVectorizer
    from sklearn.linear_model import LogisticRegression
    from sklearn.pipeline import make_pipeline

    model = make_pipeline(
        TfidfVectorizer(**FEATURES),
        # Second order: four times as fast here as the default, and as exact.
        LogisticRegression(C=strength, solver="newton-cg", max_iter=1000),
    )
    return model.fit([row["prompt"] for row in rows], [row["answer"] for row in rows])


def _score(model: Any, rows: Rows) -> list[records.Item]:
    """One item a row. An answer that training never shows cannot occur: `prepare` refuses it."""
    answers = [str(answer) for answer in model.classes_]
    logprobs = model.predict_log_proba([row["prompt"] for row in rows])
    scored = []
    for row, of_row in zip(rows, logprobs.tolist(), strict=True):
        prediction = answers[of_row.index(max(of_row))]
        nll = -of_row[answers.index(row["answer"])]
        scored.append(
            records.Item(
                doc_hash=identity.hash_json(row),
                target=row["answer"],
                prediction=prediction,
                correct=prediction == row["answer"],
                nll=nll,
                choice_nll=nll,
                num_tokens=None,
            )
        )
    return scored


def _mean_nll(scored: Sequence[records.Item]) -> float:
    return statistics.fmean(item.nll for item in scored if item.nll is not None)


def _summarize(scored: Sequence[records.Item]) -> dict[str, float | int | None]:
    """Accuracy and `choice_nll` in nats, each with its standard error; null where unknown."""
    acc, acc_stderr = tasks.mean_and_stderr([float(bool(item.correct)) for item in scored])
    known = [item.choice_nll for item in scored if item.choice_nll is not None]
    nll, nll_stderr = tasks.mean_and_stderr(known) if known else (None, None)
    return {
        "acc": acc,
        "acc_stderr": acc_stderr,
        "choice_nll": nll,
        "choice_nll_stderr": nll_stderr,
        "num_items": len(scored),
    }
