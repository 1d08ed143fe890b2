"""The LLM as a judge: what it says in one pass over a tree is what it says word by word, and what it knows it is not asked again."""

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from agent.rescorer import Rescorer
from agent.thinker import Thinker, ThinkerConfig
from encoders.rescoring import Doubt

TEXT = list(b"the cat sat on the mat.")


@pytest.fixture(scope="module")
def thinker():
    return Thinker.tiny(2)


def one_by_one(thinker, tokens, more):
    """log P(more) after tokens, a token at a time."""
    context, total = thinker.open(), 0.0
    for index, token in enumerate(more):
        thinker.sync(context, [thinker.start_of_turn, *thinker.encode("user\n"), *tokens, *more[:index]])
        total += float(thinker.logits(context).log_softmax(0)[token])
    return total


def difference(thinker, tokens, doubt):
    before = tokens[: doubt.at]
    return one_by_one(thinker, before, doubt.other) - one_by_one(thinker, before, doubt.usual)


bytes_ = st.lists(st.integers(97, 122), max_size=5).map(tuple)


@settings(deadline=None, max_examples=20)
@given(st.lists(st.tuples(st.integers(0, len(TEXT)), st.integers(0, 6), bytes_), min_size=1, max_size=5))
def test_a_tree_says_what_each_branch_says_alone(thinker, some):
    doubts = [Doubt(at, tuple(TEXT[at : at + count]), other) for at, count, other in some]
    found = Rescorer(thinker)(TEXT, doubts)
    assert found == pytest.approx([difference(thinker, TEXT, doubt) for doubt in doubts], abs=1e-3)


def test_branches_that_begin_alike_share_their_beginning(thinker, monkeypatch):
    fed = []
    plain = thinker.branch
    monkeypatch.setattr(thinker, "branch", lambda context, ids, *rest: fed.append(list(ids)) or plain(context, ids, *rest))
    doubts = [Doubt(4, tuple(b"cat"), tuple(other)) for other in (b"hat", b"ham", b"had been")]
    judge = Rescorer(thinker)
    first = judge(TEXT, doubts)
    assert bytes(fed[0]) == b"had bee"
    assert judge(TEXT, doubts) == first and len(fed) == 1  # known
    assert judge(TEXT[:10], doubts[:1]) == first[:1] and len(fed) == 1  # what comes after changes nothing
    judge([*b"a", *TEXT[1:]], doubts)
    assert len(fed) == 2


def test_a_context_is_left_as_it_was(thinker):
    context = thinker.open_alone()
    thinker.sync(context, TEXT)
    before = thinker.logits(context).clone()
    mask = torch.zeros(2, len(TEXT) + 2)
    thinker.branch(context, [97, 98], [len(TEXT)] * 2, mask)
    assert context.keys == TEXT and context.fed == len(TEXT)
    context.scores = None
    assert torch.equal(thinker.logits(context), before)


def test_what_does_not_fit_is_not_judged():
    small = Thinker.tiny(0, ThinkerConfig(max_context_tokens=30))
    assert Rescorer(small)(TEXT, [Doubt(20, tuple(TEXT[20:]), tuple(b"hats"))]) == [-float("inf")]


def test_what_is_remembered_is_bounded(thinker, monkeypatch):
    monkeypatch.setattr("agent.rescorer._REMEMBERED", 4)
    judge = Rescorer(thinker)
    for at in range(8):
        judge(TEXT, [Doubt(at, (TEXT[at],), (120,))])
    assert len(judge._known) == 4
