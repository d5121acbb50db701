"""What happened: journal, audit, series, metrics, events."""
