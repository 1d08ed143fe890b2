"""Where words end in the sound of a voice that speaks codes: an estimate, for nothing in the voice-token LM says so.

Text and codes are interleaved five to fifteen, but speech takes about seven codes a token, so the sound of a token lies behind its
group. While a reply is being written, a token is taken to last as many codes as tokens of the voice's own sample did; once the last code
is known, what is left of the text is spread evenly over what is left of the codes. So the last word always ends with the sound, and an
interruption keeps about what was heard.
"""

from __future__ import annotations

from dataclasses import dataclass, field

CODES_PER_TOKEN = 7.0
"""25 codes a second, about three and a half Qwen tokens of English a second."""


@dataclass(slots=True)
class WordClock:
    """Texts of one response and the codes after which they have been said; positions are codes since the response began."""

    codes_per_token: float = CODES_PER_TOKEN
    """The estimate while the reply is being written."""
    waiting: list[tuple[str, int]] = field(default_factory=list)
    """Texts not given out yet, with the number of tokens up to and including each."""
    tokens: int = 0
    """Tokens taken so far."""
    from_token: int = 0
    """Where the present estimate begins: this many tokens ..."""
    from_code: float = 0.0
    """... had been said at this code."""

    def add(self, text: str, tokens: int) -> None:
        """`text` (may be "") became certain with `tokens` more tokens."""
        self.tokens += tokens
        if text:
            self.waiting.append((text, self.tokens))

    def end_at(self, codes: int, spoken: int) -> None:
        """The reply has `codes` codes in all and `spoken` of them are out: spread the rest of the text over the rest of the codes."""
        said = self.waiting[0][1] - 1 if self.waiting else self.tokens
        said = max(said, self.from_token)
        left = self.tokens - said
        self.from_token, self.from_code = said, float(spoken)
        self.codes_per_token = max(codes - spoken, 0) / left if left > 0 else 0.0

    def until(self, codes: int) -> list[tuple[str, float]]:
        """Texts said by the time `codes` codes have sounded, each with the code at which it ended; each is given once."""
        given: list[tuple[str, float]] = []
        while self.waiting:
            text, tokens = self.waiting[0]
            end = self.from_code + (tokens - self.from_token) * self.codes_per_token
            if end > codes + 1e-6:
                break
            given.append((text, end))
            self.waiting.pop(0)
        return given

    def rest(self) -> str:
        """Everything not given yet, at once."""
        text = "".join(text for text, _ in self.waiting)
        self.waiting.clear()
        return text
