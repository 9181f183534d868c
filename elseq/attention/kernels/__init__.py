"""Kernels. Where one cannot run, others or PyTorch compute the same.

Kernels for GPUs are in Triton, which comes with PyTorch for CUDA. Kernels for CPUs are in C++ (`elseq.native`).
"""
