"""Restricts the text that fairseq evaluates to literals."""

import ast
import functools
import operator
import os
import sys

from fairseq import checkpoint_utils, utils
from fairseq.criterions import ctc
from fairseq.data import codedataset
from fairseq.data.audio import raw_audio_dataset
from fairseq.models import fconv, fconv_lm, fconv_self_att, lightconv_lm, transformer_lm
from fairseq.models.hubert import hubert
from fairseq.models.speech_to_text import s2t_wav_transformer
from fairseq.models.wav2vec import wav2vec, wav2vec2
from fairseq.optim import adafactor, adam, adamax, cpu_adam, fused_lamb
from fairseq_cli import eval_lm, generate, interactive, validate

from elseq.compat.patching import Overlay
from elseq.errors import UserError

# All modules of fairseq that call `eval`; a test searches fairseq's sources for others.
EVALUATING = (
    *(utils, ctc, codedataset, raw_audio_dataset, fconv, fconv_lm, fconv_self_att, lightconv_lm, transformer_lm),
    *(hubert, s2t_wav_transformer, wav2vec, wav2vec2, adafactor, adam, adamax, cpu_adam, fused_lamb),
    *(eval_lm, validate),
)

_LONGEST_TEXT = 100_000  # characters
_MOST_VALUES = 10_000  # counting each element of nested lists
_ARITHMETIC = {ast.Add: operator.add, ast.Sub: operator.sub, ast.Mult: operator.mul, ast.Div: operator.truediv}
_SIGNS = {ast.UAdd: operator.pos, ast.USub: operator.neg}
_BRACKETS = {ast.List: list, ast.Tuple: tuple, ast.Set: set}


class NotLiteral(UserError):
    """The text is not a literal."""

    def __init__(self, text: str, reason: str):
        super().__init__(
            f"the text {text[:60]!r}{' ...' if len(text) > 60 else ''} is not evaluated ({reason}): "
            "give numbers, quoted words, True, False, None, and lists of these"
        )
        self.text = text


def evaluate(text):
    """The value of a literal, with arithmetic on numbers, and concatenation and repetition of lists.

    Raises:
        NotLiteral: the text is not a literal, or makes more than 10,000 values.
        TypeError: the argument is not text, as in `eval`.
    """
    if not isinstance(text, str):
        raise TypeError(f"expected text to evaluate and found {type(text).__name__}")
    if len(text) > _LONGEST_TEXT:
        raise NotLiteral(text, f"it has {len(text):,} characters")
    try:
        return _value(ast.parse(text.strip(), mode="eval").body)[0]
    except SyntaxError as error:
        raise NotLiteral(text, error.msg) from error
    except (ArithmeticError, TypeError, ValueError) as error:
        raise NotLiteral(text, str(error)) from error
    except (RecursionError, MemoryError) as error:  # raised by the parser
        raise NotLiteral(text, "it is nested too deeply") from error


def _value(node) -> tuple[object, int]:
    """A value, and the number of values in it, including nested ones."""
    match node:
        case ast.Constant():
            return node.value, 1
        case ast.List() | ast.Tuple() | ast.Set():
            values, sizes = _values(node.elts)
            return _BRACKETS[type(node)](values), 1 + sizes
        case ast.Dict() if None not in node.keys:
            (keys, key_sizes), (values, sizes) = _values(node.keys), _values(node.values)
            return dict(zip(keys, values, strict=True)), 1 + key_sizes + sizes
        case ast.UnaryOp() if type(node.op) in _SIGNS:
            value, size = _value(node.operand)
            return _SIGNS[type(node.op)](value), size
        case ast.BinOp() if type(node.op) in _ARITHMETIC:
            (left, left_size), (right, right_size) = _value(node.left), _value(node.right)
            size = left_size + right_size
            if isinstance(node.op, ast.Mult):
                size *= max(1, *(value for value in (left, right) if isinstance(value, int)), 0)
                if not any(isinstance(value, list | tuple) for value in (left, right)):
                    if any(isinstance(value, str | bytes) for value in (left, right)):
                        raise ValueError("text is not repeated")
                    size = 1
            if size > _MOST_VALUES:
                raise ValueError(f"it makes more than {_MOST_VALUES:,} values")
            return _ARITHMETIC[type(node.op)](left, right), size
    raise ValueError(f"it holds {ast.unparse(node) if isinstance(node, ast.Name) else f'a {type(node).__name__}'}")


def _values(nodes) -> tuple[list, int]:
    pairs = [_value(node) for node in nodes]
    return [value for value, _ in pairs], sum(size for _, size in pairs)


def evaluate_literals_only():
    """fairseq passes options to `eval`, including those of a checkpoint, so loading a checkpoint can run any code.
    Options of the command line are also restricted to literals, and --model-overrides to a dictionary."""
    for module in EVALUATING:
        module.eval = evaluate
    checkpoint_utils.ast = Overlay(ast, literal_eval=functools.partial(_overrides, option="--optimizer-overrides"))
    for module in (generate, interactive, validate, eval_lm, sys.modules["__main__"]):  # python -m fairseq_cli....
        _evaluate_overrides_in(module)


def _evaluate_overrides_in(module):
    if os.path.basename(os.path.dirname(getattr(module, "__file__", None) or "")) != "fairseq_cli":
        return
    if hasattr(module, "ast"):
        module.ast = Overlay(ast, literal_eval=_overrides)
    else:
        module.eval = _overrides


def _overrides(text, option="--model-overrides"):
    """The only text that fairseq's commands evaluate directly, and --optimizer-overrides."""
    try:
        overrides = evaluate(text)
    except NotLiteral as error:
        raise UserError(str(error), option) from error
    if not isinstance(overrides, dict) or not all(isinstance(name, str) for name in overrides):
        raise UserError(f"{text} is no dictionary of options: give one such as \"{{'beam': 4}}\"", option)
    return overrides
