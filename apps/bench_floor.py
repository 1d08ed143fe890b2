"""`duologue bench floor`: turn-taking on built conversations of people and voices unheard in any training, beside what is used otherwise.

Every system hears the same sound in the same run. The measures are in duplex.floor_scores; docs/floor.md says how to read them.
"""

from __future__ import annotations

import argparse
import math
import time
from dataclasses import replace
from pathlib import Path

import numpy as np

from agent import weight_cache
from agent.build import session_config
from agent.parts import Parts
from agent.profiles import Profile
from apps import recorded_lines
from apps.bench_floor_systems import Ours, Silence, SmartTurn, System, overlap_run, silero, smart_turn_file, webrtc
from apps.floor_listening import Known, Took, listen
from apps.train_people import make_people
from apps.train_stock import WordsReader, bench_voices, make_stock
from duplex.errors import ConfigError
from duplex.floor_scores import FloorScores, OverlapRun, Point, TurnRun, curve, delay_at, floor_scores
from duplex.predictor import RulePredictor
from duplex.predictor_choice import PredictorConfig
from duplex.predictor_features import Heard
from duplex.predictor_trained import WEIGHTS, TrainedPredictor
from duplex.scenario import Kind, Scenario, ScenarioConfig, Stock
from duplex.scenario_builder import Builder
from duplex.scenario_probe import probe
from duplex.vad import Vad

