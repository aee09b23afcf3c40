"""A run as its stages would leave it, for the tests of tables, figures and the report.

The numbers are invented. Item logs and records agree: scores are computed from the items.
"""

from __future__ import annotations

import hashlib
import random
from dataclasses import replace
from math import sqrt
from pathlib import Path
from statistics import fmean, stdev
from typing import Any

from bitrank import paths, records, runs
from bitrank.records import Item, Record
from bitrank.statistics import (
    compare_accuracy,
    compare_nll,
    pair_items,
    retained_share,
    value_of,
)

NUM_ITEMS = 200
NLLS = ("nll", "nll_per_token", "choice_nll")
HASH = {name: hashlib.sha256(name.encode()).hexdigest()
        for name in ("original", "quantized", "data", "template", "first", "adapter",
                     "merged")}  # fmt: skip
LIVE = {
    "num_linear_layers": 210, "num_quantized_layers": 210, "quant_types": ["nf4"],
    "double_quant": [True], "block_sizes": [64], "compute_dtypes": ["float32"],
    "stored_elements_by_dtype": {"float32": 28_348_992, "uint8": 53_084_160},
    "quant_storage": ["uint8"],
}  # fmt: skip
PLAIN = {
    **LIVE, "num_quantized_layers": 0, "quant_types": [], "double_quant": [], "block_sizes": [],
    "compute_dtypes": [], "quant_storage": [], "stored_elements_by_dtype": {"float32": 134_515_008},
}  # fmt: skip
ADAPTER = {
    "method": "lora", "num_adapted_layers": 210, "rank": [8], "scaling": [2.0],
    "target_modules": ["down_proj", "gate_proj", "k_proj", "o_proj", "q_proj", "up_proj", "v_proj"],
    "dtypes": ["float32"], "num_trainable_parameters": 2_442_240, "trainable_outside_adapter": [],
    "alpha_per_rank": 2.0, "dropout": 0.0, "use_dora": [False], "use_rslora": False,
    "blocks": list(range(30)),
}  # fmt: skip
SETTING = {"micro_batch_size": 16, "global_batch_size": 16, "device": "cpu", "threads": 2}
MODEL = {
    "dtypes": {"adapter": ["float32"], "norms": ["float32"], "embeddings": ["float32"],
               "head": ["float32"], "head_is_embeddings": True},
    "trainable": {"num_tensors": 420, "num_parameters": 2_442_240, "names_hash": "ef" * 32,
                  "names": ["base.layers.*.q_proj.lora_A.weight"], "dtypes": ["float32"]},
    "gradient_checkpointing": False, "attention": "sdpa",
    "determinism": {"deterministic": True, "reason": "on a CPU of this kind"},
}  # fmt: skip
HANDED = {"original_hash": HASH["original"], "data_hash": HASH["data"],
          "template_hash": HASH["template"]}  # fmt: skip
TRAINED = {"adapter_hash": HASH["adapter"], "first_weights_hash": HASH["first"]}


def make_items(
    task: str, probability: float, nll: float, seed: int = 1, count: int = NUM_ITEMS
) -> list[Item]:
    """The same documents have the same difficulty for every subject, as real ones do."""
    hard, own = random.Random(0), random.Random(seed)
    items = []
    for index in range(count):
        difficulty = hard.random()
        correct = None if task == "wiki" else 0.7 * difficulty + 0.3 * own.random() < probability
        items.append(Item(
            doc_hash=f"{task}-{index}", target=" blood",
            prediction=None if correct is None else " blood" if correct else " birth",
            correct=correct, nll=nll * (0.5 + difficulty) + 0.1 * own.random(),
            choice_nll=nll * (0.4 + difficulty), num_tokens=1,
        ))  # fmt: skip
    return items


def score(items: list[Item]) -> dict[str, Any]:
    found: dict[str, Any] = {"num_items": len(items)}
    columns = {
        name: [value_of(item, column) for item in items]
        for name, column in (("acc", "correct"), *((c, c) for c in NLLS))
    }
    for name, values in columns.items():
        if None not in values:
            found[name] = fmean(values)
            found[f"{name}_stderr"] = stdev(map(float, values)) / sqrt(len(values))
    return found


