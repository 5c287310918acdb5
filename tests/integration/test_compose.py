"""docs/apps/compose.yml: what it starts is a server that takes the reference's keys and refuses misuse."""

import json
from pathlib import Path
from typing import Any

import pytest
import yaml

from tests.integration import bucket_canary
from tests.integration.buckets import BucketServer, Login, bucket_server
from tests.shell import PROJECT

pytestmark = pytest.mark.bucket

FILE: dict[str, Any] = yaml.safe_load((PROJECT / "docs/apps/compose.yml").read_text())
KEYS = json.loads(FILE["configs"]["keys"]["content"])


class Composed(BucketServer):
    """The file's own command and keys; of ours are the ports and the folder alone, which come last and win."""

    def _argv(self) -> list[str]:
        weed, *ours = super()._argv()
        service = FILE["services"]["s3"]
        (self.folder / "keys.json").write_text(FILE["configs"]["keys"]["content"])
        given = [word.replace("/etc/seaweedfs/s3.json", "keys.json") for word in service["command"]]
        places = [word for word in ours if word.startswith(("-dir=", "-s3.localSocket", "-filer.localSocket"))]
        return [weed, "-logtostderr=true", *given, *places, *(word for word in ours if ".port" in word)]


def test_it_takes_the_references_keys_and_refuses_misuse(tmp_path: Path) -> None:
    (credentials,) = KEYS["identities"][0]["credentials"]
    with bucket_server(
        tmp_path, kind=Composed, owner=Login(credentials["accessKey"], credentials["secretKey"])
    ) as server:
        bucket = server.make_bucket()

        assert (credentials["accessKey"], credentials["secretKey"]) == ("minioadmin", "minioadmin")
        assert bucket_canary.answers(bucket) == bucket_canary.REFUSALS
        bucket.remove()


def test_it_listens_where_this_machine_and_its_containers_look() -> None:
    assert FILE["services"]["s3"]["ports"] == ["127.0.0.1:9000:9000", "172.17.0.1:9000:9000"]
    assert "-s3.port=9000" in FILE["services"]["s3"]["command"]
