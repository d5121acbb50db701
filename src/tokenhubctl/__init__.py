"""tokenhubctl: the admin command line; imports Click and the standard library, no server code."""

# Equal to the project's version (a test compares them). A literal, because asking the installed
# package costs more than the whole of `tokenhubctl version`.
__version__ = "0.1.0"
