"""The user's net: found, read, never touched."""
