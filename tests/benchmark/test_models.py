"""Models that are measured, against fairseq's own building and forward pass."""

from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
from fairseq import checkpoint_utils
from fairseq.data import Dictionary
from fairseq.models.transformer import TransformerModel

from elseq.benchmark.models import load, random_model
from elseq.errors import UserError
from elseq.models.transformer import ElseqTransformerModel

OPTIONS = [f"--{side}-{name}" for side in ("encoder", "decoder") for name in ("layers=1", "embed-dim=16")]
OPTIONS += [f"--{side}-{name}" for side in ("encoder", "decoder") for name in ("ffn-embed-dim=16", "attention-heads=2")]
OPTIONS += ["--max-source-positions=30", "--max-target-positions=20"]


@pytest.fixture(scope="module")
def model_file(tmp_path_factory):
    return random_model("transformer", 50, OPTIONS, tmp_path_factory.mktemp("random"))


def test_what_is_known_of_it(model_file):
    assert (model_file.name, model_file.is_language_model, model_file.special_positions) == ("transformer", False, 1)
    assert (model_file.source_positions, model_file.target_positions) == (30, 20)
    assert len(Path(model_file.dictionary).read_text().splitlines()) == 50 - 4


def test_the_same_arguments_give_the_same_weights(model_file, tmp_path):
    again = random_model("transformer", 50, OPTIONS, tmp_path)
    first, second = (torch.load(each.path, weights_only=False)["model"] for each in (model_file, again))
    assert first.keys() == second.keys()
    assert all(torch.equal(first[name], second[name]) for name in first)


def test_every_mode_computes_what_fairseq_loads(model_file):
    """And training leaves it in train mode."""
    state = checkpoint_utils.load_checkpoint_to_cpu(model_file.path)
    dictionary = Dictionary.load(model_file.dictionary)
    expected = TransformerModel.build_model(
        state["cfg"].model, SimpleNamespace(source_dictionary=dictionary, target_dictionary=dictionary)
    )
    expected.load_state_dict(state["model"])
    tokens = torch.tensor([[5, 6, 7, 2]])
    with torch.no_grad():
        logits = expected.eval()(tokens, torch.tensor([4]), tokens)[0]
        for mode, kind in (("stock", TransformerModel), ("kv", ElseqTransformerModel), ("el", ElseqTransformerModel)):
            model, _ = load(model_file, mode)
            assert type(model) is kind and not model.training
            torch.testing.assert_close(model(tokens, torch.tensor([4]), tokens)[0], logits)
    assert load(model_file, "kv", for_training=True)[0].training


def test_language_model(tmp_path):
    options = ["--decoder-layers=1", "--decoder-embed-dim=16", "--decoder-input-dim=16", "--decoder-output-dim=16"]
    options += ["--decoder-attention-heads=2", "--tokens-per-sample=40"]
    found = random_model("transformer_lm", 50, options, tmp_path)
    assert found.is_language_model
    assert (found.special_positions, found.source_positions, found.target_positions) == (1, 0, 40)


def test_bart_has_two_special_positions(tmp_path):
    assert random_model("bart_base", 50, OPTIONS, tmp_path).special_positions == 2


@pytest.mark.parametrize(
    ("arch", "size", "sentence"),
    [
        ("transformers", 50, "^arch transformers is unknown; give an architecture"),
        ("transformer", 4, "^vocabulary_size 4 is too small; give at least 5$"),
    ],
)
def test_bad_arguments(tmp_path, arch, size, sentence):
    with pytest.raises(UserError, match=sentence):
        random_model(arch, size, [], tmp_path)
