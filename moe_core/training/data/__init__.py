"""Three real tasks that need no download, or the person's own files in their place.

A batch is a function of seed and step alone, so the step is all that must be kept to go on with the data. Every token knows
its labels (its domain and byte, or its class), which is what specialisation is counted over. Whatever is wrong with a
person's file is a ValueError of one line, raised before a run is created.
"""

from moe_core.schema import Config
from moe_core.training.data.batch import Batch, generator_for
from moe_core.training.data.digits import digits
from moe_core.training.data.plane import plane
from moe_core.training.data.points import Points
from moe_core.training.data.text import Text, text

__all__ = ["Batch", "Data", "Points", "Text", "generator_for", "load"]

Data = Text | Points


def load(config: Config) -> Data:
    """The data that a run of this config learns from; ValueError if its files cannot be used."""
    return {"text": text, "digits": digits, "plane": plane}[config.task](config)
