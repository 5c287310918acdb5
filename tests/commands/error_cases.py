"""The table of test_errors.py: how a user meets each error code, and what the command says then.

A case is a function: it brings the error about with the terminal that it is given, and returns what the command left
behind. The terminal adds --json, or not.
"""

import json
import os
import signal
import socket
import subprocess
import threading
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, HTTPServer
from pathlib import Path
from typing import Any

from apps.processors.envelope import new_execution_id
from tests.commands.workshop import Workshop, inputs, until
from tests.integration.modal_services import running_modal_service
from tests.integration.registries import registry
from tests.places import small_disk
from tests.shell import Outcome

DIGEST = "sha256:" + "ab" * 32
NO_MODAL = {
    "MODAL_SERVER_URL": "http://127.0.0.1:1",
    "MODAL_TOKEN_ID": "ak-a",
    "MODAL_TOKEN_SECRET": "as-a",
    "MODAL_CONFIG_PATH": "/nonexistent/modal.toml",
    "MODAL_DISABLE_API_PROXY": "1",
}
"""A login, and nobody to show it to."""


@dataclass(frozen=True, slots=True)
class Terminal:
    """The workshop's terminal for one case, and a folder of the case's own."""

    workshop: Workshop
    folder: Path
    options: tuple[str, ...]
    """("--json",) or ()."""

    def __call__(self, *words: str, env: Mapping[str, str] | None = None, **how: Any) -> Outcome:
        return self.workshop.shell(*words, *self.options, env=env, **how)

    def run(self, ref: str, *options: str, env: Mapping[str, str] | None = None, **params: Any) -> Outcome:
        given = ("--inputs-json", inputs(**params)) if params else ()
        return self("localctl", "run", "--ref", ref, *given, *options, env=env)

    def spawn(self, *words: str, env: Mapping[str, str] | None = None) -> "subprocess.Popen[str]":
        return self.workshop.shell.spawn(*words, *self.options, env=env)

    @contextmanager
    def during(self, ref: str, do: str = "sleep") -> Iterator["subprocess.Popen[str]"]:
        """A run whose handler has begun."""
        marker = self.folder / "marker"
        text = inputs(do=do, marker=str(marker))
        process = self.spawn("localctl", "run", "--ref", ref, "--inputs-json", text)
        until(marker.exists, "beginning of the handler")
        yield process

    def other_root(self, ref: str, registry_yaml: str) -> dict[str, str]:
        """The environment of a checkout with one registry.yaml."""
        file = self.folder / "registry" / ref.replace("@", "/") / "registry.yaml"
        for folder in (file.parent, self.folder / "code"):
            folder.mkdir(parents=True)
        file.write_text(registry_yaml)
        return {"THEORY_ROOT": str(self.folder)}


def ended(process: "subprocess.Popen[str]") -> Outcome:
    """What a spawned command left behind."""
    stdout, stderr = process.communicate(timeout=30)
    return Outcome(process.returncode, stdout, stderr)


def connected(pid: int) -> bool:
    """Whether the process has a socket."""
    with suppress(FileNotFoundError):  # closed while we look
        return any(os.readlink(each).startswith("socket:") for each in Path(f"/proc/{pid}/fd").iterdir())
    return False


@dataclass(frozen=True, slots=True)
class Case:
    """A way to meet `code`. `message` and `hint` are regular expressions for the whole of each."""

    code: str
    message: str
    hint: str
    act: Callable[[Terminal], Outcome]
    details: Mapping[str, Any] = field(default_factory=dict)
    """What must be in the error's details; a callable says whether the value there is right."""
    envelope: bool = False
    """Whether an execution failed, so that the document is its envelope."""
    status: int | None = None
    """Where it is not the one of the code."""
    docker: bool = False
    stdout: str = ""
    """What people get besides the two lines, as a regular expression."""


CASES: list[Case] = []


def case(code: str, message: str, hint: str, **more: Any) -> Callable[[Callable[[Terminal], Outcome]], Any]:
    def add(act: Callable[[Terminal], Outcome]) -> Callable[[Terminal], Outcome]:
        CASES.append(Case(code, message, hint, act, **more))
        return act

    return add


# 2, 3: the call's words; drift


@case("ERR_USAGE", "unrecognized arguments: --frobnicate", "python manage.py localctl status --help")
def unknown_option(at: Terminal) -> Outcome:
    return at("localctl", "status", "--frobnicate")


@case("ERR_USAGE", "the following arguments are required: --ref", ".*localctl start --help")
def missing_option(at: Terminal) -> Outcome:
    return at("localctl", "start")


