"""Sweeps of elseq-benchmark. What the jobs measure is made up, but for one real sweep."""

import json
import re

import pytest
from fairseq.models import ARCH_CONFIG_REGISTRY
from hydra import compose, initialize_config_dir
from hydra.core.global_hydra import GlobalHydra

from elseq.benchmark import command, runs
from elseq.benchmark.arguments import parse
from elseq.benchmark.measure import Measurement
from elseq.benchmark.models import _configuration
from elseq.sweeps import gather
from elseq.sweeps.benchmark import read_settings
from tests import helpers
from tests.sweeps.conftest import ROOT

SMALL = "model=small threads=1"
TINY = "model.encoder_embed_dim=32 vocabulary_size=50 source_length=9 output_length=6 repeats=1"
SECONDS = {"stock": 2.0, "kv": 1.0, "el": 4.0, "reprojected": 0.5}


@pytest.fixture(scope="module")
def random_model(tmp_path_factory):
    """A model for all jobs of these tests: what makes one takes longer than all else."""
    return command.random_model("transformer", 50, [], tmp_path_factory.mktemp("random"))


@pytest.fixture
def requests(monkeypatch, random_model):
    """What the jobs ask to be measured; el finds other words for the last source, and auto has no memory for it."""
    asked = []
    monkeypatch.setattr(command, "random_model", lambda *_: random_model)

    def measured(request):
        asked.append(request)
        if request["mode"] == "auto":
            return Measurement(failure="out of memory")
        hypotheses = [[[7, 8, 9]] for _ in request["sources"]]
        if request["mode"] == "el":
            hypotheses[-1] = [[7, 8]]
        return Measurement(seconds=[SECONDS[request["mode"]]], hypotheses=hypotheses, peak_mebibytes=100.0)

    monkeypatch.setattr(runs, "in_turns", lambda program, requests, folder, interleave: map(measured, requests))
    return asked


def benchmark(line, check=True):
    return helpers.run_here(["elseq-benchmark", *SMALL.split(), *line.split()], check=check)


def read_rows(folder):
    return json.loads((folder / "results.json").read_text())["rows"]


def test_sweep(requests, tmp_path):
    ended = benchmark(f"-m decode=stock,el batch=2,4 beam=3 hydra.sweep.dir={tmp_path}")
    assert [(request["mode"], len(request["sources"])) for request in requests] == [
        (mode, batch) for mode in ("stock", "el") for batch in (2, 4)
    ]
    rows = {(row["mode"], row["batch_size"]): row for row in read_rows(tmp_path)}
    assert len(rows) == 4
    for (mode, batch), row in rows.items():
        assert row["samples_per_second"] == batch / SECONDS[mode]
        assert row["ratio_to_stock"] == SECONDS["stock"] / SECONDS[mode]
        assert (row["beam"], row["identical"]) == (3, batch - 1 if mode == "el" else batch)
        assert row["settings"] == {}
    table = (tmp_path / "table.md").read_text()
    assert table in ended.stdout
    assert table.startswith(
        "small, random weights; source 512, output 1 to 200, length penalty 1; cpu, 1 thread, float32; torch "
    )
    assert "| el | 4 | 3 | 1.00 | 2.75 | 0.50 | 3 | 4 | 100 |" in re.sub(" +", " ", table)
    assert (tmp_path / "plot.png").read_bytes().startswith(b"\x89PNG")
    assert "stock, batch 2, beam 3: 1 samples/s" in ended.stderr
    # each job is whole without the others
    (row,) = read_rows(tmp_path / "2-el")
    assert "ratio_to_stock" not in row


def test_a_method_of_a_plugin(requests, plugin, tmp_path):
    benchmark(f"-m user_dir={plugin} decode.mode=stock,reprojected batch=2 hydra.sweep.dir={tmp_path}")
    assert [request["model_file"]["user_dir"] for request in requests] == [str(plugin)] * 2
    stock, own = read_rows(tmp_path)
    assert (own["mode"], own["ratio_to_stock"], own["settings"]) == ("reprojected", 4.0, {})
    assert (tmp_path / "1-reprojected" / "results.json").exists()


def test_a_job_that_fails_is_a_row(requests, tmp_path):
    ended = benchmark(f"-m decode=kv,auto batch=2,many hydra.sweep.dir={tmp_path}")
    measured, wrong, *others = read_rows(tmp_path)
    assert measured["samples_per_second"] == 2
    assert "ratio_to_stock" not in measured
    assert wrong["failure"] == "batch 'many' is not a whole number above 0"
    assert [row["failure"] for row in others] == ["out of memory", wrong["failure"]]
    lines = "- kv, batch many: batch 'many' is not a whole number above 0.\n- auto, batch 2, beam 4: out of memory.\n"
    assert f"\n{lines}" in ended.stdout
    assert "x stock" not in ended.stdout


