"""A run of elseq-generate: decodes each line of a text file to a line of the output."""

import logging
import os
import sys
from collections.abc import Callable, Iterable, Sequence
from contextlib import closing, contextmanager
from dataclasses import dataclass, field, replace
from enum import Enum
from pathlib import Path

import numpy as np
import torch
from tqdm import tqdm

import elseq
from elseq.bounds import check_flag
from elseq.errors import UserError, as_option
from elseq.files import (
    STANDARD_INPUT,
    check_output_file,
    check_overwrite,
    check_standard_output,
    is_within,
    read_lines,
    real_path,
)
from elseq.generation.batches import SplittingDecoder
from elseq.generation.options import search_configuration
from elseq.generator import TextGenerator, check_max_tokens, load_by
from elseq.loading import checkpoint_path, checkpoint_paths
from elseq.options import SEARCH_OPTIONS, Batching, Loading
from elseq.precision import INT8
from elseq.subwords.finding import find_codes
from elseq.text_files.background import Background
from elseq.text_files.fingerprint import Fingerprint, digest_file, digest_symbols
from elseq.text_files.formats import LANGUAGE_FIELDS, Format, InputFormat
from elseq.text_files.journal import Journal, StandardOutput
from elseq.text_files.processes import Processes
from elseq.text_files.reading import InputLines, Sources, encode_lines

logger = logging.getLogger(__name__)

# Shares of words that are not in the dictionary.
NOTABLE, UNUSABLE = 0.1, 0.9
BLANK_LINES = 1000  # that are written at once
MOST_NAMED = 20  # truncated lines
REMEDIES = "give --truncate", "give --long-input"  # for lines that are too long
LOG_INTERVAL = 60  # seconds between two progress lines without a terminal


@dataclass(frozen=True)
class Job:
    """The options of the command line."""

    model: str
    output: Path | None  # None: the standard output
    input: str = STANDARD_INPUT
    loading: Loading = Loading()
    batching: Batching = Batching(seed=1)
    overwrite: bool = False
    search: dict = field(default_factory=dict)  # of `Search`
    form: Format = Format()
    threads: int | None = None  # None: as many as torch has
    prefix_file: str | None = None
    input_form: InputFormat = InputFormat()
    languages_file: str | None = None


class Progress:
    """Shows the lines that all processes have finished, as a progress bar or in a log."""

    def __init__(self, total: int, finished: int, processes: Processes):
        self.total = total
        self.before = finished
        self.finished = finished
        self._processes = processes
        self._bar = None
        if processes.is_first:
            terminal = sys.stderr.isatty()
            self._bar = tqdm(
                total=total,
                initial=finished,
                unit=" samples",
                file=sys.stderr if terminal else _LogLines(sys.stderr),
                mininterval=0.1 if terminal else LOG_INTERVAL,
            )

    def add(self, lines: int) -> None:
        """Add lines that this process has finished."""
        self.finished = self.before + self._processes.report(lines)
        if self._bar is not None:
            self._bar.update(self.finished - self._bar.n)

    def refresh(self) -> None:
        """Show the lines that the other processes have finished."""
        self.add(0)

    def close(self) -> None:
        if self._bar is not None:
            self._bar.close()


class _LogLines:
    """A stream that writes each state of a progress bar on its own line."""

    def __init__(self, stream):
        self._stream = stream

    def write(self, text: str) -> None:
        if text.strip():
            self._stream.write(text.strip() + "\n")

    def flush(self) -> None:
        self._stream.flush()


