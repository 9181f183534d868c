import pytest
import torch
from fairseq import checkpoint_utils, tasks
from fairseq.dataclass.configs import GenerationConfig
from fairseq.distributed import FullyShardedDataParallel
from fairseq.models.bart import BARTHubInterface, BARTModel
from fairseq.sequence_generator import SequenceGenerator as StockGenerator
from fairseq.tasks.translation import TranslationTask

import elseq
from elseq.errors import UserError
from elseq.models import transformer
from elseq.models.windows import SourceWindows
from elseq.tasks import ElseqTranslationTask
from elseq.tasks.translation import ElseqTranslationConfig
from tests import helpers
from tests.tasks.loading import generate, interactive_batch, load_translation, make_batch
from tests.tiny_models import assert_same_hypotheses, task_configuration


def first_tokens(task, batch):
    pad = task.source_dictionary.pad()
    return [next(token for token in row if token != pad) for row in batch["net_input"]["src_tokens"].tolist()]


@pytest.mark.parametrize("mode", ["kv", "el", "stock"])
def test_bart_reads_and_writes_its_beginning(tiny_bart, mode):
    task, model = load_translation(tiny_bart, decode_attention=mode)
    bos = task.source_dictionary.bos()
    batch = make_batch(task)
    assert set(first_tokens(task, batch)) == {bos}
    for [best, *_] in generate(task, model, batch):
        assert best["tokens"][0] == bos
        assert bos not in best["tokens"][1:]


def test_bart_without_them_is_as_in_the_translation_task(tiny_bart):
    task, model = load_translation(tiny_bart, prepend_source_bos="no", force_bos="no", decode_attention="el")
    batch = make_batch(task)
    assert task.source_dictionary.bos() not in batch["net_input"]["src_tokens"]
    found = generate(task, model, batch)
    [stock], _, stock_task = checkpoint_utils.load_model_ensemble_and_task(
        [str(tiny_bart.checkpoint)], arg_overrides={"data": str(tiny_bart.data)}
    )
    assert type(stock_task) is TranslationTask and type(stock) is BARTModel
    assert_same_hypotheses(found, generate(stock_task, stock, make_batch(stock_task)))


class WordsAsTheyAre:
    """In place of a byte-pair encoding."""

    def encode(self, text):
        return text

    decode = encode


@pytest.mark.parametrize("mode", ["kv", "el", "stock"])
def test_bart_translates_as_its_hub_interface(tiny_bart, mode):
    [stock], cfg, stock_task = checkpoint_utils.load_model_ensemble_and_task(
        [str(tiny_bart.checkpoint)], arg_overrides={"data": str(tiny_bart.data)}
    )
    hub = BARTHubInterface(cfg, stock_task, stock)
    hub.bpe = WordsAsTheyAre()
    lines = (tiny_bart.raw / "test.src").read_text().splitlines()[:5]
    expected = hub.generate([hub.encode(line) for line in lines], beam=4, max_len_b=12)

    task, model = load_translation(tiny_bart, decode_attention=mode)
    for batch in (make_batch(task), interactive_batch(task, lines)):
        order = batch["id"].tolist()
        assert_same_hypotheses(generate(task, model, batch), [expected[index] for index in order])


def test_bart_after_a_prefix(tiny_bart):
    task, model = load_translation(tiny_bart, decode_attention="kv")
    bos = task.target_dictionary.bos()
    batch = make_batch(task)
    for prefix in (torch.tensor([[5]] * 5), torch.tensor([[bos, 5]] * 5)):
        for [best, *_] in generate(task, model, batch, prefix_tokens=prefix):
            assert best["tokens"][:2].tolist() == [bos, 5]
            assert bos not in best["tokens"][2:]


