"""What things are: orders, withdrawals, deposits, venues, sessions, stops. Uses nothing but `schemas`."""
