"""The recipe of sources of any length: its commands, and small runs from end to end."""

import json
import random
import re
import shlex
import shutil
import sys
from pathlib import Path

import pytest
from fairseq import options

from elseq.cli import generate
from tests import helpers
from tests.subwords.test_gpt2 import write as write_gpt2
from tests.system.recipes import run_recipe

ROOT = Path(__file__).resolve().parents[2]
WORDS = ["the", "in", "then", "a", "tin", "hen", "an", "inn", "ten"]
POSITIONS = 64  # of the made-up BART


def commands(*arguments, **environment):
    """The words of each command that the recipe would run."""
    result = run_recipe("long_input", "--dry-run", *arguments, **environment)
    assert result.returncode == 0, result.stderr
    return [shlex.split(line) for line in result.stdout.splitlines()[1:] if not line.startswith("==")]


def training(found, name):
    """The options of the one training whose checkpoints go to this folder, which fairseq has read."""
    (words,) = [
        words
        for words in found
        if words[0] == "fairseq-train" and Path(words[words.index("--save-dir") + 1]).name == name
    ]
    return vars(options.parse_args_and_arch(options.get_training_parser(), words[1:]))


WINDOWS = ("max_source_positions", "source_window", "train_windows", "attention_top_k")


@pytest.fixture(params=["translation", "questions"])
def work(request, tmp_path):
    """Settings of a task whose texts are there."""
    (tmp_path / "multi30k").mkdir()
    for split in ("train", "val", "test_2016_flickr"):
        for language in ("de", "en"):
            (tmp_path / "multi30k" / f"{split}.{language}.gz").touch()
    return {"TASK": request.param, "ELSEQ_DATA": tmp_path, "ELSEQ_WORK": tmp_path}


@pytest.mark.few_cases(1)
def test_trainings(work):
    found = commands(**work, WINDOW=256, FINETUNE_LENGTH=1024)
    first, tuned, full = (training(found, name) for name in ("first", "tuned", "full"))
    assert [first.get(name) for name in WINDOWS] == [256, None, None, None]
    assert [tuned.get(name) for name in WINDOWS] == [256, 256, 2, 256]
    assert [full.get(name) for name in WINDOWS] == [1024, None, None, None]
    assert {name for name in tuned if tuned[name] != full.get(name)} == {*WINDOWS, "save_dir"}


def test_systems_of_each_length(work):
    scored = [words for words in commands(**work, LENGTHS="512 2048 4096") if "--score-reference" in words]
    assert len(scored) == 2 + 3 * 5 + 2  # whole sources: of two lengths
    assert sum("--long-input" in words for words in scored) == 3
    assert sum("--source-window" in words for words in scored) == 6  # in windows, and cut after a training with them
    assert sum("--truncate-source" in words for words in scored) == 6
    assert all(words[words.index("--max-tokens") + 1] == "4096" for words in scored)


def test_without_further_training(work):
    found = commands(**work, FINETUNE_UPDATES=0)
    assert sum(words[0] == "fairseq-train" for words in found) == 1
    assert "--tuned" not in found[-1]


def write_documents(folder, counts):
    """A summary has every fifth word of its document."""
    folder.mkdir(exist_ok=True)
    generator = random.Random(1)
    for split, count in counts.items():
        with (folder / f"{split}.jsonl").open("w") as file:
            for _ in range(count):
                words = generator.choices(WORDS, k=generator.randint(20, 120))
                row = {"document": " ".join(words), "summary": " ".join(words[::20])}
                file.write(json.dumps(row) + "\n")
    return folder


@pytest.fixture(scope="module")
def bart(tmp_path_factory):
    """A folder with a tiny BART and the BPE of GPT-2, which has few merges."""
    sys.path.append(str(ROOT / "scripts"))
    import encode_text

    folder, corpus = (tmp_path_factory.mktemp(name) for name in ("bart", "corpus"))
    write_gpt2(folder)
    generator = random.Random(2)
    for split in ("train", "valid", "test"):
        for side in ("source", "target"):
            lines = (" ".join(generator.choices(WORDS, k=6)) for _ in range(40))
            (corpus / f"{split}.{side}").write_text("".join(f"{line}\n" for line in lines))
    encode_text.main([str(corpus), str(corpus / "pieces"), "--gpt2-bpe", str(folder), "--workers=1"])
    prefixes = [f"--{split}pref={corpus / 'pieces' / split}" for split in ("train", "valid", "test")]
    languages = ["-s", "source", "-t", "target", "--joined-dictionary"]
    helpers.run_here(["fairseq-preprocess", "--destdir", corpus / "data", *languages, *prefixes])
    shutil.copy(corpus / "data" / "dict.source.txt", folder / "dict.txt")
    checkpoint = helpers.train("bart_base", corpus / "data", corpus / "checkpoints", "--max-update=5")
    shutil.move(checkpoint, folder / "model.pt")
    return folder


