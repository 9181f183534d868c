"""The commands of fairseq with our tasks: what stock fairseq trained, and what our models train."""

import re
import shutil

import pytest
import torch

from tests import helpers

PLUGIN = ["--user-dir", helpers.USER_DIR]
PROCESS = ["--cpu", "--num-workers=0", *PLUGIN]
TRANSLATION = ["--task=elseq_translation"]
LANGUAGE_MODEL = ["--task=elseq_language_modeling", f"--prompt-separator={helpers.SEPARATOR}", "--tokens-per-sample=64"]
SEARCH = ["--beam=4", "--nbest=2", "--max-len-b=15"]
EVALUATIONS = ("kv", "el")


def generate(trained, *options, task=TRANSLATION, path=None, **run_options):
    command = [
        "fairseq-generate",
        trained.data,
        "--path",
        path or trained.checkpoint,
        *task,
        *SEARCH,
        *PROCESS,
        *options,
    ]
    return helpers.run_here(command, **run_options)


def interact(trained, text, *options, task=TRANSLATION, **run_options):
    command = ["fairseq-interactive", trained.data, "--path", trained.checkpoint, *task, *SEARCH, *PROCESS, *options]
    return helpers.run_here(command, input=text.encode() if isinstance(text, str) else text, **run_options)


def lines(result, kind):
    """(number, rest) of the lines of a kind, in order of the number."""
    found = re.findall(rf"^{kind}-(\d+)\t(.*)$", result.stdout, re.MULTILINE)
    return sorted(((int(number), rest) for number, rest in found), key=lambda line: line[0])


def hypotheses(result):
    return [(number, rest.partition("\t")[2]) for number, rest in lines(result, "H")]


def numbers(result, kind):
    return torch.tensor([float(word) for _, rest in lines(result, kind) for word in rest.partition("\t")[0].split()])


def assert_same_output(result, expected):
    assert len(hypotheses(expected)) > 0
    assert hypotheses(result) == hypotheses(expected)
    for kind in ("H", "P"):
        torch.testing.assert_close(numbers(result, kind), numbers(expected, kind), rtol=1e-3, atol=2e-4)


def error_of(result):
    """The one sentence of a command that was refused."""
    assert result.returncode == 1
    assert "Traceback" not in result.stderr
    [sentence] = [line for line in result.stderr.splitlines() if line.startswith("elseq: error: ")]
    return sentence.removeprefix("elseq: error: ")


# --- models of stock fairseq


@pytest.mark.parametrize(
    "options", [[], pytest.param(["--lenpen=2", "--min-len=4"], marks=pytest.mark.slow)], ids=["plain", "long"]
)
def test_transformer(tiny_translation, options):
    expected = generate(tiny_translation, *options, task=["--task=translation"])
    for mode in ("stock", "kv", "el", "auto"):
        assert_same_output(generate(tiny_translation, "--decode-attention", mode, *options), expected)


def test_joint_projections_of_old_checkpoints(tiny_translation, tmp_path):
    """As fairseq before 0.9 wrote them."""
    state = torch.load(tiny_translation.checkpoint)
    model = state["model"]
    for attention in [
        name.removesuffix(".k_proj.weight") for name in model if name.endswith("self_attn.k_proj.weight")
    ]:
        for part in ("weight", "bias"):
            projections = [model.pop(f"{attention}.{kind}_proj.{part}") for kind in "qkv"]
            model[f"{attention}.in_proj_{part}"] = torch.cat(projections)
    torch.save(state, tmp_path / "old.pt")
    expected = generate(tiny_translation, task=["--task=translation"])
    for mode in EVALUATIONS:
        result = generate(tiny_translation, "--decode-attention", mode, path=tmp_path / "old.pt")
        assert_same_output(result, expected)


def test_the_log_tells_what_was_done(tiny_translation):
    log = generate(tiny_translation, "--decode-attention=auto").stdout
    assert "TransformerModel rebuilt as ElseqTransformerModel, weights untouched" in log
    assert "rebuilt" not in generate(tiny_translation, "--decode-attention=stock").stdout


