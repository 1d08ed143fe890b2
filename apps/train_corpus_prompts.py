"""How the LLM is asked for the corpus: the profile's system prompt and two others, a question, and the opening of the reply."""

from __future__ import annotations

from agent.batch_replies import Prompt
from agent.build import session_config
from agent.chat_template import Message, render_chat
from agent.profiles import load_profile
from agent.vocabulary import END_OF_TEXT, IM_END, QwenVocabulary

SAY = "Please say: "
"""What stands before a text that is only to be said."""
_OTHERS = (
    "You are a helpful assistant. Answer in one short spoken sentence.",
    "You talk with the user by voice. Answer in two sentences, with names, places and numbers where they fit, and without lists.",
)
_KINDS = (0, 0, 0, 1, 2)  # how often each system prompt is used: the profile's own, then these
_MARKUP = frozenset("`#*|_{}<>[]\\~^")


class Prompts:
    """Questions and texts as the LLM is given them."""

    def __init__(self, vocabulary: QwenVocabulary) -> None:
        self.vocabulary = vocabulary
        systems = (session_config(load_profile("edge")).response.system_prompt, *_OTHERS)
        rendered = [render_chat(vocabulary, system, [], open_assistant=False) for system in systems]
        before = len(render_chat(vocabulary, "", [], open_assistant=False))
        opened = 1 + len(vocabulary.encode("user")) + len(vocabulary.encode("\n"))
        frame = render_chat(vocabulary, "", [Message("user", "")])[before:]
        self.beginnings = [[*ids, *frame[:opened]] for ids in rendered]
        self.closing = frame[opened:]
        specials = self.vocabulary.specials
        self.ends = [specials[IM_END], specials[END_OF_TEXT]]
        marked = [
            i for i in range(self.vocabulary.size) if _MARKUP.intersection(self.vocabulary.token_bytes(i).decode("ascii", "ignore"))
        ]
        self.banned = [*marked, *(set(specials.values()) - set(self.ends))]

    def ask(self, question: str, number: int | None = None) -> Prompt:
        """A question as a prompt; the system prompts take turns by `number`, None is the profile's own."""
        kind = 0 if number is None else _KINDS[number % len(_KINDS)]
        return Prompt(kind, (*self.vocabulary.encode(question), *self.closing))

    def tokens(self) -> set[int]:
        """Every token of the frame around a question."""
        frame = (*self.beginnings, self.closing, self.ends, self.vocabulary.encode(SAY))
        return {token for ids in frame for token in ids}
