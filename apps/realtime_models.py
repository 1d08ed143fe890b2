"""Which loaded profile a Realtime client talks with: the protocol calls it a model.

OpenAI's client always names one, usually of OpenAI's, so such a name means the server's first profile; but who names something else that
is not there is told what is.
"""

from __future__ import annotations

import re
from typing import Any

from agent.host import Host, Loaded
from apps.realtime_settings import ProtocolError

ANY_MODEL = re.compile("|local|default|.*(gpt|realtime).*", re.IGNORECASE)
"""Names that stand for the server's first profile."""


def choose_model(host: Host, name: str | None, param: str = "model") -> Loaded:
    """The profile of this name, or the first one for no name and for a name of OpenAI's. Raises ProtocolError."""
    if (found := host.loaded.get(name or "")) is not None:
        return found
    if ANY_MODEL.fullmatch(name or ""):
        return host.default
    there = ", ".join(host.loaded)
    raise ProtocolError("model_not_found", f"There is no model {(name or '')[:80]!r} here; choose one of: {there}.", param)


def check_model(host: Host, present: Loaded, session: Any) -> None:
    """What `session.update` says about the model, which stays what it is. Raises ProtocolError when it names another one."""
    name = session.get("model") if isinstance(session, dict) else None
    if name is None:
        return
    if not isinstance(name, str):
        raise ProtocolError("invalid_type", "session.model must be a string.", "session.model")
    if name in host.loaded and host.loaded[name] is not present:
        raise ProtocolError(
            "invalid_value", f"A session keeps its model; connect again with ?model={name} to talk with it.", "session.model"
        )
    choose_model(host, name, "session.model")


def models_list(host: Host) -> dict[str, Any]:
    """The answer of `GET /v1/models`."""
    return {
        "object": "list",
        "data": [{"id": name, "object": "model", "created": 0, "owned_by": "duologue"} for name in host.loaded],
    }
