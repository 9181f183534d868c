"""Architectures that are not registered: another name for the same model decodes as it did under its own name."""

import logging
from argparse import Namespace

import pytest
import torch
from fairseq import checkpoint_utils

import elseq
from elseq.compat.settings import model_class
from elseq.errors import UserError
from tests import helpers
from tests.compat.test_parameters import scores

NAME = "transformer_4x"
KINDS = {"tiny_translation": "transformer", "tiny_bart": "bart_large", "tiny_language_model": "transformer_lm"}


def of_nobody(state, name=NAME, **changes):
    """The checkpoint under the name of an architecture that is not registered; None takes an option away."""
    model = state["cfg"]["model"]
    named = vars(model) if isinstance(model, Namespace) else model
    changes = {**changes, **{key: name for key in ("_name", "arch") if key in named}}
    named = {option: value for option, value in {**named, **changes}.items() if value is not None}
    model = Namespace(**named) if isinstance(model, Namespace) else named
    return {**state, "cfg": {**state["cfg"], "model": model}}


def as_old(state):
    """As fairseq saved a checkpoint before it had configurations: one namespace of all options."""
    args, cfg = state["cfg"]["model"], state["cfg"]
    if not isinstance(args, Namespace):
        args = Namespace(**{**cfg["task"], **args, "arch": args["_name"], "task": cfg["task"]["_name"], "_name": None})
    return {**{key: value for key, value in state.items() if key != "cfg"}, "args": args}


@pytest.fixture
def renamed(tmp_path):
    def save(trained, change=lambda state: state, **changes):
        state = torch.load(trained.checkpoint)
        torch.save(change(of_nobody(state, **changes)), tmp_path / "model.pt")
        return tmp_path / "model.pt"

    return save


def wrapped(state):
    return {**state, "model": {f"module.{name}": tensor for name, tensor in state["model"].items()}}


@pytest.mark.few_cases(3)
@pytest.mark.parametrize("change", [None, as_old, wrapped], ids=["new", "old", "wrapped"])
@pytest.mark.parametrize("kind", KINDS)
def test_hypotheses(request, renamed, kind, change, caplog):
    trained = request.getfixturevalue(kind)
    path = renamed(trained, change or (lambda state: state))
    with caplog.at_level(logging.WARNING, "elseq.compat.architectures"):
        model = elseq.load(path, data=trained.data)
    lines = (trained.raw / ("test.lm" if "language" in kind else "test.src")).read_text().splitlines()[:6]
    options = {"beam": 3, "max_len_b": 12}
    assert model.generate(lines, **options) == elseq.load(trained.checkpoint, data=trained.data).generate(
        lines, **options
    )
    (record, *_) = [each.getMessage() for each in caplog.records if "is not registered" in each.getMessage()]
    assert f"{NAME!r} is not registered: decoded as {KINDS[kind]}," in record
    assert "without" not in record


@pytest.mark.few_cases(2)
@pytest.mark.parametrize(
    ("kind", "task"),
    [
        ("tiny_translation", "elseq_translation"),
        ("tiny_bart", "elseq_translation"),
        ("tiny_language_model", "elseq_language_modeling"),
        ("tiny_translation", "translation"),
    ],
)
def test_scores_of_fairseq_generate(request, renamed, kind, task):
    trained = request.getfixturevalue(kind)
    options = ["--sample-break-mode=eos", f"--prompt-separator={helpers.SEPARATOR}"] if "language" in task else []
    found, expected = (scores(trained.data, path, task, *options) for path in (renamed(trained), trained.checkpoint))
    assert found == expected


def test_a_model_of_ours(tiny_multi_query, renamed):
    """Its options change what it computes, and the parameters do not show all of them."""
    path = renamed(tiny_multi_query)
    assert checkpoint_utils.load_checkpoint_to_cpu(str(path))["cfg"].model._name == "elseq_transformer"
    lines = (tiny_multi_query.raw / "test.src").read_text().splitlines()[:6]
    found, expected = (
        elseq.load(each, data=tiny_multi_query.data).generate(lines, beam=3)
        for each in (path, tiny_multi_query.checkpoint)
    )
    assert found == expected