@case("ERR_USAGE", "argument SUBCOMMAND: invalid choice: 'restart'.*", ".*localctl --help")
def unknown_subcommand(at: Terminal) -> Outcome:
    return at("localctl", "restart")


@case("ERR_USAGE", "unknown platform 'mips'", r"use amd64 or arm64 .*")
def unknown_platform(at: Terminal) -> Outcome:
    return at("localctl", "start", "--ref", "test/echo@1", "--platform", "mips")


@case("ERR_USAGE", "argument --mode: invalid choice: 'dream'.*", ".*localctl run --help")
def unknown_mode(at: Terminal) -> Outcome:
    return at.run("test/echo@1", "--mode", "dream")


@case("ERR_USAGE", "argument --timeout: invalid number of seconds value: '-1'", ".*localctl run --help")
def negative_timeout(at: Terminal) -> Outcome:
    return at.run("test/echo@1", "--timeout", "-1")


@case("ERR_USAGE", "argument --timeout: invalid number of seconds value: '2592001'", ".*localctl run --help")
def a_timeout_longer_than_any_runtime_takes(at: Terminal) -> Outcome:
    return at.run("test/echo@1", "--timeout", "2592001")  # 30 days and a second


@case("ERR_USAGE", "'yesterday' is not a time", "--since takes 10m.*")
def since_when(at: Terminal) -> Outcome:
    return at("localctl", "logs", "--ref", "test/echo@1", "--since", "yesterday")


@case("ERR_USAGE", "--inputs-json and --inputs-file exclude each other", "give the inputs in one way", envelope=True)
def two_input_options(at: Terminal) -> Outcome:
    at.workshop.have("echo")
    return at.run("test/echo@1", "--inputs-json", "{}", "--inputs-file", "inputs.json")


@case("ERR_USAGE", r"--inputs takes - \(stdin\) alone, not 'inputs.json'", "use --inputs-json.*", envelope=True)
def inputs_that_are_not_stdin(at: Terminal) -> Outcome:
    at.workshop.have("echo")
    return at.run("test/echo@1", "--inputs", "inputs.json")


@case(
    "ERR_DRIFT",
    r"the running spec of test/drifting@1 is sha256:\w{64}, sha256:\w{64} would be started for linux/\w+",
    "localctl start --ref test/drifting@1",
    details={"running": str, "selected": str},
    envelope=True,
)
def another_spec(at: Terminal) -> Outcome:
    at.workshop.write("drifting", runtime={"timeout_s": 61})
    at.workshop.running("drifting")
    at.workshop.write("drifting", runtime={"timeout_s": 62})
    return at.run("test/drifting@1")


# 1: pushing, which needs an image


@contextmanager
def published(at: Terminal, **hard: Any) -> Iterator[Callable[[], Outcome]]:
    """What pushes an image of Docker's to a registry that is `hard` to please."""
    ref = at.workshop.write("published")
    with registry(**hard) as made:
        env = {"LOCAL_ENGINE": "docker", "PROCESSOR_REPOSITORY_PREFIX": made.address, "DOCKER_CONFIG": str(at.folder)}
        built = at.workshop.shell("processorctl", "build", "--ref", ref, "--platforms", "amd64", "--json", env=env)
        assert built.status == 0, built
        try:
            yield lambda: at("processorctl", "push", "-q", "--ref", ref, "--platforms", "amd64", env=env)
        finally:
            image = built.document["images"][0]["image_id"]
            subprocess.run(["docker", "image", "rm", "--force", image], check=True, capture_output=True)


@case("ERR_PUSH", r"127\.0\.0\.1:\d+ lets nothing be written: .*", "push to one that takes images: .*", docker=True)
def push_to_a_read_only_registry(at: Terminal) -> Outcome:
    with published(at, read_only=True) as push:
        return push()


@case("ERR_UNAUTHORIZED", r"127\.0\.0\.1:\d+ asks for a login .*", r"docker login 127\.0\.0\.1:\d+", docker=True)
def push_without_a_login(at: Terminal) -> Outcome:
    with published(at, login="password") as push:
        return push()


# 65: data was read and is wrong


@case("ERR_REF", "'Test/Echo@one' is not a processor ref", "a ref is namespace/name@version, e.g. llm/litellm@1")
def malformed_ref(at: Terminal) -> Outcome:
    return at("localctl", "start", "--ref", "Test/Echo@one")


@case("ERR_REF", "'echo' is not a processor ref", "a ref is namespace/name@version, .*", envelope=True)
def malformed_ref_of_a_run(at: Terminal) -> Outcome:
    return at.run("echo")


BROKEN = "schema: 1\nref: a/b@1\nimage: {repository: localhost/b, platforms: {}}\nruntime: {port: many}\nports: []\n"


