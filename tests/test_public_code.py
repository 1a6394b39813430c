"""What the authors' code does, as literal twins written from its facts, and what ours does instead.

A section a part; what a setting restores must equal the twin, what ours does by default must not.
"""

from __future__ import annotations

# ------------------------------------------------------------- EntityCLIP: the draw, the scale

# ------------------------------------------------------------- training: best checkpoint, pictures

# ------------------------------------------------------------- AsCL

# ------------------------------------------------------------- ITR

# ------------------------------------------------------------- data and evaluation