@pytest.mark.few_cases(6)
@pytest.mark.parametrize(
    ("line", "sentence"),
    [
        ("decode=auto batch=2", "auto, batch 2, beam 4: out of memory."),
        ("batch=8.5", "auto, batch 8.5: batch '8.5' is not a whole number above 0."),
        ("batch=[2,4]", "auto, batch [2, 4]: batch '[2' is not a whole number above 0."),
        (
            "batch='2,4' decode=kv",
            "kv, batch 2,4: batch, beam and dtype are one value each; several with commas between",
        ),
        ("lenpen=much", "auto, batch 8: lenpen much is not possible: give a number."),
        ("dtype=int4", "auto, batch 8, int4: dtype 'int4' is unknown; choose from float32, bfloat16, float16, int8."),
        ("dtype=int8 decode=stock", "stock, batch 8, int8: fairseq has no int8; the int8 of others is compared with"),
        ("dtype='float32,int8'", "auto, batch 8, float32,int8: batch, beam and dtype are one value each; several "),
        ("batch=0", "auto, batch 0: batch '0' is not a whole number above 0."),
        ("beam=0", "auto, batch 8, beam 0: beam '0' is not a whole number above 0."),
        ("source_length=1", "auto, batch 8: source_length 1 leaves no room for a word; give at least 2."),
        ("device=tpu7", "auto, batch 8: device tpu7 is unknown; choose cpu or cuda."),
        ("decode.mode=fast", "fast, batch 8: decode 'fast' is unknown; choose from stock, "),
        ("user_dir=nowhere", "auto, batch 8: user_dir nowhere does not exist: give the folder of a plugin."),
        ("min_len=9 max_len_b=3", "auto, batch 8: min_len 9 is more than max_len_b 3; lower it."),
        ("checkpoint=x.pt", "auto, batch 8: give either model=NAME, one of hydra_conf/model, or checkpoint=FILE."),
        ("model=null", "a group of settings cannot be null: leave it out"),
        ("batch=${none}", "auto, batch ${none}: InterpolationKeyError: Interpolation key 'none' not found."),
    ],
)
def test_nothing_is_measured(requests, tmp_path, line, sentence):
    ended = benchmark(f"{line} hydra.run.dir={tmp_path}", check=False)
    assert ended.returncode == 1
    (line,) = [line for line in ended.stderr.splitlines() if line.startswith("elseq: error")]
    assert line.startswith(f"elseq: error: {sentence}")


def test_the_folder_of_dictionaries_is_called_as_the_setting(tiny_translation, tmp_path):
    line = f"model=null checkpoint={tiny_translation.checkpoint} task.data={tmp_path} hydra.run.dir={tmp_path / 'run'}"
    ended = helpers.run_here(["elseq-benchmark", *line.replace("model=null", "~model").split()], check=False)
    assert ended.returncode == 1
    sentence = f"task.data {tmp_path} holds no dictionary (dict*.txt); name another folder"
    assert sentence in ended.stderr.splitlines()[-1]


def test_other_settings_are_columns(requests, tmp_path):
    line = f"-m decode=stock,kv batch=2 dtype=float32,bfloat16 hydra.sweep.dir={tmp_path}"
    ended = benchmark(line)
    assert "| mode | batch | beam | dtype | samples/s |" in re.sub(" +", " ", ended.stdout)
    rows = read_rows(tmp_path)
    assert {row["ratio_to_stock"] for row in rows if row["mode"] == "kv"} == {2.0}
    assert [(row["dtype"], row["settings"]) for row in rows] == [("float32", {}), ("bfloat16", {})] * 2
    assert (
        "\nsmall, random weights; source 512, output 1 to 200, length penalty 1; cpu, 1 thread; torch "
        in f"\n{ended.stdout}"
    )


def test_int8_is_compared_with_stock_in_float32(requests, tmp_path):
    ended = benchmark(f"-m decode=stock,kv batch=2 dtype=float32,int8 hydra.sweep.dir={tmp_path}")
    stock, refused, kv, int8 = read_rows(tmp_path)
    assert (stock["mode"], kv["dtype"], int8["dtype"]) == ("stock", "float32", "int8")
    assert [row["ratio_to_stock"] for row in (stock, kv, int8)] == [1.0, 2.0, 2.0]
    assert refused["failure"].startswith("fairseq has no int8")
    assert "| kv | 2 | 4 | int8 |" in re.sub(" +", " ", ended.stdout)


