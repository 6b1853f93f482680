"""docs/proto.json and docs/proto.md are made of the protos as they are, and every part of those says what it is."""

from __future__ import annotations

from carrel.v1 import bridge_pb2, execution_pb2
from tools.proto_reference import files, pages


def test_both_files_are_what_the_protos_say() -> None:
    for path, text in pages().items():
        assert path.read_text(encoding="utf-8") == text, f"{path.name}: run python -m tools.proto_reference"


def test_everything_is_there_and_has_a_comment() -> None:
    made = {file["name"]: file for file in files()}
    service = made["carrel/v1/bridge.proto"]["services"][0]
    assert [method["name"] for method in service["methods"]] == [
        method.name for method in bridge_pb2.DESCRIPTOR.services_by_name["BridgeService"].methods
    ]
    run = next(message for message in made["carrel/v1/execution.proto"]["messages"] if message["name"] == "Run")
    assert [field["name"] for field in run["fields"]] == [field.name for field in execution_pb2.Run.DESCRIPTOR.fields]
    for file in made.values():
        for part in [*file["services"], *file["messages"], *file["enums"]]:
            inner = part.get("methods") or part.get("fields") or part.get("values") or []
            for one in [part, *inner]:
                assert one["comment"], f"{part['name']} {one['name']}"
