"""The recipes from a corpus to scores: their commands, which of their stages run, and small ones from end to end."""

import fcntl
import gzip
import json
import re
import shlex
import shutil
import signal
import subprocess
from pathlib import Path

import pytest
import torch
from fairseq import options
from fairseq.models import build_model

from elseq.attention import methods
from elseq.benchmark import arguments as benchmark
from elseq.cli import generate
from tests import helpers
from tests.models.building import make_task
from tests.system.recipes import FOLDERS, run, run_recipe

ROOT = Path(__file__).resolve().parents[2]
MULTI30K = ["train", "val", "test_2016_flickr"]
STAGES = ["fetch", "prepare", "binarize", "train", "generate", "score", "benchmark"]
MODELS = {
    "cnn_dm": ["transformer", "bart_base", "bart_large"],
    "xsum": ["transformer", "bart_base", "bart_large"],
    "squad_qg": ["transformer", "transformer_270m", "bart_base", "bart_large"],
}
# Lewis et al., 2019, and fairseq's finetuning of BART
FINETUNING = {
    "--lr": "3e-5", "--lr-scheduler": "polynomial_decay", "--warmup-updates": "500", "--max-tokens": "2048",
    "--criterion": "label_smoothed_cross_entropy", "--label-smoothing": "0.1", "--dropout": "0.1",
    "--attention-dropout": "0.1", "--weight-decay": "0.01", "--optimizer": "adam", "--adam-betas": "(0.9, 0.999)",
    "--adam-eps": "1e-08", "--clip-norm": "0.1",
}  # fmt: skip
UPDATES = {"cnn_dm": ("20000", "4"), "xsum": ("15000", "2")}  # and how many batches are one
SEARCH = {
    "cnn_dm": {"beam": "4", "--lenpen": "2", "--min-len": "55", "--max-len-b": "140", "--no-repeat-ngram-size": "3"},
    "xsum": {"beam": "6", "--lenpen": "1", "--min-len": "10", "--max-len-b": "60", "--no-repeat-ngram-size": "3"},
}


def commands(name, **environment):
    """{program: its words} of what a recipe would run."""
    result = run_recipe(name, "--dry-run", **environment)
    assert result.returncode == 0, result.stderr
    lines = [shlex.split(line) for line in result.stdout.splitlines()]
    return {Path(words[1 if words[0] == "python" else 0]).name: words for words in lines if words}


def value(words, option):
    return words[words.index(option) + 1]


@pytest.fixture
def bart(tmp_path):
    """What stands for the folder of a pretrained BART."""
    folder = tmp_path / "bart"
    folder.mkdir()
    for name in ("model.pt", "dict.txt", "encoder.json", "vocab.bpe"):
        (folder / name).touch()
    return folder


@pytest.mark.parametrize("name", UPDATES)
def test_published_finetuning(name, bart):
    train = commands(name, MODEL="bart_large", BART=bart)["fairseq-train"]
    updates, accumulated = UPDATES[name]
    expected = FINETUNING | {
        "--arch": "el_bart_large",
        "--max-update": updates,
        "--total-num-update": updates,
        "--update-freq": accumulated,
        "--finetune-from-model": str(bart / "model.pt"),
    }
    assert {option: value(train, option) for option in expected} == expected
    assert {"--truncate-source", "--skip-invalid-size-inputs-valid-test"} <= set(train)


@pytest.mark.parametrize("name", SEARCH)
def test_published_search(name, bart):
    words = commands(name, MODEL="bart_large", BART=bart, DECODE="el")
    for program, beam in (("elseq-generate", "--beam"), ("elseq-benchmark", "--beams")):
        found = {"beam" if option == "beam" else option: value(words[program], beam if option == "beam" else option)
                 for option in SEARCH[name]}  # fmt: skip
        assert found == SEARCH[name]
    assert value(words["elseq-generate"], "--attention") == "el"
    assert value(words["elseq-score"], "--setting") == f"{name}-bart_large"
    assert value(words["elseq-benchmark"], "--modes") == "stock,kv,el"


