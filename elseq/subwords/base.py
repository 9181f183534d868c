"""The interface of subword vocabularies."""


class Subwords:
    """Converts text to words of a dictionary, and back."""

    def encode(self, text: str) -> str:
        """The words of a text, separated by spaces."""
        raise NotImplementedError

    def decode(self, words: str) -> str:
        """The text of words. Words that are not in the vocabulary are omitted."""
        raise NotImplementedError

    def decode_continuation(self, words: str) -> str:
        """The text of words that continue others, with the white space before it.

        `decode` of some vocabularies strips white space at the start of a text.
        """
        before = self.encode("a")
        return self.decode(f"{before} {words}").removeprefix(self.decode(before))

    def digest(self) -> str:
        """A hash of everything on which encoding and decoding depend."""
        raise NotImplementedError
