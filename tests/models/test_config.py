from argparse import Namespace
from enum import Enum

import pytest
from omegaconf import DictConfig

from elseq.errors import UserError
from elseq.models.config import check_configuration, check_supported, to_namespace, why_unsupported
from tests.models.building import ours, parse


def parsed(*arguments):
    return to_namespace(parse(*arguments))


@pytest.mark.few_cases(2)
@pytest.mark.parametrize("arch", ["elseq_transformer", "elseq_bart", "el_transformer", "el_bart_base"])
def test_the_decoder_is_as_wide_as_the_encoder_unless_told_otherwise(arch):
    cfg = parsed(arch, "--encoder-embed-dim=24", "--encoder-ffn-embed-dim=40")
    widths = cfg.decoder_embed_dim, cfg.decoder_ffn_embed_dim, cfg.decoder_input_dim, cfg.decoder_output_dim
    assert widths == (24, 40, 24, 24)
    cfg = parsed(arch, "--encoder-embed-dim=24", "--decoder-embed-dim=16")
    widths = cfg.encoder_embed_dim, cfg.decoder_embed_dim, cfg.decoder_input_dim, cfg.decoder_output_dim
    assert widths == (24, 16, 16, 16)
    cfg = parsed(arch, "--decoder-ffn-embed-dim=8", "--decoder-output-dim=12")
    assert (cfg.decoder_ffn_embed_dim, cfg.decoder_output_dim) == (8, 12)


@pytest.mark.parametrize("arch", ["elseq_transformer_lm", "el_transformer_lm_gpt2_124m"])
def test_input_and_output_of_a_language_model_are_as_wide_as_it_unless_told_otherwise(arch):
    cfg = parsed(arch, "--decoder-embed-dim=24")
    assert (cfg.decoder_input_dim, cfg.decoder_output_dim) == (24, 24)
    cfg = parsed(arch, "--decoder-input-dim=8", "--decoder-output-dim=12")
    assert (cfg.decoder_input_dim, cfg.decoder_output_dim) == (8, 12)


@pytest.mark.few_cases(3)
@pytest.mark.parametrize(
    "arch, option, name, value",
    [
        ("el_bart_large", "--encoder-layers=3", "encoder_layers", 3),
        ("el_bart_large", "--decoder-layers=2", "decoder_layers", 2),
        ("el_bart_base", "--activation-fn=relu", "activation_fn", "relu"),
        ("el_bart_base", "--decode-attention=kv", "decode_attention", "kv"),
        ("el_bart_base", "--pooler-dropout=0.4", "pooler_dropout", 0.4),
        ("el_transformer_vaswani_wmt_en_de_big", "--dropout=0.1", "dropout", 0.1),
        ("el_transformer_vaswani_wmt_en_de_big", "--dropout=0", "dropout", 0),
        ("el_transformer", "--decode-attention=auto", "decode_attention", "auto"),
    ],
)
def test_what_the_user_gives_wins_over_the_architecture(arch, option, name, value):
    assert getattr(parsed(arch), name) != value
    assert getattr(parsed(arch, option), name) == value


def test_what_the_user_gives_wins_over_the_architecture_of_a_language_model():
    cfg = parsed("el_transformer_lm_gpt2_124m", "--decoder-layers=2", "--dropout=0.5")
    assert (cfg.decoder_layers, cfg.dropout, cfg.decoder_embed_dim, cfg.decode_attention) == (2, 0.5, 768, "el")


def test_the_longest_text_of_a_language_model_is_the_task_s():
    assert parsed("elseq_transformer_lm", "--tokens-per-sample=77").tokens_per_sample == 77


def test_lists_of_layers_and_of_cutoffs_reach_the_model_as_text():
    cfg = parsed(
        "elseq_transformer",
        "--encoder-layers-to-keep=0,2",
        "--decoder-layers-to-keep=1",
        "--adaptive-softmax-cutoff=10,20",
    )
    assert (cfg.encoder_layers_to_keep, cfg.decoder_layers_to_keep) == ("0,2", "1")
    assert cfg.adaptive_softmax_cutoff == "10,20"


