"""GPU kernels. Their functions use PyTorch where a kernel cannot run.

They are written in Triton, which comes with PyTorch for CUDA.
"""
