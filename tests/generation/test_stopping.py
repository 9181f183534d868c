"""The rules that end beam search, against transformers' own search and against a search by lists."""

import math

import pytest
import torch
from fairseq import search
from transformers import BartConfig, BartForConditionalGeneration, GPT2Config, GPT2LMHeadModel, LogitsProcessorList

from elseq.errors import UserError
from elseq.generation import SequenceGenerator
from elseq.generation.stopping import RULES, Stopping
from tests.tiny_models import make_dictionary, make_models, make_sample, make_sources

DICTIONARY = make_dictionary(12)
BOS, PAD, END, UNK = 0, 1, 2, 3
THEIRS = {"first": True, "bound": False, "never": "never"}
PENALTIES = [-1.5, 0.0, 0.6, 1.0, 2.0]


class OnlyEnd:
    """At the maximum length only the end follows, with its own log-probability, as in fairseq. Padding never does."""

    def __init__(self, length):
        self.length = length

    def __call__(self, tokens, scores):
        scores = scores.clone()
        scores[:, PAD] = -math.inf
        if tokens.size(1) == self.length - 1:
            scores[:, :END] = scores[:, END + 1 :] = -math.inf
        return scores


class Logits(torch.nn.Module):
    """transformers' model as one that fairseq's search asks."""

    def __init__(self, model):
        super().__init__()
        self.model = model
        self.train(False)
        if model.config.is_encoder_decoder:
            self.encoder = torch.nn.Module()
            self.encoder.forward_torchscript = lambda net_input: net_input["src_tokens"]
            self.encoder.reorder_encoder_out = lambda source, order: source.index_select(0, order)
            self.decoder = torch.nn.Module()
            self.decoder.forward = lambda tokens, encoder_out: (
                model(encoder_out, attention_mask=encoder_out.ne(PAD).long(), decoder_input_ids=tokens).logits,
            )

    def forward(self, tokens):
        return (self.model(tokens).logits,)

    def get_normalized_probs(self, output, log_probs, sample):
        return torch.log_softmax(output[0], dim=-1)


def make_theirs(family, seed):
    torch.manual_seed(seed)
    common = {"vocab_size": len(DICTIONARY), "bos_token_id": BOS, "pad_token_id": PAD, "eos_token_id": END}
    if family == "bart":
        sizes = {f"{side}_{name}": 2 for side in ("encoder", "decoder") for name in ("layers", "attention_heads")}
        sizes |= {"encoder_ffn_dim": 32, "decoder_ffn_dim": 32, "d_model": 16, "max_position_embeddings": 64}
        forced = {"decoder_start_token_id": END, "forced_eos_token_id": None, "forced_bos_token_id": None}
        model = BartForConditionalGeneration(BartConfig(**common, **sizes, **forced, init_std=0.6))
    else:
        sizes = {"n_embd": 16, "n_layer": 2, "n_head": 2, "n_positions": 64, "initializer_range": 0.6}
        model = GPT2LMHeadModel(GPT2Config(**common, **sizes))
    model.register_forward_hook(flatter)
    return model.eval()


def flatter(model, inputs, output):
    """Hypotheses of several lengths are good ones."""
    output.logits.mul_(0.4)[..., END].add_(0.7)


@pytest.mark.few_cases(8)
@pytest.mark.parametrize("family", ["bart", "gpt2"])
@pytest.mark.parametrize("penalty", PENALTIES)
@pytest.mark.parametrize("rule", RULES)
@torch.no_grad()
def test_the_hypotheses_of_transformers(family, rule, penalty):
    """Words and scores; among the others than the best, first keeps the hypotheses that ended before."""
    beam, told = 3, 0
    for seed, (shortest, longest) in enumerate([(0, 6), (4, 12), (0, 12)]):
        model = make_theirs(family, seed)
        rows = make_sources(DICTIONARY, [3, 3, 3, 3] if family == "gpt2" else [3, 7, 1, 5], seed)
        sample = make_sample(DICTIONARY, rows, left=False)
        source = sample["net_input"]["src_tokens"]
        prompt = source[:, :-1] if family == "gpt2" else None
        begun = 1 if prompt is None else prompt.size(1)
        found = model.generate(
            source if prompt is None else prompt,
            attention_mask=(source if prompt is None else prompt).ne(PAD).long(),
            num_beams=beam,
            num_return_sequences=beam,
            max_length=begun + longest + 1,
            min_length=begun + shortest,
            length_penalty=penalty,
            early_stopping=THEIRS[rule],
            do_sample=False,
            logits_processor=LogitsProcessorList([OnlyEnd(begun + longest + 1)]),
            return_dict_in_generate=True,
            output_scores=True,
        )
        expected = []
        for words, score in zip(found.sequences[:, begun:].tolist(), found.sequences_scores.tolist(), strict=True):
            expected.append((words[: words.index(END) + 1], pytest.approx(score, rel=1e-5, abs=1e-5)))
        generator = SequenceGenerator(
            [Logits(model)],
            DICTIONARY,
            beam_size=beam,
            max_len_b=longest,
            min_len=shortest,
            len_penalty=penalty,
            early_stopping=rule,
        )
        for row, hypotheses in enumerate(generator.generate(None, sample, prompt_tokens=prompt)):
            ours = [(each["tokens"].tolist(), each["score"].item()) for each in hypotheses]
            theirs = expected[row * beam : (row + 1) * beam]
            assert ours[:1] == theirs[:1] if rule == "first" else ours == theirs
            told += len({len(words) for words, _ in theirs}) > 1
    assert told


