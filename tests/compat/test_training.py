import copy
import json
import pickle
import sys
from contextlib import nullcontext
from importlib.util import find_spec
from itertools import islice
from pathlib import Path
from types import SimpleNamespace

import fairseq_cli.train
import pytest
import torch
from fairseq import options, utils
from fairseq.criterions.cross_entropy import CrossEntropyCriterion
from fairseq.data.iterators import EpochBatchIterator
from fairseq.dataclass import constants
from fairseq.logging import metrics
from fairseq.optim.lr_scheduler import FairseqLRScheduler
from fairseq.optim.lr_scheduler.reduce_lr_on_plateau import ReduceLROnPlateauLRSchedule
from fairseq.registry import REGISTRIES
from fairseq.tasks import TASK_REGISTRY
from fairseq.tasks.fairseq_task import StatefulContainer
from fairseq.tasks.translation import TranslationConfig, TranslationTask
from fairseq.tasks.translation_from_pretrained_bart import TranslationFromPretrainedBARTTask
from fairseq.trainer import Trainer
from omegaconf import OmegaConf

from elseq.compat import training
from elseq.errors import UserError
from tests import helpers
from tests.tiny_models import make_dictionary


def error_of(result):
    assert result.returncode == 1
    return result.stderr.splitlines()[-1]


NO_GPU = "elseq: error: --fp16 trains on a GPU, and there is none, or --cpu is given: leave it out, or give --bf16"
NO_TPU = "elseq: error: --tpu needs torch_xla, which is not installed: leave it out"


@pytest.mark.few_cases(1)
@pytest.mark.skipif(utils.xm is not None, reason="torch_xla is installed")
@pytest.mark.parametrize("option", ["--bf16", "--memory-efficient-bf16"])
def test_bfloat16(train, without, tmp_path, option):
    train(option, check=True)
    state = torch.load(tmp_path / "checkpoint_last.pt")
    assert state["cfg"]["common"]["bf16"] and not state["cfg"]["common"]["tpu"]
    weight = state["model"]["decoder.layers.0.fc1.weight"]
    assert torch.equal(weight, weight.bfloat16().float())
    assert error_of(train(option, "--tpu")) == NO_TPU
    without(Trainer, "__init__")
    without(options, "parse_args_and_arch")
    with pytest.raises(AttributeError, match="'NoneType' object has no attribute 'xla_device'"):
        train(option)


@pytest.mark.skipif(torch.cuda.is_available(), reason="what fairseq does with --cpu beside a GPU is another error")
def test_half_precision_without_its_hardware(train, without, tmp_path):
    assert error_of(train("--fp16")) == NO_GPU
    assert not list(tmp_path.glob("*.pt"))
    train("--memory-efficient-fp16", check=True)
    without(Trainer, "__init__")
    without(Trainer, "_build_optimizer")
    with pytest.raises((AssertionError, RuntimeError), match="CUDA|NVIDIA"):  # as torch was built
        train("--fp16", f"--save-dir={tmp_path / 'new'}")  # where there is no checkpoint to fail at


FAIRSCALE = "needs fairscale, which is not installed: install it, or give legacy_ddp"
LACKS_FAIRSCALE = pytest.mark.skipif(find_spec("fairscale") is not None, reason="fairscale is installed")


@LACKS_FAIRSCALE
def test_sharding_without_fairscale(train, without):
    assert error_of(train("--ddp-backend=fully_sharded")) == f"elseq: error: --ddp-backend fully_sharded {FAIRSCALE}"
    train("--ddp-backend=slowmo", check=True)  # one process needs none
    without(fairseq_cli.train, "add_defaults")
    with pytest.raises(ImportError, match="Cannot find FullyShardedDataParallel"):
        train("--ddp-backend=fully_sharded")


