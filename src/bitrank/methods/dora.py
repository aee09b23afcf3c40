"""DoRA: LoRA, and the length of each row of the weight trained apart from its direction."""

from __future__ import annotations

from bitrank.lora import Lora

METHOD = Lora("dora")