def test_bart(tiny_bart):
    expected = generate(tiny_bart, "--decode-attention=stock")
    for mode in EVALUATIONS:
        assert_same_output(generate(tiny_bart, "--decode-attention", mode), expected)
    without = ["--prepend-source-bos=no", "--force-bos=no"]
    plain = generate(tiny_bart, task=["--task=translation"])
    assert numbers(plain, "H").tolist() != numbers(expected, "H").tolist()
    assert_same_output(generate(tiny_bart, "--decode-attention=el", *without), plain)
    assert {text for _, text in lines(expected, "T")} == {text for _, text in lines(plain, "T")}


def test_language_model(tiny_language_model):
    results = [
        generate(tiny_language_model, "--decode-attention", mode, task=LANGUAGE_MODEL) for mode in ("auto", "kv", "el")
    ]
    assert_same_output(results[1], results[0])
    assert_same_output(results[2], results[0])
    sources, targets = lines(results[0], "S"), lines(results[0], "T")
    texts = [f"{source} {target}" for (_, source), (_, target) in zip(sources, targets, strict=True)]
    assert sorted(texts) == sorted((tiny_language_model.raw / "test.lm").read_text().splitlines())


def test_language_model_as_in_fairseq(tiny_language_model):
    """The whole line is the prompt; fairseq repeats it, and counts it in the length."""
    options = ["--sample-break-mode=eos", "--tokens-per-sample=64", "--beam=1", "--nbest=1", "--max-len-b=60"]
    stock = dict(hypotheses(generate(tiny_language_model, *options, task=["--task=language_modeling"])))
    for mode in EVALUATIONS:
        task = ["--task=elseq_language_modeling", "--decode-attention", mode]
        found = generate(tiny_language_model, *options, task=task)
        prompts = dict(lines(found, "S"))
        assert len(prompts) == 21
        for number, text in hypotheses(found):
            assert f"{prompts[number]} {text}".strip().startswith(stock[number])


def test_scores_of_references(tiny_translation):
    expected = generate(tiny_translation, "--score-reference", task=["--task=translation"])
    for mode in EVALUATIONS:
        assert_same_output(generate(tiny_translation, "--score-reference", "--decode-attention", mode), expected)


def test_alignment(tiny_translation):
    for kind in ("hard", "soft"):
        expected = generate(tiny_translation, "--print-alignment", kind, task=["--task=translation"])
        for mode in EVALUATIONS:
            found = generate(tiny_translation, "--print-alignment", kind, "--decode-attention", mode)
            assert_same_output(found, expected)
            if kind == "hard":
                assert lines(found, "A") == lines(expected, "A")
            assert len(lines(found, "A")) == len(hypotheses(found))


def test_prefixes(tiny_translation, tiny_bart):
    expected = generate(tiny_translation, "--prefix-size=2", task=["--task=translation"])
    assert_same_output(generate(tiny_translation, "--prefix-size=2", "--decode-attention=el"), expected)
    expected = generate(tiny_bart, "--prefix-size=2", "--decode-attention=stock")
    assert_same_output(generate(tiny_bart, "--prefix-size=2", "--decode-attention=el"), expected)
    targets = dict(lines(expected, "T"))
    assert all(text.split()[0] == targets[number].split()[0] for number, text in hypotheses(expected))


@pytest.fixture(scope="module")
def raw_translation(tiny_translation, tmp_path_factory):
    """Text as it is, with words that the dictionary lacks."""
    data = tmp_path_factory.mktemp("raw_translation")
    for language in ("src", "tgt"):
        shutil.copy(tiny_translation.data / f"dict.{language}.txt", data)
    (data / "test.src-tgt.src").write_text("w1 größe w3\nunheard w5 w6 w7\n")
    (data / "test.src-tgt.tgt").write_text("w3 größe w1\nw7 w6 w5 unheard\n")
    return helpers.Trained(tiny_translation.raw, data, tiny_translation.checkpoint)


