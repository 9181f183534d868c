"""What a batch is said to take, against every tensor that is alive while it is decoded."""

import numpy as np
import pytest
import torch

from elseq import native
from elseq.errors import UserError
from elseq.generation import SequenceGenerator, beam_search, steppers
from elseq.generation.beams import Candidates
from elseq.generation.budget import batch_bytes, capacity, scoring_bytes, scoring_capacity
from elseq.generation.scorer import score_targets
from elseq.generation.search import Usage
from elseq.models import windows
from elseq.models.top_k import apply_attention_top_k
from elseq.precision.linear import Product
from elseq.precision.onednn import OneDNNProduct
from tests.helpers import peak_memory
from tests.precision.products import KINDS, choose, evaluates
from tests.tiny_models import make_dictionary, make_elseq_model, make_models, make_prompts, make_sample, make_sources


@pytest.fixture(autouse=True)
def packed_products(monkeypatch):
    """Whatever is faster on this machine today."""
    choose(monkeypatch, OneDNNProduct if evaluates(OneDNNProduct, torch.float32) else Product)


@pytest.fixture(autouse=True)
def equal_scores(monkeypatch):
    """Where there are some, a search takes the most."""
    monkeypatch.setattr(beam_search, "has_equal", lambda scores: True)


def test_the_measure():
    def work():
        first = torch.ones(1000)
        second = first.view(10, 100)[2:]
        del first
        third = second + 1
        del second
        third + 1

    assert 4000 + 3200 <= peak_memory(work) < 7300  # a few numbers are tensors as well


WIDE = {"embed_dim": 128, "ffn_embed_dim": 512, "attention_heads": 8}


def make(family, method, words, dtype, decode_dtype, is_wide, positions=400, **options):
    if is_wide:
        sides = ["decoder"] if family == "language_model" else ["encoder", "decoder"]
        options |= {f"{side}_{name}": size for side in sides for name, size in WIDE.items()}
        options |= {"decoder_input_dim": WIDE["embed_dim"], "decoder_output_dim": WIDE["embed_dim"]}
    model = make_elseq_model(family, make_dictionary(words), method, positions=positions, **options).to(dtype)
    model.decoder.decode_dtype = decode_dtype
    model.make_generation_fast_()
    return model


def make_batch(family, dictionary, lengths):
    """Sources, or prompts, with so many tokens."""
    lengths = [length - 1 for length in lengths]
    if family == "language_model":
        return make_prompts(dictionary, lengths)
    return make_sample(dictionary, make_sources(dictionary, lengths)), {}


def measure(
    family,
    method,
    sentences,
    length,
    beam,
    dtype=torch.float32,
    words=40,
    max_len=12,
    decode_dtype=None,
    is_wide=False,
    is_padded=False,
    searching=(),
    windows=None,
    top_k=None,
    positions=400,
    **options,
):
    """What is planned for a batch, what its decoding takes, and the largest decoding state."""
    model = make(family, method, words, dtype, decode_dtype, is_wide, positions=positions, **options)
    dictionary = model.decoder.dictionary
    if windows is not None:
        model.encoder.source_windows = windows
    if top_k is not None:
        apply_attention_top_k(model, top_k, ("cross",))
    limits = {"max_len_b": max_len, "min_len": max_len}
    search = SequenceGenerator([model], dictionary, beam_size=beam, **{**limits, **dict(searching)})
    sample, prompt = make_batch(family, dictionary, [length - is_padded * number for number in range(sentences)])
    search.generate([model], sample, **prompt)  # the first batch prepares the weights, which are no part of a batch
    states = []
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(Usage, "record", lambda self, size: states.append(size))
        peak = peak_memory(lambda: search.generate([model], sample, **prompt))
    return batch_bytes(model, search, sentences, length), peak, max(states)


@pytest.mark.few_cases(10)
@pytest.mark.parametrize("family", ["transformer", "bart", "language_model"])
@pytest.mark.parametrize("method", ["kv", "el"])
@pytest.mark.parametrize(
    "sizes",
    [
        {"sentences": 1, "length": 5, "beam": 1},
        {"sentences": 9, "length": 60, "beam": 4},
        {"sentences": 3, "length": 150, "beam": 1},
        {"sentences": 4, "length": 10, "beam": 5, "words": 5000},
        {"sentences": 2, "length": 10, "beam": 4, "max_len": 45},
        {"sentences": 5, "length": 30, "beam": 3, "dtype": torch.bfloat16},
        {"sentences": 20, "length": 90, "beam": 2, "max_len": 3},
    ],
    ids=str,
)
def test_a_batch_takes_no_more_than_planned(family, method, sizes):
    planned, peak, state = measure(family, method, **sizes)
    assert state < peak <= planned < 1.5 * peak, planned / peak


