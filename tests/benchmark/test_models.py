"""Models that are measured, against fairseq's own building and forward pass."""

import shutil
from contextlib import ExitStack
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
from fairseq import checkpoint_utils
from fairseq.data import Dictionary
from fairseq.models.bart import BARTModel
from fairseq.models.multilingual_transformer import MultilingualTransformerModel
from fairseq.models.transformer import TransformerModel

from elseq.benchmark.arguments import parse
from elseq.benchmark.command import make_grid
from elseq.benchmark.models import checkpoint_model, load, random_model
from elseq.errors import UserError
from elseq.models import Decoder, ElseqBARTModel, ElseqTransformerModel

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


@pytest.mark.parametrize("name", ["dict.txt", "random.pt"])
def test_a_full_folder(tmp_path, name):
    (tmp_path / name).symlink_to("/dev/full")
    with pytest.raises(UserError, match=f"cannot be written to {tmp_path} .No space left on device.: set TMPDIR to"):
        random_model("transformer", 50, OPTIONS, tmp_path)


def test_a_folder_is_its_checkpoint(model_file, tmp_path):
    """The first of the names that a folder may have."""
    for name in ("dict.txt", "random.pt"):
        shutil.copy(Path(model_file.data) / name, tmp_path)
    (tmp_path / "random.pt").rename(tmp_path / "checkpoint_last.pt")
    assert checkpoint_model(tmp_path, None).name == "checkpoint_last.pt"
    shutil.copy(tmp_path / "checkpoint_last.pt", tmp_path / "model.pt")
    found = checkpoint_model(tmp_path, None)
    assert (found.name, found.path) == ("model.pt", str(tmp_path / "model.pt"))
    load(found, "kv")


@pytest.mark.parametrize(
    ("name", "stock"),
    [
        ("m2m", TransformerModel),
        ("mbart25", BARTModel),
        pytest.param("apart", MultilingualTransformerModel, marks=pytest.mark.slow),
    ],
)
def test_several_languages(family, name, stock):
    model = family(name)
    found = checkpoint_model(model.checkpoint, model.data, source_lang="aa", target_lang="bb")
    assert found.name == "checkpoint_last.pt (aa-bb)"
    added = {"m2m": 1, "mbart25": 1, "apart": 0}[name]  # beside </s>; apart has a symbol in the place of the target's
    assert found.special_positions == 1 + added
    assert len(found.symbols_of_language) == added
    for mode in ("stock", "kv"):
        loaded, task = load(found, mode)
        assert isinstance(loaded, stock if mode == "stock" else (ElseqTransformerModel, ElseqBARTModel))
        assert isinstance(loaded.decoder, Decoder) == (mode == "kv")
        assert task.languages_of_texts == ("aa", "bb")
    with pytest.raises(UserError, match="^target_lang dd is not a language of the model: give one of aa, bb, cc$"):
        checkpoint_model(model.checkpoint, model.data, source_lang="aa", target_lang="dd")
    command = [str(model.checkpoint), f"--data={model.data}", "--source-lang=aa", "--target-lang=bb"]
    with ExitStack() as stack:
        assert make_grid(parse([*command, "--source-length=5"])[0], stack).model_file == found
        with pytest.raises(UserError, match="^--target-lang dd is not a language of the model: give one of aa, bb"):
            make_grid(parse([*command, "--target-lang=dd"])[0], stack)
