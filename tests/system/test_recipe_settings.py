"""What recipes refuse: at once, in one sentence, before anything is made."""

import os
import shlex
import shutil
import subprocess

import pytest

from tests.system.recipes import FOLDERS, RECIPES, run_recipe

MODEL = {"CHECKPOINT": __file__, "DATA": "/", "REFERENCES": __file__}
MISTAKES = [
    ("demo", {"DEMO_UPDATES": "few"}, "DEMO_UPDATES is few; give a whole number, 1 or more"),
    ("listops", {"LENGTHS": "long"}, "LENGTHS is long; choose short or published"),
    ("listops", {"UPDATES": 5}, "UPDATES is 5; give a whole number, 20 or more"),
    ("listops", {"UPDATES": "2e3"}, "UPDATES is 2e3; give a whole number, 20 or more"),
    ("listops", {"TOP_K": 0}, "TOP_K is 0; give a whole number, 1 or more"),
    ("listops", {"TOP_K": "8 16"}, "TOP_K is 8 16; give a whole number, 1 or more"),
    ("listops", {"TOP_K": "08"}, "TOP_K is 08; give a whole number, 1 or more"),
    ("listops", {"SEED": -1}, "SEED is -1; give a whole number, 0 or more"),
    ("listops", {"SEED": 10**12}, f"SEED is {10**12}; give a whole number, 0 or more"),
    ("long_input", {"MODEL": "gpt2"}, "MODEL gpt2 is unknown; choose one of transformer, bart_base, bart_large"),
    ("long_input", {"TASK": "summarization"}, "TASK summarization is unknown; choose one of translation, questions"),
    ("long_input", {"LENGTHS": "512 long"}, "LENGTHS is long; give a whole number, 2 or more"),
    ("long_input", {"WINDOW": 1}, "WINDOW is 1; give a whole number, 2 or more"),
    ("long_input", {"EXAMPLES": 0}, "EXAMPLES is 0; give a whole number, 1 or more"),
    ("long_input", {"PARAGRAPH_WORDS": "all"}, "PARAGRAPH_WORDS is all; give a whole number, 1 or more"),
    ("long_input", {"UPDATES": 5}, "UPDATES is 5; give a whole number, 20 or more"),
    ("long_input", {"FINETUNE_UPDATES": "no"}, "FINETUNE_UPDATES is no; give a whole number, 0 or more"),
    ("long_input", {"FINETUNE_LENGTH": 100}, "FINETUNE_LENGTH is 100; give a whole number, 512 or more"),
    ("long_input", {"FINETUNE_WINDOWS": 0}, "FINETUNE_WINDOWS is 0; give a whole number, 1 or more"),
    ("long_input", {"LR": "0"}, "LR is 0; give a number above 0"),
    ("long_input", {"FINETUNE_LR": "low"}, "FINETUNE_LR is low; give a number above 0"),
    (
        "long_input",
        {"MODEL": "bart_large"},
        "BART/model.pt is missing; set BART to a folder with a BART of fairseq and",
    ),
    ("long_input", {"MODEL": "bart_base", "BART": "nowhere"}, "nowhere/model.pt is missing; set BART to a folder"),
    ("long_input", {"MODEL": "bart_base", "UPDATE_FREQ": 0}, "UPDATE_FREQ is 0; give a whole number, 1 or more"),
    ("multi30k", {}, "Multi30k is not downloaded; set ELSEQ_DATA to the folder that holds multi30k/train.de.gz"),
    ("multi_query", {"ELSEQ_DATA": "/nowhere"}, "/nowhere/multi30k/train.de.gz is missing; set ELSEQ_DATA"),
    ("multi30k", {"EPOCHS": 0.5}, "EPOCHS is 0.5; give a whole number, 1 or more"),
    ("multi_query", {"UPDATES": "many"}, "UPDATES is many; give a whole number, 20 or more"),
    ("multi_query", {"SEEDS": "1 two"}, "SEEDS is two; give a whole number, 0 or more"),
    ("squad_qg", {"UPDATES": "many"}, "UPDATES is many; give a whole number, 1 or more"),
    ("squad_qg", {"UPDATE_FREQ": 0}, "UPDATE_FREQ is 0; give a whole number, 1 or more"),
    ("squad_qg", {"HOURS": "0.0"}, "HOURS is 0.0; give a number above 0"),
    ("squad_qg", {"HOURS": "0e1"}, "HOURS is 0e1; give a number above 0"),
    ("squad_qg", {"HOURS": "2h"}, "HOURS is 2h; give a number above 0"),
    ("top_k", {"CHECKPOINT": "nowhere.pt"}, "nowhere.pt is missing; run recipes/multi30k.sh, or set"),
    ("top_k", MODEL | {"TOP_K": "1 2 x"}, "TOP_K is x; give a whole number, 1 or more"),
    ("top_k", MODEL | {"TOP_K": " "}, "TOP_K is empty; give a whole number, 1 or more, or leave it out"),
    ("top_k", MODEL | {"FFN_TOP_K": "0"}, "FFN_TOP_K is 0; give a whole number, 1 or more"),
    ("top_k", MODEL | {"SHARDS": "0"}, "SHARDS is 0; give a whole number, 1 or more"),
    ("top_k", MODEL | {"FINETUNE_UPDATES": "no"}, "FINETUNE_UPDATES is no; give a whole number, 0 or more"),
    ("top_k", MODEL | {"LR": "high"}, "LR is high; give a number above 0"),
    (
        "top_k",
        MODEL | {"TOP_K": "8 16"},
        "FINETUNE_TOP_K is 2; give one of TOP_K, which is 8 16, or FINETUNE_UPDATES=0",
    ),
    ("uptrain_heads", {"UPDATES": "many"}, "UPDATES is many; give a whole number, 1 or more"),
]