def test_unknown_words_are_replaced(raw_translation):
    """By the source words that fairseq aligns them with."""
    options = ["--dataset-impl=raw", "--unkpen=-99", "--max-len-b=5"]
    aligned = generate(raw_translation, *options, "--print-alignment=hard", task=["--task=translation"])
    sources = [line.split() for line in (raw_translation.data / "test.src-tgt.src").read_text().splitlines()]
    expected = []
    for (number, text), (_, alignment) in zip(hypotheses(aligned), lines(aligned, "A"), strict=True):
        assert set(text.split()) == {"<unk>"}
        places = [int(pair.split("-")[0]) for pair in alignment.split()]
        expected.append((number, " ".join(sources[number][place] for place in places)))
    tasks = [["--task=elseq_translation", f"--decode-attention={mode}"] for mode in (*EVALUATIONS, "stock")]
    for task in (*tasks, ["--task=translation"]):
        assert hypotheses(generate(raw_translation, *options, "--replace-unk", task=task)) == expected


@pytest.fixture(scope="module")
def fused(tiny_translation, fused):
    """The translation model on the data beside a language model, and that."""
    data, language_model = fused
    return helpers.Trained(tiny_translation.raw, data, tiny_translation.checkpoint), language_model


@pytest.mark.few_cases(1)
def test_fusion_with_a_language_model(fused):
    trained, language_model = fused
    options = ["--lm-path", language_model, "--lm-weight=0.5"]
    expected = generate(trained, *options, task=["--task=translation"])
    assert numbers(expected, "H").tolist() != numbers(generate(trained, task=["--task=translation"]), "H").tolist()
    for mode in EVALUATIONS:
        assert_same_output(generate(trained, *options, "--decode-attention", mode), expected)


def test_fusion_with_a_language_model_of_other_words(tiny_translation, tiny_language_model, tmp_path):
    for path in tiny_translation.data.iterdir():
        (tmp_path / path.name).symlink_to(path)
    (tmp_path / "dict.txt").symlink_to(tiny_language_model.data / "dict.txt")
    trained = helpers.Trained(tiny_translation.raw, tmp_path, tiny_translation.checkpoint)
    for task in (TRANSLATION, ["--task=translation"]):
        result = generate(trained, "--lm-path", tiny_language_model.checkpoint, task=task, check=False)
        assert error_of(result).startswith("--lm-path names a language model with a dictionary of its own (32 words, ")


def test_ensemble(tiny_translation, tiny_bart):
    path = f"{tiny_translation.checkpoint}:{tiny_bart.checkpoint}"
    expected = generate(tiny_translation, task=["--task=translation"], path=path)
    options = ["--prepend-source-bos=no", "--force-bos=no"]
    for mode in EVALUATIONS:
        assert_same_output(generate(tiny_translation, *options, "--decode-attention", mode, path=path), expected)


def test_ensemble_of_multi_query_and_multi_head_attention(tiny_translation, tiny_multi_query):
    path = f"{tiny_translation.checkpoint}:{tiny_multi_query.checkpoint}"
    expected = generate(tiny_translation, "--decode-attention=stock", path=path)  # fairseq's generator
    for mode in EVALUATIONS:
        assert_same_output(generate(tiny_translation, "--decode-attention", mode, path=path), expected)


@pytest.mark.few_cases(1)
@pytest.mark.parametrize("mode", EVALUATIONS)
def test_top_k_on_a_model_trained_without(tiny_translation, mode):
    options = ["--decode-attention", mode]
    expected = generate(tiny_translation, *options)
    assert_same_output(generate(tiny_translation, *options, "--apply-top-k=100", "--apply-ffn-top-k=64"), expected)
    few = ["--apply-top-k=2", "--apply-top-k-in=encoder,cross", "--apply-ffn-top-k=20"]
    assert numbers(generate(tiny_translation, *options, *few), "H").tolist() != numbers(expected, "H").tolist()
    assert_same_output(generate(tiny_translation, *options, "--apply-top-k=0", "--apply-ffn-top-k=0"), expected)


@pytest.mark.slow
def test_top_k_means_the_same_under_every_method(tiny_translation, tiny_bart):
    few = ["--apply-top-k=3", "--apply-ffn-top-k=20"]
    for trained in (tiny_translation, tiny_bart):
        expected = generate(trained, "--decode-attention=kv", *few)
        assert_same_output(generate(trained, "--decode-attention=el", *few), expected)
        chunks = ["--query-chunk-size=2", "--ffn-chunk-size=3"]
        assert_same_output(generate(trained, "--decode-attention=kv", *few, *chunks), expected)


