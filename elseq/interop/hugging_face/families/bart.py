"""BART: the same tensors under the same names, but for the embeddings. Positions begin at row 2 on both sides."""

import re

import torch
from torch import Tensor

from elseq.errors import UserError
from elseq.interop.hugging_face import folders, options
from elseq.interop.hugging_face.families.family import FIRST_POSITION, EncoderDecoder

# Of older versions of transformers, and of relatives that call themselves BART.
_FEATURES = {
    "normalize_before": False,
    "normalize_embedding": True,
    "add_final_layer_norm": False,
    "add_bias_logits": False,
    "static_position_embeddings": False,
    "is_encoder_decoder": True,
}
# What older versions of either library saved, and none reads.
_IGNORED = re.compile(r"(encoder|decoder)\.(version|embed_positions\.(_float_tensor|weights))")
_SAME_NAMES = ("dropout", "attention_dropout", "activation_dropout")
_PER_SIDE = {
    "layers": "layers",
    "ffn_dim": "ffn_embed_dim",
    "attention_heads": "attention_heads",
    "layerdrop": "layerdrop",
}
SIDES = ("encoder", "decoder")
# What relatives have in `required` and in `fixed_options`.
NORMS_FIRST = {f"{side}_normalize_before": True for side in SIDES}
LEARNED_POSITIONS = {f"{side}_learned_pos": True for side in SIDES}
POSITIONS = "embed_positions.weight"
UNTIED = ("encoder.embed_tokens.weight", "decoder.embed_tokens.weight", "lm_head.weight")
_REQUIRED = {
    "encoder_normalize_before": False,
    "decoder_normalize_before": False,
    **LEARNED_POSITIONS,
    "layernorm_embedding": True,
    "no_cross_attention": False,
    "encoder_layers_to_keep": None,
    "output_bias": False,
    "norm_before_positions": False,
}


