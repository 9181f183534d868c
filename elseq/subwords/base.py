"""The interface of subword vocabularies."""


class Subwords:
    """Converts text to words of a dictionary, and back."""

    def encode(self, text: str) -> str:
        """The words of a text, separated by spaces."""
        raise NotImplementedError

    def decode(self, words: str) -> str:
        """The text of words. Words that are not in the vocabulary are omitted; codes, which have none, keep all."""
        raise NotImplementedError

    @property
    def of_targets(self) -> "Subwords":
        """The vocabulary of targets: this one, unless the model has one for each side."""
        return self

    def decode_continuation(self, words: str) -> str:
        """The text of words that continue others, with the white space before it.

        `decode` of some vocabularies strips white space at the start of a text.
        """
        before = self.encode("a")
        return self.decode(f"{before} {words}").removeprefix(self.decode(before))

    def encode_continuation(self, text: str) -> str:
        """The words of a text that continues others, so that `decode_continuation` gives the text again.

        `encode` of some vocabularies puts white space before a text. Where no words give the text again, those of
        `encode`.
        """
        for before in ("", "a", ".", "0"):  # few texts make one piece with all of them
            first, whole = self.encode(before).split(), self.encode(before + text).split()
            following = " ".join(whole[len(first) :])
            if whole[: len(first)] == first and self.decode_continuation(following) == text:
                return following
        return self.encode(text)

    def digest(self) -> str:
        """A hash of everything on which encoding and decoding depend."""
        raise NotImplementedError
