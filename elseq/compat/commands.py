"""Repairs of the commands: --user-dir, fairseq-validate, Hydra, warnings."""

import argparse
import ast
import copy
import functools
import importlib.util
import logging
import math
import os
import re
import sys
import traceback
import warnings
from argparse import ArgumentParser, Namespace
from collections.abc import Mapping, Sequence

import fairseq
import torch
from fairseq import checkpoint_utils, models, options, utils
from fairseq.dataclass import utils as dataclass_utils
from fairseq.dataclass.configs import FairseqConfig
from fairseq.dataclass.utils import omegaconf_no_object_check
from fairseq.distributed import utils as distributed_utils
from fairseq.models import FairseqEncoderDecoderModel, FairseqLanguageModel, FairseqMultiModel
from fairseq.tasks import TASK_DATACLASS_REGISTRY, TASK_REGISTRY, FairseqTask
from fairseq.tasks.denoising import DenoisingTask
from fairseq.tasks.language_modeling import LanguageModelingTask
from fairseq.tasks.multilingual_translation import MultilingualTranslationTask
from fairseq.tasks.translation import TranslationTask
from fairseq.tasks.translation_multi_simple_epoch import TranslationMultiSimpleEpochTask
from fairseq_cli import eval_lm, generate, train
from hydra import initialize_config_dir
from hydra._internal import config_repository
from hydra._internal import utils as hydra_utils
from hydra.core.config_store import ConfigStore
from hydra.core.global_hydra import GlobalHydra
from hydra.core.hydra_config import HydraConfig
from hydra.errors import ConfigCompositionException
from omegaconf import OmegaConf, open_dict

from elseq.arguments import INVALID, Parser
from elseq.compat.patching import Overlay, after_parsing, before_training, is_known, wrap, wrap_in_command
from elseq.compat.settings import model_class, model_name, values
from elseq.errors import UserError, as_option, described, user_sentence
from elseq.files import user_dirs

logger = logging.getLogger(__name__)

# The values of `fairseq.data.data_utils.post_process`, in fairseq's order.
KNOWN_SUBWORDS = ("sentencepiece", "wordpiece", "letter", "silence", "_EOW", "subword_nmt", "@@ ", "@@", "none")


def accept_elseq_as_user_dir():
    """--user-dir is resolved again in every job. A relative path fails after Hydra has changed the directory, and if
    elseq was imported from an installed copy, it is "not globally unique"."""
    wrap(utils, "import_user_module", _import_user_module)


def take_several_user_dirs():
    """fairseq takes only one --user-dir, but decoding a plugin's architecture with elseq needs two. (The first
    --user-dir of a process is read before elseq is imported: elseq-user-dir combines several folders into one.) A
    folder that cannot be imported, or a file in its place, gives a traceback."""
    wrap(utils, "import_user_module", _import_user_modules)


def import_user_dirs(text: str) -> None:
    """
    Args:
        text: one or more folders that register models or tasks, separated by colons.

    Raises:
        UserError: a folder does not exist, or its name is that of another module.
    """
    utils.import_user_module(Namespace(user_dir=text))


def _import_user_modules(load, args):
    user_dir = getattr(args, "user_dir", None)
    if user_dir is None:
        return
    for folder in user_dirs(user_dir):
        name = os.path.basename(os.path.abspath(folder))
        if os.path.exists(folder) and not os.path.isdir(folder):
            raise UserError(f"{folder} is no folder: give that of a plugin", "--user-dir")
        if os.path.isdir(folder) and (not name or "." in name):
            raise UserError(f"{folder} has no name of a module: give the folder another name", "--user-dir")
        try:
            load(Namespace(user_dir=folder))
        except FileNotFoundError as error:
            raise UserError(f"{folder} does not exist: give the folder of a plugin", "--user-dir") from error
        except ImportError as error:
            if "not globally unique" not in str(error):
                raise
            reason = f"{folder}: there is another module {name!r}; give the folder another name"
            raise UserError(reason, "--user-dir") from error
        finally:
            if name not in sys.modules:  # it failed, and fairseq would pass over it the next time
                getattr(utils.import_user_module, "memo", set()).discard(os.path.abspath(folder))


