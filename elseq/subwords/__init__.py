"""Subword vocabularies: from text to the words of a dictionary, and back.

All of them are `base.Subwords`, and none reads anything but files that are named or lie beside a model.
"""
