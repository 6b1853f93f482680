"""Decides from DuckDB's own parse of a query whether it is one read-only SELECT over the table ``trace``.

The statement type alone is not enough: DuckDB calls ``WITH x AS (DELETE …) SELECT …`` a SELECT, and a SELECT can read
files, settings and the catalog through functions. So the syntax tree is walked, and what is not on the lists below is
refused; a tree of a shape not known here is refused too. The connection's own locks (``database``) stand behind this.
"""

from __future__ import annotations

import json
import math
from typing import TYPE_CHECKING, Any, Final

from examples.llm_costs.errors import QueryError

if TYPE_CHECKING:
    import duckdb

__all__ = ["MAX_LITERAL_CHARS", "MAX_SQL_CHARS", "check"]

MAX_SQL_CHARS: Final = 10_000
# What a query can make of its rows is bounded by what its text holds: the longest text, tables joined with themselves,
# lists of lists of the same text.
MAX_LITERAL_CHARS: Final = 256
_MAX_TABLES: Final = 16
_MAX_ITEMS: Final = 64
_MAX_FAN_OUT: Final = 128
_MAX_DEPTH: Final = 200
_TABLE: Final = "trace"

_NODES: Final = frozenset(
    "SELECT_NODE SET_OPERATION_NODE CTE_NODE BASE_TABLE SUBQUERY JOIN EMPTY EXPRESSION_LIST TABLE_FUNCTION "
    "ORDER_MODIFIER LIMIT_MODIFIER LIMIT_PERCENT_MODIFIER DISTINCT_MODIFIER "
    "ORDER_DEFAULT ASCENDING DESCENDING".split()
)
_NODE_NAMES: Final = {
    "RECURSIVE_CTE_NODE": "a recursive WITH",
    "SHOW_REF": "SHOW, DESCRIBE or SUMMARIZE",
    "PIVOT": "PIVOT or UNPIVOT",
    "INSERT_QUERY_NODE": "an INSERT inside the query",
    "UPDATE_QUERY_NODE": "an UPDATE inside the query",
    "DELETE_QUERY_NODE": "a DELETE inside the query",
    "MERGE_QUERY_NODE": "a MERGE inside the query",
}
# A name of WITH hides a view of the catalog only in its own scope, and scopes are not followed here.
_CATALOG_PREFIXES: Final = ("duckdb_", "pg_", "pragma_", "sqlite_")
_TABLE_FUNCTIONS: Final = frozenset({"range", "generate_series", "unnest"})
_CONSTRUCTORS: Final = frozenset({"list_value", "struct_pack", "row"})
# With one argument more they give a list of that many values.
_MOST_ARGUMENTS: Final = {
    **dict.fromkeys(("min", "max"), 1),
    **dict.fromkeys(("arg_min", "arg_max", "argmin", "argmax", "min_by", "max_by"), 2),
}
# No function that builds text or lists of any size (repeat, lpad, list, range as a scalar, …): one call makes
# gigabytes, in DuckDB past its memory limit or in Python when fetched, and no interrupt stops that. None that tells
# of the host (current_setting, …).
_FUNCTIONS: Final = frozenset(
    (
        "+ - * / // % ** ^ & | << >> ~~ !~~ ~~* !~~* "
        "count count_star count_if countif sum fsum avg favg mean min max median mode mad any_value first last "
        "arg_min arg_max argmin argmax min_by max_by bool_and bool_or product entropy kurtosis skewness sem "
        "quantile quantile_cont quantile_disc approx_quantile approx_count_distinct reservoir_quantile "
        "stddev stddev_pop stddev_samp variance var_pop var_samp corr covar_pop covar_samp "
        "regr_avgx regr_avgy regr_count regr_intercept regr_r2 regr_slope regr_sxx regr_sxy regr_syy "
        "row_number rank dense_rank rank_dense percent_rank cume_dist ntile lag lead first_value last_value nth_value "
        "list_value struct_pack row unnest "
        "abs ceil ceiling floor round trunc sign sqrt cbrt exp ln log log2 log10 pow power greatest least mod divide "
        "isnan isfinite isinf if ifnull nullif coalesce random "
        "date_trunc date_part datetrunc datepart date_diff datediff date_sub datesub date_add "
        "time_bucket epoch epoch_ms epoch_us "
        "make_timestamp year month day hour minute second dayofweek dayofyear isodow week quarter dayname monthname "
        "to_seconds to_minutes to_hours to_days to_weeks to_months to_years to_milliseconds to_microseconds "
        "strftime timezone typeof length"
    ).split()
)


def check(connection: duckdb.DuckDBPyConnection, sql: str) -> str:
    """The one statement in ``sql``, as it may be executed.

    Raises:
        QueryError: It is anything but one read-only SELECT over the table ``trace``.
    """
    import duckdb

    if len(sql) > MAX_SQL_CHARS:
        raise QueryError(f"the query has {len(sql):,} characters; {MAX_SQL_CHARS:,} are allowed")
    try:
        statements = connection.extract_statements(sql)
    except duckdb.Error as error:
        raise QueryError(f"DuckDB cannot parse the query: {first_line(error)}") from error
    if len(statements) != 1:
        raise QueryError(f"the query must be exactly one statement, not {len(statements)}")
    statement = statements[0]
    if statement.type != duckdb.StatementType.SELECT:
        raise QueryError(f"only SELECT is allowed, and this is {statement.type.name}")
    if statement.named_parameters:
        raise QueryError("the query must not have parameters; write the values into it")
    _walk_all(_tree(connection, statement.query))
    return statement.query


