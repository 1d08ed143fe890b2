"""LLM to sound: text preparation, voices, vocoders. Never imports `encoders`, `agent`, `apps` or asyncio."""
