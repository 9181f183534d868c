import argparse
import ast
import copy
import importlib.util
import inspect
import logging
import re
import sys
import warnings
from argparse import ArgumentParser, Namespace
from pathlib import Path

import hydra.experimental
import pytest
import torch
from fairseq import checkpoint_utils, models, options, utils
from fairseq.criterions import CRITERION_REGISTRY
from fairseq.dataclass import utils as dataclass_utils
from fairseq.dataclass.utils import convert_namespace_to_omegaconf
from fairseq.distributed import utils as distributed_utils
from fairseq.models import MODEL_REGISTRY
from fairseq.tasks import TASK_REGISTRY, FairseqTask
from fairseq.tasks.translation import TranslationTask
from fairseq.trainer import Trainer
from hydra._internal import config_repository
from hydra._internal import utils as hydra_utils
from hydra.core.config_store import ConfigStore
from hydra.errors import ConfigCompositionException
from omegaconf import OmegaConf

import elseq
from elseq import compat
from elseq.compat import commands
from elseq.errors import UserError
from tests import helpers


def test_repairs_are_applied_once():
    before = utils.import_user_module
    compat.apply()
    assert utils.import_user_module is before


def test_importing_elseq_leaves_logging_alone():
    program = "import elseq, logging; print(logging.root.handlers, logging.root.level)"
    result = helpers.run(["python", "-c", program])
    assert result.stdout == b"[] 30\n"
    assert result.stderr == b""


# --- --user-dir


@pytest.fixture
def other_copy(tmp_path):
    (tmp_path / "elseq").mkdir()
    (tmp_path / "elseq" / "__init__.py").write_text("raise AssertionError('imported')")
    return tmp_path / "elseq"


def test_elseq_is_accepted_from_anywhere(other_copy, monkeypatch, caplog):
    commands._warn_once.cache_clear()
    monkeypatch.chdir(other_copy.parent.parent)
    with caplog.at_level(logging.WARNING):
        for user_dir in (helpers.USER_DIR, f"{helpers.USER_DIR}/", "elseq", None):  # "elseq": not here
            utils.import_user_module(Namespace(user_dir=user_dir and str(user_dir)))
        assert caplog.messages == []
        for _ in range(2):
            utils.import_user_module(Namespace(user_dir=str(other_copy)))
    imported = Path(elseq.__file__).parent
    assert caplog.messages == [f"--user-dir {other_copy} is not used: elseq was already imported from {imported}"]


def test_other_copy_without_the_repair(other_copy, without):
    without(utils, "import_user_module")
    with pytest.raises(ImportError, match="not globally unique"):
        utils.import_user_module(Namespace(user_dir=str(other_copy)))


def test_other_plugins_are_imported(tmp_path, monkeypatch):
    (tmp_path / "plugin_of_a_test").mkdir()
    (tmp_path / "plugin_of_a_test" / "__init__.py").write_text("")
    monkeypatch.setattr(sys, "path", sys.path[:])
    utils.import_user_module(Namespace(user_dir=str(tmp_path / "plugin_of_a_test")))
    assert sys.modules.pop("plugin_of_a_test")
    with pytest.raises(UserError, match="^--user-dir .*/no_plugin does not exist: give the folder of a plugin$"):
        utils.import_user_module(Namespace(user_dir=str(tmp_path / "no_plugin")))
    (tmp_path / "json").mkdir()
    with pytest.raises(UserError, match="^--user-dir .*/json: there is another module 'json'; give the folder another"):
        utils.import_user_module(Namespace(user_dir=str(tmp_path / "json")))
    (tmp_path / "plugin.py").touch()
    with pytest.raises(UserError, match=r"^--user-dir .*plugin\.py is no folder: give that of a plugin$"):
        utils.import_user_module(Namespace(user_dir=str(tmp_path / "plugin.py")))
    (tmp_path / "plugin.1").mkdir()
    for folder in (tmp_path / "plugin.1", "/"):
        with pytest.raises(UserError, match="^--user-dir .* has no name of a module: give the folder another name$"):
            utils.import_user_module(Namespace(user_dir=str(folder)))


def test_a_plugin_that_fails_fails_again(tmp_path, monkeypatch):
    monkeypatch.setattr(sys, "path", sys.path[:])
    (tmp_path / "failing_plugin_of_a_test").mkdir()
    (tmp_path / "failing_plugin_of_a_test" / "__init__.py").write_text("import no_such_module")
    for _ in range(2):
        with pytest.raises(ModuleNotFoundError, match="no_such_module"):
            utils.import_user_module(Namespace(user_dir=str(tmp_path / "failing_plugin_of_a_test")))


