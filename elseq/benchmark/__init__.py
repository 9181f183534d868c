"""elseq-benchmark: the same decoding by several programs, each measured in its own process.

A folder here measures what a paper has measured. `elseq-benchmark NAME` reads its options by `parse` in its
arguments.py, which imports neither torch nor fairseq, and then runs `main` in its command.py.
"""

from pkgutil import iter_modules

PAPERS = {name.replace("_", "-"): f"{__name__}.{name}" for _, name, is_folder in iter_modules(__path__) if is_folder}
