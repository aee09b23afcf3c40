"""A prediction by arithmetic, for a model that no test machine holds: LLaMA-65B.

What a run measured enters it: the bits that a quantized weight takes, and the adapter's rank. The
rest is the published architecture. Tensors are counted and nothing else: a GPU's context and its
allocator's waste come on top.
"""

from __future__ import annotations

LAYERS, HIDDEN, INNER, VOCABULARY = 80, 8192, 22016, 32000
TOKENS = 512
"""One row, as in the QLoRA paper."""
BF16, FP32 = 2, 4
TRAINED = 4 * FP32
"""Bytes a trained parameter: itself, its gradient, and AdamW's two moments."""
BLOCK_ACTIVATIONS = 34
"""Bytes a token and hidden unit that one block keeps for going back (Korthikanti et al., 2022)."""
LOGITS_COPIES = 3


def llama_65b_bytes(bits_per_weight: float, rank: int) -> float:
    """Bytes of tensors in a step with LoRA on all linear layers and activations checkpointed."""
    attention, feed_forward = 4 * HIDDEN * HIDDEN, 3 * HIDDEN * INNER
    base = LAYERS * (attention + feed_forward) * bits_per_weight / 8
    embeddings = 2 * VOCABULARY * HIDDEN * BF16
    adapter = LAYERS * rank * (4 * 2 * HIDDEN + 3 * (HIDDEN + INNER)) * TRAINED
    kept = LAYERS * TOKENS * HIDDEN * BF16 + BLOCK_ACTIVATIONS * TOKENS * HIDDEN
    logits = LOGITS_COPIES * TOKENS * VOCABULARY * FP32
    return float(base + embeddings + adapter + kept + logits)
