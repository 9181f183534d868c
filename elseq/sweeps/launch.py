"""Runs Hydra from the command line, and turns its errors into one sentence."""

import os
import re
import sys
from pathlib import Path

import hydra
from hydra._internal.utils import get_args_parser
from hydra.core.utils import env_override
from hydra.errors import HydraException, MissingConfigException
from hydra.types import TaskFunction
from omegaconf.errors import OmegaConfBaseException

from elseq.arguments import OVERRIDE
from elseq.errors import UserError

CONFIG_DIR = "hydra_conf"


def sweep(name: str, job: TaskFunction) -> None:
    """Compose the configuration from the command line, and run the job, once or for each job of a multirun.

    Args:
        name: name of the configuration, unless the command line has another.
        job: the task function. The log files are named after its module.

    Raises:
        UserError: the configuration is missing or cannot be composed, or the folder cannot be written.
    """
    # Hydra needs its options before the overrides.
    sys.argv[1:] = sorted(sys.argv[1:], key=lambda argument: bool(OVERRIDE.match(argument)))
    args, unknown = get_args_parser().parse_known_args(sys.argv[1:])
    for argument in unknown + [text for text in args.overrides if "=" not in text and not text.startswith("~")]:
        raise UserError(f"{argument} does not go with NAME=VALUE and -m: give it as one of the settings in {name}.yaml")
    path = _folder(args.config_dir) / f"{(args.config_name or name).removesuffix('.yaml')}.yaml"
    if not path.is_file():
        others = ", ".join(sorted(other.stem for other in path.parent.glob("*.yaml")))
        if args.config_name and others:
            raise UserError(f"{args.config_name} is unknown: choose one of {others} in {path.parent}", "--config-name")
        raise UserError(f"{path} does not exist: name the folder of the configurations, hydra_conf, by --config-dir")
    folder = None if args.config_dir else str(path.parent)
    # fairseq sets this version each time it completes a configuration.
    main = hydra.main(config_path=folder, config_name=name, version_base="1.1")(job)
    try:
        with env_override({"HYDRA_FULL_ERROR": os.environ.get("HYDRA_FULL_ERROR", "1")}):  # Hydra raises errors
            main()
    except (HydraException, OmegaConfBaseException, OSError, RuntimeError, ValueError) as error:  # not from a job
        failed = _of_the_system(error)
        if failed is not None:
            setting = "hydra.sweep.dir" if args.multirun else "hydra.run.dir"
            what = f"{failed.filename or f'the folder {setting}'} cannot be written ({failed.strerror})"
            raise UserError(f"{what}: give another by {setting}") from error
        raise UserError(_sentence(error, path.parent)) from error
    except KeyboardInterrupt:
        print("elseq: interrupted", file=sys.stderr)  # `elseq.sweeps.gather` reports the finished jobs
        sys.exit(130)


def _folder(given: str | None) -> Path:
    """The folder of the configurations: the given one, otherwise the user's, otherwise the installed one."""
    own = Path(given or CONFIG_DIR)
    return own.resolve() if given or own.is_dir() else Path(__file__).resolve().parents[1] / CONFIG_DIR


def _of_the_system(error: BaseException | None) -> OSError | None:
    """The operating system's error among the error and its causes."""
    while error is not None and getattr(error, "errno", None) is None:  # Hydra raises an OSError without errno
        error = error.__cause__
    return error


def _sentence(error: Exception, folder: Path) -> str:
    """Hydra's error about the configuration in the folder, as one sentence for a user."""
    lines = [line.strip() for line in str(error).splitlines() if line.strip()] or [type(error).__name__]
    if lines[0].startswith("Unknown plugin class"):
        return "hydra/launcher is of a plugin that is not installed: for Slurm pip install hydra-submitit-launcher"
    if isinstance(error, MissingConfigException) and error.missing_cfg_file and error.options:
        group, _, choice = error.missing_cfg_file.rpartition("/")
        ours = [option for option in error.options if (folder / group / f"{option}.yaml").exists()]  # without fairseq's
        plugin = f"; a plugin's, with user_dir, is decode.mode={choice}" if group == "decode" else ""
        return f"{group}={choice} is unknown: choose one of {', '.join(ours or error.options)}{plugin}"
    if found := re.match(r"Could not override '(.+)'", lines[0]):
        return f"{found[1]} is no setting of this configuration: --cfg job prints all that are"
    if found := re.match(r"Ambiguous value for argument '(.+)'", lines[0]):
        return f"{found[1]} names several values: give -m to run a job for each, or put them into quotes or brackets"
    if found := re.match(r"Multiple values for (\S+)\.", lines[0]):
        return f"{found[1]} is there already: leave out the +"
    if lines[0].endswith("Got NoneType"):
        return "a group of settings cannot be null: leave it out"
    return lines[0].partition(", set env var")[0]
