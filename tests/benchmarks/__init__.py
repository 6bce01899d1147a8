"""Speed and memory against other trainers; each measurement in a process of its own."""
