"""Breaking things on purpose while jobs write and followers read, and comparing every byte afterwards."""
