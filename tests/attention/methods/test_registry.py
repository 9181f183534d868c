"""A decoding method in a plugin: offered, planned, decoded and measured, with no file of elseq changed."""

import json
import sys

import pytest
import torch

import elseq
from elseq.attention import methods
from elseq.attention.methods import EL, KV, METHODS, Choice
from elseq.cli import benchmark
from elseq.errors import UserError
from tests import helpers


def lines(trained):
    return (trained.raw / "test.src").read_text().splitlines()


def test_from_python(plugin, tiny_translation):
    texts = lines(tiny_translation)
    expected = elseq.load(tiny_translation.checkpoint, attention="el").generate(texts, beam=3, progress=False)
    model = elseq.load(tiny_translation.checkpoint, attention="reprojected", user_dir=plugin)
    assert model.model.decoder.decode_attention == "reprojected"
    assert model.generate(texts, beam=3, progress=False) == expected
    # planned as what it keeps: hidden states
    assert model.generate(texts, beam=3, progress=False, memory_budget="1M") == expected
    with pytest.raises(UserError, match="alone needs about"):
        model.generate(texts, memory_budget=1000, progress=False)


@pytest.mark.slow
def test_commands(plugin, tiny_translation, tmp_path):
    command = ["fairseq-generate", tiny_translation.data, "--path", tiny_translation.checkpoint, "--beam=3", "--cpu"]
    user_dirs = f"--user-dir={helpers.USER_DIR}:{plugin}"
    found = [
        helpers.run_here([*command, user_dirs, "--task=elseq_translation", f"--decode-attention={name}"]).stdout
        for name in ("kv", "reprojected")
    ]
    words = [[line.split("\t")[2] for line in text.splitlines() if line.startswith("H-")] for text in found]
    assert words[0] == words[1] and len(words[0]) == 21


def test_text_files(plugin, tiny_translation, tmp_path):
    for name in ("reprojected", "kv"):
        files = ["--input", tiny_translation.raw / "test.src", "--output", tmp_path / f"{name}.txt"]
        model = [
            "--model",
            tiny_translation.checkpoint,
            "--attention",
            name,
            "--user-dir",
            plugin,
        ]  # in any order
        helpers.run_here(["elseq-generate", *model, *files])
    assert (tmp_path / "kv.txt").read_text() == (tmp_path / "reprojected.txt").read_text()


@pytest.mark.slow
def test_benchmark(plugin, tiny_translation, tmp_path, monkeypatch):
    arguments = [str(tiny_translation.checkpoint), f"--data={tiny_translation.data}", "--modes=reprojected"]
    arguments += [
        f"--user-dir={plugin}",
        "--source-length=5",
        "--batch-sizes=2",
        "--beams=2",
        "--output-length=6",
    ]
    arguments += ["--repeats=1", "--threads=1", f"--output={tmp_path / 'results'}"]
    monkeypatch.setattr(sys, "argv", ["elseq-benchmark", *arguments])
    benchmark.main()
    stock, own = json.loads((tmp_path / "results" / "results.json").read_text())["rows"]
    assert own["mode"] == own["method"] == "reprojected"
    assert own["in_turns"] == 2
    assert own["identical_share"] == 1.0
    assert own["gigaflops_per_second"] > 0
    # hidden states: those of the source once, those of each hypothesis in both layers
    assert own["state_bytes"] == 4 * 32 * (2 * 5 + 2 * 4 * 8)


def test_a_name_is_taken_once():
    with pytest.raises(ValueError, match="'kv' is registered already"):
        methods.register(METHODS["kv"])


def test_what_a_decoder_can_be_told():
    assert methods.names() == ("auto", "kv", "el")
    for method in METHODS.values():
        assert f"{method.help} ({method.name})" in methods.describe()


@pytest.mark.parametrize(
    ("choice", "name"), [(Choice(KV, KV), "kv"), (Choice(EL, EL), "el"), (Choice(KV, EL), "kv+el")]
)
def test_names_of_choices(choice, name):
    assert choice.name == name and Choice.named(name) == choice


def test_first_positions_are_attended_to_as_a_whole():
    """Both methods read a prompt as training does."""
    torch.manual_seed(1)
    layer = elseq.attention.Attention(16, 4, self_attention=True).double().eval()
    text = torch.randn(5, 2, 16, dtype=torch.float64)
    expected, _ = layer(text, causal=True, need_weights=False)
    for method in METHODS.values():
        memory = elseq.attention.SelfAttentionMemory(method)
        found, _ = layer(text, need_weights=False, memory=memory)
        torch.testing.assert_close(found, expected, rtol=0, atol=1e-12)
