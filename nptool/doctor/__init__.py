"""`nptool doctor`: what is installed, what the machine has, and what is wrong with either."""
