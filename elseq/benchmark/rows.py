"""Rows of results: the settings and the figures of a run. Unknown figures are None, and are not written."""

from dataclasses import dataclass


def as_json(row, nulls: tuple[str, ...] = ()) -> dict:
    """The known fields of a row by their names, those of its own class first.

    Args:
        row: a dataclass.
        nulls: fields that are also written as None.
    """
    names = dict.fromkeys((*type(row).__annotations__, *vars(row)))
    return {name: vars(row)[name] for name in names if vars(row)[name] is not None or name in nulls}


def fill(row, found):
    """The row, with the known fields of a result (also a dataclass) that it has."""
    for name, value in as_json(found).items():
        if hasattr(row, name):
            setattr(row, name, value)
    return row


@dataclass(kw_only=True)
class MeasuredRow:
    """Figures of every run of a benchmark."""

    failure: str | None = None  # a sentence; nothing is measured then
    seconds: list[float] | dict[str, list[float]] | None = None  # of each repeat; by part, where it has several
    loading_mebibytes: float | None = None
    loaded_mebibytes: float | None = None
    peak_mebibytes: float | None = None
    peak_includes_loading: bool | None = None

    @property
    def name(self) -> str:
        """Which run it is."""
        raise NotImplementedError

    @property
    def figures(self) -> str:
        """What it has found, in a few words."""
        raise NotImplementedError

    @property
    def line(self) -> str:
        """The run and its figures or, if it failed, why."""
        return f"{self.name}: {self.figures if self.failure is None else self.failure.removesuffix('.') + '.'}"

    def to_dict(self) -> dict:
        return as_json(self)


@dataclass(kw_only=True)
class DecodingRow(MeasuredRow):
    """Figures of a run that decodes."""

    output_lengths: list[int] | None = None
    state_bytes: int | None = None
    copied: bool | None = None  # each hypothesis has keys and values of the source of its own
    parameters: int | None = None
    kernels: list[dict] | None = None  # tried on a GPU
    captures: int | None = None  # CUDA graphs of decoding steps, of one search
    not_captured: str | None = None  # why not all of them


@dataclass
class Row(DecodingRow):
    """A run of elseq-benchmark, or a job of a sweep that decodes."""

    mode: str
    batch_size: int | None = None
    beam: int | None = None
    dtype: str | None = None  # of the numbers: float32, int8 ...
    samples_per_second: float | None = None
    tokens_per_second: float | None = None
    output_length: float | None = None  # mean of the best hypotheses, in tokens
    sentences: int | None = None
    in_turns: int | None = None  # processes that took turns, this one included
    scores: dict[str, float] | None = None  # by the headings of their columns
    method: str | None = None
    ngrams_repeat: bool | None = None
    version: str | None = None
    gigaflops_per_second: float | None = None
    gigabytes_per_second: float | None = None
    ratio_to_stock: float | None = None
    identical: int | None = None  # of the best hypotheses, to stock's
    identical_share: float | None = None
    settings: dict[str, str] | None = None  # in which the jobs of a sweep differ, by name

    @property
    def place(self) -> list[str]:
        """All that names it beside its mode."""
        sizes = {"batch": self.batch_size, "beam": self.beam}
        dtype = [self.dtype] if self.dtype not in (None, "float32") else []
        settings = [f"{name}={value}" for name, value in (self.settings or {}).items()]
        return [f"{name} {size}" for name, size in sizes.items() if size is not None] + dtype + settings

    @property
    def name(self) -> str:
        return ", ".join([self.mode, *self.place])

    @property
    def figures(self) -> str:
        return f"{self.samples_per_second:.3g} samples/s"

    def to_dict(self) -> dict:
        memory = ("peak_mebibytes", "loaded_mebibytes") if self.tokens_per_second is not None else ()
        return as_json(self, ("beam", *memory))
