import decimal
import io
import math
import os
import pickle
import shutil
from argparse import Namespace

import numpy as np
import pytest
import torch
from fairseq import checkpoint_utils, models, tasks
from fairseq.distributed import utils as distributed_utils
from fairseq.logging import meters
from fairseq.trainer import Trainer

from elseq.errors import UserError
from tests import helpers


class Attack:
    """Makes a directory when it is unpickled."""

    def __init__(self, directory):
        self.directory = str(directory)

    def __reduce__(self):
        return os.mkdir, (self.directory,)


def load(path, **overrides):
    return checkpoint_utils.load_checkpoint_to_cpu(str(path), overrides or None)


@pytest.fixture
def state(tiny_translation):
    return torch.load(tiny_translation.checkpoint)


@pytest.fixture
def save(tmp_path):
    def save(state, legacy=False, replace=()):
        path = tmp_path / "model.pt"
        torch.save(state, path, _use_new_zipfile_serialization=not legacy)
        content = path.read_bytes()
        for old, new in replace:
            assert old in content
            content = content.replace(old, new)
        path.write_bytes(content)
        return path

    return save


def as_old(state):
    """As fairseq saved a checkpoint before it had configurations: a namespace, and no `cfg`."""
    return {**{key: value for key, value in state.items() if key != "cfg"}, "args": state["cfg"]["model"]}


# --- what is loaded, and what is not


@pytest.mark.parametrize("legacy", [False, True])
def test_new_checkpoint_loads(state, save, legacy):
    loaded = load(save(state, legacy))
    assert loaded["cfg"].model.arch == "transformer"
    assert loaded["model"].keys() == state["model"].keys()


@pytest.mark.parametrize("legacy", [False, True])
def test_old_checkpoint_with_namespace_loads(state, save, legacy):
    loaded = load(save(as_old(state), legacy), data="elsewhere")
    assert loaded["cfg"].task.data == "elsewhere"
    assert loaded["cfg"].model.encoder_layers == 2


def test_numbers_and_meters_load(state, save):
    meter = meters.AverageMeter(round=2)
    meter.update(3.5)
    extra = {
        "array": np.arange(6, dtype=np.float32).reshape(2, 3),
        "count": np.int64(7),
        "best": np.float64(0.5),
        "flag": np.bool_(True),
        "train_meters": {"loss": meter, "wall": meters.TimeMeter(), "ups": meters.StopwatchMeter()},
    }
    renamed = [(b"fairseq.logging.meters\n", b"fairseq.meters\n")]
    for old_numpy in ([], [(b"numpy._core.multiarray\n", b"numpy.core.multiarray\n")]):
        loaded = load(save({**state, "extra_state": {**state["extra_state"], **extra}}, True, renamed + old_numpy))
        loaded = loaded["extra_state"]
        np.testing.assert_array_equal(loaded["array"], extra["array"])
        assert (loaded["count"], loaded["best"], loaded["flag"]) == (7, 0.5, True)
        assert loaded["train_meters"]["loss"].avg == 3.5


def test_nothing_loads_without_the_list(tiny_translation, monkeypatch):
    monkeypatch.setattr("torch._weights_only_unpickler._marked_safe_globals_set", set())
    with pytest.raises(UserError, match="argparse.Namespace"):
        load(tiny_translation.checkpoint)


@pytest.mark.parametrize("legacy", [False, True])
def test_foreign_class_is_refused_by_name(state, save, legacy):
    path = save({**state, "price": decimal.Decimal(1)}, legacy)
    with pytest.raises(UserError, match=r"decimal\.Decimal.*TORCH_FORCE_NO_WEIGHTS_ONLY_LOAD=1") as raised:
        load(path)
    assert str(path) in str(raised.value)
    assert "\n" not in str(raised.value)


@pytest.mark.parametrize("legacy", [False, True])
def test_nothing_is_run(state, save, legacy, tmp_path):
    with pytest.raises(UserError, match=r"posix\.mkdir"):
        load(save({**state, "extra": Attack(tmp_path / "broken in")}, legacy))
    assert not (tmp_path / "broken in").exists()


