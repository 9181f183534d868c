"""The generator, against fairseq's on a stock model, and against all hypotheses there are."""

import copy
import itertools
import math

import pytest
import torch
from fairseq import search
from fairseq.ngram_repeat_block import NGramRepeatBlock
from fairseq.sequence_generator import SequenceGenerator as StockGenerator
from fairseq.sequence_generator import SequenceGeneratorWithAlignment
from fairseq.sequence_scorer import SequenceScorer
from fairseq.token_generation_constraints import pack_constraints

from elseq.errors import UserError
from elseq.generation import SequenceGenerator
from elseq.generation.steppers import ElseqStepper
from tests.tiny_models import assert_same_hypotheses, make_dictionary, make_models, make_sample, make_sources, pad_rows

DICTIONARY = make_dictionary(20)
FAMILIES = ("transformer", "bart", "language_model")
METHODS = ("kv", "el")
LENGTHS = (3, 7, 1, 5)
PREFIX_LENGTH = 3


@pytest.fixture(scope="module")
def models():
    """Of each family: the stock model, and its equivalents."""
    return {family: make_models(family, DICTIONARY) for family in FAMILIES}


def make_input(family, lengths=LENGTHS, seed=1):
    """A batch, and what else `generate` needs: a language model continues a prefix."""
    rows = make_sources(DICTIONARY, lengths, seed)
    if family != "language_model":
        return make_sample(DICTIONARY, rows), {}
    prefixes = [row[:-1] for row in make_sources(DICTIONARY, [PREFIX_LENGTH] * len(lengths), seed)]
    rows = [[DICTIONARY.eos(), *prefix] for prefix in prefixes]
    return make_sample(DICTIONARY, rows, left=False), {"prefix_tokens": torch.tensor(prefixes)}


def generate(generator_class, models, batch, extra=None, strategy=None, **options):
    options = {"beam_size": 4, "max_len_b": 12, **options}
    if strategy is not None:
        options["search_strategy"] = strategy()
    for model in models:
        if hasattr(model, "set_beam_size"):
            model.set_beam_size(1)  # a stock BART remembers the beam of the last generator
    sample = copy.deepcopy(batch)
    generator = generator_class(models, DICTIONARY, **options)
    torch.manual_seed(1)
    return generator.generate(models, sample, **(extra or {}))


def every_third_word(batch, prefix):
    """A rule for the next word that depends on the sentence and on the words so far."""
    start = DICTIONARY.nspecial + (batch + len(prefix)) % 3
    return [*range(start, len(DICTIONARY), 3), *([DICTIONARY.eos()] if len(prefix) > 4 else [])]


SEARCHES = {
    "greedy": {"beam_size": 1},
    "beam 2": {"beam_size": 2},
    "beam 5": {"beam_size": 5},
    "beam 16": {"beam_size": 16},  # twice that is more than there are words
    "beam of all words": {"beam_size": 100, "max_len_b": 6},
    "length penalty 0": {"len_penalty": 0.0},
    "length penalty 2": {"len_penalty": 2.0},
    "sums": {"normalize_scores": False},
    "minimum length": {"min_len": 9},
    "exact length": {"min_len": 6, "max_len_b": 6},
    "no length": {"min_len": 0, "max_len_b": 0},
    "fewer unknown words": {"unk_penalty": 3.0},
    "more unknown words": {"unk_penalty": -3.0},
    "high temperature": {"temperature": 1.7},
    "low temperature": {"temperature": 0.4},
    "diverse groups": {"strategy": lambda: search.DiverseBeamSearch(DICTIONARY, 2, 0.7), "beam_size": 6},
    "diverse groups, minimum length": {
        "strategy": lambda: search.DiverseBeamSearch(DICTIONARY, 4, 1.5, 0.5),
        "min_len": 9,
    },
    "diverse siblings": {"strategy": lambda: search.DiverseSiblingsSearch(DICTIONARY, 0.8)},
    "diverse siblings, suppressed words": {
        "strategy": lambda: search.DiverseSiblingsSearch(DICTIONARY, 0.3),
        "tokens_to_suppress": ("w1", "w5"),
    },
    "sampling": {"strategy": lambda: search.Sampling(DICTIONARY)},
    "sampling, top-k": {"strategy": lambda: search.Sampling(DICTIONARY, sampling_topk=3), "beam_size": 3},
    "sampling, top-k, minimum length": {"strategy": lambda: search.Sampling(DICTIONARY, 10), "min_len": 6},
    "sampling, top-p": {"strategy": lambda: search.Sampling(DICTIONARY, sampling_topp=0.6), "beam_size": 1},
    "suppressed words": {"tokens_to_suppress": ("w1", "w5", "w7", "w12")},
    "another end": {"eos": DICTIONARY.index("w9")},
    "allowed words": {"strategy": lambda: search.PrefixConstrainedBeamSearch(DICTIONARY, every_third_word)},
    "positions": {"max_len_b": 200, "min_len": 30},
}


