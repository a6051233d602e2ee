"""workerctl: the client of workerd, as a command and as a library (`workerctl.client`)."""
