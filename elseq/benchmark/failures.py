"""Failures of runs, in words."""

from elseq.errors import UserError, is_out_of_memory


def ends_device(error: Exception) -> bool:
    """Whether the process can use its GPU no more, as after an illegal access to memory."""
    if is_out_of_memory(error):
        return False
    told = "CUDA error", "Triton Error [CUDA]"
    return type(error).__name__ == "AcceleratorError" or any(words in str(error) for words in told)


def describe_failure(error: Exception) -> str:
    """The error in one sentence."""
    message = (str(error).strip().splitlines() or [""])[0]
    if isinstance(error, UserError):
        return message
    # Python has a SystemError where memory does not even suffice for an exception.
    if isinstance(error, SystemError) or is_out_of_memory(error):
        return "out of memory"
    return f"{type(error).__name__}: {message}"
