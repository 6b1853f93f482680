"""What can go wrong in this example, as subclasses of Carrel's own errors, so that codes and advice reach the user.

All are raised in tools' bodies, so each is a ToolError too.

    InvalidRequestError
    ├── DataPathError        a path that leaves the data folder, or names nothing in it
    ├── MalformedCsvError    a CSV file that is not what was expected: line, column, expected, found
    ├── QueryError           SQL that is not one read-only SELECT over the trace
    └── InfeasibleError      no assignment of requests to models keeps every limit
    AgentDependencyError
    └── MissingExtraError    a package of the extra ``llm-costs`` is not installed
"""

from __future__ import annotations

from types import TracebackType

from carrel.errors import AgentDependencyError, InvalidRequestError, ToolError

__all__ = ["DataPathError", "InfeasibleError", "MalformedCsvError", "MissingExtraError", "QueryError", "needs_extra"]


class DataPathError(InvalidRequestError, ToolError):
    """A path that leaves the data folder, or names nothing in it."""

    default_advice = (
        "name a file inside the folder that LLM_COSTS_DATA_DIR gives, by its path relative to it, "
        "or a packaged sample such as sample:synthetic_trace.csv"
    )


class MalformedCsvError(InvalidRequestError, ToolError):
    """A CSV file that cannot be read as what it should be; ``details`` has file, line, column, expected and found."""

    def __init__(self, file: str, line: int, column: str, expected: str, found: str) -> None:
        shown = found if len(found) <= 60 else found[:57] + "..."
        super().__init__(
            f"{file}, line {line}, column {column}: expected {expected}, found {shown!r}",
            advice="mend that line and ask again",
            file=file,
            line=line,
            column=column,
            expected=expected,
            found=shown,
        )


class QueryError(InvalidRequestError, ToolError):
    """SQL that is not one read-only SELECT over the trace, or that DuckDB cannot run."""

    default_advice = (
        "send one SELECT over the table trace (columns TIMESTAMP, ContextTokens, GeneratedTokens), for example: "
        "SELECT date_trunc('minute', TIMESTAMP) AS minute, count(*) FROM trace GROUP BY ALL ORDER BY ALL"
    )


class InfeasibleError(InvalidRequestError, ToolError):
    """No assignment keeps every limit; ``details`` names the constraints and by how much each would have to give."""


class MissingExtraError(AgentDependencyError, ToolError):
    """A package of the extra ``llm-costs`` is not installed."""

    default_advice = "install the extra: pip install 'carrel[llm-costs]'"


class needs_extra:  # noqa: N801  (reads as a statement: `with needs_extra(): import scipy`)
    """Turns an import that fails inside the block into MissingExtraError; every other exception passes."""

    def __enter__(self) -> None:
        return None

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, tb: TracebackType | None) -> None:
        if isinstance(error, ModuleNotFoundError):
            raise MissingExtraError(
                f"the package {error.name!r} is not installed, and these agents calculate with it",
                package=error.name or "",
            ) from error
