"""The small flow as one ONNX graph per chunk: a chunk's codes in, its frames out, all steps of the solver unrolled.

Notable: it is for a CPU, where torch spends as long between its small operations as in them. It stands where a `Flow` stands
(`token2wav.CodesToMel`) and gives the same frames. A run is always one chunk, so nothing is ever masked, and how many codes come at once
cannot be heard at all. What depends on the moments alone is computed once, when the graph is made.

Measured on one thread of a busy machine, in CPU milliseconds for a chunk of 5 codes (232 ms of sound) of the voice's flow: 9 with one
step and 14 with two, where torch takes 24 and 36.

Only flows of one voice that forget (`FlowConfig.window`) and take neither prompt nor guidance.

Shapes: n codes of the chunk, L codes of look-ahead, R frames per code, t = n R, C width, M channels, h heads, d head width, m positions
seen.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import lru_cache
from typing import Any

import numpy as np
import torch
from torch import Tensor

from decoders.flow import Flow, FlowConfig, moments, starting_noise
from decoders.flow_encoder import waves
from decoders.onnx_builder import Array, GraphBuilder


@dataclass(slots=True)
class GraphFlowState:
    """One reply on its way, owned by the caller."""

    memories: dict[str, Array]
    waiting: Array
    """[codes, C] embedded codes whose frames have not been made."""
    done: int = 0
    """Codes whose frames have been made."""
    ended: bool = False

    def fork(self) -> GraphFlowState:
        """A reply with the same past, to go on independently; arrays are replaced, never written."""
        return GraphFlowState(self.memories, self.waiting, self.done, self.ended)


class GraphFlow:
    """A flow's chunks on a CPU. Holds no state of a reply; threads may share it."""

    def __init__(self, flow: Flow, steps: int | None = None, threads: int = 1) -> None:
        """steps: of the solver, instead of the configured ones. Raises ValueError for a flow that cannot be run so."""
        self.config: FlowConfig = flow.config
        config = flow.config
        if not config.window or config.prompted or config.speaker or config.guidance:
            raise ValueError("only a flow of one voice with a window, without prompt and guidance, can be run chunk by chunk alone")
        builder = _Flow(flow, steps or config.steps)
        self._session = builder.graph.session(builder.build(), threads)
        self._begin = builder.graph.begin
        self._outputs = [value.name for value in self._session.get_outputs()]
        self._table = flow.input_embedding(torch.arange(config.vocabulary)).detach().float().numpy()  # [vocabulary, C]
        self._noise = starting_noise(config).numpy()

    def open(self, prompt_codes: Tensor, prompt_mel: Tensor, speaker: Tensor | None = None) -> GraphFlowState:
        """A state for one reply; the prompt must be empty, and is only there because token2wav's flows may have one."""
        if len(prompt_codes) or len(prompt_mel) or speaker is not None:
            raise ValueError("this flow takes no voice prompt; give an empty one")
        return GraphFlowState(dict(self._begin), np.zeros((0, self._table.shape[1]), np.float32))

    def step(self, state: GraphFlowState, codes: Tensor, final: bool = False) -> Tensor:
        """As `Flow.step`: codes [n] int64 that follow -> the frames that became final, [M, t] float32.

        Raises ValueError, and leaves the state as it was, when a code is unknown, the reply has ended, or it grows beyond `max_frames`.
        """
        config = self.config
        if state.ended:
            raise ValueError("this reply has ended; open a new state for the next one")
        given = codes.numpy()
        if len(given) and not 0 <= given.min() <= given.max() < config.vocabulary:
            raise ValueError(f"a code is no speech code: this flow knows 0 to {config.vocabulary - 1}")
        if (state.done + len(state.waiting) + len(given)) * config.ratio > config.max_frames:
            raise ValueError(
                f"the reply has more than {config.max_frames // config.ratio} codes; open a new state for what follows"
            )
        state.waiting = np.concatenate((state.waiting, self._table[given]))
        state.ended = final
        frames = [np.zeros((0, config.mel), np.float32)]
        ahead = 0 if final else config.encoder.lookahead
        while len(state.waiting) >= config.chunk + ahead or (final and len(state.waiting)):
            frames.append(self._chunk(state))
        return torch.from_numpy(np.concatenate(frames).T)

    def _chunk(self, state: GraphFlowState) -> Array:
        """Frames of the next chunk, [t, M]."""
        config = self.config
        now, later = state.waiting[: config.chunk], state.waiting[config.chunk :]
        n, ratio, ahead = len(now), config.ratio, config.encoder.lookahead
        kept = min(state.done, config.window)
        begin = state.done * ratio
        feed: dict[str, Any] = {
            "now": now[None],
            "ahead": later[None, :ahead],
            "beyond": np.zeros((1, max(ahead - len(later), 0), config.encoder.width), np.float32),
            "noise": self._noise[None, begin : begin + n * ratio],
            **_places("code", kept, n, config.encoder.width),
            **_places("frame", kept * ratio, n * ratio, config.encoder.width),
            **state.memories,
        }
        frames, *memories = self._session.run(self._outputs, feed)
        state.memories = dict(zip(self._begin, memories, strict=True))
        state.waiting, state.done = later, state.done + n
        made: Array = frames[0]
        return made