class BARTFamily(EncoderDecoder):
    """Its relatives with the same layers differ in `features`, `required` and `fixed_options`."""

    name = "bart"
    features = _FEATURES
    required = _REQUIRED
    fixed_options: dict = {}  # of fairseq's model, beside the architecture's
    has_learned_positions = True
    first_position = FIRST_POSITION  # its row in the table of learned positions
    has_embedding_norm = True
    has_final_norms = False  # one after the last layer of each side
    has_output_bias = True  # which must be 0
    may_have_two_dictionaries = False
    title = "BART"
    model_class = "BartForConditionalGeneration"
    tokenizer_class = "BartTokenizer"
    architecture = "bart_large"
    defaults = {
        "vocab_size": 50265,
        "max_position_embeddings": 1024,
        "d_model": 1024,
        "encoder_layers": 12,
        "encoder_ffn_dim": 4096,
        "encoder_attention_heads": 16,
        "encoder_layerdrop": 0.0,
        "decoder_layers": 12,
        "decoder_ffn_dim": 4096,
        "decoder_attention_heads": 16,
        "decoder_layerdrop": 0.0,
        "activation_function": "gelu",
        "dropout": 0.1,
        "attention_dropout": 0.0,
        "activation_dropout": 0.0,
        "scale_embedding": False,
        "tie_word_embeddings": True,
        "bos_token_id": 0,
        "pad_token_id": 1,
        "eos_token_id": 2,
        "decoder_start_token_id": 2,
    }
    aliases = {
        "hidden_size": "d_model",
        "num_hidden_layers": "encoder_layers",
        "num_attention_heads": "encoder_attention_heads",
    }
    layers = {"encoder_layers": "encoder.layers", "decoder_layers": "decoder.layers"}

    def fairseq_options(self, config: dict) -> dict:
        options.check_features(config, self.features)
        self.check_start(config)
        for side in SIDES:
            options.check_heads(config, "d_model", f"{side}_attention_heads")
        sides = {f"{side}_{ours}": config[f"{side}_{theirs}"] for side in SIDES for theirs, ours in _PER_SIDE.items()}
        widths = {f"{side}_embed_dim": config["d_model"] for side in SIDES}
        positions = {f"max_{side}_positions": config["max_position_embeddings"] for side in ("source", "target")}
        return {
            **self.fixed_options,
            **sides,
            **widths,
            **positions,
            **{name: config[name] for name in _SAME_NAMES},
            "activation_fn": options.activation(config["activation_function"]),
            "no_scale_embedding": not config["scale_embedding"],
            "share_all_embeddings": config["tie_word_embeddings"],
            "share_decoder_input_output_embed": config["tie_word_embeddings"],
        }

    def check_start(self, config: dict) -> None:
        """
        Raises:
            UserError: decoding starts from a symbol that it does not start from in fairseq.
        """
        if config["decoder_start_token_id"] not in (None, config["eos_token_id"]):
            raise UserError(
                f"config.json has decoder_start_token_id: {config['decoder_start_token_id']}, and fairseq begins to "
                f"decode with the end symbol, which is {config['eos_token_id']}"
            )

    def tied_embeddings(self, config: dict) -> dict[str, str]:
        """The embeddings that share the tensor of another one, and this one, which alone is in a folder."""
        return dict.fromkeys(UNTIED, "shared.weight") if config["tie_word_embeddings"] else {}

    def hugging_face_options(self, configuration: dict, is_joined: bool) -> dict:
        if not is_joined and not self.may_have_two_dictionaries:
            raise UserError(
                f"source and target have dictionaries of their own, and in Hugging Face's {self.title} they share one"
            )
        required = self.required | {
            "decoder_embed_dim": configuration["encoder_embed_dim"],
            "decoder_output_dim": configuration["encoder_embed_dim"],
            "max_source_positions": configuration["max_target_positions"],
        }
        options.check_expressible(configuration, required, self.title)
        sides = {
            f"{side}_{theirs}": configuration[f"{side}_{ours}"] for side in SIDES for theirs, ours in _PER_SIDE.items()
        }
        return {
            "architectures": [self.model_class],
            "model_type": self.name,
            "is_encoder_decoder": True,
            "d_model": configuration["encoder_embed_dim"],
            "max_position_embeddings": configuration["max_target_positions"],
            **sides,
            **{name: configuration[name] for name in _SAME_NAMES},
            "num_hidden_layers": configuration["encoder_layers"],
            "activation_function": options.HUGGING_FACE_ACTIVATIONS[configuration["activation_fn"]],
            "scale_embedding": not configuration["no_scale_embedding"],
            "tie_word_embeddings": bool(configuration["share_all_embeddings"]),
        }

    def shapes(self, config: dict) -> dict[str, tuple[int, ...]]:
        width = config["d_model"]
        tied = self.tied_embeddings(config)
        found = {tied.get(name, name): (config["vocab_size"], width) for name in UNTIED}
        for side in SIDES:
            if self.has_learned_positions:
                rows = config["max_position_embeddings"] + self.first_position
                found[f"{side}.{POSITIONS}"] = (rows, width)
            inner, layer = config[f"{side}_ffn_dim"], {}
            for attention in ("self_attn", "encoder_attn")[: 1 if side == "encoder" else 2]:
                for projection in ("q_proj", "k_proj", "v_proj", "out_proj"):
                    layer |= _affine(f"{attention}.{projection}", width, width)
                layer |= _affine(f"{attention}_layer_norm", width)
            layer |= _affine("fc1", inner, width) | _affine("fc2", width, inner) | _affine("final_layer_norm", width)
            for number in range(config[f"{side}_layers"]):
                found |= {f"{side}.layers.{number}.{name}": shape for name, shape in layer.items()}
            if self.has_embedding_norm:
                found |= _affine(f"{side}.layernorm_embedding", width)
            if self.has_final_norms:
                found |= _affine(f"{side}.layer_norm", width)
        return found

    def normalize(self, tensors: dict[str, Tensor], config: dict) -> dict[str, Tensor]:
        tensors = folders.without_prefix(tensors, "model.", _IGNORED)
        bias = tensors.pop("final_logits_bias", None)
        if bias is not None and bool(bias.any()):
            raise UserError("the weights have a final_logits_bias, and fairseq's output layer has no bias")
        tied = self.tied_embeddings(config)
        for name, original in tied.items():
            copy = tensors.pop(name, None)
            if copy is not None and not torch.equal(tensors.setdefault(original, copy), copy):
                raise UserError(f"{name} differs from the embedding with which config.json has it shared")
        if not tied and not tensors.keys() >= {*UNTIED[:2]} and "shared.weight" in tensors:
            # for the sides without an embedding of their own
            tensors = dict.fromkeys(UNTIED[:2], tensors.pop("shared.weight")) | tensors
        return tensors

    def to_fairseq(self, tensors: dict[str, Tensor], config: dict) -> dict[str, Tensor]:
        version = torch.tensor([3.0])  # of fairseq's layers: they have their norms
        renamed = {"encoder.version": version, "decoder.version": version}
        tied = self.tied_embeddings(config)
        for name in UNTIED:
            renamed[name.replace("lm_head", "decoder.output_projection")] = tensors[tied.get(name, name)]
        others = {name: tensor for name, tensor in tensors.items() if name.startswith(SIDES)}
        unread = FIRST_POSITION - self.first_position
        for name, table in others.items():
            if name.endswith(POSITIONS) and unread:
                others[name] = torch.cat((table.new_zeros(unread, table.size(1)), table))
        return renamed | others

    def last_norm(self, configuration: dict) -> str:
        if self.has_final_norms:
            return "decoder.layer_norm"
        return f"decoder.layers.{configuration['decoder_layers'] - 1}.final_layer_norm"

    def from_fairseq(self, tensors: dict[str, Tensor], config: dict) -> dict[str, Tensor]:
        own = ("version", "embed_tokens.weight", "output_projection.weight", "_float_tensor")
        tied, encoder = self.tied_embeddings(config), tensors[UNTIED[0]]
        embeddings = {"model.shared.weight": encoder}  # without others tied to it nothing reads it
        for name in UNTIED:
            if name not in tied:
                ours = name.replace("lm_head", "decoder.output_projection")
                embeddings[f"model.{name}" if name.startswith(SIDES) else name] = tensors[ours].clone()
        unread = FIRST_POSITION - self.first_position
        tensors = {name: it[unread:] if name.endswith(POSITIONS) else it for name, it in tensors.items()}
        bias = {"final_logits_bias": encoder.new_zeros(1, len(encoder))} if self.has_output_bias else {}
        return {
            **bias,
            **embeddings,
            **{
                f"model.{name}": tensor
                for name, tensor in tensors.items()
                if name.startswith(SIDES) and not name.endswith(own)
            },
        }

    def notes_of_tensors(self, tensors: dict[str, Tensor]) -> list[str]:
        shared, encoder, decoder = (f"model.{name}" for name in ("shared.weight", *UNTIED[:2]))
        if not {shared, encoder} <= tensors.keys() or torch.equal(tensors[encoder], tensors[decoder]):
            return []
        return ["encoder and decoder have embeddings of their own, which only transformers 5 and later reads"]

    def tokenizer_config(self, pieces: list[str], special: dict[str, int | None], positions: int) -> dict:
        config = super().tokenizer_config(pieces, special, positions)
        config |= {"sep_token": config["eos_token"], "cls_token": config["bos_token"]}
        mask = {"__type": "AddedToken", "content": "<mask>", "lstrip": True, "normalized": False, "special": True}
        return config | ({"mask_token": mask} if "<mask>" in pieces else {})


def _affine(name: str, *shape: int) -> dict[str, tuple[int, ...]]:
    return {f"{name}.weight": shape, f"{name}.bias": shape[:1]}


BART = BARTFamily()