@pytest.mark.few_cases(20)
@pytest.mark.parametrize("family", FAMILIES)
@pytest.mark.parametrize("name", SEARCHES)
def test_same_as_stock(models, family, name):
    batch, extra = make_input(family)
    if name in ("no length", "allowed words"):
        extra = {}  # the prefix is too long, or not allowed
    expected = generate(StockGenerator, [models[family]["stock"]], batch, extra, **SEARCHES[name])
    assert all(expected)
    for kind in ("stock", *METHODS):
        found = generate(SequenceGenerator, [models[family][kind]], batch, extra, **SEARCHES[name])
        assert_same_hypotheses(found, expected)


@pytest.mark.parametrize("family", FAMILIES)
@pytest.mark.parametrize("beam", [1, 4, 16])
@pytest.mark.parametrize("method", METHODS)
def test_stock_generator_runs_our_models(models, family, beam, method):
    batch, extra = make_input(family)
    expected = generate(StockGenerator, [models[family]["stock"]], batch, extra, beam_size=beam)
    found = generate(StockGenerator, [models[family][method]], batch, extra, beam_size=beam)
    assert_same_hypotheses(found, expected)


@pytest.mark.parametrize("left", [True, False])
@pytest.mark.parametrize("kind", ["stock", *METHODS])
def test_padding_on_either_side(models, left, kind):
    batch = make_sample(DICTIONARY, make_sources(DICTIONARY, LENGTHS), left)
    expected = generate(StockGenerator, [models["transformer"]["stock"]], batch)
    assert_same_hypotheses(generate(SequenceGenerator, [models["transformer"][kind]], batch), expected)


@pytest.mark.parametrize("kind", ["stock", *METHODS])
def test_limit_in_proportion_to_the_source(models, kind):
    batch, _ = make_input("transformer", (4, 4, 4))
    options = {"max_len_a": 1.4, "max_len_b": 1, "min_len": 3}
    expected = generate(StockGenerator, [models["transformer"]["stock"]], batch, **options)
    assert max(len(hypothesis["tokens"]) for found in expected for hypothesis in found) == 1.4 * 5 + 1 + 1
    assert_same_hypotheses(generate(SequenceGenerator, [models["transformer"][kind]], batch, **options), expected)


def test_a_minimum_above_the_maximum_is_told_of(models, caplog):
    batch, _ = make_input("transformer", (4, 4, 4))
    found = generate(SequenceGenerator, [models["transformer"]["kv"]], batch, min_len=6, max_len_b=2)
    assert {len(hypothesis["tokens"]) for hypotheses in found for hypothesis in hypotheses} == {6 + 1}
    assert "the minimum length, 6, is more than the maximum length, 2; such hypotheses have 6 tokens" in caplog.text


@pytest.mark.parametrize("kind", ["stock", *METHODS])
def test_as_long_as_the_source(models, kind):
    options = {
        "strategy": lambda: search.LengthConstrainedBeamSearch(DICTIONARY, 1, 0, 1, 0),
        "match_source_len": True,
    }
    batch, _ = make_input("transformer", (5, 5, 5))
    expected = generate(StockGenerator, [models["transformer"]["stock"]], batch, **options)
    assert_same_hypotheses(generate(SequenceGenerator, [models["transformer"][kind]], batch, **options), expected)
    batch, _ = make_input("transformer")
    expected = generate(StockGenerator, [models["transformer"]["stock"]], batch, **options)
    found = generate(SequenceGenerator, [models["transformer"][kind]], batch, **options)
    assert_same_hypotheses([best[:1] for best in found], [best[:1] for best in expected])
    # The source's end symbol is counted, the hypothesis's is not.
    lengths = [{len(hypothesis["tokens"]) for hypothesis in hypotheses} for hypotheses in found]
    assert lengths == [{length + 2} for length in LENGTHS]


@pytest.mark.parametrize("kind", ["stock", *METHODS])
@pytest.mark.parametrize("representation", ["ordered", "unordered"])
def test_words_that_must_occur(models, representation, kind):
    words = [[[5, 9], [11]], [[20]], [], [[7], [8], [6]]]
    constraints = pack_constraints([[torch.tensor(phrase) for phrase in phrases] for phrases in words])
    options = {
        "strategy": lambda: search.LexicallyConstrainedBeamSearch(DICTIONARY, representation),
        "beam_size": 6,
    }
    batch, _ = make_input("transformer")
    extra = {"constraints": constraints}
    expected = generate(StockGenerator, [models["transformer"]["stock"]], batch, extra, **options)
    found = generate(SequenceGenerator, [models["transformer"][kind]], batch, extra, **options)
    assert_same_hypotheses(found, expected)
    assert {5, 9, 11} <= set(found[0][0]["tokens"].tolist())


