"""An option with an empty word, as `--ref "$REF"` gives it when REF is not set, never means an option left out."""

import pytest

from tests.shell import Shell

REF = ("--ref", "llm/litellm@1")
ID = ("--execution-id", "01a202df-5e07-7db6-94a6-b0bf2199220b")


@pytest.mark.parametrize(
    ("line", "status", "code"),
    [
        (("localctl", "stop", "--ref", ""), 65, "ERR_REF"),  # would stop them all
        (("localctl", "status", "--ref", ""), 65, "ERR_REF"),
        (("processorctl", "verify", "--ref", ""), 65, "ERR_REF"),
        (("localctl", "start", *REF, "--platform", ""), 2, "ERR_USAGE"),
        (("localctl", "run", *REF, "--platform", ""), 2, "ERR_USAGE"),
        (("localctl", "run", *REF, "--execution-id", ""), 65, "ERR_INPUTS"),
        (("localctl", "logs", *REF, "--since", ""), 2, "ERR_USAGE"),
        (("localctl", "outputs", *REF, *ID, "--download", "", "--discard"), 2, "ERR_USAGE"),  # would keep no copy
        (("modalctl", "run", *REF, "--execution-id", ""), 65, "ERR_INPUTS"),
        (("modalctl", "logs", *REF, "--env", "dev", "--since", ""), 2, "ERR_USAGE"),
        (("modalctl", "verify-digest", *REF, "--env", "dev", "--oci", ""), 65, "ERR_REF"),  # would expect the pin
        (("modalctl", "rollback", *REF, "--env", "dev", "--to", ""), 65, "ERR_REF"),  # would take the one before
    ],
    ids=lambda value: " ".join(value[:2] + value[-2:]) if isinstance(value, tuple) else None,
)
def test_an_empty_word_is_refused(cli: Shell, line: tuple[str, ...], status: int, code: str) -> None:
    done = cli(*line, "--json")

    assert (done.status, done.document["error"]["code"]) == (status, code)
