"""Kernels. Where one cannot run, PyTorch computes the same.

Those for GPUs are written in Triton, which comes with PyTorch for CUDA, and those for CPUs in C++ (`elseq.native`).
"""
