"""The rows of the catalogue, by topic: kind, name and labels; services; one sentence; the documents' name if any.

Services: a name, ``grpc`` (all that serve gRPC) or ``all``. What the rows become is said in ``catalogue``.
"""

from __future__ import annotations

from collections.abc import Mapping
from types import MappingProxyType
from typing import Final

__all__ = ["ENTRIES"]

_Row = tuple[str, ...]

_ENGINES: Final[tuple[_Row, ...]] = (
    ("counter carrel_engines_created_total", "execution", "Engines made.", "engines created"),
    ("gauge carrel_engines_active", "execution", "Engines active in this process.", "engines active"),
    ("counter carrel_engines_cleaned_total", "execution", "Engines cleaned up.", "engines cleaned"),
    ("gauge carrel_total_users", "execution", "Users with an active engine in this process.", "total users"),
    (
        "gauge carrel_concurrent_peak",
        "execution",
        "The most engines active at once since the start.",
        "concurrent peak",
    ),
    ("counter carrel_contexts_created_total", "execution", "Contexts accepted for runs.", "contexts created"),
    ("counter carrel_contexts_cleaned_total", "execution", "Contexts whose run has ended.", "contexts cleaned"),
)

_RUNS: Final[tuple[_Row, ...]] = (
    ("counter carrel_runs_total", "execution", "Runs admitted.", "total runs"),
    ("counter carrel_runs_successful_total", "execution", "Runs that succeeded.", "successful runs"),
    ("counter carrel_runs_failed_total", "execution", "Runs that failed, timed out or were cancelled.", "failed runs"),
    (
        "histogram carrel_execution_time_seconds",
        "execution",
        "From a run's admission to its outcome; its sum by its count is the average.",
        "execution time (average, p95)",
    ),
    ("counter carrel_run_timeouts_total", "execution", "Runs that ended at their engine's time limit."),
    (
        "counter carrel_run_cancellations_total",
        "execution",
        "Runs that were cancelled; they are in the failed ones, too.",
    ),
    ("counter carrel_run_refusals_total{code}", "execution", "Requests for runs and engines refused, by error code."),
    ("gauge carrel_runs_queued", "execution", "Runs in this process's care that wait for their thread or an engine."),
    ("gauge carrel_runs_waiting", "execution", "Runs in this process's care that wait for a person."),
    ("counter carrel_runs_resumed_total", "execution", "Runs taken over from another process or a former life."),
    ("counter carrel_attempts_lost_total", "execution", "Attempts of stages that were lost and tried again."),
    ("gauge carrel_unended_runs{state}", "execution", "Runs in the store that have not ended, of all replicas."),
    (
        "gauge carrel_oldest_run_age_seconds{state}",
        "execution",
        "How long the oldest run of the store has been in this state, at most (since its admission, or its outcome).",
    ),
    ("gauge carrel_backlog_age_seconds", "execution", "Since the store was last asked for unended runs."),
)

_CHAIN: Final[tuple[_Row, ...]] = (
    (
        "histogram carrel_factory_chain_metrics_milliseconds{layer}",
        "execution",
        "How long each layer of the chain took to be made for a run.",
        "layer breakdown (factory_chain_metrics)",
    ),
    (
        "histogram carrel_run_part_seconds{part}",
        "execution",
        "Where each ended run's time went; a run's parts add up to the whole.",
    ),
)

_POOL: Final[tuple[_Row, ...]] = (
    ("counter carrel_pool_created_total", "agent_instance", "Workers started.", "ResourcePool created"),
    ("counter carrel_pool_served_total", "agent_instance", "Workers given to an attempt."),
    ("counter carrel_pool_reused_total", "agent_instance", "Those of them that waited warm.", "ResourcePool reused"),
    ("gauge carrel_pool_warm", "agent_instance", "Workers that wait warm."),
    ("gauge carrel_pool_busy", "agent_instance", "Instances there are, reserved or running."),
    ("gauge carrel_pool_capacity", "agent_instance", "The most instances at once (max_workers)."),
    ("gauge carrel_pool_waiting", "agent_instance", "Attempts that wait for a worker."),
    ("gauge carrel_pool_children", "agent_instance", "Instances of sub-agents there are."),
    ("histogram carrel_worker_creation_seconds", "agent_instance", "How long getting a worker took, its wait apart."),
    ("counter carrel_workers_killed_total", "agent_instance", "Workers killed because the agent did not end."),
    ("counter carrel_workers_lost_total", "agent_instance", "Workers that died unasked or used more than they may."),
    (
        "gauge carrel_workers_memory_bytes",
        "agent_instance",
        "Proportional memory (PSS) of all serving workers.",
        "memory",
    ),
    ("gauge carrel_worker_memory_max_bytes", "agent_instance", "The same of the largest one."),
    ("counter carrel_agents_failed_total", "agent_instance", "Turns of agents that ended with an error."),
    ("counter carrel_fallbacks_total", "agent_instance", "Fallbacks that answered for an agent."),
    ("gauge carrel_periodic_updates", "agent_instance", "Agents for which signs of life are given."),
)

