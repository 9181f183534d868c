import pytest
import torch
from fairseq.dataclass.configs import GenerationConfig
from fairseq.models.transformer_lm import TransformerLanguageModel
from fairseq.sequence_generator import SequenceGenerator as StockGenerator

from elseq.errors import UserError
from elseq.generation import SequenceGenerator
from elseq.models import ElseqTransformerLanguageModel
from elseq.tasks.language_modeling import ElseqLanguageModelingConfig, ElseqLanguageModelingTask
from tests.helpers import SEPARATOR
from tests.tasks.loading import generate, interactive_batch, load_language_model, make_batch
from tests.tiny_models import assert_same_hypotheses, pad_rows, task_configuration


def words(task, tokens):
    return task.dictionary.string(tokens[tokens.ne(task.dictionary.pad())]).split()


def rows_of(trained, task, size=5):
    """Prompt and target of the first lines, as token numbers."""
    lines = (trained.raw / "test.lm").read_text().splitlines()[:size]
    pairs = [line.split(f" {SEPARATOR} ") for line in lines]
    index = task.dictionary.index
    prompts = [[task.dictionary.eos(), *map(index, source.split()), index(SEPARATOR)] for source, _ in pairs]
    targets = [[*map(index, target.split()), task.dictionary.eos()] for _, target in pairs]
    return prompts, targets


@pytest.mark.parametrize("mode", [None, "kv", "el", "stock"])
def test_model_and_generator(tiny_language_model, mode):
    task, model = load_language_model(tiny_language_model, decode_attention=mode)
    stock = mode == "stock"
    assert type(model) is (TransformerLanguageModel if stock else ElseqTransformerLanguageModel)
    assert type(task.build_generator([model], GenerationConfig())) is (StockGenerator if stock else SequenceGenerator)


@pytest.mark.parametrize("target", ["self", "past"])
def test_targets_that_a_language_model_sees(tiny_language_model, target):
    with pytest.raises(UserError, match=f"--{target}-target is for models that read texts in both directions"):
        load_language_model(tiny_language_model, **{f"{target}_target": True})


@pytest.mark.parametrize("mode", ["kv", "el"])
def test_a_line_is_prompt_separator_and_target(tiny_language_model, mode):
    task, model = load_language_model(tiny_language_model, prompt_separator=SEPARATOR, decode_attention=mode)
    prompts, targets = rows_of(tiny_language_model, task)
    batch = make_batch(task)
    found = generate(task, model, batch)
    pad = task.dictionary.pad()
    assert torch.equal(batch["net_input"]["src_tokens"], pad_rows(prompts, pad))
    assert [row[row.ne(pad)].tolist() for row in batch["target"]] == targets
    # fairseq's generator, given each prompt as a prefix, without the lengths and scores of its words.
    stock_task, stock = load_language_model(tiny_language_model, decode_attention="stock")
    generator = StockGenerator([stock], task.dictionary, beam_size=1, max_len_b=50)
    [greedy] = task.build_generator([model], GenerationConfig(beam=1, max_len_b=12)).generate(
        [model], interactive_batch(task, ["w1 w2 =>"]), prompt_tokens=torch.tensor([prompts[0]])
    )
    sample = {"net_input": {"src_tokens": torch.tensor([prompts[0]]), "src_lengths": torch.tensor([len(prompts[0])])}}
    [[expected]] = generator.generate([stock], sample, prefix_tokens=torch.tensor([prompts[0][1:]]))
    continuation = expected["tokens"].tolist()[len(prompts[0]) - 1 :]
    assert greedy[0]["tokens"].tolist()[:12] == continuation[:12]
    # Neither is the prompt repeated.
    assert all(task.dictionary.index(SEPARATOR) not in best["tokens"] for [best, *_] in found)


def test_modes_agree(tiny_language_model):
    results = []
    for mode in ("auto", "kv", "el"):
        task, model = load_language_model(tiny_language_model, prompt_separator=SEPARATOR, decode_attention=mode)
        results.append(generate(task, model, make_batch(task)))
    assert_same_hypotheses(results[0], results[1])
    assert_same_hypotheses(results[1], results[2])


def test_lines_without_the_separator_get_it(tiny_language_model):
    task, model = load_language_model(tiny_language_model, prompt_separator=SEPARATOR)
    lines = ["w1 w2 w3", "w4 => w5 w6 => w7", "", "w8 =>"]
    batch = interactive_batch(task, lines)
    found = generate(task, model, batch)
    prompts = [words(task, row) for row in batch["net_input"]["src_tokens"]]
    assert prompts == [["w1", "w2", "w3", "=>"], ["w4", "=>"], ["=>"], ["w8", "=>"]]
    alone = [generate(task, model, interactive_batch(task, [line]))[0] for line in lines]
    assert_same_hypotheses(found, alone)


