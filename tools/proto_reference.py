"""Writes docs/proto.json and docs/proto.md: every service, message and enum of protos/carrel, with its comments.

    python -m tools.proto_reference [--check]

The JSON is what the gateway shows at /docs; the page is for those who read the repository. Both say what the descriptor
set and its comments say, and nothing else: what calls mean together is in docs/contracts.md and docs/protocol.md.
"""

from __future__ import annotations

import json
import sys
import tempfile
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, Final

from google.protobuf.descriptor_pb2 import (
    DescriptorProto,
    EnumDescriptorProto,
    FieldDescriptorProto,
    FileDescriptorProto,
    FileDescriptorSet,
    ServiceDescriptorProto,
)
from grpc_tools import protoc

__all__ = ["files", "pages"]

ROOT: Final = Path(__file__).resolve().parent.parent
_PROTOS: Final = ROOT / "protos"
_PACKAGE: Final = ".carrel.v1."
# Numbers of fields in descriptor.proto: the paths under which comments are kept.
_MESSAGES, _ENUMS, _SERVICES = 4, 5, 6
_FIELDS, _NESTED, _NESTED_ENUMS, _ONEOFS = 2, 3, 4, 8
_TYPES: Final = {number: name.removeprefix("TYPE_").lower() for name, number in FieldDescriptorProto.Type.items()}
_HEAD: Final = """\
# Protos

Every service, message and enum between the services, made from `protos/carrel/v1` by `python -m tools.proto_reference`;
a test compares. [contracts.md](contracts.md) says what services promise each other, [protocol.md](protocol.md#grpc)
which calls are for services of yours. A gateway shows the same at `/docs`.
"""

Comments = Mapping[tuple[int, ...], str]


def files() -> list[dict[str, Any]]:
    """The files of protos/carrel, as docs/proto.json has them."""
    return [_file(file) for file in _descriptors() if file.name.startswith("carrel/")]


def pages() -> Mapping[Path, str]:
    """What the two files must hold."""
    made = files()
    return {
        ROOT / "docs" / "proto.json": json.dumps({"package": "carrel.v1", "files": made}, indent=1, ensure_ascii=False)
        + "\n",
        ROOT / "docs" / "proto.md": "\n".join([_HEAD, *_markdown(made)]).rstrip() + "\n",
    }


def _descriptors() -> Sequence[FileDescriptorProto]:
    names = sorted(path.relative_to(_PROTOS).as_posix() for path in (_PROTOS / "carrel").rglob("*.proto"))
    well_known = Path(protoc.__file__).parent / "_proto"
    with tempfile.TemporaryDirectory() as folder:
        out = Path(folder) / "set.binpb"
        arguments = [f"-I{_PROTOS}", f"-I{well_known}", "--include_source_info", f"--descriptor_set_out={out}", *names]
        if protoc.main(["protoc", *arguments]) != 0:
            raise SystemExit("protoc does not take protos/: it says why above")
        return FileDescriptorSet.FromString(out.read_bytes()).file


def _file(file: FileDescriptorProto) -> dict[str, Any]:
    said: Comments = {
        tuple(place.path): _joined(place.leading_comments or place.trailing_comments)
        for place in file.source_code_info.location
    }
    # Above `syntax`.
    about = next((_joined(p.leading_comments) for p in file.source_code_info.location if list(p.path) == [12]), "")
    messages: list[dict[str, Any]] = []
    enums = [_enum(enum, "", (_ENUMS, i), said) for i, enum in enumerate(file.enum_type)]
    for i, message in enumerate(file.message_type):
        _add_message(message, "", (_MESSAGES, i), said, messages, enums)
    return {
        "name": file.name,
        "comment": about,
        "services": [_service(service, (_SERVICES, i), said) for i, service in enumerate(file.service)],
        "messages": messages,
        "enums": enums,
    }


def _service(service: ServiceDescriptorProto, path: tuple[int, ...], said: Comments) -> dict[str, Any]:
    return {
        "name": service.name,
        "comment": said.get(path, ""),
        "methods": [
            {
                "name": method.name,
                "comment": said.get((*path, 2, i), ""),
                "request": method.input_type.removeprefix(_PACKAGE),
                "response": method.output_type.removeprefix(_PACKAGE),
                "client_streaming": method.client_streaming,
                "server_streaming": method.server_streaming,
            }
            for i, method in enumerate(service.method)
        ],
    }