@case(
    "ERR_REGISTRY",
    r"registry/a/b/1/registry\.yaml.*",
    ".+",
    details={
        "findings": lambda found: (
            {"file": "registry/a/b/1/registry.yaml", "line": 4, "column": 17, "path": "$.runtime.port"}.items()
            <= next(each for each in found if each["path"] == "$.runtime.port").items()
            and all({"expected", "found", "message"} <= each.keys() for each in found)
            and {"$.ports", "$.build"} <= {each["path"] for each in found}
        )
    },
)
def broken_registry(at: Terminal) -> Outcome:
    return at("processorctl", "validate", "-q", env=at.other_root("a/b@1", BROKEN))


@case("ERR_REGISTRY", r"registry/a/b/1/registry\.yaml.*", ".+")
def processor_of_a_broken_registry(at: Terminal) -> Outcome:
    return at("localctl", "start", "--ref", "a/b@1", env=at.other_root("a/b@1", BROKEN))


@case(
    "ERR_INPUTS",
    r"inputs at /params/text: .*",
    "the schema and its examples: processorctl show --ref .*",
    details={"pointer": "/params/text", "errors": list},
    envelope=True,
)
def inputs_of_another_type(at: Terminal) -> Outcome:
    at.workshop.have("echo")
    return at.run("test/echo@1", text=7)


@case(
    "ERR_INPUTS",
    "inputs in .*inputs.json:2:12: .+",
    "inputs are one JSON object, .*",
    details={"line": 2, "column": 12, "file": lambda name: name.endswith("inputs.json")},
    envelope=True,
)
def broken_json(at: Terminal) -> Outcome:
    at.workshop.have("echo")
    file = at.folder / "inputs.json"
    file.write_text('{"schema": "v1",\n "params": ]}\n')
    return at.run("test/echo@1", "--inputs-file", str(file))


@case(
    "ERR_INPUTS",
    "inputs in stdin:1:12: not UTF-8: byte 0xff",
    "inputs are one .*",
    details={"file": "stdin"},
    envelope=True,
)
def inputs_in_another_encoding(at: Terminal) -> Outcome:
    at.workshop.have("echo")
    return at("localctl", "run", "--ref", "test/echo@1", "--inputs", "-", stdin=b'{"schema":"\xff"}')


@case(
    "ERR_INPUTS",
    "inputs file 'none.json' can't be read: No such file or directory",
    "a path is relative to the current folder",
    details={"file": "none.json"},
    envelope=True,
)
def absent_inputs_file(at: Terminal) -> Outcome:
    at.workshop.have("echo")
    return at.run("test/echo@1", "--inputs-file", "none.json")


@case("ERR_INPUTS", "inputs file '.*' can't be read: Is a directory", "a path is relative.*", envelope=True)
def unreadable_inputs_file(at: Terminal) -> Outcome:
    at.workshop.have("echo")
    return at.run("test/echo@1", "--inputs-file", str(at.folder))


@case(
    "ERR_INPUTS",
    "'/elsewhere/out/' can't be a write prefix: it starts with /artifacts/ and ends with /",
    "for instance /artifacts/outputs/.*",
    envelope=True,
)
def prefix_outside_the_artifacts(at: Terminal) -> Outcome:
    at.workshop.have("echo")
    return at.run("test/echo@1", "--write-prefix", "/elsewhere/out/")


@case("ERR_INPUTS", r"'/artifacts/\.\./out/' can't be a write prefix: .*", "for instance .*", envelope=True)
def prefix_that_climbs(at: Terminal) -> Outcome:
    at.workshop.have("echo")
    return at.run("test/echo@1", "--write-prefix", "/artifacts/../out/")


@case("ERR_INPUTS", "'mine' is not an execution id", "an execution id is a UUIDv7.*", envelope=True)
def malformed_execution_id(at: Terminal) -> Outcome:
    at.workshop.have("echo")
    return at.run("test/echo@1", "--execution-id", "mine")


# 66: not there


@case("ERR_REF_NOT_FOUND", "no processor test/nobody@9.*", ".*processorctl list")
def unknown_ref(at: Terminal) -> Outcome:
    return at("localctl", "start", "--ref", "test/nobody@9")


@case("ERR_REF_NOT_FOUND", "no processor test/nobody@9.*", ".*processorctl list")
def unknown_ref_to_stop(at: Terminal) -> Outcome:
    return at("localctl", "stop", "--ref", "test/nobody@9")


