"""What is run: a model's sizes and its activations, recorded or drawn from a recipe.

Importing the package registers every trace format with `Trace.open`.
"""

from dipsim.workload import recorded, synthetic
from dipsim.workload.trace import Trace

__all__ = ["Trace", "recorded", "synthetic"]
