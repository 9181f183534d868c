"""A stock model and the elseq model with its weights, and batches for them."""

import copy
from argparse import Namespace
from functools import lru_cache
from types import SimpleNamespace

import torch
import torch.nn.functional as F
from fairseq import checkpoint_utils, options
from fairseq.criterions.label_smoothed_cross_entropy import label_smoothed_nll_loss
from fairseq.data import Dictionary
from fairseq.dataclass.utils import convert_namespace_to_omegaconf
from fairseq.models.bart import BARTModel
from fairseq.models.bart.model import bart_base_architecture
from fairseq.models.transformer import TransformerModel
from fairseq.models.transformer import base_architecture as transformer_architecture
from fairseq.models.transformer_lm import TransformerLanguageModel, base_lm_architecture
from fairseq.sequence_generator import SequenceGenerator

from elseq.attention.methods import EL, KV
from elseq.models import ElseqBARTModel, ElseqTransformerLanguageModel, ElseqTransformerModel
from elseq.models.architectures import ARCHITECTURES
from elseq.models.stock import EQUIVALENT, stock_configuration
from tests.tiny_models import assert_same_hypotheses

KINDS = {
    "transformer": (TransformerModel, ElseqTransformerModel, transformer_architecture),
    "bart": (BARTModel, ElseqBARTModel, bart_base_architecture),
    "transformer_lm": (TransformerLanguageModel, ElseqTransformerLanguageModel, base_lm_architecture),
}
SIZES = {
    "encoder_embed_dim": 16,
    "encoder_ffn_embed_dim": 24,
    "encoder_layers": 2,
    "encoder_attention_heads": 4,
    "decoder_embed_dim": 16,
    "decoder_ffn_embed_dim": 24,
    "decoder_layers": 3,
    "decoder_attention_heads": 4,
    "max_source_positions": 64,
    "max_target_positions": 64,
    "dropout": 0.0,
}
METHOD_PAIRS = [(KV, KV), (EL, EL), (KV, EL), (EL, KV)]  # of self-attention and cross-attention
PAD, EOS = 1, 2


def pair_name(pair):
    return "-".join(method.name for method in pair)


def make_task(words=40):
    dictionary = Dictionary()
    for number in range(words):
        dictionary.add_symbol(f"w{number}")
    return SimpleNamespace(source_dictionary=dictionary, target_dictionary=dictionary)


TASK = make_task()


def configuration(kind, **options):
    """A complete one, of a tiny model."""
    args = Namespace(**(SIZES | options))
    KINDS[kind][2](args)
    return args


@lru_cache
def parse(arch, *arguments):
    """The configuration that fairseq-train makes of a command line."""
    ours = arch in ARCHITECTURES or arch.startswith("elseq")
    task = ("elseq_" if ours else "") + ("language_modeling" if "_lm" in arch else "translation")
    parser = options.get_training_parser()
    args = options.parse_args_and_arch(parser, ["data", "--task", task, "--arch", arch, *arguments])
    return convert_namespace_to_omegaconf(args).model


def build(model_class, args, seed=1):
    """In eval mode, with random values everywhere: initial ones leave biases and norms out of it."""
    torch.manual_seed(seed)
    model = model_class.build_model(copy.deepcopy(args), TASK).eval()
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(0.3 * torch.randn_like(parameter))
    return model


def ours(kind, seed=1, **options):
    return build(KINDS[kind][1], configuration(kind, **options), seed)


def pair(kind, seed=1, **options):
    """The stock model, and ours with its weights."""
    args = configuration(kind, **options)
    stock, elseq = build(KINDS[kind][0], args, seed), build(KINDS[kind][1], args, seed + 1)
    elseq.load_state_dict(stock.state_dict())
    return stock, elseq


def words(*shape):
    return torch.randint(4, len(TASK.source_dictionary), shape)


def padded(rows, side="right"):
    """int64 [N, longest]."""
    longest = max(len(row) for row in rows)
    result = torch.full((len(rows), longest), PAD)
    for number, row in enumerate(rows):
        result[number, slice(longest - len(row), None) if side == "left" else slice(len(row))] = row
    return result


def source(lengths=(7, 3, 5), side="left"):
    """net_input without the target; fairseq pads sources on the left."""
    rows = [torch.cat((words(length - 1), torch.tensor([EOS]))) for length in lengths]
    return {"src_tokens": padded(rows, side), "src_lengths": torch.tensor(lengths)}


def target(lengths=(4, 6, 1), side="right"):
    return padded([torch.cat((torch.tensor([EOS]), words(length - 1))) for length in lengths], side)


def forward(model, net_input, tokens, **options):
    """Logits or features of the whole target, and what else the model returns."""
    if hasattr(model, "encoder"):
        encoder_out = model.encoder(net_input["src_tokens"], src_lengths=net_input["src_lengths"])
        return model.decoder(tokens, encoder_out=encoder_out, **options)
    return model.decoder(tokens, **options)


def log_probs(model, output):
    """Of a decoder's output [N, T, ...], in its type: fairseq's own knows only float32."""
    if model.decoder.adaptive_softmax is not None:
        return model.decoder.adaptive_softmax.get_log_prob(output, None)
    return output.log_softmax(dim=-1)


