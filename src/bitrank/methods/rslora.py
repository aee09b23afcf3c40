"""rsLoRA: LoRA whose update is scaled by alpha / sqrt(rank)."""

from __future__ import annotations

from bitrank.lora import Lora

METHOD = Lora("rslora")
