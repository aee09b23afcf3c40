"""What is added to a base and trained: the section `adapter` of `params.yaml`, one class a schema.

`faults` are those of the section alone, `faults_on` those of a method on a precision, with the
nearest thing that works.
"""

from __future__ import annotations

import math
import re
from dataclasses import dataclass
from typing import Literal, TypeAlias

from bitrank.pins import Faults

LAST = re.compile(r"last ([1-9]\d*)")
"""How the blocks at the end of the model are asked for, such as "last 4"."""
GROUPS = ("all-linear", "attention", "feed-forward")
"""Names for several layers at once, beside the ends of their own names."""
REWRITING = ("pissa", "olora")
"""Methods that take their first weights out of the base's."""


@dataclass(frozen=True, kw_only=True)
class _InBlocks:
    layers: list[int] | str | None
    """Blocks whose layers get one: null for all, a list of numbers from 0, or "last 4"."""

    def faults(self) -> Faults:
        if isinstance(self.layers, str) and not LAST.fullmatch(self.layers):
            yield (
                "layers",
                f'must be null, a list of block numbers, or "last N", got {self.layers!r}',
            )
        elif isinstance(self.layers, list) and (not self.layers or min(self.layers) < 0):
            yield "layers", f"must list blocks by their number from 0, got {self.layers}"

    def faults_on(self, quant_type: str | None) -> Faults:
        """What `precision.quant_type` forbids: nothing, for most methods."""
        yield from ()


@dataclass(frozen=True, kw_only=True)
class _InLayers(_InBlocks):
    target_modules: list[str]
    """Linear layers that get an adapter: by the end of their name, or by group: `attention`,
    `feed-forward`, `all-linear`."""

    def faults(self) -> Faults:
        if not self.target_modules:
            yield "target_modules", 'must name at least one layer, or be ["all-linear"]'
        yield from super().faults()


@dataclass(frozen=True, kw_only=True)
class LoraAdapter(_InLayers):
    """Low-rank updates beside frozen linear layers (Hu et al. 2021), and what differs from them in
    the first weights only (PiSSA, OLoRA, LoftQ), or in one switch (DoRA, rsLoRA).
    """

    method: Literal["lora", "dora", "rslora", "pissa", "olora", "loftq"]
    rank: int
    alpha_per_rank: float | None
    """alpha / rank. LoRA's update is scaled by just this number, whatever the rank; rsLoRA's by
    alpha / sqrt(rank), which is this number times sqrt(rank) and so grows with the rank."""
    alpha_per_sqrt_rank: float | None
    """alpha / sqrt(rank), instead of the above: rsLoRA's update is scaled by just this number,
    LoRA's by this number / sqrt(rank)."""
    dropout: float
    use_dora: bool
    """Train the length of each row of the weight apart from its direction (Liu et al. 2024)."""
    use_rslora: bool
    """Scale by alpha / sqrt(rank) instead of alpha / rank (Kalajdzievski 2023)."""

    @property
    def alpha(self) -> float:
        """What the policy, of which just one is given, makes of the rank."""
        if self.alpha_per_rank is not None:
            return self.alpha_per_rank * self.rank
        return (self.alpha_per_sqrt_rank or 0.0) * math.sqrt(self.rank)

    def faults(self) -> Faults:
        if self.rank < 1:
            yield "rank", f"must be at least 1, got {self.rank}"
        policies = ("alpha_per_rank", "alpha_per_sqrt_rank")
        given = {name: getattr(self, name) for name in policies if getattr(self, name) is not None}
        if len(given) != 1:
            yield (
                "alpha_per_rank",
                f"or `adapter.alpha_per_sqrt_rank` must be given, and the other be null; got "
                f"{'both' if given else 'neither'}",
            )
        for name, value in given.items():
            if value <= 0:
                yield name, f"must be above 0, got {value}"
        yield from _dropout_faults(self.dropout)
        for name, switch in (("dora", "use_dora"), ("rslora", "use_rslora")):
            if self.method == name and not getattr(self, switch):
                yield switch, f"must be true with adapter={name}: without it, it is adapter=lora"
        if self.use_dora and self.method in (*REWRITING, "loftq"):
            yield "use_dora", f"does not go with {self.method}: take adapter=dora"
        yield from super().faults()

    def faults_on(self, quant_type: str | None) -> Faults:
        if self.use_dora and quant_type == "int8":
            # Int8Params lose their scales when PEFT reads a weight's length (bitsandbytes 0.50).
            yield "use_dora", "does not work on int8 weights: add precision=nf4 or fp32"
        if self.method in REWRITING and quant_type is not None:
            yield (
                "method",
                f"{self.method} takes its first weights out of the base's, and what is left would "
                f"be rounded to {quant_type} codes anew: add precision=fp32, or take "
                "adapter=loftq, whose first weights are made for a quantized base",
            )
        if self.method == "loftq" and quant_type is None:
            yield (
                "method",
                "loftq begins with what quantization took from the weights, and nothing was taken "
                "from these: add precision=nf4, or take adapter=pissa",
            )


