"""A record as it arrives: decoded, proven, judged in one order, answered."""