class Run:
    """This process's part of a run."""

    def __init__(self, job: Job, processes: Processes):
        self.job = job
        self.processes = processes
        # The target of a link, because publishing replaces the file.
        self.journal = StandardOutput() if job.output is None else Journal(real_path(job.output), processes.rank)
        self.progress: Progress | None = None

    def __call__(self, ready: Callable[[TextGenerator], None] = lambda generator: None) -> None:
        """
        Args:
            ready: called with the model before the first line is decoded.

        Raises:
            UserError: the run cannot start or continue. Finished lines are kept.
        """
        job, batching = self.job, self.job.batching
        cfg = search_configuration(job.search)
        job.form.check(cfg.nbest)
        check_max_tokens(batching.max_tokens)
        check_flag("truncate", batching.truncate)
        self._check_input_is_shareable()
        self._check_output_is_no_input()
        lines = InputLines(job.input, job.input_form, job.form.own_fields)
        with closing(self.journal), _threads(job.threads):
            if self.processes.is_first:
                self.journal.lock()
                if self.journal.is_new():
                    self._check_overwrite()
            pairs = _Pairs.of(job, lines)
            with pairs.about(0):
                generator = load_by(job.model, _loading(job.loading, pairs))
            self._check_output_is_no_input(*generator.inputs)
            parts, part_of = _parts(generator, cfg, pairs), pairs.of_line
            constraints: list[list[torch.Tensor]] = []  # of each line that is not blank

            def encode(text: str, index: int) -> tuple[torch.Tensor, bool]:
                part = parts[part_of[index]]
                source, phrases = part.generator.split_constraints(text, cfg)
                if phrases is not None:
                    constraints.append(phrases)
                name = lines.name(index)
                return part.generator.encode(source, part.search, name, batching.truncate, REMEDIES)

            sources = encode_lines(lines, encode)
            _check_words(job, lines, sources, generator)
            prefixes = None if job.prefix_file is None else _encode_prefixes(job, parts, part_of, sources)
            lengths = np.asarray(sources.lengths)
            blank = lengths == 0
            batches = []
            for number, part in enumerate(parts):
                of_part = np.where(part_of == number, lengths, 0)  # a line without tokens is in no batch
                batches += part.generator.cut_batches(
                    part.search, of_part, batching.max_tokens, batching.memory_budget, lines.name
                )
            finished = self._begin(_fingerprint(job, generator, cfg, lines, sources, prefixes, pairs), blank, lines)
            self.progress = Progress(len(lines), int(finished.sum()), self.processes)
            with closing(self.progress):
                ready(generator)
                forced = {} if prefixes is None else {"prefixes": prefixes}
                if cfg.constraints is not None:
                    forced["constraints"] = dict(zip(np.flatnonzero(~blank).tolist(), constraints, strict=True))
                decoders = [
                    part.generator.batch_decoder(
                        part.search, sources, sources.lengths, lines.name, batching.seed, **forced
                    )
                    for part in parts
                ]

                def decode(batch: list[int]):
                    return decoders[part_of[batch[0]]](batch)

                def line(index: int, hypotheses: list[dict]) -> str:
                    return job.form.line(parts[part_of[index]].generator, lines, index, hypotheses)

                self._decode(batches, finished, decode, line, cfg.nbest)
                if self.processes.is_first:
                    others = range(1, self.processes.count)
                    self.processes.wait_for("finished", others, meanwhile=self.progress.refresh)
                self.progress.refresh()
            if self.processes.is_first:
                self._publish(finished, blank & job.form.keeps_blank_lines, generator.inputs)
        if not self.processes.is_first:
            self.processes.announce("finished")  # after closing the journal, because the first process removes it
        elif sources.truncated:
            cut, names = len(sources.truncated), ", ".join(str(index + 1) for index in sources.truncated[:MOST_NAMED])
            more = f" and {cut - MOST_NAMED:,} more" if cut > MOST_NAMED else ""
            logger.warning("%d of %d lines were too long and were truncated: %s%s", cut, len(lines), names, more)

    def _begin(self, fingerprint: Fingerprint, blank: np.ndarray, lines: InputLines) -> np.ndarray:
        """The lines that are finished already, bool [L]: the blank ones [L], and those in the journal.

        The first process begins the journal, and the others follow.
        """
        journal, processes = self.journal, self.processes
        if not processes.is_first:
            processes.wait_for("begun", [0])
            if journal.is_new():
                raise UserError(
                    f"process {processes.rank} does not see the first one's {journal.folder}: give an --output "
                    "in a folder that all machines share"
                )
            journal.lock()
        written = journal.begin(fingerprint, len(blank), self.job.overwrite and processes.is_first)
        finished = written | blank
        if processes.is_first:
            if not finished.all():
                self._check_overwrite()
            if not self.job.form.keeps_blank_lines or self.job.output is None:
                missing = np.flatnonzero(blank & ~written).tolist()
                for first in range(0, len(missing), BLANK_LINES):
                    part = missing[first : first + BLANK_LINES]
                    journal.append(part, [self.job.form.line(None, lines, index, []) for index in part])
            processes.announce("begun")
        return finished

    def _decode(self, batches, finished: np.ndarray, decode: SplittingDecoder, line: Callable, nbest: int):
        """The lines of each batch that no other process takes, into the journal."""

        def finish(part: list[int], hypotheses: list[list[dict]]) -> None:
            self.journal.append(part, list(map(line, part, hypotheses)))
            self.progress.add(len(part))

        with Background() as background:
            while (number := self.processes.take_number()) < len(batches):
                rest = [index for index in batches[number].tolist() if not finished[index]]
                for part, hypotheses in decode(rest) if rest else ():
                    kept = [list(map(self._kept, found[:nbest])) for found in hypotheses]
                    background.give(finish, part, kept)

    def _kept(self, hypothesis: dict) -> dict:
        """What the format reads of a hypothesis, on the CPU."""
        return {name: torch.as_tensor(hypothesis[name]).cpu() for name in self.job.form.read}

    def _publish(self, finished: np.ndarray, blank: np.ndarray, inputs: Sequence[Path]) -> None:
        """Check once more: the run may have taken days."""
        self._check_output_is_no_input(*inputs)
        if not finished.all():
            self._check_overwrite()
        self.journal.publish(blank)

    def _check_input_is_shareable(self) -> None:
        """
        Raises:
            UserError: several processes cannot read the input.
        """
        if self.processes.count == 1:
            return
        if self.job.input == STANDARD_INPUT:
            raise UserError("several processes cannot share the standard input: give --input FILE")
        path = Path(self.job.input)
        if path.exists() and not path.is_file() and not path.is_dir():
            raise UserError(f"--input {path} is not a regular file, which several processes cannot share: give one")

    def _check_output_is_no_input(self, *more: Path) -> None:
        """
        Raises:
            UserError: the output is one of the inputs.
        """
        job, checkpoints = self.job, checkpoint_paths(self.job.model)
        inputs = [*checkpoints, *(path.parent for path in checkpoints), *job.loading.inputs(), *more]
        inputs += [
            Path(path)
            for path in (job.input, job.prefix_file, job.languages_file)
            if path not in (STANDARD_INPUT, None)
        ]
        if job.output is None:
            check_standard_output(*inputs)
            return
        check_output_file(job.output, *inputs)
        for path in inputs:
            if is_within(path, self.journal.folder):
                raise UserError(f"{path} is in {self.journal.folder}, where finished lines are kept: move it")

    def _check_overwrite(self) -> None:
        if self.job.output is not None:
            check_overwrite(self.job.output, self.job.overwrite)


