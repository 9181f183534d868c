"""Scores of given targets, compared with fairseq's SequenceScorer, sentence by sentence."""

import pytest
import torch
from fairseq.sequence_scorer import SequenceScorer

from elseq.errors import UserError
from elseq.generation import SequenceGenerator, steppers
from elseq.generation.scorer import score_targets
from elseq.precision import INT8
from tests.models.building import ours
from tests.tiny_models import FAMILIES, make_dictionary, make_models, make_sample, make_sources, pad_rows

DICTIONARY = make_dictionary(30)
EOS, PAD = DICTIONARY.eos(), DICTIONARY.pad()
KINDS = ["stock", "kv", "el"]
TARGETS = list(map(torch.tensor, make_sources(DICTIONARY, [4, 0, 9, 2, 6], seed=2)))


@pytest.fixture(scope="module", params=FAMILIES)
def models(request):
    return {"family": request.param, **make_models(request.param, DICTIONARY)}


def batch(family, lengths=(3, 7, 1, 5, 0)):
    """A batch, and its prompts or None: the symbol that a text starts from is the first of a prompt."""
    rows = make_sources(DICTIONARY, lengths)
    if family != "language_model":
        return make_sample(DICTIONARY, rows)["net_input"], None
    rows = [[EOS, *row[:-1]] for row in rows]
    net_input = make_sample(DICTIONARY, rows, left=False)["net_input"]
    return net_input, net_input["src_tokens"]


def expected(model, net_input, targets, prompts):
    """Positional scores by fairseq's SequenceScorer, in the model's forward pass."""
    found = []
    for row, target in enumerate(targets):
        if prompts is None:
            tokens = torch.cat((torch.tensor([EOS]), target))
            source = {name: tensor[row : row + 1] for name, tensor in net_input.items()}
            given = {**source, "prev_output_tokens": tokens[None, :-1]}
        else:
            prompt = prompts[row]
            tokens = torch.cat((prompt[prompt.ne(PAD)], target))
            given = {"src_tokens": tokens[None, :-1], "src_lengths": torch.tensor([len(tokens) - 1])}
        sample = {"net_input": given, "target": tokens[None, 1:]}
        [[scored]] = SequenceScorer(DICTIONARY).generate([model], sample)
        found.append(scored["positional_scores"][-len(target) :])
    return found


def check(found, targets, scores, tolerance=1e-5):
    assert len(found) == len(targets)
    for each, target, positional in zip(found, targets, scores, strict=True):
        assert each["tokens"].tolist() == target.tolist()
        torch.testing.assert_close(each["positional_scores"], positional, rtol=tolerance, atol=tolerance)
        torch.testing.assert_close(each["score"], positional.sum(), rtol=tolerance, atol=10 * tolerance)


@pytest.mark.parametrize("most_logits", [2**25, 250, 1])
@pytest.mark.parametrize("kind", KINDS)
def test_as_fairseq_scores(models, kind, most_logits, monkeypatch):
    """Sources, prompts and targets of different lengths, and at most so many logits at once."""
    monkeypatch.setattr(steppers, "MOST_LOGITS", most_logits)
    net_input, prompts = batch(models["family"])
    scores = expected(models["stock"], net_input, TARGETS, prompts)
    check(score_targets(models[kind], net_input, TARGETS, DICTIONARY, prompts), TARGETS, scores)


