import gc
import importlib
import signal
import sys
import weakref

import pytest

from elseq.imports import imported_when_called, uncollected
from tests import helpers

CLASSIFICATION = """
import sys, elseq, numpy
from fairseq.criterions import sentence_prediction
from fairseq.tasks import audio_classification
before = [name for name in sys.modules if name.split(".")[0] in ("sklearn", "scipy")]
scores = sentence_prediction.acc_and_f1(numpy.array([1, 0, 1, 1]), numpy.array([1, 1, 1, 0]))
rates, _, _ = audio_classification.sklearn_metrics.roc_curve([0, 1], [0.2, 0.8])
correlations = sentence_prediction.pearson_and_spearman([1, 2, 3, 4], [2, 4, 8, 6])
print(before, round(scores["f1"], 3), len(rates) > 1, *(round(each, 3) for each in correlations.values()))
"""


INTERRUPTED = """
import os, signal, sys
from elseq.imports import ended_by_ctrl_c
signal.signal(signal.SIGINT, signal.default_int_handler)
if "import" in sys.argv:
    with ended_by_ctrl_c():
        try:
            os.kill(os.getpid(), signal.SIGINT)
        except BaseException:  # as an extension module may do
            pass
    print("goes on")
else:
    signal.signal(signal.SIGINT, print)
    with ended_by_ctrl_c():
        os.kill(os.getpid(), signal.SIGINT)
    signal.signal(signal.SIGINT, signal.default_int_handler)
    with ended_by_ctrl_c():
        pass
    try:
        os.kill(os.getpid(), signal.SIGINT)
    except KeyboardInterrupt:
        print("interrupted")
"""


def test_ctrl_c_is_not_lost_in_an_import():
    result = helpers.run([sys.executable, "-c", INTERRUPTED, "import"])
    assert (result.returncode, result.stdout, result.stderr) == (-signal.SIGINT, b"", b"elseq: interrupted\n")


def test_ctrl_c_beside_imports():
    """A handler of the program's own is left alone, and afterwards Ctrl-C is as before."""
    first, *_, last = helpers.run([sys.executable, "-c", INTERRUPTED, ""], check=True).stdout.splitlines()
    assert first.startswith(b"2 <frame") and last == b"interrupted"


@pytest.fixture
def frozen():
    """The number of objects that are left alone now; afterwards as many, or more, are."""
    yield gc.get_freeze_count()
    gc.unfreeze()
    gc.collect()
    gc.freeze()


@pytest.mark.parametrize("is_command", [True, False])
def test_imports_are_not_looked_through(frozen, is_command):
    with uncollected(is_command):
        assert not gc.isenabled()
        imported = [[]]
    assert gc.isenabled()
    assert (gc.get_freeze_count() > frozen) == is_command
    assert any(imported is other for other in gc.get_objects()) != is_command


def test_what_a_program_has_before_the_import_is_collected(frozen):
    class Node:
        pass

    lost = Node()
    lost.itself, alive = lost, weakref.ref(lost)
    with uncollected(is_command=False):
        pass
    del lost
    gc.collect()
    assert alive() is None


@pytest.mark.parametrize("enabled", [True, False])
def test_the_collector_is_as_before(enabled):
    (gc.enable if enabled else gc.disable)()
    try:
        with pytest.raises(ImportError), uncollected(is_command=True):
            raise ImportError
        assert gc.isenabled() == enabled
    finally:
        gc.enable()


@pytest.fixture
def packages(tmp_path, monkeypatch):
    """Two packages and two modules that import them."""
    functions = {"slow_package.inner": "def add(a, b=1):\n    return a + b\n"}
    functions["slow_other.part"] = "def subtract(a, b):\n    return a - b\n"
    for name, function in functions.items():
        package, module = name.split(".")
        (tmp_path / package).mkdir()
        (tmp_path / package / "__init__.py").touch()
        (tmp_path / package / f"{module}.py").write_text(function)
    for name in ("patient", "hasty"):
        (tmp_path / f"{name}.py").write_text(
            "from slow_package import inner\nfrom slow_package.inner import add\nfrom slow_other.part import subtract\n"
        )
    monkeypatch.syspath_prepend(tmp_path)
    importlib.invalidate_caches()
    yield tmp_path
    for name in ("slow_package", "slow_package.inner", "slow_other", "slow_other.part", "patient", "hasty"):
        sys.modules.pop(name, None)


def test_a_package_that_is_imported_when_it_is_called(packages):
    finders = sys.meta_path[:]
    with imported_when_called("slow_package.inner", "slow_other.part", by=("patient",)):
        import patient
    assert sys.meta_path == finders
    assert not {"slow_package", "slow_package.inner", "slow_other", "slow_other.part"} & sys.modules.keys()
    assert patient.add(2, b=3) == 5
    assert patient.subtract(5, 3) == 2
    assert patient.inner.add(1) == 2
    assert sys.modules["slow_package.inner"].__file__ == str(packages / "slow_package" / "inner.py")
    with pytest.raises(AttributeError, match="multiply"):
        patient.inner.multiply()


def test_others_get_the_package(packages):
    with imported_when_called("slow_package.inner", "slow_other.part", by=("patient",)):
        import hasty
        import patient  # after it
    assert hasty.inner is sys.modules["slow_package.inner"]
    assert patient.inner is hasty.inner


def test_fairseq_imports_scikit_learn_and_scipy_when_it_classifies():
    result = helpers.run(["python", "-c", CLASSIFICATION])
    assert result.stdout.decode().strip() == "[] 0.667 True 0.8 0.8 0.8", result.stderr.decode()