def test_several_plugins(tmp_path, monkeypatch, other_copy, without):
    monkeypatch.setattr(sys, "path", sys.path[:])
    names = ["first_plugin_of_a_test", "second_plugin_of_a_test", "third:of_a_test"]
    for name in names:
        (tmp_path / name).mkdir()
        (tmp_path / name / "__init__.py").write_text("")
    several = ":".join([*(str(tmp_path / name) for name in names[:2]), str(helpers.USER_DIR)])
    utils.import_user_module(Namespace(user_dir=several))
    utils.import_user_module(Namespace(user_dir=several))
    assert all(sys.modules.pop(name) for name in names[:2])
    utils.import_user_module(Namespace(user_dir=str(tmp_path / names[2])))  # a colon of its own
    assert sys.modules.pop(names[2])
    without(utils, "import_user_module")
    with pytest.raises(FileNotFoundError):
        utils.import_user_module(Namespace(user_dir=several))


# --- fairseq-validate


def test_validation_needs_no_task(tiny_translation, without):
    command = ["fairseq-validate", tiny_translation.data, "--path", tiny_translation.checkpoint, "--cpu"]
    command += ["--max-tokens=500", "--num-workers=0"]
    assert "valid on 'valid' subset | loss" in helpers.run_here(command).stdout
    without(options, "parse_args_and_arch")
    with pytest.raises(KeyError):
        helpers.run_here(command)


def test_validation_of_a_bart_is_as_its_training(tiny_bart):
    """Which had no <s>."""
    command = ["fairseq-validate", tiny_bart.data, "--path", tiny_bart.checkpoint, "--cpu", "--num-workers=0"]
    command += ["--max-tokens=500"]
    found = [
        re.search(r"valid on 'valid' subset \| loss ([\d.]+)", helpers.run_here([*command, *task]).stdout)[1]
        for task in ([], ["--task=elseq_translation"], ["--task=elseq_translation", "--prepend-source-bos=yes"])
    ]
    assert found[0] == found[1] != found[2]


@pytest.mark.parametrize("kind", ["tiny_translation", "tiny_language_model"])
def test_validation_by_a_task_that_follows_the_checkpoint_s(request, kind, without):
    trained = request.getfixturevalue(kind)
    task = "elseq_translation" if kind == "tiny_translation" else "elseq_language_modeling"
    command = ["fairseq-validate", trained.data, "--path", trained.checkpoint, "--cpu", "--num-workers=0"]
    command += ["--max-tokens=500", f"--task={task}"]

    def loss(*options):
        printed = helpers.run_here([*command, *options]).stdout
        return float(re.search(r"valid on 'valid' subset \| loss ([\d.]+)", printed)[1])

    applied = ["--apply-top-k=1", "--apply-ffn-top-k=1"]
    with_all, with_few = loss(), loss(*applied)
    assert with_few > with_all == loss("--decode-attention=stock") == loss("--apply-top-k=1000")
    refused = helpers.run_here([*command, "--apply-top-k=-3"], check=False)
    assert refused.returncode == 1 and "--apply-top-k" in refused.stderr and "Traceback" not in refused.stderr
    for name in ("overwrite_args_by_name", "load_checkpoint_to_cpu", "load_model_ensemble_and_task"):
        without(checkpoint_utils, name)
    assert loss(*applied) == with_all


def test_validation_by_a_plugin_s_task_without_a_dataclass(tiny_translation, monkeypatch):
    class Follower(TranslationTask):
        @classmethod
        def add_args(cls, parser):
            super().add_args(parser)
            parser.add_argument("--tone", default="low")
            parser.add_argument("--pitch", default="flat")

        def valid_step(self, *args):
            assert (self.cfg.tone, self.cfg.pitch, self.cfg.target_lang) == ("high", "flat", "tgt")
            return super().valid_step(*args)

    monkeypatch.setitem(TASK_REGISTRY, "follower", Follower)
    command = ["fairseq-validate", tiny_translation.data, "--path", tiny_translation.checkpoint, "--cpu"]
    command += ["--max-tokens=500", "--num-workers=0", "--task=follower", "--tone=high"]
    assert "valid on 'valid' subset | loss" in helpers.run_here(command).stdout


def test_validation_by_a_task_that_does_not_follow_the_checkpoint_s(tiny_translation):
    command = ["fairseq-validate", tiny_translation.data, "--path", tiny_translation.checkpoint, "--cpu"]
    printed = [
        helpers.run_here([*command, "--num-workers=0", "--max-tokens=500", *task])
        for task in ([], ["--task=elseq_language_modeling"])
    ]
    ignored = "--task elseq_language_modeling is not used: the checkpoint was trained with translation"
    assert [ignored in result.stdout + result.stderr for result in printed] == [False, True]


