"""A run of elseq-generate: decodes each line of a text file to a line of the output."""

import logging
import os
from collections.abc import Callable, Sequence
from contextlib import closing, contextmanager
from dataclasses import replace
from pathlib import Path

import numpy as np
import torch

from elseq.bounds import check_flag
from elseq.errors import UserError
from elseq.files import (
    check_output_file,
    check_overwrite,
    check_standard_output,
    is_within,
    real_path,
)
from elseq.generation.options import search_configuration
from elseq.generator import TextGenerator, check_max_tokens, load_by
from elseq.options import Loading
from elseq.text_files.background import Background
from elseq.text_files.encoding import EncodedLines
from elseq.text_files.fingerprint import Fingerprint, make_fingerprint
from elseq.text_files.job import Job
from elseq.text_files.journal import Journal, StandardOutput
from elseq.text_files.languages import Pairs
from elseq.text_files.processes import Processes
from elseq.text_files.progress import Progress
from elseq.text_files.reading import InputLines

logger = logging.getLogger(__name__)

BLANK_LINES = 1000  # that are written at once
MOST_NAMED = 20  # truncated lines


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
            pairs = Pairs.of(lines, job.loading, job.languages_file)
            with pairs.about(0):
                generator = load_by(job.model, _loading(job.loading, pairs))
            self._check_output_is_no_input(*generator.inputs)
            encoded = EncodedLines(job, lines, pairs, generator, cfg)
            batches = encoded.batches(batching.max_tokens, batching.memory_budget)
            fingerprint = make_fingerprint(job, cfg, generator, lines, encoded.digests())
            finished = self._begin(fingerprint, encoded.blank, lines)
            self.progress = Progress(len(lines), int(finished.sum()), self.processes)
            with closing(self.progress):
                ready(generator)
                self._decode(batches, finished, encoded, cfg.nbest)
                if self.processes.is_first:
                    others = range(1, self.processes.count)
                    self.processes.wait_for("finished", others, meanwhile=self.progress.refresh)
                self.progress.refresh()
            if self.processes.is_first:
                self._publish(finished, encoded.blank & job.form.keeps_blank_lines, generator.inputs)
        if not self.processes.is_first:
            self.processes.announce("finished")  # after closing the journal, because the first process removes it
        elif truncated := encoded.truncated:
            cut, names = len(truncated), ", ".join(str(index + 1) for index in truncated[:MOST_NAMED])
            more = f" and {cut - MOST_NAMED:,} more" if cut > MOST_NAMED else ""
            logger.warning("%d of %d lines were too long and were truncated: %s%s", cut, len(lines), names, more)

    def _begin(self, fingerprint: Fingerprint, blank: np.ndarray, lines: InputLines) -> np.ndarray:
        """The lines that are finished already, bool [L]: the blank ones, bool [L], and those in the journal.

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

    def _decode(self, batches: list[np.ndarray], finished: np.ndarray, encoded: EncodedLines, nbest: int) -> None:
        """The lines of each batch that no other process takes, into the journal."""

        def finish(part: list[int], hypotheses: list[list[dict]]) -> None:
            self.journal.append(part, list(map(encoded.line, part, hypotheses)))
            self.progress.add(len(part))

        with Background() as background:
            while (number := self.processes.take_number()) < len(batches):
                rest = [index for index in batches[number].tolist() if not finished[index]]
                for part, hypotheses in encoded.decode(rest) if rest else ():
                    kept = [list(map(self._kept, found[:nbest])) for found in hypotheses]
                    background.give(finish, part, kept)

    def _kept(self, hypothesis: dict) -> dict:
        """The values of a hypothesis that the format reads, on the CPU."""
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
        path = self.job.input
        if path is None:
            raise UserError("several processes cannot share the standard input: give --input FILE")
        if path.exists() and not path.is_file() and not path.is_dir():
            raise UserError(f"--input {path} is not a regular file, which several processes cannot share: give one")

    def _check_output_is_no_input(self, *more: Path) -> None:
        """
        Raises:
            UserError: the output is one of the inputs.
        """
        inputs = [*self.job.inputs(), *more]
        if self.job.output is None:
            check_standard_output(*inputs)
            return
        check_output_file(self.job.output, *inputs)
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


def _loading(loading: Loading, pairs: Pairs) -> Loading:
    """For the first pair. Without --device, each process of a machine gets its own GPU."""
    source, target = pairs.distinct[0]
    loading = replace(loading, source_lang=source, target_lang=target)
    if loading.device is None and torch.cuda.is_available():
        return replace(loading, device=f"cuda:{os.environ.get('LOCAL_RANK', 0)}")
    return loading
