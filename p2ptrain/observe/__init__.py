"""One vocabulary of events for logs, metrics, reports and checkers."""