def test_constraints_need_a_search_that_takes_them(models):
    batch, _ = make_input("transformer")
    constraints = pack_constraints([[torch.tensor([5])]] * len(LENGTHS))
    with pytest.raises(NotImplementedError):
        generate(SequenceGenerator, [models["transformer"]["kv"]], batch, {"constraints": constraints})


@pytest.mark.parametrize("family", FAMILIES)
@pytest.mark.parametrize("ends", [False, True], ids=["words", "ends"])
def test_prefixes_of_several_lengths(models, family, ends):
    batch, _ = make_input(family)
    rows = [[5, 6, 7], [8], [9, 10], []]
    if ends:
        rows[2].append(DICTIONARY.eos())
    extra = {"prefix_tokens": pad_rows(rows, DICTIONARY.pad())}
    # In a batch, stock lifts the minimum length for all sentences while one has a prefix word: so one by one.
    expected = []
    for number, row in enumerate(rows):
        alone = {"net_input": {name: tensor[number : number + 1] for name, tensor in batch["net_input"].items()}}
        words = {"prefix_tokens": torch.tensor([row])} if row else None
        expected += generate(StockGenerator, [models[family]["stock"]], alone, words)
    for kind in ("stock", *METHODS):
        found = generate(SequenceGenerator, [models[family][kind]], batch, extra)
        assert_same_hypotheses(found, expected)
        assert [best[0]["tokens"].tolist()[: len(row)] for best, row in zip(found, rows, strict=True)] == rows


@pytest.mark.parametrize("family", FAMILIES)
@pytest.mark.parametrize("kinds", list(itertools.product(("stock", "el"), ("stock", "kv"))), ids="+".join)
def test_ensembles(models, family, kinds):
    other = make_models(family, DICTIONARY, seed=2)
    batch, extra = make_input(family)
    expected = generate(StockGenerator, [models[family]["stock"], other["stock"]], batch, extra)
    ensemble = [models[family][kinds[0]], other[kinds[1]]]
    assert_same_hypotheses(generate(SequenceGenerator, ensemble, batch, extra), expected)


@pytest.mark.parametrize("kind", ["stock", *METHODS])
def test_fusion_with_a_language_model(models, kind):
    batch, _ = make_input("transformer")
    options = {"lm_weight": 0.6, "temperature": 1.3}
    language_models = models["language_model"]
    expected = generate(
        StockGenerator, [models["transformer"]["stock"]], batch, lm_model=language_models["stock"], **options
    )
    without = generate(StockGenerator, [models["transformer"]["stock"]], batch, **options)
    assert [best[0]["tokens"].tolist() for best in without] != [best[0]["tokens"].tolist() for best in expected]
    for model in ("stock", "el"):
        found = generate(
            SequenceGenerator, [models["transformer"][model]], batch, lm_model=language_models[kind], **options
        )
        assert_same_hypotheses(found, expected)


@pytest.mark.parametrize("positions", [20, 40])
def test_the_positions_of_a_language_model_bound_the_length(models, positions):
    batch, _ = make_input("transformer")
    language_model = make_models("language_model", DICTIONARY, positions=positions)["kv"]
    generator = SequenceGenerator([models["transformer"]["kv"]], DICTIONARY, lm_model=language_model, min_len=15)
    longest = max(len(best[0]["tokens"]) for best in generator.generate(None, batch))
    assert longest == positions
    alone = SequenceGenerator([models["transformer"]["kv"]], DICTIONARY, min_len=15)
    alone.generate(None, batch)
    assert generator.usage.state_bytes > alone.usage.state_bytes > 0


@pytest.mark.parametrize("family", FAMILIES)
@pytest.mark.parametrize("kind", METHODS)
@pytest.mark.parametrize("dtype", [None, "int8"])
def test_an_activation_function_in_place_of_another(family, kind, dtype):
    """It decides, not the name of the one that was there."""
    models = make_models(family, DICTIONARY)
    batch, extra = make_input(family)
    for name in ("stock", kind):
        model = models[name].eval()
        for layer in [
            layer for part in (getattr(model, "encoder", None), model.decoder) if part for layer in part.layers
        ]:
            layer.activation_fn = torch.sigmoid
    if dtype is not None:
        models[kind].decoder.decode_dtype = dtype
    found = generate(SequenceGenerator, [models[kind]], batch, extra)
    expected = generate(StockGenerator, [models["stock"]], batch, extra)
    for ours, theirs in zip(found, expected, strict=True):
        assert ours[0]["score"].item() == pytest.approx(theirs[0]["score"].item(), rel=1e-4 if dtype is None else 0.05)


