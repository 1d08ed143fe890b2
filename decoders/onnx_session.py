"""Opening a published ONNX graph to be run as it is.

Notable: inputs are found by their kind (how many axes, floating or whole numbers), because exporters name them as they please.
"""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import onnxruntime as ort

from duplex.errors import WeightsError

WHOLE = {"tensor(int32)": np.int32, "tensor(int64)": np.int64}


def open_session(path: Path, threads: int = 1) -> Any:
    """An onnxruntime session on the CPU. Raises WeightsError when the file is missing or no graph that can be run."""
    if not path.is_file():
        raise WeightsError(f"{path} is missing; fetch the weights again, or give the folder that holds it.")
    options = ort.SessionOptions()
    options.intra_op_num_threads = threads
    options.inter_op_num_threads = 1
    options.log_severity_level = 3
    options.add_session_config_entry("session.intra_op.allow_spinning", "0")
    try:
        return ort.InferenceSession(str(path), options, providers=["CPUExecutionProvider"])
    except Exception as error:  # onnxruntime's own classes are not exported
        raise WeightsError(
            f"{path} is damaged or no ONNX graph that can be run ({error}); delete it and fetch it again."
        ) from error


def one_input(session: Any, path: Path, wanted: str, fits: Callable[[Any], bool]) -> Any:
    """The only input that `fits`. Raises WeightsError when there is none, or more than one."""
    inputs = [given for given in session.get_inputs() if fits(given)]
    if len(inputs) != 1:
        names = ", ".join(f"{given.name} {given.shape} {given.type}" for given in session.get_inputs())
        raise WeightsError(f"{path} should have one input for {wanted}, but it has: {names}.")
    return inputs[0]


def run(session: Any, path: Path, inputs: dict[str, Any]) -> Any:
    """The graph's first output. Raises WeightsError when the graph cannot be run on these inputs."""
    try:
        return session.run(None, inputs)[0]
    except Exception as error:  # onnxruntime's own classes are not exported
        raise WeightsError(f"The graph {path} cannot be run ({str(error).splitlines()[0][:200]}); fetch it again.") from error
