"""The formulae for the operations and the bytes read of a decoding.

Operations: the matrix products of the layers, the output layer and attention, with two floating-point operations for a
multiplication and addition. Softmax, normalization, embedding, biases and the search itself are not counted.

Bytes read: in each step, the weights of the decoder, and what the method keeps of every position that is attended to:
keys and values (kv), or hidden states (el). Hidden states are keys and values, and count once, because one pass over
them suffices. What hypotheses have in common of the generated positions counts for each. Once a batch, the encoder's
weights are read. Activations are not counted, nor is the copying of states from step to step.

Letters: B sentences, beam hypotheses each; S source positions, padding included; P prompt positions; T steps in which a
sentence is decoded, the end symbol's included; L layers; C width of a layer, D of the encoder's output, K of the keys.
"""

from dataclasses import asdict, dataclass, replace
from typing import NamedTuple

from torch import nn

from elseq.attention import DecodingMethod
from elseq.attention.methods import KV, AttentionSizes
from elseq.precision import DTYPES, INT8


@dataclass(frozen=True)
class Sizes:
    """Sizes of a Transformer: numbers in the weights of its linear layers, and widths."""

    encoder: int  # all layers of the encoder
    decoder: int  # all layers of the decoder
    cross_key_value: int  # in the decoder's: projections of the encoder's output to keys and values
    output: int  # the output layer, and other linear modules outside of layers
    encoder_layers: int
    encoder_width: int
    decoder_layers: int
    decoder_width: int
    memory_width: int  # D, 0 for a language model
    key_widths: tuple[int, ...]  # K of each layer: of the keys of all its key/value heads
    cross_key_widths: tuple[int, ...]  # the same of cross-attention
    heads: int
    head_dim: int

    @classmethod
    def of(cls, model) -> "Sizes | None":
        """Sizes of a fairseq or elseq Transformer, None of any other model."""
        decoder = getattr(model, "decoder", None)
        layers = getattr(decoder, "layers", None)
        if not layers or not hasattr(layers[0], "self_attn"):
            return None
        cross = [layer.encoder_attn for layer in layers if getattr(layer, "encoder_attn", None) is not None]
        encoder_layers = getattr(getattr(model, "encoder", None), "layers", [])
        attention = layers[0].self_attn
        inside = sum(map(_linear, layers))
        return cls(
            encoder=sum(map(_linear, encoder_layers)),
            decoder=inside,
            cross_key_value=sum(_linear(layer.k_proj) + _linear(layer.v_proj) for layer in cross),
            output=_linear(decoder) - inside,
            encoder_layers=len(encoder_layers),
            encoder_width=encoder_layers[0].self_attn.embed_dim if len(encoder_layers) else 0,
            decoder_layers=len(layers),
            decoder_width=attention.embed_dim,
            memory_width=cross[0].k_proj.in_features if cross else 0,
            key_widths=tuple(layer.self_attn.k_proj.out_features for layer in layers),
            cross_key_widths=tuple(layer.k_proj.out_features for layer in cross),
            heads=attention.num_heads,
            head_dim=attention.head_dim,
        )

    def of_self_attention(self) -> list[AttentionSizes]:
        """The self-attention of each decoder layer."""
        return [self._of_attention(width, self.decoder_width) for width in self.key_widths]

    def of_cross_attention(self) -> list[AttentionSizes]:
        """The cross-attention of each decoder layer that has one."""
        return [self._of_attention(width, self.memory_width) for width in self.cross_key_widths]

    def _of_attention(self, key_width: int, memory_width: int) -> AttentionSizes:
        return AttentionSizes(self.heads, self.head_dim, key_width // self.head_dim, memory_width)

    def to_dict(self) -> dict:
        return asdict(self)


@dataclass(frozen=True)
class Batch:
    """The sizes of a batch that was decoded."""

    beam: int
    steps: tuple[int, ...]  # T of each of the B sentences
    source_length: int = 0  # S
    prompt_length: int = 0  # P, the word that the first step reads not included


@dataclass(frozen=True)
class Decoding:
    """How it was decoded."""

    self_attention: DecodingMethod = KV
    cross_attention: DecodingMethod = KV
    copied: bool = False  # the tensors of a sentence are computed and kept for each hypothesis


def operations(sizes: Sizes, batch: Batch, decoding: Decoding) -> int:
    """Floating-point operations of a batch."""
    sentences = len(batch.steps)
    copies = batch.beam if decoding.copied else 1
    source, prompt = batch.source_length, batch.prompt_length
    total = sentences * source * 2 * sizes.encoder
    total += sentences * sizes.encoder_layers * 4 * sizes.encoder_width * source**2
    if decoding.cross_attention.projects_memory:
        total += sentences * copies * source * 2 * sizes.cross_key_value
    # A copied prompt is read word by word, as if it were generated.
    prompt_weights = sizes.decoder + (sizes.output if decoding.copied else 0)
    total += sentences * copies * prompt * 2 * prompt_weights
    total += sentences * copies * sizes.decoder_layers * 4 * sizes.decoder_width * _sum_to(prompt)
    self_pair = sum(map(decoding.self_attention.operations, sizes.of_self_attention()))
    cross_pair = sum(map(decoding.cross_attention.operations, sizes.of_cross_attention()))
    for steps in batch.steps:
        total += batch.beam * steps * 2 * _step_weights(sizes, decoding)
        pairs = steps * prompt + _sum_to(steps)
        total += batch.beam * pairs * self_pair
        total += batch.beam * steps * source * cross_pair
    return total


def bytes_read(
    sizes: Sizes, batch: Batch, decoding: Decoding, number_bytes: int, weight_bytes: int | None = None
) -> int:
    """Bytes of weights and state that a batch reads, with numbers of `number_bytes` bytes, or weights of their own."""
    copies = batch.beam if decoding.copied else 1
    own = sum(map(decoding.self_attention.numbers_kept, sizes.of_self_attention()))
    memory = sum(map(decoding.cross_attention.numbers_kept, sizes.of_cross_attention()))
    passes = max(batch.steps)
    if batch.prompt_length:
        passes += batch.prompt_length if decoding.copied else 1
    weights = sizes.encoder + passes * _step_weights(sizes, decoding)
    if decoding.cross_attention.projects_memory:
        weights += sizes.cross_key_value
    numbers = 0
    for steps in batch.steps:
        numbers += batch.beam * _sum_to(steps) * own
        numbers += copies * steps * batch.prompt_length * own
        if decoding.copied and batch.prompt_length:
            numbers += copies * _sum_to(batch.prompt_length) * own
        numbers += copies * steps * batch.source_length * memory
    return numbers * number_bytes + weights * (weight_bytes or number_bytes)


class StepCost(NamedTuple):
    """Of one decoding step of a whole batch."""

    bytes: int
    operations: int


def step_cost(
    sizes: Sizes,
    batch: Batch,
    decoding: Decoding,
    vocabulary_size: int,
    number_bytes: int,
    weight_bytes: int | None = None,
) -> StepCost:
    """Bytes and floating-point operations of the last step of a batch, in which all sentences are still decoded.

    To the bytes of `bytes_read` are added the logits, of which each is written once and read once.

    Args:
        sizes, batch, decoding, number_bytes, weight_bytes: as for `bytes_read`.
        vocabulary_size: of the target's dictionary.
    """
    before = replace(batch, steps=tuple(steps - 1 for steps in batch.steps))
    numbers = number_bytes, weight_bytes
    read, read_before = (bytes_read(sizes, each, decoding, *numbers) for each in (batch, before))
    done, done_before = (operations(sizes, each, decoding) for each in (batch, before))
    logits = 2 * len(batch.steps) * batch.beam * vocabulary_size * number_bytes
    return StepCost(read - read_before + logits, done - done_before)


def item_sizes(dtype: str) -> tuple[int, int]:
    """Bytes of a number and of a number in a weight, for `bytes_read`, in a value of --dtype."""
    number_bytes = DTYPES[dtype].itemsize
    return number_bytes, 1 if dtype == INT8 else number_bytes


def _linear(module: nn.Module) -> int:
    return sum(child.in_features * child.out_features for child in module.modules() if isinstance(child, nn.Linear))


def _sum_to(count: int) -> int:
    """Positions seen in all, when step t sees t of them."""
    return count * (count + 1) // 2


def _step_weights(sizes: Sizes, decoding: Decoding) -> int:
    """A method that projects no memory multiplies query and result by the same weights: as much work."""
    projected_before = sizes.cross_key_value if decoding.cross_attention.projects_memory else 0
    return sizes.decoder - projected_before + sizes.output
