"""elseq-convert on the tiny checkpoints: what it writes is loaded, decoded and trained by fairseq's own commands."""

import re
import shlex
import subprocess
import sys
from argparse import Namespace

import pytest
import torch

import elseq
from elseq.cli import convert
from elseq.errors import UserError
from elseq.interop import output as output_module
from tests import helpers
from tests.tiny_models import assert_same_hypotheses, make_sample, make_sources

PLACES = "decoder", "cross"  # that are converted by default
HEADS = 4  # of the tiny models
PLUGIN = ["--user-dir", helpers.USER_DIR]


@pytest.fixture(params=["translation", "bart", "language_model"])
def trained(request):
    return request.getfixturevalue(f"tiny_{request.param}")


@pytest.fixture
def run(monkeypatch, tmp_path, capsys):
    """Run the command; returns what it printed. The output is tmp_path/out.pt unless named."""

    def run(model, *options):
        output = (
            [] if any(str(option).startswith("--output") for option in options) else ["--output", tmp_path / "out.pt"]
        )
        monkeypatch.setattr(sys, "argv", ["elseq-convert", "heads", *map(str, [model, *output, *options])])
        convert.main()
        return capsys.readouterr().out

    return run


def save(tmp_path, trained, change):
    """The checkpoint, changed."""
    state = torch.load(trained.checkpoint)
    path = tmp_path / "changed.pt"
    torch.save(change(state) or state, path)
    return path


def generate(trained, path, task):
    command = ["fairseq-generate", trained.data, "--path", path, "--task", task, "--cpu", "--num-workers=0", *PLUGIN]
    options = ["--beam=3", "--max-len-b=15"]
    if "modeling" in task:  # fairseq counts the prompt, and with a beam it may stumble over it
        options = ["--beam=1", "--max-len-b=60", "--sample-break-mode=eos", "--tokens-per-sample=64"]
    return re.findall(r"^H-\d+\t.*$", helpers.run_here([*command, *options]).stdout, re.MULTILINE)


def decode(trained, path, attention="auto"):
    """In double precision, in which the order of a sum makes no difference that one sees."""
    loaded = elseq.load(path, data=trained.data, attention=attention, dtype=torch.float64)
    dictionary = loaded.task.source_dictionary
    sample = make_sample(dictionary, make_sources(dictionary, [5, 7, 2]), left=hasattr(loaded.model, "encoder"))
    generator = loaded.task.build_generator([loaded.model], Namespace(beam=3, nbest=3, max_len_b=15))
    return loaded.task.inference_step(generator, [loaded.model], sample)


