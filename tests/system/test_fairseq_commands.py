"""The commands of fairseq, each in a process of its own, with nothing but --user-dir.

What only makes or varies the input of another command runs in the process of the test."""

import concurrent.futures
import re
import socket

import pytest
import torch

from tests import helpers

PLUGIN = ["--user-dir", helpers.USER_DIR]


def run(command, **options):
    """The result of a command that ends well and warns about nothing."""
    result = helpers.run(command, **options)
    stdout, stderr = result.stdout.decode(), result.stderr.decode()
    assert result.returncode == 0, stderr
    # from torch 2.14 on, as fairseq is imported, before elseq
    told = re.sub(r".*FutureWarning: `torch\.jit\.script` is deprecated.*\n.*\n", "", stderr)
    assert not re.search(r"Warning|Traceback|Error", told), stderr
    return stdout, stderr


def fail(command, **options):
    """The last line on stderr of a command that ends with exit code 1, and without a traceback."""
    result = helpers.run(command, **options)
    stderr = result.stderr.decode()
    assert result.returncode == 1, stderr
    assert "Traceback" not in stderr
    return stderr.splitlines()[-1]


def hypotheses(stdout):
    return {int(number) for number in re.findall(r"^H-(\d+)\t", stdout, re.MULTILINE)}


def on_cpu(command, data, *options):
    return [command, data, "--cpu", "--num-workers=0", *PLUGIN, *options]


@pytest.mark.slow
def test_train_with_bleu_and_go_on(translation_data, tmp_path):
    """Its checkpoints hold numpy arrays; the second training starts in the middle of an epoch."""
    bleu = ["--eval-bleu", "--eval-bleu-args", '{"beam": 2}', "--eval-bleu-remove-bpe", "--validate-interval=1"]
    bleu += ["--best-checkpoint-metric=bleu", "--maximize-best-checkpoint-metric"]
    command = helpers.train_command("transformer", translation_data, tmp_path, *bleu, *PLUGIN, "--log-format=simple")
    helpers.run_here([*command, "--max-update=7"])
    stdout, _ = run([*command, "--max-update=11"])
    assert re.search(r"Loaded checkpoint .*checkpoint_last.pt \(epoch 2 @ 7 updates\)", stdout)
    assert re.search(r"bleu [\d.]+ .*num_updates 11", stdout)


def test_generate_translates_every_sentence(tiny_translation, tiny_bart):
    options = ["--beam=2", "--skip-invalid-size-inputs-valid-test"]
    command = on_cpu("fairseq-generate", tiny_translation.data, *options)
    alone = helpers.run_here([*command, "--path", tiny_translation.checkpoint])
    assert hypotheses(alone.stdout) == set(range(21))
    stdout, _ = run([*command, "--path", f"{tiny_translation.checkpoint}:{tiny_bart.checkpoint}"])
    assert hypotheses(stdout) == set(range(21))


def test_interactive_keeps_empty_lines_and_replaces_unknown_words(tiny_translation):
    command = on_cpu("fairseq-interactive", tiny_translation.data, "--path", tiny_translation.checkpoint, "--beam=2")
    command += ["--print-alignment", "hard", "--replace-unk", "--unkpen=-99", "--max-len-b=5"]
    stdout, _ = run(command, input="w1 w2\n\nw3 größe w5\n".encode())
    assert hypotheses(stdout) == {0, 1, 2}
    assert "<unk>" in re.search(r"^S-2\t.*", stdout, re.MULTILINE)[0]
    assert "<unk>" not in re.search(r"^H-2\t.*", stdout, re.MULTILINE)[0]


def test_bad_input_of_interactive(tiny_translation):
    command = on_cpu("fairseq-interactive", tiny_translation.data, "--path", tiny_translation.checkpoint, "--beam=2")
    sentence = "elseq: error: line 2 of the standard input is not valid UTF-8: convert with iconv"
    assert fail(command, input=b"w1\ngr\xf6\xdfe\n", LC_ALL="C") == sentence
    stderr = helpers.run_here(command, input=b" ".join([b"w1"] * 90), check=False).stderr
    assert stderr.startswith("elseq: error: sentence 0 (w1 w1 w1") and "has 91 tokens" in stderr


def test_generate_from_a_bad_checkpoint(tiny_translation, tmp_path):
    (tmp_path / "model.pt").write_bytes(tiny_translation.checkpoint.read_bytes()[:5000])
    command = on_cpu("fairseq-generate", tiny_translation.data, "--path", tmp_path / "model.pt")
    ended = helpers.run_here(command, check=False)
    assert ended.returncode == 1
    assert ended.stderr.splitlines()[-1] == (
        f"elseq: error: checkpoint {tmp_path / 'model.pt'} is damaged or was cut off: copy or train it again"
    )


def test_validate(tiny_translation):
    command = on_cpu("fairseq-validate", tiny_translation.data, "--max-tokens=500")
    stdout, _ = run([*command, "--path", tiny_translation.checkpoint])
    assert "valid on 'valid' subset | loss" in stdout


