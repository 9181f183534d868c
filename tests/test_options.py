"""The options of the commands: that they need no torch, and that they are those of what they are for."""

import re
import sys
from dataclasses import fields
from pathlib import Path

import pytest
from fairseq.dataclass.configs import GenerationConfig

from elseq import options, precision
from elseq.attention import methods
from elseq.benchmark import BENCHMARKS, arguments
from elseq.errors import UserError
from elseq.interop import hugging_face
from elseq.interop.hugging_face.families import FAMILIES
from elseq.options import STOCK, Loading, Search, decode_attention_names
from elseq.scoring.metrics import METRICS
from tests import helpers

SLOW = {"torch", "fairseq", "nltk", "sacrebleu"}  # to import
COMMANDS = ("elseq-benchmark", "elseq-convert", "elseq-generate", "elseq-score", "elseq-user-dir")


def imported(*command):
    """What a command ends with, and the packages that it has imported."""
    name, *rest = command
    program = [sys.executable, "-X", "importtime", Path(sys.executable).parent / name]
    ended = helpers.run([*program, *rest])
    lines = ended.stderr.decode().splitlines()
    names = {found[1] for line in lines if (found := re.match(r"import time: .*\| +(\w+)", line))}
    errors = [line for line in lines if not line.startswith("import time:")]
    assert "elseq" in names and "argparse" in names
    return ended.returncode, ended.stdout.decode(), errors, names


@pytest.mark.parametrize("command", [*COMMANDS, *(f"elseq-benchmark {name}" for name in BENCHMARKS)])
def test_help_needs_no_torch(command):
    returncode, printed, errors, names = imported(*command.split(), "--help")
    assert (returncode, errors) == (0, [])
    assert printed.startswith(f"usage: {command} ")
    assert not names & SLOW


@pytest.mark.parametrize(
    "command, sentence",
    [
        (["elseq-generate", "--model=x", "--beem=3"], "unrecognized arguments: --beem=3; see elseq-generate --help"),
        (["elseq-generate", "--model=x", "--data=/none"], "--data /none is no folder; name that of the dictionaries"),
        (
            ["elseq-generate", "--model=x", "--bpe=fastbpe"],
            "--bpe-codes is missing: name the file of the codes of fastbpe",
        ),
        (["elseq-benchmark", "x", "--batches=3"], "unrecognized arguments: --batches=3; see elseq-benchmark --help"),
        (["elseq-benchmark", "multi-query", "--batch=0"], "--batch '0' is not a whole number above 0"),
        (["elseq-benchmark", "top-k", "--methods=sdpa", "--what=chunks"], "--methods sdpa has none for --what chunks"),
        (["elseq-convert", "from-hf", "x"], "the following arguments are required: --output; see elseq-convert "),
        (["elseq-user-dir", "/none"], "/none is no folder: give those of plugins"),
        (["elseq-score", "rouge", "x", "--stem"], "the following arguments are required: REFERENCES; see elseq-score "),
    ],
)
def test_errors_need_no_torch(command, sentence):
    returncode, _, errors, names = imported(*command)
    assert returncode == 1
    assert errors[0].startswith(f"elseq: error: {sentence}") and len(errors) == 1
    assert not names & SLOW


def test_whatever_is_not_a_command_is_set_up_at_once():
    program = "import elseq, sys; assert elseq.load; print('fairseq' in sys.modules, elseq.COMMANDS)"
    ended = helpers.run([sys.executable, "-c", program], check=True)
    assert ended.stdout.decode() == f"True {COMMANDS}\n"


def test_a_plugin_is_imported_after_what_it_registers_with(plugin):
    returncode, _, errors, names = imported("elseq-generate", "--model=x", f"--user-dir={plugin}", "--attention=such")
    assert returncode == 1 and "torch" in names
    assert re.search(r"--attention: invalid choice: 'such' \(choose from '?auto'?, .*reprojected", errors[-1])


def test_the_search_is_fairseq_s():
    known = {each.name: each for each in fields(GenerationConfig)}
    for each in fields(Search):
        if each.name not in ("early_stopping", "beam_patience", "constraints"):
            assert each.default == known[each.name].default, each.name
            assert each.metadata.get("type", bool) is known[each.name].type, each.name


def test_choices_are_what_there_is():
    """`elseq.options` repeats the names of what takes seconds to import."""
    assert tuple(methods.METHODS) == options.METHODS
    assert decode_attention_names() == (*methods.names(), STOCK)
    assert tuple(precision.DTYPES) == options.DTYPES and precision.INT8 == options.INT8
    assert {each.title: each.model_class for each in FAMILIES.values()} == hugging_face._MODEL_CLASSES
    assert set(arguments.METRICS) <= set(METRICS)


@pytest.mark.parametrize(
    "given, sentence",
    [
        ({"bpe": "sentencepiece"}, "sentencepiece_model is missing: name the file of sentencepiece"),
        ({"bpe": "gpt2", "gpt2_encoder_json": __file__}, "gpt2_vocab_bpe is missing: name the file of gpt2"),
        ({"bpe": "fastbpe"}, "bpe_codes is missing: name the file of the codes of fastbpe"),
        ({"bpe_codes": "x"}, "bpe is missing: say whose codes they are, subword_nmt or fastbpe"),
        ({"tokenizer_json": "x"}, "bpe is missing: x needs hugging_face"),
        (
            {"bpe": "fastbpe", "bpe_codes": __file__, "sentencepiece_model": "x"},
            "sentencepiece_model x does not go with bpe fastbpe: leave out one",
        ),
        ({"bpe": "hugging_face", "tokenizer_json": "/none"}, "tokenizer_json /none is no file: check the path"),
        (
            {"bpe": "hugging_face", "tokenizer_json": "/dev/null"},
            "/dev/null is a pipe or a device: give a regular file",
        ),
        ({"bpe": "word"}, "bpe 'word' is unknown; choose one of " + ", ".join(options.BPE)),
        ({"data": "/none"}, "data /none is no folder; name that of the dictionaries"),
    ],
)
def test_files_that_do_not_go_together(given, sentence):
    with pytest.raises(UserError) as raised:
        Loading(**given).check()
    assert str(raised.value) == sentence


def test_the_files_are_inputs(tmp_path):
    for kind, names in options.BPE.items():
        loading = Loading(bpe=kind, **{name: tmp_path / name for name in names})
        assert loading.inputs() == loading.bpe_files() == [tmp_path / name for name in names]