def make_fidelity(items: dict[tuple[str, str], list[Item]]) -> tuple[Any, Any, Any]:
    """Four ways to serve: one loses all, one nothing, two within and beyond noise."""
    answers = {
        "untrained_original": items["original", "task"],
        "untrained_quantized": items["quantized", "task"],
        "adapter": items["adapter", "task"],
        "merged_original": make_items("task", 0.66, 1.3, 5),
        "merged_dequantized": items["adapter", "task"],
        "merged_requantized": items["quantized", "task"],
        "merged_then_quantized": make_items("task", 0.67, 1.1, 6),
    }
    ways = {}
    for number, way in enumerate(list(answers)[3:]):
        three = [answers[name] for name in ("untrained_quantized", "adapter", way)]
        pairs = pair_items(three[1], three[2])
        ways[way] = {
            "reason": None, "num_prompts": 198, "mean_kl": 0.5 * number, "mean_kl_stderr": 0.0123,
            "largest_logit_difference": 1.5, "argmax_agreement": 0.875,
            "changes": {"nll": vars(compare_nll(pairs)), "choice_nll": None,
                        "acc": vars(compare_accuracy(pairs))},
            "retained": {"nll": vars(retained_share(*three, "nll")),
                         "acc": vars(retained_share(*three, "correct"))},
            "codes_changed_share": 2e-6 * number if number > 1 else None,
            "update_left_share": 0.0081 if number > 1 else None,
        }  # fmt: skip
    ways["adapter_on_original"] = {"reason": "it was too dear"}
    layers = [{"name": f"model.layers.{block}.mlp.down_proj", "update_rms": 0.001,
               "mean_step": 0.05, "error_rms": 0.018, "update_to_step": 0.02 + block / 1000,
               "ways": {"merged_requantized": {"codes_changed_share": 2e-6,
                                               "update_left_share": 0.008}}}
              for block in range(30)]  # fmt: skip
    spread = {"smallest": 0.02, "median": 0.0345, "largest": 0.049}
    return (
        {"base_hash": HASH["quantized"], **HANDED, **TRAINED, "precision": LIVE,
         "ways": list(ways), "update_definition": "rms", "step_definition": "mean gap",
         "codes": {"quant_type": "nf4"}},
        {"num_items": NUM_ITEMS, "ways": ways, "layers": layers, "update_to_step": spread,
         "scores": {name: {"task": score(of)} for name, of in answers.items()}, "items": {}},
        {},
    )  # fmt: skip


def make_environment(stage: str) -> dict[str, Any]:
    packages = {"torch": "2.13.0", "transformers": "5.23.1", "bitsandbytes": None}
    cpu = {"model": "Example CPU 9000", "architecture": "x86_64", "cores": 2, "features": ["avx2"]}
    return {
        "environment": {
            "python": "3.11.7", "platform": "Linux x86_64", "packages": packages, "threads": 2,
            "hardware": {"cpu": cpu, "memory_bytes": 16 * 2**30, "gpus": []},
            "git_commit": "63dc594" + "0" * 33, "git_dirty": stage == "measure",
        },
        "wall_seconds": 12.25 + len(stage),
    }  # fmt: skip


def make_base_records() -> dict[str, tuple[Any, Any, Any]]:
    """(treatment, result, observation) of the stages before training."""
    layers = [
        {"name": f"model.layers.{block}.{place}", "shape": [576, 576],
         "relative_error": 0.09 + 0.001 * kind + 0.0002 * block, "largest_error": 0.4}
        for block in range(30)
        for kind, place in enumerate(("self_attn.q_proj", "self_attn.v_proj", "mlp.down_proj"))
    ]  # fmt: skip
    split = {"num_rows": NUM_ITEMS, "num_groups": 400, "answers": {" birth": 40, " blood": 57}}
    audit = {"num_rows": 2280, "num_tokens": 50123, "num_supervised_tokens": 4560,
             "supervised_share": 0.0909762, "num_truncated": 0, "longest_tokens": 97,
             "num_doubled_bos": 0, "num_untrained_end": 0}  # fmt: skip
    return {
        "fetch": (
            {"name": "SmolLM2-135M-Instruct", "source": {"kind": "pypi", "version": "0.1.2"},
             "provenance": "dequantized from Q4_1", "license": "Apache-2.0"},
            {"base_hash": HASH["original"], "architecture": "LlamaForCausalLM", "dtype": "float32",
             "num_parameters": 134_515_008, "size_bytes": 538_090_408, "vocabulary_size": 49152},
            {},
        ),
        "prepare": (
            {"name": "icd10-chapters", "rows": {"kind": "icd10"}, "balance": True, "split_seed": 0,
             "prompt": "Diagnosis: {text}\nChapter:", "answer": " {label}",
             "max_sequence_tokens": 128},
            {"data_hash": HASH["data"], "template_hash": HASH["template"], "num_rows_read": 74044,
             "num_duplicates_removed": 321, "num_conflicts_removed": 17, "num_groups": 1911,
             "splits": {"train": {**split, "num_rows": 1152},
                        "validation": {**split, "num_rows": 128}, "test": split},
             "num_choices": 18, "majority_share": 0.057, "num_one_token_choices": 18,
             "audit": audit},
            {},
        ),
        "benchmarks": ({"benchmarks": [], "shuffle_seed": 0}, {"benchmarks": {}}, {}),
        "quantize": (
            {"precision": {"name": "nf4", **LIVE}, "base_hash": HASH["original"]},
            {"base_hash": HASH["quantized"], "size_bytes": 168_631_296,
             "original_size_bytes": 538_090_408, "bits_per_quantized_weight": 4.127,
             "relative_error": 0.0953, "layers": layers},
            {},
        ),
    }  # fmt: skip


