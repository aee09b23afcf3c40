"""The metrics that claims are about: what each is, and what the records of a sweep say of it.

Four kinds, by where their noise comes from. A count (bytes, parameters) is the same in every run. A
number of each run varies with the seed. Times vary from step to step of one measurement, and from
one measurement to the next by what nothing here knows. Answers vary by item and by seed.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from math import exp
from statistics import fmean
from typing import Any

import numpy as np
from scipy import stats

from bitrank.claims import Claim, Pair
from bitrank.contrasts import Column, answers_of, seed_noise, tabulate
from bitrank.predicted import llama_65b_bytes
from bitrank.projection import METRICS as PATHS
from bitrank.resampling import Estimate, bootstrap, exact, mean_interval
from bitrank.runs import TASK, Run
from bitrank.study import Configuration, Study
from bitrank.swept_runs import SweptRun, validation_loss

Pairs = Sequence[tuple[SweptRun, SweptRun]]
Found = Estimate | str
"""A number with its noise, or in words what is missing."""
LAST_STEPS = 0.25
"""Share of the steps at the end whose mean loss stands for the rows last trained on."""

METRICS: Mapping[str, str] = {
    "train_peak_bytes": "bytes of tensors at the peak of a training step; on a GPU, where they are "
    "not counted, the peak that was allocated",
    "train_step_seconds": "time of a training step, step by step over the same batches",
    "decode_step_seconds": "time of a decoding step at batch 1",
    "acc": "accuracy on the trained task",
    "nll": "−log p of the right answer, in nats",
    "benchmark_nll_rise": "rise of the NLL after training over that of the base it was trained on, "
    "on a benchmark that was not trained",
    "generalization_gap": "loss on the validation rows less the mean loss of the last quarter of "
    "the training steps, in nats",
    "trainable_share": "trained parameters over all",
    "adapter_file_share": "bytes of the adapter over bytes of the original base",
    "quantized_adapter_share": "share of the types of the live adapter's weights that are integers",
    "predicted_65b_bytes": "bytes of LLaMA-65B's training step, by arithmetic from this run's bits "
    "a weight and rank",
}


def _peak(run: Run) -> Any:
    counted = run.find(*PATHS["memory/train_peak_bytes"])
    return run.find(*PATHS["memory/cuda_peak_allocated_bytes"]) if counted is None else counted


def _file_share(run: Run) -> float | None:
    size = run.find(*PATHS["model/original_size_bytes"])
    own = run.find(*PATHS["model/adapter_bytes"])
    return None if size is None or own is None else own / size


def _quantized_share(run: Run) -> float | None:
    types = run.find("train", "treatment", "adapter", "dtypes")
    return fmean("int" in str(name) for name in types) if types else None


def _predicted(run: Run) -> float | None:
    bits = run.find(*PATHS["model/bits_per_quantized_weight"])
    ranks = run.find("train", "treatment", "adapter", "rank")
    return None if bits is None or not ranks else llama_65b_bytes(bits, max(ranks))


def _gap(run: Run) -> float | None:
    losses = [step["loss"] for step in run.find("train", "result", "losses") or []]
    reached = validation_loss(run)
    last = losses[-max(1, round(LAST_STEPS * len(losses))) :]
    return reached - fmean(last) if last and reached is not None else None


COUNTS: Mapping[str, Callable[[Run], Any]] = {
    "train_peak_bytes": _peak,
    "trainable_share": lambda run: run.find("train", "result", "trainable_share"),
    "adapter_file_share": _file_share,
    "quantized_adapter_share": _quantized_share,
    "predicted_65b_bytes": _predicted,
}
OF_EACH_RUN: Mapping[str, Callable[[Run], Any]] = {"generalization_gap": _gap}
TIMES: Mapping[str, tuple[str, ...]] = {
    "train_step_seconds": PATHS["speed/train_step_seconds"][:-1],
    "decode_step_seconds": (*PATHS["speed/decode_tokens_per_second"][:-1], "step_seconds"),
}
"""Where every step's time stands (`all`), and the median's (`median`)."""
ANSWERS: Mapping[str, Column] = {"acc": "correct", "nll": "nll"}
BENCHMARK_RISE = "benchmark_nll_rise"


def peak_of(configuration: Configuration) -> float | None:
    """Bytes at the peak of a training step; null where it is not known of every run."""
    found = _values(_peak, configuration.runs)
    return max(found) if found else None


def parts_of(metric: str, configuration: Configuration) -> list[str]:
    """The benchmarks, where a metric is of each; else one part without a name."""
    if metric != BENCHMARK_RISE:
        return [""]
    tasks = {task for run in configuration.runs for task in run.run.benchmarks}
    return sorted(tasks) or [""]


def estimate_value(
    study: Study, metric: str, part: str, configuration: Configuration, level: float
) -> Found:
    """A metric of one configuration, over its seeds."""
    runs = configuration.runs
    if metric == BENCHMARK_RISE:
        missing = "the records have no benchmark beside the trained task"
        return rise_on(study, part, configuration, level) if part else missing
    values = _values(_reader(metric), runs)
    if values is None:
        return _absent(metric, runs)
    return _of_counts(values, level) if metric in COUNTS else mean_interval(values, level)


def rise_on(study: Study, task: str, configuration: Configuration, level: float) -> Found:
    """Relative rise of a benchmark's NLL from the base that was trained on to the tuned model."""
    pairs = [(run, run) for run in configuration.runs]
    answers = answers_of(pairs, "quantized", "adapter", task)
    table = tabulate(answers, "nll")
    if table is None:
        return f"no item log of {task} before and after training"
    before = fmean(item.nll for item in answers[0][0] if item.nll is not None)
    noise = seed_noise(study, configuration.setting, task, "nll", 1)
    relative = noise and replace(noise, variance=noise.variance / before**2)
    return bootstrap(table / before, level, relative)


