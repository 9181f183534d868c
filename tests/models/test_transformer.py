import pytest
import torch

from elseq.models import layers
from elseq.models.transformer import STATE
from tests.models.building import (
    EOS,
    KINDS,
    METHOD_PAIRS,
    PAD,
    TASK,
    after_prompt,
    assert_same_generation,
    assert_same_loss_and_gradients,
    assert_same_steps,
    assert_same_weights_and_results,
    configuration,
    decode_in_pieces,
    dropouts,
    encode,
    forward,
    lines_of,
    loss,
    ours,
    pair,
    pair_name,
    repeat,
    source,
    stock_steps,
    target,
    trained,
    words,
)

PRE_NORM = {"encoder_normalize_before": True, "decoder_normalize_before": True}
NARROW_DECODER = {"decoder_embed_dim": 8, "decoder_ffn_embed_dim": 20, "decoder_attention_heads": 2}
VARIANTS = {
    "post norm": {},
    "pre norm": PRE_NORM,
    "pre norm without the last": PRE_NORM | {"no_decoder_final_norm": True},
    "learned positions": {"encoder_learned_pos": True, "decoder_learned_pos": True},
    "no positions": {"no_token_positional_embeddings": True},
    "all embeddings shared": {"share_all_embeddings": True},
    "target embeddings shared": {"share_decoder_input_output_embed": True},
    "narrow decoder": NARROW_DECODER,
    "narrow decoder, pre norm": PRE_NORM | NARROW_DECODER,
    "adaptive softmax": {"adaptive_softmax_cutoff": "10,20"},
    "norm and no scale of embeddings": {"layernorm_embedding": True, "no_scale_embedding": True},
    "no cross-attention": {"no_cross_attention": True},
    "gelu": {"activation_fn": "gelu"},
    "layer drop": {"encoder_layerdrop": 0.5, "decoder_layerdrop": 0.5},
    "quantization noise": {"quant_noise_pq": 0.5, "quant_noise_pq_block_size": 4},
    "checkpointed activations": {"checkpoint_activations": True},
    "offloaded activations": {"offload_activations": True},
    "some layers": {"encoder_layers_to_keep": "1", "decoder_layers_to_keep": "0,2"},
    "output of another width": {"decoder_output_dim": 12},
}
variants = pytest.mark.parametrize("options", VARIANTS.values(), ids=VARIANTS)
OWN = {
    "multi-query": {"num_kv_heads": 1},
    "grouped-query": {"num_kv_heads": 2},
    "grouped-query, each attention its own": {
        "encoder_num_kv_heads": 4,
        "decoder_num_kv_heads": 2,
        "cross_num_kv_heads": 1,
    },
    "key/value heads by layer": {
        "encoder_kv_heads_by_layer": "4,2",
        "decoder_kv_heads_by_layer": "1,4,2",
        "cross_kv_heads_by_layer": "2,1,4",
    },
    "wide heads": {"head_dim": 7},
    "local attention": {"local_attention_radius": 3},
    "swish": {"activation_fn": "swish"},
    "bias of the output layer": {"output_bias": True, "share_decoder_input_output_embed": True},
    "norm before positions": {"layernorm_embedding": True, "norm_before_positions": True, "decoder_learned_pos": True},
    "multi-query, wide heads, local attention": {"num_kv_heads": 1, "head_dim": 7, "local_attention_radius": 4},
}


@variants
def test_weights_and_results_are_those_of_the_stock_model(options):
    assert_same_weights_and_results(*pair("transformer", **options), source(), target())


@pytest.mark.parametrize("kind", ["transformer", "transformer_lm"])
def test_one_seed_makes_the_model_that_it_makes_of_stock(kind):
    """With the parameters in the same order: an optimizer's state, in a checkpoint, refers to them by their number."""
    models = []
    for model_class in KINDS[kind][:2]:
        torch.manual_seed(1)
        models.append(model_class.build_model(configuration(kind), TASK))
    for (name, parameter), (stock_name, other) in zip(*(model.named_parameters() for model in models), strict=True):
        assert name == stock_name
        assert torch.equal(parameter, other)


