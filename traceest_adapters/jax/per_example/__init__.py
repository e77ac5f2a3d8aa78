"""Products and norms an example each: jaxprs interpreted, rules, ghost norms, loops over time; all are verified."""
