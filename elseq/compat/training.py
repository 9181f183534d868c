"""Repairs of training."""

import copyreg
import difflib
import functools
import importlib.util
import inspect
import logging
import math
import os
import sys
from dataclasses import fields

import torch
from fairseq import options, trainer, utils
from fairseq.criterions.adaptive_loss import AdaptiveLoss
from fairseq.criterions.cross_entropy import CrossEntropyCriterion
from fairseq.criterions.label_smoothed_cross_entropy import LabelSmoothedCrossEntropyCriterion
from fairseq.data.iterators import EpochBatchIterator
from fairseq.dataclass import constants
from fairseq.dataclass.configs import GenerationConfig
from fairseq.distributed import utils as distributed_utils
from fairseq.logging import metrics
from fairseq.modules.adaptive_input import AdaptiveInput
from fairseq.modules.adaptive_softmax import AdaptiveSoftmax
from fairseq.optim.lr_scheduler import FairseqLRScheduler
from fairseq.optim.lr_scheduler.manual_lr_scheduler import ManualSchedule
from fairseq.optim.lr_scheduler.reduce_lr_on_plateau import ReduceLROnPlateauLRSchedule
from fairseq.registry import REGISTRIES
from fairseq.tasks.fairseq_task import StatefulContainer
from fairseq.tasks.translation import TranslationTask
from fairseq.tasks.translation_from_pretrained_bart import TranslationFromPretrainedBARTTask
from fairseq_cli import train

from elseq.bounds import check_bounds
from elseq.compat.literals import NotLiteral, evaluate
from elseq.compat.patching import Overlay, before_training, is_known, wrap, wrap_in_command
from elseq.compat.settings import json_object, values
from elseq.errors import UserError, as_option, described, renamed, user_sentence

logger = logging.getLogger(__name__)


def clip_gradients_where_they_are():
    """On a machine with a GPU, clipping collects the norms of all gradients there, even with --cpu. The training then
    ends with "scalar tensor is expected to be on cpu"."""
    wrap(utils, "clip_grad_norm_", _clip_grad_norm)


def _clip_grad_norm(clip, params, *args, **kwargs):
    params = [params] if isinstance(params, torch.Tensor) else list(params)
    if any(parameter.grad is not None and parameter.grad.device.type != "cpu" for parameter in params):
        return clip(params, *args, **kwargs)
    utils.torch = Overlay(torch, cuda=Overlay(torch.cuda, is_available=lambda: False))
    try:
        return clip(params, *args, **kwargs)
    finally:
        utils.torch = torch


def train_bfloat16_without_a_tpu():
    """On the command line --bf16 implies --tpu, and gives an error about None without torch_xla. The trainer itself
    supports bfloat16 on GPUs and CPUs, as in the commands with Hydra."""

    def parse_args_and_arch(parse, parser, input_args=None, *args, **kwargs):
        parsed = parse(parser, input_args, *args, **kwargs)
        if getattr(parsed, "bf16", False) and utils.xm is None and "--tpu" not in (input_args or sys.argv):
            parsed.tpu = False
        return parsed

    wrap(options, "parse_args_and_arch", parse_args_and_arch)


def explain_missing_hardware():
    """--fp16 without a GPU gives an error of torch, --tpu without torch_xla one about None, and the default of
    --ddp-backend with several CPU processes one about devices. Backends of fairscale without it are a traceback."""
    before_training(_check_hardware)
    wrap_in_command(train, "add_defaults", _check_backend)


def _check_hardware(cfg, *_):
    common = cfg.common
    has_gpu = torch.cuda.is_available() and not common.cpu
    if common.fp16 and not (has_gpu or common.memory_efficient_fp16):
        raise UserError("--fp16 trains on a GPU, and there is none, or --cpu is given: leave it out, or give --bf16")
    if common.tpu and utils.xm is None:
        raise UserError("--tpu needs torch_xla, which is not installed: leave it out")


def _check_backend(add_defaults, cfg):
    backend, processes = cfg.distributed_training.ddp_backend, cfg.distributed_training.distributed_world_size
    needs_fairscale = backend == "fully_sharded" or backend == "slowmo" and processes > 1
    if needs_fairscale and importlib.util.find_spec("fairscale") is None:
        raise UserError(
            f"{backend} needs fairscale, which is not installed: install it, or give legacy_ddp", "--ddp-backend"
        )
    if backend in ("c10d", "pytorch_ddp") and processes > 1 and (cfg.common.cpu or not torch.cuda.is_available()):
        raise UserError(f"{backend} is for processes on GPUs: give legacy_ddp", "--ddp-backend")
    add_defaults(cfg)


