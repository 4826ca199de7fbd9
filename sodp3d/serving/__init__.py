"""A planner that is served to robots: the wire format, the server, and its clients."""
