"""elseq-benchmark: the same decoding by several programs, each measured in its own process.

A folder here is a benchmark of its own, most of them of what a paper has measured. `elseq-benchmark NAME` reads its
options by `parse` in its arguments.py, which imports neither torch nor fairseq, and then runs `main` in its command.py
with them. Without a NAME those of this folder itself are used.
"""

from pkgutil import iter_modules

_FOLDERS = [name for _, name, is_folder in iter_modules(__path__) if is_folder]
BENCHMARKS = {name.replace("_", "-"): f"{__name__}.{name}" for name in _FOLDERS}
"""The folder of each, as a module, by its NAME."""