def test_truncated_sources_have_room_for_the_beginning(tiny_bart):
    task, _ = load_translation(tiny_bart, truncate_source=True, max_source_positions=5)
    bos, eos, pad = task.source_dictionary.bos(), task.source_dictionary.eos(), task.source_dictionary.pad()
    batch = make_batch(task)
    untruncated = make_batch(load_translation(tiny_bart)[0])["net_input"]["src_lengths"].tolist()
    rows = batch["net_input"]["src_tokens"]
    assert batch["net_input"]["src_lengths"].tolist() == [min(length, 5) for length in untruncated]
    assert max(untruncated) > 5
    for row in rows.tolist():
        row = [token for token in row if token != pad]
        assert (row[0], row[-1]) == (bos, eos)


def test_transformers_have_no_beginning_unless_asked(tiny_translation):
    task, model = load_translation(tiny_translation, decode_attention="kv")
    bos = task.source_dictionary.bos()
    batch = make_batch(task)
    assert bos not in first_tokens(task, batch)
    assert all(best["tokens"][0] != bos for [best, *_] in generate(task, model, batch))
    task, model = load_translation(tiny_translation, prepend_source_bos="yes", force_bos="yes")
    batch = make_batch(task)
    assert set(first_tokens(task, batch)) == {bos}
    assert all(best["tokens"][0] == bos for [best, *_] in generate(task, model, batch))


@pytest.mark.parametrize("truncated", [False, True])
def test_symbols_after_the_source_and_at_the_start_of_decoding(tiny_translation, truncated):
    limits = {"truncate_source": True, "max_source_positions": 5} if truncated else {}
    plain, _ = load_translation(tiny_translation)
    after, start = plain.source_dictionary.symbols[8], plain.target_dictionary.symbols[9]
    task, model = load_translation(tiny_translation, source_end=after, decoder_start=start, **limits)
    batch, _ = make_batch(task), make_batch(plain)
    pad, end = plain.source_dictionary.pad(), plain.source_dictionary.eos()
    for number, row in zip(batch["id"].tolist(), batch["net_input"]["src_tokens"].tolist(), strict=True):
        sentence = plain.dataset("test")[number]["source"].tolist()
        assert [token for token in row if token != pad] == [*sentence[:-1][: 3 if truncated else None], end, 8]
    # fairseq counts the end symbol of a source that it need not truncate twice.
    sizes = [[min(size, 3) + 2 if truncated else size + 1, other] for size, other in plain.dataset("test").sizes]
    assert task.dataset("test").sizes.tolist() == sizes
    assert batch["net_input"]["prev_output_tokens"][:, 0].tolist() == [9] * 5

    typed = interactive_batch(task, ["w1 w2", "w3"])["net_input"]["src_tokens"].tolist()
    assert [[token for token in row if token != pad][-2:] for row in typed] == [[end, 8]] * 2
    stock = plain.build_generator([model], GenerationConfig(beam=4, max_len_b=12), StockGenerator)
    expected = stock.generate([model], batch, bos_token=9)
    assert_same_hypotheses(generate(task, model, batch), expected)


def test_symbols_after_sources_of_buckets(tiny_translation):
    task, _ = load_translation(tiny_translation, source_end="</s>", num_batch_buckets=2)
    with pytest.raises(UserError, match="--source-end does not go with --num-batch-buckets"):
        task.load_dataset("test")


@pytest.mark.parametrize("truncated", [False, True])
def test_sources_without_their_end(tiny_translation, truncated):
    limits = {"truncate_source": True, "max_source_positions": 3} if truncated else {}
    plain, _ = load_translation(tiny_translation)
    task, model = load_translation(tiny_translation, append_source_eos="no", **limits)
    batch, _ = make_batch(task), make_batch(plain)
    pad = plain.source_dictionary.pad()
    for number, row in zip(batch["id"].tolist(), batch["net_input"]["src_tokens"].tolist(), strict=True):
        sentence = plain.dataset("test")[number]["source"].tolist()
        assert [token for token in row if token != pad] == sentence[:-1][: 3 if truncated else None]
    if not truncated:
        assert task.dataset("test").sizes.tolist() == [[size - 1, other] for size, other in plain.dataset("test").sizes]
    stock = plain.build_generator([model], GenerationConfig(beam=4, max_len_b=12), StockGenerator)
    assert_same_hypotheses(generate(task, model, batch), stock.generate([model], batch))

    typed = interactive_batch(task, ["w1 w2", "w3", ""])["net_input"]
    known = plain.source_dictionary
    first, second, third = (known.index(f"w{number}") for number in (1, 2, 3))
    # of nothing a model makes nothing
    assert typed["src_tokens"].tolist() == [[first, second], [third, pad], [known.eos(), pad]]
    assert typed["src_lengths"].tolist() == [2, 1, 1]