@pytest.mark.parametrize(
    "options, sentence",
    [
        (["--apply-top-k=-1"], "--apply-top-k -1 is not possible: give 1 or more, or 0 for all"),
        (["--apply-top-k=4", "--apply-top-k-in=middle"], "--apply-top-k-in middle is unknown"),
        (
            ["--apply-ffn-top-k=4", "--decode-attention=stock"],
            "--apply-ffn-top-k does not go with stock, fairseq's own decoding: leave out one",
        ),
    ],
)
def test_top_k_that_cannot_be(tiny_translation, options, sentence):
    assert sentence in error_of(generate(tiny_translation, *options, check=False))


def test_constraints(tiny_translation):
    text = "w1 w2 w3\tw9 w8\nw4 w5\n\tw7\n"
    expected = interact(tiny_translation, text, "--constraints", task=["--task=translation"])
    for mode in EVALUATIONS:
        found = interact(tiny_translation, text, "--constraints", "--decode-attention", mode)
        assert_same_output(found, expected)
        assert "w9 w8" in hypotheses(found)[0][1]


def test_constraints_that_cannot_be_met(tiny_translation):
    text = "w1 w2\tw9 w8 w7 w6 w5\n"
    found = interact(tiny_translation, text, "--constraints", "--max-len-b=3", "--decode-attention=el")
    assert [number for number, _ in hypotheses(found)] == [0]


@pytest.mark.few_cases(1)
@pytest.mark.parametrize("task", [TRANSLATION, ["--task=translation"]], ids=["ours", "stock"])
def test_shards(tiny_translation, task):
    """They have all sentences together, and none twice."""
    whole = generate(tiny_translation, "--batch-size=4", task=task)
    shards = [
        generate(tiny_translation, "--batch-size=4", "--num-shards=3", f"--shard-id={shard}", task=task)
        for shard in range(3)
    ]
    found = [hypotheses(shard) for shard in shards]
    assert all(found)
    assert sorted(sum(found, [])) == sorted(hypotheses(whole))


def test_shards_of_interactive(tiny_translation):
    result = interact(tiny_translation, "w1", "--num-shards=2", check=False)
    assert error_of(result) == ("fairseq-interactive does not know --num-shards: use fairseq-generate, or leave it out")


def test_empty_lines(tiny_translation, tiny_bart, tiny_language_model):
    text = "w1 w2 w3\n\n   \nw4\n"
    for trained, task in (
        (tiny_translation, TRANSLATION),
        (tiny_bart, TRANSLATION),
        (tiny_language_model, LANGUAGE_MODEL),
    ):
        expected = interact(trained, text, "--decode-attention=kv", task=task)
        assert {number for number, _ in hypotheses(expected)} == {0, 1, 2, 3}
        batched = ["--buffer-size=4", "--batch-size=4"]
        assert_same_output(interact(trained, text, "--decode-attention=el", *batched, task=task), expected)


@pytest.mark.few_cases(1)
@pytest.mark.parametrize("mode", EVALUATIONS)
def test_padding_of_a_batch_changes_nothing(tiny_translation, mode):
    expected = generate(tiny_translation, "--batch-size=1", "--decode-attention", mode)
    for options in (
        ["--max-tokens=100"],
        ["--num-batch-buckets=3"],
        ["--required-batch-size-multiple=4", "--required-seq-len-multiple=8", "--batch-size=7"],
    ):
        assert_same_output(generate(tiny_translation, "--decode-attention", mode, *options), expected)


# --- models of our own


def train(arch, data, save_dir, *options):
    command = helpers.train_command(arch, data, save_dir, *PLUGIN, "--log-format=simple", *options)
    return helpers.run_here(command)


BLEU = [
    "--eval-bleu",
    "--eval-bleu-args",
    '{"beam": 2, "min_len": 4}',
    "--best-checkpoint-metric=bleu",
    "--validate-interval=1",
]
BLEU += ["--maximize-best-checkpoint-metric", "--eval-bleu-print-samples"]


