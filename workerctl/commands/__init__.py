"""The subcommands: one module for each, found through the entry-point group `workerctl.commands`."""
