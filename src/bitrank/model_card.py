"""What is told to those who get an adapter and nothing else: the model card, README.md.

All of it is read from the records, so that it says what was measured and not what was meant. No
path of the base or of the rows is told, where they are the user's own: their hashes are.
"""

from __future__ import annotations

import json
import re
import shlex
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import yaml

from bitrank import facts, findings, paths
from bitrank.collection import Adapter
from bitrank.pages import escape_markdown
from bitrank.privacy import hide_home
from bitrank.projection import read_yaml
from bitrank.run_tables import METRICS, label_of
from bitrank.runs import CONTROL, TASK, Run
from bitrank.statistics import Z
from bitrank.tables import MISSING, NOT_APPLICABLE, UNKNOWN, format_value

SHOWN = ("acc", "nll", "choice_nll", "nll_per_token")
PRIVATE = ("path", "watch")
"""Keys of a source that say where something lies on the disk."""
OWN = "<a path of your own>"
ABSOLUTE = re.compile(r"^(\S*\b(?:path|watch)=[\"']?)/.*")
NEEDED = (*paths.SUBJECTS, CONTROL)
HASHES = (
    ("sha256 of the original's weights", "original_hash"),
    ("sha256 of the weights as held in training", "base_hash"),
    ("sha256 of the rows", "data_hash"),
    ("sha256 of the prompt's template", "template_hash"),
)
HELD = {
    "num_quantized_layers": "quantized layers", "block_sizes": "block size",
    "double_quant": "double quantization", "compute_dtypes": "compute type",
}  # fmt: skip
LONG = ("trainable.names", "trainable.names_hash", "adapter.blocks", "_error", "definition")
"""How the facts end that are left to the project's own report."""
STEP = facts.Fact("a training step: definition", "measure.result.train_memory.definition")
USE = """```python
from peft import PeftModel
from transformers import AutoModelForCausalLM

base = AutoModelForCausalLM.from_pretrained({base})
model = PeftModel.from_pretrained(base, "the folder of this file")
```"""


def write_card(adapter: Adapter, files: Mapping[str, str]) -> str:
    """Markdown; `files` are the sha256 of the files that it is put beside, by name.

    Raises:
        UserError: the item logs are not those of the records.
    """
    run = adapter.read_with_items()
    sections = {
        "Base": _base(run),
        "Use": _use(run),
        "Treatment": [_facts(run, (*facts.ASKED[4:], *facts.ADAPTER, *facts.OTHER_METHODS))],
        "Scores": [*_scores(run), _list(findings.write_points(run))],
        "Memory and speed": _costs(run),
        "Limits": [_list(_limits(run))],
        "How to reproduce": _reproduce(adapter, run),
        "Files": [_table(("file", "sha256"), sorted(files.items())),
                  f"sha256 of the weights by content: {adapter.adapter_hash}"],
    }  # fmt: skip
    name, data = (run.find(stage, "treatment", "name") for stage in ("fetch", "prepare"))
    title = f"{findings.describe_method(run)} adapter of {name or UNKNOWN} for {data or UNKNOWN}"
    parts = [
        _front(run),
        f"# {escape_markdown(title)}",
        escape_markdown(findings.write_headline(run)),
    ]
    for heading, body in sections.items():
        parts += [f"## {heading}", *body]
    return hide_home("\n\n".join(part for part in parts if part) + "\n")


def _front(run: Run) -> str:
    """What the hub reads; texts are quoted as JSON has them, which YAML takes."""
    source = run.find("fetch", "treatment", "source") or {}
    lines = ["library_name: peft", "tags:", "- bitrank", f"- {run.method or 'lora'}"]
    if source.get("kind") == "hub":
        lines.insert(0, f"base_model: {json.dumps(source['repo'])}")
    return "\n".join(("---", *lines, "---"))


