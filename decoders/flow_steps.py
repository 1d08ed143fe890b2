"""A flow whose replies take their chunks together, in one pass over all that have one ready, replayed as a CUDA graph where there is a GPU.

Notable: it stands where a `Flow` stands (`token2wav.CodesToMel`) and gives the same frames. Full chunks lie on an absolute grid, so they
all have one shape, and the ten passes of the solver over fifty-six layers are recorded once per number of replies and span of the past:
thirteen thousand launches become one. What has no full chunk (the end of a reply), no room, or grows beyond it, is left to `Flow.step`.

Shapes: b replies now, n codes of a chunk, L codes of look-ahead, R frames per code, M mel bands, s codes looked at.
"""

from __future__ import annotations

import logging
import weakref
from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from decoders.flow import Flow, FlowConfig, FlowState, moments, starting_noise
from decoders.flow_encoder import EncoderMemory, Places, waves
from decoders.flow_slots import FlowSlots, owned

ROWS = (1, 2, 4, 8, 16)
"""Numbers of replies that a pass may have; more are made of several."""
LEAST_SPAN = 128
"""Shortest span of codes that is looked at; the others are its doubles."""

log = logging.getLogger(__name__)


@dataclass(slots=True, weakref_slot=True)
class _Slot:
    """A place in the buffers, free again when nobody holds this."""

    index: int


@dataclass(slots=True)
class SharedFlowState:
    """One reply on its way, owned by the caller."""

    owner: SharedFlow
    plain: FlowState
    """Its codes and prompt, and how far it is. Its memory is used once the slot is not."""
    slot: _Slot | None

    def fork(self) -> SharedFlowState:
        """A reply with the same past, to go on independently."""
        return self.owner.fork(self)


@dataclass(slots=True)
class _Plan:
    """The tensors of one shape of pass. With a graph they are where it reads and writes."""

    codes: Tensor
    """[b, n + L] int64"""
    known: Tensor
    """[b, n R, M]"""
    speakers: Tensor | None
    """[b, M]"""
    places: Tensor
    """[2, b] int64: slots above starts, in codes."""
    graph: torch.cuda.CUDAGraph | None = None
    frames: Tensor | None = None
    """[b, n R, M] float32"""