@pytest.mark.parametrize("name", FOLDERS)
def test_a_corpus_that_is_nowhere_is_downloaded(name, tmp_path):
    corpus = "squad_questions.py" if name == "squad_qg" else "summaries.py"
    lines = run_recipe(name, "--dry-run").stdout.splitlines()
    [fetch] = [line for line in lines if corpus in line and " fetch " in line]
    assert "--from" not in fetch
    (tmp_path / FOLDERS[name]).mkdir()
    lines = run_recipe(name, "--dry-run", ELSEQ_DATA=tmp_path).stdout.splitlines()
    [fetch] = [line for line in lines if corpus in line and " fetch " in line]
    assert str(tmp_path) in fetch


def test_subwords(bart):
    encode = commands("cnn_dm", MODEL="bart_base", BART=bart)["encode_text.py"]
    assert value(encode, "--gpt2-bpe") == str(bart)
    assert value(encode, "--truncate-source") == "1022"
    encode = commands("squad_qg")["encode_text.py"]
    assert value(encode, "--symbol") == "[SEP]"


def test_multi_query_from_a_pretrained_model(bart):
    words = commands("xsum", MODEL="bart_base", ATTENTION="mq", BART=bart)
    assert value(words["elseq-convert"], "--num-kv-heads") == "1"
    assert value(words["fairseq-train"], "--finetune-from-model") == value(words["elseq-convert"], "--output")
    assert value(words["fairseq-train"], "--decoder-num-kv-heads") == "1"


def training_arguments(words):
    parser = options.get_training_parser()
    return options.parse_args_and_arch(parser, words[1:])


@pytest.mark.parametrize("name, model", [(name, model) for name in MODELS for model in MODELS[name]])
def test_programs_take_their_options(name, model, bart):
    environment = {"BART": bart} if model.startswith("bart") else {}
    for small in (0, 1):
        words = commands(name, MODEL=model, ATTENTION="mq", SMALL=small, **environment)
        arguments = training_arguments(words["fairseq-train"])
        assert (arguments.decoder_num_kv_heads, arguments.cross_num_kv_heads) == (1, 1)
        generate._parse(words["elseq-generate"][1:])
        benchmark.parse(words["elseq-benchmark"][1:])


def test_size_of_the_transformer_of_the_paper():
    """270 million parameters (2105.04779), with the vocabulary of ProphetNet."""
    words = commands("squad_qg", MODEL="transformer_270m")
    assert value(words["encode_text.py"], "--vocabulary-size") == "30522"
    with torch.device("meta"):
        model = build_model(training_arguments(words["fairseq-train"]), make_task(30522))
    assert sum(parameter.numel() for parameter in model.parameters()) == pytest.approx(270e6, rel=0.001)


@pytest.mark.parametrize("name", MODELS)
def test_recipe_runs_nothing_when_dry(name, tmp_path):
    result = run_recipe(name, "--dry-run", ELSEQ_WORK=tmp_path / "work")
    assert result.returncode == 0 and not (tmp_path / "work").exists()
    assert re.findall(r"^== \d/7 (\w+):", result.stdout, re.MULTILINE) == STAGES


@pytest.mark.parametrize(
    "arguments, environment, message",
    [
        (["--from", "nowhere"], {}, "--from nowhere is unknown; choose one of fetch, prepare, binarize, train"),
        (["--to"], {}, "--to needs a stage"),
        (["--from=train"], {}, "--from=train is unknown; the options are --from STAGE"),
        (["--from", "train", "--to", "prepare"], {}, "--to prepare comes before --from train"),
        (["--from", "score"], {}, "the stage fetch has not finished"),
        ([], {"MODEL": "gpt2"}, "MODEL gpt2 is unknown; choose one of transformer, bart_base, bart_large"),
        ([], {"ATTENTION": "topk"}, "ATTENTION topk is unknown; choose one of mha, mq"),
        ([], {"DECODE": "stock"}, f"DECODE stock is unknown; choose one of {', '.join(methods.names())}"),
        ([], {"SMALL": "yes"}, "SMALL yes is unknown; choose one of 0, 1"),
        ([], {"ELSEQ_DATA": "nowhere"}, "ELSEQ_DATA nowhere is no folder"),
        ([], {"ELSEQ_WORK": "/dev/null/work"}, "the folder /dev/null/work cannot be made; name another one"),
        ([], {"BART": "here"}, "BART is for MODEL=bart_base and MODEL=bart_large; MODEL is transformer"),
        ([], {"MODEL": "bart_base", "BART": "nowhere"}, "nowhere/model.pt is missing; set BART"),
        ([], {"MODEL": "bart_base"}, "needs the GPT-2 BPE; set BART to a folder with a BART of fairseq"),
    ],
)
def test_refused_in_one_sentence(arguments, environment, message, tmp_path):
    result = run_recipe("xsum", *arguments, **{"ELSEQ_WORK": tmp_path / "work", **environment})
    assert result.returncode == 1
    (line,) = result.stderr.splitlines()
    assert line.startswith("elseq: error: ") and message in line
    assert not (tmp_path / "work").exists()