@pytest.mark.few_cases(1)
@pytest.mark.parametrize(
    "arch, model",
    [
        pytest.param("elseq_transformer", [], marks=pytest.mark.slow),
        ("el_transformer", []),
        ("el_bart_base", []),
        ("mq_transformer", ["--local-attention-radius=3"]),
        pytest.param("mq_bart_base", ["--cross-num-kv-heads=2", "--head-dim=5"], marks=pytest.mark.slow),
    ],
)
def test_train_resume_validate_and_generate(raw_text, translation_data, tmp_path, arch, model):
    options = [*TRANSLATION, *BLEU, *model]
    is_bart = arch.endswith("bart_base")
    if is_bart:  # after so few updates it says nothing, and of that there is no BLEU
        options.append("--best-checkpoint-metric=loss")
    log = train(arch, translation_data, tmp_path, *options, "--max-update=3").stdout
    assert re.search(r"example hypothesis: .*\n.*example reference: w\d+", log)
    assert is_bart or re.search(r"bleu [\d.]+ .*num_updates 3", log)
    log = train(arch, translation_data, tmp_path, *options, "--max-update=6").stdout
    assert re.search(r"Loaded checkpoint .*checkpoint_last.pt \(epoch \d+ @ 3 updates\)", log)
    trained = helpers.Trained(raw_text, translation_data, tmp_path / "checkpoint_last.pt")

    command = ["fairseq-validate", translation_data, "--path", trained.checkpoint, "--max-tokens=500", *PROCESS]
    assert "valid on 'valid' subset | loss" in helpers.run_here(command).stdout

    expected = generate(trained, "--decode-attention=stock")  # fairseq's generator
    assert {number for number, _ in hypotheses(expected)} == set(range(21))
    for options in ([], ["--decode-attention=kv"], ["--decode-attention=el"]):
        assert_same_output(generate(trained, *options), expected)


@pytest.mark.slow
def test_a_training_that_decodes_in_int8(translation_data, raw_text, tmp_path):
    """Only its BLEU is of int8, and at each validation of the parameters of then. A stock architecture, by no
    method."""
    lines, weights = [], []
    for dtype in ([], ["--decode-dtype=int8"]):
        folder = tmp_path / str(len(dtype))
        log = train("transformer", translation_data, folder, *TRANSLATION, *BLEU, *dtype, "--max-update=40").stdout
        lines.append(re.findall(r"(loss [\d.]+ \| .*ppl [\d.]+) .*\| bleu ([\d.]+)", log))
        trained = helpers.Trained(raw_text, translation_data, folder / "checkpoint_last.pt")
        weights.append(torch.load(trained.checkpoint, weights_only=False)["model"])
    assert [loss for loss, _ in lines[0]] == [loss for loss, _ in lines[1]] and len(lines[0]) > 4
    assert [bleu for _, bleu in lines[0]] != [bleu for _, bleu in lines[1]]
    assert all(weights[0][name].equal(weight) for name, weight in weights[1].items())
    command = ["fairseq-validate", translation_data, "--path", trained.checkpoint, "--max-tokens=500", *PROCESS]
    assert f"| bleu {lines[1][-1][1]} " in helpers.run_here(command).stdout


@pytest.mark.few_cases(1)
@pytest.mark.parametrize(
    "arch, model", [("elseq_transformer_lm", []), ("mq_transformer_lm_gpt2_124m", ["--local-attention-radius=3"])]
)
def test_train_and_use_a_language_model(raw_text, language_model_data, tmp_path, arch, model):
    task = ["--task=elseq_language_modeling", *model]
    train(arch, language_model_data, tmp_path, *task, "--max-update=3")
    log = train(arch, language_model_data, tmp_path, *task, "--max-update=6").stdout
    assert "@ 3 updates)" in log
    trained = helpers.Trained(raw_text, language_model_data, tmp_path / "checkpoint_last.pt")
    command = ["fairseq-eval-lm", language_model_data, "--path", trained.checkpoint, "--tokens-per-sample=64", *PROCESS]
    tokens = sum(len(line.split()) + 1 for line in (raw_text / "test.lm").read_text().splitlines())
    assert f"Evaluated {tokens} tokens" in helpers.run_here(command).stdout
    expected = generate(trained, "--decode-attention=kv", task=LANGUAGE_MODEL)
    assert_same_output(generate(trained, "--decode-attention=el", task=LANGUAGE_MODEL), expected)


