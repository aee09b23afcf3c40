"""Memory of a step for any number of rows, tokens and blocks, from a few passes over three blocks.

A model's middle blocks are alike, so what each of them keeps is the same, and the bytes that live
at each moment of a pass grow by one number with each row and by one with each column (by a square
where a mask is kept). A few passes over a model of three blocks (first, middle, last) tell these
numbers at every moment; a block that stands for many adds what it keeps to all moments between its
way forward and its way back, and its gradients to all later ones. Within such a block only the
highest and the lowest repeat can be the peak, because bytes change evenly from one to the next.

Nothing is fitted: a trace of the whole model gives the same bytes (tests). Models whose blocks
differ are traced whole.
"""

# mypy: allow-untyped-calls
from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

import torch

from bitrank import adapters, estimate, stand_ins, weights, workload
from bitrank.adapter_config import AdapterConfig
from bitrank.architectures import count_layers, read_settings
from bitrank.config import PrecisionConfig
from bitrank.estimate import BatchShape, PredictionError
from bitrank.tuning import TrainConfig

BLOCKS = 3
LAYER_NAMES = ("num_hidden_layers", "n_layer", "num_layers")
FEW_ROWS, FEW_COLUMNS = 2, 40
"""Where the passes begin, and one row and one or two columns above; any others would do."""
Snapshot = list[int]
"""Live bytes by part, in the order of `workload.PARTS`."""


@dataclass(frozen=True, kw_only=True)
class Targets:
    """Which tokens of a row are trained: all but the first, or the last ones."""

    last: int | None

    def first_column(self, columns: int) -> int:
        return 1 if self.last is None else max(1, columns - self.last)


class Recorder(stand_ins.MetaMeter):
    """Keeps what lives whenever it grows, and where blocks begin on the way there and back."""

    def __init__(self) -> None:
        super().__init__()
        self.moments: list[Snapshot] = []
        self.forward: dict[int, tuple[int, Snapshot]] = {}
        self.backward: dict[int, tuple[int, Snapshot]] = {}

    def watch_block(self, number: int, block: torch.nn.Module) -> None:
        """Hooks of torch, removed with the model."""

        def begins(*_: object) -> None:
            self.forward.setdefault(number, (len(self.moments), self._snapshot()))

        def returns(gradient: torch.Tensor) -> None:
            self.backward.setdefault(number, (len(self.moments), self._snapshot()))

        def ends(_: torch.nn.Module, __: object, output: object) -> None:
            hidden = output[0] if isinstance(output, tuple) else output
            if isinstance(hidden, torch.Tensor) and hidden.requires_grad:
                hidden.register_hook(returns)

        block.register_forward_pre_hook(begins)
        block.register_forward_hook(ends)

    def _see(self, tensor: torch.Tensor, category: str) -> None:
        before = self.live_bytes
        super()._see(tensor, category)
        if self.live_bytes > before:
            self.moments.append(self._snapshot())

    def _snapshot(self) -> Snapshot:
        return [self.live_by_category[part] for part in workload.PARTS]


@dataclass(frozen=True, kw_only=True)
class Work:
    """What a token passes through, in weights; a pass over one takes two operations."""

    blocks: int
    block: int
    """Weights of a block's linear layers."""
    head: int
    """Weights of the output layer."""
    trained: int
    """Trainable weights of a block."""
    width: int
    """Of the heads of attention together."""