@pytest.mark.parametrize(
    ("backend", "sentence"),
    [
        pytest.param("slowmo", FAIRSCALE, marks=LACKS_FAIRSCALE),
        ("pytorch_ddp", "is for processes on GPUs: give legacy_ddp"),
        ("legacy_ddp", None),
    ],
)
def test_backends_of_several_processes(backend, sentence):
    processes = SimpleNamespace(ddp_backend=backend, distributed_world_size=2)
    cfg = SimpleNamespace(distributed_training=processes, common=SimpleNamespace(cpu=True))
    with nullcontext() if sentence is None else pytest.raises(UserError, match=f"--ddp-backend {backend} {sentence}"):
        training._check_backend(lambda cfg: None, cfg)


def test_bleu_that_nothing_computes(train, without):
    bleu = ["--user-dir", helpers.USER_DIR, "--best-checkpoint-metric=bleu", "--validate-interval=1"]
    for task in ("translation", "elseq_translation"):
        sentence = error_of(train("--task", task, *bleu))
        assert sentence == "elseq: error: --best-checkpoint-metric bleu needs --eval-bleu: give both, or neither"
    train(*bleu, "--disable-validation", check=True)
    train(*bleu, "--eval-bleu", "--eval-bleu-args={}", "--maximize-best-checkpoint-metric", check=True)
    without(Trainer, "__init__")
    with pytest.raises(KeyError, match="bleu"):
        train(*bleu, "--restore-file=checkpoint_last.pt", "--max-update=6")


@pytest.mark.parametrize(
    ("options", "warning"),
    [
        (["bleu", "--eval-bleu", "--eval-bleu-args={}"], "smallest bleu: give"),
        (["bleu", "--eval-bleu", "--eval-bleu-args={}", "--maximize-best-checkpoint-metric"], None),
        (["ppl", "--maximize-best-checkpoint-metric"], "largest ppl: leave out"),
        (["ppl"], None),
        (["ppl", "--maximize-best-checkpoint-metric", "--disable-validation"], None),
    ],
)
def test_the_worst_checkpoint(train, without, options, warning):
    command = ["--user-dir", helpers.USER_DIR, "--best-checkpoint-metric", *options, "--max-update=1"]
    sentence = f"checkpoint_best.pt will be that of the {warning} --maximize-best-checkpoint-metric\n"
    found = train(*command, check=True).stdout
    assert found.count(sentence) == (warning is not None)
    if warning is None:
        assert "checkpoint_best.pt will be" not in found
    without(Trainer, "__init__")
    assert "checkpoint_best.pt will be" not in train(*command, check=True).stdout


SEVERAL = ["--lang-pairs=src-tgt", "--langs=src,tgt"]
PRETRAINED = ["--langs=src,tgt", "-s", "src", "-t", "tgt"]


@pytest.mark.few_cases(2)
@pytest.mark.parametrize(
    ("task", "metric", "sentence"),
    [
        (
            "translation_multi_simple_epoch",
            "bleu",
            "is not computed by the validation of this task and criterion: give",
        ),
        ("multilingual_translation", "bleu", "is not computed by the validation of this task and criterion: "),
        ("translation_from_pretrained_bart", "bleu", "needs --eval-bleu: give both, or neither"),
        ("translation", "rouge", "is not computed by the validation of this task and criterion: give one of loss, ppl"),
        ("translation", "nll_loss", "is not computed by the validation of this task and criterion: give one of loss, "),
        ("translation", "accuracy", "is not computed by the validation of this task and criterion: give one of loss, "),
    ],
)
def test_metrics_that_nothing_computes(translation_data, tmp_path, task, metric, sentence):
    arch, options = "transformer", []
    if task == "multilingual_translation":
        arch, options = "multilingual_transformer", SEVERAL[:1]
    elif task != "translation":
        options = PRETRAINED if "pretrained" in task else SEVERAL
    for prefix in ("", "elseq_"):
        own = ["--user-dir", helpers.USER_DIR, f"--task={prefix}{task}", f"--best-checkpoint-metric={metric}"]
        command = helpers.train_command(arch, translation_data, tmp_path, *options, *own, "--max-update=1")
        assert error_of(helpers.run_here(command, check=False)).startswith(
            f"elseq: error: --best-checkpoint-metric {metric} {sentence}"
        )


