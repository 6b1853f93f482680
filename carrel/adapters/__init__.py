"""Agents written with other libraries, as Carrel's: one module for each library, and its extra.

    from carrel.adapters.pydantic_ai import agent_class      # pip install 'carrel[pydantic-ai]'
    from carrel.adapters.langgraph import agent_class        # pip install 'carrel[langgraph]'
    from carrel.adapters.openai_agents import agent_class    # pip install 'carrel[openai-agents]'

Nothing is imported here: each module loads its own library, and says which extra is missing.
"""