# What a validation computes only by a switch of the task or of the criterion.
_BY_SWITCH = {"bleu": "eval_bleu", **dict.fromkeys(("accuracy", "total", "n_correct"), "report_accuracy")}


def explain_missing_metrics():
    """--best-checkpoint-metric with a name that no validation computes, such as bleu without --eval-bleu, gives a
    KeyError after the first epoch."""
    before_training(_check_metric)


def _check_metric(cfg, task, model, criterion):
    if cfg.dataset.disable_validation or hasattr(task, "post_validate") or not is_known(type(task), type(criterion)):
        return  # what is computed is not known before
    name = cfg.checkpoint.best_checkpoint_metric
    of_task = getattr(task, "cfg", None) or getattr(task, "args", None)
    switched_off = {
        each
        for each, switch in _BY_SWITCH.items()
        if False in [getattr(options, switch, None) for options in (of_task, cfg.criterion)]
    }
    if name in switched_off:
        switch = as_option(_BY_SWITCH[name])
        raise UserError(f"--best-checkpoint-metric {name} needs {switch}: give both, or neither")
    computed = _computed(task, criterion)
    if computed is not None and name not in computed:
        others = [each for each in computed if each not in switched_off.union(_OF_BATCHES)]
        raise UserError(
            f"--best-checkpoint-metric {name} is not computed by the validation of this task and criterion: give one "
            f"of {', '.join(others)}"
        )


_OF_BATCHES = ("wpb", "wps", "bsz", "num_updates")


_GROWING = ("accuracy", "bleu", "f1", "mcc", "n_correct")  # the better, the larger
_SHRINKING = ("loss", "nll_loss", "ppl")


def warn_of_the_worst_checkpoint():
    """--best-checkpoint-metric bleu without --maximize-best-checkpoint-metric keeps the checkpoint of the least BLEU,
    and --maximize-best-checkpoint-metric with a loss that of the largest."""
    before_training(_check_direction)


def _check_direction(cfg, *_):
    name, maximize = cfg.checkpoint.best_checkpoint_metric, cfg.checkpoint.maximize_best_checkpoint_metric
    if cfg.dataset.disable_validation or not distributed_utils.is_master(cfg.distributed_training):
        return
    if name in (_SHRINKING if maximize else _GROWING):
        logger.warning(
            "checkpoint_best.pt will be that of the %s %s: %s --maximize-best-checkpoint-metric",
            *(("largest", name, "leave out") if maximize else ("smallest", name, "give")),
        )


class _AnyOutput(dict):
    """The logging output of a batch, with a number of its own for each name."""

    def __missing__(self, name):
        return self.setdefault(name, len(self) + 1)

    def get(self, name, default=None):
        return self[name]

    def __contains__(self, name):
        return True

    def __iter__(self):
        raise LookupError("the names are not known")

    keys = values = items = __iter__


def _computed(task, criterion) -> list[str] | None:
    """The names of all that a validation may compute; None if that is not known before."""
    by_tokens = getattr(criterion, "sentence_avg", None) is False  # then the loss of a token is not computed apart
    output = _AnyOutput(dict.fromkeys(("ntokens", "sample_size"), 1) if by_tokens else {})
    with metrics.aggregate(new_root=True) as meters:
        try:
            task.reduce_metrics([output], criterion)
        except Exception:  # it asks which names there are, or for more than numbers
            return None
    names = ["loss", *(name for name in meters if not name.startswith("_")), "num_updates"]  # these two always
    return list(dict.fromkeys(names))