def _base(run: Run) -> list[str]:
    told = {key: run.find("fetch", "treatment", key) for key in ("name", "provenance", "license")}
    source = run.find("fetch", "treatment", "source") or {}
    told |= {f"source: {key}": value for key, value in source.items() if key not in PRIVATE}
    told["held in training as"] = findings.describe_base(run)
    told |= {label: run.find("train", "treatment", key) for label, key in HASHES[:2]}
    held = run.find("train", "treatment", "precision") or {}
    told |= {label: held.get(key) for key, label in HELD.items() if held.get(key) is not None}
    rows = [(label, _exact(value)) for label, value in told.items()]
    return [_table(("what", "value"), rows)]


def _exact(value: Any) -> str:
    """A hash or revision whole."""
    return value if isinstance(value, str) else format_value(value)


def _use(run: Run) -> list[str]:
    source = run.find("fetch", "treatment", "source") or {}
    if run.find("train", "treatment", "precision", "num_quantized_layers"):
        base = '"data/base/quantized"'
        where = (
            "The adapter belongs to the base as it was held in training; `dvc repro quantize` in "
            "the project that trained it (see below) makes `data/base/quantized`."
        )
    elif source.get("kind") == "hub":
        base = f"{json.dumps(source['repo'])}, revision={json.dumps(source.get('commit'))}"
        where = ""
    else:
        base = '"data/base/original"'
        where = (
            "`dvc repro fetch` in the project that trained it (see below) makes "
            "`data/base/original`."
        )
    return [where, USE.format(base=base)]


def _facts(run: Run, asked: tuple[facts.Fact, ...]) -> str:
    told = _tell(run, asked)
    hashes = [(label, run.find("train", "treatment", key)) for label, key in HASHES[2:]]
    return _table(("what", "value"), [*told, *((label, _exact(v)) for label, v in hashes)])


def _tell(run: Run, asked: tuple[facts.Fact, ...]) -> list[tuple[str, str]]:
    """Without what is unknown or does not apply."""
    short = tuple(fact for fact in asked if fact is STEP or not fact.path.endswith(LONG))
    rows = facts.facts_table(run, "facts", "", short).rows
    untold = (UNKNOWN, MISSING, NOT_APPLICABLE)
    return [(row[0].text, row[1].text) for row in rows if row[1].text not in untold]


def _scores(run: Run) -> Iterator[str]:
    """A table for each task: every subject's mean with its interval."""
    for task in (TASK, *run.benchmarks):
        metrics = [m for m in SHOWN if any(run.score(s, task, m) is not None for s in NEEDED)]
        rows = [
            (label_of(run, s), *(_interval(run, s, task, m) for m in metrics),
             format_value(run.score(s, task, "num_items")))
            for s in NEEDED
            if any(run.score(s, task, metric) is not None for metric in metrics)
        ]  # fmt: skip
        if rows:
            name = "The trained task, held-out rows" if task == TASK else f"{task}, not trained"
            yield f"### {name}"
            yield _table(("model", *(METRICS[metric] for metric in metrics), "items"), rows)
    yield (
        f"In brackets: the 95 % interval, {Z} standard errors over the items to each side. It is "
        "of this one training run: what other seeds would give is not in it."
    )


def _interval(run: Run, subject: str, task: str, metric: str) -> str:
    value, stderr = (run.score(subject, task, f"{metric}{end}") for end in ("", "_stderr"))
    if value is None:
        return NOT_APPLICABLE
    if stderr is None:
        return f"{value:.3f} (interval unknown)"
    low, high = value - Z * stderr, value + Z * stderr
    if metric == "acc":
        low, high = max(0.0, low), min(1.0, high)
    return f"{value:.3f} ({low:.3f} to {high:.3f})"


