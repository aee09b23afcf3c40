"""A run in plain words: the headline, what else was found, and what a reader must be warned of.

Nothing is claimed that noise can explain, and a gain is named in one breath with the bag of words
that had the same rows. Method and precision are told from the live model, not from their names.
"""

from __future__ import annotations

from collections.abc import Iterator

from bitrank.forgetting_tables import write_forgotten
from bitrank.provenance import live_precision
from bitrank.run_tables import CHANGES, METRICS, compare, label_of, verdict
from bitrank.runs import CONTROL, TASK, Run
from bitrank.serving_tables import warn_of_losses, write_kept
from bitrank.statistics import compare_unpaired
from bitrank.tables import format_bytes, format_value, measured

FOUR_BIT = ("nf4", "fp4")
METHODS = {
    "lora": "LoRA", "dora": "DoRA", "rslora": "rsLoRA", "pissa": "PiSSA", "olora": "OLoRA",
    "loftq": "LoftQ", "ia3": "IA3", "vera": "VeRA", "oft": "OFT",
    "bottleneck": "Bottleneck adapters", "prompt_tuning": "Prompt tuning",
    "p_tuning": "P-tuning", "prefix_tuning": "Prefix tuning", "full": "Full fine-tuning",
}  # fmt: skip
"""`adapter.method` as a sentence names it."""
SHORT = {"float32": "fp32", "bfloat16": "bf16", "float16": "fp16"}


def write_headline(run: Run) -> str:
    """One sentence or two: what training did to accuracy, and what the control reaches."""
    before, after = (run.score(subject, TASK, "acc") for subject in ("quantized", "adapter"))
    if before is None or after is None:
        absent = "quantized base" if before is None else name_trained(run)
        return f"No verdict: the {absent} has no score on the trained task."
    outcome = verdict(compare(run, TASK, "acc", "quantized", "adapter"), "acc")
    moved = {
        "better": f"lifts accuracy from {before:.3f} to {after:.3f}",
        "worse": f"lowers accuracy from {before:.3f} to {after:.3f}",
        "not separable": "does not change accuracy by more than noise "
                         f"({before:.3f} before, {after:.3f} after)",
        "the same": f"changes no answer from right to wrong or back (accuracy {after:.3f})",
        "unknown": f"moves accuracy from {before:.3f} to {after:.3f}, with unknown noise,",
    }[outcome]  # fmt: skip
    data = run.find("prepare", "treatment", "name") or "the trained task"
    return f"{describe_method(run)} {moved} on {data}; {_control_clause(run, after)}."


def write_brief(run: Run) -> str:
    """What was trained on what, in half a line each; what is not known is left out."""
    name, provenance = (run.find("fetch", "treatment", key) for key in ("name", "provenance"))
    rows, epochs, steps, device = (
        run.find("train", "treatment", key) for key in ("num_rows", "epochs", "num_steps", "device")
    )
    told = [f"{name} ({provenance})"] if name else []
    if rows is not None:
        told.append(f"{rows:,} rows, epochs: {format_value(epochs)}, steps: {format_value(steps)}")
    return "; ".join([*told, f"device: {device}"] if device else told)


def describe_method(run: Run) -> str:
    """Such as "QLoRA (nf4, rank 8)"; LoRA over 4-bit weights is called QLoRA."""
    precision, rank = describe_base(run), run.find("train", "treatment", "adapter", "rank")
    method = run.method or "lora"
    name = METHODS.get(method, method)
    if method == "lora" and precision in FOUR_BIT:
        name = "QLoRA"
    told = [precision, *([f"rank {format_value(rank)}"] if rank or method == "lora" else [])]
    return f"{name} ({', '.join(told)})"


def describe_merge(run: Run) -> str:
    why_not = run.find("merge", "result", "why_not")
    if why_not:
        return f"There is no merged model: {why_not}."
    return f"The merged model against the {label_of(run, 'adapter')}, on the same prompts."


def name_trained(run: Run) -> str:
    return "tuned model" if run.is_full else "adapter"


def describe_base(run: Run) -> str:
    """The type that holds the base's linear layers in training, or most of its weights."""
    live = live_precision(run, "train") or {}
    if live.get("quant_types"):
        return format_value(live["quant_types"])
    held = live.get("stored_elements_by_dtype")
    if not held:
        return "unknown precision"
    most = max(held, key=held.__getitem__)
    return SHORT.get(most, str(most))