def _add_message(
    message: DescriptorProto,
    within: str,
    path: tuple[int, ...],
    said: Comments,
    messages: list[dict[str, Any]],
    enums: list[dict[str, Any]],
) -> None:
    if message.options.map_entry:
        return
    name = f"{within}{message.name}"
    maps = {f".carrel.v1.{name}.{nested.name}": nested for nested in message.nested_type if nested.options.map_entry}
    messages.append(
        {
            "name": name,
            "comment": said.get(path, ""),
            "fields": [
                _field(field, message, maps, said.get((*path, _FIELDS, i), "")) for i, field in enumerate(message.field)
            ],
        }
    )
    enums += [_enum(enum, f"{name}.", (*path, _NESTED_ENUMS, i), said) for i, enum in enumerate(message.enum_type)]
    for i, nested in enumerate(message.nested_type):
        _add_message(nested, f"{name}.", (*path, _NESTED, i), said, messages, enums)


def _field(
    field: FieldDescriptorProto, message: DescriptorProto, maps: Mapping[str, DescriptorProto], comment: str
) -> dict[str, Any]:
    kind = _kind(field)
    if entry := maps.get(field.type_name):
        kind = f"map<{_kind(entry.field[0])}, {_kind(entry.field[1])}>"
    elif field.label == FieldDescriptorProto.LABEL_REPEATED:
        kind = f"repeated {kind}"
    elif field.proto3_optional:
        kind = f"optional {kind}"
    told = {"name": field.name, "number": field.number, "type": kind, "comment": comment}
    if field.HasField("oneof_index") and not field.proto3_optional:
        told["oneof"] = message.oneof_decl[field.oneof_index].name
    return told


def _kind(field: FieldDescriptorProto) -> str:
    return field.type_name.removeprefix(_PACKAGE).removeprefix(".") or _TYPES[field.type]


def _enum(enum: EnumDescriptorProto, within: str, path: tuple[int, ...], said: Comments) -> dict[str, Any]:
    return {
        "name": f"{within}{enum.name}",
        "comment": said.get(path, ""),
        "values": [
            {"name": value.name, "number": value.number, "comment": said.get((*path, 2, i), "")}
            for i, value in enumerate(enum.value)
        ],
    }


def _joined(comment: str) -> str:
    return " ".join(comment.split())


def _markdown(made: Sequence[Mapping[str, Any]]) -> Iterator[str]:
    for file in made:
        yield f"\n## {file['name'].rpartition('/')[2]}\n\n{file['comment']}\n"
        for service in file["services"]:
            yield f"\n### {service['name']}\n\n{service['comment']}\n\n| call | takes | gives | |\n|---|---|---|---|"
            for method in service["methods"]:
                takes, gives = (
                    ("stream " if method[f"{side}_streaming"] else "") + f"`{method[what]}`"
                    for side, what in (("client", "request"), ("server", "response"))
                )
                yield f"| `{method['name']}` | {takes} | {gives} | {_cell(method['comment'])} |"
        for message in file["messages"]:
            yield f"\n### {message['name']}\n\n{message['comment']}\n"
            if message["fields"]:
                yield "| field | | type | |\n|---|---|---|---|"
            for field in message["fields"]:
                one = f" (one of `{field['oneof']}`)" if "oneof" in field else ""
                yield f"| `{field['name']}` | {field['number']} | `{field['type']}`{one} | {_cell(field['comment'])} |"
        for enum in file["enums"]:
            yield f"\n### {enum['name']}\n\n{enum['comment']}\n\n| value | | |\n|---|---|---|"
            for value in enum["values"]:
                yield f"| `{value['name']}` | {value['number']} | {_cell(value['comment'])} |"


def _cell(text: str) -> str:
    return text.replace("|", "\\|")


def main() -> int:
    """Write both, or with ``--check`` say whether they are as they should be."""
    stale = [path for path, text in pages().items() if not path.exists() or path.read_text(encoding="utf-8") != text]
    if "--check" in sys.argv[1:]:
        for path in stale:
            print(f"{path.relative_to(ROOT)} is out of date: run python -m tools.proto_reference", file=sys.stderr)
        return 1 if stale else 0
    for path in stale:
        path.write_text(pages()[path], encoding="utf-8")
    return 0


if __name__ == "__main__":
    sys.exit(main())