def estimate_change(study: Study, setting: str, claim: Claim, pairs: Pairs, level: float) -> Found:
    """From the first to the second of each pair: a difference, or second / first - 1."""
    metric, of = claim.metric, claim.threshold.of
    runs = [run for pair in pairs for run in pair]
    if metric in ANSWERS:
        return _change_of_answers(study, setting, claim, pairs, level)
    if metric in TIMES:
        return _change_of_times(metric, pairs, level)
    values = _values(_reader(metric), runs)
    if values is None:
        return _absent(metric, runs)
    both = list(zip(values[::2], values[1::2], strict=True))
    changes = [b / a - 1 if of == "relative change" else b - a for a, b in both]
    return _of_counts(changes, level) if metric in COUNTS else mean_interval(changes, level)


def _change_of_answers(
    study: Study, setting: str, claim: Claim, pairs: Pairs, level: float
) -> Found:
    if not isinstance(claim.contrast, Pair):
        raise TypeError("a change of answers is one of a pair")
    who = (claim.contrast.first_answers, claim.contrast.second_answers)
    column = ANSWERS[claim.metric]
    table = tabulate(answers_of(pairs, *who, TASK), column)
    if table is None:
        return f"no item logs of {' and '.join(dict.fromkeys(who))} in both"
    return bootstrap(table, level, seed_noise(study, setting, TASK, column, 2))


def _reader(metric: str) -> Callable[[Run], Any]:
    return COUNTS.get(metric) or OF_EACH_RUN[metric]


def _values(read: Callable[[Run], Any], runs: Sequence[SweptRun]) -> list[float] | None:
    values = [read(run.run) for run in runs]
    return None if None in values else [float(value) for value in values]


def _absent(metric: str, runs: Sequence[SweptRun]) -> str:
    read = _reader(metric)
    without = [run.key for run in runs if read(run.run) is None]
    return f"the records do not have it: {', '.join(dict.fromkeys(without))}"


def _of_counts(values: Sequence[float], level: float) -> Estimate:
    """Counts that are all the same have no noise."""
    if len(set(values)) == 1:
        return exact(values[0], len(values))
    return mean_interval(values, level)


def _change_of_times(metric: str, pairs: Pairs, level: float) -> Found:
    """Second / first - 1 of the geometric mean times, over steps of one measurement each.

    A measurement is of a treatment and not of a seed: runs that differ in seeds share it. Where
    both took the same steps, they are paired.
    """
    for first, second in pairs:
        if busy := [run.key for run in (first, second) if run.is_disturbed]:
            return f"the machine had something else to do while it was timed: {', '.join(busy)}"
    first, second = pairs[0]
    times = [run.run.find(*TIMES[metric], "all") for run in (first, second)]
    if not all(isinstance(found, list) and len(found) > 1 for found in times):
        medians = [run.run.find(*TIMES[metric], "median") for run in (first, second)]
        if None in medians:
            return f"no time of a step: {first.key}, {second.key}"
        return Estimate(mean=medians[1] / medians[0] - 1, low=None, high=None)
    before, after = (np.log(np.asarray(found, dtype=np.float64)) for found in times)
    if _took_the_same_steps(first.run, second.run) and len(before) == len(after):
        found = mean_interval((after - before).tolist(), level)
        low, high = found.low, found.high
    else:
        test = stats.ttest_ind(after, before, equal_var=False).confidence_interval(1 - level)
        low, high = float(test.low), float(test.high)
    mean = float(after.mean() - before.mean())
    ends = [None if end is None else exp(end) - 1 for end in (low, high)]
    return Estimate(mean=exp(mean) - 1, low=ends[0], high=ends[1])


def _took_the_same_steps(first: Run, second: Run) -> bool:
    """`measure` draws its batches from the rows with a seed of its own."""
    tokens = [run.find("measure", "result", "tokens_per_step") for run in (first, second)]
    sizes = [run.find("measure", "treatment", "micro_batch_size") for run in (first, second)]
    return tokens[0] is not None and tokens[0] == tokens[1] and sizes[0] == sizes[1]