@pytest.mark.parametrize("family", FAMILIES)
def test_a_smaller_beam_after_a_larger_one(models, family):
    """A stock BART remembers the beam."""
    batch, extra = make_input(family)
    model = models[family]["stock"]
    expected = generate(StockGenerator, [model], batch, extra, beam_size=1)
    for beam in (5, 1):
        found = SequenceGenerator([model], DICTIONARY, beam_size=beam, max_len_b=12).generate([model], batch, **extra)
    assert_same_hypotheses(found, expected)


# --- all hypotheses there are


class Exhaustive:
    """Four words, at most three of them, and the scores of every such hypothesis by teacher forcing."""

    words = ("w1", "w3", "w8", "w13")
    limit = 3

    def __init__(self, model, source):
        indices = [DICTIONARY.index(word) for word in self.words]
        eos, pad = DICTIONARY.eos(), DICTIONARY.pad()
        self.tokens = [
            [*words, eos] for length in range(1, self.limit + 1) for words in itertools.product(indices, repeat=length)
        ]
        previous = pad_rows([[eos, *tokens[:-1]] for tokens in self.tokens], pad)
        target = pad_rows(self.tokens, pad)
        rows = torch.tensor([source] * len(self.tokens))
        output = model(rows, torch.full((len(rows),), len(source)), previous)
        log_probs = model.get_normalized_probs(output, log_probs=True).gather(2, target.unsqueeze(2)).squeeze(2)
        self.sums = log_probs.masked_fill(target.eq(pad), 0).sum(dim=1)
        self.lengths = target.ne(pad).sum(dim=1)

    def ranked(self, length_penalty):
        scores = self.sums / self.lengths**length_penalty
        order = scores.sort(descending=True)[1].tolist()
        return [(self.tokens[index], scores[index].item()) for index in order]


@pytest.mark.parametrize("kind", ["stock", *METHODS])
@pytest.mark.parametrize("length_penalty", [0.0, 1.0, 2.0])
def test_a_wide_beam_finds_every_hypothesis_in_order(kind, length_penalty):
    dictionary = make_dictionary(100)
    models = make_models("transformer", dictionary, seed=4)
    sources = [[5, 9, 17, dictionary.eos()], [30, 6, dictionary.eos()]]
    kept = {*Exhaustive.words, dictionary[dictionary.eos()], dictionary[dictionary.pad()], dictionary.unk_word}
    options = {
        "beam_size": 90,  # there are 84 hypotheses
        "max_len_b": Exhaustive.limit,
        "len_penalty": length_penalty,
        "tokens_to_suppress": [word for word in dictionary.symbols if word not in kept],
        "unk_penalty": math.inf,
    }
    generator = SequenceGenerator([models[kind]], dictionary, **options)
    found = generator.generate([models[kind]], make_sample(dictionary, sources))
    for source, hypotheses in zip(sources, found, strict=True):
        expected = Exhaustive(models["stock"], source).ranked(length_penalty)
        assert [hypothesis["tokens"].tolist() for hypothesis in hypotheses] == [tokens for tokens, _ in expected]
        scores = torch.stack([hypothesis["score"] for hypothesis in hypotheses])
        torch.testing.assert_close(scores, torch.tensor([score for _, score in expected]), rtol=1e-4, atol=1e-4)


# --- where the results differ on purpose


class RightBlocker(NGramRepeatBlock):
    """fairseq's looks at the padding behind the hypothesis instead of at its end."""

    def __init__(self, size):
        super().__init__(size, use_extension=False)

    def forward(self, tokens, lprobs, bsz, beam_size, step):
        size = self.no_repeat_ngram_size
        for row, words in enumerate(tokens[:, 1 : step + 1].tolist()):
            seen = [tuple(words[start : start + size]) for start in range(len(words) - size + 1)]
            for word in range(lprobs.size(1)):
                if tuple([*words, word][-size:]) in seen:
                    lprobs[row, word] = -math.inf
        return lprobs


