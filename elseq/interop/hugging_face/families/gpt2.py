"""GPT-2: linear layers are transposed there, query, key and value one matrix, and positions begin at row 0, not 2."""

import re

import torch
from torch import Tensor

from elseq.errors import UserError
from elseq.interop.hugging_face import folders, options
from elseq.interop.hugging_face.families.family import FIRST_POSITION, LanguageModel

_FEATURES = {"layer_norm_epsilon": 1e-5, "add_cross_attention": False, "is_encoder_decoder": False}
_IGNORED = re.compile(r".*\.(attn|crossattention)\.(masked_)?bias")  # masks, which older versions of transformers saved
_LAYERS = {
    "ln_1": "self_attn_layer_norm",
    "attn.c_proj": "self_attn.out_proj",
    "ln_2": "final_layer_norm",
    "mlp.c_fc": "fc1",
    "mlp.c_proj": "fc2",
}
_PROJECTIONS = ("q_proj", "k_proj", "v_proj")
_IS_GPT2 = {
    "decoder_normalize_before": True,
    "no_decoder_final_norm": False,
    "decoder_learned_pos": True,
    "no_scale_embedding": True,
    "layernorm_embedding": False,
    "character_embeddings": False,
    "output_bias": False,
    "norm_before_positions": False,
}


