"""The interface of a family of Hugging Face's models, with the parts that families share."""

from abc import ABC, abstractmethod
from collections.abc import Sequence
from pathlib import Path

from torch import Tensor

from elseq.errors import UserError, as_option
from elseq.interop.checkpoints import training_configuration
from elseq.interop.hugging_face import vocabulary
from elseq.interop.hugging_face.rows import ADDED_ROWS, are_added_rows, fairseq_order
from elseq.interop.hugging_face.tokenizer import Affixes
from elseq.interop.hugging_face.vocabulary import Vocabulary
from elseq.subwords.pieces import PiecesWithIds
from elseq.subwords.tokens import Tokens

LANGUAGES = ("source", "target")
FIRST_POSITION = 2  # its row in fairseq's table of learned positions: the one after <pad>'s
# Options of elseq's task: those that name a symbol, and others that a checkpoint records.
_SYMBOLS = ("source_start", "source_end", "target_start", "decoder_start")
_SWITCHES = ("append_source_eos", "score_target_start")


class Family(ABC):
    """How a family's settings, weights and vocabulary become those of a fairseq model, and back.

    `config` is always a config.json, complete with `defaults`. `configuration` has the options of a fairseq model.
    `words` is the result of `read_vocabulary`, of which only the notes are read elsewhere: a family with two
    vocabularies returns an object of its own, and overrides the methods that take it. `to_fairseq` writes into the
    weights what fairseq computes in another way: sines as a table of learned positions, and the row of another symbol
    that decoding starts from as that of </s>.
    """

    name: str  # the model_type in config.json
    title: str  # in a sentence
    model_class: str  # of transformers, written to config.json
    tokenizer_class: str  # where tokenizer_config.json has none; one of `tokenizer.CLASSES`
    architecture: str  # fairseq's, of its class; every option is given besides
    task: str  # fairseq's
    is_language_model: bool  # it has no encoder
    by_dictionary: bool  # in fairseq's files its rows are the places in dict.txt, or else the ids in encoder.json
    defaults: dict  # of the options in config.json that matter
    aliases: dict[str, str]  # the other name of an option, and its name
    layers: dict[str, str]  # the options that count layers, and what the names of their tensors begin with
    positions: str  # the option for the most tokens that the model reads
    dictionaries: tuple[str, ...]  # the names of the files of the one dictionary

    # --- to fairseq

    @abstractmethod
    def fairseq_options(self, config: dict) -> dict:
        """fairseq's model options.

        Raises:
            UserError: a feature that fairseq's model does not have.
        """

    @abstractmethod
    def shapes(self, config: dict) -> dict[str, tuple[int, ...]]:
        """Of every tensor, by its name in the model without its head."""

    @abstractmethod
    def normalize(self, tensors: dict[str, Tensor], config: dict) -> dict[str, Tensor]:
        """A folder's tensors under the names of `shapes`.

        Raises:
            UserError: a tensor that fairseq has no place for, or embeddings that are equal by config.json and differ.
        """

    @abstractmethod
    def to_fairseq(self, tensors: dict[str, Tensor], config: dict) -> dict[str, Tensor]:
        """Tensors under fairseq's names, with the rows of the embeddings still in Hugging Face's order."""

    @abstractmethod
    def last_norm(self, configuration: dict) -> str:
        """The name of the layer norm before the output layer, in fairseq."""

    def notes(self, config: dict) -> list[str]:
        """Notes on settings that the converted model does not have."""
        return []

    def read_vocabulary(self, folder: Path, config: dict) -> Vocabulary | None:
        """The vocabulary in Hugging Face's or fairseq's files of a folder; None if there is none.

        Raises:
            UserError: a file that cannot be used.
        """
        return vocabulary.read_vocabulary(folder, self.tokenizer_class, self.by_dictionary, config["vocab_size"])

    @abstractmethod
    def check_vocabulary(self, words: Vocabulary, config: dict, folder: Path) -> bool:
        """Check the vocabulary. Returns whether fairseq puts <s> before a text, if that is an option.

        Raises:
            UserError: the folder's vocabulary is of another model, or puts other symbols around a text than fairseq.
        """

    def fairseq_orders(self, words: Vocabulary, config: dict) -> dict[str, list[int | None]]:
        """For each beginning of names of embeddings, the order of their rows as of `rows.fairseq_order`.

        Raises:
            UserError: an end symbol that the embedding does not have.
        """
        return {"": fairseq_order(words, config, config["vocab_size"])}

    def fairseq_files(self, words: Vocabulary, orders: dict[str, list[int | None]]) -> tuple[dict[str, str], list[str]]:
        """The content of the files of dictionary and tokenizer, and notes on tokens without a row.

        Raises:
            UserError: a token that cannot stand in a dictionary.
        """
        return self.files_of(words, orders[""], self.dictionaries)

    def files_of(
        self, words: Vocabulary, order: list[int | None], dictionaries: Sequence[str]
    ) -> tuple[dict[str, str], list[str]]:
        """As `fairseq_files`, of one order, with the dictionary under these names."""
        notes = []
        rows = sum(row is not None for row in order)
        known = sum(row < rows for row in words.rows.values())
        if known < rows:
            notes.append(f"{rows - known} rows of the embedding are of no word in the vocabulary")
        if known < len(words.rows):
            notes.append(f"{len(words.rows) - known} words of the vocabulary have no row in the embedding")
        return vocabulary.fairseq_files(words, order, self.by_dictionary, dictionaries), notes

    @abstractmethod
    def fixed_symbols(self, config: dict, words: Vocabulary) -> dict[str, tuple[int, ...]]:
        """The settings of generation with a fixed symbol in fairseq: that symbol, then others that are accepted."""

    @abstractmethod
    def forced_symbols(self, config: dict) -> dict[str, int | range | None]:
        """The settings of generation that force a symbol, and the symbol or symbols that fairseq can force."""

    @abstractmethod
    def checkpoint_configuration(
        self, configuration: dict, settings: dict, words: Vocabulary, add_bos_token: bool
    ) -> dict:
        """The whole configuration of a checkpoint.

        Args:
            settings: of generation.
            add_bos_token: what `check_vocabulary` returned.
        """

    @abstractmethod
    def task_arguments(self, task: dict) -> list[str]:
        """The arguments that a command needs beside the name of the task to configure it so."""

    # --- from fairseq

    @abstractmethod
    def hugging_face_options(self, configuration: dict, is_joined: bool) -> dict:
        """config.json, without the options that depend on the vocabulary.

        Args:
            is_joined: source and target have one dictionary.

        Raises:
            UserError: the model cannot be one of the family.
        """

    def check_task(self, task, tokens: Tokens | PiecesWithIds | None) -> None:
        """
        Args:
            task: the options of a checkpoint's task.
            tokens: its tokenizer that came from Hugging Face, if it has one.

        Raises:
            UserError: sources end, or decoding starts, otherwise than the family's.
        """
        if getattr(task, "append_source_eos", None) == "no":
            raise UserError(
                f"its sources have no end symbol (--append-source-eos no), and those of Hugging Face's {self.title} do"
            )

    def options_of_tensors(self, tensors: dict[str, Tensor], config: dict) -> dict:
        """Options of config.json that depend on the tensors; arguments as for `from_fairseq`."""
        return {}

    @abstractmethod
    def from_fairseq(self, tensors: dict[str, Tensor], config: dict) -> dict[str, Tensor]:
        """Tensors under Hugging Face's names; the rows of the embeddings are in its order already."""

    def notes_of_tensors(self, tensors: dict[str, Tensor]) -> list[str]:
        """Notes on the tensors that `from_fairseq` returned."""
        return []

    def order(self, words: list[str], tokens: Tokens | None, embedding: Tensor) -> list[int]:
        """The rows in Hugging Face's order, of a model without a tokenizer of Hugging Face's.

        Args:
            words: of each row.
            tokens: of fairseq's files, if there are any.
            embedding: [R, D], R rows of the width D.
        """
        return list(range(len(words)))

    def decoding_symbols(self, symbols: dict[str, int | None], forced_start: bool) -> dict:
        """Settings of generation that name a symbol, beside those of every model.

        Args:
            symbols: bos_token_id, eos_token_id and pad_token_id.
            forced_start: whether generation begins with <s>.
        """
        return {}

    def tokenizer_files(self, tokens: Tokens | PiecesWithIds, words: list[str], task) -> dict[str, str | bytes]:
        """The content of the files of a tokenizer that came from Hugging Face.

        Args:
            words: of the dictionary.
            task: the options of the checkpoint's task.
        """
        return vocabulary.tokenizer_files(tokens)

    def tokenizer_config(self, pieces: list[str], special: dict[str, int | None], positions: int) -> dict:
        """tokenizer_config.json.

        Args:
            pieces: of each row.
            special: the row of each symbol of fairseq, or None.
            positions: the most tokens that the model reads.
        """
        end = special["</s>"]
        rows = {"bos_token": special["<s>"], "pad_token": special["<pad>"], "unk_token": special["<unk>"]}
        named = {
            name: pieces[end if row is None else row]
            for name, row in (rows | {"eos_token": end}).items()
            if row is not None or name != "pad_token"
        }
        return {"tokenizer_class": self.tokenizer_class, "model_max_length": positions, **named}