def _import_user_module(load, args):
    user_dir = args.user_dir
    if os.path.basename(os.path.abspath(user_dir)) != "elseq":
        return load(args)
    imported = os.path.dirname(os.path.abspath(sys.modules["elseq"].__file__))
    if os.path.isdir(user_dir) and not os.path.samefile(user_dir, imported):
        _warn_once(f"--user-dir {os.path.abspath(user_dir)} is not used: elseq was already imported from {imported}")


@functools.cache
def _warn_once(message):
    logger.warning(message)


def validate_without_task():
    """fairseq-validate takes the task from the checkpoint, but without --task it raises `KeyError: None`."""

    def parse_args_and_arch(parse, parser, *args, **kwargs):
        # any task works: it only adds options to the parser
        if any(action.dest == "task" and action.default is None for action in parser._actions):
            parser.set_defaults(task="translation")
        return parse(parser, *args, **kwargs)

    wrap(options, "parse_args_and_arch", parse_args_and_arch)


def validate_by_the_given_task():
    """fairseq-validate uses the task of the checkpoint, whatever --task says. The options of a task that follows that
    one, as elseq_translation follows translation, are ignored silently."""

    def overwrite_args_by_name(overwrite, cfg, overrides):
        given = overrides.get("task")
        if isinstance(given, str) and "task" in cfg:
            _follow_task(cfg, given)
        overwrite(cfg, overrides)

    wrap(checkpoint_utils, "overwrite_args_by_name", overwrite_args_by_name)


def _follow_task(cfg, name: str) -> None:
    """Put the task of this name in place of the one that it follows, with the settings of that one."""
    is_old = isinstance(cfg.task, Namespace)
    known = cfg.task.task if is_old else cfg.task.get("_name")
    kinds = [TASK_REGISTRY.get(each) for each in (name, known)]
    if None in kinds or kinds[0] is kinds[1]:
        return
    if not issubclass(*kinds):
        logger.warning("--task %s is not used: the checkpoint was trained with %s", name, known)
        return
    as_followed = getattr(kinds[0], "AS_FOLLOWED", {})
    if is_old or name not in TASK_DATACLASS_REGISTRY:
        parser = ArgumentParser(add_help=False)
        kinds[0].add_args(parser)
        defaults = {action.dest: action.default for action in parser._actions}
        followed = vars(cfg.task) if is_old else OmegaConf.to_container(cfg.task)
        task = Namespace(**defaults | followed | as_followed | {"task": name})
    else:
        task = OmegaConf.structured(TASK_DATACLASS_REGISTRY[name])
        for each in task.keys() & cfg.task.keys():
            task[each] = cfg.task[each]
        task._name = name
        for each, value in as_followed.items():
            task[each] = value
    with open_dict(cfg), omegaconf_no_object_check():
        cfg.task = task


def keep_stock_from_the_model():
    """fairseq-validate copies options of its command line to all options of that name in the checkpoint's
    configuration. The task's --decode-attention can be stock, the model's cannot."""

    def overwrite_args_by_name(overwrite, cfg, overrides):
        before = getattr(cfg.get("model"), "decode_attention", None)
        overwrite(cfg, overrides)
        if before is not None and overrides.get("decode_attention") == "stock":
            cfg.model.decode_attention = before

    wrap(checkpoint_utils, "overwrite_args_by_name", overwrite_args_by_name)


def validate_one_pair():
    """fairseq-validate of multilingual_translation with --source-lang and --target-lang looks for the pair in batches
    that hold nothing else. It finds no sentence, and ends with a ZeroDivisionError. A language that is none of the
    model's is a KeyError, for which the checkpoint is blamed."""

    def valid_step(validate, task, sample, model, criterion):
        if not task.training:
            sample = {f"{task.args.source_lang}-{task.args.target_lang}": sample}
        return validate(task, sample, model, criterion)

    def init(original, self, args, dicts, training):
        for name in ("source_lang", "target_lang"):
            language = getattr(args, name, None)
            if language is not None and language not in dicts:
                raise UserError(f"{language} is none of the model's: give one of {', '.join(dicts)}", as_option(name))
        original(self, args, dicts, training)

    wrap(MultilingualTranslationTask, "valid_step", valid_step)
    wrap(MultilingualTranslationTask, "__init__", init)


def explain_missing_path():
    """Without --path, commands other than fairseq-generate raise an AttributeError or a TypeError."""

    def check(parsed):
        if getattr(parsed, "path", "") is None:
            raise UserError("--path is missing: give the checkpoint")

    after_parsing(check)


