"""Fixtures that several tests share: tiny models, trained once per run."""

import copy
import functools
import gc
import multiprocessing.process
import os
import random
import shutil
import subprocess
import sys
from pathlib import Path

os.environ.setdefault("OMP_NUM_THREADS", "1")  # the models are tiny, and other processes want the cores

import pytest  # noqa: E402
import torch  # noqa: E402
from hydra.core.override_parser.overrides_parser import OverridesParser  # noqa: E402

if not torch.cuda.is_available():
    os.environ.setdefault("TRITON_INTERPRET", "1")  # Triton reads it when a kernel is defined

import elseq  # noqa: E402, F401
from elseq import native  # noqa: E402
from elseq.attention import methods  # noqa: E402
from elseq.compat.commands import silence_old_code  # noqa: E402
from tests import helpers  # noqa: E402

PLUGIN = '''
from elseq.attention import Segment, multi_head_attention, register
from elseq.attention.methods import EL
from elseq.attention.methods.el import HiddenStates


class Reprojected(HiddenStates):
    """Hidden states are kept, and keys and values are projected again at every step."""

    name = "reprojected"
    help = "keys and values are projected at every step"

    def attend(self, attention, query, memory, **options):
        segments = []
        for stretch in memory:
            [hidden] = stretch.tensors
            segments.append(Segment(*attention.keys_and_values(hidden.transpose(0, 1)), stretch.mask))
        return multi_head_attention(query, segments, **options)


register(Reprojected())
'''
CASES = 2  # of each test, with --quick
# Rooms whose tests run commands, recipes or other programs, or read whole corpora.
LENGTHY = {"benchmark", "cli", "interop", "recipes", "scripts", "sweeps", "system", "test_hydra_conf.py"}


def pytest_addoption(parser):
    parser.addoption("--quick", action="store_true", help="in a minute: few cases of each test, and no command")


def pytest_configure(config):
    if config.getoption("--quick"):
        os.environ["ELSEQ_EXAMPLES"] = "5"


def pytest_ignore_collect(collection_path, config):
    if config.getoption("--quick") and collection_path.parent == Path(__file__).parent:
        return collection_path.name in LENGTHY or None


@pytest.hookimpl(tryfirst=True)  # before the slow ones are left out
def pytest_collection_modifyitems(config, items):
    items.sort(key=lambda item: item.get_closest_marker("gpu") is None)  # what needs a GPU comes first
    if not config.getoption("-k") and not any("[" in argument for argument in config.args):
        _mark_further_cases(items)
    if config.getoption("--quick"):
        kept = set().union(*(_some(cases, CASES) for cases in _cases_of_tests(items, without=("slow",))))
        config.hook.pytest_deselected(items=[item for item in items if item not in kept])
        items[:] = [item for item in items if item in kept]


def _mark_further_cases(items):
    for cases in _cases_of_tests(items, without=("slow", "gpu")):
        if few := cases[0].get_closest_marker("few_cases"):
            for item in set(cases) - _some(cases, *few.args):
                item.add_marker(pytest.mark.slow)


def _cases_of_tests(items, without):
    tests = {}
    for item in items:
        if not any(map(item.get_closest_marker, without)):
            tests.setdefault(item.nodeid.split("[")[0], []).append(item)
    return tests.values()


def _some(cases, count):
    """A random choice, so that all parameters vary, but the same in each process."""
    return set(random.Random(cases[0].nodeid).sample(cases, min(count, len(cases))))


@pytest.fixture(scope="session", autouse=True)
def no_commands(request):
    """With --quick; autouse: before the models that all tests share are trained."""
    with pytest.MonkeyPatch.context() as patch:
        if request.config.getoption("--quick"):
            patch.setattr(subprocess.Popen, "__init__", _skip)
            patch.setattr(multiprocessing.process.BaseProcess, "start", _skip)
            patch.setattr(helpers, "run_here", _skip)
        yield


def _skip(*_, **__):
    pytest.skip("runs a command")


