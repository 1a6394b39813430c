"""Tests. Their `newsroom-tiny` is narrower than the package's and has a layer less.

A few hundred tiny models are trained, written and read here, and most of that time would go into
word embeddings. Commands that are started anew, and the notebooks, have the package's own.
"""

from pathlib import Path

from entityclip.models.weights import BACKBONES, library

SHIPPED = BACKBONES
NARROW = Path(__file__).parent / "fixtures" / "backbones"

library().add_model_config(NARROW)  # takes the place of the package's
