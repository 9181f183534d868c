"""Precisions: the numbers with which the linear layers of a model are evaluated while it decodes.

`PreparedModel` puts the layers of a model under a precision while a search runs. For everything else, such as saving,
training and scoring, the layers have their own weights.
"""

from elseq.precision.linear import activated
from elseq.precision.model import DTYPES, INT8, PreparedModel, multiplied_rows, prepared, restore

__all__ = ["DTYPES", "INT8", "PreparedModel", "activated", "multiplied_rows", "prepared", "restore"]
