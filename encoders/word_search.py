"""From phones to words, as they are heard: a beam search through the pronunciations of all words, by what was said before each.

Time-synchronous token passing with word-conditioned copies of one pronunciation tree (Ney and Ortmanns 1999, "Dynamic programming search
for continuous speech recognition"), over the states of CTC: behind each phone it may stay quiet. A way's score is the sum over the sounds
of how likely its phone is beside the likeliest one, in logarithms and not below a floor, so a phone that was missed, mistaken or heard too
often costs no more than that; and the words' log probabilities times a weight. While little but the blank is heard, no way goes on.

Ways that meet, because they go on alike from the same two words, are one from there on; the likelier one remembers the others, so that the
whole is a lattice of what may have been said, in which a better judge than trigrams can look for another path (`WordSearch.paths`).

Legend: S sounds (25 a second), P phones, n ways in the beam, k of them that go on, N nodes of the tree.
"""

from __future__ import annotations

from dataclasses import dataclass, field, replace
from itertools import count

import numpy as np
from numpy.typing import NDArray

from encoders.word_lattice import Doubts, Floats, Ints, Said, beaten_ways, meet, others_beside, said_after
from encoders.word_lexicon import Lexicon, PronunciationTree
from encoders.word_ngrams import BEGIN, END, WordNgrams

_keys = count(1)  # of all words ever said here; next() is atomic


@dataclass(frozen=True, slots=True)
class WordSearchConfig:
    """How words are looked for."""

    words_weight: float = 0.6
    """Of the words' probabilities beside the phones'."""
    another: float = -3.0
    """What is added to a score where another sentence begins."""
    beam: float = 13.0
    """Ways that are worse than the best by more are given up."""
    floor: float = -5.0
    """The least that a sound can say about a phone."""
    most_ways: int = 2500
    """At most so many go on."""
    most_words: int = 60
    """Words that may end at one sound, over all ways."""
    quiet: float = 0.98
    """P(blank) from which no way goes on."""
    doubts: Doubts = field(default_factory=Doubts)
    """What is remembered of ways that were beaten."""

    def __post_init__(self) -> None:
        if self.words_weight < 0 or self.beam <= 0 or self.floor >= 0 or min(self.most_ways, self.most_words) < 1:
            raise ValueError("words_weight must not be below 0, beam above 0, floor below 0, most_ways and most_words at least 1")
        if not 0 < self.quiet <= 1:
            raise ValueError("quiet must be in (0, 1]")


@dataclass(frozen=True, slots=True, eq=False)
class SearchState:
    """The ways that are still open. Immutable."""

    places: Ints
    """[n] history N + node, ascending."""
    speaking: Floats
    """[n] score of the best way there whose newest sound is the node's phone."""
    quiet: Floats
    """[n] of the best whose newest sound is the blank."""
    last: Ints
    """[n] index of its newest word in `said`."""
    said: tuple[Said | None, ...] = (None,)
    """What was said on the ways."""
    histories: Ints = field(default_factory=lambda: np.array([[BEGIN, BEGIN]]))
    """[h, 2] the last two words of each."""


