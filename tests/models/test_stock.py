from argparse import Namespace
from types import SimpleNamespace

import pytest
import torch
from fairseq import checkpoint_utils, options
from fairseq.dataclass.utils import convert_namespace_to_omegaconf
from fairseq.models import (
    ARCH_MODEL_REGISTRY,
    MODEL_REGISTRY,
    register_model,
    register_model_architecture,
)
from fairseq.models.transformer import TransformerModel
from fairseq.models.transformer_lm import TransformerLanguageModelConfig
from omegaconf import OmegaConf

import elseq
from elseq.compat.settings import model_class
from elseq.errors import UserError
from elseq.models import ElseqBARTModel, ElseqTransformerLanguageModel, ElseqTransformerModel
from elseq.models.stock import (
    as_stock,
    elseq_configuration,
    equivalent_model,
    stock_configuration,
    training_options,
)
from tests import helpers
from tests.tiny_models import make_dictionary


@pytest.mark.parametrize(
    "name, kind",
    [
        ("transformer", ElseqTransformerModel),
        ("transformer_tiny", ElseqTransformerModel),
        ("transformer_iwslt_de_en", ElseqTransformerModel),
        ("transformer_vaswani_wmt_en_de_big", ElseqTransformerModel),
        ("bart_base", ElseqBARTModel),
        ("bart_large", ElseqBARTModel),
        ("mbart_large", ElseqBARTModel),
        ("transformer_lm", ElseqTransformerLanguageModel),
        ("transformer_lm_gpt", ElseqTransformerLanguageModel),
        ("transformer_lm_gpt2_small", ElseqTransformerLanguageModel),
    ],
)
def test_stock_architectures(name, kind):
    for cfg in (Namespace(arch=name), OmegaConf.create({"_name": name})):
        assert equivalent_model(cfg) == (kind, None)


@pytest.mark.parametrize(
    "name, stock",
    [
        ("transformer_align", "TransformerAlignModel"),
        ("transformer_from_pretrained_xlm", "TransformerFromPretrainedXLMModel"),
        ("nonautoregressive_transformer", "NATransformerModel"),
        ("transformer_ulm", "TransformerUnitLanguageModel"),
        ("lstm", "LSTMModel"),
        ("fconv_lm", "FConvLanguageModel"),
        ("no_such_model", "model of an unknown kind"),
    ],
)
def test_other_architectures(name, stock):
    kind, reason = equivalent_model(Namespace(arch=name))
    assert kind is None
    assert reason == f"it is a {stock}"


def test_a_subclass_may_do_anything(monkeypatch):
    for registry in (MODEL_REGISTRY, ARCH_MODEL_REGISTRY):
        for name in ("model_of_a_test", "model_of_a_test_large"):
            monkeypatch.delitem(registry, name, raising=False)

    @register_model("model_of_a_test")
    class ModelOfATest(TransformerModel):
        pass

    register_model_architecture("model_of_a_test", "model_of_a_test_large")(lambda args: None)
    kind, reason = equivalent_model(Namespace(arch="model_of_a_test_large"))
    assert model_class(Namespace(arch="model_of_a_test_large")) is ModelOfATest
    assert (kind, reason) == (None, "it is a ModelOfATest")


@pytest.mark.parametrize("option, value", [("cross_self_attention", True), ("base_layers", 2)])
def test_options_that_our_layers_lack(option, value):
    kind, reason = equivalent_model(Namespace(arch="transformer", **{option: value}))
    assert kind is None
    assert f"--{option.replace('_', '-')}" in reason
    assert equivalent_model(Namespace(arch="transformer", **{option: type(value)(0)}))[0] is ElseqTransformerModel


def test_old_arguments_are_completed():
    """A checkpoint of years ago has only the options that there were."""
    args = stock_configuration(Namespace(arch="transformer_iwslt_de_en", encoder_layers=3))
    assert (args.encoder_layers, args.decoder_layers, args.encoder_attention_heads) == (3, 6, 4)
    model = {"_name": "transformer_lm", "decoder_layers": 3, "an_option_that_went": 5}
    task = {"add_bos_token": False, "tokens_per_sample": 64, "max_target_positions": None}
    cfg = OmegaConf.create({"model": model, "task": task, "common": {"tpu": False}})
    args = stock_configuration(cfg.model)
    assert (args.decoder_layers, args.decoder_embed_dim) == (3, 512)
    assert args.adaptive_input_factor == TransformerLanguageModelConfig().adaptive_input_factor
    assert not hasattr(args, "an_option_that_went")


@pytest.mark.parametrize(
    "arch", ["transformer_iwslt_de_en", "transformer_wmt_en_de_big_t2t", "bart_base", "mbart_base"]
)
def test_same_parameters_and_results(arch):
    """Pre-norm and post-norm, sinusoids and learned positions."""
    dictionary = make_dictionary(20)
    task = SimpleNamespace(source_dictionary=dictionary, target_dictionary=dictionary)
    sizes = {"layers": 2, "embed_dim": 16, "ffn_embed_dim": 24, "attention_heads": 2}
    cfg = Namespace(
        arch=arch, **{f"{side}_{name}": size for side in ("encoder", "decoder") for name, size in sizes.items()}
    )
    kind, _ = equivalent_model(cfg)
    args = stock_configuration(cfg)
    stock = model_class(cfg).build_model(Namespace(**vars(args)), task).eval()
    model = kind.build_model(args, task).eval()
    model.load_state_dict(stock.state_dict())
    source = torch.tensor([[5, 6, 7, 2], [1, 1, 8, 2]])
    previous = torch.tensor([[2, 9, 10], [2, 11, 1]])
    lengths = torch.tensor([4, 2])
    for ours, theirs in zip(model(source, lengths, previous)[0], stock(source, lengths, previous)[0], strict=True):
        kept = slice(0, 2)  # the third position of the second row is padding
        torch.testing.assert_close(ours[kept], theirs[kept], rtol=1e-4, atol=1e-5)


