"""Transformer encoder-decoder: fairseq's model with our layers and one `DecodeState`."""

from functools import partial

import torch
import torch.nn.functional as F
from fairseq.distributed import fsdp_wrap
from fairseq.models import BaseFairseqModel, register_model
from fairseq.models.transformer import TransformerDecoderBase, TransformerEncoderBase, TransformerModel
from fairseq.modules import LearnedPositionalEmbedding
from fairseq.modules.checkpoint_activations import checkpoint_wrapper
from torch import Tensor, nn

from elseq.attention import Attention, DecodeState, DecodingMethod, LayerState, SelfAttentionMemory, SentenceMemory
from elseq.attention.methods import AUTO, Choice
from elseq.errors import UserError
from elseq.models.config import ElseqTransformerConfig, check_configuration, of_layer, to_namespace
from elseq.models.layers import DecoderLayer, EncoderLayer, name_dropout
from elseq.models.windows import UNLIMITED, SourceWindows
from elseq.precision import INT8

STATE = "elseq.decode_state"  # key of our state in fairseq's incremental_state


def wrap_layer(layer: nn.Module, cfg) -> nn.Module:
    """Activation checkpointing and sharding, as fairseq applies them."""
    if cfg.checkpoint_activations:
        layer = checkpoint_wrapper(layer, offload_to_cpu=cfg.offload_activations)
    return fsdp_wrap(layer, min_num_params=0 if cfg.checkpoint_activations else cfg.min_params_to_wrap)


class Encoder(TransformerEncoderBase):
    """fairseq's Transformer encoder with our layers."""

    _layers_built = 0

    def __init__(self, cfg, dictionary, embed_tokens):
        super().__init__(cfg, dictionary, embed_tokens)
        name_dropout(self, "TransformerEncoder")
        self.source_windows: SourceWindows | None = None  # for sources that are longer than one

    def build_encoder_layer(self, cfg):
        self._layers_built += 1
        return wrap_layer(EncoderLayer(of_layer(cfg, self._layers_built - 1), return_fc=self.return_fc), cfg)

    def forward(self, src_tokens, src_lengths=None, return_all_hiddens=False, token_embeddings=None):
        windows = self.source_windows
        if windows is None or src_tokens.size(1) <= windows.length:
            return super().forward(src_tokens, src_lengths, return_all_hiddens, token_embeddings)
        if token_embeddings is not None:
            raise ValueError("token_embeddings are for a source of one window")
        encode = partial(super().forward, return_all_hiddens=return_all_hiddens)
        return windows.encode(encode, src_tokens, self.padding_idx)

    def max_positions(self):
        return super().max_positions() if self.source_windows is None else UNLIMITED