def explain_options_of_bleu():
    """--eval-bleu-args and --eval-bleu-detok-args that are no JSON give a traceback, and so does text for a number, or
    a checkpoint of fairseq 0.10 without them. An unknown name is ignored. An error about a number does not say where it
    is, and one about --eval-bleu-detok names another option."""

    def build_model(build, task, *args, **kwargs):
        if task.cfg.eval_bleu:
            for name in ("eval_bleu_detok_args", "eval_bleu_args"):
                if getattr(task.cfg, name) is None:
                    setattr(task.cfg, name, "{}")
            json_object(task.cfg.eval_bleu_detok_args, "--eval-bleu-detok-args")
            given = json_object(task.cfg.eval_bleu_args, "--eval-bleu-args")
            known = {each.name for each in fields(GenerationConfig)}.union(getattr(task, "search_options", ()))
            unknown = sorted(given.keys() - known) if is_known(type(task)) else None  # a plugin's may have its own
            if unknown:
                close = difflib.get_close_matches(unknown[0], known, 1)
                remedy = f"did you mean {close[0]}?" if close else "leave it out"
                raise UserError(f"has {unknown[0]!r:.60}, which is no option of a search: {remedy}", "--eval-bleu-args")
            for each in fields(GenerationConfig):
                value = given.get(each.name, 0)
                if each.type in (int, float) and not isinstance(value, int | float):
                    raise UserError(f"has {value!r:.60} for {each.name}: give a number", "--eval-bleu-args")
                if each.name in given:
                    try:
                        check_bounds(each.name, value, each.default)
                    except UserError as error:
                        raise UserError(f"has {each.name}: {error.sentence}", "--eval-bleu-args") from error
        with renamed(lambda name: "--eval-bleu-detok" if name == "--tokenizer" else name):
            return build(task, *args, **kwargs)

    wrap(TranslationTask, "build_model", build_model)


def continue_in_the_middle_of_an_epoch():
    """A checkpoint has the number of batches of the epoch that each process was trained on. With another number of
    processes, the training then leaves out batches, or repeats them. Where the epoch now has fewer batches, by a larger
    --max-tokens or less data, there is a traceback that asks to report it."""

    def state_dict(make, self):
        return {**make(self), "processes": self.num_shards, "batches": len(self.frozen_batches)}

    def load_state_dict(load, self, state):
        processes = state.get("processes", self.num_shards)
        if processes != self.num_shards and state["batches"] == len(self.frozen_batches):
            trained = state["iterations_in_epoch"] * processes // self.num_shards
            state = {**state, "iterations_in_epoch": trained}
        try:
            load(self, state)
        except RuntimeError as error:
            if not str(error).startswith("Cannot resume training due to dataloader mismatch"):
                raise
            raise UserError(
                f"{state['iterations_in_epoch']} batches of epoch {state['epoch']} were trained on before, and now it "
                f"has {len(self)}: give the former data and options (--max-tokens, --batch-size), or "
                "--reset-dataloader to begin with epoch 1"
            ) from error

    wrap(EpochBatchIterator, "state_dict", state_dict)
    wrap(EpochBatchIterator, "load_state_dict", load_state_dict)


def stop_at_the_last_update():
    """A training that is repeated after its last update makes one more before it notices, and saves it over the last
    checkpoint."""

    def train_epoch(train_epoch, cfg, trainer, task, epoch_itr):
        last, hours = cfg.optimization.max_update, cfg.optimization.stop_time_hours
        if 0 < last <= trainer.get_num_updates():
            logger.info("this training has reached --max-update %s before", last)
        elif 0 < hours < trainer._previous_training_time / 3600:  # of which all processes know alike
            logger.info("this training has reached --stop-time-hours %s before", hours)
        else:
            return train_epoch(cfg, trainer, task, epoch_itr)
        return [None], True  # no loss of a validation, and the end

    wrap_in_command(train, "train", train_epoch)


def count_hours_of_this_training():
    """--stop-time-hours also counts the hours of the training whose model --finetune-from-model takes, or
    --restore-file with --reset-meters: after a long one, this training ends with its first update."""

    def load_checkpoint(load, *args, **kwargs):
        given = inspect.signature(load).bind(*args, **kwargs).arguments
        extra_state = load(*args, **kwargs)
        if given.get("reset_meters"):
            given["self"]._previous_training_time = 0
        return extra_state

    wrap(trainer.Trainer, "load_checkpoint", load_checkpoint)


def train_from_pretrained_bart():
    """The task translation_from_pretrained_bart reads its options from an attribute that it does not set, and raises an
    AttributeError before its first update or translation."""

    def init(original, self, args, *rest, **kwargs):
        self.args = args
        original(self, args, *rest, **kwargs)

    wrap(TranslationFromPretrainedBARTTask, "__init__", init)