def test_without_a_separator_the_line_is_the_prompt(tiny_language_model):
    task, model = load_language_model(tiny_language_model)
    lines = ["w1 w2 =>", "", "w3 => w4"]
    batch = interactive_batch(task, lines)
    found = generate(task, model, batch)
    assert [words(task, row) for row in batch["net_input"]["src_tokens"]] == [line.split() for line in lines]
    split, _ = load_language_model(tiny_language_model, prompt_separator=SEPARATOR)
    assert_same_hypotheses(found[:1], generate(split, model, interactive_batch(split, lines[:1])))


def test_prefix_size(tiny_language_model):
    """The first words of the target, which in a language model's data is the line."""
    task, model = load_language_model(tiny_language_model)
    batch = make_batch(task)
    found = generate(task, model, batch, prefix_tokens=batch["target"][:, :3])
    start = torch.full((5, 1), task.dictionary.eos())
    sample = {"net_input": {"src_tokens": torch.cat((start, batch["target"][:, :3]), dim=1)}}
    sample["net_input"]["src_lengths"] = torch.full((5,), 4)
    assert_same_hypotheses(found, generate(task, model, sample))


def test_beginning_symbol(tiny_language_model):
    task, model = load_language_model(tiny_language_model, add_bos_token=True)
    batch = interactive_batch(task, ["w1 w2", "w3"])
    assert batch["net_input"]["src_tokens"][:, 0].tolist() == [task.dictionary.bos()] * 2
    found = generate(task, model, batch)
    again = generate(task, model, batch, prefix_tokens=batch["net_input"]["src_tokens"][:, 1:])
    assert_same_hypotheses(found, again)


def test_stock_mode_is_fairseq(tiny_language_model):
    task, model = load_language_model(tiny_language_model, decode_attention="stock")
    lines = ["w1 w2 =>", "w3"]
    found = generate(task, model, interactive_batch(task, lines))
    assert [words(task, best["tokens"])[:1] for [best, *_] in found] == [["w1"], ["w3"]]  # the prompt is repeated


def test_separator_that_is_no_word(tiny_language_model):
    task, model = load_language_model(tiny_language_model, prompt_separator="TL;DR")
    with pytest.raises(UserError, match="--prompt-separator TL;DR is not in the dictionary"):
        generate(task, model, make_batch(task))


def test_constraints_are_refused(tiny_language_model):
    task, model = load_language_model(tiny_language_model)
    with pytest.raises(UserError, match="remove --constraints"):
        generate(task, model, make_batch(task), constraints=torch.zeros(5, 1))


def test_the_target_of_a_line_without_the_separator_is_its_end(tiny_language_model):
    """fairseq's BLEU reads beyond a target that has nothing, and crashes the process."""
    task, model = load_language_model(tiny_language_model, prompt_separator=SEPARATOR)
    batch = interactive_batch(task, ["w1 w2 w3", "w4 => w5"])
    eos, pad = task.dictionary.eos(), task.dictionary.pad()
    batch["target"] = torch.where(batch["target"].eq(pad), pad, batch["target"])
    generate(task, model, batch)
    assert batch["target"][0].tolist()[:1] == [eos]
    assert words(task, batch["target"][1])[:1] == ["w5"]


def test_no_data_folder():
    with pytest.raises(UserError, match="^the data folder is missing"):
        ElseqLanguageModelingTask.setup_task(task_configuration(ElseqLanguageModelingConfig()))


def test_prompts_of_several_lines_are_refused(tiny_language_model):
    """fairseq's default is to cut data into blocks that heed no line."""
    task, model = load_language_model(tiny_language_model, sample_break_mode="none", tokens_per_sample=20)
    generate(task, model, interactive_batch(task, ["w1 </s> w2"]))
    with pytest.raises(UserError, match="^a prompt runs over the end of a line: give --sample-break-mode eos"):
        generate(task, model, make_batch(task))
    blocks = make_batch(task)["target"]
    with pytest.raises(UserError, match="^a prompt runs over the end of a line: give --sample-break-mode eos"):
        generate(task, model, make_batch(task), prefix_tokens=blocks)
    first_line = 1 + int(blocks.eq(task.dictionary.eos()).int().argmax(dim=1).min())
    generate(task, model, make_batch(task), prefix_tokens=blocks[:, :first_line])
