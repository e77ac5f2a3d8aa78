"""What an answer may be wrong by: estimates, their moments, leave-one-out and U-statistics, skewed intervals."""
