"""A full-duplex spoken dialogue agent for other programs: `from agent import Session, load_agent, load_profile`.

What is exported is imported when it is first asked for, so that `import agent` costs nothing.
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from agent.build import build_parts as build_parts
    from agent.build import build_session as build_session
    from agent.embedding import Agent as Agent
    from agent.embedding import load_agent as load_agent
    from agent.profiles import Profile as Profile
    from agent.profiles import load_profile as load_profile
    from agent.session import Session as Session
    from agent.transport import Transport as Transport
    from agent.worker import Worker as Worker

_HOMES = {
    "Agent": "agent.embedding",
    "Profile": "agent.profiles",
    "Session": "agent.session",
    "Transport": "agent.transport",
    "Worker": "agent.worker",
    "build_parts": "agent.build",
    "build_session": "agent.build",
    "load_agent": "agent.embedding",
    "load_profile": "agent.profiles",
}

__all__ = sorted(_HOMES)


def __getattr__(name: str) -> Any:
    if name not in _HOMES:
        raise AttributeError(f"module 'agent' has no attribute {name!r}; it has {', '.join(__all__)}")
    return getattr(importlib.import_module(_HOMES[name]), name)


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})
