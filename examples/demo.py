"""The main job without Docker: build a processor, start it, run it on two prompts, look at the files, stop it.

Run it by `make demo`. Every command is shown as it would be typed.
"""

import hashlib
import json
import os
import shlex
import signal
import subprocess
import sys
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parent.parent
REF = "llm/litellm@1"
ARTIFACTS = ROOT / "code" / ".theory" / "artifacts"
BIN = Path(sys.executable).parent
# Whatever the caller has set, the demo uses the process engine, this checkout and its own folder.
CHOSEN = {"LOCAL_ENGINE": "process", "STORAGE_BACKEND": "filesystem", "THEORY_ROOT": str(ROOT)}
ENVIRONMENT = {**os.environ, **CHOSEN, "ARTIFACTS_ROOT": str(ARTIFACTS), "PYTHONUNBUFFERED": "1"}


def command(*words: str, capture: bool = False) -> str:
    """Show and run one command of ours; its stdout when `capture`. Ends the demo when it fails."""
    print(f"\n$ {shlex.join(words)}", flush=True)
    done = subprocess.run(
        [str(BIN / words[0]), *words[1:]],
        env=ENVIRONMENT,
        cwd=ROOT,
        text=True,
        stdout=subprocess.PIPE if capture else None,
    )
    if done.returncode:
        print(done.stdout or "", flush=True)
        sys.exit(done.returncode)
    return done.stdout or ""


def run(prompt: str, *options: str, capture: bool = False) -> str:
    inputs = {"schema": "v1", "params": {"messages": [{"role": "user", "content": prompt}]}}
    words = ("--mode", "mock", "--inputs-json", json.dumps(inputs), *options)
    return command("localctl", "run", "--ref", REF, *words, capture=capture)


def written(envelope: dict[str, Any]) -> Path:
    """The reply's file, once its bytes were found to be those that the envelope promises."""
    output = next(output for output in envelope["outputs"] if output["path"].endswith("response.txt"))
    path = ARTIFACTS / str(output["path"]).lstrip("/")
    digest = f"sha256:{hashlib.sha256(path.read_bytes()).hexdigest()}"
    if digest != output["digest"]:
        sys.exit(f"{path} is {digest}, the envelope says {output['digest']}")
    return path


def main() -> None:
    command("processorctl", "build", "--ref", REF)
    command("localctl", "start", "--ref", REF, "--allow-missing-secrets")
    try:
        run("Tell me about a red boat", "--stream")
        answer = run("Tell me about a blue boat", "--json", capture=True)
        print(json.dumps(json.loads(answer), indent=2))
        blue = written(json.loads(answer))
        red = written(json.loads(run("Tell me about a red boat", "--json", capture=True)))
        if red.read_bytes() == blue.read_bytes():
            sys.exit("two prompts gave the same reply")
        print(f"\nThe reply's SHA-256 is the envelope's; another word in the prompt gave other bytes.\n{blue}")
    finally:
        command("localctl", "stop", "--ref", REF)


if __name__ == "__main__":
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(143))  # so that `finally` stops the processor
    main()