@pytest.fixture(scope="session", autouse=True)
def parsed_once():
    """Hydra parses each of fairseq's options for each command, and they are mostly the same."""
    parse = functools.cache(OverridesParser.create().parse_rule)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(OverridesParser, "parse_rule", lambda parser, text, rule: copy.deepcopy(parse(text, rule)))
        yield


@pytest.fixture(params=[1, 2])
def threads(request):
    before = torch.get_num_threads()
    torch.set_num_threads(request.param)
    yield request.param
    torch.set_num_threads(before)


@pytest.fixture(scope="module", params=native.INSTRUCTIONS)
def kernels_for(request):
    """The kernels in C++ for each set of instructions that this processor has, the slower ones as well."""
    library = native.library_for(request.param)
    if library is None:
        pytest.skip(f"not compiled, or no {request.param}")
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(native, "library", lambda: library)
        yield request.param


@pytest.fixture(scope="module", autouse=True)
def few_objects():
    """A model that is prepared collects garbage: among those of all modules and tests that takes half of a test's time.
    What is there before the tests of a module stays, so it is not looked through again."""
    gc.collect()
    gc.freeze()


@pytest.fixture(autouse=True)
def quiet():
    """pytest drops the filters that importing elseq has set."""
    silence_old_code()


@pytest.fixture(scope="session")
def once(tmp_path_factory):
    return functools.partial(helpers.once, tmp_path_factory)


@pytest.fixture(scope="session")
def raw_text(once):
    return once("raw", helpers.write_text)


@pytest.fixture(scope="session")
def translation_data(raw_text, once):
    return once("translation", lambda folder: helpers.binarize(raw_text, folder))


@pytest.fixture(scope="session")
def language_model_data(raw_text, once):
    return once("language_model", lambda folder: helpers.binarize_lines(raw_text, folder))


@pytest.fixture(scope="session")
def train_once(raw_text, once):
    """Trains a model of an architecture on data made of `raw_text`, once a run."""

    def train_once(name, arch, data, *options):
        folder = once(name, lambda folder: helpers.train(arch, data, folder, *options))
        return helpers.Trained(raw_text, data, folder / "checkpoint_last.pt")

    return train_once


@pytest.fixture(scope="session")
def tiny_translation(train_once, translation_data):
    """A stock transformer."""
    return train_once("tiny_translation", "transformer", translation_data)


@pytest.fixture(scope="session")
def tiny_multi_query(train_once, translation_data):
    """Our transformer with one key/value head; its target positions see the last four."""
    options = ["--local-attention-radius=4", "--head-dim=10"]
    return train_once("tiny_multi_query", "mq_transformer", translation_data, *options)


@pytest.fixture(scope="session")
def tiny_bart(train_once, translation_data):
    """A stock BART, finetuned as one is: by the task `translation`."""
    return train_once("tiny_bart", "bart_base", translation_data)


@pytest.fixture(scope="session")
def tiny_language_model(train_once, language_model_data):
    """A stock transformer_lm on lines of "source => target"."""
    return train_once("tiny_language_model", "transformer_lm", language_model_data)


@pytest.fixture(scope="session")
def fused(tiny_translation, once):
    """The translation data beside the dictionary of a language model, and one of its targets."""

    def make(folder):
        data = shutil.copytree(tiny_translation.data, folder / "data")
        shutil.copy(data / "dict.tgt.txt", data / "dict.txt")
        prefixes = [f"--{split}pref={tiny_translation.raw / f'{split}.tgt'}" for split in ("train", "valid")]
        options = ["--only-source", "--srcdict", data / "dict.txt", *prefixes]
        helpers.run_here(["fairseq-preprocess", "--destdir", folder / "lines", *options])
        helpers.train("transformer_lm", folder / "lines", folder, "--max-update=60", "--tokens-per-sample=40")

    folder = once("fused", make)
    return folder / "data", folder / "checkpoint_last.pt"


@pytest.fixture
def plugin(tmp_path):
    """The folder of a plugin that registers the decoding method `reprojected`; what importing it has left goes."""
    folder = tmp_path / "reprojected_method"
    folder.mkdir()
    (folder / "__init__.py").write_text(PLUGIN)
    yield folder
    methods.METHODS.pop("reprojected", None)
    sys.modules.pop("reprojected_method", None)
