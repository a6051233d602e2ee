"""The handlers: one module for each RPC, each an adapter from the contract to the engine."""
