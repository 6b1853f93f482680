"""Executors: how one attempt's agent runs, each behind ``domain.executor.AgentExecutor``."""