def repeat_heads(state):
    """Make the key and value heads of each group of two equal."""
    for name, tensor in state["model"].items():
        if ".k_proj." in name or ".v_proj." in name:
            heads = tensor.unflatten(0, (HEADS // 2, 2, -1))
            heads[:, 1] = heads[:, 0]


def as_old(state):
    """As fairseq saved a checkpoint before it had configurations."""
    args = state["cfg"]["model"]
    state["args"] = (
        args if isinstance(args, Namespace) else Namespace(**args, arch=args["_name"], task="language_modeling")
    )
    del state["cfg"]


# --- what is written


@pytest.mark.few_cases(2)
@pytest.mark.parametrize("old", [False, True])
def test_it_is_loaded_and_decoded(run, tmp_path, trained, old):
    model = save(tmp_path, trained, as_old) if old else trained.checkpoint
    run(model, "--num-kv-heads=2")
    path = tmp_path / "out.pt"
    for task in ("language_modeling",) if trained.is_language_model else ("translation",):
        assert len(generate(trained, path, task)) == 21
        assert len(generate(trained, path, f"elseq_{task}")) == 21
    loaded = elseq.load(path, data=trained.data).model
    original = elseq.load(model, data=trained.data).model
    assert type(loaded) is type(original)
    for layer in loaded.decoder.layers:
        assert layer.self_attn.num_kv_heads == 2
        assert layer.encoder_attn is None or layer.encoder_attn.num_kv_heads == 2
    if hasattr(loaded, "encoder"):
        assert loaded.encoder.layers[0].self_attn.num_kv_heads == HEADS
    state = torch.load(path)
    assert "last_optimizer_state" not in state
    assert state["cfg"]["model"]["_name"].startswith("elseq_")


def test_checkpoint_without_a_history(run, tmp_path, tiny_translation):
    """It was stripped of what only training needs."""

    def strip(state):
        state["optimizer_history"] = []
        del state["last_optimizer_state"]

    run(save(tmp_path, tiny_translation, strip), "--num-kv-heads=2")
    assert torch.load(tmp_path / "out.pt")["optimizer_history"][-1]["num_updates"] == 0


@pytest.mark.few_cases(2)
@pytest.mark.parametrize("method", ["mean", "first"])
def test_equal_heads_decode_as_before(run, tmp_path, trained, method):
    model = save(tmp_path, trained, repeat_heads)
    run(model, "--num-kv-heads=2", "--method", method)
    # fairseq's own search repeats a language model's prompt
    expected = decode(trained, model, "kv" if trained.is_language_model else "stock")
    for attention in ("kv", "el"):
        assert_same_hypotheses(decode(trained, tmp_path / "out.pt", attention), expected, tolerance=1e-6)


def test_as_many_as_heads_change_nothing(run, tmp_path, trained):
    printed = run(trained.checkpoint, "--num-kv-heads", HEADS)
    assert "decoder self-attention: it has 4 key/value heads, nothing was changed" in printed
    before, after = torch.load(trained.checkpoint)["model"], torch.load(tmp_path / "out.pt")["model"]
    assert list(before) == list(after)
    assert all(torch.equal(before[name], after[name]) for name in before)
    assert_same_hypotheses(decode(trained, tmp_path / "out.pt"), decode(trained, trained.checkpoint), tolerance=1e-6)


def test_places_method_and_seed(run, tmp_path, tiny_translation):
    printed = run(tiny_translation.checkpoint, "--num-kv-heads=1", "--in=encoder,cross", "--method=random", "--seed=7")
    assert "encoder self-attention: 4 key/value heads -> 1 (random)\ncross-attention: 4 key/value heads" in printed
    assert "decoder self-attention" not in printed
    first = torch.load(tmp_path / "out.pt")["model"]
    run(
        tiny_translation.checkpoint,
        "--num-kv-heads=1",
        "--in=encoder,cross",
        "--method=random",
        "--seed=7",
        "--overwrite",
    )
    second = torch.load(tmp_path / "out.pt")["model"]
    assert all(torch.equal(first[name], second[name]) for name in first)
    assert first["encoder.layers.0.self_attn.k_proj.weight"].shape == (8, 32)
    assert first["decoder.layers.0.self_attn.k_proj.weight"].shape == (32, 32)


def test_own_checkpoint_in_two_steps(run, tmp_path, tiny_translation):
    run(tiny_translation.checkpoint, "--num-kv-heads=1", "--in=cross", f"--output={tmp_path / 'cross.pt'}")
    run(tmp_path / "cross.pt", "--num-kv-heads=1", "--in=decoder", f"--output={tmp_path / 'both.pt'}")
    run(tiny_translation.checkpoint, "--num-kv-heads=1")
    steps, once = torch.load(tmp_path / "both.pt"), torch.load(tmp_path / "out.pt")
    records = [each["extra_state"]["fewer_heads"] for each in (steps, once)]
    assert [[record["places"] for record in each] for each in records] == [[["cross"], ["decoder"]], [list(PLACES)]]
    assert steps["cfg"]["model"] == once["cfg"]["model"]
    assert all(torch.equal(steps["model"][name], once["model"][name]) for name in once["model"])


def test_report(run, tmp_path, tiny_translation):
    printed = run(tiny_translation.checkpoint, "--num-kv-heads=1")
    assert "keys and values of a generated token: 512 -> 128 bytes" in printed  # 2 layers, 2 x 32 or 2 x 8, float32
    assert "keys and values of a source token: 512 -> 128 bytes" in printed
    parameters = [
        sum(parameter.numel() for parameter in elseq.load(path, data=tiny_translation.data).model.parameters())
        for path in (tiny_translation.checkpoint, tmp_path / "out.pt")
    ]
    assert parameters[0] - parameters[1] == 2 * 2 * 2 * 24 * (32 + 1)
    assert f"parameters: {parameters[0]:,} -> {parameters[1]:,}" in printed
    assert f"written: {tmp_path / 'out.pt'}" in printed


@pytest.mark.few_cases(1)
def test_the_printed_command_trains(run, tmp_path, trained):
    printed = run(trained.checkpoint, "--num-kv-heads=2").splitlines()[-1]
    assert "--task elseq_" in printed  # which gives a BART its <s>
    printed = printed.replace("DATA", str(trained.data)).replace('"$(elseq-user-dir)"', str(helpers.USER_DIR))
    command = [*shlex.split(printed), "--save-dir", tmp_path / "uptrained", "--optimizer=adam", "--lr=0.001"]
    command += ["--max-update=2", "--max-tokens=800", "--cpu", "--num-workers=0", "--seed=1", "--sample-break-mode=eos"]
    log = helpers.run_here(command if trained.is_language_model else command[:-1]).stdout
    assert re.search(rf"Loaded checkpoint {tmp_path / 'out.pt'} \(epoch 1 @ 0 updates\)", log)
    before = torch.load(tmp_path / "out.pt")
    after = torch.load(tmp_path / "uptrained" / "checkpoint_last.pt")
    assert after["optimizer_history"][-1]["num_updates"] == 2
    assert after["cfg"]["model"] == before["cfg"]["model"]
    name = "decoder.layers.0.self_attn.k_proj.weight"
    assert after["model"][name].shape == before["model"][name].shape
    assert 0 < (after["model"][name] - before["model"][name]).abs().max() < 0.01  # it went on from there


def test_what_a_training_between_two_conversions_records(run, tmp_path, tiny_translation):
    """All conversions, also in a second training, which goes on from the first."""
    printed = run(tiny_translation.checkpoint, "--num-kv-heads=1", "--in=cross").splitlines()[-1]
    printed = printed.replace("DATA", str(tiny_translation.data)).replace('"$(elseq-user-dir)"', str(helpers.USER_DIR))
    command = [*shlex.split(printed), "--save-dir", tmp_path / "uptrained", "--optimizer=adam", "--lr=0.001"]
    command += ["--max-tokens=800", "--cpu", "--num-workers=0", "--seed=1"]
    last = tmp_path / "uptrained" / "checkpoint_last.pt"
    helpers.run_here([*command, "--max-update=2"])
    [first] = torch.load(last)["extra_state"]["fewer_heads"]
    helpers.run_here([*command, "--max-update=3"])  # the same command continues
    state = torch.load(last)
    assert state["optimizer_history"][-1]["num_updates"] == 3
    assert state["extra_state"]["fewer_heads"] == [first]
    run(last, "--num-kv-heads=2", "--in=decoder", "--overwrite")
    records = torch.load(tmp_path / "out.pt")["extra_state"]["fewer_heads"]
    assert records[0] == first and [record["places"] for record in records] == [["cross"], ["decoder"]]


def test_the_printed_command_trains_as_the_training_before(run, tmp_path, tiny_translation):
    """By the options of its task and its criterion, as far as they are no defaults."""
    task = {
        "source_lang": "src",
        "target_lang": "tgt",
        "left_pad_source": False,
        "long_input": True,
        "source_window": 8,
        "source_window_overlap": 2,
        "train_windows": 2,
        "prepend_source_bos": "yes",
    }
    criterion = {"_name": "elseq_distillation", "label_smoothing": 0.2, "teacher": str(tiny_translation.checkpoint)}
    criterion |= {"distillation_weight": 0.25, "distillation_temperature": 2.0}

    def change(state):
        state["cfg"]["task"] = {**state["cfg"]["task"], **task, "_name": "elseq_translation"}
        state["cfg"]["criterion"] = {**state["cfg"]["criterion"], **criterion}

    printed = run(save(tmp_path, tiny_translation, change), "--num-kv-heads=2").splitlines()[-1]
    printed = printed.replace("DATA", str(tiny_translation.data)).replace('"$(elseq-user-dir)"', str(helpers.USER_DIR))
    assert printed.count("--max-source-positions") == 1 and "--seed" not in printed and "--dataset-impl" not in printed
    command = [*shlex.split(printed), "--save-dir", tmp_path / "uptrained", "--optimizer=adam", "--lr=0.001"]
    helpers.run_here([*command, "--max-update=1", "--max-tokens=800", "--cpu", "--num-workers=0"])
    after = torch.load(tmp_path / "uptrained" / "checkpoint_last.pt")["cfg"]
    for part, expected in (("task", task), ("criterion", criterion)):
        assert {name: after[part][name] for name in expected} == expected


@pytest.mark.parametrize("name", ["replacing", "mbart25"])
def test_the_printed_command_has_the_languages_of_the_training_before(run, tmp_path, family, name):
    model = family(name)
    printed = run(model.checkpoint, "--num-kv-heads=2").splitlines()[-1]
    printed = printed.replace("DATA", str(model.data)).replace('"$(elseq-user-dir)"', str(helpers.USER_DIR))
    command = [*shlex.split(printed), "--save-dir", tmp_path / "uptrained", "--optimizer=sgd", "--lr=1e-20"]
    options = ["--max-tokens=800", "--cpu", "--num-workers=0"]
    validate = ["fairseq-validate", model.data, "--path", tmp_path / "out.pt", *PLUGIN, *options]
    trained, converted = (
        re.findall(r"valid on 'valid' subset \| loss ([\d.]+)", helpers.run_here(each).stdout)[0]
        for each in ([*command, *options, "--max-update=1"], validate)
    )
    assert trained == converted


@pytest.mark.parametrize("criterion", [5, None, {"_name": ["a"]}, {"_name": "unknown", "label_smoothing": 1}])
def test_a_criterion_that_is_not_known(run, tmp_path, tiny_translation, criterion):
    def change(state):
        state["cfg"]["criterion"] = criterion

    assert "--criterion" not in run(save(tmp_path, tiny_translation, change), "--num-kv-heads=2")


@pytest.mark.parametrize("value", ["$(touch broken); `touch broken`", "it's", "--save-dir=elsewhere", "-x"])
def test_text_of_the_checkpoint_is_quoted(run, tmp_path, tiny_translation, value):
    def change(state):
        state["cfg"]["model"].adaptive_softmax_cutoff = value

    printed = run(save(tmp_path, tiny_translation, change), "--num-kv-heads=2").splitlines()[-1]
    arguments = " ".join(shlex.split(printed)).replace("--adaptive-softmax-cutoff=", "--adaptive-softmax-cutoff ")
    assert f" --adaptive-softmax-cutoff {value} --" in arguments
    if value.startswith("-"):
        assert f"--adaptive-softmax-cutoff={value}" in shlex.split(printed)
    command = printed.replace("fairseq-train", "true").replace("$(elseq-user-dir)", "")
    subprocess.run(["bash", "-c", command], check=True, cwd=tmp_path)
    assert not (tmp_path / "broken").exists()


@pytest.mark.parametrize(
    "section, option, value",
    [
        ("model", "activation_dropout", True),
        ("model", "decoder_output_dim", 0.5),
        ("common", "", 5),
        ("task", "_name", None),
    ],
)
def test_settings_that_were_changed(tmp_path, tiny_translation, monkeypatch, section, option, value):
    def change(state):
        part = state["cfg"][section]
        if not option:
            state["cfg"][section] = value
        elif value is None:
            del part[option]
        else:
            setattr(part, option, value)

    path = save(tmp_path, tiny_translation, change)
    monkeypatch.setattr(sys, "argv", ["elseq-convert", "to-fairseq", str(path), "--output", str(tmp_path / "out.pt")])
    with pytest.raises(UserError, match=f"changed.pt: .*{option or section}") as raised:
        convert.main()
    assert "\n" not in str(raised.value)


@pytest.mark.parametrize("name", ["--help", "a b", "$(id)"])
def test_task_that_is_no_name(run, tmp_path, tiny_translation, name):
    def change(state):
        state["cfg"]["task"]["_name"] = name

    with pytest.raises(UserError, match=r"cfg\.task\._name is .*, which is no name"):
        run(save(tmp_path, tiny_translation, change), "--num-kv-heads=2")


# --- by calibration text


def calibration(trained, split="train"):
    return ["--calibration", split, "--data", trained.data, "--calibration-sentences=60"]


def losses(printed):
    return [float(loss) for loss in re.search(r"tokens: ([\d.]+) -> ([\d.]+) bits per token", printed).groups()]


@pytest.mark.few_cases(1)
def test_fitted_heads_are_decoded_and_lose_less_than_others(run, tmp_path, trained):
    lost = {}
    for method, grouping in (("mean", "similar"), ("aligned", "neighbours"), ("fitted", "similar")):
        options = ["--num-kv-heads=1", "--method", method, "--grouping", grouping, "--overwrite"]
        before, after = losses(run(trained.checkpoint, *options, *calibration(trained)))
        lost[method] = after - before
    assert lost["fitted"] < lost["aligned"] < lost["mean"]
    path = tmp_path / "out.pt"
    task = "language_modeling" if trained.is_language_model else "translation"
    assert len(generate(trained, path, f"elseq_{task}")) == 21
    assert_same_hypotheses(decode(trained, path, "kv"), decode(trained, path, "el"), tolerance=1e-6)
    [record] = torch.load(path)["extra_state"]["fewer_heads"]
    assert record["method"] == "fitted" and record["grouping"] == "similar"
    assert record["calibration"]["text"] == "train" and record["calibration"]["tokens"] > 100


def test_what_a_checkpoint_records_without_calibration_text(run, tmp_path, tiny_translation):
    run(tiny_translation.checkpoint, "--num-kv-heads=2")
    expected = {"places": list(PLACES), "method": "mean", "grouping": "neighbours"}
    assert torch.load(tmp_path / "out.pt")["extra_state"]["fewer_heads"] == [expected]


@pytest.mark.parametrize("before, kept", [(None, []), ({"method": "first"}, [{"method": "first"}]), ([1], [1])])
def test_what_a_checkpoint_recorded_before(run, tmp_path, tiny_translation, before, kept):
    def change(state):
        state["extra_state"] |= {} if before is None else {"fewer_heads": before}

    run(save(tmp_path, tiny_translation, change), "--num-kv-heads=2")
    assert torch.load(tmp_path / "out.pt")["extra_state"]["fewer_heads"][:-1] == kept


@pytest.mark.slow
def test_files_as_calibration_text(run, tmp_path, tiny_translation):
    files = ["--calibration", tiny_translation.raw / "train.src", "--calibration-target"]
    options = ["--num-kv-heads=2", "--method=fitted", "--data", tiny_translation.data]
    printed = run(tiny_translation.checkpoint, *options, *files, tiny_translation.raw / "train.tgt")
    assert "loss on 400 sentences of train.src, " in printed
    with pytest.raises(UserError, match="train.src is an input: give another file"):
        run(tiny_translation.checkpoint, *options, *files[:2], "--output", tiny_translation.raw / "train.src")


@pytest.mark.slow
def test_half_precision_is_fitted_in_float32(run, tmp_path, tiny_translation):
    def halve(state):
        state["model"] = {name: tensor.half() for name, tensor in state["model"].items()}

    options = ["--num-kv-heads=1", "--method=fitted", *calibration(tiny_translation)]
    single = losses(run(tiny_translation.checkpoint, *options))
    half = losses(run(save(tmp_path, tiny_translation, halve), *options, "--overwrite"))
    assert half == pytest.approx(single, abs=0.01)
    model = torch.load(tmp_path / "out.pt")["model"]
    assert {tensor.dtype for tensor in model.values() if tensor.numel() > 1} == {torch.float16}


@pytest.mark.slow
def test_a_budget_of_the_decoding_state(run, tmp_path, tiny_translation):
    options = ["--state-budget=0.6", "--method=fitted"]
    printed = run(tiny_translation.checkpoint, *options, *calibration(tiny_translation))
    sizes = re.findall(r"keys and values of a \w+ token: ([\d,]+) -> ([\d,]+) bytes", printed)
    before, after = (sum(int(size) for size in column) for column in zip(*sizes, strict=True))
    assert before / 4 <= after <= 0.6 * before
    path = tmp_path / "out.pt"
    assert_same_hypotheses(decode(tiny_translation, path, "kv"), decode(tiny_translation, path, "el"), tolerance=1e-6)
    command = printed.splitlines()[-1].replace("DATA", str(tiny_translation.data))
    command = command.replace('"$(elseq-user-dir)"', str(helpers.USER_DIR))
    command = [*shlex.split(command), "--save-dir", tmp_path / "uptrained", "--optimizer=adam", "--lr=0.001"]
    helpers.run_here([*command, "--max-update=2", "--max-tokens=800", "--cpu", "--num-workers=0"])
    after = torch.load(tmp_path / "uptrained" / "checkpoint_last.pt")
    assert after["cfg"]["model"] == torch.load(path)["cfg"]["model"]


@pytest.mark.parametrize(
    "options, sentence",
    [
        (["--method=fitted"], "--method fitted needs calibration text: give --calibration"),
        (["--method=aligned"], "--method aligned needs calibration text"),
        (["--grouping=similar"], "--grouping similar needs calibration text"),
        (["--calibration=valid"], "--calibration is for --method aligned or fitted, --grouping similar and --state-b"),
        (["--grouping=similar", "--method=random", "--calibration=valid"], "--grouping similar is for heads that are"),
        (["--calibration-target=x"], "--calibration-target needs --calibration, the file of its sources"),
        (["--calibration-sentences=5"], "--calibration-sentences needs --calibration: give both, or leave it out"),
        (["--state-budget=0.5"], "--state-budget: not allowed with argument --num-kv-heads"),
    ],
)
def test_calibration_text_where_it_is_read(run, tmp_path, options, sentence):
    with pytest.raises(UserError, match=sentence):
        run(tmp_path / "model.pt", "--num-kv-heads=2", *options)


@pytest.mark.parametrize(
    "options, sentence",
    [
        (["--state-budget=0.5"], "--state-budget needs calibration text"),
        (["--state-budget=0"], "--state-budget '0' is no share: give a number above 0 and up to 1"),
        (["--state-budget=2"], "--state-budget '2' is no share"),
        (["--state-budget=0.5", "--method=random", "--calibration=x"], "--state-budget is for heads that are kept"),
    ],
)
def test_budgets_that_cannot_be(run, tmp_path, options, sentence):
    with pytest.raises(UserError, match=sentence):
        run(tmp_path / "model.pt", *options)


def test_too_small_a_budget(run, tiny_translation):
    with pytest.raises(
        UserError, match="--state-budget 0.2 is less than 0.25, which one key/value head in every layer"
    ):
        run(tiny_translation.checkpoint, "--state-budget=0.2", "--method=mean", *calibration(tiny_translation))


def test_too_short_a_calibration_text(run, tiny_translation):
    options = ["--num-kv-heads=2", "--method=fitted", "--calibration=train", "--data", tiny_translation.data]
    with pytest.raises(UserError, match="has . tokens and the heads of this model need 32 or more: give a longer"):
        run(tiny_translation.checkpoint, *options, "--calibration-sentences=1")


def damaged(tmp_path, trained, value, *names):
    """The checkpoint with this number in some of its parameters."""

    def change(state):
        for name in names:
            state["model"][name].fill_(value)

    return save(tmp_path, trained, change)


QUERY, KEY, VALUE, OUTPUT = (f"decoder.layers.0.self_attn.{kind}_proj.weight" for kind in ("q", "k", "v", "out"))
READERS = [
    ["--num-kv-heads=1", "--method=fitted"],
    ["--num-kv-heads=1", "--method=aligned", "--grouping=similar"],
    ["--state-budget=0.5", "--method=fitted"],
]


@pytest.mark.parametrize("value, what", [(float("nan"), "NaN"), (float("inf"), "infinite numbers")])
@pytest.mark.parametrize("options", [*READERS, ["--num-kv-heads=1"]])
def test_parameters_that_are_no_numbers(run, tmp_path, tiny_translation, options, value, what):
    path = damaged(tmp_path, tiny_translation, value, VALUE)
    text = calibration(tiny_translation) if len(options) > 1 else []
    with pytest.raises(UserError, match=f"^{VALUE} in .*changed.pt has {what}: the model was damaged"):
        run(path, *options, *text)


@pytest.mark.few_cases(3)
@pytest.mark.parametrize(
    "names", [[QUERY, KEY], [VALUE, VALUE.replace("v_proj", "out_proj")], ["decoder.layers.0.fc1.weight"]]
)
@pytest.mark.parametrize("options", READERS)
def test_numbers_that_overflow(run, tmp_path, tiny_translation, options, names):
    path = damaged(tmp_path, tiny_translation, 1e38, *names)
    with pytest.raises(UserError, match=r"the numbers of decoder\S*attn overflow; the parameter (\S+) has") as raised:
        run(path, *options, *calibration(tiny_translation))
    assert any(f"{name} has the largest of the model, 1e+38" in str(raised.value) for name in names)
    assert not (tmp_path / "out.pt").exists()


@pytest.mark.few_cases(1)
@pytest.mark.parametrize("options", READERS)
def test_parameters_of_zero(run, tmp_path, tiny_translation, options):
    """Their layer has nothing to lose."""
    names = [f"decoder.layers.0.self_attn.{kind}_proj.{part}" for kind in "qkv" for part in ("weight", "bias")]
    run(damaged(tmp_path, tiny_translation, 0.0, *names), *options, *calibration(tiny_translation))
    model = torch.load(tmp_path / "out.pt")["model"]
    assert all(bool(tensor.isfinite().all()) for tensor in model.values())
    assert not any(model[name].any() for name in names)


# --- where it is written


@pytest.mark.slow
def test_output_beside_the_model(monkeypatch, tmp_path, tiny_translation, capsys):
    path = tmp_path / "check.point.pt"
    path.write_bytes(tiny_translation.checkpoint.read_bytes())
    monkeypatch.setattr(sys, "argv", ["elseq-convert", "heads", str(path), "--num-kv-heads=2"])
    convert.main()
    assert sorted(file.name for file in tmp_path.iterdir()) == ["check.point.2kv.pt", "check.point.pt"]
    budget = ["--state-budget=1", "--method=mean", *map(str, calibration(tiny_translation))]
    monkeypatch.setattr(sys, "argv", ["elseq-convert", "heads", str(path), *budget])
    convert.main()
    assert (tmp_path / "check.point.budget-1.pt").exists() and not (tmp_path / "check.point.1kv.pt").exists()


def test_the_model_is_not_replaced(monkeypatch, tmp_path, tiny_translation):
    path = tmp_path / "model.pt"
    path.write_bytes(tiny_translation.checkpoint.read_bytes())
    arguments = ["heads", str(path), "--num-kv-heads=2", "--output", str(path), "--overwrite"]
    monkeypatch.setattr(sys, "argv", ["elseq-convert", *arguments])
    with pytest.raises(UserError, match="model.pt is an input: give another file$"):
        convert.main()
    assert path.read_bytes() == tiny_translation.checkpoint.read_bytes()


@pytest.mark.parametrize("command", ["heads", "to-fairseq"])
@pytest.mark.parametrize("name", ["dict.src.txt", "link", "second"])
def test_what_is_beside_the_model_is_not_replaced(monkeypatch, tmp_path, tiny_translation, command, name):
    path = tmp_path / "model.pt"
    path.write_bytes(tiny_translation.checkpoint.read_bytes())
    (tmp_path / "dict.src.txt").write_text("precious")
    (tmp_path / "link").symlink_to(path)
    (tmp_path / "second").hardlink_to(tmp_path / "dict.src.txt")
    arguments = [command, str(path), "--output", str(tmp_path / name), "--overwrite"]
    monkeypatch.setattr(
        sys, "argv", ["elseq-convert", *arguments, *(["--num-kv-heads=2"] if command == "heads" else [])]
    )
    with pytest.raises(UserError, match=f"{name} is an input: give another file$"):
        convert.main()
    assert path.read_bytes() == tiny_translation.checkpoint.read_bytes()
    assert (tmp_path / "dict.src.txt").read_text() == "precious"


def test_a_folder_is_its_checkpoint(monkeypatch, tmp_path, tiny_translation):
    (tmp_path / "model.pt").write_bytes(tiny_translation.checkpoint.read_bytes())
    monkeypatch.setattr(sys, "argv", ["elseq-convert", "heads", str(tmp_path), "--num-kv-heads=2"])
    convert.main()
    assert sorted(file.name for file in tmp_path.iterdir()) == ["model.2kv.pt", "model.pt"]


def test_what_is_there_stays(run, monkeypatch, tmp_path, tiny_translation):
    output = tmp_path / "out.pt"
    output.write_text("precious")
    with pytest.raises(UserError, match="out.pt exists already: give another --output, or --overwrite"):
        run(tiny_translation.checkpoint, "--num-kv-heads=2")

    def full_disk(checkpoint, file):
        file.write(b"half of it")
        raise OSError(28, "No space left on device")

    with monkeypatch.context() as patch:
        patch.setattr(output_module, "save_archive", full_disk)
        with pytest.raises(UserError, match=r"out.pt cannot be written \(No space left on device\)"):
            run(tiny_translation.checkpoint, "--num-kv-heads=2", "--overwrite")
    with pytest.raises(UserError, match="do not divide"):
        run(tiny_translation.checkpoint, "--num-kv-heads=3", "--overwrite")
    assert [file.name for file in tmp_path.iterdir()] == ["out.pt"]
    assert output.read_text() == "precious"
    run(tiny_translation.checkpoint, "--num-kv-heads=2", "--overwrite")
    assert torch.load(output)["model"]


# --- bad input


def lose_model(state):
    state["cfg"]["model"] = Namespace(arch="lstm")


def share_attention(state):
    state["cfg"]["model"].cross_self_attention = True


def lose_attention(state):
    state["model"] = {name: tensor for name, tensor in state["model"].items() if "attn" not in name}


@pytest.mark.parametrize(
    "change, options, sentence",
    [
        (None, ["--num-kv-heads=3"], "3 key/value heads do not divide the 4 heads of its decoder self-attention"),
        (None, ["--num-kv-heads=8"], "8 key/value heads do not divide the 4 heads .*: give one of 1, 2, 4"),
        (lose_model, ["--num-kv-heads=2"], "because it is a LSTMModel; give a Transformer, BART or language model"),
        (share_attention, ["--num-kv-heads=2"], "because it uses joint cross- and self-attention"),
        (lose_attention, ["--num-kv-heads=2"], "the model has no decoder self-attention to pool"),
        (
            None,
            ["--num-kv-heads=2", "--output=no/such/folder/x.pt"],
            "x.pt is in a folder that does not exist: make the",
        ),
        (None, ["--num-kv-heads=2", "--output=."], "--output . is a folder"),
    ],
)
def test_bad_input(run, tmp_path, tiny_translation, change, options, sentence):
    model = save(tmp_path, tiny_translation, change) if change else tiny_translation.checkpoint
    with pytest.raises(UserError, match=sentence) as error:
        run(model, *options)
    assert "\n" not in str(error.value)
    assert not (tmp_path / "out.pt").exists()


def test_grouped_already(run, tmp_path, trained):
    run(trained.checkpoint, "--num-kv-heads=2", f"--output={tmp_path / 'grouped.pt'}")
    with pytest.raises(
        UserError, match="grouped.pt: the decoder self-attention of the model is grouped already, 2 key"
    ):
        run(tmp_path / "grouped.pt", "--num-kv-heads=1")


def test_places_that_are_not_there(run, tiny_language_model):
    with pytest.raises(UserError, match="the model has no cross-attention to pool"):
        run(tiny_language_model.checkpoint, "--num-kv-heads=2", "--in=decoder,cross")


@pytest.mark.parametrize(
    "content, sentence", [(None, "cannot be read"), (b"", "is empty"), (b"no checkpoint", "is not a checkpoint")]
)
def test_files_that_are_no_checkpoint(run, tmp_path, content, sentence):
    if content is not None:
        (tmp_path / "model.pt").write_bytes(content)
    with pytest.raises(UserError, match=sentence):
        run(tmp_path / "model.pt", "--num-kv-heads=2")


@pytest.mark.parametrize(
    "arguments, sentence",
    [
        ([], "arguments are required: COMMAND"),
        (["heads", "model.pt"], "one of the arguments --num-kv-heads --state-budget is required"),
        (["heads", "model.pt", "--num-kv-heads=two"], "^--num-kv-heads 'two' is not a whole number above 0"),
        (["heads", "model.pt", "--num-kv-heads=0"], "^--num-kv-heads '0' is not a whole number above 0"),
        (["heads", "model.pt", "--num-kv-heads=2", "--seed=x"], "--seed x is not possible: give a whole number"),
        (["heads", "model.pt", "--num-kv-heads=2", "--method=median"], "argument --method: invalid choice"),
        (
            ["heads", "model.pt", "--num-kv-heads=2", "--in=decoder,middle"],
            "^--in 'middle' is unknown; choose from encoder",
        ),
        (["heads", "model.pt", "--num-kv-heads=2", "--no-such"], "unrecognized arguments: --no-such; see elseq-"),
        (["tails", "model.pt"], "argument COMMAND: invalid choice: 'tails' .*; see elseq-convert --help"),
    ],
)
def test_bad_arguments(monkeypatch, capsys, arguments, sentence):
    monkeypatch.setattr(sys, "argv", ["elseq-convert", *arguments])
    with pytest.raises(UserError, match=sentence) as error:
        convert.main()
    assert "\n" not in str(error.value)
    assert not capsys.readouterr().err  # argparse's usage is not printed


def test_exit_code(tmp_path):
    command = [sys.executable, "-m", "elseq.cli.convert", "heads", tmp_path / "none.pt", "--num-kv-heads=2"]
    ended = subprocess.run(command, capture_output=True, text=True)
    assert ended.returncode == 1
    assert ended.stderr == (
        f"elseq: error: checkpoint {tmp_path / 'none.pt'} cannot be read (No such file or directory): check the path\n"
    )
