"""Other programs as they are measured, against stock fairseq on the same checkpoint."""

import json
from dataclasses import asdict
from types import SimpleNamespace

import pytest
import torch

from elseq.benchmark import measure
from elseq.benchmark.export import export
from elseq.benchmark.fairseq_engine import FairseqEngine
from elseq.benchmark.measure import CTranslate2Engine, Measurement, TransformersEngine
from elseq.benchmark.models import checkpoint_model
from elseq.benchmark.scorer import Scorer
from elseq.benchmark.sources import read_sources
from elseq.errors import UserError
from elseq.generation.cuda_graphs import CapturedWork
from elseq.kernel_trials import Verdict
from tests.interop.hugging_face.making import BART_NAMES, GPT2_NAMES, convert, make_bart, make_gpt2
from tests.multilingual import generated, hypotheses

ENGINES = {"ctranslate2": CTranslate2Engine, "transformers": TransformersEngine}
SOURCES = [[20, 30, 40, 2], [55, 21, 9, 2], [100, 7, 31, 2], [60, 2], [99, 2]]
LONGEST = 30
BATCHES = [[0, 2, 1], [4, 3]]  # those of a language model have prompts of one length


@pytest.fixture(scope="module")
def folders(tmp_path_factory):
    """Converted models: one without rows of <s>, <pad> and <unk> in transformers, one with them, and a BART."""
    folder = tmp_path_factory.mktemp("models")
    made = {"gpt2": (make_gpt2, GPT2_NAMES, {}), "bart": (make_bart, BART_NAMES, {"seed": 7})}
    made["own symbols"] = make_gpt2, BART_NAMES, {"seed": 2, "bos_token_id": 0, "pad_token_id": 1, "eos_token_id": 2}
    for name, (make, words, symbols) in made.items():
        make(folder / f"{name} there", words, **symbols)
        convert(folder / f"{name} there", folder / name)
    return folder


def best_of(engine):
    return {index: found[0] for batch in BATCHES for index, found in zip(batch, engine.decode(batch), strict=True)}


@pytest.mark.few_cases(5)
@pytest.mark.parametrize("name", ["gpt2", "own symbols", "bart"])
@pytest.mark.parametrize(("beam", "lenpen"), [(1, 1.0), (4, 1.0), (3, 0.0)])
@pytest.mark.parametrize("package", list(ENGINES))
def test_the_words_of_stock(folders, tmp_path, name, beam, lenpen, package):
    pytest.importorskip(package)
    model_file = checkpoint_model(folders / name, None)
    request = {
        "model_file": model_file.to_dict(),
        "exported": str(tmp_path),
        "sources": SOURCES,
        "beam": beam,
        "search": {"min_len": 2, "max_len_b": LONGEST, "lenpen": lenpen, "no_repeat_ngram_size": 0},
        **{"mode": "stock", "dtype": "float32", "device": "cpu", "threads": 1},
    }
    export(package, model_file, SOURCES, tmp_path)
    engine = ENGINES[package](request)
    expected = best_of(FairseqEngine(request))
    assert best_of(engine) == expected
    assert len(set(map(len, expected.values()))) > 1
    assert all(2 <= len(words) < LONGEST for words in expected.values())  # fairseq counts the end symbol at the longest
    if name != "bart":
        assert engine.found.copied is (beam > 1)


@pytest.mark.few_cases(3)
@pytest.mark.parametrize("kind", ["one vocabulary", "two vocabularies", "blenderbot", "without an end"])
@pytest.mark.parametrize("package", list(ENGINES))
def test_the_words_of_kv(tmp_path, kind, package):
    """A Marian has a bias, which stock fairseq has not, and one or two dictionaries; a Blenderbot starts from <s>.

    Without an end: sources, of a Blenderbot-small, or in CTranslate2 of a Blenderbot that was trained so.
    """
    pytest.importorskip(package)
    pytest.importorskip("transformers")
    from tests.interop.hugging_face.families import test_blenderbot, test_blenderbot_small, test_marian

    if kind == "without an end" and package == "transformers":
        test_blenderbot_small.make(tmp_path / "theirs")
    elif kind in ("blenderbot", "without an end"):
        test_blenderbot.make(tmp_path / "theirs")
    else:
        test_marian.make(tmp_path / "theirs", kind)
    convert(tmp_path / "theirs", tmp_path / "ours")
    if kind == "without an end":
        state = torch.load(tmp_path / "ours" / "model.pt", weights_only=False)
        state["cfg"]["task"]["append_source_eos"] = "no"
        torch.save(state, tmp_path / "ours" / "model.pt")
    model_file = checkpoint_model(tmp_path / "ours", None)
    assert model_file.special_positions == (kind != "without an end")
    sources = [[5, 30, 40, 2], [15, 21, 9, 2], [33, 7, 31, 2], [40, 2], [19, 2]]
    request = {
        "model_file": model_file.to_dict(),
        "exported": str(tmp_path / "exported"),
        "sources": sources,
        "beam": 1,
        "search": {"min_len": 8, "max_len_b": LONGEST, "lenpen": 1.0, "no_repeat_ngram_size": 2},
        **{"mode": "kv", "dtype": "float32", "device": "cpu", "threads": 1},
    }
    export(package, model_file, sources, tmp_path / "exported")
    exported = json.loads((tmp_path / "exported" / "sources.json").read_text())["sources"]
    has_end = kind != "without an end" and package == "transformers"  # CTranslate2 adds it itself
    assert list(map(len, exported)) == [len(source) - (not has_end) for source in sources]
    expected = best_of(FairseqEngine(request))
    assert best_of(ENGINES[package](request)) == expected
    assert len(set(map(tuple, expected.values()))) > 2