@pytest.mark.parametrize("family", FAMILIES)
@pytest.mark.parametrize("size", [1, 2, 3])
def test_no_repeated_ngrams(models, family, size):
    batch, extra = make_input(family)
    stock = models[family]["stock"]
    options = {"beam_size": 4, "max_len_b": 16, "min_len": 12}
    blocking = StockGenerator([stock], DICTIONARY, **options)
    blocking.repeat_ngram_blocker = RightBlocker(size)
    if hasattr(stock, "set_beam_size"):
        stock.set_beam_size(4)
    expected = blocking.generate([stock], copy.deepcopy(batch), **extra)
    for kind in ("stock", *METHODS):
        found = generate(SequenceGenerator, [models[family][kind]], batch, extra, no_repeat_ngram_size=size, **options)
        assert_same_hypotheses(found, expected)
    unblocked = generate(StockGenerator, [stock], batch, extra, **options)
    assert [best[0]["tokens"].tolist() for best in unblocked] != [best[0]["tokens"].tolist() for best in expected]


@pytest.mark.parametrize("kind", ["stock", *METHODS])
def test_a_prefix_may_repeat_ngrams(models, kind):
    batch, _ = make_input("transformer", (3, 5))
    prefix = torch.tensor([[5, 6, 5, 6, 5], [7, 7, 7, 7, 8]])
    found = generate(
        SequenceGenerator, [models["transformer"][kind]], batch, {"prefix_tokens": prefix}, no_repeat_ngram_size=2
    )
    for hypotheses, words in zip(found, prefix.tolist(), strict=True):
        assert len(hypotheses) == 4
        for hypothesis in hypotheses:
            assert hypothesis["tokens"].tolist()[:5] == words
            assert hypothesis["score"].isfinite()


@pytest.mark.parametrize("kind", ["stock", *METHODS])
@pytest.mark.parametrize("options", [{"max_len_a": 1.5, "max_len_b": 1}, {"max_len_a": 0.4, "max_len_b": 2}])
def test_a_sentence_does_not_depend_on_its_batch(models, kind, options):
    rows = make_sources(DICTIONARY, LENGTHS)
    model = models["transformer"][kind]
    together = generate(SequenceGenerator, [model], make_sample(DICTIONARY, rows), **options)
    alone = [generate(SequenceGenerator, [model], make_sample(DICTIONARY, [row]), **options)[0] for row in rows]
    assert_same_hypotheses(together, alone)
    limits = [int(options["max_len_a"] * len(row) + options["max_len_b"]) for row in rows]
    longest = [max(len(hypothesis["tokens"]) for hypothesis in hypotheses) for hypotheses in together]
    assert all(length <= limit + 1 for length, limit in zip(longest, limits, strict=True))
    assert len(set(limits)) > 1


@pytest.mark.parametrize("kind", ["stock", *METHODS])
def test_constraints_that_no_hypothesis_can_meet(models, kind):
    constraints = pack_constraints([[torch.tensor([5, 6, 7, 8, 9])], [torch.tensor([5])]])
    options = {"strategy": lambda: search.LexicallyConstrainedBeamSearch(DICTIONARY, "unordered"), "max_len_b": 3}
    batch, _ = make_input("transformer", (3, 5))
    with pytest.raises(UserError, match="leave a sentence no hypothesis that ends in time"):
        generate(StockGenerator, [models["transformer"]["stock"]], batch, {"constraints": constraints}, **options)
    found = generate(SequenceGenerator, [models["transformer"][kind]], batch, {"constraints": constraints}, **options)
    assert len(found[0]) == 1
    assert len(found[0][0]["tokens"]) == 4
    assert found[0][0]["score"].isfinite()
    assert all(5 in hypothesis["tokens"] for hypothesis in found[1])


def test_diverse_groups_do_not_depend_on_the_sentence_numbers(models):
    batch, _ = make_input("transformer")
    options = SEARCHES["diverse groups"]
    expected = generate(StockGenerator, [models["transformer"]["stock"]], batch, **options)
    batch["id"] = torch.tensor([40, 3, 1000, 0])
    assert_same_hypotheses(generate(SequenceGenerator, [models["transformer"]["el"]], batch, **options), expected)


def test_allowed_words_are_asked_for_by_the_sentence_number(models):
    batch, _ = make_input("transformer")
    batch["id"] = torch.tensor([7, 0, 5, 3])
    options = SEARCHES["allowed words"]
    expected = generate(StockGenerator, [models["transformer"]["stock"]], batch, **options)
    assert_same_hypotheses(generate(SequenceGenerator, [models["transformer"]["kv"]], batch, **options), expected)


# --- state