@contextmanager
def _threads(number: int | None):
    """torch has this many threads, within the context."""
    before = torch.get_num_threads()
    if number is not None:
        torch.set_num_threads(number)
    try:
        yield
    finally:
        if number is not None:
            torch.set_num_threads(before)


@dataclass(frozen=True)
class _Pairs:
    """The languages of the lines."""

    distinct: list[tuple[str | None, str | None]]  # of source and target
    of_line: np.ndarray  # int64 [L]: which of them a line has
    lines: InputLines
    file: Path | None = None  # that has them on its lines; None: the input or the options have them
    digest: str | None = None  # of the file

    @classmethod
    def of(cls, job: Job, lines: InputLines) -> "_Pairs":
        """
        Raises:
            UserError: as `of_file` and `InputFormat.languages`, or they are given in two ways.
        """
        if job.languages_file is not None:
            given = vars(job.loading) | vars(job.input_form)
            for option in (*LANGUAGE_FIELDS.values(), *LANGUAGE_FIELDS):
                if given[option] is not None:
                    raise UserError(
                        "does not go with --languages-file, which has those of each line: leave it out", option
                    )
            return cls.of_file(Path(job.languages_file).expanduser(), lines)
        default = job.loading.source_lang, job.loading.target_lang
        if not any(getattr(lines.form, option) is not None for option in LANGUAGE_FIELDS):
            return cls([default], np.zeros(len(lines), np.int64), lines)
        return cls(*_numbered(lines.languages(index, default) for index in range(len(lines))), lines)

    @classmethod
    def of_file(cls, path: Path, lines: InputLines) -> "_Pairs":
        """
        Args:
            path: a file with two languages on each line.
            lines: the input.

        Raises:
            UserError: the file cannot be read, has another number of lines, or a line is not two languages.
        """

        def pairs():
            for index, line in enumerate(read_lines(path)):
                pair = tuple(line.split())
                if len(pair) != 2:
                    raise UserError(
                        f"line {index + 1} of {path} is not two languages: give those of source and target, such as "
                        "de fr"
                    )
                yield pair

        distinct, of_line = _numbered(pairs())
        if len(of_line) != len(lines):
            raise UserError(
                f"--languages-file {path} has {len(of_line):,} lines and the input has {len(lines):,}: give a line for "
                "each"
            )
        return cls(distinct, of_line, lines, path, digest_file(path))

    @contextmanager
    def about(self, number: int):
        """Errors about a language of this pair name the first line that has it, if a line has.

        Raises:
            UserError: the error.
        """
        try:
            yield
        except UserError as error:
            place = self._place(number, error.argument)
            if place is None:
                raise
            raise UserError(f"{place}: {error.sentence}") from error

    def _place(self, number: int, argument: str | None) -> str | None:
        """Where a pair's language of this argument is first, in words; None: in no line."""
        option = next((option for option, name in LANGUAGE_FIELDS.items() if name == argument), None)
        if option is None:
            return None
        indices = np.flatnonzero(self.of_line == number).tolist()
        if self.file is not None:
            return f"line {indices[0] + 1} of {self.file}"
        field = getattr(self.lines.form, option)
        index = next((index for index in indices if field in self.lines.fields(index)), None)
        return None if index is None else f"the field {field!r} of {self.lines.name(index)}"