def first_line(error: Exception) -> str:
    """The first line of a message of DuckDB's, without the picture of the query below it."""
    return (str(error).strip().splitlines() or [type(error).__name__])[0][:300]


def _tree(connection: duckdb.DuckDBPyConnection, sql: str) -> Any:
    import duckdb

    try:
        row = connection.execute("SELECT json_serialize_sql(?)", [sql]).fetchone()
        tree = json.loads(row[0]) if row else {"error": True}
    except (duckdb.Error, ValueError, RecursionError) as error:
        raise QueryError("the query is too deeply nested, or of a form that cannot be checked") from error
    if tree.get("error") is not False:
        raise QueryError("only a plain SELECT is allowed")
    return tree["statements"]


def _walk_all(tree: Any) -> None:
    """Every node of the tree, without recursion: nesting is the sender's choice."""
    names = {_TABLE} | _with_names(tree)
    if taken := sorted(name for name in names if name.startswith(_CATALOG_PREFIXES)):
        raise QueryError(f"WITH may not use the name {taken[0]}, which is one of DuckDB's own", table=taken[0])
    _check_sizes(tree)
    stack: list[tuple[Any, bool, int]] = [(tree, False, 0)]
    while stack:
        node, is_table_function, depth = stack.pop()
        if depth > _MAX_DEPTH:
            raise QueryError("the query is too deeply nested")
        if isinstance(node, list):
            stack.extend((item, False, depth + 1) for item in node)
        elif isinstance(node, dict):
            _check_node(node, names, is_table_function)
            inside = node.get("type") == "TABLE_FUNCTION"
            stack.extend((item, inside and name == "function", depth + 1) for name, item in node.items())


def _with_names(tree: Any) -> set[str]:
    found: set[str] = set()
    stack = [tree]
    while stack:
        node = stack.pop()
        if isinstance(node, list):
            stack.extend(node)
        elif isinstance(node, dict):
            entries = node["cte_map"].get("map", []) if isinstance(node.get("cte_map"), dict) else []
            found.update(str(entry.get("key", "")).lower() for entry in entries)
            stack.extend(node.values())
    return found


def _check_sizes(tree: Any) -> None:
    """Bounds how large one value can grow. Lists that hold constants only count once in each SELECT, the longest."""
    tables, fan_out = 0, 1
    longest: list[int] = [1]
    stack: list[tuple[Any, int]] = [(tree, 0)]
    while stack:
        node, select = stack.pop()
        if isinstance(node, list):
            stack.extend((item, select) for item in node)
        elif isinstance(node, dict):
            if node.get("type") == "SELECT_NODE":
                longest.append(1)
                select = len(longest) - 1
            tables += node.get("type") == "BASE_TABLE"
            text = node["literal"].get("text") if isinstance(node.get("literal"), dict) else None
            if isinstance(text, str) and len(text) > MAX_LITERAL_CHARS:
                raise QueryError(f"a text in the query is longer than {MAX_LITERAL_CHARS} characters")
            if str(node.get("function_name", "")).lower() in _CONSTRUCTORS:
                items, constant = _items(node)
                longest[select] = max(longest[select], items if constant else 1)
                fan_out *= 1 if constant else items
            stack.extend((item, select) for item in node.values())
    if tables > _MAX_TABLES:
        raise QueryError(f"the query names tables {tables} times; {_MAX_TABLES} are allowed")
    if fan_out * math.prod(longest) > _MAX_FAN_OUT:
        raise QueryError("the query builds too large lists or structs", advice="ask for plain columns instead")


def _items(node: dict[str, Any]) -> tuple[int, bool]:
    """How many items a constructor has that are no constants; how many it has at all when it has only such."""
    arguments = [item.get("expression", item) for item in node.get("arguments", node.get("children", []))]
    if len(arguments) > _MAX_ITEMS:
        raise QueryError(f"a list or struct in the query has {len(arguments)} items; {_MAX_ITEMS} are allowed")
    others = sum(item.get("class") != "CONSTANT" for item in arguments)
    return others or max(1, len(arguments)), not others


def _check_node(node: dict[str, Any], names: set[str], is_table_function: bool) -> None:
    kind = node.get("type")
    if node.get("class") in {"FUNCTION", "WINDOW"}:
        name = str(node.get("function_name", "")).lower()
        _check_function(name, is_table_function)
        if len(node.get("arguments", node.get("children", []))) > _MOST_ARGUMENTS.get(name, _MAX_ITEMS):
            raise QueryError(f"the function {name} has more arguments here than are allowed", function=name)
    elif "class" in node:
        if node["class"] == "LAMBDA":
            raise QueryError("lambda functions are not allowed")
    elif isinstance(kind, str) and kind not in _NODES:
        raise QueryError(f"{_NODE_NAMES.get(kind, kind)} is not allowed; write a plain SELECT")
    elif kind == "BASE_TABLE":
        _check_table(node, names)


def _check_function(name: str, is_table_function: bool) -> None:
    if is_table_function:
        if name not in _TABLE_FUNCTIONS:
            raise QueryError(
                f"the table function {name} is not allowed: the query may read only the table {_TABLE}", function=name
            )
    elif name not in _FUNCTIONS:
        raise QueryError(
            f"the function {name} is not allowed here",
            advice="use aggregates, arithmetic, window and date functions over the columns of trace",
            function=name,
        )


def _check_table(node: dict[str, Any], names: set[str]) -> None:
    name = str(node.get("table_name", ""))
    if node.get("schema_name") or node.get("catalog_name") or name.lower() not in names:
        full = ".".join(filter(None, (node.get("catalog_name"), node.get("schema_name"), name)))
        raise QueryError(f"the query may read only the table {_TABLE}, not {full[:80]!r}", table=full[:80])
