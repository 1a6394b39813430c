"""A profile's runs and what is measured of them."""

from entityclip import loaded_on_use

_HOME = {"Experiment": "experiment"}
__all__ = sorted(_HOME)
__getattr__, __dir__ = loaded_on_use(__name__, _HOME)