@pytest.mark.parametrize(
    ("options", "blank"),
    [
        ({}, ["</s>"]),
        ({"source_start": "w4"}, ["w4"]),
        ({"source_end": "w4"}, ["w4"]),
        ({"source_start": "w4", "source_end": "w5"}, ["w4", "w5"]),
    ],
)
def test_a_blank_source_without_its_end(tiny_translation, tmp_path, options, blank):
    """In data as in texts it keeps its end symbol only where it has no other symbol."""
    raw = helpers.write_text(tmp_path / "raw", (("train", 2), ("valid", 2), ("test", 2)))
    (raw / "test.src").write_text("w1 w2\n\n")
    data = helpers.binarize(raw, tmp_path / "data", "--srcdict", tiny_translation.data / "dict.src.txt")
    trained = helpers.Trained(raw, data, tiny_translation.checkpoint)
    task, model = load_translation(trained, append_source_eos="no", **options)
    start, end = ([options[name]] if name in options else [] for name in ("source_start", "source_end"))
    for batch in (make_batch(task, 2), interactive_batch(task, ["w1 w2", ""])):
        rows = dict(zip(batch["id"].tolist(), batch["net_input"]["src_tokens"].tolist(), strict=True))
        words = [[task.source_dictionary[token] for token in rows[number]] for number in (0, 1)]
        words = [[word for word in row if word != "<pad>"] for row in words]
        assert words == [[*start, "w1", "w2", *end], blank]
        assert sorted(batch["net_input"]["src_lengths"].tolist()) == sorted(map(len, words))
    assert task.dataset("test").src_sizes.tolist() == list(map(len, words))
    assert len(generate(task, model, batch)) == 2


def test_sources_without_their_end_in_buckets(tiny_translation):
    task, _ = load_translation(tiny_translation, append_source_eos="no", num_batch_buckets=2)
    with pytest.raises(UserError, match="--append-source-eos does not go with --num-batch-buckets"):
        task.load_dataset("test")


@pytest.mark.parametrize("options", [{}, {"target_start": "w4"}])
def test_a_first_symbol_that_counts_in_the_length_alone(tiny_bart, options):
    """The log-probability is 0, and the rest of the score is that of the same hypothesis."""
    counted, model = load_translation(tiny_bart, **options)
    task, _ = load_translation(tiny_bart, score_target_start="no", **options)
    batch = make_batch(task)
    for [best, *_] in generate(task, model, batch):
        assert best["positional_scores"][0] == 0
        total = best["positional_scores"].sum()
        torch.testing.assert_close(best["score"], total / len(best["tokens"]), rtol=1e-5, atol=1e-6)
    sample = {"net_input": batch["net_input"]}
    targets = [best["tokens"] for [best, *_] in generate(task, model, batch)]
    scored, other = (each.score_step(model, sample, targets) for each in (task, counted))
    for found, expected, [best, *_] in zip(scored, other, generate(task, model, batch), strict=True):
        torch.testing.assert_close(found["positional_scores"], best["positional_scores"], rtol=1e-5, atol=1e-5)
        assert expected["positional_scores"][0] < 0
        assert torch.equal(found["positional_scores"][1:], expected["positional_scores"][1:])
        torch.testing.assert_close(found["score"], found["positional_scores"].sum())