@pytest.mark.parametrize(("scaled", "base"), [(False, "mbart_large"), (True, "bart_large")])
def test_bart_and_mbart(tiny_bart, renamed, scaled, base):
    """The name says nothing of it."""
    path = renamed(tiny_bart, name="mbart_tiny" if scaled else "bart_tiny", no_scale_embedding=scaled)
    assert checkpoint_utils.load_checkpoint_to_cpu(str(path))["cfg"].model._name == base


# --- parameters


def with_parameters(*names):
    return lambda state: {**state, "model": {**state["model"], **{name: torch.ones(3) for name in names}}}


def without_parameters(prefix):
    return lambda state: {
        **state,
        "model": {name: tensor for name, tensor in state["model"].items() if not name.startswith(prefix)},
    }


def with_prefixes(prefixes):
    """The parameters under other names."""

    def change(state):
        parts = ((*name.partition("."), tensor) for name, tensor in state["model"].items())
        return {**state, "model": {f"{prefixes.get(side, side)}.{rest}": tensor for side, _, rest, tensor in parts}}

    return change


@pytest.mark.few_cases(8)
@pytest.mark.parametrize("old", [False, True])
@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize(
    ("change", "sentence"),
    [
        (with_parameters("decoder.layers.0.gate.weight"), r'does not have \("decoder.layers.0.gate.weight"\)'),
        (with_parameters("adapter.weight"), r'does not have \("adapter.weight"\)'),
        (without_parameters("decoder.layers.1.fc2.bias"), r'Missing key\(s\).*"decoder.layers.1.fc2.bias"'),
        (without_parameters("decoder.layers.1."), f"{NAME!r} is unknown, and its parameters lack decoder.layers.1, wh"),
        (without_parameters("decoder.layers.0."), f"{NAME!r} is unknown, and its parameters lack decoder.layers.0, wh"),
        (with_parameters("decoder.layers.1.fc2.bias"), "decoder.layers.1.fc2.bias has the shape 3 in it and 32 in the"),
        (with_parameters("decoder.layers.0.rotary.inv_freq"), "rotary.inv_freq says that it has rotary positions"),
        (with_parameters("decoder.layers.0.moe_layer.gate.wg.weight"), r"experts \(decoder.layers.0.moe_layer.gate"),
        (with_parameters("decoder.layers.0.experts.0.fc1.weight"), "the model is a mixture of experts"),
    ],
)
def test_other_parameters(request, renamed, kind, change, sentence, old):
    trained = request.getfixturevalue(kind)
    path = renamed(trained, lambda state: as_old(change(state)) if old else change(state))
    with pytest.raises(UserError, match=f"model.pt.*{sentence}") as raised:
        elseq.load(path, data=trained.data)
    assert "\n" not in str(raised.value)


@pytest.mark.parametrize(
    "change",
    [
        with_prefixes({"encoder": "reader"}),
        without_parameters("encoder."),
        with_prefixes({"decoder": "writer"}),
        without_parameters("decoder."),
        with_prefixes({"encoder": "reader", "decoder": "writer"}),
    ],
)
def test_parts_of_no_base_architecture(tiny_translation, renamed, change):
    """A decoder that reads an encoder is no language model, even if the encoder has another name."""
    path = renamed(tiny_translation, change)
    with pytest.raises(UserError, match=f"the architecture {NAME!r} is unknown: name the folder of the plugin"):
        elseq.load(path, data=tiny_translation.data)