@pytest.mark.parametrize("mode", [pytest.param("none", marks=pytest.mark.slow), "eos"])
def test_language_model(raw_text, language_model_data, tmp_path, mode):
    blocks = ["--sample-break-mode", mode, "--tokens-per-sample=32"]
    helpers.train("transformer_lm", language_model_data, tmp_path, "--max-update=3", *blocks)
    path = ["--path", tmp_path / "checkpoint_last.pt"]
    _, stderr = run(on_cpu("fairseq-eval-lm", language_model_data, *path, *blocks))
    tokens = sum(len(line.split()) + 1 for line in (raw_text / "test.lm").read_text().splitlines())
    assert f"Evaluated {tokens} tokens" in stderr
    if mode == "eos":
        command = on_cpu("fairseq-interactive", language_model_data, "--task=language_modeling", *path, "--beam=2")
        stdout, _ = run(command, input=b"w1 w2 w3 =>\n")
        assert hypotheses(stdout) == {0}


def hydra_command(data, *options):
    sizes = ["layers=1", "embed_dim=16", "ffn_embed_dim=32", "attention_heads=2", "input_dim=16", "output_dim=16"]
    model = ["model=transformer_lm", *(f"model.decoder_{size}" for size in sizes)]
    task = ["task=language_modeling", f"task.data={data}", "task.tokens_per_sample=32"]
    schedule = ["criterion=cross_entropy", "optimizer=adam", "lr_scheduler=fixed", "dataset.max_tokens=500"]
    process = [f"common.user_dir={helpers.USER_DIR}", "common.cpu=true", "dataset.num_workers=0"]
    return ["fairseq-hydra-train", *options, *task, *model, *schedule, *process]


@pytest.mark.slow
def test_hydra_jobs_of_one_process(language_model_data, tmp_path):
    """The second job is worse than the first, and yet has a best checkpoint; a training of its own goes on from it."""
    sweep = ["--multirun", f"hydra.sweep.dir={tmp_path}", "optimization.lr=[0.01],[0.00001]"]
    result = helpers.run(
        hydra_command(language_model_data, *sweep, "checkpoint.save_dir=models", "optimization.max_update=2")
    )
    assert result.returncode == 0, result.stderr
    for job in "01":
        assert (tmp_path / job / "models" / "checkpoint_best.pt").exists()
    options = [f"hydra.run.dir={tmp_path}", f"checkpoint.save_dir={tmp_path / '1' / 'models'}"]
    result = helpers.run(
        hydra_command(language_model_data, *options, "optimization.lr=[0.01]", "optimization.max_update=3")
    )
    assert b"@ 2 updates)" in result.stdout, result.stderr


def test_hydra_refuses_in_one_sentence(language_model_data, tmp_path):
    options = [f"hydra.run.dir={tmp_path}", "optimization.lr=[0.01]", "checkpoint.restore_file=nothing.pt"]
    sentence = fail(hydra_command(language_model_data, *options))
    assert sentence == "elseq: error: --restore-file nothing.pt does not exist: check the path, or leave the option out"


def train_together(data, folder, updates, *options):
    """By two processes; returns what each of them says."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    shared = ["--distributed-world-size=2", f"--distributed-init-method=tcp://127.0.0.1:{port}"]
    shared += ["--distributed-no-spawn", "--device-id=0", "--distributed-backend=gloo", "--ddp-backend=legacy_ddp"]
    command = helpers.train_command("transformer", data, folder, *PLUGIN, *shared, *options)
    commands = [[*command, f"--max-update={updates}", f"--distributed-rank={rank}"] for rank in (0, 1)]
    with concurrent.futures.ThreadPoolExecutor() as pool:
        return [stdout for stdout, _ in pool.map(run, commands)]


@pytest.mark.slow
def test_two_processes_go_on_together(translation_data, tmp_path):
    train_together(translation_data, tmp_path, 2)
    first, _ = train_together(translation_data, tmp_path, 4)
    assert "@ 2 updates)" in first


@pytest.mark.slow
def test_two_processes_train_in_windows_as_one(translation_data, tmp_path):
    """Through random windows of each source: as one process with the batches of both, also when they go on."""
    options = ["--task=elseq_translation", "--source-window=6", "--source-window-overlap=2", "--train-windows=1"]
    options += ["--dropout=0", "--max-tokens=200"]
    train_together(translation_data, tmp_path / "two", 2, *options)
    train_together(translation_data, tmp_path / "two", 6, *options)
    one = helpers.train(
        "transformer", translation_data, tmp_path / "one", *options, "--update-freq=2", "--max-update=6"
    )
    found = torch.load(tmp_path / "two" / "checkpoint_last.pt", weights_only=False)["model"]
    expected = torch.load(one, weights_only=False)["model"]
    for name, parameter in expected.items():
        torch.testing.assert_close(found[name], parameter, rtol=0, atol=1e-6, msg=name)
