from setuptools import Extension, setup

# Called by ctypes. OpenMP's runtime is torch's, so that its threads are: it must not be linked.
kernels = Extension(
    "elseq._native",
    ["elseq/precision/kernels.cpp", "elseq/attention/kernels/decode_step.cpp"],
    depends=["elseq/native.hpp"],
    extra_compile_args=["-O3", "-std=c++17", "-fopenmp", "-mavx512f", "-mavx512bw", "-mavx512vl", "-mavx512vnni"],
    optional=True,  # without a compiler, or on another processor
)

# A console entry point would import all of elseq, torch included, to print a path.
setup(scripts=["scripts/elseq-user-dir"], ext_modules=[kernels])