def test_validation_of_our_models_under_stock(tiny_multi_query, without, tmp_path):
    state = checkpoint_utils.load_checkpoint_to_cpu(str(tiny_multi_query.checkpoint))
    # As --arch elseq_transformer: its options are checked when it is built.
    state["cfg"].model._name = "elseq_transformer"
    torch.save({**state, "cfg": OmegaConf.to_container(state["cfg"])}, tmp_path / "model.pt")
    command = ["fairseq-validate", tiny_multi_query.data, "--path", tmp_path / "model.pt", "--cpu"]
    command += ["--max-tokens=500", "--num-workers=0", "--task=elseq_translation"]
    losses = {
        loss
        for mode in ("stock", "el")
        for loss in re.findall(
            r"valid on 'valid' subset \| loss ([\d.]+)", helpers.run_here([*command, "--decode-attention", mode]).stdout
        )
    }
    assert len(losses) == 1
    for name in ("overwrite_args_by_name", "load_checkpoint_to_cpu", "load_model_ensemble_and_task"):
        without(checkpoint_utils, name)
    result = helpers.run_here([*command, "--decode-attention", "stock"], check=False)
    assert result.returncode == 1
    assert "--decode-attention stock is unknown" in result.stderr


@pytest.mark.parametrize("command", ["generate", "interactive", "eval-lm", "validate"])
def test_checkpoint_that_is_not_named(language_model_data, command, without):
    command = [f"fairseq-{command}", language_model_data, "--cpu", "--max-tokens=500", "--task=language_modeling"]
    result = helpers.run_here(command, check=False)
    assert (result.returncode, result.stderr) == (1, "elseq: error: --path is missing: give the checkpoint\n")
    without(options, "parse_args_and_arch")
    if command[0] in ("fairseq-interactive", "fairseq-eval-lm"):
        with pytest.raises((AttributeError, TypeError)):
            helpers.run_here(command, check=False)


def commands_on(translation, language_model, tmp_path):
    """The beginning of each command, with what it needs."""
    (tmp_path / "file").write_text("")
    common = ["--cpu", "--num-workers=0"]
    return {
        "generate": ["fairseq-generate", translation.data, "--path", translation.checkpoint, *common],
        "interactive": ["fairseq-interactive", translation.data, "--path", translation.checkpoint, "--cpu"],
        "validate": ["fairseq-validate", translation.data, "--path", translation.checkpoint, "--batch-size=8", *common],
        "eval-lm": ["fairseq-eval-lm", language_model.data, "--path", language_model.checkpoint, *common],
        "train": helpers.train_command("transformer", translation.data, tmp_path / "save", "--max-update=1"),
    }


@pytest.mark.parametrize(
    ("option", "module", "package"),
    [
        ("--tensorboard-logdir=logs", "tensorboard", "tensorboard"),
        ("--wandb-project=mine", "wandb", "wandb"),
        ("--aim-repo=mine", "aim", "aim"),
        ("--azureml-logging", "azureml", "azureml-core"),
    ],
)
def test_a_package_that_is_not_installed(translation_data, tmp_path, monkeypatch, option, module, package):
    find = importlib.util.find_spec
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None if name.startswith(module) else find(name))
    command = helpers.train_command("transformer", translation_data, tmp_path / "save", option)
    result = helpers.run_here([*command, "--task=elseq_translation", "--user-dir", helpers.USER_DIR], check=False)
    sentence = f"{option.partition('=')[0]} needs a package that is not installed: pip install {package}"
    assert result.returncode == 1 and result.stderr.splitlines()[-1] == f"elseq: error: {sentence}"
    assert not (tmp_path / "save").exists()
    name, _, value = option.removeprefix("--").partition("=")
    cfg = OmegaConf.create({"common": {name.replace("-", "_"): value or True}})
    with pytest.raises(UserError, match=f"^{sentence}$"):  # as with Hydra, which parses no option
        commands._check_parts(cfg)


@pytest.mark.skipif(importlib.util.find_spec("editdistance") is not None, reason="editdistance is installed")
def test_a_scorer_that_is_not_installed(tiny_translation):
    command = ["fairseq-generate", tiny_translation.data, "--path", tiny_translation.checkpoint, "--scoring=wer"]
    result = helpers.run_here([*command, "--user-dir", helpers.USER_DIR], check=False)
    sentence = "--scoring wer needs a package that is not installed: pip install editdistance"
    assert result.returncode == 1 and result.stderr.splitlines()[-1] == f"elseq: error: {sentence}"


@pytest.mark.slow
@pytest.mark.parametrize(
    ("option", "module", "written"),
    [("--tensorboard-logdir", "tensorboardX", "train_inner/events*"), ("--wandb-project", "wandb", "offline-run-*")],
)
def test_a_tracker(translation_data, tmp_path, option, module, written):
    pytest.importorskip(module)
    folder = tmp_path / "logs"
    folder.mkdir()
    value = folder if option == "--tensorboard-logdir" else "mine"
    command = helpers.train_command("transformer", translation_data, tmp_path / "save", option, value)
    command += ["--task=elseq_translation", "--user-dir", helpers.USER_DIR, "--max-update=3", "--log-interval=1"]
    helpers.run(command, check=True, WANDB_MODE="offline", WANDB_DIR=str(folder))
    assert list(folder.rglob(written))