def test_accuracy_that_nothing_computes(train):
    best = ["--user-dir", helpers.USER_DIR, "--criterion=label_smoothed_cross_entropy", "--validate-interval=1"]
    assert error_of(train(*best, "--best-checkpoint-metric=nothing")).endswith("give one of loss, nll_loss, ppl")
    assert error_of(train(*best, "--best-checkpoint-metric=n_correct")) == (
        "elseq: error: --best-checkpoint-metric n_correct needs --report-accuracy: give both, or neither"
    )
    best += ["--best-checkpoint-metric=accuracy", "--maximize-best-checkpoint-metric"]
    assert error_of(train(*best)) == (
        "elseq: error: --best-checkpoint-metric accuracy needs --report-accuracy: give both, or neither"
    )
    train(*best, "--report-accuracy", check=True)


@pytest.mark.parametrize("criterion", ["cross_entropy", "label_smoothed_cross_entropy", "adaptive_loss"])
def test_all_that_a_validation_computes_is_known(train, monkeypatch, criterion):
    """Whatever it computes may be the metric of the best checkpoint."""
    known, computed = [], []
    find = training._computed
    options = ["--adaptive-softmax-cutoff=10", "--ddp-backend=legacy_ddp"] if criterion == "adaptive_loss" else []
    monkeypatch.setattr(training, "_computed", lambda *given: known.append(find(*given)) or known[-1])
    reduce = Trainer._reduce_and_log_stats

    def reduced(self, *given):
        with metrics.aggregate() as meters:
            found = reduce(self, *given)
        computed.append(set(meters.get_smoothed_values()))
        return found

    monkeypatch.setattr(Trainer, "_reduce_and_log_stats", reduced)
    train(f"--criterion={criterion}", *options, "--user-dir", helpers.USER_DIR, "--validate-interval=1", check=True)
    assert {"loss", "ppl"} <= computed[-1] <= set(known[0])  # of the last batch of the validation


def test_metrics_of_a_plugin(train, monkeypatch):
    """Which may compute BLEU on its own."""

    class Scoring(TranslationTask):
        def post_validate(self, model, stats, meters):
            stats["bleu"] = 7.0

    monkeypatch.setitem(TASK_REGISTRY, "translation", Scoring)
    found = train("--user-dir", helpers.USER_DIR, "--best-checkpoint-metric=bleu", "--validate-interval=1", check=True)
    assert "score 7.0" in found.stdout


@pytest.mark.few_cases(1)
@pytest.mark.parametrize("option", ["--eval-bleu-args", "--eval-bleu-detok-args"])
def test_arguments_that_are_no_json(train, without, option):
    for task in ("translation", "elseq_translation"):
        for value in ("beam=4", "{'beam': 4}", "[4]", ""):
            bleu = ["--user-dir", helpers.USER_DIR, "--task", task, "--eval-bleu", f"{option}={value}"]
            found = f"elseq: error: {option} {value!r} is no JSON object: give one such as '{{\"NAME\": VALUE}}'"
            assert error_of(train(*bleu)) == found
    train(f"{option}=none", "--max-update=1", check=True)  # without --eval-bleu nothing reads it
    without(TranslationTask, "build_model")
    with pytest.raises(ValueError, match="Expecting value"):
        train("--eval-bleu", f"{option}=beam")


def test_validation_of_a_checkpoint_of_fairseq_0_10(tiny_translation, tmp_path, without):
    """With --eval-bleu, and without the options that are then read."""
    state = torch.load(tiny_translation.checkpoint)
    state["cfg"]["task"] |= {"eval_bleu": True, "eval_bleu_args": None, "eval_bleu_detok_args": None}
    torch.save(state, tmp_path / "model.pt")
    command = ["fairseq-validate", tiny_translation.data, "--path", tmp_path / "model.pt", "--cpu", "--num-workers=0"]
    assert "| bleu " in helpers.run_here([*command, "--max-tokens=500"]).stdout
    without(TranslationTask, "build_model")
    assert "TypeError" in error_of(helpers.run_here([*command, "--max-tokens=500"], check=False))


