"""The options of elseq-benchmark as settings; values that cannot be used are in tests/cli/test_benchmark.py."""

import argparse
from pathlib import Path

import pytest
import torch

from elseq.attention import methods
from elseq.benchmark.arguments import Settings, add_run_options, check_int8, device, modes, parse
from elseq.errors import UserError
from elseq.options import INT8


def test_defaults():
    settings, folder = parse(["model.pt"])
    assert (settings, folder) == (Settings("model.pt"), Path("benchmark_output"))
    assert settings.modes == ["stock", "kv", "el", "auto", "ctranslate2", "huggingface"]
    assert (settings.batch_sizes, settings.beams, settings.dtype) == ([8], [4], ["float32"])


def test_what_stands_after_two_dashes_is_the_model_s():
    arguments = ["--arch=bart_base", "--random-weights", "--beams=1,4", "--no-stock", "--interleave"]
    settings, _ = parse([*arguments, "--", "--encoder-layers", "2", "--beams=3"])
    assert settings.model_options == ["--encoder-layers", "2", "--beams=3"]
    assert (settings.beams, settings.stock, settings.interleave, settings.random_weights) == ([1, 4], False, True, True)


def test_methods_of_plugins_are_modes(monkeypatch):
    monkeypatch.setitem(methods.METHODS, "reprojected", methods.METHODS["kv"])
    assert "reprojected" in modes()
    assert parse(["model.pt", "--modes=reprojected"])[0].modes == ["reprojected"]


@pytest.mark.parametrize(
    ("text", "sentence"),
    [
        ("tpu7", "^tpu7 is unknown; choose cpu or cuda$"),
        ("meta", "^meta is not supported; choose cpu or cuda$"),
        ("cuda:2", "^cuda:2 is not there; this machine has 2 CUDA devices$"),
    ],
)
def test_devices(monkeypatch, text, sentence):
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 2)
    assert [device(each) for each in ("cpu", "cpu:0", "cuda", "cuda:1")] == ["cpu", "cpu", "cuda", "cuda:1"]
    with pytest.raises(UserError, match=sentence):
        device(text)


def test_int8_is_for_a_cpu():
    check_int8(["float32", INT8], "cpu")
    check_int8(["float16"], "cuda")
    with pytest.raises(UserError, match="^dtype int8 is for a CPU: on a GPU give float16 or bfloat16$"):
        check_int8(["float16", INT8], "cuda:1", lambda name: name)


def test_options_of_a_paper(capsys):
    parser = argparse.ArgumentParser()
    add_run_options(parser)
    args = parser.parse_args([])
    assert vars(args) == {
        "repeats": 3, "device": "cpu", "threads": None, "dtype": "float32", "output": Path("benchmark_output")
    }  # fmt: skip
    with pytest.raises(SystemExit):
        parser.parse_args(["--dtype=int8"])
    assert "invalid choice: 'int8'" in capsys.readouterr().err
