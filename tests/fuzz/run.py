"""``python -P -m tests.fuzz.run TARGET [SECONDS] [FOLDER]``: fuzz one target with atheris, guided by coverage.

Inputs that found something new are kept in FOLDER (``.fuzz/TARGET``) and begin the next run; what fails is written
there, too. Needs atheris, which is no dependency of the project.
"""

from __future__ import annotations

import sys
from pathlib import Path

_SEEDS = (
    b'{"type":"connect","token":"a.b.c","resume":{"epoch":"e","offset":1,"event_id":"x"},"ack":{"window":5}}',
    b'{"type":"agent_execute","message":"m","params":{"a":[1,{}]},"pipeline":["a"]}',
    b'{"text":"password=hunter22","more":{"api_key":"x"}}',
    b"\x81\x85\x00\x00\x00\x00hello\x89\x80\x00\x00\x00\x00",
    b"eyJhbGciOiJIUzI1NiJ9.eyJzdWIiOiJhIn0.AAAAAAAAAAAAAAAAAAAAAA",
)


def main(arguments: list[str]) -> int:
    """Fuzz until the time is up; not 0 when something failed."""
    try:
        import atheris  # type: ignore[import-untyped, unused-ignore]
    except ImportError:
        print("atheris is not installed: pip install 'atheris>=3' into an environment of your own", file=sys.stderr)
        return 3
    name = arguments[0]
    seconds = int(arguments[1]) if len(arguments) > 1 else 60
    folder = Path(arguments[2] if len(arguments) > 2 else f".fuzz/{name}")
    folder.mkdir(parents=True, exist_ok=True)
    for number, seed in enumerate(_SEEDS):
        (folder / f"seed-{number}").write_bytes(seed)
    with atheris.instrument_imports(include=["gateway", "carrel", "servicekit", "services"]):
        from tests.fuzz.targets import TARGETS
    options = [
        f"-max_total_time={seconds}",
        "-max_len=4096",
        "-rss_limit_mb=2048",
        "-timeout=10",
        "-print_final_stats=1",
    ]
    atheris.Setup([sys.argv[0], *options, f"-artifact_prefix={folder}/", str(folder)], TARGETS[name])
    atheris.Fuzz()
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
