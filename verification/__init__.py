"""The judge: evidence from outside the system, and the promises it is held against."""