def _numbered(pairs: Iterable[tuple]) -> tuple[list[tuple], np.ndarray]:
    """The distinct ones in the order of their first lines, and the number of that of each line, int64 [L]."""
    numbers: dict[tuple, int] = {}
    of_line = [numbers.setdefault(pair, len(numbers)) for pair in pairs]
    return list(numbers), np.asarray(of_line, np.int64)


@dataclass(frozen=True)
class _Part:
    """The lines of a pair of languages; most often all lines."""

    generator: TextGenerator
    search: object  # of `TextGenerator.make_search`


def _parts(generator: TextGenerator, cfg, pairs: _Pairs) -> list[_Part]:
    """One for each pair; the generator is that of the first."""
    generators = [generator]
    for number, pair in enumerate(pairs.distinct[1:], start=1):
        with pairs.about(number):
            generators.append(generator.for_languages(*pair))
    return [_Part(each, each.make_search(cfg)) for each in generators]


def _loading(loading: Loading, pairs: _Pairs) -> Loading:
    """For the first pair. Without --device, each process of a machine gets its own GPU."""
    source, target = pairs.distinct[0]
    loading = replace(loading, source_lang=source, target_lang=target)
    if loading.device is None and torch.cuda.is_available():
        return replace(loading, device=f"cuda:{os.environ.get('LOCAL_RANK', 0)}")
    return loading