def test_interactive_translation_by_multi_query_attention(tiny_multi_query):
    text = "w1 w2 w3\n\nw4 w5 w6 w7 w8 w9 w10 w11\n"
    expected = interact(tiny_multi_query, text, "--decode-attention=stock")
    for mode in EVALUATIONS:
        assert_same_output(interact(tiny_multi_query, text, "--decode-attention", mode), expected)


def test_key_value_heads_that_do_not_divide(translation_data, tmp_path):
    command = helpers.train_command("elseq_transformer", translation_data, tmp_path, *PLUGIN, "--cross-num-kv-heads=3")
    sentence = error_of(helpers.run_here(command, check=False))
    assert sentence == "--cross-num-kv-heads 3 does not divide --decoder-attention-heads 4: give one of 1, 2, 4"


def test_training_equals_that_of_the_stock_model(translation_data, tmp_path):
    """The same initial parameters, gradients and losses."""
    losses = []
    for arch in ("transformer", "elseq_transformer"):
        options = ["--max-update=10", "--log-interval=1", "--dropout=0", "--attention-dropout=0"]
        log = train(arch, translation_data, tmp_path / arch, *options).stdout
        losses.append([float(loss) for loss in re.findall(r"epoch \d+: .* loss=([\d.]+)", log)])
    assert len(losses[0]) >= 5
    torch.testing.assert_close(torch.tensor(losses[1]), torch.tensor(losses[0]), rtol=1e-3, atol=2e-3)


def write_configuration(path, data, save_dir, task, model):
    path.write_text(f"""# @package _group_
common: {{user_dir: {helpers.USER_DIR}, cpu: true, seed: 1, log_format: simple}}
task: {{_name: {task}, data: {data}, tokens_per_sample: 64}}
model: {{_name: {model}, decoder_layers: 2, decoder_embed_dim: 32, decoder_ffn_embed_dim: 64,
  decoder_attention_heads: 4, share_decoder_input_output_embed: true}}
criterion: {{_name: cross_entropy}}
optimizer: {{_name: adam, adam_betas: "(0.9,0.98)"}}
lr_scheduler: {{_name: fixed}}
dataset: {{max_tokens: 800, num_workers: 0}}
optimization: {{max_update: 3, lr: [0.01]}}
checkpoint: {{save_dir: {save_dir}, no_epoch_checkpoints: true}}
""")


def parameters(log):
    return int(re.search(r"num\. shared model params: ([\d,]+)", log)[1].replace(",", ""))


@pytest.mark.slow
@pytest.mark.parametrize(
    "task, model", [("elseq_translation", "elseq_transformer"), ("elseq_language_modeling", "elseq_transformer_lm")]
)
def test_hydra(translation_data, language_model_data, tmp_path, task, model):
    data = translation_data if task == "elseq_translation" else language_model_data
    write_configuration(tmp_path / "small.yaml", data, tmp_path / "hydra", task, model)
    if task == "elseq_translation":
        text = (
            (tmp_path / "small.yaml").read_text().replace("tokens_per_sample: 64", "source_lang: src, target_lang: tgt")
        )
        sizes = "encoder_layers: 2, encoder_embed_dim: 32, encoder_ffn_embed_dim: 64, encoder_attention_heads: 4"
        (tmp_path / "small.yaml").write_text(
            text.replace("share_decoder_input_output_embed: true", f"{sizes}, share_all_embeddings: true")
        )
    command = ["fairseq-hydra-train", "--config-dir", tmp_path, "--config-name", "small", f"hydra.run.dir={tmp_path}"]
    result = helpers.run(command)
    output = result.stdout.decode() + result.stderr.decode()
    assert result.returncode == 0, output
    trained = helpers.Trained(None, data, tmp_path / "hydra" / "checkpoint_last.pt")
    by_command = train(model, data, tmp_path / "command", f"--task={task}", "--max-update=1").stdout
    log = "".join(path.read_text() for path in tmp_path.glob("*.log"))
    assert parameters(output + log) == parameters(by_command)
    options = TRANSLATION if task == "elseq_translation" else LANGUAGE_MODEL
    assert_same_output(
        generate(trained, "--decode-attention=el", task=options),
        generate(trained, "--decode-attention=kv", task=options),
    )


