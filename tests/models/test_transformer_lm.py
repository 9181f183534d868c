import pytest
import torch

from elseq.errors import UserError
from tests.models.building import (
    EOS,
    METHOD_PAIRS,
    after_prompt,
    assert_same_generation,
    assert_same_loss_and_gradients,
    assert_same_steps,
    assert_same_weights_and_results,
    dropouts,
    forward,
    lines_of,
    ours,
    padded,
    pair,
    pair_name,
    target,
    trained,
    words,
)

SOFTMAX = {"adaptive_softmax_cutoff": "10,20"}
INPUT = {"adaptive_input": True, "adaptive_input_cutoff": "10,20"}
VARIANTS = {
    "plain": {},
    "no final norm": {"no_decoder_final_norm": True},
    "learned positions": {"decoder_learned_pos": True},
    "no positions": {"no_token_positional_embeddings": True},
    "shared embeddings": {"share_decoder_input_output_embed": True},
    "input and output of other widths": {"decoder_input_dim": 12, "decoder_output_dim": 20},
    "adaptive softmax": SOFTMAX,
    "adaptive input": INPUT,
    "adaptive input and softmax, tied": SOFTMAX | INPUT | {"tie_adaptive_weights": True, "tie_adaptive_proj": True},
    "norm and no scale of embeddings": {"layernorm_embedding": True, "no_scale_embedding": True},
    "scaled attention": {"scale_attn": True},
    "scaled feed-forward": {"scale_fc": True},
    "scaled heads": {"scale_heads": True},
    "scaled residuals": {"scale_resids": True},
    "all scaled": {"scale_attn": True, "scale_fc": True, "scale_heads": True, "scale_resids": True},
    "layer drop": {"decoder_layerdrop": 0.5},
    "quantization noise": {"quant_noise_pq": 0.5, "quant_noise_pq_block_size": 4},
    "checkpointed activations": {"checkpoint_activations": True},
    "some layers": {"decoder_layers_to_keep": "0,2"},
}
variants = pytest.mark.parametrize("options", VARIANTS.values(), ids=VARIANTS)


@variants
def test_weights_results_and_gradients_are_those_of_the_stock_model(options):
    stock, model = pair("transformer_lm", **options)
    tokens = target()
    assert_same_weights_and_results(stock, model, None, tokens)
    if options.keys().isdisjoint({"decoder_layerdrop", "quant_noise_pq"}):  # with these training is random
        assert_same_loss_and_gradients(stock, model, None, tokens)


