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
        rendered = [render_chat(self.vocabulary, system, [], open_assistant=False) for system in systems]
        self.beginnings = [[*ids, *self.after("")[0]] for ids in rendered]
        specials = self.vocabulary.specials
        self.ends = [specials[IM_END], specials[END_OF_TEXT]]
        marked = [
            i for i in range(self.vocabulary.size) if _MARKUP.intersection(self.vocabulary.token_bytes(i).decode("ascii", "ignore"))
        ]
        self.banned = [*marked, *(set(specials.values()) - set(self.ends))]

    def after(self, question: str) -> tuple[list[int], list[int]]:
        """What precedes a question after the system prompt, and the rest up to the opening of the reply."""
        whole = render_chat(self.vocabulary, "", [Message("user", question)])
        start = len(render_chat(self.vocabulary, "", [], open_assistant=False))
        opening = 1 + len(self.vocabulary.encode("user")) + len(self.vocabulary.encode("\n"))
        return whole[start : start + opening], whole[start + opening :]

    def ask(self, question: str, number: int) -> Prompt:
        """A question as a prompt; the system prompts take turns."""
        return Prompt(_KINDS[number % len(_KINDS)], tuple(self.after(question)[1]))

    def tokens(self) -> set[int]:
        """Every token of the frame around a question."""
        inner = self.after(SAY)
        return {token for ids in (*self.beginnings, *inner, self.ends) for token in ids}
