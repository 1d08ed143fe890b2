"""A text as the LLM would have written it: the hidden states that each of its tokens would have been sampled from.

For giving a voice that reads hidden states a text that nobody thought of just now.
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from agent.chat import Chat
from agent.chat_template import Message


def read_along(chat: Chat, system: str, text: str, question: str = "") -> tuple[list[int], NDArray[np.float32]]:
    """Tokens [n] of `text` and their states [n, h], as the answer to `question` (by default, to being asked to say the text)."""
    prompt = chat.render(system, [Message("user", question or f"Please say: {text}")])
    tokens = chat.encode(text)
    context = chat.open()
    for _ in chat.sync_steps(context, [*prompt, *tokens]):
        pass
    first = len(prompt) - 1  # the state that the first token is sampled from
    states: NDArray[np.float32] = context.buffers.hidden[first : first + len(tokens)].float().cpu().numpy().copy()
    return tokens, states
