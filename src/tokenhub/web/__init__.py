"""The HTTP edge: HTTP in, HTTP out; decides nothing."""