@pytest.mark.parametrize("kind", ["transformer", "transformer_lm"])
@pytest.mark.parametrize("shared", [True, False])
@torch.no_grad()
def test_a_bias_of_the_output_layer_is_added_to_the_logits_of_the_stock_model(kind, shared):
    options = {"share_decoder_input_output_embed": shared}
    stock, _ = pair(kind, **options)
    model = ours(kind, output_bias=True, **options)
    missing, unexpected = model.load_state_dict(stock.state_dict(), strict=False)
    assert missing == ["decoder.output_projection.bias"] and not unexpected
    batch, tokens = source(), target()
    added = (forward(model, batch, tokens)[0] - forward(stock, batch, tokens)[0])[tokens != PAD]
    torch.testing.assert_close(added, model.decoder.output_projection.bias.expand_as(added), rtol=1e-4, atol=1e-5)
    assert model.decoder.output_projection.bias.std() > 0.1


@pytest.mark.parametrize("kind", ["transformer", "transformer_lm"])
@torch.no_grad()
def test_a_norm_before_positions_is_that_of_the_words_alone(kind):
    """Stock's model with a table of normalized words computes the same, in its decoder, without a norm of its own."""
    options = {"decoder_learned_pos": True, "share_decoder_input_output_embed": False, "share_all_embeddings": False}
    model = ours(kind, layernorm_embedding=True, norm_before_positions=True, **options)
    stock, _ = pair(kind, no_scale_embedding=True, **options)
    state = model.state_dict()
    norm = model.decoder.layernorm_embedding
    state["decoder.embed_tokens.weight"] = norm(state["decoder.embed_tokens.weight"])
    decoder = {name: tensor for name, tensor in state.items() if name.startswith("decoder.") and "norm_emb" not in name}
    missing, unexpected = stock.load_state_dict(decoder, strict=False)
    assert not unexpected and not any(name.startswith("decoder.") for name in missing)
    tokens = target()
    read = [] if kind == "transformer_lm" else [model.encoder(**source())]
    found, expected = (each.decoder(tokens, *read)[0][tokens != PAD] for each in (model, stock))
    torch.testing.assert_close(found, expected, rtol=1e-5, atol=1e-5)


TRAINED = [name for name in VARIANTS if name not in ("layer drop", "quantization noise")]  # these are random


@pytest.mark.parametrize("options", [VARIANTS[name] for name in TRAINED], ids=TRAINED)
def test_loss_and_gradients_are_those_of_the_stock_model(options):
    assert_same_loss_and_gradients(*pair("transformer", **options), source(), target())


@pytest.mark.parametrize("dropout", ["dropout", "activation_dropout", "relu_dropout", "adaptive_softmax_dropout"])
@pytest.mark.parametrize(
    "kind, options",
    [("transformer", {}), ("transformer", PRE_NORM), ("transformer_lm", {"scale_fc": True})],
    ids=str,
)
def test_dropout_is_where_the_stock_model_has_it(kind, options, dropout):
    """One seed drops the same numbers."""
    models = pair(kind, **{"adaptive_softmax_cutoff": "10,20", "dropout": 0.0, dropout: 0.3} | options)
    batch, tokens = source(), target((4, 4, 4))
    answers, losses = words(3, 4), []
    for model in models:
        without = loss(model.eval(), batch, tokens, answers)
        torch.manual_seed(1)
        losses.append(loss(model.train(), batch, tokens, answers))
        assert losses[-1] != without
    torch.testing.assert_close(losses[1], losses[0], rtol=1e-5, atol=0)


@pytest.mark.parametrize("side", ["left", "right"])
@torch.no_grad()
def test_padding_on_either_side_changes_nothing(side):
    """Stock's rows of padding on the left are NaN, and spoil all others: compare with each sentence alone."""
    stock, model = pair("transformer", **PRE_NORM)
    batch, tokens = source(side=side), target(side=side)
    result = forward(model, batch, tokens)[0]
    assert result.isfinite().all()
    for row in range(3):
        sentence, answer = batch["src_tokens"][row], tokens[row]
        alone = {"src_tokens": sentence[sentence != PAD][None], "src_lengths": batch["src_lengths"][row][None]}
        expected = forward(stock, alone, answer[answer != PAD][None])[0]
        torch.testing.assert_close(result[row][answer != PAD], expected[0], rtol=1e-5, atol=1e-5)