OF_BART = {
    "MODEL": "bart_base",
    "WINDOW": POSITIONS,
    "GENERATE_OPTIONS": "--beam 2 --max-len-b 10",
    "MODEL_OPTIONS": "--encoder-layers 2 --decoder-layers 2 --encoder-embed-dim 32 --encoder-ffn-embed-dim 64 "
    "--decoder-embed-dim 32 --decoder-ffn-embed-dim 64 --encoder-attention-heads 4 --decoder-attention-heads 4 "
    f"--max-source-positions {POSITIONS} --max-target-positions {POSITIONS}",
}


@pytest.fixture
def documents(tmp_path):
    return write_documents(tmp_path / "documents", {"train": 20, "valid": 4, "test": 5})


def test_commands_of_a_bart(tmp_path, documents):
    bart = tmp_path / "bart"
    bart.mkdir()
    for name in ("model.pt", "dict.txt", "encoder.json", "vocab.bpe"):
        (bart / name).touch()
    given = {"MODEL": "bart_large", "BART": bart, "DOCUMENTS": documents, "ELSEQ_WORK": tmp_path / "work"}
    found = commands(**given)
    assert [words[0] for words in found] == ["python", "elseq-generate", "elseq-generate", "elseq-score"]
    cut, windows = (generate._parse(words[1:]) for words in found[1:3])
    assert cut.truncate and not windows.truncate
    places = windows.source_window, windows.apply_top_k, windows.apply_top_k_in
    assert windows.long_input and places == (1024, 1024, "cross")
    found = commands(**given, UPDATES=400, UPDATE_FREQ=2)
    cut, tuned = (training(found, name) for name in ("tuned-cut", "tuned"))
    assert [cut["truncate_source"], *map(cut.get, WINDOWS)] == [True, None, None, None, None]
    assert [tuned["truncate_source"], *map(tuned.get, WINDOWS)] == [False, None, 1024, 2, 1024]
    for each in (cut, tuned):
        assert (each["max_update"], each["update_freq"], each["arch"]) == (400, [2], "el_bart_large")
        assert each["finetune_from_model"] == str(bart / "model.pt")
    assert len(found[-1]) == 9 and found[-1][:2] == ["elseq-score", "rouge"]


@pytest.mark.slow
def test_documents(bart, documents, tmp_path):
    """Twice: the second time nothing is left to do but the scores."""
    given = {
        **OF_BART, "BART": bart, "DOCUMENTS": documents, "ELSEQ_WORK": tmp_path / "work",
        "UPDATES": 2, "UPDATE_FREQ": 2,
    }  # fmt: skip
    first = run_recipe("long_input", **given)
    assert first.returncode == 0, first.stdout + first.stderr
    texts = {
        name: (tmp_path / "work" / f"{name}.hypothesis").read_text().splitlines()
        for name in ("cut", "windows", "tuned-cut", "tuned")
    }
    assert all(len(lines) == 5 for lines in texts.values())
    scores = json.loads((tmp_path / "work" / "scores.json").read_text())
    assert [Path(system["hypotheses"]).stem for system in scores["systems"]] == list(texts)
    second = run_recipe("long_input", **given)
    assert second.stdout.count("done before") == first.stdout.count("== ") > 8


@pytest.mark.slow
@pytest.mark.parametrize(("task", "folder"), [("translation", "multi30k"), ("questions", "squad")])
def test_marked_texts(tmp_path, task, folder):
    if not (helpers.DATA / folder).exists():
        pytest.skip(f"{folder} is not there (ELSEQ_DATA)")
    given = {
        "ELSEQ_DATA": helpers.DATA, "ELSEQ_WORK": tmp_path, "TASK": task, "LENGTHS": "128 512", "WINDOW": 128,
        "EXAMPLES": 8, "UPDATES": 20, "FINETUNE_UPDATES": 2, "FINETUNE_LENGTH": 256,
    }  # fmt: skip
    first = run_recipe("long_input", **given)
    assert first.returncode == 0, first.stdout + first.stderr
    table = (tmp_path / "long_input.md").read_text()
    cut, windows = re.search(r"^\| 128 +\| +(\S+) \(.*?\) +\| +(\S+) \(", table, flags=re.MULTILINE).groups()
    assert cut == windows  # one window is the whole source
    assert "of 8 examples" in table and (tmp_path / "long_input.png").exists()
    sizes = re.findall(r"^\| (?:128|512) +\| +(\d+\.\d+) \| +(\d+\.\d+) \|$", table, flags=re.MULTILINE)
    assert [float(kv) > 2 * float(el) for kv, el in sizes] == [True, True]
    second = run_recipe("long_input", **given)
    assert second.stdout.count("done before") == first.stdout.count("== ") > 20
