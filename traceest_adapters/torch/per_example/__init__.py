"""Products and norms an example each: recorded layers, rules, ghost norms, recurrences; all are verified."""