@lru_cache(maxsize=64)
def _places(name: str, kept: int, n: int, width: int) -> dict[str, Array]:
    """Sines and cosines of n positions behind `kept` others, as queries [n, C / 2], and of all as keys [C, kept + n]."""
    table = waves(width, max(kept + n, 1024), torch.device("cpu"), torch.float32)[: kept + n].numpy()
    cos, sin = np.split(table[kept:], 2, axis=1)
    return {f"{name}_sin": sin, f"{name}_cos": cos, f"{name}_keys": np.ascontiguousarray(table.T)}


class _Flow:
    """The networks, written into a graph."""

    def __init__(self, flow: Flow, steps: int) -> None:
        self.config, self.steps = flow.config, steps
        self.graph = GraphBuilder()
        self.weights = {name: value.detach().float().cpu().numpy() for name, value in flow.state_dict().items()}
        times = moments(steps)
        with torch.inference_mode():
            estimator = flow.decoder.estimator
            self.shifts = [
                shift.float().cpu().numpy() for shift in estimator.shifts(times[:-1], times.diff())
            ]  # [steps, 1, C] each
        self.lengths = times.diff().tolist()

    def build(self) -> str:
        """The whole; returns the output's name."""
        graph = self.graph
        for name, axes in (("now", 3), ("ahead", 3), ("beyond", 3), ("noise", 3)):
            graph.input(name, axes)
        for rate in ("code", "frame"):
            for name in ("sin", "cos", "keys"):
                graph.input(f"{rate}_{name}", 2)
        mean = self._linear(self._encoder(), "encoder_proj")
        x = "noise"
        for step in range(self.steps):
            given = graph.node("Concat", [x, mean], f"step{step}.given", axis=2)
            direction = self._estimator(given, step)
            length = graph.constant(f"step{step}.length", np.array(self.lengths[step], np.float32))
            moved = graph.node("Mul", [direction, length], f"step{step}.moved")
            x = graph.node("Add", [x, moved], f"step{step}.point")
        return x

    def _linear(self, x: str, name: str, prefix: str = "") -> str:
        return self.graph.linear(x, self.weights[f"{name}.weight"], self.weights.get(f"{name}.bias"), prefix + name)

    def _norm(self, x: str, name: str, epsilon: float = 1e-5, prefix: str = "") -> str:
        return self.graph.norm(x, self.weights[f"{name}.weight"], self.weights[f"{name}.bias"], epsilon, prefix + name)

    def _parameters(self, name: str) -> tuple[Array, Array]:
        return self.weights[f"{name}.weight"], self.weights[f"{name}.bias"]

    def _encoder(self) -> str:
        graph, config = self.graph, self.config.encoder
        own = self._embed("now", "encoder.embed", "now.")
        later = self._embed("ahead", "encoder.embed", "ahead.")
        shown = graph.node("Concat", [own, later, "beyond"], "shown", axis=1)
        layer = "encoder.pre_lookahead_layer"
        seen = graph.window_linear(shown, *self._parameters(f"{layer}.conv1"), f"{layer}.conv1")
        seen = graph.node("LeakyRelu", [seen], f"{layer}.leaky", alpha=0.01)
        seen = graph.causal(seen, *self._parameters(f"{layer}.conv2"), f"{layer}.conv2")
        x = graph.node("Add", [own, seen], f"{layer}.out")
        for index in range(config.blocks):
            x = self._layer(x, f"encoder.encoders.{index}", "code", self.config.window)
        ratio, width = self.config.ratio, config.width
        column = graph.node("Unsqueeze", [x, graph.whole(2)], "codes.column")
        repeated = graph.node("Expand", [column, graph.whole(1, 1, ratio, width)], "codes.repeated")
        x = graph.node("Reshape", [repeated, graph.whole(1, -1, width)], "codes.frames")
        x = graph.causal(x, *self._parameters("encoder.up_layer.conv"), "encoder.up_layer.conv")
        x = self._embed(x, "encoder.up_embed")
        for index in range(config.up_blocks):
            x = self._layer(x, f"encoder.up_encoders.{index}", "frame", self.config.window * ratio)
        return self._norm(x, "encoder.after_norm")

    def _embed(self, x: str, name: str, prefix: str = "") -> str:
        made = self._norm(self._linear(x, f"{name}.out.0", prefix), f"{name}.out.1", prefix=prefix)
        scale = self.graph.constant("embed.scale", np.array(self.config.encoder.width**0.5, np.float32))
        return self.graph.node("Mul", [made, scale], f"{prefix}{name}.scaled")

    def _layer(self, x: str, name: str, rate: str, window: int) -> str:
        """An encoder's layer: attention that knows distances, and a feed-forward."""
        graph = self.graph
        mixed = self._relative(self._norm(x, f"{name}.norm_mha", 1e-12), f"{name}.self_attn", rate, window)
        x = graph.node("Add", [x, mixed], f"{name}.mid")
        hidden = self._linear(self._norm(x, f"{name}.norm_ff", 1e-12), f"{name}.feed_forward.w_1")
        gate = graph.node("Sigmoid", [hidden], f"{name}.gate")
        hidden = graph.node("Mul", [hidden, gate], f"{name}.silu")
        return graph.node("Add", [x, self._linear(hidden, f"{name}.feed_forward.w_2")], f"{name}.out")

    def _relative(self, x: str, name: str, rate: str, window: int) -> str:
        """As `flow_encoder.RelativeAttention`: the distance is a product of something of the query and something of the key."""
        graph, heads = self.graph, self.config.encoder.heads
        width = self.config.encoder.width
        root = (width // heads) ** 0.5
        queries = []
        for bias in ("u", "v"):  # the two biases of the query, and the scale, go into its linear layer
            own = (self.weights[f"{name}.linear_q.bias"] + self.weights[f"{name}.pos_bias_{bias}"].reshape(-1)) / root
            query = graph.linear(x, self.weights[f"{name}.linear_q.weight"] / root, own, f"{name}.linear_q_{bias}")
            queries.append(graph.heads(query, heads, (0, 2, 1, 3), f"{name}.query_{bias}"))
        content, place = queries
        key, value = self._keys_values(x, name, ("linear_k", "linear_v"), heads, window, "")
        per_head = self.weights[f"{name}.linear_pos.weight"].reshape(heads, -1, width)  # [h, d, C]
        parts = []
        for kind, offset in (("sine", 0), ("cosine", 1)):
            weight = graph.constant(f"{name}.{kind}.weight", per_head[None, :, :, offset::2])
            parts.append(graph.node("MatMul", [place, weight], f"{name}.{kind}"))  # [1, h, n, C / 2]
        sine, cosine = parts
        products = [
            graph.node("Mul", [part, f"{rate}_{wave}"], f"{name}.{kind}_{wave}")
            for part, kind, wave in (
                (sine, "sine", "sin"),
                (cosine, "cosine", "cos"),
                (cosine, "cosine", "sin"),
                (sine, "sine", "cos"),
            )
        ]
        turned = [
            graph.node("Add", products[:2], f"{name}.turned0"),
            graph.node("Sub", products[2:], f"{name}.turned1"),
        ]
        wave = graph.node("Concat", turned, f"{name}.turned", axis=3)
        distance = graph.node("MatMul", [wave, f"{rate}_keys"], f"{name}.distance")  # [1, h, n, m]
        score = graph.node("Add", [graph.node("MatMul", [content, key], f"{name}.content"), distance], f"{name}.score")
        return self._linear(self._mix(score, value, name), f"{name}.linear_out")

    def _keys_values(self, x: str, name: str, layers: tuple[str, str], heads: int, window: int, prefix: str) -> tuple[str, str]:
        """Keys [1, h, d, m] and values [1, h, m, d] of x and of what is remembered."""
        graph, found = self.graph, []
        for layer, perm, axis in zip(layers, ((0, 2, 3, 1), (0, 2, 1, 3)), (3, 2), strict=True):
            full = f"{prefix}{name}.{layer}"
            width = len(self.weights[f"{name}.{layer}.weight"]) // heads
            made = graph.heads(self._linear(x, f"{name}.{layer}", prefix), heads, perm, full)
            first = np.zeros((1, heads, width, 0) if axis == 3 else (1, heads, 0, width), np.float32)
            found.append(graph.remembered(made, first, window, axis, full))
        return found[0], found[1]

    def _mix(self, score: str, value: str, name: str) -> str:
        """Scores [1, h, n, m] and values to [1, n, h d]."""
        graph = self.graph
        weight = graph.node("Softmax", [score], f"{name}.softmax", axis=-1)
        mixed = graph.node("MatMul", [weight, value], f"{name}.mixed")
        turned = graph.node("Transpose", [mixed], f"{name}.rows", perm=[0, 2, 1, 3])
        return graph.node("Reshape", [turned, graph.whole(1, 0, -1)], f"{name}.joined_heads")

    def _estimator(self, x: str, step: int) -> str:
        """As `flow_estimator.FlowEstimator` at one moment."""
        name, prefix = "decoder.estimator", f"step{step}."
        middle = self.config.estimator.mid_stages
        skipped = self._stage(x, f"{name}.down_blocks.0", 0, step)
        x = self._causal(skipped, f"{name}.down_blocks.0.2", prefix)
        for index in range(middle):
            x = self._stage(x, f"{name}.mid_blocks.{index}", 1 + index, step)
        x = self.graph.node("Concat", [x, skipped], f"{prefix}both", axis=2)
        x = self._causal(self._stage(x, f"{name}.up_blocks.0", 1 + middle, step), f"{name}.up_blocks.0.2", prefix)
        return self._causal(self._block(x, f"{name}.final_block", prefix), f"{name}.final_proj", prefix)

    def _causal(self, x: str, name: str, prefix: str) -> str:
        return self.graph.causal(x, *self._parameters(name), prefix + name)

    def _block(self, x: str, name: str, prefix: str) -> str:
        """A causal convolution, a norm, Mish."""
        graph = self.graph
        made = self._norm(self._causal(x, f"{name}.block.0", prefix), f"{name}.block.2", prefix=prefix)
        soft = graph.node("Softplus", [made], f"{prefix}{name}.softplus")
        return graph.node("Mul", [made, graph.node("Tanh", [soft], f"{prefix}{name}.tanh")], f"{prefix}{name}.mish")

    def _stage(self, x: str, name: str, place: int, step: int) -> str:
        graph, prefix = self.graph, f"step{step}."
        hidden = self._block(x, f"{name}.0.block1", prefix)
        shift = graph.constant(f"{prefix}{name}.shift", self.shifts[place][step : step + 1])
        hidden = graph.node("Add", [hidden, shift], f"{prefix}{name}.shifted")
        hidden = self._block(hidden, f"{name}.0.block2", prefix)
        x = graph.node("Add", [hidden, self._causal(x, f"{name}.0.res_conv", prefix)], f"{prefix}{name}.resnet")
        for index in range(self.config.estimator.blocks):
            x = self._transformer(x, f"{name}.1.{index}", prefix)
        return x

    def _transformer(self, x: str, name: str, prefix: str) -> str:
        graph, sizes = self.graph, self.config.estimator
        seen = self._norm(x, f"{name}.norm1", prefix=prefix)
        attention = f"{name}.attn1"
        root = sizes.head_width**0.5
        query = graph.linear(seen, self.weights[f"{attention}.to_q.weight"] / root, None, f"{prefix}{attention}.to_q")
        query = graph.heads(query, sizes.heads, (0, 2, 1, 3), f"{prefix}{attention}.query")
        window = self.config.window * self.config.ratio
        key, value = self._keys_values(seen, attention, ("to_k", "to_v"), sizes.heads, window, prefix)
        score = graph.node("MatMul", [query, key], f"{prefix}{attention}.score")
        mixed = self._linear(self._mix(score, value, prefix + attention), f"{attention}.to_out.0", prefix)
        x = graph.node("Add", [x, mixed], f"{prefix}{name}.mid")
        hidden = self._linear(self._norm(x, f"{name}.norm3", prefix=prefix), f"{name}.ff.net.0.proj", prefix)
        hidden = self._gelu(hidden, prefix + name)
        return graph.node("Add", [x, self._linear(hidden, f"{name}.ff.net.2", prefix)], f"{prefix}{name}.out")

    def _gelu(self, x: str, name: str) -> str:
        """Exact, in the form that onnxruntime knows as one operation."""
        graph = self.graph
        scaled = graph.node("Div", [x, graph.constant("gelu.root", np.array(2.0**0.5, np.float32))], f"{name}.gelu_scaled")
        share = graph.node("Erf", [scaled], f"{name}.gelu_erf")
        one = graph.node("Add", [share, graph.constant("gelu.one", np.array(1.0, np.float32))], f"{name}.gelu_one")
        product = graph.node("Mul", [x, one], f"{name}.gelu_product")
        return graph.node("Mul", [product, graph.constant("gelu.half", np.array(0.5, np.float32))], f"{name}.gelu")
