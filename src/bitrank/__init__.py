"""bitrank: what LoRA rank and base precision cost and give, in memory, speed and accuracy."""