@pytest.mark.parametrize("mode", ["kv", "el"])
@pytest.mark.parametrize("name", ["gpt2", "bart"])
def test_int8(folders, name, mode):
    """As many words as stock in float32 finds, and most of them the same."""
    model_file = checkpoint_model(folders / name, None).to_dict()
    search = {"min_len": 8, "max_len_b": 8, "lenpen": 1.0, "no_repeat_ngram_size": 0}
    request = {"model_file": model_file, "sources": SOURCES, "beam": 2, "search": search, "device": "cpu", "threads": 1}
    stock, int8 = (
        best_of(FairseqEngine(request | {"mode": mode, "dtype": dtype}))
        for mode, dtype in (("stock", "float32"), (mode, "int8"))
    )
    pairs = [(one, other) for index in stock for one, other in zip(stock[index], int8[index], strict=True)]
    assert len(pairs) == 8 * len(SOURCES)
    assert sum(one == other for one, other in pairs) > len(pairs) / 2


def test_what_ran_on_a_gpu(folders, monkeypatch):
    """Graphs that were captured before the search, such as those of a choice of method, are not its own."""
    verdict = Verdict("reorder", (torch.float16, 4), torch.device("cuda:0"), True, None, 1.0, 2.0)
    monkeypatch.setattr("elseq.benchmark.fairseq_engine.verdicts", lambda: [verdict])
    monkeypatch.setattr(CapturedWork, "captures", 3)
    monkeypatch.setattr(CapturedWork, "obstacle", "that of an earlier search")
    search = {"min_len": 8, "max_len_b": 8, "lenpen": 1.0, "no_repeat_ngram_size": 0}
    request = {"model_file": checkpoint_model(folders / "gpt2", None).to_dict(), "sources": SOURCES, "mode": "kv"}
    request |= {"dtype": "float32", "device": "cpu", "threads": 1, "beam": 2, "search": search}
    engine = FairseqEngine(request)
    engine.look_closely = True
    engine.decode(BATCHES[0])
    assert engine.found.kernels is engine.found.captures is engine.found.not_captured is None
    engine.request = request | {"device": "cuda"}
    assert CapturedWork.obstacle is None
    monkeypatch.setattr(CapturedWork, "obstacle", "no memory")
    monkeypatch.setattr(CapturedWork, "captures", 5)
    engine.look()
    found = json.loads(json.dumps(asdict(engine.found)))
    assert (found["captures"], found["not_captured"]) == (2, "no memory")
    assert found["kernels"] == [
        {
            "name": "reorder",
            "sizes": "(torch.float16, 4)",
            "device": "cuda:0",
            "is_used": True,
            "reason": None,
            "kernel_ms": 1.0,
            "plain_ms": 2.0,
        }
    ]


def test_what_cannot_be_exported(folders, tmp_path, tiny_language_model):
    model_file = checkpoint_model(folders / "gpt2", None)
    with pytest.raises(UserError, match="^it has no <unk>, and the sources have words that are not in the dictionary$"):
        export("transformers", model_file, [[20, 3, 2]], tmp_path)
    other = checkpoint_model(tiny_language_model.checkpoint, tiny_language_model.data)
    with pytest.raises(UserError, match="GPT-2"):
        export("transformers", other, [[5, 2]], tmp_path)