@pytest.mark.parametrize(
    "command, options, sentence",
    [
        ("generate", "--seed=-1", "--seed -1 is no seed: give a number from 0 to 4294967295"),
        ("interactive", "--seed=4294967296", "--seed 4294967296 is no seed: give a number from 0 to 4294967295"),
        ("train", "--seed=-1", "--seed -1 is no seed: give a number from 0 to 4294967295"),
        ("generate", "--num-workers=-1", "--num-workers -1 is not possible: give 0 for none, or more"),
        *(
            (command, f"--{option}={value}", f"--{option} {value} is not possible: give 1 or more")
            for command, option, value in (
                ("generate", "nbest", 0),
                ("interactive", "nbest", -1),
                ("generate", "required-batch-size-multiple", 0),
                ("train", "required-batch-size-multiple", -8),
                ("generate", "required-seq-len-multiple", 0),
                ("validate", "required-seq-len-multiple", -3),
                ("train", "update-freq", 0),
                ("train", "save-interval", 0),
                ("train", "validate-interval", 0),
                ("train", "log-interval", 0),
            )
        ),
        *(
            ("train", f"--{option}={value}", f"--{option} {value} is not possible: give a number from 0 to 1")
            for option, value in (("dropout", 2.0), ("attention-dropout", 1.5), ("encoder-layerdrop", -1.0))
        ),
        (
            "train",
            "--task=denoising --arch=bart_base --replace-length=5",
            "--replace-length 5 is not possible: give -1, 0 or 1",
        ),
        (
            "train",
            "--task=denoising --arch=bart_base --mask=3",
            "--mask 3.0 is not possible: give a number from 0 to 1",
        ),
        (
            "train",
            "--task=denoising --arch=bart_base --poisson-lambda=20",
            "--poisson-lambda 20.0 is not possible: give a number from 0.01 to 16",
        ),
        ("train", "--update-freq=[]", r"--update-freq \[\] is not possible: give 1 or more"),
        ("train", "--lr-scheduler=polynomial_decay", "--total-num-update is missing: give a value"),
        (
            "train",
            "--arch=elseq_transformer --decoder-layers-to-keep=a",
            "--decoder-layers-to-keep a is no list of layers: give numbers .*",
        ),
        ("train", "--optimizer-overrides={{x", "--optimizer-overrides the text '{x' is not evaluated .*"),
        (
            "generate",
            "--distributed-world-size=2 --distributed-rank=2",
            "--distributed-rank 2 is not one of the --distributed-world-size 2: correct either",
        ),
        ("generate", "--max-len-a=nan", "--max-len-a nan is no length: give a number"),
        ("generate", "--remove-bpe=zz", "--remove-bpe zz is unknown: give one of 'sentencepiece', .*"),
        ("interactive", "--post-process=zz", "--remove-bpe zz is unknown: give one of 'sentencepiece', .*"),
        ("train", "--eval-bleu-remove-bpe=zz", "--eval-bleu-remove-bpe zz is unknown: give one of 'sentencepiece'.*"),
        (
            "generate",
            "--results-path={file}",
            r"--results-path \S+ cannot be made a folder .File exists.: name another",
        ),
        ("generate", "--results-path={file}/x", r"--results-path \S+ cannot be .*Not a directory.: name another"),
        (
            "eval-lm",
            "--remove-bpe=sentencepiece",
            "--remove-bpe sentencepiece is unknown: give one of 'subword_nmt', .*",
        ),
        ("eval-lm", "--tokens-per-sample=0", "--tokens-per-sample 0 is not possible: give 1 or more"),
        *(
            (
                "eval-lm",
                f"--context-window={window} --tokens-per-sample=64",
                f"--context-window {window} leaves nothing of --tokens-per-sample 64: give a number from 0 to 63",
            )
            for window in (64, 100, -1)
        ),
        *(
            (
                command,
                "--distributed-world-size=99",
                "--distributed-world-size 99 is more than the .* by torchrun, as .*",
            )
            for command in ("train", "validate", "eval-lm")
        ),
    ],
)
def test_values_that_cannot_be(tiny_translation, tiny_language_model, tmp_path, command, options, sentence):
    start = commands_on(tiny_translation, tiny_language_model, tmp_path)[command]
    result = helpers.run_here([*start, *options.format(file=tmp_path / "file").split()], b"w1\n", check=False)
    assert result.returncode == 1
    assert re.fullmatch(f"elseq: error: {sentence}", result.stderr.splitlines()[-1])


