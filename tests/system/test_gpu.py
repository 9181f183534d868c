"""The commands on a GPU, against themselves on the CPU."""

import json

import pytest
import torch

import elseq
from tests import helpers

pytestmark = pytest.mark.gpu
SEARCH = {"beam": 4, "max_len_b": 20, "lenpen": 1.5}
OPTIONS = [f"--{name.replace('_', '-')}={value}" for name, value in SEARCH.items()]


@pytest.fixture(params=["translation", "bart", "language_model", "multi_query"])
def trained(request):
    return request.getfixturevalue(f"tiny_{request.param}")


def test_load(trained):
    lines = (trained.raw / "test.src").read_text().splitlines()
    expected = elseq.load(trained.checkpoint, data=trained.data, device="cpu").generate(lines, **SEARCH)
    for attention in ("auto", "kv", "el"):
        model = elseq.load(trained.checkpoint, data=trained.data, attention=attention)
        assert next(model.model.parameters()).is_cuda
        assert model.generate(lines, **SEARCH) == expected


def generate(trained, output, *options):
    files = ["--input", trained.raw / "test.src", "--output", output]
    command = ["elseq-generate", "--model", trained.checkpoint, "--data", trained.data, *files, *OPTIONS, *options]
    helpers.run_here(command)
    return output.read_text()


def test_elseq_generate(trained, tmp_path):
    expected = generate(trained, tmp_path / "cpu", "--device=cpu")
    assert generate(trained, tmp_path / "gpu") == expected
    assert generate(trained, tmp_path / "el", "--attention=el", "--max-tokens=50") == expected
    assert generate(trained, tmp_path / "budget", "--memory-budget=4M") == expected
    for dtype in ("float16", "bfloat16"):
        assert generate(trained, tmp_path / dtype, f"--dtype={dtype}").count("\n") == expected.count("\n")


def test_a_batch_that_runs_out_of_memory_is_split(tiny_translation, tmp_path, caplog):
    source = tmp_path / "many.txt"
    source.write_text((tiny_translation.raw / "train.src").read_text() * 20)
    outputs = []
    for name, share in (("whole", 1.0), ("split", 0.002)):
        torch.cuda.empty_cache()
        torch.cuda.set_per_process_memory_fraction(share)
        try:
            output = tmp_path / name
            files = ["--model", tiny_translation.checkpoint, "--data", tiny_translation.data, "--input", source]
            command = ["elseq-generate", *files, "--output", output, *OPTIONS, "--max-tokens=100000"]
            log = helpers.run_here(command)
        finally:
            torch.cuda.set_per_process_memory_fraction(1.0)
        outputs.append(output.read_text())
    assert "out of memory with" in log.stdout + log.stderr + caplog.text
    assert outputs[0] == outputs[1]


@pytest.mark.parametrize("attention", ["kv", "el", "stock"])
def test_fairseq_generate(tiny_translation, attention):
    command = ["fairseq-generate", tiny_translation.data, "--path", tiny_translation.checkpoint, "--beam=4"]
    command += ["--user-dir", helpers.USER_DIR, "--task=elseq_translation", f"--decode-attention={attention}"]
    command += ["--num-workers=0"]

    def hypotheses(*options):
        lines = helpers.run_here([*command, *options]).stdout.splitlines()
        return sorted(line.split("\t")[2] for line in lines if line.startswith("H-"))

    expected = hypotheses("--cpu")
    assert hypotheses() == expected
    assert len(hypotheses("--fp16")) == len(expected)


@pytest.mark.parametrize("options", [["--fp16"], ["--amp"], []], ids=" ".join)
@pytest.mark.parametrize("arch", ["el_transformer", "mq_transformer", "topk_transformer"])
def test_training(translation_data, tmp_path, arch, options):
    command = helpers.train_command(arch, translation_data, tmp_path, "--user-dir", helpers.USER_DIR, *options)
    command.remove("--cpu")
    small = ["--attention-top-k=4", "--ffn-top-k=16"] if arch == "topk_transformer" else []
    log = helpers.run_here([*command, *small, "--max-update=60", "--log-format=json", "--validate-interval=1"]).stdout
    losses = [
        float(json.loads(line[line.index("{") :])["valid_loss"]) for line in log.splitlines() if "valid_loss" in line
    ]
    assert losses[-1] < losses[0] < 20


def test_benchmark(tiny_translation, tmp_path):
    text = tiny_translation.raw / "test.src"
    command = ["elseq-benchmark", tiny_translation.checkpoint, "--data", tiny_translation.data, "--source", text]
    helpers.run_here([*command, "--modes=kv,el", "--device=cuda", "--repeats=1", "--output", tmp_path])
    rows = json.loads((tmp_path / "results.json").read_text())["rows"]
    assert [row["mode"] for row in rows] == ["stock", "kv", "el"]
    assert all(row["identical"] == row["sentences"] for row in rows[1:])
    assert all(row["peak_mebibytes"] > 0 for row in rows)
