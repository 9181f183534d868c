"""elseq-score: ROUGE of summaries; BLEU, METEOR and ROUGE-L of generated questions."""

import sys

from elseq.arguments import Parser, count_or_zero, read_path
from elseq.errors import UserError
from elseq.scoring import SEED
from elseq.scoring.published import settings as published_settings

EPILOG = "docs/scores.md defines each score and cites the published scores."


def main() -> None:
    args = _parse(sys.argv[1:])
    from elseq.cli.scores import score  # nltk, rouge-score and sacreBLEU take a second to import

    score(args)


def _parse(arguments: list[str]):
    parser = Parser(prog="elseq-score", description=__doc__.partition(": ")[2], epilog=EPILOG)
    commands = parser.add_subparsers(dest="command", metavar="COMMAND", required=True)
    rouge = commands.add_parser(
        "rouge",
        help="summaries",
        description="ROUGE-1, -2, -L and -Lsum of summaries, by rouge-score: F1, precision, recall.",
        epilog=EPILOG,
    )
    rouge.add_argument(
        "--sentence-separator",
        type=_mark,
        metavar="MARK",
        help="separator between the sentences of the references, and of hypotheses whose file has it (default: "
        "sentences are found by punctuation)",
    )
    rouge.add_argument("--no-stem", dest="stem", action="store_false", help="compare words, not their stems")
    questions = commands.add_parser(
        "qg",
        help="generated questions",
        description="BLEU-4, sacreBLEU, METEOR and ROUGE-L of generated questions.",
        epilog=EPILOG,
    )
    questions.add_argument(
        "--sources",
        type=read_path,
        help="the source of each line: the references of equal sources form one example, as in Du et al. (2017)",
    )
    questions.add_argument("--tokenized", action="store_true", help="the text is already tokenized: split it at spaces")
    for command in (rouge, questions):
        command.add_argument(
            "hypotheses",
            type=read_path,
            nargs="+",
            metavar="HYPOTHESES",
            help="output of a system, one example per line",
        )
        command.add_argument("references", type=read_path, metavar="REFERENCES", help="references, in the same order")
        command.add_argument("--log", action="store_true", help="HYPOTHESES are logs of fairseq-generate")
        command.add_argument(
            "--bootstrap",
            type=count_or_zero,
            default=1000,
            metavar="N",
            help="number of bootstrap samples; 0: no intervals (default: 1000)",
        )
        command.add_argument("--seed", type=count_or_zero, default=SEED, help="bootstrap seed (default: %(default)s)")
        command.add_argument(
            "--setting",
            choices=published_settings(command.prog.split()[-1]),
            help="published scores for comparison: %(choices)s",
            metavar="NAME",
        )
        command.add_argument("--output", type=read_path, metavar="FILE", help="also write the report as JSON")
    return parser.parse_args(arguments)


def _mark(text: str) -> str:
    if not text.strip():
        raise UserError("is blank: give the mark, or leave the option out")
    return text


if __name__ == "__main__":
    main()
