import pytest
import torch

from tests.models.building import (
    KINDS,
    METHOD_PAIRS,
    TASK,
    assert_same_generation,
    assert_same_loss_and_gradients,
    assert_same_steps,
    assert_same_weights_and_results,
    configuration,
    decode_in_pieces,
    forward,
    lines_of,
    ours,
    pair,
    pair_name,
    repeat,
    source,
    target,
    trained,
    words,
)


def test_weights_results_and_gradients_are_those_of_the_stock_model():
    stock, model = pair("bart", task="translation")  # stock asks for it when it loads
    batch, tokens = source(), target()
    assert_same_weights_and_results(stock, model, batch, tokens)
    assert_same_loss_and_gradients(stock, model, batch, tokens)


def test_initial_values_are_spread_as_those_of_the_stock_model():
    """Stock draws those of an attention twice: one seed does not make the same model."""
    args = configuration("bart", encoder_embed_dim=256, decoder_embed_dim=256)
    stock, model = (model_class.build_model(args, TASK) for model_class in KINDS["bart"][:2])
    for (name, parameter), (stock_name, other) in zip(model.named_parameters(), stock.named_parameters(), strict=True):
        assert name == stock_name
        torch.testing.assert_close(parameter.std(), other.std(), rtol=0.1, atol=1e-6)
        torch.testing.assert_close(parameter.mean(), other.mean(), rtol=0, atol=2e-3)


@pytest.mark.parametrize("methods", METHOD_PAIRS, ids=pair_name)
@torch.no_grad()
def test_decoding(methods):
    stock, model = pair("bart")
    batch, tokens = source(), words(3 * 4, 6)
    assert_same_steps(stock, model, batch, tokens, methods)
    exact = forward(model.double(), repeat(batch, 4), tokens)[0]
    result = decode_in_pieces(model, batch, tokens, methods, [2, 1, 3])
    torch.testing.assert_close(result, exact, rtol=0, atol=1e-10)


@torch.no_grad()
def test_classification_heads():
    """By name, and from a checkpoint that has them; the sentence is what the decoder makes of its last end symbol."""
    stock, model = pair("bart")
    for it in (stock, model):
        it.register_classification_head("topic", num_classes=3)
    model.load_state_dict(stock.state_dict())
    batch = source(lengths=(5, 5, 5))
    expected, result = (
        it(prev_output_tokens=batch["src_tokens"], classification_head_name="topic", **batch)[0]
        for it in (stock, model)
    )
    torch.testing.assert_close(result, expected, rtol=1e-5, atol=1e-5)
    fresh = ours("bart", load_checkpoint_heads=True)
    fresh.load_state_dict(stock.state_dict())
    assert fresh.classification_heads["topic"].out_proj.out_features == 3


@torch.no_grad()
def test_an_embedding_of_mask_that_the_dictionary_lacks_is_dropped():
    """Public checkpoints have one, and finetuning them on translation has not."""
    stock, model = pair("bart")
    state = stock.state_dict()
    for name in ("encoder.embed_tokens", "decoder.embed_tokens", "decoder.output_projection"):
        weight = state[f"{name}.weight"]
        state[f"{name}.weight"] = torch.cat((weight, torch.ones_like(weight[:1])))
    model.load_state_dict(state)
    assert torch.equal(model.encoder.embed_tokens.weight, stock.encoder.embed_tokens.weight)


@pytest.mark.few_cases(1)
@pytest.mark.parametrize("beam", [1, 4])
@torch.no_grad()
def test_the_stock_generator_drives_our_model(tiny_bart, beam):
    stock, model, task = trained(tiny_bart)
    batch = lines_of(tiny_bart, "test.src", task)
    assert_same_generation(stock, model, task, batch, beam)