class WordSearch:
    """Looks for words. Holds no state of a stream."""

    def __init__(self, lexicon: Lexicon, ngrams: WordNgrams, config: WordSearchConfig | None = None) -> None:
        self.lexicon, self.ngrams, self.config = lexicon, ngrams, config or WordSearchConfig()
        self.tree = PronunciationTree(lexicon, ngrams.single)
        self._ahead = self.config.words_weight * self.tree.ahead

    def open(self) -> SearchState:
        """Before anything is heard."""
        return SearchState(np.zeros(1, np.int64), np.full(1, -np.inf), np.zeros(1), np.zeros(1, np.int64))

    def step(self, state: SearchState, odds: NDArray[np.float32]) -> SearchState:
        """Hear [S, 1 + P] log probabilities, the blank first."""
        scores = np.clip(odds - odds.max(1, keepdims=True), self.config.floor, 0.0).astype(np.float64)
        said, histories = list(state.said), _Histories(state.histories)
        ways = _Ways(state.places, state.speaking, state.quiet, state.last)
        for sound, blank in zip(scores, np.exp(odds[:, 0]), strict=True):
            if blank >= self.config.quiet:
                ways = replace(ways, speaking=np.full(len(ways.places), -np.inf), quiet=ways.best())
                continue
            ways = self._onward(ways, sound)
            ways = self._kept(self._with_words(ways, said, histories))
        return _compact(ways, said, histories.rows(), self.tree.size)

    def best(self, state: SearchState) -> Said | None:
        """The newest word of the likeliest way if nothing more is said; None where nothing was said."""
        scores, last = self._ended(state)
        return state.said[int(last[scores.argmax()])]

    def paths(self, state: SearchState) -> list[tuple[float, list[Said]]]:
        """What may have been said if nothing more is: how much worse than the first each is, and its words.

        The others leave the first at one place only, and come back to it or end otherwise. Empty where nothing was said.
        """
        scores, last = self._ended(state)
        order = np.argsort(-scores, kind="stable")[: 1 + 4 * self.config.doubts.most]
        top = float(scores[order[0]])
        ended = [(top - float(scores[one]), state.said[int(last[one])]) for one in order]
        best = ended[0][1]
        if best is None:
            return []
        words = best.words()
        found = [(0.0, words)]
        whole = best.better_than([(less, one) for less, one in ended if one is not None], self.config.doubts)
        for place, word in enumerate((*words[:-1], whole)):
            found += [(less, [*other.words(), *words[place + 1 :]]) for less, other in word.beaten]
        return found

    def first_words(self, state: SearchState) -> dict[int, float]:
        """How likely each word is the turn's first, as far as the ways that have one go."""
        scores, last = self._ended(state)
        odds = np.exp(scores - scores.max())
        found: dict[int, float] = {}
        for score, which in zip(odds.tolist(), last.tolist(), strict=True):
            if (one := state.said[which]) is not None:
                found[one.first] = found.get(one.first, 0.0) + score
        total = sum(found.values())
        return {word: share / total for word, share in found.items()}

    def _ended(self, state: SearchState) -> tuple[Floats, Ints]:
        """Ways that are not within a word, as if the sentence ended there: scores, and the newest word of each."""
        whole = state.places % self.tree.size == 0
        if not whole.any():
            return np.maximum(state.speaking, state.quiet), state.last
        before, last = state.histories[state.places[whole] // self.tree.size].T
        ends = np.where(last == BEGIN, 0.0, self.ngrams.log(before, last, np.full(len(last), END)))
        return state.quiet[whole] + self.config.words_weight * ends, state.last[whole]

    # -- one sound

    def _onward(self, ways: _Ways, sound: Floats) -> _Ways:
        """Every way stays where it is, or goes on to the next phones."""
        tree, best = self.tree, ways.best()
        node = ways.places % tree.size
        stays = replace(
            ways,
            speaking=np.where(node == 0, -np.inf, ways.speaking + sound[tree.phone[node]]),
            quiet=best + sound[0],
        )
        top = (stays.best() + self._ahead[node]).max()
        at, child = _spread(node, tree.child_counts, tree.child_starts)
        child = tree.children[child]
        score = best[at] + sound[tree.phone[child]]
        kept = np.flatnonzero(score + self._ahead[child] > top - self.config.beam)
        at, child = at[kept], child[kept]
        places = ways.places[at] - node[at] + child
        order = np.argsort(places, kind="stable")
        goes = _Ways(places, score[kept], np.full(len(kept), -np.inf), ways.last[at])
        return stays.joined(goes.at(order))

    def _with_words(self, ways: _Ways, said: list[Said | None], histories: _Histories) -> _Ways:
        """Where a word ends, any other may begin."""
        tree, c = self.tree, self.config
        node = ways.places % tree.size
        open_ = np.flatnonzero(np.isfinite(ways.speaking) & (tree.end_counts[node] > 0))
        at, end = _spread(node[open_], tree.end_counts, tree.end_starts)
        if not len(at):
            return ways
        at = open_[at]
        before, last = histories.rows()[ways.places[at] // tree.size].T
        word = tree.end_words[end]
        score = ways.speaking[at] + c.words_weight * (self.ngrams.log(before, last, word) + tree.end_odds[end])
        top = max(float(score.max()), float((ways.best() + self._ahead[node]).max()))
        good = np.flatnonzero(score > top - c.beam)
        if len(good) > c.most_words:  # with all that are as good as the last of these, whatever their order
            good = good[score[good] >= np.partition(score[good], -c.most_words)[-c.most_words]]
        if not len(good):
            return ways
        at, last, word, score = at[good], last[good], word[good], score[good]
        order = np.lexsort((-score, word, last))
        at, last, word, score = at[order], last[order], word[order], score[order]
        new = np.ones(len(at), bool)  # of the ways to one pair of words the best goes on
        new[1:] = (last[1:] != last[:-1]) | (word[1:] != word[:-1])
        others = others_beside(ways.last[at[new]], word[new], score[new])
        beaten = beaten_ways(new, ways.last[at], score, c.doubts)
        stops = score[new] + c.another + c.words_weight * self.ngrams.log(last[new], word[new], np.full(int(new.sum()), END))
        begun: dict[int, tuple[float, Said]] = {}
        for index, (way, previous, this, value, stop) in enumerate(
            zip(at[new].tolist(), last[new].tolist(), word[new].tolist(), score[new].tolist(), stops.tolist(), strict=True)
        ):
            came, key = said[int(ways.last[way])], next(_keys)
            for ends, reached, history in ((False, value, (previous, this)), (True, stop, (BEGIN, BEGIN))):
                if reached <= top - c.beam:
                    continue
                one = said_after(came, this, ends, others[index], key)
                one = one.better_than(
                    ((less, said_after(said[other], this, ends, others[index], key)) for less, other in beaten[index]), c.doubts
                )
                place = histories.place(history) * tree.size
                meet(begun, place, reached, one, c.doubts)
        return self._begun(ways, begun, said)

    def _begun(self, ways: _Ways, begun: dict[int, tuple[float, Said]], said: list[Said | None]) -> _Ways:
        """Begin at these places; where a way is already, the better one goes on and remembers the other."""
        last = ways.last.copy()
        places = np.array(sorted(begun), np.int64)
        where = np.minimum(np.searchsorted(ways.places, places), len(ways.places) - 1)
        best = ways.best()
        numbers = []
        for place, here in zip(places.tolist(), where.tolist(), strict=True):
            reached, one = begun[place]
            there = said[int(last[here])] if ways.places[here] == place else None
            if there is not None and reached > best[here]:
                one = one.better_than([(reached - float(best[here]), there)], self.config.doubts)
            elif (
                there is not None
                and (more := there.better_than([(float(best[here]) - reached, one)], self.config.doubts)) is not there
            ):
                said.append(more)
                last[here] = len(said) - 1
            said.append(one)
            numbers.append(len(said) - 1)
        scores = np.array([begun[place][0] for place in places.tolist()])
        fresh = _Ways(places, np.full(len(places), -np.inf), scores, np.array(numbers, np.int64))
        return replace(ways, last=last).joined(fresh)

    def _kept(self, ways: _Ways) -> _Ways:
        """Those within the beam."""
        c = self.config
        score = ways.best() + self._ahead[ways.places % self.tree.size]
        least = score.max() - c.beam
        if len(score) > c.most_ways:
            least = max(least, np.partition(score, -c.most_ways)[-c.most_ways])
        return ways.at(np.flatnonzero(score >= least))


@dataclass(frozen=True, slots=True, eq=False)
class _Ways:
    """As in `SearchState`."""

    places: Ints
    speaking: Floats
    quiet: Floats
    last: Ints

    def best(self) -> Floats:
        """[n] the better of the two scores."""
        found: Floats = np.maximum(self.speaking, self.quiet)
        return found

    def at(self, chosen: Ints) -> _Ways:
        """Some of them."""
        return _Ways(self.places[chosen], self.speaking[chosen], self.quiet[chosen], self.last[chosen])

    def joined(self, more: _Ways) -> _Ways:
        """With others; where both are at one place, the better scores are kept, and the words of the best."""
        if not len(more.places):
            return self
        where = np.minimum(np.searchsorted(self.places, more.places), len(self.places) - 1)
        both = self.places[where] == more.places
        mine, theirs = where[both], np.flatnonzero(both)
        speaking, quiet, last = self.speaking.copy(), self.quiet.copy(), self.last.copy()
        better = more.best()[theirs] > self.best()[mine]
        last[mine[better]] = more.last[theirs[better]]
        speaking[mine] = np.maximum(speaking[mine], more.speaking[theirs])
        quiet[mine] = np.maximum(quiet[mine], more.quiet[theirs])
        new = more.at(np.flatnonzero(~both))
        places = np.concatenate((self.places, new.places))
        order = np.argsort(places, kind="stable")
        return _Ways(
            places[order],
            np.concatenate((speaking, new.speaking))[order],
            np.concatenate((quiet, new.quiet))[order],
            np.concatenate((last, new.last))[order],
        )


class _Histories:
    """Pairs of last words by number."""

    def __init__(self, known: Ints) -> None:
        self._rows = [tuple(one) for one in known.tolist()]
        self._index = {pair: index for index, pair in enumerate(self._rows)}
        self._made = known

    def place(self, pair: tuple[int, ...]) -> int:
        """The number of a pair."""
        if pair not in self._index:
            self._index[pair] = len(self._rows)
            self._rows.append(pair)
        return self._index[pair]

    def rows(self) -> Ints:
        """[h, 2] all of them."""
        if len(self._made) < len(self._rows):
            self._made = np.array(self._rows, np.int64)
        return self._made


def _spread(node: Ints, counts: Ints, starts: Ints) -> tuple[Ints, Ints]:
    """Every node's part of a flat list: [k] which of the nodes, and [k] the place in the list."""
    many = counts[node]
    at = np.repeat(np.arange(len(node)), many)
    ends = np.cumsum(many)
    return at, np.arange(len(at)) + np.repeat(starts[node] - ends + many, many)


def _compact(ways: _Ways, said: list[Said | None], histories: Ints, size: int) -> SearchState:
    """Without the words and histories that no way has."""
    used, last = np.unique(ways.last, return_inverse=True)
    known, history = np.unique(ways.places // size, return_inverse=True)
    places = history * size + ways.places % size
    order = np.argsort(places, kind="stable")
    return SearchState(
        places[order],
        ways.speaking[order],
        ways.quiet[order],
        last[order],
        tuple(said[index] for index in used.tolist()),
        histories[known],
    )
