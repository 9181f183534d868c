"""Precisions: the numbers with which the linear layers of a model are evaluated while it decodes.

`PreparedModel` puts the layers of a model under a precision while a search runs. For everything else, such as saving,
training and scoring, the layers have their own weights.
"""

from elseq.precision.linear import KernelProduct, Product, activated, is_in_search, is_unhooked
from elseq.precision.model import DTYPES, INT8, PreparedModel, kind_of_product, prepared, restore

__all__ = [
    "DTYPES",
    "INT8",
    "KernelProduct",
    "PreparedModel",
    "Product",
    "activated",
    "is_in_search",
    "is_unhooked",
    "kind_of_product",
    "prepared",
    "restore",
]
