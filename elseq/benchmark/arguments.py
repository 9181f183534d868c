"""The options of the commands that measure, and their parsers. Free of torch, as `elseq.options` is."""

import argparse
from collections.abc import Callable, Collection
from dataclasses import dataclass, fields
from pathlib import Path

from elseq.arguments import Parser, add_fields, choices, count, count_or_zero, counts, option_field, read_path
from elseq.benchmark import BENCHMARKS
from elseq.errors import UserError, as_option
from elseq.options import AUTO, CHECKPOINT, INT8, THREADS, Loading, registered_methods

STOCK_MODES = ("stock", "stock-copied", "stock-shared")
FOREIGN_MODES = {"ctranslate2": "ctranslate2", "huggingface": "transformers"}  # mode: engine and package
FLOATS = ("float32", "bfloat16", "float16")
METRICS = ("bleu", "rouge")  # of `elseq.scoring.metrics.METRICS`
EPILOG = f"""\
Every run is a process of its own: it loads the model, decodes once to warm up, then --repeats times; the median counts.
Runs of the same batch size and beam take turns: each decodes once, then each once more, and another is the first. So a
machine that is busy for a while slows all of them alike.
Modes: stock is fairseq as it installs; stock-copied and stock-shared are the same, told whether the hypotheses of a
sentence share the keys and values of the source; kv, el and auto are elseq's; ctranslate2 and huggingface need those
packages. What stands after -- are model options of fairseq-train for --arch, such as -- --encoder-layers 2.

With -m or with NAME=VALUE the command is a sweep with Hydra, of hydra_conf/benchmark.yaml: elseq-benchmark -m
model=el_bart_base decode=stock,el batch=8,32. docs/sweeps.md says more.

elseq-benchmark NAME is another benchmark, and has a --help of its own: {", ".join(BENCHMARKS)}.
"""


def modes() -> tuple[str, ...]:
    """All that can be measured."""
    return (*STOCK_MODES, *registered_methods(), AUTO, *FOREIGN_MODES)


def device(text: str) -> str:
    """
    Raises:
        UserError: a device that is not here.
    """
    if text == "cpu":
        return text
    import torch  # it takes seconds

    try:
        found = torch.device(text)
    except RuntimeError as error:
        raise UserError(f"{text} is unknown; choose cpu or cuda") from error
    if found.type == "cuda":
        if (found.index or 0) >= torch.cuda.device_count():
            raise UserError(f"{text} is not there; this machine has {torch.cuda.device_count()} CUDA devices")
    elif found.type != "cpu":
        raise UserError(f"{text} is not supported; choose cpu or cuda")
    return "cpu" if found.type == "cpu" else text


_OF_LOADING = {each.name: each.metadata for each in fields(Loading)}


@dataclass(frozen=True)
class Settings:
    """The options of elseq-benchmark, which are also the settings of its sweeps."""

    checkpoint: str | None = None
    data: str | None = option_field(help="folder of its dictionaries (default: the checkpoint's)")
    source_lang: str | None = option_field(**_OF_LOADING["source_lang"])
    target_lang: str | None = option_field(**_OF_LOADING["target_lang"])
    user_dir: str | None = option_field(**_OF_LOADING["user_dir"])
    arch: str | None = option_field(help="an architecture of fairseq or elseq, instead of a checkpoint")
    random_weights: bool = option_field(False, help="with --arch: the same random weights in all modes")
    vocabulary_size: int = option_field(50264, type=count, help="with --arch")
    source: str | None = option_field(help="text in pieces of the model's dictionary, one source a line; decoded whole")
    reference: str | None = option_field(
        help="with --source: score the hypotheses against this, one line for each source; text if the model has a "
        "subword vocabulary beside its dictionary, otherwise pieces of the dictionary"
    )
    metric: str = option_field(METRICS[0], choices=METRICS, help="of the reference: sacreBLEU or ROUGE")
    source_length: int = option_field(512, type=count, help="positions of random sources, one batch")
    output_length: int | None = option_field(type=count, help="tokens of every output, whatever the model would say")
    min_len: int = option_field(1, type=count, help="tokens at least")
    max_len_b: int = option_field(200, type=count, help="tokens at most")
    lenpen: float = option_field(1.0, type=float, help="length penalty")
    no_repeat_ngram_size: int = option_field(0, type=count_or_zero, help="0 is none")
    modes: list[str] = option_field(
        lambda: [mode for mode in modes() if mode not in STOCK_MODES[1:]],
        type=lambda text: choices(modes())(text),  # those of plugins, too
        help=f"of {', '.join(modes())} (default: all but stock-*)",
    )
    stock: bool = option_field(
        True,
        action=argparse.BooleanOptionalAction,
        help="measure stock too, first: the others are compared with it. Its beam search with long prompts of a "
        "language model takes minutes (default: yes)",
    )
    batch_sizes: list[int] = option_field(lambda: [8], type=counts, help="such as 8,32 (default: 8)")
    beams: list[int] = option_field(lambda: [4], type=counts, help="such as 1,4 (default: 4)")
    repeats: int = option_field(3, type=count, help="by the clock; the median counts")
    interleave: bool | None = option_field(
        action=argparse.BooleanOptionalAction,
        help="load the runs of a batch size and beam together, as far as they fit the memory, and let them take turns "
        "(default: on a CPU)",
    )
    dtype: list[str] = option_field(
        lambda: ["float32"],
        type=choices((*FLOATS, INT8)),
        help=f"of {', '.join((*FLOATS, INT8))}; int8 is for a CPU, stock is float32 beside it (default: float32)",
    )
    device: str = option_field("cpu", type=device, help="cpu, cuda or cuda:1")
    threads: int | None = option_field(**THREADS)
    model_options: list[str] = option_field(list)  # of fairseq-train, for arch


