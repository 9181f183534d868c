"""One measured run: read a request, load, decode some times, write a result.

It runs as a script by its path and is not imported as a part of elseq. A process that measures another program
therefore holds neither PyTorch nor fairseq: until the engine is chosen, only the standard library is imported.
"""

import gc
import json
import os
import resource
import sys
import time
from collections.abc import Callable, Iterator
from dataclasses import asdict, dataclass
from pathlib import Path

MEBIBYTE = 2**20
OUT_OF_MEMORY = "out of memory"  # how the failure of a run begins for which memory did not suffice
WAITING = "elseq-benchmark waits: "  # how a line to the process that measures begins


@dataclass
class Measurement:
    """The result of a run. Unknown values are None."""

    failure: str | None = None  # a sentence; nothing else is known then
    seconds: list[float] | dict[str, list[float]] | None = None  # of each repeat; by part, where it has several
    encoder_seconds: float | None = None  # of a batch, the encoder alone
    batch_size: int | None = None  # where it was found, and not given
    hypotheses: list[list[list[int]]] | None = None  # of each source, best first, without end symbols and prompts
    loading_mebibytes: float | None = None  # the most memory while loading
    loaded_mebibytes: float | None = None  # memory after loading
    peak_mebibytes: float | None = None  # at the highest point after that
    peak_includes_loading: bool | None = None
    version: str | None = None
    sizes: dict | None = None  # of the model, as `elseq.benchmark.cost.Sizes` has them
    parameters: int | None = None
    state_bytes: int | None = None  # of the decoding state at its largest
    predicted_bytes: int | None = None  # by count
    copied: bool | None = None  # each hypothesis has keys and values of the source, or of the prompt, of its own
    method: str | None = None
    ngrams_repeat: bool | None = None
    output_lengths: list[int] | None = None  # that occurred, end symbols included
    in_turns: int | None = None  # processes that took turns, this one included
    kernels: list[dict] | None = None  # tried on a GPU so far: see `elseq.kernel_trials.Verdict`
    captures: int | None = None  # CUDA graphs of decoding steps, of one search on a GPU
    not_captured: str | None = None  # why not all of them
    is_spent: bool | None = None  # its GPU can be used no more, or captures no more: other cases need a new process


def measure(request: dict) -> Measurement:
    """Decode all batches once to warm up and to look at, then `repeats` times by the clock, each in its turn.

    Args:
        request: engine, and what that engine reads; sources, batches (lists of indices), repeats, threads.
    """
    engine = start_engine(request)
    gc.collect()
    device = request["device"]
    found = engine.found
    found.loaded_mebibytes, found.loading_mebibytes = memory_mebibytes(device)
    found.peak_includes_loading = reset_peak(device)
    found.hypotheses = [None] * len(request["sources"])
    engine.look_closely = True
    for batch in request["batches"]:
        for index, hypotheses in zip(batch, engine.decode(batch), strict=True):
            found.hypotheses[index] = hypotheses
    engine.look_closely = False
    needed = max(found.loading_mebibytes or 0, memory_mebibytes(device)[1] or 0)
    _forget_peak_of_trials(device)
    found.seconds = []
    for _ in range(request["repeats"]):
        wait_for_turn(max(needed, memory_mebibytes(device)[1] or 0))
        start = time.perf_counter()
        for batch in request["batches"]:
            engine.decode(batch)
        found.seconds.append(time.perf_counter() - start)
    found.peak_mebibytes = memory_mebibytes(device)[1]
    return found


def measure_cases(request: dict) -> Iterator[Measurement]:
    """Decode several cases by one program, which is loaded once. Each case counts its own memory.

    Args:
        request: as for `measure`, with "cases" for batches, beam and search. A case has beam and search; "batch",
            indices of the sources; "shrinks", whether four fifths of the batch are tried, again and again, where it
            does not fit the memory; and "memory_limit_bytes", as for `limit_memory`.
    """
    first, *_ = request["cases"]
    engine = start_engine(request | {name: first[name] for name in ("beam", "search")})
    for case in request["cases"]:
        try:
            found = _measure_case(engine, case)
        except Exception as error:
            found = failed(error)
        found.is_spent = found.is_spent or _captures_no_more() or None
        yield found