# --- as configurations of our own models

TINY = ["--encoder-layers=2", "--decoder-layers=3", "--encoder-embed-dim=16", "--decoder-attention-heads=2"]
LANGUAGE_MODEL = ["--task=language_modeling", "--decoder-embed-dim=16", "--decoder-layers=2"]


def configuration_of(*arguments):
    """What fairseq-train makes of its command line."""
    args = options.parse_args_and_arch(options.get_training_parser(), ["data", *arguments])
    return convert_namespace_to_omegaconf(args).model


@pytest.mark.few_cases(4)
@pytest.mark.parametrize(
    "arguments, name",
    [
        (["--arch=transformer"], "elseq_transformer"),
        (["--arch=transformer_iwslt_de_en", *TINY, "--decoder-embed-dim=8", "--dropout=0.2"], "elseq_transformer"),
        (["--arch=transformer_wmt_en_de_big_t2t", "--max-source-positions=300"], "elseq_transformer"),
        (["--arch=transformer", "--adaptive-softmax-cutoff=5,10", "--tie-adaptive-weights"], "elseq_transformer"),
        (["--arch=bart_large"], "elseq_bart"),
        (["--arch=bart_base", *TINY, "--pooler-dropout=0.5"], "elseq_bart"),
        (["--arch=transformer_lm", *LANGUAGE_MODEL, "--tokens-per-sample=64"], "elseq_transformer_lm"),
        (["--arch=transformer_lm_gpt2_small", *LANGUAGE_MODEL, "--scale-heads"], "elseq_transformer_lm"),
        (["--arch=el_transformer", *TINY, "--cross-num-kv-heads=1"], "elseq_transformer"),
        (["--arch=mq_bart_base", *TINY, "--head-dim=5"], "elseq_bart"),
        (["--arch=mq_transformer_lm_gpt2_124m", *LANGUAGE_MODEL, "--add-bos-token"], "elseq_transformer_lm"),
    ],
)
def test_options_make_the_configuration_again(arguments, name):
    cfg = configuration_of(*arguments)
    configuration = elseq_configuration(cfg)
    assert configuration["_name"] == name
    stock = vars(stock_configuration(cfg))
    for option, value in configuration.items():
        assert option in ("_name", "adaptive_softmax_cutoff") or option not in stock or stock[option] == value
    task = ["--task=language_modeling"] if name == "elseq_transformer_lm" else []
    assert elseq_configuration(configuration_of(*training_options(configuration), *task)) == configuration


def test_lists_become_text():
    cfg = configuration_of("--arch=transformer", "--adaptive-softmax-cutoff=5,10")
    assert elseq_configuration(cfg)["adaptive_softmax_cutoff"] == "5,10"


def test_options_are_those_that_differ():
    configuration = elseq_configuration(configuration_of("--arch=transformer", "--encoder-embed-dim=256"))
    assert training_options(configuration) == ["--arch", "elseq_transformer", "--encoder-embed-dim", "256"]


def test_none_of_old_checkpoints_is_the_default():
    configuration = elseq_configuration(Namespace(arch="transformer", max_source_positions=None))
    assert configuration["max_source_positions"] == 1024


@pytest.mark.parametrize(
    "cfg, reason",
    [
        (Namespace(arch="lstm"), "it is a LSTMModel"),
        (Namespace(arch="transformer", cross_self_attention=True), "it uses joint cross- and self-attention"),
        (Namespace(arch="elseq_transformer", char_inputs=False, base_layers=2), "it uses BASE layers"),
    ],
)
def test_models_without_an_equivalent(cfg, reason):
    with pytest.raises(UserError, match=f"cannot become one of elseq's, because {reason}"):
        elseq_configuration(cfg)


@pytest.mark.parametrize(
    "option, value",
    [("output_bias", True), ("norm_before_positions", True), ("activation_fn", "swish")],
)
def test_what_other_programs_have_besides(option, value):
    configuration = elseq_configuration(
        Namespace(arch="elseq_transformer", layernorm_embedding=True, **{option: value})
    )
    others = [name for name in ("output_bias", "norm_before_positions", "activation_fn") if name != option]
    with pytest.raises(UserError, match=f"--{option.replace('_', '-')}.*, which stock fairseq does not have"):
        as_stock(configuration, others)
    options = as_stock(configuration, [option])
    assert options["_name"] == "transformer" and "output_bias" not in options


def test_what_stock_leaves_out_of_language_models(language_model_data, tmp_path):
    """fairseq's language model has options that it loses when it builds one, and no such parameters."""
    options = [f"--scale-{name}" for name in ("heads", "fc", "attn", "resids")]
    checkpoint = helpers.train("transformer_lm", language_model_data, tmp_path, "--max-update=5", *options)
    model = checkpoint_utils.load_checkpoint_to_cpu(str(checkpoint))["cfg"].model
    assert model.scale_heads and model.scale_fc and model.scale_attn and model.scale_resids
    assert not any(elseq_configuration(model)[f"scale_{name}"] for name in ("heads", "fc", "attn", "resids"))
    found = {
        attention: elseq.load(checkpoint, attention=attention).generate(["w1 w2 w3"], beam=1, min_len=7, max_len_b=7)
        for attention in ("kv", "el", "stock")
    }
    # fairseq counts the prompt, and repeats it
    assert found["kv"] == found["el"]
    assert f"w1 w2 w3 {found['kv'][0]}".startswith(found["stock"][0])