def by_lists(scores_after, stopping, beam, longest, penalty):
    """The definition, for one sentence: hypotheses and scores, best first."""
    going, ended = [((), 0.0)], []
    for step in range(longest + 1):
        candidates = []
        for words, total in going:
            for word, log_prob in enumerate(scores_after(words)):
                if word not in (PAD,) and (step < longest or word == END):
                    candidates.append(((*words, word), total + log_prob))
        candidates.sort(key=lambda pair: -pair[1])
        for words, total in candidates[:beam]:
            if words[-1] == END and (stopping.is_bounded or len(ended) < max(1, round(stopping.beam_patience * beam))):
                ended.append((words, total / len(words) ** penalty))
        going = [pair for pair in candidates[: 2 * beam] if pair[0][-1] != END][:beam]
        if stopping.is_bounded:
            ended = sorted(ended, key=lambda pair: -pair[1])[:beam]
            if len(ended) == beam and going:
                length = longest + 1 if stopping.early_stopping == "never" and penalty > 0 else step + 1
                if going[0][1] / length**penalty <= ended[-1][1]:
                    break
        elif len(ended) >= max(1, round(stopping.beam_patience * beam)):
            break
    return sorted(ended, key=lambda pair: -pair[1])[:beam]


CASES = [*map(Stopping, RULES), *(Stopping(beam_patience=beam_patience) for beam_patience in (0.4, 1.5, 3.0))]


@pytest.mark.few_cases(10)
@pytest.mark.parametrize("penalty", PENALTIES)
@pytest.mark.parametrize("stopping", CASES, ids=lambda rule: f"{rule.early_stopping}-{rule.beam_patience}")
@pytest.mark.parametrize("kind", ["kv", "stock"])
@torch.no_grad()
def test_the_hypotheses_of_a_search_by_lists(stopping, penalty, kind):
    """In a batch whose sentences end at different steps."""
    model = make_models("transformer", DICTIONARY, seed=3)[kind]
    model.decoder.output_projection.weight.data *= 0.3
    beam, longest = 3, 8
    rows = make_sources(DICTIONARY, [3, 7, 1, 5, 2])
    generator = SequenceGenerator(
        [model],
        DICTIONARY,
        beam_size=beam,
        max_len_b=longest,
        min_len=0,
        len_penalty=penalty,
        early_stopping=stopping.early_stopping,
        beam_patience=stopping.beam_patience,
    )
    found = generator.generate(None, make_sample(DICTIONARY, rows))
    for row, hypotheses in zip(rows, found, strict=True):
        source = torch.tensor([row])

        def scores_after(words, source=source):
            logits = model(source, torch.tensor([row.numel() for row in source]), torch.tensor([[END, *words]]))[0]
            return torch.log_softmax(logits[0, -1], dim=-1).tolist()

        expected = by_lists(scores_after, stopping, beam, longest, penalty)
        assert [each["tokens"].tolist() for each in hypotheses] == [list(words) for words, _ in expected]
        assert [each["score"].item() for each in hypotheses] == pytest.approx(
            [score for _, score in expected], rel=1e-6, abs=1e-5
        )


@pytest.mark.parametrize("penalty", [0.0, 1.0, 2.0])
def test_never_finds_at_least_what_the_others_find(penalty):
    model = make_models("transformer", DICTIONARY, seed=3)["kv"]
    sample = make_sample(DICTIONARY, make_sources(DICTIONARY, [3, 7, 1, 5, 2]))
    options = {"beam_size": 3, "max_len_b": 9, "len_penalty": penalty}
    best = {}
    for rule in RULES:
        found = SequenceGenerator([model], DICTIONARY, **options, early_stopping=rule).generate(None, sample)
        best[rule] = torch.stack([hypotheses[0]["score"] for hypotheses in found])
    assert (best["bound"] >= best["first"]).all() and (best["never"] >= best["bound"]).all()


def test_greedy_search_ends_with_its_first_hypothesis():
    model = make_models("transformer", DICTIONARY)["kv"]
    sample = make_sample(DICTIONARY, make_sources(DICTIONARY, [3, 7]))
    expected = SequenceGenerator([model], DICTIONARY).generate(None, sample)
    for options in ({"early_stopping": "never"}, {"beam_patience": 3.0}):
        found = SequenceGenerator([model], DICTIONARY, **options).generate(None, sample)
        assert [each[0]["tokens"].tolist() for each in found] == [each[0]["tokens"].tolist() for each in expected]
        assert all(len(each) == 1 for each in found)


@pytest.mark.parametrize(
    "options, sentence",
    [
        ({"early_stopping": "last"}, "--early-stopping last is unknown; choose one of first, bound, never"),
        ({"beam_patience": 0.0}, "--beam-patience 0.0 is not a number above 0 and of at most 1000"),
        ({"beam_patience": math.nan}, "--beam-patience nan is not a finite number"),
        ({"beam_patience": 2.0, "early_stopping": "bound"}, "--beam-patience 2 is for the rule first: leave it out"),
    ],
)
def test_values_that_cannot_be(options, sentence):
    with pytest.raises(UserError) as raised:
        SequenceGenerator([make_models("transformer", DICTIONARY)["kv"]], DICTIONARY, beam_size=2, **options)
    assert str(raised.value).startswith(sentence)


@pytest.mark.parametrize("strategy", [search.Sampling, lambda words: search.DiverseBeamSearch(words, 2, 0.5)])
@pytest.mark.parametrize("options", [{"early_stopping": "bound"}, {"beam_patience": 2.0}])
def test_searches_with_rules_of_their_own(strategy, options):
    model = make_models("transformer", DICTIONARY)["kv"]
    with pytest.raises(UserError, match="is for beam search, and .* ends by its own rule: leave it out"):
        SequenceGenerator([model], DICTIONARY, beam_size=2, search_strategy=strategy(DICTIONARY), **options)