def test_values_that_can_be(tiny_translation, tiny_language_model, tmp_path):
    starts = commands_on(tiny_translation, tiny_language_model, tmp_path)
    helpers.run_here([*starts["generate"], "--seed=0", "--remove-bpe", "--results-path", tmp_path / "new" / "folder"])
    assert (tmp_path / "new" / "folder" / "generate-test.txt").is_file()
    helpers.run_here([*starts["eval-lm"], "--context-window=63", "--tokens-per-sample=64", "--remove-bpe"])


@pytest.mark.parametrize(
    ("task", "arch", "sentence"),
    [
        ("translation", "transformer_lm", "transformer_lm is no encoder-decoder: give one, as --arch transformer"),
        ("elseq_translation", "multilingual_transformer", "multilingual_transformer is no encoder-decoder: give one, "),
        ("denoising", "elseq_transformer_lm", "elseq_transformer_lm is no encoder-decoder: give one, as --arch tr"),
        ("language_modeling", "elseq_bart", "elseq_bart is no language model: give one, as --arch transformer_lm"),
        *(
            (
                "multilingual_translation --lang-pairs=src-tgt",
                arch,
                f"--arch {arch} is one model, and the task has one f",
            )
            for arch in ("transformer", "elseq_transformer")
        ),
    ],
)
def test_an_architecture_of_another_task(translation_data, tmp_path, task, arch, sentence):
    command = ["fairseq-train", translation_data, "--save-dir", tmp_path, f"--arch={arch}", "--cpu", "--max-tokens=100"]
    command += ["--user-dir", helpers.USER_DIR, "--optimizer=adam", *f"--task={task}".split()]
    result = helpers.run_here(command, check=False)
    assert result.returncode == 1 and result.stderr.splitlines()[-1].startswith(f"elseq: error: {sentence}")


def test_a_task_of_a_plugin_may_be_for_any_architecture():
    plugins = type("Task", (TranslationTask,), {"__module__": "plugin"})
    commands._check_architecture(plugins, Namespace(arch="transformer_lm"))
    with pytest.raises(UserError, match="transformer_lm is no encoder-decoder"):
        commands._check_architecture(TranslationTask, Namespace(arch="transformer_lm"))


def test_evaluation_of_no_language_model(tiny_translation, language_model_data, without):
    command = ["fairseq-eval-lm", language_model_data, "--path", tiny_translation.checkpoint, "--cpu"]
    found = helpers.run_here([*command, "--user-dir", helpers.USER_DIR], check=False)
    sentence = f"checkpoint {tiny_translation.checkpoint}: transformer is no language model: give one, as --arch tr"
    assert found.returncode == 1 and found.stderr.splitlines()[-1].startswith(f"elseq: error: {sentence}")
    without(models, "build_model")
    found = helpers.run_here([*command, "--user-dir", helpers.USER_DIR], check=False)
    assert "its content leads to an error" in found.stderr


def test_an_evaluation_of_nothing(tiny_language_model, tmp_path, caplog):
    command = ["fairseq-eval-lm", tiny_language_model.data, "--path", tiny_language_model.checkpoint, "--cpu"]
    command += ["--num-workers=0", "--tokens-per-sample=40"]
    told = "nothing was evaluated: no block is left, so the printed perplexity means nothing"
    assert told not in helpers.run_here(command).stdout
    shard = ["--num-shards=9999", "--shard-id=9998"]
    assert told in helpers.run_here([*command, *shard]).stdout


def test_values_that_fairseq_takes(tiny_translation, tiny_language_model, tmp_path, without):
    command = commands_on(tiny_translation, tiny_language_model, tmp_path)["train"]
    for owner, name in ((options, "parse_args_and_arch"), (Trainer, "__init__")):
        without(owner, name)
    with pytest.raises(ValueError, match="dropout probability"):
        helpers.run_here([*command, "--dropout=2"])
    without(dataclass_utils, "compose")
    with pytest.raises(ConfigCompositionException):
        helpers.run_here([*command, "--lr-scheduler=polynomial_decay"])


def test_defaults_are_in_their_ranges():
    for kind in (*TASK_REGISTRY.values(), *CRITERION_REGISTRY.values(), *MODEL_REGISTRY.values()):
        parser = ArgumentParser(add_help=False, conflict_handler="resolve")
        kind.add_args(parser)
        commands._check_ranges({action.dest: action.default for action in parser._actions})


def test_ranges_with_hydra(translation_data, tmp_path, monkeypatch):
    """Which parses no option."""
    command = helpers.train_command("transformer", translation_data, tmp_path)
    monkeypatch.setattr(commands, "_RANGES", {})
    parsed = options.parse_args_and_arch(options.get_training_parser(), [*map(str, command[1:]), "--dropout=2"])
    monkeypatch.undo()
    with pytest.raises(UserError, match="^--dropout 2.0 is not possible: give a number from 0 to 1$"):
        Trainer(dataclass_utils.convert_namespace_to_omegaconf(parsed), None, None, None)


