"""Writes fairseq and elseq models for CTranslate2. The package ctranslate2 must be installed."""

from argparse import Namespace
from pathlib import Path

import numpy as np
import torch
from fairseq.data import Dictionary

from elseq.errors import UserError, as_option
from elseq.interop.hugging_face.rows import unused_bias
from elseq.models.stock import as_stock, elseq_configuration

WRITTEN = ("model.bin", "config.json", "*vocabulary.json", "*vocabulary.txt")
PROGRAM = "CTranslate2"
FEATURES = ("output_bias", "activation_fn")  # that it has and fairseq does not
# Its converter for fairseq ignores these.
_PASSED_OVER = (
    "adaptive_softmax_cutoff", "adaptive_input", "no_cross_attention", "quant_noise_pq",
    "scale_fc", "scale_attn", "scale_heads", "scale_resids",
)  # fmt: skip


def to_ctranslate2(
    model, cfg, source: Dictionary, target: Dictionary, folder: Path, quantization: str | None = None
) -> None:
    """Write the model.

    Args:
        model: a Transformer, BART or language model of fairseq or elseq.
        cfg: the whole configuration of its checkpoint.
        source, target: its dictionaries; for a language model the same one.
        folder: the output folder.
        quantization: one of `elseq.interop.QUANTIZATIONS`. Default: the type of the parameters.

    Raises:
        UserError: CTranslate2 does not have the model, or is not installed.
    """
    try:
        from ctranslate2.converters import Converter, fairseq
    except ImportError as error:
        raise UserError("to write for CTranslate2 its package is needed: pip install ctranslate2") from error
    configuration = elseq_configuration(cfg.model)
    options = as_stock(configuration, FEATURES, PROGRAM)
    args = Namespace(**options, arch=options["_name"])
    lacking = [as_option(option) for option in _PASSED_OVER if getattr(args, option, None)]
    if configuration["_name"] != "elseq_transformer_lm":
        lacking += [
            f"{as_option(option)} {getattr(args, option)} beside --decoder-embed-dim {args.decoder_embed_dim}"
            for option in ("decoder_input_dim", "decoder_output_dim")
            if getattr(args, option) != args.decoder_embed_dim
        ]
    if lacking:
        raise UserError(f"CTranslate2 does not have {lacking[0]}, with which the model was trained")

    class ModelConverter(Converter):
        def _load(self):
            spec = fairseq._get_model_spec(args)
            if configuration["_name"] == "elseq_transformer_lm":
                fairseq.set_transformer_decoder(spec.decoder, model.decoder, with_encoder_attention=False)
                spec.register_vocabulary(symbols(target))
                if not configuration["add_bos_token"]:
                    spec.config.bos_token = spec.config.eos_token
            else:
                fairseq.set_transformer_encoder(spec.encoder, model.encoder)
                fairseq.set_transformer_decoder(spec.decoder, model.decoder)
                spec.register_source_vocabulary(symbols(source))
                spec.register_target_vocabulary(symbols(target))
                start = getattr(cfg.task, "decoder_start", None)
                spec.config.decoder_start_token = start or spec.config.eos_token
                # It appends </s> behind whatever a source ends with.
                ends_otherwise = getattr(cfg.task, "source_end", None) is not None
                spec.config.add_source_eos = getattr(cfg.task, "append_source_eos", None) != "no" and not ends_otherwise
            if configuration["output_bias"]:
                spec.decoder.projection.bias = without_padding(model.decoder.output_projection.bias, target)
            return spec

    model.requires_grad_(False)
    with torch.no_grad():
        try:
            ModelConverter().convert(str(folder), quantization=quantization, force=True)
        except (ValueError, NotImplementedError) as error:
            raise UserError(f"CTranslate2 does not have this model: {' '.join(str(error).split())}") from error


def without_padding(bias: torch.Tensor, dictionary: Dictionary) -> np.ndarray:
    """The bias of the output layer by which padding is never generated, as in fairseq: CTranslate2 has no such rule."""
    bias = bias.clone()
    bias[dictionary.pad()] = unused_bias()
    return bias.numpy()


def symbols(dictionary: Dictionary) -> list[str]:
    """The words of a dictionary as CTranslate2 expects them. Of the rows of a word that was overwritten it finds the
    first one, fairseq the last one, but for its special symbols: the other rows get names that are no words."""
    special = dictionary.bos(), dictionary.pad(), dictionary.eos(), dictionary.unk()
    rows = dictionary.indices | {dictionary.symbols[row]: row for row in special}
    words = [symbol if rows[symbol] == row else f"overwritten {row}" for row, symbol in enumerate(dictionary.symbols)]
    words[dictionary.pad()] = "<blank>"
    return words