class EncoderDecoder(Family):
    """With one dictionary for source and target, and fairseq's symbols around a text."""

    task = "translation"
    is_language_model = False
    by_dictionary = True
    positions = "max_position_embeddings"
    dictionaries = ("dict.txt", *(f"dict.{language}.txt" for language in LANGUAGES))
    symbol_names = {"bos_token_id": "<s>", "pad_token_id": "<pad>", "eos_token_id": "</s>"}  # the tokenizer's
    forces_end = True  # at the maximum length, where the settings of generation say nothing else

    def check_vocabulary(self, words: Vocabulary, config: dict, folder: Path) -> bool:
        if words.is_byte_level:
            self.check_symbols(words, config, folder, ("bos_token_id", "pad_token_id", "eos_token_id"))
        start, end = config["bos_token_id"], config["eos_token_id"]
        if words.affixes != self.affixes(config):
            wanted = f"{start} before and {end} after it (bos_token_id and eos_token_id)"
            if self.affixes(config) == ([], [end]):
                wanted = f"nothing before and {end} after it (eos_token_id)"
            raise other_affixes(words, folder, wanted)
        return False

    def check_symbols(self, words: Vocabulary, config: dict, folder: Path, options: Sequence[str]) -> None:
        """
        Args:
            options: the options in config.json that must have the number of their symbol.

        Raises:
            UserError: the vocabulary is of another model.
        """
        for option in options:
            name = self.symbol_names[option]
            if words.rows.get(name) != config[option]:
                place = f"number {words.rows[name]}" if name in words.rows else "missing"
                raise UserError(
                    f"the tokenizer in {folder} is of another model, since its {name} is {place}, and config.json has "
                    f"{option}: {config[option]}: name the folder of the model's own by --data"
                )

    def affixes(self, config: dict) -> Affixes:
        """The rows before and after a source."""
        return Affixes([config["bos_token_id"]], [config["eos_token_id"]])

    def fixed_symbols(self, config: dict, words: Vocabulary) -> dict[str, tuple[int, ...]]:
        return dict.fromkeys(("eos_token_id", "decoder_start_token_id"), (config["eos_token_id"],))

    def forced_symbols(self, config: dict) -> dict[str, int | None]:
        return {"forced_bos_token_id": config["bos_token_id"], "forced_eos_token_id": config["eos_token_id"]}

    def checkpoint_configuration(
        self, configuration: dict, settings: dict, words: Vocabulary, add_bos_token: bool
    ) -> dict:
        languages = f"--source-lang={LANGUAGES[0]}", f"--target-lang={LANGUAGES[1]}"
        cfg = training_configuration(configuration, self.task, *languages)
        is_forced = settings.get("forced_bos_token_id") is not None
        # elseq's task does both by default
        cfg["task"]["force_bos"] = "yes" if is_forced else "no"
        cfg["task"]["score_target_start"] = "no" if is_forced else None
        return cfg

    def task_arguments(self, task: dict) -> list[str]:
        given = [f"{as_option(name)}={task[name]}" for name in (*_SYMBOLS, *_SWITCHES) if task.get(name)]
        return ["-s", task["source_lang"], "-t", task["target_lang"], "--force-bos", task["force_bos"], *given]

    def decoding_symbols(self, symbols: dict[str, int | None], forced_start: bool) -> dict:
        names = ("decoder_start_token_id", *(["forced_eos_token_id"] if self.forces_end else []))
        ends = dict.fromkeys(names, symbols["eos_token_id"])
        return ends | ({"forced_bos_token_id": symbols["bos_token_id"]} if forced_start else {})


