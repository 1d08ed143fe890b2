"""The reference tensors on any device, with the differences printed: `python -m tests.decoders.device_checks cuda`.

It needs no pytest, so it runs where only the models' own packages are. In float32, without TF32, on a GPU all differences should be about
as small as on a CPU. Steps that are recorded as CUDA graphs are compared as well; where recording failed, a line says so.
"""

from __future__ import annotations

import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from agent.sampling import SamplingConfig
from agent.thinker import Thinker
from decoders.flow import Flow, FlowConfig
from decoders.flow_checkpoint import build
from decoders.flow_encoder import FlowEncoderConfig
from decoders.flow_estimator import FlowEstimatorConfig
from decoders.flow_steps import SharedFlow
from decoders.hift import HiFT, HiFTConfig
from decoders.qwen import Qwen
from decoders.ras import GREEDY
from duplex.checkpoint import fill
from encoders.sensevoice import SenseVoice, SenseVoiceConfig
from tests.decoders.reference_voice_lm import REFERENCE as VOICE_LM
from tests.decoders.reference_voice_lm import reference_lm
from tests.reference_weights import load_reference, reference_state

DECODERS = Path(__file__).parent / "reference"
ENCODERS = Path(__file__).parents[1] / "encoders" / "reference"
Found = tuple[str, float, float]
"""What was compared, the greatest difference relative to the greatest value, and how large it may be."""


def apart(ours: Tensor, theirs: Tensor) -> float:
    """The greatest difference, relative to the greatest value."""
    assert ours.shape == theirs.shape
    return float((ours.cpu() - theirs.cpu()).abs().max() / theirs.abs().max().cpu())


def exact() -> None:
    """Convolutions in float32 as they are, as for a conversation."""
    torch.backends.cudnn.allow_tf32 = False


def reference_flow(info: dict[str, Any], device: str) -> Flow:
    """The flow at the reference's size."""
    encoder = FlowEncoderConfig(feed_forward=info["config/linear_units"], blocks=info["config/num_blocks"], up_blocks=1)
    estimator = FlowEstimatorConfig(
        channels=info["config/channels"][0],
        blocks=info["config/n_blocks"],
        mid_stages=info["config/num_mid_blocks"],
        heads=info["config/num_heads"],
        head_width=info["config/attention_head_dim"],
    )
    config = FlowConfig(vocabulary=info["config/vocab"], encoder=encoder, estimator=estimator)
    with torch.device("meta"):
        shapes = {key: tuple(value.shape) for key, value in Flow(config).state_dict().items()}
    assert [len(shapes), sum(torch.Size(shape).numel() for shape in shapes.values())] == info["n_tensors_params"]
    return build(config, reference_state(shapes, info["weights_seed"]), "the rule", device=device)


def check_flow(device: str) -> Iterator[Found]:
    """Alone, and with room for several replies, whose passes are recorded on a GPU."""
    data, info = load_reference(DECODERS / "flow.safetensors")
    flow = reference_flow(info, device)
    prompt = data["inputs/prompt_token"][0], data["inputs/prompt_feat"][0], data["inputs/embedding"][0]
    state = flow.open(*prompt)
    yield (
        "flow, mel in one long step",
        apart(flow.step(state, data["inputs/token"][0], True), data["outputs/mel_stream_finalize"][0]),
        1e-4,
    )
    shared = SharedFlow(flow, 3, 250)
    voice = shared.open(*prompt)
    states, given, codes = [voice.fork(), voice.fork()], 0, data["inputs/token"][0]
    for hop, (offset, length) in enumerate(info["outputs/stream_hops"]):
        upto = offset + length + 3
        made = shared.step_together(states, [codes[given:upto]] * 2, [False, False])
        given = upto
        worst = max(apart(mel, data[f"outputs/stream_chunks/{hop}"][0]) for mel in made)
        yield f"flow, two replies together, hop {hop}{_how(shared)}", worst, 1e-4
    tails = shared.step_together(states, [codes[given:]] * 2, [True, True])
    theirs = data["outputs/mel_stream_finalize"][0]
    yield "flow, their ends", max(apart(tail, theirs[:, -tail.shape[1] :]) for tail in tails), 1e-4


def check_voice_lm(device: str) -> Iterator[Found]:
    """One pass, and codes drawn step by step."""
    tensors, info = VOICE_LM
    lm = reference_lm(as_upstream=True)
    lm.modules.to(device)
    lm.qwen = Qwen(lm.modules.llm.model, lm.config.max_context_tokens)
    rows, cache = tensors["one_step/lm_input"][0].to(device), lm.qwen.buffers()
    lm.qwen.forward(rows, cache, 0)
    yield "voice LM, hidden states", apart(cache.hidden[: len(rows)], tensors["one_step/hidden"][0]), 1e-5
    yield "voice LM, scores", apart(lm._outputs(cache.hidden[len(rows) - 1]), tensors["one_step/last_logits"][0]), 1e-5
    lm.share(2)
    prompt = tensors["inputs/prompt_text"][0], tensors["inputs/prompt_speech_token"][0].tolist()
    steps = lm.unistream(lm.embed(tensors["inputs/text"][0]), *prompt, sampling=GREEDY)
    wrong = [code for step in steps for code in step] != info["unistream_greedy/tokens"]
    yield f"voice LM, codes that differ{_how(lm.steps)}", float(wrong), 0.0


