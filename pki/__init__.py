"""pki: the certificates of a small private authority. Knows neither workerd nor workerctl."""
