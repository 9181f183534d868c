"""What a run of elseq-generate checks and sets before it decodes. Whole runs are in tests/cli/test_generate*.py."""

from pathlib import Path
from types import SimpleNamespace

import pytest
import torch

from elseq.errors import UserError
from elseq.options import Loading
from elseq.text_files.run import Job, Run, _loading, _threads

ALONE = SimpleNamespace(is_first=True, count=1, rank=0)


@pytest.mark.parametrize("number", [None, 3])
def test_threads_are_those_of_before_again(number):
    before = torch.get_num_threads()
    with pytest.raises(KeyboardInterrupt), _threads(number):
        assert torch.get_num_threads() == (number or before)
        raise KeyboardInterrupt
    assert torch.get_num_threads() == before


def test_a_gpu_for_each_process_of_a_machine(monkeypatch):
    pairs = SimpleNamespace(distinct=[("de", "fr"), ("en", "de")])
    loading = Loading(data="folder")
    assert _loading(loading, pairs) == Loading(data="folder", source_lang="de", target_lang="fr")
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setenv("LOCAL_RANK", "3")
    assert _loading(loading, pairs).device == "cuda:3"
    assert _loading(Loading(device="cpu"), pairs).device == "cpu"


@pytest.mark.parametrize(
    ("count", "name", "sentence"),
    [
        (1, "-", None),
        (2, "-", "^several processes cannot share the standard input: give --input FILE$"),
        (2, "file", None),
        (2, "/dev/null", "^--input /dev/null is not a regular file, which several processes cannot share: give one$"),
    ],
)
def test_what_several_processes_can_read(tmp_path, count, name, sentence):
    (tmp_path / "file").touch()
    job = Job("model", tmp_path / "output", input=None if name == "-" else tmp_path / name)
    run = Run(job, SimpleNamespace(is_first=True, count=count, rank=0))
    if sentence is None:
        return run._check_input_is_shareable()
    with pytest.raises(UserError, match=sentence):
        run._check_input_is_shareable()


@pytest.mark.parametrize(
    ("options", "sentence"),
    [
        ({"input": "output"}, "output is an input: give another file$"),
        ({"prefix_file": "output"}, "output is an input: give another file$"),
        (
            {"model": "output.partial/model.pt"},
            "model.pt is in .*output.partial, where finished lines are kept: move it$",
        ),
    ],
)
def test_no_input_is_written(tmp_path, options, sentence):
    (tmp_path / "output.partial").mkdir()
    for name in ("output", "output.partial/model.pt", "model.pt"):
        (tmp_path / name).touch()
    options = {"model": "model.pt"} | options
    job = Job(
        output=tmp_path / "output",
        **{name: str(tmp_path / value) if name == "model" else tmp_path / value for name, value in options.items()},
    )
    with pytest.raises(UserError, match=sentence):
        Run(job, ALONE)._check_output_is_no_input()


def test_a_link_is_followed_once(tmp_path):
    """The journal lies beside the file that the link leads to."""
    (tmp_path / "far").mkdir()
    (tmp_path / "link").symlink_to(tmp_path / "far" / "output")
    assert Path(Run(Job("model", tmp_path / "link"), ALONE).journal.folder) == tmp_path / "far" / "output.partial"
