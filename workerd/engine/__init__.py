"""The engine: jobs, their processes and their logs, usable as a library without gRPC, TLS or user rights.

Start at `workerd.engine.engine.Engine`. This module stays empty because the zygote, which every job's supervisor is
forked from, imports it: whatever it imported would be in the memory of each of them.
"""
