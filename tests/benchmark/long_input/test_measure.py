from elseq.benchmark.long_input import measure as program


def test_what_does_not_fit(monkeypatch):
    monkeypatch.setattr(program, "free_memory_bytes", lambda device: 1000)
    monkeypatch.setattr(program, "batch_bytes", lambda *sizes: 3 * 2**20)
    monkeypatch.setattr(program, "TimedSearch", lambda request: type("Engine", (), {"model": None, "generator": None}))
    found = program.measure({"device": "cpu", "sources": [[1]], "source_length": 1})
    assert found.failure == "out of memory (it needs 3.0 MiB and 1000 bytes are free)"
