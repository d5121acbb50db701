"""One request, from admitted to settled."""
