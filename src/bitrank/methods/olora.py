"""OLoRA: LoRA that begins with orthonormal columns of the weight's QR decomposition.

Büyükakyüz 2024.
"""

from __future__ import annotations

from bitrank.residuals import Residual, split_by_rows

METHOD = Residual("olora", split_by_rows)