def explain_missing_architecture():
    """Training without --arch ends with an empty error."""

    def parse_args_and_arch(parse, *args, **kwargs):
        try:
            return parse(*args, **kwargs)
        except RuntimeError as error:
            if error.args:
                raise
            raise UserError("--arch is missing: give the architecture") from error

    wrap(options, "parse_args_and_arch", parse_args_and_arch)


def explain_architectures_of_other_tasks():
    """An architecture that is not for the task, as a Transformer for a language model or for several pairs of
    languages, gives a traceback, at the first update or before, and fairseq-eval-lm blames the checkpoint."""

    def check(parsed):
        # other commands than fairseq-train have an architecture that is not read
        task = TASK_REGISTRY.get(parsed.task) if hasattr(parsed, "max_update") else None
        if task is not None:
            _check_architecture(task, parsed)

    def build_model(build, cfg, task, *args, **kwargs):
        _check_architecture(type(task), cfg)
        return build(cfg, task, *args, **kwargs)

    after_parsing(check)
    wrap(models, "build_model", build_model)


def _check_architecture(task: type, cfg):
    kind = model_class(cfg)
    if kind is None or not is_known(task, kind):
        return
    if issubclass(task, MultilingualTranslationTask) and not issubclass(kind, FairseqMultiModel):
        raise UserError(
            f"{model_name(cfg)} is one model, and the task has one for each pair of languages: give "
            "multilingual_transformer",
            "--arch",
        )
    if issubclass(task, LanguageModelingTask):
        if issubclass(kind, FairseqEncoderDecoderModel | FairseqMultiModel):
            raise UserError(f"{model_name(cfg)} is no language model: give one, as --arch transformer_lm")
        return
    of_pairs = issubclass(task, TranslationTask | TranslationMultiSimpleEpochTask | DenoisingTask)
    if of_pairs and issubclass(kind, FairseqLanguageModel | FairseqMultiModel):
        raise UserError(f"{model_name(cfg)} is no encoder-decoder: give one, as --arch transformer")


def generate_one_shard():
    """fairseq-generate ignores --num-shards and --shard-id: each shard is the whole data set. An invalid shard is a
    ValueError in fairseq-eval-lm, and no error elsewhere. Without any sentence it ends with a ZeroDivisionError. It
    also ignores that --distributed-world-size needs several processes, and generates the sentences of the first one
    without a warning."""

    def check(parsed):
        shards, shard = getattr(parsed, "num_shards", 1), getattr(parsed, "shard_id", 0)
        if shards < 1:
            raise UserError(f"--num-shards {shards} is no number of shards: give 1 or more")
        if not 0 <= shard < shards:
            raise UserError(f"--shard-id {shard} is not one of the --num-shards {shards}: give 0 to {shards - 1}")

    after_parsing(check)
    wrap_in_command(generate, "_main", _generate_shard)


def _generate_shard(main, cfg, output_file):
    # the processes of a distributed run share the sentences of a shard
    processes, shards = cfg.distributed_training, cfg.dataset.num_shards
    rank, count = processes.distributed_rank, processes.distributed_world_size
    if not 0 <= rank < count:
        raise UserError(f"--distributed-rank {rank} is not one of the --distributed-world-size {count}: correct either")
    if count > 1:
        logger.warning(
            "fairseq-generate starts no processes: this one generates the sentences of --distributed-rank %d of %d "
            "alone",
            *(rank, count),
        )
    if shards > 1:
        cfg = copy.deepcopy(cfg)
        with open_dict(cfg):
            cfg.distributed_training.distributed_world_size = count * shards
            cfg.distributed_training.distributed_rank = rank + count * cfg.dataset.shard_id
    try:
        return main(cfg, output_file)
    except ZeroDivisionError as error:  # of the time that a sentence took
        *_, last = traceback.extract_tb(error.__traceback__)
        if last.filename != generate.__file__ or "gen_timer" not in last.line:
            raise
        where = f"--gen-subset {cfg.dataset.gen_subset}"
        if shards > 1:
            where += f", --shard-id {cfg.dataset.shard_id} of --num-shards {shards},"
        logger.warning("%s has no sentence to generate from", where)


def explain_options_of_interactive():
    """fairseq-interactive accepts the options of fairseq-generate. It silently ignores some, and others give a
    traceback after the first line."""
    after_parsing(_refuse_what_interactive_lacks)