@pytest.mark.slow
def test_commands_in_processes_of_their_own(tiny_translation, tiny_bart):
    for trained, modes in ((tiny_translation, ("stock", "kv", "el", "auto")), (tiny_bart, ("stock", "el"))):
        command = ["fairseq-generate", trained.data, "--path", trained.checkpoint, *TRANSLATION, *SEARCH, *PROCESS]
        outputs = []
        for mode in modes:
            result = helpers.run([*command, "--decode-attention", mode])
            assert result.returncode == 0, result.stderr
            assert not re.search(rb"Warning|Traceback", result.stderr), result.stderr
            outputs.append([line.split(b"\t")[::2] for line in result.stdout.splitlines() if line.startswith(b"H-")])
        assert len(outputs[0]) == 42
        assert all(output == outputs[0] for output in outputs)


# --- bad input


def test_unknown_method(tiny_translation):
    result = generate(tiny_translation, "--decode-attention=fast", check=False)
    assert error_of(result).endswith("--decode-attention fast is unknown; choose one of auto, kv, el, stock")


def test_bad_input_ends_a_process_with_one_line(tiny_translation):
    command = ["fairseq-generate", tiny_translation.data, "--path", tiny_translation.checkpoint, *TRANSLATION, *PROCESS]
    result = helpers.run([*command, "--decode-attention=fast"])
    assert result.returncode == 1
    last = result.stderr.decode().splitlines()[-1]
    assert last.startswith("elseq: error: ") and "--decode-attention fast is unknown" in last
    assert b"Traceback" not in result.stderr


