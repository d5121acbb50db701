"""tokenhubctl: the admin command line; imports Click and the standard library, no server code."""
