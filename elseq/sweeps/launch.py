"""From the command line to Hydra, and what goes wrong there in one sentence."""

import os
import re
import sys
from collections.abc import Sequence
from itertools import pairwise, takewhile
from pathlib import Path

import hydra
from hydra._internal.utils import get_args_parser
from hydra.core.utils import env_override
from hydra.errors import HydraException, MissingConfigException
from hydra.types import TaskFunction
from omegaconf.errors import OmegaConfBaseException

from elseq.errors import UserError

CONFIG_DIR = "hydra_conf"
_HYDRA_OPTION = re.compile(r"-(m|cd|cn|c|-multirun|-cfg|-config-dir|-config-name|-hydra-help|-info)(=|$)")
_OVERRIDE = re.compile(r"[~+]*[A-Za-z_][\w./@-]*=")


def is_sweep(arguments: Sequence[str]) -> bool:
    """Whether a command line is for Hydra: it has one of its options, or an override NAME=VALUE.

    What stands after an option of another command is its value, and an existing file is a file.
    """
    before = takewhile(lambda argument: argument != "--", arguments)
    for previous, argument in pairwise(["", *before]):
        if _HYDRA_OPTION.match(argument):
            return True
        is_value = previous.startswith("--") and "=" not in previous
        if _OVERRIDE.match(argument) and not is_value and not Path(argument).exists():
            return True
    return False


def sweep(name: str, job: TaskFunction) -> None:
    """Compose the configuration that the command line asks for, and run the job on it, or on each of a multirun.

    Args:
        name: of the configuration, unless the command line has another.
        job: what is run. It is in the module from whose name the log files have theirs.

    Raises:
        UserError: no configuration, or one that cannot be composed, or a folder that cannot be written.
    """
    # Hydra wants its options to stand before the overrides.
    sys.argv[1:] = sorted(sys.argv[1:], key=lambda argument: bool(_OVERRIDE.match(argument)))
    args, unknown = get_args_parser().parse_known_args(sys.argv[1:])
    for argument in unknown + [text for text in args.overrides if "=" not in text and not text.startswith("~")]:
        raise UserError(f"{argument} does not go with NAME=VALUE and -m: give it as one of the settings in {name}.yaml")
    path = _folder(args.config_dir) / f"{args.config_name or name}.yaml"
    if not path.is_file():
        raise UserError(f"{path} does not exist: name the folder of the configurations, hydra_conf, by --config-dir")
    folder = None if args.config_dir else str(path.parent)
    # The version is the one that fairseq sets again each time it completes a configuration.
    main = hydra.main(config_path=folder, config_name=name, version_base="1.1")(job)
    try:
        with env_override({"HYDRA_FULL_ERROR": os.environ.get("HYDRA_FULL_ERROR", "1")}):  # errors come to us
            main()
    except (HydraException, OmegaConfBaseException, OSError, RuntimeError, ValueError) as error:  # of no job's work
        failed = _of_the_system(error)
        if failed is not None:
            setting = "hydra.sweep.dir" if args.multirun else "hydra.run.dir"
            what = f"{failed.filename or f'the folder {setting}'} cannot be written ({failed.strerror})"
            raise UserError(f"{what}: give another by {setting}") from error
        raise UserError(_sentence(error, path.parent)) from error
    except KeyboardInterrupt:
        print("elseq: interrupted", file=sys.stderr)  # what is done is told by `elseq.sweeps.gather`
        sys.exit(130)


def _folder(given: str | None) -> Path:
    """Of the configurations: the one given, else the user's own, else the one installed with elseq."""
    own = Path(given or CONFIG_DIR)
    return own.resolve() if given or own.is_dir() else Path(__file__).resolve().parents[1] / CONFIG_DIR


def _of_the_system(error: BaseException | None) -> OSError | None:
    """The error of the system among the error and its causes."""
    while error is not None and getattr(error, "errno", None) is None:  # Hydra has an OSError of its own
        error = error.__cause__
    return error


def _sentence(error: Exception, folder: Path) -> str:
    """What Hydra says of the configuration in the folder, for a user."""
    lines = [line.strip() for line in str(error).splitlines() if line.strip()] or [type(error).__name__]
    if lines[0].startswith("Unknown plugin class"):
        return "hydra/launcher is of a plugin that is not installed: for Slurm pip install hydra-submitit-launcher"
    if isinstance(error, MissingConfigException) and error.missing_cfg_file and error.options:
        group, _, choice = error.missing_cfg_file.rpartition("/")
        ours = [option for option in error.options if (folder / group / f"{option}.yaml").exists()]  # not fairseq's
        plugin = f"; a plugin's, with user_dir, is decode.mode={choice}" if group == "decode" else ""
        return f"{group}={choice} is unknown: choose one of {', '.join(ours or error.options)}{plugin}"
    if found := re.match(r"Could not override '(.+)'", lines[0]):
        return f"{found[1]} is no setting of this configuration: --cfg job prints all that are"
    if found := re.match(r"Ambiguous value for argument '(.+)'", lines[0]):
        return f"{found[1]} names several values: give -m to run a job for each, or put them into quotes or brackets"
    return lines[0].partition(", set env var")[0]