OVER: tuple[Kind, ...] = ("interruption", "backchannel", "noise", "side_talk")
PEOPLE, SYNTHETIC = "recorded people", "flite's slt and rms"
CUT_OFFS = (0.02, 0.05, 0.10, 0.20)


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Arguments of this measurement."""
    parser.add_argument("--turns", type=int, default=120, help="user turns, half of them with pauses (default: 120)")
    parser.add_argument("--overlaps", type=int, default=120, help="sounds over the agent's voice (default: 120)")
    parser.add_argument("--who", choices=("both", "people", "synthetic"), default="both", help="who speaks (default: both)")
    parser.add_argument("--predictor", type=Path, default=WEIGHTS, help="the trained predictor's weights")
    parser.add_argument("--plot", type=Path, default=None, metavar="PNG", help="also draw false cut-offs against delay")
    parser.add_argument("--wait-while", type=Path, default=None, metavar="FILE", help="pause as long as this file exists")


def run_floor(profile: Profile, parts: Parts, args: argparse.Namespace) -> list[str]:
    """Measure and return the report's lines. Raises ConfigError for too few conversations, InputError without flite."""
    if args.turns < 8 or args.overlaps < 8:
        raise ConfigError("Measure on at least 8 turns and 8 overlaps.")
    if not isinstance(parts.vad, Vad):
        raise ConfigError("duologue bench floor needs a profile with silero's voice activity, such as edge.")
    vad = parts.vad

    systems, notes = _systems(parts.vad, args.predictor, profile.section("predictor", PredictorConfig))
    config, took = session_config(profile), Took()
    reader = WordsReader(parts, config.response.system_prompt)

    def heard(scenario: Scenario) -> tuple[Scenario, list[Known]]:
        while args.wait_while is not None and args.wait_while.exists():
            time.sleep(1.0)
        return scenario, listen(scenario, vad, reader, took, config)

    lines, curves = list[str](), dict[str, dict[str, list[Point]]]()
    for who, stock in _stocks(args.who, notes).items():
        builder = Builder(stock, ScenarioConfig())
        turns: dict[str, list[TurnRun]] = {system.name: [] for system in systems}
        for scenario, ticks in (heard(builder.turn(seed, 0 if seed % 2 else 1 + seed // 2 % 2)) for seed in range(args.turns)):
            for system in systems:
                turns[system.name].append(system.turn(scenario, ticks))
        overlaps: dict[str, list[OverlapRun]] = {system.name: [] for system in systems}
        for seed in range(args.overlaps):
            kind = OVER[seed % len(OVER)]
            scenario, ticks = heard(builder.overlap(10_000 + seed, kind))
            for system in systems:
                overlaps[system.name].append(overlap_run(system, kind, scenario, ticks))
        curves[who] = {name: curve(runs) for name, runs in turns.items()}
        lines += [
            f"{who}: {args.turns} turns, half of them with one or two pauses of 0.3 to 2 s, and {args.overlaps} sounds over the agent's "
            "voice; rooms, noise of 5 to 30 dB",
            f"silence alone tells a turn's end from a pause with an AUC of {probe([builder.conversation(s) for s in range(80)]):.2f} "
            "(0.5 is chance)",
            "",
            *_table({name: floor_scores(turns[name], overlaps[name]) for name in turns}),
            "",
            *_delays(curves[who]),
            "",
            *(f"{name} at 10 % cut off: {_setting(points)}" for name, points in curves[who].items()),
            "",
        ]
    lines += [
        f"words were known {_spread(took.heard_s)} after they were asked for, and read {_spread(took.was_read_s)} later",
        *notes,
    ]
    trained = next((s.predictor for s in systems if isinstance(s, Ours) and isinstance(s.predictor, TrainedPredictor)), None)
    if trained is not None:
        lines.append(_speed(trained))
    if args.plot is not None:
        draw(curves, args.plot)
    return lines


def _stocks(who: str, notes: list[str]) -> dict[str, Stock]:
    """Who speaks -> what they say. Notes tell what is not here. Raises InputError without flite, or people where nobody else is wanted."""
    folder, found = weight_cache.home() / "bench-floor", dict[str, Stock]()
    if who != "synthetic":
        if who == "people" or recorded_lines.installed("bench"):
            found[PEOPLE] = make_people("bench", folder, print)
        else:
            notes.append(f"recorded people are not installed and were left out: apt install {recorded_lines.PACKAGES['bench']}")
    if who != "people":
        found[SYNTHETIC] = make_stock("bench", bench_voices(48), folder, print)
    return found


def _systems(vad: Vad, weights: Path, config: PredictorConfig) -> tuple[list[System], list[str]]:
    found: list[System] = [Ours("rules", RulePredictor(config))]
    notes = []
    if weights.exists():
        kinds = {
            "both": {"agree": "both"},
            "network": {"agree": "net", "surely": None, "hardly": None},
        }
        for name, chosen in kinds.items():
            predictor = TrainedPredictor.load(weights, replace(config.trained, **chosen), config)  # type: ignore[arg-type]
            found.append(Ours(name, predictor))
    else:
        notes.append("no trained predictor: make one with duologue train predictor")
    found.append(Silence("silero + 700 ms", silero(vad)))
    if (voices := webrtc()) is not None:
        found.append(Silence("webrtcvad + 700 ms", voices, voice_s=0.2))
    else:
        notes.append("webrtcvad is not installed and was left out: pip install webrtcvad-wheels")
    if (model := smart_turn_file()) is not None:
        found.append(SmartTurn(silero(vad), model))
    else:
        notes.append("smart-turn is not installed and was left out: pip install --no-deps pipecat-ai")
    return found, notes


def _table(scores: dict[str, FloorScores]) -> list[str]:
    rows = [
        "| as shipped | pause takeover | turn takeover | its median delay | interruption takeover | its median delay | silent after "
        "| backchannel takeover | held besides | noise | side talk |",
        "|---|---|---|---|---|---|---|---|---|---|---|",
    ]
    for name, s in scores.items():
        shares = [
            f"{100 * x:.0f} %"
            for x in (s.pause_rate, s.turn_rate, s.interruption_rate, s.backchannel_rate, s.noise_rate, s.side_talk_rate)
        ]
        held = f"{100 * s.held_rate:.0f} % for {1000 * s.held_s:.0f} ms" if s.held_rate > 0 else "-"
        rows.append(
            f"| {name} | {shares[0]} | {shares[1]} | {1000 * s.turn_latency_s:.0f} ms | {shares[2]} | {1000 * s.stop_latency_s:.0f} ms "
            f"| {1000 * s.quiet_latency_s:.0f} ms | {shares[3]} | {held} | {shares[4]} | {shares[5]} |"
        )
    return rows


def _spread(times_s: list[float]) -> str:
    return f"{1000 * np.median(times_s):.0f} ms (p95 {1000 * np.percentile(times_s, 95):.0f})"


def _delays(curves: dict[str, list[Point]]) -> list[str]:
    heads = " | ".join(f"{100 * cut:.0f} % cut off" for cut in CUT_OFFS)
    rows = [f"| mean delay, best setting | {heads} |", "|---" * (1 + len(CUT_OFFS)) + "|"]
    for name, points in curves.items():
        delays = [delay_at(points, cut) for cut in CUT_OFFS]
        rows.append(f"| {name} | " + " | ".join("-" if math.isnan(d) else f"{1000 * d:.0f} ms" for d in delays) + " |")
    return rows


def _setting(points: list[Point]) -> str:
    """The setting of the curve at 10 % cut off."""
    able = [point for point in points if point.cut_off <= 0.10]
    if not able:
        return "none"
    s = min(able, key=lambda point: point.delay_s).setting
    return f"{s.sure_s:.2f} s of silence from a score of {s.score:.3f}, else {s.any_s:.1f} s"


def _speed(predictor: TrainedPredictor) -> str:
    """The processor time of a tick."""
    rng, state, took = np.random.default_rng(0), predictor.open(), []
    for _ in range(300):
        heard = Heard((0.05 * rng.standard_normal(1280)).astype(np.float32), 0.2, False, 0.4, False)
        began = time.thread_time()
        predictor.hear(state, heard)
        took.append(1000 * (time.thread_time() - began))
    return f"a tick of the trained predictor: median {np.median(took[50:]):.2f}, p99 {np.percentile(took[50:], 99):.2f} ms of one thread"


def draw(curves: dict[str, dict[str, list[Point]]], file: Path) -> None:
    """False cut-offs against delay, one line per system, as a picture; side by side, who speaks."""
    from matplotlib.figure import Figure

    figure = Figure(figsize=(7 * len(curves), 4.5), layout="constrained")
    for axes, (who, systems) in zip(figure.subplots(1, len(curves), squeeze=False)[0], curves.items(), strict=True):
        for name, points in systems.items():
            axes.step([p.delay_s for p in points], [100 * p.cut_off for p in points], where="pre", label=name)  # delays fall
        axes.set(
            title=who, xlabel="mean silence after the end of a turn (s)", ylabel="turns cut off (%)", xlim=(0, 2), ylim=(0, 50)
        )
        axes.grid(alpha=0.3)
    axes.legend()
    figure.savefig(file, dpi=130)
