"""Calls in what an LLM writes: found however the text is cut, and nothing else is taken for one."""

from __future__ import annotations

import json

import pytest
from hypothesis import given
from hypothesis import strategies as st

from agent.chat_template import Message, render_chat
from agent.tool_calls import CallFinder, Tool, read_call, with_tools
from agent.vocabulary import ByteVocabulary

FENCED = '```json\n{"name": "f", "arguments": {"a": "<b>"}}\n```'
CALL = '<tool_call>\n{"name": "f", "arguments": {"a": "<b>"}}\n</tool_call>'


def find(pieces: list[str]) -> tuple[str, CallFinder]:
    finder = CallFinder(["f"])
    spoken = [token for piece in pieces for token in finder.push(piece, piece)]
    return "".join([*spoken, *finder.finish()]), finder


@given(st.data(), st.sampled_from([CALL, FENCED]))
def test_a_call_is_found_however_it_is_cut(data: st.DataObject, call: str) -> None:
    text = f"a < b <tool{call}"
    mark = len(text) - len(call)
    cuts = sorted(data.draw(st.sets(st.integers(1, len(text) - 1))) | {mark})
    pieces = [text[a:b] for a, b in zip([0, *cuts], [*cuts, len(text)], strict=True)]
    spoken, finder = find(pieces)
    assert spoken == "a < b <tool"
    assert [(c.name, json.loads(c.arguments)) for c in finder.calls] == [("f", {"a": "<b>"})]
    assert finder.malformed == 0


@pytest.mark.parametrize("text", ["a < b", "<tool", "Say <tool_cal", "", "x<", "``", "```js"])
def test_what_only_looks_like_one_is_spoken(text: str) -> None:
    spoken, finder = find(list(text))
    assert (spoken, finder.calls, finder.malformed) == (text, [], 0)


@pytest.mark.parametrize(
    "body",
    ["", "{", "[]", "3", '{"name": "g", "arguments": {}}', '{"name": "f", "arguments": []}', '{"arguments": {}}', "[" * 9000],
)
def test_a_malformed_call_is_none(body: str) -> None:
    assert read_call(body, ["f"]) is None
    spoken, finder = find(["Well. ", "<tool_call>", body, "</tool_call>"])
    assert (spoken, finder.calls, finder.malformed) == ("Well. ", [], 1)


def test_a_reply_that_begins_with_a_brace_is_a_call_or_nothing() -> None:
    spoken, finder = find(list('\n{"name": "f", "arguments": {"a": "}"}}\nDone.'))
    assert (spoken.strip(), [c.arguments for c in finder.calls], finder.malformed) == ("Done.", ['{"a": "}"}'], 0)
    assert find(list('{"name": "g"}'))[1].malformed == 1
    assert find(list("Say {x}."))[0] == "Say {x}."


def test_a_call_without_its_end_counts_if_it_is_whole_and_two_are_two() -> None:
    _, finder = find([CALL, "\n", CALL.removesuffix("</tool_call>")])
    assert [c.name for c in finder.calls] == ["f", "f"]
    assert len({c.call_id for c in finder.calls}) == 2


def test_the_prompt_offers_the_functions_in_the_form_of_the_template() -> None:
    text = with_tools("Be brief.", [Tool("f", "Does f", {"type": "object"})])
    assert text.startswith("Be brief.\n\n# Tools\n\n")
    row = text.split("<tools>\n")[1].split("\n</tools>")[0]
    assert json.loads(row)["function"]["name"] == "f"
    assert with_tools("Be brief.", []) == "Be brief."


def test_marks_are_tokens_of_their_own_except_in_what_the_user_said() -> None:
    vocabulary = ByteVocabulary()
    vocabulary.specials = {**vocabulary.specials, "<tool_call>": 300, "</tool_call>": 301}
    ids = render_chat(vocabulary, "s", [Message("user", CALL), Message("assistant", CALL)], open_assistant=False)
    assert (ids.count(300), ids.count(301)) == (1, 1)
    assert vocabulary.decode(ids).count("<tool_call>") == 1