def _refuse_what_interactive_lacks(parsed):
    if not hasattr(parsed, "buffer_size"):  # an option of this command alone
        return
    for option, is_given in (
        ("--score-reference", parsed.score_reference),
        ("--print-alignment soft", parsed.print_alignment == "soft"),
        ("--lm-path", parsed.lm_path is not None),
        ("--prefix-size", parsed.prefix_size > 0),
        ("--num-shards", parsed.num_shards > 1),
    ):
        if is_given:
            raise UserError(f"fairseq-interactive does not know {option}: use fairseq-generate, or leave it out")


def explain_values_that_cannot_be():
    """Invalid seeds, numbers outside their range, unknown subwords, a --results-path that is a file, and a
    --context-window that leaves nothing of a block give tracebacks, some of them after the first batch or epoch, or end
    the process (--required-batch-size-multiple 0), or go on for ever (--poisson-lambda 0). A tracker of trainings that
    is not installed is a line of the log."""
    checks = _check_seed, _check_lengths, _check_subwords, _check_results, _check_window, _check_packages
    for check in (lambda parsed: _check_ranges(vars(parsed)), *checks):
        after_parsing(check)
    before_training(_check_parts)  # with Hydra


def _check_parts(cfg, *_):
    _check_packages(cfg.common)
    for part in map(values, cfg.values()):
        if isinstance(part, Mapping):  # and no setting beside them
            _check_ranges(part)


# What options need: the modules, of which fairseq imports the first that it finds, and the package.
_PACKAGES = {
    "tensorboard_logdir": (("tensorboard", "tensorboardX"), "tensorboard"),
    "wandb_project": (("wandb",), "wandb"),
    "aim_repo": (("aim",), "aim"),
    "azureml_logging": (("azureml",), "azureml-core"),
}


def _check_packages(parsed):
    wanted = {as_option(option): needed for option, needed in _PACKAGES.items() if getattr(parsed, option, None)}
    if getattr(parsed, "scoring", None) == "wer":
        wanted["--scoring wer"] = ("editdistance",), "editdistance"
    for option, (modules, package) in wanted.items():
        if not any(map(importlib.util.find_spec, modules)):
            raise UserError(f"{option} needs a package that is not installed: pip install {package}")


def _check_seed(parsed):
    seed = getattr(parsed, "seed", None)
    if seed is not None and not 0 <= seed < 2**32:
        raise UserError(f"--seed {seed} is no seed: give a number from 0 to {2**32 - 1}")


# The least and the largest value of an option that fairseq does not check, and both in words.
_RANGES = {
    "num_workers": (0, math.inf, "0 for none, or more"),
    "max_valid_steps": (0, math.inf, "0 or more"),
    "replace_length": (-1, 1, "-1, 0 or 1"),
    "poisson_lambda": (0.01, 16, "a number from 0.01 to 16"),  # beyond them all spans have the length 0
    "lr": (0, math.inf, "a number, or several with commas"),
    **dict.fromkeys(("encoder_ffn_embed_dim", "decoder_ffn_embed_dim"), (0, math.inf, "0 or more")),
    **dict.fromkeys(
        (
            *("nbest", "required_batch_size_multiple", "required_seq_len_multiple", "update_freq", "tokens_per_sample"),
            *("save_interval", "validate_interval", "log_interval", "max_source_positions", "max_target_positions"),
            *("encoder_embed_dim", "decoder_embed_dim", "decoder_input_dim", "decoder_output_dim"),
        ),
        (1, math.inf, "1 or more"),
    ),
    **dict.fromkeys(
        (
            *("dropout", "attention_dropout", "activation_dropout", "relu_dropout", "adaptive_softmax_dropout"),
            *("encoder_layerdrop", "decoder_layerdrop", "quant_noise_pq", "quant_noise_scalar", "label_smoothing"),
            *("mask", "mask_random", "rotate"),
        ),
        (0, 1, "a number from 0 to 1"),
    ),
}


# Options that are in `_RANGES` and that a plugin may give another meaning.
_OF_NOISE = ("mask", "mask_random", "rotate", "replace_length", "poisson_lambda")
_OF_SIZES = re.compile("max_(source|target)_positions|.*_embed_dim|decoder_(input|output)_dim")


