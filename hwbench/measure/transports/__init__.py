"""How a worker is started and spoken to; the worker itself knows nothing of it."""