@pytest.mark.few_cases(1)
@pytest.mark.parametrize(("name", "value"), [("beam", '"five"'), ("max_len_a", "null"), ("sampling_topk", "[]")])
def test_numbers_of_the_validation(train, without, name, value):
    bleu = ["--user-dir", helpers.USER_DIR, "--eval-bleu", f'--eval-bleu-args={{"sampling": true, "{name}": {value}}}']
    bleu.append("--validate-interval=1")
    found = f"elseq: error: --eval-bleu-args has {json.loads(value)!r} for {name}: give a number"
    for task in ("translation", "elseq_translation"):
        assert error_of(train("--task", task, *bleu)) == found
    without(TranslationTask, "build_model")
    with pytest.raises(TypeError):
        train(*bleu)


def test_names_of_the_validation(train):
    """What only elseq's search knows is for its tasks."""
    for task, name, remedy in (
        ("translation", "baem", "did you mean beam?"),
        ("elseq_translation", "earlystopping", "did you mean early_stopping?"),
        ("translation", "beam_patience", ""),
    ):
        bleu = ["--user-dir", helpers.USER_DIR, "--eval-bleu", f'--eval-bleu-args={{"beam": 2, "{name}": 2}}']
        found = f"elseq: error: --eval-bleu-args has {name!r}, which is no option of a search: {remedy}"
        assert error_of(train("--task", task, *bleu)).startswith(found)
    train("--task=elseq_translation", *bleu, check=True)


def test_numbers_that_cannot_be_in_json_say_where_they_are(train):
    bleu = ["--user-dir", helpers.USER_DIR, "--eval-bleu", '--eval-bleu-args={"beam": 0}']
    assert error_of(train(*bleu)) == (
        "elseq: error: --eval-bleu-args has beam: 0 is not a whole number above 0; leave it out for the default, 5"
    )


def test_a_tokenizer_of_the_validation(train):
    command = ["--user-dir", helpers.USER_DIR, "--eval-bleu", "--eval-bleu-detok=none"]
    assert error_of(train(*command)) == (
        "elseq: error: --eval-bleu-detok none cannot be used ('none'): check its files and what it needs"
    )


ADAPTIVE = ["--user-dir", helpers.USER_DIR, "--criterion=adaptive_loss", "--ddp-backend=legacy_ddp"]


@pytest.mark.few_cases(1)
@pytest.mark.parametrize("criterion", ["cross_entropy", "label_smoothed_cross_entropy"])
def test_an_adaptive_softmax_with_another_criterion(train, without, tmp_path, criterion):
    command = ["--user-dir", helpers.USER_DIR, f"--criterion={criterion}", "--adaptive-softmax-cutoff=5"]
    sentence = "--adaptive-softmax-cutoff needs --criterion adaptive_loss: give both, or neither"
    assert error_of(train(*command)) == f"elseq: error: {sentence}"
    train(*ADAPTIVE, "--adaptive-softmax-cutoff=5", check=True)
    without(Trainer, "__init__")
    with pytest.raises(RuntimeError, match="modified by an inplace operation"):
        train(*command, f"--save-dir={tmp_path / 'new'}")


def test_adaptive_loss_without_an_adaptive_softmax(train, without):
    sentence = "--criterion adaptive_loss needs --adaptive-softmax-cutoff: give both, or neither"
    assert error_of(train(*ADAPTIVE)) == f"elseq: error: {sentence}"
    assert "use `--ddp-backend=legacy_ddp` instead" in error_of(train(*ADAPTIVE, "--ddp-backend=pytorch_ddp"))
    without(Trainer, "__init__")
    with pytest.raises(AssertionError):
        train(*ADAPTIVE)


class OfAPlugin(CrossEntropyCriterion):
    __module__ = "plugin"


