"""The sections of `params.yaml` as checked, frozen objects.

No field has a default: values live in `conf/` only, one home for each number. The classes declare
and validate; they compute nothing, so that no stage depends on this file for what it computes.
"""

from __future__ import annotations

from dataclasses import dataclass, fields
from pathlib import Path
from typing import Literal

from omegaconf import OmegaConf
from omegaconf.errors import OmegaConfBaseException
from yaml import YAMLError

from bitrank import schema
from bitrank.adapter_config import AdapterConfig, FullAdapter, PrefixTuningAdapter
from bitrank.data_config import DataConfig as DataConfig
from bitrank.errors import ConfigError, UserError
from bitrank.pins import Benchmark, Faults, HubModel, LocalModel, PypiModel, TinyModel
from bitrank.tuning import TrainConfig

BLOCK_SIZES = (32, 64, 128, 256, 512, 1024)


@dataclass(frozen=True, kw_only=True)
class ModelConfig:
    name: str
    source: PypiModel | LocalModel | HubModel | TinyModel
    provenance: str
    """What a reader must know of these weights, e.g. "dequantized from Q4_1"."""
    license: str


@dataclass(frozen=True, kw_only=True)
class PrecisionConfig:
    """How the base model's linear weights are held, with nothing left to a library's default."""

    name: str
    quant_type: Literal["int8", "fp4", "nf4"] | None
    """null: not quantized."""
    double_quant: bool
    """Quantize the block scales too (4-bit types only)."""
    block_size: int | None
    """Weights that share one scale (4-bit types only)."""
    quant_storage: Literal["uint8", "float32", "bfloat16", "float16"] | None
    """Type that the packed codes are kept as, whose bits they are (4-bit types only). FSDP cuts up
    a block's weights only where all have one floating-point type: there it is `weight_dtype`."""
    weight_dtype: Literal["float32", "bfloat16", "float16"]
    """Type of everything that is not quantized: embeddings, norms, output layer."""
    compute_dtype: Literal["float32", "bfloat16", "float16"]
    """Type in which a matrix product with dequantized 4-bit weights is computed."""

    def faults(self) -> Faults:
        four_bit = self.quant_type in ("fp4", "nf4")
        if self.double_quant and not four_bit:
            yield "double_quant", "applies to fp4 and nf4 only"
        if four_bit != (self.block_size is not None):
            yield "block_size", "must be given for fp4 and nf4, and be null otherwise"
        if four_bit != (self.quant_storage is not None):
            yield "quant_storage", "must be given for fp4 and nf4, and be null otherwise"
        if self.block_size is not None and self.block_size not in BLOCK_SIZES:
            yield "block_size", f"must be a power of two from 32 to 1024, got {self.block_size}"
        if not four_bit and self.compute_dtype != self.weight_dtype:
            yield "compute_dtype", "must equal `precision.weight_dtype` unless the base is 4-bit"


@dataclass(frozen=True, kw_only=True)
class MeasureConfig:
    warmup_steps: int
    steps: int
    prompt_tokens: int
    """Length of the prompt of the prefill measurement."""
    decode_tokens: int

    def faults(self) -> Faults:
        for name in ("warmup_steps", "steps", "prompt_tokens", "decode_tokens"):
            if getattr(self, name) < 1:
                yield name, f"must be at least 1, got {getattr(self, name)}"


@dataclass(frozen=True, kw_only=True)
class MergeConfig:
    base: Literal["dequantized", "original"]
    """Which weights the update is added to: those that training saw, or the ones before."""
    dtype: Literal["float32", "bfloat16", "float16"]
    check_items: int
    """Validation prompts on which the merged model's logits are compared."""

    def faults(self) -> Faults:
        if self.check_items < 1:
            yield "check_items", f"must be at least 1, got {self.check_items}"


@dataclass(frozen=True, kw_only=True)
class CodesConfig:
    """How weights become 4-bit codes."""

    quant_type: Literal["fp4", "nf4"]
    block_size: int
    double_quant: bool

    def faults(self) -> Faults:
        if self.block_size not in BLOCK_SIZES:
            yield "block_size", f"must be a power of two from 32 to 1024, got {self.block_size}"


Way = Literal[
    "adapter_on_original",
    "merged_original",
    "merged_dequantized",
    "merged_requantized",
    "merged_then_quantized",
]
"""How an adapter can be served, beside the way in which it was trained; see `bitrank.serving`."""