@pytest.mark.parametrize(
    ("options", "sentence"),
    [
        (["--lr=0.1x"], "--lr 0.1x is not possible: give a number, or several with commas"),
        (["--update-freq=x"], "--update-freq x is not possible: give a number, or several with commas"),
        (["--lr=(0.1"], "--lr (0.1 is not possible: give a number, or several with commas"),
        (["--max-update=x"], "--max-update x is not possible: give a whole number"),
        (["--clip-norm=x"], "--clip-norm x is not possible: give a number"),
        (["--lr-scheduler=triangular"], "--max-lr is missing: give a value"),
        (["--lr-scheduler=polynomial_decay"], "--total-num-update is missing: give a value"),
        (
            ["--lr-scheduler=polynomial_decay", "--total-num-update=x"],
            "--total-num-update x is not possible: give a number",
        ),
        (["--maxupdate=3"], "unrecognized arguments: --maxupdate=3; see "),
        (["--lr", "-1e-3"], "--lr -0.001 is not possible: give a number, or several with commas"),
        (["--arch=lightconv", "--encoder-glu", "x"], "--encoder-glu "),
    ],
)
def test_what_cannot_be_parsed(translation_data, tmp_path, options, sentence):
    result = helpers.run_here(helpers.train_command("transformer", translation_data, tmp_path, *options), check=False)
    assert result.returncode == 1
    assert result.stderr.startswith(f"elseq: error: {sentence}") and result.stderr.count("\n") == 1


def test_long_lists_of_choices_are_cut(translation_data, tmp_path):
    result = helpers.run_here(helpers.train_command("transfomer", translation_data, tmp_path), check=False)
    assert re.fullmatch(
        r"elseq: error: argument --arch/-a: invalid choice: 'transfomer' .{,300} --help\n", result.stderr
    )


def test_what_fairseq_cannot_parse(translation_data, tmp_path, monkeypatch, capsys, without):
    command = helpers.train_command("transformer", translation_data, tmp_path, "--lr-scheduler=polynomial_decay")
    monkeypatch.setattr(options, "argparse", argparse)

    def parse(*added):
        arguments = [*map(str, command[1:]), *added]
        return convert_namespace_to_omegaconf(options.parse_args_and_arch(options.get_training_parser(), arguments))

    with pytest.raises(SystemExit):
        parse("--lr=0.1x")
    assert capsys.readouterr().err.endswith("error: argument --lr: invalid <lambda> value: '0.1x'\n")
    without(dataclass_utils, "_override_attr")
    with pytest.raises(ValueError):
        parse("--total-num-update=x")
    monkeypatch.setattr(dataclass_utils, "ast", ast)
    with pytest.raises(SyntaxError):
        parse("--lr=0.1x")


