"""The options of a run of elseq-generate."""

from dataclasses import dataclass, field
from pathlib import Path

from elseq.loading import checkpoint_paths
from elseq.options import Batching, Loading, as_path
from elseq.text_files.formats import Format, InputFormat


@dataclass(frozen=True)
class Job:
    """The options of the command line."""

    model: str
    output: Path | None  # None: the standard output
    input: Path | None = None  # None: the standard input
    loading: Loading = Loading()
    batching: Batching = Batching()
    overwrite: bool = False
    search: dict = field(default_factory=dict)  # of `Search`
    form: Format = Format()
    threads: int | None = None  # None: as many as torch has
    prefix_file: Path | None = None
    input_form: InputFormat = InputFormat()
    languages_file: Path | None = None

    def inputs(self) -> list[Path]:
        """The files and folders that are read."""
        checkpoints = checkpoint_paths(self.model)
        files = (self.input, self.prefix_file, self.languages_file)
        named = [path for path in files if path is not None]
        return [*checkpoints, *(path.parent for path in checkpoints), *self.loading.inputs(), *named]

    def model_folders(self) -> list[Path]:
        """The folders in which files of the model may be: those of the data and of its checkpoints."""
        data = [as_path(self.loading.data, "data")] if self.loading.data else []
        return [*data, *(path.parent for path in checkpoint_paths(self.model))]
