"""elseq-score: ROUGE of summaries; BLEU, METEOR and ROUGE-L of generated questions."""

import sys
from pathlib import Path

import elseq  # noqa: F401  # installs the one-sentence error messages
from elseq.arguments import Parser, count_or_zero
from elseq.errors import UserError
from elseq.files import check_output_file, check_standard_output, read_lines, written_whole
from elseq.reports.logs import read_generation
from elseq.scoring.inputs import check_equal_lengths, into_sentences
from elseq.scoring.published import settings as published_settings
from elseq.scoring.questions import NO_METEOR, group_by_source, score_questions
from elseq.scoring.report import System, report, table, to_json
from elseq.scoring.statistics import SEED, resample
from elseq.scoring.summaries import other_letters, score_summaries

EPILOG = "docs/scores.md defines each score and cites the published scores."


def main() -> None:
    args = _parse(sys.argv[1:])
    sources = [args.sources] if getattr(args, "sources", None) else []
    inputs = (*args.hypotheses, args.references, *sources)
    if args.output:
        check_output_file(args.output, *inputs)
    else:
        check_standard_output(*inputs)
    if len(set(args.hypotheses)) < len(args.hypotheses):
        raise UserError("a file of hypotheses is given twice: leave one out")
    hypotheses = {path: _read(path, args.log) for path in args.hypotheses}
    references = list(read_lines(args.references))
    check_equal_lengths({args.references: references, **hypotheses})
    systems, settings, notes = args.score(args, hypotheses, references)
    settings = {
        "command": args.command,
        "references": str(args.references),
        "lines": len(references),
        "empty_references": _count_blank(references),
        "bootstrap": args.bootstrap,
        "seed": args.seed,
        **settings,
    }
    resampled = resample([system.scores for system in systems], args.bootstrap, args.seed) if args.bootstrap else None
    content = report(systems, resampled, settings, notes, args.setting)
    try:
        print(table(content), "", *content["notes"], sep="\n")
    finally:  # whichever of the two cannot be written
        if args.output:
            with written_whole(args.output) as file:
                file.write(to_json(content))
            print(f"written: {args.output}", file=sys.stderr)


def score_rouge(args, hypotheses: dict[Path, list[str]], references: list[str]):
    mark = args.sentence_separator
    # references without it are single sentences, hypotheses may be of a model that does not write it
    marks = {path: mark if mark and any(mark in line for line in lines) else None for path, lines in hypotheses.items()}
    reference_sentences = into_sentences(references, mark)
    systems = [
        System(
            str(path),
            _count_blank(lines),
            score_summaries(into_sentences(lines, marks[path]), reference_sentences, args.stem),
        )
        for path, lines in hypotheses.items()
    ]
    marks = {str(path): found for path, found in {**marks, args.references: mark}.items()}
    settings = {"examples": len(references), "stemming": args.stem, "sentence_separators": marks}
    notes = [f"rouge-score, {'with' if args.stem else 'without'} stemming; ROUGE-Lsum is what papers call ROUGE-L."]
    for path, found in marks.items():
        notes.append(f"Sentences of {path}: {'found by punctuation' if found is None else f'divided at {found}'}.")
    notes += _other_letters(args, hypotheses, references)
    if mark and not any(mark in line for line in references):
        notes.append(f"There is no {mark} in {args.references}: each reference is one sentence.")
    return systems, settings, notes


def score_qg(args, hypotheses: dict[Path, list[str]], references: list[str]):
    sources = None
    if args.sources:
        sources = list(read_lines(args.sources))
        check_equal_lengths({args.references: references, args.sources: sources})
    systems = []
    for path, lines in hypotheses.items():
        lines, groups = group_by_source(lines, references, sources) if sources else (lines, [[r] for r in references])
        scores, signature = score_questions(lines, groups, args.tokenized)
        systems.append(System(str(path), _count_blank(lines), scores))
    tokens = "words are what spaces separate" if args.tokenized else "words of nltk's Treebank tokenizer"
    notes = [f"BLEU-4 (of the corpus, without smoothing), ROUGE-L (COCO) and METEOR: lower case, {tokens}."]
    notes.append(f"sacreBLEU: {signature}.")
    if not all("meteor" in system.scores for system in systems):  # damage may be where only one of them reads
        for system in systems:
            system.scores.pop("meteor", None)
        notes.append(f"{NO_METEOR}.")
    notes += _other_letters(args, hypotheses, references)
    if sources:
        notes.append(f"An example is a source of {args.sources} with its references and the last of its hypotheses.")
    settings = {
        "examples": len(lines),
        "sources": str(args.sources) if args.sources else None,
        "tokenized": args.tokenized,
        "sacrebleu": signature,
    }
    return systems, settings, notes


def _other_letters(args, hypotheses: dict[Path, list[str]], references: list[str]) -> list[str]:
    texts = {**hypotheses, args.references: references}
    return [note for path, lines in texts.items() for note in other_letters(path, lines)]


def _read(path: Path, from_log: bool) -> list[str]:
    if not from_log:
        return list(read_lines(path))
    if hypotheses := read_generation(path).in_order:
        return hypotheses
    raise UserError(f"{path} has no line D-...: give the log of a fairseq-generate without --quiet")


def _count_blank(lines: list[str]) -> int:
    return sum(not line.strip() for line in lines)


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
    rouge.set_defaults(score=score_rouge)
    questions = commands.add_parser(
        "qg",
        help="generated questions",
        description="BLEU-4, sacreBLEU, METEOR and ROUGE-L of generated questions.",
        epilog=EPILOG,
    )
    questions.add_argument(
        "--sources",
        type=Path,
        help="the source of each line: the references of equal sources form one example, as in Du et al. (2017)",
    )
    questions.add_argument("--tokenized", action="store_true", help="the text is already tokenized: split it at spaces")
    questions.set_defaults(score=score_qg)
    for command in (rouge, questions):
        command.add_argument(
            "hypotheses", type=Path, nargs="+", metavar="HYPOTHESES", help="output of a system, one example per line"
        )
        command.add_argument("references", type=Path, metavar="REFERENCES", help="references, in the same order")
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
        command.add_argument("--output", type=Path, metavar="FILE", help="also write the report as JSON")
    return parser.parse_args(arguments)


def _mark(text: str) -> str:
    if not text.strip():
        raise UserError("is blank: give the mark, or leave the option out")
    return text


if __name__ == "__main__":
    main()
