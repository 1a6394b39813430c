"""Image-text data sets. Each source makes `Pair`s; nothing later knows which source it was.

The names load on first use: explaining captions needs the drawn newsroom's facts, not torch.
"""

from entityclip import loaded_on_use

_HOME = dict.fromkeys(("DATASETS", "DRAWN", "LOADERS", "load_pairs"), "registry")
__all__ = sorted(_HOME)
__getattr__, __dir__ = loaded_on_use(__name__, _HOME)
