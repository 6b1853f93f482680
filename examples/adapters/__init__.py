"""One order desk, written with pydantic-ai, with LangGraph and with the OpenAI Agents SDK, and each an agent of Carrel.

``orders`` is what all three work on. Each ``…_desk`` module is ordinary code of its library: it knows nothing of Carrel
and answers on its own with ``python -m``. ``agents`` makes agent classes of them, in three lines each.
"""
