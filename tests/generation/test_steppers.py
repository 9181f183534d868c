"""Models of fairseq that elseq does not rebuild, and what else keeps to fairseq's protocol: as under its generator."""

import math
from argparse import Namespace
from types import SimpleNamespace

import pytest
import torch
from fairseq import search, utils
from fairseq.models import ARCH_CONFIG_REGISTRY, ARCH_MODEL_REGISTRY
from fairseq.models.fairseq_decoder import FairseqDecoder
from fairseq.models.fairseq_encoder import FairseqEncoder
from fairseq.models.fairseq_incremental_decoder import FairseqIncrementalDecoder
from fairseq.models.fairseq_model import FairseqEncoderDecoderModel
from fairseq.sequence_generator import EnsembleModel
from fairseq.sequence_generator import SequenceGenerator as StockGenerator

from elseq.generation import SequenceGenerator, steppers
from elseq.generation.scorer import score_targets
from tests.tiny_models import assert_same_hypotheses, make_dictionary, make_models, make_sample, make_sources

DICTIONARY = make_dictionary(20)
EOS, PAD = DICTIONARY.eos(), DICTIONARY.pad()
WORDS = range(DICTIONARY.nspecial, len(DICTIONARY))
SAMPLE = make_sample(DICTIONARY, make_sources(DICTIONARY, (7, 5, 3, 1)))


def build(arch, **options):
    args = Namespace(max_source_positions=40, max_target_positions=40, criterion="cross_entropy", **options)
    ARCH_CONFIG_REGISTRY[arch](args)
    task = SimpleNamespace(source_dictionary=DICTIONARY, target_dictionary=DICTIONARY)
    torch.manual_seed(1)
    model = ARCH_MODEL_REGISTRY[arch].build_model(args, task).eval()
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(torch.randn_like(parameter), alpha=0.2)
    return model


LIGHT = {f"{side}_{name}": size for side in ("encoder", "decoder") for name, size in (("embed_dim", 16), ("layers", 2))}
LIGHT |= {"encoder_ffn_embed_dim": 32, "decoder_ffn_embed_dim": 32, "encoder_attention_heads": 4}
LIGHT |= {"decoder_attention_heads": 4, "encoder_kernel_size_list": [3, 5], "decoder_kernel_size_list": [3, 5]}
LIGHT |= {"encoder_conv_type": "dynamic", "decoder_conv_type": "lightweight", "weight_softmax": True}
CONVOLUTIONS = {"encoder_embed_dim": 16, "decoder_embed_dim": 16, "decoder_out_embed_dim": 16}
CONVOLUTIONS |= {"encoder_layers": "[(16, 3)] * 2", "decoder_layers": "[(16, 3)] * 2"}
MODELS = {
    "lightconv": lambda: build("lightconv", **LIGHT),
    "fconv": lambda: build("fconv", **CONVOLUTIONS),
    "fconv without positions": lambda: build("fconv", no_token_positional_embeddings=True, **CONVOLUTIONS),
    "lstm": lambda: build("lstm", encoder_embed_dim=16, decoder_embed_dim=16, encoder_hidden_size=16),
    "transformer without positions": lambda: build(
        "transformer", no_token_positional_embeddings=True, share_decoder_input_output_embed=False, **LIGHT
    ),
    "a part of each hypothesis": lambda: Counting(Memory),
    "a tuple of numbers": lambda: Counting(Numbers),
    "nothing": lambda: Counting(Forgetful),
}


# --- models of our own


class Encoder(FairseqEncoder):
    """Its output is a tuple with something of no use in it."""

    def forward(self, src_tokens, src_lengths=None, **more):
        return src_tokens.ne(PAD).sum(dim=1, keepdim=True), "unused"

    def reorder_encoder_out(self, encoder_out, new_order):
        return encoder_out[0].index_select(0, new_order), encoder_out[1]


class Memory(FairseqIncrementalDecoder):
    """Remembers a sum of the words so far, as an object of a class of its own."""

    class Sum:
        def __init__(self, numbers):
            self.numbers = numbers

    def before(self, state, tokens):
        found = utils.get_incremental_state(self, state, "sum") if state is not None else None
        return tokens.new_zeros(tokens.size(0)) if found is None else found.numbers

    def remember(self, state, numbers):
        utils.set_incremental_state(self, state, "sum", self.Sum(numbers))

    def reorder_incremental_state(self, incremental_state, new_order):
        found = utils.get_incremental_state(self, incremental_state, "sum")
        if found is not None:
            self.remember(incremental_state, found.numbers.index_select(0, new_order))

    def forward(self, prev_output_tokens, encoder_out=None, incremental_state=None):
        before = 0
        if incremental_state is not None:
            prev_output_tokens = prev_output_tokens[:, -1:]
            before = self.before(incremental_state, prev_output_tokens).unsqueeze(1)
        sums = before + prev_output_tokens.cumsum(dim=1)
        if incremental_state is not None:
            self.remember(incremental_state, sums[:, -1])
        seeds = (sums + encoder_out[0]).unsqueeze(2) * torch.arange(1, len(DICTIONARY) + 1)
        return (seeds * 0.7).sin().exp(), None

    def get_normalized_probs(self, net_output, log_probs, sample=None):
        """The decoder gives probabilities already."""
        probabilities = net_output[0] / net_output[0].sum(dim=-1, keepdim=True)
        return probabilities.log() if log_probs else probabilities

    def max_positions(self):
        return math.inf