class LanguageModel(Family):
    """With one special symbol, before and after every text; or, by the tokenizer, <s> before it."""

    task = "language_modeling"
    is_language_model = True
    by_dictionary = False
    dictionaries = ("dict.txt",)

    def check_vocabulary(self, words: Vocabulary, config: dict, folder: Path) -> bool:
        start, end = config.get("bos_token_id"), config["eos_token_id"]
        [name, *_] = [name for name, row in words.rows.items() if row == end] or [""]
        is_word = any(letter.isalpha() for letter in name.removeprefix("Ġ"))  # "\n", "###" may end a text on purpose
        if is_word and name in {merge.replace(" ", "") for merge in words.merges}:
            raise UserError(
                f"the tokenizer in {folder} is of another model, since number {end}, with which by config.json a text "
                f"ends (eos_token_id), is {name!r}: name the folder of the model's own by --data"
            )
        prefix, suffix = words.affixes
        if suffix or prefix not in ([], [end], [start]):
            raise other_affixes(words, folder, "nothing")
        return prefix == [start] != [end]

    def fixed_symbols(self, config: dict, words: Vocabulary) -> dict[str, tuple[int, ...]]:
        return {"eos_token_id": (config["eos_token_id"],)}

    def forced_symbols(self, config: dict) -> dict[str, int | None]:
        return {"forced_bos_token_id": None, "forced_eos_token_id": config["eos_token_id"]}

    def checkpoint_configuration(
        self, configuration: dict, settings: dict, words: Vocabulary, add_bos_token: bool
    ) -> dict:
        positions = configuration["max_target_positions"]
        arguments = [f"--tokens-per-sample={positions}", f"--max-target-positions={positions}"]
        arguments += ["--sample-break-mode=eos"]  # a line is a text
        arguments += ["--add-bos-token"] if add_bos_token else []
        return training_configuration(configuration, self.task, *arguments)

    def task_arguments(self, task: dict) -> list[str]:
        return ["--sample-break-mode", task["sample_break_mode"]]

    def order(self, words: list[str], tokens: Tokens | None, embedding: Tensor) -> list[int]:
        if not are_added_rows(embedding, ADDED_ROWS):
            return super().order(words, tokens, embedding)
        order = [row for row in range(len(words)) if row not in ADDED_ROWS]
        end, *others = order
        ids = {words[row] for row in others}
        missing = [number for number in range(len(order)) if str(number) not in ids]
        place = missing[0] if tokens is not None and len(missing) == 1 else len(others)
        return [*others[:place], end, *others[place:]]


def other_affixes(words: Vocabulary, folder: Path, wanted: str) -> UserError:
    prefix, suffix = words.affixes
    return UserError(
        f"the tokenizer in {folder} puts the numbers {prefix} before a text and {suffix} after it (its "
        f"post_processor), and fairseq {wanted}"
    )
