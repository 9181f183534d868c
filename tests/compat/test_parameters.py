import re
from argparse import Namespace

import pytest
import torch
from fairseq import checkpoint_utils
from fairseq.models.transformer import TransformerDecoderBase
from fairseq.trainer import Trainer

import elseq
from elseq.errors import UserError
from tests import helpers

SOURCES = ["w1 w2 w4", "w3 w5 w6 w7"]


def scores(data, checkpoint, task="translation", *options):
    """What fairseq's own search prints of the test set."""
    command = ["fairseq-generate", data, "--path", checkpoint, "--cpu", "--num-workers=0", "--task", task]
    printed = helpers.run_here(
        [*command, "--user-dir", helpers.USER_DIR, "--beam=2", "--max-len-b=12", *options]
    ).stdout
    found = dict(re.findall(r"^H-(\d+)\t(.*)$", printed, re.MULTILINE))
    assert len(found) == 21
    return found


# --- layers that are left out


def test_pruning(without):
    names = ["encoder.embed_tokens.weight", "decoder.layer_norm.weight"]
    names += [f"{side}.layers.{number}.fc1.weight" for side in ("encoder", "decoder") for number in range(12)]
    state = dict(zip(names, range(len(names)), strict=True))
    for options, expected in (
        ({}, state),
        ({"decoder_layers_to_keep": None}, state),
        ({"encoder_layers_to_keep": "10,2"}, {2: 0, 10: 1}),
        ({"decoder_layers_to_keep": "0"}, {0: 0}),
    ):
        if expected is not state:
            side = next(iter(options)).partition("_")[0]
            kept = {name: tensor for name, tensor in state.items() if not name.startswith(f"{side}.layers.")}
            for before, after in expected.items():
                kept[f"{side}.layers.{after}.fc1.weight"] = state[f"{side}.layers.{before}.fc1.weight"]
            expected = kept
        pruned = checkpoint_utils.prune_state_dict(state, Namespace(arch="transformer", **options))
        assert pruned == expected
        assert checkpoint_utils.prune_state_dict(pruned, Namespace(arch="transformer", **options)) == expected
    for text, sentence in (("0,12", "0,12 names layers that are not among the 12"), ("a", "a is no list of layers")):
        with pytest.raises(UserError, match=f"--encoder-layers-to-keep {sentence}"):
            checkpoint_utils.prune_state_dict(state, Namespace(arch="transformer", encoder_layers_to_keep=text))


SLOW = [pytest.param(arch, marks=pytest.mark.slow) for arch in ("el_transformer", "bart_base")]


@pytest.mark.few_cases(1)
@pytest.mark.parametrize("arch", ["transformer", "transformer_lm", *SLOW])
def test_training_with_fewer_layers(translation_data, language_model_data, tmp_path, without, arch):
    language_model = arch.endswith("_lm")
    data = language_model_data if language_model else translation_data
    side, task = ("decoder", "language_modeling") if language_model else ("encoder", "translation")
    user_dir = ["--user-dir", helpers.USER_DIR]
    helpers.run_here(
        helpers.train_command(arch, data, tmp_path / "whole", f"--{side}-layers=3", "--max-update=30", *user_dir)
    )
    start = ["--finetune-from-model", tmp_path / "whole" / "checkpoint_last.pt", f"--{side}-layers-to-keep=0,2"]
    start += [f"--{side}-layers=3", *user_dir]
    options = ["--sample-break-mode=eos"] if language_model else []

    def finetune(save_dir, updates=32):
        helpers.run_here(helpers.train_command(arch, data, save_dir, *start, f"--max-update={updates}"))
        return save_dir / "checkpoint_last.pt"

    new = finetune(tmp_path / "new")
    model = torch.load(new)["cfg"]["model"]
    model = vars(model) if isinstance(model, Namespace) else model
    assert (model[f"{side}_layers"], model[f"{side}_layers_to_keep"]) == (2, None)
    expected = scores(data, new, task, *options)
    finetune(tmp_path / "new", 34)  # goes on from checkpoint_last.pt

    # As fairseq saved it.
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(Trainer, "state_dict", Trainer.state_dict.__wrapped__)
        old = finetune(tmp_path / "old")
    state = torch.load(old)
    model = state["cfg"]["model"]
    (vars(model) if isinstance(model, Namespace) else model).update(
        {f"{side}_layers": 3, f"{side}_layers_to_keep": None}
    )
    torch.save(state, old)
    assert scores(data, old, task, *options) == expected
    texts = ["w1 w2 =>"] if language_model else SOURCES
    loaded = [elseq.load(tmp_path / name / "checkpoint_last.pt", data=data) for name in ("old", "new")]
    assert len(loaded[0].model.decoder.layers if language_model else loaded[0].model.encoder.layers) == 2
    assert all(loaded[0].generate(texts, max_len_b=9))
    while hasattr(checkpoint_utils.load_checkpoint_to_cpu, "__wrapped__"):
        without(checkpoint_utils, "load_checkpoint_to_cpu")
    with pytest.raises((UserError, RuntimeError)):
        checkpoint_utils.load_model_ensemble([str(old)], arg_overrides={"data": str(data)})


