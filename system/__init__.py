"""What the daemon and the client both ask of the machine that they run on."""
