"""Precisions: the numbers with which the linear layers of a model are evaluated while it decodes.

`PreparedModel` puts the layers of a model under a precision while a search runs. At all other times, and for whoever
saves, trains or scores the model, its parameters are what they were.
"""

from elseq.precision.linear import activated, original_weight
from elseq.precision.model import DTYPES, INT8, PreparedModel, prepared, restore

__all__ = ["DTYPES", "INT8", "PreparedModel", "activated", "original_weight", "prepared", "restore"]