def make_training_records() -> dict[str, tuple[Any, Any, Any]]:
    losses = [{"step": step, "loss": 0.6 + 3 / step, "learning_rate": 1e-3 * (1 - step / 73),
               "gradient_norm": 1.5} for step in range(1, 73)]  # fmt: skip
    optimizer = {"name": "AdamW", "learning_rate": 1e-3, "schedule": "linear", "warmup_steps": 4,
                 "weight_decay": 0.0, "max_grad_norm": 1.0}  # fmt: skip
    live = {"name": "nf4", **LIVE}
    memory = {"definition": "tensor bytes", "peak_bytes": 700_000_000, "weights_bytes": 168_500_000,
              "adapter_bytes": 9_768_960, "gradients_bytes": 9_768_960,
              "optimizer_bytes": 19_537_920, "activations_bytes": 492_424_160,
              "predicted": {"peak_bytes": 690_000_000},
              "prediction_error": -1 / 70}  # fmt: skip
    phases = {
        f"{phase}_memory": {"definition": "tensor bytes", "peak_bytes": peak,
                            "predicted": {"peak_bytes": peak}, "prediction_error": 0.0}
        for phase, peak in (("load", 168_500_000), ("evaluate", 290_000_000),
                            ("merge", 721_000_000))
    }  # fmt: skip
    inference = {name: {"batch": batch, "prompt_tokens": 128, "tokens_per_second": rate * batch,
                        "step_seconds": {"median": 0.0975}}
                 for name, batch, rate in (
                     ("prefill", 1, 257.6), ("prefill_batched", 8, 40.5),
                     ("decode", 1, 10.25), ("decode_batched", 8, 10.25))}  # fmt: skip
    observed = {
        "train_speed": {
            "tokens_per_second": 187.31, "padded_tokens_per_second": 190.77,
            "supervised_tokens_per_second": 17.02,
            "step_seconds": {"median": 1.881, "p10": 1.702, "p90": 2.113, "all": [1.9, 2.1]},
            "energy": {"definition": "NVML", "joules": 815.2, "joules_per_thousand_tokens": 2311.0},
        },
        "inference": {**inference, "why_not": None},
        "process_memory": {"definition": "VmHWM", "after_import_bytes": 700 * 2**20,
                           "load_peak_above_import_bytes": 650 * 2**20,
                           "train_peak_above_import_bytes": None,
                           "evaluate_peak_above_import_bytes": 700 * 2**20,
                           "merge_peak_above_import_bytes": 900 * 2**20},
        "cuda": None, "mfu": 0.4711, "mfu_definition": "achieved / ceiling",
    }  # fmt: skip
    check = {"num_items": 64, "largest_logit_difference": 3.1e-05, "mean_kl": 2.4e-11,
             "argmax_agreement": 1.0}  # fmt: skip
    return {
        "train": (
            {"base_hash": HASH["quantized"], **HANDED, "precision": live, **MODEL,
             "adapter": ADAPTER, "optimizer": optimizer, "epochs": 1, "num_rows": 1152,
             "planned_steps": 72, "num_steps": 72, "gradient_accumulation_steps": 1,
             "seeds": {"init": 0, "order": 0}, "early_stopping": "off", "num_processes": 1,
             **SETTING},
            {**TRAINED,
             "num_trainable_parameters": 2_442_240, "trainable_share": 0.01783,
             "adapter_bytes": 9_797_000, "losses": losses,
             "validation": [{"step": 0, "loss": 3.4}, {"step": 36, "loss": 0.82},
                            {"step": 72, "loss": 0.71}],
             "kept_step": 72,
             "tokens": {"padded": 26000, "non_padding": 25331, "supervised": 2304}},
            {"train_seconds": 135.6, "tokens_per_second": 186.8},
        ),
        "measure": (
            {"base_hash": HASH["quantized"], **HANDED, "precision": live, **MODEL,
             "adapter": ADAPTER, "warmup_steps": 2, "steps": 8, **SETTING},
            {"tokens_per_step": {"padded": 359.5, "non_padding": 352.75, "supervised": 32.0},
             "train_memory": memory, **phases, "prediction": {"definition": "traced"}},
            observed,
        ),
        "merge": (
            {"base": "dequantized", "dtype": "float32", "base_hash": HASH["quantized"], **HANDED,
             **TRAINED, "compared_with": "base and adapter"},
            {"merged_hash": HASH["merged"], "size_bytes": 538_090_000, "num_merged_layers": 210,
             "check": check},
            {},
        ),
    }  # fmt: skip