@pytest.mark.parametrize("architecture", ["transformer", "elseq_transformer"])
def test_weights_tied_to_an_input_that_is_not_adaptive(train, architecture):
    options = ["--criterion=adaptive_loss", "--adaptive-softmax-cutoff=10,20", "--ddp-backend=legacy_ddp"]
    result = train("--arch", architecture, *options, "--tie-adaptive-weights")
    assert error_of(result) == (
        "elseq: error: --tie-adaptive-weights needs --adaptive-input, which only language models have: leave it out"
    )


def test_a_criterion_of_a_plugin_may_train_an_adaptive_softmax():
    model = SimpleNamespace(decoder=SimpleNamespace(adaptive_softmax=object()))
    training._check_adaptive_softmax(None, None, model, OfAPlugin(None, False))
    with pytest.raises(UserError, match="needs --criterion adaptive_loss"):
        training._check_adaptive_softmax(None, None, model, CrossEntropyCriterion(None, False))


@pytest.mark.few_cases(1)
@pytest.mark.parametrize("cutoffs", ["6,4", "4,4", "0,4", "1000", "4,1000"])
@pytest.mark.parametrize("architecture", ["transformer", "elseq_transformer"])
def test_cutoffs(train, architecture, cutoffs):
    error = error_of(train(*ADAPTIVE, f"--arch={architecture}", f"--adaptive-softmax-cutoff={cutoffs}"))
    assert f"error: --adaptive-softmax-cutoff {cutoffs} is not possible: give ascending numbers from 1 to" in error


@pytest.mark.few_cases(2)
@pytest.mark.parametrize(
    ("options", "sentence"),
    [
        (["--optimizer=sgd", "--momentum=-1"], "--optimizer sgd does not work with its options (ValueError: Invalid "),
        (["--lr-scheduler=triangular", "--max-lr=0"], "--lr-scheduler triangular needs --max-lr: give numbers above 0"),
        (
            ["--lr-scheduler=triangular", "--max-lr=0.001"],
            "--lr-scheduler triangular does not work with its options (AssertionError: max_lr must be more than lr): ",
        ),
        (
            ["--lr-scheduler=polynomial_decay", "--total-num-update=0"],
            "--lr-scheduler polynomial_decay needs --total-num-update: give numbers above 0",
        ),
        (
            ["--lr-scheduler=cosine", "--max-update=0", "--max-epoch=1"],
            "--lr-scheduler cosine needs --lr-period-updates, or --max-update: give numbers above 0",
        ),
        (
            ["--lr-scheduler=tri_stage"],
            "--lr-scheduler tri_stage needs --decay-steps, or --phase-ratio and --max-update: give numbers above 0",
        ),
        (
            ["--lr-scheduler=tri_stage", "--phase-ratio=0.1,0.4,0.5", "--max-update=0", "--max-epoch=1"],
            "--lr-scheduler tri_stage needs --decay-steps, or --phase-ratio and --max-update: give numbers above 0",
        ),
        *(
            (
                ["--lr-scheduler=manual", f"--{option}={text}"],
                f"--{option} {text} is no table of rates: give one such as ",
            )
            for option, text in (("epoch2lr", "x"), ("epoch2lr", "{1: 0.1}"), ("epoch2lr", "5"), ("update2lr", "x"))
        ),
        (
            ["--lr-scheduler=inverse_sqrt", "--warmup-updates=0"],
            "--lr-scheduler inverse_sqrt does not work with its options (ZeroDivisionError: float division by zero): "
            "give others",
        ),
        *(
            ([f"--{option}={value}"], f"--{option} {value} is not possible: give two numbers of at least 0 and below 1")
            for option, value in (("adam-betas", "0.9"), ("adam-betas", "(0.9, 2)"), ("adam-betas", "(0.9"))
        ),
        (
            ["--optimizer=adafactor", "--adafactor-eps=1"],
            "--adafactor-eps 1 is not possible: give two numbers of at least 0, as",
        ),
    ],
)
def test_options_of_the_optimizer(train, options, sentence):
    """Before the first update, and where a training continues: the checkpoint is not to blame."""
    options = ["--user-dir", helpers.USER_DIR, *options]
    assert error_of(train(*options)).startswith(f"elseq: error: {sentence}")
    train(check=True)
    assert error_of(train(*options)).startswith(f"elseq: error: {sentence}")


