"""agent_instance: agent classes, isolated instances of them, tool dispatch. It keeps no run's state."""