@case(
    "ERR_IMAGE_NOT_FOUND",
    "test/unbuilt@1 was not built for linux/(amd64|arm64)",
    "processorctl build --ref test/unbuilt@1 --platforms linux/(amd64|arm64)",
)
def image_not_built(at: Terminal) -> Outcome:
    return at("localctl", "start", "--ref", at.workshop.write("unbuilt"))


@case("ERR_NOT_STARTED", "test/unbuilt@1 is not started", "localctl start --ref test/unbuilt@1", envelope=True)
def not_started(at: Terminal) -> Outcome:
    return at.run(at.workshop.write("unbuilt"))


@case("ERR_NOT_STARTED", "test/unbuilt@1 has no logs: it was never started", "localctl start --ref test/unbuilt@1")
def no_logs(at: Terminal) -> Outcome:
    return at("localctl", "logs", "--ref", at.workshop.write("unbuilt"))


@case(
    "ERR_NOT_STARTED",
    r"the container of test/mortal@1 has ended \(exit status -9\)",
    "localctl start --ref test/mortal@1",
    details={"exit_status": -9, "log": lambda lines: any("ready for mock runs" in line for line in lines)},
    envelope=True,
)
def container_dead(at: Terminal) -> Outcome:
    ref = at.workshop.running("mortal")
    at.workshop.kill(ref)
    return at.run(ref)


@case(
    "ERR_NOT_DEPLOYED",
    "llm/litellm@1 is not deployed in main: there is no app llm-litellm-v1",
    "modalctl start --ref llm/litellm@1 --env main --oci OCI",
    docker=True,
)
def logs_of_what_was_never_deployed(at: Terminal) -> Outcome:
    with running_modal_service() as service:
        return at("modalctl", "logs", "--ref", "llm/litellm@1", "--env", "main", env=service.environment)


# 69: an outside system did not answer or broke


@case(
    "ERR_MODAL",
    r"Modal can't be reached: 127\.0\.0\.1:1: .*Connection refused",
    "look at the network, and at MODAL_SERVER_URL if set",
)
def modal_out_of_reach(at: Terminal) -> Outcome:
    return at("modalctl", "status", "--ref", "llm/litellm@1", "--env", "main", env=NO_MODAL)


@case(
    "ERR_CONFIG",
    "a proxy is set in the environment, and Modal's SDK lacks what it needs to use one",
    r"pip install 'modal\[api-proxy-support\]', or go without: MODAL_DISABLE_API_PROXY=1",
)
def a_proxy_that_modals_sdk_can_not_use(at: Terminal) -> Outcome:
    proxy = {"MODAL_DISABLE_API_PROXY": "", "HTTP_PROXY": "http://127.0.0.1:9", "NO_PROXY": ""}
    return at("modalctl", "status", "--ref", "llm/litellm@1", "--env", "main", env={**NO_MODAL, **proxy})


@case(
    "ERR_UNAUTHORIZED",
    "there is no login for Modal",
    "modal token new, or set MODAL_TOKEN_ID and MODAL_TOKEN_SECRET",
)
def no_login_for_modal(at: Terminal) -> Outcome:
    return at("modalctl", "status", "--ref", "llm/litellm@1", "--env", "main", env={**NO_MODAL, "MODAL_TOKEN_ID": ""})


@case(
    "ERR_CONFIG",
    "GIT_BRANCH and GIT_USER are not set: in dev an app is called after branch and user",
    "set GIT_BRANCH and GIT_USER, .*",
    details={"missing": ["GIT_BRANCH", "GIT_USER"]},
)
def dev_without_branch_and_user(at: Terminal) -> Outcome:
    return at("modalctl", "status", "--ref", "llm/litellm@1", "--env", "dev")


@case("ERR_USAGE", "Modal runs linux/amd64 alone, not 'arm64'", "leave --platform out, or amd64")
def another_platform_on_modal(at: Terminal) -> Outcome:
    oci = f"localhost:5000/org/image@{DIGEST}"
    words = ("--ref", "llm/litellm@1", "--env", "main", "--oci", oci, "--platform", "arm64")
    return at("modalctl", "start", *words)


@case(
    "ERR_ENGINE",
    "no Docker Engine answers at unix://.*/none.sock: No such file.*",
    "start Docker, or do without it: LOCAL_ENGINE=process",
)
def no_docker(at: Terminal) -> Outcome:
    env = {"LOCAL_ENGINE": "docker", "DOCKER_HOST": f"unix://{at.folder}/none.sock"}
    return at("localctl", "start", "--ref", at.workshop.write("unbuilt"), env=env)


