"""Parameters that are the tensors of a checkpoint, instead of copies."""

import torch
from fairseq import checkpoint_utils

from elseq.compat.parameters import Adoption
from elseq.loading import Checkpoint


def loaded(trained):
    """A checkpoint, its task, and its tensors."""
    checkpoint = Checkpoint.read(trained.checkpoint, stays_in_file=False)
    folder = checkpoint.folder(trained.data)
    task = checkpoint.build_task(folder, checkpoint.dictionaries(folder), "kv")
    return checkpoint, task, dict(checkpoint.state["model"])


def addresses(parameters):
    return {name: tensor.data_ptr() for name, tensor in parameters.items()}


def test_a_model_takes_the_tensors_of_its_checkpoint(tiny_translation):
    checkpoint, task, tensors = loaded(tiny_translation)
    before = {name: tensor.clone() for name, tensor in tensors.items()}
    state = torch.get_rng_state()
    model = checkpoint.build_model(task)
    assert torch.equal(torch.get_rng_state(), state)
    found = dict(model.named_parameters())
    assert found.keys() <= tensors.keys()
    assert addresses(found) == addresses({name: tensors[name] for name in found})
    assert all(torch.equal(tensor, before[name]) for name, tensor in model.state_dict().items() if name in before)
    assert all(parameter.requires_grad and parameter.is_leaf for parameter in found.values())
    assert not checkpoint.state["model"]


def test_other_loading_copies(tiny_translation):
    checkpoint, task, tensors = loaded(tiny_translation)
    (model,), _ = checkpoint_utils.load_model_ensemble([str(checkpoint.path)], task=task, state=checkpoint.state)
    found = dict(model.named_parameters())
    assert not set(addresses(found).values()) & set(addresses(tensors).values())
    assert all(torch.equal(parameter, tensors[name]) for name, parameter in found.items())


def test_what_does_not_suit_is_copied(tiny_translation):
    """A part of a larger tensor, a tensor of two parameters, columns."""
    checkpoint, task, tensors = loaded(tiny_translation)
    model = checkpoint.state["model"]
    names = [name for name, tensor in tensors.items() if tensor.dim() == 2 and name.endswith("out_proj.weight")]
    part, first, second, turned = names[:4]
    model[part] = torch.cat((tensors[part], tensors[part]))[: len(tensors[part])]
    model[second] = model[first]
    model[turned] = tensors[turned].t().contiguous().t()
    with Adoption(checkpoint.stored).active():
        (built,), _ = checkpoint_utils.load_model_ensemble([str(checkpoint.path)], task=task, state=checkpoint.state)
    found = dict(built.named_parameters())
    for name in (part, first, second, turned):
        assert found[name].is_contiguous() and torch.equal(found[name], model[name])
    assert found[first].data_ptr() != found[second].data_ptr()
    assert found[part].untyped_storage().nbytes() == found[part].nbytes
