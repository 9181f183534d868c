"""What a family says of itself against transformers, and that a new one is a class and a place in the registry."""

import pytest
import torch

from elseq.cli import convert as command
from elseq.errors import UserError
from elseq.interop.hugging_face import conversion
from elseq.interop.hugging_face.families import BART, FAMILIES, GPT2
from elseq.interop.hugging_face.families.bart import BARTFamily
from elseq.interop.hugging_face.tokenizer import CLASSES
from tests.interop.hugging_face.families import (
    test_bart,
    test_blenderbot,
    test_blenderbot_small,
    test_marian,
    test_pegasus,
)
from tests.interop.hugging_face.families.multilingual import test_models
from tests.interop.hugging_face.making import BART_NAMES, BART_SIZES, back, change, convert, make_bart, save_tokenizer

transformers = pytest.importorskip("transformers")


class PLBARTFamily(BARTFamily):
    """BART's architecture by another name, which transformers has, too, and with two other defaults."""

    name = "plbart"
    title = "PLBART"
    model_class = "PLBartForConditionalGeneration"
    defaults = BARTFamily.defaults | {"vocab_size": 50005, "scale_embedding": True}


@pytest.fixture
def plbart(monkeypatch):
    family = PLBARTFamily()
    monkeypatch.setitem(FAMILIES, family.name, family)
    return family


UNTIED = {
    "bart": make_bart,
    "mbart": lambda folder, **options: test_models.make(folder, "mbart", **options),
    "m2m_100": lambda folder, **options: test_models.make(folder, "m2m_100", **options),
    "marian": test_marian.make,
    "pegasus": test_pegasus.make,
    "blenderbot": test_blenderbot.make,
    "blenderbot-small": test_blenderbot_small.make,
}


@pytest.mark.few_cases(3)
@torch.no_grad()
@pytest.mark.parametrize("kind", UNTIED)
def test_embeddings_of_their_own(tmp_path, kind):
    """They come back as they were, but for a fourth that no output depends on, which a note names."""
    UNTIED[kind](tmp_path / "theirs", tie_word_embeddings=False)
    converted = convert(tmp_path / "theirs", tmp_path / "ours")
    assert "tensors that no output of the model depends on are left out: shared.weight" in converted.notes
    back(tmp_path / "ours", tmp_path / "again")
    theirs, again = (
        transformers.AutoModelForSeq2SeqLM.from_pretrained(tmp_path / name).eval() for name in ("theirs", "again")
    )
    assert again.config.model_type == kind
    expected, found = theirs.state_dict(), again.state_dict()
    unread, shared = expected.pop("model.shared.weight"), found.pop("model.shared.weight", None)  # a Marian has none
    assert shared is None or torch.equal(shared, expected["model.encoder.embed_tokens.weight"])
    assert not torch.equal(unread, expected["model.encoder.embed_tokens.weight"])
    assert found.keys() == expected.keys()
    assert [name for name, tensor in expected.items() if not torch.equal(found[name], tensor)] == []
    words = torch.tensor([[theirs.config.decoder_start_token_id, 9, 30, 17, 2]])
    assert torch.equal(again(words, decoder_input_ids=words).logits, theirs(words, decoder_input_ids=words).logits)
    convert(tmp_path / "again", tmp_path / "twice")
    first, second = (torch.load(tmp_path / name / "model.pt")["model"] for name in ("ours", "twice"))
    assert first.keys() == second.keys() and all(torch.equal(first[name], second[name]) for name in first)


@pytest.mark.parametrize("name", FAMILIES)
def test_as_transformers(name):
    family = FAMILIES[name]
    kind = getattr(transformers, family.model_class).config_class
    config = kind().to_dict()
    assert kind.model_type == name == family.name and family.tokenizer_class in CLASSES
    of_generation = {"bos_token_id", "pad_token_id", "eos_token_id", "decoder_start_token_id"}
    assert {option: config[option] for option in family.defaults.keys() - of_generation} == {
        option: family.defaults[option] for option in family.defaults.keys() - of_generation
    }
    assert family.aliases == kind.attribute_map
    assert {*family.layers, family.positions} <= family.defaults.keys()


def test_a_new_family(plbart, tmp_path, capsys, monkeypatch):
    config = transformers.PLBartConfig(
        vocab_size=len(BART_NAMES), **BART_SIZES, decoder_start_token_id=2, forced_eos_token_id=2, init_std=0.3
    )
    assert config.scale_embedding
    torch.manual_seed(1)
    theirs = transformers.PLBartForConditionalGeneration(config).eval()
    theirs.save_pretrained(tmp_path / "theirs")
    save_tokenizer(tmp_path / "theirs", BART_NAMES)
    change(tmp_path / "theirs" / "config.json", scale_embedding=None)  # the family's default
    converted = convert(tmp_path / "theirs", tmp_path / "ours")
    assert converted.checkpoint["cfg"]["model"].no_scale_embedding is False
    test_bart.assert_same_logits(theirs, tmp_path / "ours")
    monkeypatch.setattr("sys.argv", ["elseq-convert", "to-hf", "--help"])
    with pytest.raises(SystemExit):
        command.main()
    assert plbart.model_class in capsys.readouterr().out


def refusing(reason):
    class Refusing(BARTFamily):
        def hugging_face_options(self, configuration, is_joined):
            raise UserError(reason)

    return Refusing()


def test_back_to_the_first_that_it_can_be(plbart, tmp_path, monkeypatch):
    theirs = make_bart(tmp_path / "theirs")
    convert(tmp_path / "theirs", tmp_path / "ours")

    def back(*families):
        monkeypatch.setattr(conversion, "FAMILIES", {str(number): family for number, family in enumerate(families)})
        arguments = ["to-hf", str(tmp_path / "ours"), "--overwrite", "--output", str(tmp_path / "again")]
        monkeypatch.setattr("sys.argv", ["elseq-convert", *arguments])
        command.main()
        return transformers.AutoModelForSeq2SeqLM.from_pretrained(tmp_path / "again")

    again = back(GPT2, refusing("never"), plbart, BART)
    assert type(again) is transformers.PLBartForConditionalGeneration
    for name, tensor in theirs.state_dict().items():
        assert torch.equal(again.state_dict()[name], tensor), name
    with pytest.raises(UserError, match="the first reason"):
        back(GPT2, refusing("the first reason"), refusing("the second"))


def test_an_order_for_each_side(tmp_path, monkeypatch):
    class TwoOrders(BARTFamily):
        def fairseq_orders(self, words, config):
            order = super().fairseq_orders(words, config)[""]
            return {"encoder.": order, "decoder.": [*order[:4], *reversed(order[4:])]}

        def fairseq_files(self, words, orders):
            return super().fairseq_files(words, {"": orders["encoder."]})

    theirs = make_bart(tmp_path / "theirs")
    monkeypatch.setitem(FAMILIES, "bart", TwoOrders())
    model = convert(tmp_path / "theirs", tmp_path / "ours").checkpoint["model"]
    embedding = theirs.get_input_embeddings().weight
    assert torch.equal(model["encoder.embed_tokens.weight"], embedding)
    backwards = torch.cat((embedding[:4], embedding[4:].flip(0)))
    assert torch.equal(model["decoder.embed_tokens.weight"], backwards)
    assert model["decoder.output_projection.weight"] is model["decoder.embed_tokens.weight"]
