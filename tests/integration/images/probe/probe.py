"""A processor's process as an engine sees it: listens on PORT, tells what it was given, ends as it is told to.

`GET /facts` answers with what it finds around it; `GET /do/<deed>?<argument>` does one thing. Standard library
alone, and of that little: it is started for every test.
"""

import ctypes
import json
import os
import resource
import signal
import socket
import sys
import time
from collections.abc import Callable
from urllib.parse import unquote


def read(path: str) -> str:
    with open(path) as file:
        return file.read()


def facts() -> dict[str, object]:
    """What the kernel says of this process and its files."""
    status = dict(line.split(":\t", 1) for line in read("/proc/self/status").splitlines() if ":\t" in line)
    return {
        "pid": os.getpid(),
        "uid": os.getuid(),
        "gid": os.getgid(),
        "environment": dict(os.environ),
        "status": {name: status[name].strip() for name in ("CapEff", "CapBnd", "NoNewPrivs", "Seccomp")},
        "mounts": [line.split()[1:4] for line in read("/proc/self/mounts").splitlines()],
        "core": resource.getrlimit(resource.RLIMIT_CORE)[1],
        "hosts": {words[-1]: words[0] for words in map(str.split, read("/etc/hosts").splitlines()) if words},
        "machine": os.uname().machine,
    }


def cgroup(names: str) -> str:
    """The first of the comma-separated files that this machine's version of cgroups has."""
    for name in names.split(","):
        try:
            return read(f"/sys/fs/cgroup/{name}").strip()
        except OSError:
            continue
    return ""


def write(path: str) -> str:
    try:
        with open(path, "w") as file:
            file.write("x")
    except OSError as exc:
        return type(exc).__name__
    return "written"


def fault(_: str) -> None:
    """A real one: the kernel spares PID 1 of a container a mere signal."""
    ctypes.string_at(0)


def space(path: str) -> int:
    found = os.statvfs(path)
    return found.f_blocks * found.f_frsize


def say(text: str) -> str:
    """`stdout:text` or `stderr:text`; a line feed is the caller's to add."""
    stream, _, rest = text.partition(":")
    os.write(2 if stream == "stderr" else 1, rest.encode("utf-8", "surrogateescape"))
    return "said"


def long(size: str) -> str:
    """One line of `size` bytes, then an end mark."""
    os.write(1, b"x" * int(size) + b"|\n")
    return "said"


DEEDS: dict[str, Callable[[str], object]] = {
    "cgroup": cgroup,
    "write": write,
    "space": space,
    "say": say,
    "long": long,
    "exit": lambda status: os._exit(int(status)),
    "fault": fault,
    "exists": os.path.exists,
    "fill": lambda size: len(bytearray(os.urandom(1024)) * (int(size) // 1024)),
}


def answer(path: str) -> object:
    if path == "/facts":
        return facts()
    deed, _, argument = path.removeprefix("/do/").partition("?")
    return DEEDS[deed](unquote(argument, errors="surrogateescape"))


def serve() -> None:
    with socket.create_server((os.environ["THEORY_BIND"], int(os.environ["PORT"]))) as server:
        print("listening", flush=True)
        while True:
            connection, _ = server.accept()
            with connection:
                request = connection.recv(65536).decode()
                if request:
                    body = json.dumps(answer(request.split()[1])).encode()
                    connection.sendall(b"HTTP/1.0 200 OK\r\nContent-Length: %d\r\n\r\n%s" % (len(body), body))


def terminate(*_: object) -> None:
    if os.environ.get("STUBBORN"):
        print("not yet", flush=True)
        return
    print("terminated", flush=True)
    sys.exit(0)


if __name__ == "__main__":
    signal.signal(signal.SIGTERM, terminate)
    if "SAY_AND_EXIT" in os.environ:
        print(os.environ["SAY_AND_EXIT"], flush=True)
        time.sleep(float(os.environ.get("AFTER_S", "0")))
        sys.exit(0)
    serve()