@dataclass(frozen=True, kw_only=True)
class FidelityConfig:
    num_items: int | None
    """Rows of the test split that each way to serve the adapter answers, the first ones; null:
    all."""
    ways: list[Way]
    benchmarks: bool
    """Have each answer `evaluate.benchmarks` too."""
    codes: CodesConfig
    """Of merged_then_quantized where the base has no 4-bit codes itself."""

    def faults(self) -> Faults:
        if self.num_items is not None and self.num_items < 2:
            yield "num_items", f"must be null or at least 2, got {self.num_items}"
        if len(set(self.ways)) < len(self.ways):
            yield "ways", "must be distinct"


@dataclass(frozen=True, kw_only=True)
class EvaluateConfig:
    batch_size: int
    dequantize: bool
    """Compute 4-bit models on dequantized weights: the same logits to the bit, faster."""
    benchmarks: list[Benchmark]
    benchmark_subjects: list[Literal["original", "quantized", "adapter", "merged"]]
    """The models that are scored on the benchmarks too; all are scored on the trained task."""

    def faults(self) -> Faults:
        if self.batch_size < 1:
            yield "batch_size", f"must be at least 1, got {self.batch_size}"
        names = [benchmark.name for benchmark in self.benchmarks]
        if len(set(names)) < len(names):
            yield "benchmarks", "must have distinct names"
        if "task" in names:
            yield "benchmarks", 'must not use the name "task", which is the trained task\'s'


@dataclass(frozen=True, kw_only=True)
class SeedsConfig:
    """What varies between repeats. The split has a seed of its own, `data.split_seed`."""

    init: int
    """Seed of the adapter's first weights and of dropout."""
    order: int
    """Seed of the order of the training rows."""


@dataclass(frozen=True, kw_only=True)
class RuntimeConfig:
    device: Literal["cpu", "cuda"]
    threads: int
    """CPU threads of torch: tracked, because it changes the order of floating-point sums."""
    allow_slow: bool
    """Compute in a type for which this device has no fast kernels, instead of refusing."""

    def faults(self) -> Faults:
        if self.threads < 1:
            yield "threads", f"must be at least 1, got {self.threads}"


@dataclass(frozen=True, kw_only=True)
class TrackingConfig:
    experiment: str
    """Name of the MLflow experiment. The server comes from MLFLOW_TRACKING_URI only."""


@dataclass(frozen=True, kw_only=True)
class RunConfig:
    """All of `params.yaml`: one point of a sweep."""

    seed: int
    model: ModelConfig
    data: DataConfig
    precision: PrecisionConfig
    adapter: AdapterConfig
    train: TrainConfig
    measure: MeasureConfig
    merge: MergeConfig
    fidelity: FidelityConfig
    evaluate: EvaluateConfig
    seeds: SeedsConfig
    runtime: RuntimeConfig
    tracking: TrackingConfig

    def faults(self) -> Faults:
        """What two sections say against each other."""
        for name, message in self.adapter.faults_on(self.precision.quant_type):
            yield f"adapter.{name}", message
        if isinstance(self.adapter, FullAdapter) and self.merge.base == "original":
            yield "merge.base", "must be dequantized: full fine-tuning has no update to add"
        if isinstance(self.adapter, PrefixTuningAdapter) and self.train.gradient_checkpointing:
            yield (
                "train.gradient_checkpointing",
                "must be false: what prefix_tuning puts before a row is dropped when activations "
                "are computed anew; or take adapter=prompt_tuning",
            )
        optimizer, device = self.train.optimizer, self.runtime.device
        if optimizer.startswith("paged_") and device != "cuda":
            yield (
                "train.optimizer",
                f"{optimizer} needs CUDA, `runtime.device` is {device}: take adamw or adamw_8bit",
            )


def parse(values: object) -> RunConfig:
    """Return the checked configuration.

    Raises:
        ConfigError: with all faults, each under the key as the user writes it.
    """
    faults: list[str] = []
    run = schema.build(RunConfig, values, "", faults)
    if run is None or faults:
        raise ConfigError([fault.replace("`.", "`") for fault in faults])
    return run


def load(path: Path = Path("params.yaml")) -> RunConfig:
    """Read and check a composed configuration. OmegaConf reads `1e-3` as a number, PyYAML as text.

    Raises:
        UserError: there is no such file, or it is not YAML.
        ConfigError: with all faults.
    """
    try:
        values = OmegaConf.to_container(OmegaConf.load(path), resolve=True)
    except FileNotFoundError:
        raise UserError(f"{path} does not exist; `bitrank params` composes it") from None
    except (YAMLError, OmegaConfBaseException) as error:
        raise UserError(f"{path} cannot be read: {error}; `bitrank params` rewrites it") from None
    return parse(values)


SECTIONS = tuple(field.name for field in fields(RunConfig))