def refuse_processes_that_are_strangers():
    """If torchrun starts several processes without --distributed-world-size on a machine with at most one GPU, each
    process trains a separate model without a warning."""
    before_training(_check_processes)


def _check_processes(cfg, *_):
    count = os.environ.get("WORLD_SIZE", "1")
    if count != "1" and cfg.distributed_training.distributed_world_size == 1:
        raise UserError(
            f"this is one of {count} processes (WORLD_SIZE), and each would train a model of its own: give "
            f"--distributed-world-size {count}, and on CPUs the other options in docs/several-machines.md"
        )


def explain_adaptive_softmax():
    """A model with an adaptive softmax and another criterion than its own gives an error of torch about gradients, and
    this criterion with another model an AssertionError without a message. Cutoffs that do not ascend give a negative
    size. Weights tied to an input that is not adaptive, as that of no encoder-decoder is, give an AttributeError."""
    before_training(_check_adaptive_softmax)
    wrap(AdaptiveSoftmax, "__init__", _tied)
    wrap(AdaptiveSoftmax, "__init__", functools.partial(_with_cutoffs, "--adaptive-softmax-cutoff"))
    wrap(AdaptiveInput, "__init__", functools.partial(_with_cutoffs, "--adaptive-input-cutoff"))


def _check_adaptive_softmax(cfg, task, model, criterion):
    is_one = getattr(getattr(model, "decoder", None), "adaptive_softmax", None) is not None
    is_other = isinstance(criterion, CrossEntropyCriterion | LabelSmoothedCrossEntropyCriterion)
    if is_one and is_other and is_known(type(criterion)):
        raise UserError("--adaptive-softmax-cutoff needs --criterion adaptive_loss: give both, or neither")
    if not is_one and isinstance(criterion, AdaptiveLoss):
        raise UserError("--criterion adaptive_loss needs --adaptive-softmax-cutoff: give both, or neither")


def _with_cutoffs(option, init, *args, **kwargs):
    given = inspect.signature(init).bind(*args, **kwargs).arguments
    vocabulary, cutoffs = given["vocab_size"], given["cutoff"] or []
    if not cutoffs or sorted({*cutoffs}) != [*cutoffs] or not all(0 < cutoff <= vocabulary for cutoff in cutoffs):
        given = ",".join(map(str, cutoffs)) or "none"
        raise UserError(
            f"{given} is not possible: give ascending numbers from 1 to {vocabulary}, the size of the dictionary",
            option,
        )
    init(*args, **kwargs)


def _tied(init, *args, **kwargs):
    given = inspect.signature(init).bind(*args, **kwargs).arguments
    if not isinstance(given.get("adaptive_inputs"), AdaptiveInput | None):
        raise UserError(
            "needs --adaptive-input, which only language models have: leave it out", "--tie-adaptive-weights"
        )
    init(*args, **kwargs)


# Errors that impossible values lead to, and missing packages; not those of a device.
_OF_OPTIONS = (ArithmeticError, AssertionError, AttributeError, ImportError, LookupError, TypeError, ValueError)


def explain_options_of_the_optimizer():
    """Options that do not fit the optimizer or the learning rate's schedule end in a traceback, some at the first
    update, and where training continues, in an error about the checkpoint. So does a training without either."""

    def build_optimizer(build, self):
        for part in ("optimizer", "lr_scheduler"):
            if self.cfg[part] is None:
                raise UserError("is missing: give one", as_option(part))
        if self.cfg.optimizer._name in ("adam", "adamax", "lamb", "adafactor"):
            _check_pairs(values(self.cfg.optimizer))
        _check_schedule(values(self.cfg.lr_scheduler))
        try:
            build(self)
        except _OF_OPTIONS as error:
            part = "optimizer" if self._optimizer is None else "lr_scheduler"
            name = self.cfg[part]._name
            kind = REGISTRIES[part]["registry"].get(name)
            if user_sentence(error) is not None or kind is not None and not is_known(kind):  # a fault of a plugin
                raise
            raise UserError(
                f"{name} does not work with its options ({described(error)}): give others", as_option(part)
            ) from error

    def parse_manual(parse, schedule, text):
        try:
            return parse(schedule, text)
        except (SyntaxError, *_OF_OPTIONS) as error:
            option = "--epoch2lr" if text == schedule.args.epoch2lr else "--update2lr"
            remedy = "give one such as \"{'1-3': 0.1, '4': 0.01}\""
            raise UserError(f"{text} is no table of rates: {remedy}", option) from error

    wrap(trainer.Trainer, "_build_optimizer", build_optimizer)
    wrap(ManualSchedule, "parse_manuallr_args", parse_manual)