@torch.no_grad()
def test_without_a_causal_mask():
    stock, model = pair("transformer")
    batch, tokens = source(), target()
    expected, result = (forward(it, batch, tokens, full_context_alignment=True)[0] for it in (stock, model))
    torch.testing.assert_close(result[tokens != PAD], expected[tokens != PAD], rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("layer, heads", [(0, None), (1, 1), (2, 3), (None, 2)])
@torch.no_grad()
def test_alignment(layer, heads):
    stock, model = pair("transformer")
    model.decoder.need_attn = True
    batch, tokens = source(), target()
    asked = {"alignment_layer": layer, "alignment_heads": heads}
    expected, result = (forward(it, batch, tokens, **asked)[1] for it in (stock, model))
    kept = tokens != PAD
    torch.testing.assert_close(result["attn"][0][kept], expected["attn"][0][kept], rtol=1e-5, atol=1e-6)
    assert len(result["inner_states"]) == len(expected["inner_states"])
    for state, wanted in zip(result["inner_states"], expected["inner_states"], strict=True):
        torch.testing.assert_close(state[kept.T], wanted[kept.T], rtol=1e-5, atol=1e-5)


@torch.no_grad()
def test_no_attention_weights_unless_asked():
    model = ours("transformer")
    assert forward(model, source(), target())[1]["attn"] == [None]


@pytest.mark.parametrize("options", (VARIANTS | OWN).values(), ids=VARIANTS | OWN)
@pytest.mark.parametrize("methods", METHOD_PAIRS, ids=pair_name)
@torch.no_grad()
def test_decoding_equals_the_whole_target_at_once(methods, options):
    model = ours("transformer", **options).double()
    batch, tokens = source(), words(3 * 4, 9)
    tokens[:, 0] = EOS
    expected = forward(model, repeat(batch, 4), tokens)[0]
    for pieces in ([1] * 9, [9], [3, 1, 5]):
        result = decode_in_pieces(model, batch, tokens, methods, pieces)
        torch.testing.assert_close(result, expected, rtol=0, atol=1e-10)


def test_as_many_key_value_heads_as_heads_are_multi_head_attention():
    stock = pair("transformer")[0]
    model = ours("transformer", num_kv_heads=4)
    model.load_state_dict(stock.state_dict())
    assert_same_weights_and_results(stock, model, source(), target())


@torch.no_grad()
def test_each_attention_has_its_own_number_of_key_value_heads():
    model = ours("transformer", **OWN["grouped-query, each attention its own"])
    [encoder, decoder] = model.encoder.layers[0], model.decoder.layers[0]
    heads = [layer.num_kv_heads for layer in (encoder.self_attn, decoder.self_attn, decoder.encoder_attn)]
    assert heads == [4, 2, 1]
    model = ours("transformer", num_kv_heads=1, cross_num_kv_heads=2)
    heads = [layer.num_kv_heads for layer in (model.encoder.layers[0].self_attn, model.decoder.layers[0].encoder_attn)]
    assert heads == [1, 2]


def test_each_layer_has_its_own_number_of_key_value_heads():
    model = ours("transformer", num_kv_heads=2, decoder_kv_heads_by_layer="1,4,2", cross_kv_heads_by_layer="4,1,1")
    assert [layer.self_attn.num_kv_heads for layer in model.encoder.layers] == [2, 2]
    assert [layer.self_attn.num_kv_heads for layer in model.decoder.layers] == [1, 4, 2]
    assert [layer.encoder_attn.num_kv_heads for layer in model.decoder.layers] == [4, 1, 1]


@torch.no_grad()
def test_the_state_of_multi_query_attention_is_as_many_times_smaller_as_there_are_heads():
    sizes = []
    for options in ({}, {"num_kv_heads": 1}):
        model, batch = ours("transformer", **options), source()
        state = model.decoder.new_state(encode(model, batch), *METHOD_PAIRS[0])
        model.decoder.decode(words(6, 1), state)
        sizes.append(state.size_bytes())
    assert sizes[0] == 4 * sizes[1]


@variants
@torch.no_grad()
def test_steps_are_those_of_the_stock_model(options):
    stock, model = pair("transformer", **options)
    batch, tokens = source(), words(3 * 2, 6)
    for methods in METHOD_PAIRS[:2]:
        assert_same_steps(stock, model, batch, tokens, methods)


@pytest.mark.parametrize("method", ["auto", "kv", "el"])
@torch.no_grad()
def test_fairseq_s_protocol(method):
    """Steps, then other hypotheses in another order and number, then steps."""
    stock, model = pair("transformer")
    model.decoder.decode_attention = method
    model.decoder.make_generation_fast_(need_attn=True)
    tokens, order, batch = words(3, 6), torch.tensor([2, 0, 0, 2]), source()
    results = []
    for it in (stock, model):
        encoder_out, state = encode(it, batch), {}
        first = it.decoder(tokens[:, :1], encoder_out=encoder_out, incremental_state=state)
        it.decoder(tokens[:, :2], encoder_out=encoder_out, incremental_state=state)
        it.decoder.reorder_incremental_state_scripting(state, order)
        encoder_out = it.encoder.reorder_encoder_out(encoder_out, order)
        last = it.decoder(tokens[order, :3], encoder_out=encoder_out, incremental_state=state)
        results.append((first[0], first[1]["attn"][0], last[0], last[1]["attn"][0]))
    for result, expected in zip(results[1], results[0], strict=True):
        torch.testing.assert_close(result, expected, rtol=1e-5, atol=1e-5)
    assert state[STATE].layers[0].self_attention.method.name == ("el" if method == "el" else "kv")


@pytest.mark.parametrize("methods", METHOD_PAIRS, ids=pair_name)
@torch.no_grad()
def test_attention_of_hypotheses(methods):
    """For every hypothesis of a beam the weights of the last layer, mean over the heads."""
    stock, model = pair("transformer")
    batch, tokens = source(), words(3 * 5, 3)
    _, expected = stock_steps(stock, repeat(batch, 5), tokens)
    state = model.decoder.new_state(encode(model, batch), *methods)
    for step in range(3):
        _, weights = model.decoder.decode(tokens[:, step : step + 1], state, need_weights=True)
        torch.testing.assert_close(weights, expected[step], rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("options", [{}, PRE_NORM, {"decoder_learned_pos": True}, *OWN.values()], ids=str)
@pytest.mark.parametrize("methods", METHOD_PAIRS, ids=pair_name)
@torch.no_grad()
def test_prompts_of_any_length_are_read_in_one_pass_and_shared(methods, options):
    """With an encoder too; fairseq's tasks use prompts only without one."""
    model = ours("transformer", **options).double()
    batch, prompts, tokens = source(), target((4, 1, 6)), words(3 * 2, 5)
    state = model.decoder.new_state(encode(model, batch), *methods)
    model.decoder.read_prompt(prompts, state)
    result = torch.cat([model.decoder.decode(piece, state)[0] for piece in tokens.split([1, 1, 3], dim=1)], dim=1)
    for row in range(6):
        sentence = {name: tensor[row // 2 : row // 2 + 1] for name, tensor in batch.items()}
        expected = after_prompt(model, prompts[row // 2], tokens[row], sentence)
        torch.testing.assert_close(result[row], expected, rtol=0, atol=1e-10)


@pytest.mark.parametrize("methods", METHOD_PAIRS[:2], ids=pair_name)
@torch.no_grad()
def test_sentences_and_hypotheses_leave(methods):
    model = ours("transformer").double()
    batch, first, second = source(), words(6, 3), words(4, 2)
    state = model.decoder.new_state(encode(model, batch), *methods)
    model.decoder.decode(first, state)
    before = state.size_bytes()
    state.keep(torch.tensor([0, 2]))
    order = torch.tensor([1, 1, 5, 4])
    state.reorder(order)
    assert state.size_bytes() * 3 == before * 2
    result, _ = model.decoder.decode(second, state)
    kept = {name: tensor[[0, 2]] for name, tensor in batch.items()}
    expected = forward(model, repeat(kept, 2), torch.cat((first[order], second), dim=1))[0]
    torch.testing.assert_close(result, expected[:, 3:], rtol=0, atol=1e-10)


@pytest.mark.parametrize("methods", METHOD_PAIRS[:2], ids=pair_name)
@pytest.mark.parametrize("pieces", [[1] * 150, [100, 50]], ids=["steps", "pieces"])
@torch.no_grad()
def test_texts_beyond_the_table_of_sinusoidal_positions(methods, pieces):
    options = {"max_target_positions": 8}
    tokens, batch = words(2, 150), source((3, 4))
    stock, model = pair("transformer", **options)
    result = decode_in_pieces(model, batch, tokens, methods, pieces)
    expected = forward(stock, batch, tokens)[0]
    torch.testing.assert_close(result, expected, rtol=1e-5, atol=2e-5)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
@pytest.mark.parametrize("options", [{}, PRE_NORM | {"decoder_learned_pos": True}], ids=str)
@torch.no_grad()
def test_half_precision(dtype, options):
    """el is within twice the error of kv against float64, and both are of the model's type."""
    model = ours("transformer", max_target_positions=4, **options).to(dtype)
    exact_model = ours("transformer", max_target_positions=4, **options).to(dtype).double()
    batch, tokens = source((7, 3, 5) * 6), words(18 * 2, 4)
    exact = forward(exact_model, repeat(batch, 2), tokens)[0]
    errors = []
    for methods in METHOD_PAIRS[:2]:
        output = decode_in_pieces(model, batch, tokens, methods, [1] * 4)
        assert output.dtype == dtype
        errors.append((output.double() - exact).abs().median().item())
    assert errors[1] <= 2 * errors[0] < 0.5


@pytest.mark.parametrize("beam", [1, 4])
@torch.no_grad()
def test_the_stock_generator_drives_our_model(tiny_translation, beam):
    """Its sentences end at different steps, so that the batch shrinks."""
    stock, model, task = trained(tiny_translation)
    batch = lines_of(tiny_translation, "test.src", task)
    found = assert_same_generation(stock, model, task, batch, beam)
    assert len({len(hypotheses[0]["tokens"]) for hypotheses in found}) > 2


@pytest.mark.parametrize("kind", ["transformer", "bart"])
@pytest.mark.parametrize(
    "modules, retained",
    [
        (None, True),
        ([], False),
        (["MultiheadAttention"], True),
        (["TransformerEncoder"], True),
        (["TransformerDecoder"], True),
        (["TransformerEncoderLayerBase"], True),
        (["TransformerDecoderLayerBase", "TransformerEncoder"], True),
        (["EncoderLayer", "DecoderLayer", "Encoder", "Decoder", "TransformerDecoderLayer"], False),
    ],
    ids=str,
)
def test_dropout_is_retained_where_stock_retains_it(kind, modules, retained):
    stock, model = pair(kind, dropout=0.3, attention_dropout=0.3, activation_dropout=0.3)
    for it in (stock, model):
        it.make_generation_fast_(retain_dropout=True, retain_dropout_modules=modules)
    assert dropouts(model) == dropouts(stock)
    assert bool(dropouts(model)) == retained


@pytest.mark.parametrize("methods", METHOD_PAIRS[:2], ids=pair_name)
@pytest.mark.parametrize("retained", [True, False])
@torch.no_grad()
def test_retained_dropout_is_at_work_while_decoding(methods, retained):
    model = ours("transformer", attention_dropout=0.5)
    model.make_generation_fast_(retain_dropout=retained, retain_dropout_modules=["MultiheadAttention"])
    batch, tokens = source(), words(3, 4)
    first, second = (decode_in_pieces(model, batch, tokens, methods, [1] * 4) for _ in range(2))
    assert torch.equal(first, second) != retained


@pytest.mark.parametrize("rows", [1, 5, 8, 64])
def test_feed_forward_in_blocks_of_rows(monkeypatch, rows):
    """On a CPU, and without gradients, which need the inner activations of all rows."""
    stock, model = pair("transformer")
    layer, expected = model.encoder.layers[0], stock.encoder.layers[0]
    monkeypatch.setattr(layers, "MOST_INNER_NUMBERS", rows * layer.fc1.out_features)
    x = torch.randn(7, 3, 16)
    with torch.no_grad():
        found = layer.feed_forward(x)
        assert found.shape == x.shape
        torch.testing.assert_close(found, expected.fc2(expected.activation_fn(expected.fc1(x))))
    assert layer.feed_forward(x).requires_grad