def _check_ranges(options: Mapping):
    kind = model_class(Namespace(_name=options.get("_name"), arch=options.get("arch")))
    for name, (least, largest, in_words) in _RANGES.items():
        if name in _OF_NOISE and "permute_sentences" not in options:  # of denoising
            continue
        if _OF_SIZES.fullmatch(name) and kind is not None and not is_known(kind):
            continue
        given = options.get(name)
        for value in given if isinstance(given, Sequence) and given else [given]:
            if isinstance(value, int | float) and not least <= value <= largest or value == []:
                raise UserError(f"{as_option(name)} {value} is not possible: give {in_words}")


def _check_lengths(parsed):
    for option in ("max_len_a", "max_len_b"):
        value = getattr(parsed, option, 0)
        if not math.isfinite(value):
            raise UserError(f"{as_option(option)} {value} is no length: give a number")


def _check_subwords(parsed):
    options = {"--remove-bpe": "post_process", "--eval-bleu-remove-bpe": "eval_bleu_remove_bpe"}
    # Only fairseq-eval-lm has this option. It adds up the scores of the pieces of a word.
    known = ("subword_nmt", "@@ ") if hasattr(parsed, "context_window") else KNOWN_SUBWORDS
    for option, name in options.items():
        value = getattr(parsed, name, None)
        if value is not None and value not in known:
            raise UserError(f"{option} {value} is unknown: give one of {', '.join(map(repr, known))}")


def _check_results(parsed):
    folder = getattr(parsed, "results_path", None)
    if folder is None:
        return
    try:
        os.makedirs(folder, exist_ok=True)
    except OSError as error:
        raise UserError(f"--results-path {folder} cannot be made a folder ({error.strerror}): name another") from error


def _check_window(parsed):
    window, block = getattr(parsed, "context_window", 0), getattr(parsed, "tokens_per_sample", None)
    if block is None:
        return
    if not 0 <= window < block:
        raise UserError(
            f"--context-window {window} leaves nothing of --tokens-per-sample {block}: give a number from 0 to "
            f"{block - 1}"
        )


def explain_what_cannot_be_parsed():
    """Options that argparse refuses (--max-tokens x, --arch misspelled) give all options of the command, with the error
    at the end, which for a list of numbers such as --lr speaks of a <lambda>, or is a traceback. So it is for an option
    that needs a value and has none (--max-lr, --total-num-update)."""
    options.argparse = Overlay(argparse, ArgumentParser=_Parser)
    dataclass_utils.ast = Overlay(ast, literal_eval=_literal)
    wrap(dataclass_utils, "_override_attr", _override)
    wrap(dataclass_utils, "compose", _compose)
    dataclass_utils.logger.addFilter(lambda record: not str(record.msg).startswith("Error when composing."))


class _Parser(Parser):
    """elseq's, which knows fairseq's default of an option that needs a value."""

    def error(self, message: str):
        found = INVALID.fullmatch(message)
        if found is not None and found["text"] == "???":
            raise UserError(_MISSING, found["option"])
        super().error(message)


_MISSING = "is missing: give a value"


class _NoLiteral(ValueError):
    """As argparse asks, which knows the option."""


def _literal(text):
    try:
        return ast.literal_eval(text)
    except (SyntaxError, ValueError) as error:
        raise _NoLiteral(text) from error


def _override(override, node, kind, args):
    """Of options whose default is that of another, argparse does not know the type."""
    try:
        return override(node, kind, args)
    except _NoLiteral as error:
        (text,) = error.args
        name = next((name for name in kind.__dataclass_fields__ if getattr(args, name, None) == text), None)
        if name is None:
            raise
        raise UserError(f"{text} is not possible: give a number", as_option(name)) from error


def _compose(compose, *args, **kwargs):
    try:
        return compose(*args, **kwargs)
    except ConfigCompositionException as error:
        found = re.fullmatch(r"Error merging override (?:\S+\.)?(\w+)=(.*)", str(error))
        if found is None:
            raise
        name, value = found.groups()
        if value == "null":
            raise UserError(_MISSING, as_option(name)) from error
        raise UserError(f"{as_option(name)} {value} is not possible ({described(error.__cause__)})") from error


def explain_missing_devices():
    """More processes than GPUs give an AssertionError, and those that torchrun starts where there is none a
    ZeroDivisionError."""

    def infer_init_method(infer, cfg, *args, **kwargs):
        try:
            return infer(cfg, *args, **kwargs)
        except AssertionError as error:
            if not str(error).startswith("world size is"):
                raise
            size, devices = cfg.distributed_world_size, torch.cuda.device_count()
            raise UserError(
                f"--distributed-world-size {size} is more than the {devices} GPUs of this machine: leave it out, or "
                "start the processes by torchrun, as in docs/several-machines.md"
            ) from error
        except ZeroDivisionError as error:
            raise UserError(
                "torchrun started this process for a GPU, and there is none: give the options for CPUs in "
                "docs/several-machines.md, as --distributed-init-method env://"
            ) from error

    wrap(distributed_utils, "infer_init_method", infer_init_method)


