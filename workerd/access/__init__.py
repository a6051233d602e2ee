"""Who may do what: certificates that count, users, policies, and every decision."""
