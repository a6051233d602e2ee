"""The audit trail: lines of JSON, each bound to the one before. Knows neither the daemon nor the client."""
