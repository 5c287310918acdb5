"""What outputs cost on their way to a bucket, against the fastest plain client on the same server; and peak memory."""

import hashlib
import re
import subprocess
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import partial
from pathlib import Path
from typing import Any, Final

from bench.measure import PROC, SHORT, alternate, median, rounds, say, table, tree
from tests.integration import buckets
from tests.integration.buckets import Bucket
from tests.integration.writers import REF, Writer, writer

MIB: Final = 2**20
LARGE: Final = {"large.bin": (128 if SHORT else 1024) * MIB}
MANY: Final = {f"many/{number}.bin": 1024 for number in range(200 if SHORT else 2000)}
LITTLE: Final = {"little.bin": 1}
PARALLEL: Final = (1, 4, 16)


def main() -> None:
    if why := buckets.missing():
        print(f"\nUploads are left out: {why}")
        return
    with tempfile.TemporaryDirectory(prefix="theory-bench-") as name:
        folder = Path(name)
        (folder / "server").mkdir()
        with buckets.bucket_server(folder / "server") as server, writer(folder, "process") as made:
            bucket = server.make_bucket()
            made.run(LITTLE, bucket.variables("s3"))  # proves what the server enforces, once
            _against_curl(made, bucket, folder, "one output", LARGE)
            _against_curl(made, bucket, folder, "outputs of 1 KiB", MANY)
            _memory(made, bucket)


def _against_curl(made: Writer, bucket: Bucket, folder: Path, what: str, sizes: dict[str, int]) -> None:
    say(f"uploads: {what}")
    count, total = len(sizes), sum(sizes.values())
    with _files(folder, sizes) as paths:
        plain = {
            f"curl, {parallel} at a time": partial(_curl, bucket, paths, parallel)
            for parallel in PARALLEL
            if parallel <= count
        }
        measures: dict[str, Callable[[], float]] = {
            **plain,
            "`localctl run`, whole": partial(_run, made, bucket, sizes),
            "`localctl run` of one byte": partial(_run, made, bucket, LITTLE),
            "asking the store for what is there": partial(_verify, bucket, paths),
        }
        taken = {name: median(each) for name, each in alternate(measures, rounds(3, 1)).items()}
    best = min(taken[name] for name in plain)
    net = taken["`localctl run`, whole"] - taken["`localctl run` of one byte"]
    apart = net - taken["asking the store for what is there"]
    rows = [(name, seconds, total / MIB / seconds, seconds / best) for name, seconds in taken.items()]
    rows += [("the run less that of one byte", net, total / MIB / net, net / best)]
    rows += [("the same, verification apart", apart, total / MIB / apart, apart / best)]
    size = f"{total / MIB:,.0f} MiB" if count == 1 else f"{count:,}"
    heads = ("", "s", "MiB/s", "x fastest curl")
    table(f"Upload of {size} {what}", heads, rows, f"Medians of {rounds(3, 1)} rounds, SeaweedFS on the same machine.")


@contextmanager
def _files(folder: Path, sizes: dict[str, int]) -> Iterator[list[Path]]:
    """Files for the plain client. Random, and the same in each block, as the processor's."""
    block, paths = hashlib.shake_128(b"bench").digest(MIB), []
    for number, size in enumerate(sizes.values()):
        paths.append(folder / f"plain-{number}")
        with paths[-1].open("wb") as file:
            for at in range(0, size, MIB):
                file.write(block[: min(MIB, size - at)])
    yield paths
    for path in paths:
        path.unlink()


def _curl(bucket: Bucket, paths: list[Path], parallel: int) -> float:
    """Seconds in which curl sends the files by presigned URLs, over kept connections. Signing is not counted."""
    client, lines = bucket.server.client(), []
    for path in paths:
        params = {"Bucket": bucket.name, "Key": f"plain/{time.monotonic_ns()}"}
        url = client.generate_presigned_url("put_object", Params=params, ExpiresIn=900)
        lines += [f'upload-file = "{path}"', f'url = "{url}"', 'output = "/dev/null"', 'header = "Expect:"']
    words = ["curl", "--silent", "--show-error", "--fail", "--noproxy", "*", "--config", "-"]
    words += ["--parallel", "--parallel-immediate", "--parallel-max", str(parallel)] if parallel > 1 else []
    return _timed(lambda: subprocess.run(words, input="\n".join(lines), text=True, check=True, capture_output=True))


def _run(made: Writer, bucket: Bucket, sizes: dict[str, int]) -> float:
    """Seconds of the whole command."""
    return _timed(lambda: _succeeded(made.run(sizes, bucket.variables("s3"))))


def _verify(bucket: Bucket, paths: list[Path]) -> float:
    """Seconds in which a HEAD asks for each object's SHA-256, four at a time as uploads are: what `run` does too."""
    from concurrent.futures import ThreadPoolExecutor

    client = bucket.server.client()
    client.put_object(Bucket=bucket.name, Key="plain/verified", Body=b"x", ChecksumAlgorithm="SHA256")
    ask = partial(client.head_object, Bucket=bucket.name, Key="plain/verified", ChecksumMode="ENABLED")
    with ThreadPoolExecutor(4) as pool:
        return _timed(lambda: list(pool.map(lambda _: ask(), paths)))


def _succeeded(envelope: dict[str, Any]) -> None:
    if envelope["status"] != "success" or envelope["meta"]["transfer"] != "direct":
        raise RuntimeError(f"the run did not go as it should: {envelope}")


def _timed(work: Callable[[], object]) -> float:
    began = time.monotonic()
    work()
    return time.monotonic() - began


def _memory(made: Writer, bucket: Bucket) -> None:
    say("uploads: memory")
    small = _peaks(made, bucket, {"large.bin": MIB})
    large = _peaks(made, bucket, LARGE)
    size = f"{LARGE['large.bin'] // MIB:,} MiB"
    rows = [(name, small[name], large[name], large[name] / small[name]) for name in small]
    table("Peak memory", ("MB, the most at once", "output of 1 MiB", f"of {size}", "ratio"), rows)


def _peaks(made: Writer, bucket: Bucket, sizes: dict[str, int]) -> dict[str, float]:
    """The most that the command and the runtime's largest process ever held, by the kernel's own count."""
    process = made.cli.spawn(*made.words(sizes), env=bucket.variables("s3"))
    command = 0.0
    while process.poll() is None:
        command = max(command, _peak_mb(process.pid))
        time.sleep(0.02)
    process.communicate()
    (record,) = made.state.glob("processes/*/process.json")
    supervisor = int(re.findall(r'"pid": ?(\d+)', record.read_text())[0])
    return {"`localctl run`": command, f"the runtime of {REF}": max(map(_peak_mb, tree(supervisor)))}


def _peak_mb(pid: int) -> float:
    try:
        found = re.search(r"VmHWM:\s+(\d+) kB", (PROC / str(pid) / "status").read_text())
    except (FileNotFoundError, ProcessLookupError):
        return 0
    return int(found[1]) * 1024 / 1e6 if found else 0


if __name__ == "__main__":
    main()
