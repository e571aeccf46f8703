"""Cost and quality of a model: FLOPs, latency, agreement with the dense model, a task's metrics."""
