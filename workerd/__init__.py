"""workerd: a daemon that runs programs as jobs and keeps every byte that they print."""
