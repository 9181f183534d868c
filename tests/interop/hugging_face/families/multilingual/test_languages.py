"""The languages of the published models, against the lists of transformers' own classes."""

import importlib

import pytest

from elseq.interop.hugging_face.families.multilingual.languages import M2M_100, MBART_25, MBART_50, NLLB

pytest.importorskip("transformers")


@pytest.mark.parametrize(
    ("module", "ours"), [("mbart", MBART_25), ("mbart50", MBART_50), ("nllb", NLLB), ("m2m_100", M2M_100)]
)
def test_in_the_order_of_their_numbers(module, ours):
    theirs = importlib.import_module(f"transformers.models.{module}.tokenization_{module}").FAIRSEQ_LANGUAGE_CODES
    assert ours == theirs


@pytest.mark.parametrize(
    ("languages", "count"), [(MBART_25, 25), (MBART_50, 52), (NLLB, 202), *zip(M2M_100.values(), (100, 8), strict=True)]
)
def test_each_has_one_number(languages, count):
    assert len(languages) == len(set(languages)) == count