@pytest.mark.parametrize(
    ("command", "options"),
    [
        ("elseq-generate", ["--model={path}", "--data={data}"]),
        ("fairseq-generate", ["{data}", "--path={path}", "--cpu", "--task=translation"]),
        ("fairseq-generate", ["{data}", "--path={path}", "--cpu", "--task=elseq_translation"]),
    ],
)
def test_commands_refuse_other_parameters(tiny_translation, renamed, command, options):
    path = renamed(tiny_translation, with_parameters("decoder.layers.0.gate.weight"))
    options = [option.format(path=path, data=tiny_translation.data) for option in options]
    if command == "fairseq-generate":
        options += ["--user-dir", helpers.USER_DIR]
    result = helpers.run_here([command, *options], b"w1 w2\n", check=False)
    assert result.returncode == 1
    last = result.stderr.splitlines()[-1]
    assert last.startswith("elseq: error: ") and '("decoder.layers.0.gate.weight")' in last


def test_experts_of_a_known_architecture(tiny_language_model, renamed):
    path = renamed(tiny_language_model, name="transformer_lm", moe_freq=2)
    with pytest.raises(UserError, match=r"a mixture of experts \(--moe-freq 2\)"):
        elseq.load(path, data=tiny_language_model.data)


# --- options


@pytest.mark.parametrize(
    ("lacking", "named"),
    [
        ("decoder_attention_heads", "--decoder-attention-heads"),
        ("activation_fn", "--activation-fn"),
        ("no_scale_embedding", "--no-scale-embedding"),
        ("encoder_layers", "--encoder-layers"),  # 2, and the default is 6
        ("encoder_ffn_embed_dim", "--encoder-ffn-embed-dim"),
    ],
)
def test_lacking_options(tiny_translation, renamed, lacking, named):
    path = renamed(tiny_translation, **{lacking: None})
    with pytest.raises(UserError, match=f"{NAME!r} is unknown, and its configuration lacks {named}, without"):
        elseq.load(path, data=tiny_translation.data)


def test_lacking_options_that_are_given(tiny_translation, renamed):
    path = renamed(tiny_translation, decoder_attention_heads=None)
    options = ["--model-overrides", "{'decoder_attention_heads': 4}"]
    found = scores(tiny_translation.data, path, "translation", *options)
    assert found == scores(tiny_translation.data, tiny_translation.checkpoint)


def test_fewer_layers_that_are_given(tiny_translation, renamed):
    """A registered architecture needs no number: fairseq-train with --decoder-layers-to-keep has saved another."""
    change = without_parameters("decoder.layers.1.")
    options = ["--model-overrides", "{'decoder_layers': 1}"]
    found = scores(tiny_translation.data, renamed(tiny_translation, change), "translation", *options)
    assert found == scores(tiny_translation.data, renamed(tiny_translation, change, name="transformer"))


@pytest.mark.parametrize("lacking", ["encoder_normalize_before", "layernorm_embedding", "decoder_ffn_embed_dim"])
def test_options_that_the_parameters_show(tiny_translation, renamed, lacking):
    path = renamed(tiny_translation, **{lacking: None})
    lines = (tiny_translation.raw / "test.src").read_text().splitlines()[:3]
    found, expected = (
        elseq.load(each, data=tiny_translation.data).generate(lines) for each in (path, tiny_translation.checkpoint)
    )
    assert found == expected


def test_options_of_nobody_are_named(tiny_language_model, renamed, caplog):
    path = renamed(tiny_language_model, rotary_width=8)
    checkpoint_utils.load_checkpoint_to_cpu(str(path))
    assert "must have, and without --rotary-width" in caplog.text


def test_a_training_has_its_own_architecture(tiny_translation, renamed, tmp_path):
    """What elseq would refuse to decode may still be what a training starts from."""
    path = renamed(tiny_translation, activation_fn=None)
    start = ["--finetune-from-model", path, "--max-update=1", "--save-dir", tmp_path / "finetuned"]
    helpers.run_here(helpers.train_command("transformer", tiny_translation.data, tmp_path, *start))
    model = torch.load(tmp_path / "finetuned" / "checkpoint_last.pt")["cfg"]["model"]
    assert model_class(model).__name__ == "TransformerModel"