def _measure_case(engine, case: dict) -> Measurement:
    limit_memory(engine.request["device"], case["memory_limit_bytes"])
    batch = case["batch"]
    while True:
        try:
            return _measure_batch(engine, case, batch)
        except Exception as error:
            if not case["shrinks"] or len(batch) == 1 or not ran_out(failed(error).failure):
                raise
        batch = batch[: len(batch) * 4 // 5]


def _measure_batch(engine, case: dict, batch: list[int]) -> Measurement:
    device = engine.request["device"]
    engine.set_search(case["beam"], case["search"])
    _release(device)
    found = engine.found
    found.loaded_mebibytes, _ = memory_mebibytes(device)
    found.peak_includes_loading = reset_peak(device)
    engine.look_closely = True
    hypotheses = engine.decode(batch)
    engine.look_closely = False
    _forget_peak_of_trials(device)
    found.batch_size = len(batch)
    found.output_lengths = sorted({len(best) for best, *_ in hypotheses})
    found.seconds = []
    for _ in range(engine.request["repeats"]):
        start = time.perf_counter()
        engine.decode(batch)
        found.seconds.append(time.perf_counter() - start)
    found.peak_mebibytes = memory_mebibytes(device)[1]
    if hasattr(engine, "encode"):
        engine.encode(batch)
        found.encoder_seconds = seconds_of(device, lambda: engine.encode(batch))
    return found


def _forget_peak_of_trials(device: str) -> None:
    """Those of kernels and methods, in the first search of a GPU. What its later searches need counts."""
    if device != "cpu":
        reset_peak(device)


def now(device: str) -> float:
    """The clock, in seconds, after the device has finished its work."""
    if device != "cpu":
        sys.modules["torch"].cuda.synchronize(device)
    return time.perf_counter()


def seconds_of(device: str, work: Callable[[], object]) -> float:
    """Seconds until the device has finished some work."""
    start = now(device)
    work()
    return now(device) - start


def limit_memory(device: str, limit: int | None) -> None:
    """Limit the memory of this process: too large a run fails, and takes no memory from other processes.

    Args:
        device: on a GPU, what torch allocates there is limited; on a CPU, all of this process.
        limit: bytes; None: all there is.
    """
    if device == "cpu":
        hard = resource.getrlimit(resource.RLIMIT_DATA)[1]
        resource.setrlimit(resource.RLIMIT_DATA, (hard if limit is None else limit, hard))
    elif "torch" in sys.modules:
        torch = sys.modules["torch"]
        index = torch.device(device).index or 0
        share = 1.0 if limit is None else min(1.0, limit / torch.cuda.mem_get_info(index)[1])
        torch.cuda.set_per_process_memory_fraction(share, index)


def _captures_no_more() -> bool:
    """Whether a capture of a CUDA graph has failed. The process then captures no more."""
    return "elseq.generation.cuda_graphs" in sys.modules and not (
        sys.modules["elseq.generation.cuda_graphs"].CapturedWork.is_possible
    )


def _release(device: str) -> None:
    """Free memory that nothing refers to any more."""
    gc.collect()
    if device != "cpu" and "torch" in sys.modules:
        if "elseq.generation.cuda_graphs" in sys.modules:
            sys.modules["elseq.generation.cuda_graphs"].release_memory()
        sys.modules["torch"].cuda.empty_cache()


def wait_for_turn(mebibytes: float) -> None:
    """Tell `elseq.benchmark.processes.Process` the most memory that was needed, and wait until it says to go on."""
    print(f"\n{WAITING}{mebibytes}", flush=True)
    if not sys.stdin.readline():
        sys.exit("the process that measures has ended")


def start_engine(request: dict):
    """The engine of a request, with its model loaded."""
    if request["engine"] == "fairseq":
        from elseq.benchmark.fairseq_engine import FairseqEngine as engine
    elif request["engine"] == "ctranslate2":
        engine = CTranslate2Engine
    else:
        engine = TransformersEngine
    return engine(request)


def memory_mebibytes(device: str) -> tuple[float | None, float | None]:
    """Now, and at the highest point since `reset_peak`: of the process, or of the GPU's allocator."""
    torch = sys.modules.get("torch")
    if device != "cpu":
        if torch is None:
            return None, None
        return torch.cuda.memory_allocated(device) / MEBIBYTE, torch.cuda.max_memory_allocated(device) / MEBIBYTE
    try:
        status = dict(line.split(":", 1) for line in Path("/proc/self/status").read_text().splitlines())
        return tuple(int(status[key].split()[0]) / 1024 for key in ("VmRSS", "VmHWM"))
    except (OSError, KeyError):
        unit = 1 if sys.platform == "darwin" else 1024
        peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * unit / MEBIBYTE
        return None, peak


def reset_peak(device: str) -> bool | None:
    """Reset the peak of memory, because loading may need more than decoding. True: that failed."""
    if device != "cpu":
        if "torch" in sys.modules:
            sys.modules["torch"].cuda.reset_peak_memory_stats(device)
        return None
    try:
        Path("/proc/self/clear_refs").write_text("5")
    except OSError:
        return True
    return None


# An engine is a program with a model. `decode` returns the n-best lists of a batch without end symbols and prompts.
# `set_search` changes the options of the search. `found` has what the engine knows of itself. `look_closely` is set
# during the warm-up: the engine may then take time to find more. The engines of fairseq also have `encode`.


class CTranslate2Engine:
    """Reads what `elseq.benchmark.export` wrote."""

    def __init__(self, request: dict):
        import ctranslate2

        self.request = request
        self.look_closely = False
        self.version = ctranslate2.__version__

        exported = json.loads((Path(request["exported"]) / "sources.json").read_text())
        symbols, targets = exported["source_symbols"], exported["target_symbols"]
        self.sources = [[symbols[number] for number in source] for source in exported["sources"]]
        self.forced = [targets[number] for number in exported["forced"]]
        self.number = {symbol: number for number, symbol in enumerate(targets)}
        device, _, index = request["device"].partition(":")
        dtypes = ctranslate2.get_supported_compute_types(device, int(index or 0))
        if request["dtype"] not in dtypes:
            from elseq.errors import UserError

            raise UserError(f"CTranslate2 has no {request['dtype']} on this {device}, but {', '.join(sorted(dtypes))}")
        self.is_language_model = exported["is_language_model"]
        self.program = (ctranslate2.Generator if self.is_language_model else ctranslate2.Translator)(
            request["exported"],
            device=device,
            device_index=int(index or 0),
            compute_type=request["dtype"],
            intra_threads=request["threads"],
            inter_threads=1,
        )
        self.set_search(request["beam"], request["search"])

    def set_search(self, beam: int, search: dict) -> None:
        self.beam, self.search = beam, search
        # A prompt becomes a part of each hypothesis.
        self.found = Measurement(version=self.version, copied=self.is_language_model and beam > 1)

    def decode(self, batch):
        search = self.search
        sources = [self.sources[index] for index in batch]
        options = {
            "beam_size": self.beam,
            "num_hypotheses": self.beam,
            "length_penalty": search["lenpen"],
            "no_repeat_ngram_size": search["no_repeat_ngram_size"],
        }
        if self.is_language_model:
            options |= {"min_length": search["min_len"], "max_length": search["max_len_b"]}
            results = self.program.generate_batch(sources, include_prompt_in_result=False, **options)
            found = [result.sequences for result in results]
        else:
            options |= {"min_decoding_length": search["min_len"], "max_decoding_length": search["max_len_b"]}
            prefix = [self.forced] * len(batch) if self.forced else None
            results = self.program.translate_batch(sources, target_prefix=prefix, max_input_length=0, **options)
            found = [result.hypotheses for result in results]
        return [[[self.number[word] for word in words] for words in hypotheses] for hypotheses in found]


class TransformersEngine:
    """Reads what `elseq.benchmark.export` wrote."""

    def __init__(self, request: dict):
        self.request = request
        self.look_closely = False
        os.environ["HF_HUB_OFFLINE"] = "1"
        import torch
        import transformers

        transformers.logging.set_verbosity_error()
        transformers.logging.disable_progress_bar()
        torch.set_num_threads(request["threads"])
        folder = Path(request["exported"])
        exported = json.loads((folder / "sources.json").read_text())
        self.sources, self.forced, self.rows = exported["sources"], exported["forced"], exported["rows"]
        self.is_language_model = exported["is_language_model"]
        [name] = json.loads((folder / "config.json").read_text())["architectures"]
        self.model = getattr(transformers, name).from_pretrained(
            folder, dtype=getattr(torch, request["dtype"]), local_files_only=True
        )
        self.model.to(request["device"]).eval()
        self.torch = torch
        self.version = transformers.__version__
        self.set_search(request["beam"], request["search"])

    def set_search(self, beam: int, search: dict) -> None:
        self.beam, self.search = beam, search
        self.found = Measurement(version=self.version, copied=beam > 1)

    def decode(self, batch):
        torch, config, search = self.torch, self.model.config, self.search
        sources = [torch.tensor(self.sources[index]) for index in batch]
        end, pad = config.eos_token_id, config.pad_token_id
        if self.is_language_model:  # prompts of one length
            tokens = torch.stack(sources).to(self.request["device"])
            mask, begin, pad = torch.ones_like(tokens), tokens.size(1), end
        else:
            tokens = torch.nn.utils.rnn.pad_sequence(sources, batch_first=True, padding_value=pad)
            tokens = tokens.to(self.request["device"])
            mask, begin = tokens.ne(pad).long(), 1
        with torch.inference_mode():
            found = self.model.generate(
                input_ids=tokens,
                attention_mask=mask,
                pad_token_id=pad,
                num_beams=self.beam,
                num_return_sequences=self.beam,
                do_sample=False,
                early_stopping=self.beam > 1,
                min_new_tokens=search["min_len"],
                max_new_tokens=search["max_len_b"] + 1,
                forced_bos_token_id=self.forced[0] if self.forced else None,
                forced_eos_token_id=end,
                length_penalty=search["lenpen"],
                no_repeat_ngram_size=search["no_repeat_ngram_size"],
            )
        words = [self._words(row) for row in found[:, begin:].tolist()]
        return [words[start : start + self.beam] for start in range(0, len(words), self.beam)]

    def _words(self, row: list[int]) -> list[int]:
        end = self.model.config.eos_token_id
        return [self.rows[number] for number in (row[: row.index(end)] if end in row else row)]


def failed(error: Exception) -> Measurement:
    """The result of a run that ended with an error."""
    failure = error.with_traceback(None)  # whose frames hold the model
    from elseq.benchmark.failures import describe_failure, ends_device

    return Measurement(failure=describe_failure(failure), is_spent=ends_device(failure) or None)


def ran_out(failure: str | None) -> bool:
    """Whether a run failed because memory did not suffice."""
    return failure is not None and failure.startswith(OUT_OF_MEMORY)


def of_request(request: dict) -> Measurement | Iterator[Measurement]:
    """Measure a request: one search, or several cases."""
    return measure_cases(request) if "cases" in request else measure(request)


def main(measure: Callable[[dict], Measurement | Iterator[Measurement]] = of_request) -> None:
    """Measure the request in the first file of the command line, and write the result to the second.

    Args:
        measure: gives a measurement, or several one after the other: each of them is written, and waits to be read.
    """
    request_path, result_path = map(Path, sys.argv[1:])
    try:
        result = measure(json.loads(request_path.read_text()))
        if isinstance(result, Iterator):
            for each in result:
                result_path.write_text(json.dumps(asdict(each)))
                wait_for_turn(0.0)
            return
    except Exception as error:
        result = failed(error)
    result_path.write_text(json.dumps(asdict(result)))


if __name__ == "__main__":
    main()