def loss(model, net_input, tokens, answers, **options):
    """Label-smoothed cross-entropy or adaptive loss, as training computes them."""
    output = forward(model, net_input, tokens, **options)
    if model.decoder.adaptive_softmax is not None:
        parts = zip(*model.decoder.adaptive_softmax(output[0], answers.view(-1)), strict=True)
        return sum(F.cross_entropy(logits, words, ignore_index=PAD) for logits, words in parts if words is not None)
    normalized = model.get_normalized_probs(output, log_probs=True, sample={"target": answers})
    flat = normalized.view(-1, normalized.size(-1))
    return label_smoothed_nll_loss(flat, answers.view(-1, 1), 0.1, ignore_index=PAD)[0]


def stock_steps(model, batch, tokens):
    """Log-probabilities [N, T, V] by fairseq's protocol, and the attention of each step."""
    options = {"encoder_out": encode(model, batch)} if hasattr(model, "encoder") else {}
    state, steps, attention = {}, [], []
    for length in range(1, tokens.size(1) + 1):
        output, extra = model.decoder(tokens[:, :length], incremental_state=state, **options)
        steps.append(model.get_normalized_probs((output[:, -1:], extra), log_probs=True, sample=None))
        attention.append(extra["attn"][0])
    return torch.cat(steps, dim=1), attention


def encode(model, net_input):
    return model.encoder(net_input["src_tokens"], src_lengths=net_input["src_lengths"])


def repeat(net_input, beam):
    return {name: tensor.repeat_interleave(beam, dim=0) for name, tensor in net_input.items()}


def decode_in_pieces(model, net_input, tokens, methods, pieces):
    """The decoder's output for hypotheses [N, T] of the sentences, read in pieces that sum up to T."""
    encoder_out = encode(model, net_input) if hasattr(model, "encoder") else None
    state = model.decoder.new_state(encoder_out, *methods)
    return torch.cat([model.decoder.decode(piece, state)[0] for piece in tokens.split(pieces, dim=1)], dim=1)


def trained(fixture):
    """A stock model, ours with its weights, and its task."""
    [stock], cfg, task = checkpoint_utils.load_model_ensemble_and_task(
        [str(fixture.checkpoint)], {"data": str(fixture.data)}
    )
    model = EQUIVALENT[type(stock)].build_model(stock_configuration(cfg.model), task)
    model.load_state_dict(stock.state_dict())
    return stock.eval(), model.eval(), task


def lines_of(fixture, name, task, words=None):
    """net_input of the lines of a raw file, or of the first words of each."""
    lines = [line.split()[:words] for line in (fixture.raw / name).read_text().splitlines()]
    rows = [task.source_dictionary.encode_line(" ".join(line), append_eos=words is None).long() for line in lines]
    return {"src_tokens": padded(rows, "left"), "src_lengths": torch.tensor([len(row) for row in rows])}


def dropouts(model):
    """Names of the modules that drop while decoding too."""
    return {name for name, module in model.named_modules() if getattr(module, "apply_during_inference", False)}


def after_prompt(model, prompt, tokens, net_input=None):
    """The output for the tokens, in a text that begins with the prompt and is read at once."""
    whole = torch.cat((prompt[prompt != PAD], tokens))
    return forward(model, net_input, whole[None])[0][0, -len(tokens) :]


def assert_same_weights_and_results(stock, model, net_input, tokens):
    """Names and shapes of the weights are the same, and they load in either direction."""
    shapes = {name: tensor.shape for name, tensor in stock.state_dict().items()}
    assert {name: tensor.shape for name, tensor in model.state_dict().items()} == shapes
    stock.load_state_dict(model.state_dict())
    with torch.no_grad():
        expected, result = (log_probs(it, forward(it, net_input, tokens)[0]) for it in (stock, model))
    torch.testing.assert_close(result[tokens != PAD], expected[tokens != PAD], rtol=1e-5, atol=1e-5)


def assert_same_loss_and_gradients(stock, model, net_input, tokens):
    answers = torch.where(tokens == PAD, PAD, words(*tokens.shape))
    losses = [loss(it.train(), net_input, tokens, answers) for it in (stock, model)]
    for value in losses:
        value.backward()
    torch.testing.assert_close(losses[1], losses[0], rtol=1e-5, atol=0)
    expected = {name: parameter.grad for name, parameter in stock.named_parameters()}
    for name, parameter in model.named_parameters():
        scale = 1.0 if expected[name] is None else expected[name].abs().max().clamp(min=1.0).item()
        torch.testing.assert_close(parameter.grad, expected[name], rtol=1e-4, atol=2e-5 * scale, msg=name)


def assert_same_steps(stock, model, net_input, tokens, methods):
    """For hypotheses [N, T] of the sentences, a step for each word."""
    repeated = net_input and repeat(net_input, len(tokens) // len(net_input["src_tokens"]))
    expected, _ = stock_steps(stock, repeated, tokens)
    result = log_probs(model, decode_in_pieces(model, net_input, tokens, methods, [1] * tokens.size(1)))
    torch.testing.assert_close(result, expected, rtol=1e-5, atol=1e-5)


def assert_same_generation(stock, model, task, net_input, beam, **options):
    """By fairseq's own generator; returns what it finds."""
    generator = SequenceGenerator([stock], task.target_dictionary, beam_size=beam, max_len_b=20)
    expected = generator.generate([stock], {"net_input": net_input}, **options)
    for method in ("kv", "el"):
        model.decoder.decode_attention = method
        generator = SequenceGenerator([model], task.target_dictionary, beam_size=beam, max_len_b=20)
        assert_same_hypotheses(generator.generate([model], {"net_input": net_input}, **options), expected)
    return expected