# --- leftovers


@pytest.mark.parametrize("prefix", ["module.", "module.module.", "_orig_mod.", "module._orig_mod."])
def test_prefixes(tiny_translation, tmp_path, prefix):
    state = torch.load(tiny_translation.checkpoint)
    state["model"] = {f"{prefix}{name}": tensor for name, tensor in state["model"].items()}
    torch.save(state, tmp_path / "model.pt")
    expected = elseq.load(tiny_translation.checkpoint).generate(SOURCES)
    assert elseq.load(tmp_path / "model.pt", data=tiny_translation.data).generate(SOURCES) == expected


def test_adaptive_softmax_with_shared_embeddings(translation_data, tmp_path, without):
    options = ["--criterion=adaptive_loss", "--adaptive-softmax-cutoff=8,16", "--ddp-backend=legacy_ddp"]
    checkpoint = helpers.train("transformer", translation_data, tmp_path, *options, "--max-update=10")
    expected = scores(translation_data, checkpoint)
    assert scores(translation_data, checkpoint, "elseq_translation", "--decode-attention=el").keys() == expected.keys()
    loaded = elseq.load(checkpoint).model.state_dict()
    for name, tensor in torch.load(checkpoint)["model"].items():
        assert torch.equal(loaded[name], tensor)
    without(TransformerDecoderBase, "upgrade_state_dict_named")
    with pytest.raises(UserError, match="does not have"):
        elseq.load(checkpoint)


def test_layers_with_numbers_that_are_none(tiny_translation, tmp_path):
    """Python makes no number of so many digits."""
    state = torch.load(tiny_translation.checkpoint)
    state["model"][f"encoder.layers.{'9' * 5000}.x"] = torch.ones(1)
    torch.save(state, tmp_path / "model.pt")
    with pytest.raises(UserError, match="model.pt has parameters that its architecture does not have"):
        elseq.load(tmp_path / "model.pt", data=tiny_translation.data)


LEFTOVERS = ("decoder.embed_positions._float_tensor", "encoder.version", "encoder.layers.0.version", "v_head.weight")


@pytest.mark.parametrize("decoding", ["stock", "auto"])
def test_what_is_no_parameter(tiny_translation, tiny_bart, tmp_path, decoding):
    heads = [f"classification_heads.mnli.{layer}.weight" for layer in ("dense", "out_proj")]
    for trained in (tiny_translation, tiny_bart):
        state = torch.load(trained.checkpoint)
        state["model"].update({name: torch.ones(2, 2) for name in (*LEFTOVERS, *heads) if name not in state["model"]})
        torch.save(state, tmp_path / "model.pt")
        found = elseq.load(tmp_path / "model.pt", attention=decoding, data=trained.data).generate(SOURCES)
        assert found == elseq.load(trained.checkpoint, attention=decoding).generate(SOURCES)


def test_parameters_of_another_model(tiny_translation, tmp_path):
    state = torch.load(tiny_translation.checkpoint)
    names = ["encoder.layers.0.adapter.weight", "encoder.layers.1.adapter.weight"]
    state["model"].update({name: torch.ones(2, 2) for name in names})
    torch.save(state, tmp_path / "model.pt")
    sentence = (
        rf"model.pt has parameters that its architecture does not have \(\"{names[0]}\" and 1 more\), and without"
    )
    with pytest.raises(UserError, match=sentence):
        elseq.load(tmp_path / "model.pt", data=tiny_translation.data)
    del state["model"]["encoder.layers.0.fc1.weight"]
    torch.save(state, tmp_path / "model.pt")
    with pytest.raises(UserError, match="does not fit the model"):
        elseq.load(tmp_path / "model.pt", data=tiny_translation.data)
