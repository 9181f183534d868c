"""The scores of elseq-score, for the options of its command."""

import sys
from pathlib import Path

from elseq.errors import UserError
from elseq.files import check_output_file, check_standard_output, read_lines, to_json, written_whole
from elseq.reports.logs import read_generation
from elseq.scoring.inputs import check_equal_lengths, into_sentences
from elseq.scoring.questions import NO_METEOR, group_by_source, score_questions
from elseq.scoring.report import System, report, table
from elseq.scoring.statistics import resample
from elseq.scoring.summaries import other_letters, score_summaries


def score(args) -> None:
    """Score the systems of a command and print the table."""
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
    systems, settings, notes = SCORES[args.command](args, hypotheses, references)
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


def _score_rouge(args, hypotheses: dict[Path, list[str]], references: list[str]):
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


def _score_qg(args, hypotheses: dict[Path, list[str]], references: list[str]):
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


SCORES = {"rouge": _score_rouge, "qg": _score_qg}
