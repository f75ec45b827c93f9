"""Ready load scenarios: a Locust file for each situation, with an SLA file beside it."""
