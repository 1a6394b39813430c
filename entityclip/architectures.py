"""open_clip, with the package's own architectures among those it knows.

Imported where a model is built and not at the top of a module: open_clip brings torchvision,
transformers and timm, seconds that whoever only reads rows and draws figures need not wait.
"""

from __future__ import annotations

from pathlib import Path

import open_clip

open_clip.add_model_config(Path(__file__).parent / "backbones")

__all__ = ["open_clip"]