def test_a_type_that_the_machine_does_not_have(folders, tmp_path, monkeypatch):
    ctranslate2 = pytest.importorskip("ctranslate2")
    monkeypatch.setattr(ctranslate2, "get_supported_compute_types", lambda device, index: {"int8", "float32"})
    model_file = checkpoint_model(folders / "gpt2", None)
    export("ctranslate2", model_file, SOURCES, tmp_path)
    request = SimpleNamespace(exported=str(tmp_path), beam=1, device="cpu", dtype="bfloat16", threads=1)
    with pytest.raises(UserError, match="^CTranslate2 has no bfloat16 on this cpu, but float32, int8$"):
        CTranslate2Engine(vars(request))


@pytest.mark.parametrize(
    "name", ["m2m", *(pytest.param(each, marks=pytest.mark.slow) for each in ("mbart25", "apart"))]
)
def test_several_languages(family, name, tmp_path):
    """Every mode finds what fairseq-generate does with the task of the training; the others say why they do not."""
    model = family(name)
    model_file = checkpoint_model(model.checkpoint, model.data, source_lang="aa", target_lang="bb")
    source, reference = (model.raw / f"test.aa-bb.{language}" for language in ("aa", "bb"))
    sources = read_sources(model_file, source)
    search = {"min_len": 1, "max_len_b": 15, "lenpen": 1.0, "no_repeat_ngram_size": 0}
    request = {"model_file": model_file.to_dict(), "sources": sources, "beam": 4, "search": search}
    request |= {"dtype": "float32", "device": "cpu", "threads": 1}
    found = {}
    for mode in ("stock", "stock-copied", "kv", "el"):
        decoded = FairseqEngine(request | {"mode": mode}).decode(range(len(sources)))
        found[mode] = [best for best, *_ in decoded]
        assert found[mode] == found["stock"]
    scorer = Scorer.read(model_file, source, reference, "bleu")
    texts = {number: text for number, _, text in hypotheses(generated(model, model.task, "--nbest=1").stdout)}
    assert [scorer._text(words) for words in found["stock"]] == [texts[number] for number in range(len(sources))]
    for engine in ENGINES:
        with pytest.raises(UserError, match="^only the task .* knows where the symbols of its languages stand$"):
            export(engine, model_file, sources, tmp_path)


@pytest.mark.few_cases(1)
@pytest.mark.parametrize("package", list(ENGINES))
@pytest.mark.parametrize("name", ["m2m_100", "mbart25"])
def test_languages_of_converted_models(tmp_path, name, package):
    """Others than those that the folder says, from words of the dictionary around texts."""
    pytest.importorskip(package)
    pytest.importorskip("transformers")
    from tests.interop.hugging_face.families.multilingual.test_models import LANGUAGES, make

    make(tmp_path / "theirs", name)
    convert(tmp_path / "theirs", tmp_path / "ours")
    source, _, target = LANGUAGES[name]
    sources = [[number % 40 + 5 if number > 2 else number for number in row] for row in SOURCES]
    model_file = checkpoint_model(tmp_path / "ours", None, source_lang=source, target_lang=target)
    assert model_file.special_positions == 2
    if (name, package) == ("mbart25", "ctranslate2"):
        with pytest.raises(UserError, match=f"^it has no --source-end, which is {source} here$"):
            export(package, model_file, sources, tmp_path / "exported")
        return
    export(package, model_file, sources, tmp_path / "exported")
    # transformers does not count a forced symbol in the length
    search = {"min_len": 2, "max_len_b": LONGEST, "lenpen": 0.0, "no_repeat_ngram_size": 2}
    request = {"model_file": model_file.to_dict(), "exported": str(tmp_path / "exported"), "sources": sources}
    request |= {"beam": 1, "search": search, "mode": "kv", "dtype": "float32", "device": "cpu", "threads": 1}
    expected = best_of(FairseqEngine(request))
    assert best_of(ENGINES[package](request)) == expected
    assert len(set(map(tuple, expected.values()))) > 1


class FakeEngine:
    """Has room for so many sources; one of its searches fails in another way."""

    def __init__(self, request):
        self.request, self.look_closely, self.room = request, False, request["room"]
        self.decoded, self.searches = [], []

    def set_search(self, beam, search):
        self.searches.append((beam, search))
        self.found = Measurement()

    def decode(self, batch):
        self.decoded.append((len(batch), self.look_closely))
        if self.searches[-1][1] == "broken":
            raise ValueError("no such search")
        if len(batch) > self.room:
            raise MemoryError
        return [[[7] * 3] * self.searches[-1][0] for _ in batch]