@pytest.mark.few_cases(2)
@pytest.mark.parametrize("way", ["kernels", pytest.param("torch", marks=pytest.mark.slow)])
@pytest.mark.parametrize("top_k", [None, 30])
@pytest.mark.parametrize("method", ["kv", "el"])
@pytest.mark.parametrize("sentences, length", [(3, 3000), pytest.param(1, 9000, marks=pytest.mark.slow)])
def test_sources_in_windows(method, top_k, way, sentences, length, monkeypatch):
    """The states of a source decide, not the encoder, which reads a few windows at a time."""
    if way == "torch":
        without_kernels(monkeypatch)
    monkeypatch.setitem(windows.MOST_TOKENS, "cpu", 128)
    planned, peak, state = measure(
        "transformer",
        method,
        sentences,
        length,
        beam=2,
        windows=windows.SourceWindows(64, 32),
        top_k=top_k,
        positions=64,
        max_len=6,
        is_wide=True,
    )
    assert state < peak <= planned < 1.15 * peak, planned / peak
    hidden = sentences * length * 128 * 4
    most = 1.3 if way == "kernels" or top_k is None else 1.45  # PyTorch's scores are as large as those of a block
    assert peak < hidden * (most if method == "el" else 8.2)  # kv: twice the memory of two layers at most


@pytest.mark.few_cases(1)
@pytest.mark.parametrize("method", ["kv", "el"])
@pytest.mark.parametrize("sentences, length", [(3, 3000), (1, 9000)])
def test_largest_scores_of_sources_in_bfloat16(method, sentences, length, monkeypatch):
    """What is kept of a source alone in its batch is not copied either."""
    monkeypatch.setitem(windows.MOST_TOKENS, "cpu", 128)
    limits = {"beam": 4, "max_len": 6, "positions": 64, "is_wide": True, "dtype": torch.bfloat16}
    limits |= {"windows": windows.SourceWindows(64, 32), "top_k": 30}
    planned, peak, state = measure("transformer", method, sentences, length, **limits)
    assert state < peak <= planned < 1.25 * peak, planned / peak
    assert method == "kv" or peak < 1.9 * state


@pytest.mark.few_cases(1)
@pytest.mark.parametrize("method", ["kv", "el"])
@pytest.mark.parametrize("top_k", [None, 30])
def test_sources_in_windows_in_int8(method, top_k, monkeypatch):
    monkeypatch.setitem(windows.MOST_TOKENS, "cpu", 128)
    limits = {"beam": 2, "max_len": 6, "positions": 64, "is_wide": True, "decode_dtype": "int8"}
    limits |= {"windows": windows.SourceWindows(64, 32), "top_k": top_k}
    planned, peak, state = measure("transformer", method, sentences=3, length=3000, **limits)
    assert state < peak <= planned < 1.15 * peak, planned / peak


@pytest.mark.parametrize(
    "family, sizes",
    [
        ("transformer", {"sentences": 3, "length": 390, "target_length": 50}),
        ("language_model", {"sentences": 3, "length": 150, "target_length": 50}),
    ],
)
def test_scoring_by_top_k_in_int8(family, sizes):
    planned, peak = measure_scoring(family, "kv", is_wide=True, attention_top_k=8, decode_dtype="int8", **sizes)
    assert peak <= planned < 1.15 * peak, planned / peak


def without_kernels(monkeypatch):
    monkeypatch.setattr(native, "library", lambda: None)