class Numbers(Memory):
    """Keeps a tuple of a tensor, nothing, and a number."""

    def before(self, state, tokens):
        found = utils.get_incremental_state(self, state, "sum")
        return tokens.new_zeros(tokens.size(0)) if found is None else found[0]

    def remember(self, state, numbers):
        step = (utils.get_incremental_state(self, state, "sum") or (0, 0, 0))[2]
        utils.set_incremental_state(self, state, "sum", (numbers, None, step + 1))

    def reorder_incremental_state(self, incremental_state, new_order):
        numbers, _, step = utils.get_incremental_state(self, incremental_state, "sum")
        utils.set_incremental_state(self, incremental_state, "sum", (numbers.index_select(0, new_order), None, step))


class Forgetful(FairseqDecoder):
    """Reads everything anew."""

    forward, get_normalized_probs, max_positions = Memory.forward, Memory.get_normalized_probs, Memory.max_positions


class Counting(FairseqEncoderDecoderModel):
    def __init__(self, decoder):
        super().__init__(Encoder(DICTIONARY), decoder(DICTIONARY))


# --- tests


@pytest.mark.parametrize("name", MODELS)
@pytest.mark.parametrize("beam", [1, 4])
def test_any_model_of_fairseq(name, beam):
    model = MODELS[name]()
    options = {"beam_size": beam, "max_len_b": 12}
    expected = StockGenerator([model], DICTIONARY, **options).generate([model], SAMPLE)
    generator = SequenceGenerator([model], DICTIONARY, **options)
    assert_same_hypotheses(generator.generate([model], SAMPLE), expected)
    assert generator.usage.state_bytes >= (0 if name in ("nothing", "a part of each hypothesis") else 8 * beam * 4)


@pytest.mark.parametrize("name", MODELS)
def test_scores_of_given_words(name):
    """Of what fairseq's generator finds, step by step."""
    model = MODELS[name]()
    found = [best for best, *_ in StockGenerator([model], DICTIONARY, beam_size=3, max_len_b=12)(SAMPLE)]
    scored = score_targets(model, SAMPLE["net_input"], [each["tokens"] for each in found], DICTIONARY)
    for one, other in zip(scored, found, strict=True):
        torch.testing.assert_close(one["positional_scores"], other["positional_scores"], rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("name", ["fconv", "a tuple of numbers", "nothing"])
@pytest.mark.parametrize(
    "options",
    [
        {"prefix_tokens": torch.tensor([[5, 6], [7, 8], [9, 10], [11, 12]])},
        {"bos_token": 7},
        {"prefix_tokens": torch.tensor([[5], [7], [9], [11]]), "bos_token": 0},
    ],
    ids=str,
)
def test_called_as_a_module(name, options):
    model = MODELS[name]()
    search_options = {"beam_size": 3, "max_len_b": 12}
    expected = StockGenerator([model], DICTIONARY, **search_options)(SAMPLE, **options)
    generator = SequenceGenerator([model], DICTIONARY, **search_options)
    assert_same_hypotheses(generator(SAMPLE, **options), expected)
    assert_same_hypotheses(generator.forward(SAMPLE, **options), expected)


def test_models_of_different_kinds():
    """fairseq drops the state of all if one has none."""
    models = [MODELS[name]() for name in ("nothing", "a tuple of numbers")]
    models.append(make_models("transformer", DICTIONARY)["el"])
    expected = StockGenerator(models, DICTIONARY, beam_size=4, max_len_b=12).generate(models, SAMPLE)
    assert_same_hypotheses(SequenceGenerator(models, DICTIONARY, beam_size=4, max_len_b=12)(SAMPLE), expected)
    ensemble = EnsembleModel(models)
    assert_same_hypotheses(SequenceGenerator(ensemble, DICTIONARY, beam_size=4, max_len_b=12)(SAMPLE), expected)


@pytest.mark.parametrize("options", [{}, {"sampling_topk": 4}, {"sampling_topp": 0.7}], ids=str)
def test_drawn_as_fairseq_draws(options):
    model = MODELS["a tuple of numbers"]()
    found = []
    for generator_class in (StockGenerator, SequenceGenerator):
        strategy = search.Sampling(DICTIONARY, **options)
        torch.manual_seed(5)
        found.append(generator_class([model], DICTIONARY, beam_size=5, max_len_b=9, search_strategy=strategy)(SAMPLE))
    assert_same_hypotheses(*found)


def test_the_generator_moves_and_switches_its_models():
    model = make_models("transformer", DICTIONARY)["kv"].train()
    generator = SequenceGenerator([model], DICTIONARY, max_len_b=5)
    assert not model.training
    generator.double()
    assert {parameter.dtype for parameter in model.parameters()} == {torch.float64}
    assert generator(SAMPLE)[0][0]["score"].dtype == torch.float64


@pytest.mark.parametrize("method", ["kv", "el"])
@pytest.mark.parametrize("family", ["transformer", "language_model"])
def test_memory_of_a_pass_over_texts_is_given_back_before_the_search(family, method, monkeypatch):
    model = make_models(family, DICTIONARY)[method]
    calls, decode = [], model.decoder.decode
    monkeypatch.setattr(steppers, "give_back_memory", lambda: calls.append("memory"))
    monkeypatch.setattr(model.decoder, "decode", lambda *arguments: calls.append("step") or decode(*arguments))
    sample = make_sample(DICTIONARY, make_sources(DICTIONARY, [5, 3]), left=False)
    prompts = {"prompt_tokens": sample["net_input"]["src_tokens"]} if family == "language_model" else {}
    generator = SequenceGenerator([model], DICTIONARY, max_len_b=5)
    generator.generate(None, sample, **prompts)  # which is small
    assert set(calls) == {"step"}
    calls.clear()
    monkeypatch.setattr(steppers, "LARGE", 1)
    generator.generate(None, sample, **prompts)
    assert calls[0] == "memory" and set(calls[1:]) == {"step"}