@variants
@pytest.mark.parametrize("methods", METHOD_PAIRS[:2], ids=pair_name)
@torch.no_grad()
def test_decoding(methods, options):
    """Steps, with the stock model in float32; prompts of any length and what follows, with whole texts in float64."""
    stock, model = pair("transformer_lm", **options)
    tokens = words(6, 5)
    assert_same_steps(stock, model, None, tokens, methods)

    model.double()
    prompts = target((4, 1, 6))
    state = model.decoder.new_state(None, *methods)
    model.decoder.read_prompt(prompts, state)
    assert state.prompt_lengths.tolist() == [4, 1, 6]
    result = torch.cat([model.decoder.decode(piece, state)[0] for piece in tokens.split([1, 3, 1], dim=1)], dim=1)
    for row in range(6):
        exact = after_prompt(model, prompts[row // 2], tokens[row])
        torch.testing.assert_close(result[row], exact, rtol=0, atol=1e-10)


@pytest.mark.parametrize(
    "options",
    [{}, {"num_kv_heads": 2, "head_dim": 3}, {"local_attention_radius": 3}, {"decoder_kv_heads_by_layer": "1,2,4"}],
    ids=str,
)
@pytest.mark.parametrize("methods", METHOD_PAIRS[:2], ids=pair_name)
@torch.no_grad()
def test_prompts_leave_with_their_sentences(methods, options):
    model = ours("transformer_lm", **options).double()
    prompts, first, second = target((4, 1, 6)), words(6, 3), words(4, 2)
    state = model.decoder.new_state(None, *methods)
    model.decoder.read_prompt(prompts, state)
    model.decoder.decode(first, state)
    state.keep(torch.tensor([0, 2]))
    order = torch.tensor([1, 1, 5, 4])
    state.reorder(order)
    result, _ = model.decoder.decode(second, state)
    for row, parent in enumerate(order.tolist()):
        exact = after_prompt(model, prompts[parent // 2], torch.cat((first[parent], second[row])))[-2:]
        torch.testing.assert_close(result[row], exact, rtol=0, atol=1e-10)


@pytest.mark.parametrize("methods", METHOD_PAIRS[:2], ids=pair_name)
@torch.no_grad()
def test_long_prompts_and_texts_beyond_the_table_of_sinusoidal_positions(methods):
    stock, model = pair("transformer_lm", max_target_positions=8)
    prompts, tokens = padded([words(30), words(70)]), words(2, 60)
    state = model.decoder.new_state(None, *methods)
    model.decoder.read_prompt(prompts, state)
    result = torch.cat([model.decoder.decode(token, state)[0] for token in tokens.split(1, dim=1)], dim=1)
    for row in range(2):
        expected = after_prompt(stock, prompts[row], tokens[row])
        torch.testing.assert_close(result[row], expected, rtol=1e-5, atol=2e-5)


@pytest.mark.parametrize("beam", [1, 4])
@torch.no_grad()
def test_the_stock_generator_drives_our_model(tiny_language_model, beam):
    """As fairseq's task does it: a prompt is a prefix that generation is forced to begin with."""
    stock, model, task = trained(tiny_language_model)
    batch = lines_of(tiny_language_model, "test.lm", task, words=4)
    options = {"prefix_tokens": batch["src_tokens"], "bos_token": EOS}
    found = assert_same_generation(stock, model, task, batch, beam, **options)
    assert len({len(hypotheses[0]["tokens"]) for hypotheses in found}) > 2


def test_dropout_is_retained_where_stock_retains_it():
    for modules in (None, ["MultiheadAttention"], ["TransformerDecoder"], ["TransformerDecoderLayerBase"]):
        retained = []
        for model in pair("transformer_lm", dropout=0.3):
            model.make_generation_fast_(retain_dropout=True, retain_dropout_modules=modules)
            retained.append(dropouts(model))
        assert retained[0] == retained[1] != set()


@pytest.mark.parametrize(
    "options",
    [
        {"adaptive_softmax_cutoff": "10,30"},
        {"adaptive_softmax_factor": 2},
        {"decoder_input_dim": 12},
    ],
    ids=str,
)
def test_adaptive_weights_of_different_shapes_are_not_tied(options):
    with pytest.raises(UserError, match="--tie-adaptive-weights"):
        ours("transformer_lm", **SOFTMAX | INPUT | {"tie_adaptive_weights": True} | options)


@pytest.mark.parametrize(
    ("options", "sentence"),
    [
        ({"decoder_attention_heads": 3, "decoder_embed_dim": 16}, "the model cannot be built: embed_dim 16 is not a"),
        (INPUT | {"share_decoder_input_output_embed": True}, "-output-embed does not go with --adaptive-input: leave"),
        (INPUT | {"adaptive_input_cutoff": None}, "--adaptive-input-cutoff none is not possible: give asc"),
    ],
    ids=str,
)
def test_options_that_do_not_go_together(options, sentence):
    with pytest.raises(UserError, match=sentence):
        ours("transformer_lm", **options)


@torch.no_grad()
def test_layers_of_the_stock_checkpoint_that_are_not_kept():
    """A deep checkpoint in a model with --decoder-layers-to-keep, pruned as fairseq prunes it when it loads."""
    deep, _ = pair("transformer_lm")
    kept = ours("transformer_lm", decoder_layers_to_keep="0,2")
    assert len(kept.decoder.layers) == 2
    state = {
        name.replace("layers.2.", "layers.1."): tensor
        for name, tensor in deep.state_dict().items()
        if "layers.1." not in name
    }
    kept.load_state_dict(state)
    del deep.decoder.layers[1]
    tokens = words(2, 4)
    torch.testing.assert_close(forward(kept, None, tokens)[0], forward(deep, None, tokens)[0], rtol=1e-5, atol=1e-5)