def test_switches_are_yes_or_no(tiny_bart):
    with pytest.raises(UserError, match="^--prepend-source-bos maybe is unknown; choose one of yes, no$"):
        load_translation(tiny_bart, prepend_source_bos="maybe")


def test_missing_files_are_named(tiny_bart, tmp_path):
    cfg = task_configuration(ElseqTranslationConfig(data=str(tmp_path), source_lang="src", target_lang="tgt"))
    with pytest.raises(UserError, match="dict.src.txt does not exist; check the data folder"):
        ElseqTranslationTask.setup_task(cfg)
    task, _ = load_translation(tiny_bart)
    with pytest.raises(UserError, match="Dataset not found: nowhere"):
        task.load_dataset("nowhere")


@pytest.mark.parametrize(
    "data, sentence",
    [
        (None, "the data folder is missing: give it (to Hydra, as task.data=FOLDER)"),
        ("{}", "{} holds no files of a language pair (SUBSET.SOURCE-TARGET.SOURCE); check the data folder, or"),
        ("{}/file", "{}/file is not a folder; give that of the data"),
    ],
)
def test_folder_that_holds_no_data(tmp_path, data, sentence):
    (tmp_path / "file").write_text("")
    cfg = task_configuration(ElseqTranslationConfig(data=data and data.format(tmp_path)))
    cfg._name = "elseq_translation"
    with pytest.raises(UserError) as raised:
        tasks.setup_task(cfg)
    assert str(raised.value).startswith(sentence.format(tmp_path))


# --- sources in windows


@pytest.fixture(scope="module")
def trained_in_windows(train_once, translation_data):
    """By the command, of 64 positions; the sources are shorter than these, and longer than a window."""
    options = ["--task=elseq_translation", "--source-window=6", "--source-window-overlap=2", "--train-windows=1"]
    return train_once("trained_in_windows", "transformer", translation_data, *options)


@pytest.mark.few_cases(1)
def test_a_model_trained_in_windows_decodes_in_them(trained_in_windows):
    task, model = load_translation(trained_in_windows)
    assert model.encoder.source_windows == SourceWindows(6, 2)
    batch = make_batch(task)
    found = generate(task, model, batch)
    task, asked = load_translation(trained_in_windows, source_window=6, source_window_overlap=2)
    assert_same_hypotheses(found, generate(task, asked, batch), tolerance=0)
    task, whole = load_translation(trained_in_windows, source_window=0)
    assert whole.encoder.source_windows is None
    assert task.max_positions() == (1024, 1024)


@pytest.mark.parametrize(
    "options, expected",
    [
        ({"long_input": True}, {"cross": 64}),
        ({"long_input": True, "apply_top_k": 3}, {"cross": 3}),
        ({"long_input": True, "apply_top_k": 0}, {}),
        ({"long_input": True, "apply_top_k": 3, "apply_top_k_in": "encoder,cross"}, {"encoder": 3, "cross": 3}),
        ({"source_window": 6, "apply_top_k": 3}, {"encoder": 3, "decoder": 3, "cross": 3}),
        ({"apply_top_k": 3}, {"encoder": 3, "decoder": 3, "cross": 3}),
    ],
    ids=str,
)
def test_where_a_top_k_counts(tiny_translation, options, expected):
    """With long sources in the attention to them, unless it is said where."""
    assert _places_of_top_k(load_translation(tiny_translation, **options)[1]) == expected


def _places_of_top_k(model) -> dict[str, int]:
    encoder, decoder = model.encoder.layers[0], model.decoder.layers[0]
    attentions = {"encoder": encoder.self_attn, "decoder": decoder.self_attn, "cross": decoder.encoder_attn}
    return {place: each.top_k for place, each in attentions.items() if each.top_k is not None}