@pytest.mark.few_cases(8)
@pytest.mark.parametrize("method", ["kv", "el"])
@pytest.mark.parametrize(
    "way, beam, dtype",
    [
        ("kernels", 4, "float32"),
        ("kernels", 4, "bfloat16"),
        ("kernels", 4, "int8"),
        pytest.param("kernels", 1, "float32", marks=pytest.mark.slow),
        pytest.param("kernels", 1, "bfloat16", marks=pytest.mark.slow),
        pytest.param("kernels", 1, "int8", marks=pytest.mark.slow),
        ("torch", 4, "float32"),
        pytest.param("torch", 4, "bfloat16", marks=pytest.mark.slow),
        pytest.param("torch", 4, "int8", marks=pytest.mark.slow),
        pytest.param("torch", 1, "bfloat16", marks=pytest.mark.slow),
        pytest.param("torch", 1, "int8", marks=pytest.mark.slow),
    ],
)
@pytest.mark.parametrize(
    "family, sizes",
    [
        ("bart", {"sentences": 12, "length": 20, "max_len": 25, "words": 3000}),  # the logits decide
        ("transformer", {"sentences": 3, "length": 300, "max_len": 10, "words": 500}),  # the encoder
        ("transformer", {"sentences": 6, "length": 12, "max_len": 50, "words": 300}),  # the hypotheses
        ("language_model", {"sentences": 6, "length": 90, "max_len": 20, "words": 500}),  # the prompts
    ],
)
def test_the_prediction_is_within_a_tenth(family, method, sizes, dtype, beam, way, monkeypatch):
    if way == "torch":
        without_kernels(monkeypatch)
    types = {"decode_dtype": dtype} if dtype == "int8" else {"dtype": getattr(torch, dtype)}
    planned, peak, state = measure(family, method, beam=beam, is_wide=True, **sizes, **types)
    assert state < peak <= planned < 1.1 * peak, planned / peak


@pytest.mark.few_cases(5)
@pytest.mark.parametrize("method", ["kv", "el"])
@pytest.mark.parametrize(
    "options",
    [
        {"searching": {"temperature": 1.3}},
        {"searching": {"unk_penalty": 1.0}},
        {"searching": {"print_alignment": "soft"}},
        {"searching": {"early_stopping": "never"}},
        {"encoder_normalize_before": True, "decoder_normalize_before": True},
        {"local_attention_radius": 9},
        {"attention_top_k": 8},
        {"ffn_top_k": 16},
        {"dtype": torch.float64},
    ],
    ids=str,
)
def test_the_prediction_for_other_options(method, options):
    sizes = {"sentences": 6, "length": 60, "beam": 4, "max_len": 30, "words": 500}
    planned, peak, _ = measure("transformer", method, is_wide=True, **sizes, **options)
    assert peak <= planned < (2 if "ffn_top_k" in options else 1.25) * peak, planned / peak


def test_hypotheses_that_patience_keeps(monkeypatch):
    """As many as it can, and as long: all that can end in the last steps does."""
    of = Candidates.of

    def ending(cls, *arguments):
        found = of(*arguments)
        found.ending[:, :4] = True
        return found

    monkeypatch.setattr(Candidates, "of", classmethod(ending))
    sizes = {"sentences": 40, "length": 5, "beam": 4, "max_len": 70}
    planned, peak, _ = measure("transformer", "el", **sizes, searching={"min_len": 50, "beam_patience": 1.0})
    assert peak <= planned
    searching = {"min_len": 50, "beam_patience": 12.0}
    planned, with_patience, _ = measure("transformer", "el", **sizes, searching=searching)
    assert peak < 0.7 * with_patience
    assert with_patience <= planned < 1.35 * with_patience, planned / with_patience


@pytest.mark.few_cases(1)
@pytest.mark.parametrize("method", ["kv", "el"])
@pytest.mark.parametrize("way", ["kernels", "torch"])
def test_sentences_that_leave(method, way, monkeypatch):
    """One after the other, which copies parts of the state."""
    if way == "torch":
        without_kernels(monkeypatch)
    lengths = SequenceGenerator.length_limits
    monkeypatch.setattr(
        SequenceGenerator,
        "length_limits",
        lambda self, *arguments: [limit - row for row, limit in enumerate(lengths(self, *arguments))],
    )
    sizes = {"sentences": 8, "length": 60, "max_len": 40, "words": 100}
    for beam in (1, 4):
        planned, peak, _ = measure("transformer", method, beam=beam, is_wide=True, **sizes, searching={"min_len": 1})
        assert peak <= planned < 1.25 * peak, planned / peak


