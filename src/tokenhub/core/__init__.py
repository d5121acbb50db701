"""The vocabulary: plain data, errors, clock. Imports the standard library and msgspec only."""