@pytest.mark.parametrize("part", ["optimizer", "lr_scheduler"])
def test_faults_of_a_plugin_are_its_own(train, monkeypatch, part):
    name = {"optimizer": "sgd", "lr_scheduler": "fixed"}[part]
    kind = REGISTRIES[part]["registry"][name]
    fault = {"__module__": "plugin", "__init__": lambda *_: {}["missing"]}
    monkeypatch.setitem(REGISTRIES[part]["registry"], name, type("OfAPlugin", (kind,), fault))
    with pytest.raises(KeyError, match="missing"):
        train(f"--{part.replace('_', '-')}={name}")


def test_training_without_an_optimizer(translation_data, tmp_path):
    command = helpers.train_command("transformer", translation_data, tmp_path, "--user-dir", helpers.USER_DIR)
    command.remove("--optimizer=adam")
    assert error_of(helpers.run_here(command, check=False)) == "elseq: error: --optimizer is missing: give one"


@pytest.mark.parametrize(
    "options",
    [
        ["--lr-scheduler=cosine", "--lr-period-updates=2", "--max-update=0", "--max-epoch=1"],
        ["--lr-scheduler=tri_stage", "--phase-ratio=0.1,0.4,0.5"],
        ["--lr-scheduler=tri_stage", "--decay-steps=2"],
        ["--lr-scheduler=manual", "--epoch2lr={'1': 0.1}"],
    ],
)
def test_schedules_with_what_they_need(train, options):
    train(*options, check=True)


def test_schedules_with_hydra():
    """Which parses no option."""
    with pytest.raises(UserError, match="^--lr-scheduler triangular needs --max-lr: give numbers above 0$"):
        training._check_schedule(OmegaConf.create({"_name": "triangular", "max_lr": "???"}))


@pytest.mark.few_cases(2)
@pytest.mark.parametrize(
    "before, after, error",
    [
        ("fixed", "inverse_sqrt", "KeyError"),
        ("fixed", "reduce_lr_on_plateau", "KeyError"),
        ("inverse_sqrt", "reduce_lr_on_plateau", "TypeError"),
    ],
)
def test_another_schedule(train, without, tmp_path, before, after, error):
    train(f"--lr-scheduler={before}", check=True)
    command = [f"--lr-scheduler={after}", "--max-update=9", "--validate-interval=1"]
    command += ["--restore-file", str(tmp_path / "checkpoint_last.pt")]
    train(*command, f"--save-dir={tmp_path / 'with'}", check=True)
    for schedule in (FairseqLRScheduler, ReduceLROnPlateauLRSchedule):
        without(schedule, "load_state_dict")
    with pytest.raises((AssertionError, TypeError), match=f"{error}|unsupported operand"):
        train(*command, f"--save-dir={tmp_path / 'without'}", check=True)


def test_fewer_batches_of_an_epoch(train, without, tmp_path):
    train("--max-update=4", check=True)
    command = ["--max-update=6", "--max-tokens=2000"]
    assert error_of(train(*command)) == (
        "elseq: error: 4 batches of epoch 1 were trained on before, and now it has 2: give the former data and options "
        "(--max-tokens, --batch-size), or --reset-dataloader to begin with epoch 1"
    )
    (tmp_path / "copy.pt").write_bytes((tmp_path / "checkpoint_last.pt").read_bytes())
    train(*command, "--reset-dataloader", check=True)
    without(EpochBatchIterator, "load_state_dict")
    with pytest.raises(RuntimeError, match="report this to the fairseq developers"):
        train(*command, "--restore-file", str(tmp_path / "copy.pt"))


def test_a_finished_training_is_repeated(train, without, tmp_path):
    def updates():
        train(check=True)
        return torch.load(tmp_path / "checkpoint_last.pt")["optimizer_history"][-1]["num_updates"]

    assert updates() == updates() == 3
    without(fairseq_cli.train, "train")
    assert updates() == 4