def parse(arguments: list[str]) -> tuple[Settings, Path]:
    """The settings, and the folder for the results.

    Raises:
        UserError: a value that cannot be used.
    """
    model_options: list[str] = []
    if "--" in arguments:
        place = arguments.index("--")
        arguments, model_options = arguments[:place], arguments[place + 1 :]
    parser = Parser(
        prog="elseq-benchmark",
        description="Stock fairseq, elseq's ways of decoding and other programs, on the same weights and sources.",
        epilog=EPILOG,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    model = parser.add_argument_group("model")
    model.add_argument("checkpoint", nargs="?", help=CHECKPOINT)
    add_fields(
        model, Settings, "data", "source_lang", "target_lang", "user_dir", "arch", "random_weights", "vocabulary_size"
    )
    work = parser.add_argument_group("what is decoded")
    add_fields(work.add_mutually_exclusive_group(), Settings, "source", "source_length")
    add_fields(
        work, Settings, "reference", "metric", "output_length", "min_len", "max_len_b", "lenpen", "no_repeat_ngram_size"
    )
    runs = parser.add_argument_group("runs")
    add_fields(runs, Settings, "modes", "stock", "batch_sizes", "beams")
    add_run_options(runs, several_dtypes=True)
    options = vars(parser.parse_args(arguments))
    output = options.pop("output")
    return Settings(**options, model_options=model_options), output


def benchmark_parser(name: str, description: str, epilog: str | None = None) -> Parser:
    """The parser of `elseq-benchmark NAME`."""
    prog, kind = f"elseq-benchmark {name}", argparse.RawDescriptionHelpFormatter
    return Parser(prog=prog, description=description, epilog=epilog, formatter_class=kind)


def add_choices(parser: argparse._ActionsContainer, option: str, known: Collection[str], told: str = "") -> None:
    """An option that takes some of these names, with commas; by default all.

    Args:
        told: further words of its help.
    """
    help = f"of {','.join(known)}{told} (default: all)"
    parser.add_argument(option, type=choices(known), default=list(known), help=help)


def add_counts(parser: argparse._ActionsContainer, option: str, default: list[int], told: str) -> None:
    """An option that takes numbers above 0, with commas."""
    help = f"{told} (default: {','.join(map(str, default))})"
    parser.add_argument(option, type=counts, default=default, help=help)


def parse_tiny(parser: Parser, arguments: list[str], tiny: dict, help: str) -> argparse.Namespace:
    """The options, with one more, --tiny, with which others have other defaults.

    Args:
        tiny: these defaults, by the names of the options.
        help: of --tiny.

    Raises:
        UserError: an option or a value that cannot be used.
    """
    parser.add_argument("--tiny", action="store_true", help=help)
    if parser.parse_args(arguments).tiny:
        parser.set_defaults(**tiny)
    return parser.parse_args(arguments)


def tiny_options(*sides: str, heads: int = 4) -> tuple[str, ...]:
    """Options of fairseq-train for the encoder, the decoder or both of a tiny model."""
    sizes = "layers=2", "embed-dim=32", "ffn-embed-dim=64", f"attention-heads={heads}"
    return tuple(f"--{side}-{size}" for side in sides for size in sizes)


def add_run_options(
    parser: argparse._ActionsContainer, several_dtypes: bool = False, dtypes: Collection[str] = FLOATS
) -> None:
    """Add options: how and where each run is made, and the folder of the results.

    Args:
        parser: the parser or group.
        several_dtypes: whether runs may have different types, of `FLOATS` and int8.
        dtypes: otherwise the choices for the type of all runs.
    """
    add_fields(parser, Settings, "repeats", *(("interleave", "dtype") if several_dtypes else ()), "device", "threads")
    if not several_dtypes:
        told = "int8 is for decoding on a CPU, stock is float32 beside it " if INT8 in dtypes else ""
        parser.add_argument("--dtype", choices=dtypes, default="float32", help=f"{told}(default: %(default)s)")
    told = "folder for the results (default: %(default)s)"
    parser.add_argument("--output", type=read_path, default="benchmark_output", help=told)


def check_int8(dtypes: Collection[str], device: str, name: Callable[[str], str] = as_option) -> None:
    """
    Args:
        dtypes: the types that are measured.
        device: the device.
        name: how errors call the option.

    Raises:
        UserError: int8, and the device is no CPU.
    """
    if INT8 in dtypes and device != "cpu":
        raise UserError("int8 is for a CPU: on a GPU give float16 or bfloat16", name("dtype"))