def test_cases(monkeypatch):
    """Each with its own search, batch and memory; the largest batch is found from above, four fifths at a time."""

    def start(request):
        engines.append(FakeEngine(request))
        return engines[0]

    def case(size, shrinks, beam=1, search="first"):
        batch = list(range(10, 10 + size))
        return {"beam": beam, "search": search, "batch": batch, "shrinks": shrinks, "memory_limit_bytes": None}

    engines = []
    monkeypatch.setattr(measure, "start_engine", start)
    monkeypatch.setattr(measure, "reset_peak", lambda device: None)
    cases = [
        case(3, True),
        case(12, True, 2, "second"),
        case(12, False),
        case(2, False, search="broken"),
        case(5, True),
    ]
    request = {"device": "cpu", "repeats": 2, "room": 5, "cases": cases}
    found = list(measure.measure_cases(request))
    assert [each.batch_size or each.failure for each in found] == [
        3,
        5,
        "out of memory",
        "ValueError: no such search",
        5,
    ]
    [engine] = engines
    assert engine.request["search"] == "first"
    sizes = [size for size, looks in engine.decoded if looks]
    assert sizes == [3, 12, 9, 7, 5, 12, 2, 5]
    assert [each.seconds and len(each.seconds) for each in found] == [2, 2, None, None, 2]
    assert found[0].output_lengths == [3] and found[0].encoder_seconds is None
    assert engine.searches.count((2, "second")) == 4  # begun anew for every size


def test_a_process_without_its_device_is_spent(monkeypatch):
    """Nor one that captures no more; memory that runs out, or a search that is not there, is no such thing."""

    class Breaks(FakeEngine):
        def decode(self, batch):
            raise self.searches[-1][1]

    monkeypatch.setattr(measure, "start_engine", lambda request: Breaks(request | {"room": 0}))
    monkeypatch.setattr(measure, "reset_peak", lambda device: None)
    errors = [
        RuntimeError("CUDA error: an illegal memory access was encountered"),
        RuntimeError("Triton Error [CUDA]: device-side assert triggered"),
        type("AcceleratorError", (RuntimeError,), {})("unspecified launch failure"),
        RuntimeError("CUDA error: out of memory"),
        ValueError("no such search"),
    ]
    case = {"beam": 1, "batch": [4], "shrinks": False, "memory_limit_bytes": None}
    request = {"device": "cpu", "repeats": 1, "cases": [case | {"search": error} for error in errors]}
    assert [found.is_spent for found in measure.measure_cases(request)] == [True, True, True, None, None]
    monkeypatch.setattr("elseq.generation.cuda_graphs.CapturedWork.is_possible", False)
    assert [found.is_spent for found in measure.measure_cases(request)] == [True] * 5


def test_memory_of_captures_is_given_back(monkeypatch):
    calls = []
    monkeypatch.setattr("elseq.generation.cuda_graphs.release_memory", lambda: calls.append("graphs"))
    monkeypatch.setattr(torch.cuda, "empty_cache", lambda: calls.append("cache"))
    measure._release("cpu")
    assert not calls
    measure._release("cuda")
    assert calls == ["graphs", "cache"]


def test_no_source_fits(monkeypatch):
    monkeypatch.setattr(measure, "start_engine", FakeEngine)
    monkeypatch.setattr(measure, "reset_peak", lambda device: None)
    case = {"beam": 1, "search": "first", "batch": [4, 5], "shrinks": True, "memory_limit_bytes": None}
    [found] = measure.measure_cases({"device": "cpu", "repeats": 2, "room": 0, "cases": [case]})
    assert found == Measurement(failure="out of memory")


def test_memory_limits(monkeypatch):
    """Of a process on a CPU, of torch's allocator on a GPU; and none again."""
    limits, shares = [], []
    monkeypatch.setattr(measure.resource, "getrlimit", lambda kind: (5, 9))
    monkeypatch.setattr(measure.resource, "setrlimit", lambda kind, limit: limits.append(limit))
    monkeypatch.setattr(torch.cuda, "mem_get_info", lambda index: (50, 100))
    monkeypatch.setattr(torch.cuda, "set_per_process_memory_fraction", lambda *told: shares.append(told))
    for limit in (7, None):
        measure.limit_memory("cpu", limit)
        measure.limit_memory("cuda:1", limit)
    measure.limit_memory("cuda", 200)
    assert limits == [(7, 9), (9, 9)]
    assert shares == [(0.07, 1), (1.0, 1), (1.0, 0)]
