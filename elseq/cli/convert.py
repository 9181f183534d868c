"""elseq-convert: convert checkpoints: from and to other programs, to fewer key/value heads, to their mean."""

import argparse
import sys

import elseq
from elseq.arguments import Parser, add_fields, choices, count, read_path
from elseq.errors import UserError
from elseq.interop import CALIBRATED, GROUPINGS, HEAD_METHODS, NEIGHBOURS, PLACES, QUANTIZATIONS, SIMILAR
from elseq.interop.hugging_face import model_classes
from elseq.options import Loading

DEFAULT_PLACES = ("decoder", "cross")  # attentions whose keys and values decoding reads at every step
CALIBRATION_SENTENCES = 500


def main() -> None:
    args = _parse(sys.argv[1:])
    elseq.set_up()
    from elseq.cli import conversions

    conversions.COMMANDS[args.command](args)


def _parse(arguments: list[str]):
    parser = Parser(prog="elseq-convert", description=__doc__.partition(": ")[2])
    commands = parser.add_subparsers(dest="command", metavar="COMMAND", required=True)
    _add_heads(commands)
    command = _add(
        commands,
        "average",
        "several checkpoints of a training to the mean of their parameters",
        "Write a checkpoint with the mean of the parameters, for decoding or further training. It has no state of the "
        "optimizer. The rest is that of the last checkpoint.",
    )
    command.add_argument(
        "checkpoints",
        nargs="+",
        type=read_path,
        metavar="CHECKPOINT",
        help="checkpoints, or with --last the folder of the training",
    )
    command.add_argument("--last", type=count, metavar="N", help="the N last checkpoints of the folder, by epochs")
    command.add_argument(
        "--by-updates", action="store_true", help="with --last: those of --save-interval-updates instead of epochs"
    )
    _add_output(command, "FILE", "file to write")
    families = " or ".join(model_classes())
    classes = " or a ".join(model_classes().values())
    command = _add(
        commands,
        "from-hf",
        f"to fairseq: a {families} of Hugging Face's transformers",
        "Write a folder that elseq.load and fairseq read (model.pt, dict.txt, tokenizer.json), and print the options "
        "with which fairseq-generate follows the model's generation settings. Nothing is downloaded.",
    )
    command.add_argument(
        "folder", type=read_path, metavar="FOLDER", help="a folder with config.json, the weights and the tokenizer"
    )
    command.add_argument(
        "--data", type=read_path, metavar="FOLDER", help="folder of the tokenizer (default: that of the model)"
    )
    _add_output(command, "DIR", "folder to write")
    command = _add(
        commands,
        "to-hf",
        f"to Hugging Face's transformers: a {families}",
        f"Write a folder that transformers loads as a {classes}.",
    )
    _add_model(command)
    command.add_argument(
        "--family",
        metavar="NAME",
        help="the model_type to write, of those that the model can be (default: the first of them)",
    )
    command.add_argument(
        "--settings",
        metavar="MODEL",
        help="a checkpoint, or its folder, whose settings of generation are written, such as the one that the training "
        "began with (default: MODEL, though fairseq-train records none)",
    )
    _add_output(command, "DIR", "folder to write")
    command = _add(
        commands,
        "to-ctranslate2",
        "to CTranslate2: Transformer, BART, language model",
        "Write a folder that CTranslate2 loads. The package ctranslate2 must be installed.",
    )
    _add_model(command)
    command.add_argument(
        "--quantization",
        choices=QUANTIZATIONS,
        metavar="TYPE",
        help=f"type of the weights: {', '.join(QUANTIZATIONS)} (default: float32)",
    )
    _add_output(command, "DIR", "folder to write")
    command = _add(
        commands,
        "to-fairseq",
        "to a checkpoint that fairseq loads without elseq",
        "Write the same parameters with an architecture of fairseq. On torch 2.6 and later, fairseq without elseq "
        "loads Transformer and BART checkpoints only with TORCH_FORCE_NO_WEIGHTS_ONLY_LOAD=1.",
    )
    command.add_argument("model", metavar="MODEL", help="a checkpoint, or its folder")
    _add_output(command, "FILE", "file to write")
    args = parser.parse_args(arguments)
    if args.command == "heads":
        _check_heads(args)
    return args


def _share(text: str) -> float:
    """
    Raises:
        UserError: the text is no number above 0 and up to 1.
    """
    try:
        share = float(text)
    except ValueError:
        share = 0.0
    if not 0 < share <= 1:
        raise UserError(f"{text!r} is no share: give a number above 0 and up to 1, such as 0.25")
    return share


