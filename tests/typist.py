"""Types lines of the CLI reference as they stand on its page."""

import os
import platform
import subprocess
import sys
from pathlib import Path
from typing import Any

from tests.shell import PROJECT, Shell

PAGE = (PROJECT / "docs" / "guides" / "cli.md").read_text()
KEY = "sk-proj-of-the-test"
"""What OPENAI_API_KEY is."""
ARCHITECTURE = {"x86_64": "amd64", "aarch64": "arm64"}.get(platform.machine(), "amd64")
INPUTS = '"messages":[{"role":"user","content":"test"}]'


class Typist:
    """In the root folder of the shell's checkout, which gets a manage.py and the inputs.json that the page names."""

    def __init__(self, shell: Shell, *, image: str = "") -> None:
        """`image` is what the page's ghcr.io/org/image@sha256:abc... stands for."""
        self.shell, self.root, self.image = shell, shell.root, image
        path = f"{Path(sys.executable).parent}:{os.environ['PATH']}"
        self._environment = shell.environment({"PATH": path, "OPENAI_API_KEY": KEY})
        (self.root / "manage.py").symlink_to(PROJECT / "manage.py")
        (self.root / "inputs.json").write_text(f'{{"schema":"v1","params":{{{INPUTS}}}}}')

    def __call__(self, text: str) -> "subprocess.CompletedProcess[str]":
        """Run the lines. They must succeed, and never show the key."""
        done = subprocess.run(**self._call(text), capture_output=True, timeout=600)
        assert (done.returncode, KEY in done.stdout + done.stderr) == (0, False), done
        return done

    def spawn(self, text: str) -> "subprocess.Popen[str]":
        return subprocess.Popen(**self._call(text), stdout=subprocess.PIPE, stderr=subprocess.PIPE)

    def _call(self, text: str) -> dict[str, Any]:
        """`text` must be on the page; its {...} stands for JSON, and its amd64 for this machine."""
        assert text.strip() in PAGE, text
        typed = text.replace("{...}", "{" + INPUTS + "}")
        if self.image:
            typed = typed.replace("ghcr.io/org/image@sha256:abc...", self.image)
        if "amd64,linux/arm64" not in typed and not self.image:
            typed = typed.replace("amd64", ARCHITECTURE)
        return {
            "args": ["bash", "-o", "pipefail", "-ec", typed],
            "cwd": self.root,
            "env": self._environment,
            "text": True,
        }