def test_hours_of_a_training(train, without, tmp_path):
    def updates(name, *options):
        train(f"--save-dir={tmp_path / name}", "--stop-time-hours=5", *options, check=True)
        return torch.load(tmp_path / name / "checkpoint_last.pt")["optimizer_history"][-1]["num_updates"]

    assert updates("first", "--max-update=2") == 2
    state = torch.load(tmp_path / "first" / "checkpoint_last.pt")
    state["extra_state"]["previous_training_time"] = 6 * 3600.0
    (tmp_path / "long").mkdir()
    path = tmp_path / "long" / "checkpoint_last.pt"
    torch.save(state, path)
    assert updates("long") == 2  # and no further update
    resets = [f"--reset-{name}" for name in ("optimizer", "lr-scheduler", "meters", "dataloader")]
    for name, start in (("tuned", ["--finetune-from-model", path]), ("restored", ["--restore-file", path, *resets])):
        assert updates(name, *map(str, start)) == 3
    without(Trainer, "load_checkpoint")
    without(fairseq_cli.train, "train")
    assert updates("long") == 3
    assert updates("new", "--finetune-from-model", str(path)) == 1


@pytest.mark.parametrize(("before", "after", "trained"), [(1, 2, 6), (2, 1, 3), (2, 2, 3), (1, 3, 4)])
def test_another_number_of_processes_continues_an_epoch(without, before, after, trained):
    """Each batch of the epoch is trained on, and those of which it is known are not trained on again."""
    numbers = torch.utils.data.TensorDataset(torch.arange(14))

    def iterators(processes):
        options = {"collate_fn": lambda some: [int(number) for (number,) in some], "num_shards": processes}
        batches = [[number] for number in range(14)]
        return [EpochBatchIterator(numbers, batch_sampler=batches, shard_id=i, **options) for i in range(processes)]

    def train(iterator, most=None):
        return [number for batch in islice(iterator.next_epoch_itr(), most) for number in batch]

    def continued():
        first = iterators(before)
        done = [number for each in first for number in train(each, trained)]
        second = iterators(after)
        for each in second:
            each.load_state_dict(first[0].state_dict())
        return done, [number for each in second for number in train(each)]

    done, rest = continued()
    assert sorted({*done, *rest}) == list(range(14))
    assert len(done) + len(rest) - 14 < after
    if before != after:
        without(EpochBatchIterator, "load_state_dict")
        done, rest = continued()
        assert len(done) + len(rest) != 14


def test_processes_that_are_strangers(train, without, monkeypatch, tmp_path):
    monkeypatch.setenv("WORLD_SIZE", "2")  # and the other variables of torchrun
    sentence = error_of(train())
    assert sentence == (
        "elseq: error: this is one of 2 processes (WORLD_SIZE), and each would train a model of its own: give "
        "--distributed-world-size 2, and on CPUs the other options in docs/several-machines.md"
    )
    assert not list(tmp_path.glob("*.pt"))
    monkeypatch.setenv("WORLD_SIZE", "1")
    train(check=True)
    monkeypatch.setenv("WORLD_SIZE", "2")
    without(Trainer, "__init__")
    train("--reset-optimizer", check=True)


@pytest.mark.slow
def test_torchrun_as_documented(translation_data, tmp_path):
    """docs/several-machines.md, on CPUs."""
    command = helpers.train_command("transformer", translation_data, tmp_path, "--max-update=3")
    command += ["--user-dir", helpers.USER_DIR, "--distributed-world-size=2", "--distributed-init-method=env://"]
    command += ["--distributed-backend=gloo", "--distributed-no-spawn", "--device-id=0", "--ddp-backend=legacy_ddp"]
    shell = f"exec {Path(sys.executable).parent}/{' '.join(map(str, command))} --distributed-rank $RANK"
    result = helpers.run(["torchrun", "--standalone", "--nproc-per-node=2", "--no-python", "bash", "-c", shell])
    assert result.returncode == 0, result.stderr.decode()
    assert b"training on 2 devices" in result.stderr + result.stdout


