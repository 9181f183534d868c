"""What every subword vocabulary can."""


class Subwords:
    """From text to the words of a dictionary, and back."""

    def encode(self, text: str) -> str:
        """The words of a text, with a space between two."""
        raise NotImplementedError

    def decode(self, words: str) -> str:
        """The text of words; of those that the vocabulary does not have, nothing."""
        raise NotImplementedError

    def decode_continuation(self, words: str) -> str:
        """The text of words that follow others, with the white space that is between them.

        Some vocabularies take white space away from the start of a text, and this is none.
        """
        before = self.encode("a")
        return self.decode(f"{before} {words}").removeprefix(self.decode(before))

    def digest(self) -> str:
        """Changes with whatever changes an encoded or a decoded text."""
        raise NotImplementedError
