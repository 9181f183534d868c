from glob import glob

from setuptools import Extension, setup
from setuptools.command.build_ext import build_ext

# Called by ctypes. OpenMP's runtime is torch's, so that its threads are: it must not be linked.
INSTRUCTIONS = {
    "avx512": ["-mavx512f", "-mavx512bw", "-mavx512vl", "-mavx512vnni"],
    "avx_vnni": ["-mavx2", "-mfma", "-mavxvnni"],
    "avx2": ["-mavx2", "-mfma"],
}
kernels = [
    Extension(
        f"elseq._native_{name}",
        sorted(glob("elseq/**/*.cpp", recursive=True)),
        depends=glob("elseq/**/*.hpp", recursive=True),
        define_macros=[(f"ELSEQ_{name.upper()}", None)],
        # The last -march counts, and the user's may be of another processor than the options are for.
        extra_compile_args=["-O3", "-std=c++17", "-fopenmp", "-march=x86-64", *options],
        optional=True,  # without a compiler that has these instructions
    )
    for name, options in INSTRUCTIONS.items()
]


class OneAfterTheOther(build_ext):
    """The object files of all have the same names."""

    def finalize_options(self):
        super().finalize_options()
        self.parallel = None


setup(ext_modules=kernels, cmdclass={"build_ext": OneAfterTheOther})
