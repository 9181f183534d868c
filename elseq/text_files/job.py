"""The options of a run of elseq-generate."""

from dataclasses import dataclass, field
from pathlib import Path

from elseq.files import STANDARD_INPUT
from elseq.loading import checkpoint_paths
from elseq.options import Batching, Loading
from elseq.text_files.formats import Format, InputFormat


@dataclass(frozen=True)
class Job:
    """The options of the command line."""

    model: str
    output: Path | None  # None: the standard output
    input: str = STANDARD_INPUT
    loading: Loading = Loading()
    batching: Batching = Batching(seed=1)
    overwrite: bool = False
    search: dict = field(default_factory=dict)  # of `Search`
    form: Format = Format()
    threads: int | None = None  # None: as many as torch has
    prefix_file: str | None = None
    input_form: InputFormat = InputFormat()
    languages_file: str | None = None

    def inputs(self) -> list[Path]:
        """The files and folders that are read."""
        checkpoints = checkpoint_paths(self.model)
        files = (self.input, self.prefix_file, self.languages_file)
        named = [Path(path) for path in files if path not in (STANDARD_INPUT, None)]
        return [*checkpoints, *(path.parent for path in checkpoints), *self.loading.inputs(), *named]

    def model_folders(self) -> list[Path]:
        """The folders in which files of the model may be: those of the data and of its checkpoints."""
        data = [Path(self.loading.data)] if self.loading.data else []
        return [*data, *(path.parent for path in checkpoint_paths(self.model))]