@pytest.mark.parametrize("method", ["kv", "el"])
def test_padded_sources(method):
    """Masks are small."""
    sizes = {"sentences": 6, "length": 60, "beam": 4, "words": 500}
    planned, peak, _ = measure("bart", method, is_wide=True, is_padded=True, **sizes)
    assert peak <= planned < 1.1 * peak, planned / peak


@pytest.mark.few_cases(2)
@pytest.mark.parametrize("family", ["transformer", "language_model"])
@pytest.mark.parametrize("method", ["kv", "el"])
@pytest.mark.parametrize("way", ["kernels", "torch"])
def test_a_batch_in_int8(family, method, way, monkeypatch):
    if way == "torch":
        without_kernels(monkeypatch)
    for sizes in ({"sentences": 9, "length": 60, "beam": 4}, {"sentences": 20, "length": 90, "beam": 4, "words": 500}):
        planned, peak, state = measure(family, method, **sizes, decode_dtype="int8")
        assert state < peak <= planned < 1.5 * peak, planned / peak
        in_float32 = measure(family, method, **sizes)[2]
        # The kernels of attention read what is kept of sources and prompts in bfloat16.
        assert state < in_float32 if native.library() is not None else state == in_float32


@pytest.mark.few_cases(3)
@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
@pytest.mark.parametrize("method", ["kv", "el"])
@pytest.mark.parametrize(
    "family, sizes",
    [
        ("bart", {"sentences": 12, "length": 20, "max_len": 25, "words": 3000}),  # the logits decide
        ("transformer", {"sentences": 3, "length": 300, "max_len": 10, "words": 500}),  # the encoder
        ("transformer", {"sentences": 6, "length": 12, "max_len": 50, "words": 300}),  # the hypotheses
        ("language_model", {"sentences": 6, "length": 90, "max_len": 20, "words": 500}),  # the prompts
    ],
)
def test_a_language_model_that_is_fused(family, method, sizes, dtype):
    """Its state, and its activations beside the log-probabilities of the model."""
    options = {"beam": 4, "is_wide": True, "dtype": getattr(torch, dtype), **sizes}
    without, alone, _ = measure(family, method, **options)
    language_model = make("language_model", method, sizes["words"], options["dtype"], None, True)
    planned, peak, state = measure(family, method, **options, searching={"lm_model": language_model})
    assert without <= planned and alone <= peak
    assert state < peak <= planned < 1.1 * peak, planned / peak


def measure_scoring(
    family,
    method,
    sentences,
    length,
    target_length,
    dtype=torch.float32,
    words=40,
    decode_dtype=None,
    is_wide=False,
    **options,
):
    """What is planned for a batch of targets, and what scoring it takes."""
    model = make(family, method, words, dtype, decode_dtype, is_wide, **options)
    dictionary = model.decoder.dictionary
    sample, prompt = make_batch(family, dictionary, [length] * sentences)
    targets = [torch.tensor(row) for row in make_sources(dictionary, [target_length - 1] * sentences)]

    def score():
        score_targets(model, sample["net_input"], targets, dictionary, **prompt)

    score()
    return scoring_bytes(model, sentences, length, target_length), peak_memory(score)


@pytest.mark.parametrize("family", ["transformer", "bart", "language_model"])
@pytest.mark.parametrize("method", ["kv", "el"])
@pytest.mark.parametrize(
    "sizes",
    [
        {"sentences": 1, "length": 5, "target_length": 1},
        {"sentences": 2, "length": 7, "target_length": 6},
        {"sentences": 9, "length": 60, "target_length": 20},
        {"sentences": 4, "length": 10, "target_length": 30, "words": 5000},
        {"sentences": 5, "length": 30, "target_length": 40, "dtype": torch.bfloat16},
        {"sentences": 3, "length": 20, "target_length": 25, "attention_top_k": 8},
        {"sentences": 3, "length": 20, "target_length": 45, "local_attention_radius": 9},
    ],
    ids=str,
)
def test_scoring_takes_no_more_than_planned(family, method, sizes):
    planned, peak = measure_scoring(family, method, **sizes)
    assert peak <= planned < 1.5 * peak, planned / peak