def _check_heads(args) -> None:
    """
    Raises:
        UserError: calibration text is missing where it is needed, or given where it is not read.
    """
    if args.grouping == SIMILAR and args.method == "random":
        raise UserError("--grouping similar is for heads that are kept: leave it out, or give another --method")
    readers = {
        f"--method {args.method}": args.method in CALIBRATED,
        f"--grouping {SIMILAR}": args.grouping == SIMILAR,
        "--state-budget": args.state_budget is not None,
    }
    reader = next((option for option, reads in readers.items() if reads), None)
    if args.state_budget is not None and args.method == "random":
        raise UserError("--state-budget is for heads that are kept: give another --method than random")
    if reader is not None and args.calibration is None:
        raise UserError(f"{reader} needs calibration text: give --calibration, a split of --data or a file")
    if reader is None and args.calibration is not None:
        options = f"--method {' or '.join(CALIBRATED)}, --grouping {SIMILAR} and --state-budget"
        raise UserError(f"--calibration is for {options}: leave it out, or give one of them")
    if args.calibration_target is not None and args.calibration is None:
        raise UserError("--calibration-target needs --calibration, the file of its sources: give both")
    if args.calibration_sentences is not None and args.calibration is None:
        raise UserError("--calibration-sentences needs --calibration: give both, or leave it out")


def _add(commands, name: str, summary: str, description: str) -> argparse.ArgumentParser:
    command = commands.add_parser(name, help=summary, description=description)
    add_fields(command, Loading, "user_dir")
    return command


def _add_model(command: argparse.ArgumentParser) -> None:
    command.add_argument("model", metavar="MODEL", help="a checkpoint of fairseq or elseq, or its folder")
    command.add_argument(
        "--data",
        type=read_path,
        metavar="FOLDER",
        help="folder of dict.txt and the subword vocabulary (default: the checkpoint's or its training data's)",
    )


def _add_output(command: argparse.ArgumentParser, metavar: str, text: str) -> None:
    command.add_argument("--output", type=read_path, metavar=metavar, required=True, help=text)
    command.add_argument("--overwrite", action="store_true", help="replace an existing output")


def _add_heads(commands) -> None:
    command = _add(
        commands,
        "heads",
        "from multi-head attention to fewer key/value heads",
        "Pool the key and value heads of a multi-head checkpoint of fairseq or elseq (Transformer, BART or language "
        "model): grouped-query attention, or with one head multi-query attention. The result of all methods but fitted "
        "needs further training, for which the command prints the options. 2305.13245 trains for a twentieth of the "
        "original updates.",
    )
    command.add_argument("model", metavar="MODEL", help="a checkpoint of fairseq or elseq, or its folder")
    number = command.add_mutually_exclusive_group(required=True)
    number.add_argument("--num-kv-heads", type=count, metavar="N", help="key/value heads; divides the number of heads")
    number.add_argument(
        "--state-budget",
        type=_share,
        metavar="SHARE",
        help="instead: keep this share of the keys and values of a position, such as 0.25, with numbers of heads in "
        "each layer that cost least on the calibration text",
    )
    command.add_argument(
        "--method",
        choices=HEAD_METHODS,
        default="mean",
        help="replace each group of heads by its mean; by the mean of heads that are first turned towards one another "
        "(aligned); by the least-squares fit to their outputs (fitted); by its first head; or by random weights. "
        f"{' and '.join(CALIBRATED)} need --calibration (default: mean)",
    )
    command.add_argument(
        "--grouping",
        choices=GROUPINGS,
        default=NEIGHBOURS,
        help="the heads that share a key/value head: neighbours, or those that are similar on the calibration text "
        "(default: neighbours)",
    )
    command.add_argument(
        "--in",
        dest="places",
        type=choices(PLACES),
        metavar="PLACES",
        help=f"of {', '.join(PLACES)} (default: {','.join(DEFAULT_PLACES)}, those that the model has)",
    )
    command.add_argument(
        "--calibration",
        type=read_path,
        metavar="TEXT",
        help="calibration text: a split of the binarized data in --data, such as train, or a file of sources (of a "
        "language model: of texts), a sentence a line",
    )
    command.add_argument(
        "--calibration-target",
        type=read_path,
        metavar="FILE",
        help="the file of the targets, where --calibration is a file of sources",
    )
    command.add_argument(
        "--calibration-sentences",
        type=count,
        metavar="N",
        help=f"how many are read, spread over the text (default: {CALIBRATION_SENTENCES})",
    )
    add_fields(command, Loading, "data")
    command.add_argument(
        "--output", type=read_path, help="default: NAME.Nkv.pt, or NAME.budget-SHARE.pt, in the folder of the model"
    )
    command.add_argument("--overwrite", action="store_true", help="replace an existing file")
    command.add_argument("--seed", type=int, default=1, help="seed of random weights (default: %(default)s)")


if __name__ == "__main__":
    main()