_MODELS_AND_TOOLS: Final[tuple[_Row, ...]] = (
    (
        "counter carrel_model_calls_total{model,outcome}",
        "agent_instance",
        "Calls of models: succeeded, failed, denied.",
    ),
    (
        "histogram carrel_model_call_seconds",
        "agent_instance",
        "How long calls of models took, the wait for a turn too.",
    ),
    (
        "counter carrel_model_tokens_total{model,direction}",
        "agent_instance",
        "Tokens that models took in and gave out.",
    ),
    ("counter carrel_tool_calls_total{outcome}", "agent_instance", "Calls of tools: succeeded, failed, denied."),
    ("histogram carrel_tool_call_seconds", "agent_instance", "How long the bodies of tools took."),
)

_EVENTS: Final[tuple[_Row, ...]] = (
    ("counter carrel_emitters_created_total", "emitter", "Users' emitters made.", "emitters created"),
    ("gauge carrel_emitters_active", "emitter", "Users with something queued or unacknowledged.", "emitters active"),
    ("counter carrel_events_sent_total", "emitter", "Events that the log has acknowledged.", "events sent"),
    ("counter carrel_events_failed_total", "emitter", "Events replaced by event_rejected.", "events failed"),
    ("counter carrel_batches_total", "emitter", "Messages written to the bridge.", "batches"),
    (
        "histogram carrel_event_delivery_time_seconds",
        "emitter",
        "From an event's receipt by the emitter to the log's acknowledgement.",
        "event delivery time",
    ),
    (
        "histogram carrel_event_log_latency_seconds",
        "emitter",
        "From the moment an event happened, on its producer's clock, to the log's acknowledgement.",
    ),
    ("counter carrel_items_refused_total{reason}", "emitter", "Items refused, by the reason's name."),
    ("gauge carrel_unacknowledged_events", "emitter", "Events taken that the log has not acknowledged."),
    ("gauge carrel_unacknowledged_bytes", "emitter", "Bytes of the same."),
    ("gauge carrel_unacknowledged_age_seconds", "emitter", "For how long the oldest of them has been held."),
    ("counter carrel_delivery_late_total", "emitter", "How often delivery became later than the delivery timeout."),
    ("counter carrel_delivery_retries_total", "emitter", "How often everything unacknowledged was sent again."),
    ("gauge carrel_bridge_connected", "emitter", "1 while the stream to the bridge is open."),
)

_LOG: Final[tuple[_Row, ...]] = (
    ("gauge carrel_integration_state{state}", "bridge", "1 for the state that the bridge is in.", "IntegrationState"),
    (
        "counter carrel_log_events_total{outcome}",
        "bridge",
        "Events to append: appended, duplicate; refused counts items.",
    ),
    ("counter carrel_log_commits_total", "bridge", "Transactions of the log."),
    ("histogram carrel_log_append_seconds", "bridge", "From an append's arrival to its being durable."),
    ("counter carrel_log_errors_total", "bridge", "Appends that the log's store failed."),
    ("gauge carrel_attached_gateways", "bridge", "Gateways attached."),
    ("gauge carrel_subscriptions", "bridge", "Users that gateways are subscribed to."),
    ("gauge carrel_users_behind", "bridge", "Subscriptions that are behind and read the log."),
)

