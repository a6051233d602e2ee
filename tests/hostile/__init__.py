"""Hostile input over real sockets: an attacker who has a certificate, and what it must not be able to harm."""
