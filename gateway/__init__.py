"""The gateway: sockets, login and REST in front of the services. It keeps nothing that cannot be lost."""
