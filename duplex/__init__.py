"""What full duplex means: clocks, frames, events, turn-taking, playout, metrics. No asyncio; no torch outside the predictor."""