# What a schedule cannot be without: the alternatives, each of some options.
_NEEDED = {
    "cosine": (("lr_period_updates",), ("max_update",)),
    "polynomial_decay": (("total_num_update",),),
    "tri_stage": (("decay_steps",), ("phase_ratio", "max_update")),
    "triangular": (("max_lr",),),
}


def _check_schedule(settings):
    alternatives = _NEEDED.get(settings.get("_name"), ((),))
    if not any(all(_is_given(settings.get(name)) for name in names) for names in alternatives):
        needed = ", or ".join(" and ".join(map(as_option, names)) for names in alternatives)
        raise UserError(f"{settings['_name']} needs {needed}: give numbers above 0", "--lr-scheduler")


def _is_given(value) -> bool:
    return value is not None and (not isinstance(value, int | float) or value > 0)


# Options of optimizers that are text for two numbers, and what these are below.
_PAIRS = {"adam_betas": 1, "adamax_betas": 1, "lamb_betas": 1, "adafactor_eps": math.inf}


def _check_pairs(settings):
    for name in _PAIRS.keys() & settings.keys():
        value = settings[name]
        try:
            first, second = evaluate(value) if isinstance(value, str) else value
            is_possible = 0 <= first < _PAIRS[name] and 0 <= second < _PAIRS[name]
        except (NotLiteral, TypeError, ValueError):
            is_possible = False
        if not is_possible:
            below = "" if _PAIRS[name] == math.inf else f" and below {_PAIRS[name]}"
            raise UserError(
                f"{value} is not possible: give two numbers of at least 0{below}, as '(0.9, 0.99)'", as_option(name)
            )


def continue_with_another_schedule():
    """A schedule of the learning rate takes over the best validation loss of the schedule before it. If that has none,
    it raises a KeyError, or after the first validation a TypeError."""

    def load_state_dict(load, self, state):
        if state.get("best") is not None:
            load(self, state)

    for schedule in (FairseqLRScheduler, ReduceLROnPlateauLRSchedule):
        wrap(schedule, "load_state_dict", load_state_dict)


FEWER_HEADS = "fewer_heads"  # the list of conversions to fewer heads in the extra_state of a checkpoint


def recorded_conversions(state: dict) -> list:
    """What a checkpoint records of conversions to fewer heads that it comes from, the first one first."""
    extra_state = state.get("extra_state")
    found = extra_state.get(FEWER_HEADS, []) if isinstance(extra_state, dict) else []
    return found if isinstance(found, list) else [found]


def keep_the_record_of_conversions():
    """Training makes the extra_state of a checkpoint anew, and the record of the conversions that it started from is
    lost."""

    def load_checkpoint(load, self, *args, **kwargs):
        extra_state = load(self, *args, **kwargs)
        self.conversions = recorded_conversions({"extra_state": extra_state})
        return extra_state

    def state_dict(make, self):
        state = make(self)
        if conversions := getattr(self, "conversions", None):
            state["extra_state"][FEWER_HEADS] = conversions
        return state

    wrap(trainer.Trainer, "load_checkpoint", load_checkpoint)
    wrap(trainer.Trainer, "state_dict", state_dict)


def copy_tasks():
    """A task cannot be copied or pickled, nor what holds one: its state looks for itself in itself, without end, and
    the enumerations of options have one name, by which pickle does not find them."""

    def get(original, self, name):
        if name.startswith("__") or "_state" not in vars(self):
            raise AttributeError(name)
        return original(self, name)

    wrap(StatefulContainer, "__getattr__", get)
    copyreg.pickle(type(constants.StrEnum), _reduce_enumeration)


def _reduce_enumeration(kind) -> str | tuple:
    """As `copyreg` asks: what makes it anew, or its name in its module."""
    is_made = getattr(sys.modules[kind.__module__], kind.__qualname__, None) is not kind
    return (constants.ChoiceEnum, ([each.value for each in kind],)) if is_made else kind.__qualname__
