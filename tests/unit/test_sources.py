import os
import subprocess
import time
from collections.abc import Mapping
from pathlib import Path

import pytest

from apps.errors import BuildFailed
from apps.processors import sources
from apps.processors.sources import Ignore, Source

BASE = ("python:3.13-slim", "sha256:" + "1" * 64)
AUTHOR = {f"GIT_{who}_{what}": "x@example.org" for who in ("AUTHOR", "COMMITTER") for what in ("NAME", "EMAIL")}


class Checkout:
    """A small checkout with one processor, whose build may read what its .dockerignore lets in."""

    def __init__(self, root: Path) -> None:
        self.root, self.context = root, root / "code"
        self.dockerfile = self.context / "processors" / "p" / "Dockerfile"
        self.write("processors/p/Dockerfile", "FROM python:3.13-slim\n")
        self.write("processors/p/Dockerfile.dockerignore", "*\n!runtime\n!processors/p/**\n**/__pycache__\n")
        self.write("processors/p/handler.py", "print(1)\n")
        self.write("runtime/door.py", "pass\n")
        self.write("processors/other/handler.py", "print(2)\n")
        (root / "registry").mkdir()

    def write(self, name: str, text: str) -> Path:
        path = self.context / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text)
        return path

    def source(self, *, base: tuple[str, str] | None = BASE, environment: Mapping[str, str] | None = None) -> Source:
        environment = os.environ if environment is None else environment
        return sources.read(self.root, self.context, self.dockerfile, base=base, environment=environment)

    def git(self, *words: str, at: int = 0) -> str:
        environment = {**os.environ, **AUTHOR, "GIT_COMMITTER_DATE": f"{1_700_000_000 + at} +0200"}
        argv = ["git", "-c", "init.defaultBranch=main", "-c", "commit.gpgSign=false", *words]
        done = subprocess.run(argv, cwd=self.root, env=environment, capture_output=True, text=True, check=True)
        return done.stdout.strip()

    def commit(self, at: int = 0) -> str:
        self.git("add", "--all")
        self.git("commit", "--quiet", "--message", "x", at=at)
        return self.git("rev-parse", "HEAD")


@pytest.fixture
def checkout(tmp_path: Path) -> Checkout:
    return Checkout(tmp_path / "here")


@pytest.fixture
def repository(checkout: Checkout) -> Checkout:
    checkout.git("init", "--quiet")
    return checkout


# the digest


def test_two_checkouts_at_different_places_have_one_digest(checkout: Checkout, tmp_path: Path) -> None:
    other = Checkout(tmp_path / "somewhere" / "else")

    assert other.source().digest == checkout.source().digest


@pytest.mark.parametrize(
    ("name", "text"),
    [
        ("processors/p/handler.py", "print(3)\n"),
        ("runtime/new.py", ""),
        ("runtime/döör ✓.py", "pass\n"),
        ("processors/p/Dockerfile", "FROM python:3.13-slim\nUSER 1\n"),
    ],
)
def test_a_change_of_what_the_build_may_read_changes_the_digest(checkout: Checkout, name: str, text: str) -> None:
    before = checkout.source().digest

    checkout.write(name, text)

    assert checkout.source().digest != before


@pytest.mark.parametrize(
    "name", ["processors/other/handler.py", ".theory/run_tokens.json", "runtime/__pycache__/a.pyc"]
)
def test_what_the_build_may_not_read_is_no_part_of_the_digest(checkout: Checkout, name: str) -> None:
    before = checkout.source().digest

    checkout.write(name, "something else")

    assert checkout.source().digest == before


def test_the_registry_is_no_part_of_the_digest(checkout: Checkout) -> None:
    before = checkout.source().digest

    (checkout.root / "registry" / "registry.yaml").write_text("platforms: {amd64: pinned}")

    assert checkout.source().digest == before


def test_a_new_name_for_the_same_bytes_changes_the_digest(checkout: Checkout) -> None:
    before = checkout.source().digest

    (checkout.context / "runtime" / "door.py").rename(checkout.context / "runtime" / "gate.py")

    assert checkout.source().digest != before


@pytest.mark.parametrize(("mode", "same"), [(0o600, True), (0o664, True), (0o755, False), (0o700, False)])
def test_of_a_mode_only_the_right_to_execute_counts(checkout: Checkout, mode: int, same: bool) -> None:
    path = checkout.context / "runtime" / "door.py"
    path.chmod(0o644)
    before = checkout.source().digest

    path.chmod(mode)

    assert (checkout.source().digest == before) is same


@pytest.mark.parametrize("base", [None, ("python:3.13", BASE[1]), (BASE[0], "sha256:" + "2" * 64)])
def test_the_base_is_part_of_the_digest(checkout: Checkout, base: tuple[str, str] | None) -> None:
    assert checkout.source(base=base).digest != checkout.source().digest