def _costs(run: Run) -> list[str]:
    asked = (*facts.PHASE_MEMORY, STEP, *facts.CUDA_MEMORY, *facts.SPEED)
    rows = _tell(run, (*asked, *facts.inference_facts(run)))
    for stage, label in (("train", "trained on"), ("measure", "measured on")):
        if stage in run.records:
            rows.append((label, findings.describe_hardware(run, stage)))
    packages = run.find("train", "observation", "environment", "packages") or {}
    versions = ", ".join(f"{name} {found}" for name, found in packages.items() if found)
    return [_table(("what", "value"), [*rows, ("trained with", versions or UNKNOWN)])]


def _limits(run: Run) -> Iterator[str]:
    held = findings.describe_base(run)
    yield (
        f"It was trained and scored on the base above, held as {held}; of other weights is known "
        "what a line below says."
    )
    name = run.find("prepare", "treatment", "name")
    yield f"It was made for one task, {name or UNKNOWN}; what else it does was not looked at."
    if not run.benchmarks:
        yield "What the base forgot in training was not measured."
    if why_not := run.find("merge", "result", "why_not"):
        yield f"There is no merged model: {why_not}."
    if run.find("measure", "treatment", "device") == "cpu":
        yield "Memory and speed are those of a CPU; a GPU's are others."
    yield f"License of the base: {run.find('fetch', 'treatment', 'license') or UNKNOWN}."
    yield from findings.write_warnings(run)


def _reproduce(adapter: Adapter, run: Run) -> list[str]:
    commit = run.find("train", "observation", "environment", "git_commit")
    dirty = run.find("train", "observation", "environment", "git_dirty")
    lines = [f"git checkout {commit or '<the commit is unknown>'}"]
    if adapter.overrides is None:
        lines.append("# write the configuration below to params.yaml")
    else:
        asked = [ABSOLUTE.sub(rf"\1{OWN}", override) for override in adapter.overrides]
        lines.append(f"bitrank params {shlex.join(asked)}")
    notes = "With uncommitted changes of the code, which nobody else has." if dirty else ""
    body = _without_paths(adapter.params)
    folded = f"<details><summary>params.yaml</summary>\n\n{_fenced(body, 'yaml')}\n\n</details>"
    return [
        "In a checkout of the bitrank project that trained it, with the packages of its "
        "constraints files:",
        _fenced("\n".join([*lines, "dvc repro"])),
        "`data/results/train.json` then names the same `adapter_hash` on a machine of the same "
        "kind. Data and bases that are the user's own must be put where params.yaml says.",
        notes,
        folded,
    ]


def _without_paths(params: Path) -> str:
    """To the byte what it is, unless it has an absolute path, which may name a person."""
    values = read_yaml(params)
    text = params.read_text(encoding="utf-8")
    return yaml.safe_dump(values, sort_keys=False, allow_unicode=True) if _hide(values) else text


def _hide(values: Any) -> bool:
    """Replace absolute paths in place; whether there was one."""
    pairs = list(values.items() if isinstance(values, dict) else enumerate(values))
    found = [key for key, value in pairs
             if key in PRIVATE and isinstance(value, str) and value.startswith("/")]  # fmt: skip
    for key in found:
        values[key] = OWN
    below = [_hide(value) for _, value in pairs if isinstance(value, dict | list)]
    return bool(found) or any(below)


def _fenced(text: str, language: str = "") -> str:
    """Longer than any fence within."""
    fence = "`" * max(3, 1 + max(map(len, re.findall("`+", text)), default=0))
    return f"{fence}{language}\n{text.rstrip()}\n{fence}"


def _list(sentences: Iterator[str] | Sequence[str]) -> str:
    return "\n".join(f"- {escape_markdown(sentence)}" for sentence in sentences)


def _table(header: Sequence[str], rows: Sequence[Sequence[Any]]) -> str:
    lines = [header, ["---"] * len(header), *rows]
    cells = ([escape_markdown(cell) if cell != "---" else cell for cell in line] for line in lines)
    return "\n".join(f"| {' | '.join(line)} |" for line in cells)