def _check_words(job: Job, lines: InputLines, sources: Sources, generator: TextGenerator) -> None:
    words = sum(sources.lengths) - np.count_nonzero(sources.lengths)  # without the end symbols
    unknown = sources.count(generator.task.source_dictionary.unk()) / max(1, words)
    # Some whole words are also sentencepiece pieces. Unknown words show that the text is not split into pieces.
    pieces = any(symbol.startswith("▁") for symbol in generator.task.source_dictionary.symbols)
    codes = None if generator.bpe is not None else find_codes(_folders(job))
    if codes is not None and unknown > NOTABLE:
        kind, path = codes
        raise UserError(
            f"{unknown:.0%} of the words of {lines.path} are not in the model's dictionary, which has the pieces that "
            f"the codes in {path} make: give --bpe {kind} --bpe-codes {path}"
        )
    if generator.bpe is None and unknown > (NOTABLE if pieces else UNUSABLE):
        raise UserError(
            f"{unknown:.0%} of the words of {lines.path} are not in the model's dictionary, and no subword vocabulary "
            "(tokenizer.json, encoder.json and vocab.bpe, or a sentencepiece .model) is beside it: copy it there, or "
            "give its folder as --data, or its files by --bpe and the options of its kind"
        )
    if unknown > NOTABLE:
        logger.warning("%.0f%% of the words of %s are not in the model's dictionary", 100 * unknown, lines.path)


def _encode_prefixes(job: Job, parts: Sequence[_Part], part_of: np.ndarray, sources: Sources) -> Sources:
    """The prefix of each line; blank ones and those of blank lines have no tokens."""
    path = Path(job.prefix_file).expanduser()
    texts = list(read_lines(path))
    if len(texts) != len(sources):
        raise UserError(
            f"--prefix-file {path} has {len(texts):,} lines and the input has {len(sources):,}: give a line for each"
        )
    prefixes = Sources()
    for index, (text, length) in enumerate(zip(texts, sources.lengths, strict=True)):
        tokens = None
        if length and text.strip():
            part = parts[part_of[index]]
            tokens = part.generator.encode_prefix(text, part.search, length, f"line {index + 1} of {path}")
        prefixes.append(tokens)
    return prefixes


def _folders(job: Job) -> list[Path]:
    data = [Path(job.loading.data)] if job.loading.data else []
    return [*data, *(path.parent for path in checkpoint_paths(job.model))]


def _fingerprint(
    job: Job,
    generator: TextGenerator,
    cfg,
    lines: InputLines,
    sources: Sources,
    prefixes: Sources | None,
    pairs: _Pairs,
) -> Fingerprint:
    parameter = next(generator.model.parameters())
    dictionaries = (generator.task.source_dictionary, generator.task.target_dictionary)
    fused = job.loading.lm_path
    return {
        "input": lines.digest,
        "model": " ".join(map(digest_file, checkpoint_paths(job.model))),
        "dictionaries": digest_symbols(dictionaries),
        "tokens": sources.digest(),
        **({} if prefixes is None else {"prefixes": prefixes.digest()}),
        **({} if pairs.digest is None else {"languages": pairs.digest}),
        **({} if fused is None else {"language model": digest_file(checkpoint_path(fused))}),
        "subwords": None if generator.bpe is None else generator.bpe.digest(),
        **job.loading.deciding(),
        "--device": parameter.device.type,
        "--dtype": INT8 if job.loading.dtype == INT8 else str(parameter.dtype).removeprefix("torch."),
        **job.batching.deciding(),
        **lines.form.deciding(),
        **job.form.deciding(),
        **{as_option(name): _plain(cfg[name]) for name in SEARCH_OPTIONS},
        "elseq": elseq.__version__,
        "torch": torch.__version__,
    }


def _plain(value):
    """An option without fairseq's enumerations."""
    return str(value) if isinstance(value, Enum) else value