@dataclass(frozen=True, kw_only=True)
class StepMemory:
    """Predicts a training step of one model and treatment, for any shape of the batch."""

    moments: torch.Tensor
    """(2, 3, moments, parts): at `FEW_ROWS`, and what one more row adds; of both, the value at
    `columns`, its first and its second difference over the columns."""
    columns: int
    trainable: list[torch.nn.Parameter]
    train: TrainConfig
    targets: Targets
    accumulated: bool
    work: Work

    def predict(self, rows: int, columns: int) -> dict[str, int]:
        """Bytes by part at the peak of a step, as `estimate.predict_step` tells them."""
        more = columns - self.columns
        newton = torch.tensor([1, more, more * (more - 1) // 2])
        weighted = (newton[None, :, None, None] * self.moments).sum(1)
        live = weighted[0] + (rows - FEW_ROWS) * weighted[1]
        highest = live[int(live.sum(1).argmax())].tolist()
        passed = {f"{p}_bytes": int(n) for p, n in zip(workload.PARTS, highest, strict=True)}
        parts = estimate.with_optimizer(passed, self.trainable, self.train,
                                        self.shape(rows, columns))  # fmt: skip
        return {"peak_bytes": sum(parts.values()), **parts}

    def shape(self, rows: int, columns: int) -> BatchShape:
        first = self.targets.first_column(columns)
        return BatchShape(
            rows=rows, columns=columns, first_target=first, accumulated=self.accumulated
        )


def predict_steps(
    settings: Mapping[str, Any],
    precision: PrecisionConfig,
    adapter: AdapterConfig,
    train: TrainConfig,
    targets: Targets,
) -> StepMemory:
    """Trace what is needed to predict any step; raises as `estimate.predict_phases`."""
    repeats = count_repeats(settings, adapter)
    short = shorten(settings, BLOCKS) if repeats else settings
    accumulated = train.micro_batch_size < train.global_batch_size
    columns = FEW_COLUMNS + (targets.last or 0)
    with estimate.told():
        model = estimate.build(short, precision, adapter, train)
        own = [p for name, p in model.named_parameters()
               if p.requires_grad and adapters.block_of(name) == 1]  # fmt: skip
        held = _bytes_of_block(short, precision, adapter, train) if repeats else [0] * 5
        if accumulated:
            held[workload.PARTS.index("gradients")] += sum(p.nbytes for p in own)

        def run(rows: int, wide: int) -> torch.Tensor:
            shape = BatchShape(rows=rows, columns=wide, accumulated=accumulated,
                               first_target=targets.first_column(wide))  # fmt: skip
            return torch.tensor(_run(model, shape, repeats, held))

        try:
            moments = _difference(run, columns)
        except RuntimeError as error:
            raise PredictionError(f"steps of other sizes differ in kind: {error}") from error
        work = _count_work(model, settings, own)
    trainable = [p for p in model.parameters() if p.requires_grad] + own * repeats
    return StepMemory(moments=moments, columns=columns, trainable=trainable, train=train,
                      targets=targets, accumulated=accumulated, work=work)  # fmt: skip


def _difference(run: Callable[[int, int], torch.Tensor], columns: int) -> torch.Tensor:
    """As `StepMemory.moments`; the last pass only where something grows with the square."""
    few, wider, widest = (run(FEW_ROWS, columns + more) for more in range(3))
    bent = widest - 2 * wider + few
    more_few, more_wider = (run(FEW_ROWS + 1, columns + more) for more in range(2))
    more_bent = bent
    if bent.any():
        more_bent = run(FEW_ROWS + 1, columns + 2) - 2 * more_wider + more_few
    first = torch.stack([few, wider - few, bent])
    return torch.stack([first, torch.stack([more_few, more_wider - more_few, more_bent]) - first])


def _count_work(
    model: adapters.Tuned, settings: Mapping[str, Any], own: list[torch.nn.Parameter]
) -> Work:
    base: Any = model.get_base_model() if hasattr(model, "get_base_model") else model
    layers = {n: x.in_features * x.out_features for n, x in weights.linear_layers(base).items()}
    heads = read_settings(settings, ("num_attention_heads", "n_head")) or 0
    hidden = base.get_input_embeddings().weight.shape[1]
    return Work(
        blocks=count_layers(settings) or 0,
        block=sum(size for name, size in layers.items() if adapters.block_of(name) == 1),
        head=base.get_output_embeddings().weight.numel(),
        trained=sum(p.numel() for p in own),
        width=heads * settings["head_dim"] if settings.get("head_dim") else hidden,
    )


def predict_others(
    settings: Mapping[str, Any],
    precision: PrecisionConfig,
    adapter: AdapterConfig,
    train: TrainConfig,
    shape: BatchShape,
) -> dict[str, dict[str, int]]:
    """As `estimate.predict_others`: one block more adds the same bytes to each part."""
    repeats = count_repeats(settings, adapter)
    if not repeats:
        return estimate.predict_others(settings, precision, adapter, train, shape)
    less, more = (
        estimate.predict_others(shorten(settings, blocks), precision, adapter, train, shape)
        for blocks in (BLOCKS, BLOCKS + 1)
    )
    return {
        phase: {name: value + repeats * (more[phase][name] - value)
                for name, value in parts.items()}
        for phase, parts in less.items()
    }  # fmt: skip


def count_repeats(settings: Mapping[str, Any], adapter: AdapterConfig) -> int:
    """How many more blocks the middle one of three stands for; 0 where blocks may differ."""
    layers = count_layers(settings) or 0
    kinds = settings.get("layer_types") or ["alike"]
    alike = len(set(kinds)) == 1 and getattr(adapter, "layers", None) is None
    return layers - BLOCKS if alike and layers > BLOCKS else 0


def shorten(settings: Mapping[str, Any], blocks: int) -> dict[str, Any]:
    """The same architecture with fewer blocks."""
    kept = {name: value for name, value in settings.items() if name != "layer_types"}
    return {name: blocks if name in LAYER_NAMES else value for name, value in kept.items()}


def _bytes_of_block(
    settings: Mapping[str, Any],
    precision: PrecisionConfig,
    adapter: AdapterConfig,
    train: TrainConfig,
) -> Snapshot:
    """What one more block holds: by the difference of two models."""
    held = []
    for blocks in (BLOCKS, BLOCKS + 1):
        model = estimate.build(shorten(settings, blocks), precision, adapter, train)
        meter = stand_ins.MetaMeter()
        workload.register_model(meter, model)
        held.append([meter.live_by_category[part] for part in workload.PARTS])
    return [more - less for less, more in zip(*held, strict=True)]


def _run(model: torch.nn.Module, shape: BatchShape, repeats: int, held: Snapshot) -> list[Snapshot]:
    """The moments of one pass, those of the middle block's highest and lowest repeat among them."""
    recorder = Recorder()
    blocks = _find_blocks(model) if repeats else []
    for number, block in enumerate(blocks):
        _forget_hooks(block)
        recorder.watch_block(number, block)
    estimate.run_pass(model, shape, backward=True, meter=recorder)
    moments = recorder.moments
    if not repeats:
        return moments
    if len(recorder.forward) < BLOCKS or len(recorder.backward) < BLOCKS:
        raise PredictionError("the blocks of this model are not passed one after another")
    there, back = recorder.forward, recorder.backward
    kept = _minus(there[2][1], there[1][1])
    left = _minus(back[0][1], back[1][1])  # gradients that a block leaves, less what it kept
    before, after = _times(held, repeats), _plus(left, kept)
    full = _plus(before, _times(kept, repeats))
    emptied = _plus(before, _times(after, repeats))
    middle_forward = moments[there[1][0] : there[2][0]]
    middle_backward = moments[back[1][0] : back[0][0]]
    return [
        *(_plus(moment, before) for moment in moments[: there[2][0]]),
        *(_plus(moment, full) for moment in middle_forward),
        *(_plus(moment, full) for moment in moments[there[2][0] : back[1][0]]),
        *(_plus(moment, full) for moment in middle_backward),
        *(_plus(moment, emptied) for moment in moments[back[1][0] :]),
    ]


def _find_blocks(model: torch.nn.Module) -> list[torch.nn.Module]:
    for module in model.modules():
        if isinstance(module, torch.nn.ModuleList) and len(module) == BLOCKS:
            return list(module)
    raise PredictionError(f"no list of {BLOCKS} blocks in this model")


def _forget_hooks(block: torch.nn.Module) -> None:
    """Those of an earlier pass."""
    block._forward_hooks.clear()
    block._forward_pre_hooks.clear()


def _plus(one: Snapshot, other: Snapshot) -> Snapshot:
    return [a + b for a, b in zip(one, other, strict=True)]


def _minus(one: Snapshot, other: Snapshot) -> Snapshot:
    return [a - b for a, b in zip(one, other, strict=True)]


def _times(one: Snapshot, factor: int) -> Snapshot:
    return [factor * value for value in one]