@case("ERR_ENGINE", "no Docker Engine answers at unix://.*/dead.sock: Connection refused", "start Docker, or do .*")
def docker_that_died(at: Terminal) -> Outcome:
    with socket.socket(socket.AF_UNIX) as bound:
        bound.bind(f"{at.folder}/dead.sock")
    env = {"LOCAL_ENGINE": "docker", "DOCKER_HOST": f"unix://{at.folder}/dead.sock"}
    return at("localctl", "start", "--ref", at.workshop.write("unbuilt"), env=env)


@case(
    "ERR_ENGINE",
    "no permission to use the Docker Engine at unix://.*/docker.sock",
    r"sudo usermod -aG docker \$USER.*LOCAL_ENGINE=process",
)
def docker_without_permission(at: Terminal) -> Outcome:
    """As for a user outside the group docker: nobody may write to this socket, and root's right to is taken away."""
    words = ("localctl", "start", "--ref", at.workshop.write("unbuilt"), *at.options)
    unprivileged = ["setpriv", "--bounding-set=-dac_override"] if os.geteuid() == 0 else []
    shell = at.workshop.shell
    with socket.socket(socket.AF_UNIX) as listener:
        listener.bind(f"{at.folder}/docker.sock")
        listener.listen()
        Path(at.folder, "docker.sock").chmod(0)
        done = subprocess.run(
            [*unprivileged, *shell.argv(*words)],
            cwd=shell.root,
            env=shell.environment({"LOCAL_ENGINE": "docker", "DOCKER_HOST": f"unix://{at.folder}/docker.sock"}),
            capture_output=True,
            text=True,
            timeout=60,
        )
    return Outcome(done.returncode, done.stdout, done.stderr)


@case(
    "ERR_IMAGE_REGISTRY",
    "the base image localhost:1/base:1 can't be resolved: .*",
    "behind a mirror: PROCESSOR_BUILD_CONTEXTS=localhost:1/base:1=docker-image://.*",
    docker=True,
)
def base_image_of_no_registry(at: Terminal) -> Outcome:
    ref = at.workshop.write("baseless")
    (at.workshop.root / "code/processors/test/baseless/1/Dockerfile").write_text("FROM localhost:1/base:1\n")
    return at("processorctl", "build", "-q", "--ref", ref, env={"LOCAL_ENGINE": "docker"})


@case(
    "ERR_IMAGE_PULL",
    f"can't pull localhost:1/test-pinned@{DIGEST}: .*",
    "is localhost:1 reachable from here\\? try: docker pull .*",
    docker=True,
)
def pin_in_a_dead_registry(at: Terminal) -> Outcome:
    return at("localctl", "start", "-q", "--ref", pinned_nowhere(at), env={"LOCAL_ENGINE": "docker"})


def pinned_nowhere(at: Terminal) -> str:
    pin = f"localhost:1/test-pinned@{DIGEST}"
    image = {"repository": "localhost:1/test-pinned", "platforms": {"amd64": pin, "arm64": pin}}
    return at.workshop.write("pinned", image=image)


@case(
    "ERR_UNVERIFIED",
    r"test/pinned@1 for linux/amd64: .*localhost:1.* \(and 1 more\)",
    ".+",
    details={"findings": lambda found: [each["kind"] for each in found] == ["unverified"] * 2, "checked": list},
    stdout=r"REF +PLATFORM [^\n]*\n(test/pinned@1 [^\n]* unknown [^\n]*\n){2}",
)
def pin_that_nobody_can_tell_of(at: Terminal) -> Outcome:
    return at("processorctl", "verify", "--ref", pinned_nowhere(at))


@case(
    "ERR_STORAGE",
    ".*/extra/big.bin: no space left on its disk",
    "free some space there, or set ARTIFACTS_ROOT.*",
    details={"path": str},
    envelope=True,
)
def disk_full_while_writing_outputs(at: Terminal) -> Outcome:
    ref = at.workshop.running()
    for disk in small_disk(at.folder / "disk", size="1m"):
        return at.run(ref, do="fill", size_bytes=4 * 2**20, env={"ARTIFACTS_ROOT": str(disk)})
    raise AssertionError


@case("ERR_STORAGE", ".*/file: .*", ".+", envelope=True)
def artifacts_root_that_is_a_file(at: Terminal) -> Outcome:
    (at.folder / "file").touch()
    return at.run(at.workshop.running(), env={"ARTIFACTS_ROOT": str(at.folder / "file")})


