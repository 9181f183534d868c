"""Decoder-only language models."""

from fairseq import utils
from fairseq.models import register_model
from fairseq.models.transformer import DEFAULT_MAX_TARGET_POSITIONS, TransformerConfig
from fairseq.models.transformer_lm import TransformerLanguageModel
from fairseq.modules import AdaptiveInput

from elseq.errors import UserError
from elseq.models.config import ElseqLanguageModelConfig, check_configuration, to_namespace
from elseq.models.transformer import Decoder


@register_model("elseq_transformer_lm", dataclass=ElseqLanguageModelConfig)
class ElseqTransformerLanguageModel(TransformerLanguageModel):
    """Transformer language model that decodes with keys and values or with EL-attention."""

    @classmethod
    def build_model(cls, args, task):
        args = to_namespace(args)
        check_configuration(args)
        if args.decoder_layers_to_keep:
            args.decoder_layers = len(args.decoder_layers_to_keep.split(","))
        if getattr(args, "max_target_positions", None) is None:
            args.max_target_positions = getattr(args, "tokens_per_sample", DEFAULT_MAX_TARGET_POSITIONS)
        embed_tokens = cls._build_input(args, task.source_dictionary)
        cfg = TransformerConfig.from_namespace(args)
        try:
            return cls(Decoder(cfg, task.target_dictionary, embed_tokens, no_encoder_attn=True))
        except ValueError as error:  # incompatible options
            raise UserError(f"the model cannot be built: {error}") from error

    @classmethod
    def _build_input(cls, args, dictionary):
        if not args.adaptive_input:
            return cls.build_embedding(args, dictionary, args.decoder_input_dim)
        if args.share_decoder_input_output_embed and not args.adaptive_softmax_cutoff:
            raise UserError("--share-decoder-input-output-embed does not go with --adaptive-input: leave out one")
        if args.tie_adaptive_weights:
            tied = ("factor", "cutoff")
            differing = [
                name
                for name in tied
                if getattr(args, f"adaptive_input_{name}") != getattr(args, f"adaptive_softmax_{name}")
            ]
            if differing or args.decoder_input_dim != args.decoder_output_dim:
                raise UserError(
                    "--tie-adaptive-weights needs the same factor, cutoff and width in adaptive input and softmax; "
                    "make --adaptive-input-* and --adaptive-softmax-* equal"
                )
        return AdaptiveInput(
            len(dictionary),
            dictionary.pad(),
            args.decoder_input_dim,
            args.adaptive_input_factor,
            args.decoder_embed_dim,
            utils.eval_str_list(args.adaptive_input_cutoff, type=int),
            args.quant_noise_pq,
            args.quant_noise_pq_block_size,
        )
