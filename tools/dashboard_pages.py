"""The dashboards: the operator's overview, and the list of all. How they are made is ``dashboards``."""

from collections.abc import Callable
from typing import Any

from tools.dashboard_stories import stores, story
from tools.dashboards import Panel, dashboard, latency, quantile, rate


def overview() -> dict[str, Any]:
    """What an operator looks at first."""
    return dashboard(
        "carrel-overview",
        "Carrel: overview",
        "Is it well? From what users feel to what each process uses. Alerts over the same figures: ops/prometheus.",
        [
            (
                "What users feel",
                [
                    Panel(
                        "Event latency p99",
                        "From an event's happening to its writing to a socket.",
                        [("carrel:event_latency_seconds:p99", "p99")],
                        "s",
                        "stat",
                        4,
                        0.1,
                        0.5,
                    ),
                    Panel(
                        "Runs that fail",
                        "Share of the runs that ended without success, over ten minutes.",
                        [("carrel:runs_failed:ratio", "failed")],
                        "percentunit",
                        "stat",
                        4,
                        0.05,
                        0.2,
                    ),
                    Panel(
                        "Oldest unacknowledged",
                        "For how long the oldest event waits for the log.",
                        [("max(carrel_unacknowledged_age_seconds)", "age")],
                        "s",
                        "stat",
                        4,
                        5,
                        30,
                    ),
                    Panel(
                        "Longest undelivered",
                        "For how long a connection that is behind has not moved.",
                        [("max(carrel_undelivered_age_seconds)", "age")],
                        "s",
                        "stat",
                        4,
                        10,
                        60,
                    ),
                    Panel(
                        "Identity mismatches",
                        "Calls and events in another's name, and calls that a service may not make, within an hour; "
                        "all were refused.",
                        [
                            ("sum(increase(carrel_identity_mismatch_total[1h]))", "mismatches"),
                            ("sum(increase(carrel_callers_refused_total[1h]))", "services"),
                        ],
                        "short",
                        "stat",
                        4,
                        1,
                        1,
                    ),
                    Panel(
                        "Processes that are not ready",
                        "Processes that get no new work.",
                        [("count(carrel_service_ready == 0) or vector(0)", "not ready")],
                        "short",
                        "stat",
                        4,
                        1,
                        1,
                    ),
                    Panel(
                        "Event latency",
                        "From the moment an event happened, on its producer's clock, to sockets that are up to date.",
                        latency("carrel_event_latency_seconds"),
                        "s",
                        width=12,
                    ),
                    Panel(
                        "Execution time",
                        "From a run's admission to its outcome.",
                        [
                            ("carrel:execution_time_seconds:average", "average"),
                            (quantile(0.95, "carrel_execution_time_seconds"), "p95"),
                        ],
                        "s",
                        width=12,
                    ),
                ],
            ),
            (
                "Runs",
                [
                    Panel(
                        "Runs",
                        "Admitted, and how they ended.",
                        [
                            (rate("carrel_runs_total"), "admitted"),
                            (rate("carrel_runs_successful_total"), "succeeded"),
                            (rate("carrel_runs_failed_total"), "failed"),
                        ],
                        "reqps",
                    ),
                    Panel(
                        "Unended runs",
                        "Of all replicas, by state, as the store has them.",
                        [("max by (state) (carrel_unended_runs)", "{{state}}")],
                    ),
                    Panel(
                        "Age of the oldest run",
                        "For how long the oldest run has been in each state.",
                        [("max by (state) (carrel_oldest_run_age_seconds)", "{{state}}")],
                        "s",
                    ),
                    Panel(
                        "Refusals",
                        "Requests refused, by the error's code.",
                        [(rate("carrel_run_refusals_total", "code"), "{{code}}")],
                        "reqps",
                    ),
                    Panel(
                        "Engines and users",
                        "Active now; the peak is since each process began.",
                        [
                            ("sum(carrel_engines_active)", "engines"),
                            ("sum(carrel_total_users)", "users"),
                            ("max(carrel_concurrent_peak)", "peak"),
                        ],
                    ),
                    Panel(
                        "Where a run's time goes",
                        "Of the average run that ended, by part; the parts add up to the whole.",
                        [
                            (
                                (
                                    f"{rate('carrel_run_part_seconds_sum', 'part')}"
                                    f" / scalar({rate('carrel_execution_time_seconds_count')})"
                                ),
                                "{{part}}",
                            )
                        ],
                        "s",
                    ),
                ],
            ),
            (
                "Workers, models and tools",
                [
                    Panel(
                        "Workers",
                        "Busy, warm and waited for, against the bound.",
                        [
                            ("sum(carrel_pool_busy)", "busy"),
                            ("sum(carrel_pool_warm)", "warm"),
                            ("sum(carrel_pool_waiting)", "attempts waiting"),
                            ("sum(carrel_pool_capacity)", "bound"),
                        ],
                    ),
                    Panel(
                        "Served warm",
                        "Share of workers that were waiting when asked for.",
                        [(f"{rate('carrel_pool_reused_total')} / {rate('carrel_pool_served_total')}", "warm")],
                        "percentunit",
                    ),
                    Panel(
                        "Memory of workers",
                        "Proportional memory of all, and of the largest.",
                        [
                            ("sum(carrel_workers_memory_bytes)", "all"),
                            ("max(carrel_worker_memory_max_bytes)", "largest"),
                        ],
                        "bytes",
                    ),
                    Panel(
                        "Calls of models",
                        "By how they ended.",
                        [(rate("carrel_model_calls_total", "model, outcome"), "{{model}} {{outcome}}")],
                        "reqps",
                    ),
                    Panel(
                        "Tokens",
                        "In and out, a second.",
                        [(rate("carrel_model_tokens_total", "model, direction"), "{{model}} {{direction}}")],
                    ),
                    Panel(
                        "Calls of tools",
                        "By how they ended.",
                        [(rate("carrel_tool_calls_total", "outcome"), "{{outcome}}")],
                        "reqps",
                    ),
                ],
            ),
            (
                "Events and connections",
                [
                    Panel(
                        "Events",
                        "Into the log, and out to sockets.",
                        [
                            (rate("carrel_events_sent_total"), "logged"),
                            (rate("carrel_socket_events_total"), "sent to sockets"),
                            (rate("carrel_events_failed_total"), "rejected"),
                        ],
                        "cps",
                    ),
                    Panel(
                        "Waiting for the log",
                        "Events that emitters hold.",
                        [
                            ("sum(carrel_unacknowledged_events)", "events"),
                            (rate("carrel_items_refused_total", "reason"), "refused: {{reason}}"),
                        ],
                    ),
                    Panel(
                        "Undelivered",
                        "Events in the log that are not sent yet, and subscriptions that read the log.",
                        [
                            ("sum(carrel_undelivered_events)", "events"),
                            ("sum(carrel_users_behind)", "subscriptions behind"),
                        ],
                    ),
                    Panel(
                        "Connections",
                        "Sockets and users.",
                        [
                            ("sum(carrel_connections)", "sockets"),
                            ("sum(carrel_connected_users)", "users"),
                            ("sum(carrel_connections_stalled)", "stalled"),
                        ],
                    ),
                    Panel(
                        "Ends of connections",
                        "By the close code's name.",
                        [(rate("carrel_connections_closed_total", "reason"), "{{reason}}")],
                        "cps",
                    ),
                    Panel(
                        "HTTP",
                        "Answers by status.",
                        [(rate("carrel_http_requests_total", "status"), "{{status}}")],
                        "reqps",
                    ),
                ],
            ),
            (
                "Processes",
                [
                    Panel(
                        "Processor",
                        "CPU seconds a second.",
                        [("rate(carrel_process_cpu_seconds_total[$__rate_interval])", "{{job}} {{instance}}")],
                        "percentunit",
                    ),
                    Panel(
                        "Memory",
                        "Resident memory; workers are not in it.",
                        [("carrel_process_memory_bytes", "{{job}} {{instance}}")],
                        "bytes",
                    ),
                    Panel(
                        "Event loop",
                        "How late each loop woke (p99).",
                        [(quantile(0.99, "carrel_event_loop_lag_seconds", "job, instance"), "{{job}} {{instance}}")],
                        "s",
                    ),
                    Panel(
                        "gRPC calls that failed",
                        "By method and status, those of the caller's making left out.",
                        [("carrel:grpc_calls_failed:rate", "{{method}} {{status}}")],
                        "reqps",
                        width=12,
                    ),
                    Panel(
                        "gRPC calls",
                        "How long single calls took (p95).",
                        [(quantile(0.95, "carrel_grpc_call_seconds", "method"), "{{method}}")],
                        "s",
                        width=12,
                    ),
                ],
            ),
        ],
    )


PAGES: dict[str, Callable[[], dict[str, Any]]] = {"overview": overview, "run-story": story, "stores": stores}
