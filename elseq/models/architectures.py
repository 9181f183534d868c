"""Named architectures: one table, from which fairseq's --arch names and the Hydra configurations are made.

A value of the table applies unless the user sets it. Options without a value have the default of the model's dataclass.
"""

from fairseq.models import register_model_architecture

_BART = {
    "encoder_learned_pos": True,
    "decoder_learned_pos": True,
    "activation_fn": "gelu",
    "layernorm_embedding": True,
    "no_scale_embedding": True,
    "share_all_embeddings": True,
    "share_decoder_input_output_embed": True,
}
_GPT2 = {
    "decoder_learned_pos": True,
    "decoder_normalize_before": True,
    "activation_fn": "gelu_accurate",  # fairseq's name of GPT-2's tanh approximation of GELU
    "no_scale_embedding": True,
    "share_decoder_input_output_embed": True,
    "dropout": 0.1,
    "attention_dropout": 0.1,
}


def _encoder_decoder(embed_dim: int, ffn_embed_dim: int, layers: int, attention_heads: int) -> dict:
    """Sizes of an encoder-decoder. The decoder has the widths of the encoder."""
    return {
        "encoder_embed_dim": embed_dim,
        "encoder_ffn_embed_dim": ffn_embed_dim,
        "encoder_layers": layers,
        "decoder_layers": layers,
        "encoder_attention_heads": attention_heads,
        "decoder_attention_heads": attention_heads,
    }


def _decoder(embed_dim: int, layers: int, attention_heads: int) -> dict:
    return {
        "decoder_embed_dim": embed_dim,
        "decoder_ffn_embed_dim": 4 * embed_dim,
        "decoder_layers": layers,
        "decoder_attention_heads": attention_heads,
    }


# Sizes of the papers: Vaswani et al. 2017, Lewis et al. 2019, Radford et al. 2019.
_SIZES = {
    "transformer": ("elseq_transformer", {}),
    "transformer_wmt_en_de": ("elseq_transformer", {}),
    "transformer_vaswani_wmt_en_de_big": ("elseq_transformer", _encoder_decoder(1024, 4096, 6, 16) | {"dropout": 0.3}),
    "bart_base": ("elseq_bart", _encoder_decoder(768, 3072, 6, 12) | _BART),
    "bart_large": ("elseq_bart", _encoder_decoder(1024, 4096, 12, 16) | _BART),
    "transformer_lm_gpt2_124m": ("elseq_transformer_lm", _decoder(768, 12, 12) | _GPT2),
    "transformer_lm_gpt2_355m": ("elseq_transformer_lm", _decoder(1024, 24, 16) | _GPT2),
}
_KINDS = {"el": {"decode_attention": "el"}, "mq": {"num_kv_heads": 1}}

# k of 2106.06899 in its attention benchmark, and in the feed-forward layers of its finetuned T5.
_TOP_K = {"attention_top_k": 128, "ffn_top_k": 256}

# The pair of 1911.02150, section 4.1: multi-query attention and wider feed-forward layers for the same parameters.
_SHAZEER = {
    "encoder_normalize_before": True,
    "decoder_normalize_before": True,
    "share_all_embeddings": True,
    "dropout": 0.2,
}

# name: (model, values)
ARCHITECTURES = {
    **{
        f"{kind}_{name}": (model, sizes | values)
        for kind, values in _KINDS.items()
        for name, (model, sizes) in _SIZES.items()
    },
    "topk_transformer": ("elseq_transformer", _TOP_K),
    "topk_bart_large": ("elseq_bart", _SIZES["bart_large"][1] | _TOP_K),
    "transformer_shazeer": ("elseq_transformer", _encoder_decoder(1024, 4096, 6, 8) | _SHAZEER),
    "mq_transformer_shazeer": ("elseq_transformer", _encoder_decoder(1024, 5440, 6, 8) | _SHAZEER | _KINDS["mq"]),
}


def _register(name: str, model: str, values: dict) -> None:
    @register_model_architecture(model, name)
    def set_defaults(args):
        for key, value in values.items():
            if not hasattr(args, key):
                setattr(args, key, value)


for _name, (_model, _values) in ARCHITECTURES.items():
    _register(_name, _model, _values)
