"""A handler that costs nothing: as many tokens as asked for, at the pace that was asked for."""

import time
from typing import Any


def run(context: Any) -> None:
    for _ in range(context.inputs["tokens"]):
        if context.inputs["pace_s"]:
            time.sleep(context.inputs["pace_s"])
        context.token("8 bytes!")
