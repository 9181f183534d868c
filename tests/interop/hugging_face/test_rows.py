"""New rows of an embedding: what they mean for the layer norm before them."""

import pytest
import torch
import torch.nn.functional as F

from elseq.interop.hugging_face.rows import are_added_rows, fairseq_order, is_steady, take_rows, unused_row
from elseq.interop.hugging_face.vocabulary import SPECIAL_SYMBOLS, Vocabulary


@pytest.mark.parametrize("width", [32, 768])
@pytest.mark.parametrize("bias", [0.3, 0.01])
def test_never_chosen(width, bias):
    """Whatever the hidden state, the logit is -1000."""
    torch.manual_seed(1)
    weight, bias = 1 + 0.2 * torch.randn(width), bias * torch.randn(width)
    row = unused_row(weight, bias)
    hidden = 10 * torch.randn(1000, width) + 5 * torch.randn(width)
    features = F.layer_norm(hidden, (width,), weight, bias)
    torch.testing.assert_close(features @ row.float(), torch.full((1000,), -1000.0), rtol=0.01, atol=0)
    for dtype in (torch.bfloat16, torch.float16):
        logits = features.to(dtype).double() @ row.to(dtype).double()
        assert not is_steady(row, weight, bias, dtype) or logits.max() < -500


def test_half_precision():
    weight, bias = torch.ones(32), torch.full((32,), 0.3)
    assert is_steady(unused_row(weight, bias), weight, bias, torch.bfloat16)
    bias[::2] = -0.29  # the mean of its features is nearly 0
    row = unused_row(weight, bias)
    assert is_steady(row, weight, bias, torch.float32) and not is_steady(row, weight, bias, torch.bfloat16)
    assert unused_row(weight.bfloat16(), bias.bfloat16()) is None


def test_a_dead_feature_is_enough():
    weight, bias = torch.ones(16), torch.zeros(16)
    weight[3], bias[3] = 0.0, 0.5
    features = F.layer_norm(torch.randn(50, 16), (16,), weight, bias)
    assert (features @ unused_row(weight, bias).float()).max() < -900


def test_without_bias_there_is_none():
    assert unused_row(torch.ones(16), torch.zeros(16)) is None
    assert unused_row(torch.zeros(16), torch.zeros(16)) is None


def test_order_and_rows():
    words = Vocabulary({"a": 0, "b": 1, "<|endoftext|>": 2, "c": 3}, [])
    order = fairseq_order(words, {"eos_token_id": 2, "bos_token_id": 2, "pad_token_id": 2}, 4)
    assert order == [None, None, 2, None, 0, 1, 3]
    embedding = torch.arange(8.0).view(4, 2)
    taken = take_rows(embedding, order, torch.full((2,), -1.0))
    assert taken.tolist() == [[-1, -1], [-1, -1], [4, 5], [-1, -1], [0, 1], [2, 3], [6, 7]]
    added = [0, 1, 3]  # <s>, <pad>, <unk>
    assert are_added_rows(taken, added) and not are_added_rows(embedding, added)
    of_bart = Vocabulary({name: row for row, name in enumerate([*SPECIAL_SYMBOLS, "a"])}, [])
    order = fairseq_order(of_bart, {"eos_token_id": 2, "bos_token_id": 0, "pad_token_id": 1}, 5)
    assert order == [0, 1, 2, 3, 4]
    assert take_rows(embedding, [0, 1, 2, 3]) is embedding


def test_special_symbols_in_other_places():
    words = Vocabulary({"<s>": 0, "</s>": 1, "a": 2, "<pad>": 3, "<unk>": 5, "b": 4}, [])
    assert fairseq_order(words, {"eos_token_id": 1, "bos_token_id": 0, "pad_token_id": 3}, 6) == [0, 3, 1, 5, 2, 4]
