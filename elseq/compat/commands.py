"""The commands: --user-dir, fairseq-validate, Hydra, warnings."""

import copy
import functools
import logging
import os
import sys
import warnings
from argparse import Namespace

from fairseq import checkpoint_utils, options, utils
from fairseq_cli import generate
from hydra._internal import utils as hydra_utils
from omegaconf import open_dict

from elseq.compat.patching import wrap
from elseq.errors import UserError, user_sentence

logger = logging.getLogger(__name__)


def accept_elseq_as_user_dir():
    """--user-dir is resolved again in every job: once Hydra has changed the directory a relative one is lost, and where
    elseq was imported from an installed copy it is "not globally unique"."""
    wrap(utils, "import_user_module", _import_user_module)


def take_several_user_dirs():
    """There can be one --user-dir only, and where a plugin has the architecture and elseq is to decode it there are
    two. (The first --user-dir of a process is read before elseq is there: elseq-user-dir makes one folder of several.)
    One that cannot be imported is a traceback."""
    wrap(utils, "import_user_module", _import_user_modules)


def import_user_dirs(text: str) -> None:
    """
    Args:
        text: a folder that registers models or tasks, or several with colons between them.

    Raises:
        UserError: one that is not there, or that cannot be told from another module.
    """
    utils.import_user_module(Namespace(user_dir=text))


def _import_user_modules(load, args):
    user_dir = getattr(args, "user_dir", None)
    if user_dir is None:
        return
    for folder in [user_dir] if os.path.exists(user_dir) else user_dir.split(os.pathsep):
        try:
            load(Namespace(user_dir=folder))
        except FileNotFoundError as error:
            raise UserError(f"{folder} does not exist: give the folder of a plugin", "--user-dir") from error
        except ImportError as error:
            if "not globally unique" not in str(error):
                raise
            name = os.path.basename(os.path.abspath(folder))
            reason = f"{folder}: there is another module {name!r}; give the folder another name"
            raise UserError(reason, "--user-dir") from error


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
    """fairseq-validate takes the task from the checkpoint, yet without --task it ends in `KeyError: None`."""

    def parse_args_and_arch(parse, parser, *args, **kwargs):
        # any task will do: it only adds options to the parser
        if any(action.dest == "task" and action.default is None for action in parser._actions):
            parser.set_defaults(task="translation")
        return parse(parser, *args, **kwargs)

    wrap(options, "parse_args_and_arch", parse_args_and_arch)


def keep_stock_from_the_model():
    """fairseq-validate writes an option of its command line into the checkpoint's configuration wherever it has one of
    that name. The task's --decode-attention can be stock, the model's cannot."""

    def overwrite_args_by_name(overwrite, cfg, overrides):
        before = getattr(cfg.get("model"), "decode_attention", None)
        overwrite(cfg, overrides)
        if before is not None and overrides.get("decode_attention") == "stock":
            cfg.model.decode_attention = before

    wrap(checkpoint_utils, "overwrite_args_by_name", overwrite_args_by_name)


def explain_missing_path():
    """Without --path all commands that have it but fairseq-generate end in an AttributeError or a TypeError."""

    def parse_args_and_arch(parse, *args, **kwargs):
        parsed = parse(*args, **kwargs)
        if getattr(parsed, "path", "") is None:
            raise UserError("--path is missing: give the checkpoint")
        return parsed

    wrap(options, "parse_args_and_arch", parse_args_and_arch)


def explain_missing_architecture():
    """Training without --arch ends in an error without a word."""

    def parse_args_and_arch(parse, *args, **kwargs):
        try:
            return parse(*args, **kwargs)
        except RuntimeError as error:
            if error.args:
                raise
            raise UserError("--arch is missing: give the architecture") from error

    wrap(options, "parse_args_and_arch", parse_args_and_arch)


def generate_one_shard():
    """fairseq-generate passes over --num-shards and --shard-id: each shard is all sentences. A shard that there is not
    is a ValueError in fairseq-eval-lm, and nothing elsewhere."""

    def parse_args_and_arch(parse, *args, **kwargs):
        parsed = parse(*args, **kwargs)
        shards, shard = getattr(parsed, "num_shards", 1), getattr(parsed, "shard_id", 0)
        if shards < 1:
            raise UserError(f"--num-shards {shards} is no number of shards: give 1 or more")
        if not 0 <= shard < shards:
            raise UserError(f"--shard-id {shard} is not one of the --num-shards {shards}: give 0 to {shards - 1}")
        return parsed

    wrap(options, "parse_args_and_arch", parse_args_and_arch)
    for module in (generate, sys.modules["__main__"]):  # the latter for python -m fairseq_cli.generate
        if getattr(module, "__file__", None) == generate.__file__:
            wrap(module, "_main", _generate_shard)


def _generate_shard(main, cfg, output_file):
    # the processes of a distributed run share the sentences; those of a shard share it
    processes, shards = cfg.distributed_training, cfg.dataset.num_shards
    rank, count = processes.distributed_rank, processes.distributed_world_size
    if shards == 1:
        return main(cfg, output_file)
    cfg = copy.deepcopy(cfg)
    with open_dict(cfg):
        cfg.distributed_training.distributed_world_size = count * shards
        cfg.distributed_training.distributed_rank = rank + count * cfg.dataset.shard_id
    return main(cfg, output_file)


def explain_options_of_interactive():
    """fairseq-interactive takes the options of fairseq-generate, but passes some over in silence, and others end in a
    traceback once the first line is translated."""

    def parse_args_and_arch(parse, *args, **kwargs):
        parsed = parse(*args, **kwargs)
        if hasattr(parsed, "buffer_size"):  # an option of this command alone
            _refuse_what_interactive_lacks(parsed)
        return parsed

    wrap(options, "parse_args_and_arch", parse_args_and_arch)


def _refuse_what_interactive_lacks(parsed):
    for option, is_given in (
        ("--score-reference", parsed.score_reference),
        ("--print-alignment soft", parsed.print_alignment == "soft"),
        ("--lm-path", parsed.lm_path is not None),
        ("--prefix-size", parsed.prefix_size > 0),
        ("--num-shards", parsed.num_shards > 1),
    ):
        if is_given:
            raise UserError(f"fairseq-interactive does not know {option}: use fairseq-generate, or leave it out")


def let_user_errors_through_hydra():
    """fairseq-hydra-train prints a traceback of its own and exits. It asks `is_under_debugger` first: yes lets the
    user's error pass on to the hook of `elseq.errors`."""
    wrap(hydra_utils, "is_under_debugger", lambda asked: bool(user_sentence(sys.exc_info()[1])) or asked())


def silence_old_code():
    """Old code on new libraries warns in every run about things that no user has a hand in."""
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
