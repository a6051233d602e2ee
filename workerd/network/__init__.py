"""What comes and goes over the network: connections, HTTP/2, messages."""
