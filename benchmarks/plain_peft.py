"""What anyone would write with PEFT and transformers alone: logits of adapter and merged model.

`plain_libraries.py` starts it in a process of its own and compares; it imports nothing of bitrank.
The base is quantized anew from its original weights, as a user of the adapter would.

    python plain_peft.py asked.json logits.safetensors

asked.json: `original`, `adapter`, `merged` (folders), `quantization` (arguments of transformers'
BitsAndBytesConfig, types by name, or null), `weight_dtype`, `threads`, `rows` (of token ids).
"""

from __future__ import annotations

import json
import sys
from typing import Any

import torch
from peft import PeftModel
from safetensors.torch import save_file
from transformers import AutoModelForCausalLM, BitsAndBytesConfig


def main() -> None:
    with open(sys.argv[1], encoding="utf-8") as stream:
        asked = json.load(stream)
    torch.set_num_threads(asked["threads"])
    quantization = asked["quantization"] and BitsAndBytesConfig(**asked["quantization"])
    base = AutoModelForCausalLM.from_pretrained(
        asked["original"],
        dtype=getattr(torch, asked["weight_dtype"]),
        quantization_config=quantization,
        device_map={"": "cpu"} if quantization else None,
    )
    adapted = PeftModel.from_pretrained(base, asked["adapter"]).eval()
    merged = AutoModelForCausalLM.from_pretrained(asked["merged"], dtype="auto").eval()
    save_file(
        {"adapter": last_logits(adapted, asked["rows"]),
         "merged": last_logits(merged, asked["rows"])},
        sys.argv[2],
    )  # fmt: skip


def last_logits(model: Any, rows: list[list[int]]) -> torch.Tensor:
    """Next-token logits after each row, (rows, vocabulary); one row at a time, so no padding."""
    with torch.inference_mode():
        return torch.stack([model(torch.tensor([row])).logits[0, -1].float() for row in rows])


if __name__ == "__main__":
    main()
