"""All repairs of fairseq on current Python, PyTorch and numpy.

fairseq-fixed 0.12.3.1 installs there, but its commands cannot load the checkpoints that they save, fail on numpy 2,
omit sentences, and print a traceback for bad input. Importing elseq applies the repairs once. The docstring of each
repair says what happens without it. No repair depends on elseq's models.
"""

import contextlib
import functools
import logging
import multiprocessing
import sys
import warnings

from elseq.imports import imported_when_called

CLASSIFICATION = ("fairseq.criterions.sentence_prediction", "fairseq.tasks.audio_classification")


@contextlib.contextmanager
def _importing_fairseq():
    """Leaves the program as it is: fairseq makes the whole process log to stderr at level DEBUG, and chooses the start
    method of `multiprocessing` by making a lock. And it does not import scikit-learn and scipy, which take almost two
    seconds, for the classification of sentences and of speech. Nor are there warnings about old code in fairseq and its
    libraries, which are errors by `python -W error`."""
    root = logging.getLogger()
    level, handlers = root.level, root.handlers[:]
    start_method = multiprocessing.get_start_method(allow_none=True)
    # the import warns about a missing tensorboardX, which only speech synthesis uses
    logging.getLogger("fairseq.tasks.text_to_speech").setLevel(logging.WARNING)
    try:
        with (
            imported_when_called("sklearn.metrics", "scipy.stats", by=CLASSIFICATION),
            warnings.catch_warnings(action="ignore"),
        ):
            yield
    finally:
        root.setLevel(level)
        root.handlers[:] = handlers
        if start_method is None:
            multiprocessing.set_start_method(None, force=True)  # not chosen


with _importing_fairseq() if "fairseq" not in sys.modules else contextlib.nullcontext():
    from elseq.compat import (
        architectures,
        checkpoints,
        commands,
        data,
        generation,
        literals,
        parameters,
        saving,
        subwords,
        training,
    )

REPAIRS = (
    literals.evaluate_literals_only,
    checkpoints.allow_what_checkpoints_hold,
    checkpoints.explain_unreadable_files,
    checkpoints.explain_misfits,
    architectures.name_by_parameters,  # runs before explain_misfits looks for the architecture
    checkpoints.accept_missing_history,
    checkpoints.forget_best_score,
    checkpoints.forget_best_of_another_metric,
    checkpoints.explain_missing_start,
    checkpoints.explain_unusable_save_dir,
    checkpoints.share_between_processes,
    saving.write_whole_checkpoints,
    saving.refuse_asynchronous_checkpoints,
    saving.refuse_folders_for_checkpoints,
    saving.let_one_training_write_a_folder,
    parameters.read_layers_to_keep,
    parameters.prune_one_side,
    parameters.save_as_many_layers_as_there_are,
    parameters.leave_adaptive_softmax_alone,
    parameters.ignore_leftovers,
    data.restore_numpy_names,
    data.keep_last_batch,
    data.stop_reading_ahead,
    data.end_workers_that_hear_nothing,
    data.end_workers_without_a_word,
    data.explain_missing_data,
    data.explain_damaged_data,
    data.explain_long_sentences,
    data.explain_unusable_dictionaries,
    data.explain_unusable_embeddings,
    data.explain_unusable_subwords,
    data.explain_wrong_encoding,
    generation.score_what_is_printed,
    generation.replace_unknown_words,
    generation.search_diverse_groups_apart,
    generation.ask_for_enough_candidates,
    generation.draw_the_end_where_nothing_is_left,
    generation.align_fewer_hypotheses,
    generation.explain_search_options,
    generation.search_soundly,
    subwords.choose_characters_and_bytes,
    subwords.say_nothing_for_words_that_are_no_piece,
    subwords.decode_by_sentencepiece,
    training.clip_gradients_where_they_are,
    training.train_bfloat16_without_a_tpu,
    training.explain_missing_hardware,
    training.explain_missing_metrics,
    training.warn_of_the_worst_checkpoint,
    training.explain_options_of_bleu,
    training.explain_adaptive_softmax,
    training.explain_options_of_the_optimizer,
    training.continue_with_another_schedule,
    training.continue_in_the_middle_of_an_epoch,
    training.stop_at_the_last_update,
    training.count_hours_of_this_training,
    training.train_from_pretrained_bart,
    training.refuse_processes_that_are_strangers,
    training.keep_the_record_of_conversions,
    training.copy_tasks,
    commands.accept_elseq_as_user_dir,
    commands.take_several_user_dirs,
    commands.validate_without_task,
    commands.keep_stock_from_the_model,
    commands.validate_by_the_given_task,
    commands.validate_one_pair,
    commands.explain_missing_path,
    commands.explain_missing_architecture,
    commands.explain_architectures_of_other_tasks,
    commands.generate_one_shard,
    commands.explain_options_of_interactive,
    commands.explain_values_that_cannot_be,
    commands.explain_what_cannot_be_parsed,
    commands.explain_missing_devices,
    commands.explain_missing_targets,
    commands.tell_that_nothing_was_evaluated,
    commands.explain_missing_configuration,
    commands.let_user_errors_through_hydra,
    commands.compose_configurations_faster,
    commands.silence_old_code,
)


@functools.cache
def apply():
    """Apply all repairs. A second call has no effect."""
    for repair in REPAIRS:
        repair()