def test_an_unknown_method_is_refused():
    with pytest.raises(UserError, match="--decode-attention fast is unknown; choose one of auto, kv, el"):
        check_configuration(parsed("elseq_transformer", "--decode-attention=fast"))


def test_a_namespace_without_interpolations_and_enumerations():
    class Kind(Enum):
        ONE = "one"

    cfg = DictConfig({"width": 3, "same": "${width}", "kind": Kind.ONE})
    assert to_namespace(cfg) == Namespace(width=3, same=3, kind="ONE")
    namespace = Namespace(width=3)
    assert to_namespace(namespace) is namespace


@pytest.mark.parametrize(
    "kind, option, value",
    [
        ("transformer", "cross_self_attention", True),
        ("transformer", "base_layers", 1),
        ("transformer", "quant_noise_scalar", 0.5),
        ("transformer", "encoder_xformers_att_config", '{"name": "linformer"}'),
        ("transformer", "decoder_ffn_embed_dim", 0),
        ("bart", "encoder_ffn_embed_dim", 0),
        ("transformer_lm", "decoder_ffn_embed_dim", 0),
        ("bart", "cross_self_attention", True),
        ("bart", "decoder_xformers_att_config", '{"name": "linformer"}'),
        ("transformer_lm", "character_embeddings", True),
        ("transformer_lm", "base_layers", 2),
        ("transformer_lm", "quant_noise_scalar", 1),
        ("transformer_lm", "decoder_xformers_att_config", '{"name": "linformer"}'),
    ],
)
def test_what_is_not_supported_is_refused_by_name(kind, option, value):
    with pytest.raises(UserError, match=f"--{option.replace('_', '-')}"):
        ours(kind, **{option: value})


@pytest.mark.parametrize("value", [None, 0, 0.0, False, "", "0", "{}"])
def test_an_option_that_is_off_is_not_refused(value):
    cfg = Namespace(base_layers=value, decoder_xformers_att_config=value, cross_self_attention=value)
    assert why_unsupported(cfg) is None
    check_supported(cfg)


@pytest.mark.parametrize(
    "kind, options, named",
    [
        ("transformer", {"num_kv_heads": 3}, "--num-kv-heads 3 does not divide --encoder-attention-heads 4"),
        ("transformer", {"encoder_num_kv_heads": 8}, "--encoder-num-kv-heads 8"),
        ("transformer", {"decoder_num_kv_heads": 0}, "--decoder-num-kv-heads 0"),
        ("bart", {"cross_num_kv_heads": 3}, "--cross-num-kv-heads 3 does not divide --decoder-attention-heads 4"),
        ("transformer_lm", {"num_kv_heads": 3}, "--num-kv-heads 3 does not divide"),
        ("transformer", {"decoder_kv_heads_by_layer": "4,3,1"}, "--decoder-kv-heads-by-layer 4,3,1: 3 does not divide"),
        ("bart", {"cross_kv_heads_by_layer": "4"}, "--cross-kv-heads-by-layer 4 has 1 numbers for 3 layers"),
        (
            "transformer",
            {"encoder_kv_heads_by_layer": "4,x"},
            "--encoder-kv-heads-by-layer '4,x' is no list of numbers",
        ),
        (
            "transformer_lm",
            {"decoder_kv_heads_by_layer": "0,1,1"},
            "--decoder-kv-heads-by-layer 0,1,1: 0 does not divide",
        ),
        ("transformer", {"head_dim": 0}, "--head-dim 0"),
        ("bart", {"local_attention_radius": 0}, "--local-attention-radius 0"),
        ("transformer", {"head_dim": 3, "scale_heads": True}, "--scale-heads"),
        ("transformer", {"output_bias": True, "adaptive_softmax_cutoff": "10"}, "--output-bias does not go with"),
        ("transformer", {"norm_before_positions": True}, "--norm-before-positions needs a norm of the embeddings"),
    ],
)
def test_heads_that_cannot_be_are_refused_by_name(kind, options, named):
    with pytest.raises(UserError, match=named):
        ours(kind, **options)