@pytest.mark.parametrize(("name", "environment", "sentence"), MISTAKES)
def test_mistakes(name, environment, sentence, tmp_path):
    result = run_recipe(name, ELSEQ_WORK=tmp_path / "work", **environment)
    assert result.returncode == 1
    assert result.stderr.startswith(f"elseq: error: {sentence}") and result.stderr.count("\n") == 1
    assert not (tmp_path / "work").exists()


UPTRAINING_MISTAKES = [
    ({"UPTRAIN_UPDATES": 1}, "UPTRAIN_UPDATES is 1; give a whole number, 2 or more"),
    ({"KV_HEADS": "half"}, "KV_HEADS is half; give a whole number, 1 or more"),
    ({"LR": "-1"}, "LR is -1; give a number above 0"),
    ({"METHODS": "mean last"}, "METHODS last is unknown; choose one of mean, aligned, fitted, first, random"),
    ({"DISTILLATION": "half"}, "DISTILLATION is half; give a number from 0 to 1"),
    ({"DISTILLATION": "2"}, "DISTILLATION is 2; give a number from 0 to 1"),
    ({"DISTILLATION": "1.01"}, "DISTILLATION is 1.01; give a number from 0 to 1"),
    ({"DISTILLATION": "-0.5"}, "DISTILLATION is -0.5; give a number from 0 to 1"),
    ({"SEEDS": "1 x"}, "SEEDS is x; give a whole number, 0 or more"),
    (
        {"CHECKPOINT": f"{__file__}:{__file__}"},
        "CHECKPOINT names 2 models for 3 SEEDS; name one for each, or one for all",
    ),
]


@pytest.mark.parametrize(("environment", "sentence"), UPTRAINING_MISTAKES)
def test_mistakes_of_uptraining(environment, sentence, tmp_path):
    (tmp_path / "dict.source.txt").touch()
    test_mistakes("uptrain_heads", {"CHECKPOINT": __file__, "DATA": tmp_path, **environment}, sentence, tmp_path)


def test_heads_that_cannot_be_are_refused_before_anything_is_trained(tiny_translation, tmp_path):
    (tmp_path / "data").mkdir()
    (tmp_path / "data" / "dict.source.txt").touch()
    model = {"CHECKPOINT": tiny_translation.checkpoint, "DATA": tmp_path / "data"}
    result = run_recipe("uptrain_heads", KV_HEADS=3, ELSEQ_WORK=tmp_path / "work", **model)
    assert result.returncode == 1 and "elseq: error: the stage 'convert-mean' failed" in result.stderr
    assert "3 key/value heads do not divide the 4 heads" in (tmp_path / "work" / "mean" / "convert.log").read_text()
    assert sorted(path.name for path in (tmp_path / "work").iterdir()) == ["convert-mean.begun", "mean"]