@pytest.mark.parametrize("array", [np.array([None]), np.zeros(1, dtype=[("a", "i4")])], ids=["objects", "structured"])
def test_arrays_of_anything_but_numbers_are_refused(state, save, array):
    with pytest.raises(UserError):
        load(save({**state, "extra": array}))


def test_user_may_trust_a_file(state, save, monkeypatch):
    monkeypatch.setenv("TORCH_FORCE_NO_WEIGHTS_ONLY_LOAD", "1")
    with pytest.warns(UserWarning, match="TORCH_FORCE_NO_WEIGHTS_ONLY_LOAD"):
        assert load(save({**state, "price": decimal.Decimal(1)}))["price"] == 1


def test_file_is_read_once(tiny_translation, monkeypatch):
    reads = []
    torch_load = torch.load
    monkeypatch.setattr(torch, "load", lambda *args, **kwargs: reads.append(1) or torch_load(*args, **kwargs))
    load(tiny_translation.checkpoint)
    assert len(reads) == 1


# --- files that are of no use


def damage(state, how):
    file = io.BytesIO()
    torch.save(state, file, _use_new_zipfile_serialization=how != "old and cut off")
    content = file.getvalue()
    return {
        "empty": b"",
        "cut off": content[: len(content) // 2],
        "cut off at once": content[:20],
        "old and cut off": content[: len(content) // 2],
        "text": b"hello\n",
        "binary": bytes(range(256)),
    }[how]


@pytest.mark.parametrize(
    "how, sentence",
    [
        ("empty", "is empty"),
        ("cut off", "damaged or was cut off"),
        ("cut off at once", "damaged or was cut off"),
        ("old and cut off", "damaged or was cut off"),
        ("text", "is not a checkpoint"),
        ("binary", "is not a checkpoint"),
    ],
)
def test_unreadable_file_is_one_sentence(state, tmp_path, how, sentence):
    path = tmp_path / "model.pt"
    path.write_bytes(damage(state, how))
    with pytest.raises(UserError, match=sentence) as raised:
        load(path)
    assert str(path) in str(raised.value)
    assert "\n" not in str(raised.value)


@pytest.mark.parametrize("missing", ["model", "cfg", "optimizer_history", "extra_state"])
def test_file_without_what_a_checkpoint_has(state, save, missing):
    with pytest.raises(UserError, match=f"is not a checkpoint of fairseq: it has no .*'{missing}'"):
        load(save({key: value for key, value in state.items() if key != missing}))


@pytest.mark.parametrize("content", [torch.ones(2), [1, 2], {"weight": torch.ones(2)}], ids=["tensor", "list", "dict"])
def test_other_torch_file(save, content):
    with pytest.raises(UserError, match="it has no 'model'"):
        load(save(content))


def test_missing_file(tmp_path):
    for function in (load, lambda path: checkpoint_utils.load_model_ensemble([str(path)])):
        with pytest.raises(UserError) as raised:
            function(tmp_path / "nothing.pt")
        sentence = f"checkpoint {tmp_path / 'nothing.pt'} cannot be read (No such file or directory): check the path"
        assert str(raised.value) == sentence
    with pytest.raises(UserError, match="cannot be read"):
        load(tmp_path)


def test_unreadable_files_without_the_repair(state, save, monkeypatch, without):
    monkeypatch.setattr(checkpoint_utils, "torch", torch)
    without(checkpoint_utils, "load_checkpoint_to_cpu")
    with pytest.raises(pickle.UnpicklingError):
        load(save({**state, "price": decimal.Decimal(1)}))
    with pytest.raises(KeyError):
        load(save({"weight": torch.ones(2)}))


# --- checkpoints that do not fit


def test_history_of_the_optimizer_may_be_empty(state, save, without):
    del state["last_optimizer_state"]
    state["optimizer_history"] = []
    path = save(state)
    assert load(path)["optimizer_history"][-1]["num_updates"] == 0
    without(checkpoint_utils, "_upgrade_state_dict")
    without(checkpoint_utils, "load_checkpoint_to_cpu")
    with pytest.raises(IndexError):
        load(path)


def edit(state, section, **changes):
    """The checkpoint with other settings."""
    part = state["cfg"][section]
    part = Namespace(**{**vars(part), **changes}) if isinstance(part, Namespace) else {**part, **changes}
    return {**state, "cfg": {**state["cfg"], section: part}}


def load_model(path, task=None):
    return checkpoint_utils.load_model_ensemble_and_task([str(path)], task=task)


@pytest.fixture
def task(tiny_translation):
    return load_model(tiny_translation.checkpoint)[2]


@pytest.fixture
def mystery(state):
    """A checkpoint of an architecture that is not registered, with parameters of no other one."""
    parameters = {f"mysterious.{name}": tensor for name, tensor in state["model"].items()}
    return {**edit(state, "model", arch="mystery", _name="mystery"), "model": parameters}


@pytest.mark.parametrize("old", [False, True])
def test_unknown_architecture(mystery, save, task, old):
    path = save(as_old(mystery) if old else mystery)
    with pytest.raises(UserError, match="model.pt: the architecture 'mystery' is unknown.*--user-dir"):
        load_model(path, task)


@pytest.mark.parametrize("old", [False, True])
def test_unknown_task(state, save, old):
    state = edit(edit(state, "task", _name="mystery"), "model", task="mystery")
    with pytest.raises(UserError, match="model.pt: the task 'mystery' is unknown.*--user-dir"):
        load_model(save(as_old(state) if old else state))


def test_unknown_criterion(tiny_translation, state, save):
    path = save(edit(state, "criterion", _name="mystery"))
    command = ["fairseq-validate", tiny_translation.data, "--user-dir", helpers.USER_DIR, "--path", path, "--cpu"]
    result = helpers.run_here([*command, "--task=translation", "--max-tokens=500"], check=False)
    assert result.returncode == 1
    assert "the criterion 'mystery' is unknown" in result.stderr
    assert result.stderr.count("\n") == 1


def test_unknown_task_does_not_matter_where_another_is_given(state, save, task):
    load_model(save(edit(state, "task", _name="mystery")), task)


def test_unknown_names_without_the_repair(state, mystery, save, task, without):
    without(models, "build_model")
    without(tasks, "setup_task")
    without(checkpoint_utils, "load_model_ensemble_and_task")
    with pytest.raises(IndexError):  # in the message of an assertion
        load_model(save(mystery), task)
    with pytest.raises(AssertionError):
        load_model(save(edit(state, "task", _name="mystery")))
    without(checkpoint_utils, "_upgrade_state_dict")
    without(checkpoint_utils, "load_checkpoint_to_cpu")
    with pytest.raises(KeyError):
        load_model(save(as_old(mystery)), task)


def test_other_architecture(state, save, task, without):
    # (Where the last layers are missing, they were left out in training.)
    path = save(
        {**state, "model": {name: state["model"][name] for name in state["model"] if "encoder.layers.0" not in name}}
    )
    with pytest.raises(UserError, match=r"model.pt does not fit the model \(Missing key.*encoder\.layers\.0") as raised:
        load_model(path, task)
    assert "\n" not in str(raised.value) and "--save-dir" not in str(raised.value)
    assert len(str(raised.value)) < 500
    without(checkpoint_utils, "load_model_ensemble_and_task")
    with pytest.raises(RuntimeError, match="Error"):
        load_model(path, task)


def test_other_shape(state, save, task):
    name = "encoder.layers.1.fc1.weight"
    path = save({**state, "model": {**state["model"], name: torch.zeros(5, 32)}})
    with pytest.raises(UserError) as raised:
        load_model(path, task)
    assert str(raised.value) == (
        f"checkpoint {path} does not fit the model ({name} has the shape 5 x 32 in it and 64 x 32 in the model): "
        "take the file and the settings as training left them"
    )


def test_dictionaries_that_were_joined(tiny_translation, tmp_path):
    shutil.copytree(tiny_translation.data, tmp_path / "data")
    with open(tmp_path / "data" / "dict.src.txt", "a") as dictionary:
        dictionary.write("new 1\n")
    with pytest.raises(UserError, match="^checkpoint .*checkpoint_last.pt: .*requires a joined dictionary"):
        checkpoint_utils.load_model_ensemble_and_task(
            [str(tiny_translation.checkpoint)], {"data": str(tmp_path / "data")}
        )


def test_other_dictionary(tiny_translation, tmp_path):
    shutil.copytree(tiny_translation.data, tmp_path / "data")
    for side in ("src", "tgt"):
        with open(tmp_path / "data" / f"dict.{side}.txt", "a") as dictionary:
            dictionary.write("new 1\n")
    command = ["fairseq-generate", tmp_path / "data", "--path", tiny_translation.checkpoint, "--cpu", "--num-workers=0"]
    result = helpers.run_here(command, check=False)
    assert result.returncode == 1
    assert result.stderr.startswith(
        f"elseq: error: the encoder of checkpoint {tiny_translation.checkpoint} was trained with a dictionary of 24 "
        "entries, the data has one of 25: use the checkpoint's, and prepare data with it "
    )


def test_ensemble_names_the_file_at_fault(tiny_translation, tmp_path):
    (tmp_path / "bad.pt").write_bytes(b"hello")
    with pytest.raises(UserError, match="bad.pt is not a checkpoint"):
        checkpoint_utils.load_model_ensemble([str(tiny_translation.checkpoint), str(tmp_path / "bad.pt")])


def test_ensemble_keeps_the_order(tiny_translation, tiny_bart):
    paths = [str(tiny_translation.checkpoint), str(tiny_bart.checkpoint)]
    ensemble, cfg, task = checkpoint_utils.load_model_ensemble_and_task(paths)
    assert [type(model).__name__ for model in ensemble] == ["TransformerModel", "BARTModel"]
    assert cfg.model._name == "bart_base"
    assert checkpoint_utils.load_model_ensemble_and_task(paths, task=task)[2] is task


# --- training


def continue_training(tiny, directory, *options):
    """One update more in a copy of the checkpoint's directory."""
    shutil.copytree(tiny.checkpoint.parent, directory, dirs_exist_ok=True)
    command = helpers.train_command("transformer", tiny.data, directory, "--max-update=101", *options)
    return helpers.run_here(command, check=False)


@pytest.mark.few_cases(2)
@pytest.mark.parametrize(
    "options, sentence",
    [
        (["--encoder-layers=3"], "checkpoint_last.pt does not fit the model (Missing key"),
        (["--criterion=label_smoothed_cross_entropy"], "checkpoint_last.pt: Criterion does not match"),
        (["--optimizer=sgd"], "checkpoint_last.pt: Optimizer does not match"),
        (["--restore-file=nothing.pt"], "--restore-file nothing.pt does not exist"),
        (["--restore-file=."], "--restore-file . is a folder: give the file of a checkpoint, as one in it"),
        (["--finetune-from-model=.", "--save-dir=new"], "--finetune-from-model . is a folder: give the file of a"),
        (["--finetune-from-model=nothing.pt", "--save-dir=new"], "--finetune-from-model nothing.pt does not exist"),
    ],
)
def test_training_that_cannot_go_on_is_one_sentence(tiny_translation, tmp_path, monkeypatch, options, sentence):
    monkeypatch.chdir(tmp_path)
    result = continue_training(tiny_translation, tmp_path / "models", *options)
    assert result.returncode == 1
    assert sentence in result.stderr
    assert result.stderr.count("\n") == 1


@pytest.mark.few_cases(4)
@pytest.mark.parametrize(
    ("keys", "value"),
    [
        (("extra_state", "train_iterator", "epoch"), 10**12),
        (("extra_state", "train_iterator", "epoch"), "last"),
        (("extra_state", "train_iterator", "iterations_in_epoch"), -1),
        (("extra_state", "train_iterator"), None),
        (("extra_state", "previous_training_time"), "an hour"),
        (("extra_state", "best"), "none"),
        (("extra_state",), [1]),
        (("optimizer_history",), {}),
        (("last_optimizer_state", "param_groups"), None),
        (("last_optimizer_state",), "state"),
    ],
    ids=str,
)
def test_damaged_state_of_a_training(tiny_translation, tmp_path, keys, value):
    state = torch.load(tiny_translation.checkpoint)
    part = state
    for key in keys[:-1]:
        part = part[key]
    part[keys[-1]] = value
    torch.save(state, tmp_path / "damaged.pt")
    command = helpers.train_command("transformer", tiny_translation.data, tmp_path / "models", "--max-update=101")
    result = helpers.run_here([*command, "--restore-file", tmp_path / "damaged.pt"], check=False)
    assert result.returncode == 1
    assert f"checkpoint {tmp_path / 'damaged.pt'} " in result.stderr
    assert result.stderr.count("\n") == 1
    assert not list((tmp_path / "models").glob("*.pt"))


@pytest.mark.parametrize(
    ("option", "remedy"),
    [
        ("--restore-file", "continue from its model alone by --reset-optimizer, --reset-lr-scheduler, "),
        ("--finetune-from-model", "use the file that the training saved"),  # which takes the model alone
    ],
)
def test_remedies_for_a_damaged_state(tiny_translation, tmp_path, option, remedy):
    state = torch.load(tiny_translation.checkpoint)
    state["extra_state"]["train_iterator"]["epoch"] = -1
    torch.save(state, tmp_path / "damaged.pt")
    command = helpers.train_command("transformer", tiny_translation.data, tmp_path / "new", "--user-dir")
    result = helpers.run_here([*command, helpers.USER_DIR, option, tmp_path / "damaged.pt"], check=False)
    assert f"its content leads to an error (ValueError: epoch -1): {remedy}" in result.stderr


def test_another_checkpoint_is_named_where_the_last_is_damaged(tiny_translation, tmp_path):
    models = tmp_path / "models"
    shutil.copytree(tiny_translation.checkpoint.parent, models)
    last = models / "checkpoint_last.pt"
    content = last.read_bytes()
    for path in models.glob("*.pt"):
        path.write_bytes(content[:5000])
    command = helpers.train_command("transformer", tiny_translation.data, models, "--max-update=101")
    found = f"elseq: error: checkpoint {last} is damaged or was cut off: copy or train it again"
    assert helpers.run_here(command, check=False).stderr == f"{found}\n"
    for number, name in enumerate(["checkpoint_1_10.pt", "checkpoint2.pt"]):
        (models / name).write_bytes(content)
        os.utime(models / name, (number, number))
    assert helpers.run_here(command, check=False).stderr == f"{found}, or give --restore-file {models / name}\n"
    helpers.run_here([*command, "--restore-file", models / name])


def test_trainer_without_the_repair(tiny_translation, tmp_path, without):
    without(Trainer, "load_checkpoint")
    with pytest.raises(Exception, match="please ensure that the architectures match"):
        continue_training(tiny_translation, tmp_path / "models", "--encoder-layers=3")


def test_missing_start_without_the_repair(tiny_translation, tmp_path, without):
    without(checkpoint_utils, "load_checkpoint")
    result = continue_training(tiny_translation, tmp_path / "models", "--restore-file=nothing.pt", "--max-update=1")
    assert "No existing checkpoint found nothing.pt" in result.stdout


def test_reset_optimizer_starts_from_another_criterion(tiny_translation, tmp_path):
    options = ["--criterion=label_smoothed_cross_entropy", "--save-dir", tmp_path / "other", "--max-update=2"]
    resets = ["--reset-optimizer", "--reset-lr-scheduler", "--reset-dataloader", "--reset-meters"]
    restore = f"--restore-file={tiny_translation.checkpoint}"
    result = continue_training(tiny_translation, tmp_path / "models", restore, *options, *resets)
    assert result.returncode == 0, result.stderr
    assert f"Loaded checkpoint {tiny_translation.checkpoint}" in result.stdout


def test_every_training_has_its_own_best_score(translation_data, tmp_path, without):
    from fairseq_cli import train

    train.should_stop_early.num_runs = train.should_stop_early.best = -1
    checkpoint_utils.save_checkpoint.best = -1
    helpers.train("transformer", translation_data, tmp_path / "own", "--max-update=1", "--patience=1")
    assert (tmp_path / "own" / "checkpoint_best.pt").exists()
    assert train.should_stop_early.best > 0

    without(checkpoint_utils, "load_checkpoint")
    checkpoint_utils.save_checkpoint.best = -1
    helpers.train("transformer", translation_data, tmp_path / "shared", "--max-update=1")
    assert not (tmp_path / "shared" / "checkpoint_best.pt").exists()
    del checkpoint_utils.save_checkpoint.best


@pytest.mark.parametrize("name", ["ppl", "loss"])
def test_the_best_by_another_metric(translation_data, tmp_path, without, name):
    """By another name, or by the largest instead of the smallest."""
    command = helpers.train_command("transformer", translation_data, tmp_path, "--user-dir", helpers.USER_DIR)
    command += ["--save-interval=1", "--validate-interval=1", "--lr-scheduler=reduce_lr_on_plateau", "--lr=0.001"]
    helpers.run_here([*command, "--max-epoch=1"])
    last, best = (tmp_path / f"checkpoint_{which}.pt" for which in ("last", "best"))
    start = last.read_bytes()
    command += [f"--best-checkpoint-metric={name}", *(["--maximize-best-checkpoint-metric"] * (name == "loss"))]
    assert helpers.run_here([*command, "--max-epoch=2"]).stdout.count("and from now on that of the") == 1
    state = torch.load(last)
    assert state["extra_state"]["best"] == state["extra_state"]["val_loss"]
    assert math.isinf(state["optimizer_history"][-1]["lr_scheduler_state"]["best"])  # as of a new one
    assert torch.load(best)["optimizer_history"][-1]["num_updates"] == 10  # of two epochs
    assert "from now on" not in helpers.run_here([*command, "--max-epoch=3"]).stdout  # the checkpoint has the metric
    last.write_bytes(start)
    best.write_bytes(start)
    without(Trainer, "load_checkpoint")
    helpers.run_here([*command, "--max-epoch=2"])
    assert torch.load(last)["extra_state"]["best"] == torch.load(best)["extra_state"]["val_loss"]
    assert torch.load(best)["optimizer_history"][-1]["num_updates"] == 5


def test_other_processes_could_not_receive_a_checkpoint(state, monkeypatch):
    """Without the repair; with it, tests/system trains in two processes."""
    sent = []
    monkeypatch.setattr(distributed_utils, "broadcast", lambda tensor, src, group: sent.append(tensor))
    original = distributed_utils._broadcast_object_slow.__wrapped__
    placeholders = distributed_utils._split_tensors_from_obj(state, [])
    monkeypatch.setattr(distributed_utils, "get_rank", lambda group: 0)
    original(placeholders, 0, None, "cpu")
    length, content = sent

    def receive(tensor, src, group):
        tensor.copy_(length if len(tensor) == 1 else content)

    monkeypatch.setattr(distributed_utils, "broadcast", receive)
    monkeypatch.setattr(distributed_utils, "get_rank", lambda group: 1)
    with pytest.raises(pickle.UnpicklingError, match="_TensorPlaceholder"):
        original(None, 0, None, "cpu")
