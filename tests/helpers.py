"""Tiny data sets and models for tests, made by fairseq's own commands, and ways to run those and to read tables."""

import contextlib
import fcntl
import io
import itertools
import logging
import os
import random
import subprocess
import sys
import warnings
from dataclasses import dataclass
from importlib.metadata import entry_points
from pathlib import Path
from unittest import mock

from torch.profiler import ProfilerActivity, profile

from elseq.compat.commands import silence_old_code
from elseq.errors import user_sentence

USER_DIR = Path(__file__).resolve().parents[1] / "elseq"
DATA = Path(os.environ.get("ELSEQ_DATA") or "no ELSEQ_DATA")  # real text; tests that need it skip where it is not
SEPARATOR = "=>"  # between prompt and target in a line of language-model data


def peak_memory(call):
    """The most bytes that torch's allocator had given at a time while this ran, as the profiler records them."""
    with profile(activities=[ProfilerActivity.CPU], profile_memory=True) as recorded:
        call()
    events = [event for event in recorded.profiler.kineto_results.events() if event.name() == "[memory]"]
    sizes = [event.nbytes() for event in sorted(events, key=lambda event: event.start_ns())]
    return max(itertools.accumulate(sizes))


def once(tmp_path_factory, name, make):
    """A folder of this run that `make` fills, in the first of its processes that asks for it."""
    base = tmp_path_factory.getbasetemp()
    folder = (base.parent if "PYTEST_XDIST_WORKER" in os.environ else base) / name
    made = folder.with_suffix(".made")
    with folder.with_suffix(".lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        if not made.exists():
            folder.mkdir(exist_ok=True)
            make(folder)
            made.touch()
    return folder


@dataclass
class Trained:
    """A data set and a checkpoint that was trained on it."""

    raw: Path  # train.src, train.tgt, train.lm, the same with valid and test
    data: Path  # made by fairseq-preprocess
    checkpoint: Path

    @property
    def is_language_model(self) -> bool:
        return not (self.data / "dict.src.txt").exists()


def run(command, input=b"", check=False, **environment):
    """Run a console command of the virtual environment in a process of its own."""
    name, *arguments = map(str, command)
    return subprocess.run(
        [Path(sys.executable).parent / name, *arguments],
        input=input,
        capture_output=True,
        check=check,
        env={**os.environ, "OMP_NUM_THREADS": "1", **environment},
    )


def run_here(command, input=b"", check=True):
    """As `run`, in this process: it saves the seconds that importing torch and fairseq take.

    What is logged is part of stdout.
    """
    (entry_point,) = entry_points(group="console_scripts", name=str(command[0]))
    stdout, stderr, returncode = io.StringIO(), io.StringIO(), 0
    log, level = logging.StreamHandler(stdout), logging.root.level
    logging.root.addHandler(log)
    logging.root.setLevel(logging.INFO)
    try:
        with (
            warnings.catch_warnings(),  # of pytest, which drops elseq's filters
            mock.patch.object(sys, "argv", list(map(str, command))),
            mock.patch.object(sys, "stdin", io.TextIOWrapper(io.BytesIO(input))),
            contextlib.redirect_stdout(stdout),
            contextlib.redirect_stderr(stderr),
        ):
            silence_old_code()
            entry_point.load()()
    except SystemExit as exit:
        returncode = exit.code or 0
    except Exception as error:
        if user_sentence(error) is None:
            raise
        stderr.write(f"elseq: error: {user_sentence(error)}\n")
        returncode = 1
    finally:
        logging.root.removeHandler(log)
        logging.root.setLevel(level)
    if check and returncode:
        raise AssertionError(f"{command[0]} ended with {returncode}: {stderr.getvalue()}")
    return subprocess.CompletedProcess(command, returncode, stdout.getvalue(), stderr.getvalue())


def table_rows(text):
    """Lists of cells, of the lines that are rows of Markdown tables."""
    return [[cell.strip() for cell in line.strip("|").split("|")] for line in text.splitlines() if line.startswith("|")]


def write_text(raw, sizes=(("train", 400), ("valid", 30), ("test", 21)), seed=1):
    """Sentences of 2 to 10 words out of 20; the target is the source reversed.

    A word is followed by one of three others: that much even a tiny model learns in seconds.
    """
    generator = random.Random(seed)
    raw.mkdir(parents=True, exist_ok=True)
    for split, size in sizes:
        lines = {"src": [], "tgt": [], "lm": []}
        for _ in range(size):
            steps = [generator.randrange(20), *(generator.randint(1, 3) for _ in range(generator.randint(1, 9)))]
            words = [f"w{number % 20}" for number in itertools.accumulate(steps)]
            source, target = " ".join(words), " ".join(reversed(words))
            for suffix, line in (("src", source), ("tgt", target), ("lm", f"{source} {SEPARATOR} {target}")):
                lines[suffix].append(f"{line}\n")
        for suffix in lines:
            (raw / f"{split}.{suffix}").write_text("".join(lines[suffix]))
    return raw


def binarize(raw, data, *options):
    """The translation data set, with one dictionary for both sides."""
    prefixes = [f"--{split}pref={raw / split}" for split in ("train", "valid", "test")]
    languages = ["-s", "src", "-t", "tgt", "--joined-dictionary"]
    run_here(["fairseq-preprocess", "--destdir", data, *languages, *prefixes, *options])
    return data


def binarize_lines(raw, data, *options):
    """The data set of a language model."""
    prefixes = [f"--{split}pref={raw / f'{split}.lm'}" for split in ("train", "valid", "test")]
    run_here(["fairseq-preprocess", "--destdir", data, "--only-source", *prefixes, *options])
    return data


def train_command(arch, data, save_dir, *options):
    """fairseq-train with a tiny model of the architecture; the last of two equal options wins."""
    language_model = "_lm" in arch
    sides = ["decoder"] if language_model else ["encoder", "decoder"]
    numbers = {"layers": 2, "embed-dim": 32, "ffn-embed-dim": 64, "attention-heads": 4}
    sizes = [f"--{side}-{name}={number}" for side in sides for name, number in numbers.items()]
    if language_model:
        sizes += ["--decoder-input-dim=32", "--decoder-output-dim=32", "--share-decoder-input-output-embed"]
        sizes += ["--task=language_modeling", "--tokens-per-sample=64", "--sample-break-mode=eos"]
    else:
        sizes += ["--share-all-embeddings", "--max-source-positions=64", "--max-target-positions=64"]
    schedule = ["--optimizer=adam", "--lr=0.01", "--clip-norm=1", "--max-tokens=800", "--max-update=100"]
    saving = ["--save-dir", save_dir, "--no-epoch-checkpoints", "--save-interval=1000", "--validate-interval=1000"]
    process = ["--cpu", "--seed=1", "--num-workers=0", "--log-format=none"]
    return ["fairseq-train", data, "--arch", arch, *sizes, *schedule, *saving, *process, *options]


def train(arch, data, save_dir, *options):
    """Train a tiny model in this process; returns the path of its last checkpoint."""
    run_here(train_command(arch, data, save_dir, *options))
    return Path(save_dir) / "checkpoint_last.pt"
