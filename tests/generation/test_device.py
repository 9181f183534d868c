"""The search on a GPU, against the search on the CPU."""

import copy

import pytest
import torch
from fairseq import utils

from elseq.attention.methods import EL, KV, Choice
from elseq.generation import SequenceGenerator, captured_steps, cuda_graphs
from elseq.generation.cuda_graphs import CapturedWork, free_memory_bytes
from elseq.generation.kept_steps import KeptSteps
from elseq.generation.planner import Workload, decoding_state_bytes
from tests.tiny_models import assert_same_hypotheses, make_dictionary, make_models, make_sample, make_sources

pytestmark = pytest.mark.gpu
DICTIONARY = make_dictionary(20)
DEVICE = "cuda"
SEARCHES = {
    "greedy": {"beam_size": 1},
    "beam": {"beam_size": 4, "max_len_b": 12},
    "n-gram blocking": {"beam_size": 4, "max_len_b": 12, "no_repeat_ngram_size": 2},
    "lengths": {"beam_size": 3, "max_len_b": 9, "min_len": 5, "len_penalty": 2.0},
    "limits of each sentence": {"beam_size": 3, "max_len_a": 0.8, "max_len_b": 1},
}


def generate(model, sample, device, **options):
    model = copy.deepcopy(model).to(device)
    sample = utils.apply_to_sample(lambda tensor: tensor.to(device), sample)
    return to_cpu(SequenceGenerator([model], DICTIONARY, **options).generate([model], sample))


def to_cpu(found):
    return [
        [{name: value.cpu() for name, value in hypothesis.items() if torch.is_tensor(value)} for hypothesis in sentence]
        for sentence in found
    ]


@pytest.mark.parametrize("family", ["transformer", "bart", "language_model"])
@pytest.mark.parametrize("method", ["kv", "el"])
@pytest.mark.parametrize("search", SEARCHES.values(), ids=SEARCHES)
def test_hypotheses_are_those_of_the_cpu(family, method, search):
    model = make_models(family, DICTIONARY)[method]
    sample = make_sample(DICTIONARY, make_sources(DICTIONARY, (3, 7, 1, 5)), left=family != "language_model")
    assert_same_hypotheses(generate(model, sample, DEVICE, **search), generate(model, sample, "cpu", **search))


def test_captured_graphs_share_their_memory(monkeypatch, caplog):
    """However many there are: of several rooms in a batch, of batches, of the members of an ensemble."""
    captured = []
    capture = cuda_graphs.capture
    monkeypatch.setattr(cuda_graphs, "capture", lambda *args: captured.append(capture(*args)) or captured[-1])
    monkeypatch.setattr(captured_steps, "ROOM", 4)
    monkeypatch.setattr(captured_steps, "CHEAP", 0)
    models = [make_models("bart", DICTIONARY, seed)["el"].to(DEVICE) for seed in (1, 2)]
    sample = make_sample(DICTIONARY, make_sources(DICTIONARY, (3, 7, 1, 5)))
    sample = utils.apply_to_sample(lambda tensor: tensor.to(DEVICE), sample)
    generator = SequenceGenerator(models, DICTIONARY, beam_size=4, max_len_b=30, min_len=20)
    reserved = []
    for _ in range(40):
        generator.generate(models, sample)
        reserved.append(torch.cuda.memory_reserved())
        captured[:] = map(type, captured)  # the graphs themselves would keep their memory
    assert captured.count(torch.cuda.CUDAGraph) == len(captured) > 40 * 2 * 3
    assert reserved[-1] == reserved[4]
    assert "captured" not in caplog.text


@pytest.mark.parametrize("family", ["transformer", "bart", "language_model"])
@pytest.mark.parametrize("method", ["kv", "el"])
@pytest.mark.parametrize("beam", [1, 4])
def test_graphs_are_kept(family, method, beam, caplog):
    """For batches of like size, from which they are right; for another size, and other parameters, there are others."""
    model = make_models(family, DICTIONARY)[method]
    on_gpu = copy.deepcopy(model).to(DEVICE)
    options = {"beam_size": beam, "max_len_b": 14}
    generator = SequenceGenerator([on_gpu], DICTIONARY, **options)
    captures = []
    batches = [(3, 7, 1, 5, 2), (6, 2, 6, 6, 1), (4,) * 8, (9, 3, 12, 8, 1), (2, 14, 4, 4, 4), (2, 3, 7, 4, 1)]
    for seed, lengths in enumerate(batches):
        sample = make_sample(DICTIONARY, make_sources(DICTIONARY, lengths, seed), left=family != "language_model")
        before = CapturedWork.captures
        on_device = utils.apply_to_sample(lambda tensor: tensor.to(DEVICE), sample)
        assert_same_hypotheses(
            to_cpu(generator.generate([on_gpu], on_device)), generate(model, sample, "cpu", **options)
        )
        captures.append(CapturedWork.captures - before)
    assert captures == ([1, 0, 0, 0, 0, 0] if family == "language_model" else [1, 0, 0, 1, 0, 0])
    assert KeptSteps.is_possible and "captured" not in caplog.text
    assert cuda_graphs.held_bytes() > 0
    with torch.no_grad():
        for each in (model, on_gpu):
            each.decoder.layers[0].fc1.weight = torch.nn.Parameter(each.decoder.layers[0].fc1.weight * 2)
    assert_same_hypotheses(to_cpu(generator.generate([on_gpu], on_device)), generate(model, sample, "cpu", **options))
    del generator
    assert not cuda_graphs.held_bytes()


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
@pytest.mark.parametrize("method", ["kv", "el"])
def test_half_precision(method, dtype):
    model = make_models("bart", DICTIONARY)[method]
    sample = make_sample(DICTIONARY, make_sources(DICTIONARY, (3, 7, 1, 5)))
    found = generate(model.to(dtype), sample, DEVICE, **SEARCHES["beam"])
    assert all(torch.isfinite(sentence[0]["score"]) for sentence in found)


@pytest.mark.parametrize("method", [KV, EL], ids=lambda method: method.name)
@torch.no_grad()
def test_the_planner_the_state_and_the_allocator_agree(method):
    """The allocator rounds each tensor up to 512 bytes, and the block of a state's keys and values is one tensor."""
    model = make_models("bart", DICTIONARY)["kv"].to(DEVICE)
    sentences, beam, steps = 64, 4, 16
    sample = make_sample(DICTIONARY, make_sources(DICTIONARY, [30] * sentences))
    net_input = {name: tensor.to(DEVICE) for name, tensor in sample["net_input"].items()}
    encoder_out = model.encoder.forward_torchscript(net_input)
    tokens = torch.full((sentences * beam, 1), DICTIONARY.eos(), device=DEVICE)
    model.decoder.decode(tokens, model.decoder.new_state(encoder_out, method))  # what is allocated once for all
    before = torch.cuda.memory_allocated()
    state = model.decoder.new_state(encoder_out, method)
    for _ in range(steps):
        model.decoder.decode(tokens, state)
    allocated = torch.cuda.memory_allocated() - before
    workload = Workload(sentences, beam, net_input["src_tokens"].size(1), steps)
    planned = decoding_state_bytes(model.decoder, workload, Choice(method, method))
    assert state.size_bytes() == planned
    tensors = 2 * 2 * len(state.layers) + 1
    assert planned <= allocated <= planned + 512 * tensors


def test_free_memory_grows_by_what_the_allocator_holds_unused():
    held = torch.empty(2**28, dtype=torch.uint8, device=DEVICE)
    before = free_memory_bytes(held.device)
    device = held.device
    del held
    assert free_memory_bytes(device) - before >= 2**28