class Decoder(TransformerDecoderBase):
    """fairseq's Transformer decoder with our layers, decoding with one explicit state.

    Our generator calls `new_state` and `decode`. fairseq's own protocol (`incremental_state`,
    `reorder_incremental_state`) is an adapter over them, for stock generators and tools.
    """

    _layers_built = 0

    def __init__(self, cfg, dictionary, embed_tokens, no_encoder_attn=False):
        super().__init__(cfg, dictionary, embed_tokens, no_encoder_attn=no_encoder_attn)
        name_dropout(self, "TransformerDecoder")
        self.decode_attention = getattr(cfg, "decode_attention", None) or AUTO
        self.decode_dtype: str | None = None
        self.is_trained = True  # or may be, until `make_generation_fast_`
        self.need_attn = False
        self.norm_before_positions = getattr(cfg, "norm_before_positions", False)
        if self.norm_before_positions:
            self.embed_scale = 1.0  # which the norm would take away

    def build_output_projection(self, cfg, dictionary, embed_tokens):
        super().build_output_projection(cfg, dictionary, embed_tokens)
        if getattr(cfg, "output_bias", False):
            self.output_projection.bias = nn.Parameter(torch.zeros(len(dictionary)))

    def build_decoder_layer(self, cfg, no_encoder_attn=False):
        self._layers_built += 1
        return wrap_layer(DecoderLayer(of_layer(cfg, self._layers_built - 1), no_encoder_attn), cfg)

    def make_generation_fast_(self, need_attn=False, **kwargs):
        self.need_attn = bool(need_attn)
        self.is_trained = False

    def new_state(
        self, encoder_out: dict | None, method: DecodingMethod, cross_method: DecodingMethod | None = None
    ) -> DecodeState:
        """Make the state for a new batch.

        Args:
            encoder_out: the encoder's output for B sentences, or None for a language model.
            method: the decoding method.
            cross_method: the decoding method of cross-attention. Default: `method`.
        """
        memories: list[SentenceMemory | None] = [None] * len(self.layers)
        attentions = self.cross_attentions
        if attentions and encoder_out is not None and encoder_out["encoder_out"]:
            mask = encoder_out["encoder_padding_mask"][0] if encoder_out["encoder_padding_mask"] else None
            if mask is not None and not bool(mask.any()):
                mask = None
            memories = (cross_method or method).memories(attentions, encoder_out["encoder_out"][0], mask, self.round_to)
        layers = [
            LayerState(SelfAttentionMemory(method, layer.self_attn), memory)
            for layer, memory in zip(self.layers, memories, strict=True)
        ]
        return DecodeState(layers, round_to=self.round_to)

    @property
    def cross_attentions(self) -> list[Attention]:
        """The attention to the source, of each layer that has it."""
        return [layer.encoder_attn for layer in self.layers if layer.encoder_attn is not None]

    @property
    def round_to(self) -> torch.dtype | None:
        """The type to which keys and values of sources and prompts are rounded; see `DecodingMethod.rounded`."""
        return torch.bfloat16 if self.decode_dtype == INT8 else None

    def read_prompt(self, tokens: Tensor, state: DecodeState) -> None:
        """Process the prompts of all sentences in one pass. The hypotheses of a sentence share its prompt.

        Args:
            tokens: int64 [B, P]: B sentences, P tokens, padded on the right.
            state: a new state.
        """
        self._decode_features(tokens, state)
        state.end_prompt(tokens.eq(self.padding_idx))

    def reach(self, length: int) -> bool:
        """Whether the model has this many positions. Computed embeddings are extended to them."""
        if self.embed_positions is None:
            return True
        if isinstance(self.embed_positions, LearnedPositionalEmbedding):
            return length <= self.embed_positions.max_positions
        self._position_table(length)
        return True

    def decode(self, tokens: Tensor, state: DecodeState, need_weights: bool = False) -> tuple[Tensor, Tensor | None]:
        """Process the tokens that follow those in the state.

        Args:
            tokens: int64 [N, T]: N hypotheses, T tokens, none of them padding.
            state: grows by T positions.
            need_weights: also return the attention to the source.

        Returns:
            Output of the last layer (logits, unless the model has an adaptive softmax) [N, T, V], V words, and the
            attention of the last layer to the source, mean over the heads, [N, T, S] or None.
        """
        features, weights = self._decode_features(tokens, state, need_weights)
        return self.output_layer(features), None if weights is None else weights.mean(dim=0)

    def _decode_features(self, tokens: Tensor, state: DecodeState, need_weights: bool = False):
        x = self._embed(tokens, self._next_positions(state, *tokens.shape))
        weights = None
        for number, (layer, layer_state) in enumerate(zip(self.layers, state.layers, strict=True), start=1):
            x, weights = layer(x, need_weights=need_weights and number == self.num_layers, state=layer_state)
        state.length += tokens.size(1)
        return self._finish(x), weights

    def _next_positions(self, state: DecodeState, hypotheses: int, tokens: int) -> Tensor | None:
        """Embeddings of the positions of the next tokens, [N, T, C] or broadcastable to it."""
        if self.embed_positions is None:
            return None
        index = state.positions(hypotheses, tokens)
        if not self.reach(state.longest_prompt + state.length + tokens):
            state.measure_prompts()
        table = self._position_table(state.longest_prompt + state.length + tokens)
        return table[index.start : index.stop] if isinstance(index, range) else F.embedding(index, table)

    def extract_features(
        self,
        prev_output_tokens,
        encoder_out=None,
        incremental_state=None,
        full_context_alignment=False,
        alignment_layer=None,
        alignment_heads=None,
    ):
        """fairseq's forward pass. Attention weights are computed only for a given layer or for generation."""
        if incremental_state is not None:
            features, weights = self._decode_features(
                *self._unread(prev_output_tokens, encoder_out, incremental_state), need_weights=self.need_attn
            )
            return features, {"attn": [_mean_over_heads(weights, alignment_heads)], "inner_states": []}

        hidden = encoder_padding_mask = None
        if encoder_out is not None and encoder_out["encoder_out"]:
            hidden = encoder_out["encoder_out"][0]
            encoder_padding_mask = next(iter(encoder_out["encoder_padding_mask"]), None)
        padding = prev_output_tokens.eq(self.padding_idx)
        need_weights = self.need_attn or alignment_layer is not None
        if alignment_layer is None:
            alignment_layer = self.num_layers - 1
        positions = None if self.embed_positions is None else self.embed_positions(prev_output_tokens)
        x = self._embed(prev_output_tokens, positions)
        inner_states = [x]
        weights = None
        for number, layer in enumerate(self.layers):
            x, layer_weights = layer(
                x,
                hidden,
                encoder_padding_mask,
                self_attn_padding_mask=padding if padding.any() else None,
                causal=not full_context_alignment,
                need_weights=need_weights and number == alignment_layer,
            )
            inner_states.append(x)
            weights = layer_weights if layer_weights is not None else weights
        return self._finish(x), {"attn": [_mean_over_heads(weights, alignment_heads)], "inner_states": inner_states}

    def _embed(self, tokens: Tensor, positions: Tensor | None) -> Tensor:
        """[N, T] to [T, N, C]."""
        x = self.embed_scale * self.embed_tokens(tokens)
        if self.quant_noise is not None:
            x = self.quant_noise(x)
        if self.project_in_dim is not None:
            x = self.project_in_dim(x)
        if self.norm_before_positions:
            x = self.layernorm_embedding(x)
        if positions is not None:
            x = x + positions
        if self.layernorm_embedding is not None and not self.norm_before_positions:
            x = self.layernorm_embedding(x)
        return self.dropout_module(x).transpose(0, 1)

    def _finish(self, x: Tensor) -> Tensor:
        """[T, N, C] to [N, T, output width]."""
        if self.layer_norm is not None:
            x = self.layer_norm(x)
        x = x.transpose(0, 1)
        return x if self.project_out_dim is None else self.project_out_dim(x)

    def _position_table(self, length: int) -> Tensor:
        """Embeddings of positions 0 to at least length - 1, [P, C].

        Raises:
            UserError: the model has fewer learned positions.
        """
        embedding = self.embed_positions
        first = self.padding_idx + 1
        if isinstance(embedding, LearnedPositionalEmbedding):
            if length > embedding.max_positions:
                raise UserError(
                    f"the model has {embedding.max_positions} positions and was given token number {length}; "
                    "shorten the input or the output"
                )
            return embedding.weight[first:]
        if embedding.weights.size(0) < first + length:
            size = first + max(length, 2 * embedding.weights.size(0))
            embedding.weights = embedding.get_embedding(size, self.embed_dim, self.padding_idx).to(embedding.weights)
        return embedding.weights[first:]

    def get_normalized_probs(self, net_output, log_probs, sample=None):
        """As in fairseq, in the wider of float32 and the type of the logits."""
        if self.adaptive_softmax is not None:
            return super().get_normalized_probs(net_output, log_probs, sample)
        logits = net_output[0]
        normalize = F.log_softmax if log_probs else F.softmax
        return normalize(logits, dim=-1, dtype=torch.promote_types(logits.dtype, torch.float32))

    # fairseq's protocol. A stock generator copies the encoder's output for every hypothesis and reorders both, so
    # that each hypothesis is a separate sentence here.

    def _unread(self, tokens: Tensor, encoder_out: dict | None, incremental_state: dict) -> tuple[Tensor, DecodeState]:
        state = incremental_state.get(STATE)
        if state is None:
            methods = Choice.without_search(self.decode_attention)  # the beam is unknown here
            state = incremental_state[STATE] = self.new_state(encoder_out, *methods)
        return tokens[:, state.length :], state

    def reorder_incremental_state(self, incremental_state, new_order):
        state = incremental_state.get(STATE)
        if state is not None:
            state.keep(new_order)
            state.reorder(new_order)


