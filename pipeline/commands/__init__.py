"""What operators say: halts, approvals, words on what is in doubt."""
