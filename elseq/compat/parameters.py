"""Parameters of checkpoints: pruned layers, and names that other code has added."""

import contextlib
import logging
import re
from argparse import Namespace
from collections import defaultdict
from contextlib import AbstractContextManager
from contextvars import ContextVar

import torch
from fairseq import checkpoint_utils
from fairseq.models import BaseFairseqModel
from fairseq.models.transformer import TransformerDecoderBase, TransformerModelBase
from fairseq.models.transformer_lm import TransformerLanguageModel
from fairseq.trainer import Trainer

from elseq.compat.dispatch import DispatchMode
from elseq.compat.patching import after_parsing, setting, wrap
from elseq.compat.settings import model_class, unlocked, values
from elseq.compat.stored_tensors import StoredTensors
from elseq.errors import UserError

logger = logging.getLogger(__name__)

SIDES = ("encoder", "decoder")
# Prefixes of wrapper modules, which torch adds to the names of all parameters.
_WRAPPERS = ("module.", "_orig_mod.", "_fsdp_wrapped_module.", "_forward_module.")
# Suffixes of entries that are not parameters: format markers, and tensors that a model recomputes.
_NO_PARAMETERS = ("version", "_float_tensor", "num_updates", "_future_mask", "embed_positions.weights", "inv_freq")
_LAYER = re.compile(r"((encoder|decoder)\b.*?\.layers\.)([0-9]{1,9})(?=\.)")
# Entries that neither encoder nor decoder reads.
_HEADS = ("classification_heads.", "v_head.", "value_head.")
_ADOPTION: ContextVar["Adoption | None"] = ContextVar("adoption", default=None)


def prune_one_side():
    """--encoder-layers-to-keep alone also removes all layers of the decoder from a checkpoint. A training with it
    cannot be resumed, because the saved layers are pruned again."""
    checkpoint_utils.prune_state_dict = prune_state_dict


def read_layers_to_keep():
    """A Transformer or BART with --encoder-layers-to-keep or --decoder-layers-to-keep raises an AttributeError: the
    command line makes a list of numbers, and the model expects text."""

    def as_text(parsed):
        for side in SIDES:
            layers = getattr(parsed, f"{side}_layers_to_keep", None)
            if isinstance(layers, list):
                setattr(parsed, f"{side}_layers_to_keep", ",".join(map(str, layers)))
            _layers_to_keep(parsed, side)

    after_parsing(as_text)


def prune_state_dict(state_dict, model_cfg):
    """`state_dict` with only the layers in encoder_layers_to_keep and decoder_layers_to_keep, renumbered from 0.

    Raises:
        UserError: a layer does not exist.
    """
    for side in SIDES:
        kept = _layers_to_keep(model_cfg, side)
        there = layer_numbers(state_dict, side)
        if len(there) <= len(kept) or not kept:  # the checkpoint may be pruned already
            continue
        if not set(kept) <= there:
            wanted = ",".join(map(str, kept))
            raise UserError(f"{wanted} names layers that are not among the {len(there)}", f"--{side}-layers-to-keep")
        places = {layer: place for place, layer in enumerate(kept)}
        renamed = ((_renumbered(name, side, places), tensor) for name, tensor in state_dict.items())
        state_dict = {name: tensor for name, tensor in renamed if name is not None}
    return state_dict


def _renumbered(name, side, places) -> str | None:
    """The name of a parameter with the new number of its layer, or None if the layer is pruned."""
    found = _LAYER.match(name)
    if found is None or found[2] != side:
        return name
    place = places.get(int(found[3]))
    return None if place is None else f"{found[1]}{place}{name[found.end() :]}"


def layer_numbers(state_dict, side) -> set[int]:
    """The numbers of the layers of the encoder or decoder that have parameters."""
    found = map(_LAYER.match, state_dict)
    return {int(each[3]) for each in found if each is not None and each[2] == side}


def _layers_to_keep(cfg, side) -> list[int]:
    text = getattr(cfg, f"{side}_layers_to_keep", None)
    try:
        return sorted(map(int, text.split(","))) if text else []
    except ValueError as error:
        raise UserError(f"{text} is no list of layers: give numbers with commas", f"--{side}-layers-to-keep") from error


def save_as_many_layers_as_there_are():
    """A training with --encoder-layers-to-keep or --decoder-layers-to-keep saves the former number of layers, and its
    checkpoint cannot be loaded. Existing checkpoints of this kind load with the layers that they have."""
    wrap(Trainer, "state_dict", _trainer_state_dict)
    wrap(checkpoint_utils, "load_checkpoint_to_cpu", _load_with_layers_that_are_there)


def _trainer_state_dict(state_dict, trainer):
    state = state_dict(trainer)
    model = values(state["cfg"]["model"])
    for side in SIDES:
        kept = _layers_to_keep(Namespace(**model), side)
        if kept:
            model.update({f"{side}_layers": len(kept), f"{side}_layers_to_keep": None})
    return state


def _load_with_layers_that_are_there(load, path, *args, **kwargs):
    state = load(path, *args, **kwargs)
    cfg = state["cfg"].model if state.get("cfg") is not None else state["args"]
    kind = model_class(cfg)
    if kind is None or not issubclass(kind, TransformerModelBase | TransformerLanguageModel):
        return state
    for side in SIDES:
        there, said = layer_numbers(state["model"], side), getattr(cfg, f"{side}_layers", None)
        if isinstance(said, int) and there == set(range(len(there))) and 0 < len(there) < said:
            with unlocked(cfg):
                setattr(cfg, f"{side}_layers", len(there))
            logger.warning("%s has %d of the %d %s layers that it names: it takes those", path, len(there), said, side)
    return state


