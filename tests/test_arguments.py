"""What the commands have in common on the command line."""

from pathlib import Path

import pytest

from elseq.arguments import (
    Parser,
    choices,
    count,
    count_or_zero,
    counts,
    format_bytes,
    is_sweep,
    parse_bytes,
    read_path,
)
from elseq.errors import UserError, as_option


@pytest.fixture
def parser():
    parser = Parser(prog="elseq-something")
    commands = parser.add_subparsers(metavar="COMMAND")
    command = commands.add_parser("measure")
    command.add_argument("--number", type=count, default="3")
    command.add_argument("--from", dest="start", type=count_or_zero)
    command.add_argument("--sizes", type=counts)
    command.add_argument("--names", type=choices({"kv": 1, "el": 2}))
    command.add_argument("--seed", type=int)
    command.add_argument("--penalty", type=float)
    command.add_argument("--memory", type=parse_bytes)
    command.add_argument("repeats", nargs="?", type=count)
    return parser


def test_values(parser):
    args = parser.parse_args(["measure", "7", "--from=0", "--sizes=4,2", "--names=el,kv,el", "--seed=-1"])
    assert vars(args) == {
        **{"number": 3, "start": 0, "sizes": [4, 2], "names": ["el", "kv"], "seed": -1, "repeats": 7},
        **{"penalty": None, "memory": None},
    }


@pytest.mark.parametrize("text", ["-1", "-.5", "-1.5", "-1e3", "-1.e-3", "-inf", "-Infinity"])
def test_negative_numbers(parser, text):
    assert parser.parse_args(["measure", "--penalty", text]).penalty == float(text)


@pytest.mark.parametrize(
    "line, sentence",
    [
        ("measure --number=0", "--number '0' is not a whole number above 0"),
        ("measure --number -3", "--number '-3' is not a whole number above 0"),
        ("measure --memory -5G", "--memory '-5G' is not a size in bytes above 0; give one such as 16G or 800M"),
        ("measure --sizes -8,32", "--sizes '-8' is not a whole number above 0"),
        ("measure --penalty -x", "argument --penalty: expected one argument; see elseq-something measure --help"),
        ("measure --number=1.5", "--number '1.5' is not a whole number above 0"),
        ("measure --from -1", "--from '-1' is neither 0 nor a whole number above it"),
        ("measure --sizes=4,,2", "--sizes '' is not a whole number above 0"),
        ("measure --names=el,stock", "--names 'stock' is unknown; choose from kv, el"),
        ("measure none", "repeats 'none' is not a whole number above 0"),
        ("measure --seed=x", "--seed x is not possible: give a whole number"),
        ("measure --number", "argument --number: expected one argument; see elseq-something measure --help"),
        ("--such", "unrecognized arguments: --such; see elseq-something --help"),
    ],
)
def test_complaints_are_errors_of_the_user(parser, capsys, line, sentence):
    with pytest.raises(UserError) as error:
        parser.parse_args(line.split())
    assert str(error.value) == sentence
    assert capsys.readouterr().err == ""


def test_keywords_as_options():
    assert as_option("max_len_b") == "--max-len-b"


@pytest.mark.parametrize(
    "text, size",
    [("1", 1), ("800M", 800 * 2**20), ("1.5g", 3 * 2**29), (" 16GiB", 2**34), ("2KB", 2048), ("1T", 2**40)],
)
def test_sizes(text, size):
    assert parse_bytes(text) == size


@pytest.mark.parametrize("text", ["", "G", "-1G", "0", "0.1", "nan", "infG", "1P", "16 G B", "much"])
def test_what_is_no_size(text):
    with pytest.raises(UserError, match="is not a size in bytes above 0; give one such as 16G or 800M"):
        parse_bytes(text)


@pytest.mark.parametrize("text", ["~/file", "~"])
def test_the_home_folder_in_paths(monkeypatch, tmp_path, text):
    """A shell replaces it in `--option ~/file`, and not in `--option=~/file`."""
    monkeypatch.setenv("HOME", str(tmp_path))
    assert read_path(text) == tmp_path / text[2:]


@pytest.mark.parametrize("text", ["file", "/a/~/b", "~nobody-has-this-name/file"])
def test_other_paths_stay(text):
    assert read_path(text) == Path(text)


def test_numbers_count_once():
    assert counts("4,2,4") == [4, 2]


@pytest.mark.parametrize(
    "line",
    [
        "-m",
        "--multirun decode=el",
        "decode=el batch=4",
        "--config-dir=conf",
        "--config-dir conf",
        "-cd conf",
        "hydra/launcher=slurm",
        "+new.key=1",
        "--cfg job",
    ],
)
def test_for_hydra(line):
    assert is_sweep(line.split())


@pytest.mark.parametrize(
    "line",
    [
        "",
        "checkpoint.pt --modes=el",
        "--arch bart_base --random-weights -- --adam-betas=(0.9,0.98) a=b",
        "--output lenpen=2.txt --model x.pt",
        "--output=lenpen=2.txt",
    ],
)
def test_not_for_hydra(line):
    assert not is_sweep(line.split())


def test_a_file_is_a_file(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    assert is_sweep(["runs/lr=0.1/checkpoint.pt"])
    (tmp_path / "runs" / "lr=0.1").mkdir(parents=True)
    (tmp_path / "runs" / "lr=0.1" / "checkpoint.pt").touch()
    assert not is_sweep(["runs/lr=0.1/checkpoint.pt"])


@pytest.mark.parametrize(
    "size, text",
    [(0, "0 bytes"), (1023, "1023 bytes"), (1024, "1.0 KiB"), (3 * 2**29, "1.5 GiB"), (2**42, "4.0 TiB")],
)
def test_sizes_for_people(size, text):
    assert format_bytes(size) == text
