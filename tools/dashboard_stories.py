"""The dashboards of one run's story and of the stores; see ``dashboard_pages`` for the overview."""

from typing import Any

from tools.dashboards import Other, Panel, dashboard, datasource, latency, quantile, rate, textbox

__all__ = ["stores", "story"]


def story() -> dict[str, Any]:
    """One run: its trace, its log lines; one user's by pseudonym."""
    lines = '{service_namespace="carrel"} | json'
    return dashboard(
        "carrel-story",
        "Carrel: a run's story",
        "What happened to one run or one user. Trace ids are in exemplars and log lines.",
        [
            (
                "The run",
                [
                    Other(
                        "Trace",
                        "Every hop of the run, from the client's frame to the delivered event.",
                        "traces",
                        "tempo",
                        {"queryType": "traceql", "query": "${trace_id}"},
                    ),
                    Other(
                        "Traces of the run",
                        "All traces that name the run: its request, its answers to questions.",
                        "table",
                        "tempo",
                        {
                            "queryType": "traceql",
                            "query": '{ span.carrel.run_id = "${run_id}" }',
                            "tableType": "traces",
                        },
                        height=8,
                    ),
                    Other(
                        "Log lines of the run",
                        "Of all services, in order.",
                        "logs",
                        "loki",
                        {"expr": f'{lines} | run_id="${{run_id}}"', "queryType": "range"},
                    ),
                ],
            ),
            (
                "The user",
                [
                    Other(
                        "Log lines of the user",
                        "By the pseudonym that logs have instead of the user's name.",
                        "logs",
                        "loki",
                        {"expr": f'{lines} | user="${{user}}"', "queryType": "range"},
                    )
                ],
            ),
            (
                "Was it only this one?",
                [
                    Panel(
                        "Execution time of all runs",
                        "To see whether the run was slow, or all were.",
                        latency("carrel_execution_time_seconds"),
                        "s",
                        width=12,
                    ),
                    Panel(
                        "Event latency of all",
                        "Points are exemplars: each leads to a trace.",
                        latency("carrel_event_latency_seconds"),
                        "s",
                        width=12,
                    ),
                ],
            ),
        ],
        variables=[
            *datasource("logs", "loki"),
            *datasource("traces", "tempo"),
            textbox("trace_id", "Trace id"),
            textbox("run_id", "Run id"),
            textbox("user", "User (pseudonym)"),
        ],
    )


def stores() -> dict[str, Any]:
    """The run store and the event log."""
    return dashboard(
        "carrel-stores",
        "Carrel: stores",
        "The run store (SQLite or PostgreSQL) and the event log (SQLite or Redis), as their services see them.",
        [
            (
                "Run store",
                [
                    Panel(
                        "Writes",
                        "How long a write takes, its wait included.",
                        [
                            (
                                quantile(share, "carrel_run_store_seconds", "operation"),
                                f"p{share * 100:g} {{{{operation}}}}",
                            )
                            for share in (0.5, 0.99)
                        ],
                        "s",
                        width=12,
                    ),
                    Panel(
                        "Operations",
                        "Reads and writes a second.",
                        [(rate("carrel_run_store_seconds_count", "operation"), "{{operation}}")],
                        "ops",
                        width=6,
                    ),
                    Panel(
                        "Errors",
                        "Reads and writes that the store failed.",
                        [(rate("carrel_run_store_errors_total", "operation"), "{{operation}}")],
                        "ops",
                        width=6,
                    ),
                    Panel(
                        "Attempts lost and runs resumed",
                        "What a store or process that went away has cost.",
                        [
                            (rate("carrel_attempts_lost_total"), "attempts lost"),
                            (rate("carrel_runs_resumed_total"), "runs resumed"),
                        ],
                        "cps",
                        width=12,
                    ),
                    Panel(
                        "Age of what the store said",
                        "Since the store last told which runs have not ended.",
                        [("min(carrel_backlog_age_seconds)", "age")],
                        "s",
                        width=12,
                    ),
                ],
            ),
            (
                "Event log",
                [
                    Panel(
                        "State",
                        "1 for the state that each bridge is in.",
                        [("carrel_integration_state == 1", "{{instance}} {{state}}")],
                        width=8,
                    ),
                    Panel(
                        "Appends",
                        "From an append's arrival to its being durable.",
                        latency("carrel_log_append_seconds"),
                        "s",
                    ),
                    Panel(
                        "Events",
                        "New, repeated and refused.",
                        [(rate("carrel_log_events_total", "outcome"), "{{outcome}}")],
                        "cps",
                    ),
                    Panel(
                        "Commits",
                        "Transactions a second; many events share one.",
                        [(rate("carrel_log_commits_total"), "commits"), (rate("carrel_log_errors_total"), "errors")],
                        "ops",
                    ),
                    Panel(
                        "Readers",
                        "Gateways, subscriptions, and those behind.",
                        [
                            ("sum(carrel_attached_gateways)", "gateways"),
                            ("sum(carrel_subscriptions)", "subscriptions"),
                            ("sum(carrel_users_behind)", "behind"),
                        ],
                    ),
                    Panel(
                        "Reads of gateways",
                        "For connections that are off their ring.",
                        [(rate("carrel_log_reads_total"), "reads"), (rate("carrel_log_read_failures_total"), "failed")],
                        "ops",
                    ),
                ],
            ),
        ],
    )
