import io

from elseq.text_files import progress
from elseq.text_files.processes import Processes
from elseq.text_files.progress import Progress


def test_lines_of_a_log(monkeypatch):
    monkeypatch.setattr(progress, "LOG_INTERVAL", 0)
    monkeypatch.setattr(progress.sys, "stderr", io.StringIO())
    shown = Progress(4, 1, Processes.of_environment())
    shown.add(2)
    shown.refresh()
    shown.close()
    assert (shown.before, shown.finished) == (1, 3)
    lines = progress.sys.stderr.getvalue().splitlines()
    assert "1/4" in lines[0] and "3/4" in lines[-1]