def check_vocoder(device: str) -> Iterator[Found]:
    """Pitch, filter, and a stream of pieces."""
    tensors, info = load_reference(DECODERS / "hift_mini.safetensors")
    with torch.device("meta"):
        model = HiFT(HiFTConfig(channels=info["config/base_channels"], f0_channels=info["config/cond_channels"]))
    state = reference_state({name: tuple(value.shape) for name, value in model.state_dict().items()}, info["weights_seed"])
    state |= {name.removeprefix("state/"): value for name, value in tensors.items() if name.startswith("state/")}
    model.load_state_dict(state, assign=True)
    model.fuse()
    model.requires_grad_(False).to(device)
    mel = tensors["mel"][0].to(device)
    with torch.inference_mode():
        yield "vocoder, pitch", apart(model.f0_predictor(mel), tensors["outputs/f0"][0]), 1e-5
        wave = model.filter(mel, tensors["outputs/given_noise/source"][0, 0].to(device))
        yield "vocoder, waveform of the reference's excitation", apart(wave, tensors["outputs/given_noise/wav"][0]), 1e-5
    whole = model.step(model.open(None), mel, True)
    yield "vocoder, the whole passage", apart(whole, tensors["outputs/zero_noise/wav"][0]), 2e-3


def check_sensevoice(device: str) -> Iterator[Found]:
    """Encoder and head over padded rows."""
    tensors, info = load_reference(ENCODERS / "sensevoice_mini.safetensors")
    conf = {name.removeprefix("config/encoder_conf/"): value for name, value in info.items() if "encoder_conf" in name}
    conf.pop("sanm_shfit")
    with torch.device("meta"):
        network = SenseVoice(SenseVoiceConfig(input_size=info["config/input_size"], vocab_size=info["config/vocab_size"], **conf))
    shapes = {name: tuple(value.shape) for name, value in network.state_dict().items()}
    fill(network, reference_state(shapes, info["weights_seed"]), "the rule", "SenseVoice")
    network.to(device)
    lengths = tensors["feat_lens"]
    with torch.inference_mode():
        encoded = network(tensors["feats"].to(device), lengths, "en", True).cpu()
    valid = torch.arange(encoded.shape[1]) < (lengths + 4)[:, None]
    yield "SenseVoice, encoder", apart(encoded[valid], tensors["outputs/en/withitn/enc_out"][valid]), 1e-5


def check_thinker(device: str) -> Iterator[Found]:
    """A small language model: recorded steps of three contexts against one by one on the CPU."""
    cpu, gpu = Thinker.tiny(), Thinker.tiny()
    gpu._qwen.model.to(device)
    gpu._qwen = Qwen(gpu._qwen.model, gpu.config.max_context_tokens)
    gpu.share(3)
    greedy = SamplingConfig(temperature=0.0)
    texts = ("one", "another text", "x" * 260)
    worst, written = 0.0, []
    for thinker in (cpu, gpu):
        contexts = [thinker.open() for _ in texts]
        samplers = [thinker.sampler(greedy) for _ in texts]
        for context, text in zip(contexts, texts, strict=True):
            thinker.sync(context, thinker.encode(text))
        written.append([thinker.step_together(contexts, samplers) for _ in range(12)])
    tokens = [[[step.token for step in row] for row in run] for run in written]
    for ours, theirs in zip(written[1], written[0], strict=True):
        for left, right in zip(ours, theirs, strict=True):
            worst = max(worst, float(abs(left.hidden - right.hidden).max() / abs(right.hidden).max()))
    yield f"LLM, hidden states of steps together{_how(gpu.steps)}", worst, 1e-4
    yield "LLM, tokens that differ", float(tokens[0] != tokens[1]), 0.0


CHECKS: tuple[Callable[[str], Iterator[Found]], ...] = (check_thinker, check_voice_lm, check_flow, check_vocoder, check_sensevoice)


def _how(steps: Any) -> str:
    if steps.trouble:
        return f" (NOT recorded: {steps.trouble})"
    return " (recorded)" if steps.recording else ""


def main(device: str) -> int:
    """Print all differences; 1 when one is too large or a check failed."""
    failed = False
    exact()
    print(f"device {device}, torch {torch.__version__}", flush=True)
    for check in CHECKS:
        began = time.monotonic()
        try:
            for name, difference, bound in check(device):
                good = difference <= bound
                failed |= not good
                print(f"  {'ok ' if good else 'BAD'} {name}: {difference:.2e} (at most {bound:.0e})", flush=True)
        except Exception as error:  # the other checks are still worth their time
            failed = True
            print(f"  BAD {check.__name__}: {type(error).__name__}: {error}", flush=True)
        print(f"      {check.__name__}: {time.monotonic() - began:.1f} s", flush=True)
    return int(failed)


if __name__ == "__main__":
    sys.exit(main(sys.argv[1] if len(sys.argv) > 1 else "cuda"))