@pytest.mark.few_cases(5)
@pytest.mark.parametrize("method", ["kv", "el"])
@pytest.mark.parametrize("dtype", ["float32", "bfloat16", "int8"])
@pytest.mark.parametrize(
    "family, sizes",
    [
        ("bart", {"sentences": 12, "length": 20, "target_length": 25, "words": 3000}),  # the logits decide
        ("transformer", {"sentences": 3, "length": 300, "target_length": 10, "words": 500}),  # the encoder
        ("transformer", {"sentences": 6, "length": 40, "target_length": 150, "words": 100}),  # the layers
        ("language_model", {"sentences": 6, "length": 90, "target_length": 20, "words": 500}),  # the prompts
    ],
)
def test_the_prediction_for_scoring_is_within_a_tenth(family, method, sizes, dtype):
    types = {"decode_dtype": dtype} if dtype == "int8" else {"dtype": getattr(torch, dtype)}
    planned, peak = measure_scoring(family, method, is_wide=True, **sizes, **types)
    assert peak <= planned < 1.1 * peak, planned / peak


@pytest.mark.parametrize("method", ["kv", "el"])
def test_logits_of_some_positions_after_the_others(method, monkeypatch):
    sizes = {"sentences": 4, "length": 10, "target_length": 60, "words": 3000, "is_wide": True}
    at_once, peak_at_once = measure_scoring("transformer", method, **sizes)
    monkeypatch.setattr(steppers, "MOST_LOGITS", 2**17)
    planned, peak = measure_scoring("transformer", method, **sizes)
    assert peak <= planned < 1.1 * peak, planned / peak
    assert planned < at_once / 2 and peak < peak_at_once / 2


def test_as_many_pairs_as_fit():
    """The longest source and the longest target of a batch decide, which may be those of different pairs."""
    model, _ = searching("transformer", "kv")
    sources, targets = np.array([30, 5, 20, 3]), np.array([4, 30, 5, 3])
    budget = scoring_bytes(model, 2, 30, 30)
    pairs = scoring_capacity(model, budget, sources, targets, str)
    assert pairs(np.array([0, 1, 2, 3])) == 2
    assert pairs(np.array([3])) == 1
    assert scoring_capacity(model, scoring_bytes(model, 4, 30, 30), sources, targets, str)(np.arange(4)) == 4
    with pytest.raises(UserError, match=r"^pair 1 alone needs about [\d.]+ KiB of memory and the budget is 1000 bytes"):
        scoring_capacity(model, 1000, sources, targets, "pair {}".format)(np.array([1, 2]))


def searching(family="bart", method="el", **options):
    dictionary = make_dictionary(40)
    models = make_models(family, dictionary, positions=200)
    model = models[method]
    return model, SequenceGenerator([model], dictionary, beam_size=2, max_len_b=9)


@pytest.mark.parametrize("family", ["transformer", "language_model"])
def test_as_many_sentences_as_fit(family):
    model, search = searching(family)
    for length in (2, 17, 100):
        budget = batch_bytes(model, search, 1, length) * 5
        number = capacity([model], search, budget, str)(length)
        assert batch_bytes(model, search, number, length) <= budget < batch_bytes(model, search, number + 1, length)


def test_auto_is_the_larger():
    model, search = searching("bart", "kv")
    sizes = {}
    for attention in ("kv", "el", "auto"):
        model.decoder.decode_attention = attention
        sizes[attention] = batch_bytes(model, search, 3, 30)
    assert sizes["auto"] == sizes["kv"] > sizes["el"]


def test_symbols_that_the_task_adds_count():
    model, search = searching()
    budget = batch_bytes(model, search, 4, 30)
    assert capacity([model], search, budget, str)(30) == 4
    assert capacity([model], search, budget, str, extra=1)(30) == 3


def test_a_sentence_beyond_the_budget():
    model, search = searching()
    with pytest.raises(
        UserError, match=r"^line of 30 tokens alone needs about [\d.]+ KiB of memory and the budget is "
    ):
        capacity([model], search, 1000, lambda length: f"line of {length} tokens")(30)


def test_models_that_no_budget_is_known_for():
    stock, search = searching("bart", "stock")
    with pytest.raises(UserError, match="^a memory budget needs a model .* give a number of tokens instead$"):
        capacity([stock], search, 10**9, str)
    with pytest.raises(UserError, match="^a memory budget needs a model .* give a number of tokens instead$"):
        scoring_capacity(stock, 10**9, np.array([3]), np.array([3]), str)
    model, _ = searching("bart", "kv")
    other = searching("language_model", "stock")[0]
    search = SequenceGenerator([model], model.decoder.dictionary, lm_model=other)
    with pytest.raises(UserError, match="^a memory budget needs a language model .* give a number of tokens instead$"):
        capacity([model], search, 10**9, str)