_SOCKETS: Final[tuple[_Row, ...]] = (
    (
        "histogram carrel_event_latency_seconds",
        "gateway",
        "From the moment an event happened, on its producer's clock, to its writing to a socket that is up to date.",
    ),
    ("gauge carrel_connections", "gateway", "Sockets that are open."),
    ("gauge carrel_connected_users", "gateway", "Users with a connection."),
    ("counter carrel_connections_accepted_total", "gateway", "Sessions that began."),
    ("counter carrel_connections_closed_total{reason}", "gateway", "Sessions that ended, by the close code's name."),
    ("counter carrel_heartbeats_total", "gateway", "Heartbeats sent.", "heartbeat status"),
    ("counter carrel_heartbeats_missed_total", "gateway", "Peers cut off for not answering one.", "heartbeat status"),
    ("counter carrel_socket_events_total", "gateway", "Events sent to sockets and streams."),
    ("counter carrel_socket_batches_total", "gateway", "Batches among what was sent."),
    ("counter carrel_socket_bytes_total", "gateway", "Bytes written to sockets."),
    ("counter carrel_socket_acks_total", "gateway", "Acknowledgements of clients."),
    ("counter carrel_socket_resets_total", "gateway", "Clients told that their position is of no use."),
    ("counter carrel_socket_gaps_total", "gateway", "Clients told of a hole."),
    ("gauge carrel_undelivered_events", "gateway", "Events in the log that have not been sent, of all connections."),
    ("gauge carrel_undelivered_events_max", "gateway", "The most of them that one connection is behind."),
    (
        "gauge carrel_undelivered_age_seconds",
        "gateway",
        "For how long a connection that is behind has not moved, at most.",
    ),
    ("gauge carrel_connections_stalled", "gateway", "Connections whose peer takes no more at the moment."),
    ("gauge carrel_connections_window_full", "gateway", "Connections that wait for their client's acknowledgements."),
    ("gauge carrel_unacknowledged_window_events", "gateway", "Events sent to acknowledging clients, not acknowledged."),
    ("gauge carrel_ring_bytes", "gateway", "Bytes of events held for all users."),
    ("counter carrel_log_reads_total", "gateway", "Reads of the log for connections that are off their ring."),
    ("counter carrel_log_read_failures_total", "gateway", "Those of them that failed."),
    ("gauge carrel_upstream_attached", "gateway", "1 while the gateway is attached to a bridge."),
    ("counter carrel_http_requests_total{route,status}", "gateway", "Answered requests, by route and status."),
    ("histogram carrel_http_request_seconds{route}", "gateway", "How long answers took, sockets and streams apart."),
)

_STORES: Final[tuple[_Row, ...]] = (
    ("histogram carrel_run_store_seconds{operation}", "execution", "What reads and writes of the run store took."),
    ("counter carrel_run_store_errors_total{operation}", "execution", "Those that the store failed."),
    ("gauge carrel_runs_unreadable", "execution", "Runs that this process has met lately and that cannot be read."),
)

_SECURITY: Final[tuple[_Row, ...]] = (
    ("counter carrel_identity_mismatch_total", "grpc", "Calls or items whose identity differed from their ticket."),
    (
        "counter carrel_tickets_refused_total{reason}",
        "grpc",
        "Calls and items refused for a ticket: missing, invalid, retired_key, expired, revoked, scope (a wrong kind).",
    ),
    (
        "counter carrel_callers_refused_total{caller}",
        "grpc",
        "Calls refused because the caller's certificate may not make them; the log has the method.",
    ),
    ("gauge carrel_revoked_users", "execution gateway", "Users whose revocation is known."),
    ("gauge carrel_revocations_age_seconds", "execution gateway", "Since revocations were last learned."),
)

_CALLS: Final[tuple[_Row, ...]] = (
    ("counter carrel_grpc_calls_total{method,status}", "grpc", "Calls served, by method and status."),
    ("histogram carrel_grpc_call_seconds{method}", "grpc", "How long calls took; streams are not in it."),
    ("gauge carrel_grpc_calls_active{method}", "grpc", "Calls that are open."),
    ("counter carrel_grpc_calls_refused_total", "grpc", "Calls refused because too many were open."),
)

_PROCESS: Final[tuple[_Row, ...]] = (
    ("gauge carrel_process_memory_bytes", "all", "Resident memory.", "memory"),
    ("counter carrel_process_cpu_seconds_total", "all", "CPU time, of user and system.", "CPU"),
    ("gauge carrel_process_start_time_seconds", "all", "When the process began, as Unix time."),
    ("gauge carrel_process_open_files", "all", "Open file descriptors."),
    ("histogram carrel_event_loop_lag_seconds", "all", "How late the event loop woke, looked at four times a second."),
    ("gauge carrel_service_ready", "all", "1 while the service says that it is ready."),
    ("gauge carrel_readiness_check{check}", "all", "1 for each readiness check that held at the last look, else 0."),
    ("gauge carrel_build_info{version}", "all", "Always 1; the version is in the label."),
    ("counter carrel_spans_total{outcome}", "all", "Spans of kept traces: exported, dropped (no room), failed."),
    ("counter carrel_metrics_failures_total", "all", "Metrics that could not be read at a collection."),
)

ENTRIES: Final[Mapping[str, tuple[_Row, ...]]] = MappingProxyType(
    {
        "Engines and contexts": _ENGINES,
        "Runs": _RUNS,
        "Where a run's time goes": _CHAIN,
        "Workers": _POOL,
        "Models and tools": _MODELS_AND_TOOLS,
        "Events on their way to the log": _EVENTS,
        "The log": _LOG,
        "Connections and delivery": _SOCKETS,
        "The run store": _STORES,
        "Security": _SECURITY,
        "gRPC": _CALLS,
        "Every process": _PROCESS,
    }
)
