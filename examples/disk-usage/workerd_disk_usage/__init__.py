"""A plugin of workerd and workerctl: one RPC, `Measure`, and one command, `disk-usage`."""