def test_a_symlink_counts_by_its_target_whether_that_is_there_or_not(checkout: Checkout) -> None:
    link = checkout.context / "runtime" / "link"
    link.symlink_to("nowhere")
    before = checkout.source().digest

    link.unlink()
    link.symlink_to("door.py")

    assert checkout.source().digest != before


def test_a_symlink_is_not_its_target_as_a_file(checkout: Checkout) -> None:
    link = checkout.context / "runtime" / "link"
    link.symlink_to("door.py")
    before = checkout.source().digest

    link.unlink()
    link.write_text("door.py")

    assert checkout.source().digest != before


def test_a_pipe_in_the_context_is_not_read(checkout: Checkout) -> None:
    before = checkout.source().digest

    os.mkfifo(checkout.context / "runtime" / "pipe")

    assert checkout.source().digest == before


def test_a_name_that_is_not_utf_8_is_a_name(checkout: Checkout) -> None:
    before = checkout.source().digest

    with open(os.fsencode(checkout.context / "runtime") + b"/\xff", "w"):
        pass

    assert checkout.source().digest != before


def test_a_file_that_cannot_be_read_is_a_failed_build(checkout: Checkout) -> None:
    checkout.dockerfile.unlink()

    with pytest.raises(BuildFailed, match="Dockerfile can't be read: No such file"):
        checkout.source()


def test_hidden_folders_cost_nothing_however_much_they_hold(checkout: Checkout) -> None:
    for i in range(2000):
        checkout.write(f".theory/venv/{i % 50}/{i}", "")
    listed: list[str] = []

    began = time.process_time()
    listed.extend(sources.files(checkout.context, Ignore.of(checkout.context, checkout.dockerfile)))

    assert listed == [
        "processors/p/Dockerfile",
        "processors/p/Dockerfile.dockerignore",
        "processors/p/handler.py",
        "runtime/door.py",
    ]
    assert time.process_time() - began < 0.5


def test_a_build_that_could_read_local_state_is_refused(checkout: Checkout) -> None:
    checkout.write("processors/p/Dockerfile.dockerignore", "**/*.pyc\n")

    with pytest.raises(BuildFailed, match="where run tokens are") as caught:
        checkout.source()

    assert caught.value.hint == f"add a line .theory to {checkout.dockerfile}.dockerignore"


def test_the_dockerignore_of_the_context_counts_where_the_dockerfile_has_none(checkout: Checkout) -> None:
    (checkout.context / "processors/p/Dockerfile.dockerignore").unlink()
    checkout.write(".dockerignore", "*\n!runtime\n")

    ignore = Ignore.of(checkout.context, checkout.dockerfile)

    assert list(sources.files(checkout.context, ignore)) == ["runtime/door.py"]


# .dockerignore; tests/integration/test_build.py asks BuildKit itself


@pytest.mark.parametrize(
    ("rules", "hidden", "seen"),
    [
        ("", [], ["a", "a/b"]),
        ("a", ["a", "a/b", "a/b/c"], ["ab", "b/a"]),
        ("/a/", ["a", "a/b"], ["b/a"]),
        ("./a/../b", ["b"], ["a"]),
        ("*.py", ["x.py"], ["d/x.py", "x.pyc"]),
        ("**/*.py", ["x.py", "d/x.py", "d/e/x.py"], ["x.pyc"]),
        ("a/**", ["a/b", "a/b/c"], ["a"]),
        ("**", ["a", "a/b"], []),
        ("a?c", ["abc"], ["ac", "a/c"]),
        ("[a-c]x", ["ax", "cx"], ["dx", "-x"]),
        ("[^a]x", ["bx"], ["ax"]),
        ("a\\*", ["a*"], ["ab"]),
        ("a.b", ["a.b"], ["axb"]),
        ("a(b", ["a(b"], []),
        ("# a\n#b", [], ["a", "b", "# a"]),
        ("  a  ", ["a"], []),
        ("*\n!b", ["a", "c"], ["b", "b/c"]),
        ("*\n!b/c", ["b", "b/d"], ["b/c", "b/c/d"]),
        ("!b\n*", ["b"], []),
        ("*\n! b\nb/secret", ["b/secret", "b/secret/x"], ["b", "b/c"]),
        ("\ufeffa", ["a"], []),
        ("ä✓*", ["ä✓x"], ["ä"]),
    ],
)
def test_the_last_rule_that_matches_decides(rules: str, hidden: list[str], seen: list[str], tmp_path: Path) -> None:
    (tmp_path / "D.dockerignore").write_text(rules, "utf-8")

    ignore = Ignore.of(tmp_path, tmp_path / "D")

    assert [path for path in hidden + seen if ignore.hides(path)] == hidden


def test_a_hidden_folder_is_looked_into_where_an_exception_may_lie(tmp_path: Path) -> None:
    ignore = Ignore(["*", "!a/*/c", "!**/deep"])

    assert Ignore(["*", "!a/*/c"]).shows_below("a/x")
    assert not Ignore(["*", "!a/*/c"]).shows_below("b")
    assert ignore.shows_below("b")


