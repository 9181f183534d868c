"""elseq-benchmark: compare stock fairseq, elseq's decoding methods and other programs on the same weights and sources.

elseq-benchmark NAME, such as multi-query, is another benchmark: see `elseq.benchmark`.
"""

import sys
from importlib import import_module

import elseq
from elseq.arguments import is_sweep
from elseq.benchmark import BENCHMARKS


def main() -> None:
    arguments = sys.argv[1:]
    if is_sweep(arguments):
        elseq.set_up()
        from elseq.sweeps.benchmark import job
        from elseq.sweeps.launch import sweep

        return sweep("benchmark", job)
    package = "elseq.benchmark"
    if arguments and arguments[0] in BENCHMARKS:
        package = BENCHMARKS[arguments.pop(0)]
    args = import_module(f"{package}.arguments").parse(arguments)
    elseq.set_up()
    import_module(f"{package}.command").main(args)


if __name__ == "__main__":
    main()