class GPT2Family(LanguageModel):
    name = "gpt2"
    title = "GPT-2"
    model_class = "GPT2LMHeadModel"
    tokenizer_class = "GPT2Tokenizer"
    architecture = "transformer_lm"
    defaults = {
        "vocab_size": 50257,
        "n_positions": 1024,
        "n_embd": 768,
        "n_layer": 12,
        "n_head": 12,
        "n_inner": None,
        "activation_function": "gelu_new",
        "resid_pdrop": 0.1,
        "embd_pdrop": 0.1,
        "attn_pdrop": 0.1,
        "layer_norm_epsilon": 1e-5,
        "scale_attn_weights": True,
        "scale_attn_by_inverse_layer_idx": False,
        "tie_word_embeddings": True,
        "bos_token_id": 50256,
        "pad_token_id": None,
        "eos_token_id": 50256,
    }
    aliases = {
        "hidden_size": "n_embd",
        "max_position_embeddings": "n_positions",
        "num_attention_heads": "n_head",
        "num_hidden_layers": "n_layer",
    }
    layers = {"n_layer": "h"}
    positions = "n_positions"

    def fairseq_options(self, config: dict) -> dict:
        options.check_features(config, _FEATURES)
        options.check_heads(config, "n_embd", "n_head")
        return {
            "decoder_embed_dim": config["n_embd"],
            "decoder_input_dim": config["n_embd"],
            "decoder_output_dim": config["n_embd"],
            "decoder_ffn_embed_dim": _inner(config),
            "decoder_layers": config["n_layer"],
            "decoder_attention_heads": config["n_head"],
            "max_target_positions": config["n_positions"],
            "tokens_per_sample": config["n_positions"],
            "activation_fn": options.activation(config["activation_function"]),
            "dropout": config["resid_pdrop"],
            "attention_dropout": config["attn_pdrop"],
            "decoder_normalize_before": True,
            "decoder_learned_pos": True,
            "no_scale_embedding": True,
            "share_decoder_input_output_embed": config["tie_word_embeddings"],
            "add_bos_token": False,  # a text begins with the end symbol, as in GPT-2
            "tpu": False,
        }

    def notes(self, config: dict) -> list[str]:
        embedded, others = config["embd_pdrop"], config["resid_pdrop"]
        return [f"embd_pdrop {embedded} is left out: fairseq has {others} there too"] if embedded != others else []

    def hugging_face_options(self, configuration: dict, is_joined: bool) -> dict:
        width = configuration["decoder_embed_dim"]
        required = _IS_GPT2 | {"decoder_input_dim": width, "decoder_output_dim": width}
        options.check_expressible(configuration, required, self.title)
        return {
            "architectures": [self.model_class],
            "model_type": self.name,
            "n_embd": width,
            "n_inner": configuration["decoder_ffn_embed_dim"],
            "n_layer": configuration["decoder_layers"],
            "n_head": configuration["decoder_attention_heads"],
            "n_positions": configuration["max_target_positions"] or configuration["tokens_per_sample"],
            "activation_function": options.HUGGING_FACE_ACTIVATIONS[configuration["activation_fn"]],
            "resid_pdrop": configuration["dropout"],
            "embd_pdrop": configuration["dropout"],
            "attn_pdrop": configuration["attention_dropout"],
            "layer_norm_epsilon": 1e-5,
            "tie_word_embeddings": configuration["share_decoder_input_output_embed"],
        }

    def shapes(self, config: dict) -> dict[str, tuple[int, ...]]:
        width, inner = config["n_embd"], _inner(config)
        linear = {"attn.c_attn": (width, 3 * width), "attn.c_proj": (width, width)}
        linear |= {"mlp.c_fc": (width, inner), "mlp.c_proj": (inner, width)}
        found = {"wte.weight": (config["vocab_size"], width), "wpe.weight": (config["n_positions"], width)}
        for number in range(config["n_layer"]):
            for name, (rows, columns) in linear.items():
                found[f"h.{number}.{name}.weight"] = (rows, columns)
                found[f"h.{number}.{name}.bias"] = (columns,)
            for name in ("ln_1", "ln_2"):
                found |= {f"h.{number}.{name}.{part}": (width,) for part in ("weight", "bias")}
        found |= {f"ln_f.{part}": (width,) for part in ("weight", "bias")}
        return found if config["tie_word_embeddings"] else {**found, "lm_head.weight": found["wte.weight"]}

    def normalize(self, tensors: dict[str, Tensor], config: dict) -> dict[str, Tensor]:
        tensors = folders.without_prefix(tensors, "transformer.", _IGNORED)
        if config["tie_word_embeddings"]:
            copy = tensors.pop("lm_head.weight", None)
            if copy is not None and not torch.equal(tensors.setdefault("wte.weight", copy), copy):
                raise UserError("lm_head.weight differs from wte.weight, and config.json does not have them apart")
        return tensors

    def to_fairseq(self, tensors: dict[str, Tensor], config: dict) -> dict[str, Tensor]:
        positions = tensors["wpe.weight"]
        renamed = {
            "decoder.version": torch.tensor([3.0]),
            "decoder.embed_tokens.weight": tensors["wte.weight"],
            "decoder.output_projection.weight": tensors.get("lm_head.weight", tensors["wte.weight"]),
            "decoder.embed_positions.weight": torch.cat(
                (positions.new_zeros(FIRST_POSITION, positions.size(1)), positions)
            ),
            "decoder.layer_norm.weight": tensors["ln_f.weight"],
            "decoder.layer_norm.bias": tensors["ln_f.bias"],
        }
        for number in range(config["n_layer"]):
            ours, theirs = f"decoder.layers.{number}", f"h.{number}"
            factor = _query_factor(config, number)
            for part in ("weight", "bias"):
                query, key, value = _turn(tensors[f"{theirs}.attn.c_attn.{part}"]).chunk(3)
                if factor != 1:
                    query = query * factor
                for name, projection in zip(_PROJECTIONS, (query, key, value), strict=True):
                    renamed[f"{ours}.self_attn.{name}.{part}"] = projection.contiguous()
                for name, own in _LAYERS.items():
                    tensor = tensors[f"{theirs}.{name}.{part}"]
                    renamed[f"{ours}.{own}.{part}"] = _turn(tensor).contiguous()
        return renamed

    def last_norm(self, configuration: dict) -> str:
        return "decoder.layer_norm"

    def from_fairseq(self, tensors: dict[str, Tensor], config: dict) -> dict[str, Tensor]:
        renamed = {
            "transformer.wte.weight": tensors["decoder.embed_tokens.weight"],
            "transformer.wpe.weight": tensors["decoder.embed_positions.weight"][FIRST_POSITION:],
            "transformer.ln_f.weight": tensors["decoder.layer_norm.weight"],
            "transformer.ln_f.bias": tensors["decoder.layer_norm.bias"],
        }
        if not config["tie_word_embeddings"]:
            renamed["lm_head.weight"] = tensors["decoder.output_projection.weight"]
        for number in range(config["n_layer"]):
            ours, theirs = f"decoder.layers.{number}", f"transformer.h.{number}"
            for part in ("weight", "bias"):
                joint = torch.cat([tensors[f"{ours}.self_attn.{name}.{part}"] for name in _PROJECTIONS])
                renamed[f"{theirs}.attn.c_attn.{part}"] = _turn(joint)
                for name, own in _LAYERS.items():
                    renamed[f"{theirs}.{name}.{part}"] = _turn(tensors[f"{ours}.{own}.{part}"])
        return renamed


def _inner(config: dict) -> int:
    return config["n_inner"] or 4 * config["n_embd"]


def _turn(tensor: Tensor) -> Tensor:
    return tensor.t() if tensor.dim() == 2 else tensor


def _query_factor(config: dict, layer: int) -> float:
    """The factor of the query. fairseq always divides scores by the root of a head's width, GPT-2 by its options."""
    factor = 1.0 if config["scale_attn_weights"] else (config["n_embd"] // config["n_head"]) ** 0.5
    return factor / (layer + 1) if config["scale_attn_by_inverse_layer_idx"] else factor


GPT2 = GPT2Family()