def test_a_malformed_rule_is_a_failed_build() -> None:
    with pytest.raises(BuildFailed, match=r"'\[b-a\]' is malformed"):
        Ignore(["[b-a]"])


# the last commit


def test_revision_and_created_are_those_of_the_last_commit_that_touched_what_is_read(repository: Checkout) -> None:
    repository.commit(at=0)
    repository.write("runtime/door.py", "pass  # changed\n")
    expected = repository.commit(at=10)
    repository.write("processors/other/handler.py", "print(3)\n")
    (repository.root / "registry" / "registry.yaml").write_text("a pin")
    repository.commit(at=20)

    found = repository.source()

    assert (found.revision, found.created_epoch_s) == (expected, 1_700_000_010)


def test_a_commit_that_removed_something_that_was_read_counts(repository: Checkout) -> None:
    repository.write("runtime/old.py", "")
    repository.commit(at=0)
    (repository.context / "runtime" / "old.py").unlink()
    expected = repository.commit(at=10)

    assert repository.source().revision == expected


def test_a_commit_far_back_is_found(repository: Checkout) -> None:
    expected = repository.commit(at=0)
    for i in range(25):
        repository.write("processors/other/handler.py", f"print({i})\n")
        repository.commit(at=i + 1)

    assert repository.source().revision == expected


def test_odd_names_are_found_in_the_history(repository: Checkout) -> None:
    repository.commit(at=0)
    repository.write('runtime/döör "✓"\t\n.py', "pass\n")
    expected = repository.commit(at=10)

    assert repository.source().revision == expected


def test_a_checkout_in_a_folder_of_a_larger_repository_finds_its_commits(tmp_path: Path) -> None:
    checkout = Checkout(tmp_path / "mono" / "here")
    outer = Checkout(tmp_path / "mono" / "beside")
    outer.root = tmp_path / "mono"
    outer.git("init", "--quiet")
    expected = outer.commit(at=0)
    outer.write("runtime/door.py", "pass  # another checkout's\n")
    outer.commit(at=10)

    assert checkout.source().revision == expected


def test_a_hooks_variables_do_not_turn_the_question_to_another_repository(repository: Checkout, tmp_path: Path) -> None:
    expected = repository.commit()
    other = Checkout(tmp_path / "other")
    other.git("init", "--quiet")
    other.commit(at=5)

    found = repository.source(environment={**os.environ, "GIT_DIR": str(other.root / ".git"), "GIT_INDEX_FILE": "x"})

    assert found.revision == expected


def test_a_shallow_clone_does_not_name_the_commit_it_was_cut_at(repository: Checkout, tmp_path: Path) -> None:
    repository.commit(at=0)
    repository.write("processors/other/handler.py", "print(3)\n")
    repository.commit(at=10)
    clone = tmp_path / "clone"
    repository.git("clone", "--quiet", "--depth=1", f"file://{repository.root}", str(clone))

    found = sources.read(
        clone, clone / "code", clone / "code/processors/p/Dockerfile", base=BASE, environment=os.environ
    )

    assert found == Source(repository.source().digest, None, 0)


@pytest.mark.parametrize("how", ["no repository", "no commit", "no git"])
def test_without_a_commit_there_is_no_revision(checkout: Checkout, how: str, tmp_path: Path) -> None:
    if how != "no repository":
        checkout.git("init", "--quiet")
    environment = {**os.environ, "PATH": str(tmp_path)} if how == "no git" else None

    found = checkout.source(environment=environment)

    assert (found.revision, found.created_epoch_s) == (None, 0)


# a copy


def test_a_copy_has_the_same_digest_and_nothing_else_in_common(checkout: Checkout, tmp_path: Path) -> None:
    checkout.write("runtime/tool", "#!/bin/sh\n").chmod(0o755)
    (checkout.context / "runtime" / "link").symlink_to("door.py")
    (checkout.context / "runtime" / "empty").mkdir()

    context, dockerfile = sources.copy(checkout.context, checkout.dockerfile, tmp_path / "copy")

    found = sources.read(tmp_path / "copy", context, dockerfile, base=BASE, environment=os.environ)
    assert found.digest == checkout.source().digest
    copied = {path.relative_to(context).as_posix(): path.lstat() for path in context.rglob("*") if not path.is_dir()}
    assert sorted(copied) == sorted(sources.files(checkout.context, Ignore.of(checkout.context, checkout.dockerfile)))
    assert {each.st_mtime for each in copied.values()} == {1_000_000_000}
    assert copied["runtime/door.py"].st_mode & 0o777 == 0o600
    assert not (context / "runtime" / "empty").exists()


def test_a_copy_that_finds_no_room_is_a_failed_build(checkout: Checkout) -> None:
    with pytest.raises(BuildFailed, match="the source can't be copied to /proc/nowhere: "):
        sources.copy(checkout.context, checkout.dockerfile, Path("/proc/nowhere"))
