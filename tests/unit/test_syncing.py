"""Secrets where the SDK can do less: what is said, and what is not touched."""

from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest

from apps.errors import ConfigurationError, ModalFailed, NotDeployed
from apps.processors import deploying, registry, syncing
from apps.processors.adapters.target import App, Target, Unavailable
from apps.processors.deployments import Place
from apps.processors.reference import ProcessorRef
from tests.shell import PROJECT

REF = ProcessorRef.parse("llm/litellm@1")
HERE = Place(REF, "dev", "app")


@dataclass
class Secrets:
    """The part of a Target that syncing uses: one app and its secret."""

    names: frozenset[str] | None = frozenset({deploying.MARKER})
    state: str | None = "deployed"
    can_roll_over: bool = True
    tells_names: bool = True
    draining: bool = False
    written: list[Mapping[str, str]] = field(default_factory=list)
    removed: list[frozenset[str]] = field(default_factory=list)

    def find(self, app: str) -> App | None:
        return App("ap-1", self.state, 1, None) if self.state else None

    def secret_names(self, secret: str) -> frozenset[str] | None:
        if not self.tells_names:
            raise Unavailable("no such function")
        return self.names

    def write_secret(self, secret: str, values: Mapping[str, str]) -> None:
        self.written.append(values)

    def remove_from_secret(self, secret: str, names: frozenset[str]) -> None:
        self.removed.append(names)

    def roll_over(self, app: App) -> None:
        if not self.can_roll_over:
            raise Unavailable("no such function")

    def containers(self, app: str) -> frozenset[str]:
        return frozenset({"ta-1"}) if self.draining else frozenset()


def sync(target: Secrets, **asked: Any) -> syncing.Synced:
    spec = registry.load(Path(PROJECT), REF)
    request = syncing.Syncing(spec, HERE, {"OPENAI_API_KEY": "sk-value"}, **asked)
    place: Any = target
    checked: Target = place
    return syncing.sync(request, target=checked, progress=lambda _: None)


def test_without_a_rollover_the_line_to_type_is_told() -> None:
    synced = sync(Secrets(can_roll_over=False))

    assert synced.document()["rollover"] == "modal app rollover --env dev app"
    assert "replace them: modal app rollover --env dev app" in synced.text()
    assert "sk-value" not in synced.text()


def test_old_containers_that_stay_are_told(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(syncing, "REPLACED_S", 0.1)

    assert sync(Secrets(draining=True)).rollover == "draining"


def test_a_secret_that_is_not_ours_is_not_touched() -> None:
    target = Secrets(names=frozenset({"SOMETHING"}))

    with pytest.raises(ConfigurationError, match="was not made by modalctl"):
        sync(target)

    assert target.written == []


def test_where_names_are_not_told_nothing_is_written() -> None:
    target = Secrets(tells_names=False)

    with pytest.raises(ModalFailed, match="can't be told"):
        sync(target)

    assert target.written == []


@pytest.mark.parametrize("state", [None, "stopped"])
def test_nothing_is_written_for_what_is_not_deployed(state: str | None) -> None:
    target = Secrets(state=state)

    with pytest.raises(NotDeployed):
        sync(target)

    assert target.written == []


def test_names_that_are_neither_declared_nor_the_marker_are_pruned_alone() -> None:
    target = Secrets(names=frozenset({deploying.MARKER, "OPENAI_API_KEY", "OLD_KEY"}))

    synced = sync(target, prune=True)

    assert (synced.pruned, target.removed) == (("OLD_KEY",), [frozenset({"OLD_KEY"})])