def test_where_a_top_k_counts_after_training_with_long_input(tiny_translation, tmp_path):
    """The windows in force are those of the training, and what its checkpoint says of places is not."""
    state = torch.load(tiny_translation.checkpoint, weights_only=False)
    said = {"long_input": True, "apply_top_k_in": "encoder,decoder,cross"}
    state["cfg"]["task"] |= said
    vars(state["cfg"]["model"]).update(said)  # which of a Transformer is a namespace of all options
    torch.save(state, tmp_path / "model.pt")
    for options, expected in (({}, {"cross": 64}), ({"apply_top_k": 3}, {"cross": 3})):
        model = elseq.load(tmp_path / "model.pt", "kv", data=tiny_translation.data, **options).model
        assert _places_of_top_k(model) == expected


def test_a_model_trained_in_windows_is_loaded_with_them(trained_in_windows):
    """Without the windows through which training has gradients, which are no option of decoding."""
    lines = (trained_in_windows.raw / "test.src").read_text().splitlines()
    found, asked, whole = (
        elseq.load(trained_in_windows.checkpoint, data=trained_in_windows.data, **options).generate(lines, beam=2)
        for options in ({}, {"source_window": 6, "source_window_overlap": 2}, {"source_window": 0})
    )
    assert found == asked and found != whole


def test_each_model_of_an_ensemble_has_its_own_windows(trained_in_windows, tiny_translation):
    ensemble = f"{trained_in_windows.checkpoint}:{tiny_translation.checkpoint}"
    for paths in (ensemble, ":".join(reversed(ensemble.split(":")))):
        generator = elseq.load(paths, "kv", data=trained_in_windows.data)
        windows = {model.encoder.source_windows for model in generator.models}
        assert windows == {SourceWindows(6, 2), None}
        with pytest.raises(UserError, match="has 81 tokens and the model takes 64; shorten it"):
            generator.generate(["w1 " * 80])
    generator = elseq.load(ensemble, "kv", data=trained_in_windows.data, source_window=8)
    assert [model.encoder.source_windows for model in generator.models] == [SourceWindows(8, 4)] * 2


def test_stock_has_no_windows(trained_in_windows, caplog):
    _, model = load_translation(trained_in_windows, decode_attention="stock")
    assert (
        "the model was trained on sources in windows, which stock, fairseq's own decoding, has not" in caplog.messages
    )
    with pytest.raises(UserError, match="^--source-window does not go with stock"):
        load_translation(trained_in_windows, decode_attention="stock", source_window=5)


class Sharded(FullyShardedDataParallel):
    """As fairseq wraps a layer, where fairscale is installed."""

    def __init__(self, module):
        torch.nn.Module.__init__(self)
        self.module = module


def test_sharded_layers_have_no_windows(translation_data, tmp_path, monkeypatch):
    monkeypatch.setattr(transformer, "fsdp_wrap", lambda module, **_: Sharded(module))
    options = ["--task=elseq_translation", "--source-window=6", "--user-dir", helpers.USER_DIR]
    command = helpers.train_command("elseq_transformer", translation_data, tmp_path, *options)
    assert helpers.run_here(command, check=False).stderr.splitlines()[-1] == (
        "elseq: error: --ddp-backend fully_sharded does not go with --source-window: its processes gather each layer "
        "together, and each of them has another number of windows; leave out one of the two"
    )


def test_longer_sources_are_trained_and_resumed(raw_text, tmp_path):
    """Sources beyond the positions, of two updates; then two more."""
    options = ["--task=elseq_translation", "--max-source-positions=8", "--long-input", "--update-freq=2"]
    data = helpers.binarize(raw_text, tmp_path / "data")
    first = helpers.train("elseq_transformer", data, tmp_path / "run", *options, "--max-update=2")
    state = torch.load(first, weights_only=False)
    assert state["cfg"]["task"]["long_input"]
    helpers.train("elseq_transformer", data, tmp_path / "run", *options, "--max-update=4")
    whole = helpers.train("elseq_transformer", data, tmp_path / "whole", *options, "--max-update=4")
    resumed, expected = (torch.load(path, weights_only=False)["model"] for path in (first, whole))
    assert all(torch.equal(resumed[name], expected[name]) for name in expected)