@pytest.mark.skipif(torch.cuda.is_available(), reason="there is a GPU")
def test_torchrun_without_a_gpu(translation_data, tmp_path, monkeypatch, without):
    for name, value in {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": "29500", "WORLD_SIZE": "2", "RANK": "0"}.items():
        monkeypatch.setenv(name, value)
    command = helpers.train_command("transformer", translation_data, tmp_path, "--distributed-world-size=2")
    result = helpers.run_here(command, check=False)
    assert (result.returncode, result.stderr) == (
        1,
        "elseq: error: torchrun started this process for a GPU, and there is none: give the options for CPUs in "
        "docs/several-machines.md, as --distributed-init-method env://\n",
    )
    without(distributed_utils, "infer_init_method")
    with pytest.raises(ZeroDivisionError):
        helpers.run_here(command)


def test_programs_with_options_of_their_own(translation_data, tmp_path):
    """Which fairseq leaves to them."""
    command = helpers.train_command("transformer", translation_data, tmp_path, "--own=1")
    parser, arguments = options.get_training_parser(), list(map(str, command[1:]))
    parsed, others = options.parse_args_and_arch(parser, arguments, parse_known=True)
    assert (parsed.arch, others) == ("transformer", ["--own=1"])
    with pytest.raises(UserError, match="^--num-workers -1 is not possible"):
        options.parse_args_and_arch(options.get_training_parser(), [*arguments, "--num-workers=-1"], parse_known=True)


def test_generation_starts_no_processes(tiny_translation, tiny_language_model, tmp_path):
    command = commands_on(tiny_translation, tiny_language_model, tmp_path)["generate"]
    shares = []
    for rank in (0, 1):
        options = ["--batch-size=2", "--distributed-world-size=2", f"--distributed-rank={rank}"]
        shares.append(helpers.run_here([*command, *options]).stdout)
        assert f"starts no processes: this one generates the sentences of --distributed-rank {rank} of 2" in shares[-1]
    assert sum(share.count("\nH-") for share in shares) == 21


@pytest.mark.few_cases(1)
@pytest.mark.parametrize("option", ["--prefix-size=1", "--score-reference"])
def test_targets_that_are_not_there(tiny_translation, tmp_path, option, without):
    languages = ["-s", "src", "-t", "tgt"]
    dictionary = ["--srcdict", tiny_translation.data / "dict.src.txt", "--testpref", tiny_translation.raw / "test"]
    helpers.run_here(["fairseq-preprocess", "--only-source", "--destdir", tmp_path, *languages, *dictionary])
    (tmp_path / "dict.tgt.txt").write_bytes((tiny_translation.data / "dict.tgt.txt").read_bytes())
    command = ["fairseq-generate", tmp_path, "--path", tiny_translation.checkpoint, "--cpu", "--num-workers=0"]
    for task in ("translation", "elseq_translation"):
        task = [*languages, "--task", task, "--user-dir", helpers.USER_DIR]
        assert helpers.run_here([*command, *task]).stdout.count("\nH-") == 21
        result = helpers.run_here([*command, *task, option], check=False)
        name = option.partition("=")[0]
        sentence = f"elseq: error: {name} needs targets, and the data has none: leave it out"
        assert (result.returncode, result.stderr.splitlines()[-1]) == (1, sentence)
    without(FairseqTask, "build_generator")
    with pytest.raises(TypeError):
        helpers.run_here([*command, *languages, option])


def test_training_without_an_architecture(translation_data, without):
    command = ["fairseq-train", translation_data, "--cpu", "--max-tokens=500"]
    result = helpers.run_here(command, check=False)
    assert (result.returncode, result.stderr) == (1, "elseq: error: --arch is missing: give the architecture\n")
    without(options, "parse_args_and_arch")
    with pytest.raises(RuntimeError):
        helpers.run_here(command)


# --- fairseq-interactive


@pytest.mark.parametrize(
    "option", ["--score-reference", "--print-alignment soft", "--lm-path nothing.pt", "--prefix-size 1"]
)
def test_options_that_interactive_lacks(tiny_translation, option, without):
    command = ["fairseq-interactive", tiny_translation.data, "--path", tiny_translation.checkpoint, "--cpu"]
    command += ["--beam=1", *option.split()]
    result = helpers.run_here(command, input=b"w1 w2 w3\n", check=False)
    name = option.removesuffix(" nothing.pt").removesuffix(" 1")
    sentence = f"fairseq-interactive does not know {name}: use fairseq-generate, or leave it out"
    assert (result.returncode, result.stderr) == (1, f"elseq: error: {sentence}\n")
    without(options, "parse_args_and_arch")
    if name in ("--lm-path", "--prefix-size"):  # passed over in silence
        assert "H-0" in helpers.run_here(command, input=b"w1 w2 w3\n").stdout
    else:
        with pytest.raises((KeyError, ValueError)):
            helpers.run_here(command, input=b"w1 w2 w3\n")


def test_generate_keeps_these_options(tiny_translation):
    command = ["fairseq-generate", tiny_translation.data, "--path", tiny_translation.checkpoint, "--cpu", "--beam=1"]
    for option in (["--score-reference"], ["--print-alignment", "soft"], ["--prefix-size=1"]):
        assert "H-0" in helpers.run_here([*command, "--num-workers=0", *option]).stdout


# --- Hydra


def fail(error):
    raise error


@pytest.mark.parametrize("name", ["misspelled", "written"])
def test_a_configuration_that_there_is_not(tmp_path, name):
    (tmp_path / "written.yaml").write_text("# @package _group_\ncommon:\n  user_dir: null\n")
    command = ["fairseq-hydra-train", "--config-dir", tmp_path, "--config-name", name, f"hydra.run.dir={tmp_path}"]
    ended = helpers.run([*command, f"common.user_dir={helpers.USER_DIR}"])
    sentence = {
        "misspelled": f"--config-name misspelled is no configuration in fairseq.config and {tmp_path}: check its spell",
        "written": "Must specify batch size either with --max-tokens or --batch-size",
    }[name]
    assert ended.returncode == 1
    assert ended.stderr.decode().splitlines()[-1].startswith(f"elseq: error: {sentence}")


def test_settings_beside_the_parts_of_a_configuration():
    """As +note=text of a command with Hydra."""
    cfg = OmegaConf.create({"note": "text", "number": 5, "model": None, "common": {"log_interval": 1}})
    commands._check_parts(cfg)
    cfg.common.log_interval = 0
    with pytest.raises(UserError, match="^--log-interval 0 is not possible: give 1 or more$"):
        commands._check_parts(cfg)


def test_user_error_passes_hydra(capsys, without):
    with pytest.raises(UserError, match="bad input"):
        hydra_utils.run_and_report(lambda: fail(UserError("bad input")))
    with pytest.raises(AssertionError):
        hydra_utils.run_and_report(lambda: fail(AssertionError("--path required")))
    assert capsys.readouterr().err == ""
    with pytest.raises(SystemExit):
        hydra_utils.run_and_report(lambda: fail(ValueError("a fault")))
    assert "ValueError: a fault" in capsys.readouterr().err
    without(hydra_utils, "is_under_debugger")
    with pytest.raises(SystemExit):
        hydra_utils.run_and_report(lambda: fail(UserError("bad input")))


@pytest.mark.parametrize(
    "command, given", [("training", ["--arch=transformer", "--optimizer=adam"]), ("generation", ["--path=x"])]
)
def test_the_same_configuration_sooner(monkeypatch, command, given):
    parser = getattr(options, f"get_{command}_parser")()
    args = options.parse_args_and_arch(parser, ["data", *given])
    with monkeypatch.context() as patch:
        patch.setattr(inspect, "stack", None)  # reads the sources of all that call
        patch.setattr(ConfigStore, "__reduce_ex__", None)  # copies it
        sooner = dataclass_utils.convert_namespace_to_omegaconf(args)
    with monkeypatch.context() as patch:
        patch.setattr(config_repository, "copy", copy)
        patch.setattr(dataclass_utils, "initialize", hydra.experimental.initialize)
        stock = dataclass_utils.convert_namespace_to_omegaconf(args)
    assert OmegaConf.to_container(sooner) == OmegaConf.to_container(stock)


# --- warnings


@pytest.mark.parametrize(
    "category, message",
    [
        (UserWarning, "hydra.experimental.compose() is no longer experimental. Use hydra.compose()"),
        (UserWarning, "\nThe version_base parameter is not specified.\nPlease specify"),
        (UserWarning, "\nThe strict flag in the compose API is deprecated."),
        (UserWarning, "\n'config' is validated against ConfigStore schema with the same name."),
        (UserWarning, "In 'config': Usage of deprecated keyword in package header '# @package _group_'."),
        (UserWarning, "'pin_memory' argument is set as true but no accelerator is found, then"),
        (UserWarning, "Support for mismatched key_padding_mask and attn_mask is deprecated. Use"),
        (UserWarning, "Support for mismatched src_key_padding_mask and mask is deprecated. Use"),
        (FutureWarning, "`torch.cuda.amp.autocast(args...)` is deprecated. Please use"),
    ],
)
def test_warnings_about_old_code_are_silenced(category, message):
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        commands.silence_old_code()
        warnings.warn(message, category, stacklevel=1)
        warnings.warn("something else is deprecated", category, stacklevel=1)
    assert [str(warning.message) for warning in caught] == ["something else is deprecated"]


def test_a_shard_without_sentences(tiny_translation, caplog):
    command = ["fairseq-generate", tiny_translation.data, "--path", tiny_translation.checkpoint, "--cpu", "--beam=1"]
    command += ["--max-tokens=10000", "--max-len-b=2", "--num-shards=50", "--user-dir", helpers.USER_DIR, "--quiet"]
    whole, empty = (helpers.run_here([*command, f"--shard-id={shard}"]) for shard in (0, 49))
    assert "BLEU" in whole.stdout + whole.stderr and "has no sentence" not in whole.stderr
    assert "--gen-subset test, --shard-id 49 of --num-shards 50, has no sentence to generate from" in (
        empty.stdout + empty.stderr
    )


def test_a_run_that_skips_all_sentences(tiny_translation):
    command = ["fairseq-generate", tiny_translation.data, "--path", tiny_translation.checkpoint, "--cpu"]
    command += ["--max-source-positions=1", "--skip-invalid-size-inputs-valid-test", "--quiet"]
    result = helpers.run_here(command)
    assert "--gen-subset test has no sentence to generate from" in result.stdout + result.stderr


@pytest.mark.parametrize(
    "given, sentence",
    [
        (["--num-shards=2", "--shard-id=5"], "--shard-id 5 is not one of the --num-shards 2: give 0 to 1"),
        (["--num-shards=2", "--shard-id=2"], "--shard-id 2 is not one of the --num-shards 2: give 0 to 1"),
        (["--shard-id=-1"], "--shard-id -1 is not one of the --num-shards 1: give 0 to 0"),
        (["--num-shards=0"], "--num-shards 0 is no number of shards: give 1 or more"),
    ],
)
def test_a_shard_that_there_is_not(given, sentence):
    with pytest.raises(UserError) as raised:
        options.parse_args_and_arch(options.get_generation_parser(), ["data", "--path=model.pt", *given])
    assert str(raised.value) == sentence
