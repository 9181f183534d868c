"""Subword vocabularies: from text to the words of a dictionary, and back.

Each has `encode` (a text: its words with a space between), `decode` (the text of such words) and `digest` (what it is
made of), and none reads anything but files that are named or lie beside a model.
"""
