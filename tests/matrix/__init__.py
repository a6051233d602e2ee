"""Who may make which call: the table of docs/security.md, cell by cell, against a real daemon."""
