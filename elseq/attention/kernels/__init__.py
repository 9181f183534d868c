"""GPU kernels behind functions that do the same by PyTorch where a kernel cannot run.

They are written in Triton, which comes with PyTorch for CUDA.
"""
