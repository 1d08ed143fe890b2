"""Sound to LLM space: features, speech encoders, transcripts. Never imports `decoders`, `agent`, `apps` or asyncio."""