def test_norms_are_gathered_where_the_gradients_are(monkeypatch):
    """On a machine with a GPU, without one."""
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "current_device", lambda: torch.device("meta"))
    parameters = [torch.nn.Parameter(torch.zeros(2)) for _ in range(2)]
    for parameter in parameters:
        parameter.grad = torch.tensor([3.0, 4.0])
    assert utils.clip_grad_norm_(iter(parameters), 1.0).item() == torch.tensor(50.0).sqrt().item()
    torch.testing.assert_close(parameters[0].grad.norm(), torch.tensor(0.5**0.5))
    assert utils.torch is torch


def test_finetuning_of_a_multilingual_bart(translation_data, tmp_path, without):
    options = ["--task=translation_from_pretrained_bart", "--langs=src,tgt", "-s", "src", "-t", "tgt"]
    command = helpers.train_command("mbart_base", translation_data, tmp_path, *options, "--max-update=2")
    helpers.run_here(command)
    state = torch.load(tmp_path / "checkpoint_last.pt")
    assert state["optimizer_history"][-1]["num_updates"] == 2
    generation = ["fairseq-generate", translation_data, "--path", tmp_path / "checkpoint_last.pt", "--cpu"]
    printed = helpers.run_here([*generation, *options, "--num-workers=0", "--max-len-b=5"]).stdout
    assert printed.count("\nH-") == 21
    without(TranslationFromPretrainedBARTTask, "__init__")
    with pytest.raises(AttributeError, match="no attribute 'args'"):
        helpers.run_here([*command, "--reset-dataloader"])


@pytest.mark.few_cases(1)
@pytest.mark.parametrize("recorded, kept", [([{"method": "mean"}], [{"method": "mean"}]), ([], None), (5, [5])])
def test_the_record_of_conversions(train, without, tmp_path, recorded, kept):
    train("--max-update=1", check=True)
    path = tmp_path / "checkpoint_last.pt"
    state = torch.load(path)
    state["extra_state"]["fewer_heads"] = recorded
    torch.save(state, path)
    resets = [f"--reset-{name}" for name in ("optimizer", "lr-scheduler", "meters", "dataloader")]
    train(*resets, "--max-update=1", check=True)
    assert torch.load(path)["extra_state"].get("fewer_heads") == kept
    without(Trainer, "state_dict")
    train(*resets, "--max-update=1", check=True)
    assert "fewer_heads" not in torch.load(path)["extra_state"]


@pytest.mark.parametrize(
    ("extra_state", "expected"),
    [
        (None, []),
        ({}, []),
        ({"fewer_heads": {"method": "mean"}}, [{"method": "mean"}]),  # of earlier versions
        ({"fewer_heads": [{"method": "mean"}]}, [{"method": "mean"}]),
    ],
)
def test_recorded_conversions(extra_state, expected):
    assert training.recorded_conversions({"extra_state": extra_state}) == expected
    assert training.recorded_conversions({}) == []


@pytest.mark.parametrize("copied", [copy.copy, copy.deepcopy, lambda task: pickle.loads(pickle.dumps(task))])
def test_tasks_can_be_copied(copied, without):
    cfg = TranslationConfig(dataset_impl=constants.DATASET_IMPL_CHOICES("mmap"))
    task = TranslationTask(cfg, make_dictionary(3), make_dictionary(5))
    task.state.merge_state_dict({"seen": [7]})
    found = copied(task)
    assert found.cfg.dataset_impl == "mmap" and type(found.cfg.dataset_impl).__name__ == "Choices"
    assert found.state.seen == [7] and len(found.target_dictionary) == len(task.target_dictionary)
    found.state.add_factory("made", lambda: 3)
    assert found.state.made == 3
    with pytest.raises(AttributeError, match="no factory"):
        _ = task.state.nothing
    without(StatefulContainer, "__getattr__")
    with pytest.raises(RecursionError):
        copied(task.state)
