"""Where the sentences of a summary end. No data files are needed."""

from nltk.tokenize.punkt import PunktParameters, PunktSentenceTokenizer

# of English, in lower case and without the last dot; a sentence that ends in one of them is not seen to end
ABBREVIATIONS = (
    "mr", "mrs", "ms", "messrs", "dr", "prof", "st", "rev", "hon", "fr", "sr", "jr", "sen", "rep", "gov", "pres", "gen",
    "adm", "col", "lt", "maj", "capt", "cmdr", "sgt", "cpl", "det", "supt", "insp", "u.s", "u.k", "u.n", "e.u", "d.c",
    "l.a", "n.y", "jan", "feb", "aug", "sept", "oct", "nov", "dec", "no", "nos", "vs", "v", "cf", "eg", "ie", "e.g",
    "i.e", "approx", "est", "dept", "univ", "inc", "ltd", "co", "corp", "bros", "vol",
)  # fmt: skip


def _make_splitter() -> PunktSentenceTokenizer:
    parameters = PunktParameters()
    parameters.abbrev_types.update(ABBREVIATIONS)
    return PunktSentenceTokenizer(parameters)


_splitter = _make_splitter()


def split_sentences(text: str) -> list[str]:
    """The sentences of English text, by nltk's Punkt (Kiss and Strunk, 2006) with a fixed list of abbreviations."""
    return _splitter.tokenize(text)
