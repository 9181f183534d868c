"""Subword vocabularies: convert text to words of a dictionary, and back.

All are subclasses of `base.Subwords`. They read only files that the user names, or files beside a model.
"""
