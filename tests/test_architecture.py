"""The order of the packages: imports run downwards only, as docs/architecture.md says."""

import ast
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[1]
# From the bottom up; those on one line know nothing of each other, but for what is written here.
ORDER = """
streams imports model_files
errors
files tables bounds numerics native gpu heap arguments
measurements
kernel_trials
compat precision
attention
models
options
generation
tasks subwords
interop
loading
encoded_texts
distillation generator
text_files scoring
reports benchmark
sweeps
cli
""".strip().splitlines()
LEVELS = {room: level for level, line in enumerate(ORDER) for room in line.split()}
FILES = sorted((ROOT / "elseq").rglob("*.py"))
# Modules whose tests are not in the file of their name: figures of papers, and what others' tests run.
TESTED_ELSEWHERE = {
    "elseq.benchmark.el_attention.measure": "benchmark/el_attention/test_command.py",
    "elseq.benchmark.el_attention.settings": "benchmark/el_attention/test_plan.py",
    "elseq.benchmark.fairseq_engine": "benchmark/test_measure.py",
    "elseq.benchmark.multi_query.variants": "benchmark/multi_query/test_report.py",
    "elseq.text_files.encoding": "cli/test_generate_errors.py",
    "elseq.model_files": "test_files.py",
    "elseq.text_files.job": "text_files/test_run.py",
    "elseq.text_files.plain_folder": "text_files/test_journal.py",
}


def module(path):
    parts = path.relative_to(ROOT).with_suffix("").parts
    return ".".join(parts[:-1] if parts[-1] == "__init__" else parts)


def room(name):
    return name.split(".")[1] if "." in name else None  # None: the package itself, whose version all may read


def imported(path):
    """Names of modules, and of what is imported from them, wherever in the file."""
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            yield node.module
            yield from (f"{node.module}.{alias.name}" for alias in node.names)


@pytest.mark.parametrize("path", FILES, ids=module)
def test_imports_run_downwards(path):
    own = room(module(path))
    if own is None:
        return
    for name in imported(path):
        if name.startswith("elseq.") and name not in ("elseq.__version__", "elseq.load"):
            other = room(name)
            assert other == own or LEVELS[other] < LEVELS[own], f"{own} imports {name}"


def test_every_room_has_a_place():
    found = {
        path.stem for path in (ROOT / "elseq").iterdir() if path.suffix == ".py" or (path / "__init__.py").exists()
    }
    assert found - {"__init__"} == set(LEVELS)


@pytest.mark.parametrize("path", [path for path in FILES if room(module(path)) == "attention"], ids=module)
def test_the_mathematics_knows_nothing_of_fairseq(path):
    known = {"torch", "triton", *sys.stdlib_module_names}
    own = (
        "elseq.attention",
        "elseq.precision",
        "elseq.native",
        "elseq.gpu",
        "elseq.errors",
        "elseq.measurements",
        "elseq.kernel_trials",
    )
    for name in imported(path):
        assert name.split(".")[0] in known or name.startswith(own), name


def test_no_module_imports_itself_by_way_of_others():
    known = {module(path): path for path in FILES}
    arrows = {}
    for name, path in known.items():
        targets = set()
        for node in ast.parse(path.read_text(encoding="utf-8")).body:  # what runs when it is imported
            if isinstance(node, ast.ImportFrom):
                for alias in node.names:
                    whole = f"{node.module}.{alias.name}"
                    targets.add(whole if whole in known else node.module)
        arrows[name] = {target for target in targets if target in known and target != "elseq"}
    waiting, done = dict(arrows), set()
    while free := [name for name, targets in waiting.items() if targets <= done]:
        done |= set(free)
        for name in free:
            del waiting[name]
    assert not waiting, f"a circle among {', '.join(waiting)}"


@pytest.mark.parametrize("path", [path for path in FILES if path.stem != "__init__"], ids=module)
def test_a_module_s_tests_are_in_the_file_of_its_name(path):
    """Or in several, which begin with it. The launcher of a kernel is tested with the kernel."""
    place = Path(__file__).parent / path.relative_to(ROOT / "elseq").parent
    stem = path.stem.removesuffix("_triton")
    elsewhere = TESTED_ELSEWHERE.get(module(path))
    found = [*place.glob(f"test_{stem}.py"), *place.glob(f"test_{stem}_*.py")]
    assert (Path(__file__).parent / elsewhere).exists() if elsewhere else found
