"""Converts checkpoints from and to other programs."""
