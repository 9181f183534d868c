import pytest
import torch
from fairseq import search, utils
from fairseq.data import Dictionary

from elseq.compat.generation import replace_unk


@pytest.mark.parametrize(
    "hypothesis, alignment, expected",
    [
        ("x <unk> y", [(0, 0), (2, 1), (1, 2)], "x c y"),
        ("<unk> <unk>", [(1, 0)], "b <unk>"),
        ("<unk>", [(3, 0)], "<unk>"),  # the end of the sentence
        ("<unk>", [(-1, 0)], "<unk>"),
        ("<unk> <unk>", [2, 0], "c A"),
        ("<unk>", torch.tensor([1]), "b"),
        ("<unk>", [], "<unk>"),
        ("<unk>", torch.empty(0), "<unk>"),
        ("", [], ""),
        ("x", [(0, 0)], "x"),
    ],
)
def test_unknown_words_take_their_source_word(hypothesis, alignment, expected):
    assert replace_unk(hypothesis, "a b c", alignment, {"a": "A"}, "<unk>") == expected
    assert utils.replace_unk is replace_unk


def test_replace_unk_without_a_dictionary(without, tmp_path):
    (tmp_path / "dictionary").write_text("a A\n")
    assert utils.load_align_dict(str(tmp_path / "dictionary")) == {"a": "A"}
    assert utils.load_align_dict("@@ ") == {}
    without(utils, "load_align_dict")
    with pytest.raises(FileNotFoundError):
        utils.load_align_dict("@@ ")


def diverse_steps(numbers, steps=3):
    """What diverse beam search chooses for two sentences with these numbers; the second is finished after one step."""
    generator = torch.Generator().manual_seed(1)
    chooser = search.DiverseBeamSearch(Dictionary(), num_groups=2, diversity_strength=0.5)
    chosen = []
    for step in range(steps):
        rows = [0, 1] if step < 2 else [1]
        log_probabilities = torch.rand(2, 4, 9, generator=generator).log_softmax(-1)[rows]
        scores = torch.zeros(2, 4, step)[rows]
        kept = None if numbers is None else torch.tensor(numbers)[rows]
        chosen.append(chooser.step(step, log_probabilities, scores, original_batch_idxs=kept))
    return chosen


def test_diverse_groups_do_not_depend_on_the_sentence_numbers(without):
    for there, here in zip(diverse_steps([0, 1]), diverse_steps([17, 5]), strict=True):
        for tensor, other in zip(there, here, strict=True):
            torch.testing.assert_close(tensor, other)
    without(search.DiverseBeamSearch, "step")
    with pytest.raises(IndexError):
        diverse_steps([17, 5])
