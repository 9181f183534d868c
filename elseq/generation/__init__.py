"""Search: the loop, what advances a model, and how a batch is decoded."""

from elseq.generation.search import SequenceGenerator

__all__ = ["SequenceGenerator"]
