"""elseq-generate on the tiny translation model, for its tests."""

from argparse import Namespace

import pytest
import torch
from fairseq import checkpoint_utils
from fairseq.sequence_generator import SequenceGenerator

import elseq
from elseq.generator import TextGenerator
from elseq.text_files.journal import read_records
from tests import helpers

SEARCH = {"beam": 3, "max_len_b": 20, "lenpen": 1.5}
OPTIONS = [f"--{name.replace('_', '-')}={value}" for name, value in SEARCH.items()]


def texts_of(trained):
    lines = (trained.raw / "test.src").read_text().split("\n")[:-1]
    return [*lines[:3], "", *lines[3:], "  \t"]


@pytest.fixture
def source(tiny_translation, tmp_path):
    """Lines in a file, blank ones among them."""
    path = tmp_path / "input.txt"
    path.write_text("".join(f"{line}\n" for line in texts_of(tiny_translation)))
    return path


def arguments(trained, source, output, *options):
    files = ["--input", source, "--output", output]
    return ["elseq-generate", "--model", trained.checkpoint, "--data", trained.data, *files, *OPTIONS, *options]


@pytest.fixture
def run(tiny_translation, source, tmp_path):
    """Run the command; returns what came of it. The output is tmp_path/output.txt."""

    def run(*options, check=True, model=tiny_translation, input=source):
        return helpers.run_here(arguments(model, input, tmp_path / "output.txt", *options), check=check)

    run.output = tmp_path / "output.txt"
    run.journals = tmp_path / "output.txt.partial"
    return run


def read(path):
    lines = path.read_text(encoding="utf-8").split("\n")
    assert lines.pop() == ""
    return lines


@pytest.fixture(scope="module")
def expected(tiny_translation):
    """What the tiny translation model makes of `source`."""
    model = elseq.load(tiny_translation.checkpoint, data=tiny_translation.data)
    return model.generate(texts_of(tiny_translation), **SEARCH)


@pytest.fixture(scope="module")
def stock(tiny_translation):
    """For each line that is not blank the hypotheses of fairseq's own generator, in float32, sentence by sentence."""
    [model], _, task = checkpoint_utils.load_model_ensemble_and_task(
        [str(tiny_translation.checkpoint)], {"data": str(tiny_translation.data), "task": "translation"}
    )
    search = SequenceGenerator(
        [model.eval()],
        task.target_dictionary,
        beam_size=SEARCH["beam"],
        max_len_b=SEARCH["max_len_b"],
        len_penalty=SEARCH["lenpen"],
    )
    found = {}
    for index, text in enumerate(texts_of(tiny_translation)):
        if text.strip():
            tokens = task.source_dictionary.encode_line(text, add_if_not_exist=False).long()[None]
            sample = {"net_input": {"src_tokens": tokens, "src_lengths": torch.tensor([tokens.numel()])}}
            with torch.no_grad():
                found[index] = search.generate([model], sample)[0]
    return Namespace(found=found, dictionary=task.target_dictionary)


def interrupt_after(monkeypatch, batches, error=KeyboardInterrupt):
    """Let the model raise an error once it has decoded so many batches."""
    decode = TextGenerator.decode
    calls = []

    def interrupted(self, search, sources):
        calls.append(len(sources))
        if len(calls) > batches:
            raise error
        return decode(self, search, sources)

    monkeypatch.setattr(TextGenerator, "decode", interrupted)
    return calls


def finished_lines(journals):
    records = 0
    for path in journals.glob("*.journal"):
        records += max(0, len(read_records(path.read_bytes())[0]) - 1)
    return records