@pytest.mark.parametrize("most_logits", [2**25, 250])
@pytest.mark.parametrize(
    "options",
    [
        {"local_attention_radius": 3},
        {"num_kv_heads": 1, "head_dim": 6},
        {"attention_top_k": 2},
        {"ffn_top_k": 5},
        {"adaptive_softmax_cutoff": "10,20"},
        {"decoder_learned_pos": True},
    ],
    ids=lambda it: next(iter(it)),
)
@pytest.mark.parametrize("family", ["transformer", "transformer_lm"])
@pytest.mark.parametrize("kind", ["kv", "el"])
def test_other_models(family, kind, options, most_logits, monkeypatch):
    """As in their forward pass."""
    monkeypatch.setattr(steppers, "MOST_LOGITS", most_logits)
    model = ours(family, **options).eval()
    model.decoder.decode_attention = kind
    net_input, prompts = batch("language_model" if family == "transformer_lm" else family)
    scores = expected(model, net_input, TARGETS, prompts)
    check(score_targets(model, net_input, TARGETS, DICTIONARY, prompts), TARGETS, scores)


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("dtype", [None, INT8])
def test_as_the_search_scores(models, kind, dtype):
    """Hypotheses of beam search, with the numbers in which it decodes."""
    if dtype is not None and kind == "stock":
        pytest.skip("fairseq's modules have no int8")
    model = make_models(models["family"], DICTIONARY)[kind]
    model.make_generation_fast_()
    model.decoder.decode_dtype = dtype
    net_input, prompts = batch(models["family"], (3, 7, 2, 5, 4))
    search = SequenceGenerator([model], DICTIONARY, beam_size=3, max_len_b=8, normalize_scores=False)
    sample = {"net_input": net_input}
    hypotheses = [best for best, *_ in search.generate(None, sample, prompt_tokens=prompts)]
    targets = [each["tokens"] for each in hypotheses]
    scores = [each["positional_scores"] for each in hypotheses]
    check(score_targets(model, net_input, targets, DICTIONARY, prompts), targets, scores, tolerance=1e-4)


@pytest.mark.parametrize("kind", KINDS)
def test_a_long_prompt_beside_a_long_target(kind):
    """Each prompt fits with its own target; the longest prompt does not fit with the longest target."""
    models = make_models("language_model", DICTIONARY, positions=12)
    net_input, prompts = batch("language_model", (9, 2, 0))
    targets = list(map(torch.tensor, make_sources(DICTIONARY, (2, 9, 11), seed=3)))
    scores = expected(models["stock"], net_input, targets, prompts)
    check(score_targets(models[kind], net_input, targets, DICTIONARY, prompts), targets, scores)


@pytest.mark.parametrize("kind", KINDS)
def test_a_batch_leaves_nothing_behind(models, kind):
    """The search that follows finds the same."""
    net_input, prompts = batch(models["family"])
    model = models[kind]

    def search():
        generator = SequenceGenerator([model], DICTIONARY, beam_size=2, max_len_b=8)
        found = generator.generate(None, {"net_input": net_input}, prompt_tokens=prompts)
        return [[hypothesis["tokens"].tolist() for hypothesis in each] for each in found]

    before = search()
    first = score_targets(model, net_input, TARGETS, DICTIONARY, prompts)
    assert search() == before
    second = score_targets(model, net_input, TARGETS, DICTIONARY, prompts)
    assert all(one["score"] == other["score"] for one, other in zip(first, second, strict=True))


@pytest.mark.parametrize("kind", KINDS)
def test_not_a_number(kind):
    models = make_models("language_model", DICTIONARY)
    net_input, prompts = batch("language_model")
    with torch.no_grad():
        models[kind].decoder.layers[1].fc1.bias[0] = float("nan")
    with pytest.raises(UserError, match=r"^decoder.layers.1.fc1.bias of the model is not a number \(NaN\): the check"):
        score_targets(models[kind], net_input, TARGETS, DICTIONARY, prompts)


def test_padding_does_not_matter(models):
    """A target scores the same alone and beside longer ones."""
    net_input, prompts = batch(models["family"])
    together = score_targets(models["kv"], net_input, TARGETS, DICTIONARY, prompts)
    wide = {**net_input}
    if prompts is None:
        wide["src_tokens"] = pad_rows([[PAD, PAD, *row] for row in net_input["src_tokens"].tolist()], PAD)
    for row, target in enumerate(TARGETS):
        alone = {name: tensor[row : row + 1] for name, tensor in wide.items()}
        own = None if prompts is None else prompts[row : row + 1]
        found = score_targets(models["kv"], alone, [target], DICTIONARY, own)
        check(found, [target], [together[row]["positional_scores"]])