@pytest.mark.parametrize("method", METHODS)
@pytest.mark.parametrize("family", FAMILIES)
def test_what_belongs_to_a_sentence_is_held_once(models, family, method, monkeypatch):
    """Whatever the beam: neither copied for it nor moved by it, and gone with its sentence."""
    seen = []
    step = ElseqStepper.step

    def spy(self, tokens):
        result = step(self, tokens)
        layers = self.state.layers
        shared = [state for layer in layers for state in (layer.cross_attention, layer.self_attention.prompt) if state]
        seen.append(
            (
                len(tokens),
                {len(tensor) for state in shared for tensor in state.tensors},
                [tensor.data_ptr() for state in shared for tensor in state.tensors],
                len({id(layer.cross_attention) for layer in layers}),
            )
        )
        return result

    monkeypatch.setattr(ElseqStepper, "step", spy)
    language_model = family == "language_model"
    batch = make_sample(DICTIONARY, make_sources(DICTIONARY, LENGTHS), left=not language_model)
    extra = {"prompt_tokens": batch["net_input"]["src_tokens"]} if language_model else {}
    generate(SequenceGenerator, [models[family][method]], batch, extra, beam_size=3, max_len_a=1, max_len_b=1)
    sizes = [rows for rows, _, _, _ in seen]
    assert sizes[0] == 3 * len(LENGTHS) and sizes[-1] < sizes[0]
    for rows, sentences, _, objects in seen:
        assert sentences == {rows // 3}
        assert objects == (1 if method == "el" or family == "language_model" else 2)
    for (rows, _, places, _), (rows_after, _, places_after, _) in itertools.pairwise(seen):
        assert rows != rows_after or places == places_after


def test_state_is_let_go_of(models):
    batch, _ = make_input("transformer")
    generator = SequenceGenerator([models["transformer"]["el"]], DICTIONARY, max_len_b=5)
    generator.generate(None, batch)
    assert [stepper.state for stepper in generator.stepper.steppers] == [None]
    assert generator.usage.state_bytes > 0


# --- prompts of language models


PROMPTS = ([2], [2, 5, 6, 7, 8, 9], [2, 10, 4], [2, 5, 6, 7], [2, 21])


def continue_prompts(model, prompts, **options):
    rows = [list(prompt) for prompt in prompts]
    sample = make_sample(DICTIONARY, rows, left=False)
    extra = {"prompt_tokens": sample["net_input"]["src_tokens"]}
    return generate(SequenceGenerator, [model], sample, extra, **options)


@pytest.mark.few_cases(5)
@pytest.mark.parametrize("kind", ["stock", *METHODS])
@pytest.mark.parametrize(
    "options",
    [{"beam_size": 1}, {"beam_size": 4}, {"max_len_a": 2, "max_len_b": 1}, {"max_len_b": 100, "min_len": 3}],
    ids=["greedy", "beam", "limit by prompt", "limit by positions"],
)
def test_prompts_of_several_lengths(models, kind, options):
    together = continue_prompts(models["language_model"][kind], PROMPTS, **options)
    alone = [continue_prompts(models["language_model"]["stock"], [prompt], **options)[0] for prompt in PROMPTS]
    assert_same_hypotheses(together, alone)


@pytest.mark.parametrize("kind", ["stock", *METHODS])
def test_scores_after_prompts_are_those_of_teacher_forcing(models, kind):
    stock = models["language_model"]["stock"]
    found = continue_prompts(models["language_model"][kind], PROMPTS, min_len=5)
    for prompt, hypotheses in zip(PROMPTS, found, strict=True):
        for hypothesis in hypotheses:
            tokens = hypothesis["tokens"]
            text = torch.tensor([[*prompt, *tokens.tolist()]])
            log_probs = stock.get_normalized_probs(stock(text[:, :-1]), log_probs=True)
            expected = log_probs[0, len(prompt) - 1 :].gather(1, tokens.unsqueeze(1)).squeeze(1)
            torch.testing.assert_close(hypothesis["positional_scores"], expected, rtol=1e-4, atol=1e-4)
            torch.testing.assert_close(hypothesis["score"], expected.mean(), rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("kind", ["stock", *METHODS])
def test_greedy_continuation_of_a_prompt(models, kind):
    """As a prefix in fairseq's generator, but neither repeated nor scored."""
    stock = models["language_model"]["stock"]
    for prompt, [best] in zip(
        PROMPTS, continue_prompts(models["language_model"][kind], PROMPTS, beam_size=1), strict=True
    ):
        batch = make_sample(DICTIONARY, [list(prompt)], left=False)
        extra = {"prefix_tokens": torch.tensor([prompt[1:]], dtype=torch.int64)}
        [[expected]] = generate(StockGenerator, [stock], batch, extra, beam_size=1, max_len_b=12 + len(prompt) - 1)
        start = len(prompt) - 1
        assert best["tokens"].tolist() == expected["tokens"].tolist()[start:]
        torch.testing.assert_close(
            best["positional_scores"], expected["positional_scores"][start:], rtol=1e-4, atol=1e-4
        )


@pytest.mark.parametrize("kind", ["stock", *METHODS])
def test_prompts_with_prefixes_and_rules(models, kind):
    """What else `generate` is given is for each sentence, however the batch is divided."""
    sample = make_sample(DICTIONARY, [list(prompt) for prompt in PROMPTS], left=False)
    prompts = sample["net_input"]["src_tokens"]
    prefix = torch.tensor([[6], [7], [8], [9], [10]])
    model = models["language_model"][kind]
    found = generate(SequenceGenerator, [model], sample, {"prompt_tokens": prompts, "prefix_tokens": prefix})
    assert [best[0]["tokens"][0].item() for best in found] == [6, 7, 8, 9, 10]

    asked = set()

    def rule(sentence, words):
        asked.add(sentence)
        return [*range(len(DICTIONARY))]

    sample["id"] = torch.tensor([11, 12, 13, 14, 15])
    strategy = {"strategy": lambda: search.PrefixConstrainedBeamSearch(DICTIONARY, rule)}
    found = generate(SequenceGenerator, [model], sample, {"prompt_tokens": prompts}, **strategy)
    assert asked == {11, 12, 13, 14, 15}
    assert_same_hypotheses(found, continue_prompts(model, PROMPTS))


def test_a_prompt_that_leaves_no_room(models):
    prompt = [2, *[5] * 38]
    assert continue_prompts(models["language_model"]["el"], [prompt], min_len=1)
    with pytest.raises(UserError, match="--min-len 4 is more than the 1 tokens"):
        continue_prompts(models["language_model"]["el"], [prompt], min_len=4)


# --- alignment and scores


@pytest.mark.parametrize("family", ["transformer", "bart"])
@pytest.mark.parametrize("beam", [1, 4])
@pytest.mark.parametrize("kind", ["hard", "soft"])
def test_alignment(models, family, beam, kind):
    batch, _ = make_input(family)
    stock = models[family]["stock"]
    options = {"beam_size": beam, "print_alignment": kind}
    expected = generate(SequenceGeneratorWithAlignment, [stock], batch, **options)
    for name in ("stock", *METHODS):
        found = generate(SequenceGenerator, [models[family][name]], batch, **options)
        assert_same_hypotheses(found, expected)
        for hypothesis, other in zip(itertools.chain(*found), itertools.chain(*expected), strict=True):
            torch.testing.assert_close(hypothesis["attention"], other["attention"], rtol=1e-4, atol=1e-5)
            if kind == "hard":
                assert hypothesis["alignment"] == other["alignment"]
            else:
                weights, expected_weights = (
                    torch.tensor([list(map(float, row)) for row in alignment])
                    for alignment in (hypothesis["alignment"], other["alignment"])
                )
                torch.testing.assert_close(weights, expected_weights, rtol=1e-4, atol=1e-5)
            assert hypothesis["attention"].size(1) == len(hypothesis["tokens"])


def test_alignment_of_an_ensemble(models):
    batch, _ = make_input("transformer")
    other = make_models("transformer", DICTIONARY, seed=2)
    options = {"print_alignment": "hard"}
    ensemble = [models["transformer"]["stock"], other["stock"]]
    expected = generate(SequenceGeneratorWithAlignment, ensemble, batch, **options)
    found = generate(SequenceGenerator, [models["transformer"]["el"], other["stock"]], batch, **options)
    assert_same_hypotheses(found, expected)
    for hypothesis, other in zip(itertools.chain(*found), itertools.chain(*expected), strict=True):
        torch.testing.assert_close(hypothesis["attention"], other["attention"], rtol=1e-4, atol=1e-5)
        assert hypothesis["alignment"] == other["alignment"]


def test_alignment_of_a_model_that_was_trained_to_align(models):
    """It looks at the whole hypothesis once more."""
    aligning = make_models("transformer", DICTIONARY)
    for model in aligning.values():
        model.full_context_alignment = True
    batch, _ = make_input("transformer")
    expected = generate(SequenceGeneratorWithAlignment, [aligning["stock"]], batch, print_alignment="hard")
    found = generate(SequenceGenerator, [aligning["stock"]], batch, print_alignment="hard")
    for hypothesis, other in zip(itertools.chain(*found), itertools.chain(*expected), strict=True):
        assert hypothesis["alignment"] == other["alignment"]


def test_no_attention_unless_asked(models):
    batch, _ = make_input("transformer")
    [best, *_] = generate(SequenceGenerator, [models["transformer"]["kv"]], batch)[0]
    assert best["attention"].numel() == 0 and best["alignment"].numel() == 0


@pytest.mark.parametrize("family", FAMILIES)
@pytest.mark.parametrize("method", METHODS)
def test_scores_of_references(models, family, method):
    batch, _ = make_input(family)
    targets = make_sources(DICTIONARY, (4, 2, 6, 1), seed=3)
    eos, pad = DICTIONARY.eos(), DICTIONARY.pad()
    batch["target"] = pad_rows(targets, pad)
    previous = pad_rows([[eos, *target[:-1]] for target in targets], pad)
    if family == "language_model":
        batch["net_input"] = {"src_tokens": previous, "src_lengths": batch["target"].ne(pad).sum(1)}
    else:
        batch["net_input"]["prev_output_tokens"] = previous
    scorer = SequenceScorer(DICTIONARY)
    if hasattr(models[family]["stock"], "set_beam_size"):
        models[family]["stock"].set_beam_size(1)
    expected = scorer.generate([models[family]["stock"]], batch)
    assert_same_hypotheses(scorer.generate([models[family][method]], batch), expected)


@pytest.mark.parametrize("family", FAMILIES)
def test_scores_of_the_search_are_those_of_the_scorer(models, family):
    if family == "language_model":
        pytest.skip("its prefix is scored too")
    batch, _ = make_input(family)
    model = models[family]["el"]
    found = generate(SequenceGenerator, [model], batch)
    tokens = [best[0]["tokens"].tolist() for best in found]
    eos, pad = DICTIONARY.eos(), DICTIONARY.pad()
    batch["target"] = pad_rows(tokens, pad)
    batch["net_input"]["prev_output_tokens"] = pad_rows([[eos, *words[:-1]] for words in tokens], pad)
    scored = SequenceScorer(DICTIONARY).generate([model], batch)
    assert_same_hypotheses([best[:1] for best in found], scored)


# --- refusals


@pytest.mark.parametrize(
    "options, sentence",
    [
        ({"temperature": math.nan}, "--temperature nan is not a finite number"),
        ({"temperature": 0}, "--temperature 0 is not a number from 1e-06 to"),
        ({"print_alignment": "some"}, "--print-alignment some is unknown; choose one of hard, soft$"),
        ({"tokens_to_suppress": ["nothing"]}, "'nothing' is not in the dictionary"),
        ({"beam_size": 0}, "--beam 0 is not a whole number above 0; leave it out for the default, 1$"),
        ({"beam_size": 2.5}, "--beam 2.5 is not a whole number above 0"),
        ({"beam_size": True}, "--beam True is not a whole number above 0"),
        ({"beam_size": "4"}, "--beam '4' is not a whole number above 0"),
    ],
)
def test_options_that_cannot_be(models, options, sentence):
    with pytest.raises(UserError, match=sentence):
        SequenceGenerator([models["transformer"]["kv"]], DICTIONARY, **options)


def test_the_unknown_word_is_one_that_can_be_suppressed(models):
    batch, extra = make_input("transformer")
    options = {"tokens_to_suppress": [DICTIONARY.unk_word]}
    found = generate(SequenceGenerator, [models["transformer"]["kv"]], batch, extra, **options)
    assert not any(DICTIONARY.unk() in each["tokens"] for best in found for each in best)


def test_alignment_needs_a_source(models):
    with pytest.raises(UserError, match="a language model has no source"):
        continue_prompts(models["language_model"]["kv"], PROMPTS, print_alignment="hard")


def test_a_translation_model_is_no_language_model(models):
    model = models["transformer"]["kv"]
    with pytest.raises(UserError, match="no language model"):
        SequenceGenerator([model], DICTIONARY, lm_model=model)


def test_a_constrained_search_needs_constraints(models):
    batch, _ = make_input("transformer")

    def strategy():
        return search.LexicallyConstrainedBeamSearch(DICTIONARY, "ordered")

    with pytest.raises(UserError, match="--constraints needs"):
        generate(SequenceGenerator, [models["transformer"]["kv"]], batch, strategy=strategy)


@pytest.mark.parametrize("penalty", [400.0, -400.0, 37.0, math.inf, math.nan])
def test_a_length_penalty_beyond_what_numbers_hold(models, penalty):
    batch, _ = make_input("transformer")
    with pytest.raises(UserError, match=f"--lenpen {penalty} makes scores of 13 tokens all the same: give one nearer"):
        generate(SequenceGenerator, [models["transformer"]["kv"]], batch, len_penalty=penalty)
    found = generate(SequenceGenerator, [models["transformer"]["kv"]], batch, len_penalty=30.0)
    assert all(hypothesis["score"].isfinite() for hypothesis in itertools.chain(*found))