@pytest.mark.parametrize("number", ["2", "0.5", ".5", "3.", "1e-3", "2.5E2"])
def test_numbers_that_are_none_too_few(number, tmp_path):
    result = run_recipe("squad_qg", "--dry-run", HOURS=number, ELSEQ_WORK=tmp_path)
    assert result.returncode == 0 and f"--stop-time-hours {number}" in result.stdout


FAIRSEQ = {f"fairseq-{name}" for name in ("preprocess", "train", "generate", "validate")}
NAMES = sorted(path.stem for path in RECIPES.glob("*.sh") if path.stem not in ("stages", "pipeline", "summarization"))


@pytest.mark.parametrize("name", [name for name in NAMES if name not in FOLDERS])
def test_other_options(name, tmp_path):
    result = run_recipe(name, "--fresh", "--from", ELSEQ_WORK=tmp_path / "work", ELSEQ_DEMO_DIR=tmp_path / "work")
    assert (result.returncode, result.stdout) == (1, "")
    assert result.stderr == "elseq: error: --from is unknown; the options are --fresh, --dry-run and --help\n"
    assert not (tmp_path / "work").exists()


@pytest.mark.few_cases(2)
@pytest.mark.parametrize("name", [name for name in NAMES if name not in FOLDERS])
def test_dry_run(name, tmp_path):
    """What is printed are commands that a shell can read; what is there stays as it is."""
    (tmp_path / "multi30k").mkdir()
    for file in ("multi30k/train.de.gz", "dict.source.txt", "work/kept"):
        (tmp_path / file).parent.mkdir(exist_ok=True)
        (tmp_path / file).touch()
    taken = {"CHECKPOINT": __file__, "DATA": tmp_path, "REFERENCES": __file__, "ELSEQ_DATA": tmp_path}
    work = dict.fromkeys(("ELSEQ_WORK", "ELSEQ_DEMO_DIR"), tmp_path / "work")
    before = sorted(tmp_path.rglob("*"))
    result = run_recipe(name, "--fresh", "--dry-run", **taken, **work)
    assert (result.returncode, result.stderr) == (0, "")
    first, *lines = result.stdout.splitlines()
    assert first == "Nothing is run. The commands of each stage:" and lines[0].startswith("== ")
    commands = [shlex.split(line)[0] for line in lines if not line.startswith("==")]
    assert set(commands) <= {"echo", "elseq-convert", "gzip", "mkdir", "python", "rm", "sed"} | FAIRSEQ
    assert commands[-1] == "python" and set(commands) & FAIRSEQ
    assert sorted(tmp_path.rglob("*")) == before


@pytest.mark.parametrize("name", NAMES)
def test_help(name):
    result = run_recipe(name, "--help")
    assert result.returncode == 0 and f"Usage: recipes/{name}.sh" in result.stdout
    assert not any(line.startswith(("#", "set -")) for line in result.stdout.splitlines())


@pytest.mark.parametrize("name", NAMES)
def test_without_elseq(name, tmp_path):
    """In a checkout that has not been set up; its help needs nothing."""
    for folder in ("recipes", "scripts"):
        shutil.copytree(RECIPES.parent / folder, tmp_path / folder)
    found = [
        subprocess.run(
            ["bash", tmp_path / "recipes" / f"{name}.sh", *options],
            capture_output=True,
            text=True,
            env={"PATH": os.defpath},
        )
        for options in ([], ["--help"])
    ]
    assert found[0].stderr == (
        f"elseq: error: elseq is not installed; run make setup in {tmp_path}, or activate its environment\n"
    )
    assert (found[0].returncode, found[1].returncode, found[1].stderr) == (1, 0, "")
    assert {path.name for path in tmp_path.iterdir()} == {"recipes", "scripts"}


@pytest.mark.parametrize("name", FOLDERS)
def test_dry_run_says_what_it_is(name, tmp_path):
    lines = run_recipe(name, "--dry-run", ELSEQ_WORK=tmp_path / "work").stdout.splitlines()
    folder = FOLDERS[name]
    assert lines[1] == f"There is no ELSEQ_DATA with {folder}/: fetch downloads the corpus."
    assert lines[2] == "Nothing is run. The commands of each stage:"
    (tmp_path / folder).mkdir()
    lines = run_recipe(name, "--dry-run", ELSEQ_WORK=tmp_path / "work", ELSEQ_DATA=tmp_path).stdout.splitlines()
    assert lines[1] == "Nothing is run. The commands of each stage:"
    assert not (tmp_path / "work").exists()
