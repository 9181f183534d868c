"""Kernels. Where one cannot run, PyTorch computes the same.

Kernels for GPUs are in Triton, which comes with PyTorch for CUDA. Kernels for CPUs are in C++ (`elseq.native`).
"""
