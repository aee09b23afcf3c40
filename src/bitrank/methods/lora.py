"""LoRA: low-rank updates beside frozen layers."""

from __future__ import annotations

from bitrank.lora import Lora

METHOD = Lora("lora")