def make_items_of_subjects() -> dict[tuple[str, str], list[Item]]:
    """Adapter and merged model answer alike, so that merging loses nothing."""
    skill = {"original": (0.36, 2.9, 1), "quantized": (0.34, 3.0, 2), "adapter": (0.68, 1.1, 3),
             "merged": (0.68, 1.1, 3)}  # fmt: skip
    items: dict[tuple[str, str], list[Item]] = {}
    for subject, (probability, nll, seed) in skill.items():
        items[subject, "task"] = make_items("task", probability, nll, seed)
        items[subject, "piqa"] = make_items("piqa", 0.62, 80.0, seed, count=80)
        items[subject, "wiki"] = make_items("wiki", 0, 410.0 + 2 * seed, seed, count=80)
    return items


def make_control(log: Path) -> tuple[Any, Any, Any]:
    items = [replace(i, nll=i.nll - 0.5, choice_nll=i.nll - 0.5)
             for i in make_items("task", 0.48, 2.0, 4)]  # fmt: skip
    records.write_items(log, items)
    found = {key: value for key, value in score(items).items()
             if key in ("acc", "acc_stderr", "choice_nll", "num_items")}  # fmt: skip
    sha256 = hashlib.sha256(log.read_bytes()).hexdigest()
    treatment = {"features": "tf-idf", "classifier": "logistic regression",
                 "inverse_regularization": 30.0, "data_hash": HASH["data"]}  # fmt: skip
    return treatment, {**found, "items": {"task": sha256}}, {}


def write_run(root: Path, benchmarks: bool = True) -> tuple[Path, dict[str, Path]]:
    """Write records and item logs below `root`; return what `write_report` reads."""
    parts = {**make_base_records(), **make_training_records()}
    items = make_items_of_subjects()
    folders = {subject: root / "items" / subject for subject in runs.ANSWERING}
    parts["control"] = make_control(folders["control"] / "task.jsonl")
    parts["fidelity"] = make_fidelity(items)
    for subject in paths.SUBJECTS:
        tasks, hashes = {}, {}
        for task in ("task", "piqa", "wiki") if benchmarks else ("task",):
            log = folders[subject] / f"{task}.jsonl"
            records.write_items(log, items[subject, task])
            hashes[task] = hashlib.sha256(log.read_bytes()).hexdigest()
            tasks[task] = score(items[subject, task])
        if benchmarks:
            del tasks["wiki"]["choice_nll"], tasks["wiki"]["choice_nll_stderr"]
            tasks["wiki"] |= {
                "word_perplexity": 41.73,
                "word_perplexity_stderr": None,
                "bits_per_byte": 0.971,
            }
        adapted = subject in ("adapter", "merged")
        bases = {"adapter": HASH["quantized"], "merged": None}
        treatment = {
            "subject": subject, "base_hash": bases.get(subject, HASH.get(subject)),
            **HANDED, **(TRAINED if adapted else dict.fromkeys(TRAINED)),
            "merged_hash": HASH["merged"] if subject == "merged" else None,
            "precision": LIVE if subject in ("quantized", "adapter") else PLAIN,
            "computed_on": "stored weights", "lm_eval": "0.4.13",
        }  # fmt: skip
        parts[f"evaluate-{subject}"] = (treatment, {"tasks": tasks, "items": hashes}, {})
    for stage, (treatment, result, observation) in parts.items():
        record = Record(stage=stage, treatment=treatment, result=result,
                        observation={**observation, **make_environment(stage)})  # fmt: skip
        records.write_record(record, paths.record(stage, root / "results"))
    return root / "results", folders
