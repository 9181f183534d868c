from setuptools import Extension, setup

# Called by ctypes. OpenMP's runtime is torch's, so that its threads are: it must not be linked.
INSTRUCTIONS = {"avx512": ["-mavx512f", "-mavx512bw", "-mavx512vl", "-mavx512vnni"], "avx2": ["-mavx2", "-mfma"]}
kernels = [
    Extension(
        f"elseq._native_{name}",
        ["elseq/precision/kernels.cpp", "elseq/attention/kernels/decode_step.cpp"],
        depends=["elseq/native.hpp", f"elseq/{name}.hpp"],
        extra_compile_args=["-O3", "-std=c++17", "-fopenmp", *options],
        optional=True,  # without a compiler, or on another processor
    )
    for name, options in INSTRUCTIONS.items()
]

# A console entry point would import all of elseq, torch included, to print a path.
setup(scripts=["scripts/elseq-user-dir"], ext_modules=kernels)