def test_one_run(requests, tmp_path):
    ended = benchmark(f"decode=kv batch=4 hydra.run.dir={tmp_path}")
    (row,) = read_rows(tmp_path)
    assert row["samples_per_second"] == 4
    assert (tmp_path / "table.md").read_text() in ended.stdout
    assert (tmp_path / "plot.png").exists()


def test_interruption_keeps_what_is_done(requests, tmp_path, monkeypatch, as_before, capsys):
    measure = runs.in_turns

    def interrupted(program, requests, *others):
        [request] = requests
        if request["mode"] == "el":
            raise KeyboardInterrupt
        return measure(program, requests, *others)

    monkeypatch.setattr(runs, "in_turns", interrupted)
    line = f"-m decode=stock,el,kv batch=2 hydra.sweep.dir={tmp_path}"
    ended = benchmark(line, check=False)
    assert ended.returncode == 130
    assert "elseq: interrupted" in ended.stderr
    assert [row["mode"] for row in read_rows(tmp_path)] == ["stock"]
    ((tell, *what),) = as_before  # what is done when the process ends
    tell(*what)
    told = capsys.readouterr()
    assert (tmp_path / "table.md").read_text() in told.out
    assert told.err.endswith(
        f"finished jobs are in {tmp_path}: to continue, repeat the command with hydra.sweep.dir={tmp_path}\n"
    )

    monkeypatch.setattr(runs, "in_turns", measure)
    requests.clear()
    benchmark(line)
    assert [request["mode"] for request in requests] == ["el", "kv"]
    assert [row["mode"] for row in read_rows(tmp_path)] == ["stock", "el", "kv"]


def test_one_interrupted_run_tells_where_it_is(requests, tmp_path, monkeypatch, as_before, capsys):
    def interrupted(*_):
        raise KeyboardInterrupt

    monkeypatch.setattr(runs, "in_turns", interrupted)
    ended = benchmark(f"decode=el hydra.run.dir={tmp_path}", check=False)
    assert (ended.returncode, ended.stderr.splitlines()[-1]) == (130, "elseq: interrupted")
    ((tell, *what),) = as_before
    tell(*what)
    sentence = (
        f"elseq: no job has finished in {tmp_path}: to continue, repeat the command with hydra.run.dir={tmp_path}\n"
    )
    assert capsys.readouterr() == ("", sentence)


@pytest.mark.parametrize("line", ["-m decode=kv,el hydra.sweep.dir={}", "decode=kv hydra.run.dir={}"])
def test_a_table_that_cannot_be_written_is_an_error(requests, tmp_path, line):
    """The jobs are all done nevertheless."""
    (tmp_path / "table.md").mkdir()
    ended = benchmark(line.format(tmp_path), check=False)
    assert ended.returncode == 1
    assert ended.stderr.splitlines()[-1].startswith(f"elseq: error: {tmp_path / 'table.md'} cannot be written ")
    assert "Traceback" not in ended.stderr
    assert len(requests) == len(list(tmp_path.rglob(".hydra")))


def test_another_configuration_is_measured_again(requests, tmp_path):
    benchmark(f"decode=kv batch=2 hydra.run.dir={tmp_path}")
    benchmark(f"decode=kv batch=4 hydra.run.dir={tmp_path}")
    assert [len(request["sources"]) for request in requests] == [2, 4]


def test_the_folder_of_another_sweep(requests, tmp_path):
    """Its rows would be in the table."""
    line = f"-m decode=kv,el batch=2 hydra.sweep.dir={tmp_path}"
    benchmark(line)
    requests.clear()
    before = {path: path.read_bytes() for path in tmp_path.rglob("*") if path.is_file()}
    sentence = (
        f"{tmp_path} is of another sweep, benchmark model=small threads=1 decode=kv,el batch=2: repeat it, or give "
        "another folder\n"
    )
    for other in (f"-m decode=kv batch=4 hydra.sweep.dir={tmp_path}", f"decode=kv batch=2 hydra.run.dir={tmp_path}"):
        ended = benchmark(other, check=False)
        setting = other.split()[-1].partition("=")[0]
        assert (ended.returncode, ended.stdout) == (1, "")
        assert ended.stderr == f"elseq: error: {setting} {sentence}"
    other = ["elseq-generate", "-m", "decode=kv,el", f"hydra.sweep.dir={tmp_path}"]  # of another configuration
    assert helpers.run_here(other, check=False).stderr.endswith(sentence)
    assert {path: path.read_bytes() for path in tmp_path.rglob("*") if path.is_file()} == before
    assert requests == []
    assert [row["mode"] for row in read_rows(tmp_path)] == ["kv", "el"]
    benchmark(line)
    assert requests == []


