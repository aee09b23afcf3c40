"""PiSSA: LoRA that begins with the weight's own largest singular values (Meng et al. 2024)."""

from __future__ import annotations

from bitrank.residuals import Residual, split_by_values

METHOD = Residual("pissa", split_by_values)