RECIPE = """\
set -euo pipefail
corpus=fake folder=fake models=transformer
. {pipeline}
beam=1 lenpen=1 min_len=1 max_len=10 no_repeat_ngram=0
run_fetch() {{ run sh -c 'echo fetch >>"{log}"'; }}
run_prepare() {{ run sh -c "echo prepare ${{EXAMPLES:-1}} >>'{log}'"; }}
run_binarize() {{ run sh -c 'echo binarize >>"{log}"'; }}
run_train() {{
  run mkdir -p "$work/checkpoints" && run sh -c "echo train $updates >>'{log}'; ls '$work/checkpoints' >>'{log}'" &&
    run sh -c ': >"{work}/checkpoints/checkpoint_last.pt"; test ! -e "{broken}"'
}}
run_generate() {{ run sh -c 'echo generate >>"{log}"'; }}
run_score() {{ run sh -c 'echo score >>"{log}"'; }}
run_benchmark() {{ run sh -c 'echo benchmark >>"{log}"'; }}
run_stages "$@"; exit
"""


class Fake:
    """A recipe whose stages only say that they run."""

    def __init__(self, folder):
        self.work, self.log, self.broken = folder / "work", folder / "log", folder / "broken"
        self.recipe = folder / "fake.sh"
        pipeline = ROOT / "recipes" / "pipeline.sh"
        self.recipe.write_text(RECIPE.format(pipeline=pipeline, log=self.log, work=self.work, broken=self.broken))

    def __call__(self, *arguments, fails=False, **environment):
        """What the stages said."""
        self.log.write_text("")
        result = run(self.recipe, *arguments, ELSEQ_WORK=self.work, **environment)
        assert (result.returncode != 0) == fails, result.stderr
        return self.log.read_text().split("\n")[:-1]


@pytest.fixture
def fake(tmp_path):
    return Fake(tmp_path)


ALL = ["fetch", "prepare 1", "binarize", "train 100000", "generate", "score", "benchmark"]


def test_finished_stages_are_not_run_again(fake):
    assert fake() == ALL
    assert fake() == []
    assert fake("--fresh") == ALL


def test_first_and_last_stage(fake):
    assert fake("--to", "binarize") == ALL[:3]
    assert fake("--from", "binarize", "--to", "train") == ALL[3:4]
    assert fake() == ALL[4:]
    assert fake("--from", "score", "--fresh") == ALL[5:]
    assert fake("--from", "score", "--to", "score") == []


def test_changed_setting_runs_its_stage_and_those_after_it(fake):
    fake()
    assert fake(UPDATES=7) == ["train 7", *ALL[4:]]
    assert fake(UPDATES=7, EXAMPLES=2) == ["prepare 2", "binarize", "train 7", *ALL[4:]]


def test_dry_run_tells_what_is_done(fake):
    fake()
    for change, done in (({}, 7), ({"UPDATES": 7}, 3)):
        printed = run(fake.recipe, "--dry-run", ELSEQ_WORK=fake.work, **change).stdout
        assert printed.count(": done before") == done