def tell_that_nothing_was_evaluated():
    """fairseq-eval-lm that skips all blocks, or finds none, prints a perplexity of 1, as if of a perfect model."""

    def evaluate(evaluate, *args, **kwargs):
        results = evaluate(*args, **kwargs)
        if not results["loss"]:
            logger.warning("nothing was evaluated: no block is left, so the printed perplexity means nothing")
        return results

    wrap_in_command(eval_lm, "eval_lm", evaluate)


def explain_missing_targets():
    """--prefix-size and --score-reference on data without targets give a TypeError at the first batch."""

    def build_generator(build, task, models, args, *rest, **kwargs):
        wanted = ["--prefix-size"] * (getattr(args, "prefix_size", 0) > 0)
        wanted += ["--score-reference"] * bool(getattr(args, "score_reference", False))
        if wanted and any(getattr(dataset, "tgt", dataset) is None for dataset in task.datasets.values()):
            raise UserError(f"{' and '.join(wanted)} needs targets, and the data has none: leave it out")
        return build(task, models, args, *rest, **kwargs)

    wrap(FairseqTask, "build_generator", build_generator)


def explain_missing_configuration():
    """fairseq-hydra-train with a --config-name of which there is no file takes fairseq's own, in which nothing is set,
    and asks for a batch size."""
    wrap(train, "add_defaults", _check_configuration)


def _check_configuration(add_defaults, cfg):
    if HydraConfig.initialized() and GlobalHydra.instance().is_initialized():
        name = HydraConfig.get().job.config_name
        stored = ConfigStore.instance().repo.get(f"{name}.yaml")
        if stored is None or OmegaConf.get_type(stored.node) is not FairseqConfig:
            return add_defaults(cfg)
        sources = [each for each in GlobalHydra.instance().config_loader().get_sources() if each.scheme() in _OF_FILES]
        if not any(source.is_config(name) for source in sources):
            folders = " and ".join(source.path for source in sources if source.provider in ("main", "command-line"))
            raise UserError(f"{name} is no configuration in {folders}: check its spelling", "--config-name")
    add_defaults(cfg)


_OF_FILES = ("file", "pkg")  # and not of fairseq's dataclasses


def let_user_errors_through_hydra():
    """fairseq-hydra-train prints a traceback and exits, unless `is_under_debugger` returns True. Then a `UserError`
    reaches the hook of `elseq.errors`."""
    wrap(hydra_utils, "is_under_debugger", lambda asked: bool(user_sentence(sys.exc_info()[1])) or asked())


def compose_configurations_faster():
    """To compose the configuration of a command, or of a checkpoint whose options are a namespace, takes half a second.
    Half of that Hydra copies the store of all configurations, and reads the sources of all calling functions."""
    folder = os.path.join(os.path.dirname(fairseq.__file__), "config")
    dataclass_utils.initialize = lambda config_path: initialize_config_dir(folder)  # it is always this path
    store = ConfigStore.instance()
    config_repository.copy = Overlay(copy, deepcopy=lambda x: copy.deepcopy(x, {id(store): store}))


def silence_old_code():
    """Old code on new libraries prints warnings in every run that users cannot act on."""
    for category, message in (
        (UserWarning, r"hydra\.experimental\.\w+\(\) is no longer experimental"),
        (UserWarning, r"\s*The version_base parameter is not specified"),
        (UserWarning, r"\s*The strict flag in the compose API is deprecated"),
        (UserWarning, r"\s*'\w+' is validated against ConfigStore schema with the same name"),
        (UserWarning, r"In '\w+': Usage of deprecated keyword in package header"),
        (UserWarning, "'pin_memory' argument is set as true but no accelerator is found"),
        (UserWarning, "Support for mismatched (src_)?key_padding_mask and (src_|attn_)?mask is deprecated"),
        (FutureWarning, r"`torch\.cuda\.amp\.\w+\(args\.\.\.\)` is deprecated"),
    ):
        warnings.filterwarnings("ignore", message, category)