class SharedFlow:
    """Room for some replies of one `Flow`, and the passes that they take together."""

    def __init__(self, flow: Flow, replies: int, codes: int, graphs: bool = True) -> None:
        """codes: room of a reply, prompt included. graphs: record passes where there is a GPU. ValueError for sizes that have no room."""
        if replies < 1 or codes < flow.config.chunk:
            raise ValueError(f"replies is {replies} and codes {codes}; choose at least 1, and at least {flow.config.chunk}")
        if getattr(flow.config, "window", 0):
            raise ValueError("a flow with a window forgets as it goes; it needs no room for its past")
        self.flow = flow
        codes = -(-codes // 32) * 32  # attention likes its rows aligned
        self.slots = FlowSlots(flow, replies, codes)
        weight = flow.encoder_proj.weight
        self.device = weight.device
        self.recording = graphs and weight.device.type == "cuda"
        self.trouble = ""
        """Why passes are not replayed as graphs, when that was tried."""
        config = flow.config
        length = 1 << (codes * config.ratio - 1).bit_length()
        self._waves = waves(config.encoder.width, length, weight.device, weight.dtype)
        self._noise = starting_noise(config).to(weight.device)
        times = moments(config.steps)
        self._lengths: list[float] = times.diff().tolist()
        with torch.inference_mode():
            self._shifts = flow.decoder.estimator.shifts(times[:-1].to(weight.device), times.diff().to(weight.device))
        self._free = list(range(replies - 1, -1, -1))
        self._plans: dict[tuple[int, int], _Plan] = {}

    @property
    def config(self) -> FlowConfig:
        """The flow's."""
        return self.flow.config

    @torch.inference_mode()
    def open(self, prompt_codes: Tensor, prompt_mel: Tensor, speaker: Tensor | None = None) -> SharedFlowState:
        """A state for one reply; the prompt's full chunks are computed here. As `Flow.open`."""
        slot = self._take()
        if slot is None:
            return SharedFlowState(self, self.flow.open(prompt_codes, prompt_mel, speaker), None)
        state = SharedFlowState(self, self.flow.open(prompt_codes, prompt_mel, speaker, cached=False), slot)
        self.slots.clear(slot.index)
        self._advance([state])
        return state

    @torch.inference_mode()
    def fork(self, state: SharedFlowState) -> SharedFlowState:
        """A reply with the same past, to go on independently: a copy of its memory, or without room a `Flow`'s own."""
        plain = state.plain.fork()
        if state.slot is None:
            return SharedFlowState(self, plain, None)
        slot = self._take()
        if slot is not None:
            self.slots.copy(state.slot.index, slot.index, plain.done)
        else:
            plain.memory = owned(self.slots.alone(state.slot.index, plain.done))
        return SharedFlowState(self, plain, slot)

    def step(self, state: SharedFlowState, codes: Tensor, final: bool = False) -> Tensor:
        """Take the codes [n] that follow, give the frames that became final, [M, t] float32. As `Flow.step`."""
        return self.step_together([state], [codes], [final])[0]

    @torch.inference_mode()
    def step_together(self, states: Sequence[SharedFlowState], codes: Sequence[Tensor], finals: Sequence[bool]) -> list[Tensor]:
        """`step` for several different replies: one pass for all that have a chunk ready. Raises ValueError before anything is done."""
        checked = [self._checked(state.plain, new) for state, new in zip(states, codes, strict=True)]
        shared = [state for state in states if state.slot is not None]
        for state, new in zip(states, checked, strict=True):
            if state.slot is not None:
                state.plain.codes = torch.cat((state.plain.codes, new))
        made = dict(zip(map(id, shared), self._advance(shared), strict=True))
        frames = []
        nothing = torch.zeros(0, dtype=torch.int64)
        for state, new, final in zip(states, checked, finals, strict=True):
            if id(state) not in made:
                frames.append(self.flow.step(state.plain, new, final))
                continue
            done, room = made[id(state)], self._ready(state.plain) <= self.slots.codes
            if final or not room:
                assert state.slot is not None
                state.plain.memory = self.slots.alone(state.slot.index, state.plain.done)
                rest = self.flow.step(state.plain, nothing, final)
                done = torch.cat((done, rest), dim=1)
                state.slot = None  # the reply has ended, or its memory outgrew the slot and has moved
            frames.append(done)
        return frames

    def prepare(self, replies: int, codes: int) -> None:
        """Record now what up to `replies` replies of up to `codes` codes will replay, so that no conversation waits for it."""
        spans = [min(LEAST_SPAN, self.slots.codes)]
        while spans[-1] < min(codes, self.slots.codes):
            spans.append(min(2 * spans[-1], self.slots.codes))
        for rows in (rows for rows in ROWS if rows < 2 * replies):
            for span in spans:
                self._plan(rows, span)

    def _checked(self, plain: FlowState, codes: Tensor) -> Tensor:
        if plain.ended:
            raise ValueError("this reply has ended; open a new state for the next one")
        self.flow._check_length(len(plain.codes) + len(codes))
        return self.flow._checked(codes)

    def _take(self) -> _Slot | None:
        try:
            slot = _Slot(self._free.pop())
        except IndexError:
            return None
        weakref.finalize(slot, self._free.append, slot.index).atexit = False
        return slot

    def _ready(self, plain: FlowState) -> int:
        """Codes up to which all chunks are complete and their look-ahead is there."""
        chunk = self.config.chunk
        return max(len(plain.codes) - self.config.encoder.lookahead, 0) // chunk * chunk

    def _advance(self, states: Sequence[SharedFlowState]) -> list[Tensor]:
        """Compute the full chunks that are ready and have room: the reply's frames among them, [M, t] each."""
        chunk, ratio = self.config.chunk, self.config.ratio
        pieces: list[list[Tensor]] = [[] for _ in states]
        while True:
            due = [
                index
                for index, state in enumerate(states)
                if state.plain.done + chunk <= min(self._ready(state.plain), self.slots.codes)
            ]
            if not due:
                nothing = torch.zeros(self.config.mel, 0, device=self.device)
                return [torch.cat(piece, dim=1) if piece else nothing for piece in pieces]
            for at in range(0, len(due), ROWS[-1]):
                some = due[at : at + ROWS[-1]]
                frames = self._chunk([states[index] for index in some])  # [b, n R, M]
                for row, index in zip(frames, some, strict=True):
                    plain = states[index].plain
                    skipped = max(plain.prompt_codes - plain.done, 0) * ratio
                    pieces[index].append(row[skipped:].T)
                    plain.done += chunk

    def _chunk(self, states: Sequence[SharedFlowState]) -> Tensor:
        """The next chunk of each: [b, n R, M]."""
        config, count = self.config, len(states)
        rows = next(rows for rows in ROWS if rows >= count)
        ends = [state.plain.done + config.chunk for state in states]
        span = LEAST_SPAN
        while span < max(ends):
            span *= 2
        plan = self._plan(rows, min(span, self.slots.codes))
        codes = [
            state.plain.codes[end - config.chunk : end + config.encoder.lookahead] for state, end in zip(states, ends, strict=True)
        ]
        slots = [state.slot.index for state in states if state.slot is not None]
        padding = rows - count
        places = [[*slots, *[self.slots.slots - 1] * padding], [*(end - config.chunk for end in ends), *[0] * padding]]
        plan.codes[:count].copy_(torch.stack(codes))
        plan.places.copy_(torch.tensor(places))
        for row, state in enumerate(states):
            plain = state.plain
            known = plain.prompt_mel[plain.done * config.ratio :][: config.chunk * config.ratio]
            plan.known[row].zero_()
            if len(known):
                plan.known[row, : len(known)] = known
            if plan.speakers is not None and plain.speaker is not None:
                plan.speakers[row] = plain.speaker[0]
        if plan.graph is None:
            return self._forward(plan, min(span, self.slots.codes))[:count]
        plan.graph.replay()
        assert plan.frames is not None
        return plan.frames[:count].clone()

    def _plan(self, rows: int, span: int) -> _Plan:
        plan = self._plans.get((rows, span))
        if plan is None:
            config, chunk, like = self.config, self.config.chunk, self.flow.encoder_proj.weight
            frames = chunk * config.ratio
            places = torch.zeros(2, rows, dtype=torch.int64, device=self.device)
            places[0] = self.slots.slots - 1
            plan = _Plan(
                torch.zeros(rows, chunk + config.encoder.lookahead, dtype=torch.int64, device=self.device),
                like.new_zeros(rows, frames, config.mel),
                like.new_zeros(rows, config.mel) if config.speaker else None,
                places,
            )
            if self.recording:
                try:
                    self._record(plan, span)
                except RuntimeError as error:
                    self.recording, self.trouble = False, str(error).splitlines()[0]
                    log.warning("the flow runs without CUDA graphs, more slowly: %s", self.trouble)
                    plan.graph = None
            self._plans[rows, span] = plan
        return plan

    @torch.inference_mode()
    def _record(self, plan: _Plan, span: int) -> None:
        with torch.cuda.device(self.device):
            side = torch.cuda.Stream()
            side.wait_stream(torch.cuda.current_stream())
            with torch.cuda.stream(side):  # once without recording: libraries set themselves up
                self._forward(plan, span)
            torch.cuda.current_stream().wait_stream(side)
            torch.cuda.synchronize()
            graph = torch.cuda.CUDAGraph()
            with torch.cuda.graph(graph, capture_error_mode="thread_local"):
                plan.frames = self._forward(plan, span)
            plan.graph = graph

    @torch.inference_mode()
    def _forward(self, plan: _Plan, span: int) -> Tensor:
        """As `Flow` makes one chunk, for each row: [b, n R, M] float32."""
        flow, config = self.flow, self.config
        slots, starts = plan.places[0], plan.places[1]
        memory = self.slots.together(slots, starts, span)
        mean = self._encode(plan.codes, starts, span, memory.encoder)
        given = flow.conditions(mean, plan.speakers, plan.known)  # [b, n R, I - M]
        rows, n = given.shape[:2]
        if config.rows == 2:
            given = torch.stack((given, torch.zeros_like(given)), dim=1).flatten(0, 1)  # [b * 2, n R, I - M]
        first = starts * config.ratio
        x = self._noise[first[:, None] + torch.arange(n, device=starts.device)]  # [b, n R, M]
        mask = _additive(first + n, span * config.ratio, given.dtype).repeat_interleave(config.rows, dim=0)  # [b * k, 1, 1, s R]
        mask = mask.expand(-1, 1, n, -1)
        for step, length in enumerate(self._lengths):
            inputs = torch.cat((x.to(given.dtype).repeat_interleave(config.rows, dim=0), given), dim=2)
            moment = [shift[step : step + 1] for shift in self._shifts]
            direction = flow.decoder.estimator(inputs, moment, mask, memory.estimator[step]).float()
            if config.rows == 2:
                both = direction.unflatten(0, (rows, 2))
                direction = (1.0 + config.guidance) * both[:, 0] - config.guidance * both[:, 1]
            x = x + length * direction
        return x

    def _encode(self, codes: Tensor, starts: Tensor, span: int, memory: EncoderMemory) -> Tensor:
        """[b, n + L] -> [b, n R, M], as `Flow.encode` with each row's own start."""
        encoder, n, ratio = self.flow.encoder, self.config.chunk, self.config.ratio
        x = encoder.embed(self.flow.input_embedding(codes))  # [b, n + L, C]
        x = encoder.pre_lookahead_layer(x[:, :n], x[:, n:], memory.ahead)
        at, mask = self._places(starts, n, span)
        for layer, kept in zip(encoder.encoders, memory.layers, strict=True):
            x = layer(x, at, mask, kept)
        x = encoder.up_embed(encoder.up_layer(x, memory.up))
        at, mask = self._places(starts * ratio, n * ratio, span * ratio)
        for layer, kept in zip(encoder.up_encoders, memory.up_layers, strict=True):
            x = layer(x, at, mask, kept)
        mean: Tensor = self.flow.encoder_proj(encoder.after_norm(x))
        return mean

    def _places(self, starts: Tensor, n: int, span: int) -> tuple[Places, Tensor]:
        """Positions of each row, and which keys it sees: [b, 1, 1, s]."""
        rows = self._waves[starts[:, None] + torch.arange(n, device=starts.device)][:, None]  # [b, 1, n, C]
        cos, sin = rows.chunk(2, dim=-1)
        seen = torch.arange(span, device=starts.device) < (starts + n)[:, None]
        return Places(sin, cos, self._waves[:span].T), seen[:, None, None]


def _additive(ends: Tensor, span: int, dtype: torch.dtype) -> Tensor:
    """[b] -> [b, 1, 1, s]: 0 before each end, -inf from there."""
    unseen = torch.arange(span, device=ends.device) >= ends[:, None]
    return torch.zeros(unseen.shape, dtype=dtype, device=ends.device).masked_fill_(unseen, float("-inf"))[:, None, None]
