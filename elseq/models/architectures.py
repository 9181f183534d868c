"""Named architectures: one table, from which fairseq's --arch names and the Hydra configurations are made.

A value is set where the user has set none. What stands in no row is the default of the model's dataclass.
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
    "activation_fn": "gelu_accurate",  # fairseq's name of the tanh approximation that GPT-2 uses
    "no_scale_embedding": True,
    "share_decoder_input_output_embed": True,
    "dropout": 0.1,
    "attention_dropout": 0.1,
}


def _encoder_decoder(embed_dim: int, ffn_embed_dim: int, layers: int, attention_heads: int) -> dict:
    """Sizes; the decoder's widths follow the encoder's."""
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


_EL = {"decode_attention": "el"}

# name: (model, values). The sizes are those of the papers: Vaswani et al. 2017, Lewis et al. 2019, Radford et al. 2019.
ARCHITECTURES = {
    "el_transformer": ("elseq_transformer", _EL),
    "el_transformer_wmt_en_de": ("elseq_transformer", _EL),
    "el_transformer_vaswani_wmt_en_de_big": (
        "elseq_transformer",
        _encoder_decoder(1024, 4096, 6, 16) | {"dropout": 0.3} | _EL,
    ),
    "el_bart_base": (
        "elseq_bart",
        _encoder_decoder(768, 3072, 6, 12) | _BART | _EL,
    ),
    "el_bart_large": (
        "elseq_bart",
        _encoder_decoder(1024, 4096, 12, 16) | _BART | _EL,
    ),
    "el_transformer_lm_gpt2_124m": ("elseq_transformer_lm", _decoder(768, 12, 12) | _GPT2 | _EL),
    "el_transformer_lm_gpt2_355m": ("elseq_transformer_lm", _decoder(1024, 24, 16) | _GPT2 | _EL),
}


def _register(name: str, model: str, values: dict) -> None:
    @register_model_architecture(model, name)
    def set_defaults(args):
        for key, value in values.items():
            if not hasattr(args, key):
                setattr(args, key, value)


for _name, (_model, _values) in ARCHITECTURES.items():
    _register(_name, _model, _values)