def test_a_sweep_that_was_refused_has_no_folder(requests, tmp_path):
    assert benchmark(f"-m decode=kv,fast hydra.sweep.dir={tmp_path}", check=False).returncode == 1
    assert (tmp_path / gather.SWEEP).exists()
    benchmark(f"-m decode=kv,el hydra.sweep.dir={tmp_path}")
    assert [row["mode"] for row in read_rows(tmp_path)] == ["kv", "el"]


def test_search_of_the_group_decoding(requests, tmp_path):
    benchmark(f"decode=kv decoding=beam hydra.run.dir={tmp_path}")
    benchmark(f"decode=kv decoding=beam lenpen=0.5 beam=2 hydra.run.dir={tmp_path}")
    first, second = requests
    with initialize_config_dir(str(ROOT / "hydra_conf"), version_base="1.1"):
        published = json.loads(compose("benchmark", ["decoding=beam"]).task.eval_bleu_args)
    assert published["no_repeat_ngram_size"] == 3
    assert {"beam": first["beam"], **first["search"]} == {"min_len": 1, **published}
    assert {"beam": second["beam"], **second["search"]} == {"min_len": 1, **published, "beam": 2, "lenpen": 0.5}


@pytest.mark.parametrize(
    ("model", "stock", "task"),
    [("el_bart_base", "bart_base", "translation"), ("el_transformer", "transformer", "translation")],
)
def test_models_have_the_sizes_of_stock(model, stock, task):
    GlobalHydra.instance().clear()
    with initialize_config_dir(str(ROOT / "hydra_conf"), version_base="1.1"):
        settings = read_settings(compose("benchmark", [f"model={model}"]))
    cfg = _configuration(["--arch", settings.arch, "--task", task, "nowhere", *settings.model_options]).model
    expected = _configuration(["--arch", stock, "--task", task, "nowhere"]).model
    ARCH_CONFIG_REGISTRY[stock](expected)
    for side in ("encoder", "decoder"):
        for name in ("embed_dim", "ffn_embed_dim", "layers", "attention_heads", "learned_pos", "normalize_before"):
            assert cfg[f"{side}_{name}"] == getattr(expected, f"{side}_{name}"), name


def test_the_same_settings_from_the_configuration_and_the_command_line():
    overrides = "decode=el batch=2 beam=3 task.data=data source_length=7 output_length=5 min_len=2 max_len_b=9 "
    overrides += "lenpen=2 no_repeat_ngram_size=3 dtype=bfloat16 threads=1 repeats=2 vocabulary_size=9 "
    overrides += "checkpoint=x.pt"
    options = "x.pt --modes=el --batch-sizes=2 --beams=3 --data=data --source-length=7 --output-length=5 --min-len=2 "
    options += "--max-len-b=9 --lenpen=2 --no-repeat-ngram-size=3 --dtype=bfloat16 --threads=1 --repeats=2 "
    expected, _ = parse(f"{options} --vocabulary-size=9".split())
    with initialize_config_dir(str(ROOT / "hydra_conf"), version_base="1.1"):
        assert read_settings(compose("benchmark", overrides.split())) == expected
        defaults, _ = parse(["x.pt", "--modes=auto"])
        assert read_settings(compose("benchmark", ["checkpoint=x.pt"])) == defaults


def test_language_model():
    with initialize_config_dir(str(ROOT / "hydra_conf"), version_base="1.1"):
        cfg = compose("benchmark", ["model=mq_transformer_lm_gpt2_124m", "task.tokens_per_sample=2048"])
    settings = read_settings(cfg)
    made = _configuration(["--arch", settings.arch, "--task=language_modeling", "nowhere", *settings.model_options])
    assert (made.model.num_kv_heads, made.model.decoder_layers, made.model.decoder_embed_dim) == (1, 12, 768)
    assert made.task.tokens_per_sample == 2048


@pytest.mark.slow
def test_real_sweep(tmp_path):
    line = f"elseq-benchmark -m decode=stock,el batch=2,3 beam=2 hydra.sweep.dir={tmp_path} {SMALL} {TINY}"
    ended = helpers.run(line.split(), check=True)
    rows = read_rows(tmp_path)
    assert len(rows) == 4
    for row in rows:
        assert row["identical"] == row["batch_size"] == row["sentences"]
        assert row["output_length"] == 6
    assert (tmp_path / "table.md").read_text() in ended.stdout.decode()
