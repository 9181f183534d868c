"""A task with a trained model, batches for them, and what they generate."""

from fairseq import checkpoint_utils
from fairseq.dataclass.configs import GenerationConfig

from elseq.tasks import ElseqLanguageModelingTask, ElseqTranslationTask
from elseq.tasks.language_modeling import ElseqLanguageModelingConfig
from elseq.tasks.translation import ElseqTranslationConfig
from tests.tiny_models import task_configuration


def load_translation(trained, **options):
    """A task and its model."""
    return _load(ElseqTranslationTask, ElseqTranslationConfig(data=str(trained.data), **options), trained)


def load_language_model(trained, **options):
    """A task and its model."""
    options = {"data": str(trained.data), "sample_break_mode": "eos", "tokens_per_sample": 64, **options}
    return _load(ElseqLanguageModelingTask, ElseqLanguageModelingConfig(**options), trained)


def _load(task_class, config, trained):
    task = task_class.setup_task(task_configuration(config))
    [model], _ = checkpoint_utils.load_model_ensemble([str(trained.checkpoint)], task=task)
    return task, model.eval()


def make_batch(task, size=5):
    """Of the test set."""
    task.load_dataset("test")
    dataset = task.dataset("test")
    return dataset.collater([dataset[index] for index in range(size)])


def interactive_batch(task, lines):
    encoded = [task.source_dictionary.encode_line(line, add_if_not_exist=False).long() for line in lines]
    dataset = task.build_dataset_for_inference(encoded, [len(tokens) for tokens in encoded])
    return dataset.collater([dataset[index] for index in range(len(lines))])


def generate(task, model, batch, **options):
    generator = task.build_generator([model], GenerationConfig(beam=4, max_len_b=12))
    return task.inference_step(generator, [model], batch, **options)