@pytest.mark.parametrize("content", ["truncated", "text", "nothing"])
def test_checkpoint_that_is_none(tiny_translation, tmp_path, content):
    path = tmp_path / "model.pt"
    if content == "truncated":
        whole = tiny_translation.checkpoint.read_bytes()
        path.write_bytes(whole[: len(whole) // 2])
    elif content == "text":
        path.write_text("no checkpoint\n")
    else:
        path.write_bytes(b"")
    sentence = error_of(generate(tiny_translation, "--decode-attention=el", path=path, check=False))
    assert str(path) in sentence


class Foreign:
    """A class that a checkpoint should not hold."""


def test_checkpoint_with_a_foreign_class(tiny_translation, tmp_path):
    state = torch.load(tiny_translation.checkpoint, weights_only=False)
    state["extra_state"] = {"something": Foreign()}
    torch.save(state, tmp_path / "model.pt")
    sentence = error_of(generate(tiny_translation, path=tmp_path / "model.pt", check=False))
    assert "Foreign" in sentence and str(tmp_path / "model.pt") in sentence


def test_architecture_that_has_no_el(translation_data, raw_text, tmp_path):
    sizes = ["--encoder-embed-dim=16", "--decoder-embed-dim=16", "--decoder-out-embed-dim=16", "--max-update=1"]
    process = ["--cpu", "--num-workers=0", "--optimizer=adam", "--max-tokens=800", "--disable-validation"]
    helpers.run_here(["fairseq-train", translation_data, "--arch=lstm", *sizes, *process, "--save-dir", tmp_path])
    trained = helpers.Trained(raw_text, translation_data, tmp_path / "checkpoint_last.pt")
    sentence = error_of(generate(trained, "--decode-attention=el", check=False))
    assert sentence.endswith("--decode-attention el cannot decode this model, because it is a LSTMModel; use stock")
    expected = generate(trained, task=["--task=translation"])
    found = generate(trained)
    assert "the model keeps fairseq's own modules, because it is a LSTMModel" in found.stdout
    assert_same_output(found, expected)


@pytest.mark.parametrize("mode", ["stock", "el"])
def test_dictionary_that_does_not_match(tiny_translation, tmp_path, mode):
    data = tmp_path / "data"
    shutil.copytree(tiny_translation.data, data)
    for language in ("src", "tgt"):
        with open(data / f"dict.{language}.txt", "a") as dictionary:
            dictionary.write("more 1\nwords 1\n")
    trained = helpers.Trained(tiny_translation.raw, data, tiny_translation.checkpoint)
    sentence = error_of(generate(trained, "--decode-attention", mode, check=False))
    assert str(tiny_translation.checkpoint) in sentence and "dictionary" in sentence


@pytest.mark.parametrize("mode", ["stock", "el"])
def test_source_that_is_too_long(tiny_translation, raw_translation, tmp_path, mode):
    data = tmp_path / "data"
    shutil.copytree(raw_translation.data, data)
    for language in ("src", "tgt"):
        with open(data / f"test.src-tgt.{language}", "a") as text:
            text.write("w1 " * 100 + "\n")
    trained = helpers.Trained(None, data, tiny_translation.checkpoint)
    options = ["--dataset-impl=raw", "--decode-attention", mode]
    sentence = error_of(generate(trained, *options, check=False))
    assert sentence.startswith("sentence 2 (w1 w1") and "101 source tokens and 101 target tokens" in sentence
    skipped = generate(trained, *options, "--skip-invalid-size-inputs-valid-test")
    assert {number for number, _ in hypotheses(skipped)} == {0, 1}


def test_prompt_that_is_too_long(tiny_language_model):
    text = " ".join(["w1"] * 80)
    sentence = error_of(interact(tiny_language_model, text, task=LANGUAGE_MODEL, check=False))
    assert sentence.startswith("sentence 0") and "--skip-invalid-size-inputs-valid-test" in sentence
    exactly = " ".join(["w1"] * 63)
    sentence = error_of(interact(tiny_language_model, exactly, task=LANGUAGE_MODEL, check=False))
    assert sentence.startswith("--min-len 1 is more than the 0 tokens that the model's positions leave")


def test_alignment_of_a_language_model(tiny_language_model):
    for option in (["--print-alignment=hard"], ["--replace-unk"]):
        result = interact(tiny_language_model, "w1\n", *option, task=LANGUAGE_MODEL, check=False)
        assert "a language model has no source to align with" in error_of(result)


def test_separator_that_is_no_word(tiny_language_model):
    task = ["--task=elseq_language_modeling", "--prompt-separator=TL;DR", "--tokens-per-sample=64"]
    sentence = error_of(generate(tiny_language_model, task=task, check=False))
    assert sentence == "--prompt-separator TL;DR is not in the dictionary; give a word that is"


@pytest.mark.parametrize("mode", ["stock", "el"])
def test_invalid_encoding(tiny_translation, mode):
    text = b"w1 w2\ngr\xf6\xdfe\nw3\n"
    result = interact(tiny_translation, text, "--buffer-size=2", "--decode-attention", mode, check=False)
    assert error_of(result) == "line 2 of the standard input is not valid UTF-8: convert with iconv"
    assert [source for _, source in lines(result, "S")] == ["w1 w2", "<unk>", "w3"]
    assert {number for number, _ in hypotheses(result)} == {0, 1, 2}


@pytest.mark.few_cases(3)
@pytest.mark.parametrize("task", [["--task=translation"], TRANSLATION], ids=["stock", "elseq"])
@pytest.mark.parametrize(
    "options, sentence",
    [
        (["--sampling"], "--sampling requires --nbest to be equal to --beam"),
        (["--replace-unk"], "--replace-unk requires a raw text dataset (--dataset-impl=raw)"),
        (["--print-step"], "--print-step is for models that refine their output iteratively: leave it out"),
    ],
    ids=str,
)
def test_options_that_do_not_go_together(tiny_translation, options, sentence, task):
    assert error_of(generate(tiny_translation, *options, task=task, check=False)) == sentence


@pytest.mark.slow
def test_assertion_about_an_option_ends_a_process_with_one_line(tiny_translation):
    command = ["fairseq-generate", tiny_translation.data, "--path", tiny_translation.checkpoint, *TRANSLATION, *PROCESS]
    result = helpers.run([*command, "--sampling"])
    assert result.returncode == 1
    last = result.stderr.decode().splitlines()[-1]
    assert last == "elseq: error: --sampling requires --nbest to be equal to --beam"
    assert b"Traceback" not in result.stderr