@pytest.fixture(params=KINDS, ids=["packed", "kernels", "ordinary"])
def any_product(request, monkeypatch):
    choose(monkeypatch, request.param)


@pytest.mark.parametrize("decode_dtype", [None, "int8"])
@pytest.mark.parametrize(
    "options",
    [
        {"decoder_ffn_embed_dim": 4096},
        {"decoder_embed_dim": 128, "decoder_ffn_embed_dim": 24, "decoder_normalize_before": True},
    ],
    ids=str,
)
def test_a_layer_of_the_decoder_decides(options, decode_dtype, any_product):
    """One call computes it, or its modules do."""
    width = options.get("decoder_embed_dim", 16)
    sizes = {"sentences": 6, "length": 4, "beam": 5, "decoder_input_dim": width, "decoder_output_dim": width}
    planned, peak, _ = measure("transformer", "kv", **sizes, **options, decode_dtype=decode_dtype)
    assert peak <= planned < 1.5 * peak, planned / peak


def test_rows_that_packed_products_add(any_product):
    """20 hypotheses are multiplied as 32."""
    planned, peak, _ = measure("bart", "el", sentences=4, length=10, beam=5, words=5000)
    assert peak <= planned < 1.1 * peak, planned / peak


@pytest.mark.few_cases(8)
@pytest.mark.parametrize("method", ["kv", "el"])
@pytest.mark.parametrize(
    "family, sizes",
    [
        ("language_model", {"sentences": 3, "length": 150, "beam": 1}),
        ("language_model", {"sentences": 1, "length": 2, "beam": 1}),  # a prompt that keeps its buffers
        ("language_model", {"sentences": 3, "length": 150, "beam": 4, "is_wide": True, "attention_top_k": 8}),
        ("language_model", {"sentences": 3, "length": 90, "beam": 4, "is_wide": True, "num_kv_heads": 1}),
        (
            "language_model",
            {"sentences": 6, "length": 3, "beam": 2, "is_wide": True, "attention_top_k": 1, "dtype": torch.bfloat16},
        ),
        ("transformer", {"sentences": 6, "length": 60, "beam": 4, "is_wide": True, "dtype": torch.bfloat16}),
        ("transformer", {"sentences": 6, "length": 20, "beam": 4, "attention_top_k": 2, "dtype": torch.bfloat16}),
    ],
    ids=str,
)
def test_any_product(family, method, sizes, any_product):
    planned, peak, state = measure(family, method, **sizes)
    assert state < peak <= planned < 1.25 * peak, planned / peak


@pytest.mark.parametrize("method", ["kv", "el"])
@pytest.mark.parametrize(
    "family, sizes",
    [
        ("transformer", {"sentences": 1, "length": 5, "target_length": 1}),
        ("transformer", {"sentences": 2, "length": 2, "target_length": 200}),  # a mask of 200 times 200
        ("transformer", {"sentences": 6, "length": 40, "target_length": 100, "is_wide": True, "num_kv_heads": 2}),
        ("language_model", {"sentences": 3, "length": 150, "target_length": 30, "is_wide": True, "attention_top_k": 8}),
    ],
    ids=str,
)
def test_scoring_by_any_product(family, method, sizes, any_product):
    planned, peak = measure_scoring(family, method, **sizes)
    assert peak <= planned < 1.4 * peak, planned / peak


@pytest.mark.parametrize("family", ["transformer", "language_model"])
@pytest.mark.parametrize("method", ["kv", "el"])
def test_a_head_too_wide_to_be_fused(family, method):
    sides = ["decoder"] if family == "language_model" else ["encoder", "decoder"]
    options = {f"{side}_{name}": size for side in sides for name, size in (("embed_dim", 320), ("attention_heads", 1))}
    options |= {"decoder_input_dim": 320, "decoder_output_dim": 320, "words": 300}
    planned, peak, _ = measure(family, method, sentences=3, length=100, beam=2, **options)
    assert peak <= planned < 1.1 * peak, planned / peak