class _Page(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"

    def do_GET(self) -> None:
        self.send_response(200)
        self.send_header("Content-Length", "0")
        self.end_headers()

    def log_message(self, *_: object) -> None:
        """Say nothing."""


@case(
    "ERR_CONNECTION", "the processor answered HTTP 200 instead of opening a WebSocket", "localctl status", envelope=True
)
def another_server_on_the_port(at: Terminal) -> Outcome:
    ref = at.workshop.running("mortal")
    at.workshop.kill(ref)
    with HTTPServer(("127.0.0.1", at.workshop.port(ref)), _Page) as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        try:
            return at.run(ref)
        finally:
            server.shutdown()


# 70: a bug of ours


@case(
    "ERR_INTERNAL",
    "ZeroDivisionError: a bug, for the test's sake",
    "this is a bug: report what the same line prints with --traceback, and with --version",
)
def bug(at: Terminal) -> Outcome:
    """An interpreter in which something that we rely on breaks."""
    (at.folder / "sitecustomize.py").write_text(
        "import pathlib\n"
        "def broken(cls):\n"
        '    raise ZeroDivisionError("a bug, for the test\'s sake")\n'
        "pathlib.Path.cwd = classmethod(broken)\n"
    )
    return at("localctl", "status", env={"PYTHONPATH": str(at.folder)})


# 1: the execution or the operation failed


@case(
    "ERR_RUNTIME",
    "ValueError: no such luck",
    ".+",
    details={"traceback": lambda text: "in fail" in text},
    envelope=True,
)
def handler_raises(at: Terminal) -> Outcome:
    return at.run(at.workshop.running(), do="fail", text="no such luck")


@case(
    "ERR_RUNTIME",
    "the handler's process ended with exit status 3",
    "see the logs",
    details={"exit_status": 3},
    envelope=True,
)
def handler_exits(at: Terminal) -> Outcome:
    return at.run(at.workshop.running(), do="leave")


@case(
    "ERR_RUNTIME",
    "test/stillborn@1 ended before it was ready",
    "localctl logs --ref test/stillborn@1",
    details={"exit_status": 1, "log": lambda lines: any("ZeroDivisionError" in line for line in lines)},
)
def handler_that_can_not_be_imported(at: Terminal) -> Outcome:
    return at("localctl", "start", "--ref", at.workshop.have("stillborn", "1 / 0\n"))


@case("ERR_RUNTIME", "test/slow@1 was not ready within 0.5 s", "localctl logs --ref test/slow@1", details={"log": list})
def start_that_takes_too_long(at: Terminal) -> Outcome:
    ref = at.workshop.have("slow", "import time\ntime.sleep(60)\n")
    return at("localctl", "start", "--ref", ref, "--timeout", "0.5")


@case(
    "ERR_PROVIDER",
    "acme has too many requests",
    "try again later",
    details={"status": 429, "provider": "acme", "retryable": True},
    envelope=True,
)
def provider_refuses(at: Terminal) -> Outcome:
    return at.run(at.workshop.running(), do="provider")


@case(
    "ERR_LIMIT",
    "scratch space is full.*",
    "raise runtime.scratch_gb.*",
    details={"limit": "scratch"},
    envelope=True,
)
def scratch_full(at: Terminal) -> Outcome:
    return at.run(at.workshop.running(), do="fill", size_bytes=60 * 2**20)


@case("ERR_OUTPUT_EXISTS", ".*/once/.*", "choose another --write-prefix.*|move .*", envelope=True)
def prefix_of_another_execution(at: Terminal) -> Outcome:
    ref, prefix = at.workshop.running(), ("--write-prefix", f"/artifacts/{at.folder.name}/once/")
    assert at.workshop.run(ref, *prefix).status == 0
    return at.run(ref, *prefix)


@case(
    "ERR_OUTPUT_INVALID",
    "no entry of outputs matches 'surprise.bin'",
    "add it to outputs in registry.yaml",
    details={"path": "surprise.bin", "outputs": ["text/response.txt", "extra/*"]},
    envelope=True,
)
def output_that_was_not_announced(at: Terminal) -> Outcome:
    return at.run(at.workshop.running(), do="surprise")


@case(
    "ERR_OUTPUT_INVALID",
    "the handler ended without writing 'text/response.txt'",
    "write every plain entry of outputs in registry.yaml",
    details={"missing": ["text/response.txt"]},
    envelope=True,
)
def output_that_was_not_written(at: Terminal) -> Outcome:
    return at.run(at.workshop.running(), do="forget")


@case("ERR_UPLOAD", r".*text/response\.txt: sha256:\w{64} arrived, sha256:\w{64} was announced", "", envelope=True)
def output_that_changed_on_its_way(at: Terminal) -> Outcome:
    return at.run(at.workshop.running(), do="forge")


@case(
    "ERR_BUILD",
    "test/unlocked@1 has no code/processors/test/unlocked/1/requirements.lock, .*",
    "make it: uv pip compile .*",
)
def build_without_a_lock_file(at: Terminal) -> Outcome:
    ref = at.workshop.write("unlocked")
    (at.workshop.root / "code/processors/test/unlocked/1/requirements.lock").unlink()
    return at("processorctl", "build", "-q", "--ref", ref)


@case(
    "ERR_EXECUTION_CONFLICT",
    r"execution [0-9a-f-]{36} ran already, of another ref, with other inputs or in another mode",
    "use another --execution-id, or leave it out",
    details={"mode": "mock", "inputs_digest": str},
    envelope=True,
)
def execution_id_of_another_request(at: Terminal) -> Outcome:
    ref, same = at.workshop.running(), ("--execution-id", new_execution_id())
    assert at.workshop.run(ref, *same, text="one").status == 0
    return at.run(ref, *same, text="another")


@case(
    "ERR_EXECUTION_LOST",
    "the container of test/mortal@1 went away during the execution; its fate is unknown",
    "localctl logs --ref test/mortal@1",
    details={"exit_status": -9, "log": list},
    envelope=True,
)
def runtime_killed_during_a_run(at: Terminal) -> Outcome:
    ref = at.workshop.running("mortal")
    return at.run(ref, do="take_along", pid=at.workshop.pid(ref))


# 75: trying again may help


@case(
    "ERR_TIMEOUT",
    "the execution took longer than 0.5 s",
    "give it more time: --timeout.*",
    details={"timeout_s": 0.5},
    envelope=True,
)
def timeout(at: Terminal) -> Outcome:
    return at.run(at.workshop.running(), "--timeout", "0.5", do="sleep")


@case("ERR_BUSY", "the runtime is stopping", "start it again, then run again", envelope=True)
def runtime_that_stops(at: Terminal) -> Outcome:
    ref = at.workshop.running("mortal")
    with at.during(ref, "stubborn") as run:
        at.workshop.kill(ref, signal.SIGTERM)
        done = at.run(ref)
        ended(run)
    until(lambda: not at.workshop.answers(ref), "end of the runtime")
    return done


# 77, 78: not allowed; configuration


@case(
    "ERR_MISSING_SECRET",
    "test/needy@1 needs FIRST_KEY, SECOND_KEY, not set in the environment",
    "export them, or start with --allow-missing-secrets for mock runs",
    details={"missing": ["FIRST_KEY", "SECOND_KEY"]},
)
def missing_secrets(at: Terminal) -> Outcome:
    ref = at.workshop.write("needy", secrets={"required": ["FIRST_KEY", "SECOND_KEY", "THIRD_KEY"]})
    return at("localctl", "start", "--ref", ref, env={"THIRD_KEY": "is set", "SECOND_KEY": ""})


@case(
    "ERR_MISSING_SECRET",
    "missing secrets: FIRST_KEY, SECOND_KEY",
    "set them, then start the processor again",
    details={"missing": ["FIRST_KEY", "SECOND_KEY"]},
    envelope=True,
)
def real_run_without_its_secrets(at: Terminal) -> Outcome:
    needs = {"required": ["FIRST_KEY", "SECOND_KEY"]}
    ref = at.workshop.running("poor", "--allow-missing-secrets", secrets=needs)
    return at.run(ref, "--mode", "real", text="anything")


@case(
    "ERR_UNAUTHORIZED",
    "the processor refused the run token",
    "localctl start --ref test/mortal@1",
    envelope=True,
)
def run_token_of_another_start(at: Terminal) -> Outcome:
    ref = at.workshop.running("mortal")
    document = at.workshop.read("run_tokens.json")
    document["tokens"][ref] = "of-another-start"
    (at.workshop.state / "run_tokens.json").write_text(json.dumps(document))
    try:
        return at.run(ref)
    finally:
        at.workshop.stop(ref)


@case("ERR_CONFIG", "the process engine makes no images that could be pushed", "LOCAL_ENGINE=docker")
def push_from_the_process_engine(at: Terminal) -> Outcome:
    return at("processorctl", "push", "--ref", at.workshop.write("unbuilt"))


@case("ERR_CONFIG", "LOCAL_ENGINE is 'podman'", "set LOCAL_ENGINE to one of: docker, process")
def unknown_engine(at: Terminal) -> Outcome:
    return at("localctl", "status", env={"LOCAL_ENGINE": "podman"})


@case(
    "ERR_CONFIG",
    "STORAGE_BACKEND is s3, and ARTIFACTS_BUCKET is not set",
    "set ARTIFACTS_BUCKET; see docs/apps/storage.md",
    envelope=True,
)
def run_without_a_bucket(at: Terminal) -> Outcome:
    return at("localctl", "run", "--ref", at.workshop.write("unbuilt"), env={"STORAGE_BACKEND": "s3"})


@case(
    "ERR_STORAGE",
    r"http://127\.0\.0\.1:1 does not answer: Connection refused",
    "look whether it runs, and at MINIO_STORAGE_ENDPOINT and MINIO_STORAGE_USE_HTTPS",
    envelope=True,
)
def run_with_a_store_that_does_not_answer(at: Terminal) -> Outcome:
    names = ("MINIO_STORAGE_ACCESS_KEY", "MINIO_STORAGE_SECRET_KEY")
    place = {"MINIO_STORAGE_ENDPOINT": "127.0.0.1:1", "MINIO_STORAGE_USE_HTTPS": "false"}
    env = {"STORAGE_BACKEND": "minio", **place, **dict.fromkeys(names, "minioadmin")}
    return at("localctl", "run", "--ref", at.workshop.write("unbuilt"), env=env)


@case(
    "ERR_EXECUTION_NOT_FOUND",
    "execution 01a202df-5e07-7db6-94a6-b0bf2199220b wrote nothing under /artifacts/outputs/test-unbuilt-v1/.*/",
    "look at --execution-id, --ref and --write-prefix: .*",
)
def outputs_of_nobody(at: Terminal) -> Outcome:
    execution_id = "01a202df-5e07-7db6-94a6-b0bf2199220b"
    return at("localctl", "outputs", "--ref", at.workshop.write("unbuilt"), "--execution-id", execution_id)


@case(
    "ERR_CONFIG",
    "STORAGE_BACKEND is 'ftp'",
    "set STORAGE_BACKEND to one of: filesystem, minio, s3",
    envelope=True,
)
def run_with_an_unknown_storage(at: Terminal) -> Outcome:
    return at("localctl", "run", "--ref", at.workshop.write("unbuilt"), env={"STORAGE_BACKEND": "ftp"})


@case("ERR_CONFIG", "THEORY_ROOT is '/proc', which has no registry/ and code/", "name the checkout's root folder")
def root_that_is_none(at: Terminal) -> Outcome:
    return at("localctl", "status", env={"THEORY_ROOT": "/proc"})


@case(
    "ERR_CONFIG",
    "DOCKER_HOST names a Docker Engine on another machine, tcp://203.0.113.1:2375: .*",
    "unset DOCKER_HOST.*",
)
def docker_on_another_machine(at: Terminal) -> Outcome:
    env = {"LOCAL_ENGINE": "docker", "DOCKER_HOST": "tcp://203.0.113.1:2375"}
    return at("localctl", "start", "--ref", at.workshop.write("unbuilt"), env=env)


@case("ERR_CONFIG", "test/echo@1 runs on the process engine", "stop it first: localctl stop --ref test/echo@1")
def second_engine(at: Terminal) -> Outcome:
    ref = at.workshop.running()
    # With a platform given, no Docker Engine is asked before this is found.
    return at("localctl", "start", "--ref", ref, "--platform", "amd64", env={"LOCAL_ENGINE": "docker"})


# 130, 143: cancelled


@case("ERR_CANCELLED", "interrupted", "", details={"by": "user"}, envelope=True)
def ctrl_c_before_the_runtime_answers(at: Terminal) -> Outcome:
    ref = at.workshop.running("mortal")
    at.workshop.kill(ref, signal.SIGSTOP)
    try:
        run = at.spawn("localctl", "run", "--ref", ref)
        until(lambda: connected(run.pid), "connection")
        run.send_signal(signal.SIGINT)
        return ended(run)
    finally:
        at.workshop.kill(ref, signal.SIGCONT)


@case(
    "ERR_CANCELLED",
    "the execution was cancelled by the user",
    "",
    details={"by": "user", "step": "interrupt"},
    envelope=True,
)
def ctrl_c(at: Terminal) -> Outcome:
    with at.during(at.workshop.running()) as run:
        run.send_signal(signal.SIGINT)
        return ended(run)


@case("ERR_CANCELLED", "the execution was cancelled by the user", "", details={"by": "user"}, envelope=True, status=143)
def sigterm(at: Terminal) -> Outcome:
    with at.during(at.workshop.running()) as run:
        run.send_signal(signal.SIGTERM)
        return ended(run)


@case(
    "ERR_CANCELLED",
    "the execution was cancelled because the runtime stops",
    "",
    details={"by": "shutdown"},
    envelope=True,
)
def stop_during_a_run(at: Terminal) -> Outcome:
    ref = at.workshop.running("mortal")
    with at.during(ref) as run:
        at.workshop.stop(ref)
        return ended(run)
