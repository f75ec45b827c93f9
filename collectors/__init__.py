"""What was measured: the vocabulary, the statistics, the telemetry, the recorder and the store.

Imports no sibling package, and neither Locust nor gevent, so that ``streamgauge check`` is light.
"""
