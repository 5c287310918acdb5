"""A Terraform provider that knows what the AWS provider's resources look like, and does nothing.

With it `terraform validate` and `terraform test` (whose mock_provider needs a schema) run where the AWS provider
can't be downloaded. Its schema is aws-*.json beside it, taken by take_schema.py. It judges no value.
"""

import json
from pathlib import Path
from typing import Any

from tf import runner
from tf.gen import tfplugin_pb2 as messages
from tf.gen import tfplugin_pb2_grpc as services

DATA = {"aws_caller_identity"}
OF_THE_PROVIDER = {
    "attributes": {"region": {"type": "string", "optional": True}},
    "blocks": {
        "default_tags": {
            "nesting": "list",
            "min_items": 0,
            "max_items": 1,
            "attributes": {"tags": {"type": ["map", "string"], "optional": True}},
            "blocks": {},
        }
    },
}


def _schema(block: dict[str, Any]) -> messages.Schema:
    return messages.Schema(version=0, block=_block(block))


def _block(block: dict[str, Any]) -> messages.Schema.Block:
    made = messages.Schema.Block(version=0)
    for name, said in block["attributes"].items():
        flags = {flag: True for flag in ("required", "optional", "computed") if said.get(flag)}
        made.attributes.add(name=name, type=json.dumps(said["type"]).encode(), **flags)
    for name, said in block["blocks"].items():
        nesting = messages.Schema.NestedBlock.SET if said["nesting"] == "set" else messages.Schema.NestedBlock.LIST
        limits = {"min_items": said["min_items"], "max_items": said["max_items"]}
        made.block_types.add(type_name=name, nesting=nesting, block=_block(said), **limits)
    return made


class Provider(services.ProviderServicer):
    """What Terraform asks of a provider before it would reach a cloud."""

    def __init__(self, *_: object) -> None:
        (path,) = Path(__file__).parent.glob("aws-*.json")
        self.schemas = {name: _schema(block) for name, block in json.loads(path.read_text()).items()}

    def GetProviderSchema(self, _request: object, _context: object) -> messages.GetProviderSchema.Response:  # noqa: N802
        return messages.GetProviderSchema.Response(
            provider=_schema(OF_THE_PROVIDER),
            resource_schemas={name: each for name, each in self.schemas.items() if name not in DATA},
            data_source_schemas={name: each for name, each in self.schemas.items() if name in DATA},
        )

    def ValidateProviderConfig(self, _request: object, _context: object) -> object:  # noqa: N802
        return messages.ValidateProviderConfig.Response()

    def ValidateResourceConfig(self, _request: object, _context: object) -> object:  # noqa: N802
        return messages.ValidateResourceConfig.Response()

    def ValidateDataResourceConfig(self, _request: object, _context: object) -> object:  # noqa: N802
        return messages.ValidateDataResourceConfig.Response()

    def StopProvider(self, _request: object, _context: object) -> object:  # noqa: N802
        return messages.StopProvider.Response()


class Named:
    """All that the runner asks of the provider itself."""

    def full_name(self) -> str:
        return "hashicorp/aws"


if __name__ == "__main__":
    import tf.provider

    tf.provider.ProviderServicer = Provider  # the runner knows no other way to be given one
    runner.run_provider(Named())