@dataclass(frozen=True, kw_only=True)
class Ia3Adapter(_InLayers):
    """One trained factor for each output, or each input, of some layers (Liu et al. 2022)."""

    method: Literal["ia3"]
    scaled_inputs: list[str]
    """Those of `target_modules` whose inputs are scaled and not their outputs: by the end of their
    name; in the paper, the layer that ends the feed-forward part."""

    def faults(self) -> Faults:
        beyond = sorted(set(self.scaled_inputs) - {*self.target_modules})
        if beyond:
            yield (
                "scaled_inputs",
                f"must be among `adapter.target_modules`, {', '.join(beyond)} is not",
            )
        yield from super().faults()


@dataclass(frozen=True, kw_only=True)
class VeraAdapter(_InLayers):
    """A low-rank update whose random matrices are frozen and shared by all layers; what is trained
    is a factor for each rank and each output (Kopiczko et al. 2024).
    """

    method: Literal["vera"]
    rank: int
    first_factor: float
    """What the factors of the ranks begin with; those of the outputs begin with 0."""
    dropout: float

    def faults(self) -> Faults:
        if self.rank < 1:
            yield "rank", f"must be at least 1, got {self.rank}"
        if self.first_factor == 0:
            yield "first_factor", "must not be 0, with which nothing would ever be learned"
        yield from _dropout_faults(self.dropout)
        yield from super().faults()


@dataclass(frozen=True, kw_only=True)
class OftAdapter(_InLayers):
    """A trained rotation of each block of a layer's inputs (Qiu et al. 2023; the rotation from a
    skew-symmetric matrix by Cayley's transform, as a sum of five terms: Qiu et al. 2025).
    """

    method: Literal["oft"]
    block_size: int
    """Inputs that are rotated together; must divide the number of inputs of each layer."""

    def faults(self) -> Faults:
        if self.block_size < 2:
            yield "block_size", f"must be at least 2, got {self.block_size}"
        yield from super().faults()


@dataclass(frozen=True, kw_only=True)
class BottleneckAdapter(_InBlocks):
    """Two small layers with a bend between them behind a part of each block, whose result is added
    to the part's (Houlsby et al. 2019).
    """

    method: Literal["bottleneck"]
    size: int
    """Width between the two layers."""
    activation: Literal["relu", "gelu", "silu"]
    after: list[Literal["attention", "feed-forward"]]
    """The parts of a block that get one."""

    def faults(self) -> Faults:
        if self.size < 1:
            yield "size", f"must be at least 1, got {self.size}"
        if not self.after or len(set(self.after)) < len(self.after):
            yield "after", "must name attention, feed-forward, or both"
        yield from super().faults()


@dataclass(frozen=True, kw_only=True)
class _VirtualTokens:
    num_virtual_tokens: int

    def faults(self) -> Faults:
        if self.num_virtual_tokens < 1:
            yield "num_virtual_tokens", f"must be at least 1, got {self.num_virtual_tokens}"

    def faults_on(self, quant_type: str | None) -> Faults:
        yield from ()


@dataclass(frozen=True, kw_only=True)
class PromptTuningAdapter(_VirtualTokens):
    """Trained embeddings before each row (Lester et al. 2021)."""

    method: Literal["prompt_tuning"]
    first_tokens: Literal["vocabulary", "random"]
    """What they begin as: embeddings of tokens that are drawn from the vocabulary, or numbers of a
    normal distribution."""


@dataclass(frozen=True, kw_only=True)
class PTuningAdapter(_VirtualTokens):
    """As prompt tuning, the embeddings made by a small network that is trained with them and not
    kept (Liu et al. 2021).
    """

    method: Literal["p_tuning"]
    hidden_size: int
    """Of the network's three layers."""

    def faults(self) -> Faults:
        if self.hidden_size < 1:
            yield "hidden_size", f"must be at least 1, got {self.hidden_size}"
        yield from super().faults()


@dataclass(frozen=True, kw_only=True)
class PrefixTuningAdapter(_VirtualTokens):
    """Trained keys and values before each row, in the attention of every block (Li & Liang 2021,
    without the network that made them).
    """

    method: Literal["prefix_tuning"]


@dataclass(frozen=True, kw_only=True)
class FullAdapter:
    """Full fine-tuning: every weight of an unquantized base, in the type in which it is held."""

    method: Literal["full"]

    def faults_on(self, quant_type: str | None) -> Faults:
        if quant_type is not None:
            yield (
                "method",
                f"full trains every weight, which {quant_type} weights cannot be: add "
                "precision=fp32, or take adapter=lora",
            )


AdapterConfig: TypeAlias = (
    LoraAdapter
    | Ia3Adapter
    | VeraAdapter
    | OftAdapter
    | BottleneckAdapter
    | PromptTuningAdapter
    | PTuningAdapter
    | PrefixTuningAdapter
    | FullAdapter
)


def _dropout_faults(dropout: float) -> Faults:
    if not 0 <= dropout < 1:
        yield "dropout", f"must be in [0, 1), got {dropout}"
