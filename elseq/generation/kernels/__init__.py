"""Kernels of a search. Where one cannot run, PyTorch computes the same."""