def _mean_over_heads(weights: Tensor | None, heads: int | None) -> Tensor | None:
    return None if weights is None else weights[:heads].mean(dim=0)


class EncoderDecoderModel:
    """Common code of our encoder-decoders: a base class to list before a model of fairseq."""

    @classmethod
    def add_args(cls, parser):
        # fairseq's Transformer reads its nested configuration instead of the model's own dataclass.
        BaseFairseqModel.add_args.__func__(cls, parser)

    @classmethod
    def build_model(cls, args, task):
        args = to_namespace(args)
        check_configuration(args)
        args.task = getattr(args, "task", None)  # BART reads it when it loads a checkpoint
        try:
            return super().build_model(args, task)
        except ValueError as error:  # incompatible options or dictionaries
            raise UserError(f"the model cannot be built: {error}") from error

    def forward(self, src_tokens, src_lengths, prev_output_tokens, *args, **kwargs):
        if not args:  # the decoder does not read the states of the encoder's layers, which windows would have to join
            kwargs.setdefault("return_all_hiddens", False)
        return super().forward(src_tokens, src_lengths, prev_output_tokens, *args, **kwargs)

    @classmethod
    def build_encoder(cls, cfg, src_dict, embed_tokens):
        return Encoder(cfg, src_dict, embed_tokens)

    @classmethod
    def build_decoder(cls, cfg, tgt_dict, embed_tokens):
        return Decoder(cfg, tgt_dict, embed_tokens, no_encoder_attn=cfg.no_cross_attention)


@register_model("elseq_transformer", dataclass=ElseqTransformerConfig)
class ElseqTransformerModel(EncoderDecoderModel, TransformerModel):
    """Transformer (Vaswani et al., 2017) that decodes with keys and values or with EL-attention."""
