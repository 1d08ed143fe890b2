"""The voice-token LM: text embeddings in, speech codes out, while the text is still being written.

Notable: one sequence holds both. Every five text positions are followed by fifteen codes; when the text has ended, what is left of it
and the task id follow, and then codes to the end. A state is a small machine that says which of these comes next, so work can stop
after any step and be taken up again: what is read and drawn depends on the text alone, never on how it was pushed or on who paused.
A forced fill needs no forward pass: the block's last code waits and is read together with the next group of text.

Shapes: n text positions, d hidden, p prompt codes, q query positions.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import replace

import torch
import torch.nn.functional as F
from torch import Tensor

from decoders.qwen import KeyValues, Qwen, fuse
from decoders.qwen_steps import SharedSteps
from decoders.ras import USUAL, RasConfig, draw
from decoders.voice_lm_modules import SOS, TASK, VoiceLMConfig, VoiceLMModules
from decoders.voice_lm_state import Stage, Step, VoiceContextFull, VoiceLMState


class VoiceLM:
    """One set of weights, shared by all states. No two threads at once; states may be interleaved in any way."""

    def __init__(self, config: VoiceLMConfig, modules: VoiceLMModules) -> None:
        """modules: filled, on their device; their layers are joined in place, and the text head, which has no use, is let go."""
        self.config = config
        self.modules = modules
        if hasattr(modules.llm.model, "lm_head"):
            del modules.llm.model.lm_head
        self.qwen = Qwen(fuse(modules.llm.model), config.max_context_tokens)
        modules.requires_grad_(False)
        self.steps: SharedSteps | None = None
        """Where states lie side by side; None where each has buffers of its own, as on a CPU."""

    def share(self, states: int, graphs: bool = True) -> None:
        """Make room for so many states that take steps together; those that are open already go on alone. graphs: record steps."""
        self.steps = None  # before the new room is made, that of before is let go
        self.steps = SharedSteps(self.qwen, states, self._outputs, graphs)

    def _outputs(self, hidden: Tensor) -> Tensor:
        """Final states [n, d] -> scores [n, outputs] float32."""
        decoder = self.modules.llm_decoder
        return F.linear(hidden, decoder.weight, decoder.bias).float()

    def _buffers(self) -> KeyValues:
        return self.steps.open() if self.steps else self.qwen.buffers()

    @property
    def hidden_size(self) -> int:
        """Width d of the embeddings that it reads."""
        return self.config.hidden_size

    def embed(self, ids: Tensor | Sequence[int]) -> Tensor:
        """The text-token table: ids [n] -> [n, d]. ValueError names an id that has no row."""
        ids = torch.as_tensor(ids, dtype=torch.long)
        if ids.numel() and not 0 <= int(ids.min()) <= int(ids.max()) < self.config.text_vocabulary:
            raise ValueError(f"text ids go from 0 to {self.config.text_vocabulary - 1}; got {int(ids.min())} to {int(ids.max())}")
        return self.qwen.embed(ids)

    def open(
        self,
        text: Tensor | None = None,
        codes: Sequence[int] = (),
        *,
        query: Tensor | None = None,
        seed: int = 0,
        sampling: RasConfig = USUAL,
    ) -> VoiceLMState:
        """A fresh state for one reply, in the voice of a prompt: what was said in it (ids [n] or embeddings [n, d]) and its codes [p].

        query: [q, d] positions in front of everything but the start, MinMo's embeddings of the user's turn. Whole groups of the
        prompt are read here, which takes a while: open once for a voice, then `fork` for each reply. ValueError when the
        prompt does not fit.
        """
        state = self._fresh(text, codes, query, seed, sampling)
        group, block = self.config.text_group, self.config.code_group
        filled = len(state.prompt_codes) % block
        # A prompt of whole groups ends where the model has learnt to write a fill; upstream goes on writing codes there.
        state.next_fill = block - filled
        if not self.config.as_upstream:
            self._read_prompt_groups(state)
            if state.unread.shape[0] > group + block:
                self._read(state)
        return state

    def fork(self, state: VoiceLMState, seed: int = 0) -> VoiceLMState:
        """A state that goes on like `state`, with memory and draws of its own; the first is left as it was."""
        cache = self._buffers()
        length = state.length
        cache.keys[:, :, :length] = state.cache.keys[:, :, :length]
        cache.values[:, :, :length] = state.cache.values[:, :, :length]
        cache.hidden[:length] = state.cache.hidden[:length]
        return replace(state, cache=cache, outputs=list(state.outputs), generator=torch.Generator().manual_seed(seed))

    def push(self, state: VoiceLMState, embeddings: Tensor) -> Iterator[list[int]]:
        """Take text embeddings [n, d] (at once); yield the codes [1 .. codes_per_step] that can be written by now, step by step.

        Dropping the iterator loses nothing: the next push or finish goes on where it stopped, with the same codes. To cancel
        a reply, drop the state. ValueError after `finish`; VoiceContextFull when the next group has no room.
        """
        self.take(state, embeddings)
        return self._write_groups(state)

    def take(self, state: VoiceLMState, embeddings: Tensor) -> None:
        """Take text embeddings [n, d] and write nothing yet: `push`, for states that go on with `write_together`. ValueError as there."""
        if state.stage is not Stage.TEXT:
            raise ValueError("this reply's text has ended; open a fresh state for the next one")
        rows = self._rows(embeddings)
        state.text = torch.cat((state.text, rows))
        state.text_positions += rows.shape[0]

    def due(self, state: VoiceLMState) -> bool:
        """Whether a step can write codes now, while the text still comes. VoiceContextFull when the next group has no room."""
        return state.stage is Stage.TEXT and state.text_positions > 0 and (state.writing or self._begin_group(state))

    @torch.inference_mode()
    def write_together(self, states: Sequence[VoiceLMState]) -> list[list[int]]:
        """One step of each of several different states whose codes are `due`, with the forward passes shared: their codes.

        A step may write none, when a fill was all that was due. The codes are those that each would write alone.
        """
        return self._drive(states, [self._group_step(state) for state in states])

    def finish(self, state: VoiceLMState) -> Iterator[list[int]]:
        """The text has ended: yield the codes of what is left, to the end of the speech.

        The rest of the text and the task id are read first. Prompt codes that the text did not reach follow the task id, as a last
        group's codes do in training, so the new ones continue them. The end is the model's, but not before min_codes_per_text
        nor after max_codes_per_text, counted over the whole reply, nor beyond the context. A reply without text has no codes.
        Dropping the iterator and calling again goes on where it stopped.
        """
        if state.stage is Stage.TEXT:
            yield from self._write_groups(state)
            self._end_text(state)
        yield from self._write_rest(state)

    def unistream(
        self,
        embeddings: Tensor,
        text: Tensor | None = None,
        codes: Sequence[int] = (),
        *,
        query: Tensor | None = None,
        seed: int = 0,
        sampling: RasConfig = USUAL,
    ) -> Iterator[list[int]]:
        """The codes for a text that is there at once, [n, d]; prompt, query and steps as in `open` and `push`.

        All text is read before the first code is written, so it suits long texts better than groups, and starts later.
        """
        state = self._fresh(text, codes, query, seed, sampling)
        rows = self._rows(embeddings)
        state.text, state.text_positions, state.whole = torch.cat((state.text, rows)), rows.shape[0], True
        self._end_text(state)
        return self._write_rest(state)

    # Reading: what stands in the sequence.

    def _fresh(
        self, text: Tensor | None, codes: Sequence[int], query: Tensor | None, seed: int, sampling: RasConfig
    ) -> VoiceLMState:
        codes = tuple(int(code) for code in codes)
        if codes and not 0 <= min(codes) <= max(codes) < self.config.codes:
            raise ValueError(f"prompt codes go from 0 to {self.config.codes - 1}; got {min(codes)} to {max(codes)}")
        start = self.modules.llm_embedding.weight[SOS : SOS + 1].detach()
        nothing = start[:0]
        spoken = nothing if text is None else self._rows(text)
        state = VoiceLMState(
            cache=self._buffers(),
            sampling=sampling,
            generator=torch.Generator().manual_seed(seed),
            text=spoken,
            prompt_codes=codes,
            unread=start if query is None else torch.cat((start, self._rows(query))),
            last_read=nothing,
            next_fill=self.config.code_group,
        )
        size = state.unread.shape[0] + spoken.shape[0] + len(codes)
        if size + self.config.text_group + self.config.code_group >= self.config.max_context_tokens:
            raise ValueError(
                f"the voice prompt takes {size} of max_context_tokens={self.config.max_context_tokens} positions, which leaves no "
                "room to speak; use a shorter sample or a larger context"
            )
        return state

    def _rows(self, text: Tensor) -> Tensor:
        """Ids [n] or embeddings [n, d] -> [n, d], on the model's device and in its type."""
        if not text.is_floating_point():
            return self.embed(text)
        if text.dim() != 2 or text.shape[1] != self.config.hidden_size:
            raise ValueError(f"text embeddings are [n, {self.config.hidden_size}] here; got {list(text.shape)}")
        return text.detach().to(self.qwen.device, self.qwen.dtype)

    def _speech(self, codes: Sequence[int]) -> Tensor:
        """Codes [p] -> [p, d]."""
        table = self.modules.speech_embedding.weight.detach()
        if len(codes) == 1:
            return table[codes[0] : codes[0] + 1]  # a view: nothing is sent to the device
        return table[torch.tensor(codes, dtype=torch.long, device=table.device)]

    def _read(self, state: VoiceLMState) -> None:
        """Run what is unread, after which the cache's newest hidden state is that of the sequence's end."""
        n = state.unread.shape[0]
        if n:
            self.qwen.forward(state.unread, state.cache, state.length)
            state.length += n
            state.last_read, state.unread = state.unread, state.unread[:0]

    def _room(self, state: VoiceLMState) -> int:
        return self.config.max_context_tokens - state.length - state.unread.shape[0]

    def _take_text(self, state: VoiceLMState, *after: Tensor) -> None:
        """Put one group of text, and what follows it, at the end of the sequence."""
        group = self.config.text_group
        if self._room(state) < 2 * group + self.config.code_group:  # the rest of the text must find room too
            raise VoiceContextFull(f"the voice LM's {self.config.max_context_tokens} positions are used up")
        state.unread = torch.cat((state.unread, state.text[:group], *after))
        state.text = state.text[group:]

    def _read_prompt_groups(self, state: VoiceLMState) -> None:
        """The prompt's groups, as far as there is text for them; after its last code, an unfinished group is written on."""
        block = self.config.code_group
        while state.prompt_codes and state.text.shape[0] >= self.config.text_group:
            self._take_text(state, self._speech(state.prompt_codes[:block]))
            whole = len(state.prompt_codes) % block == 0
            state.prompt_codes = state.prompt_codes[block:]
            state.writing = not state.prompt_codes and (not whole or self.config.as_upstream)

    def _begin_group(self, state: VoiceLMState) -> bool:
        """Read the next group of text if it is there; False means that more text is needed."""
        self._read_prompt_groups(state)
        if state.writing:
            return True
        group, block = self.config.text_group, self.config.code_group
        if state.prompt_codes or state.text.shape[0] < group:
            return False
        self._take_text(state)
        state.next_fill = len(state.outputs) + block
        state.writing = True
        return True

    # Writing: codes drawn from the sequence's end.

    def _write_groups(self, state: VoiceLMState) -> Iterator[list[int]]:
        while self.due(state):
            if codes := self.write_together((state,))[0]:
                yield codes

    def _group_step(self, state: VoiceLMState) -> Step:
        config = self.config
        banned = slice(config.eos, config.eos + 1 if config.as_upstream else config.fill)
        codes: list[int] = []
        while state.writing and len(codes) < config.codes_per_step:
            code = config.fill if len(state.outputs) == state.next_fill else (yield banned)
            if config.eos <= code < config.fill:
                raise RuntimeError(f"the voice LM wrote output {code}, which stands for no code")
            state.outputs.append(code)
            if code == config.fill:
                state.writing = False
            else:
                self._wrote(state, code, codes)
        return codes

    def _end_text(self, state: VoiceLMState) -> None:
        """Put the rest of the text and the task id at the end of the sequence."""
        config = self.config
        state.stage = Stage.REST if state.text_positions else Stage.END
        state.max_codes = config.max_codes_per_text * state.text_positions
        state.min_codes = config.min_codes_per_text * state.text_positions
        task = self.modules.llm_embedding.weight[TASK : TASK + 1].detach()
        parts = [state.unread, state.text, task]
        if state.whole or not config.as_upstream:
            parts += [self._speech(state.prompt_codes)] if state.prompt_codes else []
        else:
            state.min_codes = 0
            if state.outputs:  # the quirk: what was read last, or would be now, is read once more
                parts.insert(1, state.unread if state.unread.shape[0] else state.last_read)
        state.unread = torch.cat(parts)
        state.text, state.prompt_codes = state.text[:0], ()
        if self._room(state) < 0:
            raise VoiceContextFull(f"the text has no room in the voice LM's {config.max_context_tokens} positions")

    def _write_rest(self, state: VoiceLMState) -> Iterator[list[int]]:
        while state.stage is Stage.REST:
            if codes := self._drive((state,), (self._rest_step(state),))[0]:
                yield codes

    def _rest_step(self, state: VoiceLMState) -> Step:
        config = self.config
        codes: list[int] = []
        while len(codes) < config.codes_per_step:
            if state.written >= state.max_codes or self._room(state) < 0:
                state.stage = Stage.END
                break
            ends = state.written >= state.min_codes
            banned = slice(config.eos + 1 if ends else config.eos, config.outputs)
            if config.as_upstream:
                banned = slice(config.eos, config.eos if ends else config.eos + 1)
            code = yield banned
            if code > config.eos and not state.whole:
                raise RuntimeError(f"the voice LM wrote output {code}, which stands for no code")
            if code >= config.eos:
                state.stage = Stage.END
                break
            state.outputs.append(code)
            self._wrote(state, code, codes)
        return codes

    @torch.inference_mode()
    def _drive(self, states: Sequence[VoiceLMState], steps: Sequence[Step]) -> list[list[int]]:
        """Run steps to their ends, drawing for all that ask from one forward pass."""
        written: list[list[int]] = [[] for _ in steps]
        drawn: list[int | None] = [None] * len(steps)
        running = list(range(len(steps)))
        while running:
            asked: dict[int, slice] = {}
            for index in running:
                code = drawn[index]
                try:
                    asked[index] = next(steps[index]) if code is None else steps[index].send(code)
                except StopIteration as ended:
                    written[index] = ended.value
            running = list(asked)
            if not running:
                break
            scores = self._read_together([states[index] for index in running]).to("cpu", torch.float32)  # [n, outputs]
            for row, index in zip(scores, running, strict=True):
                row[asked[index]] = float("-inf")
                state = states[index]
                drawn[index] = draw(row, state.outputs, state.sampling, state.generator)
        return written

    def _read_together(self, states: Sequence[VoiceLMState]) -> Tensor:
        """Read what is unread of each state -> scores [n, outputs] at the ends of the sequences."""
        room = self.steps
        joint = [i for i, s in enumerate(states) if room and s.unread.shape[0] == 1 and room.holds(s.cache)]
        scores: dict[int, Tensor] = {}
        if room and joint:
            chosen = [states[index] for index in joint]
            rows = torch.cat([state.unread for state in chosen]) if len(chosen) > 1 else chosen[0].unread
            _, found = room.run(rows, [state.cache.slot for state in chosen], [state.length for state in chosen])
            scores = dict(zip(joint, found, strict=True))
            for state in chosen:
                state.length += 1
                state.last_read, state.unread = state.unread, state.unread[:0]
        for index, state in enumerate(states):
            if index not in scores:
                self._read(state)
                scores[index] = self._outputs(state.cache.hidden[state.length - 1])
        return torch.stack([scores[index] for index in range(len(states))])

    def _wrote(self, state: VoiceLMState, code: int, codes: list[int]) -> None:
        codes.append(code)
        state.written += 1
        state.unread = torch.cat((state.unread, self._speech((code,))))