@pytest.mark.skipif(shutil.which("flock") is None, reason="flock is not installed")
def test_two_runs_in_one_folder_are_refused(fake):
    fake()
    with (fake.work / "lock").open() as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        result = run(fake.recipe, "--fresh", ELSEQ_WORK=fake.work)
    assert (result.returncode, fake()) == (1, [])
    assert f"elseq: error: another run works in {fake.work}; wait for it" in result.stderr


def test_stages_after_one_that_ran_again_are_forgotten(fake):
    """Even where the run ends in between."""
    fake()
    assert fake("--to", "prepare", EXAMPLES=2) == ["prepare 2"]
    assert fake(EXAMPLES=2) == ALL[2:]


def test_interrupted_training_goes_on_with_the_same_settings_only(fake):
    fake.broken.touch()
    assert fake(fails=True) == ALL[:4]
    assert fake(fails=True) == [ALL[3], "checkpoint_last.pt"]
    fake.broken.unlink()
    assert fake(UPDATES=7) == ["train 7", *ALL[4:]]
    assert fake("--from", "train", "--fresh", UPDATES=7) == ["train 7", *ALL[4:]]


def test_inputs_that_no_stage_has_made(tmp_path):
    """Where one has changed under its name, the stages run again."""
    recipe, model = tmp_path / "recipe.sh", tmp_path / "model"
    lines = [f". {ROOT}/recipes/stages.sh", 'read_options "$@"', f"work={tmp_path}/work", "begin"]
    lines += [f"inputs=$(cksum {model})", f"copy() {{ run cp {model} $work/copy; }}", "stage copy Copy copy"]
    recipe.write_text("\n".join(["set -euo pipefail", *lines, ""]))
    for content, is_done in (("first", False), ("first", True), ("second", False)):
        model.write_text(content)
        assert ("done before" in run(recipe).stdout) == is_done
        assert (tmp_path / "work" / "copy").read_text() == content


def test_a_file_of_a_finished_stage_that_is_missing_is_named(fake):
    """And nothing is trained again unasked."""
    fake()
    checkpoint, done = fake.work / "checkpoints" / "checkpoint_last.pt", fake.work / "train.done"
    sentence = f"checkpoints/checkpoint_last.pt is missing since; to run this stage again, delete {done}"
    assert sentence not in run(fake.recipe, ELSEQ_WORK=fake.work).stdout
    checkpoint.unlink()
    assert sentence in run(fake.recipe, ELSEQ_WORK=fake.work).stdout
    assert fake() == []
    done.unlink()
    assert fake() == ALL[3:]
    assert checkpoint.exists()


def test_failing_stage_is_named(fake):
    fake.broken.touch()
    result = run(fake.recipe, ELSEQ_WORK=fake.work)
    assert result.returncode == 1
    assert "elseq: error: the stage 'train' failed; see the logs in" in result.stderr


def test_multi30k_that_is_incomplete_or_damaged(tmp_path):
    (tmp_path / "multi30k").mkdir()
    files = [tmp_path / "multi30k" / f"{split}.{side}.gz" for split in MULTI30K for side in ("de", "en")]
    for file in files[:-1]:
        file.write_bytes(gzip.compress(b"one\ntwo\n"))
    recipe = tmp_path / "recipe.sh"
    recipe.write_text(f"set -euo pipefail\n. {ROOT}/recipes/stages.sh\nwork={tmp_path}\n")
    recipe.write_text(recipe.read_text() + "use_multi30k\nstage unpack Multi30k unpack_multi30k\n")
    result = run(recipe, ELSEQ_DATA=tmp_path)
    expected = f"elseq: error: {files[-1]} is missing; set ELSEQ_DATA to the folder that holds multi30k\n"
    assert (result.returncode, result.stderr) == (1, expected)
    files[-1].write_bytes(files[0].read_bytes())
    files[0].write_bytes(files[0].read_bytes()[:-9])  # and what follows is whole
    result = run(recipe, ELSEQ_DATA=tmp_path)
    assert result.returncode == 1
    assert "elseq: error: the stage 'unpack' failed" in result.stderr
    files[0].write_bytes(files[1].read_bytes())
    assert run(recipe, ELSEQ_DATA=tmp_path).returncode == 0
    assert (tmp_path / "corpus" / "test.target").read_text() == "one\ntwo\n"


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGHUP])
def test_a_signal_ends_the_commands_too(number, tmp_path):
    """Also where only the shell gets it."""
    recipe = tmp_path / "recipe.sh"
    lines = [
        f". {ROOT}/recipes/stages.sh",
        f"work={tmp_path}",
        'long() { logged long bash -c "echo begun; exec sleep 60"; }',
    ]
    recipe.write_text("\n".join(["set -euo pipefail", *lines, "shown=cat", "stage long Long long", ""]))
    with subprocess.Popen(["bash", recipe], stdout=subprocess.PIPE) as process:
        process.stdout.readline()
        process.stdout.readline()  # of the command
        process.send_signal(number)
        assert process.stdout.read() == b""  # so it is closed by the command, too
    assert process.returncode == -number