def leave_adaptive_softmax_alone():
    """A checkpoint with --adaptive-softmax-cutoff and shared embeddings cannot be loaded: fairseq adds an output layer
    to old checkpoints, but a model with an adaptive softmax has none."""

    def upgrade_state_dict_named(upgrade, decoder, state_dict, name):
        added = f"{name}.output_projection.weight" not in state_dict and decoder.adaptive_softmax is not None
        upgrade(decoder, state_dict, name)
        if added:
            state_dict.pop(f"{name}.output_projection.weight", None)
        return state_dict

    wrap(TransformerDecoderBase, "upgrade_state_dict_named", upgrade_state_dict_named)


def ignore_leftovers():
    """Checkpoints saved inside DistributedDataParallel or torch.compile have a prefix in all names. Others have format
    markers of old versions, or heads of other tasks. fairseq refuses them as if their configuration were wrong."""
    wrap(checkpoint_utils, "load_checkpoint_to_cpu", _load_without_wrappers)
    wrap(BaseFairseqModel, "load_state_dict", _load_state_dict)


def _load_without_wrappers(load, *args, **kwargs):
    state = load(*args, **kwargs)
    state["model"] = without_wrappers(state["model"])
    return state


def without_wrappers(parameters: dict) -> dict:
    """The parameters without the prefixes of wrapper modules in their names."""
    while found := _prefix_of_all(parameters):
        parameters = {name.removeprefix(found): tensor for name, tensor in parameters.items()}
    return parameters


def _prefix_of_all(names) -> str | None:
    wrappers = (each for each in _WRAPPERS if all(name.startswith(each) for name in names))
    return next(wrappers, None) if names else None


def _load_state_dict(load, model, state_dict, *args, **kwargs):
    known = model.state_dict().keys()
    surplus = [
        name
        for name in state_dict
        if name not in known and (name.endswith(_NO_PARAMETERS) or (name.startswith(_HEADS) and not _has(model, name)))
    ]
    for name in surplus:
        del state_dict[name]
    # The hook runs after fairseq has renamed old parameters.
    adoption = _ADOPTION.get()
    with contextlib.nullcontext() if adoption is None else model.register_load_state_dict_pre_hook(adoption.adopt):
        return load(model, state_dict, *args, **kwargs)


class Adoption:
    """A model takes the tensors of a checkpoint, which it would otherwise copy: every parameter would be held twice
    while it loads. Those that are in the file stay there, and all keep their type, until they are read."""

    def __init__(self, stored: StoredTensors):
        self.stored = stored
        self._types: dict[torch.nn.Parameter, torch.dtype] = {}  # of adopted parameters, as the model was built

    def active(self) -> AbstractContextManager:
        """Models that are loaded here take the tensors."""
        return setting(_ADOPTION, self)

    def adopt(self, model, state_dict, *_) -> None:
        """Make the tensors the data of the parameters. The later copy of a tensor is then a copy onto itself."""
        names = defaultdict(list)
        for name, parameter in model.named_parameters(remove_duplicate=False):
            if isinstance(state_dict.get(name), torch.Tensor):
                names[parameter].append(name)
        taken, given = set(), set()
        for parameter, of_parameter in names.items():
            # A training on a GPU stores tied parameters apart. The last of them is the one that remains.
            tensor = state_dict[of_parameter[-1]]
            if (
                all(state_dict[name].shape == parameter.shape for name in of_parameter)
                and tensor.device == parameter.device
                and tensor.is_floating_point()
                and (self.stored.has(tensor) or (_is_alone(tensor) and tensor.data_ptr() not in taken))
            ):
                taken.add(tensor.data_ptr())
                self._types[parameter] = parameter.dtype
                parameter.data = tensor.detach()
                state_dict.update(dict.fromkeys(of_parameter, parameter.data))
                given.update(of_parameter)
        for name, tensor in state_dict.items():
            if name not in given and isinstance(tensor, torch.Tensor):
                state_dict[name] = self.stored.read(tensor)

    def read(self, tensor: torch.Tensor, device: torch.device | str = "cpu", dtype: torch.dtype | None = None) -> None:
        """Read a parameter or buffer of the model, where it has not been read yet.

        Args:
            tensor: of the model, changed in place.
            device: where its numbers are to be.
            dtype: of its numbers, if they are no integers. Default: as the model was built.

        Raises:
            UserError: the file cannot be read.
        """
        dtype = (dtype or self._types.get(tensor)) if tensor.is_floating_point() else None
        tensor.data = self.stored.read(tensor.data).to(device, dtype)

    def read_all(self) -> None:
        """Read the parameters that were taken.

        Raises:
            UserError: the file cannot be read, or has changed.
        """
        for parameter in self._types:
            self.read(parameter)
        self.stored.check_unchanged()


def _is_alone(tensor: torch.Tensor) -> bool:
    """Whether nothing else is in the memory of a tensor."""
    return tensor.is_contiguous() and tensor.untyped_storage().nbytes() == tensor.nbytes


class WithoutRandomNumbers(DispatchMode):
    """Parameters are not initialized here. So they take no memory: the system has not given it yet."""

    SKIPPED = (torch.ops.aten.normal_.default, torch.ops.aten.uniform_.default)

    def __torch_dispatch__(self, function, types, args=(), kwargs=None):
        return args[0] if function in self.SKIPPED else function(*args, **(kwargs or {}))


def _has(model, name) -> bool:
    """Whether the model has the module of a parameter. The model then handles the parameter itself."""
    return hasattr(model, name.partition(".")[0])
