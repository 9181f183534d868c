"""What a run that failed is told as."""

from elseq.errors import UserError, is_out_of_memory


def describe_failure(error: Exception) -> str:
    """What failed, in one sentence."""
    message = (str(error).strip().splitlines() or [""])[0]
    if isinstance(error, UserError):
        return message
    # Python has a SystemError where memory does not even suffice for an exception.
    if isinstance(error, SystemError) or is_out_of_memory(error):
        return "out of memory"
    return f"{type(error).__name__}: {message}"