@pytest.mark.parametrize("folder", ["a,b", "a:b", "a\nb"])
def test_a_folder_whose_path_fairseq_would_divide(folder, tmp_path):
    result = run(ROOT / "recipes" / "demo.sh", ELSEQ_DEMO_DIR=tmp_path / folder)
    assert result.returncode == 1
    expected = (
        f"elseq: error: the folder {tmp_path / folder} has a comma, a colon or a line end in its path, where fairseq"
    )
    assert result.stderr.startswith(expected)
    assert not (tmp_path / folder).exists()


def test_fresh_removes_what_a_recipe_has_made_only(tmp_path):
    recipe, work = tmp_path / "recipe.sh", tmp_path / "a work"
    lines = [f". {ROOT}/recipes/stages.sh", f"work={shlex.quote(str(work))}", 'read_options "$@"', "begin"]
    recipe.write_text("\n".join(["set -euo pipefail", *lines, 'stage copy Copy into "$work/copy" echo one', ""]))
    work.mkdir()
    assert run(recipe, "--fresh").returncode == 0  # it is empty
    (work / "more").touch()
    assert run(recipe, "--fresh").returncode == 0
    assert sorted(path.name for path in work.iterdir()) == ["copy", "copy.done"]
    (work / "copy.done").unlink()
    result = run(recipe, "--fresh")
    sentence = f"--fresh removes the folder {work}, which no recipe has made; empty it, or name another one"
    assert (result.returncode, result.stderr) == (1, f"elseq: error: {sentence}\n")
    assert (work / "copy").read_text() == "one\n"


def needs(*names):
    missing = [name for name in names if not (helpers.DATA / name).exists()]
    return pytest.mark.skipif(bool(missing), reason=f"{', '.join(missing)} not there (ELSEQ_DATA)")


@pytest.mark.slow
@pytest.mark.parametrize(
    "name, settings",
    [
        pytest.param("cnn_dm", {}, marks=needs(FOLDERS["cnn_dm"])),
        pytest.param("xsum", {"ATTENTION": "mq", "DECODE": "el"}, marks=needs(FOLDERS["xsum"])),
        pytest.param("squad_qg", {}, marks=needs(FOLDERS["squad_qg"])),
    ],
)
def test_from_the_corpus_to_scores(name, settings, tmp_path):
    work = tmp_path / "work"
    environment = {"SMALL": 1, "UPDATES": 2, "ELSEQ_WORK": work, "ELSEQ_DATA": helpers.DATA, **settings}
    result = run_recipe(name, **environment)
    assert result.returncode == 0, result.stdout + result.stderr
    references = (work / "corpus" / "test.target").read_text().splitlines()
    assert len((work / "test.hypothesis").read_text().splitlines()) == len(references)
    scores = json.loads((work / "scores.json").read_text())
    assert scores["settings"]["examples"] == (len(references) if name != "squad_qg" else 999)
    results = json.loads((work / "benchmark" / "results.json").read_text())
    assert [row["mode"] for row in results["rows"]] == ["stock", "kv", "el"]
    assert (work / "checkpoints" / "checkpoint_best.pt").exists()
    again = run_recipe(name, **environment)
    assert again.stdout.count(": done before") == len(STAGES)
