import contextlib
import copy
import re
import weakref

import numpy as np
import pytest
import torch

import elseq
from elseq.errors import UserError
from elseq.interop.averaging import check_same, common, last_checkpoints, mean, settings_of
from tests import helpers


def named(*models):
    return [(f"{number}.pt", model) for number, model in enumerate(models)]


@pytest.mark.parametrize("dtype", [torch.float32, torch.float16, torch.bfloat16, torch.float64])
def test_mean(dtype):
    models = [{"a": torch.randn(3, 4, dtype=dtype), "version": torch.tensor([3])} for _ in range(5)]
    before = copy.deepcopy(models)
    found = mean(named(*models))
    expected = np.mean([model["a"].double().numpy() for model in models], axis=0)
    assert found["a"].dtype == dtype
    torch.testing.assert_close(found["a"], torch.from_numpy(expected).to(dtype))
    assert found["version"] == 3
    for model, old in zip(models, before, strict=True):
        assert torch.equal(model["a"], old["a"])  # the models are left as they were


def test_one_model_is_held_at_a_time():
    gone = []

    def models():
        for number in range(3):
            assert all(tensor() is None for tensor in gone)
            held = [{"a": torch.ones(2)}]
            gone.append(weakref.ref(held[0]["a"]))
            yield f"{number}.pt", held.pop()

    assert mean(models())["a"].eq(1).all()


def test_tied_parameters_stay_tied():
    def model(value):
        table = torch.full((2, 2), value)
        return {"in": table, "out": table, "other": torch.full((2, 2), value)}

    found = mean(named(model(1.0), model(3.0)))
    assert found["in"] is found["out"] and found["other"] is not found["in"]
    assert found["in"].eq(2).all()


@pytest.mark.parametrize(
    ("model", "sentence"),
    [
        ({"a": torch.ones(2)}, "1.pt and 0.pt differ in the parameter version: give those of one training"),
        ({"a": torch.ones(3), "version": torch.tensor(1)}, r"a has the shape \[3\] in 1.pt and \[2\] in 0.pt: give"),
        ({"a": torch.ones(2), "version": torch.tensor(2)}, "1.pt and 0.pt differ in version, which has no mean"),
    ],
)
def test_models_of_different_trainings(model, sentence):
    with pytest.raises(UserError, match=f"^{sentence}"):
        mean(named({"a": torch.ones(2), "version": torch.tensor(1)}, model))


def test_the_last_checkpoints(tmp_path):
    for name in ("checkpoint9", "checkpoint10", "checkpoint_1_900", "checkpoint_2_1000", "checkpoint_best"):
        (tmp_path / f"{name}.pt").touch()
    for by_updates, names in ((False, ["checkpoint9.pt", "checkpoint10.pt"]), (True, ["checkpoint_2_1000.pt"])):
        assert [path.name for path in last_checkpoints(tmp_path, len(names), by_updates)] == names
    with pytest.raises(UserError, match="has 2 checkpoints such as checkpoint1.pt: give a lower --last than 3$"):
        last_checkpoints(tmp_path, 3, False)
    with pytest.raises(UserError, match="has no checkpoints such as checkpoint1.pt: give the folder of a training"):
        last_checkpoints(tmp_path / "..", 3, False)


@pytest.mark.parametrize(
    ("options", "sentence"),
    [
        ({"activation_fn": "gelu"}, "two.pt and one.pt differ in --activation-fn, gelu and relu: give those of one"),
        (
            {"arch": "lstm", "_name": "lstm"},
            "differ in --arch, lstm and elseq_transformer: give",
        ),
        ({"dropout": 0.3, "max_epoch": 99, "num_kv_heads": 4}, None),
    ],
)
def test_models_that_compute_otherwise(tiny_translation, options, sentence):
    first, second = (torch.load(tiny_translation.checkpoint)["cfg"]["model"] for _ in range(2))
    vars(second).update(options)
    first, second = settings_of(first), settings_of(second)
    with contextlib.nullcontext() if sentence is None else pytest.raises(UserError, match=sentence):
        check_same("one.pt", first, "two.pt", second)


@pytest.mark.parametrize(
    "records, kept",
    [
        ([[1, {"a": [2]}], [1, {"a": [2]}]], [1, {"a": [2]}]),
        ([[1, {"a": [2]}], [1, {"a": [3]}]], [1]),
        ([[1, 2], [1]], [1]),
        ([[1], []], []),
        ([[torch.ones(2)], [torch.ones(2)]], None),
    ],
)
def test_what_all_record(records, kept):
    found = common(records)
    assert found == kept if kept is not None else len(found) == 1


@pytest.mark.few_cases(1)
def test_average_of_a_training(tiny_translation, tmp_path):
    """It decodes, in fairseq and in elseq, and training continues from it."""
    paths = []
    for number in (1, 2):
        state = torch.load(tiny_translation.checkpoint)
        for name, tensor in state["model"].items():
            if tensor.is_floating_point():
                state["model"][name] = tensor * (1 + 0.1 * number)
        state["extra_state"]["fewer_heads"] = ["the same", number]
        paths.append(tmp_path / f"checkpoint{number}.pt")
        torch.save(state, paths[-1])
    output = tmp_path / "average.pt"
    helpers.run_here(["elseq-convert", "average", *paths, "--output", output])
    averaged, before = torch.load(output), torch.load(tiny_translation.checkpoint)
    assert "last_optimizer_state" not in averaged
    assert averaged["extra_state"]["fewer_heads"] == ["the same"]
    for name, tensor in before["model"].items():
        torch.testing.assert_close(averaged["model"][name], tensor * 1.15 if tensor.is_floating_point() else tensor)
    helpers.run_here(["elseq-convert", "average", tmp_path, "--last=2", "--output", tmp_path / "same.pt"])
    assert (tmp_path / "same.pt").read_bytes() == output.read_bytes()
    lines = (tiny_translation.raw / "test.src").read_text().splitlines()[:5]
    found = elseq.load(output, data=tiny_translation.data).generate(lines, beam=2, max_len_b=12)
    command = ["fairseq-generate", tiny_translation.data, "--path", output, "--cpu", "--beam=2", "--max-len-b=12"]
    printed = helpers.run_here([*command, "--task=translation"]).stdout
    texts = dict(re.findall(r"^H-(\d+)\t\S+\t(.*)$", printed, re.MULTILINE))
    assert found == [texts[str(number)] for number in range(5)]
    options = ["--finetune-from-model", output, "--share-all-embeddings", "--max-update=1"]
    helpers.train("transformer", tiny_translation.data, tmp_path / "further", *options)


@pytest.mark.parametrize(
    ("options", "sentence"),
    [
        (["one.pt", "two.pt", "--last=2"], "--last 2 needs the folder of one training: give it, or leave --last out"),
        (["one.pt", "--by-updates"], "--by-updates needs --last N: the number of checkpoints"),
        (["--last=0", "."], "--last '0' is not a whole number above 0"),
        (["none.pt"], ".*none.pt"),
    ],
)
def test_bad_input(tmp_path, options, sentence):
    result = helpers.run_here(["elseq-convert", "average", *options, "--output", tmp_path / "out.pt"], check=False)
    assert result.returncode == 1
    assert re.search(f"elseq: error: {sentence}", result.stderr.splitlines()[-1])
    assert not (tmp_path / "out.pt").exists()
