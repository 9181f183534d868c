"""A job of elseq-generate with Hydra: decodes a text file into the job's folder, with time and scores."""

import time
from collections.abc import Callable, Collection
from dataclasses import fields
from pathlib import Path

import torch
from omegaconf import DictConfig, OmegaConf

from elseq.arguments import read_input, read_path
from elseq.benchmark import report
from elseq.benchmark.rows import Row
from elseq.errors import UserError
from elseq.files import read_lines
from elseq.generation.options import search_configuration
from elseq.generator import TextGenerator
from elseq.options import SEARCH_OPTIONS, Batching, Loading, decode_attention_names
from elseq.precision import DTYPES
from elseq.scoring.inputs import check_equal_lengths
from elseq.scoring.metrics import METRICS
from elseq.sweeps.jobs import Result, recorded
from elseq.sweeps.settings import search_options
from elseq.text_files.formats import InputFormat
from elseq.text_files.job import Job
from elseq.text_files.processes import Processes
from elseq.text_files.run import Run

OUTPUT = "output.txt"
GROUPS = ("task", "decode", "bpe")
SEARCH = [name for name in SEARCH_OPTIONS if name != "nbest"]  # a text a line, which is scored


def _known(cfg: dict) -> Row:
    return Row(cfg["decode"]["mode"], beam=cfg["beam"])


@recorded(known=_known)
def job(cfg: DictConfig, folder: Path) -> Result:
    """Generate with the settings of the configuration."""
    _check_single(cfg)
    if cfg.checkpoint is None or cfg.input is None:
        raise UserError("give checkpoint=FILE and input=FILE")
    score = _scorer(cfg)
    search = search_options(cfg, SEARCH)
    # from the groups of the configuration
    named = {"data": cfg.task.data, "attention": cfg.decode.mode, "bpe": OmegaConf.select(cfg, "bpe._name")}
    _check_choice("dtype", cfg.dtype, DTYPES)
    _check_choice("decode", cfg.decode.mode, decode_attention_names())
    loading = {each.name: cfg.get(each.name) for each in fields(Loading)} | named
    what = Job(
        model=str(cfg.checkpoint),
        output=folder / OUTPUT,
        input=read_input(str(cfg.input)),
        input_form=InputFormat(**{each.name: cfg.get(each.name) for each in fields(InputFormat)}),
        loading=Loading(**{name: value for name, value in loading.items() if value is not None}),
        batching=Batching(**{each.name: cfg[each.name] for each in fields(Batching)}),
        overwrite=True,  # the folder belongs to this job: existing lines are its own, with other settings
        search=search,
        threads=cfg.get("threads"),
        **{name: read_path(cfg[name]) for name in ("prefix_file", "languages_file") if cfg.get(name) is not None},
    )
    beam = search_configuration(search).beam
    begun = []

    def warm_up(generator: TextGenerator) -> None:
        """Decode one batch first, because the first batch is slower. (fairseq's own BART is set to one beam.)"""
        word = generator.task.source_dictionary[-1]
        generator.generate([word], beam=beam, max_len_a=0, max_len_b=2, progress=False)
        begun.append(time.perf_counter())

    run = Run(what, Processes.of_environment())
    run(warm_up)
    seconds = time.perf_counter() - begun[0]  # excluding the loading
    outputs = list(read_lines(what.output))
    scores, how = score(outputs)
    row = Row(
        cfg.decode.mode,
        beam=beam,
        samples_per_second=(len(outputs) - run.progress.before) / seconds,
        sentences=len(outputs),
        seconds=[seconds],
        scores=scores,
    )
    device = what.loading.device or ("cuda" if torch.cuda.is_available() else "cpu")
    title = [[Path(what.model).name], [f"{len(outputs)} lines of {what.input}"], [device], report.versions(), how]
    return Result(row, title, outputs)


def _check_single(cfg: DictConfig) -> None:
    """
    Raises:
        UserError: a setting that is no group has several values.
    """
    for name, value in OmegaConf.to_container(cfg).items():
        if name not in GROUPS and isinstance(value, (dict, list)):
            raise UserError(f"{name} {value!r:.60} is no single value: give one, or leave it out")


def _check_choice(name: str, value: str | None, choices: Collection[str]) -> None:
    if value is not None and value not in choices:
        raise UserError(f"{name}={value} is unknown: choose one of {', '.join(choices)}")


def _scorer(cfg: DictConfig) -> Callable[[list[str]], tuple[dict[str, float], list[str]]]:
    """A function that scores outputs, by column headings, and its description; nothing without references.

    Raises:
        UserError: the references cannot be read, or their number differs from the input's lines.
    """
    _check_choice("score", cfg.score, METRICS)
    score = METRICS.get(cfg.score)
    if cfg.references is None:
        return lambda outputs: ({}, [])
    texts, reference_file = read_path(cfg.input), read_path(cfg.references)
    references = list(read_lines(reference_file))
    check_equal_lengths({texts: list(read_lines(texts)), reference_file: references})
    return lambda outputs: score(outputs, references)