def _control_clause(run: Run, accuracy: float) -> str:
    reached = run.score(CONTROL, TASK, "acc")
    lead = compare(run, TASK, "acc", CONTROL, "adapter")
    if reached is None or lead is None:
        return "there is no bag-of-words control to compare with"
    clause = f"TF-IDF on the same rows reaches {reached:.3f}"
    return {
        "better": clause,
        "worse": f"{clause}: a bag of words beats the {name_trained(run)}",
        "unknown": f"{clause}, and whether noise explains the distance is unknown",
    }.get(
        verdict(lead, "acc"),
        f"{clause}: the {name_trained(run)} does not beat a bag of words by more than noise",
    )


def write_points(run: Run) -> list[str]:
    """The other findings, one sentence each; those that cannot be told are left out."""
    changes = [
        _change(run, f"The {name}", TASK, first, second, metrics)
        for name, first, second, metrics in CHANGES
    ]
    told = [*changes, *write_kept(run), _majority(run), *write_forgotten(run), *_costs(run)]
    return [sentence for sentence in told if sentence]


def _change(
    run: Run, what: str, task: str, first: str, second: str, metrics: tuple[str, ...]
) -> str:
    told = []
    for metric in metrics:
        name = METRICS[metric].removesuffix(" (nats)")
        difference = compare(run, task, metric, first, second)
        if difference is not None:
            shown = measured(difference.mean, difference.stderr, signed=True).text
            told.append(f"{name} {shown} ({verdict(difference, metric)})")
    return f"{what}: {', '.join(told)}." if told else ""


def _majority(run: Run) -> str:
    share = run.find("prepare", "result", "majority_share")
    accuracy = run.score("adapter", TASK, "acc")
    if share is None or accuracy is None:
        return ""
    lead = compare_unpaired(share, 0.0, accuracy, run.score("adapter", TASK, "acc_stderr"))
    if lead.outcome == "separable" and lead.mean > 0:
        return f"Always giving the most frequent answer would reach {share:.3f}."
    return (
        f"Always giving the most frequent answer would reach {share:.3f}: "
        f"the {name_trained(run)} is not above it by more than noise."
    )


def _costs(run: Run) -> Iterator[str]:
    peak = run.find("measure", "result", "train_memory", "peak_bytes")
    speed = run.find("measure", "observation", "train_speed", "tokens_per_second")
    told = [f"holds {format_bytes(peak)} at its peak"] if peak is not None else []
    if speed is not None:
        told.append(f"trains {format_value(speed)} tokens a second without padding")
    if told:
        yield f"A training step {' and '.join(told)}, on {describe_hardware(run, 'measure')}."


def describe_hardware(run: Run, stage: str) -> str:
    """Such as "one H100 (80 GiB)" or "Xeon, 2 threads of 2 cores"."""
    environment = run.find(stage, "observation", "environment") or {}
    hardware = environment.get("hardware") or {}
    cpu = hardware.get("cpu") or {}
    device = run.find(stage, "treatment", "device")
    gpus = hardware.get("gpus") or []
    if device == "cuda" and gpus:
        memory = gpus[0].get("memory_bytes")
        size = "unknown memory" if memory is None else format_bytes(memory)
        return f"{gpus[0].get('name') or 'an unknown GPU'} ({size})"
    counts = [format_value(environment.get("threads")), format_value(cpu.get("cores"))]
    return f"{cpu.get('model') or 'an unknown CPU'} ({counts[0]} threads, {counts[1]} cores)"


def write_warnings(run: Run) -> list[str]:
    """What makes the numbers incomplete or doubtful."""
    told = [f"Missing: no record of {', '.join(run.missing)}."] if run.missing else []
    told += warn_of_losses(run)
    for key, words in (
        ("num_truncated", "rows are truncated"),
        ("num_doubled_bos", "rows have a doubled start token"),
        ("num_untrained_end", "rows have an end token that is not trained"),
    ):
        count = run.find("prepare", "result", "audit", key)
        if count:
            told.append(f"Label audit: {count:,} {words}.")
    if run.find("train", "treatment", "determinism", "deterministic") is False:
        reason = run.find("train", "treatment", "determinism", "reason")
        told.append(f"Training does not repeat to the same bytes: {reason}.")
    if outside := run.find("train", "treatment", "adapter", "trainable_outside_adapter"):
        told.append(f"Trained outside the adapter: {format_value(outside)}.")
    environments = {s: run.find(s, "observation", "environment") or {} for s in run.records}
    if dirty := [stage for stage, found in environments.items() if found.get("git_dirty")]:
        told.append(f"Made with uncommitted changes of the code: {', '.join(dirty)}.")
    return told
