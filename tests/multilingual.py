"""Small models of fairseq's tasks of several languages, trained by fairseq's own commands, and its own hypotheses."""

import random
import re
import shutil
from dataclasses import dataclass
from pathlib import Path

import pytest

from tests import helpers

LANGUAGES = ("aa", "bb", "cc")
SHIFTS = dict(zip(LANGUAGES, (0, 7, 13), strict=True))
PAIRS = ("aa-bb", "bb-cc", "cc-aa")
SIZES = {"train": 150, "valid": 10, "test": 12}
BART = [
    *("--share-all-embeddings", "--share-decoder-input-output-embed", "--encoder-learned-pos", "--decoder-learned-pos"),
    *("--layernorm-embedding", "--encoder-normalize-before", "--decoder-normalize-before"),
]
SEVERAL = ["--task=multilingual_translation", f"--lang-pairs={','.join(PAIRS)}"]
SIMPLE = ["--task=translation_multi_simple_epoch", f"--lang-pairs={','.join(PAIRS)}", f"--langs={','.join(LANGUAGES)}"]
# Architecture, options of the task, other options of the training.
FAMILIES = {
    "m2m": ("transformer", [*SIMPLE, "--encoder-langtok=src", "--decoder-langtok"], ["--share-all-embeddings"]),
    "to the target": ("transformer", [*SIMPLE, "--encoder-langtok=tgt"], ["--share-all-embeddings"]),
    "mbart50": (
        "mbart_large",
        [*SIMPLE, "--lang-tok-style=mbart", "--encoder-langtok=src", "--decoder-langtok"],
        BART,
    ),
    "replacing": (
        "transformer",
        [*SIMPLE, "--encoder-langtok=src", "--decoder-langtok", "--lang-tok-replacing-bos-eos"],
        ["--share-all-embeddings"],
    ),
    "mbart25": ("mbart_large", ["--task=translation_from_pretrained_bart", f"--langs={','.join(LANGUAGES)}"], BART),
    "bos": (
        "mbart_large",
        ["--task=translation_from_pretrained_bart", f"--langs={','.join(LANGUAGES)}", "--prepend-bos"],
        BART,
    ),
    "shared": (
        "multilingual_transformer",
        [*SEVERAL, "--encoder-langtok=tgt"],
        ["--share-encoders", "--share-decoders", "--share-all-embeddings"],
    ),
    "apart": ("multilingual_transformer", [*SEVERAL, "--decoder-langtok"], ["--share-decoder-input-output-embed"]),
}


@dataclass
class Family:
    """A data set of three languages and a checkpoint that stock fairseq-train made of it."""

    raw: Path  # SPLIT.aa-bb.aa, ...
    data: Path
    checkpoint: Path
    task: list[str]  # its options
    name: str

    @property
    def elseq_task(self) -> list[str]:
        return [re.sub("^--task=", "--task=elseq_", option) for option in self.task] + ["--user-dir", helpers.USER_DIR]

    def lines(self, pair="aa-bb", split="test") -> list[str]:
        return (self.raw / f"{split}.{pair}.{pair[:2]}").read_text().splitlines()


def spoken(language, numbers):
    return " ".join(f"w{(number + SHIFTS[language]) % 20}" for number in numbers)


@pytest.fixture(scope="session")
def text(once):
    """Sentences in three languages, each with its own permutation of 20 words; translations are in the same order."""
    folder = once("languages", write_languages)
    return folder, folder / "data"


def write_languages(folder):
    generator = random.Random(3)
    data = folder / "data"
    for number, pair in enumerate(PAIRS):
        source, target = pair.split("-")
        for split, size in SIZES.items():
            sentences = [[generator.randrange(20) for _ in range(generator.randint(2, 9))] for _ in range(size)]
            for language in (source, target):
                lines = "".join(f"{spoken(language, sentence)}\n" for sentence in sentences)
                (folder / f"{split}.{pair}.{language}").write_text(lines)
        prefixes = [f"--{split}pref={folder / f'{split}.{pair}'}" for split in SIZES]
        known = ["--srcdict", data / "dict.aa.txt"] if number else []
        command = ["fairseq-preprocess", "-s", source, "-t", target, "--joined-dictionary", *prefixes, *known]
        helpers.run_here([*command, "--destdir", folder / pair])
        shutil.copytree(folder / pair, data, dirs_exist_ok=True)


@pytest.fixture(scope="session")
def family(text, once):
    """Trains a model of one of `FAMILIES`."""
    raw, data = text

    def family(name) -> Family:
        arch, task, options = FAMILIES[name]
        if "from_pretrained" in task[0]:
            task = [*task, "--source-lang=aa", "--target-lang=bb"]

        def train(folder):
            command = [each for each in helpers.train_command(arch, data, folder) if each != "--share-all-embeddings"]
            updates = 50 if task[:2] == SEVERAL else 150  # each reads a batch of each pair
            helpers.run_here([*command, *task, *options, f"--max-update={updates}", "--lr=0.005"])

        folder = once(f"family_{name.replace(' ', '_')}", train)
        return Family(raw, data, folder / "checkpoint_last.pt", task, name)

    return family


def hypotheses(printed: str) -> list[tuple[int, float, str]]:
    found = re.findall(r"^H-(\d+)\t(\S+)\t(.*)$", printed, re.MULTILINE)
    return sorted(((int(number), float(score), text) for number, score, text in found), key=lambda each: each[0])


def generated(model: Family, task, *options, pair="aa-bb"):
    source, target = pair.split("-")
    command = ["fairseq-generate", model.data, "--path", model.checkpoint, "--cpu", "--beam=4", "--nbest=2"]
    languages = [f"--source-lang={source}", f"--target-lang={target}"]
    return helpers.run_here([*command, *languages, "--max-len-b=15", "--max-tokens=200", *task, *options])
