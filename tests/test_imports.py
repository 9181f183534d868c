import gc
import sys
from types import SimpleNamespace

import pytest

from elseq.imports import imported_when_called, uncollected
from tests import helpers

CLASSIFICATION = """
import sys, elseq, numpy
from fairseq.criterions import sentence_prediction
from fairseq.tasks import audio_classification
before = [name for name in sys.modules if name.split(".")[0] == "sklearn"]
scores = sentence_prediction.acc_and_f1(numpy.array([1, 0, 1, 1]), numpy.array([1, 1, 1, 0]))
rates, _, _ = audio_classification.sklearn_metrics.roc_curve([0, 1], [0.2, 0.8])
print(before, round(scores["f1"], 3), len(rates) > 1, "sklearn.metrics" in sys.modules)
"""


def test_what_was_imported_is_left_alone():
    class Node:
        pass

    lost = Node()
    lost.itself, lost.ended = lost, []
    ended = lost.ended
    gc.collect()
    before = gc.get_freeze_count()
    del lost
    with uncollected():
        assert not gc.isenabled()
        imported = Node()
    assert gc.isenabled()
    assert gc.get_freeze_count() > before
    assert sys.getrefcount(ended) == 2  # what was garbage is gone
    assert not any(imported is other for other in gc.get_objects())
    gc.unfreeze()


@pytest.mark.parametrize("enabled", [True, False])
def test_the_collector_is_as_before(enabled):
    (gc.enable if enabled else gc.disable)()
    try:
        with pytest.raises(ImportError), uncollected():
            raise ImportError
        assert gc.isenabled() == enabled
    finally:
        gc.enable()


def test_a_module_that_is_imported_when_it_is_called(tmp_path, monkeypatch):
    (tmp_path / "slow_package").mkdir()
    (tmp_path / "slow_package" / "__init__.py").touch()
    (tmp_path / "slow_package" / "inner.py").write_text("def add(a, b=1):\n    return a + b\n")
    monkeypatch.syspath_prepend(tmp_path)
    with imported_when_called("slow_package", "inner"):
        from slow_package import inner
        from slow_package.inner import add
    assert "slow_package" not in sys.modules and "slow_package.inner" not in sys.modules
    assert add(2, b=3) == 5
    assert inner.add(1) == 2
    assert sys.modules["slow_package.inner"].__file__ == str(tmp_path / "slow_package" / "inner.py")
    with pytest.raises(AttributeError, match="subtract"):
        inner.subtract()


def test_a_package_that_is_there(monkeypatch):
    there = SimpleNamespace()
    monkeypatch.setitem(sys.modules, "slow_package", there)
    with imported_when_called("slow_package", "inner"):
        assert sys.modules["slow_package"] is there
    assert sys.modules["slow_package"] is there


def test_fairseq_imports_scikit_learn_when_it_classifies():
    result = helpers.run(["python", "-c", CLASSIFICATION])
    assert result.stdout.decode().strip() == "[] 0.667 True True", result.stderr.decode()
